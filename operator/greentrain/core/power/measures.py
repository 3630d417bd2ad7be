"""Joules and time per step under a cap, measured over windows, with their error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

from greentrain.quantities import Joules, Milliseconds, add, subtract

SETTLE_MILLISECONDS = Milliseconds(30_000)
"""This much is not measured after a cap came into force or a job began: a report may be so old (its interval of 30 s)."""


WINDOW_MILLISECONDS = Milliseconds(20_000)
"""Shortest window: step and joules are not read at the same moment, which matters more in a shorter one. Reports come every
30 s."""


LONGEST_GAP_MILLISECONDS = Milliseconds(300_000)
"""Samples further apart make no window: another cap may have been in force in between, such as an agent's own."""


LEAST_WINDOWS = 5
"""With fewer windows the spread is hardly known: with four, Student's factor is above 3."""


ENOUGH_WINDOWS = 20
"""So many windows are enough, however much they differ: the job varies that much, and the error shows it."""


PRECISE_MILLIONTHS = 20_000
"""Fewer windows are enough where joules per step are known to 2 %: one rung changes them by more."""


LEAST_ERROR_MILLIONTHS = 10_000
"""The energy of the remaining steps is never known better than to 1 %: they are not the steps that were measured."""


MOST_WINDOWS = 128
"""With so many windows a measure is halved in weight, so that it follows a job that changes over time."""


MILLIONTHS = 1_000_000


_MOST_SPREAD = 10**18


_MOST_LATEST = 10**9


@dataclass(frozen=True, slots=True)
class CapMeasure:
    """The cost of steps at one cap: sums over windows."""

    percent: int
    """Percent of the GPUs' default limit; 100: no cap was requested."""
    steps: int = 0
    joules: Joules = Joules(0)
    milliseconds: Milliseconds = Milliseconds(0)
    windows: int = 0
    spread: int = 0
    """Sum of the squared differences between each window's joules and the average cost of its steps; unit: squared millionths
    of a mean window's joules."""
    lagged: int = 0
    """Sum of the products of each window's difference and that of the previous window, in the same unit."""
    latest: int = 0
    """The last window's difference, in millionths."""

    @property
    def error_millionths(self) -> int:
        """The error of joules per step at 95 % confidence, in millionths of them; a million for a single window.

        The variance of a ratio of sums r = sum(e) / sum(s) is n / (n - 1) * sum((e - r s)^2) / sum(s)^2 (Cochran,
        Sampling Techniques, chapter 6), times Student's factor for n - 1. The energy of a step that was not complete at a
        window's end is in the next window, so neighbours differ in opposite directions. A job that pauses now and then
        makes neighbours alike. Hence twice the lagged products are added, with more weight the better they are known.
        Where only the ends of a row are in doubt, 1/n of the squares remains, which is the minimum.
        """
        n = self.windows
        if n < 2:
            return MILLIONTHS
        related = 2 * self.lagged * max(0, n - LEAST_WINDOWS) // n
        squares = max(self.spread + related, self.spread // n)
        return student(n - 1) * isqrt(squares // (n * (n - 1))) // 1000

    @property
    def is_enough(self) -> bool:
        """Whether it has enough windows to decide by."""
        if self.windows < LEAST_WINDOWS:
            return False
        return self.windows >= ENOUGH_WINDOWS or self.error_millionths <= PRECISE_MILLIONTHS

    def costs_less(self, other: CapMeasure) -> bool:
        """Whether a step costs fewer joules than at another cap."""
        return self.joules * other.steps < other.joules * self.steps

    def add(self, steps: int, joules: Joules, milliseconds: Milliseconds) -> CapMeasure:
        """Add one window; both steps and joules must have grown in it."""
        new = replace(
            self,
            steps=self.steps + steps,
            joules=add(self.joules, joules),
            milliseconds=add(self.milliseconds, milliseconds),
            windows=self.windows + 1,
        )
        if self.windows:
            # Welford's method: the window's distance from the mean without it × its distance from the mean with it.
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
        """The same measure with half its weight."""
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
    """A job at one moment: its steps, and what it has used by then."""

    attempt: int
    step: int
    """Global step, over all attempts: it goes back when a job starts again from a checkpoint."""
    joules: Joules
    """Used in total, of the kinds that its budget counts; as close as possible to the time at which the step was read."""
    moment: Milliseconds
    """Unix time in milliseconds."""
    percent: int
    """The requested cap in percent; 100 for none."""
    complete: bool = True
    """Whether the cap is in force on all of the job's GPUs."""


@dataclass(frozen=True, slots=True)
class Track:
    """What was measured of a job; its status keeps it from sample to sample."""

    measures: tuple[CapMeasure, ...] = ()
    """By cap, the highest cap first."""
    begun: Sample | None = None
    """The first sample of this attempt at the present cap; None while the cap is not in force on all GPUs."""
    anchor: Sample | None = None
    """The sample at which the present window began; None for no window."""
    last: Sample | None = None


def observe(
    track: Track,
    sample: Sample,
    *,
    settle_milliseconds: Milliseconds = SETTLE_MILLISECONDS,
    window_milliseconds: Milliseconds = WINDOW_MILLISECONDS,
) -> Track:
    """Add one sample; where reports come more often, the settle time and the windows may be shorter.

    A window begins once a step was done at the cap in force and the settle time is over. So no measure contains a job's
    start or a change of cap. It ends when steps and joules have grown for long enough. Anything that interrupts the
    samples (another attempt, a step that goes back, another cap, a long silence) ends the window without counting it.
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
    # Where no step was done yet, the window lasts until one is: what was used meanwhile is part of the cost of steps.
    anchor = track.anchor if measures is track.measures else sample
    return replace(track, measures=measures, anchor=anchor, last=sample)


def measure(
    measures: tuple[CapMeasure, ...],
    before: Sample,
    after: Sample,
    *,
    window_milliseconds: Milliseconds = WINDOW_MILLISECONDS,
) -> tuple[CapMeasure, ...]:
    """The measures with one more window; the same object where these two samples make none."""
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
