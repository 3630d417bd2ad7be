"""What a card used between two readings, and how well that is known.

The source is NVML's total energy counter (millijoules since the driver was loaded, Volta and later). Between two readings
of it nothing is lost, however far apart they are. A counter that begins again near 0 was reset with its driver; one that shows
what the card cannot have drawn is not believed (`counters`). Where there is no counter, power readings are added up. Where there is neither, the time is missing: unknown is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from greentrain.api.nodepower import MAX_MILLIWATTS
from greentrain.quantities import Millijoules, Milliwatts, add, subtract

COUNTER_LAG_SECONDS = 0.1
"""How old the counter's value may be. An assumption: NVIDIA does not publish how often it is updated."""

LONGEST_STEP_SECONDS = 2.5
"""Readings further apart than this are not consecutive."""

LATEST_SECONDS = 2.0
"""How much later than it was taken a reading may be dated: beside a card that hangs, a round lasts until its deadline."""

LONGEST_INTEGRATION_SECONDS = 5.0
"""Power readings further apart than this give nothing for the time between them."""

ABOVE_LIMIT = 1.1
"""By what factor a card's power may be above its limit over a second: limits are enforced over some tens of milliseconds."""

UNLIMITED = Milliwatts(MAX_MILLIWATTS)
"""Of a card whose driver gives no power limit."""

Fault = Literal["WentBack", "Jumped", "Still", "Slow"]
"""What a counter did that cannot be: it fell to a value that no reset explains; it grew by more than the card can draw; it
did not grow, or by too little, while the card drew power."""


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
    fault: Fault | None = None
    """What the counter did that cannot be; then nothing of it counts as measured."""
    was_reset: bool = False
    """Whether the counter began again at 0 in between."""

    @property
    def total(self) -> Millijoules:
        """What was measured and estimated."""
        return add(self.measured, self.estimated)


def bound_draw(reading: CardReading | None, highest: Milliwatts) -> CardReading | None:
    """The reading without its power where that is more than the card can draw: then it is not known."""
    if reading is None or reading.draw is None or reading.draw <= highest * ABOVE_LIMIT:
        return reading
    return replace(reading, draw=None)


def find_most(highest: Milliwatts, seconds: float) -> Millijoules:
    """The most that a counter can show for so many seconds, where `highest` is the power limit of what it covers.

    A reading may be dated late, its value may be old, and a limit is exceeded for moments: a tenth covers that.
    """
    return Millijoules(round(highest * (seconds + LATEST_SECONDS + COUNTER_LAG_SECONDS) * ABOVE_LIMIT))


def measure(
    before: CardReading,
    after: CardReading,
    seconds: float,
    *,
    idle_draw: float | None = None,
    highest: Milliwatts = UNLIMITED,
    still_seconds: float = 0.0,
) -> Interval:
    """Energy between two readings of the same boot, `seconds` apart; the counter had not moved for `still_seconds` before.

    A counter that was reset between two polls may have overtaken its old value by now. That is detected where it grew by less
    than half of the card's idle draw (`idle_draw`, milliwatts) in the least time there was; then it is not certain. A reset is believed only where
    what the counter shows could have been drawn since. `highest` is the highest power limit of what the counter covers: a
    counter that grew by more than that allows shows nothing.
    """
    if after.counter is None or before.counter is None:
        return integrate(before, after, seconds)
    used, most = subtract(after.counter, before.counter), find_most(highest, still_seconds + seconds)
    unseen = seconds > LONGEST_STEP_SECONDS
    least = 0.0 if idle_draw is None else 0.5 * idle_draw * (seconds - LATEST_SECONDS)
    # A card that draws power and whose counter does not move at all is no idle card.
    still = used == 0 and bool(before.draw or after.draw)
    slow = unseen and (0 <= used < least or still)
    if 0 <= used <= most and not slow:
        return Interval(seconds, used)
    if (used < 0 or slow) and after.counter <= most:
        found = _after_reset(before, after, seconds)
        # If it was not reset, it has shown no more than it grew.
        return replace(found, uncertain=subtract(found.measured, used)) if slow else found
    if slow:
        # It stood still, or the machine slept: what it shows is all that is known.
        return Interval(seconds, used, missing_seconds=seconds, fault="Slow" if used else "Still")
    return replace(integrate(before, after, seconds), fault="WentBack" if used < 0 else "Jumped")


def measure_since_start(after: CardReading, seconds: float, *, highest: Milliwatts = UNLIMITED) -> Interval:
    """Energy since the machine's start `seconds` ago: the counter began at 0 after it."""
    if after.counter is None:
        return Interval(seconds, Millijoules(0), missing_seconds=seconds)
    if after.counter > find_most(highest, seconds):
        return Interval(seconds, Millijoules(0), missing_seconds=seconds, fault="Jumped")
    return Interval(seconds, after.counter)


def _after_reset(before: CardReading, after: CardReading, seconds: float) -> Interval:
    """The counter was reset in between: what it shows is measured, what it no longer shows is estimated or missing."""
    measured = after.counter or Millijoules(0)
    draws = [d for d in (before.draw, after.draw) if d is not None]
    if not draws or seconds > LONGEST_INTEGRATION_SECONDS:
        return Interval(seconds, measured, missing_seconds=seconds, was_reset=True)
    whole = round(sum(draws) / len(draws) * seconds)
    lost = Millijoules(max(0, whole - measured))
    # A reload takes time, in which the card draws less than it did; all of the estimate may be too much.
    more = round(max(draws) * seconds) - measured - lost
    return Interval(seconds, measured, lost, uncertain=Millijoules(max(lost, more)), was_reset=True)


def integrate(before: CardReading, after: CardReading, seconds: float) -> Interval:
    """Energy from power alone: an estimate, or missing where it is not known or the readings are far apart."""
    if before.draw is None or after.draw is None or seconds > LONGEST_INTEGRATION_SECONDS:
        return Interval(seconds, Millijoules(0), missing_seconds=seconds)
    estimate = Millijoules(round((before.draw + after.draw) / 2 * seconds))
    uncertain = Millijoules(round(abs(after.draw - before.draw) / 2 * seconds))
    return Interval(seconds, Millijoules(0), estimate, uncertain=uncertain)
