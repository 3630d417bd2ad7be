"""The operator against a real kube-apiserver: creation rate, writes per job, memory.

Rates are read from the API server's audit log, so that the operator and the bare baseline are measured by
the same clock at the same place. The baseline posts the same objects, typed, through the same client
library, at the operator's own concurrency, in the same run.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from kubernetes.aio import client, config

from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.controller.settings import Settings
from greentrain.core.gang.manifests import build_pod, build_service, ranks, replica_counts, spec_hash
from greentrain.core.seen.snapshot import parse_job
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from tests.bench.audit import WRITES
from tests.support.api import Server
from tests.support.manifests import build_job
from tests.support.operators import OPERATOR, operator

JOB_COUNT, WORKERS = 100, 4
ROUNDS = 3
CONCURRENCY = Settings().workers
BASELINE = "bench-baseline"


def entries(plane: ControlPlane, user: str, namespace: str | None = None) -> list[dict[str, Any]]:
    """Audit log entries of a user."""
    found = []
    for line in plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] == user and namespace in (
            None,
            entry.get("objectRef", {}).get("namespace"),
        ):
            found.append(entry)
    return found


def rate(logged: list[dict[str, Any]]) -> float:
    """Pods and Services created per second, from the first request's arrival to the last one's answer."""
    made = [
        e
        for e in logged
        if e["verb"] == "create"
        and e["objectRef"]["resource"] in ("pods", "services")
        and e["responseStatus"]["code"] == 201
    ]
    first = min(datetime.fromisoformat(e["requestReceivedTimestamp"]) for e in made)
    last = max(datetime.fromisoformat(e["stageTimestamp"]) for e in made)
    return len(made) / (last - first).total_seconds()


async def post_bare(plane: ControlPlane, server: Server, namespace: str) -> None:
    """The same objects, posted typed by kubernetes.aio with nothing around it."""
    jobs = [
        await server.create_job(namespace, build_job(f"job-{i}", workers=WORKERS)) for i in range(JOB_COUNT)
    ]
    bodies: list[tuple[str, dict[str, Any]]] = []
    for body in jobs:
        job, spec = parse_job(body), GreenTrainingJobSpec.model_validate(body["spec"])
        counts = replica_counts(spec)
        attempt = AttemptStatus(
            number=1, replicas=counts, spec_hash=spec_hash(spec), start_time="2026-01-01T00:00:00Z"
        )
        bodies.append(("Service", build_service(job)))
        bodies += [("Pod", build_pod(job, spec, attempt, r)) for r in ranks(counts)]
    configuration = client.Configuration()
    await config.load_kube_config(
        config_file=str(plane.build_kubeconfig(BASELINE, ["system:masters"])),
        client_configuration=configuration,
    )
    configuration.connection_pool_maxsize = 32
    async with client.ApiClient(configuration) as api:
        core = client.CoreV1Api(api)
        waiting = iter(bodies)

        async def work() -> None:
            for kind, body in waiting:
                create = core.create_namespaced_pod if kind == "Pod" else core.create_namespaced_service
                await create(namespace=namespace, body=body)

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


async def bench_creation(plane: ControlPlane, server: Server) -> list[str]:
    """Pods and Services per second, alternated with the baseline."""
    ours, bare = [], []
    for round_ in range(ROUNDS):
        name = f"bare-{round_}"
        await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        await post_bare(plane, server, name)
        bare.append(rate(entries(plane, BASELINE, name)))
        name = f"ours-{round_}"
        await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        for i in range(JOB_COUNT):
            await server.create_job(name, build_job(f"job-{i}", workers=WORKERS))
        async with operator(plane, name):
            await server.until(
                partial(server.pods, name), lambda pods: len(pods) == JOB_COUNT * WORKERS, seconds=120
            )
        ours.append(rate(entries(plane, OPERATOR, name)))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    return [
        f"creation, {JOB_COUNT} jobs × {WORKERS} workers, {ROUNDS} alternated rounds:",
        (
            f"  operator {median(ours):.0f}/s, bare typed POSTs {median(bare):.0f}/s, "
            f"ratio {median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}); aim ≥ 0.6"
        ),
    ]


async def bench_writes(plane: ControlPlane, server: Server) -> list[str]:
    """Writes of the operator over whole lives of two-worker jobs; the bench plays the kubelet."""
    namespace, jobs = "writes", 10
    await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    async with operator(plane, namespace):
        for i in range(jobs):
            await server.create_job(namespace, build_job(f"job-{i}"))
        pods = await server.until_pods(
            namespace, {f"job-{i}-worker-{w}-1" for i in range(jobs) for w in range(2)}
        )
        for name in sorted(pods):
            await server.run_pod(namespace, name)
        for i in range(jobs):
            await server.until_condition(namespace, f"job-{i}", "Running", "True")
        await asyncio.sleep(2)
        for name in sorted(pods):
            await server.end_pod(namespace, name, 0)
        for i in range(jobs):
            await server.until_condition(namespace, f"job-{i}", "Succeeded", "True")
        await asyncio.sleep(8)
    counted = Counter(
        f"{e['verb']} {e['objectRef']['resource']}{'/' + s if (s := e['objectRef'].get('subresource')) else ''}"
        for e in entries(plane, OPERATOR, namespace)
        if e["verb"] in WRITES
    )
    objects = sum(n for k, n in counted.items() if k in ("create pods", "create services")) / jobs
    states = counted["patch greentrainingjobs/status"] / jobs
    detail = ", ".join(f"{k} {n / jobs:g}" for k, n in sorted(counted.items()))
    return [
        (
            f"API writes per life of a two-worker job (created, running, succeeded), mean of {jobs}: "
            f"{objects:g} objects + {states:g} status writes + {counted['create events'] / jobs:g} events; "
            "aim: objects + one per state change (3)"
        ),
        f"  {detail}",
    ]


def has(count: int, pods: dict[str, Any]) -> bool:
    """Whether there are that many."""
    return len(pods) == count


async def bench_memory(plane: ControlPlane, server: Server) -> list[str]:
    """Resident memory with 0, 100 and 1,000 running jobs of one worker, and the time to take up 1,000."""
    namespace, sizes = "memory", []
    await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    made = 0
    async with operator(plane, namespace) as running:
        for size in (0, 100, 1000):
            for i in range(made, size):
                await server.create_job(namespace, build_job(f"job-{i}", workers=1))
            made = size
            await server.until(partial(server.pods, namespace), partial(has, size), seconds=300)
            await asyncio.sleep(8)
            sizes.append(running.resident_mib())
    words = ", ".join(f"{n} jobs {mib:.0f} MiB" for n, mib in zip((0, 100, 1000), sizes, strict=True))
    return [f"operator resident memory: {words}"]


async def run() -> None:
    """Run all of them on one API server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane.start(Path(folder), gather_binaries()) as plane,
    ):
        async with Server(plane.kubeconfig) as server:
            await server.install_crds()
            for bench in (bench_creation, bench_writes, bench_memory):
                begun = time.monotonic()
                for line in await bench(plane, server):
                    print(line, flush=True)
                print(f"  took {time.monotonic() - begun:.0f} s on {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    asyncio.run(run())
