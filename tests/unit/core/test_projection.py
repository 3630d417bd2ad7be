"""What is measured of a job at each power cap, and the cap that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.nodepower import lowest_percent
from greentrain.core.power.measures import (
    ENOUGH_WINDOWS,
    LEAST_WINDOWS,
    LONGEST_GAP_MILLISECONDS,
    MOST_WINDOWS,
    CapMeasure,
    Sample,
    Track,
    measure,
    observe,
    student,
)
from greentrain.core.power.projection import RUNG_PERCENT, Choice, build_ladder, choose_cap, project
from greentrain.quantities import Joules, Milliseconds, Milliwatts

LADDER = (100, 90, 80, 70, 60, 50, 40)


def measured(
    percent: int,
    joules: int,
    *,
    windows: int = LEAST_WINDOWS,
    milliseconds: int = 1000,
    differing: int = 0,
) -> CapMeasure:
    """A cap at which a step costs so many joules and milliseconds; `differing` joules more or less from step to step."""
    found = CapMeasure(percent)
    for i in range(windows):
        off = differing if i // 2 % 2 else -differing
        found = found.add(30, Joules((joules + off) * 30), Milliseconds(milliseconds * 30))
    return found


SLOWER = (1000, 1200, 1400, 1600, 1800, 2000, 2200)


def curve(*costs: int, milliseconds: tuple[int, ...] = ()) -> tuple[CapMeasure, ...]:
    """Measures of the ladder's first caps, by joules per step."""
    times = milliseconds or SLOWER
    return tuple(measured(p, c, milliseconds=t) for p, c, t in zip(LADDER, costs, times, strict=False))


@dataclass(frozen=True)
class Moment:
    """A sample, told by what is different from one second per step, 200 J per second, no cap and one attempt."""

    second: int
    step: int | None = None
    joules: int | None = None
    percent: int = 100
    attempt: int = 1
    complete: bool = True

    @property
    def sample(self) -> Sample:
        return Sample(
            attempt=self.attempt,
            step=self.second if self.step is None else self.step,
            joules=Joules(200 * self.second if self.joules is None else self.joules),
            moment=Milliseconds(1_767_225_600_000 + 1000 * self.second),
            percent=self.percent,
            complete=self.complete,
        )


def watch(*moments: Moment) -> Track:
    track = Track()
    for moment in moments:
        track = observe(track, moment.sample)
    return track


STEADY = [Moment(s) for s in range(0, 181, 30)]

STORIES: dict[str, tuple[list[Moment], dict[int, tuple[int, int, int, int]]]] = {
    # By cap: steps, joules, milliseconds, windows.
    "nothing yet": ([Moment(0)], {}),
    "from the first step that is settled": (STEADY, {100: (150, 30_000, 150_000, 5)}),
    "samples every ten seconds make windows of twenty": (
        [Moment(s) for s in range(0, 111, 10)],
        {100: (80, 16_000, 80_000, 4)},
    ),
    "a start without a step is in no measure": (
        [Moment(0, 0), Moment(30, 0), Moment(60, 0), Moment(90, 10), Moment(120, 40), Moment(150, 70)],
        {100: (60, 12_000, 60_000, 2)},
    ),
    "a new attempt begins at its checkpoint and is in no measure until it has done a step": (
        [
            *STEADY,
            Moment(210, 170, attempt=2),
            Moment(240, 170, attempt=2),
            Moment(270, 171, attempt=2),
            Moment(300, 201, attempt=2),
        ],
        {100: (180, 36_000, 180_000, 6)},
    ),
    "a step that goes back": (
        [*STEADY, Moment(210, 100), Moment(240, 130), Moment(270, 160)],
        {100: (180, 36_000, 180_000, 6)},
    ),
    "what is used while no step is done is part of what steps cost": (
        [Moment(0), Moment(30), Moment(60), Moment(90, 60), Moment(120, 60), Moment(150, 100)],
        {100: (70, 24_000, 120_000, 2)},
    ),
    "joules that come late": (
        [Moment(0), Moment(30), Moment(60, joules=6000), Moment(90)],
        {100: (60, 12_000, 60_000, 1)},
    ),
    "joules that are fewer than before": (
        [Moment(0), Moment(30), Moment(60), Moment(90, joules=11_000), Moment(120), Moment(150)],
        {100: (60, 12_000, 60_000, 2)},
    ),
    "another cap": (
        [*STEADY, *(Moment(s, percent=90) for s in range(210, 331, 30))],
        {100: (150, 30_000, 150_000, 5), 90: (90, 18_000, 90_000, 3)},
    ),
    "a cap that is not in force everywhere": (
        [*STEADY, *(Moment(s, percent=90, complete=False) for s in range(210, 331, 30))],
        {100: (150, 30_000, 150_000, 5)},
    ),
    "a cap that is not in force for a moment": (
        [*STEADY, Moment(190, complete=False), *(Moment(s) for s in range(210, 301, 30))],
        {100: (210, 42_000, 210_000, 7)},
    ),
    "a cap that was another for a moment": (
        [Moment(0), Moment(30), Moment(40, percent=90), Moment(60), Moment(90), Moment(120)],
        {100: (30, 6000, 30_000, 1)},
    ),
    "a long silence": (
        [*STEADY, *(Moment(s) for s in (600, 630, 660))],
        {100: (180, 36_000, 180_000, 6)},
    ),
    "a clock that was set back": (
        [*STEADY, Moment(100, 200, 50_000), Moment(130, 230, 56_000), Moment(160, 260, 62_000)],
        {100: (180, 36_000, 180_000, 6)},
    ),
}


@pytest.mark.parametrize(("moments", "expected"), STORIES.values(), ids=STORIES)
def test_only_windows_at_one_cap_in_one_attempt_are_counted(
    moments: list[Moment], expected: dict[int, tuple[int, int, int, int]]
) -> None:
    found = watch(*moments).measures
    assert {m.percent: (m.steps, m.joules, m.milliseconds, m.windows) for m in found} == expected
    assert [m.percent for m in found] == sorted(expected, reverse=True)


A = Moment(30).sample
WINDOWS: dict[str, tuple[Sample, Sample, int]] = {
    "as it should be": (A, Moment(60).sample, 1),
    "too short": (A, Moment(49).sample, 0),
    "no step": (A, Moment(60, 30).sample, 0),
    "a step back": (A, Moment(60, 29).sample, 0),
    "no joules": (A, Moment(60, joules=6000).sample, 0),
    "another cap": (A, Moment(60, percent=90).sample, 0),
    "another attempt": (A, Moment(60, attempt=2).sample, 0),
    "not everywhere at its end": (A, Moment(60, complete=False).sample, 0),
    "not everywhere at its beginning": (replace(A, complete=False), Moment(60).sample, 0),
}


@pytest.mark.parametrize(("before", "after", "windows"), WINDOWS.values(), ids=WINDOWS)
def test_two_samples_make_a_window_or_leave_the_measures_as_they_are(
    before: Sample, after: Sample, windows: int
) -> None:
    known = (measured(80, 100),)
    found = measure(known, before, after)
    assert sum(m.windows for m in found if m.percent == 100) == windows
    assert (found is known) == (not windows)


def test_a_silence_as_long_as_is_allowed_bounds_a_window() -> None:
    longest = LONGEST_GAP_MILLISECONDS // 1000
    assert watch(Moment(0), Moment(30), Moment(30 + longest)).measures[0].windows == 1
    assert not watch(Moment(0), Moment(30), Moment(31 + longest)).measures


@pytest.mark.parametrize(
    ("found", "enough"),
    [
        (measured(100, 200, windows=LEAST_WINDOWS - 1), False),
        (measured(100, 200), True),
        (measured(100, 200, windows=6, differing=20), False),
        (measured(100, 200, windows=ENOUGH_WINDOWS - 1, differing=20), False),
        (measured(100, 200, windows=ENOUGH_WINDOWS, differing=20), True),
        (measured(100, 200, windows=6, differing=2), True),
    ],
    ids=["four windows", "five alike", "six that differ", "nineteen", "twenty", "six that hardly differ"],
)
def test_enough_is_measured_when_it_is_known_well_or_was_looked_at_often(
    found: CapMeasure, enough: bool
) -> None:
    assert found.is_enough is enough


def test_the_error_of_a_single_window_is_not_known() -> None:
    assert CapMeasure(100).error_millionths == measured(100, 5, windows=1).error_millionths == 1_000_000


@pytest.mark.parametrize(
    ("freedom", "factor"), [(4, 2776), (5, 2571), (9, 2262), (19, 2093), (60, 2000), (10**6, 1960)]
)
def test_students_factor(freedom: int, factor: int) -> None:
    """The values are those of any table of Student's distribution, two-sided, 95 %."""
    assert student(freedom) == pytest.approx(factor, rel=0.01)


def test_a_step_that_is_counted_a_window_late_makes_less_doubt_than_windows_that_differ_by_chance() -> None:
    late, chance = CapMeasure(100), CapMeasure(100)
    for i in range(20):
        late = late.add(30 + (1 if i % 2 else -1), Joules(6000), Milliseconds(30_000))
        chance = chance.add(30 + (1 if i // 2 % 2 else -1), Joules(6000), Milliseconds(30_000))
    assert late.error_millionths < chance.error_millionths / 2
    assert late.error_millionths >= 1_000_000 / late.steps, "but the last step is in doubt"


def test_a_job_that_pauses_now_and_then_is_known_less_well_than_its_windows_let_one_think() -> None:
    found = CapMeasure(100)
    for i in range(40):
        found = found.add(30, Joules(9000 if i % 10 < 3 else 6000), Milliseconds(30_000))
    independent = replace(found, lagged=0)
    assert found.error_millionths > 1.3 * independent.error_millionths


@pytest.mark.parametrize("windows", [5, 10, 30, 100])
def test_the_error_holds_19_times_of_20_and_is_not_large(windows: int) -> None:
    chance = Random(windows)
    held, wide = 0, 0.0
    for _ in range(400):
        found = CapMeasure(100)
        for _ in range(windows):
            steps = chance.randint(20, 40)
            found = found.add(
                steps, Joules(round(steps * 1000 * chance.gauss(1, 0.05))), Milliseconds(30_000)
            )
        error = found.error_millionths / 1e6
        held += abs(found.joules / found.steps - 1000) <= error * found.joules / found.steps
        wide += error / 400
    assert 370 <= held <= 395
    assert wide <= 3 * 0.05 / windows**0.5


def test_a_long_measure_follows_a_job_that_changes_and_stays_small() -> None:
    found = CapMeasure(100)
    for joules in [6000] * 1000 + [9000] * 300:
        found = found.add(30, Joules(joules), Milliseconds(30_000))
        assert found.windows < MOST_WINDOWS
    assert found.joules / found.steps == pytest.approx(300, rel=0.02)
    assert max(found.joules, found.milliseconds, found.spread, abs(found.lagged)) < 2**63


@given(
    st.lists(
        st.tuples(st.integers(1, 10**7), st.integers(1, 10**10), st.integers(20_000, 10**8)),
        min_size=1,
        max_size=150,
    )
)
def test_whatever_is_measured_stays_a_number_that_a_status_can_hold(
    windows: list[tuple[int, Joules, Milliseconds]],
) -> None:
    found = CapMeasure(100)
    for window in windows:
        found = found.add(*window)
    assert 0 < found.steps < 2**63
    assert 0 < found.joules < 2**63
    assert 0 <= found.spread < 2**63
    assert max(abs(found.lagged), abs(found.latest)) < 2**63
    assert found.error_millionths >= 0


@pytest.mark.parametrize(
    ("percent", "steps_left", "budget", "joules", "uncertainty", "exceeds"),
    [
        (100, 1000, 300_000, 250_000, 2000, "No"),
        (100, 1000, 252_000, 250_000, 2000, "No"),
        (100, 1000, 251_999, 250_000, 2000, "Unknown"),
        (100, 1000, 248_000, 250_000, 2000, "Unknown"),
        (100, 1000, 247_999, 250_000, 2000, "Yes"),
        (100, 0, 50_000, 50_000, 0, "No"),
        (100, 0, 49_999, 50_000, 0, "Yes"),
        (100, -5, 50_000, 50_000, 0, "No"),
        (90, 1000, 10**9, 230_000, 1800, "Unknown"),
        (80, 1000, 10**9, None, None, "Unknown"),
        (100, None, 10**9, None, None, "Unknown"),
    ],
    ids=[
        "far below",
        "below by its error",
        "hardly below",
        "hardly above",
        "above by more than its error",
        "at its end",
        "beyond it at its end",
        "past what it said was its end",
        "hardly measured",
        "not measured",
        "no end known",
    ],
)
def test_a_projection_is_what_is_used_and_what_is_left(
    percent: int,
    steps_left: int | None,
    budget: int,
    joules: int | None,
    uncertainty: int | None,
    exceeds: str,
) -> None:
    known = (measured(100, 200), replace(measured(90, 180), windows=4))
    found = project(known, percent, used=Joules(50_000), steps_left=steps_left, budget=Joules(budget))
    assert (found.joules, found.uncertainty_joules, found.exceeds) == (joules, uncertainty, exceeds)
    assert found.milliseconds == (None if joules is None else max(0, 1000 * (steps_left or 0)))


@pytest.mark.parametrize(
    ("ceiling", "lowest", "expected"),
    [
        (100, 40, (100, 90, 80, 70, 60, 50, 40)),
        (100, 33, (100, 90, 80, 70, 60, 50, 40, 33)),
        (100, 38, (100, 90, 80, 70, 60, 50, 38)),
        (85, 43, (85, 75, 65, 55, 43)),
        (60, 58, (60, 58)),
        (60, 60, (60,)),
        (60, 70, (60,)),
    ],
)
def test_the_ladder(ceiling: int, lowest: int, expected: tuple[int, ...]) -> None:
    assert build_ladder(ceiling, lowest) == expected


@given(st.integers(1, 100), st.integers(1, 100))
def test_a_ladder_goes_down_from_the_ceiling_and_not_below_the_lowest(ceiling: int, lowest: int) -> None:
    ladder = build_ladder(ceiling, lowest)
    assert ladder[0] == ceiling
    assert ladder[-1] == min(ceiling, lowest)
    gaps = [above - below for above, below in pairwise(ladder)]
    assert all(0 < gap < 2 * RUNG_PERCENT for gap in gaps)
    assert all(gap == RUNG_PERCENT for gap in gaps[:-1])


@pytest.mark.parametrize(
    ("least", "default", "percent"),
    [
        (100_000, 300_000, 34),
        (200_000, 700_000, 29),
        (100_000, 400_000, 25),
        (300_000, 300_000, 100),
        (5, 4, 100),
    ],
)
def test_a_cards_lowest_limit_as_a_percent_is_not_below_it(least: int, default: int, percent: int) -> None:
    assert lowest_percent(Milliwatts(least), Milliwatts(default)) == percent


FAST = (1000, 1000, 1010, 1050, 1120, 1250, 1600)


@dataclass(frozen=True)
class Case:
    measures: tuple[CapMeasure, ...]
    percent: int
    budget: int
    """For 1,000 steps that are left; 50,000 J are used."""
    expected: tuple[int, str]
    says: str = ""
    slowdown: int | None = None
    ladder: tuple[int, ...] = LADDER
    cannot_finish: bool = False


CASES = {
    "nothing measured": Case((), 100, 1, (100, "Measuring"), "0 of 5 times"),
    "too little measured": Case((measured(100, 200, windows=4),), 100, 1, (100, "Measuring"), "4 of 5"),
    "measured badly": Case(
        (measured(100, 200, windows=6, differing=20),), 100, 250_000, (100, "Measuring"), "is known to "
    ),
    "measured badly and far above": Case(
        (measured(100, 200, windows=6, differing=20),), 100, 150_000, (90, "Trying")
    ),
    "measured badly and far below": Case(
        (measured(100, 200, windows=6, differing=20),), 100, 350_000, (100, "Fits")
    ),
    "the best is measured badly": Case(
        (*curve(200, 180, 170, 160, 150, 140), measured(40, 120, windows=6, differing=12)),
        40,
        100_000,
        (40, "Measuring"),
    ),
    "others that cost as much": Case(curve(2010, 2000, 2000, 2018), 70, 2_085_000, (60, "Trying")),
    "others that cost as much, and no other": Case(
        curve(2010, 2000, 2000, 2018), 70, 2_085_000, (100, "Raised"), ladder=LADDER[:4]
    ),
    "a higher one would not let it end earlier": Case(
        curve(140, 140, 140, milliseconds=(1000, 1000, 1000)), 80, 300_000, (80, "Fits")
    ),
    "it fits": Case(curve(200), 100, 260_000, (100, "Fits"), "at 100% it would use 69.44Wh of 72.22Wh"),
    "it does not": Case(curve(200), 100, 200_000, (90, "Trying"), "90% is tried"),
    "it may not": Case(curve(200), 100, 251_000, (90, "Trying")),
    "the next one is being measured": Case(curve(200), 90, 200_000, (90, "Measuring")),
    "nor does the next": Case(curve(200, 180), 90, 200_000, (80, "Trying")),
    "the third does": Case(curve(200, 180, 140), 80, 200_000, (80, "Fits")),
    "two do": Case(curve(200, 140, 130), 80, 200_000, (90, "Raised")),
    "a higher one hardly does": Case(curve(200, 147, 130), 80, 200_000, (80, "Fits")),
    "one lower that was measured does": Case(curve(200, 180, 140), 100, 200_000, (80, "Lowered")),
    "none does, from above": Case(curve(200, 180, 170), 100, 200_000, (70, "Trying")),
    "a minimum in the middle, before the end": Case(
        curve(200, 180, 170, 175, 190), 60, 200_000, (50, "Trying")
    ),
    "a minimum in the middle, at the end": Case(
        curve(200, 180, 170, 175, 190, 210, 250),
        40,
        200_000,
        (80, "CannotFinish"),
        "it cannot finish inside its budget: at 80% it would use 61.11Wh of 55.56Wh",
        cannot_finish=True,
    ),
    "a minimum in the middle that fits": Case(
        curve(200, 180, 148, 155, 190), 60, 200_000, (80, "Raised"), "at 80% it would use"
    ),
    "as good and faster": Case(
        curve(200, 180, 171, 170, 171, 180, 200), 40, 200_000, (80, "CannotFinish"), cannot_finish=True
    ),
    "hardly worse and faster": Case(
        curve(200, 180, 173, 170, 171, 180, 200), 80, 200_000, (80, "CannotFinish"), cannot_finish=True
    ),
    "at the best perhaps": Case(
        curve(200, 180, 170, 160, 155, 152, 151), 40, 201_500, (50, "TooClose"), "no allowed cap"
    ),
    "only one cap is possible": Case(
        curve(200), 100, 200_000, (100, "CannotFinish"), ladder=(100,), cannot_finish=True
    ),
    "the next would slow it down too much": Case(
        curve(200, 180, 170, 160, 120, milliseconds=FAST),
        60,
        200_000,
        (70, "CannotFinish"),
        "60% slows it down by more than spec.power.maxSlowdownPercent (10) allows; it cannot finish",
        slowdown=10,
        cannot_finish=True,
    ),
    "it slows down too much, a higher one fits": Case(
        curve(200, 180, 145, 140, 120, milliseconds=FAST), 60, 200_000, (80, "TooSlow"), slowdown=10
    ),
    "no slowdown is allowed": Case(
        curve(200, 180, 170, milliseconds=FAST),
        90,
        200_000,
        (90, "CannotFinish"),
        slowdown=0,
        cannot_finish=True,
    ),
    "above a new ceiling": Case(curve(200), 100, 200_000, (80, "Measuring"), ladder=(80, 70, 60)),
    "below a new lowest": Case(curve(200), 40, 200_000, (60, "Measuring"), ladder=(80, 70, 60)),
    "between two of another ladder": Case(curve(200), 80, 200_000, (75, "Measuring"), ladder=(85, 75, 65)),
    "the ceiling was raised and the next one must fit": Case(
        (measured(60, 120),), 60, 200_000, (70, "Trying"), "70% is tried"
    ),
    "the ceiling was raised and the next one may not fit": Case(
        (measured(60, 130),), 60, 200_000, (60, "Fits")
    ),
    "the ceiling was raised and what was measured does not fit": Case(
        tuple(measured(p, 200) for p in (60, 50, 40)), 40, 200_000, (70, "Trying")
    ),
    "the budget was raised": Case(curve(200, 180, 140), 80, 300_000, (100, "Raised")),
    "the budget is spent": Case(curve(200, 180), 90, 10_000, (80, "Trying")),
}


def choose(case: Case) -> Choice:
    return choose_cap(
        case.measures,
        case.percent,
        case.ladder,
        used=Joules(50_000),
        steps_left=1000,
        budget=Joules(case.budget),
        max_slowdown_percent=case.slowdown,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cap_that_follows(case: Case) -> None:
    found = choose(case)
    assert (found.percent, found.reason) == case.expected, found.message
    assert case.says in found.message
    assert found.cannot_finish is case.cannot_finish


@pytest.mark.parametrize("percent", [100, 70, 40])
def test_where_nobody_knows_how_much_is_left_the_cap_stays_and_it_says_why(percent: int) -> None:
    found = choose_cap(curve(200), percent, LADDER, used=Joules(10**9), steps_left=None, budget=Joules(1))
    assert (found.percent, found.reason, found.cannot_finish) == (percent, "NoTotal", False)
    assert "how many steps are left" in found.message


def test_each_cap_that_does_not_fit_is_measured_before_the_next_and_only_then_it_is_called_impossible() -> (
    None
):
    costs = dict(zip(LADDER, (200, 190, 180, 170, 165, 168, 180), strict=True))
    measures: tuple[CapMeasure, ...] = ()
    here, seen = 100, []
    for _ in range(20):
        found = choose_cap(measures, here, LADDER, used=Joules(0), steps_left=1000, budget=Joules(100_000))
        seen.append((found.percent, found.reason))
        assert found.cannot_finish == (found.reason == "CannotFinish") == (len(measures) == len(LADDER))
        if found.percent == here and found.reason != "Measuring":
            break
        here = found.percent
        if found.reason == "Measuring":
            measures += (measured(here, costs[here]),)
    assert [p for p, r in seen if r == "Measuring"] == list(LADDER)
    assert seen[-2:] == [(60, "CannotFinish"), (60, "CannotFinish")]


MEASURES = st.lists(
    st.builds(
        measured,
        st.sampled_from(range(30, 101, 5)),
        st.integers(50, 400),
        windows=st.integers(1, 30),
        milliseconds=st.integers(500, 3000),
        differing=st.integers(0, 30),
    ),
    max_size=8,
    unique_by=lambda m: m.percent,
).map(tuple)


@given(
    measures=MEASURES,
    percent=st.integers(1, 100),
    ends=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    used=st.integers(0, 10**6),
    steps_left=st.none() | st.integers(0, 10**4),
    budget=st.integers(1, 3 * 10**6),
    slowdown=st.none() | st.integers(0, 200),
)
def test_whatever_was_measured_a_cap_is_on_the_ladder_and_no_rung_is_jumped_over(
    measures: tuple[CapMeasure, ...],
    percent: int,
    ends: tuple[int, int],
    used: int,
    steps_left: int | None,
    budget: int,
    slowdown: int | None,
) -> None:
    ladder = build_ladder(max(ends), min(ends))
    found = choose_cap(
        measures,
        percent,
        ladder,
        used=Joules(used),
        steps_left=steps_left,
        budget=Joules(budget),
        max_slowdown_percent=slowdown,
    )
    assert found.percent in ladder
    enough = {m.percent for m in measures if m.windows >= LEAST_WINDOWS} & set(ladder)
    if found.reason == "Trying":
        around = ladder.index(found.percent)
        assert enough & {*ladder[max(0, around - 1) : around], *ladder[around + 1 : around + 2]}
    elif found.reason in ("Fits", "Raised", "Lowered"):
        one = project(
            measures, found.percent, used=Joules(used), steps_left=steps_left, budget=Joules(budget)
        )
        assert one.exceeds == "No"
    if found.cannot_finish:
        assert slowdown is not None or enough == set(ladder)
    assert found.message
    # Asked again and again, it soon answers the same.
    caps = [found.percent]
    for _ in range(3):
        caps.append(
            choose_cap(
                measures,
                caps[-1],
                ladder,
                used=Joules(used),
                steps_left=steps_left,
                budget=Joules(budget),
                max_slowdown_percent=slowdown,
            ).percent
        )
    assert caps[-1] == caps[-2], caps


def test_what_is_left_and_its_error_are_rounded_up() -> None:
    found = CapMeasure(100, steps=3, joules=Joules(10), milliseconds=Milliseconds(10), windows=LEAST_WINDOWS)
    projection = project((found,), 100, used=Joules(0), steps_left=1, budget=Joules(5))
    assert (projection.joules, projection.uncertainty_joules, projection.exceeds) == (4, 1, "No")
    assert project((found,), 100, used=Joules(0), steps_left=1, budget=Joules(4)).exceeds == "Unknown"
