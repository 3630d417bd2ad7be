"""What docs/tasks/emissions.md shows can be used as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from greentrain.grid.embodied import read_figures
from greentrain.grid.formats.series import parse
from greentrain.grid.settings import parse_settings
from greentrain.grid.sources.table import read_rows

PAGE = (Path(__file__).parents[3] / "docs/tasks/emissions.md").read_text(encoding="utf-8")


def example(language: str, beginning: str) -> bytes:
    (found,) = (
        e for e in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if e.startswith(beginning)
    )
    return str(found).encode()


@pytest.mark.parametrize(
    ("language", "beginning", "name", "zone", "rows"),
    [("csv", "#", "de.csv", "", 3), ("json", "[", "de.json", "DE", 2)],
)
def test_a_file_is_read_as_shown(language: str, beginning: str, name: str, zone: str, rows: int) -> None:
    parsed = parse(example(language, beginning), name)
    assert parsed.warnings == ()
    assert {z: len(s.periods) for z, s in parsed.series.items()} == {zone: rows}


def test_settings_are_read_as_shown() -> None:
    settings = parse_settings(example("json", "{"), "settings.json")
    assert [s.name for s in settings.sources] == ["tso", "own-roof", "table"]


def test_it_tells_how_many_rows_ship() -> None:
    countries = {r.zone for r in read_rows() if not r.zone.startswith("TECH:")} - {"EU", "WORLD"}
    technologies = {r.zone for r in read_rows() if r.zone.startswith("TECH:")}
    direct = [r for r in read_rows() if r.basis == "Direct"]
    assert f"| {len(countries)} countries and territories, `EU`, `WORLD` |" in PAGE
    assert f"| {len(technologies)} technologies `TECH:…` |" in PAGE
    assert f"| {len(direct)} of them |" in PAGE


def test_it_tells_every_embodied_figure() -> None:
    for figure in read_figures().values():
        kilograms = [f"{g / 1000:g}" for g in (figure.low, figure.typical, figure.high)]
        assert f"| {', '.join(kilograms)} |" in PAGE
