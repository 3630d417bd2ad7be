"""GPUs as the node agent knows them, independent of the vendor: what the port `devices.gpus` gives and takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from greentrain.api.nodepower import MAX_MILLIWATTS, PowerLimits
from greentrain.energy.cards import Make
from greentrain.energy.intervals import UNLIMITED, CardReading
from greentrain.quantities import Milliwatts


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a card that is used like a card, such as an NVIDIA MIG device; it has no energy counter or limit of its own."""

    uuid: str
    """As its driver gives it: `MIG-…`."""
    gpu_instance: int
    """Id of its share of memory on the card; several partitions can have the same."""
    compute_instance: int
    """Id of its share of compute within that."""
    slices: int
    """Compute slices of the card that are its own."""
    total_slices: int
    """Compute slices the whole card can be cut into."""


@dataclass(frozen=True, slots=True)
class CurrentLimits:
    """The limits of a card that change while it runs; None for what its driver does not report."""

    set_milliwatts: Milliwatts | None
    enforced_milliwatts: Milliwatts | None
    binding: bool | None = None
    """Whether the card runs slower now than it could because of its limit."""


@dataclass(frozen=True, slots=True)
class Card:
    """One whole card."""

    uuid: str
    """As its driver gives it: `GPU-…`; only this name survives reboots and the loss of other cards."""
    index: int
    """The driver's number for it in this session: for messages, never to find it again."""
    minor: int | None
    """Number of its device file; None where the driver does not report it."""
    model: str
    """Product name."""
    partitioned: bool
    """Whether it is cut into partitions."""
    partitions: tuple[Partition, ...] = ()
    """Its partitions, in the driver's order."""
    limits: PowerLimits = field(default_factory=PowerLimits)
    persistence: bool | None = None
    """Whether the driver keeps it initialised while nothing uses it; None where that mode does not exist."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a card could not be read."""

    message: str
    gone: bool = False
    """Whether it has fallen off the bus, so that only a reset or a reboot brings it back."""


CardAnswer = CardReading | Unread
"""A card's answer to a request for its counters."""


def known_limit(milliwatts: Milliwatts | None) -> Milliwatts | None:
    """A power limit as a card reported it; a limit that no card can have counts as none, and NodePower does not accept it."""
    return None if milliwatts is None or milliwatts > MAX_MILLIWATTS else milliwatts


def describe(card: Card, now: CurrentLimits | None) -> Make:
    """What a card's account must know of it: its model, and the highest power limit that it can have.

    That is the highest its driver names, the limits of `now` included; far above any card where it names none.
    """
    limits = card.limits
    known = [
        limits.max_milliwatts,
        limits.default_milliwatts,
        limits.set_milliwatts,
        limits.enforced_milliwatts,
    ]
    if now is not None:
        known += [now.set_milliwatts, now.enforced_milliwatts]
    return Make(card.model, max((limit for limit in known if limit), default=UNLIMITED))
