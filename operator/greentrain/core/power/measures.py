"""Joules per step and step times under a cap, measured over windows, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

from greentrain.quantities import Joules, Milliseconds, add, subtract

SETTLE_MILLISECONDS = Milliseconds(30_000)
"""After a cap came into force, or a job began, this much is not measured: a report may be so old (its interval of 30 s)."""


WINDOW_MILLISECONDS = Milliseconds(20_000)
"""Shortest window: in less, step and joules are read at moments too different from each other. Reports come every 30 s."""


LONGEST_GAP_MILLISECONDS = Milliseconds(300_000)
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


MILLIONTHS = 1_000_000


_MOST_SPREAD = 10**18


_MOST_LATEST = 10**9


@dataclass(frozen=True, slots=True)
class CapMeasure:
    """What steps at one cap cost; sums over windows."""

    percent: int
    """Of the GPUs' default limit; 100: none was asked for."""
    steps: int = 0
    joules: Joules = Joules(0)
    milliseconds: Milliseconds = Milliseconds(0)
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
        """By how much joules per step may be wrong, with 95 % confidence, in millionths of them; a million for a single window.

        The variance of a ratio of sums r = sum(e) / sum(s) is n / (n - 1) * sum((e - r s)^2) / sum(s)^2 (Cochran,
        Sampling Techniques, chapter 6), times Student's factor for n - 1. What is cut off of one window because its last
        step was not done is in the next one and lost to neither, so neighbours differ in opposite directions; a job that
        pauses now and then makes them alike. Hence twice the lagged products are added, the more of them the better they
        are known. Where only the ends of a row are doubtful, 1/n of the squares is left, and less it cannot be.
        """
        n = self.windows
        if n < 2:
            return MILLIONTHS
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

    def add(self, steps: int, joules: Joules, milliseconds: Milliseconds) -> CapMeasure:
        """Take in one window; both steps and joules must have grown in it."""
        new = replace(
            self,
            steps=self.steps + steps,
            joules=add(self.joules, joules),
            milliseconds=add(self.milliseconds, milliseconds),
            windows=self.windows + 1,
        )
        if self.windows:
            # As Welford's: how far the window is from the mean without it, times how far from the mean with it.
            before = joules * self.steps - self.joules * steps
            after = joules * new.steps - new.joules * steps
            unit = new.joules * new.joules * self.steps * new.steps
            more = before * after * (new.windows * MILLIONTHS) ** 2 // unit
            latest = after * new.windows * MILLIONTHS // (new.joules * new.steps)
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
            Joules(max(1, self.joules // 2)),
            Milliseconds(self.milliseconds // 2),
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
    joules: Joules
    """Used in all, of the kinds that its budget counts; as nearly as possible of the moment at which the step was read."""
    moment: Milliseconds
    """Unix time."""
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
    settle_milliseconds: Milliseconds = SETTLE_MILLISECONDS,
    window_milliseconds: Milliseconds = WINDOW_MILLISECONDS,
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
    window_milliseconds: Milliseconds = WINDOW_MILLISECONDS,
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
        after.step - before.step,
        subtract(after.joules, before.joules),
        subtract(after.moment, before.moment),
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
