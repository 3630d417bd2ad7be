"""One card of a node's account: its last reading, its allocations since, and what it draws.

Millijoules, milliwatts, and times on the readings' clock; the journal stores these objects as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from greentrain.energy.counters import Meter
from greentrain.energy.intervals import UNLIMITED, CardReading
from greentrain.quantities import Millijoules, Milliwatts, add

DRAW_SECONDS = 10.0
"""Over how long a draw is averaged, and how old its last reading may be. Longer than a poll beside a card that hangs (2 s) and
than the time between two readings of processors (5 s); short enough to see a job's steps begin and end."""

SHORTEST_DRAW_SECONDS = 2.0
"""Over less than this a counter that is renewed ten times a second gives a draw to 5 % at best."""

Holders = tuple[tuple[str, float, bool], ...]
"""Pod, share and whether alone, of each allocation of a card."""


@dataclass(frozen=True, slots=True)
class Make:
    """What is known of a card that its readings do not show."""

    model: str = ""
    """Product name."""
    highest: Milliwatts = UNLIMITED
    """Highest power limit of what its energy counter covers."""


@dataclass(slots=True)
class Seen:
    """A time throughout which a card was seen allocated to the same pods."""

    begin: float
    end: float
    holders: Holders = ()


@dataclass(slots=True)
class LastAllocated:
    """The last moment at which a card's allocations were known, whether it could be read or not."""

    at: float
    boot: str
    holders: Holders = ()


@dataclass(slots=True)
class LastSeen:
    """The last moment at which a card's reading and its allocations were both known, and its allocations since."""

    at: float
    wall: float
    boot: str
    asleep: float = 0.0
    """Seconds of `at` for which the machine was suspended."""
    counter: Millijoules | None = None
    draw: Milliwatts | None = None
    busy: bool = False
    phases: list[Seen] = field(default_factory=list)

    @property
    def was_read(self) -> bool:
        """Whether anything was read: what a card uses before its first reading stays unknown."""
        return self.counter is not None or self.draw is not None

    @property
    def reading(self) -> CardReading:
        """The reading of that moment."""
        return CardReading(self.counter, self.draw, self.busy)

    def see(self, holders: Holders, at: float) -> None:
        """Take in the card's allocations at a later moment, whether it can be read or not."""
        if self.phases and self.phases[-1].holders == holders:
            self.phases[-1].end = max(at, self.phases[-1].end)
        else:
            self.phases.append(Seen(begin=at, end=at, holders=holders))


@dataclass(slots=True)
class CardAccount:
    """One card, whichever pods used it."""

    last: LastSeen | None = None
    measured: Millijoules = Millijoules(0)
    estimated: Millijoules = Millijoules(0)
    missing_seconds: float = 0.0
    idle_draw: float | None = None
    """Milliwatts it draws when it is allocated to no pod and nothing runs on it, as learnt."""
    uncertain: Millijoules = Millijoules(0)
    """By how much that may be wrong: power stood in for the counter, or what it showed could mean two things."""
    meter: Meter = field(default_factory=Meter)
    highest: Milliwatts = UNLIMITED
    """Highest power limit of what its counter covers."""
    model: str = ""
    """Product name, as it was read last; empty where it never was."""
    held: LastAllocated | None = None
    recent: Annotated[list[tuple[float, Millijoules]], Field(exclude=True)] = field(
        default_factory=list, compare=False
    )
    """Times and what was used by then, of the last readings with the same allocations."""

    @property
    def used(self) -> Millijoules:
        """What all that used it have used, measured and estimated."""
        return add(self.measured, self.estimated)

    @property
    def is_nameless(self) -> bool:
        """Whether its driver has never named it: a device that only the kubelet knows."""
        return not self.model and self.highest == UNLIMITED and self.last is None and not self.used

    def learn_idle(self, draw: float) -> None:
        """Take in what the idle card drew between two readings."""
        self.idle_draw = draw if self.idle_draw is None else self.idle_draw + (draw - self.idle_draw) / 16

    def note(self, at: float) -> None:
        """Remember what it has used by now, for its draw."""
        recent = self.recent
        if recent and not 0.0 <= at - recent[-1][0] <= DRAW_SECONDS:
            recent.clear()
        recent.append((at, self.used))
        while recent[0][0] < at - DRAW_SECONDS and at - recent[1][0] >= SHORTEST_DRAW_SECONDS:
            del recent[0]

    def find_draw(self, at: float) -> float | None:
        """Milliwatts over the last seconds; None where too little was read lately."""
        if not self.recent or at - self.recent[-1][0] > DRAW_SECONDS:
            return None
        (begin, before), (end, after) = self.recent[0], self.recent[-1]
        return None if end - begin < SHORTEST_DRAW_SECONDS else (after - before) / (end - begin)
