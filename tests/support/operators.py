"""Operators as they are shipped: processes of their own, looked at from outside by /proc and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from sandbox.controlplane import ControlPlane
from sandbox.ports import find_free_ports

OPERATOR = "bench-operator"
"""Who the operator is at the API server, and in its audit log."""

START_SECONDS = 120
"""A start that takes longer is broken."""
LOOK_SECONDS = 0.05
"""How often a starting operator is looked at."""


class OperatorProcess:
    """One operator, all settings at their defaults but where it listens and what it watches."""

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        (port,) = find_free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._log = kubeconfig.with_name(f"operator-{port}.log")
        self._arguments = [f"--kubeconfig={kubeconfig}", f"--http-port={port}"]
        if namespace is not None:
            self._arguments.append(f"--namespace={namespace}")
        self._process: Process | None = None
        self._begun = 0.0

    async def start(self) -> None:
        """Start it, or start it again after `end`; returns at once."""
        self._begun = time.monotonic()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "greentrain.controller", *self._arguments, stderr=log
            )

    @property
    def url(self) -> str:
        """Where it serves health and metrics."""
        return self._url

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def until_ready(self) -> float:
        """Wait for /readyz to answer 200; how many seconds after its start that was."""

        def ready(status: int, _: str) -> bool:
            return status == 200

        return await self._until("/readyz", ready)

    async def read_metrics(self) -> str:
        """What it tells Prometheus."""
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.get(f"{self._url}/metrics") as answer,
        ):
            return await answer.text()

    async def until_passes(self, count: int) -> float:
        """Wait until so many passes have ended; how many seconds after its start that was."""

        def passed(_: int, text: str) -> bool:
            samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
            return sum(s.value for s in samples if s.name == "greentrain_passes_total") >= count

        return await self._until("/metrics", passed)

    async def _until(self, path: str, accept: Callable[[int, str], bool]) -> float:
        assert self._process is not None
        said = "nothing"
        async with aiohttp.ClientSession(trust_env=False) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(self._url + path) as answer:
                        said = await answer.text()
                        if accept(answer.status, said):
                            return time.monotonic() - self._begun
                if self._process.returncode is not None:
                    words = self._log.read_text()[-2000:]
                    code = self._process.returncode
                    raise RuntimeError(f"The operator ended with code {code}; its last words:\n{words}")
                if time.monotonic() - self._begun > START_SECONDS:
                    raise RuntimeError(f"{path} is not yet what it should be after {START_SECONDS} s: {said}")
                await asyncio.sleep(LOOK_SECONDS)

    def cpu_seconds(self) -> float:
        """CPU time it has used so far, user and system (proc(5), /proc/pid/stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Its resident set size, in MiB."""
        return self._memory("VmRSS")

    def peak_mib(self) -> float:
        """Its largest resident set size since its start, or since `forget_peak`, in MiB (proc(5), VmHWM)."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        """Begin anew with `peak_mib` at what is resident now (proc(5), /proc/pid/clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) / 1024

    def errors(self) -> list[str]:
        """The lines of its log that tell of an error: figures of a run that has any are worth little."""
        return [line for line in self._log.read_text().splitlines() if '"level": "ERROR"' in line]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for its end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        await self._process.wait()


@contextlib.asynccontextmanager
async def operator(plane: ControlPlane, namespace: str | None = None) -> AsyncIterator[OperatorProcess]:
    """An operator process with every right, for the length of the block."""
    running = OperatorProcess(plane.build_kubeconfig(OPERATOR, ["system:masters"]), namespace)
    await running.start()
    try:
        yield running
        for line in running.errors():
            print(line, file=sys.stderr)
    finally:
        await running.end()


@dataclass
class Answers:
    """How soon an operator has answered while it was asked; a blocked event loop answers nothing."""

    longest: float = 0.0
    """Seconds."""
    count: int = 0
    failed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def asked(url: str, *, seconds: float = LOOK_SECONDS) -> Iterator[Answers]:
    """Ask `GET /healthz` again and again for the length of the block, from a thread of its own."""
    answers, over = Answers(), threading.Event()

    def ask() -> None:
        while not over.wait(seconds):
            begun = time.monotonic()
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=START_SECONDS) as answer:
                    answer.read()
            except OSError as error:
                answers.failed.append(repr(error))
            answers.longest = max(answers.longest, time.monotonic() - begun)
            answers.count += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
