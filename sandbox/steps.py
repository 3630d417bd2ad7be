"""Runs named steps side by side, so that setting a machine up uses both cores and always says what it is doing.

Each step names what it needs; whatever has all it needs runs in its own thread. The start line says how long the step
usually takes, the end line how long it took; a long one is heard of twice a minute. The first failure stops the rest.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TextIO

from sandbox import shell
from sandbox.shell import SandboxError

STILL_RUNNING_EVERY = 30.0
"""Seconds between two lines about a step that takes long."""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    `about` completes «▸ …» («building Kubernetes 1.37.2 from Go modules»); `usually` is its usual duration in
    seconds (0 for «at once», which is not printed); `run` does it and may return a few words for the closing line
    («cached»); `needs` names the steps that must have ended well before.
    """

    name: str
    about: str
    usually: float
    run: Callable[[], str | None]
    needs: tuple[str, ...] = ()


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `12 s`, `6 min 52 s`, `7 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def decide_order(steps: Sequence[Step]) -> list[Step]:
    """The steps in an order in which each follows all it needs; given order where nothing forces another.

    Raises:
        ValueError: two steps share a name, one needs an unknown step, or steps need each other in a circle.
    """
    known: dict[str, Step] = {}
    for step in steps:
        if step.name in known:
            raise ValueError(f"two steps are named {step.name!r}; give one of them another name")
        known[step.name] = step
    for step in steps:
        for need in step.needs:
            if need not in known:
                raise ValueError(
                    f"step {step.name!r} needs {need!r}, which is not among the steps; add it or drop the need"
                )
    ordered: list[Step] = []
    done: set[str] = set()
    while len(ordered) < len(steps):
        ready = [s for s in steps if s.name not in done and all(need in done for need in s.needs)]
        if not ready:
            circle = ", ".join(s.name for s in steps if s.name not in done)
            raise ValueError(f"these steps need each other in a circle: {circle}; drop one need")
        ordered.extend(ready)
        done.update(s.name for s in ready)
    return ordered


class _Voice:
    """Prints whole lines from several threads, in the order they come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


class _Nesting:
    """Counts runs within runs: a step may run steps, and only the outermost end lets programs be started again.

    Keeps the first failure of them all: what a step says whose programs were stopped for it is no cause.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._cause: BaseException | None = None
        self._lock = threading.Lock()

    def blame(self, error: BaseException) -> BaseException:
        """The failure that came first: this one, or the one it followed from."""
        with self._lock:
            if self._cause is None:
                self._cause = error
            return self._cause

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._cause = None
                shell.allow_running()


_nesting = _Nesting()


def run_steps(
    steps: Sequence[Step], *, stream: TextIO | None = None, still_every: float = STILL_RUNNING_EVERY
) -> None:
    """Run all steps, side by side where their needs allow, and print what happens to `stream` (standard output).

    Raises:
        SandboxError: the first step that failed, after the others were stopped; any other exception of a step
            likewise, as it is.
        ValueError: the steps cannot be ordered.
    """
    ordered = decide_order(steps)
    voice = _Voice(stream if stream is not None else sys.stdout)
    with _nesting:
        _run_ordered(ordered, voice, still_every)


def _run_ordered(ordered: Sequence[Step], voice: _Voice, still_every: float) -> None:
    waiting = list(ordered)
    done: set[str] = set()
    running: dict[Future[str | None], tuple[Step, float]] = {}
    heard: dict[str, float] = {}
    failure: BaseException | None = None
    with ThreadPoolExecutor(max_workers=max(1, len(ordered)), thread_name_prefix="step") as pool:
        try:
            while running or (waiting and failure is None):
                if failure is None:
                    for step in [s for s in waiting if all(need in done for need in s.needs)]:
                        waiting.remove(step)
                        usually = f" (about {format_duration(step.usually)})" if step.usually else ""
                        voice.say(f"▸ {step.about}{usually}")
                        now = time.monotonic()
                        heard[step.name] = now
                        running[pool.submit(step.run)] = (step, now)
                ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                now = time.monotonic()
                for future in ended:
                    step, began = running.pop(future)
                    error = future.exception()
                    took = format_duration(now - began)
                    if error is None:
                        done.add(step.name)
                        said = future.result()
                        voice.say(f"✓ {step.about}: {f'{said}, ' if said else ''}{took}")
                    elif failure is None:
                        failure = _nesting.blame(error)
                        voice.say(f"✗ {step.about}: failed after {took}")
                        shell.stop_running()
                    else:
                        voice.say(f"✗ {step.about}: stopped after {took}")
                for step, began in running.values():
                    if now - heard[step.name] >= still_every:
                        heard[step.name] = now
                        of = f" of about {format_duration(step.usually)}" if step.usually else ""
                        voice.say(f"… {step.about}: {format_duration(now - began)}{of}")
        except BaseException:
            shell.stop_running()
            raise
    if failure is not None:
        raise failure


__all__ = ["SandboxError", "Step", "decide_order", "format_duration", "run_steps"]
