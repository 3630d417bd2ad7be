"""The controller against a real kube-apiserver: from apply to the end of a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry

from greentrain.api.runtime import PROGRESS_PORT
from greentrain.controller.clock import SteadyClock
from greentrain.controller.passes.jobs import Passes
from greentrain.controller.passes.records import Parts
from greentrain.controller.run import TLS_CLOSE_SECONDS, running
from greentrain.controller.settings import Settings
from greentrain.controller.workqueue import WorkQueue
from greentrain.kube.cache import Cache, Key
from greentrain.kube.client import connect
from greentrain.kube.readings import NodePowers
from greentrain.telemetry.metrics import Telemetry
from tests.support.api import POD_ADDRESS, RefusedError, Server, condition
from tests.support.manifests import build_job


async def test_a_job_gets_a_service_and_pods_and_succeeds(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job())
        pods = await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        service = await server.call("GET", f"/api/v1/namespaces/{namespace}/services/digits")
        assert service["spec"]["clusterIP"] == "None"
        env = {e["name"]: e["value"] for e in pods["digits-worker-1-1"]["spec"]["containers"][0]["env"]}
        config = json.loads(env["TF_CONFIG"])
        assert config["task"] == {"type": "worker", "index": 1}
        assert config["cluster"]["worker"][0] == f"digits-worker-0.digits.{namespace}.svc:2222"
        for name in pods:
            await server.run_pod(namespace, name)
        job = await server.until_condition(namespace, "digits", "Running", "True")
        assert job["status"]["phase"] == "Running"
        for name in pods:
            await server.end_pod(namespace, name, 0)
        job = await server.until_condition(namespace, "digits", "Succeeded", "True")
        job = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda j: j["status"]["replicaStatuses"]["Worker"]["succeeded"] == 2,
        )
    assert job["status"]["attemptCount"] == 1
    assert job["status"]["completionTime"]
    assert condition(job, "Failed")["status"] == "False"
    assert "annotations" not in job["metadata"]
    assert "finalizers" not in job["metadata"]
    reasons = {e["reason"] for e in await server.events(namespace)}
    assert {"Created", "Running", "Succeeded"} <= reasons


@pytest.mark.parametrize("policy", ["", "AllWorkers"])
async def test_a_success_policy_may_be_empty_as_tfjobs(
    server: Server, namespace: str, settings: Settings, policy: str
) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job(successPolicy=policy))
        await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        job = await server.until_condition(namespace, "digits", "Created", "True")
    assert condition(job, "Admitted")["status"] == "True"


@pytest.fixture
async def counting_program() -> AsyncIterator[None]:
    """A program that is one step further each time it is asked; pods "run" on loopback here."""
    answers = iter(range(1, 1000))

    async def progress(_: web.Request) -> web.Response:
        return web.json_response({"step": next(answers), "totalSteps": 1000, "metrics": {"loss": 0.5}})

    app = web.Application()
    app.add_routes([web.get("/progress", progress)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, POD_ADDRESS, PROGRESS_PORT).start()
    yield
    await runner.cleanup()


async def until_step(server: Server, namespace: str, step: int) -> None:
    await server.until(
        lambda: server.job(namespace, "digits"),
        lambda job: job.get("status", {}).get("progress", {}).get("step", 0) >= step,
        what=f"step {step}",
    )


@pytest.mark.usefixtures("counting_program")
async def test_a_running_programs_progress_comes_into_the_status_without_any_other_event(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job(workers=1))
        for name in await server.until_pods(namespace, {"digits-worker-0-1"}):
            await server.run_pod(namespace, name)
        await until_step(server, namespace, 3)


@pytest.mark.usefixtures("counting_program")
async def test_a_pass_follows_the_operators_own_status_write_without_a_watch(
    server: Server, namespace: str, settings: Settings
) -> None:
    """The watch may bring our own write back before or after its answer: nothing may hang on which."""
    key = Key(namespace, "digits")
    cache, queue, clock = Cache(), WorkQueue[Key](), SteadyClock()
    async with await connect(settings.kubeconfig) as client, ClientSession() as session:
        parts = Parts(client, cache, queue, Telemetry(CollectorRegistry()), clock)
        passes = Passes(parts, NodePowers(clock), session, settings)
        worker = asyncio.create_task(passes.work())
        try:
            cache.put("Job", await server.create_job(namespace, build_job(workers=1)))
            queue.add(key)
            for name in await server.until_pods(namespace, {"digits-worker-0-1"}):
                await server.run_pod(namespace, name)
            cache.put("Pod", (await server.pods(namespace))["digits-worker-0-1"])
            queue.add(key)
            await until_step(server, namespace, 3)
        finally:
            queue.close()
            worker.cancel()
    await asyncio.sleep(TLS_CLOSE_SECONDS)


async def test_a_service_deleted_by_hand_is_made_again(
    server: Server, namespace: str, settings: Settings
) -> None:
    path = f"/api/v1/namespaces/{namespace}/services/digits"
    async with running(settings):
        await server.create_job(namespace, build_job())
        for name in await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"}):
            await server.run_pod(namespace, name)
        await server.until_condition(namespace, "digits", "Running", "True")
        old = await server.call("GET", path)
        await server.call("DELETE", path)

        async def uid() -> str:
            try:
                return str((await server.call("GET", path))["metadata"]["uid"])
            except RefusedError:
                return ""

        await server.until(uid, lambda found: found not in ("", old["metadata"]["uid"]))
        assert (await server.job(namespace, "digits"))["status"]["attemptCount"] == 1
