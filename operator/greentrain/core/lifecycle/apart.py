"""Pods outside the gang (the evaluator): each is created again by itself, and the gang goes on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import KEPT_REPLACED, AttemptStatus, ReplacedPod
from greentrain.core.gang import manifests
from greentrain.core.gang.judge import cause_of, failed, retries
from greentrain.core.lifecycle.attempts import backoff_until, end_attempt, find_limit
from greentrain.core.lifecycle.decision import Decision, Deletion
from greentrain.core.lifecycle.ends import fail, policy_of
from greentrain.core.lifecycle.outcomes import Fail
from greentrain.core.lifecycle.passing import Pass
from greentrain.core.seen.pods import Pod, Rank
from greentrain.core.seen.times import format_time, parse_time

CAUSE_MAX = 1024
"""Longest message kept of a pod that was created again, in characters."""


@dataclass(frozen=True, slots=True)
class Apart:
    """What is done about the pods outside the gang."""

    deletions: tuple[Deletion, ...] = ()
    backing_off: frozenset[Rank] = frozenset()
    """Ranks whose pods are not created yet, because they failed before."""
    due: datetime | None = None
    """When the next of those pods is created."""
    replaced: tuple[ReplacedPod, str] | None = None
    """A failed pod that is being deleted, with the message for it."""


def look_apart(this: Pass, spec: GreenTrainingJobSpec, attempt: AttemptStatus) -> Apart | Decision:
    """Which of them are created again, and when; a decision where one of them has just failed."""
    pods, gone = this.seen.pods_of(attempt.number), this.seen.gone_of(attempt.number)
    known = {r.uid: r for r in attempt.replaced}
    deletions: list[Deletion] = []
    backing_off: dict[Rank, datetime] = {}
    replaced: tuple[ReplacedPod, str] | None = None
    wanted = dict(spec.tf_replica_specs.roles())
    for rank in manifests.ranks(attempt.replicas):
        if rank.type.synchronous or rank.type not in wanted:
            continue  # of the gang, or of a role that an edit removed: its failure concerns no role any more
        pod = pods.get(rank)
        last = pod or gone.get(rank)
        if last is not None and failed(last) and last.uid not in known:
            return _replace(this, spec, attempt, last)
        if pod is None:
            due = _find_due(this, attempt, rank)
            if due is not None and this.now < due:
                backing_off[rank] = due
        elif failed(pod):
            entry = known[pod.uid]
            replaced = (entry, f"{entry.message}; it is made again when the old pod is gone")
            if not pod.terminating:
                deletions.append(Deletion(pod.name, pod.uid))
    return Apart(tuple(deletions), frozenset(backing_off), min(backing_off.values(), default=None), replaced)


def _find_due(this: Pass, attempt: AttemptStatus, rank: Rank) -> datetime | None:
    """When the pod of a rank that failed before may be created again; None where it has not failed."""
    name_end = f"-{rank}-{attempt.number}"
    last = next((r for r in reversed(attempt.replaced) if r.name.endswith(name_end)), None)
    if last is None:
        return None
    return backoff_until(parse_time(last.time), this.writer.failures[last.counted_against], now=this.now)


def _replace(this: Pass, spec: GreenTrainingJobSpec, attempt: AttemptStatus, pod: Pod) -> Decision:
    """Count a pod outside the gang that failed, before it is deleted; or fail the job by its policy."""
    writer = this.writer
    cause = cause_of(pod)
    limit = find_limit(cause.counts_against, spec.run_policy)
    count = writer.count_failure(cause)
    policy = policy_of(cause, spec)
    why = None
    if not retries(cause, policy):
        why = Fail(cause.reason, f"{cause.message} (restartPolicy {policy.value})")
    elif count > limit.allowed:
        why = Fail(limit.reason, limit.exceeded(count, cause.message))
    if why is not None:
        against = {"exit_code": cause.exit_code, "counted_against": cause.counts_against}
        return fail(this, end_attempt(attempt, why.reason, why.message, now=this.now, **against), why)
    entry = ReplacedPod(
        uid=pod.uid,
        name=pod.name,
        time=format_time(this.now),
        reason=cause.reason.value,
        message=cause.message[:CAUSE_MAX],
        counted_against=cause.counts_against,
    )
    attempt = attempt.model_copy(update={"replaced": (*attempt.replaced, entry)[-KEPT_REPLACED:]})
    writer.observe(attempt)
    writer.replacing(entry, f"{cause.message}; {limit.restart(count)}")
    there = any(p.uid == pod.uid for p in this.seen.pods)
    deletions = (Deletion(pod.name, pod.uid),) if there and not pod.terminating else ()
    return Decision(writer.finish(attempt), deletions=deletions, record_first=True)
