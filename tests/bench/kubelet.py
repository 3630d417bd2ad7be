"""A hand that plays scheduler and kubelet for a whole namespace: pods run as soon as they are made, and go when they are deleted."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import aiohttp

from tests.support.api import MERGE, Json, RefusedError, Server, container_status, timestamp

HANDS = 16
"""Pods that are seen to at the same time."""


class Nodes(Protocol):
    """Where pods run."""

    def place(self, pod: Json) -> str:
        """The node a pod is bound to."""
        ...

    def end(self, pod: Json) -> None:
        """A pod has ended."""
        ...


class OneNode:
    """A node that has room for all."""

    def place(self, pod: Json) -> str:
        """That node."""
        del pod
        return "node-1"

    def end(self, pod: Json) -> None:
        """It keeps no account."""


class Kubelet(Server):
    """Follows the pods of one namespace. Their addresses are loopback ones where nothing listens."""

    def __init__(self, kubeconfig: Path, namespace: str, nodes: Nodes) -> None:
        super().__init__(kubeconfig)
        self._nodes = nodes
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._waiting: asyncio.Queue[tuple[Json, bool]] = asyncio.Queue()
        self._known: set[tuple[str, bool]] = set()
        self._addresses = 0

    async def follow(self) -> None:
        """Run and remove pods until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(HANDS):
                group.create_task(self._work())
            while True:
                found = await self.call("GET", self._pods)
                for pod in found["items"]:
                    self._see(pod)
                await self._watch(found["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        assert self._session is not None
        async with self._session.get(
            f"{self.url}{self._pods}?watch=true&resourceVersion={version}",
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] != "DELETED":
                    self._see(event["object"])

    def _see(self, pod: Json) -> None:
        going = "deletionTimestamp" in pod["metadata"]
        if going or pod["status"].get("phase") in ("Succeeded", "Failed"):
            self._nodes.end(pod)
        if going and not pod["metadata"].get("deletionGracePeriodSeconds"):
            return  # it is removed at once
        if not going and pod["spec"].get("nodeName"):
            return
        mark = (pod["metadata"]["uid"], going)
        if mark not in self._known:
            self._known.add(mark)
            self._waiting.put_nowait((pod, going))

    async def _work(self) -> None:
        while True:
            pod, going = await self._waiting.get()
            try:
                await (self._remove(pod) if going else self._run(pod))
            except RefusedError as error:
                if error.status not in (404, 409):  # it went meanwhile, or a successor took its place
                    raise

    async def _run(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        target = {"kind": "Node", "name": self._nodes.place(pod)}
        binding = {"metadata": {"name": name}, "target": target}
        await self.call("POST", f"{self._pods}/{name}/binding", binding)
        status = container_status("Running", {"running": {"startedAt": timestamp()}}, ready=True)
        self._addresses += 1
        status["podIP"] = build_address(self._addresses)
        await self.call("PATCH", f"{self._pods}/{name}/status", {"status": status}, content_type=MERGE)

    async def _remove(self, pod: Json) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self.call("DELETE", f"{self._pods}/{pod['metadata']['name']}", options)


def build_address(number: int) -> str:
    """The loopback address of the n-th pod, from 127.1.0.1 on: a connection to it is refused at once."""
    high, low = divmod(number, 65_536)
    return f"127.{1 + high}.{low // 256}.{low % 256}"


@contextlib.asynccontextmanager
async def kubelet(kubeconfig: Path, namespace: str, nodes: Nodes | None = None) -> AsyncIterator[None]:
    """Pods of the namespace run for the length of the block."""
    playing = Kubelet(kubeconfig, namespace, nodes or OneNode())
    async with playing:
        following = asyncio.create_task(playing.follow())
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
