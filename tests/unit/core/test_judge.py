"""How an attempt is judged: when, and by whose exit; tests/unit/core/test_matrix.py has the cells of the matrix."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from greentrain.api.reasons import Reason
from greentrain.api.spec import SuccessPolicy
from greentrain.api.status import AttemptStatus
from greentrain.core.gang.judge import (
    SETTLE,
    SETTLE_SILENT,
    Broken,
    Cause,
    CauseKind,
    Done,
    Finishing,
    Ongoing,
    Settling,
    cause_of,
    earliest,
    judge,
)
from greentrain.core.seen.pods import Disruption, Pod, PodState, parse_pod
from tests.support.snapshots import at, exited, pod, worker


def attempt(
    workers: int = 2, *, started: bool = True, policy: SuccessPolicy = SuccessPolicy.DEFAULT
) -> AttemptStatus:
    return AttemptStatus(
        number=1,
        replicas={"Worker": workers},
        success_policy=policy,
        start_time="2026-01-01T00:00:00Z",
        running_time="2026-01-01T00:00:01Z" if started else None,
    )


def verdict(
    *pods: Pod, workers: int = 2, started: bool = True, policy: SuccessPolicy = SuccessPolicy.DEFAULT
) -> object:
    by_rank = {p.rank: p for p in pods}
    return judge(attempt(workers, started=started, policy=policy), by_rank, broken_since=None, now=at(100))


@pytest.mark.parametrize(
    ("pods", "policy", "expected"),
    [
        ((pod(0), pod(1)), "", Ongoing),
        ((exited(0, 0), pod(1)), "", Done),
        ((pod(0), exited(1, 0)), "", Ongoing),
        ((exited(0, 0), pod(1)), "AllWorkers", Ongoing),
        ((exited(0, 0), exited(1, 0)), "AllWorkers", Done),
        ((exited(0, 0), exited(1, 1)), "AllWorkers", Broken),
        ((exited(0, 0), exited(1, 1)), "", Done),
        ((exited(0, 1), pod(1)), "", Settling),
        ((exited(0, 1), exited(1, 144)), "", Broken),
        ((pod(0),), "", Settling),
        ((), "", Broken),
    ],
    ids=[
        "all run",
        "worker 0 decides",
        "worker 1 does not",
        "all must, one did",
        "all did",
        "all must, one failed",
        "worker 0 decides although another failed",
        "one down, the other has time",
        "all down",
        "a pod is gone",
        "all pods are gone",
    ],
)
def test_an_attempt_is_judged_by_what_its_ranks_did(
    pods: tuple[Pod, ...], policy: str, expected: type
) -> None:
    assert isinstance(verdict(*pods, policy=SuccessPolicy(policy)), expected)


@pytest.mark.parametrize(
    ("finished", "other", "expected"),
    [(99, pod(1), Finishing), (98, pod(1), Done), (99, exited(1, 0, 99), Done), (3600, pod(1), Done)],
    ids=["a moment for the others", "no longer", "all are down", "a node's clock is wrong"],
)
def test_success_is_told_once_the_other_ranks_have_had_a_moment_to_end(
    finished: float, other: Pod, expected: type
) -> None:
    assert isinstance(verdict(exited(0, 0, finished), other), expected)


def test_a_rank_that_was_never_started_is_not_lost() -> None:
    assert isinstance(verdict(pod(0), started=False), Ongoing)


@pytest.mark.parametrize(
    ("other", "window"),
    [(pod(1), SETTLE_SILENT), (pod(1, terminating=True), SETTLE), (pod(1, PodState.PENDING), SETTLE)],
    ids=["frozen, or its node is gone and not marked yet", "being deleted", "not there yet"],
)
def test_a_rank_that_does_not_end_is_not_waited_for_beyond_its_window(other: Pod, window: timedelta) -> None:
    pods = {p.rank: p for p in (exited(0, 1), other)}
    since = at(0)
    before = judge(attempt(), pods, broken_since=since, now=since + window * 0.99)
    after = judge(attempt(), pods, broken_since=since, now=since + window)
    assert (type(before), type(after)) == (Settling, Broken)


def test_a_silent_rank_is_named_where_the_others_only_say_that_they_lost_a_peer() -> None:
    pods = {p.rank: p for p in (exited(0, 144), pod(1, node="node-2"))}
    judged = judge(attempt(), pods, broken_since=at(0), now=at(75))
    assert isinstance(judged, Broken)
    assert (judged.cause.rank, judged.cause.reason) == (worker(1), Reason.PEER_LOST)
    assert judged.cause.message == "worker-1 does not answer (node node-2): worker-0 lost a peer"


@pytest.mark.parametrize("code", [1, 137, 144], ids=["a plain script's end", "a signal", "a peer was lost"])
def test_a_node_that_stopped_answering_is_the_cause_as_soon_as_the_others_are_down(code: int) -> None:
    lost = pod(1, unreachable=True, node="node-2")
    assert isinstance(verdict(pod(0), lost), Ongoing)  # it may come back
    judged = verdict(exited(0, code, 5), lost)
    assert isinstance(judged, Broken)
    assert (judged.cause.rank, judged.cause.reason) == (worker(1), Reason.NODE_LOST)
    assert judged.cause.message == "worker-1: its node stopped answering (node node-2)"


def test_a_pod_given_up_with_its_node_ends_the_attempt_although_the_others_run_on() -> None:
    lost = pod(1, unreachable=True, terminating=True)
    judged = verdict(pod(0), lost)
    assert isinstance(judged, Settling)
    assert judged.cause.reason == Reason.NODE_LOST


@pytest.mark.parametrize(
    ("pods", "culprit", "reason"),
    [
        ((exited(0, 144, 5), exited(1, 137, 9), exited(2, 144, 6)), 1, Reason.KILLED),
        ((exited(0, 1, 9), exited(1, 2, 5), exited(2, 144, 1)), 1, Reason.PROGRAM_FAILED),
        ((exited(0, 144, 5), exited(1, 144, 4), exited(2, 144, 6)), 1, Reason.PEER_LOST),
        ((exited(0, 143, 5), exited(1, 143, 4)), 2, Reason.POD_LOST),
        ((exited(0, 3, 5), exited(1, 144, 6)), 0, Reason.PROGRAM_FAILED),
        ((exited(0, 143, 5), exited(1, 143, 9, terminating=True), exited(2, 143, 4)), 1, Reason.POD_LOST),
        # Deleted, and its container was cleared away untold; else what its node says of it counts.
        (
            (exited(0, 143, 5), pod(1, PodState.FAILED, exit_reason="PodFailed", terminating=True)),
            1,
            Reason.POD_LOST,
        ),
        (
            (exited(0, 143, 5), pod(1, PodState.FAILED, exit_reason="OutOfcpu", terminating=True)),
            1,
            Reason.POD_FAILED,
        ),
        (
            (exited(0, 137, 5, exit_reason="OOMKilled"), exited(1, 144, 5), exited(2, 144, 5)),
            0,
            Reason.OUT_OF_MEMORY,
        ),
        (
            (exited(0, 144, 5), pod(1, PodState.FAILED, disruption=Disruption.EVICTED), exited(2, 144, 5)),
            1,
            Reason.EVICTED,
        ),
    ],
    ids=[
        "a kill seen after its consequences",
        "the earlier of two failures",
        "only consequences",
        "agreed stop after a deleted pod",
        "a program's failure before its pod was cleared away",
        "agreed stop while the asked pod terminates",
        "deleted, its exit untold",
        "refused by its node, then deleted",
        "out of memory",
        "evicted",
    ],
)
def test_the_cause_is_the_same_in_every_order_of_arrival(
    pods: tuple[Pod, ...], culprit: int, reason: Reason
) -> None:
    present = {p.rank: p for p in pods}
    gone = [worker(i) for i in range(3) if worker(i) not in present]
    lost = [Cause(r, CauseKind.INFRASTRUCTURE, Reason.POD_LOST, "gone") for r in gone]
    causes = [*(cause_of(p) for p in pods), *lost]
    for order in itertools.permutations(causes):
        found = earliest(list(order), present)
        assert (found.rank.index, found.reason) == (culprit, reason)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, CauseKind.PROGRAM),
        (127, CauseKind.PROGRAM),
        (128, CauseKind.SIGNAL),
        (137, CauseKind.SIGNAL),
        (143, CauseKind.SIGNAL),
        (144, CauseKind.PEER_LOST),
        (255, CauseKind.SIGNAL),
    ],
)
def test_exit_codes_fall_into_the_kinds_of_the_trainers_contract(code: int, kind: CauseKind) -> None:
    assert cause_of(exited(0, code)).kind is kind


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("ValueError: no data\n", "worker-0 exited with 1: ValueError: no data"),
        ("", "worker-0 exited with 1"),
        (
            "reading 3 files\n\nValueError: no data\n",
            "worker-0 exited with 1: ValueError: no data\nits last lines:\nreading 3 files\nValueError: no data",
        ),
    ],
)
def test_a_failure_carries_the_programs_last_words_the_last_line_first(tail: str, message: str) -> None:
    assert cause_of(exited(0, 1, log_tail=tail)).message == message


def test_of_a_long_log_whole_lines_are_kept_without_control_characters() -> None:
    terminated = {"exitCode": 1, "message": "\r\n".join(f"line\x1b{i:04}" for i in range(500))}
    labels = {"replica-type": "Worker", "replica-index": "0", "attempt": "1"}
    body = {
        "metadata": {
            "name": "a",
            "uid": "1",
            "labels": {f"greentrain.dev/{k}": v for k, v in labels.items()},
        },
        "status": {"containerStatuses": [{"name": "tensorflow", "state": {"terminated": terminated}}]},
    }
    parsed = parse_pod(body)
    assert parsed is not None
    lines = parsed.log_tail.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line\ufffd0398", "line\ufffd0499", 102)


@pytest.mark.parametrize(
    ("ready", "containers_ready", "reason", "unreachable"),
    [
        ("True", "True", None, False),
        ("False", "True", None, True),
        ("False", "False", "ContainersNotReady", False),
        ("False", "True", "ReadinessGatesNotReady", False),
        ("Unknown", "True", None, False),
    ],
    ids=["well", "marked by the node controller", "its probe fails", "a readiness gate is open", "unknown"],
)
def test_a_pod_is_unreachable_where_the_node_controller_said_so(
    ready: str, containers_ready: str, reason: str | None, unreachable: bool
) -> None:
    labels = {"replica-type": "Worker", "replica-index": "0", "attempt": "1"}
    conditions = [
        {"type": "Ready", "status": ready, **({"reason": reason} if reason else {})},
        {"type": "ContainersReady", "status": containers_ready},
    ]
    containers = [{"name": "tensorflow", "ready": containers_ready == "True", "state": {"running": {}}}]
    parsed = parse_pod(
        {
            "metadata": {
                "name": "w",
                "uid": "1",
                "labels": {f"greentrain.dev/{k}": v for k, v in labels.items()},
            },
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": containers},
        }
    )
    assert parsed is not None
    assert parsed.unreachable is unreachable
    assert not (parsed.ready and unreachable)
