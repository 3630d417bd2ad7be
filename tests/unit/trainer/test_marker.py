"""A checkpoint directory belongs to one job."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greentrain_trainer.ending import EXIT_FAILED, Ending
from greentrain_trainer.marker import MARKER, check_marker, read_marker, write_marker

EITHER = pytest.mark.parametrize("act", [check_marker, write_marker])


def test_the_first_job_marks_the_directory_and_finds_its_mark_again(tmp_path: Path) -> None:
    directory = tmp_path / "team" / "digits"
    assert read_marker(directory) is None
    check_marker(directory, "uid-1")
    for _attempt in range(2):
        write_marker(directory, "uid-1")
        check_marker(directory, "uid-1")
    assert [path.name for path in directory.iterdir()] == [MARKER]


@EITHER
def test_a_stranger_is_refused_by_both_uids_and_the_mark_stays(
    tmp_path: Path, act: Callable[[Path, str], None]
) -> None:
    write_marker(tmp_path, "uid-1")
    with pytest.raises(Ending) as raised:
        act(tmp_path, "uid-2")
    assert raised.value.code == EXIT_FAILED
    assert "belongs to the job with UID uid-1, and this job's UID is uid-2" in raised.value.reason
    assert "spec.checkpoint.path" in raised.value.reason
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]
    assert read_marker(tmp_path) == "uid-1"


def test_of_many_jobs_that_begin_at_once_one_has_the_directory_and_the_others_are_told_whose_it_is(
    tmp_path: Path,
) -> None:
    jobs = [f"uid-{n}" for n in range(8)]
    for round_number in range(20):
        directory = tmp_path / str(round_number)
        together = threading.Barrier(len(jobs))
        told: dict[str, str] = {}

        def begin(uid: str, directory: Path, together: threading.Barrier, told: dict[str, str]) -> None:
            together.wait()
            try:
                write_marker(directory, uid)
            except Ending as ending:
                told[uid] = ending.reason

        threads = [threading.Thread(target=begin, args=(uid, directory, together, told)) for uid in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owner = read_marker(directory)
        assert set(told) == set(jobs) - {owner}
        assert all(f"belongs to the job with UID {owner}," in reason for reason in told.values())
        assert [path.name for path in directory.iterdir()] == [MARKER]


@EITHER
@pytest.mark.parametrize("content", [b"", b"\n", b"uid-1 uid-2\n", b"\x00\xff\xfe" * 30, b"x" * 254])
def test_a_damaged_marker_is_nobodys_and_the_message_says_what_to_do(
    tmp_path: Path, act: Callable[[Path, str], None], content: bytes
) -> None:
    (tmp_path / MARKER).write_bytes(content)
    with pytest.raises(Ending) as raised:
        act(tmp_path, "uid-1")
    assert raised.value.code == EXIT_FAILED
    assert raised.value.reason.startswith(f"The marker {tmp_path / MARKER} is damaged: ")
    assert "delete the marker, and the next attempt writes it again" in raised.value.reason
    assert "spec.checkpoint.path" in raised.value.reason
    assert (tmp_path / MARKER).read_bytes() == content


def test_a_marker_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / MARKER).mkdir()
    with pytest.raises(Ending) as raised:
        check_marker(tmp_path, "uid-1")
    assert raised.value.code == EXIT_FAILED
    assert f"The marker {tmp_path / MARKER} cannot be read (Is a directory)" in raised.value.reason


@contextlib.contextmanager
def _without_privileges(directory: Path) -> Iterator[None]:
    """As a user who may read the directory and not write it; root may do anything."""
    directory.chmod(0o555)
    root = os.geteuid() == 0
    # The way to it is private to the user who runs the tests; a working directory needs no way.
    before = Path.cwd()
    os.chdir(directory)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chdir(before)
        directory.chmod(0o755)


@pytest.mark.parametrize("marked", [False, True])
def test_a_directory_that_cannot_be_written_is_found_before_the_training_with_the_remedy(
    tmp_path: Path, marked: bool
) -> None:
    if marked:
        write_marker(tmp_path, "uid-1")
    here = Path()
    with _without_privileges(tmp_path):
        uid = os.geteuid()
        with pytest.raises(Ending) as raised:
            write_marker(here, "uid-1")
    assert raised.value.code == EXIT_FAILED
    assert raised.value.reason == (
        f"The checkpoint directory {here} cannot be written (Permission denied); see that the volume has space "
        f"and is writable for uid {uid}, for instance with fsGroup."
    )


def test_a_stranger_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    write_marker(tmp_path, "uid-1")
    with _without_privileges(tmp_path), pytest.raises(Ending, match="belongs to the job with UID uid-1"):
        write_marker(Path(), "uid-2")


def test_a_directory_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Ending) as raised:
        write_marker(tmp_path / "file" / "job", "uid-1")
    assert raised.value.code == EXIT_FAILED
    assert str(tmp_path / "file" / "job") in raised.value.reason
    assert "see that the volume has space and is writable" in raised.value.reason
