"""A failing program is told in one sentence with its last words and the remedy."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from sandbox import shell
from sandbox.shell import SandboxError, hold_signals, read_last_lines


def test_what_a_program_printed_is_returned() -> None:
    assert shell.run(["sh", "-c", "echo out; echo err >&2"]) == "out\nerr\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sh", "-c", "echo the disk is full; exit 3"], r"ended with code 3\.\n    the disk is full"),
        (["/nowhere/program"], "could not be started: No such file"),
    ],
)
def test_a_failure_says_what_and_why(command: list[str], said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        shell.run(command)


def test_a_failure_with_a_log_shows_its_last_lines_and_the_remedy(tmp_path: Path) -> None:
    log = tmp_path / "make.log"
    with pytest.raises(SandboxError) as caught:
        shell.run(["sh", "-c", "seq 100; exit 2"], log=log, remedy="buy a disk")
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  last lines of {log}:"
    assert lines[2:-1] == [f"    {number}" for number in range(86, 101)]
    assert lines[-1] == "  remedy: buy a disk"


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(SandboxError, match="did not end within 0 s"):
        shell.run(["sleep", "60"], timeout=0.1)


@pytest.mark.parametrize(("text", "lines"), [("", []), ("a\n\nb\n", ["a", "b"]), ("a\nb\nc\n", ["b", "c"])])
def test_the_last_lines_of_a_log_skip_empty_ones(tmp_path: Path, text: str, lines: list[str]) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert read_last_lines(log, 2) == lines


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_last_lines(tmp_path / "none") == []


class StoppedError(Exception):
    """Raised by a handler."""


@pytest.fixture
def raises_on_sigterm() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("raises_on_sigterm")
def test_a_signal_is_answered_once_the_program_is_known() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with hold_signals():
            signal.raise_signal(signal.SIGTERM)
            started.append(subprocess.Popen(["sh", "-c", "kill -TERM $$"]))

    with pytest.raises(StoppedError):
        start()
    (program,) = started
    assert program.wait() == -signal.SIGTERM, "what was started answers signals as ever"
    with pytest.raises(StoppedError):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("raises_on_sigterm")
def test_a_signal_is_answered_also_when_the_program_could_not_be_started() -> None:
    def start() -> None:
        with hold_signals():
            signal.raise_signal(signal.SIGTERM)
            subprocess.Popen(["/nowhere/program"])

    with pytest.raises(StoppedError) as raised:
        start()
    assert isinstance(raised.value.__context__, FileNotFoundError)


def test_a_signal_that_is_ignored_stays_ignored_by_what_is_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hold_signals():
            signal.raise_signal(signal.SIGHUP)
            shell.run(["sh", "-c", "kill -HUP $$"])
    finally:
        signal.signal(signal.SIGHUP, before)


def test_off_the_main_thread_a_program_runs_as_well() -> None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(shell.run(["echo", "here"])))
    thread.start()
    thread.join()
    assert said == ["here\n"]
