"""The tables that ship: every value is sane and names its source, and an unknown zone is helped along."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from greentrain import quantities
from greentrain.api.spec import MAX_ZONE_LENGTH, ZONE_PATTERN, Basis
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.embodied import read_figures
from greentrain.grid.source import Refreshed
from greentrain.grid.sources.table import Row, Table, read_rows

NOW = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("row", read_rows(), ids=lambda r: f"{r.zone}-{r.basis}")
def test_every_row_has_a_source_and_a_sane_value(row: Row) -> None:
    assert re.fullmatch(r"(?!TECH)[A-Z]{2}|WORLD|TECH:[a-z-]+", row.zone)
    assert re.fullmatch(ZONE_PATTERN, row.zone)
    assert len(row.zone) <= MAX_ZONE_LENGTH
    assert row.basis in ("Lifecycle", "Direct")
    assert row.label.strip() == row.label != ""
    assert 2014 <= row.year <= 2025
    assert re.search(r"read in .*\w\.(com|org)/", row.source)
    # From hydropower to the most wasteful of gas turbines; nothing but what burns nothing is 0, and only directly.
    least = 10_000 if row.basis == "Lifecycle" else 0
    assert least <= row.milligrams <= 1_400_000
    assert len(row.intensity.source) <= 64


def test_no_value_is_there_twice() -> None:
    assert len({(r.zone, r.basis) for r in read_rows()}) == len(read_rows())


def test_most_of_the_world_is_there() -> None:
    countries = {r.zone for r in read_rows() if not r.zone.startswith("TECH:")}
    assert len(countries) > 180
    assert countries >= {"DE", "FR", "US", "CN", "IN", "GB", "JP", "BR", "ZA", "AU", "EU", "WORLD"}


@pytest.mark.parametrize("figure", read_figures().values(), ids=lambda f: str(f.typical))
def test_every_embodied_figure_has_a_source_and_a_sane_value(figure: Embodied) -> None:
    assert 50_000 <= figure.low <= figure.typical <= figure.high <= 500_000
    assert figure.year is not None
    assert 2020 <= figure.year <= 2026
    assert re.search(r"read in .*(com|co)/", figure.source)


@pytest.mark.parametrize(
    ("zone", "basis", "grams", "source", "of"),
    [
        ("DE", "Lifecycle", 344.14, "Ember 2024", "2025-01-01"),
        ("FR", "Lifecycle", 44.18, "Ember 2024", "2025-01-01"),
        ("TECH:wind-onshore", "Lifecycle", 11, "IPCC 2014", "2015-01-01"),
        ("TECH:gas", "Direct", 370, "IPCC 2014", "2015-01-01"),
    ],
)
def test_a_value_holds_for_all_time_and_tells_its_age(
    zone: str, basis: Basis, grams: float, source: str, of: str
) -> None:
    as_of = datetime.fromisoformat(of).replace(tzinfo=UTC).timestamp()
    expected = Intensity(quantities.Intensity(round(grams * 1000)), source, basis, as_of=as_of)
    assert Table().at(zone, basis, NOW) == expected == Table().at(zone, basis, 0)


@pytest.mark.parametrize(
    ("zone", "basis", "words"),
    [
        ("Germany", "Lifecycle", "no zone Germany: did you mean DE (Germany)?"),
        ("DEU", "Lifecycle", "did you mean DE (Germany)"),
        ("de", "Lifecycle", "did you mean DE (Germany)"),
        ("UK", "Lifecycle", "did you mean GB (United Kingdom)"),
        ("US-CAL-CISO", "Lifecycle", "did you mean US (United States)"),
        ("TECH:wind", "Lifecycle", "TECH:wind-onshore (Wind, onshore)"),
        ("Q9Q9", "Lifecycle", "ISO 3166-1 alpha-2, such as DE. Else add a source"),
        ("DE", "Direct", "table, for DE, has Lifecycle values only: set basis to Lifecycle"),
    ],
)
def test_what_is_not_there_says_what_would_be(zone: str, basis: Basis, words: str) -> None:
    found = Table().at(zone, basis, NOW)
    assert isinstance(found, Absent)
    assert words in found.reason


async def test_it_names_its_zones_and_never_changes() -> None:
    table = Table([Row("XX", "Nowhere", "Direct", quantities.Intensity(1), 2024, "Own", "none")])
    assert (list(table.zones()), table.serves("XX"), table.serves("DE")) == (["XX"], True, False)
    assert (table.label("XX"), table.label("DE"), await table.refresh()) == (
        "Nowhere",
        None,
        Refreshed(table),
    )
