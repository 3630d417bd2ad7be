"""One pass as a table: what was seen, and what is done about it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from greentrain.api.conditions import Type, find_condition
from greentrain.api.runtime import Checkpoint, Progress, TerminationMessage
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.stored import dump_job_status
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.pods import Pod, PodState
from greentrain.core.seen.snapshot import Job, Obstacle, Snapshot, parse_status
from greentrain.core.status.essence import essence, find_write_delay
from greentrain.core.status.events import transition_events
from tests.support.manifests import build_job
from tests.support.snapshots import at, exited, job_of, pod, seen


def step(job: Job, *pods: Pod, second: float = 10, **facts: Any) -> Decision:
    return decide(seen(job, *pods, **facts), now=at(second))


def stored(job: Job, decision: Decision, manifest: dict[str, Any] | None = None) -> Job:
    """The job after the decision's status was stored, perhaps with an edited spec."""
    generation = job.generation + (manifest is not None)
    return job_of(
        manifest or {"metadata": {"name": job.name}, "spec": job.spec},
        status=decision.status,
        generation=generation,
    )


def started(manifest: dict[str, Any] | None = None) -> Job:
    """A job whose first attempt is recorded, its pods about to be made."""
    job = job_of(manifest)
    return stored(job, step(job, second=0))


def training(manifest: dict[str, Any] | None = None, workers: int = 2) -> Job:
    """A job whose first attempt runs."""
    job = started(manifest)
    return stored(job, step(job, *(pod(i) for i in range(workers)), second=1))


def is_(decision: Decision, type_: Type) -> str:
    found = find_condition(decision.status.conditions, type_)
    return "" if found is None else f"{found.status} {found.reason}"


def edited(**run_policy: Any) -> dict[str, Any]:
    return build_job(runPolicy=run_policy)


def test_a_new_job_is_recorded_before_its_pods_are_made() -> None:
    decision = step(job_of(), service=False)
    assert decision.record_first
    assert decision.status.attempt_count == 1
    assert decision.service is not None
    assert [p["metadata"]["name"] for p in decision.pods] == ["digits-worker-0-1", "digits-worker-1-1"]
    assert is_(decision, Type.CREATED) == "True AttemptCreated"
    assert is_(decision, Type.SUCCEEDED) == "Unknown Active"


def test_a_refused_job_gets_no_pods_and_a_running_one_keeps_them() -> None:
    bad = build_job(schedule={"policy": "LowestCarbon"})
    fresh = step(job_of(bad), service=False)
    assert (fresh.pods, fresh.service, is_(fresh, Type.ADMITTED)) == ((), None, "False InvalidSpec")
    job = training()
    going_on = step(stored(job, Decision(job.status), bad), pod(0), pod(1))
    assert (going_on.deletions, is_(going_on, Type.RUNNING)) == ((), "True Training")
    assert "goes on as it was started" in next(c.message for c in going_on.status.conditions)


def test_an_attempt_that_breaks_under_an_invalid_spec_waits_for_a_valid_one() -> None:
    job = training()
    bad = stored(job, Decision(job.status), build_job(enregy={}))
    broken = step(bad, exited(0, 1), exited(1, 144))
    assert not broken.pods
    assert not broken.deletions
    assert broken.status.attempts[-1].end_time is None
    mended = step(stored(bad, broken, build_job()), exited(0, 1), exited(1, 144))
    assert mended.status.attempts[-1].reason == "ProgramFailed"


def test_only_missing_pods_are_made_after_a_crash_in_between() -> None:
    decision = step(started(), pod(1, PodState.PENDING))
    assert [p["metadata"]["name"] for p in decision.pods] == ["digits-worker-0-1"]
    assert not decision.record_first


def test_a_pod_that_vanishes_before_all_had_started_is_made_again_and_afterwards_is_lost() -> None:
    before = step(started(), pod(0))
    assert len(before.pods) == 1
    after = step(training(), pod(0))
    assert not after.pods
    assert is_(after, Type.RUNNING) == "False PodLost"


def test_all_pods_running_is_running() -> None:
    decision = step(started(), pod(0), pod(1))
    assert is_(decision, Type.RUNNING) == "True Training"
    assert is_(decision, Type.PODS_READY) == "True AllReady"
    assert decision.status.phase == "Running"
    assert decision.status.display.workers == "2/2"


def test_a_dead_worker_restarts_the_whole_gang_and_is_counted() -> None:
    decision = step(training(), exited(0, 144, 5), exited(1, 137, 4))
    attempt = decision.status.attempts[-1]
    assert (attempt.reason, attempt.exit_code, attempt.counted_against) == ("Killed", 137, "backoffLimit")
    assert decision.status.failure_count == 1
    assert is_(decision, Type.RESTARTING) == "True Killed"
    assert {d.name for d in decision.deletions} == {"digits-worker-0-1", "digits-worker-1-1"}
    assert decision.record_first
    assert not decision.pods


def test_the_next_attempt_waits_for_every_old_pod() -> None:
    job = training()
    job = stored(job, step(job, exited(0, 144), exited(1, 137)))
    waiting = step(job, exited(1, 137, terminating=True))
    assert (waiting.pods, waiting.deletions) == ((), ())
    gone = step(stored(job, waiting))
    assert [p["metadata"]["name"] for p in gone.pods] == ["digits-worker-0-2", "digits-worker-1-2"]
    assert gone.status.phase == "Restarting"


def test_restarts_back_off_from_the_second_failure_on() -> None:
    job = training()
    job = stored(job, step(job, exited(0, 1), exited(1, 144), second=10))
    job = stored(job, step(job, second=10))
    running = [pod(i, attempt=2) for i in range(2)]
    job = stored(job, step(job, *running, second=11))
    broken = [exited(0, 1, attempt=2), exited(1, 144, attempt=2)]
    job = stored(job, step(job, *broken, second=20))
    assert job.status.failure_count == 2
    early = step(job, second=25)
    assert (early.pods, early.look_again) == ((), at(30))
    assert step(job, second=30).pods


def test_a_job_fails_when_its_backoff_limit_is_exceeded() -> None:
    decision = step(training(edited(backoffLimit=0)), exited(0, 137), exited(1, 144))
    assert is_(decision, Type.FAILED) == "True BackoffLimitExceeded"
    assert is_(decision, Type.SUCCEEDED) == "False BackoffLimitExceeded"
    assert decision.status.completion_time is not None
    assert "worker-0 was killed by SIGKILL" in next(
        c.message for c in decision.status.conditions if c.type == "Failed"
    )


def test_a_finished_job_stays_finished_and_only_cleans_up() -> None:
    job = training()
    done = step(job, exited(0, 0), pod(1))
    assert is_(done, Type.SUCCEEDED) == "True Succeeded"
    assert not done.deletions
    finished = stored(job, done)
    soon = step(finished, exited(0, 0), pod(1), second=12)
    assert (soon.deletions, soon.look_again) == ((), at(15))
    late = step(finished, exited(0, 0), pod(1), second=15)
    assert [d.name for d in late.deletions] == ["digits-worker-1-1"]
    assert not step(stored(job, done, build_job(workers=5)), second=99).pods


@pytest.mark.parametrize(
    ("policy", "energy", "deleted"),
    [
        ("Running", {}, {"digits-worker-1-1"}),
        ("All", {}, {"digits-worker-0-1", "digits-worker-1-1"}),
        ("None", {}, set()),
        ("None", {"budget": "1kWh", "onExhausted": "Warn"}, set()),
        ("None", {"budget": "1kWh"}, {"digits-worker-1-1"}),
        ("None", {"budget": "1kWh", "onExhausted": "Fail"}, {"digits-worker-1-1"}),
        ("All", {"budget": "1kWh"}, {"digits-worker-0-1", "digits-worker-1-1"}),
    ],
)
def test_clean_pod_policy_says_which_pods_go_and_under_a_budget_none_runs_on(
    policy: str, energy: dict[str, str], deleted: set[str]
) -> None:
    job = training(build_job(runPolicy={"cleanPodPolicy": policy}, energy=energy))
    finished = stored(job, step(job, exited(0, 0), pod(1)))
    assert {d.name for d in step(finished, exited(0, 0), pod(1), second=60).deletions} == deleted


@pytest.mark.parametrize(("second", "cut"), [(14, []), (15, [30])])
def test_of_a_finished_job_no_pod_goes_on_by_a_grace_period_that_somebody_named(
    second: float, cut: list[int]
) -> None:
    job = training()
    leaving = pod(1, terminating=True, cut_grace=30)
    finished = stored(job, step(job, exited(0, 0), leaving))
    decision = step(finished, exited(0, 0), leaving, second=second)
    assert [d.grace_seconds for d in decision.deletions] == cut


def test_suspending_stops_every_pod_and_reads_their_last_words() -> None:
    job = training()
    suspending = stored(job, Decision(job.status), edited(suspend=True))
    stopping = step(suspending, pod(0), pod(1))
    assert len(stopping.deletions) == 2
    assert stopping.status.phase == "Suspending"
    assert stopping.status.attempts[-1].end_time is None
    words = TerminationMessage(
        step=40, start_step=0, reason="stopped", checkpoint=Checkpoint(step=40, path="/c")
    )
    gone = (exited(0, 143, termination=words), exited(1, 143))
    stopped = step(stored(suspending, stopping), last_states=gone)
    assert is_(stopped, Type.SUSPENDED) == "True SuspendRequested"
    assert stopped.status.attempts[-1].reason == "SuspendRequested"
    assert stopped.status.attempts[-1].counted_against is None
    assert stopped.status.progress is not None
    assert stopped.status.progress.checkpoint is not None
    assert (stopped.status.progress.checkpoint.step, stopped.status.progress.checkpoint.confirmed) == (
        40,
        True,
    )


def test_resuming_starts_a_new_attempt_only_after_every_old_pod_is_gone() -> None:
    job = training()
    job = stored(
        job, step(stored(job, Decision(job.status), edited(suspend=True)), exited(0, 143), exited(1, 143))
    )
    resumed = stored(job, Decision(job.status), build_job())
    waiting = step(resumed, exited(0, 143, terminating=True))
    assert not waiting.pods
    going = step(stored(resumed, waiting))
    assert [p["metadata"]["name"] for p in going.pods] == ["digits-worker-0-2", "digits-worker-1-2"]
    assert is_(going, Type.SUSPENDED) == "False Resumed"
    assert going.status.failure_count == 0


def test_a_suspension_taken_back_while_the_pods_stop_costs_no_failure() -> None:
    job = training()
    suspending = stored(job, Decision(job.status), edited(suspend=True))
    stopping = stored(suspending, step(suspending, pod(0), pod(1)), build_job())
    still = step(stopping, exited(0, 143, terminating=True), pod(1, terminating=True))
    assert still.status.phase == "Suspending"
    down = stored(stopping, still)
    ended = step(down)
    assert (ended.status.attempts[-1].reason, ended.status.failure_count) == ("SuspendRequested", 0)
    again = step(stored(down, ended))
    assert [p["metadata"]["name"] for p in again.pods] == ["digits-worker-0-2", "digits-worker-1-2"]


def test_a_job_created_suspended_makes_no_pods() -> None:
    decision = step(job_of(edited(suspend=True)), service=False)
    assert (decision.pods, decision.service, is_(decision, Type.SUSPENDED)) == (
        (),
        None,
        "True SuspendRequested",
    )


def test_a_changed_replica_count_is_reported_and_applied_at_the_next_attempt() -> None:
    job = training()
    scaled = stored(job, Decision(job.status), build_job(workers=3))
    reported = step(scaled, pod(0), pod(1))
    assert (reported.pods, reported.deletions) == ((), ())
    assert is_(reported, Type.ADMITTED) == "True AppliesAtNextAttempt"
    admitted = find_condition(reported.status.conditions, Type.ADMITTED)
    assert admitted is not None
    assert "spec.tfReplicaSpecs.Worker.replicas 2 → 3" in admitted.message
    broken = stored(scaled, step(scaled, exited(0, 137), exited(1, 144)))
    assert len(step(broken).pods) == 3


def test_a_spec_changed_before_every_pod_had_started_begins_again_uncounted() -> None:
    job = started()
    scaled = stored(job, Decision(job.status), build_job(workers=3))
    decision = step(scaled, pod(0))
    assert decision.status.attempts[-1].reason == "SpecChanged"
    assert decision.status.failure_count == 0
    assert [d.name for d in decision.deletions] == ["digits-worker-0-1"]


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        ("Unschedulable", "Unschedulable"),
        ("ImagePullBackOff", "ImageUnavailable"),
        ("ErrImageNeverPull", "ImageUnavailable"),
        ("CreateContainerConfigError", "ContainerNotStarted"),
        ("ContainerCreating", "Starting"),
    ],
)
def test_what_keeps_a_pod_from_starting_stands_in_the_conditions_and_is_told(
    waiting: str, reason: str
) -> None:
    job = started()
    stuck = pod(1, PodState.PENDING, waiting_reason=waiting, waiting_message="0/2 nodes are available")
    decision = step(job, pod(0), stuck)
    assert is_(decision, Type.PODS_READY) == f"False {reason}"
    told = [e for e in transition_events(job.status, decision.status) if e.reason == reason]
    assert len(told) == (0 if reason == "Starting" else 1)


@pytest.mark.parametrize(
    "words",
    [
        "container has runAsNonRoot and image will run as root",
        'container\'s runAsUser breaks non-root policy (pod: "x", container: tensorflow)',
    ],
)
def test_a_pod_that_would_run_as_root_is_told_with_the_remedy(words: str) -> None:
    stuck = pod(1, PodState.PENDING, waiting_reason="CreateContainerConfigError", waiting_message=words)
    told = find_condition(step(started(), pod(0), stuck).status.conditions, Type.PODS_READY)
    assert told is not None
    assert words in told.message
    assert "securityContext.runAsNonRoot: false to allow it" in told.message


def test_a_strangers_pod_is_never_touched() -> None:
    taken = Obstacle(
        "Pod", "digits-worker-0-1", "NameTaken", "Pod digits-worker-0-1 exists and is not this job's"
    )
    decision = step(started(), pod(1), obstacles=(taken,))
    assert is_(decision, Type.ADMITTED) == "False NameTaken"
    assert not decision.deletions


def test_a_refused_creation_says_why() -> None:
    refused = Obstacle("Pod", "digits-worker-0-1", "Forbidden", "exceeded quota: pods, used: 10")
    decision = step(started(), obstacles=(refused,))
    condition = find_condition(decision.status.conditions, Type.PODS_READY)
    assert condition is not None
    assert (condition.reason, "exceeded quota" in condition.message) == ("CreateRefused", True)


def test_progress_is_shown_as_strings_and_a_confirmed_checkpoint_is_not_forgotten() -> None:
    manifest = build_job(checkpoint={"volume": {"emptyDir": {}}})
    job = training(manifest)
    said = Progress(step=50, start_step=0, total_steps=200, metrics={"loss": 0.123456789, "accuracy": 0.5})
    first = step(job, pod(0), pod(1), progress=said)
    assert first.status.progress is not None
    assert first.status.progress.percent == 25
    assert first.status.progress.metrics == {"accuracy": "0.5", "loss": "0.123457"}
    assert is_(first, Type.CHECKPOINTED) == "Unknown NotYet"
    later = said.model_copy(update={"step": 60, "checkpoint": Checkpoint(step=55, path="/c/55")})
    second = step(stored(job, first), pod(0), pod(1), progress=later)
    assert is_(second, Type.CHECKPOINTED) == "True Saved"
    same = step(stored(job, second), pod(0), pod(1), progress=later)
    assert essence(second.status) == essence(same.status)


def test_a_confirmed_checkpoint_is_one_a_termination_message_named_and_is_kept() -> None:
    job = training(build_job(checkpoint={"volume": {"emptyDir": {}}}))
    spoken = Progress(step=60, start_step=0, checkpoint=Checkpoint(step=55, path="/c/55"))
    going_on = step(job, pod(0), pod(1), progress=spoken)
    assert going_on.status.progress is not None
    assert going_on.status.progress.confirmed_checkpoint is None
    words = TerminationMessage(
        step=70, start_step=0, reason="stopped", checkpoint=Checkpoint(step=70, path="/c/70")
    )
    stopped = step(stored(job, going_on), exited(0, 143, termination=words), exited(1, 143))
    second = stored(stored(job, stopped), step(stored(job, stopped), second=20))
    spoken = spoken.model_copy(update={"step": 90, "checkpoint": Checkpoint(step=85, path="/c/85")})
    resumed = step(second, *(pod(i, attempt=2) for i in range(2)), second=21)
    later = step(stored(second, resumed), *(pod(i, attempt=2) for i in range(2)), second=22, progress=spoken)
    progress = later.status.progress
    assert progress is not None
    assert progress.checkpoint is not None
    assert progress.confirmed_checkpoint is not None
    assert (progress.checkpoint.step, progress.confirmed_checkpoint.step) == (85, 70)


def test_without_a_volume_the_job_says_a_restart_begins_at_step_0() -> None:
    assert is_(step(training(), pod(0), pod(1)), Type.CHECKPOINTED) == "False NoVolume"


def test_a_status_wiped_by_hand_is_found_again_from_the_pods() -> None:
    job = job_of(status=GreenTrainingJobStatus())
    decision = step(job, pod(0, attempt=3), pod(1, attempt=3))
    assert decision.status.attempts[-1].number == 3
    assert decision.status.attempts[-1].replicas == {"Worker": 2}
    assert not decision.pods


def test_a_deleted_job_is_left_to_the_garbage_collector() -> None:
    job = deepcopy(job_of())
    gone = Job(**{f: getattr(job, f) for f in Job.__dataclass_fields__ if f != "deleting"}, deleting=True)
    decision = decide(Snapshot(job=gone), now=at(0))
    assert (decision.pods, decision.deletions, decision.status) == ((), (), job.status)


SITUATIONS: dict[str, tuple[Job, tuple[Pod, ...]]] = {
    "new": (job_of(), ()),
    "started": (started(), (pod(0, PodState.PENDING), pod(1, PodState.PENDING))),
    "running": (training(), (pod(0), pod(1))),
    "settling": (training(), (exited(0, 1), pod(1))),
    "broken": (training(), (exited(0, 137), exited(1, 144))),
    "done": (training(), (exited(0, 0), exited(1, 0))),
    "refused": (job_of(build_job(schedule={})), ()),
    "suspended": (job_of(edited(suspend=True)), ()),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_deciding_twice_records_nothing_new(name: str) -> None:
    job, pods = SITUATIONS[name]
    first = step(job, *pods)
    again = step(stored(job, first), *pods)
    if name in ("new", "broken", "done"):  # another stage of the story follows; its own record must be stable
        job, first = stored(job, first), again
        again = step(stored(job, first), *pods)
    assert again.status == first.status
    assert not transition_events(first.status, again.status)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"runPolicy": {}},
        {"runPolicy": {"backoffLimit": 3}},
        {"runPolicy": {"backoffLimit": 1}},
        {"energy": {"budget": "5kWh"}},
        {"power": {"cap": "70%"}},
    ],
    ids=["defaults alone", "empty", "the default", "other", "budget", "cap"],
)
def test_a_pass_over_what_was_stored_finds_nothing_to_write(section: dict[str, Any]) -> None:
    manifest = build_job(**section)
    pods: tuple[Pod, ...] = ()
    status = GreenTrainingJobStatus()
    for second in (1, 2, 3):
        decided = step(job_of(manifest, status=status), *pods, second=second).status
        status, unreadable = parse_status(json.loads(json.dumps(dump_job_status(decided))))
        assert (status, unreadable) == (decided, "")
        pods = (pod(0), pod(1))
    again = step(job_of(manifest, status=status), *pods, second=3).status
    assert find_write_delay(status, again, since=0, measures_every=60) is None
