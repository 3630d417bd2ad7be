"""One folder on the node's disk: whole or not at all, and one agent's at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greentrain.agent.caps import FILE as CAPS
from greentrain.agent.journal import FILE, Journal, TakenError, begin
from greentrain.energy.account import NodeAccount
from greentrain.quantities import Millijoules

WAIT_SECONDS = 30


def write_account(folder: Path, journal_id: str = "j", *, pods: int = 1) -> NodeAccount:
    account = NodeAccount(journal_id=journal_id)
    for i in range(pods):
        pod = account.open(f"team/p{i}/u{i}", namespace="team", name=f"p{i}", uid=f"u{i}")
        pod.add(Millijoules(1234 + i), begin=1_700_000_000.0, end=1_700_000_001.5, estimated=Millijoules(7))
        pod.doubt_squared = 0.1 + i
    folder.mkdir(exist_ok=True)
    Journal(folder).store(account.to_json())
    return account


def test_what_was_stored_is_loaded_again(tmp_path: Path) -> None:
    stored = write_account(tmp_path, pods=3)
    assert Journal(tmp_path).load() == (stored, None)
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names


def test_where_nothing_was_stored_an_account_begins_with_an_identity_of_its_own(tmp_path: Path) -> None:
    (first, problem), (second, _) = Journal(tmp_path).load(), Journal(tmp_path).load()
    assert problem is None
    assert first.journal_id != second.journal_id
    assert not first.pods
    assert begin().journal_id != begin().journal_id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 512,
        b"\xff\xfe",
        b'{"journal_id": "j", "pods": {"a": ',
        b"[]",
        b'{"journal_id": 7}',
        b'{"journal_id": "j", "idle": "much"}',
    ],
    ids=["empty", "zeros", "no text", "half", "a list", "a number for a name", "a word for a number"],
)
def test_a_damaged_file_is_put_aside_and_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    account, problem = Journal(tmp_path).load()
    assert not account.pods
    assert problem is not None
    assert str(tmp_path / FILE) in problem
    assert "was put aside as account.damaged" in problem
    assert (tmp_path / "account.damaged").read_bytes() == content
    assert Journal(tmp_path).load()[1] is None


def test_what_a_newer_agent_wrote_beside_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"journal_id": "j", "idle": 5, "caps": {"GPU-1": 1}}')
    account, problem = Journal(tmp_path).load()
    assert (account.journal_id, account.idle, problem) == ("j", 5, None)


def test_a_write_that_was_cut_off_does_not_replace_the_old_one(tmp_path: Path) -> None:
    stored = write_account(tmp_path)
    (tmp_path / "account.partial").write_bytes(b'{"journal_id": "half')
    assert Journal(tmp_path).load() == (stored, None)
    again = write_account(tmp_path, "k")
    assert Journal(tmp_path).load() == (again, None)
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names


def test_each_file_is_stored_read_and_put_aside_without_the_other(tmp_path: Path) -> None:
    journal, stored = Journal(tmp_path), write_account(tmp_path)
    assert journal.read(CAPS) is None
    journal.store(b"first", CAPS)
    journal.store(b"second", CAPS)
    assert (journal.read(CAPS), journal.load()) == (b"second", (stored, None))
    again = write_account(tmp_path, "k")
    assert (journal.read(CAPS), journal.load()) == (b"second", (again, None))
    assert journal.put_aside(CAPS) == "caps.damaged"
    assert (journal.read(CAPS), journal.load()) == (None, (again, None))
    assert (tmp_path / "caps.damaged").read_bytes() == b"second"
    journal.store(b"third", CAPS)
    assert journal.put_aside(CAPS) == "caps.damaged"
    assert (tmp_path / "caps.damaged").read_bytes() == b"third"


def test_a_full_disk_leaves_the_caps_of_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.store(b"before", CAPS)
    partial = (tmp_path / CAPS).with_suffix(".partial")
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        journal.store(b"after", CAPS)
    assert os.listdir(tmp_path) == [CAPS]  # noqa: PTH208 - names
    assert journal.read(CAPS) == b"before"
    journal.store(b"after", CAPS)
    assert journal.read(CAPS) == b"after"


FULL = """
import resource, signal, sys
from pathlib import Path
from greentrain.agent.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
journal = Journal(Path(sys.argv[1]))
try:
    journal.store(b"x" * 100_000)
except OSError as error:
    print(error.strerror)
journal.store(b'{"journal_id": "small"}') if len(sys.argv) > 2 else None
"""


@pytest.mark.parametrize("more", [[], ["again"]], ids=["once", "then a small one fits"])
def test_a_full_disk_is_raised_and_leaves_the_old_file_and_no_other(tmp_path: Path, more: list[str]) -> None:
    stored = write_account(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path, *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert ran.stdout == "File too large\n"
    assert Journal(tmp_path).load()[0].journal_id == ("small" if more else stored.journal_id)
    assert os.listdir(tmp_path) == [FILE]  # noqa: PTH208 - names


@pytest.mark.parametrize(
    "place", ["file", "file/below", "gone"], ids=["a file", "below a file", "a folder that was removed"]
)
def test_a_folder_that_cannot_be_written_is_raised(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / place)
    if place != "gone":
        with pytest.raises(OSError, match=r"exists|Not a directory"):
            journal.take()
        with pytest.raises(OSError, match="Not a directory"):
            journal.load()
    with pytest.raises(OSError, match=r"Not a directory|No such file"):
        journal.store(b"{}")
    journal.close()


HOLD = """
import sys, time
from pathlib import Path
from greentrain.agent.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.take()
print("taken", flush=True)
time.sleep(60)
"""


@contextmanager
def another_agent(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "taken\n"
            yield process
        finally:
            process.kill()


def test_one_agent_holds_the_journal_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    with another_agent(folder) as first:
        mine = Journal(folder)
        for _ in range(2):
            with pytest.raises(TakenError, match="one agent runs per node; this one waits"):
                mine.take()
        first.send_signal(signal.SIGKILL)
        first.wait(WAIT_SECONDS)
        mine.take()
        with pytest.raises(TakenError):
            Journal(folder).take()
        mine.close()
        mine.close()
        other = Journal(folder)
        other.take()
        other.close()


def test_programs_that_an_agent_starts_do_not_hold_its_lock(tmp_path: Path) -> None:
    mine = Journal(tmp_path)
    mine.take()
    with subprocess.Popen(["sleep", "60"]) as child:
        mine.close()
        other = Journal(tmp_path)
        other.take()
        other.close()
        child.kill()
