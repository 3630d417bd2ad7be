"""Deadlines, times to live, scheduling timeouts and the evaluator: what ends a job besides its gang."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greentrain.api.conditions import Type, find_condition
from greentrain.api.spec import ReplicaType
from greentrain.core.lifecycle.attempts import backoff_until
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.pods import Pod, PodState, Rank
from greentrain.core.seen.snapshot import Job, Snapshot
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import at, exited, job_of, pod, seen

Json = dict[str, Any]
EVALUATOR = Rank(ReplicaType.EVALUATOR, 0)


def step(job: Job, *pods: Pod, second: float) -> Decision:
    return decide(seen(job, *pods), now=at(second))


def stored(job: Job, decision: Decision, manifest: Json | None = None) -> Job:
    body = manifest or {"metadata": {"name": job.name}, "spec": job.spec}
    return job_of(body, status=decision.status, generation=job.generation + (manifest is not None))


def edit(job: Job, manifest: Json) -> Job:
    return stored(job, Decision(job.status), manifest)


def running(manifest: Json, *, second: float = 0, attempt: int = 1, job: Job | None = None) -> Job:
    """The job with an attempt whose pods all run since that second."""
    job = job or job_of(manifest)
    job = stored(job, step(job, second=second))
    return stored(job, step(job, *gang(attempt), second=second))


def gang(attempt: int = 1, **facts: Any) -> tuple[Pod, ...]:
    return tuple(pod(i, attempt=attempt, **facts) for i in range(2))


def said(decision: Decision, type_: Type) -> tuple[str, str, str]:
    found = find_condition(decision.status.conditions, type_)
    assert found is not None
    return found.status, found.reason, found.message


def limited(**run_policy: Any) -> Json:
    return build_job(runPolicy=run_policy)


# -- activeDeadlineSeconds -------------------------------------------------------------------------------


def test_a_deadline_stops_the_gang_as_a_suspension_does_and_then_fails_the_job() -> None:
    job = running(limited(activeDeadlineSeconds=100))
    before = step(job, *gang(), second=99)
    assert (before.deletions, before.look_again) == ((), at(100))
    stopping = step(job, *gang(), second=100)
    assert len(stopping.deletions) == 2
    assert stopping.record_first
    assert stopping.status.attempts[-1].end_time is None
    assert said(stopping, Type.RUNNING)[:2] == ("False", "DeadlineExceeded")
    job = stored(job, stopping)
    half = step(job, exited(0, 143, 101), pod(1, terminating=True), second=102)
    assert half.status.attempts[-1].end_time is None
    over = step(job, exited(0, 143, 101), exited(1, 143, 102), second=103)
    assert said(over, Type.FAILED)[:2] == ("True", "DeadlineExceeded")
    assert "spec.runPolicy.activeDeadlineSeconds 100" in said(over, Type.FAILED)[2]
    assert over.status.attempts[-1].counted_against is None


def test_the_deadline_counts_the_seconds_run_and_a_resume_does_not_start_it_anew() -> None:
    manifest = limited(activeDeadlineSeconds=100)
    job = running(manifest)
    job = edit(job, limited(activeDeadlineSeconds=100, suspend=True))
    job = stored(job, step(job, *gang(), second=60))
    job = stored(job, step(job, exited(0, 143, 62), exited(1, 143, 62), second=62))
    assert job.status.active_seconds == 62
    job = edit(job, manifest)
    job = running(manifest, job=job, second=5000, attempt=2)
    assert step(job, *gang(2), second=5037).deletions == ()
    assert len(step(job, *gang(2), second=5038).deletions) == 2


def test_time_queued_does_not_count_against_the_deadline() -> None:
    job = job_of(limited(activeDeadlineSeconds=10))
    job = stored(job, step(job, second=0))
    waiting = tuple(pod(i, PodState.PENDING, waiting_reason="Unschedulable") for i in range(2))
    job = stored(job, step(job, *waiting, second=5))
    assert step(job, *waiting, second=9999).deletions == ()
    job = stored(job, step(job, *gang(), second=10_000))
    assert step(job, *gang(), second=10_009).deletions == ()
    assert len(step(job, *gang(), second=10_010).deletions) == 2


def test_a_deadline_raised_while_the_pods_stop_lets_the_job_go_on() -> None:
    job = running(limited(activeDeadlineSeconds=100))
    job = stored(job, step(job, *gang(), second=100))
    job = edit(job, limited(activeDeadlineSeconds=1000))
    down = (exited(0, 143, 101, terminating=True), exited(1, 143, 101, terminating=True))
    ended = step(job, *down, second=102)
    assert said(ended, Type.RESTARTING)[0] == "True"
    assert (ended.status.failure_count, ended.status.active_seconds) == (0, 102)
    again = step(stored(job, ended), second=110)
    assert len(again.pods) == 2


def test_success_outweighs_a_deadline_reached_in_the_same_moment() -> None:
    job = running(limited(activeDeadlineSeconds=100))
    done = step(job, exited(0, 0, 99), exited(1, 0, 99), second=200)
    assert said(done, Type.SUCCEEDED)[0] == "True"


def test_a_restart_within_the_deadline_uses_what_is_left_of_it() -> None:
    manifest = limited(activeDeadlineSeconds=100)
    job = running(manifest)
    job = stored(job, step(job, exited(0, 144, 70), exited(1, 137, 70), second=70))
    assert job.status.active_seconds == 70
    job = running(manifest, job=job, second=100, attempt=2)
    assert step(job, *gang(2), second=129).deletions == ()
    assert len(step(job, *gang(2), second=130).deletions) == 2


# -- ttlSecondsAfterFinished ------------------------------------------------------------------------------


def finished(manifest: Json) -> Job:
    job = running(manifest)
    return stored(job, step(job, exited(0, 0, 10), exited(1, 0, 10), second=11))


def test_a_finished_job_is_deleted_when_its_time_to_live_is_over() -> None:
    job = finished(limited(ttlSecondsAfterFinished=60))
    early = step(job, second=70)
    assert (early.delete_job, early.look_again) == (False, at(71))
    assert step(job, second=71).delete_job


def test_a_time_to_live_of_0_is_at_once_and_without_one_a_job_stays() -> None:
    assert step(finished(limited(ttlSecondsAfterFinished=0)), second=11).delete_job
    assert not step(finished(build_job()), second=1e6).delete_job


def test_a_time_to_live_may_be_set_changed_and_taken_away_after_the_end() -> None:
    job = finished(build_job())
    assert step(edit(job, limited(ttlSecondsAfterFinished=5)), second=100).delete_job
    kept = edit(finished(limited(ttlSecondsAfterFinished=60)), build_job())
    assert not step(kept, second=1e6).delete_job


def test_a_finished_job_whose_spec_was_made_invalid_is_not_deleted() -> None:
    job = finished(limited(ttlSecondsAfterFinished=5))
    broken = edit(job, build_job(enregy={}, runPolicy={"ttlSecondsAfterFinished": 5}))
    assert not step(broken, second=1e6).delete_job


def test_a_failed_job_has_a_time_to_live_too() -> None:
    job = running(build_job(restart_policy="Never", runPolicy={"ttlSecondsAfterFinished": 60}))
    job = stored(job, step(job, exited(0, 1, 10), exited(1, 144, 10), second=11))
    assert said(Decision(job.status), Type.FAILED)[0] == "True"
    assert step(job, second=71).delete_job


# -- schedulingPolicy.scheduleTimeoutSeconds ----------------------------------------------------------------


def unscheduled(index: int, created: float) -> Pod:
    return pod(
        index,
        PodState.PENDING,
        waiting_reason="Unschedulable",
        waiting_message="0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
        created=at(created),
    )


def test_a_pod_no_node_takes_fails_the_job_in_the_end_with_the_schedulers_words() -> None:
    job = job_of(limited(schedulingPolicy={"scheduleTimeoutSeconds": 300}))
    job = stored(job, step(job, second=0))
    early = step(job, pod(0), unscheduled(1, 1), second=300)
    assert (said(early, Type.PODS_READY)[1], early.look_again) == ("Unschedulable", at(301))
    late = step(job, pod(0), unscheduled(1, 1), second=301)
    status, reason, message = said(late, Type.FAILED)
    assert (status, reason) == ("True", "ScheduleTimeout")
    assert "not scheduled within 300 s: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu" in message


def test_without_a_timeout_pods_wait_as_long_as_it_takes() -> None:
    job = job_of()
    job = stored(job, step(job, second=0))
    late = step(job, pod(0), unscheduled(1, 1), second=1e6)
    assert said(late, Type.FAILED)[0] == "False"


# -- the evaluator -------------------------------------------------------------------------------------------


def with_evaluator(policy: str = "OnFailure", **run_policy: Any) -> Json:
    manifest = build_job(runPolicy=run_policy)
    manifest["spec"]["tfReplicaSpecs"]["Evaluator"] = {
        "restartPolicy": policy,
        "template": build_template(),
    }
    return manifest


def evaluator(state: PodState = PodState.RUNNING, *, uid: str = "evaluator-1", **facts: Any) -> Pod:
    made = pod(0, state, rank=EVALUATOR, **facts)
    return Pod(
        **{f: getattr(made, f) for f in Pod.__dataclass_fields__ if f not in ("name", "uid")},
        name="digits-evaluator-0-1",
        uid=uid,
    )


def with_its_gang(manifest: Json) -> Job:
    job = job_of(manifest)
    job = stored(job, step(job, second=0))
    return stored(job, step(job, *gang(), evaluator(), second=1))


def test_an_evaluator_that_fails_is_made_again_alone_and_counted_once() -> None:
    job = with_its_gang(with_evaluator())
    dead = evaluator(PodState.EXITED, exit_code=1, log_tail="no checkpoint yet")
    counted = step(job, *gang(), dead, second=10)
    assert counted.record_first
    assert [d.name for d in counted.deletions] == ["digits-evaluator-0-1"]
    assert said(counted, Type.RUNNING)[0] == "True"
    assert said(counted, Type.PODS_READY)[2].endswith("no checkpoint yet; restart 1 of at most 3")
    job = stored(job, counted)
    again = step(job, *gang(), dead, second=11)  # killed before the deletion: deleted, not counted again
    assert [d.name for d in again.deletions] == ["digits-evaluator-0-1"]
    assert (again.status.failure_count, again.status.attempt_count) == (1, 1)
    gone = step(stored(job, again), *gang(), second=12)
    assert [p["metadata"]["name"] for p in gone.pods] == ["digits-evaluator-0-1"]
    new = step(stored(job, gone), *gang(), evaluator(uid="evaluator-2"), second=13)
    assert said(new, Type.PODS_READY)[:2] == ("True", "AllReady")


def test_an_evaluator_that_failed_and_was_gone_before_anybody_looked_is_counted_once() -> None:
    job = with_its_gang(with_evaluator())
    dead = evaluator(PodState.EXITED, exit_code=1, log_tail="no checkpoint yet")
    gone = Snapshot(job=job, pods=gang(), last_states=(dead,), has_service=True)
    counted = decide(gone, now=at(10))
    assert (counted.record_first, counted.deletions, counted.pods) == (True, (), ())
    assert counted.status.failure_count == 1
    assert [r.uid for r in counted.status.attempts[-1].replaced] == [dead.uid]
    again = decide(replace(gone, job=stored(job, counted)), now=at(11))
    assert again.status.failure_count == 1
    assert [p["metadata"]["name"] for p in again.pods] == ["digits-evaluator-0-1"]


def test_an_evaluators_second_restart_waits() -> None:
    job = with_its_gang(with_evaluator())
    for uid, second in (("evaluator-1", 10), ("evaluator-2", 20)):
        job = stored(job, step(job, *gang(), evaluator(PodState.EXITED, exit_code=1, uid=uid), second=second))
    held = step(job, *gang(), second=29)
    assert (held.pods, held.look_again) == ((), at(30))
    assert len(step(job, *gang(), second=30).pods) == 1


@pytest.mark.parametrize(
    ("policy", "code", "fails"),
    [("Never", 1, True), ("OnFailure", 1, False), ("ExitCode", 1, True), ("ExitCode", 137, False)],
)
def test_an_evaluator_is_judged_by_the_same_matrix(policy: str, code: int, fails: bool) -> None:
    job = with_its_gang(with_evaluator(policy))
    judged = step(job, *gang(), evaluator(PodState.EXITED, exit_code=code), second=10)
    assert (said(judged, Type.FAILED)[0] == "True") is fails


def test_an_evaluator_beyond_the_limit_fails_the_job() -> None:
    job = with_its_gang(with_evaluator(backoffLimit=0))
    judged = step(job, *gang(), evaluator(PodState.EXITED, exit_code=1), second=10)
    assert said(judged, Type.FAILED)[:2] == ("True", "BackoffLimitExceeded")


def test_a_finished_evaluator_stays_finished_and_holds_nothing_up() -> None:
    job = with_its_gang(with_evaluator())
    done = evaluator(PodState.EXITED, exit_code=0)
    going_on = step(job, *gang(), done, second=10)
    assert (going_on.pods, going_on.deletions) == ((), ())
    assert said(going_on, Type.PODS_READY) == ("True", "AllReady", "2 of 3 pods ready, 1 finished")
    over = step(job, exited(0, 0, 20), exited(1, 0, 20), evaluator(), second=21)
    assert said(over, Type.SUCCEEDED)[0] == "True"


def test_a_job_runs_while_its_evaluator_is_still_to_come_and_restarts_with_it() -> None:
    job = job_of(with_evaluator())
    job = stored(job, step(job, second=0))
    waiting = evaluator(PodState.PENDING, waiting_reason="Unschedulable", waiting_message="0/1 nodes")
    running_ = step(job, *gang(), waiting, second=1)
    assert said(running_, Type.RUNNING)[0] == "True"
    broken = step(stored(job, running_), exited(0, 144, 5), exited(1, 137, 5), waiting, second=6)
    assert len(broken.deletions) == 3
    next_attempt = step(stored(job, broken), second=7)
    assert len(next_attempt.pods) == 3


def test_an_evaluator_that_was_edited_away_may_fail_without_ending_the_job() -> None:
    job = edit(with_its_gang(with_evaluator()), build_job())
    going_on = step(job, *gang(), evaluator(PodState.EXITED, exit_code=1), second=10)
    assert said(going_on, Type.FAILED)[0] == "False"
    assert (going_on.deletions, going_on.pods, going_on.status.failure_count) == ((), (), 0)


def test_an_evaluator_evicted_counts_as_infrastructure() -> None:
    job = with_its_gang(with_evaluator("Never"))
    refused = evaluator(PodState.FAILED, exit_reason="OutOfcpu")
    judged = step(job, *gang(), refused, second=10)
    counts = (judged.status.failure_count, judged.status.infrastructure_failure_count)
    assert counts == (0, 1)


# -- finished ranks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["Never", "OnFailure", "Always", "ExitCode"])
def test_a_finished_worker_whose_pod_is_removed_is_neither_lost_nor_made_again(policy: str) -> None:
    job = running(build_job(restart_policy=policy))
    job = stored(job, step(job, pod(0), exited(1, 0, 10), second=11))
    assert job.status.attempts[-1].finished_ranks == ("worker-1",)
    alone = step(job, pod(0), second=600)
    assert (alone.pods, alone.deletions) == ((), ())
    assert said(alone, Type.RUNNING)[0] == "True"
    assert said(alone, Type.PODS_READY) == ("True", "AllReady", "1 of 2 pods ready, 1 finished")
    done = step(stored(job, alone), exited(0, 0, 700), second=701)
    assert said(done, Type.SUCCEEDED)[0] == "True"
    assert done.status.replica_statuses["Worker"].succeeded == 2


def test_all_workers_may_finish_and_be_removed_one_after_another() -> None:
    job = running(build_job(successPolicy="AllWorkers"))
    job = stored(job, step(job, exited(0, 0, 10), pod(1), second=11))
    job = stored(job, step(job, pod(1), second=20))
    assert said(step(job, exited(1, 0, 30), second=31), Type.SUCCEEDED)[0] == "True"


def test_a_worker_that_finished_unseen_by_the_status_is_known_by_its_last_state() -> None:
    job = running(build_job())
    gone = Snapshot(job=job, pods=(pod(0),), last_states=(exited(1, 0, 10),), has_service=True)
    decision = decide(gone, now=at(11))
    assert decision.status.attempts[-1].finished_ranks == ("worker-1",)
    assert said(decision, Type.RUNNING)[0] == "True"


# -- clocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [10, 3600])
def test_a_clock_set_back_makes_no_window_longer_than_twice_its_length(back: float) -> None:
    job = running(build_job(), second=5000)
    broken = exited(0, 1, 5010), pod(1)
    job = stored(job, step(job, *broken, second=5010))
    now = 5010 - back
    judged = step(job, *broken, second=now + 150)
    assert judged.status.attempts[-1].end_time is not None


@pytest.mark.parametrize(("now", "due"), [(100, 180), (90, 180), (-3500, -3500), (500, 180)])
def test_a_restart_waits_its_delay_and_not_for_a_clock_that_was_set_back(now: float, due: float) -> None:
    assert backoff_until(at(100), 5, now=at(now)) == at(due)


def test_no_attempt_begins_once_the_deadline_is_used_up_but_a_suspended_job_waits_for_its_owner() -> None:
    manifest = limited(activeDeadlineSeconds=100)
    job = running(manifest)
    job = stored(job, step(job, exited(0, 144, 70), exited(1, 137, 70), second=70))
    lowered = edit(job, limited(activeDeadlineSeconds=60))
    assert said(step(lowered, second=80), Type.FAILED)[:2] == ("True", "DeadlineExceeded")
    suspended = edit(job, limited(activeDeadlineSeconds=60, suspend=True))
    assert said(step(suspended, second=80), Type.FAILED)[0] == "False"


# -- what stops a job holds beside a spec that is refused ------------------------------------------------


def broken(policy: object, **more: Any) -> Json:
    """A spec that is refused for another field."""
    manifest = build_job(enregy={}, **more)
    manifest["spec"]["runPolicy"] = policy
    return manifest


@pytest.mark.parametrize(
    ("policy", "stopped"),
    [
        ({"suspend": True}, "SuspendRequested"),
        ({"suspend": True, "suspendd": True}, "SuspendRequested"),
        ({"suspend": True, "backoffLimit": -1}, "SuspendRequested"),
        ({"suspend": True, "activeDeadlineSeconds": None}, "SuspendRequested"),
        ({"suspend": "perhaps"}, None),  # no boolean: as admitted, false; and no deadline any more
        ({"activeDeadlineSeconds": 5}, "DeadlineExceeded"),
        ({"activeDeadlineSeconds": 5, "cleanPodPolicy": "Some"}, "DeadlineExceeded"),
        ({"activeDeadlineSeconds": "5"}, "DeadlineExceeded"),  # as admitted: 100
        ("suspend", "DeadlineExceeded"),
        (["suspend"], "DeadlineExceeded"),
        ({}, None),
        (None, None),  # the deadline was taken away
        ({"activeDeadlineSeconds": 10_000}, None),
    ],
)
def test_a_refused_edit_still_obeys_suspend_and_deadline(policy: object, stopped: str | None) -> None:
    job = running(limited(activeDeadlineSeconds=100))
    decision = step(edit(job, broken(policy)), *gang(), second=101)
    assert said(decision, Type.ADMITTED)[:2] == ("False", "InvalidSpec")
    assert decision.status.attempts[-1].reason == stopped
    assert len(decision.deletions) == (2 if stopped else 0)
    assert ("is stopped, and none follows" in said(decision, Type.ADMITTED)[2]) is bool(stopped)


def test_a_refused_edit_that_suspends_is_suspended_and_goes_on_once_it_is_corrected() -> None:
    job = running(limited())
    bad = edit(job, broken({"suspend": True}))
    stopping = stored(bad, step(bad, *gang(), second=5))
    ended = stored(stopping, step(stopping, exited(0, 143), exited(1, 143), second=8))
    gone = step(ended, second=9)
    assert said(gone, Type.SUSPENDED)[:2] == ("True", "SuspendRequested")
    assert (gone.status.attempts[-1].reason, gone.pods) == ("SuspendRequested", ())
    resumed = step(edit(stored(ended, gone), limited()), second=20)
    assert [p["metadata"]["name"] for p in resumed.pods] == ["digits-worker-0-2", "digits-worker-1-2"]


def test_a_job_whose_edit_is_refused_fails_at_the_deadline_it_was_admitted_with() -> None:
    job = running(limited(activeDeadlineSeconds=100))
    bad = edit(job, broken({"activeDeadlineSeconds": -1}))
    before = step(bad, *gang(), second=99)
    assert (before.deletions, before.look_again) == ((), at(100))
    stopping = stored(bad, step(bad, *gang(), second=100))
    failed = step(stopping, exited(0, 143), exited(1, 143), second=104)
    assert said(failed, Type.FAILED)[:2] == ("True", "DeadlineExceeded")
    assert "activeDeadlineSeconds 100 allows" in said(failed, Type.FAILED)[2]


def test_a_deadline_that_earlier_attempts_have_used_up_is_kept_from_the_first_pass_on() -> None:
    job = running(limited(activeDeadlineSeconds=100))
    job = job_of(
        {"metadata": {"name": job.name}, "spec": job.spec},
        status=job.status.model_copy(
            update={
                "active_seconds": 100,
                "attempts": (job.status.attempts[-1].model_copy(update={"running_time": None}),),
            }
        ),
    )
    decision = step(job, *gang(), second=300)
    assert decision.status.attempts[-1].reason == "DeadlineExceeded"
