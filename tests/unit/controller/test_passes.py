"""When an event says that a status was refused, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greentrain.api.conditions import Type, set_condition
from greentrain.api.reasons import Severity
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.controller.passes.jobs import decide_next_look
from greentrain.controller.passes.records import REFUSED_STATUS_SECONDS, build_refused_event, is_event_due
from greentrain.core.seen.times import format_time
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
