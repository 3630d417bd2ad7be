"""Ends and stops of every kind, on real kubelets: drains, memory, deadlines, times to live, changed minds."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.e2e.conftest import Bench
from tests.e2e.jobs import condition, plain_job

Json = dict[str, Any]

STUBBORN = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(4), sys.exit(143)))\n"
    "time.sleep(3600)\n"
)
"""A program that takes four seconds to stop."""


EXTENDED = "example.com/e2e-card"
"""An extended resource of these tests, so that preemption is about nothing else on the nodes."""


def offer(bench: Bench, count: str | None) -> None:
    """Announce the extended resource on one node, or take it back."""
    node = bench.read("nodes")["items"][0]["metadata"]["name"]
    body = json.dumps({"status": {"capacity": {EXTENDED: count}}})
    bench.kubectl("patch", "node", node, "--subresource=status", "--type=merge", f"-p={body}")


def test_a_preempted_worker_is_an_infrastructure_restart(bench: Bench, removed: list[str]) -> None:
    name = "e2e-preempted"
    removed.append(name)
    job = plain_job(name, "sleep", "3600", workers=1)
    job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["resources"] = {
        "requests": {EXTENDED: "1"},
        "limits": {EXTENDED: "1"},
    }
    urgent = "e2e-urgent"
    offer(bench, "1")
    try:
        bench.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": urgent},
                "value": 1000,
            },
            job,
        )
        bench.until_condition(name, "Running", seconds=90)
        pod_spec = {
            **job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"],
            "priorityClassName": urgent,
        }
        pod_spec["restartPolicy"] = "Never"
        bench.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": urgent}, "spec": pod_spec})
        seen = bench.until_condition(name, "PodsReady", "False", reason="Unschedulable", seconds=120)
        (first, _) = seen["status"]["attempts"]
        assert first["reason"] == "Preempted", first
        assert first["countedAgainst"] == "infrastructureRestartLimit"
        bench.kubectl("delete", "pod", urgent, "--grace-period=1")
        bench.until_condition(name, "Running", seconds=90)
    finally:
        bench.kubectl("delete", "pod", urgent, "--ignore-not-found", "--grace-period=1")
        bench.kubectl("delete", "priorityclass", urgent, "--ignore-not-found")
        offer(bench, None)


def test_an_image_that_vanished_is_named_when_the_others_gave_up_waiting(
    bench: Bench, removed: list[str]
) -> None:
    name = "e2e-image"
    removed.append(name)
    job = plain_job(
        name, "sh", "-c", "sleep 10; exit 144", workers=1, runPolicy={"infrastructureRestartLimit": 0}
    )
    chief = yaml.safe_load(yaml.safe_dump(job["spec"]["tfReplicaSpecs"]["Worker"]))
    job["spec"]["tfReplicaSpecs"]["Chief"] = chief
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container |= {"image": "localhost/greentrain/vanished:1", "imagePullPolicy": "Never"}
    bench.apply(job)
    seen = bench.until_condition(name, "Failed", reason="InfrastructureRestartLimitExceeded", seconds=120)
    (first,) = seen["status"]["attempts"]
    assert first["reason"] == "ImageUnavailable"
    assert "worker-0 never started" in condition(seen, "Failed")["message"]
    assert "localhost/greentrain/vanished:1" in condition(seen, "Failed")["message"]


def test_out_of_memory_is_said_so(bench: Bench, removed: list[str]) -> None:
    removed.append("e2e-memory")
    # A child eats it, so that the kernel's word is out when the container ends: of a container that ends by it containerd 1.6
    # may see the exit first, and then knows no reason.
    child = "import sys; held = bytearray(200_000_000)"
    eat = f"import subprocess, sys, time; subprocess.call([sys.executable, '-c', {child!r}]); time.sleep(3); sys.exit(137)"
    bench.apply(plain_job("e2e-memory", "python3", "-c", eat, workers=1, limits={"memory": "64Mi"}))
    job = bench.until_condition("e2e-memory", "Failed", reason="OutOfMemory", seconds=90)
    assert "worker-0 ran out of memory (raise its memory limit)" in condition(job, "Failed")["message"]


def test_the_last_lines_of_a_failed_container_stand_in_the_message(bench: Bench, removed: list[str]) -> None:
    removed.append("e2e-words")
    fail = "print('reading 3 files'); raise ValueError('no column label in part-7')"
    bench.apply(plain_job("e2e-words", "python3", "-c", fail, workers=1))
    job = bench.until_condition("e2e-words", "Failed", reason="ProgramFailed", seconds=90)
    assert "ValueError: no column label in part-7" in condition(job, "Failed")["message"]


def test_a_deadline_ends_a_job_and_its_pods(bench: Bench, removed: list[str]) -> None:
    removed.append("e2e-deadline")
    policy = {"activeDeadlineSeconds": 5}
    bench.apply(plain_job("e2e-deadline", "python3", "-c", STUBBORN, runPolicy=policy))
    job = bench.until_condition("e2e-deadline", "Failed", reason="DeadlineExceeded", seconds=120)
    assert job["status"]["activeSeconds"] >= 5
    bench.until(
        lambda: sorted(
            n for n, p in bench.read_pods("e2e-deadline").items() if p["status"]["phase"] == "Running"
        ),
        lambda running: not running,
        seconds=60,
        what="no pod of it runs",
    )


def test_a_finished_job_goes_when_its_time_to_live_is_over(bench: Bench, removed: list[str]) -> None:
    removed.append("e2e-ttl")
    bench.apply(plain_job("e2e-ttl", "true", runPolicy={"ttlSecondsAfterFinished": 5}))
    bench.until_condition("e2e-ttl", "Succeeded", seconds=90)
    bench.until(
        lambda: bench.kubectl("get", "gtj,pods,service", "-o", "name"),
        lambda there: "e2e-ttl" not in there,
        seconds=120,
        what="the job, its pods and its Service are gone",
    )


def test_a_job_deleted_while_it_is_created_leaves_nothing(bench: Bench, removed: list[str]) -> None:
    names = [f"e2e-gone-{i}" for i in range(6)]
    removed += names
    bench.apply(*(plain_job(n, "sleep", "3600", workers=4) for n in names))
    bench.kubectl("delete", "gtj", *names, "--wait=false")

    def left() -> list[str]:
        return [
            n for n in bench.kubectl("get", "gtj,pods,service", "-o", "name").split() if "/e2e-gone-" in n
        ]

    def not_asked_to_go() -> list[str]:
        pods = bench.read("pods")["items"]
        asked = {f"pod/{p['metadata']['name']}" for p in pods if p["metadata"].get("deletionTimestamp")}
        return [name for name in left() if name not in asked]

    bench.until(
        not_asked_to_go,
        lambda names: not names,
        seconds=120,
        what="no job and no Service is left, and no pod that was not asked to go",
    )
    bench.until(left, lambda names: not names, seconds=120, what="kubelets have let go of every pod")


def test_a_resume_while_the_pods_still_stop_waits_for_them(bench: Bench, removed: list[str]) -> None:
    name = "e2e-resume"
    removed.append(name)
    bench.apply(plain_job(name, "python3", "-c", STUBBORN))
    bench.until_condition(name, "Running", seconds=90)
    bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":true}}}')
    bench.until(
        lambda: bench.read_pods(name),
        lambda pods: all(p["metadata"].get("deletionTimestamp") for p in pods.values()),
        seconds=30,
        what="every pod is stopping",
    )
    bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":false}}}')
    job = bench.until_condition(name, "Running", seconds=180)
    if job["status"]["attemptCount"] == 1:  # read before the operator's next word
        job = bench.until(
            lambda: bench.read_job(name),
            lambda body: (
                body["status"]["attemptCount"] == 2 and condition(body, "Running")["status"] == "True"
            ),
            seconds=180,
            what="the second attempt runs",
        )
    assert job["status"]["attempts"][0]["reason"] == "SuspendRequested"
    assert job["status"]["failureCount"] == job["status"]["infrastructureFailureCount"] == 0
    assert set(bench.read_pods(name)) == {f"{name}-worker-0-2", f"{name}-worker-1-2"}


def test_a_root_image_is_refused_with_the_remedy_and_runs_when_it_is_allowed(
    bench: Bench, removed: list[str]
) -> None:
    name = "e2e-root"
    removed.append(name)
    job = plain_job(name, "true", workers=1)
    pod_spec = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    pod_spec["containers"][0]["securityContext"] = {"runAsUser": 0, "runAsNonRoot": True}
    bench.apply(job)
    seen = bench.until_condition(name, "PodsReady", "False", reason="ContainerNotStarted", seconds=90)
    assert "securityContext.runAsNonRoot: false to allow it" in condition(seen, "PodsReady")["message"]
    pod_spec["containers"][0]["securityContext"] = {"runAsUser": 0}
    bench.apply(job)  # nothing ran yet: the edit takes effect at once
    seen = bench.until_condition(name, "Succeeded", seconds=120)
    assert seen["status"]["failureCount"] == 0
