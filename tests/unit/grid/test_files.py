"""A file is read again when it changed, and what became bad keeps its last good values."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from greentrain import quantities
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.grid.formats.series import MAX_BYTES
from greentrain.grid.sources.file import File

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
GOOD = "time,intensity\n2026-01-01T00:00:00Z,200\n2026-01-01T01:00:00Z,300\n"
BETTER = "time,intensity\n2026-01-01T00:00:00Z,250\n2026-01-01T01:00:00Z,300\n"
ZONED = "zone,time,intensity\nDE,2026-01-01T00:00:00Z,200\nFR,2026-01-01T00:00:00Z,50\n"


def now(file: File, zone: str = "DE") -> int | str:
    found = file.values.at(zone, "Lifecycle", START)
    return found.milligrams if isinstance(found, Intensity) else found.reason


async def problems(file: File) -> tuple[str, ...]:
    return (await file.refresh()).problems


def mount(folder: Path, version: str, text: str) -> Path:
    """A ConfigMap as the kubelet mounts it: file → ..data → a folder of this version, exchanged at once."""
    (folder / version).mkdir(parents=True)
    (folder / version / "de.csv").write_text(text)
    (folder / "..new").symlink_to(version)
    (folder / "..new").rename(folder / "..data")
    link = folder / "de.csv"
    if not link.is_symlink():
        link.symlink_to("..data/de.csv")
    return link


def test_before_it_was_read_it_has_nothing(tmp_path: Path) -> None:
    file = File("tso", tmp_path / "de.csv", "Lifecycle", "DE")
    assert now(file) == f"tso could not be read: correct {tmp_path}/de.csv"
    assert (file.values.serves("DE"), file.values.serves("FR")) == (True, False)


async def test_a_mounted_config_map_is_read_again_when_it_is_exchanged(tmp_path: Path) -> None:
    file = File("tso", mount(tmp_path, "..v1", GOOD), "Lifecycle", "DE")
    assert (await problems(file), now(file)) == ((), 200_000)
    # Same size and same time: only the file at the end of the links is another one.
    stamp = (tmp_path / "..v1/de.csv").stat().st_mtime_ns
    mount(tmp_path, "..v2", BETTER)
    os.utime(tmp_path / "..v2/de.csv", ns=(stamp, stamp))
    assert (await problems(file), now(file)) == ((), 250_000)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "has no rows"),
        ("time,intensity\n2026-01-01T00:00:00Z,much\n", "line 2: intensity 'much' is no number"),
        (
            ZONED.replace("DE", "AT"),
            "has no rows of zone DE, only of AT, FR: set the source's zone to one of them",
        ),
        (" " * (MAX_BYTES + 1), "is larger than 20 MB"),
        (None, "cannot be read: No such file or directory"),
    ],
)
async def test_what_became_bad_keeps_its_last_good_values_and_says_so(
    tmp_path: Path, bad: str | None, words: str
) -> None:
    path = tmp_path / "de.csv"
    path.write_text(GOOD)
    file = File("tso", path, "Lifecycle", "DE")
    await file.refresh()
    path.unlink()
    if bad is not None:
        path.write_text(bad)
    for _ in range(2):
        (problem,) = await problems(file)
        assert problem.startswith(f"tso: {path}")
        assert words in problem
        assert problem.endswith("; the values read before are kept")
        assert now(file) == 200_000
    path.write_text(BETTER)
    assert (await problems(file), now(file)) == ((), 250_000)


async def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert await problems(File("tso", path, "Direct")) == (
            f"tso: {path} cannot be read: it is not a file",
        )


async def test_a_warning_is_told_while_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "de.csv"
    path.write_text(GOOD.replace("intensity\n", "intensity,note\n").replace("0\n", "0,x\n"))
    file = File("tso", path, "Lifecycle", "DE")
    told = (f"tso: {path} line 1: columns that are not read: note",)
    assert (await problems(file), await problems(file), now(file)) == (told, told, 200_000)


@pytest.mark.parametrize(
    ("text", "own", "zone", "expected"),
    [
        (GOOD, "DE", "DE", 200_000),
        (GOOD, "DE", "FR", "tso has values for DE only, not for FR"),
        (ZONED, None, "FR", 50_000),
        (ZONED, None, "AT", "tso has values for DE, FR only, not for AT"),
        (ZONED, "FR", "FR", 50_000),
        (ZONED, "FR", "DE", "tso has values for FR only, not for DE"),
    ],
)
async def test_a_file_is_for_the_zones_it_names_or_the_one_it_is_for(
    tmp_path: Path, text: str, own: str | None, zone: str, expected: int | str
) -> None:
    (tmp_path / "f.csv").write_text(text)
    file = File("tso", tmp_path / "f.csv", "Lifecycle", own)
    assert await problems(file) == ()
    assert now(file, zone) == expected
    assert file.values.serves(zone) is isinstance(expected, int)


async def test_a_file_without_zones_needs_one(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(GOOD)
    file = File("tso", tmp_path / "f.csv", "Lifecycle")
    (problem,) = await problems(file)
    assert problem.endswith(
        "has no column zone and its source names none: set the source's zone, or add the column"
    )
    assert not file.values.zones()


@pytest.mark.parametrize(
    ("hour", "milligrams", "begin", "end"),
    [(0.5, 200_000, 0, 1), (1.0, 300_000, 1, 2)],
)
async def test_a_value_is_of_its_period(
    tmp_path: Path, hour: float, milligrams: int, begin: int, end: int
) -> None:
    (tmp_path / "f.csv").write_text(GOOD)
    file = File("tso", tmp_path / "f.csv", "Lifecycle", "DE")
    await file.refresh()
    begins, ends = START + begin * 3600, START + end * 3600
    expected = Intensity(
        quantities.Intensity(milligrams), "tso", "Lifecycle", begins, ends, as_of=begins, step=3600.0
    )
    assert file.values.at("DE", "Lifecycle", START + hour * 3600) == expected


async def test_a_value_says_when_it_was_issued_and_so_whether_it_is_a_forecast(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(
        "time,intensity,issued\n2026-01-01T00:00:00Z,200,2026-01-01T00:20:00Z\n2026-01-01T00:15:00Z,210,\n"
        "2026-01-01T00:30:00Z,190,2026-01-01T00:20:00Z\n"
    )
    file = File("tso", tmp_path / "f.csv", "Lifecycle", "DE")
    assert await problems(file) == ()
    found = [file.values.at("DE", "Lifecycle", START + minutes * 60) for minutes in (1, 16, 31)]
    assert [(v.milligrams, v.step, v.issued, v.is_forecast) for v in found if isinstance(v, Intensity)] == [
        (200_000, 900.0, START + 1200, False),
        (210_000, 900.0, None, False),
        (190_000, 900.0, START + 1200, True),
    ]


@pytest.mark.parametrize(
    ("basis", "hour", "words"),
    [
        ("Lifecycle", -1.0, "tso has no row for DE before 2026-01-01T00:00:00Z: add it to the file"),
        ("Lifecycle", 2.0, "tso has no row for DE from 2026-01-01T02:00:00Z: add it to the file"),
        ("Direct", 0.0, "tso has Lifecycle values only"),
    ],
)
async def test_outside_its_rows_and_in_the_other_basis_it_has_nothing(
    tmp_path: Path, basis: str, hour: float, words: str
) -> None:
    (tmp_path / "f.csv").write_text(GOOD)
    file = File("tso", tmp_path / "f.csv", "Lifecycle", "DE")
    await file.refresh()
    found = file.values.at("DE", "Direct" if basis == "Direct" else "Lifecycle", START + hour * 3600)
    assert isinstance(found, Absent)
    assert found.covers(START + hour * 3600)
    assert found.reason.startswith(words)
