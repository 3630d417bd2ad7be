"""What passes leave to the next one, when a program is asked, and when an event says that a status was refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greentrain.api.budgets import ControlStatus, PodAllowance
from greentrain.api.conditions import Type, set_condition
from greentrain.api.reasons import Severity
from greentrain.api.status import (
    AttemptStatus,
    DisplayStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    ProgressStatus,
)
from greentrain.controller.passes.jobs import decide_next_look, find_progress_wait
from greentrain.controller.passes.records import (
    REFUSED_STATUS_SECONDS,
    build_refused_event,
    is_event_due,
    may_change_decisions,
)
from greentrain.core.seen.times import format_time
from greentrain.core.storing import Storing
from tests.support.manifests import build_job
from tests.support.snapshots import at, job_of

JOB = replace(job_of(build_job()), uid="u", generation=3)


@pytest.mark.parametrize(
    ("why", "last", "due"),
    [
        ("the first time", None, True),
        ("a moment ago", ("u", 3, 1000.0), False),
        ("almost an hour ago", ("u", 3, 1000.1 - REFUSED_STATUS_SECONDS), False),
        ("the server has forgotten that event", ("u", 3, 1000.0 - REFUSED_STATUS_SECONDS), True),
        ("the spec was changed since", ("u", 2, 1000.0), True),
        ("another job of that name", ("v", 3, 1000.0), True),
    ],
)
def test_an_event_comes_once_a_generation_and_again_when_the_last_is_forgotten(
    why: str, last: tuple[str, int, float] | None, due: bool
) -> None:
    assert is_event_due(last, JOB, 1000.0) is due, why


@pytest.mark.parametrize("words", ["spec.energy: Invalid value: budget is not valid", "x" * 5000, ""])
def test_it_says_what_to_do_and_quotes_the_server_within_the_bounds_of_an_event(words: str) -> None:
    event = build_refused_event(words)
    assert (event.type, event.reason) == (Severity.WARNING, "StatusRefused")
    assert len(event.message) <= 1024
    assert "correct the field with kubectl edit, or delete the job" in event.message
    assert event.message.endswith(words if len(words) < 600 else "x…")


@pytest.mark.parametrize(
    ("waited", "seconds"), [(None, 5), (0, 5), (15, 5), (60, 20), (900, 300), (86_400, 300)]
)
def test_a_job_that_waits_for_its_namespaces_label_is_looked_at_ever_more_rarely(
    waited: int | None, seconds: float
) -> None:
    """Any number of such jobs may wait: they must not keep the operator from the others."""
    conditions = set_condition(
        (), Type.ADMITTED, "False", "InvalidSpec", "", now=format_time(at(0)), generation=1
    )
    status = GreenTrainingJobStatus(conditions=() if waited is None else conditions)
    assert decide_next_look(job_of(status=status), now=at(waited or 0)) == seconds


RUNS = GreenTrainingJobStatus(
    display=DisplayStatus(workers="2/2"),
    attempts=(AttemptStatus(number=1, start_time=format_time(at(0))),),
    energy=EnergyStatus(pods=(PodEnergyStatus(uid="a"),), control=ControlStatus()),
)


def with_energy(**change: object) -> GreenTrainingJobStatus:
    assert RUNS.energy is not None
    return RUNS.model_copy(update={"energy": RUNS.energy.model_copy(update=change)})


@pytest.mark.parametrize(
    ("what", "status", "refused", "follows"),
    [
        ("progress", RUNS.model_copy(update={"progress": ProgressStatus(step=7)}), False, False),
        ("joules", with_energy(used_joules=7, pods=(PodEnergyStatus(uid="a", gpu_joules=7),)), False, False),
        (
            "joules after a write that was refused",
            with_energy(used_joules=7),
            True,
            True,
        ),
        ("a final report", with_energy(pods=(PodEnergyStatus(uid="a", final=True),)), False, True),
        (
            "an allowance",
            with_energy(control=ControlStatus(allowances=(PodAllowance(uid="a", joules=9),))),
            False,
            True,
        ),
        ("pods", RUNS.model_copy(update={"display": DisplayStatus(workers="1/2")}), False, True),
        ("an attempt", RUNS.model_copy(update={"attempt_count": 2}), False, True),
    ],
)
def test_a_pass_follows_a_write_by_which_it_may_decide_otherwise(
    what: str, status: GreenTrainingJobStatus, refused: bool, follows: bool
) -> None:
    """A job that runs writes its joules once a minute, and a pass after each of these writes would find nothing."""
    storing = Storing()
    job = replace(JOB, status=RUNS)
    if refused:
        storing.keep_unstored(job, RUNS)
    assert may_change_decisions(storing, job, status) is follows, what


@pytest.mark.parametrize(
    ("news", "unanswered", "seconds"),
    [(False, 0, 60), (False, 9, 60), (True, 0, 2), (True, 1, 4), (True, 4, 32), (True, 10_000, 32)],
)
def test_a_program_that_does_not_answer_is_asked_ever_more_rarely(
    news: bool, unanswered: int, seconds: float
) -> None:
    assert find_progress_wait(60, news=news, unanswered=unanswered) == seconds
    assert find_progress_wait(1, news=news, unanswered=unanswered) == 1, "while it stops"
