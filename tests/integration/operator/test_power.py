"""Caps from a job's spec to NodePowers and back into its status on a real server; the test plays kubelets and agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.integration.operator.test_energy import PATH, NodeReports, gpu_job
from tests.support.api import MERGE, RefusedError, Server, condition

Json = dict[str, Any]
DEFAULT = 250_000


@pytest.fixture
async def agents(server: Server, namespace: str) -> AsyncIterator[list[NodeReports]]:
    """Agents of the two nodes."""
    found = [NodeReports(server, f"{name}-{namespace}") for name in ("one", "two")]
    for agent in found:
        await server.call(
            "POST",
            PATH,
            {
                "apiVersion": "greentrain.dev/v1alpha1",
                "kind": "NodePower",
                "metadata": {"name": agent.node},
                "spec": {},
            },
        )
    yield found
    for agent in found:
        try:
            await server.call("DELETE", f"{PATH}/{agent.node}")
        except RefusedError as error:
            if error.status != 404:
                raise


def capped_job(cap: str, workers: int = 1) -> Json:
    job = gpu_job(workers)
    job["spec"]["power"] = {"cap": cap}
    return job


async def asked(server: Server, agent: NodeReports) -> dict[str, str]:
    """What is asked of an agent: the cap by the pod's name."""
    body = await server.call("GET", f"{PATH}/{agent.node}")
    return {
        p["name"]: f"{p['capPercent']}%" if "capPercent" in p else f"{p['capMilliwatts']}mW"
        for p in (body.get("spec") or {}).get("pods") or []
    }


async def until_asked(server: Server, agent: NodeReports, wanted: dict[str, str]) -> None:
    await server.until(lambda: asked(server, agent), lambda found: found == wanted, what=f"asked: {wanted}")


async def run_on(server: Server, namespace: str, name: str, agent: NodeReports) -> Json:
    """The scheduler binds a pod to the agent's node and the kubelet runs it."""
    await server.run_pod(namespace, name, node=agent.node)
    pods = await server.pods(namespace)
    return pods[name]


async def tell(
    server: Server, agent: NodeReports, pod: Json, joules: int, cap: Json | None, **limits: int
) -> None:
    """The agent reports the pod, its one GPU, and what has become of the cap."""
    agent.tell(pod, joules)
    await agent.report()
    gpu: Json = {
        "uuid": f"GPU-{agent.node}",
        "limits": {
            "minMilliwatts": 100_000,
            "defaultMilliwatts": DEFAULT,
            "maxMilliwatts": 300_000,
            **limits,
        },
    }
    if cap is not None:
        gpu["cap"] = {"podUid": pod["metadata"]["uid"], **cap}
    patch = {"status": {"gpus": [gpu]}}
    await server.call("PATCH", f"{PATH}/{agent.node}/status", patch, content_type=MERGE)


def capped_at(asked_: int, *, reason: str = "Capped", **more: Any) -> Json:
    return {"askedMilliwatts": asked_, "targetMilliwatts": asked_, "reason": reason, "message": "so", **more}


async def test_a_cap_reaches_each_pods_node_and_is_true_once_every_gpu_has_it(
    server: Server, namespace: str, settings: Settings, agents: list[NodeReports]
) -> None:
    one, two = agents
    await server.create_job(namespace, capped_job("70%", workers=2))
    async with running(settings):
        await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        job = await server.job(namespace, "digits")
        assert condition(job, "PowerCapped")["reason"] == "NotAllocated"
        first = await run_on(server, namespace, "digits-worker-0-1", one)
        second = await run_on(server, namespace, "digits-worker-1-1", two)
        await until_asked(server, one, {"digits-worker-0-1": "70%"})
        await until_asked(server, two, {"digits-worker-1-1": "70%"})
        await tell(
            server,
            one,
            first,
            1,
            capped_at(175_000, binding=True),
            setMilliwatts=175_000,
            enforcedMilliwatts=175_000,
        )
        await tell(
            server,
            two,
            second,
            1,
            capped_at(175_000, reason="Applying"),
            setMilliwatts=DEFAULT,
            enforcedMilliwatts=DEFAULT,
        )
        both = {
            "cap": "70%",
            "askedMilliwatts": 175_000,
            "setMilliwatts": DEFAULT,
            "enforcedMilliwatts": DEFAULT,
            "gpus": 2,
            "gpusCapped": 1,
            "gpusBinding": 1,
        }
        # The status may have told of the first node alone before.
        job = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda j: j["status"].get("power") == both,
            what="both GPUs",
        )
        found = condition(job, "PowerCapped")
        assert (found["status"], found["reason"]) == ("False", "Applying")
        assert job["status"]["display"]["cap"] == "70% 1/2"
        await tell(
            server, two, second, 2, capped_at(175_000), setMilliwatts=175_000, enforcedMilliwatts=175_000
        )
        job = await server.until_condition(namespace, "digits", "PowerCapped", "True", reason="Capped")
        assert job["status"]["display"]["cap"] == "70%"
        reasons = [e["reason"] for e in await server.events(namespace)]
        assert reasons.count("PowerCapped") <= 1


async def test_an_edit_reaches_a_running_job_and_a_wrong_one_leaves_its_cap_alone(
    server: Server, namespace: str, settings: Settings, agents: list[NodeReports]
) -> None:
    one = agents[0]
    await server.create_job(namespace, capped_job("200W"))
    async with running(settings):
        await server.until_pods(namespace, {"digits-worker-0-1"})
        pod = await run_on(server, namespace, "digits-worker-0-1", one)
        await until_asked(server, one, {"digits-worker-0-1": "200000mW"})
        await tell(server, one, pod, 1, capped_at(200_000), setMilliwatts=200_000, enforcedMilliwatts=200_000)
        await server.until_condition(namespace, "digits", "PowerCapped", "True")

        await server.patch_job(namespace, "digits", {"spec": {"power": {"cap": "150W"}}})
        await until_asked(server, one, {"digits-worker-0-1": "150000mW"})
        job = await server.until_condition(namespace, "digits", "PowerCapped", "False", reason="Applying")
        assert "the change to 150W is on its way" in condition(job, "PowerCapped")["message"]
        assert job["status"]["attemptCount"] == 1, "no restart for it"

        with pytest.raises(RefusedError, match="cap is not valid: write watts") as refused:
            await server.patch_job(namespace, "digits", {"spec": {"power": {"cap": "150 watts"}}})
        assert refused.value.status == 422

        # A slip that the server lets pass, with a cap that would be sound by itself.
        await server.patch_job(namespace, "digits", {"spec": {"power": {"cap": "120W", "watts": 120}}})
        job = await server.until_condition(namespace, "digits", "Admitted", "False", "InvalidSpec")
        assert "spec.power.watts: " in condition(job, "Admitted")["message"]
        assert await asked(server, one) == {"digits-worker-0-1": "150000mW"}

        await server.patch_job(namespace, "digits", {"spec": {"power": {"cap": None, "watts": None}}})
        await until_asked(server, one, {})
        job = await server.until_condition(namespace, "digits", "PowerCapped", "False", reason="NoCap")
        assert job["status"]["display"]["cap"] == "<none>"


@pytest.mark.parametrize(
    ("reason", "status", "told"),
    [
        ("Clamped", "True", "PowerCapped"),
        ("PreviousLower", "True", "PowerCapped"),
        ("Contested", "False", "NotCapped"),
        ("MigMode", "False", "NotCapped"),
        ("DryRun", "False", "NotCapped"),
        ("NotPermitted", "False", "NotCapped"),
    ],
)
async def test_what_an_agent_says_of_a_cap_stands_in_the_job_and_is_told_once(
    server: Server,
    namespace: str,
    settings: Settings,
    agents: list[NodeReports],
    reason: str,
    status: str,
    told: str,
) -> None:
    one = agents[0]
    await server.create_job(namespace, capped_job("90W"))
    async with running(settings):
        await server.until_pods(namespace, {"digits-worker-0-1"})
        pod = await run_on(server, namespace, "digits-worker-0-1", one)
        cap = {**capped_at(90_000, reason=reason), "message": "because of this"}
        for joules in (1, 2):
            await tell(server, one, pod, joules, cap, setMilliwatts=100_000, enforcedMilliwatts=100_000)
        job = await server.until_condition(namespace, "digits", "PowerCapped", status, reason=reason)
        assert "because of this" in condition(job, "PowerCapped")["message"]

        async def events() -> list[str]:
            return [e["message"] for e in await server.events(namespace) if e["reason"] == told]

        (message,) = await server.until(events, lambda found: len(found) == 1, what=told)
        assert "because of this" in message


async def test_a_pod_is_asked_for_until_it_has_ended_also_when_its_job_is_gone(
    server: Server, namespace: str, settings: Settings, agents: list[NodeReports]
) -> None:
    one = agents[0]
    await server.create_job(namespace, capped_job("200W"))
    async with running(settings):
        await server.until_pods(namespace, {"digits-worker-0-1"})
        await run_on(server, namespace, "digits-worker-0-1", one)
        await until_asked(server, one, {"digits-worker-0-1": "200000mW"})
    # The operator is away while the job is deleted; its pod is still stopping when it is back.
    await server.call(
        "DELETE", f"/apis/greentrain.dev/v1alpha1/namespaces/{namespace}/greentrainingjobs/digits"
    )
    async with running(settings) as operator:
        await operator.ready.wait()
        pod = (await server.pods(namespace))["digits-worker-0-1"]
        await tell(server, one, pod, 1, capped_at(200_000), setMilliwatts=200_000)
        assert await asked(server, one) == {"digits-worker-0-1": "200000mW"}
        await server.end_pod(namespace, "digits-worker-0-1", 143)
        await until_asked(server, one, {})


async def test_a_job_that_asks_for_no_gpu_is_told_so(
    server: Server, namespace: str, settings: Settings
) -> None:
    job = capped_job("200W")
    del job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["resources"]
    await server.create_job(namespace, job)
    async with running(settings):
        await server.until_condition(namespace, "digits", "PowerCapped", "False", reason="NoGPU")
