"""Stops, restarts and kills against a real kube-apiserver; the test plays the kubelet."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from sandbox.controlplane import ControlPlane
from tests.support.api import Server, condition, container_status
from tests.support.manifests import build_job
from tests.support.proxy import Allocated, Proxy

BOTH = {"digits-worker-0-1", "digits-worker-1-1"}


async def start_job(server: Server, namespace: str, manifest: dict[str, Any] | None = None) -> None:
    await server.create_job(namespace, manifest or build_job())
    for name in await server.until_pods(namespace, BOTH):
        await server.run_pod(namespace, name)
    await server.until_condition(namespace, "digits", "Running", "True")


async def test_suspend_stops_the_pods_and_resume_starts_a_new_attempt(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace)
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": True}}})
        job = await server.until_condition(namespace, "digits", "Suspended", "False", "StoppingPods")
        words = (
            '{"step": 40, "reason": "stopped on request", "checkpoint": {"step": 40, "path": "/c/ckpt-40"}}'
        )
        for name in BOTH:
            await server.end_pod(namespace, name, 143, message=words)
        await server.until(lambda: server.clear_terminating(namespace), lambda pods: not pods)
        job = await server.until_condition(namespace, "digits", "Suspended", "True")
        assert job["status"]["progress"]["checkpoint"] == {
            "step": 40,
            "path": "/c/ckpt-40",
            "confirmed": True,
        }
        assert job["status"]["failureCount"] == 0
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": False}}})
        await server.until_pods(namespace, {"digits-worker-0-2", "digits-worker-1-2"})


async def test_a_program_that_answers_sigterm_with_0_is_suspended_and_resumes(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace)
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": True}}})
        await server.until_condition(namespace, "digits", "Suspended", "False", "StoppingPods")
        for name in BOTH:  # each exit is seen by itself, worker 0's before the others have ended
            await server.end_pod(namespace, name, 0)
        await server.until(lambda: server.clear_terminating(namespace), lambda pods: not pods)
        job = await server.until_condition(namespace, "digits", "Suspended", "True")
        assert job["status"]["attempts"][-1]["reason"] == "SuspendRequested"
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": False}}})
        await server.until_pods(namespace, {"digits-worker-0-2", "digits-worker-1-2"})
        assert condition(await server.job(namespace, "digits"), "Succeeded")["status"] == "Unknown"
        assert "Succeeded" not in {e["reason"] for e in await server.events(namespace)}


async def test_a_drained_program_that_answers_with_0_is_started_again(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "digits-worker-0-1"}}
        await server.call("POST", f"/api/v1/namespaces/{namespace}/pods/digits-worker-0-1/eviction", eviction)
        await server.end_pod(namespace, "digits-worker-0-1", 0)
        await server.end_pod(namespace, "digits-worker-1-1", 144)
        job = await server.until_condition(namespace, "digits", "Restarting", "True")
    ended = job["status"]["attempts"][0]
    assert (ended["reason"], ended["exitCode"]) == ("Evicted", 0)


async def test_a_failing_init_container_fails_the_job_as_its_policy_says(
    server: Server, namespace: str, settings: Settings
) -> None:
    manifest = build_job(workers=1, runPolicy={"backoffLimit": 1})
    pod_spec = manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    pod_spec["initContainers"] = [{"name": "download", "image": "example/fetch:1", "args": None}]
    state = {"exitCode": 3, "reason": "Error", "message": "no such bucket"}
    ended = {"name": "download", "state": {"terminated": state}, "ready": False, "restartCount": 0}
    failed = {
        **container_status("Failed", {"waiting": {"reason": "PodInitializing"}}),
        "initContainerStatuses": [{**ended, "image": "x", "imageID": "x"}],
    }
    async with running(settings):
        await server.create_job(namespace, manifest)
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
        (init,) = pods["digits-worker-0-1"]["spec"]["initContainers"]
        assert init["terminationMessagePolicy"] == "FallbackToLogsOnError"
        await server.set_pod_status(namespace, "digits-worker-0-1", failed)
        await server.until_pods(namespace, {"digits-worker-0-2"})
        await server.set_pod_status(namespace, "digits-worker-0-2", failed)
        job = await server.until_condition(namespace, "digits", "Failed", "True", "BackoffLimitExceeded")
    assert "init container download exited with 3: no such bucket" in condition(job, "Failed")["message"]
    counts = (job["status"]["failureCount"], job["status"].get("infrastructureFailureCount", 0))
    assert (counts, job["status"]["attempts"][-1]["exitCode"]) == ((2, 0), 3)


async def test_a_job_fails_with_the_containers_last_lines(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace, build_job(restart_policy="Never"))
        await server.end_pod(namespace, "digits-worker-1-1", 1, message="ValueError: no such column")
        await server.end_pod(namespace, "digits-worker-0-1", 144)
        job = await server.until_condition(namespace, "digits", "Failed", "True", "ProgramFailed")
    assert "ValueError: no such column" in condition(job, "Failed")["message"]
    assert job["status"]["attempts"][-1]["exitCode"] == 1


async def test_a_pod_deleted_by_hand_restarts_the_gang(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace)
        await server.remove_pod(namespace, "digits-worker-1-1")
        await server.until_condition(namespace, "digits", "Running", "False", "PodLost")
        await server.end_pod(namespace, "digits-worker-0-1", 144)
        job = await server.until_condition(namespace, "digits", "Restarting", "True", "PodLost")
        assert job["status"]["infrastructureFailureCount"] == 1
        await server.until(
            lambda: server.clear_terminating(namespace),
            lambda pods: set(pods) == {"digits-worker-0-2", "digits-worker-1-2"},
        )


Json = dict[str, Any]
Deed = Callable[[Server, str, str], Awaitable[object]]
"""Something done to a pod, given its namespace and name."""


def said(**status: Any) -> Deed:
    """Its status is written."""
    return lambda server, namespace, pod: server.set_pod_status(namespace, pod, status)


def ended(code: int, reason: str = "Error", *, ago: float = 5, **status: Any) -> Deed:
    """Its kubelet says that the program ended so many seconds ago."""

    def tell(server: Server, namespace: str, pod: str) -> Awaitable[None]:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))
        state = {"exitCode": code, "reason": reason, "finishedAt": moment, "message": "no such column"}
        told = container_status("Failed" if code else "Succeeded", {"terminated": state})
        return server.set_pod_status(namespace, pod, {**told, **status})

    return tell


def asked(server: Server, namespace: str, pod: str) -> Awaitable[object]:
    """Its deletion is asked for."""
    return server.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod}")


def disrupted(reason: str) -> Json:
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "said the cluster"}
    return {"conditions": [target]}


PREEMPTED, DRAINED = disrupted("PreemptionByScheduler"), disrupted("EvictionByEvictionAPI")
ENDS: dict[str, tuple[tuple[Deed, ...], str, int | None, tuple[int, int]]] = {
    "preempted": ((said(**PREEMPTED), asked, ended(137, **PREEMPTED)), "Preempted", 137, (0, 1)),
    "preempted-unheard": ((said(**PREEMPTED),), "Preempted", None, (0, 1)),
    "evicted": ((said(phase="Failed", reason="Evicted"),), "Evicted", None, (0, 1)),
    "drained": ((said(**DRAINED), asked, ended(0, ago=-2, **DRAINED)), "Evicted", 0, (0, 1)),
    "node-gone": ((said(phase="Failed", **disrupted("DeletionByPodGC")),), "NodeLost", None, (0, 1)),
    "failed": ((ended(1),), "ProgramFailed", 1, (1, 0)),
    "out-of-memory": ((ended(137, "OOMKilled"),), "OutOfMemory", 137, (1, 0)),
    "done": ((ended(0, "Completed"),), "Succeeded", 0, (0, 0)),
    "stopped": ((asked, ended(0, ago=-2)), "PodLost", 0, (0, 1)),
    "deleted": ((), "PodLost", None, (0, 1)),
}
"""By a job's name: what happens to its only pod before it is removed; the reason and exit code of its attempt; what is counted
against the job's two limits."""


async def test_how_a_pod_ended_counts_although_it_is_gone_before_the_operator_looks(
    server: Server, namespace: str, settings: Settings, plane: ControlPlane, tmp_path: Path
) -> None:
    let = asyncio.Event()
    async with (
        Proxy.start(plane.kubeconfig, tmp_path) as proxy,
        running(replace(settings, kubeconfig=str(proxy.kubeconfig), workers=len(ENDS))),
    ):
        for job in ENDS:
            await server.create_job(namespace, build_job(job, workers=1, restart_policy="Never"))
        for pod in await server.until_pods(namespace, {f"{job}-worker-0-1" for job in ENDS}):
            await server.run_pod(namespace, pod)
        for job in ENDS:
            await server.until_condition(namespace, job, "Running", "True")
        rule = proxy.script("PATCH", "/status", Allocated(let), times=None)
        try:
            for job in ENDS:
                await server.patch_job(namespace, job, {"spec": {"runPolicy": {"backoffLimit": 5}}})
            await server.until(
                lambda: asyncio.sleep(0, rule.hits), lambda hits: hits == len(ENDS), what="every pass held up"
            )
            for job, (deeds, *_) in ENDS.items():
                pod = f"{job}-worker-0-1"
                for deed in deeds:
                    await deed(server, namespace, pod)
                await server.remove_pod(namespace, pod)
            await asyncio.sleep(0.5)  # the watch has told of all of it
        finally:
            proxy.forgive()
            let.set()
        for job, (_, reason, code, counts) in ENDS.items():
            stored = await server.until(
                partial(server.job, namespace, job),
                lambda body: body["status"]["attempts"][0].get("endTime"),
                what=f"the end of {job}",
            )
            status, first = stored["status"], stored["status"]["attempts"][0]
            assert (first["reason"], first.get("exitCode")) == (reason, code), job
            assert (status["failureCount"], status.get("infrastructureFailureCount", 0)) == counts, job
        failed = condition(await server.job(namespace, "failed"), "Failed")
        assert (failed["status"], "no such column" in failed["message"]) == ("True", True)
        assert condition(await server.job(namespace, "done"), "Succeeded")["status"] == "True"


async def test_a_job_deleted_and_made_again_waits_for_the_old_ones_pods(
    server: Server, namespace: str, settings: Settings
) -> None:
    path = f"/apis/greentrain.dev/v1alpha1/namespaces/{namespace}/greentrainingjobs/digits"
    async with running(settings):
        await start_job(server, namespace)
        old = await server.pods(namespace)
        await server.call("DELETE", path)
        await server.create_job(namespace, build_job())
        await server.until_condition(namespace, "digits", "PodsReady", "False", "WaitingForOldPods")
        # The test plays the garbage collector.
        for name in BOTH:
            await server.remove_pod(namespace, name)
        await server.call("DELETE", f"/api/v1/namespaces/{namespace}/services/digits")
        new = await server.until_pods(namespace, BOTH)
    assert not {p["metadata"]["uid"] for p in old.values()} & {p["metadata"]["uid"] for p in new.values()}


def more_than(count: int, pods: dict[str, Any]) -> bool:
    return len(pods) > count


async def test_killed_at_any_moment_and_restarted_it_converges(
    server: Server, namespace: str, settings: Settings, tmp_path: Path
) -> None:
    """Twelve jobs of four workers; the operator is killed −9 again and again while it makes their pods."""
    jobs, workers = 12, 4
    for i in range(jobs):
        await server.create_job(namespace, build_job(f"job-{i}", workers=workers))
    wanted = {f"job-{i}-worker-{w}-1" for i in range(jobs) for w in range(workers)}
    arguments = [sys.executable, "-m", "greentrain.controller", "--http-port=0", f"--namespace={namespace}"]
    arguments += [f"--kubeconfig={settings.kubeconfig}", "--workers=2"]
    kills_in_between = 0
    with (tmp_path / "operator.log").open("wb") as log:
        for _ in range(20):
            before = len(await server.pods(namespace))
            process = await asyncio.create_subprocess_exec(*arguments, stdout=log, stderr=log)
            try:
                # Killed as soon as it has made some pods but, most times, not all.
                grown = await server.until(
                    lambda: server.pods(namespace), partial(more_than, before), seconds=30
                )
            finally:
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
            kills_in_between += len(grown) < len(wanted)
            if set(await server.pods(namespace)) == wanted:
                break
    assert kills_in_between >= 1, "never killed in the middle: the test proved nothing"
    async with running(settings):
        pods = await server.until_pods(namespace, wanted)
        for name in pods:
            await server.run_pod(namespace, name)
        for i in range(jobs):
            job = await server.until_condition(namespace, f"job-{i}", "Running", "True")
            assert job["status"]["attemptCount"] == 1
        assert set(await server.pods(namespace)) == wanted


async def test_killed_between_two_attempts_it_goes_on_where_it_was(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start_job(server, namespace)
    # While no operator runs, one worker dies and the other follows.
    await server.end_pod(namespace, "digits-worker-1-1", 137)
    await server.end_pod(namespace, "digits-worker-0-1", 144)
    async with running(settings):
        job = await server.until_condition(namespace, "digits", "Restarting", "True", "Killed")
        assert job["status"]["failureCount"] == 1
    async with running(settings):
        await server.until(
            lambda: server.clear_terminating(namespace),
            lambda pods: set(pods) == {"digits-worker-0-2", "digits-worker-1-2"},
        )
        job = await server.job(namespace, "digits")
        assert (job["status"]["attemptCount"], job["status"]["failureCount"]) == (2, 1)


async def test_a_watch_that_missed_a_deletion_is_mended_by_resync(
    server: Server, namespace: str, settings: Settings, plane: ControlPlane
) -> None:
    async with running(replace(settings, resync_interval=1.0)):
        await start_job(server, namespace)
        # In this very thread: the servers die with the thread that started them.
        plane.restart_apiserver()
        await server.remove_pod(namespace, "digits-worker-1-1")
        await server.until_condition(namespace, "digits", "Running", "False", "PodLost", seconds=60)
