"""In which order a pass does things, what of a status is stored where it is refused, and what follows where passes fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greentrain.api.conditions import Type
from greentrain.api.reasons import Reason
from greentrain.api.status import DisplayStatus, GreenTrainingJobStatus
from greentrain.core.failing import build_stalled, must_report
from greentrain.core.lifecycle.decision import Decision, Deletion
from greentrain.core.seen.snapshot import Obstacle
from greentrain.core.steps import Answer, walk
from greentrain.core.storing import LEAST_SECONDS, LONGEST_STORE_DELAY_SECONDS, Refusal, Storing
from greentrain.kube.client import ApiError
from tests.support.snapshots import at, job_of, seen

BEFORE = GreenTrainingJobStatus(attempt_count=1)
STATUS = GreenTrainingJobStatus(attempt_count=1, display=DisplayStatus(workers="2/2"))
JOB = job_of(status=BEFORE)
BEGIN = Decision(STATUS, pods=({"metadata": {"name": "digits-worker-0-2"}},), record_first=True)
STOP = Decision(STATUS, deletions=(Deletion("digits-worker-0-1", "pod-0"),), record_first=True)
EXPIRE = Decision(STATUS, delete_job=True)
REST = Decision(STATUS)
INVALID = ApiError(422, "Invalid", "no")
FORBIDDEN = ApiError(403, "Forbidden", "no")
CONFLICT = ApiError(409, "Conflict", "newer")
BUSY = ApiError(503, "ServiceUnavailable", "later")

DONE = Answer(changed=True, decision=REST)
NOTHING = Answer(decision=REST)


@pytest.mark.parametrize(
    ("decided", "answer", "facts", "steps"),
    [
        (REST, NOTHING, {}, "Apply StoreRest"),
        (REST, DONE, {}, "Apply DecideAgain StoreRest"),
        (
            REST,
            replace(NOTHING, obstacles=(Obstacle("Pod", "p", "Forbidden", ""),)),
            {},
            "Apply DecideAgain StoreRest",
        ),
        (REST, replace(DONE, decision=None), {}, "Apply DecideAgain"),
        (REST, replace(DONE, decision=STOP), {}, "Apply DecideAgain PassAgain"),
        (BEGIN, NOTHING, {}, "FindPods StoreFirst Apply DecideAgain StoreRest"),
        (BEGIN, replace(NOTHING, found=True), {}, "FindPods PassAgain"),
        (BEGIN, replace(NOTHING, refusal=INVALID), {}, "FindPods StoreFirst"),
        (STOP, NOTHING, {}, "StoreFirst Apply DecideAgain StoreRest"),
        (STOP, replace(NOTHING, refusal=INVALID), {}, "StoreFirst Apply"),
        (STOP, replace(NOTHING, refusal=FORBIDDEN), {}, "StoreFirst Apply"),
        (STOP, replace(NOTHING, refusal=CONFLICT), {"failing": True}, "StoreFirst"),
        (STOP, replace(NOTHING, refusal=BUSY), {}, "StoreFirst"),
        (STOP, replace(NOTHING, refusal=BUSY), {"failing": True}, "StoreFirst Apply"),
        (EXPIRE, replace(DONE, decision=None), {}, "Apply DecideAgain"),
        (EXPIRE, replace(DONE, decision=None), {"unstored": True}, "StoreFirst Apply DecideAgain"),
        (EXPIRE, replace(DONE, refusal=INVALID), {"unstored": True}, "StoreFirst"),
    ],
)
def test_a_pass_goes_by_what_came_of_its_last_step(
    decided: Decision, answer: Answer, facts: dict[str, Any], steps: str
) -> None:
    storing = Storing()
    if facts.get("unstored"):
        storing.keep_unstored(JOB, STATUS)
    going = walk(seen(JOB), decided, storing, failing=facts.get("failing", False))
    found = [next(going)]
    while len(found) < 10:
        try:
            found.append(going.send(answer))
        except StopIteration:
            break
    assert " ".join(type(step).__name__ for step in found) == steps


def test_a_stop_that_could_not_be_stored_is_gone_on_with() -> None:
    storing = Storing()
    going = walk(seen(JOB), STOP, storing, failing=False)
    next(going)
    going.send(Answer(refusal=INVALID))
    assert storing.complete(seen(JOB)).job.status == STATUS
    assert storing.find_stored(replace(JOB, status=STATUS)) == BEFORE
    another = seen(replace(JOB, uid="another"))
    assert storing.complete(another) == another


def store(storing: Storing, now: float, *answers: Refusal | None) -> tuple[list[bool], object]:
    """What was tried, the whole or not, and what came of it."""
    writes, tried = storing.store(STATUS, now=now), list[bool]()
    given = iter(answers)
    answer: Refusal | None = None
    while True:
        try:
            write = writes.send(answer)
        except StopIteration as end:
            return tried, end.value
        tried.append(write.whole)
        answer = next(given)


def test_the_least_is_stored_for_a_while_where_the_whole_is_refused() -> None:
    storing = Storing()
    least = STATUS.model_copy(update={"display": DisplayStatus()})
    assert store(storing, 0.0, INVALID, None) == ([True, False], least)
    assert store(storing, LEAST_SECONDS - 1, None) == ([False], least)
    assert store(storing, LEAST_SECONDS, None) == ([True], STATUS)


def test_what_is_refused_altogether_is_tried_ever_more_rarely() -> None:
    storing = Storing()
    now, waits = 0.0, []
    for _ in range(7):
        tried, found = store(storing, now, *[INVALID] * 2)
        assert tried[-1] is False
        assert found is INVALID
        assert store(storing, now) == ([], INVALID)  # nothing is asked before its time
        waits.append(storing.next_store - now)
        now = storing.next_store
    assert waits == [1, 2, 4, 8, 16, LONGEST_STORE_DELAY_SECONDS, LONGEST_STORE_DELAY_SECONDS]
    storing.take_up(replace(JOB, generation=2))  # the user has edited it
    assert store(storing, now - 20, None) == ([True], STATUS)


@pytest.mark.parametrize("refusal", [CONFLICT, BUSY, FORBIDDEN])
def test_what_is_not_about_its_content_is_not_tried_with_less(refusal: ApiError) -> None:
    assert store(Storing(), 0.0, refusal) == ([True], refusal)


def test_a_job_is_said_to_be_stalled_after_two_failures_and_again_now_and_then() -> None:
    assert [n for n in range(1, 62) if must_report(n)] == [2, 20, 40, 60]


def test_that_a_job_is_stalled_leaves_its_other_conditions_as_they_are() -> None:
    foreign = {"type": "OfAnother", "status": "odd", "reason": "Any"}
    changed = build_stalled([foreign], Reason.RECONCILE_FAILING, "x" * 40_000, generation=3, now=at(0))
    assert changed is not None
    kept, stalled = changed["conditions"]
    assert kept is foreign
    assert (stalled["type"], stalled["status"], stalled["observedGeneration"]) == (Type.STALLED, "True", 3)
    assert len(stalled["message"]) <= 32_768
    assert changed["display"] == {"reason": "ReconcileFailing"}
    assert (
        build_stalled(changed["conditions"], Reason.RECONCILE_FAILING, "y", generation=3, now=at(0)) is None
    )
