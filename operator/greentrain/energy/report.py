"""The account as NodePower reports it: whole joules that only grow, and whose parts add up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from greentrain.api.nodepower import (
    BUCKET_SECONDS,
    MAX_COUNT,
    MAX_DRAW_MILLIWATTS,
    MAX_JOULES,
    EnergyBuckets,
    GpuTime,
    PodEnergy,
)
from greentrain.energy.account import NodeAccount
from greentrain.energy.pods import NONE, PodAccount
from greentrain.quantities import (
    Joules,
    Millijoules,
    add,
    format_unix_time,
    subtract,
    to_joules,
    to_joules_above,
    to_seconds,
)


def bound_joules(joules: Joules) -> Joules:
    """The most a report may contain: a faulty counter must not keep the rest of the node from being reported."""
    return min(joules, Joules(MAX_JOULES))


def report_pod(
    pod: PodAccount,
    *,
    closed: bool | None = None,
    draw: float | None = None,
    read_until: float | None = None,
    unread: int = 0,
) -> PodEnergy:
    """One pod's entry. Its kinds add up to its buckets: their sum is cut off to whole joules once, not each kind.

    `draw` is its power in milliwatts, where that is known. `read_until`: until when all its cards were read, as a Unix time,
    where one of them was not read later; `unread`: how many of them were never read since it has them.
    """
    behind = read_until is not None and (pod.last is None or read_until < pod.last)
    gpu, with_cpu, total = to_joules(pod.gpu), to_joules(add(pod.gpu, pod.cpu)), to_joules(pod.total)
    return PodEnergy(
        uid=pod.uid,
        segment=pod.segment,
        namespace=pod.namespace,
        name=pod.name,
        job=pod.job,
        owner_known=pod.owner_known,
        job_uid=pod.job_uid,
        gpu_joules=bound_joules(gpu),
        cpu_joules=bound_joules(subtract(with_cpu, gpu)),
        dram_joules=bound_joules(subtract(total, with_cpu)),
        estimated_joules=bound_joules(to_joules(pod.estimated)),
        error_joules=bound_joules(to_joules_above(pod.error)),
        missing_seconds=ceil(pod.missing_seconds),
        counter_faults=min(pod.counter_faults, MAX_COUNT),
        first_reading=None if pod.first is None else format_unix_time(pod.first),
        last_reading=None if pod.last is None else format_unix_time(pod.last),
        read_until=format_unix_time(read_until) if read_until is not None and behind else None,
        unread_gpus=min(unread, MAX_COUNT),
        draw_milliwatts=None if draw is None else min(round(draw), MAX_DRAW_MILLIWATTS),
        gpu_time=tuple(GpuTime(model=m, seconds=to_seconds(t)) for m, t in sorted(pod.held.items())),
        closed=pod.closed is not None if closed is None else closed,
        buckets=_report_buckets(pod),
    )


def _report_buckets(pod: PodAccount) -> EnergyBuckets:
    first, last = min(pod.buckets, default=0), max(pod.buckets, default=-1)
    amounts, hosts = [pod.earlier], [pod.earlier_host]
    for start in range(first, last + 1, BUCKET_SECONDS):
        amounts.append(add(amounts[-1], pod.buckets.get(start, NONE)))
        hosts.append(add(hosts[-1], pod.host_buckets.get(start, NONE)))
    sums = [to_joules(amount) for amount in amounts]
    host, rest = add(pod.cpu, pod.dram), subtract(sums[-1], to_joules(pod.gpu))
    host_sums = _report_host(sums, amounts, hosts, host, rest) if host else [Joules(0)]
    return EnergyBuckets(
        start=format_unix_time(first) if pod.buckets else None,
        joules=tuple(bound_joules(subtract(after, before)) for before, after in pairwise(sums)),
        earlier_joules=bound_joules(sums[0]),
        host_joules=tuple(bound_joules(subtract(after, before)) for before, after in pairwise(host_sums)),
        earlier_host_joules=bound_joules(host_sums[0]),
    )


def _report_host(
    sums: Sequence[Joules],
    amounts: Sequence[Millijoules],
    hosts: Sequence[Millijoules],
    host: Millijoules,
    reported: Joules,
) -> list[Joules]:
    """What processors and memory used up to the end of each quarter, of which `reported` are reported in all.

    Each is its millijoules cut off where that fits. It must grow, by no more than the sum of all kinds, and end at
    `reported`. Computed backwards from there, such a number always exists.
    """
    # An account of an older agent does not have their times: they count as used when all energy was.
    undated = host - hosts[-1]
    found = [reported]
    for i in range(len(sums) - 2, -1, -1):
        share = Millijoules(undated * amounts[i] // amounts[-1] if undated else 0)
        least = subtract(found[-1], subtract(sums[i + 1], sums[i]))
        found.append(min(max(to_joules(add(hosts[i], share)), least), found[-1], sums[i]))
    return found[::-1]


def report_pods(account: NodeAccount, *, at: float | None = None) -> tuple[PodEnergy, ...]:
    """Every pod whose UID is known, in the order of their names: two reports of the same account are equal.

    `at` is the present time on the readings' clock, for the pods' draw; without it the draw is left out.
    """
    draws = {} if at is None else account.find_draws(at)
    entries = [
        *account.inherited.values(),
        *(_report(account, k, p, draws.get(k)) for k, p in account.pods.items() if p.uid),
    ]
    return tuple(sorted(entries, key=lambda e: (e.namespace, e.name, e.uid, e.segment)))


def _report(account: NodeAccount, key: str, pod: PodAccount, draw: float | None) -> PodEnergy:
    # Its report is not final while a card that was allocated to it cannot be read.
    read_until, unread = account.find_read_until(key)
    return report_pod(
        pod,
        closed=pod.closed is not None and not account.awaits(key),
        draw=draw,
        read_until=read_until,
        unread=unread,
    )
