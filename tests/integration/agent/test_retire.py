"""Ending the agents against a real API server: what it waits for, and what it makes of their last words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from greentrain.agent.retire import name_kept, retire
from greentrain.kube.client import connect
from sandbox.controlplane import ControlPlane
from tests.support.api import MERGE, RefusedError, Server
from tests.support.proxy import Proxy, Refuse

Json = dict[str, Any]

NODE_POWERS = "/apis/greentrain.dev/v1alpha1/nodepowers"
AGENTS = "greentrain-agent"
LABELS = {"app.kubernetes.io/name": "greentrain", "app.kubernetes.io/component": "agent"}
SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
PATIENCE = 60.0
"""For what must come about; a test that passes waits only as long as that takes."""


class Cluster:
    """A DaemonSet of agents in a namespace, whose controller and kubelets the tests play."""

    def __init__(self, server: Server, namespace: str, kubeconfig: Path) -> None:
        self.server = server
        self.namespace = namespace
        self.kubeconfig = kubeconfig
        self.sets = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"

    async def begin(self, *nodes: str) -> None:
        """Agents that run on these nodes, and another pod that is not one."""
        pod = {"spec": {"containers": [{"name": "agent", "image": "x"}]}}
        template = {"metadata": {"labels": LABELS}, **pod}
        spec = {"selector": {"matchLabels": LABELS}, "template": template}
        await self.server.call("POST", self.sets, {"metadata": {"name": AGENTS}, "spec": spec})
        labels: dict[str, Json] = {f"agent-{node}": LABELS for node in nodes} | {"beside": {"app": "other"}}
        for name, own in labels.items():
            body = {"metadata": {"name": name, "labels": own}, **pod}
            await self.server.call("POST", f"/api/v1/namespaces/{self.namespace}/pods", body)
            node = name.removeprefix("agent-")
            await self.server.run_pod(self.namespace, name, node=node)

    async def end_agent(self, node: str) -> None:
        """Play the kubelet once the DaemonSet is being deleted: the agent ends."""
        await self.server.until(self.is_ending, bool, seconds=PATIENCE, what="the DaemonSet is being deleted")
        await self.server.remove_pod(self.namespace, f"agent-{node}")

    async def is_ending(self) -> bool:
        """Whether the DaemonSet's deletion was asked for."""
        try:
            found = await self.server.call("GET", f"{self.sets}/{AGENTS}")
        except RefusedError as error:
            return error.status == 404
        return "deletionTimestamp" in found["metadata"]

    async def report(self, node: str, *gpus: Json, **status: Any) -> None:
        """A NodePower with what an agent told last."""
        with contextlib.suppress(RefusedError):
            body = {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower", "metadata": {"name": node}}
            await self.server.call("POST", NODE_POWERS, {**body, "spec": {}})
        told = {"status": {"gpus": list(gpus), **status}}
        await self.server.call("PATCH", f"{NODE_POWERS}/{node}/status", told, content_type=MERGE)

    async def retire(self, *, patience: float = PATIENCE) -> int:
        """The command's exit code."""
        async with await connect(str(self.kubeconfig), None) as client:
            return await retire(client, self.namespace, AGENTS, SELECTOR, patience=patience)


@pytest.fixture
async def cluster(server: Server, namespace: str, plane: ControlPlane) -> AsyncIterator[Cluster]:
    """A namespace of its own, in a cluster without NodePowers: retiring looks at all there are."""
    await forget_node_powers(server)
    yield Cluster(server, namespace, plane.kubeconfig)
    await forget_node_powers(server)


async def forget_node_powers(server: Server) -> None:
    found = await server.call("GET", NODE_POWERS)
    for name in (item["metadata"]["name"] for item in found["items"]):
        await server.call("DELETE", f"{NODE_POWERS}/{name}")


def gpu(uuid: str, *, prior: int | None = None) -> Json:
    """A card as it is reported, of which `prior` milliwatts are due to come back."""
    limits = {"defaultMilliwatts": 300_000, "setMilliwatts": 210_000 if prior else 300_000}
    return {
        "uuid": uuid,
        "model": "V100",
        "limits": limits | ({"previousMilliwatts": prior} if prior else {}),
    }


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


async def test_it_waits_for_every_agent_and_reads_what_they_told_at_their_end(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await cluster.begin("node1", "node2")
    await cluster.report("node1", gpu("GPU-1", prior=300_000))
    await cluster.report("node2", gpu("GPU-2"))
    retiring = asyncio.create_task(cluster.retire())
    await cluster.end_agent("node2")
    await asyncio.sleep(1.5)
    assert not retiring.done()
    # An agent's last word comes before its pod's end.
    await cluster.report("node1", gpu("GPU-1"))
    await cluster.end_agent("node1")
    assert await retiring == 0
    assert errors(caplog) == []
    assert "every GPU of 2 nodes has the power limit it had before" in caplog.messages
    assert set(await cluster.server.pods(cluster.namespace)) == {"beside"}


async def test_a_gpu_that_may_still_be_capped_is_named_with_what_sets_it_back(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.begin("node1")
    await cluster.report("node1", gpu("GPU-1"), gpu("GPU-2", prior=300_000))
    # One whose agent has long been gone.
    await cluster.report("node9", gpu("GPU-9", prior=250_500))
    retiring = asyncio.create_task(cluster.retire())
    await cluster.end_agent("node1")
    assert await retiring == 1
    told = errors(caplog)
    assert len(told) == 2
    assert "node node1: GPU GPU-2" in told[0]
    assert "before it, it was 300W" in told[0]
    assert told[0].endswith("nvidia-smi -i GPU-2 -pl 300")
    assert "node node9: GPU GPU-9" in told[1]
    assert told[1].endswith("nvidia-smi -i GPU-9 -pl 250.5")


async def test_an_agent_that_has_ended_is_waited_for_no_longer_though_its_pod_is_still_listed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.begin("node1")
    await cluster.report("node1", gpu("GPU-1"))
    retiring = asyncio.create_task(cluster.retire())
    await cluster.server.until(
        cluster.is_ending, bool, seconds=PATIENCE, what="the DaemonSet is being deleted"
    )
    # It has its grace period, and nobody here clears it away after that.
    await cluster.server.call("DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/agent-node1")
    await asyncio.sleep(1.5)
    assert not retiring.done()
    await cluster.server.end_pod(cluster.namespace, "agent-node1", 0)
    assert await retiring == 0
    assert errors(caplog) == []
    assert "agent-node1" in await cluster.server.pods(cluster.namespace)
    await cluster.server.remove_pod(cluster.namespace, "agent-node1")


async def test_an_agent_that_does_not_end_is_named_by_its_node(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.begin("node1", "node2")
    await cluster.report("node1", gpu("GPU-1"))
    retiring = asyncio.create_task(cluster.retire(patience=5))
    await cluster.end_agent("node1")
    assert await retiring == 1
    (told,) = errors(caplog)
    assert "the agent on node node2 has not ended within 5 s" in told


async def test_agents_that_are_gone_already_are_no_hindrance(cluster: Cluster) -> None:
    # A second try, or a release whose agents somebody has deleted.
    await cluster.report("node1", gpu("GPU-1"))
    begun = time.monotonic()
    assert await cluster.retire() == 0
    assert time.monotonic() - begun < PATIENCE / 2


async def test_a_server_that_fails_now_and_then_is_asked_again(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.begin("node1")
    async with Proxy.start(cluster.kubeconfig, tmp_path) as proxy:
        refused = [
            proxy.script(method, pattern, Refuse(503, "ServiceUnavailable"), times=2)
            for method, pattern in (
                ("DELETE", "/daemonsets/"),
                ("GET", rf"/namespaces/{cluster.namespace}/pods\?"),
                ("GET", r"/nodepowers\?"),
            )
        ]
        cluster.kubeconfig = proxy.kubeconfig
        retiring = asyncio.create_task(cluster.retire())
        await cluster.end_agent("node1")
        assert await retiring == 0
    assert [rule.hits for rule in refused] == [2, 2, 2]


async def test_without_the_kind_nodepower_there_is_nothing_to_read(cluster: Cluster, tmp_path: Path) -> None:
    async with Proxy.start(cluster.kubeconfig, tmp_path) as proxy:
        proxy.script("GET", r"/nodepowers\?", Refuse(404, "NotFound"), times=None)
        cluster.kubeconfig = proxy.kubeconfig
        assert await cluster.retire() == 0


def test_a_report_that_cannot_be_read_is_not_taken_for_a_good_one(caplog: pytest.LogCaptureFixture) -> None:
    # Of an agent of another version, whose schema allowed more.
    assert name_kept("node1", {"gpus": [{"uuid": "GPU-1", "health": "Melting"}]}) == 1
    assert "node node1: what its agent reported cannot be read" in errors(caplog)[-1]
