"""What is lost under a job: its operator, its node's room, its node."""

from __future__ import annotations

from typing import Any

from sandbox.outage import find_node, power_off, power_on
from tests.e2e.conftest import Bench
from tests.e2e.jobs import (
    allowed,
    apart,
    burn,
    condition,
    exact,
    long,
    name_of,
    node_of,
    plain_job,
    until_final,
    until_used,
)

Json = dict[str, Any]


def test_the_operator_killed_9_while_it_creates_makes_every_pod_once(
    bench: Bench, removed: list[str]
) -> None:
    """The Deployment starts it again; tests/integration kills it at every request."""
    names = [f"kill-{i}" for i in range(4)]
    removed += names
    wanted = sorted(f"{name}-worker-{w}-1" for name in names for w in range(4))
    operator = bench.operator_pod()["metadata"]["uid"]
    bench.apply(*(plain_job(name, "sleep", "infinity", workers=4) for name in names))
    bench.kill_container(operator, "greentrain.controller")

    def pods() -> list[str]:
        return sorted(pod for name in names for pod in bench.read_pods(name))

    bench.until(pods, lambda seen: seen == wanted, seconds=120, what="all pods, no other")
    assert bench.operator_pod()["status"]["containerStatuses"][0]["restartCount"] >= 1
    assert {bench.read_job(name)["status"]["attemptCount"] for name in names} == {1}


def test_a_drained_node_stops_the_gang_at_one_step_and_it_goes_on_there_elsewhere(
    bench: Bench, digits: Json, uninterrupted: str
) -> None:
    name = name_of(digits)
    bench.apply(apart(long(digits)))
    bench.until_step(name, 40)
    node = node_of(bench, f"{name}-worker-1-1")
    other = node_of(bench, f"{name}-worker-0-1")
    assert node != other
    try:
        bench.kubectl(
            "drain", node, f"--pod-selector=greentrain.dev/job-name={name}", "--ignore-daemonsets", "--force"
        )
        bench.until(
            lambda: [p["spec"].get("nodeName") for n, p in bench.read_pods(name).items() if n.endswith("-2")],
            lambda nodes: nodes == [other, other],
            seconds=120,
            what="the second attempt's pods stand on the other node",
        )
    finally:
        bench.kubectl("uncordon", node)
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first["countedAgainst"]) == ("Evicted", "infrastructureRestartLimit")
    # Not a multiple of --checkpoint-every: the step all of them agreed on, saved because of the drain.
    assert second["startStep"] == first["lastStep"] >= 40
    assert (job["status"]["failureCount"], job["status"]["infrastructureFailureCount"]) == (0, 1)
    assert bench.last_weights(name) == uninterrupted


def test_a_lost_node_is_named_its_joules_are_kept_and_its_jobs_go_on_when_it_is_deleted(
    bench: Bench, digits: Json, removed: list[str], uninterrupted: str
) -> None:
    """A gang with one worker there, and a job whose one pod holds a card of it."""
    name, burning = name_of(digits), "e2e-joules-lost"
    removed.append(burning)
    bench.apply(apart(long(digits)))
    bench.until_step(name, 40)
    # The operator itself must outlive the node.
    standing = bench.operator_pod()["spec"]["nodeName"]
    nodes = {i: node_of(bench, f"{name}-worker-{i}-1") for i in (0, 1)}
    index, lost = next((i, n) for i, n in nodes.items() if n != standing)
    node = find_node(bench.sandbox, lost)
    pods = [f"{burning}-worker-0-{attempt}" for attempt in (1, 2)]
    before = [exact(bench, lost, pod) for pod in pods]
    bench.apply(burn(burning, 30, lost))
    until_used(bench, burning, 1000)
    power_off(bench.sandbox, node)
    first_joules = exact(bench, lost, pods[0]) - before[0]
    try:
        job = bench.until_condition(name, "Restarting", reason="NodeLost", seconds=120)
        assert (
            f"worker-{index}: its node stopped answering (node {lost})"
            in condition(job, "Restarting")["message"]
        )
        bench.until_condition(name, "PodsReady", "False", reason="WaitingForOldPods", seconds=60)
        job = bench.until(
            lambda: bench.read_job(name),
            lambda body: f"kubectl delete node {lost}" in condition(body, "PodsReady")["message"],
            seconds=60,
            what="the condition says how to go on",
        )
        assert job["status"]["attemptCount"] == 1
        job = bench.until_condition(burning, "PodsReady", "False", reason="NodeLost", seconds=120)
        assert lost in condition(job, "PodsReady")["message"]
        bench.kubectl("delete", "node", lost)
        bench.until(
            lambda: sorted([*bench.read_pods(name), *bench.read_pods(burning)]),
            lambda seen: seen == sorted([*(f"{name}-worker-{i}-2" for i in (0, 1)), pods[1]]),
            seconds=150,
            what="the second attempts' pods",
        )
    finally:
        power_on(bench.sandbox, node)
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first["countedAgainst"]) == ("NodeLost", "infrastructureRestartLimit")
    assert second["startStep"] >= 40
    assert (job["status"]["failureCount"], job["status"]["infrastructureFailureCount"]) == (0, 1)
    assert bench.last_weights(name) == uninterrupted

    bench.until_condition(burning, "Succeeded", seconds=240)
    energy = until_final(bench, burning)
    second_joules = exact(bench, lost, pods[1]) - before[1]
    print(f"{energy['usedJoules']} J, the meter {first_joules:.0f} + {second_joules:.0f} J")
    true = first_joules + second_joules
    assert abs(energy["usedJoules"] - true) <= 2 * allowed(bench, lost, true)
    shares = [a["energyJoules"] for a in bench.read_job(burning)["status"]["attempts"]]
    assert sum(shares) == energy["usedJoules"]
    assert abs(shares[0] - first_joules) <= allowed(bench, lost, first_joules)
