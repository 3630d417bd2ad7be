"""Settings are read as they were meant, or refused with every path, value and remedy."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from greentrain.grid.settings import (
    EmissionsSettings,
    FileSource,
    FixedSource,
    SettingsError,
    TableSource,
    load_settings,
    parse_settings,
)

ALL = {
    "zone": "DE",
    "zones": {"eu-central-1": "DE"},
    "pue": "1.2",
    "basis": "Direct",
    "includeEmbodied": False,
    "embodied": {"lifetimeYears": "4.5", "models": {"NVIDIA L40S": "150kgCO2e"}},
    "sources": [
        {"type": "file", "name": "tso", "path": "/etc/greentrain/de.csv", "basis": "Lifecycle", "zone": "DE"},
        {"type": "fixed", "intensity": "200gCO2e/kWh", "basis": "Direct"},
        {"type": "table"},
    ],
}


def test_every_field_is_optional() -> None:
    settings = parse_settings(b"{}", "s.json")
    assert settings == EmissionsSettings()
    assert (settings.zone, settings.pue, settings.basis, settings.include_embodied) == (
        None,
        None,
        "Lifecycle",
        True,
    )
    assert settings.sources == (TableSource(type="table"),)
    assert settings.embodied.lifetime_seconds == 4 * 365 * 24 * 3600


def test_every_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("\ufeff" + json.dumps(ALL))
    settings = load_settings(tmp_path / "s.json")
    assert (settings.zone, settings.zones, settings.pue) == ("DE", {"eu-central-1": "DE"}, 1200)
    assert (settings.basis, settings.include_embodied) == ("Direct", False)
    assert (settings.embodied.lifetime_years, settings.embodied.lifetime_seconds) == (
        Decimal("4.5"),
        141_912_000,
    )
    assert settings.embodied.models == {"NVIDIA L40S": 150 * 10**9}
    file, fixed, table = settings.sources
    assert file == FileSource(type="file", name="tso", path=Path("/etc/greentrain/de.csv"), zone="DE")
    assert isinstance(fixed, FixedSource)
    assert (fixed.name, fixed.intensity, fixed.basis, fixed.zone) == ("fixed", 200_000, "Direct", None)
    assert table.name == "table"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["s.json line 1 is not JSON: Expecting value at column 1"]),
        ("{", ["s.json line 1 is not JSON"]),
        ("[]", ["s.json is not an object"]),
        ('{"zone": "DE", "zone": "FR"}', ["s.json has zone twice in one object"]),
        ('{"zone": "D E"}', ["s.json: zone: 'D E' is not valid: write a grid zone"]),
        ('{"zone": 49}', ["zone: 49 is not valid: write it in quotes"]),
        ('{"zones": {"eu": "D E"}}', ["zones.eu: 'D E' is not valid"]),
        ('{"zones": ["DE"]}', ["zones: a list is not valid"]),
        ('{"pue": 1.2}', ["pue: 1.2 is not valid: write it in quotes"]),
        (
            '{"pue": "0.9"}',
            ["pue: '0.9' is not valid: write power usage effectiveness, a number from 1.0 to 5.0"],
        ),
        (
            '{"basis": "lifecycle"}',
            ["basis: 'lifecycle' is not valid: input should be 'Lifecycle' or 'Direct'"],
        ),
        ('{"includeEmbodied": "maybe"}', ["includeEmbodied: 'maybe' is not valid"]),
        ('{"include_embodied": true}', []),
        ('{"source": []}', ["source: unknown field; did you mean sources?"]),
        ('{"foo": 1}', ["foo: unknown field; remove it"]),
        (
            '{"embodied": {"lifetimeYear": "4"}}',
            ["embodied.lifetimeYear: unknown field; did you mean lifetimeYears?"],
        ),
        (
            '{"embodied": {"lifetimeYears": "0"}}',
            ["embodied.lifetimeYears: '0' is not valid: write a number of years"],
        ),
        ('{"embodied": {"lifetimeYears": "four"}}', ["embodied.lifetimeYears: 'four' is not valid"]),
        (
            '{"embodied": {"lifetimeYears": 4}}',
            ["embodied.lifetimeYears: 4 is not valid: write it in quotes"],
        ),
        (
            '{"embodied": {"models": {"L40S": "150"}}}',
            ["embodied.models.L40S: '150' is not valid: write emissions"],
        ),
        (
            '{"embodied": {"models": {"NVIDIA": "1kgCO2e"}}}',
            ["embodied.models.NVIDIA: 'NVIDIA' is not valid"],
        ),
        ('{"sources": []}', ["sources: is empty: leave it out"]),
        ('{"sources": [3]}', ["sources[0]: 3 is not valid: write an object in braces"]),
        ('{"sources": [{}]}', ["sources[0].type: a source without a type is not valid: write one of file"]),
        (
            '{"sources": [{"type": "http"}]}',
            ["sources[0].type: 'http' is not valid: write one of file, fixed, table"],
        ),
        ('{"sources": [{"type": "file"}]}', ["sources[0].path: is required"]),
        (
            '{"sources": [{"type": "file", "path": "a", "zon": "DE"}]}',
            ["sources[0].zon: unknown field; did you mean zone?"],
        ),
        (
            '{"sources": [{"type": "file", "path": "a", "name": ""}]}',
            ["sources[0].name: '' is not valid: write a short name"],
        ),
        ('{"sources": [{"type": "fixed"}]}', ["sources[0].intensity: is required"]),
        (
            '{"sources": [{"type": "fixed", "intensity": "200"}]}',
            ["sources[0].intensity: '200' is not valid: write an intensity"],
        ),
        ('{"sources": [{"type": "table", "basis": "Direct"}]}', ["sources[0].basis: unknown field"]),
        ('{"sources": [{"type": "table"}, {"type": "table"}]}', ["sources: two are called 'table'"]),
        ('{"zone": "", "pue": "x", "foo": 1}', ["zone: ''", "pue: 'x'", "foo: unknown"]),
    ],
)
def test_each_problem_has_its_path_value_and_remedy(text: str, problems: list[str]) -> None:
    if not problems:
        parse_settings(text.encode(), "s.json")
        return
    with pytest.raises(SettingsError) as caught:
        parse_settings(text.encode(), "s.json")
    assert len(caught.value.problems) == len(problems)
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert expected in told
        assert told.startswith("s.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b" " * 1_000_001, "is larger than 1 MB"),
        (b"\xff", "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b'{"pue": ' + b"9" * 5000 + b"}", "is not JSON in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        load_settings(path)
