"""Every joule is priced once or told to have no intensity, however buckets and periods lie."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain import quantities
from greentrain.carbon.intensity import Absent, Intensity, Lookup
from greentrain.carbon.operational import MOST_PERIODS, Bucket, Priced, SourceShare, merge, price
from greentrain.quantities import Joules, Micrograms, Thousandths

KWH = 3_600_000
GRAM = 1_000_000


def series(*steps: tuple[float, int | None, str]) -> Lookup:
    """Milligrams from each time on, None for a gap; nothing before the first."""

    def at(moment: float) -> Intensity | Absent:
        for (begin, milligrams, source), (end, *_) in pairwise([(-inf, None, ""), *steps, (inf, None, "")]):
            if begin <= moment < end:
                if milligrams is None:
                    return Absent("a gap", begin, end)
                return Intensity(
                    quantities.Intensity(milligrams), source, "Lifecycle", begin, end, as_of=begin
                )
        raise AssertionError(moment)

    return at


def constant(milligrams: int, source: str = "s") -> Lookup:
    return lambda _: Intensity(quantities.Intensity(milligrams), source, "Lifecycle")


@pytest.mark.parametrize(
    ("joules", "pue", "milligrams", "micrograms"),
    [
        (KWH, 1000, 200_000, 200 * GRAM),
        (KWH, 1200, 200_000, 240 * GRAM),
        (KWH // 1000, 1000, 200_000, GRAM // 5),
        (KWH, 1000, 0, 0),
        (1, 1000, 1, 0),
        (1, 1000, 1000, 0),
        (18, 1000, 300, 2),  # 1.5, half to even
        (10_000_000_000, 5000, 5_000_000, 69_444_444_444_444),
    ],
)
def test_grams_are_joules_times_pue_times_intensity(
    joules: int, pue: int, milligrams: int, micrograms: int
) -> None:
    priced = price([Bucket(0, 900, Joules(joules))], Thousandths(pue), constant(milligrams))
    assert priced == Priced((SourceShare("s", Joules(joules), Micrograms(micrograms)),))


def test_energy_that_a_forecast_priced_is_counted_as_such_wherever_it_is_added_up() -> None:
    def at(moment: float) -> Intensity | Absent:
        begin = moment // 300 * 300
        return Intensity(
            quantities.Intensity(1000),
            "s",
            "Lifecycle",
            begin,
            begin + 300,
            as_of=begin,
            step=300,
            issued=200 if begin < 900 else None,
        )

    # Of three periods the first had begun at 200; from 900 on it is not known when values were issued.
    parts = [
        price([bucket], Thousandths(1000), at)
        for bucket in (Bucket(0, 900, Joules(900)), Bucket(900, 1800, Joules(900)))
    ]
    assert [p.forecast_joules for p in (*parts, merge(parts))] == [600, 0, 600]
    assert merge(parts).joules == 1800


@pytest.mark.parametrize(
    ("steps", "shares", "without"),
    [
        ([(0, 100_000, "a")], {"a": (900, 25_000)}, 0),
        ([(0, 100_000, "a"), (300, 400_000, "b")], {"a": (300, 8333), "b": (600, 66_667)}, 0),
        ([(0, 100_000, "a"), (300, 0, "a")], {"a": (900, 8333)}, 0),
        ([(300, 100_000, "a")], {"a": (600, 16_667)}, 300),
        ([(0, 100_000, "a"), (1, None, ""), (899, 100_000, "a")], {"a": (2, 56)}, 898),
        ([(900, 100_000, "a")], {}, 900),
        ([], {}, 900),
    ],
)
def test_a_bucket_is_divided_by_the_periods_in_it(
    steps: list[tuple[float, int | None, str]], shares: dict[str, tuple[int, int]], without: int
) -> None:
    priced = price([Bucket(0, 900, Joules(900))], Thousandths(1000), series(*steps))
    assert {s.source: (s.joules, s.micrograms) for s in priced.shares} == shares
    assert (priced.without_joules, priced.reason) == (without, "a gap" if without else "")


def test_the_whole_joules_of_the_parts_are_those_of_the_bucket() -> None:
    thirds = series((0, 1, "a"), (300, 2, "b"), (600, 3, "c"))
    priced = price([Bucket(0, 900, Joules(1000))], Thousandths(1000), thirds)
    assert [s.joules for s in priced.shares] == [333, 333, 334]


def test_a_moment_is_priced_with_what_held_then() -> None:
    priced = price(
        [Bucket(300, 300, Joules(36))], Thousandths(1000), series((0, 100, "a"), (300, 1_000_000, "b"))
    )
    assert priced.shares == (SourceShare("b", Joules(36), Micrograms(10_000), 300),)


def test_no_energy_is_nobodys_share() -> None:
    assert (
        price([Bucket(0, 900, Joules(0))], Thousandths(1000), constant(1))
        == price([], Thousandths(1000), constant(1))
        == Priced()
    )


def test_a_share_has_the_latest_time_its_values_were_of() -> None:
    steps = series((0, 1, "a"), (300, 2, "b"), (600, 3, "a"))
    priced = price([Bucket(0, 900, Joules(90)), Bucket(0, 300, Joules(10))], Thousandths(1000), steps)
    assert [(s.source, s.as_of) for s in priced.shares] == [("a", 600), ("b", 300)]


@pytest.mark.parametrize(
    "answer",
    [
        Intensity(quantities.Intensity(1), "lost", "Lifecycle", 0, 1),
        Intensity(quantities.Intensity(1), "lost", "Lifecycle", 5000, 6000),
        Absent("nothing", 0, 1),
        Absent("nothing", 5000),
    ],
)
def test_an_answer_of_another_time_counts_as_none(answer: Intensity | Absent) -> None:
    priced = price([Bucket(900, 1800, Joules(7))], Thousandths(1000), lambda _: answer)
    assert (priced.shares, priced.without_joules) == ((), 7)
    assert "another time" in priced.reason


def test_a_source_that_changes_all_the_time_is_not_followed_for_ever() -> None:
    asked = []

    def at(moment: float) -> Intensity:
        asked.append(moment)
        return Intensity(quantities.Intensity(1), "s", "Lifecycle", moment, moment + 2**-10)

    priced = price([Bucket(0, 900, Joules(900_000))], Thousandths(1000), at)
    assert len(asked) == MOST_PERIODS
    assert (priced.joules, priced.shares[0].joules) == (900_000, 9765)
    assert "changes more than" in priced.reason


@pytest.mark.parametrize("begin_end_joules", [(1, 0, 0), (0, inf, 1), (-inf, 0, 1), (nan, 1, 1), (0, 1, -1)])
def test_a_bucket_that_cannot_be_is_refused(begin_end_joules: tuple[float, float, Joules]) -> None:
    with pytest.raises(ValueError, match="bucket"):
        Bucket(*begin_end_joules)


def test_a_facility_uses_no_less_than_its_computers() -> None:
    with pytest.raises(ValueError, match="PUE"):
        price([], Thousandths(999), constant(1))


MILLIGRAMS = st.integers(0, 5_000_000)
STEPS = st.lists(
    st.tuples(
        st.integers(-100, 4000).map(float) | st.floats(-100, 4000),
        st.none() | MILLIGRAMS,
        st.sampled_from(["a", "b"]),
    ),
    max_size=8,
    unique_by=lambda s: s[0],
).map(sorted)
BUCKETS = st.lists(
    st.builds(
        lambda begin, length, joules: Bucket(begin, begin + length, joules),
        st.integers(0, 3000).map(float) | st.floats(0, 3000),
        st.floats(0, 1800),
        st.integers(0, 10**9),
    ),
    max_size=6,
)
PUES = st.integers(1000, 5000)
PRICED = st.builds(lambda buckets, pue, steps: price(buckets, pue, series(*steps)), BUCKETS, PUES, STEPS)


@given(BUCKETS, PUES, STEPS)
def test_no_joule_is_lost_or_counted_twice(
    buckets: Sequence[Bucket], pue: int, steps: Sequence[tuple[float, int | None, str]]
) -> None:
    priced = price(buckets, Thousandths(pue), series(*steps))
    assert priced.joules == sum(b.joules for b in buckets)
    assert all(s.joules >= 0 and s.micrograms >= 0 for s in priced.shares)
    assert bool(priced.reasons) >= bool(priced.without_joules)


@given(BUCKETS, PUES, STEPS, st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_grams_add_up_over_any_split_between_buckets(
    buckets: Sequence[Bucket], pue: int, steps: Sequence[tuple[float, int | None, str]], groups: list[int]
) -> None:
    at = series(*steps)
    parts = [[b for b, g in zip(buckets, groups, strict=False) if g == group] for group in set(groups)]
    whole, apart = price(buckets, Thousandths(pue), at), merge(price(p, Thousandths(pue), at) for p in parts)
    assert_same_but_for_rounding(whole, apart, splits=len(parts) - 1)
    assert [s.joules for s in whole.shares] == [s.joules for s in apart.shares]


@given(st.integers(0, 10**6), PUES, STEPS, st.sets(st.integers(1, 59)))
def test_grams_add_up_over_any_split_of_an_interval(
    joules_per_minute: int, pue: int, steps: Sequence[tuple[float, int | None, str]], at_minutes: set[int]
) -> None:
    at = series(*steps)
    edges = [0, *sorted(at_minutes), 60]
    parts = [Bucket(a * 60, b * 60, Joules((b - a) * joules_per_minute)) for a, b in pairwise(edges)]
    whole = price([Bucket(0, 3600, Joules(60 * joules_per_minute))], Thousandths(pue), at)
    assert_same_but_for_rounding(whole, price(parts, Thousandths(pue), at), splits=0)
    assert_same_but_for_rounding(
        whole, merge(price([p], Thousandths(pue), at) for p in parts), splits=len(at_minutes)
    )


def assert_same_but_for_rounding(whole: Priced, apart: Priced, *, splits: int) -> None:
    one, other = ({s.source: s.micrograms for s in p.shares} for p in (whole, apart))
    assert one.keys() == other.keys()
    assert all(abs(one[s] - other[s]) <= splits for s in one)


@given(BUCKETS, PUES, STEPS)
def test_grams_are_exact_but_for_one_rounding(
    buckets: Sequence[Bucket], pue: int, steps: Sequence[tuple[float, int | None, str]]
) -> None:
    at = series(*steps)
    exact: dict[str, Fraction] = {}
    for bucket in (b for b in buckets if b.joules):
        inner = [s[0] for s in steps if bucket.begin < s[0] < bucket.end]
        for begin, end in pairwise([bucket.begin, *inner, bucket.end]):
            held = at(begin)
            length = Fraction(bucket.end) - Fraction(bucket.begin)
            share = (Fraction(end) - Fraction(begin)) / length if length else Fraction(1)
            if isinstance(held, Intensity):
                grams = bucket.joules * share * held.milligrams * pue / KWH
                exact[held.source] = exact.get(held.source, Fraction()) + grams
    assert {s.source: s.micrograms for s in price(buckets, Thousandths(pue), at).shares} == {
        source: round(micrograms) for source, micrograms in exact.items()
    }


@given(st.lists(PRICED, max_size=4), st.randoms(use_true_random=False), st.integers(0, 4))
def test_merging_in_any_order_and_grouping_is_the_same(parts: list[Priced], random: Random, cut: int) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)
    whole = merge(parts)
    assert merge(shuffled) == whole
    assert merge([merge(shuffled[:cut]), merge(shuffled[cut:])]) == whole
    assert merge([whole, Priced()]) == whole
    assert (whole.joules, whole.micrograms) == (
        sum(p.joules for p in parts),
        sum(p.micrograms for p in parts),
    )
