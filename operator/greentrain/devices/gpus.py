"""GPUs as the node agent knows them, in NVML's words and without NVML, so that only one module needs its library."""

from __future__ import annotations

from dataclasses import dataclass, field

from greentrain.api.nodepower import MAX_MILLIWATTS, PowerLimits


@dataclass(frozen=True, slots=True)
class MigDevice:
    """One MIG device of a card: a compute instance inside a GPU instance. It has no energy or limit of its own."""

    uuid: str
    """As NVML gives it: `MIG-…`."""
    gpu_instance: int
    """Id of its GPU instance on the card; several MIG devices can have the same."""
    compute_instance: int
    """Id of its compute instance within the GPU instance."""
    slices: int
    """Compute slices of the card that are its own."""
    total_slices: int
    """Compute slices the whole card can be cut into."""


@dataclass(frozen=True, slots=True)
class CurrentLimits:
    """The limits of a card that change while it runs, in milliwatts; None for what its driver does not tell."""

    set_milliwatts: int | None
    enforced_milliwatts: int | None
    binding: bool | None = None
    """Whether the card runs slower now than it could because of its limit (NVML's SW power cap among the reasons)."""


@dataclass(frozen=True, slots=True)
class Card:
    """One whole card."""

    uuid: str
    """As NVML gives it: `GPU-…`; the only name that stays through reboots and the loss of other cards."""
    index: int
    """NVML's number for it in this session: for people, never to find it again."""
    minor: int | None
    """Number of its device file /dev/nvidia0; None where the driver does not tell."""
    model: str
    """Product name."""
    mig: bool
    """Whether it is in MIG mode."""
    instances: tuple[MigDevice, ...] = ()
    """Its MIG devices, in NVML's order."""
    limits: PowerLimits = field(default_factory=PowerLimits)
    persistence: bool | None = None
    """Whether the driver keeps it initialised when nobody uses it; None where that mode does not exist."""


def known_limit(milliwatts: int | None) -> int | None:
    """A power limit as a card reported it; one that no card can have is as good as none, and NodePower does not take it."""
    return None if milliwatts is None or milliwatts > MAX_MILLIWATTS else milliwatts
