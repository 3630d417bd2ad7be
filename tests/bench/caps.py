"""Caps: how soon they are in place, how soon a killed agent's are given back, and what they cost and save.

The first and the last are measured in the sandbox with the chart installed, over the whole road from the job's spec to the
card: one clock sees the answer to the edit and the card's limit. The second with the shipped agent as a process, since a
kubelet restarts a container that was killed again and again later each time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from greentrain.api.runtime import PROGRESS_PORT
from sandbox.api import Api, ApiError
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane, build_api
from sandbox.images import ROOT
from sandbox.outage import find_node
from sandbox.simgpu import cards, nodecards
from sandbox.simgpu.cards import Cards
from sandbox.simgpu.nodecards import Places
from sandbox.state import Sandbox
from tests.bench.audit import percentile
from tests.e2e.jobs import burn
from tests.integration.agent.processes import Node
from tests.support.api import Server

Json = dict[str, Any]

EDITS = 100
RESTARTS = 10
SHARES = (100, 85, 70, 55)
ROUNDS = 2
STEPS = 2000
FIRST_STEP = 100
"""From here on it counts: graphs are traced, caches warm."""

JOBS = "/apis/greentrain.dev/v1alpha1/namespaces/default/greentrainingjobs"
PODS = "/api/v1/namespaces/default/pods"
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 300.0


def until(what: str, look: Any, seconds: float = PATIENCE_SECONDS, poll: float = 0.2) -> Any:
    """Poll until something is found."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(poll)
    return found


def read_job(api: Api, name: str) -> Json:
    return dict(api.get(f"{JOBS}/{name}").get("status") or {})


def is_capped(api: Api, name: str) -> bool:
    conditions = read_job(api, name).get("conditions", [])
    return any(c["type"] == "PowerCapped" and c["status"] == "True" for c in conditions)


def remove(api: Api, name: str) -> None:
    """Delete a job, if it is there, and wait until its pods are gone."""
    try:
        api.request("DELETE", f"{JOBS}/{name}")
    except ApiError as error:
        if error.status != 404:
            raise
    selector = f"{PODS}?labelSelector=greentrain.dev/job-name%3D{name}"
    until(f"{name} is gone", lambda: not api.get(selector).get("items"))


def measure_edits(api: Api, state: Cards, node: str) -> list[float]:
    """Seconds from the answer to an edit of spec.power.cap to the card's limit."""
    job = burn("bench-cap", 3600, node)
    job["spec"]["power"] = {"cap": "200W"}
    remove(api, "bench-cap")
    api.post(JOBS, job)
    until("capped", lambda: is_capped(api, "bench-cap"))
    held = next(card for card in state if state.read_card(card).limit_watts == 200)
    times = []
    for i in range(EDITS):
        watts = 160 + i % 80
        api.patch(f"{JOBS}/bench-cap", {"spec": {"power": {"cap": f"{watts}W"}}})
        answered = time.monotonic()
        until(
            f"{watts} W",
            lambda watts=watts: state.read_card(held).limit_watts == watts,
            poll=POLL_SECONDS,
        )
        times.append(time.monotonic() - answered)
        time.sleep(0.1 * (i % 13))  # the agent's rounds are a second long: meet each part of one
    remove(api, "bench-cap")
    return times


async def measure_restores(folder: Path) -> list[float]:
    """Seconds from the start of an agent's process to the limit of before, the agent before it killed with a cap in place."""
    times = []
    (folder / "bench").mkdir()
    with ControlPlane.start(folder, gather_binaries()) as plane:
        async with Server(plane.kubeconfig) as server:
            await server.install_crds()
            async with Node.set_up("bench", folder / "bench", server, plane.kubeconfig, ["V100"]) as node:
                for i in range(RESTARTS):
                    agent = await node.start_agent()
                    pod = await node.begin_pod(f"pod-{i}")
                    await server.until(node.status, bool, what="a first report")
                    await node.ask((pod, "180W"))
                    await node.until_limits(180)
                    await agent.end(signal.SIGKILL)
                    await node.end_pod(pod)
                    started = time.monotonic()
                    agent = await node.start_agent()
                    await asyncio.to_thread(until, "300 W", lambda: node.limit() == 300, poll=POLL_SECONDS)
                    times.append(time.monotonic() - started)
                    await agent.end(signal.SIGTERM)
    return times


def build_digits(share: int) -> Json:
    """The digits job capped at a share of its cards' default limit."""
    documents = yaml.safe_load_all((ROOT / "examples/digits.yaml").read_text())
    job: Json = next(d for d in documents if d["kind"] == "GreenTrainingJob")
    job["metadata"]["name"] = f"bench-digits-{share}"
    del job["spec"]["checkpoint"]
    job["spec"]["power"] = {"cap": f"{share}%"}
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["args"] = ["digits", f"--steps={STEPS}"]
    return job


def read_joules(api: Api, sandbox: Sandbox, name: str) -> float:
    """What the exact meters of the nodes say of a job's pods."""
    pods = api.get(f"{PODS}?labelSelector=greentrain.dev/job-name%3D{name}")["items"]
    return sum(
        nodecards.read_joules(
            find_node(sandbox, pod["spec"]["nodeName"]), f"default/{pod['metadata']['name']}"
        )
        for pod in pods
    )


def read_step(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}:{PROGRESS_PORT}/progress", timeout=5) as answer:
        return int(json.load(answer)["step"])


def measure_digits(api: Api, sandbox: Sandbox, share: int) -> tuple[float, float]:
    """Milliseconds and joules a step, of both workers."""
    job = build_digits(share)
    name = job["metadata"]["name"]
    remove(api, name)
    api.post(JOBS, job)
    until("running", lambda: is_capped(api, name))
    pod = f"{PODS}/{name}-worker-0-1"
    address = until("an address", lambda: api.get(pod).get("status", {}).get("podIP"))
    seen: list[tuple[float, int, float]] = []
    while True:
        try:
            step = read_step(address)
        except (OSError, ValueError, KeyError):
            if seen or read_job(api, name).get("completionTime"):
                break
            step = 0
        if step >= FIRST_STEP and (not seen or step > seen[-1][1]):
            seen.append((time.monotonic(), step, read_joules(api, sandbox, name)))
        time.sleep(0.5)
    (begun, first, before), (ended, last, after) = seen[0], seen[-1]
    remove(api, name)
    return 1000 * (ended - begun) / (last - first), (after - before) / (last - first)


def main() -> None:
    """Measure all three."""
    sandbox = Sandbox.read()
    api = build_api(sandbox.server)
    node = sandbox.started_nodes()[0].name
    with cards.open(Places(find_node(sandbox, node)).state) as state:
        times = measure_edits(api, state, node)
    print(
        f"spec.power.cap edited → limit set, {EDITS} edits: p50 {1000 * percentile(times, 50):.0f} ms, "
        f"p99 {1000 * percentile(times, 99):.0f} ms, most {1000 * max(times):.0f} ms (aim: p99 < 1 s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        times = asyncio.run(measure_restores(Path(folder)))
    print(
        f"agent killed with a cap in place, its pod ended; next agent's start → limit of before, {RESTARTS} times: "
        f"median {statistics.median(times):.2f} s, most {max(times):.2f} s (aim: < 2 s)"
    )
    measured: dict[int, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for _ in range(ROUNDS):  # turn and turn about, so that what else the machine does falls on all alike
        for share in SHARES:
            measured[share].append(measure_digits(api, sandbox, share))
    base = [statistics.median(column) for column in zip(*measured[100], strict=True)]
    for share, rounds in measured.items():
        step, joules = (statistics.median(column) for column in zip(*rounds, strict=True))
        spread = ", ".join(f"{s:.1f} ms {j:.2f} J" for s, j in rounds)
        print(
            f"digits at {share} % of the default limit: {step:.1f} ms a step ({step / base[0]:.2f}), {joules:.2f} J a step "
            f"({joules / base[1]:.2f}); rounds: {spread}"
        )


if __name__ == "__main__":
    main()
