"""What budgets cost and how close they are kept: writes per job-hour beside jobs without one, overshoot beside its bound.

Writes are counted in the audit log of a real kube-apiserver, by an operator and agents at their default intervals: jobs with
a budget and jobs without run side by side. Overshoot is that of the scenario tier's lives in virtual time, judged against the
bound that was said before each attempt began.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from tests.bench.audit import AuditLog
from tests.integration.operator.test_budget import Meter
from tests.integration.operator.test_energy import PATH, gpu_job
from tests.scenario.budgets import measure
from tests.support.api import Server
from tests.support.operators import OPERATOR, operator

Json = dict[str, Any]

JOBS, WORKERS = 10, 2
REPORT_SECONDS = 30
MINUTES = 4
KINDS = ("with", "without")
SEEDS = 200


def build(kind: str) -> Json:
    """One of the jobs; a budget of which a percent takes half a minute."""
    job = gpu_job(WORKERS)
    if kind == "with":
        job["spec"]["energy"] = {"budget": "1.6MJ"}
    return job


async def start(server: Server, kind: str) -> Meter:
    """All jobs of one kind, their pods running on one node."""
    await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": kind}})
    body = {
        "apiVersion": "greentrain.dev/v1alpha1",
        "kind": "NodePower",
        "metadata": {"name": kind},
        "spec": {},
    }
    await server.call("POST", PATH, body)
    meter = Meter(server, kind)
    await meter.report()
    for i in range(JOBS):
        job = build(kind)
        job["metadata"]["name"] = f"job-{i}"
        await server.create_job(kind, job)
    return meter


async def bench_writes(plane: ControlPlane, server: Server) -> list[str]:
    """Statuses of jobs and specs of NodePowers that the operator writes, per job and hour."""
    meters = {kind: await start(server, kind) for kind in KINDS}
    log = AuditLog(plane.audit_log)
    pods: dict[str, dict[str, Json]] = {}
    async with operator(plane, None):
        for kind in KINDS:
            wanted = {f"job-{i}-worker-{w}-1" for i in range(JOBS) for w in range(WORKERS)}
            pods[kind] = await server.until_pods(kind, wanted, seconds=60)
            for name in pods[kind]:
                await server.run_pod(kind, name, node=kind)
        await asyncio.sleep(REPORT_SECONDS)
        mark, begun = log.mark(), time.monotonic()
        joules: Counter[str] = Counter()
        while time.monotonic() - begun < MINUTES * 60:
            for kind, meter in meters.items():
                for i, pod in enumerate(pods[kind].values()):
                    # Every second pod draws a tenth more, so that allowances do not stay fair by themselves.
                    joules[pod["metadata"]["uid"]] += REPORT_SECONDS * (250 + 25 * (i % 2))
                    meter.tell(pod, joules[pod["metadata"]["uid"]])
                await meter.report()
            await asyncio.sleep(REPORT_SECONDS)
        hours = (time.monotonic() - begun) / 3600
    written = [e for e in log.since(mark) if e.user == OPERATOR and e.written]
    lines = []
    for kind in KINDS:
        statuses = sum(e.namespace == kind and e.resource == "greentrainingjobs/status" for e in written)
        asks = sum(e.name == kind and e.resource == "nodepowers" for e in written)
        per_job = [round(n / JOBS / hours) for n in (statuses, asks)]
        lines.append(
            f"jobs {kind} a budget: {per_job[0]} status writes and {per_job[1]} NodePower writes per job-hour"
        )
    return lines


def bench_overshoot() -> list[str]:
    """How the worst overshoot compares with the bound, by the number of GPUs."""
    lines = []
    for gpus, lives in measure(range(SEEDS)).items():
        ratios = sorted(over / bound for bound, over in lives)
        kept = sum(over <= 0 for _, over in lives)
        worst = max(over for _, over in lives)
        middle = median(bound for bound, _ in lives)
        lines.append(
            f"{gpus} GPUs: {len(lives)} stops, {kept} without overshoot; p50 {ratios[len(ratios) // 2]:.2f}, worst "
            f"{ratios[-1]:.2f} of the bound; median bound {middle / worst:.2f} × the worst overshoot"
            if worst > 0
            else f"{gpus} GPUs: {len(lives)} stops, none with overshoot"
        )
    return lines


async def run() -> None:
    """Both, on one API server."""
    for line in bench_overshoot():
        print(line, flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane.start(Path(folder), gather_binaries()) as plane,
    ):
        async with Server(plane.kubeconfig) as server:
            await server.install_crds()
            for line in await bench_writes(plane, server):
                print(line, flush=True)
    print(f"  on {os.cpu_count()} cores", flush=True)


if __name__ == "__main__":
    asyncio.run(run())
