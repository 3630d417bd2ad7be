"""Which cards are allocated to which pods, from the kubelet's list of devices and the API server's pods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greentrain.devices.nvidia.references import (
    FullCard,
    MigInstance,
    NumberedCard,
    NumberedMigInstance,
    SharedReplica,
    Unit,
    UnknownDevice,
)
from greentrain.devices.podresources import GpuPod, KnownPod, Listing, PodKey, group_by_unit
from greentrain.energy.attribution import Allocated
from greentrain.node.allocations import Allocations, NamedPod, by_name, pod_key
from greentrain.node.cards import Card


def find_allocations(listing: Listing, cards: Sequence[Card], pods: Iterable[NamedPod]) -> Allocations:
    """The allocations of each card; to several pods at once only where it is shared or partitioned."""
    found = Allocations()
    known = {PodKey(*key): KnownPod(p.uid, p.terminal) for key, p in by_name(pods).items()}
    for unit, held in group_by_unit(listing.allocations, known).items():
        for pod in held:
            found.pods[pod_key(pod.namespace, pod.pod, pod.uid)] = pod
        place = _find_place(unit, cards)
        if place is None:
            who = ", ".join(f"{h.namespace}/{h.pod}" for h in held)
            what = (
                "is of no known form" if isinstance(unit, UnknownDevice) else "is none of this node's cards"
            )
            found.problems.append(f"the device {unit} of pod {who} {what}: its energy counts as no pod's")
            continue
        uuid, share = place
        _share_out(found, uuid, share, held)
    for claim in listing.claims:
        if claim.is_gpu:
            found.problems.append(
                f"pod {claim.namespace}/{claim.pod} uses a GPU by ResourceClaim {claim.claim_name}, of which the kubelet "
                "does not say which card it is: its energy counts as no pod's; ask for nvidia.com/gpu instead"
            )
    return found


def _share_out(found: Allocations, uuid: str, share: float, held: Sequence[GpuPod]) -> None:
    replicas = {h: sum(isinstance(r, SharedReplica) for r in h.references) for h in held}
    shared = any(replicas.values())
    everyone = sum(replicas.values()) or len(held)
    for pod in held:
        key = pod_key(pod.namespace, pod.pod, pod.uid)
        part = share * ((replicas[pod] or 1) / everyone) if shared else share
        one = Allocated(key, part, alone=share == 1.0 and not shared)
        found.cards.setdefault(uuid, [])
        _merge(found.cards[uuid], one)


def _merge(holds: list[Allocated], one: Allocated) -> None:
    """Several parts of a card may be allocated to one pod."""
    for i, other in enumerate(holds):
        if other.pod == one.pod:
            holds[i] = Allocated(one.pod, min(1.0, other.share + one.share), alone=False)
            return
    holds.append(one)


def _find_place(unit: Unit, cards: Sequence[Card]) -> tuple[str, float] | None:
    """The card's UUID and what part of it this is; None where it is no known card."""
    match unit:
        case FullCard(uuid):
            # Also where NVML does not list it now: a card that was lost before the agent's start may come back.
            return uuid, 1.0
        case NumberedCard(minor):
            return next(((c.uuid, 1.0) for c in cards if c.minor == minor), None)
        case MigInstance(uuid):
            for card in cards:
                for part in card.partitions:
                    if part.uuid == uuid:
                        return card.uuid, part.slices / part.total_slices
        case NumberedMigInstance(minor, gpu_instance):
            for card in cards:
                parts = [p for p in card.partitions if p.gpu_instance == gpu_instance]
                if card.minor == minor and parts:
                    return card.uuid, sum(p.slices for p in parts) / parts[0].total_slices
        case UnknownDevice():
            pass
    return None
