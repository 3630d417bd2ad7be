"""A stored snapshot gives the same decision again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.stored import dump_snapshot, load_snapshot
from tests.support.snapshots import START, at, exited, job_of, pod, seen
from tests.unit.core.test_emissions import CarbonStory, forecast, hourly, making, started, steady
from tests.unit.core.test_throttle import OnCleanGrid, Throttled

Seen = Iterator[tuple[Snapshot, datetime]]
"""What passes see, and when."""


def new() -> Seen:
    yield seen(job_of()), at(0)
    yield seen(job_of(), pod(0), exited(1, 137, 3, log_tail="Killed\n")), at(10)


def emissions(story: CarbonStory) -> Seen:
    for second in range(1, 5):
        story.told(40_000 * second)
        story.step(30)
        yield story.seen(), at(story.second)


def throttled(story: Throttled) -> Seen:
    story.begin()
    yield story.seen(), at(story.second)
    story.train()
    yield story.seen(), at(story.second)


LIVES: dict[str, Callable[[], Seen]] = {
    "new": new,
    "a grid that never changes": lambda: emissions(started(steady(360), budget="100gCO2e")),
    "a grid with forecasts": lambda: emissions(started(forecast(100, 500, issued=60), budget="1kgCO2e")),
    "a grid with a gap": lambda: emissions(started(hourly(100, None, 300), budget="1kgCO2e")),
    "an embodied share": lambda: emissions(making(1)),
    "an unknown zone": lambda: emissions(started(zone="Q9")),
    "throttled": lambda: throttled(Throttled("9kJ")),
    "throttled on a clean grid": lambda: throttled(OnCleanGrid(1.0)),
}


@pytest.mark.parametrize("life", LIVES)
def test_what_was_stored_is_decided_again(life: str) -> None:
    for found, now in LIVES[life]():
        content = dump_snapshot(found, now=now)
        stored = load_snapshot(content)
        assert (stored.now, stored.seen) == (now, found)
        assert list(decide(stored.seen, now=now).pods) == list(decide(found, now=now).pods)
        assert decide(stored.seen, now=now).status == decide(found, now=now).status
        # Stored again it is the same bytes.
        assert dump_snapshot(stored.seen, now=stored.now) == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file: Invalid JSON"),
        (b"[]", "the file: Input should be"),
        (b'{"seen": {}}', "now: Field required"),
        (dump_snapshot(seen(job_of()), now=START).replace(b'"pods"', b'"podz"'), "does not know"),
        (dump_snapshot(seen(job_of()), now=START).replace(b"00:00:00Z", b"00:00:00"), "now: has no offset"),
        (b"[" * 100_000, "Invalid JSON"),
    ],
)
def test_what_is_no_snapshot_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="is no snapshot of this version") as refused:
        load_snapshot(content)
    assert words in str(refused.value)


def test_it_is_plain_json() -> None:
    assert json.loads(dump_snapshot(CarbonStory(steady(1)).seen(), now=START))["seen"]["intensities"]
