"""A counter is believed where it can be right; where it cannot, nothing is made up and little is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Allocated
from greentrain.energy.cards import Make
from greentrain.energy.counters import PROOF_SECONDS, STILL_SECONDS, Meter
from greentrain.energy.intervals import CardReading, bound_draw, find_most, measure, measure_since_start
from greentrain.quantities import Millijoules, Milliwatts, typed

LIMIT = Milliwatts(300_000)
START = 10**9


def reading(counter: int | None, draw: int | None = None) -> CardReading:
    return CardReading(typed(Millijoules, counter), typed(Milliwatts, draw))


@dataclass
class Card:
    """A card that is read once a second and whose driver may say something else than it counts."""

    account: NodeAccount
    at: float = 0.0
    asleep: float = 0.0
    true: int = START
    """What it has really used, in millijoules."""

    @property
    def used(self) -> int:
        return self.true - START

    @property
    def meter(self) -> Meter:
        return self.account.cards["GPU-1"].meter

    @property
    def counted(self) -> int:
        return self.account.pods["a"].gpu

    @property
    def estimated(self) -> int:
        return self.account.pods["a"].estimated

    def look(
        self,
        says: Callable[[int], int | None] = lambda true: true,
        *,
        draw: int = 250_000,
        seconds: float = 1.0,
        powered: bool = True,
        shown: int | None = None,
        asleep: float = 0.0,
    ) -> None:
        """`draw` for so long, and then a reading; `shown` is the power it gives where that is not the draw."""
        self.at += seconds + asleep
        self.asleep += asleep
        self.true += round(draw * seconds)
        power = (draw if shown is None else shown) if powered else None
        self.account.advance(
            {"GPU-1": reading(says(self.true), power)},
            {"GPU-1": (Allocated("a"),)},
            at=self.at,
            wall=1e9 + self.at,
            boot="b",
            asleep=self.asleep,
        )
        assert self.account.used == self.counted + self.account.idle + self.account.unattributed


def card() -> Card:
    account = NodeAccount(journal_id="j")
    account.open("a", namespace="team", name="a", uid="uid-a")
    account.note_cards({"GPU-1": Make(highest=LIMIT)})
    made = Card(account)
    for _ in range(6):
        made.look(draw=0 if made.at == 0 else 250_000)
    return made


def test_the_smallest_step_back_is_no_reset() -> None:
    found = measure(reading(10**9), reading(10**9 - 10), 1.0)
    assert (found.total, found.missing_seconds, found.fault) == (0, 1.0, "WentBack")


def test_a_reset_is_believed_where_what_is_shown_can_have_been_drawn_since() -> None:
    most = find_most(LIMIT, 1.0)
    assert most == 1_023_000
    assert measure(reading(10**9), reading(most), 1.0, highest=LIMIT).measured == most
    assert measure(reading(10**9), reading(most + 1), 1.0, highest=LIMIT).fault == "WentBack"
    assert measure_since_start(reading(most), 1.0, highest=LIMIT).measured == most
    assert measure_since_start(reading(most + 1), 1.0, highest=LIMIT).missing_seconds == 1.0


@pytest.mark.parametrize(
    "says",
    [
        lambda true: true - 500_000_000,
        lambda true: true - 1,
        lambda true: true - 250_001,
        lambda true: true + 2**32,
        lambda _true: 2**64 - 1,
        lambda _true: 0,
        lambda true: true + 3_000_000,
    ],
    ids=[
        "much older",
        "a little",
        "one reading older",
        "2^32 more",
        "2^64 - 1",
        "nothing",
        "ten seconds ahead",
    ],
)
@pytest.mark.parametrize("powered", [True, False], ids=["with power", "without"])
def test_one_wrong_reading_costs_nothing(says: Callable[[int], int], powered: bool) -> None:
    made = card()
    made.look(says, powered=powered)
    for _ in range(3):
        made.look(powered=powered)
    # An older value by less than a step, or a reset, cannot be distinguished from what happens.
    assert made.counted == pytest.approx(made.used, abs=2.1 * 1.1 * LIMIT)
    assert made.counted <= made.used + 2.1 * 1.1 * LIMIT
    assert made.meter.doubt is None


@pytest.mark.parametrize("step", [2**32, -400_000_000, 2**50])
def test_a_counter_that_goes_on_from_another_value_is_believed_again_after_a_while(step: int) -> None:
    made = card()
    for _ in range(60):
        made.look(lambda true: true + step)
    assert made.counted == made.used
    assert made.estimated == pytest.approx(PROOF_SECONDS * 250_000, rel=0.11)
    assert made.meter.faults == 1


def test_without_power_the_time_until_then_is_missing() -> None:
    made = card()
    for _ in range(60):
        made.look(lambda true: true + 2**32, powered=False)
    missing = made.account.pods["a"].missing_seconds
    assert missing == pytest.approx(PROOF_SECONDS, abs=1.0)
    assert made.counted == made.used - round(missing * 250_000)


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["still", "half"])
def test_a_counter_that_shows_too_little_is_replaced_by_the_power(share: float) -> None:
    made = card()
    begun = made.true
    for _ in range(120):
        made.look(lambda true: begun + round((true - begun) * share))
    assert made.counted == pytest.approx(made.used, rel=0.01)
    doubt = made.meter.doubt
    assert doubt is not None
    assert doubt.fault == ("Slow" if share else "Still")
    behind = made.true - begun
    for _ in range(60):
        made.look(lambda true: true - round(behind * (1 - share)))
    assert made.meter.doubt is None
    assert made.counted == pytest.approx(made.used, rel=0.01)


def test_a_counter_that_stood_still_and_caught_up_is_counted_once() -> None:
    made = card()
    frozen = made.true
    for _ in range(20):
        made.look(lambda _true: frozen)
    for _ in range(5):
        made.look()
    assert made.counted == made.used
    assert made.meter.doubt is None


def test_what_stood_still_is_noticed_within_seconds() -> None:
    made = card()
    frozen = made.true
    for _ in range(round(STILL_SECONDS) + 1):
        made.look(lambda _true: frozen)
    assert made.counted == pytest.approx(made.used, abs=250_000)


def test_bursts_that_the_power_averages_are_no_fault() -> None:
    """Power is the mean of the second before: at each change it is wrong by the whole change."""
    made = card()
    last = 250_000
    for i in range(300):
        draw = 290_000 if i % 3 else 60_000
        made.look(draw=draw, shown=last)
        last = draw
    assert made.meter.faults == 0
    assert (made.counted, made.estimated) == (made.used, 0)


def test_while_the_machine_sleeps_its_cards_draw_nothing() -> None:
    made = card()
    made.account.cards["GPU-1"].idle_draw = 40_000.0
    made.look(asleep=30.0)
    for _ in range(5):
        made.look()
    assert made.counted == made.used
    assert (made.account.pods["a"].missing_seconds, made.meter.faults) == (0, 0)


def test_time_in_which_the_counter_grew_too_little_is_missing() -> None:
    made = card()
    made.account.cards["GPU-1"].idle_draw = 40_000.0
    made.look(draw=0, seconds=30.0, shown=250_000)
    for _ in range(5):
        made.look()
    assert made.counted == pytest.approx(made.used, abs=250_000)
    assert made.account.pods["a"].missing_seconds == pytest.approx(30.0)


def test_a_counter_that_stood_still_over_a_restart_is_not_taken_for_a_reset() -> None:
    made = card()
    frozen = made.true
    made.look(lambda _true: frozen, seconds=20.0)
    assert made.counted == frozen - START
    assert made.account.pods["a"].missing_seconds == 20.0
    for _ in range(30):
        made.look(lambda true: true - 5_000_000)
    assert made.counted == pytest.approx(made.used - 5_000_000, abs=500_000)


def test_power_that_no_card_draws_is_not_known() -> None:
    assert bound_draw(reading(5, 330_000), LIMIT) == reading(5, 330_000)
    assert bound_draw(reading(5, 330_001), LIMIT) == reading(5)
    assert bound_draw(None, LIMIT) is None


def test_a_doubt_outlives_its_pod_without_giving_the_next_one_its_energy() -> None:
    made = card()
    made.account.open("b", namespace="team", name="b", uid="uid-b")
    frozen, before = made.true, made.counted
    for _ in range(10):
        made.look(lambda _true: frozen)
    of_a = made.counted
    for second in range(1, 4):
        made.at += 1.0
        made.true += 50_000
        made.account.advance(
            {"GPU-1": reading(made.true, 50_000)},
            {"GPU-1": (Allocated("b"),)},
            at=made.at,
            wall=1e9 + made.at,
            boot="b",
        )
        # The first of these intervals is half its own.
        assert made.account.pods["b"].gpu <= 75_000 + 50_000 * (second - 1)
    assert before < of_a <= made.counted <= of_a + 150_000


STEPS = st.lists(
    st.tuples(
        st.floats(0.2, 40.0),
        st.integers(0, 330_000),
        st.one_of(
            st.none(),
            st.integers(-(2**33), 2**33),
            st.sampled_from([2**64 - 1, 2**32, -1, -START]),
        ),
        st.booleans(),
        st.sampled_from([1.0, 1.0, 0.0, 0.5]),
    ),
    min_size=1,
    max_size=80,
)


@given(STEPS)
def test_no_more_is_counted_than_a_card_can_have_drawn(
    steps: list[tuple[float, int, int | None, bool, float]],
) -> None:
    made = card()
    begun, counted, lie = made.at, made.counted, 0
    for seconds, draw, change, powered, share in steps:
        if change is not None:
            lie = change
        seen = made.true

        def says(true: int, seen: int = seen, lie: int = lie, share: float = share) -> int:
            return max(0, seen + round((true - seen) * share) + lie)

        made.look(says, draw=draw, seconds=seconds, powered=powered)
        assert 0 <= made.counted - counted <= find_most(LIMIT, made.at - begun)
