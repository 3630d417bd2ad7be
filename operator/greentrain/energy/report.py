"""The account as NodePower tells it: whole joules that only grow, and whose parts add up."""

from __future__ import annotations

from math import ceil

from greentrain.api.nodepower import BUCKET_SECONDS, EnergyBuckets, PodEnergy
from greentrain.energy.account import NodeAccount, PodAccount
from greentrain.units import format_unix_time, to_joules


def report_pod(pod: PodAccount, *, closed: bool | None = None) -> PodEnergy:
    """One pod's entry. Its kinds add up to its buckets, cut off to whole joules once and not once each."""
    gpu, with_cpu, total = to_joules(pod.gpu), to_joules(pod.gpu + pod.cpu), to_joules(pod.total)
    return PodEnergy(
        uid=pod.uid,
        segment=pod.segment,
        namespace=pod.namespace,
        name=pod.name,
        job=pod.job,
        owner_known=pod.owner_known,
        job_uid=pod.job_uid,
        gpu_joules=gpu,
        cpu_joules=with_cpu - gpu,
        dram_joules=total - with_cpu,
        estimated_joules=to_joules(pod.estimated),
        error_joules=ceil(pod.error / 1000),
        missing_seconds=ceil(pod.missing_seconds),
        first_reading=None if pod.first is None else format_unix_time(pod.first),
        last_reading=None if pod.last is None else format_unix_time(pod.last),
        closed=pod.closed is not None if closed is None else closed,
        buckets=_report_buckets(pod),
    )


def _report_buckets(pod: PodAccount) -> EnergyBuckets:
    if not pod.buckets:
        return EnergyBuckets(earlier_joules=to_joules(pod.earlier))
    first, last = min(pod.buckets), max(pod.buckets)
    sums, amount = [], pod.earlier
    for start in range(first, last + 1, BUCKET_SECONDS):
        amount += pod.buckets.get(start, 0)
        sums.append(to_joules(amount))
    earlier = to_joules(pod.earlier)
    parts = [after - before for before, after in zip([earlier, *sums], sums, strict=False)]
    return EnergyBuckets(start=format_unix_time(first), joules=tuple(parts), earlier_joules=earlier)


def report_pods(account: NodeAccount) -> tuple[PodEnergy, ...]:
    """Every pod whose UID is known, in the order of their names: two reports of the same account are equal."""
    entries = [
        *account.inherited.values(),
        *(_report(account, k, p) for k, p in account.pods.items() if p.uid),
    ]
    return tuple(sorted(entries, key=lambda e: (e.namespace, e.name, e.uid, e.segment)))


def _report(account: NodeAccount, key: str, pod: PodAccount) -> PodEnergy:
    # Its last word is not said while a card it held cannot be read.
    return report_pod(pod, closed=pod.closed is not None and not account.awaits(key))
