"""Budgets on a real server: allowances reach the nodes, a spent budget stops the job, a raised one lets it go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from greentrain.core.asks import UNLIMITED_JOULES
from tests.integration.operator.test_energy import PATH, NodeReports, gpu_job
from tests.support.api import MERGE, Server, condition, timestamp

Json = dict[str, Any]

GPU = {
    "uuid": "GPU-1",
    "model": "Tesla V100",
    "limits": {"setMilliwatts": 300_000, "enforcedMilliwatts": 300_000},
}


class Meter(NodeReports):
    """An agent that also tells its GPUs' limits, the pods' draw and the allowances it has read."""

    async def report(self) -> None:
        asked = await self.asked()
        for uid, entry in self.pods.items():
            if uid in asked:
                entry["allowanceJoules"] = asked[uid]
        status = {
            "observedAt": timestamp(),
            "journalID": "j",
            "reportIntervalSeconds": 10,
            "pods": list(self.pods.values()),
            "gpus": [GPU],
            "gpuCount": 1,
            "idleJoules": 5,
            "unattributedJoules": 0,
        }
        await self._server.call("PATCH", f"{PATH}/{self.node}/status", {"status": status}, content_type=MERGE)

    async def asked(self) -> dict[str, int]:
        """Allowances by the pod's UID."""
        body = await self._server.call("GET", f"{PATH}/{self.node}")
        pods = (body.get("spec") or {}).get("pods") or []
        return {p["uid"]: p["allowanceJoules"] for p in pods if "allowanceJoules" in p}


@pytest.fixture
async def meter(server: Server, namespace: str) -> AsyncIterator[Meter]:
    node = f"node-{namespace}"
    body = {
        "apiVersion": "greentrain.dev/v1alpha1",
        "kind": "NodePower",
        "metadata": {"name": node},
        "spec": {},
    }
    await server.call("POST", PATH, body)
    yield Meter(server, node)
    await server.call("DELETE", f"{PATH}/{node}")


async def start(server: Server, namespace: str, meter: Meter, attempt: int) -> dict[str, Json]:
    """The attempt's pods, bound to the meter's node and running."""
    pods = await server.until_pods(namespace, {f"digits-worker-{i}-{attempt}" for i in (0, 1)})
    for name in pods:
        await server.run_pod(namespace, name, node=meter.node)
    return pods


async def test_a_spent_budget_stops_the_job_and_a_raised_one_lets_it_go_on(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    await meter.report()
    job = gpu_job()
    job["spec"]["energy"] = {"budget": "1MJ", "warnAtPercent": [50]}
    await server.create_job(namespace, job)
    async with running(settings):
        pods = await start(server, namespace, meter, 1)
        uids = {p["metadata"]["uid"] for p in pods.values()}
        await server.until(meter.asked, lambda a: a == dict.fromkeys(uids, 500_000), what="half for each")
        for pod in pods.values():
            meter.tell(pod, 300_000)
        await meter.report()
        stored = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda body: body["status"].get("display", {}).get("budget") == "60%",
            what="60 %",
        )
        assert stored["status"]["attempts"][0]["overshootBoundJoules"] == 2 * 300 * (12 + 2 + 5 + 30 + 61)
        assert condition(stored, "BudgetExhausted")["reason"] == "BudgetWarning"
    # While nobody looks the rest is spent.
    for pod in pods.values():
        meter.tell(pod, 500_000)
    await meter.report()
    async with running(settings):
        await server.until(
            lambda: server.pods(namespace),
            lambda there: all("deletionTimestamp" in there[name]["metadata"] for name in pods),
            what="both asked to stop",
        )
        for name, pod in pods.items():
            await server.end_pod(namespace, name, 143)
            meter.tell(pod, 501_000, closed=True)
        await meter.report()
        for name in pods:
            await server.remove_pod(namespace, name)
        stored = await server.until_condition(namespace, "digits", "Suspended", "True")
        said = condition(stored, "Suspended")
        assert (said["reason"], stored["status"]["phase"]) == ("BudgetExhausted", "Suspended")
        assert "raise spec.energy.budget above 1MJ" in said["message"]
        await server.patch_job(namespace, "digits", {"spec": {"energy": {"budget": "2MJ"}}})
        pods = await start(server, namespace, meter, 2)
        room = 2_000_000 - 1_002_000
        await server.until(
            meter.asked,
            lambda a: sorted(a.values()) == [room // 2, room // 2],
            what="the rest for the next attempt",
        )
        # Without a budget nothing may be held against pods that were made under one.
        await server.patch_job(namespace, "digits", {"spec": {"energy": {"budget": None}}})
        await server.until(
            meter.asked, lambda a: list(a.values()) == [UNLIMITED_JOULES] * 2, what="as much as they like"
        )
        events = await server.events(namespace)
    reasons = [e["reason"] for e in events]
    for reason in ("BudgetWarning", "BudgetExhausted", "Resumed"):
        assert reason in reasons
