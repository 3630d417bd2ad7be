"""The operator's life with many jobs: how soon it acts, what it costs while nothing happens, how it comes back.

All on a real kube-apiserver whose audit log is the clock; where pods must run, the bench plays the kubelet. The
server, etcd, the bench and the operator share the machine, so times are upper bounds for a cluster of that speed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from greentrain.api.runtime import PROGRESS_PORT
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from tests.bench.audit import AuditLog, Entry, percentile
from tests.bench.kubelet import build_address, kubelet
from tests.support.api import JOBS, Server
from tests.support.manifests import build_job
from tests.support.operators import OPERATOR, OperatorProcess, operator

WORKERS = 2
CLIENTS = 8
"""Clients that apply jobs at the same time."""
ALONE = 50
"""Jobs that are applied one by one, each to an idle operator."""
ALONE_PAUSE_SECONDS = 0.5
ROUNDS_OF_100 = 3
LIVE = 1_000
DEATHS, DEATHS_PER_SECOND = 200, 20.0
REACTIONS = frozenset({("patch", "greentrainingjobs/status"), ("delete", "pods")})
IDLE_SECONDS = 300.0
"""Two resyncs at the default interval of 120 s, and five questions for each job's progress."""
RESTARTS = 5
AFTER_RESTART_SECONDS = 16.0
"""The first resyncs come 3 and 15 s after the watches were opened."""
QUIET_SECONDS = 5.0
"""An operator that has written nothing for so long has nothing to do."""
PATIENCE_SECONDS = 300.0


def job_of(pod: str) -> str:
    """The job that a pod's name says."""
    return pod.rsplit("-worker-", 1)[0]


def made_pods(entries: Iterable[Entry]) -> list[Entry]:
    """Pods the operator has created."""
    return [
        e for e in entries if e.user == OPERATOR and e.verb == "create" and e.resource == "pods" and e.written
    ]


def operator_writes(entries: Iterable[Entry]) -> list[Entry]:
    """Everything the operator has changed."""
    return [e for e in entries if e.user == OPERATOR and e.written]


def times_to_pods(entries: Sequence[Entry]) -> list[float]:
    """Seconds from the answer to a job's creation to the answer to its last pod's, for each job."""
    last: dict[str, Entry] = {}
    for entry in made_pods(entries):
        last[job_of(entry.name)] = entry
    return [
        (last[e.name].answered - e.answered).total_seconds()
        for e in entries
        if e.verb == "create" and e.resource == "greentrainingjobs" and e.written
    ]


def spread(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and the most, in words."""
    shown = [f"{name} {seconds_words(percentile(seconds, p))}" for name, p in (("p50", 50), ("p99", 99))]
    return ", ".join([*shown, f"most {seconds_words(max(seconds))}"])


def seconds_words(seconds: float) -> str:
    """A time with two significant digits or so."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Bench:
    """One API server, its audit log and the clients of the bench."""

    def __init__(self, plane: ControlPlane, clients: Sequence[Server]) -> None:
        self.plane = plane
        self.log = AuditLog(plane.audit_log)
        self.server = clients[0]
        self._clients = clients

    async def namespace(self, name: str) -> str:
        """A new namespace."""
        await self.server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    async def warm_up(self, namespace: str, running: OperatorProcess) -> None:
        """Wait until the operator makes pods: it is ready seconds before its first watch is open."""
        await running.until_ready()
        mark = self.log.mark()
        await self.server.create_job(namespace, build_job("warm-up", workers=WORKERS))
        pods = await self.until_pods(mark, WORKERS)
        await self.server.call("DELETE", f"{JOBS.format(namespace)}/warm-up")
        for pod in made_pods(pods):
            await self.server.remove_pod(namespace, pod.name)
        await self.until_quiet()

    async def apply_all(self, namespace: str, count: int) -> list[Entry]:
        """Apply jobs from all clients at once and wait for their pods; what the log holds of it."""
        mark = self.log.mark()
        manifests = iter([build_job(f"job-{i}", workers=WORKERS) for i in range(count)])

        async def post(client: Server) -> None:
            for manifest in manifests:
                await client.create_job(namespace, manifest)

        await asyncio.gather(*(post(client) for client in self._clients))
        return await self.until_pods(mark, count * WORKERS)

    async def until_pods(self, mark: int, count: int) -> list[Entry]:
        """Wait until the operator has made so many pods since a mark; what the log holds since then."""

        def made(entries: list[Entry]) -> bool:
            return len(made_pods(entries)) == count

        return await self._until(mark, made, f"{count} pods made", every=0.1)

    async def until_reactions(self, mark: int, pods: Sequence[str]) -> list[float]:
        """Wait until the operator has reacted to the death of each pod; after how many seconds it did."""

        def reacted(entries: list[Entry]) -> bool:
            return len(reactions(entries, pods)) == len(pods)

        return reactions(
            await self._until(mark, reacted, f"a reaction to each of {len(pods)} deaths", every=1.0), pods
        )

    async def _until(
        self, mark: int, accept: Callable[[list[Entry]], bool], what: str, *, every: float
    ) -> list[Entry]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not accept(seen := self.log.since(mark)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Not within {PATIENCE_SECONDS:.0f} s: {what}.")
            await asyncio.sleep(every)
        return seen

    async def until_quiet(self) -> None:
        """Wait until the operator has written nothing for a while."""
        while True:
            mark = self.log.mark()
            await asyncio.sleep(QUIET_SECONDS)
            if not operator_writes(self.log.since(mark)):
                return

    async def until_running(self, namespace: str) -> None:
        """Wait until every job is running."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = await self.server.call("GET", JOBS.format(namespace))
            phases = Counter(job.get("status", {}).get("phase", "") for job in found["items"])
            if phases == {"Running": LIVE}:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Not all jobs run within {PATIENCE_SECONDS:.0f} s; their phases are {dict(phases)}."
                )
            await asyncio.sleep(2)


async def bench_one(bench: Bench) -> list[str]:
    """From a job applied to an idle operator to its pods."""
    namespace = await bench.namespace("one")
    async with operator(bench.plane, namespace) as running:
        await bench.warm_up(namespace, running)
        begin = bench.log.mark()
        for i in range(ALONE):
            await bench.server.create_job(namespace, build_job(f"job-{i}", workers=WORKERS))
            seen = await bench.until_pods(begin, (i + 1) * WORKERS)
            await asyncio.sleep(ALONE_PAUSE_SECONDS)
    return [f"apply → pods, 1 job of {WORKERS} workers, {ALONE} times: {spread(times_to_pods(seen))}"]


async def bench_hundred(bench: Bench) -> list[str]:
    """From 100 jobs applied at once to their pods."""
    rounds = []
    for i in range(ROUNDS_OF_100):
        namespace = await bench.namespace(f"hundred-{i}")
        async with operator(bench.plane, namespace) as running:
            await bench.warm_up(namespace, running)
            rounds.append(times_to_pods(await bench.apply_all(namespace, 100)))
    seconds = [s for each in rounds for s in each]
    slowest = [percentile(each, 99) for each in rounds]
    return [
        (
            f"apply → pods, 100 jobs of {WORKERS} workers from {CLIENTS} clients, {ROUNDS_OF_100} rounds: {spread(seconds)} "
            f"(p99 of the rounds {seconds_words(min(slowest))}–{seconds_words(max(slowest))})"
        )
    ]


async def bench_thousand(bench: Bench, namespace: str) -> list[str]:
    """From 1,000 jobs applied at once to their pods."""
    entries = await bench.apply_all(namespace, LIVE)
    applied = [e.answered for e in entries if e.verb == "create" and e.resource == "greentrainingjobs"]
    made = made_pods(entries)
    applying = (max(applied) - min(applied)).total_seconds()
    making = (max(e.answered for e in made) - min(e.received for e in made)).total_seconds()
    return [
        f"apply → pods, {LIVE:,} jobs of {WORKERS} workers from {CLIENTS} clients: {spread(times_to_pods(entries))}",
        (
            f"  they were applied within {applying:.1f} s ({len(applied) / applying:.0f}/s), "
            f"the pods made within {making:.1f} s ({len(made) / making:.0f} pods/s)"
        ),
    ]


async def bench_deaths(bench: Bench, namespace: str, running: OperatorProcess) -> list[str]:
    """From a pod's death among 1,000 live jobs to the operator's first word or deed on that job."""
    chance = random.Random(1)
    victims = chance.sample(range(LIVE), 2 * DEATHS)
    lines = []
    for what, jobs in (("exit code 137", victims[:DEATHS]), ("deleted", victims[DEATHS:])):
        pods = [f"job-{i}-worker-{chance.randrange(WORKERS)}-1" for i in jobs]
        mark, used = bench.log.mark(), running.cpu_seconds()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i, pod in enumerate(pods):
                await asyncio.sleep(max(0.0, begun + i / DEATHS_PER_SECOND - time.monotonic()))
                if what == "deleted":
                    group.create_task(bench.server.remove_pod(namespace, pod))
                else:
                    group.create_task(bench.server.end_pod(namespace, pod, 137))
        seconds = await bench.until_reactions(mark, pods)
        busy = (running.cpu_seconds() - used) / (time.monotonic() - begun)
        lines.append(
            f"reaction to a pod's death among {LIVE:,} live jobs ({what}), {DEATHS} deaths, "
            f"{DEATHS_PER_SECOND:.0f} a second: {spread(seconds)}; aim p99 < 1 s; "
            f"the operator used {busy * 100:.0f} % of a core"
        )
        await bench.until_running(namespace)
        await bench.until_quiet()
    return lines


def reactions(entries: Sequence[Entry], pods: Iterable[str]) -> list[float]:
    """Seconds from the arrival of what ends each pod to the answer to the operator's first write about its job."""
    died: dict[str, Entry] = {}
    dead, found = set(pods), {}
    for entry in sorted(entries, key=lambda e: e.received):
        job = job_of(entry.name)
        if not entry.written:
            continue
        if entry.user != OPERATOR:
            if entry.name in dead:
                died.setdefault(job, entry)
        elif (entry.verb, entry.resource) in REACTIONS and job in died and job not in found:
            found[job] = (entry.answered - died[job].received).total_seconds()
    return list(found.values())


def refused(address: str) -> bool:
    """Whether a connection to the progress port there is refused."""
    with socket.socket() as tried:
        return tried.connect_ex((address, PROGRESS_PORT)) != 0


async def bench_idle(bench: Bench, running: OperatorProcess) -> list[str]:
    """What the operator does while nothing happens to 1,000 running jobs."""
    if not refused(build_address(1)):
        raise RuntimeError(f"Something listens on port {PROGRESS_PORT} of {build_address(1)}; end it first.")
    mark, used, begun = bench.log.mark(), running.cpu_seconds(), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    seconds, cpu = time.monotonic() - begun, running.cpu_seconds() - used
    asked = [e for e in bench.log.since(mark) if e.user == OPERATOR]
    writes = sum(e.written for e in asked)
    lists = Counter(f"{e.verb} {e.resource}" for e in asked)
    detail = ", ".join(f"{what} {n}" for what, n in lists.most_common())
    return [
        (
            f"writes per idle job and hour, {LIVE:,} running jobs, {seconds:.0f} s: "
            f"{writes * 3600 / seconds / LIVE:g} ({writes} writes); aim 0"
        ),
        (
            f"  all its requests: {len(asked) * 60 / seconds:.1f} a minute ({detail}); "
            f"CPU {cpu * 60 / seconds:.2f} s a minute, {cpu * 60_000 / seconds / LIVE:.1f} ms per job and minute; "
            f"resident {running.resident_mib():.0f} MiB"
        ),
    ]


async def bench_restarts(bench: Bench, running: OperatorProcess) -> list[str]:
    """From a killed operator's new start to its first pass over each of 1,000 jobs."""
    ready, resynced, writes, requests = [], [], [], []
    for _ in range(RESTARTS):
        await running.end(signal.SIGKILL)
        mark = bench.log.mark()
        await running.start()
        ready.append(await running.until_ready())
        # First in, first out: the first so many passes are one over each job the lists have shown.
        resynced.append(await running.until_passes(LIVE))
        await asyncio.sleep(AFTER_RESTART_SECONDS)
        asked = [e for e in bench.log.since(mark) if e.user == OPERATOR]
        requests.append(len(asked))
        writes.append(sum(e.written for e in asked))
    return [
        (
            f"restart after kill -9 with {LIVE:,} running jobs, {RESTARTS} times: "
            f"ready after {median(ready):.1f} s ({min(ready):.1f}–{max(ready):.1f}), "
            f"first pass over every job after {median(resynced):.1f} s ({min(resynced):.1f}–{max(resynced):.1f})"
        ),
        (
            f"  requests until {AFTER_RESTART_SECONDS:.0f} s later {median(requests):.0f} in the median, "
            f"of them writes {median(writes):.0f} ({min(writes)}–{max(writes)}); aim 0"
        ),
    ]


async def bench_creation(bench: Bench) -> AsyncIterator[str]:
    """What needs no running pods; every operator watches one namespace, so that they do not meet."""
    for line in (*await bench_one(bench), *await bench_hundred(bench)):
        yield line


async def bench_live(bench: Bench) -> AsyncIterator[str]:
    """What needs 1,000 live jobs; one operator watches all namespaces, as it does by default."""
    async with operator(bench.plane) as running:
        namespace = await bench.namespace("live")
        await bench.warm_up(namespace, running)
        for line in await bench_thousand(bench, namespace):
            yield line
        async with kubelet(bench.plane.kubeconfig, namespace):
            await bench.until_running(namespace)
            await bench.until_quiet()
            for line in await bench_deaths(bench, namespace, running):
                yield line
            for line in (*await bench_idle(bench, running), *await bench_restarts(bench, running)):
                yield line


async def run() -> None:
    """Run all of them, each kind on an API server of its own."""
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for kind in (bench_creation, bench_live):
        begun = time.monotonic()
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            plane = stack.enter_context(ControlPlane.start(folder, gather_binaries()))
            clients = [await stack.enter_async_context(Server(plane.kubeconfig)) for _ in range(CLIENTS)]
            await clients[0].install_crds()
            async for line in kind(Bench(plane, clients)):
                print(line, flush=True)
        print(f"  took {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    asyncio.run(run())
