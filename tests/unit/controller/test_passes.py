"""When an event says that a status was refused, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greentrain.controller.passes import REFUSED_STATUS_SECONDS, build_refused_event, is_event_due
from greentrain.core.status import EventType
from tests.support.manifests import build_job
from tests.support.snapshots import job_of

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
    assert (event.type, event.reason) == (EventType.WARNING, "StatusRefused")
    assert len(event.message) <= 1024
    assert "correct the field with kubectl edit, or delete the job" in event.message
    assert event.message.endswith(words if len(words) < 600 else "x…")
