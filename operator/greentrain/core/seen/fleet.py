"""What is known about the GPUs of each node, and what of it counts for one job.

A job's pods may be scheduled to any node, and a node may report anything. So for a job, the figures of its pods' nodes
count. As long as a pod has no node yet, the cluster's typical figures count too: the highest that two nodes report, or those
of the only node that reports. So what one node alone reports never counts for a job that is not on it. Where a pod is
scheduled to a node with higher figures, they count from then on (`core.books.overshoot.raise_bound`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from greentrain.api.conditions import is_true
from greentrain.api.nodepower import NodePowerStatus, lowest_percent
from greentrain.core.seen.snapshot import Fleet
from greentrain.quantities import Amount, Milliwatts, typed


def describe_node(name: str, status: NodePowerStatus, reported_at: datetime) -> Fleet | None:
    """What one node reports about its GPUs; None where it has none.

    Limits are those that the cards have without our caps: a present cap will have ended when a job begins.
    """
    if not status.gpus:
        return None
    cards = [g.limits for g in status.gpus]
    limits_set = (
        x.previous_milliwatts or x.enforced_milliwatts or x.set_milliwatts or x.default_milliwatts
        for x in cards
    )
    defaults = (x.default_milliwatts for x in cards)
    ranges = (
        lowest_percent(x.min_milliwatts, x.default_milliwatts)
        for x in cards
        if x.min_milliwatts and x.default_milliwatts
    )
    return Fleet(
        limit_milliwatts=typed(Milliwatts, max((x for x in limits_set if x), default=None)),
        report_seconds=status.report_interval_seconds,
        default_milliwatts=typed(Milliwatts, max((d for d in defaults if d), default=None)),
        lowest_percent=max(ranges, default=None),
        reported_at=reported_at,
        without_host=() if is_true(status.conditions, "HostReadable") else (name,),
        models=tuple(sorted({g.model for g in status.gpus if g.model})),
    )


def find_typical(nodes: Sequence[Fleet]) -> Fleet:
    """What is expected of a node of the cluster: the second highest of each figure, or the only one.

    GPU models that two nodes have count; where no two nodes have the same, all models count.
    """
    counts = Counter(model for node in nodes for model in node.models)
    shared = sorted(model for model, count in counts.items() if count > 1)
    return Fleet(
        limit_milliwatts=_find_second(n.limit_milliwatts for n in nodes),
        report_seconds=_find_second(n.report_seconds for n in nodes),
        default_milliwatts=_find_second(n.default_milliwatts for n in nodes),
        lowest_percent=_find_second(n.lowest_percent for n in nodes),
        reported_at=max((n.reported_at for n in nodes if n.reported_at is not None), default=None),
        without_host=tuple(name for n in nodes for name in n.without_host),
        models=tuple(shared or sorted(counts)),
    )


def join(nodes: Collection[Fleet]) -> Fleet:
    """The figures of these nodes together: the highest of each."""
    return Fleet(
        limit_milliwatts=_find_highest(n.limit_milliwatts for n in nodes),
        report_seconds=_find_highest(n.report_seconds for n in nodes),
        default_milliwatts=_find_highest(n.default_milliwatts for n in nodes),
        lowest_percent=_find_highest(n.lowest_percent for n in nodes),
        reported_at=max((n.reported_at for n in nodes if n.reported_at is not None), default=None),
        without_host=tuple(dict.fromkeys(name for n in nodes for name in n.without_host)),
        models=tuple(sorted({model for n in nodes for model in n.models})),
    )


def _find_highest(figures: Iterable[Amount | None]) -> Amount | None:
    return max((f for f in figures if f is not None), default=None)


def _find_second(figures: Iterable[Amount | None]) -> Amount | None:
    known = sorted((f for f in figures if f is not None), reverse=True)
    return known[min(1, len(known) - 1)] if known else None
