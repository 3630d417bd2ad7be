"""Caps of real jobs on two nodes: each its own, followed when edited, and never left on a card, whatever ends.

Limits are read with gpustat, set by hand with nvidia-smi: neither is ours to say how a card is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.cache import read_cache_directory
from sandbox.outage import find_node, power_off, power_on
from sandbox.release import AGENT, AGENT_NAMESPACE, NAMESPACE, RELEASE
from sandbox.shell import SandboxError
from sandbox.simgpu import cards
from sandbox.simgpu.nodecards import Places
from sandbox.simgpu.peers import apply_peers
from sandbox.state import read_records
from tests.e2e.conftest import Bench
from tests.e2e.jobs import capped, condition, held_by

Json = dict[str, Any]

ELSEWHERE = {"greentrain.dev/nowhere": "yes"}
"""Labels no node has."""


class Nvml:
    """A node's cards as other programs see them."""

    def __init__(self, bench: Bench, node: str, peers: Path) -> None:
        self._places = Places(find_node(bench.sandbox, node))
        self._peers = peers

    def limits(self) -> dict[str, int]:
        """The limits in force in watts, by UUID, as gpustat tells them."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/tmp",
            "LD_LIBRARY_PATH": str(self._places.shared),
            "GREENTRAIN_SIMGPU_STATE": str(self._places.state),
        }
        ran = subprocess.run(
            [self._peers / "bin" / "gpustat", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return {gpu["uuid"]: gpu["enforced.power.limit"] for gpu in json.loads(ran.stdout)["gpus"]}

    def set_limit(self, uuid: str, watts: float) -> None:
        """What an administrator does with `nvidia-smi -pl`."""
        with cards.open(self._places.state) as state:
            (card,) = [card for card in state if state.read_card(card).uuid == uuid]
            state.set_limit(card, watts)


@pytest.fixture(scope="module")
def peers() -> Path:
    return apply_peers(read_cache_directory())


@pytest.fixture
def removed(bench: Bench, peers: Path) -> Iterator[list[str]]:
    """Jobs to remove; then every card is at its default limit by itself."""
    names: list[str] = []
    yield names
    bench.kubectl("delete", "gtj", *names, "--ignore-not-found", "--wait")
    for node in bench.sandbox.started_nodes():
        nvml = Nvml(bench, node.name, peers)
        for uuid in nvml.limits():
            nvml.set_limit(uuid, 300)


def set_cap(bench: Bench, job: str, cap: str | None) -> None:
    bench.kubectl("patch", "gtj", job, "--type=merge", f"-p={json.dumps({'spec': {'power': {'cap': cap}}})}")


def until_limit(nvml: Nvml, uuid: str, watts: int, *, seconds: float = 30) -> float:
    """Wait for a card's limit; how long it took."""
    begun = time.monotonic()
    while (now := nvml.limits()[uuid]) != watts:
        took = time.monotonic() - begun
        assert took < seconds, f"{uuid} is at {now} W after {took:.0f} s, not at {watts} W"
    return time.monotonic() - begun


def test_jobs_side_by_side_have_each_its_own_cap_and_an_edit_reaches_it(
    bench: Bench, removed: list[str], peers: Path
) -> None:
    first, second = (node.name for node in bench.sandbox.started_nodes()[:2])
    asked = {
        "e2e-cap-a": ("200W", 200, first),
        "e2e-cap-b": ("60%", 180, first),
        "e2e-cap-c": ("0.25kW", 250, second),
    }
    removed += asked
    bench.apply(*(capped(name, cap, node) for name, (cap, _, node) in asked.items()))
    uuids = {}
    for name, (cap, watts, node) in asked.items():
        job = bench.until_condition(name, "PowerCapped", reason="Capped", seconds=120)
        uuids[name] = held_by(bench, name)
        assert Nvml(bench, node, peers).limits()[uuids[name]] == watts
        power = job["status"]["power"]
        assert (power["cap"], power["gpus"], power["gpusCapped"]) == (cap, 1, 1)
        assert (
            power["askedMilliwatts"] == power["setMilliwatts"] == power["enforcedMilliwatts"] == 1000 * watts
        )
        assert cap in bench.kubectl("get", "gtj", name, "-o", "wide").splitlines()[1].split()
    assert uuids["e2e-cap-a"] != uuids["e2e-cap-b"]

    nvml = Nvml(bench, first, peers)
    set_cap(bench, "e2e-cap-a", "240W")
    took = until_limit(nvml, uuids["e2e-cap-a"], 240)
    print(f"an edit was in force after {took:.1f} s, kubectl and gpustat included")
    assert nvml.limits()[uuids["e2e-cap-b"]] == 180
    set_cap(bench, "e2e-cap-b", None)
    until_limit(nvml, uuids["e2e-cap-b"], 300)
    bench.until_condition("e2e-cap-b", "PowerCapped", "False", reason="NoCap")

    set_cap(bench, "e2e-cap-a", "90W")
    until_limit(nvml, uuids["e2e-cap-a"], 150)
    job = bench.until_condition("e2e-cap-a", "PowerCapped", reason="Clamped")
    assert "90W is below the lowest it can have, 150W" in condition(job, "PowerCapped")["message"]
    events = bench.read("events", "--field-selector=involvedObject.name=e2e-cap-a")["items"]
    assert any("below the lowest" in e["message"] for e in events)
    # A wrong edit is refused by name and leaves the cap as it is.
    with pytest.raises(SandboxError, match="write watts from 1W to 10kW"):
        set_cap(bench, "e2e-cap-a", "90")
    assert nvml.limits()[uuids["e2e-cap-a"]] == 150

    bench.kubectl("delete", "gtj", *asked, "--wait")
    for name, (_, _, node) in asked.items():
        until_limit(Nvml(bench, node, peers), uuids[name], 300)


def scale_operator(bench: Bench, replicas: int) -> None:
    words = ("scale", f"deployment/{RELEASE}", f"--replicas={replicas}")
    bench.cluster.run_kubectl("--namespace", NAMESPACE, *words)


def place_agents(bench: Bench, labels: dict[str, str] | None) -> None:
    """Have agents run where these labels are, or everywhere; an agent that may not stay ends as on SIGTERM."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": labels or dict.fromkeys(ELSEWHERE)}}}}
    words = ("patch", f"daemonset/{AGENT}", "--type=merge", f"-p={json.dumps(patch)}")
    bench.cluster.run_kubectl("--namespace", AGENT_NAMESPACE, *words)


def test_a_cap_outlives_its_agent_but_not_its_pod_and_the_limit_before_comes_back(
    bench: Bench, removed: list[str], peers: Path
) -> None:
    node = bench.sandbox.started_nodes()[0].name
    nvml = Nvml(bench, node, peers)
    for uuid in nvml.limits():
        nvml.set_limit(uuid, 280)  # an administrator's choice, which is neither the default nor the cap
    name = "e2e-cap-kept"
    removed.append(name)
    bench.apply(capped(name, "180W", node))
    bench.until_condition(name, "PowerCapped", seconds=120)
    uuid = held_by(bench, name)

    # SIGKILL: the limit stays, and the next agent knows it for its own.
    before = bench.agent_pod(node)
    bench.kill_container(before["metadata"]["uid"], "greentrain.agent")
    bench.until(
        lambda: bench.agent_pod(node)["status"]["containerStatuses"][0],
        lambda found: (
            found["restartCount"] > before["status"]["containerStatuses"][0]["restartCount"]
            and found["ready"]
        ),
        seconds=90,
        what="the agent runs again",
    )
    assert nvml.limits()[uuid] == 180

    # Every agent ends in good order: each card has its limit of before, while the job runs on.
    place_agents(bench, ELSEWHERE)
    until_limit(nvml, uuid, 280, seconds=60)
    place_agents(bench, None)
    until_limit(nvml, uuid, 180, seconds=90)

    # An administrator lowers it meanwhile: that is what it gets back.
    nvml.set_limit(uuid, 170)
    bench.until_condition(name, "PowerCapped", reason="PreviousLower", seconds=60)
    nvml.set_limit(uuid, 270)
    until_limit(nvml, uuid, 180)

    # The operator is away: the pod's end is enough.
    scale_operator(bench, 0)
    try:
        bench.kubectl("delete", "pod", f"{name}-worker-0-1", "--wait")
        took = until_limit(nvml, uuid, 270)
        print(f"given back {took:.1f} s after the pod was gone")
    finally:
        scale_operator(bench, 1)
    bench.until(
        lambda: bench.read_job(name)["status"]["attemptCount"],
        lambda n: n == 2,
        seconds=120,
        what="attempt 2",
    )

    # Killed with the cap in place, and the pod ends before there is an agent again.
    bench.until_condition(name, "PowerCapped", seconds=120)
    prior = 270 if held_by(bench, name, 2) == uuid else 280
    uuid = held_by(bench, name, 2)
    bench.kill_container(bench.agent_pod(node)["metadata"]["uid"], "greentrain.agent")
    bench.kubectl("delete", "gtj", name, "--wait")
    until_limit(nvml, uuid, prior, seconds=120)


@contextlib.contextmanager
def without_api_server(bench: Bench) -> Iterator[None]:
    """The API server answers nobody until the block ends."""
    server = read_records(bench.sandbox)["kube-apiserver"].pid
    os.kill(server, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server, signal.SIGCONT)


def test_without_the_api_server_a_pods_end_gives_its_cap_back_and_a_new_agent_keeps_the_others(
    bench: Bench, removed: list[str], peers: Path
) -> None:
    node = bench.sandbox.started_nodes()[0].name
    nvml = Nvml(bench, node, peers)
    names = ["e2e-cap-ends", "e2e-cap-stays"]
    removed += names
    bench.apply(capped(names[0], "180W", node), capped(names[1], "200W", node))
    pods = {}
    for name in names:
        bench.until_condition(name, "PowerCapped", seconds=120)
        pods[name] = bench.read("pod", f"{name}-worker-0-1")["metadata"]["uid"]
    ends, stays = (held_by(bench, name) for name in names)
    agent = bench.agent_pod(node)["metadata"]["uid"]
    with without_api_server(bench):
        bench.kill_container(pods[names[0]], "import sys, time")
        until_limit(nvml, ends, 300)
        bench.kill_container(agent, "greentrain.agent")
        end = time.monotonic() + 15  # the kubelet starts it anew within seconds
        seen = set()
        while time.monotonic() < end:
            seen.add(nvml.limits()[stays])
        assert seen == {200}
        assert nvml.limits()[ends] == 300
    bench.until_condition(names[1], "PowerCapped", seconds=120)


def test_after_a_reboot_a_card_has_its_drivers_default_and_is_left_there(
    bench: Bench, removed: list[str], peers: Path
) -> None:
    standing = bench.operator_pod()["spec"]["nodeName"]
    node = next(n for n in bench.sandbox.started_nodes() if n.name != standing)
    nvml = Nvml(bench, node.name, peers)
    for uuid in nvml.limits():
        nvml.set_limit(uuid, 280)
    name = "e2e-cap-reboot"
    removed.append(name)
    bench.apply(capped(name, "180W", node.name))
    bench.until_condition(name, "PowerCapped", seconds=120)
    assert 180 in nvml.limits().values()
    bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":true}}}')
    power_off(bench.sandbox, node)
    power_on(bench.sandbox, node)
    bench.until(
        lambda: bench.agent_pod(node.name)["status"].get("containerStatuses", [{}])[0],
        lambda found: bool(found.get("ready")),
        seconds=180,
        what="the agent runs again",
    )
    bench.until_condition(name, "Suspended", seconds=180)
    time.sleep(5)  # an agent that meant to give back anything has done so
    assert set(nvml.limits().values()) == {300}
