"""Pods of a node as an agent sees them: what the API server shows, and what the kubelet lists of their GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greentrain.energy.attribution import Allocated
from greentrain.node.allocations import AllocatedPod, Allocations


@dataclass(frozen=True)
class SeenPod:
    """A pod as the API server shows it."""

    name: str
    uid: str
    terminal: bool = False
    budgeted: bool = False
    job: str | None = "digits"
    job_uid: str | None = "uid-1"
    began: float | None = None
    ended: float | None = None
    namespace: str = "team"


@dataclass(frozen=True)
class HoldingPod:
    """A pod as the kubelet lists it."""

    pod: str
    uid: str | None
    namespace: str = "team"


def build_holdings(
    cards: Mapping[str, tuple[AllocatedPod, ...]], *, shared: frozenset[str] = frozenset()
) -> Allocations:
    """Pods by the card they hold; their key is their UID, or their name where none is known. `shared` cards are held by parts."""
    found = Allocations()
    for card, pods in cards.items():
        for pod in pods:
            key = pod.uid or pod.pod
            found.pods[key] = pod
            found.cards.setdefault(card, []).append(Allocated(key, alone=card not in shared))
    return found
