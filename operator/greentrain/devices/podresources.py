"""Asks the kubelet which GPU is allocated to which pod; no other source on a node has it.

The kubelet serves PodResources on a socket of its own. It gives namespace, pod and container of every device, never the pod's
UID, and may list pods that have ended (kubernetes#119423). `group_by_unit` corrects both, with the pods that the caller
knows.

One request is cheap (about a millisecond for 100 pods), but kubelets refuse more than 100 a second, all their
clients together (kubernetes#116459).
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from greentrain.api.resources import SHIPPED
from greentrain.devices.errors import Unavailable, Unsupported
from greentrain.devices.messages import build_messages
from greentrain.devices.nvidia.references import CardReference, Unit, get_unit, parse_device

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
"""Where the kubelet serves PodResources unless its root directory is elsewhere."""

DEADLINE_SECONDS = 10.0

MOST_BYTES = 16 * 2**20
"""Longest answer read, as in the kubelet's own client; gRPC's 4 MiB are too few for a thousand pods with many devices."""

MOST_ENTRIES = 200_000
"""Most pods, containers, devices and claims in one answer; a node has hundreds, and the event loop must not block."""

DRIVER = "gpu.nvidia.com"
"""NVIDIA's driver of GPUs under Dynamic Resource Allocation. Other makers' are named alike: gpu.amd.com, gpu.intel.com."""

# Numbers of k8s.io/kubelet/pkg/apis/podresources/v1.
_MESSAGES = build_messages(
    "v1",
    {
        "ListPodResourcesRequest": {},
        "ListPodResourcesResponse": {"pod_resources": (1, "repeated PodResources")},
        "PodResources": {
            "name": (1, "string"),
            "namespace": (2, "string"),
            "containers": (3, "repeated ContainerResources"),
        },
        "ContainerResources": {
            "name": (1, "string"),
            "devices": (2, "repeated ContainerDevices"),
            "cpu_ids": (3, "repeated int64"),
            "memory": (4, "repeated ContainerMemory"),
            "dynamic_resources": (5, "repeated DynamicResource"),
        },
        "ContainerDevices": {
            "resource_name": (1, "string"),
            "device_ids": (2, "repeated string"),
            "topology": (3, "TopologyInfo"),
        },
        "ContainerMemory": {
            "memory_type": (1, "string"),
            "size": (2, "uint64"),
            "topology": (3, "TopologyInfo"),
        },
        "TopologyInfo": {"nodes": (1, "repeated NUMANode")},
        "NUMANode": {"ID": (1, "int64")},
        # Until 1.31 number 1 was a class's name.
        "DynamicResource": {
            "claim_name": (2, "string"),
            "claim_namespace": (3, "string"),
            "claim_resources": (4, "repeated ClaimResource"),
        },
        "ClaimResource": {
            "cdi_devices": (1, "repeated CDIDevice"),
            "driver_name": (2, "string"),
            "pool_name": (3, "string"),
            "device_name": (4, "string"),
        },
        "CDIDevice": {"name": (1, "string")},
    },
)

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    # Else a new connection waits for the back-off of an earlier one to the same path.
    ("grpc.use_local_subchannel_pool", 1),
    # Else the socket's path in percent code is sent as the host's name, which strict servers refuse.
    ("grpc.default_authority", "localhost"),
    # Else gRPC measures the connection's bandwidth at each answer, which keeps its idle threads waking for seconds: a third
    # of its CPU time (measured with 1.85 on 2 cores, and on 2 that report 64: it has a thread for each, 4 to 16).
    ("grpc.http2.bdp_probe", 0),
)


def _unavailable(path: Path, why: str) -> Unavailable:
    """The kubelet gave no usable answer: retry later; what was known before is not disproved."""
    remedy = "See whether the kubelet runs on this node and its folder pod-resources is mounted."
    return Unavailable(f"The kubelet's socket {path}", why, remedy)


class MalformedError(ValueError):
    """The bytes are not an answer of PodResources, or one of absurd size."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One device that is allocated to one container."""

    namespace: str
    pod: str
    container: str
    resource: str
    """Resource name under which it was requested: `nvidia.com/gpu`."""
    card: CardReference


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """One device of a ResourceClaim, as its driver names it; empty texts where the kubelet reports nothing."""

    driver: str
    pool: str
    device: str
    """The driver's name for it, as `gpu-0`: no UUID."""
    cdi_names: tuple[str, ...]
    """As `k8s.gpu.nvidia.com/claim=…`."""

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU, by its driver or, before 1.31, by its CDI kind.

        A kubelet may be three minor versions older than the API server.
        """
        return "gpu" in self.driver.split(".") or any(
            name.startswith((f"k8s.{DRIVER}/", "nvidia.com/gpu=")) for name in self.cdi_names
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """One ResourceClaim (Dynamic Resource Allocation) of one container; which cards it allocated may not be reported."""

    namespace: str
    pod: str
    container: str
    claim_name: str
    claim_namespace: str
    devices: tuple[ClaimedDevice, ...]

    @property
    def drivers(self) -> tuple[str, ...]:
        """The drivers that serve it."""
        return tuple(sorted({device.driver for device in self.devices if device.driver}))

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU is among its devices."""
        return any(device.is_gpu for device in self.devices)

    @property
    def gpus(self) -> tuple[str, ...]:
        """The names of the GPUs among its devices, each once; the CDI name where a kubelet before 1.31 gives no other."""
        named = (d.device or ",".join(d.cdi_names) for d in self.devices if d.is_gpu)
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class Listing:
    """What is allocated to all pods of the node at one moment, in a stable order."""

    allocations: tuple[Allocation, ...]
    claims: tuple[Claim, ...]
    """Every claim, of whatever driver."""


class PodKey(NamedTuple):
    """A pod by namespace and name."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class KnownPod:
    """What the caller knows of a pod from another source."""

    uid: str
    terminal: bool
    """Whether its phase is Succeeded or Failed: nothing is allocated to it, whatever the kubelet lists."""


@dataclass(frozen=True, slots=True)
class GpuPod:
    """One pod that a card or MIG instance, or replicas of it, are allocated to."""

    namespace: str
    pod: str
    uid: str | None
    """None where the pod is not known."""
    containers: tuple[str, ...]
    references: tuple[CardReference, ...]
    """The kubelet's names, so that replicas can be distinguished."""


def group_by_unit(
    allocations: Iterable[Allocation], pods: Mapping[PodKey, KnownPod]
) -> dict[Unit, tuple[GpuPod, ...]]:
    """The pods that each card or MIG instance is allocated to: none of those known to have ended, but unknown ones too.

    It has more than one pod where it is shared, or where the kubelet still lists a pod that has ended and is not known.
    """
    found: dict[Unit, dict[PodKey, list[Allocation]]] = {}
    for allocation in sorted(allocations, key=_sort_key):
        key = PodKey(allocation.namespace, allocation.pod)
        if not (key in pods and pods[key].terminal):
            found.setdefault(get_unit(allocation.card), {}).setdefault(key, []).append(allocation)
    return {
        unit: tuple(
            GpuPod(
                *key,
                uid=pods[key].uid if key in pods else None,
                containers=tuple(dict.fromkeys(h.container for h in held)),
                references=tuple(dict.fromkeys(h.card for h in held)),
            )
            for key, held in by_pod.items()
        )
        for unit, by_pod in found.items()
    }


def _sort_key(allocation: Allocation) -> tuple[str, ...]:
    return (
        allocation.namespace,
        allocation.pod,
        allocation.container,
        allocation.resource,
        str(allocation.card),
    )


def parse_listing(content: bytes, counts: Callable[[str], bool] = SHIPPED.counts) -> Listing:
    """Read the answer to List; devices of resources that do not count are left out.

    Raises:
        MalformedError: it is not one, or has more than MOST_ENTRIES entries.
    """
    budget = _Budget()
    allocations: set[Allocation] = set()
    claims: list[Claim] = []
    for pod in budget.take(_decode("ListPodResourcesResponse", content).pod_resources):
        for container in budget.take(pod.containers):
            where = (pod.namespace, pod.name, container.name)
            for devices in budget.take(container.devices):
                resource = devices.resource_name
                if counts(resource):
                    held = budget.take(devices.device_ids)
                    allocations.update(Allocation(*where, resource, parse_device(text)) for text in held)
            for claim in budget.take(container.dynamic_resources):
                claimed = tuple(
                    ClaimedDevice(
                        driver=resource.driver_name,
                        pool=resource.pool_name,
                        device=resource.device_name,
                        cdi_names=tuple(device.name for device in budget.take(resource.cdi_devices)),
                    )
                    for resource in budget.take(claim.claim_resources)
                )
                claims.append(Claim(*where, claim.claim_name, claim.claim_namespace, claimed))
    # The kubelet iterates over maps, so its order changes from one answer to the next.
    claims.sort(key=lambda c: (c.namespace, c.pod, c.container, c.claim_namespace, c.claim_name))
    return Listing(tuple(sorted(allocations, key=_sort_key)), tuple(claims))


def _decode(name: str, content: bytes) -> Any:
    message = _MESSAGES[name]()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise MalformedError(f"it cannot be read as {name}") from error
    return message


class _Budget:
    """Counts an answer's entries before they are read."""

    def __init__(self) -> None:
        self._left = MOST_ENTRIES

    def take(self, entries: Any) -> Any:
        self._left -= len(entries)
        if self._left < 0:
            raise MalformedError(f"it has more than {MOST_ENTRIES} entries")
        return entries


class PodResources(AbstractAsyncContextManager["PodResources"]):
    """The kubelet's PodResources on one socket; requests go one at a time.

    The connection is kept between requests. It is opened again after a failed request, or when another socket is at the path,
    as after a restart of the kubelet. Use in one event loop; close it, or use it as an async context manager.
    """

    def __init__(
        self,
        path: Path = SOCKET,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        counts: Callable[[str], bool] = SHIPPED.counts,
    ) -> None:
        """`deadline_seconds` bounds each request, `counts` chooses the resource names of GPUs."""
        self._path = path.absolute()
        self._deadline = deadline_seconds
        self._counts = counts
        self._lock = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._identity: tuple[int, ...] = ()
        self._parsed: tuple[bytes, Listing] | None = None
        """The last answer: most are the same as the one before, and parsing is two fifths of this thread's work (measured)."""

    async def read_allocations(self) -> Listing:
        """Which GPUs are allocated to the node's containers, and which claims they use.

        Raises:
            Unavailable: there is no kubelet, or it gives no valid answer in time.
            Unsupported: the kubelet serves no PodResources.
        """
        async with self._turn():
            content = await self._call("/v1.PodResourcesLister/List")
            if self._parsed is None or self._parsed[0] != content:
                self._parsed = (content, parse_listing(content, self._counts))
            return self._parsed[1]

    async def close(self) -> None:
        """Close the connection; a later request opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until no other request is in progress; the deadline and every kind of answer are handled."""
        try:
            async with asyncio.timeout(self._deadline), self._lock:
                yield
        except TimeoutError:
            raise _unavailable(self._path, f"nothing came within {self._deadline:g} s") from None
        except MalformedError as error:
            raise _unavailable(self._path, f"its answer makes no sense, {error}") from error

    async def _call(self, method: str) -> bytes:
        channel = await self._connect()
        # Bytes go in and out: with a deserializer gRPC would log what cannot be parsed, and answer None.
        ask: Any = channel.unary_unary(method)
        try:
            answer: bytes = await ask(b"")
        except grpc.aio.AioRpcError as error:
            await self.close()
            code, details = error.code(), " ".join((error.details() or "").split())[:300]
            if code is grpc.StatusCode.UNIMPLEMENTED:
                raise Unsupported(f"{method.strip('/')} of the kubelet") from error
            raise _unavailable(self._path, f"{code.name}, {details or 'no reason given'}") from error
        except asyncio.CancelledError:  # by the deadline or the caller
            await self.close()
            raise
        return answer

    async def _connect(self) -> grpc.aio.Channel:
        """A connection to the socket that is at the path now."""
        identity = _identify(self._path)
        channel = self._channel
        if channel is None or self._identity != identity:
            await self.close()
            target = f"unix://{quote(str(self._path))}"
            channel = self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
            self._identity = identity
        return channel


def _identify(path: Path) -> tuple[int, ...]:
    """What distinguishes the socket at a path from a later one there.

    Raises:
        Unavailable: there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise _unavailable(path, f"the socket cannot be reached, {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise _unavailable(path, "it is no socket")
    return (found.st_dev, found.st_ino, found.st_ctime_ns)
