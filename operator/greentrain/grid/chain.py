"""Several sources as one: the first that has a value of the asked basis for the asked moment answers.

So a grid operator's file can stand before the table that ships, and an hour that is missing in the file is accounted with
the year's average instead of not at all; each source's share of the energy is told, so that this can be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import inf

from greentrain.api.v1alpha1 import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.files import File
from greentrain.grid.fixed import Fixed
from greentrain.grid.settings import EmissionsSettings, FileSource, FixedSource, SourceSettings
from greentrain.grid.source import Source
from greentrain.grid.table import NEAR, Table, suggest

MAX_REASON_LENGTH = 600
"""Characters of a reason that sums up what several sources said."""


class Chain:
    """Sources in the order in which they are asked; itself one."""

    def __init__(self, sources: Sequence[Source], name: str = "sources") -> None:
        """Of these sources."""
        self.name = name
        self._sources = tuple(sources)

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The first value; it ends where an earlier source may have one again. Else what each of them said."""
        begin, end, said = -inf, inf, list[str]()
        for source in self._sources:
            found = source.at(zone, basis, moment)
            if not found.covers(moment):
                said.append(f"{source.name} answered with a value of another time")
                continue
            begin, end = max(begin, found.begin), min(end, found.end)
            if isinstance(found, Intensity):
                return replace(found, begin=begin, end=end)
            said.append(found.reason)
        reason = f"no intensity for zone {zone} ({basis}): " + "; ".join(said)
        return Absent(
            reason if len(reason) <= MAX_REASON_LENGTH else f"{reason[: MAX_REASON_LENGTH - 3]}...",
            begin,
            end,
        )

    def zones(self) -> Collection[str]:
        """The zones that any of them names."""
        return {zone for source in self._sources for zone in source.zones()}

    def serves(self, zone: str) -> bool:
        """Whether one of them has it."""
        return any(source.serves(zone) for source in self._sources)

    def refresh(self) -> tuple[str, ...]:
        """Refresh each; all that is wrong."""
        return tuple(problem for source in self._sources for problem in source.refresh())


class Grid:
    """The sources of the operator's settings, and which grid zone a node stands in. Empty of files until `refresh`."""

    def __init__(self, settings: EmissionsSettings) -> None:
        """As the settings say; nothing is read from disk yet."""
        self._settings = settings
        self._table = Table()
        self._chain = Chain([self._build(s) for s in settings.sources])

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """What held in this zone at this Unix time, from the first source that knows."""
        return self._chain.at(zone, basis, moment)

    def refresh(self) -> tuple[str, ...]:
        """Read again what changed on disk, which waits for it; all that is wrong, zones in the settings included."""
        return (*self._chain.refresh(), *self._unknown_zones())

    def zone_of(self, region: str, zone: str) -> str | None:
        """The grid zone of a node by its labels topology.kubernetes.io/region and /zone ('' where it has none).

        In this order: what the settings map the zone label to, what they map the region label to, the settings' own zone,
        and only then a label that is itself the name of a known zone. Labels come last because a region called CA may be
        California and not Canada. None where nothing says.
        """
        mapped = self._settings.zones
        for label in (zone, region):
            if label in mapped:
                return mapped[label]
        if self._settings.zone is not None:
            return self._settings.zone
        known = self._chain.zones()
        return next((label for label in (zone, region) if label in known), None)

    def is_known(self, zone: str) -> bool:
        """Whether a source has values for the zone; a file that was never read is known by its settings only."""
        return self._chain.serves(zone)

    def suggest(self, zone: str) -> tuple[str, ...]:
        """Up to three known zones that may have been meant, the likeliest first."""
        known = self._chain.zones()
        return suggest(zone, {z: self._table.label(z) or z for z in known})[:NEAR]

    def label(self, zone: str) -> str | None:
        """A zone's name for people, where the table that ships has it."""
        return self._table.label(zone)

    def _build(self, source: SourceSettings) -> Source:
        if isinstance(source, FileSource):
            return File(source.name, source.path, source.basis, source.zone)
        if isinstance(source, FixedSource):
            return Fixed(source.name, source.intensity, source.basis, source.zone)
        return self._table

    def _unknown_zones(self) -> tuple[str, ...]:
        own = self._settings.zone
        named = {"zone": own} if own is not None else {}
        named |= {f"zones.{label}": zone for label, zone in self._settings.zones.items()}
        return tuple(
            f"{path}: no source has zone {zone}{self._hint(zone)}"
            for path, zone in named.items()
            if not self.is_known(zone)
        )

    def _hint(self, zone: str) -> str:
        near = self.suggest(zone)
        return f"; did you mean {', '.join(near)}?" if near else ""
