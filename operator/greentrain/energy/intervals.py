"""What a card used between two readings, and how well that is known.

The source is NVML's total energy counter (millijoules since the driver was loaded, Volta and later). Between two readings
of it nothing is lost, however far apart they are. A counter that goes back was reset with its driver. Where there is no
counter, power readings are added up. Where there is neither, the time is missing: unknown is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.quantities import Millijoules, Milliwatts, add, subtract

COUNTER_LAG_SECONDS = 0.1
"""How old the counter's value may be. An assumption: NVIDIA does not publish how often it is updated."""

LONGEST_STEP_SECONDS = 2.5
"""Readings further apart than this are not consecutive."""

LATEST_SECONDS = 2.0
"""How much later than it was taken a reading may be dated: beside a card that hangs, a round lasts until its deadline."""

LONGEST_INTEGRATION_SECONDS = 5.0
"""Power readings further apart than this give nothing for the time between them."""


@dataclass(frozen=True, slots=True)
class CardReading:
    """One reading of a card; None for what it does not report."""

    counter: Millijoules | None = None
    """Since the driver was loaded."""
    draw: Milliwatts | None = None
    """Averaged by the card, over a time that depends on its generation."""
    busy: bool = False
    """Whether the card was working: processes use it, or its utilization is above a few percent."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Energy of one card between two readings."""

    seconds: float
    measured: Millijoules
    """By how much its counter grew."""
    estimated: Millijoules = Millijoules(0)
    """Added up from power, beside what was measured."""
    missing_seconds: float = 0.0
    """Seconds for which nothing is known."""
    uncertain: Millijoules = Millijoules(0)
    """By how much the estimate may be wrong."""

    @property
    def total(self) -> Millijoules:
        """What was measured and estimated."""
        return add(self.measured, self.estimated)


def measure(
    before: CardReading, after: CardReading, seconds: float, *, idle_draw: float | None = None
) -> Interval:
    """Energy between two readings of the same boot, `seconds` apart.

    A counter that was reset between two polls may have overtaken its old value by now. That is detected where it grew by less
    than half of the card's idle draw (`idle_draw`, milliwatts) in the least time there was.
    """
    if after.counter is not None and before.counter is not None:
        used = subtract(after.counter, before.counter)
        unseen = seconds > LONGEST_STEP_SECONDS
        least = 0.0 if idle_draw is None else 0.5 * idle_draw * (seconds - LATEST_SECONDS)
        overtaken = unseen and used < least
        if used >= 0 and not overtaken:
            return Interval(seconds, used)
        return _after_reset(before, after, seconds)
    return _integrate(before, after, seconds)


def measure_since_start(after: CardReading, seconds: float) -> Interval:
    """Energy since the machine's start `seconds` ago: the counter began at 0 after it."""
    if after.counter is not None:
        return Interval(seconds, after.counter)
    return Interval(seconds, Millijoules(0), missing_seconds=seconds)


def _after_reset(before: CardReading, after: CardReading, seconds: float) -> Interval:
    """The counter was reset in between: what it shows is measured, what it no longer shows is estimated or missing."""
    measured = after.counter or Millijoules(0)
    draws = [d for d in (before.draw, after.draw) if d is not None]
    if not draws or seconds > LONGEST_INTEGRATION_SECONDS:
        return Interval(seconds, measured, missing_seconds=seconds)
    whole = round(sum(draws) / len(draws) * seconds)
    lost = Millijoules(max(0, whole - measured))
    # A reload takes time, in which the card draws less than it did; all of the estimate may be too much.
    more = round(max(draws) * seconds) - measured - lost
    return Interval(seconds, measured, lost, uncertain=Millijoules(max(lost, more)))


def _integrate(before: CardReading, after: CardReading, seconds: float) -> Interval:
    if before.draw is None or after.draw is None or seconds > LONGEST_INTEGRATION_SECONDS:
        return Interval(seconds, Millijoules(0), missing_seconds=seconds)
    estimate = Millijoules(round((before.draw + after.draw) / 2 * seconds))
    uncertain = Millijoules(round(abs(after.draw - before.draw) / 2 * seconds))
    return Interval(seconds, Millijoules(0), estimate, uncertain=uncertain)
