"""A small parent process around the training, for what TensorFlow's process cannot do for itself.

Three things are out of a TensorFlow process's hands, each seen in experiments:

- While a distribution strategy waits for its peers, C++ code keeps the interpreter lock: no thread and no
  signal handler runs. And as process 1 of a container, default signal actions (an alarm's, SIGTERM's) do
  not apply: the kernel drops them (`sig_task_ignored` in Linux's kernel/signal.c). A peer that never
  comes would be waited for without end.
- Inside a collective with a frozen peer, a stop is never agreed.
- After a peer is lost, or when memory runs out, the process may die by SIGABRT or SIGKILL without a message.

So the process the kubelet starts forks before TensorFlow is imported. The child trains and reports
through a pipe; the parent forwards SIGTERM, enforces the deadlines, writes the termination message (its
only writer) and turns every end into an exit code of the contract.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import ValidationError

from greentrain.api.runtime import (
    EXIT_PEER_LOST,
    EXIT_STOPPED,
    TERMINATION_MESSAGE_MAX_BYTES,
    Progress,
    TerminationMessage,
)
from greentrain_trainer.ending import EXIT_FAILED, Ending
from greentrain_trainer.peers import find_silent, list_shortly

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
"""From Linux's `<linux/prctl.h>`."""

PROBE_SECONDS = 3.0
"""How long the other ranks are given to answer once they have been waited for in vain."""


class Pipe:
    """The child's end of the pipe to its parent: one JSON object per line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def joined(self) -> None:
        """The cluster stands and this process answers SIGTERM itself from now on."""
        self._write({"joined": True})

    def progress(self, progress: Progress) -> None:
        """What the termination message should be if nothing more is reported."""
        self._write({"progress": progress.model_dump(mode="json", by_alias=True)})

    def ending(self, reason: str) -> None:
        """Why this process is about to exit."""
        self._write({"reason": reason})

    def _write(self, message: Mapping[str, object]) -> None:
        # A short line on a blocking pipe whose reader does nothing else; the reader gone means that we
        # are about to be killed too (PR_SET_PDEATHSIG).
        try:
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            log.warning("the parent process is gone")


@dataclass
class _Reported:
    """What the child has reported so far."""

    joined: bool = False
    progress: Progress | None = None
    reason: str | None = None

    unread: bytes = b""
    """The beginning of a line whose end has not come."""

    def take(self, chunk: bytes) -> None:
        """The next bytes from the pipe."""
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        for line in lines:
            self._read(line)

    def _read(self, line: bytes) -> None:
        message = json.loads(line)
        self.joined = self.joined or message.get("joined", False)
        self.reason = message.get("reason", self.reason)
        if "progress" in message:
            self.progress = Progress.model_validate(message["progress"])


def build_termination_message(progress: Progress, reason: str) -> str:
    """The JSON for the kubelet, within `TERMINATION_MESSAGE_MAX_BYTES`.

    Too much is cut where it hurts least: the reason first, then the metrics.
    """
    fields = progress.model_dump(by_alias=True)
    reason = " ".join(reason.split()) or "no reason was given"
    for length, drop in (
        (1024, set[str]()),
        (300, set[str]()),
        (300, {"metrics"}),
        (200, {"metrics", "modelPath"}),
    ):
        kept = {name: value for name, value in fields.items() if name not in drop}
        shown = reason if len(reason) <= length else f"{reason[: length - 1]}…"
        message = TerminationMessage.model_validate({**kept, "reason": shown})
        text = message.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= TERMINATION_MESSAGE_MAX_BYTES:
            break
    return text


def write_termination_message(path: Path, text: str) -> None:
    """Write it where the kubelet looks; a path that cannot be written is logged and changes nothing else."""
    try:
        # Not renamed into place: the kubelet mounts this very file.
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("no termination message at %s (%s): %s", path, error.strerror or error, text)


def grace_margin(grace_period_seconds: float) -> float:
    """Seconds kept back of the grace period to write the message and end before SIGKILL: a third, two at most.

    To end takes up to a second on a busy machine, however short the period is.
    """
    return min(2.0, grace_period_seconds / 3)


def exit_now(code: int) -> NoReturn:
    """Flush and leave without the interpreter's teardown.

    TensorFlow's own teardown after a lost peer aborts ("double free") or hangs for ten seconds.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _become_child(parent: int) -> None:
    # Die with the parent: a training without supervision would go on using its GPU.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        exit_now(EXIT_FAILED)
    # Ctrl-C reaches the whole foreground group; the parent turns it into one agreed stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _child(train: Callable[[Pipe], Ending], pipe: Pipe) -> NoReturn:
    try:
        ending = train(pipe)
    except Ending as raised:
        ending = raised
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else EXIT_FAILED
        ending = Ending(code, f"The program left with exit code {code}.")
    except BaseException as error:
        log.exception("the program failed")
        ending = Ending(EXIT_FAILED, f"{type(error).__name__}: {error}")
    pipe.ending(ending.reason)
    exit_now(ending.code)


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass
class _Process:
    """The training process as its parent sees it."""

    waker: socket.socket
    wakened: socket.socket
    """Each signal wakes the first by a byte into the second."""
    identity: int = 0
    reader: int = -1
    """The parent's end of the pipe."""
    asked_to_stop: bool = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note a request to stop; that a child has ended is seen elsewhere."""
        self.asked_to_stop = self.asked_to_stop or number != signal.SIGCHLD


def _start(train: Callable[[Pipe], Ending]) -> _Process:
    """Fork the process that trains; from then on signals are noted and wake the parent."""
    reader, writer = os.pipe()
    waker, wakened = socket.socketpair()
    for each in (waker, wakened):
        each.setblocking(False)
    process = _Process(waker, wakened, reader=reader)
    signal.set_wakeup_fd(wakened.fileno())
    for number in _SIGNALS:
        signal.signal(number, process.on_signal)
    # Between fork and the child's own settings no signal may reach the parent's handlers in the child.
    # What was blocked since `__main__` arrives here in the parent: a child inherits no pending signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process.identity = os.fork()
    if process.identity == 0:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        waker.close()
        wakened.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _become_child(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _child(train, Pipe(writer))
    os.close(writer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return process


def _watch(
    process: _Process,
    reported: _Reported,
    *,
    peers: Sequence[str],
    start_timeout_seconds: float,
    grace_period_seconds: float,
) -> tuple[int, Ending | None]:
    """Read what the child reports and enforce its deadlines until it has ended: its wait status, and our verdict where we ended it."""
    started = time.monotonic()
    stop_deadline: float | None = None
    verdict: Ending | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(process.reader, selectors.EVENT_READ)
        selector.register(process.waker, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            deadlines = [stop_deadline] if stop_deadline is not None else []
            if peers and not reported.joined:
                deadlines.append(started + start_timeout_seconds)
            timeout = max(0.0, min(deadlines) - now) if deadlines else None
            for key, _events in selector.select(timeout):
                if key.fileobj is process.waker:
                    process.waker.recv(4096)
                    continue
                chunk = os.read(process.reader, 65536)
                if not chunk:
                    selector.unregister(process.reader)
                reported.take(chunk)
            ended, status = os.waitpid(process.identity, os.WNOHANG)
            if ended:
                return status, verdict
            now = time.monotonic()
            if verdict is not None:
                continue
            if process.asked_to_stop and stop_deadline is None:
                if reported.joined:
                    # Asked first and logged then: a log that is not read must not delay the stop.
                    os.kill(process.identity, signal.SIGTERM)
                    stop_deadline = now + grace_period_seconds - grace_margin(grace_period_seconds)
                    log.info("asked to stop; all workers stop after a common step")
                else:
                    verdict = Ending(EXIT_STOPPED, "Stopped on request before training began.")
            elif stop_deadline is not None and now >= stop_deadline:
                verdict = Ending(EXIT_STOPPED, _explain_overdue_stop(reported.progress, grace_period_seconds))
            elif peers and not reported.joined and now >= started + start_timeout_seconds:
                verdict = Ending(EXIT_PEER_LOST, _explain_absence(peers, now - started))
            if verdict is not None:
                os.kill(process.identity, signal.SIGKILL)


def supervise(
    train: Callable[[Pipe], Ending],
    *,
    total_steps: int | None,
    peers: Sequence[str],
    start_timeout_seconds: float,
    grace_period_seconds: float,
    termination_log: Path,
) -> int:
    """Run `train` in a child process to its end, write the termination message, return the exit code.

    `peers` are the addresses (`host:port`) of the other ranks; where there are any, joining may take
    `start_timeout_seconds` at most. Must be called before TensorFlow or any thread is started.
    """
    process, reported = _start(train), _Reported()
    status, verdict = _watch(
        process,
        reported,
        peers=peers,
        start_timeout_seconds=start_timeout_seconds,
        grace_period_seconds=grace_period_seconds,
    )
    # Nothing can change the verdict now, and the interpreter puts default signal actions back as it ends.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    while chunk := _drain(process.reader):
        reported.take(chunk)
    verdict = verdict or _conclude(os.waitstatus_to_exitcode(status), reported.reason)
    log.info("%s (exit code %d)", verdict.reason.rstrip(), verdict.code)
    try:
        text = build_termination_message(
            reported.progress or Progress(step=0, total_steps=total_steps), verdict.reason
        )
    except ValidationError as error:
        log.warning("no termination message can be made: %s", error)
    else:
        write_termination_message(termination_log, text)
    return verdict.code


def _conclude(code: int, reason: str | None) -> Ending:
    """How a child ended that was left alone: by an exit code, or (negative) by a signal."""
    if code < 0:
        code = 128 - code
        reason = (
            f"The training process was ended by {signal.Signals(code - 128).name}"
            f"{' (often: out of memory)' if code == 137 else ''}."
        )
    return Ending(code, reason or f"The program left with exit code {code}.")


def _explain_absence(peers: Sequence[str], waited_seconds: float) -> str:
    silent = find_silent(peers, PROBE_SECONDS)
    who = f"no answer from {list_shortly(silent)}" if silent else "all answer now, so it was for lack of time"
    return f"Not all workers joined within {waited_seconds:.0f} s: {who}."


def _explain_overdue_stop(progress: Progress | None, grace_period_seconds: float) -> str:
    checkpoint = progress.checkpoint if progress is not None else None
    if progress is not None and checkpoint is not None and checkpoint.step == progress.total_steps:
        return (
            f"Stopped on request after all {checkpoint.step} steps were trained and saved, but the grace period of "
            f"{grace_period_seconds:g} s was over before the model was evaluated and saved; another attempt does that."
        )
    lost = (
        f"work since the checkpoint of step {checkpoint.step} is lost"
        if checkpoint is not None
        else "nothing was saved in this attempt"
    )
    return (
        f"Stopped on request, but no common stop was reached within the grace period of "
        f"{grace_period_seconds:g} s; {lost}."
    )


def _drain(reader: int) -> bytes:
    """What is left in the pipe; a grandchild may keep its other end open, so never wait for its close."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""
