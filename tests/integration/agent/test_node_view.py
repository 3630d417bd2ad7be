"""What an agent knows from a real API server, with a proxy between them that breaks what can break."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.nodepower import GpuStatus, NodePowerStatus, PodEnergy
from greentrain.kube.client import ApiError, connect
from greentrain.kube.node import NodeView
from sandbox.controlplane import ControlPlane
from tests.support.api import MERGE, RefusedError, Server
from tests.support.manifests import build_job
from tests.support.proxy import Cut, Ended, Expired, Frozen, Proxy, Refuse, Torn

Json = dict[str, Any]
NODE_POWERS = "/apis/greentrain.dev/v1alpha1/nodepowers"
PODS = r"^/api/v1/pods\?"
SECONDS = 20.0


@pytest.fixture
async def proxy(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy.start(plane.kubeconfig, tmp_path) as running:
        yield running


class Node:
    """A node's view, and the API server as its kubelet, scheduler and operator know it."""

    def __init__(self, server: Server, namespace: str, view: NodeView) -> None:
        self.server = server
        self.namespace = namespace
        self.name = f"node-{namespace}"
        self.view = view

    async def make_pod(self, name: str, *, node: str | None = None, owner: Json | None = None) -> str:
        """A pod that runs on this node or another; its UID."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "ownerReferences": [owner] if owner else []},
            "spec": {"containers": [{"name": "tensorflow", "image": "x"}]},
        }
        made = await self.server.call("POST", f"/api/v1/namespaces/{self.namespace}/pods", body)
        await self.server.run_pod(self.namespace, name, node=node or self.name)
        return str(made["metadata"]["uid"])

    async def delete_pod(self, name: str) -> None:
        await self.server.remove_pod(self.namespace, name)

    async def settle(self, *keys: str) -> None:
        await self.server.call(
            "PATCH", f"{NODE_POWERS}/{self.name}", {"spec": {"settled": list(keys)}}, content_type=MERGE
        )

    async def node_power(self) -> Json:
        return await self.server.call("GET", f"{NODE_POWERS}/{self.name}")

    async def until(self, check: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not check():
            assert time.monotonic() < end, f"not within {SECONDS} s: {what}\n{self.view.pods}"
            await asyncio.sleep(0.02)

    async def until_pods(self, *uids: str) -> None:
        await self.until(
            lambda: self.view.pods_known and set(self.view.pods) == set(uids), f"exactly the pods {uids}"
        )


@pytest.fixture
async def node(server: Server, namespace: str, proxy: Proxy) -> AsyncIterator[Node]:
    async with await connect(str(proxy.kubeconfig)) as client:
        view = NodeView(client, f"node-{namespace}")
        yield Node(server, namespace, view)
        with contextlib.suppress(RefusedError):
            await server.call("DELETE", f"{NODE_POWERS}/node-{namespace}")


@contextlib.asynccontextmanager
async def following(node: Node) -> AsyncIterator[None]:
    task = asyncio.create_task(node.view.follow())
    try:
        yield
        assert not task.done(), "it has stopped following"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_knows_the_pods_of_its_node_alone_as_they_come_and_go(node: Node) -> None:
    assert not node.view.pods_known
    before = await node.make_pod("before")
    await node.make_pod("elsewhere", node="another-node")
    async with following(node):
        await node.until_pods(before)
        after = await node.make_pod("after")
        await node.make_pod("elsewhere-too", node="another-node")
        await node.until_pods(before, after)
        await node.delete_pod("before")
        await node.until_pods(after)
    pod = node.view.pods[after]
    assert (pod.namespace, pod.name, pod.uid) == (node.namespace, "after", after)
    assert (pod.terminal, pod.job, pod.job_uid) == (False, None, None)


@pytest.mark.parametrize("code", [0, 1], ids=["Succeeded", "Failed"])
async def test_it_sees_a_pod_begin_and_end(node: Node, code: int) -> None:
    async with following(node):
        uid = await node.make_pod("p")
        await node.until(
            lambda: uid in node.view.pods and node.view.pods[uid].began is not None, "its beginning"
        )
        begun = node.view.pods[uid]
        assert begun.began is not None
        assert abs(begun.began - time.time()) < 60
        assert (begun.terminal, begun.ended) == (False, None)
        await node.server.end_pod(node.namespace, "p", code)
        await node.until(lambda: node.view.pods[uid].terminal, "its end")
        ended = node.view.pods[uid].ended
        assert ended is not None
        assert ended >= begun.began


async def test_an_eviction_cuts_short_a_grace_period_that_somebody_named(node: Node) -> None:
    path = f"/api/v1/namespaces/{node.namespace}/pods/p"
    async with following(node):
        uid = await node.make_pod("p")
        await node.server.call("DELETE", path, {"gracePeriodSeconds": 10**9})
        await node.until(
            lambda: uid in node.view.pods and node.view.pods[uid].cut_grace == 30, "its own grace period"
        )
        await node.view.evict(node.namespace, "p", uid)
        await node.until(lambda: node.view.pods[uid].cut_grace is None, "that it is in force")
    assert (await node.server.call("GET", path))["metadata"]["deletionGracePeriodSeconds"] == 30


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True),
        ({"controller": False}, False),
        ({"kind": "ReplicaSet", "apiVersion": "apps/v1"}, False),
        ({"apiVersion": "other.dev/v1"}, False),
        ({"apiVersion": "greentrain.dev/v1"}, True),
    ],
    ids=["a job's", "not its controller", "of another kind", "of another group", "of another version"],
)
async def test_a_pod_is_a_jobs_by_its_controller(node: Node, change: Json, known: bool) -> None:
    job = await node.server.create_job(node.namespace, build_job())
    meta = job["metadata"]
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }
    uid = await node.make_pod("digits-worker-0-1", owner={**owner, **change})
    async with following(node):
        await node.until_pods(uid)
    pod = node.view.pods[uid]
    assert (pod.job, pod.job_uid) == (("digits", meta["uid"]) if known else (None, None))


REPORT = NodePowerStatus(
    observed_at="2026-01-01T00:00:00Z",
    journal_id="j",
    gpus=(GpuStatus(uuid="GPU-a", model="Tesla V100", joules=9),),
    pods=(PodEnergy(uid="u", namespace="team", name="p", gpu_joules=7, closed=True),),
    idle_joules=2,
    gpu_count=1,
)


async def test_the_first_report_makes_the_nodepower_and_the_next_replaces_the_whole(node: Node) -> None:
    assert await node.view.read_status() is None
    await node.view.report(REPORT)
    assert await node.view.read_status() == REPORT
    made = await node.node_power()
    assert made["spec"] == {}
    smaller = NodePowerStatus(observed_at="2026-01-01T00:00:30Z", journal_id="j")
    await node.view.report(smaller)
    assert await node.view.read_status() == smaller
    assert (await node.node_power())["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_report_leaves_what_the_operator_wrote(node: Node) -> None:
    await node.view.report(REPORT)
    await node.settle("u/0")
    await node.view.report(REPORT)
    assert (await node.node_power())["spec"] == {"settled": ["u/0"]}


async def test_a_nodepower_that_was_removed_is_made_anew(node: Node) -> None:
    await node.view.report(REPORT)
    await node.server.call("DELETE", f"{NODE_POWERS}/{node.name}")
    await node.view.report(REPORT)
    assert await node.view.read_status() == REPORT


async def test_a_report_that_is_refused_is_raised(node: Node, proxy: Proxy) -> None:
    await node.view.report(REPORT)
    proxy.script("PATCH", "nodepowers", Refuse(503, "ServiceUnavailable"))
    with pytest.raises(ApiError, match="503"):
        await node.view.report(REPORT)
    proxy.script("GET", "nodepowers", Refuse(403, "Forbidden"))
    with pytest.raises(ApiError, match="403"):
        await node.view.read_status()


async def test_it_sees_what_is_settled_on_its_node_and_on_no_other(node: Node) -> None:
    other = f"{node.name}-2"
    body = {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower", "metadata": {"name": other}}
    await node.server.call("POST", NODE_POWERS, {**body, "spec": {"settled": ["x/0"]}})
    try:
        async with following(node):
            await node.view.report(REPORT)
            await node.settle("u/0", "v/1")
            await node.until(lambda: node.view.settled == ("u/0", "v/1"), "two settled")
            await node.settle("v/1")
            await node.until(lambda: node.view.settled == ("v/1",), "one settled")
            await node.settle()
            await node.until(lambda: node.view.settled == (), "none")
    finally:
        await node.server.call("DELETE", f"{NODE_POWERS}/{other}")


async def test_what_was_settled_before_it_began_is_known(node: Node) -> None:
    await node.view.report(REPORT)
    await node.settle("u/0")
    async with following(node):
        await node.until(lambda: node.view.settled == ("u/0",), "what is listed")


Break = Callable[[Node, Proxy], Awaitable[None]]


async def cut_watches(_: Node, proxy: Proxy) -> None:
    proxy.break_streams()


async def tear_the_next_event(node: Node, proxy: Proxy) -> None:
    proxy.script("GET", PODS, Torn(0), watch=True)
    proxy.break_streams()
    await node.make_pod("torn")


async def forget_where_it_was(_: Node, proxy: Proxy) -> None:
    proxy.script("GET", PODS, Expired(0), watch=True)
    proxy.break_streams()


async def refuse_the_watch(_: Node, proxy: Proxy) -> None:
    proxy.script("GET", PODS, Refuse(410, "Expired"), watch=True)
    proxy.break_streams()


async def refuse_the_list(_: Node, proxy: Proxy) -> None:
    proxy.script("GET", PODS, Refuse(500, "InternalError"), times=2)
    proxy.break_streams()


async def answer_nonsense(_: Node, proxy: Proxy) -> None:
    proxy.script("GET", PODS, Ended(0), times=2, watch=True)
    proxy.break_streams()


@pytest.mark.parametrize(
    "break_",
    [
        cut_watches,
        tear_the_next_event,
        forget_where_it_was,
        refuse_the_watch,
        refuse_the_list,
        answer_nonsense,
    ],
    ids=lambda f: f.__name__,
)
async def test_after_whatever_breaks_the_picture_is_that_of_now(
    node: Node, proxy: Proxy, break_: Break
) -> None:
    gone, stays = await node.make_pod("gone"), await node.make_pod("stays")
    async with following(node):
        await node.until_pods(gone, stays)
        await break_(node, proxy)
        await node.delete_pod("gone")
        new = await node.make_pod("new")
        found = await node.server.pods(node.namespace)
        torn = [p["metadata"]["uid"] for name, p in found.items() if name == "torn"]
        await node.until_pods(stays, new, *torn)


async def test_while_the_server_is_away_the_old_picture_stands_and_says_that_it_is_old(
    node: Node, proxy: Proxy
) -> None:
    gone, stays = await node.make_pod("gone"), await node.make_pod("stays")
    await node.view.report(REPORT)
    await node.settle("u/0")
    async with following(node):
        await node.until_pods(gone, stays)
        await node.until(lambda: node.view.settled == ("u/0",), "what is settled")
        proxy.script("GET", ".", Cut(), times=None)
        proxy.script("GET", ".", Cut(), times=None, watch=True)
        proxy.break_streams()
        await node.until(lambda: not node.view.pods_known, "that it is old")
        await node.delete_pod("gone")
        assert set(node.view.pods) == {gone, stays}
        assert node.view.settled == ("u/0",)
        proxy.forgive()
        await node.until(lambda: node.view.pods_known, "a fresh list")
        assert set(node.view.pods) == {stays}


async def test_a_watch_that_brings_nothing_is_no_reason_to_call_the_picture_old(
    node: Node, proxy: Proxy
) -> None:
    uid = await node.make_pod("p")
    proxy.script("GET", PODS, Frozen(0), watch=True)
    async with following(node):
        await node.until_pods(uid)
        await node.until(lambda: proxy.has_stream(f"{PODS}.*watch=true"), "the watch")
        assert node.view.pods_known
        # A server that is restarted breaks it, and the next one goes on.
        proxy.break_streams()
        new = await node.make_pod("new")
        await node.until_pods(uid, new)


@pytest.mark.parametrize("fault", [Ended(0), Expired(0), Refuse(410, "Expired")], ids=repr)
async def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_a_pause(
    node: Node, proxy: Proxy, fault: Ended | Expired | Refuse
) -> None:
    proxy.script("GET", PODS, fault, times=None, watch=True)
    async with following(node):
        begun = time.monotonic()
        await node.until(lambda: proxy.count("GET", PODS) > 8 or time.monotonic() - begun > 1.5, "a while")
        assert 2 <= proxy.count("GET", PODS) <= 8
        proxy.forgive()
        uid = await node.make_pod("p")
        await node.until_pods(uid)
