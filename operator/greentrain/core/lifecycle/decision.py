"""What one pass does: the status it records, and the pods it creates and deletes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from greentrain.api.status import AttemptStatus, GreenTrainingJobStatus
from greentrain.core.seen.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod to delete, by UID, so that a new pod of the same name is safe."""

    name: str
    uid: str
    grace_seconds: int | None = None
    """The grace period of the request, to shorten a longer one; None for the pod's own."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one pass does."""

    status: GreenTrainingJobStatus
    deletions: tuple[Deletion, ...] = ()
    service: dict[str, Any] | None = None
    pods: Sequence[dict[str, Any]] = ()
    """Pods to create; those of an attempt are built one at a time, on access (`manifests.Pods`)."""
    look_again: datetime | None = None
    record_first: bool = False
    """The status must be stored before anything is created or deleted: it has what cannot be seen later."""
    delete_job: bool = False
    """Delete the job: it finished long enough ago (ttlSecondsAfterFinished)."""


def look_by(decision: Decision, due: datetime | None) -> Decision:
    """The same decision, with the next pass at `due` at the latest."""
    if due is None or (decision.look_again is not None and decision.look_again <= due):
        return decision
    return replace(decision, look_again=due)


def delete_leftovers(seen: Snapshot, last: AttemptStatus | None) -> tuple[Deletion, ...]:
    """Deletions of pods that belong to no attempt under way."""
    number = last.number if last is not None and last.end_time is None else None
    return tuple(Deletion(p.name, p.uid) for p in seen.pods if p.attempt != number and not p.terminating)


def stop_all(seen: Snapshot) -> tuple[Deletion, ...]:
    """Deletions that stop every pod within its own grace period, also where a longer one was requested."""
    return tuple(
        Deletion(p.name, p.uid, p.cut_grace)
        for p in seen.pods
        if not p.terminating or (p.cut_grace is not None and not p.ended)
    )
