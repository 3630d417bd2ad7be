"""Joules of real pods on two nodes against the exact meter, while agents, the operator and a node are killed."""

from __future__ import annotations

from typing import Any

from tests.e2e.conftest import Bench
from tests.e2e.jobs import allowed, burn, exact, until_final, until_used

Json = dict[str, Any]

BURNT_SECONDS = 35
"""Long enough for agent and operator to be killed, and to begin again, in it."""


def test_two_jobs_joules_are_the_meters_though_agent_and_operator_are_killed(
    bench: Bench, removed: list[str]
) -> None:
    nodes = [node.name for node in bench.sandbox.started_nodes()]
    names = {f"e2e-joules-{node}": node for node in nodes}
    removed += names
    # The meter knows pods by name: those of an earlier run had the same.
    before = {name: exact(bench, node, f"{name}-worker-0-1") for name, node in names.items()}
    bench.apply(*(burn(name, BURNT_SECONDS, node) for name, node in names.items()))
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
        assert true > BURNT_SECONDS * 40
        assert abs(energy["usedJoules"] - true) <= allowed(bench, node, true)
        assert (energy["measuredPercent"], energy.get("lostPods", 0)) == (100, 0)
        job = bench.read_job(name)
        assert job["status"]["attempts"][0]["energyJoules"] == energy["usedJoules"]
        row = bench.kubectl("get", "gtj", name).splitlines()
        assert energy["used"] in row[1].split()
        reasons = {
            e["reason"] for e in bench.read("events", f"--field-selector=involvedObject.name={name}")["items"]
        }
        assert "EnergyMetered" in reasons
    listed = bench.cluster.run_kubectl("get", "npw")
    assert {line.split()[0] for line in listed.splitlines()[1:]} >= set(nodes)
