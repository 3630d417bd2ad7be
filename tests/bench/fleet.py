"""A hand that plays the agents of many nodes: each reports its pods' energy every 30 s, as the product's own agent does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from greentrain.api import names
from tests.support.api import MERGE, Json, Server, timestamp

PATH = "/apis/greentrain.dev/v1alpha1/nodepowers"
REPORT_SECONDS = 30
GPUS = 8
GPU_WATTS = 250
MODEL = "NVIDIA H100 80GB HBM3"
QUARTER = 900


class Fleet:
    """Nodes of eight GPUs. The first pods of a job go to the first nodes, one on each, and other jobs' where there are fewest."""

    def __init__(self, clients: Sequence[Server], count: int) -> None:
        self._clients = clients
        self.names = [f"gpu-node-{i:04}" for i in range(count)]
        self._pods: dict[str, dict[str, Json]] = {name: {} for name in self.names}
        """By node: entries by the pods' UIDs."""
        self._node_of: dict[str, str] = {}
        self._read: dict[str, float] = {}
        """When each pod was read last."""
        self._placed = 0
        self._begun: dict[str, int] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    def place(self, pod: Json) -> str:
        """The node of a pod: by its index where its job has as many as there are nodes."""
        labels = pod["metadata"]["labels"]
        index = int(labels[names.LABEL_REPLICA_INDEX])
        if labels[names.LABEL_JOB] != "large":
            index, self._placed = self._placed, self._placed + 1
        node = self.names[index % len(self.names)]
        uid = pod["metadata"]["uid"]
        self._node_of[uid] = node
        self._pods[node][uid] = self._begin(pod)
        self._read[uid] = time.time()
        self._wake(node)
        return node

    def _begin(self, pod: Json) -> Json:
        meta = pod["metadata"]
        owner = meta["ownerReferences"][0]
        now = time.time()
        self._begun[meta["uid"]] = int(now // QUARTER) * QUARTER
        return {
            "uid": meta["uid"],
            "namespace": meta["namespace"],
            "name": meta["name"],
            "job": owner["name"],
            "jobUid": owner["uid"],
            "ownerKnown": True,
            "gpuJoules": 0,
            "firstReading": timestamp(),
            "lastReading": timestamp(),
            "gpuTime": [{"model": MODEL, "seconds": 0}],
            "buckets": {"start": _format(self._begun[meta["uid"]]), "joules": [0]},
        }

    def end(self, pod: Json) -> None:
        """The pod's entry is final, which its agent reports at once."""
        uid = pod["metadata"]["uid"]
        node = self._node_of.get(uid)
        entry = self._pods[node].get(uid) if node is not None else None
        if node is not None and entry is not None and not entry.get("closed"):
            self._count(entry)
            entry["closed"] = True
            entry["drawMilliwatts"] = 0
            self._wake(node)

    def _wake(self, node: str) -> None:
        if node not in self._queued:
            self._queued.add(node)
            self._waiting.put_nowait(node)

    def _count(self, entry: Json) -> None:
        """The energy until now."""
        now, uid = time.time(), entry["uid"]
        seconds = now - self._read[uid]
        self._read[uid] = now
        more = round(seconds * GPU_WATTS)
        entry["gpuJoules"] += more
        entry["errorJoules"] = 1 + entry["gpuJoules"] // 500
        entry["lastReading"] = timestamp()
        entry["drawMilliwatts"] = GPU_WATTS * 1000
        entry["gpuTime"][0]["seconds"] += round(seconds)
        joules = entry["buckets"]["joules"]
        joules += [0] * (int(now - self._begun[uid]) // QUARTER + 1 - len(joules))
        joules[-1] += more

    async def create(self) -> None:
        """The nodes' objects, with a first report each."""
        waiting = iter(self.names)

        async def make(client: Server) -> None:
            for name in waiting:
                kind = {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower"}
                await client.call("POST", PATH, {**kind, "metadata": {"name": name}, "spec": {}})
                await self._report(client, name)

        await asyncio.gather(*(make(client) for client in self._clients))

    async def _report(self, client: Server, name: str) -> None:
        entries = self._pods[name]
        for entry in entries.values():
            if not entry.get("closed"):
                self._count(entry)
        status = {
            "observedAt": timestamp(),
            "reportIntervalSeconds": REPORT_SECONDS,
            "region": "eu-central-1",
            "zone": "eu-central-1a",
            "journalId": f"journal-{name}",
            "conditions": list(_conditions()),
            "gpus": [_gpu(name, i) for i in range(GPUS)],
            "gpuCount": GPUS,
            "pods": list(entries.values()),
        }
        path = f"{PATH}/{name}/status"
        body = await client.call("PATCH", path, {"status": status}, content_type=MERGE)
        spec = body.get("spec") or {}
        for key in spec.get("settled") or ():
            uid = key.partition("/")[0]
            if entries.get(uid, {}).get("closed"):
                del entries[uid]
                del self._node_of[uid], self._read[uid], self._begun[uid]
        for ask in spec.get("pods") or ():
            if ask["uid"] in entries and "allowanceJoules" in ask:
                entries[ask["uid"]]["allowanceJoules"] = ask["allowanceJoules"]

    async def work(self) -> None:
        """Report until cancelled: each node every 30 s, evenly spread, and one whose pods have ended at once."""
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(self._work(client))
            begun, count = time.monotonic(), 0
            while True:
                self._wake(self.names[count % len(self.names)])
                count += 1
                due = begun + count * REPORT_SECONDS / len(self.names)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _work(self, client: Server) -> None:
        while True:
            node = await self._waiting.get()
            self._queued.discard(node)
            await self._report(client, node)


def _conditions() -> Iterable[Json]:
    types = (
        "DevicesReadable",
        "HoldersKnown",
        "JournalWritable",
        "CapsAllowed",
        "HostReadable",
        "OperatorActive",
    )
    for type_ in types:
        yield {
            "type": type_,
            "status": "True",
            "reason": "Observed",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }


def _gpu(node: str, index: int) -> Json:
    watts = 1000
    limits = {"minMilliwatts": 200, "defaultMilliwatts": 700, "maxMilliwatts": 700, "enforcedMilliwatts": 700}
    return {
        "uuid": f"GPU-{node}-{index}",
        "model": MODEL,
        "source": "Counter",
        "limits": {name: value * watts for name, value in limits.items()},
        "joules": int(time.monotonic()) * GPU_WATTS,
    }


def _format(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@contextlib.asynccontextmanager
async def reporting(fleet: Fleet) -> AsyncIterator[None]:
    """The nodes report for the length of the block."""
    working = asyncio.create_task(fleet.work())
    try:
        yield
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
