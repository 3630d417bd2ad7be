"""A job whose pods carry Kueue's labels is one gang to it: admitted together, waiting together, and gone without a trace."""

from __future__ import annotations

import json
import time
from typing import Any

from sandbox.kueue import QUEUE
from tests.e2e.conftest import Bench
from tests.e2e.jobs import condition, name_of, plain_job

Json = dict[str, Any]

GROUP = "kueue.x-k8s.io/pod-group-name"


def queued(job: Json, group: str) -> Json:
    """The same job, its pods one group of Kueue's."""
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    worker["template"]["metadata"] = {
        "labels": {"kueue.x-k8s.io/queue-name": QUEUE, GROUP: group},
        "annotations": {
            "kueue.x-k8s.io/pod-group-total-count": str(worker["replicas"]),
            # Without it Kueue waits for pods in the place of ended ones, and holds those and their quota for ever.
            "kueue.x-k8s.io/retriable-in-group": "false",
        },
    }
    return job


def used_gpus(bench: Bench) -> int:
    """What the ClusterQueue has given away."""
    status = bench.read("clusterqueue", QUEUE)["status"]
    (flavor,) = status["flavorsReservation"]
    return int(next(r["total"] for r in flavor["resources"] if r["name"] == "nvidia.com/gpu"))


def test_a_gang_waits_for_quota_as_one_trains_and_leaves_nothing(bench: Bench, digits: Json) -> None:
    # The name of a group must be new each time: Kueue finishes pods that join a group it knows to have ended.
    stamp = str(int(time.time()))
    before = plain_job(f"e2e-before-{stamp}", "sleep", "3600", workers=3, limits={"nvidia.com/gpu": "1"})
    name = name_of(digits)
    try:
        bench.apply(queued(before, f"before-{stamp}"))
        bench.until_condition(name_of(before), "Running", seconds=120)
        # Kueue lets pods run first and counts them in its ClusterQueue's status a moment later.
        bench.until(
            lambda: used_gpus(bench), lambda used: used == 3, seconds=60, what="three GPUs given away"
        )

        # Two GPUs are asked for and one is free: neither pod starts, and the server says why.
        bench.apply(queued(digits, f"gang-{stamp}"))
        bench.until(
            lambda: [condition(pod, "PodScheduled").get("reason") for pod in bench.read_pods(name).values()],
            lambda seen: seen == ["SchedulingGated"] * 2,
            seconds=60,
            what="both pods wait at Kueue's gate",
        )
        workload = bench.until(
            lambda: bench.read("workload", f"gang-{stamp}"),
            lambda found: condition(found, "QuotaReserved").get("status") == "False",
            seconds=60,
            what="Kueue says that it has no quota",
        )
        assert (
            "insufficient unused quota for nvidia.com/gpu" in condition(workload, "QuotaReserved")["message"]
        )
        assert condition(bench.read_job(name), "Running")["status"] == "False"
        pending = json.loads(
            bench.kubectl(
                "get",
                "--raw",
                f"/apis/visibility.kueue.x-k8s.io/v1beta2/clusterqueues/{QUEUE}/pendingworkloads",
            )
        )
        assert [item["metadata"]["name"] for item in pending["items"]] == [f"gang-{stamp}"]

        bench.kubectl("delete", "gtj", name_of(before), "--wait")
        job = bench.until_condition(name, "Succeeded", seconds=300)
        assert job["status"]["attemptCount"] == 1
        bench.until(
            lambda: condition(bench.read("workload", f"gang-{stamp}"), "Finished").get("status"),
            lambda status: status == "True",
            seconds=60,
            what="Kueue says that the gang is finished",
        )
    finally:
        bench.kubectl("delete", "gtj", name_of(before), name, "--ignore-not-found", "--wait")
    bench.until(
        lambda: sorted([*bench.read_pods(name_of(before)), *bench.read_pods(name)]),
        lambda pods: not pods,
        seconds=90,
        what="no pod of either job is left",
    )
    bench.until(lambda: used_gpus(bench), lambda used: used == 0, seconds=60, what="all quota is free")
