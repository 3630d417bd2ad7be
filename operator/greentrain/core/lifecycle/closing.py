"""When the account of a finished job is closed: every final report is in, or a missing one is given up.

A job is not deleted before, so that its last joules are counted. A report that never comes delays that by an hour at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus
from greentrain.core.seen.nodes import ABANDONED_AFTER, is_abandoned
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.status.accounted import was_accounted


@dataclass(frozen=True, slots=True)
class Closing:
    """A finished job's status, with its account closed where that is due."""

    status: GreenTrainingJobStatus
    look_again: datetime | None
    """When a report that is missing is given up; None where none is, or where another time decides it."""


def is_closed(energy: EnergyStatus | None) -> bool:
    """Whether nothing is waited for before the job is deleted; a job of which nothing was counted has no account."""
    return energy is None or not energy.used or was_accounted(energy)


def close_account(
    seen: Snapshot,
    status: GreenTrainingJobStatus,
    *,
    completed: datetime,
    expiry: datetime | None,
    now: datetime,
) -> Closing:
    """Give up the final reports that are missing, where that is due; `expiry` is the end of the time to live, None without.

    A missing report is given up when no pod runs any more and its node has been silent for `ABANDONED_AFTER`, or has no
    report. A job whose time to live is over waits no longer than that for anything.
    """
    energy = status.energy
    if energy is None or is_closed(energy):
        return Closing(status, None)
    given_up = completed + ABANDONED_AFTER
    last = None if expiry is None else expiry + ABANDONED_AFTER
    reporting = {r.node for r in seen.reports if not is_abandoned(r.received, now=now)}
    silent = all(p.ended for p in seen.pods) and not any(
        not pod.final and pod.node in reporting for pod in energy.pods
    )
    if (last is not None and now >= last) or (silent and now >= given_up):
        closed = energy.model_copy(update={"accounted": True})
        return Closing(status.model_copy(update={"energy": closed}), None)
    dues = [due for due in (given_up, last) if due is not None and due > now]
    return Closing(status, min(dues, default=None))
