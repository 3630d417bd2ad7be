"""Counts energy in a job's status exactly once, also when reports come twice, late or in any order.

Each pod's entry is joined with what is known about it. Joules only grow, so of two reports the larger counts: the result is
the same in any order and any number of times. Once the stored status has an ended pod's entry, the node's agent is asked to
drop it (`NodePower.spec.settled`). Once the agent has, the entry becomes part of one sum. Its name is kept, so that an old
report of it is not counted again. Each step reads the previous one as it is stored.

What an entry adds is computed once. For a job on a thousand nodes, a pass joins only the entries reported since the last
one, and adds up whole numbers (`core.seen.nodes.Kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isqrt

from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.api.spec import Scope
from greentrain.api.status import KEPT_PODS, KEPT_SETTLED, EnergyStatus, PodEnergyStatus
from greentrain.core.books.account import Account
from greentrain.core.seen.nodes import attempt_of, is_abandoned
from greentrain.quantities import Joules, format_energy

MOST_SQUARED = 2**63 - 1
"""The largest sum of squared joules in the status: that of an error bound of 800 kWh."""


def fold(account: Account) -> tuple[EnergyStatus | None, dict[int, int]]:
    """The job's energy with what nodes have reported, and the growth of each attempt's since it was stored, in joules.

    The final reading of a pod that is gone counts as lost in two cases: its node's report no longer has the pod although it
    was never reported as ended, or the node has been silent for an hour.
    """
    old, reports, scope, now = account.stored, account.reports, account.spec.energy.scope, account.now
    present = {p.uid for p in account.seen.pods}
    finished = account.over and all(p.ended for p in account.seen.pods)
    before = old or EnergyStatus()
    pods = {p.key: p for p in before.pods}
    settled = set(before.settled)
    reported: set[str] = set()
    reporting: set[str] = set()
    abandoned: set[str] = set()
    for report in reports:
        reporting.add(report.node)
        if is_abandoned(report.received, now=now):
            abandoned.add(report.node)
        for entry in report.pods:
            reported.add(entry.key)
            if entry.key not in settled:
                given = (pods.get(entry.key), entry, report.node)
                pods[entry.key] = report.kept.get("joined", entry.key, given, _join)
    if old is None and not pods:
        return None, {}
    stored = {p.key: p for p in before.pods}
    growth: dict[int, int] = {}
    for key, pod in pods.items():
        known = stored.get(key)
        more = 0 if pod is known else pod.counted(scope) - (known.counted(scope) if known is not None else 0)
        if more:
            growth[pod.attempt] = growth.get(pod.attempt, 0) + more
    kept, folded, lost = [], [], 0
    for key, pod in pods.items():
        dropped = key in stored and key not in reported
        if dropped and stored[key].final:
            folded.append(pod)
        elif dropped and pod.node in reporting and pod.uid not in present:
            folded.append(pod)
            lost += 1
        elif not pod.final and pod.node in abandoned and pod.uid not in present:
            kept.append(pod.model_copy(update={"final": True}))
            lost += 1
        else:
            kept.append(pod)
    if len(kept) > KEPT_PODS:
        # Only an agent that invents segments lists so many. Entries that are no longer reported go into the sum first.
        kept.sort(key=lambda p: p.key in reported)
        lost += sum(not p.final for p in kept[:-KEPT_PODS])
        folded += kept[:-KEPT_PODS]
        kept = kept[-KEPT_PODS:]
    return _sum_up(before, kept, folded, lost, finished=finished, scope=scope), growth


def _join(known: PodEnergyStatus | None, entry: PodEnergy, node: str) -> PodEnergyStatus:
    """The larger of what is known and what is reported; joules only grow, so it is the later one.

    An end that is reported with fewer joules is still an end. A card's counter and the agent's journal may have been lost
    together; then what was reported before counts.
    """
    if known is not None and known.joules >= entry.joules:
        # The error bound and the missing time can grow alone, as while a card cannot be read.
        joined = known.model_copy(
            update={
                "final": known.final or entry.closed,
                "error_joules": max(known.error_joules, entry.error_joules),
                "missing_seconds": max(known.missing_seconds, entry.missing_seconds),
                "counter_faults": max(known.counter_faults, entry.counter_faults),
            }
        )
        return known if joined == known else joined
    return PodEnergyStatus(
        uid=entry.uid,
        segment=entry.segment,
        node=node,
        name=entry.name,
        attempt=attempt_of(entry.name),
        gpu_joules=entry.gpu_joules,
        cpu_joules=entry.cpu_joules,
        dram_joules=entry.dram_joules,
        estimated_joules=entry.estimated_joules,
        error_joules=entry.error_joules,
        missing_seconds=entry.missing_seconds,
        counter_faults=entry.counter_faults,
        # What has been priced is final, whatever is reported later.
        priced_joules=0 if known is None else known.priced_joules,
        priced_until=None if known is None else known.priced_until,
        gpu_time=() if known is None else known.gpu_time,
        final=entry.closed,
    )


def _sum_up(
    before: EnergyStatus,
    kept: list[PodEnergyStatus],
    folded: list[PodEnergyStatus],
    lost: int,
    *,
    finished: bool,
    scope: Scope,
) -> EnergyStatus:
    base = before.folded or PodEnergyStatus(uid="", final=True)
    whole = _add_up((base, *folded)) if folded else base
    squared = min(before.folded_error_squared + sum(p.error_joules**2 for p in folded), MOST_SQUARED)
    total = _add_up((whole, *kept))
    used = total.counted(scope)
    # The energy of processors and memory is always estimated: it is divided by CPU time.
    host = 0 if scope == "Node" else total.cpu_joules + total.dram_joules
    estimated = min(100, round(100 * max(0, total.estimated_joules - host) / used)) if used else 0
    lost_pods = before.lost_pods + lost
    known = bool(kept or folded) or before.folded is not None
    return EnergyStatus(
        scope=scope,
        used=format_energy(Joules(used)) if known else "",
        used_joules=used,
        gpu_joules=total.gpu_joules,
        cpu_joules=total.cpu_joules,
        dram_joules=total.dram_joules,
        measured_percent=100 - estimated if used else 0,
        estimated_percent=estimated,
        missing_seconds=total.missing_seconds,
        counter_faults=total.counter_faults,
        error_joules=_root(squared + sum(p.error_joules**2 for p in kept)),
        lost_pods=lost_pods,
        final=finished and all(p.final for p in kept),
        folded=whole if folded or before.folded is not None else None,
        folded_error_squared=squared,
        pods=tuple(sorted(kept, key=lambda p: (p.attempt, p.name, p.uid, p.segment))),
        settled=(*before.settled, *(p.key for p in folded))[-KEPT_SETTLED:],
    )


def _root(squared: int) -> int:
    """The square root of a squared bound, rounded up."""
    return 1 + isqrt(squared - 1) if squared else 0


def _add_up(pods: Sequence[PodEnergyStatus]) -> PodEnergyStatus:
    """The sum of what these pods used, under the first one's name."""
    return PodEnergyStatus(
        uid=pods[0].uid,
        gpu_joules=sum(p.gpu_joules for p in pods),
        cpu_joules=sum(p.cpu_joules for p in pods),
        dram_joules=sum(p.dram_joules for p in pods),
        estimated_joules=sum(p.estimated_joules for p in pods),
        missing_seconds=sum(p.missing_seconds for p in pods),
        counter_faults=sum(p.counter_faults for p in pods),
        final=True,
    )


def has_final_report(energy: EnergyStatus | None, entry: PodEnergy) -> bool:
    """Whether a job's stored status has an ended pod's entry, so that the agent may drop it."""
    if energy is None:
        return False
    if entry.key in energy.settled:
        return True
    of_pod = (p for p in energy.pods if p.uid == entry.uid and p.segment == entry.segment)
    return any(p.final and p.joules >= entry.joules for p in of_pod)


def decide_settled(
    asked: Iterable[str],
    status: NodePowerStatus,
    *,
    energy_of: Callable[[PodEnergy], EnergyStatus | None],
    is_ours: Callable[[str], bool],
    abandoned: bool = False,
) -> tuple[str, ...]:
    """What `NodePower.spec.settled` must contain: ended pods whose final report is stored, or that belong to no job.

    `energy_of` returns the stored energy of an entry's job. It raises LookupError where there is no such job any more.
    `is_ours` reports whether this operator watches a namespace; what another operator has settled (`asked`) stays. An
    `abandoned` node will report no more ends: an entry that is final in its job's status counts as ended.
    """

    def may_go(entry: PodEnergy) -> bool:
        if not is_ours(entry.namespace):
            return entry.key in asked_before
        try:
            return has_final_report(energy_of(entry), entry)
        except LookupError:
            return True

    def has_ended(entry: PodEnergy) -> bool:
        return entry.closed or abandoned

    asked_before = frozenset(asked)
    return tuple(entry.key for entry in status.pods if has_ended(entry) and may_go(entry))
