"""One pass over one job: from a snapshot to what must be created, deleted, recorded and reported.

Level-triggered: every decision follows from the snapshot, and deciding twice changes nothing. A deleted pod cannot show any
more that it had started, or how it ended. So the attempt records this (`runningTime`, `finishedRanks`, `replaced`) before
any decision depends on it. `docs/reference/lifecycle.md` describes a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from greentrain.api.conditions import Type, is_true
from greentrain.api.reasons import Reason
from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.core.admission import Admitted, Refused, decide_admission
from greentrain.core.books.emissions import find_zone_problem
from greentrain.core.books.in_force import BudgetSpec, spec_in_force
from greentrain.core.books.keep import keep_books
from greentrain.core.books.overshoot import raise_bound
from greentrain.core.gang.judge import Done, Finishing, Ongoing, judge
from greentrain.core.lifecycle.attempts import current_attempt, find_deadline, mark_broken, mark_running
from greentrain.core.lifecycle.decision import Decision, delete_leftovers, look_by
from greentrain.core.lifecycle.ends import look_after_finished, run_policy_in_force, succeed
from greentrain.core.lifecycle.gates import SUSPENSION
from greentrain.core.lifecycle.passing import RULES, Pass, Rules
from greentrain.core.lifecycle.running import go_on
from greentrain.core.lifecycle.starting import start_or_wait
from greentrain.core.lifecycle.stopping import stop_attempt
from greentrain.core.lifecycle.stops import Running, find_stop
from greentrain.core.power.follow import follow
from greentrain.core.seen.nodes import ABANDONED_AFTER, SILENT_AFTER
from greentrain.core.seen.snapshot import Snapshot, TemplateProblem
from greentrain.core.seen.times import parse_time
from greentrain.core.status.progress import fold_finished
from greentrain.core.status.writer import Writer


def decide(seen: Snapshot, *, now: datetime, rules: Rules = RULES) -> Decision:
    """Decide one pass over one job at time `now` (UTC), by the tables in `rules`."""
    return look_by(_decide(seen, now, rules), _find_next_silence(seen, now))


def _find_next_silence(seen: Snapshot, now: datetime) -> datetime | None:
    """When the next node will count as silent, or as abandoned, if it does not report; None for none."""
    dues = (r.received + after for r in seen.reports for after in (SILENT_AFTER, ABANDONED_AFTER))
    return min((due for due in dues if due > now), default=None)


def _decide(seen: Snapshot, now: datetime, rules: Rules) -> Decision:
    job = seen.job
    if job.deleting:
        return Decision(job.status)  # the garbage collector deletes the rest by owner references
    if is_true(job.status.conditions, Type.SUCCEEDED) or is_true(job.status.conditions, Type.FAILED):
        return look_after_finished(seen, now=now, reasons=rules.reasons)
    problems = (*seen.template_problems, *_find_zone_problems(seen))
    privileged = seen.privileged or not seen.beyond_baseline
    verdict = decide_admission(job, problems, privileged=privileged, gpu_resources=seen.gpu_resources)
    attempt = current_attempt(seen)
    under_way = attempt is not None and attempt.end_time is None
    if attempt is not None and under_way:
        attempt = raise_bound(fold_finished(attempt, seen), seen.fleet)
    if isinstance(verdict, Admitted):
        limits = BudgetSpec(verdict.spec.energy, verdict.spec.emissions)
    else:
        limits = spec_in_force(job.status)
    books = keep_books(seen, limits, attempt if under_way else None, now=now)
    projection = job.status.projection
    if isinstance(verdict, Admitted) and attempt is not None and under_way:
        projection = follow(seen, verdict.spec, attempt, books, now=now)
    this = Pass(seen, now, rules, Writer(seen, books, projection, now=now, reasons=rules.reasons))
    if isinstance(verdict, Refused):
        decision = _decide_refused(this, verdict, attempt)
    elif attempt is None or attempt.end_time is not None:
        decision = start_or_wait(this, verdict.spec, attempt)
    else:
        decision = _decide_running(this, verdict.spec, attempt)
    return look_by(decision, books.look_again)


def _find_zone_problems(seen: Snapshot) -> Iterator[TemplateProblem]:
    problem = find_zone_problem(seen.job.spec, seen.intensities)
    if problem is not None:
        yield TemplateProblem("spec.emissions.zone", problem)


def _decide_running(this: Pass, spec: GreenTrainingJobSpec, attempt: AttemptStatus) -> Decision:
    # Marked first, so that its running time counts from now, also where earlier attempts have used up the deadline.
    attempt = mark_running(attempt, this.seen, this.now)
    policy = spec.run_policy
    stop = find_stop(Running(this.seen, policy, attempt, this.books, this.now), this.rules.stops)
    if stop is not None:
        return stop_attempt(this, spec, attempt, stop)
    return look_by(go_on(this, spec, attempt), find_deadline(policy, this.seen.job.status, attempt))


def _decide_refused(this: Pass, verdict: Refused, attempt: AttemptStatus | None) -> Decision:
    """With an invalid spec no pods are created; a running attempt goes on as it was started.

    What stops a job still works: its budgets as last admitted, and `runPolicy`, which is read separately.
    """
    seen, writer, now = this.seen, this.writer, this.now
    policy = run_policy_in_force(seen.job)
    if attempt is None or attempt.end_time is not None:
        writer.refuse(Reason.INVALID_SPEC, f"{verdict.message}; no pods are made")
        if policy.suspend:
            writer.wait(SUSPENSION.reason, SUSPENSION.message, SUSPENSION.next_step)
        return Decision(writer.finish(attempt), deletions=delete_leftovers(seen, attempt))
    number = attempt.number
    attempt = mark_running(attempt, seen, now)
    stop = find_stop(Running(seen, policy, attempt, this.books, now), this.rules.stops)
    if stop is not None:
        text = f"{verdict.message}; attempt {number} is stopped, and none follows until that is corrected"
        writer.refuse(Reason.INVALID_SPEC, text)
        return stop_attempt(this, None, attempt, stop)
    writer.refuse(Reason.INVALID_SPEC, f"{verdict.message}; attempt {number} goes on as it was started")
    since = parse_time(attempt.broken_time)
    judged = judge(attempt, seen.pods_of(number), gone=seen.gone_of(number), broken_since=since, now=now)
    if isinstance(judged, Done | Finishing):
        return succeed(this, attempt)
    if isinstance(judged, Ongoing):
        writer.observe(attempt)
    else:
        # A valid spec decides whether another attempt follows: the pods stay until there is one.
        attempt = mark_broken(attempt, now)
        writer.settling(attempt, judged.cause)
    return look_by(Decision(writer.finish(attempt)), find_deadline(policy, seen.job.status, attempt))
