"""Two hundred seeded lives of a job with a budget: programs that lie in wait, users who edit, and whatever may be away.

What is said before an attempt starts is held to the joule; where the product says that it cannot hold it, how much more
there may be is counted as it happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import pytest

from tests.scenario.budgets import (
    FAULTS,
    JOULE,
    LOSSES,
    SIZES,
    TROUBLES,
    Remainder,
    Traits,
    World,
    draw_traits,
    live,
    measure,
    rest,
)
from tests.support.lives import Suite
from tests.support.world.cluster import REFUSALS

EVENTS = frozenset(
    {
        *FAULTS,
        *LOSSES,
        *TROUBLES,
        "a settled pod is reported again",
        "agent: Evicted",
        "agent: Lifted",
        "agent: Throttled",
        "agent: acts for an unattended job",
        "agent: holds a pod whose journal was lost",
        "agent: takes over what a lost journal had reported",
        "budget: lower",
        "budget: raise",
        "budget: remove",
        "disk full",
        *(f"refused: {error.reason}" for error in REFUSALS),
        "stalled",
        "the least was stored",
    }
)


class Life(NamedTuple):
    """What is asked of a life that has come to rest."""

    seed: int
    traits: Traits
    complaints: tuple[str, ...]
    story: tuple[str, ...]
    """Its last lines."""
    faults: Counter[str]
    ends: tuple[tuple[int, int], ...]
    """As `World.ends`."""
    hung: tuple[int, ...]
    """As `World.hung`."""
    remained: frozenset[Remainder]
    without_joules: int
    """Energy that was never priced."""
    writes: int
    """How often something was written after it had come to rest."""


def live_to_rest(seed: int) -> Life:
    """A life, and some minutes more in which nothing happens."""
    world = live(seed)
    complaints, story = tuple(world.complaints), tuple(world.story.lines[-60:])
    if world.traits.emissions:
        rest(world)  # what a source says that has come back is told once
    emissions = world.status.emissions
    return Life(
        seed=seed,
        traits=world.traits,
        complaints=complaints,
        story=story,
        faults=world.story.happened,
        ends=tuple(world.ends),
        hung=tuple(world.hung),
        remained=frozenset(world.remained),
        without_joules=0 if emissions is None else emissions.without_joules,
        writes=rest(world),
    )


def meet(life: Life) -> Iterator[str]:
    """What happened in a life."""
    yield from life.faults
    yield from (f"remainder: {kind}" for kind in life.remained)
    if life.ends:
        yield f"stopped on {life.traits.gpus} GPUs"
        yield f"stopped, {'emissions' if life.traits.emissions else 'energy'}"
    if life.without_joules:
        yield "energy without a price"


MEET = EVENTS | {
    "energy without a price",
    "remainder: both",
    "remainder: outage",
    "stopped, emissions",
    "stopped, energy",
    *(f"stopped on {gpus} GPUs" for gpus in SIZES),
}
LIVES = Suite("budgets", 200, live_to_rest, meet, MEET)


def told(found: Life | World) -> str:
    """A life as a person reads it."""
    lines = found.story if isinstance(found, Life) else found.story.lines
    return "\n".join([str(found.traits), *lines[-60:], *found.complaints])


@pytest.mark.life(LIVES)
def test_what_is_said_of_a_budget_holds(seed: int) -> None:
    life = LIVES.play(seed)
    assert not life.complaints, told(life)


@pytest.mark.life(LIVES)
def test_at_rest_nothing_is_written_any_more(seed: int) -> None:
    life = LIVES.play(seed)
    assert life.writes == 0, told(life)


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_whatever_may_happen_happens_often() -> None:
    seen: Counter[str] = Counter()
    for life in LIVES.play_all().values():
        seen.update(set(life.faults))
    assert LIVES.find_missing(LIVES.seeds) == []
    assert set(seen) >= EVENTS
    assert min(seen[fault] for fault in (*FAULTS, *LOSSES, *TROUBLES)) >= 20


@pytest.mark.all_lives
def test_one_thing_that_is_away_needs_no_remainder() -> None:
    """The bound alone holds where nothing, or one part alone, is away in the worst moment."""
    alone = [life for life in LIVES.play_all().values() if not life.traits.faults]
    assert len(alone) >= 60
    assert {life.traits.gpus for life in alone} == set(SIZES)
    assert [life.seed for life in alone if life.remained] == []


@pytest.mark.all_lives
def test_remainders_are_counted_where_two_things_are_away() -> None:
    kinds = Counter(kind for life in LIVES.play_all().values() for kind in life.remained)
    assert kinds["outage"] >= 3, kinds
    assert kinds["both"] >= 3, kinds


@pytest.mark.all_lives
def test_a_steady_program_is_stopped_below_its_budget() -> None:
    lives = LIVES.play_all().values()
    calm = [life for life in lives if not life.traits.faults and life.traits.character == "steady"]
    ends = {life.seed: [over for _, over in life.ends] for life in calm}
    assert len(calm) >= 20
    assert all(ends.values()), ends
    assert {seed: over for seed, over in ends.items() if max(over) > 0} == {}


@pytest.mark.all_lives
@pytest.mark.parametrize("gpus", SIZES)
def test_the_bound_is_not_much_more_than_what_happens(gpus: int) -> None:
    """But for what is kept for a pass that hangs before its operator dies, which happens in no life."""
    lives = [life for life in LIVES.play_all().values() if life.traits.gpus == gpus]
    ends = [end for life in lives for end in life.ends]
    hung = [part for life in lives for part in life.hung]
    bounds = [bound - part for (bound, _), part in zip(ends, hung, strict=True)]
    worst = max(over for _, over in ends)
    assert len(ends) >= 30
    assert median(bounds) <= 2 * worst, (median(bounds), worst)


def test_without_allowances_the_bound_would_not_hold() -> None:
    """The model can tell: agents that know of no allowances let a job go on for as long as its operator is away."""
    seeds = [s for s in LIVES.seeds if draw_traits(s).ambush == "operator away" and not draw_traits(s).faults]
    broken = [s for s in seeds[:16] if any(c.startswith("exceeded") for c in live(s, obeys=False).complaints)]
    assert len(broken) >= 4


def test_measures_are_those_of_the_lives() -> None:
    found = measure(range(6))
    assert set(found) == set(SIZES)
    for seed in range(6):
        life = LIVES.play(seed)
        if life.ends:
            assert max(life.ends, key=lambda end: end[1]) in found[life.traits.gpus]


@pytest.mark.parametrize("gpus", SIZES)
def test_time_alone_does_not_exceed_a_budget_of_emissions(gpus: int) -> None:
    """GPUs that wait use next to none of their allowance while the operator is away, but their making counts by time."""
    seeds = [s for s in LIVES.seeds if draw_traits(s).emissions and draw_traits(s).gpus == gpus][:4]
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
        assert world.story.happened["agent: held for too long"] >= 1, told(world)
        assert any(c.startswith("exceeded") for c in live(seed, traits, obeys=False).complaints)


@pytest.mark.all_lives
def test_budgets_of_emissions_are_kept_though_their_source_dies() -> None:
    green = [life for life in LIVES.play_all().values() if life.traits.emissions]
    assert len(green) == 50
    assert sum("source away" in life.faults for life in green) >= 8
    assert sum(bool(life.ends) for life in green) >= 25
    assert sum("agent: Throttled" in life.faults for life in green) >= 4
    assert {life.traits.gpus for life in green if life.traits.embodied} == set(SIZES)
    # Energy that was never priced is told, and was charged for.
    assert any(life.without_joules for life in green)


@pytest.mark.parametrize("seed", range(3))
def test_a_job_whose_budget_was_taken_away_goes_on_without_the_operator(seed: int) -> None:
    """Its pods were made under a budget: without any allowance their agents would hold them to nothing."""
    drawn = draw_traits(seed)
    traits = replace(
        drawn, character="steady", work=100_000, faults=(), fault_rate=0.0, edits=(), ambush=None
    )
    world = World(seed, traits)
    while world.used < JOULE:
        world.step()
    world.edit(None)
    for _ in range(60):
        world.step()
    world.break_something("operator away long")
    before = world.used
    for _ in range(150):
        world.step()
    assert not world.complaints, told(world)
    assert not any(pod.throttled or pod.evicted for pod in world.every), told(world)
    assert world.used - before >= 149 * traits.gpus * traits.kind.limit
