"""Joules from NodePowers into jobs' statuses on a real server; the test plays kubelets and agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from greentrain.controller.clock import SteadyClock
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import MERGE, RefusedError, Server, condition, timestamp
from tests.support.manifests import build_job
from tests.support.statuses import read_whole

Json = dict[str, Any]
PATH = "/apis/greentrain.dev/v1alpha1/nodepowers"


class NodeReports:
    """A node's agent, as far as the API server sees one."""

    def __init__(self, server: Server, node: str) -> None:
        self._server = server
        self.node = node
        self.pods: dict[str, Json] = {}

    async def report(self) -> None:
        status = {
            "observedAt": timestamp(),
            "journalID": "j",
            "pods": list(self.pods.values()),
            "gpuCount": 1,
            "idleJoules": 5,
            "unattributedJoules": 0,
        }
        await self._server.call("PATCH", f"{PATH}/{self.node}/status", {"status": status}, content_type=MERGE)

    def tell(self, pod: Json, joules: int, *, closed: bool = False) -> None:
        meta = pod["metadata"]
        owner = meta["ownerReferences"][0]
        self.pods[meta["uid"]] = {
            "uid": meta["uid"],
            "segment": 0,
            "namespace": meta["namespace"],
            "name": meta["name"],
            "job": owner["name"],
            "jobUid": owner["uid"],
            "ownerKnown": True,
            "gpuJoules": joules,
            "errorJoules": 1,
            "lastReading": timestamp(),
            "closed": closed,
        }

    async def settled(self) -> list[str]:
        body = await self._server.call("GET", f"{PATH}/{self.node}")
        return list((body.get("spec") or {}).get("settled") or [])


@pytest.fixture
async def agent(server: Server, namespace: str) -> AsyncIterator[NodeReports]:
    node = f"node-{namespace}"
    await server.call(
        "POST",
        PATH,
        {
            "apiVersion": "greentrain.dev/v1alpha1",
            "kind": "NodePower",
            "metadata": {"name": node},
            "spec": {},
        },
    )
    yield NodeReports(server, node)
    try:
        await server.call("DELETE", f"{PATH}/{node}")
    except RefusedError as error:
        if error.status != 404:
            raise


def gpu_job(workers: int = 2) -> Json:
    job = build_job(workers=workers)
    spec = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    return job


async def find_accounts(server: Server, namespace: str) -> list[Json]:
    """The events with a job's account."""
    return [e for e in await server.events(namespace) if e["reason"] == "Accounted"]


async def test_joules_arrive_are_settled_and_stay_when_the_agent_has_let_go(
    server: Server, namespace: str, settings: Settings, agent: NodeReports
) -> None:
    await server.create_job(namespace, gpu_job())
    wanted = {f"digits-worker-{i}-1" for i in (0, 1)}
    async with running(settings):
        pods = await server.until_pods(namespace, wanted)
        for name in pods:
            await server.run_pod(namespace, name, node=agent.node)
        job = await server.until_condition(namespace, "digits", "EnergyMetered", "Unknown")
        assert condition(job, "EnergyMetered")["reason"] == "NoReadings"
        for i, pod in enumerate(pods.values()):
            agent.tell(pod, 100 + i)
        await agent.report()
        await server.until_condition(namespace, "digits", "EnergyMetered", "True")
        job = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda body: body["status"].get("energy", {}).get("usedJoules") == 201,
            what="201 joules",
        )
        assert job["status"]["display"]["energy"] == "201J"
        assert await agent.settled() == []
    # An hour without an operator, in which everything ends.
    for i, (name, pod) in enumerate(pods.items()):
        await server.end_pod(namespace, name, 0)
        agent.tell(pod, 200 + i, closed=True)
    await agent.report()
    async with running(settings):
        await server.until_condition(namespace, "digits", "Succeeded", "True")
        keys = {f"{uid}/0" for uid in agent.pods}
        await server.until(agent.settled, lambda settled: set(settled) == keys, what="both settled")
        agent.pods.clear()
        await agent.report()
        await server.until(agent.settled, lambda settled: settled == [], what="nothing asked any more")
        for name in pods:
            await server.remove_pod(namespace, name)
        job = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda body: (
                body["status"]["energy"].get("final") is True and not read_whole(body)["energy"].get("pods")
            ),
            what="final, and every entry in the sum",
        )
    energy = read_whole(job)["energy"]
    assert (energy["usedJoules"], energy["gpuJoules"]) == (401, 401)
    assert (energy.get("pods", []), set(energy["settled"])) == ([], keys)
    assert job["status"]["attempts"][0]["energyJoules"] == 401
    assert condition(job, "EnergyMetered")["status"] == "True"
    async with running(settings):  # the next operator does not report it again
        await server.patch_job(namespace, "digits", {"metadata": {"annotations": {"touched": "1"}}})
        (account,) = await server.until(lambda: find_accounts(server, namespace), bool)
    assert (account["type"], account["involvedObject"]["uid"]) == ("Normal", job["metadata"]["uid"])
    assert account["message"].startswith("the job's account is closed: energy 401J ± 2J ")
    assert account["message"].endswith(f"every final report is in; job UID {job['metadata']['uid']}")


async def test_a_time_to_live_waits_for_the_final_report_and_the_account_outlives_the_job(
    server: Server, namespace: str, settings: Settings, agent: NodeReports
) -> None:
    manifest = gpu_job(workers=1)
    manifest["spec"].setdefault("runPolicy", {})["ttlSecondsAfterFinished"] = 0
    await server.create_job(namespace, manifest)

    async def is_there() -> bool:
        try:
            await server.job(namespace, "digits")
        except RefusedError as error:
            return error.status != 404
        return True

    async with running(settings) as operator:
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
        await server.run_pod(namespace, "digits-worker-0-1", node=agent.node)
        (pod,) = pods.values()
        agent.tell(pod, 7)
        await agent.report()
        await server.until_condition(namespace, "digits", "EnergyMetered", "True")
        await server.end_pod(namespace, "digits-worker-0-1", 0)
        job = await server.until_condition(
            namespace, "digits", "EnergyMetered", "Unknown", reason="FinalReportMissing"
        )
        await asyncio.sleep(1)
        assert await is_there()
        assert await find_accounts(server, namespace) == []
        agent.tell(pod, 9, closed=True)
        await agent.report()
        await server.until(is_there, lambda there: not there, what="the job is deleted")
        (account,) = await find_accounts(server, namespace)
        uid = job["metadata"]["uid"]
        counter = (
            f'greentrain_job_energy_joules_total{{job="digits",namespace="{namespace}",uid="{uid}"}} 9.0'
        )
        assert counter in operator.telemetry.render().decode()
        gauge = f'greentrain_job_energy_joules{{job="digits",namespace="{namespace}"}}'

        async def render() -> str:
            return operator.telemetry.render().decode()

        text = await server.until(render, lambda text: gauge not in text, what="its figures are gone")
        assert counter in text
    assert account["message"].startswith("the job's account is closed: energy 9J ± 1J ")


async def test_what_belongs_to_a_deleted_job_is_settled_and_its_node_forgotten(
    server: Server, namespace: str, settings: Settings, agent: NodeReports
) -> None:
    await server.create_job(namespace, gpu_job(workers=1))
    async with running(settings):
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
    await server.call(
        "DELETE", f"/apis/greentrain.dev/v1alpha1/namespaces/{namespace}/greentrainingjobs/digits"
    )
    (pod,) = pods.values()
    agent.tell(pod, 7, closed=True)
    await agent.report()
    async with running(settings):
        await server.until(
            agent.settled, lambda settled: settled == [f"{pod['metadata']['uid']}/0"], what="settled"
        )


async def test_a_report_that_cannot_be_read_is_passed_over_and_the_next_one_counts(
    server: Server, namespace: str, settings: Settings, agent: NodeReports
) -> None:
    await server.create_job(namespace, gpu_job(workers=1))
    async with running(settings):
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
        await server.run_pod(namespace, "digits-worker-0-1", node=agent.node)
        (pod,) = pods.values()
        agent.tell(pod, 7)
        (entry,) = agent.pods.values()
        entry["lastReading"] = "2099-01-01T00:00:00Z"
        await agent.report()
        agent.tell(pod, 9)
        await agent.report()
        job = await server.until_condition(namespace, "digits", "EnergyMetered", "True")
    assert job["status"]["energy"]["usedJoules"] == 9


async def test_a_nodepower_is_removed_an_hour_after_its_agents_last_word_once_all_is_settled(
    server: Server, namespace: str, settings: Settings, agent: NodeReports
) -> None:
    """The pod's last word never comes: its last report counts, and the job's energy becomes final."""
    steady, ahead = SteadyClock(), timedelta()
    await server.create_job(namespace, gpu_job(workers=1))

    async def node_power() -> Json | None:
        try:
            return await server.call("GET", f"{PATH}/{agent.node}")
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    async with running(settings, clock=lambda: steady() + ahead):
        pods = await server.until_pods(namespace, {"digits-worker-0-1"})
        await server.run_pod(namespace, "digits-worker-0-1", node=agent.node)
        (pod,) = pods.values()
        agent.tell(pod, 7)
        await agent.report()
        await server.until_condition(namespace, "digits", "EnergyMetered", "True")
        await server.end_pod(namespace, "digits-worker-0-1", 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True")
        await server.remove_pod(namespace, "digits-worker-0-1")
        job = await server.until_condition(
            namespace, "digits", "EnergyMetered", "Unknown", reason="FinalReportMissing"
        )
        assert await node_power() is not None
        ahead = timedelta(hours=1)
        await server.patch_job(namespace, "digits", {"metadata": {"annotations": {"touched": "1"}}})
        job = await server.until_condition(namespace, "digits", "EnergyMetered", "True")
        await server.until(node_power, lambda found: found is None, what="the NodePower is gone")
        (account,) = await server.until(lambda: find_accounts(server, namespace), bool)
    energy = job["status"]["energy"]
    assert (energy["usedJoules"], energy["lostPods"], energy["final"]) == (7, 1, True)
    assert "final reports of pods that are missing: 1" in account["message"]
