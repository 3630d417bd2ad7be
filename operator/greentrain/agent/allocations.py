"""Which cards are allocated to which pods, from the kubelet's list of devices and the API server's pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from greentrain.devices.nvidia.references import (
    FullCard,
    MigInstance,
    NumberedCard,
    NumberedMigInstance,
    SharedReplica,
    Unit,
    UnknownDevice,
    get_unit,
)
from greentrain.devices.podresources import Claim, GpuPod, KnownPod, Listing, PodKey, group_by_unit
from greentrain.energy.attribution import Allocated
from greentrain.node.allocations import Allocations, NamedPod, by_name, pod_key
from greentrain.node.cards import Card


def find_allocations(
    listing: Listing, cards: Sequence[Card], pods: Iterable[NamedPod], *, listed: bool = True
) -> Allocations:
    """The allocations of each card; to several pods at once only where it is shared or partitioned.

    `listed`: whether the driver has listed its cards. A device that it does not list counts as a card of its own name, which is
    never read: its pod's time is then missing, not zero.
    """
    found = Allocations()
    known = {PodKey(*key): KnownPod(p.uid, p.terminal) for key, p in by_name(pods).items()}
    for unit, held in group_by_unit(listing.allocations, known).items():
        for pod in held:
            found.pods[pod_key(pod.namespace, pod.pod, pod.uid)] = pod
        place = _find_place(unit, cards)
        if listed and (place is None or not any(c.uuid == place[0] for c in cards)):
            who = ", ".join(f"{h.namespace}/{h.pod}" for h in held)
            found.problems.append(
                f"the device {unit} of pod {who} {_explain_unknown(unit)}: what it uses is not known, and its time is missing"
            )
        uuid, share = place or (str(unit), 1.0)
        _share_out(found, uuid, share, held)
    for claim in listing.claims:
        _take_claim(found, claim, known)
    return found


def needs_cards(listing: Listing) -> bool:
    """Whether only the driver's list of cards shows which card some of the devices are, or are parts of."""
    units = (get_unit(allocation.card) for allocation in listing.allocations)
    return any(isinstance(unit, NumberedCard | MigInstance | NumberedMigInstance) for unit in units)


def _explain_unknown(unit: Unit) -> str:
    if isinstance(unit, UnknownDevice):
        return "has a name of no known form (only NVIDIA's GPUs can be read)"
    return "is none of the GPUs that the driver lists (nvidia-smi -L; a reset or a reboot may bring it back)"


def _take_claim(found: Allocations, claim: Claim, known: Mapping[PodKey, KnownPod]) -> None:
    """A GPU given by a ResourceClaim: the kubelet does not say which card it is, so none of its time can be read."""
    pod = known.get(PodKey(claim.namespace, claim.pod))
    if not claim.is_gpu or (pod is not None and pod.terminal):
        return
    uid = pod.uid if pod is not None else None
    key = pod_key(claim.namespace, claim.pod, uid)
    found.pods.setdefault(key, GpuPod(claim.namespace, claim.pod, uid, (claim.container,), ()))
    for name in claim.gpus:
        card = found.cards.setdefault(f"{claim.claim_namespace}/{claim.claim_name}/{name}", [])
        _merge(card, Allocated(key))
    found.problems.append(
        f"pod {claim.namespace}/{claim.pod} uses a GPU by ResourceClaim {claim.claim_name}, of which the kubelet does not say "
        "which card it is: what it uses is not known, and its time is missing; request nvidia.com/gpu of a device plugin instead"
    )


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
