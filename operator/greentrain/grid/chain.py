"""Several sources as one: the first that has a value of the requested basis for the requested moment answers.

So a grid operator's file can precede the table that ships. An hour missing in the file is then accounted with the year's
average instead of not at all. Each source's share of the energy is reported, so that this can be seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import assert_never

from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.settings import EmissionsSettings, FileSource, FixedSource, SourceSettings, TableSource
from greentrain.grid.source import Source, Values
from greentrain.grid.sources.file import File
from greentrain.grid.sources.fixed import Fixed
from greentrain.grid.sources.table import NEAR, Table, suggest

MAX_REASON_LENGTH = 600
"""Characters of a reason that sums up the reasons of several sources."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The values of several sources in the order in which they are asked; themselves `Values`."""

    parts: tuple[Values, ...]
    name: str = "sources"

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The first value; it ends where an earlier source may have one again. Else each source's reason."""
        begin, end, said = -inf, inf, list[str]()
        for part in self.parts:
            found = part.at(zone, basis, moment)
            if not found.covers(moment):
                said.append(f"{part.name} answered with a value of another time")
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
        return {zone for part in self.parts for zone in part.zones()}

    def serves(self, zone: str) -> bool:
        """Whether one of them has it."""
        return any(part.serves(zone) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Grid:
    """The values of the sources of the operator's settings, and each node's grid zone; frozen."""

    settings: EmissionsSettings
    values: Chain
    labels: Table
    """Has the names of zones."""

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The intensity of this zone at this Unix time, from the first source that has one."""
        return self.values.at(zone, basis, moment)

    def zone_of(self, region: str, zone: str) -> str | None:
        """The grid zone of a node by its labels topology.kubernetes.io/region and /zone ('' where it has none).

        In this order: what the settings map the zone label to, what they map the region label to, the settings' own zone, and
        only then a label that is itself the name of a known zone. Labels come last because a region called CA may be
        California and not Canada. None where none of these applies.
        """
        mapped = self.settings.zones
        for label in (zone, region):
            if label in mapped:
                return mapped[label]
        if self.settings.zone is not None:
            return self.settings.zone
        known = self.values.zones()
        return next((label for label in (zone, region) if label in known), None)

    def is_known(self, zone: str) -> bool:
        """Whether a source has values for the zone; a file that was never read is known by its settings only."""
        return self.values.serves(zone)

    def suggest(self, zone: str) -> tuple[str, ...]:
        """Up to three known zones that may have been meant, the likeliest first."""
        known = self.values.zones()
        return suggest(zone, {z: self.label(z) or z for z in known})[:NEAR]

    def label(self, zone: str) -> str | None:
        """A zone's plain name, where the table that ships has it."""
        return self.labels.label(zone)

    def find_unknown_zones(self) -> tuple[str, ...]:
        """The zones of the settings that no source has, a sentence each."""
        own = self.settings.zone
        named = {"zone": own} if own is not None else {}
        named |= {f"zones.{label}": zone for label, zone in self.settings.zones.items()}
        return tuple(
            f"{path}: no source has zone {zone}{self._hint(zone)}"
            for path, zone in named.items()
            if not self.is_known(zone)
        )

    def _hint(self, zone: str) -> str:
        near = self.suggest(zone)
        return f"; did you mean {', '.join(near)}?" if near else ""


class Sources:
    """The sources of the operator's settings. Nothing is known of files before the first `refresh`."""

    def __init__(self, settings: EmissionsSettings, sources: Iterable[Source] | None = None) -> None:
        """By the settings, or with these sources in place of theirs; nothing is read from disk yet."""
        self._settings = settings
        self._table = Table()
        self._sources = [self._build(s) for s in settings.sources] if sources is None else [*sources]

    async def refresh(self, wanted: Collection[str] = ()) -> tuple[Grid, tuple[str, ...]]:
        """What is known now, and all problems, zones in the settings included.

        `wanted` are the zones that jobs need; the settings' own are always wanted.
        """
        own = self._settings.zone
        zones = {*wanted, *self._settings.zones.values(), *(() if own is None else (own,))}
        found = [await source.refresh(zones) for source in self._sources]
        grid = Grid(self._settings, Chain(tuple(f.values for f in found)), self._table)
        return grid, (*(p for f in found for p in f.problems), *grid.find_unknown_zones())

    def _build(self, source: SourceSettings) -> Source:
        match source:
            case FileSource():
                return File(source.name, source.path, source.basis, source.zone)
            case FixedSource():
                return Fixed(source.name, source.intensity, source.basis, source.zone)
            case TableSource():
                return self._table
            case _:
                assert_never(source)
