"""The table that ships: annual averages of countries and medians of generating technologies, each row with its source.

It makes emissions more than a blank in a fresh cluster, and is the last resort: an average over a year and a country hides
every hour and every region. Rows are facts from published sources; `data/intensity.csv` names for each where it was read,
docs/tasks/emissions.md the licences.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import cast

from greentrain import quantities
from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.source import Refreshed, other_basis
from greentrain.quantities import to_intensity

NEAR = 3
"""How many zones are named beside an unknown one."""

NOT_ISO = {"UK": "GB", "EL": "GR"}
"""Common codes that are not ISO 3166-1's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value of the table."""

    zone: str
    label: str
    basis: Basis
    milligrams: quantities.Intensity
    """Milligrams of CO2 equivalent per kilowatt-hour."""
    year: int
    dataset: str
    source: str
    """What was opened to read the value."""

    @property
    def intensity(self) -> Intensity:
        """For all time: an annual average's age is reported; it has no end."""
        as_of = datetime(self.year + 1, 1, 1, tzinfo=UTC).timestamp()
        return Intensity(self.milligrams, f"{self.dataset} {self.year}", self.basis, as_of=as_of)


class Table:
    """Values by zone and basis, the same at any time."""

    name = "table"

    def __init__(self, rows: Iterable[Row] | None = None) -> None:
        """With these rows, or the ones that ship."""
        self._rows = {(r.zone, r.basis): r for r in (read_rows() if rows is None else rows)}
        self._labels = {r.zone: r.label for r in self._rows.values()}

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:  # noqa: ARG002
        """The zone's value, or which zones have similar names."""
        row = self._rows.get((zone, basis))
        if row is not None:
            return row.intensity
        if zone in self._labels:
            return other_basis(f"{self.name}, for {zone},", "Direct" if basis == "Lifecycle" else "Lifecycle")
        near = ", ".join(f"{z} ({self._labels[z]})" for z in self.suggest(zone))
        help_ = f"did you mean {near}?" if near else "countries are ISO 3166-1 alpha-2, such as DE."
        return Absent(f"{self.name} has no zone {zone}: {help_} Else add a source that has it")

    def zones(self) -> Collection[str]:
        """Every zone of the table."""
        return self._labels.keys()

    def serves(self, zone: str) -> bool:
        """Whether the table has it."""
        return zone in self._labels

    def label(self, zone: str) -> str | None:
        """A zone's plain name; None where it is not in the table."""
        return self._labels.get(zone)

    def suggest(self, zone: str) -> tuple[str, ...]:
        """Zones that may have been meant: by code, by name, by the country a longer name begins with."""
        return suggest(zone, self._labels)

    async def refresh(self, wanted: Collection[str] = ()) -> Refreshed:  # noqa: ARG002
        """It is part of the program, and never changes."""
        return Refreshed(self)


def suggest(zone: str, labels: dict[str, str]) -> tuple[str, ...]:
    """Up to three of these zones (with their names) that are similar to what was written."""
    upper = {z.upper(): z for z in labels}
    names = {n.casefold(): z for z, n in labels.items()}
    prefix = zone.replace("_", "-").partition("-")[0].upper()
    likely = [
        upper.get(zone.upper()),
        names.get(zone.casefold()),
        upper.get(NOT_ISO.get(zone.upper(), "")),
        upper.get(prefix),
    ]
    codes = difflib.get_close_matches(zone.upper(), upper, n=NEAR, cutoff=0.6)
    # DEU is Germany's longer code: a common beginning is likelier.
    close = [upper[m] for m in sorted(codes, key=lambda m: m[0] != zone[:1].upper())]
    close += [names[m] for m in difflib.get_close_matches(zone.casefold(), names, n=NEAR, cutoff=0.7)]
    found = dict.fromkeys(z for z in likely if z is not None) or dict.fromkeys(close)
    return tuple(found)[:NEAR]


@cache
def read_rows() -> tuple[Row, ...]:
    """The rows of `data/intensity.csv`."""
    return tuple(
        Row(
            zone=r["zone"],
            label=r["name"],
            basis=cast(Basis, r["basis"]),
            milligrams=quantities.Intensity(int(to_intensity(Decimal(r["intensity"])))),
            year=int(r["year"]),
            dataset=r["dataset"],
            source=r["source"],
        )
        for r in csv.DictReader(read_packaged("intensity.csv"))
    )


def read_packaged(name: str) -> Sequence[str]:
    """The lines of a file in `data/`, comments left out."""
    text = files("greentrain.grid").joinpath("data", name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]
