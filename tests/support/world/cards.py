"""GPUs as they are, whatever an agent believes of them: limits, and what may be wrong with one for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from greentrain.api.nodepower import CapReason, PowerLimits
from greentrain.node import cards as shown
from greentrain.node.caps import Hindrance

WATT = 1000
"""Milliwatts."""

FOREVER = math.inf


@dataclass(frozen=True)
class Range:
    """Limits a kind of card can have, in milliwatts."""

    least: int
    default: int
    most: int


RANGES = (
    Range(100 * WATT, 300 * WATT, 300 * WATT),  # as a V100's
    Range(100 * WATT, 400 * WATT, 400 * WATT),  # an A100's
    Range(200 * WATT, 700 * WATT, 700 * WATT),  # an H100's
    Range(100 * WATT, 200 * WATT, 300 * WATT),  # a card that may be given more than it comes with
)

Rounding = Literal["none", "down", "nearest", "up"]


@dataclass
class Card:
    """One card as it is, whatever an agent believes of it; milliwatts, and seconds of the world's clock."""

    uuid: str
    range: Range
    rounding: Rounding = "none"
    tells_default: bool = True
    tells_enforced: bool = True
    lag: float = 0.0
    """Seconds by which the limit in force follows the one that is set."""
    limit: int = 0
    enforced: int = 0
    follows_at: float = 0.0
    prior: int = 0
    """What the last one but us has set, or the default after the driver was loaded: never to be exceeded by us."""
    ours: bool = False
    """Whether our write came last."""
    others: list[float] = field(default_factory=list)
    """When others have set the limit."""
    disturbed: float = 0.0
    lost_until: float = 0.0
    untold_until: float = 0.0
    """It answers, but does not report its limit."""
    refused_until: float = 0.0
    refusal: CapReason = "NotPermitted"
    hanging_until: float = 0.0
    late: int | None = None
    """A write that hangs and will be applied when it no longer does."""
    hindrance: Hindrance | None = None
    hindered_until: float = 0.0
    rival: int | None = None
    """The limit some other tool insists on."""
    rival_at: float = 0.0
    rival_every: tuple[int, int] = (2, 9)
    """Seconds, from and to, after which it does."""
    rival_until: float = 0.0

    def load(self, now: float) -> None:
        """The driver is loaded."""
        self.limit = self.enforced = self.prior = self.range.default
        self.ours, self.others, self.disturbed = False, [], now
        self.lost_until = self.hanging_until = self.untold_until = 0.0
        self.late = None

    def round(self, milliwatts: int) -> int:
        """What the driver makes of a limit."""
        whole, rest = divmod(milliwatts, WATT)
        if self.rounding == "none" or not rest:
            return milliwatts
        up = self.rounding == "up" or (self.rounding == "nearest" and rest >= WATT // 2)
        return (whole + up) * WATT

    def set(self, milliwatts: int, now: float) -> None:
        """The limit is set, by us or by others."""
        self.limit = self.round(milliwatts)
        self.follows_at = now + self.lag
        if not self.lag:
            self.enforced = self.limit

    def answers(self, now: float) -> bool:
        """Whether it can be read or set at all."""
        return now >= self.lost_until and now >= self.hanging_until

    def blocked(self, now: float) -> bool:
        """Whether what should be done to it cannot be done."""
        return not self.answers(now) or now < self.untold_until or now < self.refused_until

    def read(self, now: float) -> PowerLimits | CapReason:
        """Its limits as the driver reports them, or why it does not."""
        if now < self.lost_until:
            return "GpuLost"
        if now < self.hanging_until:
            return "GpuFailing"
        return PowerLimits(
            min_milliwatts=self.range.least,
            default_milliwatts=self.range.default if self.tells_default else None,
            max_milliwatts=self.range.most,
            set_milliwatts=None if now < self.untold_until else self.limit,
            enforced_milliwatts=self.enforced if self.tells_enforced else None,
        )

    def show(self) -> shown.Card:
        """As it is discovered, without the limits that change."""
        limits = PowerLimits(
            min_milliwatts=self.range.least,
            default_milliwatts=self.range.default if self.tells_default else None,
            max_milliwatts=self.range.most,
        )
        cut = self.hindrance is not None and self.hindrance.reason == "MigMode"
        return shown.Card(self.uuid, 0, 0, "", partitioned=cut, limits=limits)
