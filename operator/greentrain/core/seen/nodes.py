"""What one node's agent reported last, as far as it concerns one job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from greentrain.api.nodepower import GpuStatus, PodEnergy
from greentrain.quantities import parse_time

SILENT_AFTER = timedelta(seconds=95)
"""A node that has not reported for so long gives no readings: three intervals of 30 s and their jitter."""


ABANDONED_AFTER = timedelta(hours=1)
"""A NodePower that was not written for so long, all of it settled, is removed."""


@dataclass(frozen=True, slots=True)
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
