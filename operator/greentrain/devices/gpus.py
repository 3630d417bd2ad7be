"""The port to a node's GPUs, of whatever vendor: what the agent requests of the vendor's library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from greentrain.devices.errors import DeviceError
from greentrain.energy.intervals import CardReading
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Milliwatts


class LimitedGpus(Protocol):
    """Power limits of a node's cards."""

    async def read_limits(self, uuid: str) -> CurrentLimits:
        """One card's power limits as they are now.

        Raises:
            DeviceError: they cannot be read; its class shows what to do.
        """
        ...

    async def set_limit(self, uuid: str, milliwatts: Milliwatts) -> None:
        """Set one card's power limit.

        Raises:
            DeviceError: it was not set; its class shows what to do.
        """
        ...


class Gpus(LimitedGpus, Protocol):
    """A node's cards."""

    async def discover(self) -> tuple[Card, ...]:
        """Which cards there are; Unavailable where they cannot be listed."""
        ...

    @property
    def unnamed(self) -> Mapping[int, DeviceError]:
        """Why cards did not report their UUID since the library was opened, by index: nothing can be read from them."""
        ...

    async def read_all(self, *, deadline: float = ...) -> Mapping[str, CardReading | DeviceError]:
        """Every card's counters by UUID, or why it has none; Unavailable where the library as a whole is lost."""
        ...

    async def close(self) -> None:
        """Close the library."""
        ...
