"""Two hundred seeded lives of a job with a budget: programs that lie in wait, users who edit, and whatever may be away.

What is said before an attempt starts is held to the joule; where the product says that it cannot hold it, how much more
there may be is counted as it happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import pytest

from tests.scenario.budgets import FAULTS, SIZES, World, draw_traits, live, measure, rest

SEEDS = range(200)

EVENTS = frozenset(
    {
        *FAULTS,
        "agent: Evicted",
        "agent: None",
        "agent: Throttled",
        "budget: lower",
        "budget: raise",
        "budget: remove",
    }
)


class Life(NamedTuple):
    """A life, and how often something was written after it had come to rest."""

    world: World
    writes: int


@pytest.fixture(scope="module")
def lives() -> Mapping[int, Life]:
    """All lives, each once."""
    found = {}
    for seed in SEEDS:
        world = live(seed)
        complaints = list(world.complaints)
        if world.traits.emissions:
            rest(world)  # what a source says that has come back is told once
        found[seed] = Life(world, rest(world))
        world.complaints = complaints
    return found


def told(world: World) -> str:
    """A life as a person reads it."""
    return "\n".join([str(world.traits), *world.story[-60:], *world.complaints])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_of_a_budget_holds(lives: Mapping[int, Life], seed: int) -> None:
    world = lives[seed].world
    assert not world.complaints, told(world)


def test_at_rest_nothing_is_written_any_more(lives: Mapping[int, Life]) -> None:
    assert {seed: life.writes for seed, life in lives.items() if life.writes} == {}


def test_whatever_may_happen_happens_often(lives: Mapping[int, Life]) -> None:
    seen: Counter[str] = Counter()
    for life in lives.values():
        seen.update(set(life.world.faults))
    assert set(seen) >= EVENTS
    assert min(seen[fault] for fault in FAULTS) >= 20


def test_one_thing_that_is_away_needs_no_remainder(lives: Mapping[int, Life]) -> None:
    """The bound alone holds where nothing, or one part alone, is away in the worst moment."""
    alone = [life.world for seed, life in lives.items() if not draw_traits(seed).faults]
    assert len(alone) >= 60
    assert {w.traits.gpus for w in alone} == set(SIZES)
    assert [w.seed for w in alone if w.remained] == []


def test_remainders_are_counted_where_two_things_are_away(lives: Mapping[int, Life]) -> None:
    kinds = Counter(kind for life in lives.values() for kind in life.world.remained)
    assert kinds["outage"] >= 3, kinds
    assert kinds["both"] >= 3, kinds


def test_a_steady_program_is_stopped_below_its_budget(lives: Mapping[int, Life]) -> None:
    calm = [w for w, _ in lives.values() if not w.traits.faults and w.traits.character == "steady"]
    ends = {w.seed: [over for _, over in w.ends] for w in calm}
    assert len(calm) >= 20
    assert all(ends.values()), ends
    assert {seed: over for seed, over in ends.items() if max(over) > 0} == {}


@pytest.mark.parametrize("gpus", SIZES)
def test_the_bound_is_not_much_more_than_what_happens(lives: Mapping[int, Life], gpus: int) -> None:
    ends = [end for life in lives.values() if life.world.traits.gpus == gpus for end in life.world.ends]
    bounds = [bound for bound, _ in ends]
    worst = max(over for _, over in ends)
    assert len(ends) >= 30
    assert median(bounds) <= 2 * worst, (median(bounds), worst)


def test_without_allowances_the_bound_would_not_hold() -> None:
    """The model can tell: agents that know of no allowances let a job go on for as long as its operator is away."""
    seeds = [s for s in SEEDS if draw_traits(s).ambush == "operator away" and not draw_traits(s).faults]
    broken = [s for s in seeds[:16] if any(c.startswith("exceeded") for c in live(s, obeys=False).complaints)]
    assert len(broken) >= 4


def test_measures_are_those_of_the_lives(lives: Mapping[int, Life]) -> None:
    found = measure(range(6))
    assert set(found) == set(SIZES)
    for seed in range(6):
        world = lives[seed].world
        if world.ends:
            assert max(world.ends, key=lambda end: end[1]) in found[world.traits.gpus]


@pytest.mark.parametrize("gpus", SIZES)
def test_time_alone_does_not_exceed_a_budget_of_emissions(gpus: int) -> None:
    """GPUs that wait use next to none of their allowance while the operator is away, but their making counts by time."""
    seeds = [s for s in SEEDS if draw_traits(s).emissions and draw_traits(s).gpus == gpus][:4]
    for seed in seeds:
        drawn = draw_traits(seed)
        traits = replace(
            drawn,
            character="waiting",
            embodied=drawn.kind.limit,
            work=100_000,
            budget=drawn.kind.limit * gpus,
            ambush="operator away long",
            faults=(),
            fault_rate=0.0,
            edits=(),
            seconds=2600,
        )
        world = live(seed, traits)
        assert not world.complaints, told(world)
        assert world.faults["agent: held for too long"] >= 1, told(world)
        assert any(c.startswith("exceeded") for c in live(seed, traits, obeys=False).complaints)


def test_budgets_of_emissions_are_kept_though_their_source_dies(lives: Mapping[int, Life]) -> None:
    green = [life.world for life in lives.values() if life.world.traits.emissions]
    assert len(green) == 50
    assert sum("source away" in w.faults for w in green) >= 8
    assert sum(bool(w.ends) for w in green) >= 25
    assert sum("agent: Throttled" in w.faults for w in green) >= 4
    assert {w.traits.gpus for w in green if w.traits.embodied} == set(SIZES)
    # Energy that was never priced is told, and was charged for.
    unpriced = [w for w in green if w.status.emissions is not None and w.status.emissions.without_joules]
    assert unpriced
