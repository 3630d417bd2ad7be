"""One value for all time: a supply contract's figure, or a site that knows better than a country's average."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from greentrain import quantities
from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.source import Refreshed, other_basis


@dataclass(frozen=True, slots=True)
class Fixed:
    """So many milligrams of CO2 equivalent per kilowatt-hour, in one zone or (None) in all."""

    name: str
    milligrams: quantities.Intensity
    basis: Basis
    zone: str | None = None

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:  # noqa: ARG002
        """The value; undated, since it is not known from when it applies."""
        if self.zone is not None and zone != self.zone:
            return Absent(f"{self.name} has a value for {self.zone} only")
        if basis != self.basis:
            return other_basis(self.name, self.basis)
        return Intensity(self.milligrams, self.name, self.basis)

    def zones(self) -> Collection[str]:
        """The one zone; none where it serves any."""
        return () if self.zone is None else (self.zone,)

    def serves(self, zone: str) -> bool:
        """Its one zone, or any."""
        return self.zone is None or zone == self.zone

    async def refresh(self, wanted: Collection[str] = ()) -> Refreshed:  # noqa: ARG002
        """It never changes."""
        return Refreshed(self)
