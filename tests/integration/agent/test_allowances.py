"""Allowances held by the agent as it is shipped, while the operator is silent: lowest limit, a report, an eviction.

The API server is a real one, the cards are simulated below NVML, and tests play the operator: they write allowances into
the NodePower and renew the Lease, or do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from greentrain.agent.allowances import FILE
from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.names import ANNOTATION_UNATTENDED
from greentrain.api.nodepower import PodAsk
from greentrain.api.spec import Scope
from greentrain.kube.client import ApiError, connect
from sandbox.controlplane import ControlPlane
from sandbox.simgpu.cards import Card
from tests.integration.agent.processes import (
    NODE_POWERS,
    AgentProcess,
    Json,
    Node,
    Pod,
    condition_of,
    find_cap,
    find_entry,
    until,
)
from tests.integration.agent.stories import Book, Outcomes, Story, judge
from tests.support.api import MERGE, Server
from tests.support.proxy import Cut, Proxy

BOOK = Book("allowances", seconds=100.0, at_once=8)
story = BOOK.story

LEASE = "operator"

LOWEST = 150
"""Watts; the lowest limit of a V100."""


def leases(node: Node) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{node.name}/leases"


def spec_of_now(*, age: float = 0.0) -> Json:
    moment = datetime.fromtimestamp(time.time() - age, UTC)
    return {"holderIdentity": "test", "renewTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}


async def make_lease(node: Node, *, age: float = 0.0) -> None:
    """The operator has renewed its lease so many seconds ago."""
    await node.server.call("POST", leases(node), {"metadata": {"name": LEASE}, "spec": spec_of_now(age=age)})


@contextlib.asynccontextmanager
async def operating(node: Node, *unattended: str) -> AsyncIterator[None]:
    """The operator renews its lease until the block ends, and names the jobs of these UIDs in each renewal."""
    await make_lease(node)
    annotations = {ANNOTATION_UNATTENDED: ",".join(unattended)} if unattended else {}
    renewal = {"metadata": {"annotations": annotations}}

    async def renew() -> None:
        while True:
            await asyncio.sleep(2)
            await node.server.call(
                "PATCH", f"{leases(node)}/{LEASE}", {**renewal, "spec": spec_of_now()}, content_type=MERGE
            )

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def begin_agent(
    node: Node, *, kubeconfig: Path | None = None, report_interval: int = 2
) -> AgentProcess:
    """An agent that listens to the operator's lease and has made itself known."""
    agent = await node.start_agent(
        arguments=("--operator-lease", f"{node.name}/{LEASE}"),
        kubeconfig=kubeconfig,
        report_interval=report_interval,
    )
    await node.until_told(lambda s: s["gpuCount"] == len(node.cards), "a first report")
    return agent


async def begin_work(node: Node, *, devices: tuple[str, ...] = ()) -> Pod:
    """A pod of a job with a budget, whose one card, the first, works."""
    pod = await node.begin_pod("digits-worker-0-1", job="digits", devices=devices)
    path = f"/api/v1/namespaces/{node.name}/pods/{pod.name}"
    annotated = {"metadata": {"annotations": {"greentrain.dev/budgeted": "true"}}}
    await node.server.call("PATCH", path, annotated, content_type=MERGE)
    node.cards.set_load(0, 1.0)
    return pod


async def allow(
    node: Node,
    pod: Pod,
    joules: int,
    *,
    scope: Scope = "GPU",
    seconds: int | None = None,
    cap_milliwatts: int | None = None,
) -> None:
    """The operator's word on the pod's energy."""
    ask = PodAsk(
        uid=pod.uid,
        namespace=node.name,
        name=pod.name,
        cap_milliwatts=cap_milliwatts,
        allowance_joules=joules,
        allowance_scope=scope,
        allowance_seconds=seconds,
    )
    asked = [ask.model_dump(by_alias=True, exclude_none=True)]
    await node.server.call(
        "PATCH", f"{NODE_POWERS}/{node.name}", {"spec": {"pods": asked}}, content_type=MERGE
    )


async def allow_more(node: Node, pod: Pod, joules: int) -> int:
    """So much more than it has used; returns the allowance, which the agent has told that it goes by."""
    allowance = int(node.joules(pod)) + joules
    await allow(node, pod, allowance)
    await node.until_told(
        lambda s: find_entry(s, pod.key()).get("allowanceJoules") == allowance, "the allowance"
    )
    return allowance


async def is_evicted(node: Node, pod: Pod) -> bool:
    """Whether the pod's end was asked for."""
    return "deletionTimestamp" in (await node.server.pods(node.name))[pod.name]["metadata"]


async def until_evicted(node: Node, pod: Pod, *, seconds: float = 30.0) -> Json:
    """Wait for the eviction, and until it is told of; the status then."""
    end = time.monotonic() + seconds
    while not await is_evicted(node, pod):
        assert time.monotonic() < end, f"not evicted within {seconds:.0f} s"
        await asyncio.sleep(0.1)
    assert action_of(await node.status(), pod) in ("Throttled", "Evicted"), "told before it was done"
    return await node.until_told(lambda s: action_of(s, pod) == "Evicted", "that it is evicted")


def action_of(status: Json, pod: Pod) -> str:
    """What is told to have been done about a pod."""
    return str(find_entry(status, pod.key()).get("budgetAction", ""))


def standing_of(node: Node, pod: Pod) -> Json:
    """What the node's disk holds of a pod."""
    path = node.journal / FILE
    return dict(json.loads(path.read_text()).get(pod.uid, {})) if path.exists() else {}


@story()
async def a_spent_allowance_is_acted_on_at_once_while_the_operator_is_silent(node: Node) -> None:
    agent = await begin_agent(node)
    pod = await begin_work(node)
    allowance = await allow_more(node, pod, 2500)
    assert node.limit() == 300
    await until(lambda: node.joules(pod) >= allowance, what="the allowance spent")
    await node.until_limits(LOWEST, seconds=2.0)
    status = await until_evicted(node, pod)
    assert condition_of(status, "OperatorActive") == ("False", "Silent")
    cap = find_cap(status)
    assert (cap["podUid"], cap["targetMilliwatts"], cap["reason"]) == (pod.uid, LOWEST * 1000, "Clamped")
    assert cap["message"].startswith("its limit is 150W, the lowest it can have: its pod's allowance")
    assert standing_of(node, pod)["action"] == "Evicted"
    _, page = await agent.fetch("/metrics")
    for line in ("greentrain_allowances_spent_total 1.0", "greentrain_allowance_evictions_total 1.0"):
        assert line in page
    # Until the pod has ended its card stays where it is; what it was reported with stays until it is settled.
    await node.end_pod(pod)
    await node.until_limits(300)
    await node.until_told(lambda s: find_entry(s, pod.key()).get("closed"), "its end")
    assert action_of(await node.status(), pod) == "Evicted"
    assert "Traceback" not in agent.said()


@story()
async def an_allowance_that_is_not_spent_ends_with_its_time(
    node: Node,
) -> None:
    plenty, lasts = 10**9, int(OPERATOR_SILENT_SECONDS) + 5
    async with operating(node):
        agent = await begin_agent(node)
        pod = await begin_work(node)
        await allow(node, pod, plenty, seconds=lasts)
        await until(lambda: bool(standing_of(node, pod).get("allowance")), what="the allowance on its disk")
        assert standing_of(node, pod)["allowance"] == {"joules": plenty, "scope": "GPU", "seconds": lasts}
    silent = time.monotonic()
    await node.until_limits(LOWEST, seconds=lasts + 10.0)
    assert time.monotonic() - silent > lasts - 3
    status = await until_evicted(node, pod)
    assert "is spent or has ended" in find_cap(status)["message"]
    assert f"is valid for {lasts} s without the operator" in agent.said()
    assert "Traceback" not in agent.said()


@story()
async def while_the_operator_is_heard_it_decides_and_when_it_falls_silent_the_agent_acts(node: Node) -> None:
    async with operating(node):
        agent = await begin_agent(node, report_interval=20)
        pod = await begin_work(node)
        allowance = await allow_more(node, pod, 500)
        await until(lambda: node.joules(pod) >= allowance, what="the allowance spent")
        # Told in time although the next regular report is far away.
        await node.until_told(
            lambda s: find_entry(s, pod.key())["gpuJoules"] >= allowance, "that it is spent", seconds=9
        )
        status = await node.status()
        assert condition_of(status, "OperatorActive") == ("True", "LeaseRenewed")
        assert action_of(status, pod) == "None"
    silent = time.monotonic()
    await asyncio.sleep(OPERATOR_SILENT_SECONDS - 6)
    assert (node.limit(), await is_evicted(node, pod)) == (300, False)
    await node.until_limits(LOWEST, seconds=10.0)
    assert time.monotonic() - silent > OPERATOR_SILENT_SECONDS - 3
    await until_evicted(node, pod)
    assert "Traceback" not in agent.said()


@story("V100", "V100")
async def for_a_job_that_a_renewal_names_the_operator_is_silent_and_its_neighbour_is_left(node: Node) -> None:
    victim = await begin_work(node)
    neighbour = await node.begin_pod("other-worker-0-1", (1,), job="other")
    node.cards.set_load(1, 1.0)
    assert victim.job_uid is not None
    async with operating(node, victim.job_uid):
        agent = await begin_agent(node)
        both = [
            PodAsk(
                uid=pod.uid, namespace=node.name, name=pod.name, allowance_joules=int(node.joules(pod)) + 800
            )
            for pod in (victim, neighbour)
        ]
        asked = [ask.model_dump(by_alias=True, exclude_none=True) for ask in both]
        await node.server.call(
            "PATCH", f"{NODE_POWERS}/{node.name}", {"spec": {"pods": asked}}, content_type=MERGE
        )
        status = await until_evicted(node, victim)
        assert condition_of(status, "OperatorActive") == ("True", "LeaseRenewed")
        await node.spend(neighbour, 800)
        await asyncio.sleep(2)
        assert (node.limit(0), node.limit(1)) == (LOWEST, 300)
        assert not await is_evicted(node, neighbour)
        assert action_of(await node.status(), neighbour) == "None"
    assert "Traceback" not in agent.said()


@story()
async def with_the_api_server_away_the_lowest_limit_stays_and_the_next_agents_go_on(node: Node) -> None:
    async with Proxy.start(node.kubeconfig, node.folder) as proxy:
        agent = await begin_agent(node, kubeconfig=proxy.kubeconfig)
        pod = await begin_work(node)
        allowance = await allow_more(node, pod, 2500)
        assert standing_of(node, pod)["allowance"] == {"joules": allowance, "scope": "GPU", "seconds": None}
        for method in ("GET", "POST", "PATCH"):
            proxy.script(method, ".", Cut(), times=None)
            proxy.script(method, ".", Cut(), times=None, watch=True)
        proxy.break_streams()
        # One that was never told anything but by the disk.
        await agent.end()
        agent = await start_unheard(node, proxy)
        await until(lambda: node.joules(pod) >= allowance, what="the allowance spent")
        await node.until_limits(LOWEST, seconds=3.0)
        await until(lambda: standing_of(node, pod)["action"] == "Throttled", what="the disk's word")
        await agent.end()
        since = node.cards.drain_events(0)[1]
        agent = await start_unheard(node, proxy)
        await until(lambda: "OperatorActive" in agent.said(), what="its first look")
        await asyncio.sleep(2)
        events, _ = node.cards.drain_events(0, max(0, since - 1))
        assert max(event.milliwatts for event in events) < 200_000, "the limit was lifted in between"
        assert (node.limit(), await is_evicted(node, pod)) == (LOWEST, False)
        proxy.forgive()
        await until_evicted(node, pod)
        assert node.limit() == LOWEST
    assert "Traceback" not in agent.said()


async def start_unheard(node: Node, proxy: Proxy) -> AgentProcess:
    return await node.start_agent(
        arguments=("--operator-lease", f"{node.name}/{LEASE}"), kubeconfig=proxy.kubeconfig
    )


@story()
async def a_disruption_budget_holds_and_a_higher_allowance_gives_the_limit_back(node: Node) -> None:
    budget = {
        "metadata": {"name": "all"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "digits"}}},
    }
    await node.server.call("POST", f"/apis/policy/v1/namespaces/{node.name}/poddisruptionbudgets", budget)
    agent = await begin_agent(node)
    pod = await begin_work(node)
    path = f"/api/v1/namespaces/{node.name}/pods/{pod.name}"
    await node.server.call("PATCH", path, {"metadata": {"labels": {"app": "digits"}}}, content_type=MERGE)
    await allow(node, pod, 0, cap_milliwatts=200_000)
    await node.until_limits(LOWEST)
    await node.until_told(lambda s: action_of(s, pod) == "Throttled", "that it is throttled")
    await until(lambda: "cannot be evicted yet" in agent.said(), what="a refusal")
    assert "429" in agent.said()
    await allow(node, pod, 10**6, cap_milliwatts=200_000)
    await node.until_limits(200, seconds=3.0)
    status = await node.until_told(lambda s: action_of(s, pod) == "None", "that it is free again")
    assert find_cap(status)["askedMilliwatts"] == 200_000
    assert not await is_evicted(node, pod)


@story()
async def a_pod_with_a_budget_and_no_allowance_is_allowed_nothing_of_an_operator_that_died_before(
    node: Node,
) -> None:
    await make_lease(node, age=3600)
    await begin_agent(node)
    begun = time.monotonic()
    pod = await begin_work(node)
    await node.until_limits(LOWEST, seconds=4.0)
    assert time.monotonic() - begun < 5
    status = await until_evicted(node, pod)
    assert "allowanceJoules" not in find_entry(status, pod.key())


@story(Card("A100", ("3g.20gb", "2g.10gb")))
async def what_cannot_be_throttled_is_evicted_all_the_same(node: Node) -> None:
    await begin_agent(node)
    pod = await begin_work(node, devices=(node.cards.read_instances(0)[0].uuid,))
    await allow(node, pod, 0)
    status = await until_evicted(node, pod)
    assert find_cap(status)["reason"] == "MigMode"
    assert node.limit() == 400


async def test_an_eviction_is_of_that_pod_and_of_no_successor(
    plane: ControlPlane, server: Server, namespace: str
) -> None:
    body = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "tensorflow", "image": "x"}]},
    }
    made = await server.call("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    await server.run_pod(namespace, "p")
    async with await connect(str(plane.kubeconfig)) as client:
        for name, uid, status in (("p", "another", 409), ("q", "another", 404)):
            with pytest.raises(ApiError) as refused:
                await client.evict_pod(namespace, name, uid)
            assert refused.value.status == status
        assert "deletionTimestamp" not in (await server.pods(namespace))["p"]["metadata"]
        await client.evict_pod(namespace, "p", made["metadata"]["uid"])
    found = (await server.pods(namespace))["p"]["metadata"]
    assert found["deletionGracePeriodSeconds"] == 30


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_an_allowance:
        BOOK.share_out(metafunc)


@pytest.fixture
def outcomes(
    request: pytest.FixtureRequest, told: tuple[Story, ...], plane: ControlPlane, crd: None
) -> Outcomes:
    """How each story went."""
    del crd  # needed to be there
    return BOOK.tell(told, request, plane)


def test_an_allowance(outcomes: Outcomes, subtests: pytest.Subtests) -> None:
    judge(outcomes, subtests)
