"""What one large job costs beside many small ones: the operator's CPU, another job's reaction, the size of its status.

On a real kube-apiserver; the bench plays scheduler, kubelets and the nodes' agents. Each node reports every 30 s, whether or not
the large job is there: what is compared is the operator's work. `python -m tests.bench.large [WORKERS [JOBS [ATTEMPTS]]]` runs at
another size; with 0 attempts it ends before the sizes. On a busy machine the operator gets less of a core than it needs: then its passes
are fewer, and its CPU time for each says more than its share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from tests.bench.audit import percentile
from tests.bench.fleet import Fleet, reporting
from tests.bench.kubelet import kubelet
from tests.bench.lifecycle import CLIENTS, Bench, reactions, seconds_words
from tests.support.api import JOBS, Json, Server
from tests.support.manifests import build_job
from tests.support.operators import OperatorProcess, operator

WORKERS = 1024
"""Workers of the large job, and nodes."""
SMALL = 1000
"""Other jobs, of two workers each."""
NAMESPACE = "fleet"
MEASURE_SECONDS = 120.0
"""Four reports of each node and two writes of each status."""
SETTLE_SECONDS = 75.0
"""Until each node has reported, each pod's allowance was taken up and each status was written twice."""
DEATHS, DEATHS_PER_SECOND = 100, 4.0
ATTEMPTS = 10
PATIENCE_SECONDS = 600.0


def build(name: str, workers: int) -> Json:
    """A job with a budget that it does not come near."""
    job = build_job(name, workers=workers, energy={"budget": "500MWh"})
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    return job


async def until_phases(server: Server, wanted: dict[str, int]) -> None:
    """Wait until so many jobs are in each phase."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = await server.call("GET", JOBS.format(NAMESPACE))
        phases = Counter(job.get("status", {}).get("phase", "") for job in found["items"])
        if phases == wanted:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Not within {PATIENCE_SECONDS:.0f} s: {wanted}; there are {dict(phases)}.")
        await asyncio.sleep(3)


@dataclass(frozen=True)
class Cost:
    """What the operator takes."""

    share: float
    """Of a core."""
    passes: float
    """A second."""

    def __str__(self) -> str:
        each = f", {self.share / self.passes * 1000:.1f} ms of CPU for each" if self.passes else ""
        load = f"load of the machine {os.getloadavg()[0]:.1f}"
        return f"{self.share * 100:.1f} % of a core ({self.passes:.0f} passes a second{each}; {load})"


async def measure_cpu(running: OperatorProcess) -> Cost:
    """The operator's CPU time and passes."""
    await asyncio.sleep(SETTLE_SECONDS)
    passes = await count_passes(running)
    used, begun = running.cpu_seconds(), time.monotonic()
    await asyncio.sleep(MEASURE_SECONDS)
    used, seconds = running.cpu_seconds() - used, time.monotonic() - begun
    return Cost(used / seconds, (await count_passes(running) - passes) / seconds)


async def count_passes(running: OperatorProcess) -> float:
    """How many passes over jobs have ended so far."""
    families = text_string_to_metric_families(await running.read_metrics())
    return sum(s.value for f in families for s in f.samples if s.name == "greentrain_passes_total")


async def measure_reactions(bench: Bench, small: int) -> list[float]:
    """Seconds from a pod's death to the operator's first write about its job, pods of small jobs dying at random."""
    chance = random.Random(1)
    pods = [
        f"job-{i}-worker-{chance.randrange(2)}-1" for i in chance.sample(range(small), min(DEATHS, small))
    ]
    mark, begun = bench.log.mark(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for i, pod in enumerate(pods):
            await asyncio.sleep(max(0.0, begun + i / DEATHS_PER_SECOND - time.monotonic()))
            group.create_task(bench.server.end_pod(NAMESPACE, pod, 137))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(found := reactions(bench.log.since(mark), pods)) < len(pods):
        if time.monotonic() > deadline:
            raise RuntimeError(f"Only {len(found)} of {len(pods)} deaths had a reaction.")
        await asyncio.sleep(1)
    return found


async def measure_sizes(server: Server, attempts: int) -> AsyncIterator[float]:
    """The largest size of the large job's status in each of its attempts, in KiB; one attempt after the other is stopped."""
    for attempt in range(1, attempts + 1):
        found = await _follow(server, attempt)
        if attempt < attempts:
            for suspend, phase in ((True, "Suspended"), (False, "Running")):
                await server.patch_job(NAMESPACE, "large", {"spec": {"runPolicy": {"suspend": suspend}}})
                found += await _until_phase(server, phase)
        yield max(found) / 1024


async def _size(server: Server) -> tuple[int, Json]:
    status = (await server.job(NAMESPACE, "large"))["status"]
    return len(json.dumps(status, separators=(",", ":"), ensure_ascii=False).encode()), status


async def _follow(server: Server, attempt: int) -> list[int]:
    """Sizes over the 40 s in which each node reports the attempt's pods."""
    sizes, end = [], time.monotonic() + 40
    while time.monotonic() < end:
        size, status = await _size(server)
        if status["attempts"][-1]["number"] != attempt:
            raise RuntimeError(f"Attempt {attempt} is over: {status['attempts'][-1]}.")
        sizes.append(size)
        await asyncio.sleep(2)
    return sizes


async def _until_phase(server: Server, phase: str) -> list[int]:
    """Sizes until the large job is in a phase."""
    sizes, deadline = [], time.monotonic() + PATIENCE_SECONDS
    while True:
        size, status = await _size(server)
        sizes.append(size)
        if status["phase"] == phase:
            return sizes
        if time.monotonic() > deadline:
            raise RuntimeError(f"The large job is {status['phase']}, not {phase}.")
        await asyncio.sleep(2)


async def run(workers: int, small: int, attempts: int) -> None:
    """All of it on one API server."""
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(ControlPlane.start(folder, gather_binaries()))
        clients = [await stack.enter_async_context(Server(plane.kubeconfig)) for _ in range(CLIENTS)]
        await clients[0].install_crds()
        bench = Bench(plane, clients)
        await bench.namespace(NAMESPACE)
        fleet = Fleet(clients, workers)
        await fleet.create()
        await stack.enter_async_context(reporting(fleet))
        running = await stack.enter_async_context(operator(plane, NAMESPACE))
        await running.until_ready()
        await stack.enter_async_context(kubelet(plane.kubeconfig, NAMESPACE, fleet))
        for i in range(small):
            await bench.server.create_job(NAMESPACE, build(f"job-{i}", 2))
        await until_phases(bench.server, {"Running": small})
        without = await measure_cpu(running)
        print(f"{small:,} jobs of two workers on {workers:,} nodes: {without}", flush=True)
        await bench.server.create_job(NAMESPACE, build("large", workers))
        await until_phases(bench.server, {"Running": small + 1})
        beside = await measure_cpu(running)
        print(
            f"the same beside one job of {workers:,} workers: {beside}, {beside.share / without.share:.2f} × "
            f"(aim ≤ 1.5 ×, below 50 %); resident {running.resident_mib():.0f} MiB",
            flush=True,
        )
        seconds = await measure_reactions(bench, small)
        words = ", ".join(f"p{p} {seconds_words(percentile(seconds, p))}" for p in (50, 99))
        print(
            f"a small job's pod's death → first write meanwhile: {words} (aim p99 < 1 s); "
            f"load of the machine {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        if attempts:
            print(
                f"the large job's status, at most in each of {attempts} attempts, KiB (aim < 512):",
                flush=True,
            )
        async for size in measure_sizes(bench.server, attempts):
            print(f"  {size:.0f}", flush=True)
    print(f"  took {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(run(*given, *(WORKERS, SMALL, ATTEMPTS)[len(given) :]))
