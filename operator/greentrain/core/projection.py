"""Whether a job will finish inside its budget of energy, and which power cap lets it: `spec.power.policy: Budget`.

What a step costs is measured at each cap that was in force, never taken from a model of cards: a lower cap saves energy
down to a point that depends on the card and the work, and below it costs more, because the card idles longer. So caps go
down one rung of a ladder at a time, each rung is measured before the next one is judged, and a job is called impossible
only after the lowest one was.

A measurement is a sum over windows between two samples of the same attempt at the same cap. From how much the windows
differ follows how well the sum is known; a projection that does not fit by more than that does not fit. All amounts are
whole numbers, so that they can stand in a job's status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal

from greentrain.units import format_energy

RUNG_PERCENT = 10
"""Distance of two caps that are tried, in percent points: less saves hardly anything (a few percent of a step's energy), and
each rung costs minutes of measuring."""

SETTLE_MILLISECONDS = 30_000
"""After a cap came into force, or a job began, this much is not measured: a report may be so old (its interval of 30 s)."""

WINDOW_MILLISECONDS = 20_000
"""Shortest window: in less, step and joules are read at moments too different from each other. Reports come every 30 s."""

LONGEST_GAP_MILLISECONDS = 300_000
"""Samples further apart do not bound a window: another cap may have been in force in between, an agent's own for one."""

LEAST_WINDOWS = 5
"""Of fewer windows the spread is hardly known: with four, Student's factor is above 3."""

ENOUGH_WINDOWS = 20
"""So many windows are enough however much they differ: the job is like that, and the error says so."""

PRECISE_MILLIONTHS = 20_000
"""Fewer windows are enough where joules per step are known to 2 %: a rung changes them by more."""

LEAST_ERROR_MILLIONTHS = 10_000
"""What is left is never known better than to 1 %, whatever was measured: later steps are not those that were measured."""

MOST_WINDOWS = 128
"""With so many windows a measure forgets half of what it has, so that it follows a job that changes in its course."""

RAISE_MARGIN_PERCENT = 2
"""A higher cap must fit with so much of the budget left over to be gone back to: so caps do not go up and down."""

LEAST_GAIN_MILLISECONDS = 120_000
"""And it must let the job end so much earlier: to bring a cap into force everywhere takes up to half a minute."""

SAME_PERCENT = 1
WORSE_PERCENT = 2
"""Where no cap fits: steps that cost hardly more than at the best cap are as good, and a cap is left for a lower one where
they cost so much more; in between caps do not go up and down."""

_MILLION = 1_000_000
_MOST_SPREAD = 10**18
_MOST_LATEST = 10**9

Exceeds = Literal["Yes", "No", "Unknown"]
"""Whether a job would exceed its budget: surely, surely not, or it is too close or too little measured to say."""

Reason = Literal[
    "NoTotal", "Measuring", "Fits", "Raised", "Lowered", "Trying", "TooSlow", "TooClose", "CannotFinish"
]
"""Why a cap was chosen.

- NoTotal: nobody knows how many steps are left, so nothing is projected.
- Measuring: too little was measured at the cap in force.
- Fits: the job finishes inside its budget at the cap in force.
- Raised, Lowered: it does so at this one, the highest that was measured.
- Trying: at none that was measured; the next lower one is.
- TooSlow: the cap in force slows the job down by more than is allowed.
- TooClose: at no cap for sure, and at the best perhaps.
- CannotFinish: at no cap, and every allowed one was measured.
"""


@dataclass(frozen=True, slots=True)
class CapMeasure:
    """What steps at one cap cost; sums over windows."""

    percent: int
    """Of the GPUs' default limit; 100: none was asked for."""
    steps: int = 0
    joules: int = 0
    milliseconds: int = 0
    windows: int = 0
    spread: int = 0
    """Sum of squares of how much the windows' joules differ from what their steps cost on the average, in squares of
    millionths of a mean window's joules."""
    lagged: int = 0
    """Sum of products of each window's difference with that of the window before, in the same unit."""
    latest: int = 0
    """The last window's difference, in millionths."""

    @property
    def error_millionths(self) -> int:
        """By how much joules per step may be wrong, 19 times of 20, in millionths of them; a million for a single window.

        The variance of a ratio of sums r = sum(e) / sum(s) is n / (n - 1) * sum((e - r s)^2) / sum(s)^2 (Cochran,
        Sampling Techniques, chapter 6), times Student's factor for n - 1. What is cut off of one window because its last
        step was not done is in the next one and lost to neither, so neighbours differ in opposite directions; a job that
        pauses now and then makes them alike. Hence twice the lagged products are added, the more of them the better they
        are known. Where only the ends of a row are doubtful, 1/n of the squares is left, and less it cannot be.
        """
        n = self.windows
        if n < 2:
            return _MILLION
        related = 2 * self.lagged * max(0, n - LEAST_WINDOWS) // n
        squares = max(self.spread + related, self.spread // n)
        return student(n - 1) * isqrt(squares // (n * (n - 1))) // 1000

    @property
    def is_enough(self) -> bool:
        """Whether there is enough of it to go by."""
        if self.windows < LEAST_WINDOWS:
            return False
        return self.windows >= ENOUGH_WINDOWS or self.error_millionths <= PRECISE_MILLIONTHS

    def costs_less(self, other: CapMeasure) -> bool:
        """Whether a step costs fewer joules than at another cap."""
        return self.joules * other.steps < other.joules * self.steps

    def add(self, steps: int, joules: int, milliseconds: int) -> CapMeasure:
        """Take in one window; both steps and joules must have grown in it."""
        new = replace(
            self,
            steps=self.steps + steps,
            joules=self.joules + joules,
            milliseconds=self.milliseconds + milliseconds,
            windows=self.windows + 1,
        )
        if self.windows:
            # As Welford's: how far the window is from the mean without it, times how far from the mean with it.
            before = joules * self.steps - self.joules * steps
            after = joules * new.steps - new.joules * steps
            unit = new.joules * new.joules * self.steps * new.steps
            more = before * after * (new.windows * _MILLION) ** 2 // unit
            latest = after * new.windows * _MILLION // (new.joules * new.steps)
            lagged = self.lagged + self.latest * latest
            new = replace(
                new,
                spread=min(self.spread + more, _MOST_SPREAD),
                lagged=max(-_MOST_SPREAD, min(lagged, _MOST_SPREAD)),
                latest=max(-_MOST_LATEST, min(latest, _MOST_LATEST)),
            )
        return new if new.windows < MOST_WINDOWS else new.halve()

    def halve(self) -> CapMeasure:
        """The same with half its weight."""
        return CapMeasure(
            self.percent,
            max(1, self.steps // 2),
            max(1, self.joules // 2),
            self.milliseconds // 2,
            self.windows // 2,
            self.spread // 2,
            self.lagged // 2,
            self.latest,
        )


def student(freedom: int) -> int:
    """Student's two-sided 95 % factor in thousandths, for four degrees of freedom and more to 1 %.

    By its expansion around the normal distribution's 1.960 (Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.5).
    """
    return 1960 + 2372 // freedom + 2823 // freedom**2 + 2556 // freedom**3


@dataclass(frozen=True, slots=True)
class Sample:
    """A job at one moment: how far it is, and what it has used by then."""

    attempt: int
    step: int
    """Steps done, of all attempts: it goes back when a job begins anew at a checkpoint."""
    joules: int
    """Used in all, of the kinds that its budget counts; as nearly as possible of the moment at which the step was read."""
    moment: int
    """Unix time in milliseconds."""
    percent: int
    """The cap that is asked for; 100 for none."""
    complete: bool = True
    """Whether it is in force on all of the job's GPUs."""


@dataclass(frozen=True, slots=True)
class Track:
    """What was seen of a job, and is carried from sample to sample in its status."""

    measures: tuple[CapMeasure, ...] = ()
    """By cap, the highest first."""
    begun: Sample | None = None
    """The first sample of this attempt at the present cap; None while that is not in force everywhere."""
    anchor: Sample | None = None
    """Where the window under way began."""
    last: Sample | None = None


def observe(
    track: Track,
    sample: Sample,
    *,
    settle_milliseconds: int = SETTLE_MILLISECONDS,
    window_milliseconds: int = WINDOW_MILLISECONDS,
) -> Track:
    """Take in one sample; where reports come more often, less time need settle and windows may be shorter.

    A window begins after a step was done at the cap in force and that has settled, so neither a job's start nor a change
    is in a measure; it ends when steps and joules have grown for long enough. Whatever interrupts a row of samples (another
    attempt, a step that goes back, another cap, a long silence) ends the window under way without counting it.
    """
    if not sample.complete:
        return Track(track.measures, last=sample)
    if track.begun is None or track.last is None or not _goes_on(track.last, sample):
        return Track(track.measures, begun=sample, last=sample)
    if track.anchor is None:
        stepped = sample.step > track.begun.step
        settled = sample.moment - track.begun.moment >= settle_milliseconds
        return replace(track, anchor=sample if stepped and settled else None, last=sample)
    measures = measure(track.measures, track.anchor, sample, window_milliseconds=window_milliseconds)
    # Where no step was done yet, the window lasts until one is: what it used meanwhile is part of what steps cost.
    anchor = track.anchor if measures is track.measures else sample
    return replace(track, measures=measures, anchor=anchor, last=sample)


def measure(
    measures: tuple[CapMeasure, ...],
    before: Sample,
    after: Sample,
    *,
    window_milliseconds: int = WINDOW_MILLISECONDS,
) -> tuple[CapMeasure, ...]:
    """The measures with one window more; the same object where these two samples make none."""
    if (
        not (before.complete and after.complete)
        or (before.attempt, before.percent) != (after.attempt, after.percent)
        or after.moment - before.moment < window_milliseconds
        or after.step <= before.step
        or after.joules <= before.joules
    ):
        return measures
    by_cap = {m.percent: m for m in measures}
    known = by_cap.get(after.percent, CapMeasure(after.percent))
    by_cap[after.percent] = known.add(
        after.step - before.step, after.joules - before.joules, after.moment - before.moment
    )
    return tuple(by_cap[percent] for percent in sorted(by_cap, reverse=True))


def _goes_on(last: Sample, sample: Sample) -> bool:
    return (
        last.complete
        and (last.attempt, last.percent) == (sample.attempt, sample.percent)
        and sample.step >= last.step
        and sample.joules >= last.joules
        and 0 <= sample.moment - last.moment <= LONGEST_GAP_MILLISECONDS
    )


@dataclass(frozen=True, slots=True)
class Projection:
    """What a job will have used at its end if it goes on at one cap."""

    percent: int
    joules: int | None = None
    """In all, with what is used; None where it is not known."""
    uncertainty_joules: int | None = None
    """By how much that may be wrong, 19 times of 20."""
    milliseconds: int | None = None
    """Until the end."""
    exceeds: Exceeds = "Unknown"

    @property
    def most(self) -> int | None:
        """Joules that are not exceeded 19 times of 20, or more often."""
        if self.joules is None or self.uncertainty_joules is None:
            return None
        return self.joules + self.uncertainty_joules


def project(
    measures: Sequence[CapMeasure], percent: int, *, used: int, steps_left: int | None, budget: int
) -> Projection:
    """What a job will have used that has `used` joules now and goes on at this cap.

    Whether they exceed the budget is said as soon as it is beyond their error, but not before the least was measured.
    """
    found = next((m for m in measures if m.percent == percent), None)
    if found is None or not found.steps or steps_left is None:
        return Projection(percent)
    steps_left = max(0, steps_left)
    left = -(-found.joules * steps_left // found.steps)
    error = max(found.error_millionths, LEAST_ERROR_MILLIONTHS)
    uncertainty = -(-left * error // _MILLION)
    exceeds: Exceeds = "Unknown"
    if found.windows >= LEAST_WINDOWS and used + left + uncertainty <= budget:
        exceeds = "No"
    elif found.windows >= LEAST_WINDOWS and used + left - uncertainty > budget:
        exceeds = "Yes"
    return Projection(
        percent, used + left, uncertainty, found.milliseconds * steps_left // found.steps, exceeds
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """The cap a job is to have."""

    percent: int
    reason: Reason
    message: str
    """The same for people."""
    cannot_finish: bool = False
    """Whether the job will exceed its budget at every cap that is allowed, each of which was measured."""


def lowest_percent(min_milliwatts: int, default_milliwatts: int) -> int:
    """The lowest limit of a card as a share of its default limit, rounded up to a whole percent, at most 100."""
    return min(100, -(-min_milliwatts * 100 // default_milliwatts))


def build_ladder(ceiling: int, lowest: int) -> tuple[int, ...]:
    """The caps that are tried, in percent, from the highest allowed to the lowest possible one; at least the highest.

    The last distance is between half a rung and one and a half, so that no rung is measured for nothing.
    """
    if lowest >= ceiling:
        return (ceiling,)
    return (ceiling, *range(ceiling - RUNG_PERCENT, lowest + RUNG_PERCENT // 2 - 1, -RUNG_PERCENT), lowest)


def choose_cap(
    measures: Sequence[CapMeasure],
    percent: int,
    ladder: Sequence[int],
    *,
    used: int,
    steps_left: int | None,
    budget: int,
    max_slowdown_percent: int | None = None,
) -> Choice:
    """Which cap of the ladder a job is to have that has used `used` joules of its budget, and has `percent` now.

    The highest one that was measured and fits; where none does, the next one below those that were measured; where there
    is none, the one at which a step costs least. A higher one than one that fits must do so with a margin and let the job
    end earlier. A higher one that was not measured, because the ceiling was lower before, is tried where it must fit: no
    step can cost more at it than in the ratio of the two limits, since it takes no longer.

    With `max_slowdown_percent` the ladder ends above the first cap at which a step takes so much longer than at the highest.
    """
    here = max((rung for rung in ladder if rung <= percent), default=ladder[-1])
    if steps_left is None:
        return Choice(
            here, "NoTotal", f"it does not say how many steps are left, so its cap stays at {here}%"
        )
    by_cap = {m.percent: m for m in measures if m.percent in ladder}
    allowed = _find_allowed(ladder, by_cap, max_slowdown_percent)
    projections = {
        rung: project(measures, rung, used=used, steps_left=steps_left, budget=budget)
        for rung in allowed
        if rung in by_cap
    }
    # Far from the budget a rough measure will do, where times need not be known.
    rough = max_slowdown_percent is None
    found = {
        rung: one
        for rung, one in projections.items()
        if by_cap[rung].is_enough or (rough and one.exceeds != "Unknown")
    }
    too_slow = here not in allowed
    margin = budget * RAISE_MARGIN_PERCENT // 100
    fits = [rung for rung, one in found.items() if one.exceeds == "No"]

    def is_due(rung: int) -> bool:
        """Whether a cap that fits is good enough to leave the one in force for it, or to keep it."""
        ample = _most(found[rung]) + margin <= budget
        if too_slow:
            return True
        if here in found and here not in fits:
            # Where others cost as much, which of them fits is chance.
            return ample or _is_worse(by_cap[here], by_cap[rung], SAME_PERCENT)
        return rung <= here or (ample and _is_earlier(projections, rung, here))

    best = max(filter(is_due, fits), default=None)

    def choose(rung: int, reason: Reason, words: str) -> Choice:
        if not too_slow:
            return Choice(rung, reason, words, cannot_finish=reason == "CannotFinish")
        text = f"{here}% slows it down by more than spec.power.maxSlowdownPercent ({max_slowdown_percent}) allows; {words}"
        new = reason if reason in ("CannotFinish", "Measuring") else "TooSlow"
        return Choice(rung, new, text, cannot_finish=reason == "CannotFinish")

    if here not in found and not too_slow and (best is None or best < here):
        return choose(here, "Measuring", _describe_measuring(by_cap.get(here, CapMeasure(here))))
    above = min((rung for rung in allowed if rung > here), default=here)
    if best == here and above not in found:
        bound = used - (used - _most(found[here])) * above // here
        if bound + margin <= budget:
            return choose(above, "Trying", f"{_describe(found[here], budget)}; {above}% is tried")
    if best is not None:
        return choose(best, _name_move(here, best), _describe(found[best], budget))
    # Here a rough measure counts too: a cap that was left because it did not fit is not tried again and again.
    known = [r for r in allowed if r in by_cap and by_cap[r].windows >= LEAST_WINDOWS]
    unknown = [r for r in allowed if r < known[-1]][:1] or [r for r in allowed if r not in known][-1:]
    if unknown:
        words = _describe(projections[known[-1]], budget)
        return choose(unknown[0], "Trying", f"{words}; {unknown[0]}% is tried")
    cheapest = _find_cheapest({rung: by_cap[rung] for rung in allowed}, here)
    one, words = projections[cheapest], _describe(projections[cheapest], budget)
    if one.exceeds == "No":
        return choose(cheapest, _name_move(here, cheapest), words)
    if not by_cap[cheapest].is_enough:
        return choose(cheapest, "Measuring", _describe_measuring(by_cap[cheapest]))
    words += ", and at no allowed cap does a step cost less"
    if one.exceeds == "Yes":
        return choose(cheapest, "CannotFinish", f"it cannot finish inside its budget: {words}")
    return choose(cheapest, "TooClose", words)


def _name_move(here: int, there: int) -> Reason:
    return "Fits" if there == here else "Raised" if there > here else "Lowered"


def _is_earlier(projections: Mapping[int, Projection], one: int, than: int) -> bool:
    """Whether the job ends enough earlier at one cap than at another; also where that is not known of the other."""
    ends = [projections[rung].milliseconds if rung in projections else None for rung in (one, than)]
    return ends[0] is None or ends[1] is None or ends[1] - ends[0] >= LEAST_GAIN_MILLISECONDS


def _most(one: Projection) -> int:
    assert one.most is not None
    return one.most


def _find_allowed(
    ladder: Sequence[int], by_cap: Mapping[int, CapMeasure], max_slowdown_percent: int | None
) -> tuple[int, ...]:
    """The ladder down to the last cap that does not slow the job down too much against the highest."""
    reference = by_cap.get(ladder[0])
    if max_slowdown_percent is None or reference is None or not reference.is_enough:
        return tuple(ladder)
    for i, rung in enumerate(ladder):
        one = by_cap.get(rung)
        # Milliseconds per step, compared without a division.
        if (
            one is not None
            and one.is_enough
            and one.milliseconds * reference.steps * 100
            > (reference.milliseconds * one.steps * (100 + max_slowdown_percent))
        ):
            return tuple(ladder[:i])
    return tuple(ladder)


def _find_cheapest(found: Mapping[int, CapMeasure], here: int) -> int:
    """The cap at which a step costs least; of those that are hardly worse the highest, for it is the fastest."""
    least = next(iter(found.values()))
    for one in found.values():
        if one.costs_less(least):
            least = one
    as_good = max(rung for rung, one in found.items() if not _is_worse(one, least, SAME_PERCENT))
    if here in found and here > as_good and not _is_worse(found[here], least, WORSE_PERCENT):
        return here
    return as_good


def _is_worse(one: CapMeasure, than: CapMeasure, percent: int) -> bool:
    """Whether a step costs so much more at one cap than at another."""
    return one.joules * than.steps * 100 > than.joules * one.steps * (100 + percent)


def _describe(one: Projection, budget: int) -> str:
    assert one.joules is not None
    assert one.uncertainty_joules is not None
    return (
        f"at {one.percent}% it would use {format_energy(one.joules)} of {format_energy(budget)}, "
        f"give or take {format_energy(one.uncertainty_joules)}"
    )


def _describe_measuring(known: CapMeasure) -> str:
    if known.windows < LEAST_WINDOWS:
        return f"what a step costs at {known.percent}% is being measured: {known.windows} of {LEAST_WINDOWS} times"
    return (
        f"what a step costs at {known.percent}% is being measured: it is known to "
        f"{known.error_millionths / 10_000:.1f}%, to {PRECISE_MILLIONTHS // 10_000}% is due, or {ENOUGH_WINDOWS} times "
        f"({known.windows} so far)"
    )
