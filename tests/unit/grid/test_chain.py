"""Sources are asked in their order, bases are not mixed, and a node's labels lead to a grid zone."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from greentrain import quantities
from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.carbon.operational import Bucket, price
from greentrain.grid.chain import Chain, Grid, Sources
from greentrain.grid.settings import parse_settings
from greentrain.grid.source import Refreshed
from greentrain.grid.sources.fixed import Fixed
from greentrain.quantities import Joules, Thousandths


@dataclass
class Hours:
    """Has a value from one Unix time to another."""

    name: str
    begin: float
    end: float
    basis: Basis = "Lifecycle"

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        if basis != self.basis:
            return Absent(f"{self.name} is {self.basis}")
        if moment < self.begin:
            return Absent(f"{self.name} not yet in {zone}", end=self.begin)
        if moment >= self.end:
            return Absent(f"{self.name} no more in {zone}", begin=self.end)
        return Intensity(quantities.Intensity(1000), self.name, basis, self.begin, self.end)

    def zones(self) -> Collection[str]:
        return ("DE",)

    def serves(self, zone: str) -> bool:
        return zone == "DE"


@pytest.mark.parametrize(
    ("moment", "source", "begin", "end"),
    [
        (5.0, "second", -inf, 10.0),
        (10.0, "first", 10.0, 20.0),
        (19.9, "first", 10.0, 20.0),
        (20.0, "second", 20.0, inf),
    ],
)
def test_the_first_that_has_a_value_answers_until_an_earlier_one_may(
    moment: float, source: str, begin: float, end: float
) -> None:
    chain = Chain(
        (
            Hours("first", 10, 20),
            Fixed("second", quantities.Intensity(7), "Lifecycle"),
        )
    )
    found = chain.at("DE", "Lifecycle", moment)
    assert isinstance(found, Intensity)
    assert (found.source, found.begin, found.end) == (source, begin, end)


def test_a_gap_of_the_first_is_priced_with_the_second_and_no_more() -> None:
    chain = Chain(
        (
            Hours("first", 300, 600),
            Fixed("second", quantities.Intensity(7), "Lifecycle"),
        )
    )
    priced = price([Bucket(0, 900, Joules(900))], Thousandths(1000), lambda t: chain.at("DE", "Lifecycle", t))
    assert {s.source: s.joules for s in priced.shares} == {"first": 300, "second": 600}


def test_when_none_has_a_value_each_is_heard() -> None:
    chain = Chain(
        (
            Hours("first", 10, 20),
            Hours("second", 15, 25),
            Fixed("third", quantities.Intensity(7), "Direct"),
        )
    )
    found = chain.at("DE", "Lifecycle", 12.0 - 10.0)
    assert found == Absent(
        "no intensity for zone DE (Lifecycle): first not yet in DE; second not yet in DE; "
        "third has Direct values only: set basis to Direct, or add a source with the other",
        end=10.0,
    )


def test_the_other_basis_is_not_mixed_in() -> None:
    chain = Chain(
        (
            Hours("first", 0, 10, "Direct"),
            Hours("second", 0, 10),
        )
    )
    for basis, source in (("Direct", "first"), ("Lifecycle", "second")):
        found = chain.at("DE", "Direct" if basis == "Direct" else "Lifecycle", 5)
        assert isinstance(found, Intensity)
        assert (found.source, found.basis) == (source, basis)


def test_a_source_that_answers_for_another_time_is_passed_over() -> None:
    class Lost(Hours):
        def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
            return Intensity(quantities.Intensity(1), f"lost in {zone}", basis, moment + 1)

    chain = Chain(
        (
            Lost("lost", 0, 1),
            Hours("good", 0, 10),
        )
    )
    good, bad = chain.at("DE", "Lifecycle", 5), chain.at("DE", "Lifecycle", 11)
    assert isinstance(good, Intensity)
    assert good.source == "good"
    assert isinstance(bad, Absent)
    assert "lost answered with a value of another time" in bad.reason


def test_a_long_reason_is_cut() -> None:
    found = Chain((Hours("n" * 60, 10, 20),) * 20).at("DE", "Lifecycle", 0)
    assert isinstance(found, Absent)
    assert len(found.reason) == 600


def test_its_zones_are_those_of_all() -> None:
    chain = Chain(
        (
            Hours("first", 10, 20),
            Fixed("second", quantities.Intensity(7), "Direct", "FR"),
        )
    )
    assert set(chain.zones()) == {"DE", "FR"}
    assert [chain.serves(z) for z in ("DE", "FR", "IT")] == [True, True, False]
    assert Chain((Fixed("any", quantities.Intensity(7), "Direct"),)).serves("IT")


@dataclass(frozen=True)
class Fetched:
    """Fetches zone by zone, and has a value for each zone that was asked for."""

    name: str = "fetched"
    known: frozenset[str] = frozenset()

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        if zone not in self.known:
            return Absent(f"{zone} was not asked for", moment)
        return Intensity(
            quantities.Intensity(1000), self.name, basis, 0, 1800, as_of=0, step=1800, issued=-60
        )

    def zones(self) -> Collection[str]:
        return self.known

    def serves(self, zone: str) -> bool:
        return bool(zone)

    async def refresh(self, wanted: Collection[str]) -> Refreshed:
        return Refreshed(Fetched(known=frozenset(wanted)))


@pytest.mark.parametrize(
    ("settings", "wanted", "asked"),
    [
        ("{}", (), set()),
        ("{}", ("SE", "FR"), {"SE", "FR"}),
        ('{"zone": "DE"}', ("SE",), {"SE", "DE"}),
        ('{"zone": "DE", "zones": {"eu": "AT", "us": "US"}}', (), {"DE", "AT", "US"}),
    ],
)
async def test_a_source_is_asked_for_the_zones_that_jobs_and_settings_name(
    settings: str, wanted: tuple[str, ...], asked: set[str]
) -> None:
    sources = Sources(parse_settings(settings.encode(), "s.json"), [Fetched()])
    found, problems = await sources.refresh(wanted)
    assert (set(found.values.zones()), problems) == (asked, ())


def test_a_value_that_is_cut_short_is_still_the_forecast_that_it_was() -> None:
    chain = Chain((Hours("first", 300, 600), Fetched(known=frozenset({"DE"}))))
    for moment, begin, end in ((0, 0, 300), (700, 600, 1800)):
        found = chain.at("DE", "Lifecycle", moment)
        assert isinstance(found, Intensity)
        assert (found.begin, found.end, found.step, found.issued) == (begin, end, 1800, -60)
        assert found.is_forecast


async def refreshed(text: str) -> tuple[Grid, tuple[str, ...]]:
    return await Sources(parse_settings(text.encode(), "s.json")).refresh()


async def grid(text: str) -> Grid:
    return (await refreshed(text))[0]


@pytest.mark.parametrize(
    ("settings", "region", "zone", "expected"),
    [
        ('{"zones": {"eu-central-1": "DE"}}', "eu-central-1", "eu-central-1a", "DE"),
        ('{"zones": {"eu-central-1": "DE", "eu-central-1a": "AT"}}', "eu-central-1", "eu-central-1a", "AT"),
        ('{"zone": "FR", "zones": {"eu-central-1": "DE"}}', "eu-central-1", "", "DE"),
        ('{"zone": "FR"}', "eu-central-1", "", "FR"),
        ('{"zone": "FR"}', "CA", "CA", "FR"),
        ("{}", "DE", "", "DE"),
        ("{}", "IT", "AT", "AT"),
        ("{}", "eu-central-1", "eu-central-1a", None),
        ("{}", "", "", None),
        ('{"sources": [{"type": "fixed", "intensity": "1gCO2e/kWh"}]}', "DE", "", None),
    ],
)
async def test_a_nodes_labels_lead_to_a_zone(
    settings: str, region: str, zone: str, expected: str | None
) -> None:
    assert (await grid(settings)).zone_of(region, zone) == expected


@pytest.mark.parametrize(
    ("sources", "zone", "known", "near"),
    [
        ('[{"type": "table"}]', "DE", True, "DE"),
        ('[{"type": "table"}]', "Germany", False, "DE"),
        ('[{"type": "table"}]', "UK", False, "GB"),
        ('[{"type": "table"}]', "DE-LU", False, "DE"),
        ('[{"type": "table"}]', "Q9Q9", False, None),
        ('[{"type": "fixed", "intensity": "1gCO2e/kWh"}]', "Q9Q9", True, None),
        ('[{"type": "fixed", "intensity": "1gCO2e/kWh", "zone": "rack-1"}]', "rack-2", False, "rack-1"),
        ('[{"type": "file", "path": "/none.csv", "zone": "DE-LU"}]', "DE-LU", True, "DE-LU"),
        ('[{"type": "file", "path": "/none.csv"}]', "DE-LU", False, None),
    ],
)
async def test_a_zone_is_known_or_near_ones_are_named(
    sources: str, zone: str, known: bool, near: str | None
) -> None:
    site = await grid(f'{{"sources": {sources}}}')
    assert site.is_known(zone) is known
    assert next(iter(site.suggest(zone)), None) == near


async def test_a_zone_of_the_settings_that_no_source_has_is_a_problem() -> None:
    _, problems = await refreshed('{"zone": "Germany", "zones": {"r1": "DE", "r2": "UK", "r3": "Q9Q9"}}')
    assert problems == (
        "zone: no source has zone Germany; did you mean DE?",
        "zones.r2: no source has zone UK; did you mean GB?",
        "zones.r3: no source has zone Q9Q9",
    )


async def test_a_file_stands_before_the_table(tmp_path: Path) -> None:
    path = tmp_path / "de.csv"
    path.write_text("time,intensity\n2026-01-01T00:00:00Z,99\n")
    file = {"type": "file", "name": "tso", "path": str(path), "zone": "DE"}
    site, problems = await refreshed(json.dumps({"zone": "DE", "sources": [file, {"type": "table"}]}))
    assert problems == ()
    first = site.at("DE", "Lifecycle", 1767225600.0)
    later = site.at("DE", "Lifecycle", 1767225600.0 + 3600)
    assert isinstance(first, Intensity)
    assert isinstance(later, Intensity)
    assert (first.source, later.source, later.begin) == ("tso", "Ember 2024", 1767225600.0 + 3600)
    assert (site.label("DE"), site.label("rack-1")) == ("Germany", None)
