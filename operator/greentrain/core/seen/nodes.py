"""What one node's agent reported last, as far as it concerns one job."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

from greentrain.api.nodepower import GpuStatus, PodEnergy
from greentrain.quantities import parse_time

SILENT_AFTER = timedelta(seconds=95)
"""A node that has not reported for so long gives no readings: three intervals of 30 s and their jitter."""


ABANDONED_AFTER = timedelta(hours=1)
"""A NodePower that was not written for so long, all of it settled, is removed."""


T = TypeVar("T")


class Kept:
    """What was concluded from a report's entries and is concluded again only when one of the values behind it is another.

    A pass over a job on a thousand nodes follows some seventy reports; the other entries are those of the pass before. All of
    it follows from the snapshot alone: without it (after a restart, say) the same is concluded anew.
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
        """What `conclude(*given)` gives, a pure function; `what` names it, `entry` is the key of the entry it is about.

        `holds` says of a result that is known whether what it followed from besides `given` is still the same.
        """
        known = self._known.get((what, entry))
        if known is not None and known[0] == given:  # one look where they are the same objects, as most are
            result: T = known[1]
            if holds(result):
                return result
        found = conclude(*given)
        self._known[what, entry] = (given, found)
        return found

    def keep_only(self, entries: frozenset[str]) -> None:
        """Forget what was concluded from entries that are no more."""
        self._known = {of: known for of, known in self._known.items() if of[1] in entries}


@dataclass(frozen=True)
class NodeReport:
    """What one node's agent reported last, as far as it concerns one job."""

    node: str
    received: datetime
    """When the operator saw it change, by the operator's clock."""
    pods: tuple[PodEnergy, ...] = ()
    observed: datetime | None = None
    """When the agent observed it, by the node's clock, which also dates its readings."""
    gpus: tuple[GpuStatus, ...] = ()
    """The node's GPUs a cap is asked for."""
    seen: datetime | None = None
    """When it was observed, by the operator's clock as far as that is known: `received`, but for a report that was there
    before the operator, whose age is taken from the node's clock."""
    report_seconds: int | None = None
    """How often its agent reports."""
    region: str = ""
    """Where the node's power comes from, by its labels."""
    zone: str = ""

    @cached_property
    def kept(self) -> Kept:
        """What was concluded from its entries; no part of its value."""
        return Kept()

    def follow(self, before: NodeReport) -> NodeReport:
        """The same report, with what was concluded from an earlier one of the same node and job."""
        before.kept.keep_only(frozenset(e.key for e in self.pods))
        vars(self)["kept"] = before.kept
        return self

    def is_silent(self, now: datetime) -> bool:
        """Whether too long ago to be called a reading."""
        return now - self.received >= SILENT_AFTER

    def reads(self, entry: PodEnergy) -> bool:
        """Whether the agent could still read the pod's cards, and who holds them, when it observed this."""
        if self.observed is None or entry.last_reading is None:
            return self.observed is None
        last = parse_time(entry.last_reading)
        return last is not None and self.observed - last < SILENT_AFTER


def attempt_of(pod_name: str) -> int:
    """The attempt a pod's name ends in; 0 where it does not."""
    last = pod_name.rpartition("-")[2]
    return int(last) if last.isdecimal() and len(last) < 10 else 0


def is_abandoned(received: datetime, *, now: datetime) -> bool:
    """Whether a node's agent has been silent for so long that it will not come back."""
    return now - received >= ABANDONED_AFTER
