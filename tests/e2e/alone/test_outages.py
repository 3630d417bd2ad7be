"""What is lost under a job: its operator, its node's room, its node."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from sandbox.outage import find_node, power_off, power_on
from tests.e2e.conftest import Bench
from tests.e2e.jobs import apart, condition, long, name_of, node_of, pods_of

Json = dict[str, Any]


def test_the_operator_killed_9_while_it_creates_converges(bench: Bench) -> None:
    """Nine jobs of four pods; the operator's process is killed again and again while it makes them."""
    template = {
        "spec": {
            "containers": [
                {
                    "name": "tensorflow",
                    "image": "localhost/greentrain/own-script:dev",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": {"cpu": "1m"}},
                }
            ],
            "terminationGracePeriodSeconds": 1,
        }
    }
    jobs = [
        {
            "apiVersion": "greentrain.dev/v1alpha1",
            "kind": "GreenTrainingJob",
            "metadata": {"name": f"kill-{i}"},
            "spec": {"tfReplicaSpecs": {"Worker": {"replicas": 4, "template": template}}},
        }
        for i in range(9)
    ]
    wanted = {f"kill-{i}-worker-{w}-1" for i in range(9) for w in range(4)}

    def pods() -> set[str]:
        found = bench.read("pods", "-l", "app.kubernetes.io/managed-by=greentrain")["items"]
        return {p["metadata"]["name"] for p in found if p["metadata"]["name"].startswith("kill-")}

    try:
        bench.apply(*jobs)
        for _ in range(3):
            operator = bench.operator_pod()
            with contextlib.suppress(AssertionError):  # it may be between two lives already
                bench.kill_container(operator["metadata"]["uid"], "greentrain.controller")
            time.sleep(4)
        bench.until(
            lambda: sorted(pods()), lambda seen: set(seen) == wanted, seconds=240, what="all pods, no other"
        )
        operator = bench.operator_pod()
        restarts = operator["status"]["containerStatuses"][0]["restartCount"]
        assert restarts >= 1
        for i in range(9):
            assert bench.read("gtj", f"kill-{i}")["status"]["attemptCount"] == 1
    finally:
        bench.kubectl("delete", "gtj", *(f"kill-{i}" for i in range(9)), "--wait")
        bench.until(lambda: sorted(pods()), lambda seen: not seen, seconds=120, what="no pods left")


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
            lambda: [p["spec"].get("nodeName") for n, p in pods_of(bench, name).items() if n.endswith("-2")],
            lambda nodes: nodes == [other, other],
            seconds=120,
            what="the second attempt's pods stand on the other node",
        )
    finally:
        bench.kubectl("uncordon", node)
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first["countedAgainst"]) == ("PodLost", "infrastructureRestartLimit")
    # Not a multiple of --checkpoint-every: the step all of them agreed on, saved because of the drain.
    assert second["startStep"] == first["lastStep"] >= 40
    assert (job["status"]["failureCount"], job["status"]["infrastructureFailureCount"]) == (0, 1)
    assert bench.last_weights(name) == uninterrupted


def test_a_lost_node_is_named_and_the_gang_goes_on_when_it_is_deleted(
    bench: Bench, digits: Json, uninterrupted: str
) -> None:
    name = name_of(digits)
    bench.apply(apart(long(digits)))
    bench.until_step(name, 40)
    # The operator itself must outlive the node.
    standing = bench.operator_pod()["spec"]["nodeName"]
    nodes = {i: node_of(bench, f"{name}-worker-{i}-1") for i in (0, 1)}
    index, lost = next((i, n) for i, n in nodes.items() if n != standing)
    node = find_node(bench.sandbox, lost)
    power_off(bench.sandbox, node)
    try:
        job = bench.until_condition(name, "Restarting", reason="NodeLost", seconds=120)
        assert (
            f"worker-{index}: its node stopped answering (node {lost})"
            in condition(job, "Restarting")["message"]
        )
        job = bench.until_condition(name, "PodsReady", "False", reason="WaitingForOldPods", seconds=60)
        job = bench.until(
            lambda: bench.read("gtj", name),
            lambda body: f"kubectl delete node {lost}" in condition(body, "PodsReady")["message"],
            seconds=60,
            what="the condition says how to go on",
        )
        assert job["status"]["attemptCount"] == 1
        bench.kubectl("delete", "node", lost)
        bench.until(
            lambda: sorted(pods_of(bench, name)),
            lambda pods: pods == [f"{name}-worker-{i}-2" for i in (0, 1)],
            seconds=150,
            what="the second attempt's pods",
        )
    finally:
        power_on(bench.sandbox, node)
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first["countedAgainst"]) == ("NodeLost", "infrastructureRestartLimit")
    assert second["startStep"] >= 40
    assert (job["status"]["failureCount"], job["status"]["infrastructureFailureCount"]) == (0, 1)
    assert bench.last_weights(name) == uninterrupted
