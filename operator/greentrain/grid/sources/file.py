"""A time series in a file, such as a mounted ConfigMap that a grid operator's figures are written to.

The kubelet exchanges a mounted ConfigMap by pointing the link `..data` at another folder, so a file's own link never changes:
the file at the end of the links is checked. A file is read again where its inode, time of change or size has changed. Where
it cannot be read or parsed, the last good values stay and each `refresh` reports it until it is corrected. The values expire
by themselves, as their times do.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.formats.series import ANY_ZONE, MAX_BYTES, Period, Series, SeriesError, parse
from greentrain.grid.source import Refreshed, other_basis
from greentrain.quantities import format_unix_time

_Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class FileValues:
    """The series of one file as it was read last; of this basis, and of one zone only where its source names one."""

    name: str
    path: Path
    basis: Basis
    zone: str | None = None
    series: Mapping[str, Series] = field(default_factory=dict)
    """Empty before the file was read."""

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The period's value; a gap, a zone it does not have and a file never read are `Absent`."""
        series = self.series.get(zone)
        if series is None:
            return Absent(self._without(zone))
        if basis != self.basis:
            return other_basis(self.name, self.basis)
        found = series.find(moment)
        if isinstance(found, Period):
            return Intensity(
                found.milligrams,
                self.name,
                basis,
                found.begin,
                found.end,
                as_of=found.begin,
                step=series.step,
                issued=found.issued,
            )
        begin, end = found
        return Absent(
            f"{self.name} has no row for {zone} {_span(begin, end)}: add it to the file", begin, end
        )

    def zones(self) -> Collection[str]:
        """The zones in the file, and the one it is for."""
        return self.series.keys() | ({self.zone} if self.zone is not None else set())

    def serves(self, zone: str) -> bool:
        """Whether the file has it, or is configured for it."""
        return zone in self.zones()

    def _without(self, zone: str) -> str:
        if not self.series:
            return f"{self.name} could not be read: correct {self.path}"
        return f"{self.name} has values for {', '.join(sorted(self.series)[:5])} only, not for {zone}"


class File:
    """Reads one file again whenever it has changed."""

    def __init__(self, name: str, path: Path, basis: Basis, zone: str | None = None) -> None:
        """Of this basis, and of this zone only where one is given, which a file without a zone column needs."""
        self.values = FileValues(name, path, basis, zone)
        self._problems: tuple[str, ...] = (f"{name}: {path} has not been read yet",)
        self._signature: _Signature | None = None

    async def refresh(self, wanted: Collection[str] = ()) -> Refreshed:  # noqa: ARG002
        """Read the file again if it changed, whole, in a thread: a year of a grid's values takes seconds to parse."""
        await asyncio.to_thread(self._read)
        return Refreshed(self.values, self._problems)

    def _read(self) -> None:
        known = self.values
        try:
            found = known.path.stat()
            if _sign(found) == self._signature:
                return
            if not stat.S_ISREG(found.st_mode):
                self._fail("it is not a file")
                return
            signature, content = _read(known.path)
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        self._signature = signature
        try:
            parsed = parse(content, str(known.path))
            self.values = replace(known, series=_choose(parsed.series, known))
            self._problems = tuple(f"{known.name}: {w}" for w in parsed.warnings)
        except SeriesError as error:
            self._problems = self._keeping(error.problems)

    def _fail(self, why: str) -> None:
        """It cannot be read; it is read again the next time, since it may come back unchanged."""
        self._signature = None
        self._problems = self._keeping([f"{self.values.path} cannot be read: {why}"])

    def _keeping(self, problems: Collection[str]) -> tuple[str, ...]:
        kept = "; the values read before are kept" if self.values.series else ""
        return tuple(f"{self.values.name}: {p}{kept}" for p in problems)


def _choose(series: Mapping[str, Series], of: FileValues) -> Mapping[str, Series]:
    """The requested zones."""
    path, zone = of.path, of.zone
    if ANY_ZONE in series:
        if zone is None:
            text = f"{path} has no column zone and its source names none: set the source's zone, or add the column"
            raise SeriesError([text])
        return {zone: series[ANY_ZONE]}
    if zone is None:
        return series
    if zone not in series:
        has = ", ".join(sorted(series)[:5])
        text = f"{path} has no rows of zone {zone}, only of {has}: set the source's zone to one of them"
        raise SeriesError([text])
    return {zone: series[zone]}


def _sign(found: os.stat_result) -> _Signature:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[_Signature, bytes]:
    """A file's bytes, one more than is allowed at most, and the signature of the very file that was read."""
    with path.open("rb") as file:
        return _sign(os.fstat(file.fileno())), file.read(MAX_BYTES + 1)


def _span(begin: float, end: float) -> str:
    since = f"from {format_unix_time(begin)}" if begin > -1e12 else ""
    until = f"before {format_unix_time(end)}" if end < 1e12 else ""
    return " ".join(part for part in (since, until) if part)
