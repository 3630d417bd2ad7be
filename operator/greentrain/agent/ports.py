"""What an agent runs on: its machine, with clock and devices, and what the API server shows of its node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from greentrain.agent.clock import Clock
from greentrain.agent.host import Host
from greentrain.api.nodepower import NodePowerStatus
from greentrain.devices.gpus import Gpus
from greentrain.devices.podresources import Listing
from greentrain.kube.node import NodePod, Place
from greentrain.quantities import PowerCap


class Kubelet(Protocol):
    """Which devices are allocated to which pods (`devices.podresources.PodResources`)."""

    async def read_allocations(self) -> Listing:
        """The present allocations; Unavailable or Unsupported where they are not reported."""
        ...


class View(Protocol):
    """What the API server shows (`kube.node.NodeView`)."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The node's pods by UID."""
        ...

    @property
    def pods_known(self) -> bool:
        """Whether these are the pods of now."""
        ...

    @property
    def version(self) -> int:
        """Another number after each change of the pods."""
        ...

    @property
    def settled(self) -> tuple[str, ...]:
        """UID/segment of the pods that were settled."""
        ...

    @property
    def caps(self) -> Mapping[str, PowerCap] | None:
        """The requested caps, by the pod's UID; None until they were read."""
        ...

    @property
    def place(self) -> Place:
        """Where the node is, by its labels."""
        ...

    @property
    def paused(self) -> str | None:
        """Why NVML must be closed; None while it need not be."""
        ...

    @property
    def news(self) -> asyncio.Event:
        """Set when something came that must not wait for the next round."""
        ...

    async def read_status(self) -> NodePowerStatus | None:
        """What was reported last."""
        ...

    async def report(self, status: NodePowerStatus) -> None:
        """Store a report."""
        ...


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine an agent runs on."""

    clock: Clock
    open_gpus: Callable[[], Awaitable[Gpus]]
    """Opens the GPUs' library; raises Unavailable where it cannot be used."""
    kubelet: Kubelet
    host: Host | None = None
    """Processors and memory."""
    find_pods: Callable[[], Collection[str]] | None = None
    """UIDs of the pods that have a cgroup; raises DeviceError where cgroups cannot be read."""
