"""Which GPUs are allocated to which pods at one moment, as values. Energy is attributed and caps are chosen by it.

`agent.allocations` finds it from what the kubelet and the API server report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from greentrain.energy.attribution import Allocated


class AllocatedPod(Protocol):
    """A pod that a card or a part of one is allocated to."""

    @property
    def namespace(self) -> str:
        """Its namespace."""
        ...

    @property
    def pod(self) -> str:
        """Its name."""
        ...

    @property
    def uid(self) -> str | None:
        """Its UID; None where the API server has not shown it yet."""
        ...


class NamedPod(Protocol):
    """A pod, with what is needed to find it by its name."""

    @property
    def namespace(self) -> str:
        """Its namespace."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def uid(self) -> str:
        """Its UID."""
        ...

    @property
    def terminal(self) -> bool:
        """Whether its phase is Succeeded or Failed."""
        ...


Named = TypeVar("Named", bound=NamedPod)


@dataclass(slots=True)
class Allocations:
    """Which cards are allocated to which pods at one moment."""

    cards: dict[str, list[Allocated]] = field(default_factory=dict)
    """The allocations of each card, by its UUID."""
    pods: dict[str, AllocatedPod] = field(default_factory=dict)
    """The pods that have allocations, by their key in the account."""
    problems: list[str] = field(default_factory=list)
    """Messages on what the kubelet listed and the agent cannot count."""


def pod_key(namespace: str, name: str, uid: str | None) -> str:
    """A pod's key in the account; without a UID until the API server has shown it."""
    return f"{namespace}/{name}/{uid or ''}"


def by_name(pods: Iterable[Named]) -> dict[tuple[str, str], Named]:
    """Pods by namespace and name; of two of one name the one that has not ended."""
    found: dict[tuple[str, str], Named] = {}
    for pod in pods:
        key = (pod.namespace, pod.name)
        if key not in found or found[key].terminal:
            found[key] = pod
    return found


def drop_ended(allocations: Allocations, alive: Collection[str]) -> Allocations:
    """The allocations of pods that have processes; `alive` are the UIDs of the pods that have a cgroup.

    Some kubelets list an ended pod's devices until its object is removed (kubernetes/kubernetes#119423). While the API server
    is away, nothing else shows that the pod has ended. Where no pod has a cgroup, not even the agent's own, cgroups cannot be
    seen here, and every pod counts. So does a pod without a UID.
    """
    if not alive:
        return allocations
    there = {key for key, pod in allocations.pods.items() if not pod.uid or pod.uid in alive}
    cards = {uuid: [h for h in held if h.pod in there] for uuid, held in allocations.cards.items()}
    return Allocations(cards, allocations.pods, allocations.problems)
