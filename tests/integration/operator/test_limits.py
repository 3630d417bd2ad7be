"""Deadlines, times to live and timeouts on a real kube-apiserver, also over an operator's restart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import MERGE, RefusedError, Server, condition
from tests.support.manifests import build_job, build_template

Json = dict[str, Any]
BOTH = {"digits-worker-0-1", "digits-worker-1-1"}


async def start(server: Server, namespace: str, manifest: Json) -> None:
    """The job's first attempt, every pod of it running."""
    await server.create_job(namespace, manifest)
    for name in await server.until_pods(namespace, BOTH):
        await server.run_pod(namespace, name)
    await server.until_condition(namespace, "digits", "Running", "True")


async def stop_pods(server: Server, namespace: str) -> None:
    """Play the kubelet: what is being deleted stops as it was asked to."""

    async def all_leaving() -> dict[str, Json]:
        return await server.pods(namespace)

    pods = await server.until(
        all_leaving, lambda found: all(p["metadata"].get("deletionTimestamp") for p in found.values())
    )
    for name in pods:
        await server.end_pod(namespace, name, 143, message='{"step": 40, "reason": "stopped on request"}')


async def test_a_deadline_reached_while_no_operator_runs_is_kept_by_the_next_one(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await start(server, namespace, build_job(runPolicy={"activeDeadlineSeconds": 3}))
    await asyncio.sleep(3)
    assert condition(await server.job(namespace, "digits"), "Running")["status"] == "True"
    async with running(settings):
        await server.until_condition(namespace, "digits", "Running", "False", "DeadlineExceeded")
        await stop_pods(server, namespace)
        job = await server.until_condition(namespace, "digits", "Failed", "True", "DeadlineExceeded")
    assert "spec.runPolicy.activeDeadlineSeconds 3" in condition(job, "Failed")["message"]
    assert job["status"]["activeSeconds"] >= 3
    assert job["status"]["progress"]["step"] == 40


async def test_a_time_to_live_is_kept_over_a_restart_and_takes_the_job_away(
    server: Server, namespace: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "greentrain.controller")
    async with running(settings):
        await start(server, namespace, build_job(runPolicy={"ttlSecondsAfterFinished": 6}))
        for name in BOTH:
            await server.end_pod(namespace, name, 0)
        job = await server.until_condition(namespace, "digits", "Succeeded", "True")
    await asyncio.sleep(1)
    assert (await server.job(namespace, "digits"))["metadata"]["uid"] == job["metadata"]["uid"]
    async with running(settings):

        async def there() -> bool:
            try:
                await server.job(namespace, "digits")
            except RefusedError as error:
                return error.status != 404
            return True

        await server.until(there, lambda found: not found)

        async def said() -> list[str]:
            return [r.message for r in caplog.records if getattr(r, "reason", "") == "TimeToLiveOver"]

        # The server has deleted it a moment before its answer is read and logged.
        assert await server.until(said, bool) == [
            "the job is deleted: spec.runPolicy.ttlSecondsAfterFinished is over"
        ]


async def test_a_pod_no_node_takes_fails_the_job_with_the_schedulers_words(
    server: Server, namespace: str, settings: Settings
) -> None:
    policy = {"schedulingPolicy": {"scheduleTimeoutSeconds": 2}}
    words = "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."
    unscheduled = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        ],
    }
    async with running(settings):
        await server.create_job(namespace, build_job(runPolicy=policy))
        await server.until_pods(namespace, BOTH)
        await server.run_pod(namespace, "digits-worker-0-1")
        await server.set_pod_status(namespace, "digits-worker-1-1", unscheduled)
        job = await server.until_condition(namespace, "digits", "Failed", "True", "ScheduleTimeout")
        assert words in condition(job, "Failed")["message"]
        # No pod of a failed job holds a GPU: the one that runs is stopped after its moment of grace.
        await server.until(
            lambda: server.clear_terminating(namespace), lambda found: not found, what="no pods left"
        )


async def test_a_wrong_image_is_mended_by_an_edit_at_once_and_costs_nothing(
    server: Server, namespace: str, settings: Settings
) -> None:
    manifest = build_job()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "train:latst: not found"}}
    async with running(settings):
        await server.create_job(namespace, manifest)
        await server.until_pods(namespace, BOTH)
        base = {"ready": False, "restartCount": 0, "image": "x", "imageID": ""}
        state = {
            "phase": "Pending",
            "containerStatuses": [{"name": "tensorflow", "state": waiting, **base}],
        }
        await server.set_pod_status(namespace, "digits-worker-0-1", state)
        await server.until_condition(namespace, "digits", "PodsReady", "False", "ImageUnavailable")
        template = build_template(imagePullPolicy="Always")
        patch = {"spec": {"tfReplicaSpecs": {"Worker": {"template": template}}}}
        await server.patch_job(namespace, "digits", patch)
        await server.until(
            lambda: server.clear_terminating(namespace),
            lambda found: set(found) == {"digits-worker-0-2", "digits-worker-1-2"},
        )
        job = await server.job(namespace, "digits")
    first = job["status"]["attempts"][0]
    assert (first["reason"], first.get("countedAgainst")) == ("SpecChanged", None)
    assert job["status"].get("failureCount", 0) == 0


async def test_an_evaluator_is_made_again_alone_while_the_gang_goes_on(
    server: Server, namespace: str, settings: Settings
) -> None:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Evaluator"] = {
        "restartPolicy": "OnFailure",
        "template": build_template(),
    }
    async with running(settings):
        await server.create_job(namespace, manifest)
        every = {*BOTH, "digits-evaluator-0-1"}
        pods = await server.until_pods(namespace, every)
        for name in pods:
            await server.run_pod(namespace, name)
        await server.until_condition(namespace, "digits", "Running", "True")
        await server.end_pod(namespace, "digits-evaluator-0-1", 1, message="no checkpoint yet")
        again = await server.until(
            lambda: server.clear_terminating(namespace),
            lambda found: (
                set(found) == every
                and found["digits-evaluator-0-1"]["metadata"]["uid"]
                != pods["digits-evaluator-0-1"]["metadata"]["uid"]
            ),
        )
        job = await server.job(namespace, "digits")
        assert {again[n]["metadata"]["uid"] for n in BOTH} == {pods[n]["metadata"]["uid"] for n in BOTH}
        assert (job["status"]["attemptCount"], job["status"]["failureCount"]) == (1, 1)
        assert condition(job, "Running")["status"] == "True"
        (replaced,) = job["status"]["attempts"][0]["replaced"]
        assert (replaced["reason"], replaced["countedAgainst"]) == ("ProgramFailed", "backoffLimit")
        for name in BOTH:
            await server.end_pod(namespace, name, 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True")


@pytest.mark.parametrize("asked", [False, True])
async def test_pods_get_no_token_unless_the_template_asks(
    server: Server, namespace: str, settings: Settings, asked: bool
) -> None:
    manifest = build_job(workers=1)
    account = {"metadata": {"name": "bucket"}}
    await server.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    if asked:
        labels = {"metadata": {"labels": {"greentrain.dev/pod-security": "privileged"}}}
        await server.call("PATCH", f"/api/v1/namespaces/{namespace}", labels, content_type=MERGE)
        manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["serviceAccountName"] = "bucket"
    async with running(settings):
        await server.create_job(namespace, manifest)
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
    spec = pods["digits-worker-0-1"]["spec"]
    assert spec.get("automountServiceAccountToken") is (None if asked else False)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
