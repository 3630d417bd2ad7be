"""Health, readiness and metrics of a running operator; a CRD of another version is told by readiness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from sandbox.ports import find_free_ports
from tests.support.api import MERGE, Server
from tests.support.manifests import build_job

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/greentrainingjobs.greentrain.dev"


async def fetch(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_a_running_operator_is_ready_and_counts(
    server: Server, namespace: str, settings: Settings
) -> None:
    port = find_free_ports(1)[0]
    async with running(replace(settings, http_port=port)):
        await server.create_job(namespace, build_job())
        await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        assert (await fetch(port, "/healthz"))[0] == 200
        assert (await fetch(port, "/readyz"))[0] == 200

        async def read_metrics() -> str:
            return (await fetch(port, "/metrics"))[1]

        # The server has the pods a moment before the pass that made them has counted them.
        await server.until(read_metrics, lambda text: "greentrain_pods_created_total 2.0" in text)
        await server.until(read_metrics, lambda text: 'greentrain_passes_total{outcome="ok"}' in text)


async def test_an_operator_that_finds_another_schema_is_not_ready_and_says_what_to_run(
    server: Server, namespace: str, settings: Settings
) -> None:
    del namespace
    port = find_free_ports(1)[0]
    sound = await server.call("GET", CRD)
    annotation = "greentrain.dev/schema-hash"

    async def annotate(value: str) -> None:
        patch: dict[str, Any] = {"metadata": {"annotations": {annotation: value}}}
        await server.call("PATCH", CRD, patch, content_type=MERGE)

    import asyncio

    from greentrain.controller.run import Operator

    await annotate("0000")
    stop = asyncio.Event()
    task = asyncio.create_task(Operator(replace(settings, http_port=port)).run(stop))
    try:

        async def readiness() -> list[Any]:
            try:
                return list(await fetch(port, "/readyz"))
            except aiohttp.ClientError:
                return [0, ""]

        status, text = await server.until(readiness, lambda seen: "schema 0000" in seen[1])
        assert status == 503
        assert "run helm upgrade" in text
        await annotate(sound["metadata"]["annotations"][annotation])
        await server.until(readiness, lambda seen: seen[0] == 200)
    finally:
        await annotate(sound["metadata"]["annotations"][annotation])
        stop.set()
        await task
