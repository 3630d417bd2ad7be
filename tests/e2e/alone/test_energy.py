"""Joules of real pods on two nodes against the exact meter, while agents, the operator and a node are killed."""

from __future__ import annotations

from typing import Any

from sandbox.outage import find_node, power_off, power_on
from sandbox.simgpu import cards
from sandbox.simgpu.nodecards import Places
from tests.e2e.conftest import Bench
from tests.e2e.jobs import burn, condition, exact, pods_of, until_used

Json = dict[str, Any]


def allowed(bench: Bench, node: str, joules: float) -> float:
    """1 %, or two seconds of the card's full draw."""
    with cards.open(Places(find_node(bench.sandbox, node)).state) as state:
        profile = cards.read_profiles()[state.read_card(0).profile]
    return max(0.01 * joules, 2 * profile.full_watts)


def until_final(bench: Bench, job: str) -> Json:
    energy: Json = bench.until(
        lambda: bench.read("gtj", job)["status"].get("energy", {}),
        lambda found: bool(found.get("final")),
        seconds=150,
        what=f"the energy of {job} is final",
    )
    return energy


def test_two_jobs_joules_are_the_meters_though_agent_and_operator_are_killed(
    bench: Bench, removed: list[str]
) -> None:
    nodes = [node.name for node in bench.sandbox.started_nodes()]
    names = {f"e2e-joules-{node}": node for node in nodes}
    removed += names
    # The meter knows pods by name: those of an earlier run had the same.
    before = {name: exact(bench, node, f"{name}-worker-0-1") for name, node in names.items()}
    bench.apply(*(burn(name, 50, node) for name, node in names.items()))
    for name in names:
        bench.until_condition(name, "EnergyMetered", "True", seconds=120)
        until_used(bench, name, 300)
    bench.kill_container(bench.agent_pod(nodes[0])["metadata"]["uid"], "greentrain.agent")
    bench.kill_container(bench.operator_pod()["metadata"]["uid"], "greentrain.controller")
    for name, node in names.items():
        job = bench.until_condition(name, "Succeeded", seconds=180)
        energy = until_final(bench, name)
        true = exact(bench, node, f"{name}-worker-0-1") - before[name]
        print(f"{name}: {energy['usedJoules']} J, the meter {true:.0f} J, bound {energy['errorJoules']} J")
        assert true > 50 * 40
        assert abs(energy["usedJoules"] - true) <= allowed(bench, node, true)
        assert (energy["measuredPercent"], energy.get("lostPods", 0)) == (100, 0)
        job = bench.read("gtj", name)
        assert job["status"]["attempts"][0]["energyJoules"] == energy["usedJoules"]
        row = bench.kubectl("get", "gtj", name).splitlines()
        assert energy["used"] in row[1].split()
        reasons = {
            e["reason"] for e in bench.read("events", f"--field-selector=involvedObject.name={name}")["items"]
        }
        assert "EnergyMetered" in reasons
    listed = bench.cluster.run_kubectl("get", "npw")
    assert {line.split()[0] for line in listed.splitlines()[1:]} >= set(nodes)


def test_the_joules_of_a_lost_nodes_pod_are_kept_and_the_next_attempts_added(
    bench: Bench, removed: list[str]
) -> None:
    standing = bench.operator_pod()["spec"]["nodeName"]
    node = next(n for n in bench.sandbox.started_nodes() if n.name != standing)
    name = "e2e-joules-lost"
    removed.append(name)
    pods = [f"{name}-worker-0-{attempt}" for attempt in (1, 2)]
    before = [exact(bench, node.name, pod) for pod in pods]
    bench.apply(burn(name, 40, node.name))
    until_used(bench, name, 1500)
    power_off(bench.sandbox, node)
    first = exact(bench, node.name, pods[0]) - before[0]
    try:
        job = bench.until_condition(name, "PodsReady", "False", reason="NodeLost", seconds=120)
        assert node.name in condition(job, "PodsReady")["message"]
        bench.kubectl("delete", "node", node.name)
        bench.until(
            lambda: sorted(pods_of(bench, name)),
            lambda pods: pods == [f"{name}-worker-0-2"],
            seconds=150,
            what="the lost pod is gone and its successor waits",
        )
    finally:
        power_on(bench.sandbox, node)
    bench.until_condition(name, "Succeeded", seconds=240)
    energy = until_final(bench, name)
    second = exact(bench, node.name, pods[1]) - before[1]
    print(f"{energy['usedJoules']} J, the meter {first:.0f} + {second:.0f} J")
    true = first + second
    assert abs(energy["usedJoules"] - true) <= 2 * allowed(bench, node.name, true)
    shares = [a["energyJoules"] for a in bench.read("gtj", name)["status"]["attempts"]]
    assert sum(shares) == energy["usedJoules"]
    assert abs(shares[0] - first) <= allowed(bench, node.name, first)
