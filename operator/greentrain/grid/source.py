"""The port every source of carbon intensity is behind, and how zones are named."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from greentrain.api.v1alpha1 import Basis
from greentrain.carbon.intensity import Absent, Intensity

ZONE_FORM = (
    "a grid zone of at most 63 letters, digits and single - _ . or : between them, such as DE or US-CAL-CISO"
)


class Source(Protocol):
    """Carbon intensity by zone, basis and time."""

    @property
    def name(self) -> str:
        """What it is called in settings, messages and statuses; at most 64 characters."""
        ...

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """What held in this zone at this Unix time, or why nothing is known; from memory, without waiting.

        A source whose values are of the other basis is `Absent`.
        """
        ...

    def zones(self) -> Collection[str]:
        """The zones it has values for, those of its settings included; empty where it cannot name them."""
        ...

    def serves(self, zone: str) -> bool:
        """Whether it has values for this zone, of whatever basis and time."""
        ...

    def refresh(self) -> tuple[str, ...]:
        """Read again what changed on disk; what is wrong now, for people.

        It waits for the disk and may parse megabytes: call it in a thread. Values are exchanged at once, so `at` may go on
        meanwhile. What became bad keeps its last good values.
        """
        ...


def other_basis(source: str, has: Basis) -> Absent:
    """A source has values of one basis only: they are not mixed with the other's."""
    return Absent(f"{source} has {has} values only: set basis to {has}, or add a source with the other")
