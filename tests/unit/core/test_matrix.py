"""docs/reference/restarts.md is the table: each of its cells is played to its end, in both orders of arrival."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.conditions import Type, is_true
from greentrain.api.runtime import Progress
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.pods import Pod, parse_pod
from greentrain.core.seen.times import format_time
from tests.support.manifests import build_job
from tests.support.snapshots import START, at, job_of, seen

PAGE = Path(__file__).parents[3] / "docs/reference/restarts.md"
POLICIES = ("Never", "OnFailure", "Always", "ExitCode")
Body = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the page's matrix."""

    cause: str
    seen_as: str
    reasons: tuple[str, ...]
    outcomes: dict[str, str]
    counted_as: str


def read_matrix() -> list[Row]:
    """The lines of the first table under the page's heading of that name."""
    section = PAGE.read_text().partition("\n## The matrix\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    rows = []
    for line in lines:
        cells = [c.strip() for c in line.strip("|").split("|")]
        reasons = tuple(r.strip(" `") for r in cells[2].split(","))
        rows.append(Row(cells[0], cells[1], reasons, dict(zip(POLICIES, cells[3:7], strict=True)), cells[7]))
    return rows


def body(index: int, status: Body, *, deleted: float | None = None) -> Body:
    """A pod of the first attempt as the server stores it."""
    meta: Body = {
        "name": f"digits-worker-{index}-1",
        "uid": f"pod-{index}",
        "creationTimestamp": format_time(at(0)),
        "labels": {
            "greentrain.dev/replica-type": "Worker",
            "greentrain.dev/replica-index": str(index),
            "greentrain.dev/attempt": "1",
        },
    }
    if deleted is not None:
        meta |= {"deletionTimestamp": format_time(at(deleted + 30)), "deletionGracePeriodSeconds": 30}
    return {"metadata": meta, "spec": {"nodeName": "node-1"}, "status": status}


def container(state: Body, phase: str, **status: Any) -> Body:
    return {"phase": phase, "containerStatuses": [{"name": "tensorflow", "state": state}], **status}


def running(**status: Any) -> Body:
    return container({"running": {}}, "Running", **status)


def cut_off() -> Body:
    """What the node controller leaves of a pod whose node stopped reporting."""
    conditions = [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": "True"},
    ]
    return container({"running": {}}, "Running", conditions=conditions)


def exit_(code: int, second: float = 10, reason: str = "Error", **status: Any) -> Body:
    terminated = {"exitCode": code, "reason": reason, "finishedAt": format_time(at(second))}
    return container({"terminated": terminated}, "Failed" if code else "Succeeded", **status)


def in_init(code: int, second: float = 10, **status: Any) -> Body:
    """The first of two init containers has ended, and the pod with it."""
    ended = {
        "exitCode": code,
        "reason": "Error",
        "finishedAt": format_time(at(second)),
        "message": "no such bucket\n",
    }
    return {
        **container({"waiting": {"reason": "PodInitializing"}}, "Failed"),
        "initContainerStatuses": [
            {"name": "download", "state": {"terminated": ended}},
            {"name": "unpack", "state": {"waiting": {"reason": "PodInitializing"}}},
        ],
        **status,
    }


def disrupted(reason: str) -> Body:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "said the cluster"}


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
    ],
}

CULPRITS: dict[str, list[Body | None]] = {
    "1": [body(1, exit_(1))],
    "its exit code, and the program was never started": [
        body(1, in_init(3)),
        body(1, in_init(1, conditions=[disrupted("TerminationByKubelet") | {"status": "False"}])),
    ],
    "126": [body(1, exit_(126))],
    "127": [body(1, exit_(127))],
    "128 with `StartError` or `ContainerCannotRun`": [
        body(1, exit_(128, reason="StartError")),
        body(1, exit_(128, reason="ContainerCannotRun")),
    ],
    "128": [body(1, exit_(128))],
    "130": [body(1, exit_(130))],
    "137": [body(1, exit_(137))],
    "137 with `OOMKilled`": [body(1, exit_(137, reason="OOMKilled"))],
    "143, no pod deleted": [body(1, exit_(143))],
    "every failed rank 144": [body(1, exit_(144))],
    "255": [body(1, exit_(255))],
    "the pod's reason or `DisruptionTarget` condition, whatever the exit code": [
        body(1, {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
        body(1, exit_(137) | {"reason": "Evicted"}),
        body(1, exit_(1, conditions=[disrupted("EvictionByEvictionAPI")])),
        body(1, exit_(143, conditions=[disrupted("TerminationByKubelet")])),
        body(1, exit_(0, conditions=[disrupted("TerminationByKubelet")])),
        body(1, exit_(0) | {"phase": "Failed", "reason": "Terminated"}),
        body(1, exit_(0, conditions=[disrupted("EvictionByEvictionAPI")]), deleted=9),
        body(1, in_init(143, conditions=[disrupted("TerminationByKubelet")])),
        body(1, {"phase": "Failed", "reason": "Terminated", "message": "imminent node shutdown"}),
    ],
    "the pod was preempted": [
        body(1, exit_(143, conditions=[disrupted("PreemptionByScheduler")]), deleted=9),
        body(1, {"phase": "Failed", "reason": "Preempting"}),
    ],
    "the node was lost": [
        body(1, running(conditions=[disrupted("DeletionByTaintManager")]), deleted=9),
        body(1, running(reason="NodeLost"), deleted=9),
        body(1, {"phase": "Failed", "conditions": [disrupted("DeletionByPodGC")]}),
    ],
    "it runs on, and its node does not answer": [
        body(1, cut_off()),
        body(1, cut_off(), deleted=9),
    ],
    "every other rank 144, it runs on": [body(1, running())],
    "it is gone, or ended after its deletion was requested, whether its exit code is reported or not": [
        None,
        body(1, exit_(143), deleted=9),
        body(1, exit_(137), deleted=9),
        body(1, exit_(1), deleted=9),
        body(1, exit_(0), deleted=9),
        body(1, in_init(143), deleted=9),
        body(1, in_init(1), deleted=9),
        body(1, running(), deleted=9),
        body(1, {"phase": "Failed"}, deleted=9),
    ],
    "the pod Failed without an exit code, another reason": [
        body(1, {"phase": "Failed", "reason": "OutOfcpu"})
    ],
    "never started, the registry's message, and the others gave up waiting": [
        body(1, container({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}, "Pending"))
    ],
    "never scheduled, the scheduler's message, and the others gave up waiting": [body(1, UNSCHEDULABLE)],
}
"""What the culprit, worker 1, looks like, by the matrix's column "as seen"; None is a pod that is gone."""

LIKEWISE = {
    "preempted": "the pod was preempted",
    "the node was lost": "the node was lost",
}


def culprits_of(row: Row) -> list[Body | None]:
    return CULPRITS[LIKEWISE.get(row.cause, row.seen_as)]


def parsed(*bodies: Body | None) -> list[Pod]:
    found = [parse_pod(b) for b in bodies if b is not None]
    return [p for p in found if p is not None]


def live(
    manifest: Body, stages: list[tuple[datetime, list[Pod]]], status: GreenTrainingJobStatus
) -> GreenTrainingJobStatus:
    """The job's status after these pods were seen at these times, each pass stored."""
    for now, pods in stages:
        for _ in range(2):
            job = job_of(manifest, status=status)
            status = decide(seen(job, *pods), now=now).status
    return status


def started(manifest: Body) -> GreenTrainingJobStatus:
    return decide(seen(job_of(manifest)), now=START).status


def play(row: Row, policy: str, culprit: Body | None, order: str) -> GreenTrainingJobStatus:
    """A gang of two whose worker 1 meets its fate and whose worker 0 loses its peer."""
    manifest = build_job(restart_policy=policy)
    status = started(manifest)
    ran, bystander = body(0, running()), body(0, exit_(144, 11))
    never_started = "never" in row.seen_as
    if not never_started:
        status = live(manifest, [(at(5), parsed(ran, body(1, running())))], status)
    healthy = culprit if never_started else body(1, running())
    first = parsed(ran, culprit) if order == "cause first" else parsed(bystander, healthy)
    both = parsed(bystander, culprit)
    return live(manifest, [(at(12), first), (at(13), both), (at(13 + 75), both)], status)


CELLS = [
    pytest.param(row, policy, culprit, order, id=f"{row.cause} {i}, {policy}, {order}")
    for row in read_matrix()
    if row.outcomes["Never"] in ("Failed", "restart")
    for i, culprit in enumerate(culprits_of(row))
    for policy, order in itertools.product(POLICIES, ("cause first", "consequence first"))
]


@pytest.mark.parametrize(("row", "policy", "culprit", "order"), CELLS)
def test_a_cell_of_the_matrix_says_what_happens(
    row: Row, policy: str, culprit: Body | None, order: str
) -> None:
    status = play(row, policy, culprit, order)
    ended = status.attempts[0]
    failed = is_true(status.conditions, Type.FAILED)
    assert ("Failed" if failed else "restart") == row.outcomes[policy]
    assert (ended.reason,) == row.reasons
    counts = (status.failure_count, status.infrastructure_failure_count)
    assert counts == ((1, 0) if row.counted_as == "program" else (0, 1))
    wanted = "backoffLimit" if row.counted_as == "program" else "infrastructureRestartLimit"
    assert ended.counted_against == wanted
    assert ended.message
    assert ended.message.startswith("worker-1") or row.reasons == ("PeerLost",)
    if failed:
        assert status.attempt_count == 1
        assert f"restartPolicy {policy}" in next(c.message for c in status.conditions if c.type == "Failed")


@pytest.mark.parametrize("had_begun", [True, False], ids=["all had begun", "one was still to begin"])
@pytest.mark.parametrize(
    ("row", "culprit"),
    [
        pytest.param(row, culprit, id=f"{row.cause} {i}")
        for row in read_matrix()
        if row.outcomes["Never"] in ("Failed", "restart") and row.cause != "a rank is frozen"
        for i, culprit in enumerate(culprits_of(row))
        if "never" not in row.seen_as and culprit is not None
    ],
)
def test_how_a_pod_ended_counts_although_it_was_gone_before_anybody_looked(
    row: Row, culprit: Body, had_begun: bool
) -> None:
    manifest = build_job(restart_policy="ExitCode")
    other, (last,) = body(0, running()), parsed(culprit)
    status = started(manifest)
    if had_begun:
        status = live(manifest, [(at(5), parsed(other, body(1, running())))], status)
    elif not last.ended:
        (again,) = decide(
            seen(job_of(manifest, status=status), *parsed(other), last_states=(last,)), now=at(12)
        ).pods
        assert again["metadata"]["name"] == last.name
        return
    for now, pods in ((12, parsed(other)), (13, parsed(body(0, exit_(144, 11))))):
        job = job_of(manifest, status=status)
        decision = decide(seen(job, *pods, last_states=(last,)), now=at(now))
        assert not decision.pods
        status = decision.status
    ended = status.attempts[0]
    assert (ended.reason,) == row.reasons
    assert (ended.exit_code, ended.running_time is not None) == (last.exit_code, True)
    assert ("Failed" if is_true(status.conditions, Type.FAILED) else "restart") == row.outcomes["ExitCode"]
    counts = (status.failure_count, status.infrastructure_failure_count)
    assert counts == ((1, 0) if row.counted_as == "program" else (0, 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_exit_0_of_the_deciding_rank_succeeds_and_of_another_changes_nothing(policy: str) -> None:
    manifest = build_job(restart_policy=policy)
    both = parsed(body(0, running()), body(1, running()))
    status = live(manifest, [(at(5), both)], started(manifest))
    one_done = parsed(body(0, running()), body(1, exit_(0)))
    going_on = live(manifest, [(at(20), one_done), (at(600), one_done)], status)
    assert going_on.attempts[0].end_time is None
    assert going_on.attempts[0].finished_ranks == ("worker-1",)
    assert is_true(going_on.conditions, Type.RUNNING)
    decision = decide(seen(job_of(manifest, status=going_on), *one_done), now=at(700))
    assert (decision.pods, decision.deletions) == ((), ())
    done = live(manifest, [(at(800), parsed(body(0, exit_(0, 790)), body(1, exit_(1, 790))))], going_on)
    assert is_true(done.conditions, Type.SUCCEEDED)
    assert (done.failure_count, done.infrastructure_failure_count) == (0, 0)


@dataclass(frozen=True)
class Stop:
    """Something that asks a running pod to stop, at second 20."""

    reason: str
    """Of the attempt that ends so."""
    run_policy: Body = field(default_factory=dict)
    """What is edited into the job."""
    begun: str | None = None
    """The stop that has been recorded already."""
    conditions: tuple[Body, ...] = ()
    deleted: float | None = 20


SHUT_DOWN = disrupted("TerminationByKubelet") | {"lastTransitionTime": format_time(at(20))}
STOPS = {
    "suspend": Stop("SuspendRequested", {"suspend": True}),
    "a deadline": Stop("DeadlineExceeded", {"activeDeadlineSeconds": 15}),
    "a budget": Stop("BudgetExhausted", begun="BudgetExhausted"),
    "an agent's allowance": Stop("AllowanceSpent", begun="AllowanceSpent"),
    "a drain": Stop("Evicted", conditions=(disrupted("EvictionByEvictionAPI"),)),
    "a preemption": Stop("Preempted", conditions=(disrupted("PreemptionByScheduler"),)),
    "a deletion by hand": Stop("PodLost"),
    "the node's shutdown": Stop("Evicted", conditions=(SHUT_DOWN,), deleted=None),
}


def stop_alone(
    stop: Stop, order: str, *, finished: float, message: str = "", progress: Progress | None = None
) -> GreenTrainingJobStatus:
    """A job of one worker runs, is asked to stop at second 20, and its program ends with 0."""
    manifest = build_job(workers=1)
    status = live(manifest, [(at(5), parsed(body(0, running())))], started(manifest))
    if stop.begun:
        asked = status.attempts[0].model_copy(update={"reason": stop.begun, "message": "spent"})
        status = status.model_copy(update={"attempts": (asked,)})
    manifest["spec"]["runPolicy"] = stop.run_policy
    conditions = list(stop.conditions)
    ends = exit_(0, finished, "Completed", conditions=conditions)
    ends["containerStatuses"][0]["state"]["terminated"]["message"] = message
    stages = {
        "request": (21, body(0, running(conditions=conditions), deleted=stop.deleted)),
        "exit": (22, body(0, exit_(0, finished))),
        "both": (23, body(0, ends, deleted=stop.deleted)),
        "gone": (40, None),
    }
    for word in order.split(", "):
        second, pod = stages[word]
        for _ in range(2):
            job = job_of(manifest, status=status)
            status = decide(seen(job, *parsed(pod), progress=progress), now=at(second)).status
    return status


@pytest.mark.parametrize("order", ["request, both, gone", "both, gone", "request, gone"])
@pytest.mark.parametrize("finished", [19, 20, 21, 24])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_exit_0_of_a_pod_that_was_asked_to_stop_is_a_stop(stop: Stop, finished: float, order: str) -> None:
    status = stop_alone(stop, order, finished=finished)
    assert not is_true(status.conditions, Type.SUCCEEDED)
    reason = "PodLost" if order == "request, gone" and not (stop.run_policy or stop.begun) else stop.reason
    assert status.attempts[0].reason == reason
    assert status.attempts[0].finished_ranks == ()
    assert is_true(status.conditions, Type.FAILED) is (stop.reason == "DeadlineExceeded")


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize(
    ("order", "finished", "message", "progress"),
    [
        ("request, both", 24, '{"step": 9, "totalSteps": 9, "reason": "done"}', None),
        ("both", 24, '{"step": 9, "totalSteps": 9, "reason": "done"}', None),
        ("both", 24, "", Progress(step=9, total_steps=9)),
        ("both", 18, "", None),
        ("exit, both", 20, "", None),
    ],
    ids=[
        "says done",
        "says done, both at once",
        "has said done",
        "ended before",
        "ended before, and was seen",
    ],
)
def test_a_program_that_was_done_when_it_was_asked_to_stop_has_succeeded(
    stop: Stop, order: str, finished: float, message: str, progress: Progress | None
) -> None:
    status = stop_alone(stop, order, finished=finished, message=message, progress=progress)
    assert is_true(status.conditions, Type.SUCCEEDED)
    counts = status.replica_statuses["Worker"]
    assert (counts.succeeded, counts.failed) == (1, 0)


@pytest.mark.parametrize(
    ("message", "progress"),
    [
        ('{"step": 8, "totalSteps": 9, "reason": "stopped"}', None),
        ('{"step": 9, "reason": "stopped"}', None),
        ("done", None),
        ("", Progress(step=8, total_steps=9)),
        ("", Progress(step=9)),
    ],
)
def test_a_program_that_does_not_say_that_all_its_steps_are_done_was_stopped(
    message: str, progress: Progress | None
) -> None:
    status = stop_alone(STOPS["suspend"], "both", finished=24, message=message, progress=progress)
    assert not is_true(status.conditions, Type.SUCCEEDED)


def test_a_rank_that_ends_after_the_job_stays_finished_when_its_pod_is_deleted() -> None:
    manifest = build_job(runPolicy={"cleanPodPolicy": "All"})
    done, late = body(0, exit_(0, 20)), exit_(0, 25)
    stages = [
        (at(5), parsed(body(0, running()), body(1, running()))),
        (at(23), parsed(done, body(1, running()))),
        (at(25), parsed(done, body(1, late))),
        (at(26), parsed(done, body(1, late, deleted=25))),
        (at(27), []),
    ]
    status = live(manifest, stages, started(manifest))
    assert is_true(status.conditions, Type.SUCCEEDED)
    counts = status.replica_statuses["Worker"]
    assert (counts.succeeded, counts.failed) == (2, 0)


def test_a_failing_init_container_tells_its_name_its_exit_code_and_its_last_lines() -> None:
    manifest = build_job(workers=1, restart_policy="Never")
    status = live(manifest, [(at(12), parsed(body(0, in_init(3))))], started(manifest))
    said = "worker-0's init container download exited with 3: no such bucket"
    assert (status.attempts[0].exit_code, status.attempts[0].message) == (3, said)
    assert is_true(status.conditions, Type.FAILED)


@pytest.mark.parametrize(
    ("ended", "code"),
    [({}, None), (exit_(0), 0), (exit_(1), 1), (exit_(143), 143), (in_init(143), 143)],
    ids=["told nothing", "0", "1", "143", "143 of an init container"],
)
def test_a_templates_own_deadline_is_the_programs_failure_whatever_its_exit_code(
    ended: Body, code: int | None
) -> None:
    manifest = build_job(workers=1, restart_policy="Never")
    late = body(0, ended | {"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"})
    status = live(manifest, [(at(12), parsed(late))], started(manifest))
    attempt = status.attempts[0]
    assert (attempt.reason, attempt.exit_code, attempt.counted_against) == (
        "ProgramFailed",
        code,
        "backoffLimit",
    )
    assert "ran longer than its template's activeDeadlineSeconds allows" in (attempt.message or "")


def test_a_sidecars_exit_is_no_failing_init_container() -> None:
    failed = body(0, in_init(3))
    failed["spec"]["initContainers"] = [{"name": "download", "restartPolicy": "Always"}]
    (pod,) = parsed(failed)
    assert (pod.exit_code, pod.init_container) == (None, "")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stop_of_our_own_is_not_counted(policy: str) -> None:
    manifest = build_job(restart_policy=policy)
    both = parsed(body(0, running()), body(1, running()))
    status = live(manifest, [(at(5), both)], started(manifest))
    suspended = build_job(restart_policy=policy, runPolicy={"suspend": True})
    down = parsed(body(0, exit_(143, 20), deleted=15), body(1, exit_(143, 20), deleted=15))
    status = live(suspended, [(at(15), both), (at(20), down)], status)
    assert (status.attempts[0].reason, status.attempts[0].counted_against) == ("SuspendRequested", None)
    assert (status.failure_count, status.infrastructure_failure_count) == (0, 0)
    resumed = decide(seen(job_of(manifest, status=status)), now=at(30))
    assert resumed.status.attempt_count == 2


def test_every_line_of_the_matrix_is_played() -> None:
    played = {row.cause for row in read_matrix() if row.outcomes["Never"] in ("Failed", "restart")}
    rest = {row.cause for row in read_matrix()} - played
    assert rest == {"done", "one of them is done", "stopped by us"}
    assert len(played) == 20
    assert {LIKEWISE.get(r.cause, r.seen_as) for r in read_matrix() if r.cause in played} == set(CULPRITS)


def exhaust(policy: str, limit: str, code: Callable[[], Body]) -> GreenTrainingJobStatus:
    manifest = build_job(restart_policy=policy, runPolicy={limit: 2})
    status = started(manifest)
    second = 0.0
    for number in range(1, 4):
        second += 400
        bodies = [body(0, running()), body(1, running())]
        for b in bodies:
            b["metadata"]["labels"]["greentrain.dev/attempt"] = str(number)
        status = live(manifest, [(at(second), parsed(*bodies))], status)
        bodies[1]["status"] = code()
        bodies[0]["status"] = exit_(144, second + 1)
        status = live(manifest, [(at(second + 2), parsed(*bodies))], status)
        status = live(manifest, [(at(second + 399), [])], status)
    return status


@pytest.mark.parametrize("policy", POLICIES)
def test_infrastructure_failures_have_a_limit_of_their_own_under_every_policy(policy: str) -> None:
    evicted = {"phase": "Failed", "reason": "Evicted"}
    status = exhaust(policy, "infrastructureRestartLimit", lambda: evicted)
    failed = next(c for c in status.conditions if c.type == "Failed")
    assert (failed.status, failed.reason) == ("True", "InfrastructureRestartLimitExceeded")
    assert (status.attempt_count, status.failure_count, status.infrastructure_failure_count) == (3, 0, 3)


def test_program_failures_are_counted_against_the_backoff_limit() -> None:
    status = exhaust("OnFailure", "backoffLimit", lambda: exit_(1))
    failed = next(c for c in status.conditions if c.type == "Failed")
    assert (failed.status, failed.reason) == ("True", "BackoffLimitExceeded")
    assert (status.attempt_count, status.failure_count, status.infrastructure_failure_count) == (3, 3, 0)
