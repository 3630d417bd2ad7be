"""An attempt under way that nothing stops: it is judged from its pods, and missing pods are created."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from greentrain.api.reasons import Reason
from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.core.gang import manifests
from greentrain.core.gang.judge import Broken, Done, Finishing, Settling, finished_ranks, judge
from greentrain.core.lifecycle.apart import look_apart
from greentrain.core.lifecycle.attempts import end_attempt, mark_broken
from greentrain.core.lifecycle.decision import Decision, delete_leftovers, look_by
from greentrain.core.lifecycle.ends import end_broken, fail, succeed
from greentrain.core.lifecycle.outcomes import Fail
from greentrain.core.lifecycle.passing import Pass
from greentrain.core.seen.pods import Pod
from greentrain.core.seen.snapshot import PASSING_OBSTACLES
from greentrain.core.seen.times import parse_time


def go_on(this: Pass, spec: GreenTrainingJobSpec, attempt: AttemptStatus) -> Decision:
    """Judge the attempt, and create its missing pods."""
    seen, writer, now = this.seen, this.writer, this.now
    pods, gone = seen.pods_of(attempt.number), seen.gone_of(attempt.number)
    changed = attempt.spec_hash != manifests.spec_hash(spec)
    if changed:
        writer.applies_at_next_attempt(attempt, spec)
    else:
        writer.admit(spec)
    judged = judge(attempt, pods, gone=gone, broken_since=parse_time(attempt.broken_time), now=now)
    if isinstance(judged, Done):
        return succeed(this, attempt)
    if isinstance(judged, Finishing):
        return Decision(seen.job.status, look_again=judged.due)
    if isinstance(judged, Broken):
        return end_broken(this, spec, attempt, judged.cause)
    if isinstance(judged, Settling):
        attempt = mark_broken(attempt, now)
        writer.settling(attempt, judged.cause)
        leftovers = delete_leftovers(seen, attempt)
        return Decision(writer.finish(attempt), deletions=leftovers, look_again=judged.due)
    if changed and attempt.running_time is None:
        # Nothing was trained yet: start again from the new spec, which counts as no failure. So a wrong image is corrected.
        text = "the spec changed before every pod had started"
        ended = end_attempt(attempt, Reason.SPEC_CHANGED, text, now=now)
        writer.restarting(ended, text)
        return Decision(writer.finish(ended), deletions=delete_leftovers(seen, ended), record_first=True)
    timed_out = _find_unscheduled(pods.values(), spec, now=now)
    if isinstance(timed_out, Fail):
        ended = end_attempt(attempt, timed_out.reason, timed_out.message, now=now)
        return fail(this, ended, timed_out)
    apart = look_apart(this, spec, attempt)
    if isinstance(apart, Decision):
        return apart
    seats = (
        set(manifests.ranks(attempt.replicas)) - finished_ranks(attempt, pods.values()) - apart.backing_off
    )
    missing = sorted(seats - set(pods))
    if changed:
        # The spec has changed: a missing pod outside the gang can no longer be built as the others were.
        missing = [r for r in missing if r.type.synchronous]
    writer.observe(attempt)
    if apart.replaced is not None:
        writer.replacing(*apart.replaced)
    _report_obstacles(this)
    decision = Decision(
        writer.finish(attempt),
        service=None if seen.has_service else manifests.build_service(seen.job),
        pods=manifests.Pods(seen.job, spec, attempt, missing),
        deletions=(*delete_leftovers(seen, attempt), *apart.deletions),
        look_again=timed_out,
    )
    return look_by(decision, apart.due)


def _find_unscheduled(
    pods: Iterable[Pod], spec: GreenTrainingJobSpec, *, now: datetime
) -> Fail | datetime | None:
    """The failure that scheduling timed out; else when it will for the next pod, or None where it cannot."""
    policy = spec.run_policy.scheduling_policy
    if policy is None or policy.schedule_timeout_seconds is None:
        return None
    allowed = timedelta(seconds=policy.schedule_timeout_seconds)
    waiting = [
        (p.created, p.rank, p) for p in pods if p.stuck is Reason.UNSCHEDULABLE and p.created is not None
    ]
    if not waiting:
        return None
    created, _, first = min(waiting)
    due = created + allowed
    if now < due:
        return due
    limit = policy.schedule_timeout_seconds
    text = f"pod {first.name} was not scheduled within {limit} s: {first.waiting_message}"
    return Fail(Reason.SCHEDULE_TIMEOUT, text)


def _report_obstacles(this: Pass) -> None:
    seen, writer = this.seen, this.writer
    taken = next((o for o in seen.obstacles if o.reason == Reason.NAME_TAKEN), None)
    leaving = next((o for o in seen.obstacles if o.reason in PASSING_OBSTACLES), None)
    if taken is not None:
        writer.refuse(Reason.NAME_TAKEN, taken.message)
        writer.pods_not_ready(Reason.NAME_TAKEN, taken.message)
    elif leaving is not None:
        writer.pods_not_ready(Reason.WAITING_FOR_OLD_PODS, leaving.message)
    elif seen.obstacles:
        first = seen.obstacles[0]
        writer.pods_not_ready(
            Reason.CREATE_REFUSED, f"{first.kind} {first.name} was refused: {first.message}"
        )
