"""The node's agent beside CodeCarbon and pollers on Zeus: what each costs, and how right each is, on the same cards.

All read the same simulated cards at the same rate and time, while loads step at random; the exact meter is the
judge. The agent does more (holders from a kubelet's socket, a journal, reports to a real kube-apiserver). CPU time and
memory are the kernel's figures of each process (/proc/PID/stat, status) after a warm-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sandbox.binaries import gather_binaries
from sandbox.cache import read_cache_directory
from sandbox.controlplane import ControlPlane
from sandbox.ports import find_free_ports
from sandbox.simgpu import cards as simulated
from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import Cards
from sandbox.simgpu.meter import Meter
from sandbox.simgpu.peers import apply_peers
from tests.bench.audit import AuditLog
from tests.contract.kubelet.fakes import build_container, build_devices, start_kubelet
from tests.contract.kubelet.wire import write
from tests.support.api import Server

NODE = "bench-node"
AGENT = "bench-agent"
OURS = "greentrain's agent"
COUNTS = (8, 16)
WARM_UP_SECONDS = 10.0
SECONDS = float(os.environ.get("BENCH_SECONDS", "60"))
STEP_SECONDS = 2.0
NODE_POWER = f"/apis/greentrain.dev/v1alpha1/nodepowers/{NODE}"

CODECARBON = """
import json, sys, time
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(
    country_iso_code="DEU", measure_power_secs=1, save_to_file=False, log_level="critical", allow_multiple_runs=True
)
tracker.start()
print("ready", flush=True)
for line in sys.stdin:
    tracker._measure_power_and_energy()
    print(json.dumps(tracker._total_gpu_energy.kWh * 3.6e6), flush=True)
"""
"""CodeCarbon as its users run it, once a second; asked for the joules of its GPUs at any moment."""

ZEUS_LOOP = """
import json, sys, threading, time
from zeus.device import get_gpus
gpus = get_gpus()
count = len(gpus)
first = [gpus.get_total_energy_consumption(i) for i in range(count)]
def poll():
    while True:
        for i in range(count):
            gpus.get_total_energy_consumption(i)
        time.sleep(1)
threading.Thread(target=poll, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(sum(gpus.get_total_energy_consumption(i) - first[i] for i in range(count)) / 1000), flush=True)
"""
"""The least a poller can be: Zeus's device layer in a loop that keeps nothing."""

ZEUS = """
import json, sys, time
from zeus.monitor.power import PowerMonitor
if __name__ == "__main__":
    monitor = PowerMonitor(update_period=1.0)
    begun = time.time()
    print("ready", flush=True)
    for line in sys.stdin:
        told = monitor.get_energy(begun, time.time()) or {}
        print(json.dumps(sum(told.values())), flush=True)
"""
"""Zeus's own poller: power once a second in a process of its own, added up when asked."""


def find_tree(pid: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [pid]
    for one in tree:
        tree += [child for child, parent in parents.items() if parent == one]
    return tree


def read_cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    ticks = 0
    for one in find_tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read_memory_mib(pid: int) -> float:
    """Resident memory of a process, and what its children have beside it (their proportional part)."""
    first, *children = find_tree(pid)
    lines = Path(f"/proc/{first}/status").read_text().splitlines()
    size = int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
    for child in children:
        rollup = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        size += int(next(line.split()[1] for line in rollup if line.startswith("Pss:")))
    return size / 1024


class Peer:
    """A program that says how many joules it has counted when it is asked."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self) -> float:
        """Joules so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()
        return float(json.loads(await self._process.stdout.readline()))


@contextlib.asynccontextmanager
async def started(
    *command: str | Path, environ: dict[str, str], talks: bool = True
) -> AsyncIterator[Process]:
    """A process that is ended with the block; one that talks has said that it is ready."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdin=PIPE, stdout=PIPE if talks else None, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        if talks:
            assert process.stdout is not None
            while (line := await process.stdout.readline()) != b"ready\n":
                assert line, f"{command[0]} ended by itself"
        yield process
    finally:
        # Its children too: they hold the pipe whose end is waited for.
        for pid in find_tree(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


def build_listing(uuids: list[str]) -> bytes:
    """One pod for each card."""
    return write(
        *(
            (
                1,
                write(
                    (1, f"pod-{i}"),
                    (2, "team"),
                    (3, build_container("c", build_devices("nvidia.com/gpu", u))),
                ),
            )
            for i, u in enumerate(uuids)
        )
    )


async def step_loads(cards: Cards, chance: random.Random) -> None:
    """Loads that change all the time, of one card or another."""
    while True:
        for card in cards:
            if chance.random() < 0.5:
                cards.set_load(card, chance.choice([0.0, 1.0, chance.random()]))
        await asyncio.sleep(STEP_SECONDS)


def total(meter: Meter, count: int) -> float:
    """Joules of all cards, exactly."""
    meter.drain()
    return sum(sum(meter.read(card).values()) for card in range(count)) / 1e12


async def measure(count: int, plane: ControlPlane, server: Server, folder: Path) -> None:
    """One round with that many cards."""
    libraries, peers = apply_libraries(), apply_peers(read_cache_directory())
    audit = AuditLog(plane.audit_log)
    async with AsyncExitStack() as stack:
        cards = stack.enter_context(simulated.create(folder / f"state-{count}", ["A100"] * count))
        meter = Meter(cards)
        environ = {
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries.folder),
            "GREENTRAIN_SIMGPU_STATE": str(cards.path),
            "PATH": f"{libraries.programs}:{os.environ['PATH']}",
        }
        socket = folder / f"kubelet-{count}.sock"
        await stack.enter_async_context(
            start_kubelet(socket, build_listing([cards.read_card(c).uuid for c in cards]))
        )
        stepping = asyncio.create_task(step_loads(cards, random.Random(count)))
        stack.callback(stepping.cancel)
        (port,) = find_free_ports(1)
        agent = await stack.enter_async_context(
            started(
                *(sys.executable, "-m", "greentrain.agent", f"--node={NODE}-{count}"),
                *(f"--kubeconfig={plane.build_kubeconfig(AGENT, ['system:masters'])}", f"--http-port={port}"),
                *(f"--journal={folder / f'journal-{count}'}", f"--kubelet-socket={socket}"),
                environ=environ,
                talks=False,
            )
        )
        python = peers / "bin" / "python"
        carbon = Peer(await stack.enter_async_context(started(python, "-c", CODECARBON, environ=environ)))
        loop = Peer(await stack.enter_async_context(started(python, "-c", ZEUS_LOOP, environ=environ)))
        script = folder / "zeus_poller.py"  # its process imports the script again
        script.write_text(ZEUS)
        zeus = Peer(await stack.enter_async_context(started(python, script, environ=environ)))
        await asyncio.sleep(WARM_UP_SECONDS)

        async def read_agent() -> float:
            from aiohttp import ClientSession

            async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            return sum(
                float(x.split()[-1]) for x in lines if x.startswith("greentrain_gpu_energy_joules_total{")
            )

        programs: dict[str, tuple[int, Any]] = {
            OURS: (agent.pid, read_agent),
            "CodeCarbon": (carbon.pid, carbon.ask),
            "Zeus PowerMonitor": (zeus.pid, zeus.ask),
            "bare Zeus loop": (loop.pid, loop.ask),
        }
        begun = {}
        for name, (pid, ask) in programs.items():
            begun[name] = (time.monotonic(), read_cpu_seconds(pid), await ask(), total(meter, count))
        mark = audit.mark()
        await asyncio.sleep(SECONDS)
        print(
            f"{count} cards, {SECONDS:.0f} s: CPU of one core, resident memory, error against the exact meter"
        )
        costs = {}
        for name, (pid, ask) in programs.items():
            moment, cpu, joules, true = begun[name]
            told, exact = await ask() - joules, total(meter, count) - true
            share = (read_cpu_seconds(pid) - cpu) / (time.monotonic() - moment)
            costs[name] = share
            print(f"  {name:20} {share:7.2%} {read_memory_mib(pid):6.0f} MiB {(told - exact) / exact:+8.2%}")
        # A program that used no tick of the clock used less than one.
        least = 1 / os.sysconf("SC_CLK_TCK") / SECONDS
        ours = costs.pop(OURS)
        print(
            f"  {', '.join(f'ours / {name} {ours / max(cost, least):.1f}' for name, cost in costs.items())}"
        )
        writes = [e for e in audit.since(mark) if e.user == AGENT and e.written]
        body = await server.call("GET", f"{NODE_POWER}-{count}")
        size = len(json.dumps(body["status"], separators=(",", ":")))
        hourly = len(writes) * 3600 / SECONDS
        print(f"  NodePower: {hourly:.0f} writes and {hourly * size / 1024:.0f} KiB per node and hour")


async def main() -> None:
    """Measure with 8 and with 16 cards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ControlPlane.start(folder, gather_binaries()) as plane:
            async with Server(plane.kubeconfig) as server:
                await server.install_crds()
                for count in COUNTS:
                    await measure(count, plane, server, folder)


if __name__ == "__main__":
    asyncio.run(main())
