"""What must outlive a power cut is on the disk before anything counts on it: calls are seen from outside, in their order.

A file system may carry out a rename before it has written the file's content, and forget a rename whose folder was not
synced (`man 2 fsync`: "Calling fsync() does not necessarily ensure that the entry in the directory containing the file has
also reached disk"). No test in the process can see that; a library that is loaded before libc sees each call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from greentrain.agent.allowances import FILE as ALLOWANCES
from greentrain.agent.caps import FILE as CAPS
from greentrain.agent.journal import FILE, Journal
from greentrain_trainer.marker import MARKER, read_marker

WAIT_SECONDS = 60

STORE = """
import sys
from pathlib import Path
from greentrain.agent.journal import Journal
try:
    Journal(Path(sys.argv[1])).store(b"after", sys.argv[2])
except OSError as error:
    print(error.strerror)
"""

MARK = """
import sys
from pathlib import Path
from greentrain_trainer.marker import write_marker
write_marker(Path(sys.argv[1]), "uid-1")
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What notes the calls, compiled as the simulated cards are."""
    built = tmp_path_factory.mktemp("disk") / "calls.so"
    source = Path(__file__).with_name("calls.c")
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run(["gcc", *flags, "-o", built, source, "-ldl"], check=True, timeout=WAIT_SECONDS)
    return built


def run(library: Path, folder: Path, program: str, *words: str, refuses: str = "") -> tuple[list[str], str]:
    """The calls that a program makes below the folder, each once in a row, and what it says."""
    calls = folder.with_name(f"{folder.name}.calls")
    ran = subprocess.run(
        [sys.executable, "-c", program, folder, *words],
        env={
            **os.environ,
            "LD_PRELOAD": str(library),
            "DISK_FOLDER": str(folder),
            "DISK_CALLS": str(calls),
            "DISK_REFUSES": refuses,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    lines = calls.read_text().splitlines()
    calls.unlink()
    return [call for call, _ in groupby(lines)], ran.stdout


def journal_in(folder: Path, name: str) -> Journal:
    """A journal that holds something already."""
    folder.mkdir()
    journal = Journal(folder)
    journal.store(b"before", name)
    return journal


@pytest.mark.parametrize("name", [FILE, CAPS, ALLOWANCES])
def test_a_journal_is_on_the_disk_before_it_replaces_the_old_one_and_its_place_when_it_is_stored(
    library: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "journal"
    journal = journal_in(folder, name)
    partial = Path(name).with_suffix(".partial")
    calls, said = run(library, folder, STORE, name)
    assert calls == [f"write {partial}", f"fsync {partial}", f"rename {partial} {name}", "fsync ."]
    assert (said, journal.read(name)) == ("", b"after")


@pytest.mark.parametrize(
    ("refused", "holds"),
    [
        ("write caps.partial", b"before"),
        ("fsync caps.partial", b"before"),
        ("rename caps.partial caps.json", b"before"),
        ("fsync .", b"after"),
    ],
)
def test_a_disk_that_fails_is_raised_and_leaves_one_journal_whole(
    library: Path, tmp_path: Path, refused: str, holds: bytes
) -> None:
    folder = tmp_path / "journal"
    journal = journal_in(folder, CAPS)
    calls, said = run(library, folder, STORE, CAPS, refuses=refused)
    assert calls[-1] == refused, "and nothing follows"
    assert (said, journal.read(CAPS)) == ("Input/output error\n", holds)
    assert [path.name for path in folder.iterdir()] == [CAPS]


def test_a_checkpoint_directorys_mark_is_on_the_disk_before_it_is_in_its_place(
    library: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    calls, _ = run(library, folder, MARK)
    assert [call.partition(" ")[0] for call in calls] == ["write", "fsync", "link"]
    assert calls[-1].endswith(f" {MARKER}")
    assert calls[-1].split()[1] == calls[0].split()[1] == calls[1].split()[1]
    assert read_marker(folder) == "uid-1"
