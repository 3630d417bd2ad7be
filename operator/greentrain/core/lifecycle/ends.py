"""How a job ends: with success or without, and what is deleted afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from greentrain.api.reasons import REASONS, Reason, Reasons
from greentrain.api.spec import CleanPodPolicy, GreenTrainingJobSpec, RestartPolicy, RunPolicy
from greentrain.api.status import AttemptStatus
from greentrain.core.admission import Refused, decide_admission, read_run_policy
from greentrain.core.books.in_force import spec_in_force
from greentrain.core.books.keep import keep_books
from greentrain.core.gang.judge import FINISH_GRACE, Cause, retries
from greentrain.core.lifecycle.attempts import end_attempt, find_limit
from greentrain.core.lifecycle.closing import close_account, is_closed
from greentrain.core.lifecycle.decision import Decision, Deletion, delete_leftovers, look_by, stop_all
from greentrain.core.lifecycle.outcomes import Fail
from greentrain.core.lifecycle.passing import Pass
from greentrain.core.seen.snapshot import Job, Snapshot
from greentrain.core.seen.times import format_time, parse_time
from greentrain.core.status.progress import fold_finished
from greentrain.core.status.writer import Writer


def end_broken(this: Pass, spec: GreenTrainingJobSpec, attempt: AttemptStatus, cause: Cause) -> Decision:
    """The attempt is over: restart the gang as a whole, or fail the job."""
    limit = find_limit(cause.counts_against, spec.run_policy)
    count = this.writer.count_failure(cause)
    ended = end_attempt(
        attempt,
        cause.reason,
        cause.message,
        now=this.now,
        exit_code=cause.exit_code,
        counted_against=cause.counts_against,
    )
    policy = policy_of(cause, spec)
    if not retries(cause, policy):
        return fail(this, ended, Fail(cause.reason, f"{cause.message} (restartPolicy {policy.value})"))
    if count > limit.allowed:
        return fail(this, ended, Fail(limit.reason, limit.exceeded(count, ended.message)))
    this.writer.restarting(ended, f"{cause.message}; {limit.restart(count)}")
    return Decision(
        this.writer.finish(ended), deletions=delete_leftovers(this.seen, ended), record_first=True
    )


def policy_of(cause: Cause, spec: GreenTrainingJobSpec) -> RestartPolicy:
    """The restart policy of the role that failed; Never for a role that an edit removed."""
    role = dict(spec.tf_replica_specs.roles()).get(cause.rank.type)
    return role.restart_policy if role is not None else RestartPolicy.NEVER


def fail(this: Pass, ended: AttemptStatus | None, why: Fail) -> Decision:
    """The job is over without success; `ended` is its last attempt, None where none has begun."""
    this.writer.failed(ended, why.reason, why.message)
    return Decision(
        this.writer.finish(ended, completed=True),
        deletions=_cleanup(this.seen, now=this.now, completed=this.now),
        record_first=True,
        look_again=this.now + FINISH_GRACE,
    )


def succeed(this: Pass, attempt: AttemptStatus) -> Decision:
    """The job has succeeded."""
    running = attempt.model_copy(update={"running_time": attempt.running_time or format_time(this.now)})
    ended = end_attempt(running, Reason.SUCCEEDED, "finished", now=this.now, exit_code=0)
    this.writer.succeeded(ended)
    return Decision(
        this.writer.finish(ended, completed=True), record_first=True, look_again=this.now + FINISH_GRACE
    )


def look_after_finished(seen: Snapshot, *, now: datetime, reasons: Reasons = REASONS) -> Decision:
    """Nothing starts again; pods are deleted by the policy, the job when its time to live is over."""
    books = keep_books(seen, spec_in_force(seen.job.status), None, now=now)
    writer = Writer(seen, books, seen.job.status.projection, now=now, reasons=reasons)
    last = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    completed = parse_time(seen.job.status.completion_time) or now
    expiry = _find_expiry(seen.job, completed)
    expired = expiry is not None and now >= expiry
    # A pod that still runs at the end of the time to live is stopped first, so that its final report can come.
    awaits = expired and not is_closed(seen.job.status.energy)
    deletions = _cleanup(seen, now=now, completed=completed, expired=awaits)
    if last is not None:
        last = fold_finished(last, seen)  # a rank that ended after the job: its pod may be deleted next
        writer.count_pods(last)
    waiting = any(not p.ended and not p.terminating for p in seen.pods) and not deletions
    due = completed + FINISH_GRACE
    closing = close_account(seen, writer.finish(last), completed=completed, expiry=expiry, now=now)
    decision = Decision(
        closing.status, deletions=deletions, look_again=due if waiting and now < due else None
    )
    decision = look_by(decision, closing.look_again)
    if not expired:
        return look_by(decision, expiry)
    # Deleted once that is stored: the event and the log line with the account follow from the stored status.
    closed = is_closed(seen.job.status.energy) and is_closed(closing.status.energy)
    return replace(decision, delete_job=True) if closed else decision


def _find_expiry(job: Job, completed: datetime) -> datetime | None:
    """When the time to live of a job that finished at `completed` is over; None where it stays.

    With an invalid spec the job is not deleted. The privileges and the GPUs of its pods do not matter any more.
    """
    ttl = run_policy_in_force(job).ttl_seconds_after_finished
    if ttl is None or isinstance(decide_admission(job, privileged=True, gpu_resources=None), Refused):
        return None
    return completed + timedelta(seconds=ttl)


def run_policy_in_force(job: Job) -> RunPolicy:
    """`spec.runPolicy`, also of a refused spec; for each invalid field the value that was last admitted."""
    admitted = job.status.admitted
    return read_run_policy(job.spec.get("runPolicy"), admitted.run_policy if admitted else RunPolicy())


def _cleanup(
    seen: Snapshot, *, now: datetime, completed: datetime, expired: bool = False
) -> tuple[Deletion, ...]:
    """Pods to delete after the end; those still running get `FINISH_GRACE` to end by themselves.

    None runs on where the time to live is over (`expired`) and the job waits only for final reports.
    Under a budget that stops a job no pod runs on, whatever cleanPodPolicy is: nothing would limit what it uses.
    """
    removes_ended, removes_running = CLEANED[run_policy_in_force(seen.job).clean_pod_policy]
    removes_running = expired or removes_running or spec_in_force(seen.job.status).is_enforced
    late = expired or now >= completed + FINISH_GRACE
    running = {p.uid for p in seen.pods if not p.ended}
    return tuple(
        d for d in stop_all(seen) if (removes_running and late if d.uid in running else removes_ended)
    )


CLEANED = {
    CleanPodPolicy.NONE: (False, False),
    CleanPodPolicy.RUNNING: (False, True),
    CleanPodPolicy.ALL: (True, True),
}
"""Whether pods that have ended are deleted, and whether those that still run are."""
