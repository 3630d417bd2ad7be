"""Whether a card's energy counter can be believed, from one reading to the next.

A counter is an answer of a driver, and drivers err: an older value comes once more, a bit is set, the counter stands still
while the card works, or it counts half. Two things are known beside it. A card draws no more than its highest power limit for
long, so the growth of its counter has a bound (`find_most`). And the card's power is read in the same look, so over some
seconds the counter must grow by about what the power adds up to.

Where a counter cannot be right it is in doubt. From then on the card's energy is added up from its power, which is an
estimate, or is missing where its power is not known. The doubt ends when the counter is back where it must be: then what it
shows since it was believed last counts as measured, less what was estimated meanwhile. It also ends when the counter has been
plausible for `PROOF_SECONDS` from a new value on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import inf
from typing import Annotated

from pydantic import Field

from greentrain.energy.intervals import (
    LONGEST_STEP_SECONDS,
    CardReading,
    Fault,
    Interval,
    find_most,
    integrate,
    measure,
)
from greentrain.quantities import Millijoules, Milliwatts, add, subtract

STILL_SECONDS = 2.0
"""A counter that did not grow at all for so long, while the card drew power, stands still: drivers renew it every 20 to 100 ms
(arXiv 2312.02741)."""

COMPARED_SECONDS = 10.0
"""Over how long at least a counter's growth is compared with the card's power. The power readings of a program that goes in
phases may fall into the same phase each time; the agent's looks are irregular, so that over this time they do not."""

CLOSED_SECONDS = 4.0
"""Over how long at least where a pod ends: later its energy cannot be corrected."""

LONGEST_SECONDS = 30.0
"""Over how long at most."""

PROOF_SECONDS = 10.0
"""For how long a counter in doubt must be plausible until it is believed again."""

SHARE = 0.75
"""A counter that shows less than this share of what the power adds up to is in doubt. NVIDIA gives power to 5 %; a study found
single cards to be wrong by more (arXiv 2312.02741)."""

SHARE_AGAIN = 0.85
"""What it must show to be believed again; more than `SHARE`, so that it does not come and go."""

POWER_LAG_SECONDS = 2.0
"""By how much power may be out of step with the counter: it is the mean of up to a second, and read up to a second later."""

NONE = Millijoules(0)


@dataclass(frozen=True, slots=True)
class Step:
    """Two readings of one card that follow each other, of which both have a counter."""

    before: CardReading
    after: CardReading
    old: Millijoules
    new: Millijoules
    begin: float
    """On the readings' clock, like `end`."""
    end: float
    highest: Milliwatts
    """Highest power limit of what the counter covers."""

    @property
    def seconds(self) -> float:
        """Between the two readings."""
        return self.end - self.begin

    @property
    def growth(self) -> Millijoules:
        """By how much the counter grew, as it shows."""
        return subtract(self.new, self.old)


@dataclass(slots=True)
class Stretch:
    """Neighbouring steps: the counter's growth beside what the power adds up to, in millijoules."""

    begin: float
    counter: Millijoules
    """Its value then."""
    seconds: float = 0.0
    grown: Millijoules = NONE
    least: float = 0.0
    """What the lower of each two neighbouring power readings adds up to."""
    even: float = 0.0
    """What their mean adds up to."""
    lowest: float = inf
    """Milliwatts, like `highest`."""
    highest: float = 0.0

    def add(self, step: Step) -> bool:
        """Add a step before the others; returns whether the power was known in it, without which it is not added."""
        first, second = step.before.draw, step.after.draw
        if first is None or second is None:
            return False
        self.begin, self.counter = step.begin, step.old
        self.seconds += step.seconds
        self.grown = add(self.grown, step.growth)
        self.least += min(first, second) * step.seconds
        self.even += (first + second) / 2 * step.seconds
        self.lowest, self.highest = min(first, second, self.lowest), max(first, second, self.highest)
        return True

    @property
    def certain(self) -> float:
        """What the card has used at least."""
        return self.least - POWER_LAG_SECONDS * (self.highest - self.lowest)

    @property
    def lacking(self) -> Millijoules:
        """What the counter should have shown beside its growth."""
        return max(subtract(Millijoules(round(self.even)), self.grown), NONE)

    def find_fault(self, least_seconds: float) -> Fault | None:
        """Whether the counter has fallen behind the power, where the stretch is long enough for that."""
        if not self.grown and self.seconds >= STILL_SECONDS and self.certain > 0:
            return "Still"
        return "Slow" if self.seconds >= least_seconds and self.grown < SHARE * self.certain else None


@dataclass(slots=True)
class Doubt:
    """A counter that is not believed, or not yet."""

    since: float
    """When it was believed last, on the readings' clock."""
    counter: Millijoules
    """Its value then."""
    fault: Fault
    counted: Millijoules = NONE
    """What has been counted since."""
    unpowered: bool = False
    """Whether the power was not known at some time since."""
    mixed: bool = False
    """Whether the card's allocations changed since: then it is not known whose the rest was."""

    def count(self, interval: Interval) -> None:
        """What was counted of an interval in this doubt."""
        self.counted = add(self.counted, interval.total)
        self.unpowered = self.unpowered or interval.missing_seconds > 0

    def find_rest(self, step: Step) -> Interval | None:
        """What is still to be counted, where the counter is where it must be after `since`; None where it is not."""
        grown = subtract(step.new, self.counter)
        last = integrate(step.before, step.after, step.seconds)
        whole = add(self.counted, last.total)
        most = find_most(step.highest, step.end - self.since)
        if not self.unpowered and not last.missing_seconds:
            most = min(most, Millijoules(round(whole / SHARE) + find_most(step.highest, 0.0)))
        if self.mixed or not SHARE * whole <= grown <= most:
            return None
        rest = subtract(grown, self.counted)
        return Interval(step.seconds, max(rest, NONE), uncertain=max(Millijoules(-rest), NONE))


@dataclass(slots=True)
class Meter:
    """One card's counter: what it showed lately, and whether it is in doubt."""

    faults: int = 0
    """How often it showed what cannot be."""
    last_fault: Fault | None = None
    last_fault_wall: float = 0.0
    """When that was, in Unix time."""
    doubt: Doubt | None = None
    reset: Doubt | None = None
    """What it showed before it seemed to be reset, until that is certain."""
    recent: Annotated[deque[Step], Field(exclude=True)] = field(default_factory=deque, compare=False)
    """The last steps, as far as they are plausible and follow each other."""

    def read(
        self,
        before: CardReading,
        after: CardReading,
        *,
        begin: float,
        end: float,
        idle_draw: float | None,
        highest: Milliwatts,
        wall: float = 0.0,
    ) -> Interval:
        """Energy between two readings at `begin` and `end`, of the same boot, on the readings' clock; `wall` is the Unix time.

        `idle_draw`: milliwatts, where known; `highest`: the highest power limit of what the counter covers. Time for which
        the machine was suspended is not in between: a card draws nothing in it.
        """
        if before.counter is None or after.counter is None:
            self.doubt = self.reset = None
            self.recent.clear()
            return integrate(before, after, end - begin)
        step = Step(before, after, before.counter, after.counter, begin, end, highest)
        if self.doubt is not None:
            return self._read_in_doubt(self.doubt, step)
        interval = self._read_believed(step, idle_draw)
        if interval.fault is not None:
            self.note(interval.fault, wall)
        return interval

    def note(self, fault: Fault, wall: float) -> None:
        """Count a fault at that Unix time."""
        self.faults += 1
        self.last_fault, self.last_fault_wall = fault, wall

    def close(self, wall: float) -> Interval | None:
        """The card's allocations have changed: what is read from now on is not only of what had it before.

        Returns what the counter lacks of the time before, where it has not kept up with the power; nothing of that is measured.
        """
        lacking = self._find_lacking(CLOSED_SECONDS) if self.doubt is None else None
        if lacking is not None:
            self._begin_doubt(*lacking)
            self.note(lacking[1], wall)
        self.reset = None
        self.recent.clear()
        if self.doubt is not None:
            self.doubt.mixed = True
        return None if lacking is None else _estimate(lacking[0])

    def _read_believed(self, step: Step, idle_draw: float | None) -> Interval:
        since = self._find_still(step.begin)
        interval = measure(
            step.before,
            step.after,
            step.seconds,
            idle_draw=idle_draw,
            highest=step.highest,
            still_seconds=step.begin - since,
        )
        if self.reset is not None and (rest := self._check_reset(self.reset, step, interval)) is not None:
            return rest
        if interval.fault is not None:
            self._doubt(interval.fault, since, step.old, interval)
        elif interval.was_reset:
            self.recent.clear()
            self.reset = Doubt(step.begin, step.old, "WentBack", interval.total)
        else:
            return self._compare(step, interval)
        return interval

    def _find_still(self, now: float) -> float:
        """Since when the counter has not moved."""
        for step in reversed(self.recent):
            if step.growth:
                break
            now = step.begin
        return now

    def _doubt(self, fault: Fault, since: float, counter: Millijoules, interval: Interval) -> None:
        self.doubt, self.reset = Doubt(since, counter, fault), None
        self.doubt.count(interval)
        self.recent.clear()

    def _begin_doubt(self, stretch: Stretch, fault: Fault) -> None:
        self._doubt(fault, stretch.begin, stretch.counter, _estimate(stretch, measured=stretch.grown))

    def _check_reset(self, reset: Doubt, step: Step, interval: Interval) -> Interval | None:
        """After what seemed a reset: if the counter goes on from where it was before, there was none."""
        if interval.fault == "Jumped" and (rest := reset.find_rest(step)) is not None:
            self.reset = None
            self.recent.clear()
            return replace(rest, fault="WentBack")
        reset.count(interval)
        if step.end - reset.since > PROOF_SECONDS:
            self.reset = None
        return None

    def _compare(self, step: Step, interval: Interval) -> Interval:
        """The interval, with what its counter lacks where that has not kept up with the power."""
        self._remember(step)
        lower = min(step.before.draw or 0, step.after.draw or 0)
        if step.growth >= SHARE * lower * step.seconds:
            return interval  # nearly always
        lacking = self._find_lacking(COMPARED_SECONDS)
        if lacking is None:
            return interval
        self._begin_doubt(*lacking)
        return replace(
            _estimate(lacking[0], measured=interval.measured), seconds=interval.seconds, fault=lacking[1]
        )

    def _remember(self, step: Step) -> None:
        recent = self.recent
        if step.seconds > LONGEST_STEP_SECONDS or (recent and recent[-1].end != step.begin):
            recent.clear()
        if step.seconds <= LONGEST_STEP_SECONDS:
            recent.append(step)
        while recent and step.end - recent[0].begin > LONGEST_SECONDS:
            recent.popleft()

    def _find_lacking(self, least_seconds: float) -> tuple[Stretch, Fault] | None:
        """The stretch up to now over which the counter lacks most, and its fault, where it has fallen behind at all."""
        stretch, most, fault = Stretch(0.0, NONE), None, None
        for step in reversed(self.recent):
            if not stretch.add(step):
                break
            fault = fault or stretch.find_fault(least_seconds)
            if most is None or stretch.lacking > most.lacking:
                most = replace(stretch)
        return None if most is None or fault is None else (most, fault)

    def _read_in_doubt(self, doubt: Doubt, step: Step) -> Interval:
        rest = doubt.find_rest(step)
        if rest is not None:
            self.doubt = None
            self.recent.clear()
            return rest
        if self._is_proved(step):
            self.doubt = None
            return Interval(step.seconds, step.growth)
        estimate = integrate(step.before, step.after, step.seconds)
        doubt.count(estimate)
        return estimate

    def _is_proved(self, step: Step) -> bool:
        """Whether the counter has been plausible for long enough, from a new value on."""
        if not 0 <= step.growth <= find_most(step.highest, step.seconds):
            self.recent.clear()
            return False
        self._remember(step)
        recent = self.recent
        if not recent or step.end - recent[0].begin < PROOF_SECONDS:
            return False
        stretch = Stretch(0.0, NONE)
        known = [stretch.add(one) for one in reversed(recent)]
        return not all(known) or (stretch.grown > 0 and stretch.grown >= SHARE_AGAIN * stretch.even)


def _estimate(stretch: Stretch, *, measured: Millijoules = NONE) -> Interval:
    """What a counter lacks over a stretch, as an estimate."""
    lacking = stretch.lacking
    return Interval(stretch.seconds, measured, lacking, uncertain=lacking)
