"""A reason to wait or to stop is a function and a row: what a person sees follows from the tables."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.api.reasons import REASONS, About, Phase, Reason, Severity
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.controller.logs import LogLine, find_log_lines
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.lifecycle.gates import GATES, Start
from greentrain.core.lifecycle.outcomes import Fail, Restart, Stop, Wait
from greentrain.core.lifecycle.passing import Rules
from greentrain.core.lifecycle.stops import STOPS, Running
from greentrain.core.seen.pods import Pod
from greentrain.core.seen.snapshot import Obstacle
from greentrain.core.status.events import Event, transition_events
from tests.support.snapshots import at, exited, job_of, pod, seen

TIDE = "WaitingForTide"
MESSAGE = "the tide is at 1 m and turns at 00:10"
STEP = "it starts by itself"


def wait_for_tide(start: Start) -> Wait | None:
    """A gate of this test's own: high water is ten minutes after the start of its time."""
    return Wait(TIDE, MESSAGE, until=at(600)) if start.now < at(600) else None


def with_tide(about: About) -> Rules:
    return Rules(gates=(*GATES, wait_for_tide), reasons={**REASONS, TIDE: about})


def step(rules: Rules, status: GreenTrainingJobStatus, *pods: Pod, second: float, **facts: Any) -> Decision:
    return decide(seen(job_of(status=status), *pods, **facts), now=at(second), rules=rules)


@pytest.mark.parametrize(
    ("about", "phase", "events", "lines"),
    [
        (
            About(Severity.NORMAL, Phase.PENDING, waits=True, next_step=STEP),
            "Pending",
            (Event(Severity.NORMAL, TIDE, f"{MESSAGE}; {STEP}"),),
            [LogLine("waiting", TIDE, f"{MESSAGE}; {STEP}")],
        ),
        (
            About(Severity.WARNING, Phase.SUSPENDED, next_step=STEP),
            "Suspended",
            (Event(Severity.NORMAL, "Suspended", f"{MESSAGE}; suspended; {STEP}"),),
            [LogLine("suspended", TIDE, f"{MESSAGE}; suspended; {STEP}")],
        ),
        (About(), "Pending", (), []),
    ],
    ids=["waits", "is held", "passes in silence"],
)
def test_a_new_gate_shows_in_phase_column_event_and_log(
    about: About, phase: str, events: tuple[Event, ...], lines: list[LogLine]
) -> None:
    rules, new = with_tide(about), GreenTrainingJobStatus()
    held = step(rules, new, second=10)
    assert (held.pods, held.look_again) == ((), at(600))
    assert (held.status.phase, held.status.display.reason) == (phase, TIDE)
    assert transition_events(new, held.status, rules.reasons) == events
    assert list(find_log_lines(new, held.status, rules.reasons)) == lines
    assert step(rules, held.status, second=11).status == held.status
    begun = step(rules, held.status, second=600)
    assert len(begun.pods) == 2
    assert (begun.status.phase, begun.status.display.reason) == ("Starting", "Starting")


def test_a_gate_that_fails_ends_a_job_that_has_not_begun() -> None:
    rules = Rules(gates=(*GATES, lambda _: Fail(TIDE, MESSAGE)), reasons={**REASONS, TIDE: About()})
    failed = step(rules, GreenTrainingJobStatus(), second=10).status
    assert (failed.phase, failed.display.reason, failed.attempts) == ("Failed", TIDE, ())


def test_of_two_gates_the_first_is_shown() -> None:
    manifest = {**job_of().spec, "runPolicy": {"suspend": True}}
    job = job_of({"metadata": {"name": "digits"}, "spec": manifest})
    status = decide(seen(job), now=at(10), rules=with_tide(About())).status
    assert (status.phase, status.display.reason) == ("Suspended", "SuspendRequested")


@pytest.mark.parametrize(
    ("then", "about", "stopping", "after"),
    [
        (
            Wait(TIDE, MESSAGE),
            About(Severity.NORMAL, Phase.SUSPENDED, next_step=STEP),
            ("Suspending", TIDE),
            ("Suspending", TIDE),
        ),
        (Fail(TIDE, MESSAGE), About(), ("Stopping", TIDE), ("Failed", TIDE)),
        (Restart(MESSAGE), About(), ("Stopping", TIDE), ("Restarting", "WaitingForOldPods")),
    ],
    ids=["waits", "fails", "restarts"],
)
def test_a_new_stop_goes_by_the_one_protocol(
    then: Wait | Fail | Restart, about: About, stopping: tuple[str, str], after: tuple[str, str]
) -> None:
    def stop_for_tide(running: Running) -> Stop | None:
        return Stop(TIDE, MESSAGE, then) if at(20) <= running.now or running.has_begun(TIDE) else None

    rules = Rules(stops=(*STOPS, stop_for_tide), reasons={**REASONS, TIDE: about})
    begun = step(rules, GreenTrainingJobStatus(), second=1).status
    there = [pod(i) for i in range(2)]
    running = step(rules, begun, *there, second=10).status
    assert (running.phase, running.display.reason) == ("Running", "<none>")
    asked = step(rules, running, *there, second=20)
    assert {d.name for d in asked.deletions} == {p.name for p in there}
    assert asked.record_first
    assert (asked.status.phase, asked.status.display.reason) == stopping
    assert (asked.status.attempts[-1].reason, asked.status.attempts[-1].message) == (TIDE, MESSAGE)
    ended = step(rules, asked.status, *(exited(i, 143, second=25) for i in range(2)), second=30).status
    assert (ended.phase, ended.display.reason) == after
    assert ended.attempts[-1].end_time is not None
    if isinstance(then, Wait):
        gone = decide(seen(job_of(status=ended)), now=at(40), rules=with_tide(about)).status
        assert (gone.phase, gone.display.reason) == ("Suspended", TIDE)


def test_every_reason_for_which_a_job_is_held_names_a_next_step() -> None:
    silent = [r for r in Reason if (r.about.waits or r.about.phase is not None) and not r.about.next_step]
    assert silent == []


def test_what_a_refusal_says_is_no_second_event_of_the_pods() -> None:
    taken = Obstacle(
        "Pod", "digits-worker-0-1", Reason.NAME_TAKEN, "Pod digits-worker-0-1 exists and is not this job's"
    )
    begun = decide(seen(job_of()), now=at(1)).status
    refused = decide(seen(job_of(status=begun), obstacles=(taken,)), now=at(2)).status
    assert [e.reason for e in transition_events(begun, refused)] == ["NameTaken"]
    assert (refused.phase, refused.display.reason) == ("Refused", "NameTaken")


def test_a_job_whose_stop_is_over_shows_the_gate_that_holds_it_now() -> None:
    status = GreenTrainingJobStatus()
    gate: list[Wait] = []
    rules = Rules(
        gates=(*GATES, lambda _: gate[0] if gate else None),
        stops=(*STOPS, lambda _: Stop(Reason.BUDGET_EXHAUSTED, "spent", Restart("again"))),
    )
    there = [pod(i) for i in range(2)]
    status = step(Rules(), step(Rules(), status, second=1).status, *there, second=10).status
    stopping = step(rules, status, *there, second=20).status
    assert (stopping.phase, stopping.display.reason) == ("Suspending", "BudgetExhausted")
    ended = step(rules, stopping, *(exited(i, 143, second=25) for i in range(2)), second=30).status
    gate.append(Wait(Reason.NO_READINGS, "no node reports"))
    held = step(rules, ended, second=40).status
    assert (held.phase, held.display.reason) == ("Restarting", "NoReadings")
