"""What is charged for pods without readings: the power limits of their GPUs × the time of which nothing is known.

Every pod with GPUs has a charge from its start until its final report has arrived. The charge is 0 as long as its node
reports in time. It grows from the moment a report is overdue. Once the pod has ended, the charge is for all the time since
its last reading, because no report will come in between. The next reading settles it. Where the final report is lost, the
charge is permanent. So is that for the time of a GPU that its agent reports as missing: from the first second on where the GPU
was never read.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from greentrain.api.budgets import ControlStatus, PodCharge
from greentrain.api.nodepower import PodEnergy
from greentrain.api.status import EnergyStatus
from greentrain.core.books.account import Account
from greentrain.core.seen.nodes import (
    ABANDONED_AFTER,
    SILENT_AFTER,
    NodeReport,
    find_read_until,
    find_unread_pods,
)
from greentrain.core.seen.pods import Pod, PodState
from greentrain.core.seen.times import format_time, parse_time
from greentrain.quantities import Joules, Milliwatts, energy_of

DEFAULT_REPORT_SECONDS = 30
"""How often agents report, where they have not reported their interval."""

SURE_AFTER = timedelta(seconds=60)
"""A node that reports so long after a pod's end, but not the pod, never knew it: agents report an end within seconds."""

SKEW = timedelta(seconds=5)
"""By how much a node's clock may be behind the operator's; the clocks of a cluster are usually closer."""


def overdue_seconds(report_seconds: int | None) -> int:
    """After how many seconds a report is overdue: the interval, its jitter of a tenth, and 1 s for the API server.

    Never later than when the node counts as silent, whatever interval it reports. From then on each GPU is charged at its
    limit.
    """
    return min(ceil(1.1 * (report_seconds or DEFAULT_REPORT_SECONDS)) + 1, SILENT_AFTER.seconds)


@dataclass(frozen=True, slots=True)
class Charges:
    """What is charged, and which pods it is for."""

    pods: tuple[PodCharge, ...] = ()
    lost_joules: Joules = Joules(0)
    """For pods whose final report was lost."""
    missing_joules: Joules = Joules(0)
    """For the time of GPUs of which the agents know nothing. No reading will settle that."""
    limit_milliwatts: Milliwatts | None = None
    """Of a GPU, by which that is charged: the highest that one of the job's attempts could have; None where none is known."""
    unread: tuple[Pod, ...] = ()
    """Running pods without a report for so long that their energy is unknown."""
    due: datetime | None = None
    """When the next report will be overdue; None where none will."""
    growing: bool = False
    """Whether what is charged grows with time."""

    @property
    def joules(self) -> Joules:
        """All that is charged."""
        return Joules(self.permanent_joules + sum(c.joules for c in self.pods))

    @property
    def permanent_joules(self) -> Joules:
        """What no reading will settle."""
        return Joules(self.lost_joules + self.missing_joules)


def keep_charges(account: Account, energy: EnergyStatus) -> Charges:
    """The charges with what nodes have reported; `energy` is the job's energy after the fold.

    A pod that was never seen running, and that no node has reported, is charged nothing.
    """
    stored, now = account.stored, account.now
    control = (stored.control if stored is not None else None) or ControlStatus()
    before = {c.uid: c for c in control.charges}
    lost_joules = Joules(control.lost_joules)
    fallback = account.seen.fleet.limit_milliwatts
    limits = {a.number: a.gpu_limit_milliwatts or fallback for a in account.attempts}
    by_node = {r.node: r for r in account.reports}
    reported = {p.uid: p.node for p in energy.pods if not p.final}
    there = _find_there(account, reported)
    final = _final_reports(energy)
    listed = {p.uid for p in energy.pods}
    listed_before = {p.uid for p in stored.pods} if stored is not None else set()
    found: list[PodCharge] = []
    unread: list[Pod] = []
    dues: list[datetime] = []
    growing = False
    for uid in before.keys() | there.keys():
        pod, charge = there.get(uid), before.get(uid)
        if uid in final:
            continue
        if charge is None:
            limit = limits.get(pod.attempt) if pod is not None else None
            if pod is None or limit is None or (pod.ended and uid not in reported):
                continue
            node = pod.node or reported.get(uid, "")
            begun = _find_reading(uid, by_node.get(node)).seen or pod.started or now
            begun = max(begun, pod.created or begun)
            charge = PodCharge(
                uid=uid, node=node, limit_milliwatts=limit * pod.gpus, since=format_time(begun)
            )
        report = by_node.get(charge.node)
        if _is_lost(charge, listed_before, listed, report, now=now):
            lost_joules = Joules(lost_joules + charge.joules)
            continue
        running = pod if pod is not None and not pod.ended else None
        gone = None if running is not None else parse_time(charge.gone) or _ended(pod, now)
        # A wrong clock of a node must not delay the charge.
        since = min(_moment(charge.since, now), now)
        reading = _find_reading(uid, report)
        since = max(since, min(reading.seen, gone or now)) if reading.seen is not None else since
        late = _overdue(since, report)
        if running is None:
            joules = energy_of(
                Milliwatts(charge.limit_milliwatts), max(0.0, ((gone or now) - since).total_seconds())
            )
        else:
            joules = energy_of(Milliwatts(charge.limit_milliwatts), max(0.0, (now - late).total_seconds()))
            growing = growing or now >= late
            dues += [late] if late > now else []
            never = running.started if reading.entry is not None and reading.reported is None else None
            quiet = now - (reading.reported or never or since)
            unread += [running] if quiet >= SILENT_AFTER else []
        given = (charge, since, gone, joules)
        if report is None or reading.entry is None:
            found.append(_write_charge(*given))
        else:
            found.append(report.kept.get("charged", reading.entry.key, given, _write_charge))
    found.sort(key=lambda c: c.uid)
    unread.sort(key=lambda p: p.rank)
    highest = max((limit for limit in limits.values() if limit), default=fallback)
    return Charges(
        tuple(found),
        lost_joules,
        energy_of(highest or Milliwatts(0), energy.missing_seconds),
        highest,
        tuple(unread),
        min(dues, default=None),
        growing,
    )


def _find_there(account: Account, reported: Collection[str]) -> dict[str, Pod]:
    """The pods with a GPU that have started, by UID; `reported`: those of which their node's agent has reported something.

    The agent may report that a pod runs before the kubelet does.
    """
    claimed = find_unread_pods(account.reports)
    return {
        p.uid: p
        for p in account.seen.pods
        if (p.gpus or p.uid in claimed) and (p.state is not PodState.PENDING or p.uid in reported)
    }


def _ended(pod: Pod | None, now: datetime) -> datetime:
    """The latest time at which a pod can have ended, by the operator's clock, rounded up: whole seconds are stored."""
    latest = now if pod is None or pod.finished is None else min(now, pod.finished + SKEW)
    whole = latest.replace(microsecond=0)
    return whole if whole == latest else whole + timedelta(seconds=1)


def _final_reports(energy: EnergyStatus | None) -> frozenset[str]:
    """UIDs of pods whose final report has arrived, for all their entries."""
    entries = energy.pods if energy is not None else ()
    waiting = {p.uid for p in entries if not p.final}
    return frozenset(p.uid for p in entries if p.final and p.uid not in waiting)


def _is_lost(
    charge: PodCharge,
    listed_before: Set[str],
    listed: Set[str],
    report: NodeReport | None,
    *,
    now: datetime,
) -> bool:
    """Whether a pod's final report will never arrive: its agent dropped the pod without one, or never knew it.

    The sets are the UIDs of pods with readings, in the stored status and after the fold.
    """
    if charge.uid in listed:
        return False
    if charge.uid in listed_before:
        return True
    gone = parse_time(charge.gone)
    if gone is None:
        return False
    reported = report is not None and any(e.uid == charge.uid for e in report.pods)
    sure = report is not None and not reported and report.received - gone >= SURE_AFTER
    return sure or now - gone >= ABANDONED_AFTER


def _moment(text: str, now: datetime) -> datetime:
    return parse_time(text) or now


def _overdue(since: datetime, report: NodeReport | None) -> datetime:
    seconds = overdue_seconds(report.report_seconds if report is not None else None)
    return since + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Reading:
    """When a pod was last read, by the operator's clock; empty where its node does not report it."""

    entry: PodEnergy | None = None
    seen: datetime | None = None
    """By when the report was made; None where that is not known."""
    reported: datetime | None = None
    """By when the report arrived; None where a GPU of the pod was never read."""


_NOT_READ = _Reading()


def _find_reading(uid: str, report: NodeReport | None) -> _Reading:
    entries = [e for e in report.pods if e.uid == uid] if report is not None else []
    if report is None or not entries:
        return _NOT_READ
    # Of a pod that goes on after its journal was lost, what was reported before is an ended entry: it gets no new readings.
    entry = max(entries, key=lambda e: (find_read_until(e) is not None or e.unread_gpus > 0, e.segment))
    given = (entry, report.received, report.seen, report.observed)
    return report.kept.get("read", entry.key, given, _read_entry)


def _read_entry(
    entry: PodEnergy, received: datetime, seen: datetime | None, observed: datetime | None
) -> _Reading:
    last = parse_time(find_read_until(entry))
    age = timedelta() if last is None or observed is None else max(timedelta(), observed - last)
    return _Reading(entry, (seen or received) - age, None if entry.unread_gpus else received - age)


def _write_charge(charge: PodCharge, since: datetime, gone: datetime | None, joules: Joules) -> PodCharge:
    return charge.model_copy(
        update={
            "since": format_time(since),
            "gone": None if gone is None else format_time(gone),
            "joules": joules,
        }
    )
