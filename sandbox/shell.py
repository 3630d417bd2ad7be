"""Runs other programs for the sandbox, so that every failure reads the same: what failed, its last lines, the remedy.

A command of ours either succeeds quietly (its output in a log file) or raises `SandboxError` with the lines a person
needs. Programs that are running are known here, so that a failing step can stop its neighbours by their process id.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

LAST_LINES = 15
"""How much of a log is shown when the program that wrote it fails."""


class SandboxError(Exception):
    """What went wrong in one sentence, with the remedy and, where there is one, the log to read.

    `str()` of it is the whole text for a person; `log` names the file its last lines were taken from.
    """

    def __init__(self, message: str, *, log: Path | None = None, remedy: str = "") -> None:
        self.message = message
        self.log = log
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        parts = [self.message]
        if self.log is not None:
            lines = read_last_lines(self.log)
            if lines:
                parts.append(f"  last lines of {self.log}:")
                parts.extend(f"    {line}" for line in lines)
        if self.remedy:
            parts.append(f"  remedy: {self.remedy}")
        return "\n".join(parts)


_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_stopping = threading.Event()


def read_last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The last `count` non-empty lines of a text file; none when it does not exist."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 64 * 1024))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Run a block to its end before SIGTERM, SIGHUP or SIGINT are answered; their handlers run after it.

    For a block that starts a program and keeps it: a handler that raises in between would leave a program that runs and
    that nothing knows of. Only the main thread answers signals, so elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in handlers.items():
            # One that is ignored stays so: the programs started here inherit that (nohup).
            if handler is not signal.SIG_IGN:
                signal.signal(number, keep)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in arrived:
            signal.raise_signal(each)


def stop_running() -> None:
    """Terminate every program that `run` is waiting for, with its children, and let no new one start."""
    _stopping.set()
    with _lock:
        programs = list(_running)
    for program in programs:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(program.pid, signal.SIGTERM)


def check_going() -> None:
    """Give up waiting for something where another step has failed or the user has interrupted.

    Raises:
        SandboxError: that is so.
    """
    if _stopping.is_set():
        raise SandboxError("Given up because another step failed or was interrupted.")


def allow_running() -> None:
    """Let `run` start programs again after `stop_running`."""
    _stopping.clear()


def _with_system_folders(environ: Mapping[str, str]) -> dict[str, str]:
    # A root shell got by plain `su` lacks the sbin folders, where Debian keeps ip's and iptables' like.
    present = environ.get("PATH", "").split(os.pathsep)
    lacking = [folder for folder in SYSTEM_FOLDERS if folder not in present]
    return {**environ, "PATH": os.pathsep.join([*filter(None, present), *lacking])}


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    remedy: str = "",
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return what it printed; its own process group, so that it can be stopped whole.

    With `log`, standard output and errors are appended there and the returned text is empty. `timeout` is in seconds.

    Raises:
        SandboxError: it could not be started, took longer than `timeout`, or ended with another code than 0 (only
            when `check`).
    """
    words = [str(word) for word in argv]
    if _stopping.is_set():
        raise SandboxError(f"«{words[0]}» was not started because another step failed.")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("a")) if log is not None else subprocess.PIPE
        program: subprocess.Popen[str] | None = None
        try:
            with hold_signals():
                program = subprocess.Popen(
                    words,
                    cwd=cwd,
                    env=_with_system_folders(os.environ if env is None else env),
                    stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                with _lock:
                    _running.add(program)
            if _stopping.is_set():
                # `stop_running` came between the look above and the entry in the list, and has not seen it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGTERM)
            text, _ = program.communicate(stdin, timeout=timeout)
        except BaseException as error:
            if program is None:
                if not isinstance(error, OSError):
                    raise
                raise SandboxError(
                    f"«{words[0]}» could not be started: {error.strerror}.",
                    remedy=remedy or "install it and run again",
                ) from error
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SandboxError(
                    f"«{' '.join(words)}» did not end within {error.timeout:.0f} s.", log=log, remedy=remedy
                ) from error
            raise
        finally:
            if program is not None:
                with _lock:
                    _running.discard(program)
    if check and program.returncode != 0:
        tail = (
            ""
            if log is not None
            else "".join(f"\n    {line}" for line in (text or "").splitlines()[-LAST_LINES:])
        )
        raise SandboxError(
            f"«{' '.join(words)}» ended with code {program.returncode}.{tail}", log=log, remedy=remedy
        )
    return text or ""
