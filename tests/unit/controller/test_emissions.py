"""The operator's sources of intensity: read at its start, and again when a file has changed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from greentrain import quantities
from greentrain.carbon.intensity import Intensity
from greentrain.controller.emissions import Emissions
from greentrain.controller.settings import parse_settings
from greentrain.core.seen.intensities import CarbonSource
from greentrain.grid.settings import EmissionsSettings
from greentrain.grid.source import Refreshed
from greentrain.grid.sources.fixed import Fixed

SERIES = "time,intensity\n2026-01-01T00:00:00Z,{}\n2026-01-01T01:00:00Z,{}\n"
MOMENT = 1_767_225_600.0 + 60


def current(emissions: Emissions) -> CarbonSource:
    assert emissions.source is not None
    return emissions.source


async def test_a_changed_file_is_read_and_a_bad_one_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greentrain.controller")
    file = tmp_path / "de.csv"
    file.write_text(SERIES.format(100, 200))
    source = {"type": "file", "path": str(file), "zone": "DE"}
    settings = EmissionsSettings.model_validate({"sources": [source], "zone": "DE", "pue": "1.3"})
    counts: list[int] = []
    emissions = Emissions(settings, counted=counts.append)
    assert not emissions.source
    await emissions.refresh()
    first = current(emissions)
    held = first.at("DE", "Lifecycle", MOMENT)
    assert isinstance(held, Intensity)
    assert (held.milligrams, first.pue, first.zone_of("", "")) == (100_000, 1300, "DE")
    file.write_text(SERIES.format("many", 200))
    await emissions.refresh()
    await emissions.refresh()
    assert current(emissions).at("DE", "Lifecycle", MOMENT) == held
    assert sum("many" in r.message for r in caplog.records) == 1
    file.write_text(SERIES.format(300, 200))
    await emissions.refresh()
    now = current(emissions).at("DE", "Lifecycle", MOMENT)
    assert isinstance(now, Intensity)
    assert now.milligrams == 300_000
    # A pass that has begun goes on with what it began with.
    assert first.at("DE", "Lifecycle", MOMENT) == held
    assert "every source can be read again" in caplog.text
    assert counts == [0, 1, 1, 0]


@dataclass
class Asked:
    """Notes for which zones it was asked, and has them all."""

    wanted: list[set[str]] = field(default_factory=list)

    async def refresh(self, wanted: Collection[str]) -> Refreshed:
        self.wanted.append(set(wanted))
        return Refreshed(Fixed("asked", quantities.Intensity(1000), "Lifecycle"))


async def test_sources_are_asked_for_the_zones_of_passes_for_an_hour() -> None:
    asked, seconds = Asked(), [0.0]
    settings = EmissionsSettings.model_validate({"zone": "DE"})
    emissions = Emissions(settings, counted=lambda _: None, sources=[asked], elapsed=lambda: seconds[0])
    await emissions.refresh()
    current(emissions).at("SE", "Lifecycle", MOMENT)
    await emissions.refresh()
    seconds[0] = 1800.0
    current(emissions).at("FR", "Direct", MOMENT)
    await emissions.refresh()
    seconds[0] = 3600.0
    await emissions.refresh()
    seconds[0] = 5400.0
    await emissions.refresh()
    assert asked.wanted == [{"DE"}, {"DE", "SE"}, {"DE", "SE", "FR"}, {"DE", "FR"}, {"DE"}]


def test_settings_that_are_wrong_end_the_operator_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"pue": "0.9", "zonne": "DE"}')
    with pytest.raises(SystemExit) as ended:
        parse_settings(["--emissions-settings", str(file)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "pue: '0.9' is not valid" in said
    assert "did you mean zone?" in said
    file.write_text('{"zone": "SE"}')
    assert parse_settings(["--emissions-settings", str(file)]).emissions.zone == "SE"
