"""What a node's agent reads from the API server: its node, the pods on it, the operator's requests, and its Lease.

All are followed by a list and a watch, again and again. While the server is away the last state stays, marked as old: an
agent counts on without the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import ValidationError

from greentrain.api import names
from greentrain.api.nodepower import NodePowerStatus, PodAsk, PodEnergy
from greentrain.api.stored import dump_status
from greentrain.core.seen.pods import find_cut_grace
from greentrain.core.seen.times import parse_time
from greentrain.kube.cache import version_of
from greentrain.kube.client import NODE_PODS, NODE_POWERS, NODES, ApiError, Client, lease_path, node_query
from greentrain.node.allowance import Allowance
from greentrain.node.renewals import Renewals
from greentrain.quantities import Joules, PowerCap

logger = logging.getLogger("greentrain.agent")

Body = Mapping[str, Any]

PAUSE_LABEL_PREFIX = "nvidia.com/gpu.deploy."
REGION_LABEL = "topology.kubernetes.io/region"
ZONE_LABEL = "topology.kubernetes.io/zone"

LONGEST_LABEL = 63

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0

SHORT_WATCHES = 3
"""So many watches in a row that end within `RETRY_SECONDS` without an event are an error: no event would ever come."""

_AWAY = (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class NodePod:
    """What the agent needs to know of a pod on its node."""

    namespace: str
    name: str
    uid: str
    terminal: bool
    """Whether its phase is Succeeded or Failed: nothing is allocated to it, whatever the kubelet lists."""
    job: str | None = None
    job_uid: str | None = None
    began: float | None = None
    """Unix time at which its first container started, in whole seconds."""
    ended: float | None = None
    """Unix time at which its last container ended; None while one runs."""
    budgeted: bool = False
    """Whether it belongs to a job that has a budget, by its annotation."""
    cut_grace: int | None = None
    """Seconds of its own grace period, where its deletion was requested with a longer one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's power comes from, by its labels; empty where they do not give it."""

    region: str = ""
    zone: str = ""


def parse_node_pod(body: Body) -> NodePod:
    """Read a pod of any kind."""
    meta, status = body["metadata"], body.get("status") or {}
    owner: Body = next((r for r in meta.get("ownerReferences") or () if r.get("controller")), {})
    ours = owner.get("kind") == names.KIND and str(owner.get("apiVersion", "")).startswith(f"{names.GROUP}/")
    began: list[float] = []
    ended: list[float] = []
    running = False
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        live, dead = state.get("running"), state.get("terminated")
        running = running or live is not None
        for found, field, times in (
            (live, "startedAt", began),
            (dead, "startedAt", began),
            (dead, "finishedAt", ended),
        ):
            moment = parse_time(found.get(field)) if found else None
            if moment is not None:
                times.append(moment.timestamp())
    return NodePod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        terminal=status.get("phase") in ("Succeeded", "Failed"),
        job=owner["name"] if ours else None,
        job_uid=owner["uid"] if ours else None,
        began=min(began, default=None),
        ended=None if running else max(ended, default=None),
        budgeted=ours and (meta.get("annotations") or {}).get(names.ANNOTATION_BUDGETED) == "true",
        cut_grace=find_cut_grace(body),
    )


def find_pause(node: Body) -> str | None:
    """Why NVML must be closed on this node, as a message; None while it need not be.

    NVIDIA's GPU operator asks each client of the driver off a node before it replaces the driver: it sets the node's
    labels `nvidia.com/gpu.deploy.*` to values that begin with `paused` (k8s-driver-manager).
    """
    for name, value in sorted((node["metadata"].get("labels") or {}).items()):
        if name.startswith(PAUSE_LABEL_PREFIX) and str(value).startswith("paused"):
            return f"the node's label {name} is {value}: its driver is being replaced."
    return None


def find_place(node: Body) -> Place:
    """Where a node is, by the labels that cloud providers and administrators set (Kubernetes' well-known labels)."""
    labels = node["metadata"].get("labels") or {}
    region, zone = (str(labels.get(name) or "")[:LONGEST_LABEL] for name in (REGION_LABEL, ZONE_LABEL))
    return Place(region, zone)


def parse_asks(spec: Body) -> tuple[PodAsk, ...]:
    """The requests for each pod; an entry that cannot be read requests nothing."""
    found = []
    for entry in spec.get("pods") or ():
        try:
            found.append(PodAsk.model_validate(entry))
        except ValidationError as error:
            logger.error(
                "what this node's NodePower asks for a pod cannot be read: %d fields are wrong",
                error.error_count(),
            )
    return tuple(found)


def find_caps(asks: Iterable[PodAsk]) -> dict[str, PowerCap]:
    """The requested power caps, by the pod's UID."""
    return {a.uid: a.cap for a in asks if a.cap_milliwatts is not None or a.cap_percent is not None}


def find_allowances(asks: Iterable[PodAsk]) -> dict[str, Allowance]:
    """The given energy allowances, by the pod's UID."""
    return {
        a.uid: Allowance(Joules(a.allowance_joules), a.allowance_scope, a.allowance_seconds)
        for a in asks
        if a.allowance_joules is not None
    }


def parse_last_report(status: Body) -> NodePowerStatus:
    """Read an agent's report; of one that another version wrote, at least its owner and every pod."""
    try:
        return NodePowerStatus.model_validate(status)
    except ValidationError as error:
        pods = []
        for entry in status.get("pods") or ():
            with contextlib.suppress(ValidationError):
                pods.append(PodEnergy.model_validate(entry))
        count = len(status.get("pods") or ())
        logger.warning(
            "the last report cannot be read as a whole (%d fields are wrong): %d of its %d pods can",
            error.error_count(),
            len(pods),
            count,
        )
        return NodePowerStatus(journal_id=str(status.get("journalId") or "")[:64], pods=tuple(pods))


def one_by_one(take: Callable[[Body], None]) -> Callable[[Body], None]:
    """The same, but an object that cannot be read is logged and left out, and the others are taken in."""

    def guarded(body: Body) -> None:
        try:
            take(body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = (body.get("metadata") or {}).get("name")
            logger.error(
                "%s %s cannot be read and is left out: %r", body.get("kind") or "object", name, error
            )

    return guarded


class NodeView:
    """The pods of one node, its NodePower and the operator's Lease, as last seen."""

    def __init__(
        self,
        client: Client,
        node: str,
        *,
        lease: tuple[str, str] | None = None,
        elapsed: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        retry: float = RETRY_SECONDS,
    ) -> None:
        """`lease` is namespace and name of the one the operator renews, `elapsed` the monotonic clock.

        `retry` is the first wait in seconds after an error; it doubles from one to the next.
        """
        self._client = client
        self._node = node
        self._lease = lease
        self._elapsed = elapsed
        self._wall = wall
        self._retry = retry
        self._renewals = Renewals()
        self._allowances: dict[str, Allowance] | None = None
        self._pods: dict[str, NodePod] = {}
        self._settled: tuple[str, ...] = ()
        self._pods_known = False
        self._version = 0
        self._caps: dict[str, PowerCap] | None = None
        self._paused: str | None = None
        self._place = Place()
        self.news = asyncio.Event()
        """Set when something came that must not wait for the next round: another cap, a pod that may have one."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The node's pods by UID."""
        return self._pods

    @property
    def pods_known(self) -> bool:
        """Whether these are the pods of a list or watch that is still valid."""
        return self._pods_known

    @property
    def version(self) -> int:
        """Another number after each change of the pods."""
        return self._version

    @property
    def settled(self) -> tuple[str, ...]:
        """UID/segment of the pods the operator has settled."""
        return self._settled

    @property
    def caps(self) -> Mapping[str, PowerCap] | None:
        """The requested power caps, by the pod's UID; None until they were read."""
        return self._caps

    @property
    def allowances(self) -> Mapping[str, Allowance] | None:
        """The energy allowances, by the pod's UID; None until they were read."""
        return self._allowances

    @property
    def lease(self) -> tuple[str, str] | None:
        """Namespace and name of the Lease that the operator renews; None where none was given: no renewal can then be seen."""
        return self._lease

    @property
    def operator_renewed(self) -> float | None:
        """When the last renewal was seen, on the monotonic clock; None where none was."""
        return self._renewals.renewed

    @property
    def unattended(self) -> Mapping[str, float]:
        """The jobs that the operator cannot reconcile, by UID, each with the time since when, on the monotonic clock."""
        return self._renewals.unattended

    @property
    def place(self) -> Place:
        """Where the node is; empty until that was read."""
        return self._place

    @property
    def paused(self) -> str | None:
        """Why NVML must be closed, as a message; None while it need not be, or that was not read."""
        return self._paused

    async def listen(self) -> None:
        """Read the operator's Lease now; a watch may deliver it late after an outage."""
        if self._lease is not None:
            bodies, _ = await self._client.list_any(*self._lease_query(self._lease))
            for body in bodies:
                self._put_lease(body)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Request a pod's eviction; 404 and 409: it no longer exists, 429: not now."""
        pod = self._pods.get(uid)
        await self._client.evict_pod(
            namespace, name, uid, grace_seconds=None if pod is None else pod.cut_grace
        )

    async def read_status(self) -> NodePowerStatus | None:
        """The last report of this node's agent; None where there is no NodePower."""
        try:
            body = await self._client.read_node_power(self._node)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return parse_last_report(body.get("status") or {})

    async def report(self, status: NodePowerStatus) -> None:
        """Store the agent's half; the object is created where it does not exist."""
        content = dump_status(status)
        try:
            await self._client.report_node_power(self._node, content)
        except ApiError as error:
            if error.status != 404:
                raise
            await self._client.create_node_power(self._node)
            await self._client.report_node_power(self._node, content)

    async def follow(self) -> None:
        """Keep the state up to date until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._follow(
                    NODE_PODS, node_query(self._node), self._put_pod, self._drop_pod, self._list_pods
                )
            )
            query = {"fieldSelector": f"metadata.name={self._node}"}
            group.create_task(self._follow(NODE_POWERS, query, self._put_power, lambda _: None, None))
            group.create_task(self._follow(NODES, query, self._put_node, lambda _: None, None))
            if self._lease is not None:
                lease = self._lease_query(self._lease)
                group.create_task(self._follow(*lease, self._put_lease, lambda _: None, None))

    @staticmethod
    def _lease_query(lease: tuple[str, str]) -> tuple[str, dict[str, str]]:
        namespace, name = lease
        return lease_path(namespace), {"fieldSelector": f"metadata.name={name}"}

    def _list_pods(self, bodies: list[dict[str, Any]]) -> None:
        pods: dict[str, NodePod] = {}

        def take(body: Body) -> None:
            pod = parse_node_pod(body)
            pods[pod.uid] = pod

        for body in bodies:
            one_by_one(take)(body)
        self._pods = pods
        self._version += 1
        self._pods_known = True

    def _put_pod(self, body: Body) -> None:
        pod = parse_node_pod(body)
        self._pods[pod.uid] = pod
        self._version += 1
        if self._caps:
            self.news.set()

    def _drop_pod(self, body: Body) -> None:
        self._pods.pop(body["metadata"]["uid"], None)
        self._version += 1

    def _put_power(self, body: Body) -> None:
        spec = body.get("spec") or {}
        self._settled = tuple(str(key) for key in spec.get("settled") or ())
        asks = parse_asks(spec)
        caps, allowances = find_caps(asks), find_allowances(asks)
        if (caps, allowances) != (self._caps, self._allowances):
            self._caps, self._allowances = caps, allowances
            self.news.set()

    def _put_lease(self, body: Body) -> None:
        named = (body["metadata"].get("annotations") or {}).get(names.ANNOTATION_UNATTENDED) or ""
        renewed = (body.get("spec") or {}).get("renewTime")
        moment, now = parse_time(renewed), self._elapsed()
        if self._renewals.take(renewed, moment, named.split(","), now=now, wall=self._wall()):
            self.news.set()

    def _put_node(self, body: Body) -> None:
        self._place = find_place(body)
        paused = find_pause(body)
        if paused != self._paused:
            self._paused = paused
            self.news.set()

    async def _follow(
        self,
        path: str,
        query: Mapping[str, str],
        put: Callable[[Body], None],
        drop: Callable[[Body], None],
        listed: Callable[[list[dict[str, Any]]], None] | None,
    ) -> None:
        """List once, then watch without end. A watch may end or be silent: the next one continues from where it was.

        Only an error makes the state old, requires a new list and waits, longer each time. A 410 requires a new list alone:
        the version has expired on the server, and what is known may still be right.
        """
        put, drop = one_by_one(put), one_by_one(drop)
        delay = self._retry
        version: int | None = None
        short = 0
        loop = asyncio.get_running_loop()
        while True:
            resumed, opened = version is not None, float("inf")
            try:
                if version is None:
                    bodies, version = await self._client.list_any(path, query)
                    if listed is not None:
                        listed(bodies)
                    else:
                        for body in bodies:
                            put(body)
                opened, brought = loop.time(), False
                async for kind, body in self._client.watch(path, query, version):
                    brought, delay = True, self._retry
                    version = max(version, version_of(body))
                    if kind == "DELETED":
                        drop(body)
                    elif kind != "BOOKMARK":
                        put(body)
                if loop.time() - opened >= self._retry:
                    short, delay = 0, self._retry
                    continue
                short = 0 if brought else short + 1
                if short >= SHORT_WATCHES:
                    short = 0
                    raise ApiError(502, "WatchEnds", f"{SHORT_WATCHES} watches in a row ended at once")
                # A server that ends watches at once must not get one request after the other.
                await asyncio.sleep(self._retry * random.uniform(0.75, 1.25))
            except _AWAY as error:
                version = None
                refused = error if isinstance(error, ApiError) else None
                # For a version that was listed just now, a 410 is an error like others.
                if (
                    refused is not None
                    and refused.status == 410
                    and (resumed or loop.time() - opened >= self._retry)
                ):
                    continue
                if listed is not None:
                    self._pods_known = False
                asked = (refused.retry_after if refused is not None else None) or 0.0
                wait = max(delay * random.uniform(0.75, 1.25), min(asked, LONGEST_RETRY_SECONDS))
                logger.warning(
                    "the API server cannot be followed on %s: %r; again in %.0f s", path, error, wait
                )
                await asyncio.sleep(wait)
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)
