"""A node whose agent's token was stolen forges its NodePower on a real server: it harms no job of another node."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from greentrain.api.nodepower import MAX_JOULES, MAX_MILLIWATTS, MAX_REPORT_SECONDS
from greentrain.controller.run import Operator, running
from greentrain.controller.settings import Settings
from tests.integration.operator.test_budget import GPU, Meter, start
from tests.integration.operator.test_energy import PATH, gpu_job
from tests.support.api import MERGE, RefusedError, Server, condition, timestamp
from tests.support.statuses import read_whole

Json = dict[str, Any]

BOUND = 2 * 300 * (12 + 2 + 5 + 30 + 61)
"""Two GPUs at the honest node's limit (300 W), its interval (10 s), reaction, grace and the operator's silence."""

HUGE = 2**62


class Liar(Meter):
    """A second node, which runs no pod and reports what it likes."""

    def __init__(self, server: Server, node: str) -> None:
        super().__init__(server, node)
        self.fields: Json = {}

    async def report(self) -> None:
        gpu = {**GPU, "limits": {"setMilliwatts": MAX_MILLIWATTS}}
        status = {
            "observedAt": timestamp(),
            "journalId": "liar",
            "reportIntervalSeconds": MAX_REPORT_SECONDS,
            "gpus": [gpu],
            "pods": list(self.pods.values()),
            **self.fields,
        }
        await self._server.call("PATCH", f"{PATH}/{self.node}/status", {"status": status}, content_type=MERGE)

    async def refused(self) -> Json:
        """What the API server says of this report, which it does not take."""
        with pytest.raises(RefusedError) as refusal:
            await self.report()
        return refusal.value.body


@pytest.fixture
async def nodes(server: Server, namespace: str) -> AsyncIterator[tuple[Meter, Liar]]:
    found = (Meter(server, f"node-1-{namespace}"), Liar(server, f"node-2-{namespace}"))
    for node in found:
        body = {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower", "metadata": {"name": node.node}}
        await server.call("POST", PATH, {**body, "spec": {}})
    yield found
    for node in found:
        await server.call("DELETE", f"{PATH}/{node.node}")


def refused_entries(operator: Operator, node: str) -> float:
    found = re.search(
        rf'greentrain_node_report_refused{{node="{node}"}} ([0-9.]+)', operator.telemetry.render().decode()
    )
    return float(found[1]) if found else 0.0


async def test_a_node_that_lies_about_pods_of_another_harms_none(
    server: Server, namespace: str, settings: Settings, nodes: tuple[Meter, Liar]
) -> None:
    meter, liar = nodes
    await meter.report()
    await liar.report()
    job = gpu_job()
    job["spec"]["energy"] = {"budget": "1MJ", "warnAtPercent": [50]}
    await server.create_job(namespace, job)
    async with running(settings) as operator:
        pods = await start(server, namespace, meter, 1)
        for pod in pods.values():
            meter.tell(pod, 100_000)
        await meter.report()
        await server.until(
            lambda: server.job(namespace, "digits"),
            lambda body: body["status"].get("energy", {}).get("usedJoules") == 200_000,
            what="what was used",
        )

        for pod in pods.values():
            liar.tell(pod, HUGE)
        assert "gpuJoules" in (await liar.refused())["message"]
        for pod in pods.values():
            liar.tell(pod, MAX_JOULES)
        liar.fields = {"reportIntervalSeconds": 10**8}
        assert "reportIntervalSeconds" in (await liar.refused())["message"]
        liar.fields = {}
        for entry in liar.pods.values():
            entry |= {"budgetAction": "Evicted", "drawMilliwatts": 10**9, "closed": True}
        await liar.report()

        async def count() -> float:
            return refused_entries(operator, liar.node)

        await server.until(count, lambda seen: seen == 2, what="both entries not believed")
        # Another pass over the job, with the honest node's next word.
        for pod in pods.values():
            meter.tell(pod, 150_000)
        await meter.report()
        stored = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda body: body["status"]["energy"]["usedJoules"] != 200_000,
            what="what was used later",
        )
        there = await server.pods(namespace)
        assert stored["status"]["energy"]["usedJoules"] == 300_000
        assert {p["node"] for p in read_whole(stored)["energy"]["pods"]} == {meter.node}
        assert stored["status"]["energy"].get("drawMilliwatts") is None
        assert condition(stored, "Running")["status"] == "True"
        assert set(there) == set(pods)
        assert not any("deletionTimestamp" in pod["metadata"] for pod in there.values())
        assert stored["status"]["attempts"][0]["overshootBoundJoules"] == BOUND
        assert refused_entries(operator, meter.node) == 0

        other = gpu_job()
        other["metadata"]["name"] = "other"
        other["spec"]["energy"] = {"budget": "1MJ"}
        await server.create_job(namespace, other)
        begun = await server.until(
            lambda: server.job(namespace, "other"),
            lambda body: bool(body.get("status", {}).get("attempts")),
            what="the new job's attempt",
        )
        assert begun["status"]["attempts"][0]["overshootBoundJoules"] == BOUND
