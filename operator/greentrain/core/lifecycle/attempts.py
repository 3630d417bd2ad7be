"""Attempts as the status records them: which one is current, when its time is over, how its end is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from greentrain.api.conditions import MESSAGE_MAX
from greentrain.api.reasons import Reason
from greentrain.api.spec import ReplicaType, RunPolicy
from greentrain.api.status import AttemptStatus, CountedAgainst, GreenTrainingJobStatus
from greentrain.core.gang import manifests
from greentrain.core.gang.judge import finished_ranks, until
from greentrain.core.seen.pods import PodState
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import format_time, parse_time

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=5)
"""Longest delay before a restart. The first restart is at once; later delays double from `FIRST_BACKOFF`, as batch/v1 Job's."""


def current_attempt(seen: Snapshot) -> AttemptStatus | None:
    """The latest attempt; built from its pods where the status does not have it (a user has removed it)."""
    known = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    newest = max(seen.pods, key=lambda p: p.attempt, default=None)
    if newest is None or (known is not None and known.number >= newest.attempt):
        return known
    members = [p for p in seen.pods if p.attempt == newest.attempt]
    counts = {
        t.value: max((p.rank.index + 1 for p in members if p.rank.type is t), default=0) for t in ReplicaType
    }
    return AttemptStatus(
        number=newest.attempt,
        spec_hash=newest.spec_hash,
        replicas={t: n for t, n in counts.items() if n},
        start_time=format_time(seen.job.created) if seen.job.created else "1970-01-01T00:00:00Z",
    )


def mark_running(attempt: AttemptStatus, seen: Snapshot, now: datetime) -> AttemptStatus:
    """The attempt with the time since when it runs: every rank of its gang has started."""
    if attempt.running_time is not None:
        return attempt
    there, gone = seen.pods_of(attempt.number), seen.gone_of(attempt.number)
    begun = {r for r, p in there.items() if p.ended or p.state is PodState.RUNNING}
    begun |= {r for r, p in gone.items() if p.ended} | finished_ranks(attempt, ())
    every = begun >= set(manifests.gang(attempt.replicas))
    return attempt.model_copy(update={"running_time": format_time(now)}) if every else attempt


def mark_broken(attempt: AttemptStatus, now: datetime) -> AttemptStatus:
    """The attempt with the time at which its first failure was seen."""
    return attempt if attempt.broken_time else attempt.model_copy(update={"broken_time": format_time(now)})


def end_attempt(
    attempt: AttemptStatus, reason: str, message: str, *, now: datetime, **more: object
) -> AttemptStatus:
    """The attempt as it is recorded when it is over."""
    since = parse_time(attempt.running_time)
    return attempt.model_copy(
        update={
            "end_time": format_time(now),
            "reason": str(reason),
            "message": message[:MESSAGE_MAX] or None,
            "active_seconds": max(0, int((now - since).total_seconds())) if since is not None else 0,
            **more,
        }
    )


def find_deadline(
    policy: RunPolicy, known: GreenTrainingJobStatus, attempt: AttemptStatus
) -> datetime | None:
    """When a running attempt reaches activeDeadlineSeconds; the time of earlier attempts counts."""
    allowed, since = policy.active_deadline_seconds, parse_time(attempt.running_time)
    if allowed is None or since is None:
        return None
    return since + timedelta(seconds=max(0, allowed - known.active_seconds))


def explain_deadline(policy: RunPolicy) -> str:
    """The message that a job has run for longer than its policy allows."""
    return f"ran longer than spec.runPolicy.activeDeadlineSeconds {policy.active_deadline_seconds} allows"


def backoff_until(ended: datetime | None, failures: int, *, now: datetime) -> datetime | None:
    """When the next attempt may start: at once after the first failure of its kind, then with a doubling delay."""
    if ended is None or failures < 2:
        return None
    return until(ended, min(FIRST_BACKOFF * (1 << min(failures - 2, 20)), LONGEST_BACKOFF), now=now)


@dataclass(frozen=True, slots=True)
class Limit:
    """How often a job may fail in one way."""

    name: CountedAgainst
    """The field of spec.runPolicy."""
    allowed: int
    reason: Reason
    noun: str

    def restart(self, count: int) -> str:
        """The number of this restart, and how many are allowed."""
        return f"{self.noun} {count} of at most {self.allowed}"

    def exceeded(self, count: int, last: str | None) -> str:
        """The message that there was one failure too many, with the message of the last."""
        return f"{count} failures, more than {self.name} {self.allowed} allows; the last: {last}"


def find_limit(name: CountedAgainst, policy: RunPolicy) -> Limit:
    """The limit that failures of one kind are counted against."""
    if name == "backoffLimit":
        return Limit(name, policy.backoff_limit, Reason.BACKOFF_LIMIT_EXCEEDED, "restart")
    reason = Reason.INFRASTRUCTURE_RESTART_LIMIT_EXCEEDED
    return Limit(name, policy.infrastructure_restart_limit, reason, "infrastructure restart")
