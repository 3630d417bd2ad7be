"""The pods of a node in its account: when one is opened, named, closed and dropped, by what kubelet and API server show.

An ended pod is reported until the operator has settled it. So its energy is in the job's status before it leaves the report.
Each function returns whether the account has something new that must be stored before it is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from greentrain.api.nodepower import NodePowerStatus
from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Window
from greentrain.energy.pods import PodAccount
from greentrain.node.allocations import Allocations, NamedPod, by_name, pod_key
from greentrain.node.allowance import Used
from greentrain.node.allowances import Counted
from greentrain.quantities import Joules, add, from_joules


class OwnedPod(NamedPod, Protocol):
    """A pod of the node as the API server shows it."""

    @property
    def job(self) -> str | None:
        """Name of the GreenTrainingJob that controls it; None where none does."""
        ...

    @property
    def job_uid(self) -> str | None:
        """That job's UID."""
        ...

    @property
    def began(self) -> float | None:
        """Unix time at which its first container started."""
        ...

    @property
    def ended(self) -> float | None:
        """Unix time at which its last container ended; None while one runs."""
        ...


@dataclass(frozen=True, slots=True)
class StandIn:
    """A pod of the account while the API server does not show it."""

    namespace: str
    name: str
    uid: str
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was dropped from the account."""

    new: bool
    given_up: tuple[str, ...] = ()
    """Keys of pods whose last reading is not waited for any longer: part of their energy is missing."""
    overdue: tuple[str, ...] = ()
    """Keys of pods that the operator did not settle in time."""


def find_known(account: NodeAccount, pods: Collection[NamedPod], *, known: bool) -> list[NamedPod]:
    """The node's pods; while the API server does not show them (`known`), the account's too, so that each keeps its UID."""
    found = list(pods)
    if not known:
        named = by_name(pods)
        found += [
            StandIn(p.namespace, p.name, p.uid)
            for p in account.pods.values()
            if p.uid and p.closed is None and (p.namespace, p.name) not in named
        ]
    return found


def find_windows(pods: Iterable[OwnedPod], *, offset: float) -> dict[str, Window]:
    """When pods began and ended, on the clock of the readings: Unix time and `offset` seconds."""
    return {
        pod_key(p.namespace, p.name, p.uid): Window(
            p.began + offset, None if p.ended is None else p.ended + offset
        )
        for p in pods
        if p.began is not None
    }


def open_pods(account: NodeAccount, allocations: Allocations, pods: Mapping[str, OwnedPod]) -> bool:
    """Begin to count for every pod that a card is allocated to; `pods` by UID."""
    new = False
    for key, allocated in allocations.pods.items():
        new = new or key not in account.pods or account.pods[key].closed is not None
        pod = account.open(key, namespace=allocated.namespace, name=allocated.pod, uid=allocated.uid or "")
        known = pods.get(pod.uid)
        if known is not None:
            _own(pod, known)
    return new


def open_without_gpu(account: NodeAccount, pods: Iterable[OwnedPod]) -> None:
    """Begin to count for every running pod of a job without a card too: it has a share of the processors."""
    for known in pods:
        key = pod_key(known.namespace, known.name, known.uid)
        if known.job_uid is not None and not known.terminal and key not in account.pods:
            _own(account.open(key, namespace=known.namespace, name=known.name, uid=known.uid), known)


def find_host_shares(account: NodeAccount, shares: Mapping[str, float]) -> dict[str, float]:
    """Each open pod's share of the processors' time by its key in the account; `shares` by UID."""
    return {key: shares.get(pod.uid, 0.0) for key, pod in account.pods.items() if pod.closed is None}


def name_pods(account: NodeAccount, pods: Iterable[OwnedPod]) -> bool:
    """Give pods that were counted before the API server showed their UID that UID."""
    if not any(not p.uid for p in account.pods.values()):
        return False
    named, new = by_name(pods), False
    for key, pod in list(account.pods.items()):
        found = named.get((pod.namespace, pod.name))
        if not pod.uid and found is not None:
            name = pod_key(pod.namespace, pod.name, found.uid)
            account.name(key, name, uid=found.uid)
            _own(account.pods[name], found)
            new = True
    return new


def close_pods(
    account: NodeAccount,
    allocations: Allocations,
    pods: Mapping[str, OwnedPod],
    *,
    wall: float,
    name_unseen: Callable[[], str],
) -> bool:
    """Close every pod without allocations that the API server shows as ended or no longer shows; `pods` by UID, as of now.

    `name_unseen` gives a UID for a pod that was never shown.
    """
    new = False
    for key, pod in list(account.pods.items()):
        if key in allocations.pods or pod.closed is not None:
            continue
        if not pod.uid:
            account.close_unnamed(key, wall=wall, name=name_unseen())
            new = True
            continue
        known = pods.get(pod.uid)
        if known is None or known.terminal:
            account.close(key, wall=wall)
            new = True
    return new


def drop_settled(account: NodeAccount, settled: Collection[str], *, wall: float) -> Dropped:
    """Drop what the operator has settled, as UID/segment, and what was not settled in time."""
    if not account.inherited and all(p.closed is None for p in account.pods.values()):
        return Dropped(new=False)  # nothing has ended, so there is nothing to drop
    keys = set(settled)
    known = keys & account.inherited.keys()
    for key in known:
        del account.inherited[key]
    done = [k for k, p in account.pods.items() if p.closed is not None and f"{p.uid}/{p.segment}" in keys]
    given_up = tuple(account.give_up(wall=wall))
    overdue = tuple(account.drop_overdue(wall=wall))
    if done:
        account.settle(done)
    return Dropped(bool(known or done or given_up or overdue), given_up, overdue)


def inherit(account: NodeAccount, before: NodePowerStatus | None) -> int:
    """Take over what an account of another journal reported last; returns how many pods' final reports that are."""
    if before is None or before.journal_id == account.journal_id or not before.pods:
        return 0
    account.inherit(before.pods, lambda e: pod_key(e.namespace, e.name, e.uid))
    return len(before.pods)


def sum_up(account: NodeAccount) -> dict[str, Counted]:
    """The most each pod may have used, by UID: the account's own count, and the final readings of an account before it."""
    found: dict[str, Counted] = {}
    for entry in account.inherited.values():
        if entry.uid:
            final = Used(
                from_joules(Joules(entry.gpu_joules)),
                from_joules(Joules(entry.cpu_joules + entry.dram_joules)),
            )
            before = found.get(entry.uid, Counted(entry.namespace, entry.name, open=False))
            found[entry.uid] = replace(before, used=before.used.plus(final))
    for pod in account.pods.values():
        if pod.uid:
            before = found.get(pod.uid, Counted(pod.namespace, pod.name))
            # Of time that is missing, the most counts: an allowance limits what is known and what is not.
            used = before.used.plus(Used(add(pod.gpu, pod.missing_most), add(pod.cpu, pod.dram)))
            found[pod.uid] = replace(before, used=used, open=pod.closed is None)
    return found


def _own(pod: PodAccount, known: OwnedPod) -> None:
    pod.job, pod.job_uid, pod.owner_known = known.job, known.job_uid, True
