"""The last report of one node's agent, as far as it concerns one job."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

from greentrain.api.nodepower import GpuStatus, PodEnergy
from greentrain.quantities import parse_time

SILENT_AFTER = timedelta(seconds=95)
"""A node that has not reported for so long counts as silent: three intervals of 30 s, with jitter."""


ABANDONED_AFTER = timedelta(hours=1)
"""A NodePower that was not written for so long is deleted when everything in it is settled."""


T = TypeVar("T")


class Kept:
    """A cache of what was computed from a report's entries; a result is computed again only when one of its inputs changes.

    A pass over a job on a thousand nodes has some seventy new reports; the other entries are the same as in the previous
    pass. All results depend on the snapshot alone: without the cache, as after a restart, the same is computed again.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, str], tuple[tuple[object, ...], Any]] = {}

    def get(
        self,
        what: Hashable,
        entry: str,
        given: tuple[Any, ...],
        conclude: Callable[..., T],
        *,
        holds: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """The result of `conclude(*given)`, a pure function; `what` names it, `entry` is the key of its entry.

        `holds` checks for a known result whether its other inputs, besides `given`, are still the same.
        """
        known = self._known.get((what, entry))
        if known is not None and known[0] == given:  # quick where they are the same objects, as most are
            result: T = known[1]
            if holds(result):
                return result
        found = conclude(*given)
        self._known[what, entry] = (given, found)
        return found

    def keep_only(self, entries: frozenset[str]) -> None:
        """Drop the results for all other entries."""
        self._known = {of: known for of, known in self._known.items() if of[1] in entries}


@dataclass(frozen=True)
class NodeReport:
    """The last report of one node's agent, as far as it concerns one job."""

    node: str
    received: datetime
    """When the operator saw the report change, by the operator's clock."""
    pods: tuple[PodEnergy, ...] = ()
    observed: datetime | None = None
    """When the agent observed it, by the node's clock, which also dates its readings."""
    gpus: tuple[GpuStatus, ...] = ()
    """The node's GPUs for which a cap is requested."""
    seen: datetime | None = None
    """When it was observed, by the operator's clock as far as that is known: `received`, except for a report that is older
    than the operator; the age of such a report comes from the node's clock."""
    report_seconds: int | None = None
    """How often its agent reports."""
    region: str = ""
    """The node's label topology.kubernetes.io/region; empty where it has none."""
    zone: str = ""

    @cached_property
    def kept(self) -> Kept:
        """What was computed from its entries; not part of its value."""
        return Kept()

    def follow(self, before: NodeReport) -> NodeReport:
        """The same report, with the cache of an earlier one of the same node and job."""
        before.kept.keep_only(frozenset(e.key for e in self.pods))
        vars(self)["kept"] = before.kept
        return self

    def is_silent(self, now: datetime) -> bool:
        """Whether the node has not reported for `SILENT_AFTER`."""
        return now - self.received >= SILENT_AFTER

    def reads(self, entry: PodEnergy) -> bool:
        """Whether, at the time of the report, the agent could read all of the pod's GPUs and to which pods they are allocated."""
        if entry.unread_gpus:
            return False
        read = find_read_until(entry)
        if self.observed is None or read is None:
            return self.observed is None
        last = parse_time(read)
        return last is not None and self.observed - last < SILENT_AFTER


def find_read_until(entry: PodEnergy) -> str | None:
    """Until when all of a pod's GPUs were read, but for those that never were; None where none was."""
    return entry.read_until or entry.last_reading


def find_unread_pods(reports: Iterable[NodeReport]) -> frozenset[str]:
    """UIDs of the pods that have a GPU which was never read. One given by a ResourceClaim shows in no other way."""
    return frozenset(e.uid for r in reports for e in r.pods if e.unread_gpus)


def attempt_of(pod_name: str) -> int:
    """The attempt a pod's name ends in; 0 where it does not."""
    last = pod_name.rpartition("-")[2]
    return int(last) if last.isdecimal() and len(last) < 10 else 0


def is_abandoned(received: datetime, *, now: datetime) -> bool:
    """Whether a node's agent has been silent for so long that it counts as gone."""
    return now - received >= ABANDONED_AFTER
