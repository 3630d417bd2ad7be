"""The port of every source of carbon intensity, and how zones are named."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity

ZONE_FORM = (
    "a grid zone of at most 63 letters, digits and single - _ . or : between them, such as DE or US-CAL-CISO"
)


class Values(Protocol):
    """Carbon intensity by zone, basis and time, as a source had it at one moment: frozen, and read without waiting.

    Each value has its basis, its period, the step of its series, when it was issued, and so whether it is a forecast.
    """

    @property
    def name(self) -> str:
        """The source's name in settings, messages and statuses; at most 64 characters."""
        ...

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The intensity of this zone at this Unix time, or why none is known.

        A source whose values are of the other basis is `Absent`.
        """
        ...

    def zones(self) -> Collection[str]:
        """The zones it has values for, those of its settings included; empty where it cannot name them."""
        ...

    def serves(self, zone: str) -> bool:
        """Whether it may have values for this zone once it is wanted, of whatever basis and time; False where it cannot."""
        ...


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The present values."""

    values: Values
    problems: tuple[str, ...] = ()
    """The present problems, one sentence each."""


class Source(Protocol):
    """Where carbon intensities come from."""

    async def refresh(self, wanted: Collection[str]) -> Refreshed:
        """Read what has changed.

        `wanted` are the zones that jobs need: a source that fetches zone by zone fetches no others. One that has all its zones
        at hand may give them all. Where new data is bad, the last good values stay. Values that were given out before do not
        change.
        """
        ...


def other_basis(source: str, has: Basis) -> Absent:
    """A source has values of one basis only: they are not mixed with the other's."""
    return Absent(f"{source} has {has} values only: set basis to {has}, or add a source with the other")
