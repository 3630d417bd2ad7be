"""One pass over one job: from a snapshot to what must be created, deleted, recorded and reported.

Level-triggered: every conclusion is drawn from the snapshot, and deciding twice changes nothing. What the
world cannot show, that a pod which is gone had been there, or what became of it, is recorded in the attempt
(`runningTime`, `finishedRanks`, `replaced`) before anything rests on it. `docs/lifecycle.md` describes it in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from greentrain.api.conditions import MESSAGE_MAX, Reason, Type, is_true
from greentrain.api.v1alpha1 import (
    KEPT_REPLACED,
    AttemptStatus,
    CleanPodPolicy,
    GreenTrainingJobSpec,
    GreenTrainingJobStatus,
    ReplacedPod,
    ReplicaType,
    RestartPolicy,
    RunPolicy,
)
from greentrain.core.admission import Admitted, Refused, decide_admission, read_run_policy
from greentrain.core.books.account import STOPPED_FOR_BUDGET, Account, pue_of
from greentrain.core.books.books import Books
from greentrain.core.books.emissions import find_zone_problem
from greentrain.core.books.in_force import BudgetSpec, spec_in_force
from greentrain.core.books.keep import keep_books
from greentrain.core.books.overshoot import announce, announce_emissions, raise_bound
from greentrain.core.books.restarts import burnt_again
from greentrain.core.gang import manifests
from greentrain.core.gang.grace import grace_of
from greentrain.core.gang.judge import (
    FINISH_GRACE,
    Broken,
    Cause,
    Done,
    Finishing,
    Ongoing,
    Settling,
    cause_of,
    failed,
    finished_ranks,
    judge,
    retries,
    until,
)
from greentrain.core.power.follow import follow
from greentrain.core.seen.nodes import ABANDONED_AFTER, SILENT_AFTER, attempt_of
from greentrain.core.seen.pods import Pod, PodState, Rank, count_gpus
from greentrain.core.seen.snapshot import PASSING_OBSTACLES, Job, Snapshot, TemplateProblem
from greentrain.core.seen.times import format_time, parse_time
from greentrain.core.status.progress import fold_finished
from greentrain.core.status.writer import Writer
from greentrain.quantities import format_energy

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=5)
"""Delay before the second and later restarts, doubling as batch/v1 Job's does; the first one is at once."""

LOOK_FOR_NODES = timedelta(seconds=10)
"""How often a job that waits for nodes to report looks whether they do; no event brings it."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod to delete, by UID so that its successor of the same name is safe."""

    name: str
    uid: str
    grace_seconds: int | None = None
    """The grace period that is named, to cut a longer one short; None for the pod's own."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one pass does."""

    status: GreenTrainingJobStatus
    deletions: tuple[Deletion, ...] = ()
    service: dict[str, Any] | None = None
    pods: Sequence[dict[str, Any]] = ()
    """Pods to create; of an attempt they are built one at a time, as they are asked for (`manifests.Pods`)."""
    look_again: datetime | None = None
    record_first: bool = False
    """The status must be stored before anything is created or deleted: it holds what the world cannot show."""
    delete_job: bool = False
    """The job finished long enough ago (ttlSecondsAfterFinished)."""


def decide(seen: Snapshot, *, now: datetime) -> Decision:
    """Decide one pass over one job at time `now` (UTC)."""
    return _look_by(_decide(seen, now=now), _next_silence(seen, now=now))


def _next_silence(seen: Snapshot, *, now: datetime) -> datetime | None:
    """When a node that reports will have been silent too long, or for so long that it is given up."""
    dues = (r.received + after for r in seen.reports for after in (SILENT_AFTER, ABANDONED_AFTER))
    return min((due for due in dues if due > now), default=None)


def _decide(seen: Snapshot, *, now: datetime) -> Decision:
    job = seen.job
    if job.deleting:
        return Decision(job.status)  # owner references do the rest
    if is_true(job.status.conditions, Type.SUCCEEDED) or is_true(job.status.conditions, Type.FAILED):
        return _finished(seen, now=now)
    problems = (*seen.template_problems, *_zone_problems(seen))
    verdict = decide_admission(job, problems, privileged=seen.privileged)
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
    writer = Writer(seen, books, projection, now=now)
    decision = _decide_by(seen, verdict, attempt, writer, now=now)
    return _look_by(decision, books.look_again)


def _zone_problems(seen: Snapshot) -> Iterator[TemplateProblem]:
    problem = find_zone_problem(seen.job.spec, seen.intensities)
    if problem is not None:
        yield TemplateProblem("spec.emissions.zone", problem)


def _decide_by(
    seen: Snapshot,
    verdict: Admitted | Refused,
    attempt: AttemptStatus | None,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    books = writer.books
    if isinstance(verdict, Refused):
        return _refused(seen, verdict, attempt, writer, now=now)
    spec = verdict.spec
    if attempt is None or attempt.end_time is not None:
        return _between_attempts(seen, spec, attempt, writer, now=now)
    # Now, so that the time it may run is counted from here, also where earlier attempts have used it up.
    attempt = _mark_running(attempt, seen, now)
    stop = _find_stop(seen, spec.run_policy, attempt, books, now=now)
    if stop is not None:
        return _stop(seen, spec, attempt, stop, writer, now=now)
    due = deadline(spec.run_policy, seen.job.status, attempt)
    return _look_by(_run(seen, spec, attempt, writer, now=now), due)


def _find_stop(
    seen: Snapshot, policy: RunPolicy, attempt: AttemptStatus, books: Books, *, now: datetime
) -> Reason | None:
    """Why an attempt under way must be stopped; None where it may go on."""
    # A stop that was begun is finished, even where the user has thought better of it: the pods are on their way.
    if attempt.reason == Reason.DEADLINE_EXCEEDED or attempt.reason in STOPPED_FOR_BUDGET:
        return Reason(attempt.reason)
    if policy.suspend or attempt.reason == Reason.SUSPENDED:
        return Reason.SUSPENDED
    due = deadline(policy, seen.job.status, attempt)
    if due is not None and now >= due:
        return Reason.DEADLINE_EXCEEDED
    return _stop_reason(seen, attempt, books)


def _stop(
    seen: Snapshot,
    spec: GreenTrainingJobSpec | None,
    attempt: AttemptStatus,
    reason: Reason,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """Begin a stop, or go on with it; no spec where it was refused."""
    if reason is Reason.SUSPENDED:
        return _suspend(seen, spec, attempt, writer, now=now)
    if reason is Reason.DEADLINE_EXCEEDED:
        return _stop_for_deadline(seen, spec, attempt, writer, now=now)
    return _stop_for_budget(seen, spec, attempt, reason, writer, now=now)


def _stop_reason(seen: Snapshot, attempt: AttemptStatus, books: Books) -> Reason | None:
    """Why an attempt under way must be stopped to keep a budget."""
    if books.stopping is not None:
        return Reason.BUDGET_EXHAUSTED
    if acted_by_agent(seen, attempt) is not None:
        return Reason.ALLOWANCE_SPENT
    return Reason.READINGS_STOPPED if books.unknown_stops else None


def acted_by_agent(seen: Snapshot, attempt: AttemptStatus) -> str | None:
    """The name of a pod that its node's agent stopped because its allowance was spent while the operator was silent.

    An eviction is reported after it was done, so a pod that is ending and was throttled in its agent's last report counts.
    """
    going_on = {p.uid for p in seen.pods if not p.ended and not p.terminating}
    for report in seen.reports:
        for entry in report.pods:
            if entry.budget_action == "None" or attempt_of(entry.name) != attempt.number:
                continue
            if entry.budget_action == "Evicted" or entry.uid not in going_on:
                return entry.name
    return None


def deadline(policy: RunPolicy, known: GreenTrainingJobStatus, attempt: AttemptStatus) -> datetime | None:
    """When a running attempt reaches activeDeadlineSeconds, given what earlier attempts have used of it."""
    allowed, since = policy.active_deadline_seconds, parse_time(attempt.running_time)
    if allowed is None or since is None:
        return None
    return since + timedelta(seconds=max(0, allowed - known.active_seconds))


def _look_by(decision: Decision, due: datetime | None) -> Decision:
    """The same decision, looked at again by `due` at the latest."""
    if due is None or (decision.look_again is not None and decision.look_again <= due):
        return decision
    return replace(decision, look_again=due)


def _end(
    attempt: AttemptStatus, reason: Reason, message: str, *, now: datetime, **more: object
) -> AttemptStatus:
    """The attempt as it is written down when it is over."""
    since = parse_time(attempt.running_time)
    return attempt.model_copy(
        update={
            "end_time": format_time(now),
            "reason": reason.value,
            "message": message[:MESSAGE_MAX],
            "active_seconds": max(0, int((now - since).total_seconds())) if since is not None else 0,
            **more,
        }
    )


def current_attempt(seen: Snapshot) -> AttemptStatus | None:
    """The latest attempt; taken from its pods where the status does not know it (it was wiped by hand)."""
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


def _refused(
    seen: Snapshot,
    verdict: Refused,
    attempt: AttemptStatus | None,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """An invalid spec makes nothing; a running generation goes on as it was started, within the budget it had.

    What stops a job is obeyed all the same: its budgets, and `runPolicy` by itself.
    """
    policy = run_policy_in_force(seen.job)
    if attempt is None or attempt.end_time is not None:
        writer.refuse(Reason.INVALID_SPEC, f"{verdict.message}; no pods are made")
        if policy.suspend:
            writer.suspended(gone=not seen.pods)
        return Decision(writer.finish(attempt), deletions=_leftovers(seen, attempt))
    number = attempt.number
    attempt = _mark_running(attempt, seen, now)
    stop = _find_stop(seen, policy, attempt, writer.books, now=now)
    if stop is not None:
        text = f"{verdict.message}; attempt {number} is stopped, and none follows until that is corrected"
        writer.refuse(Reason.INVALID_SPEC, text)
        return _stop(seen, None, attempt, stop, writer, now=now)
    writer.refuse(Reason.INVALID_SPEC, f"{verdict.message}; attempt {number} goes on as it was started")
    broken_since = parse_time(attempt.broken_time)
    judged = judge(
        attempt, seen.pods_of(number), gone=seen.gone_of(number), broken_since=broken_since, now=now
    )
    if isinstance(judged, Done | Finishing):
        return _succeed(attempt, writer, now=now)
    if isinstance(judged, Ongoing):
        writer.observe(attempt)
    else:
        # Whether another attempt follows is for a valid spec to say: its pods stay until there is one.
        attempt = _mark_broken(attempt, now)
        writer.settling(attempt, judged.cause)
    return _look_by(Decision(writer.finish(attempt)), deadline(policy, seen.job.status, attempt))


def _between_attempts(
    seen: Snapshot,
    spec: GreenTrainingJobSpec,
    last: AttemptStatus | None,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """No attempt is under way: wait for old pods to be gone, then start the next one unless suspended."""
    writer.admit(spec)
    old = _leftovers(seen, last)
    books = writer.books
    if spec.run_policy.suspend:
        writer.suspended(gone=not seen.pods)
        return Decision(writer.finish(last), deletions=old)
    allowed = spec.run_policy.active_deadline_seconds
    if last is not None and allowed is not None and seen.job.status.active_seconds >= allowed:
        text = f"{_over_deadline(allowed)}, and attempt {last.number} ended: {last.message}"
        return _fail(seen, last, Reason.DEADLINE_EXCEEDED, text, writer, now=now)
    if last is not None and last.counted_against is not None:
        against = _limit(last.counted_against, spec.run_policy)
        count = writer.failures(last.counted_against)
        if count > against.allowed:  # lowered meanwhile
            return _fail(seen, last, against.reason, against.exceeded(count, last.message), writer, now=now)
    standing = books.stopping
    if standing is not None:
        if standing.fails and last is not None:
            return _fail(seen, last, Reason.BUDGET_EXHAUSTED, books.words, writer, now=now)
        writer.held(Reason.BUDGET_EXHAUSTED, gone=not seen.pods)
        return Decision(writer.finish(last), deletions=old)
    if books.unknown_stops:
        writer.held(Reason.READINGS_STOPPED, gone=not seen.pods)
        return Decision(writer.finish(last), deletions=old, look_again=now + LOOK_FOR_NODES)
    if seen.pods:
        writer.waiting_for_old_pods(seen.pods)
        return Decision(writer.finish(last), deletions=old)
    unread = _unmeasurable(seen, spec, now=now)
    obstacle = unread or books.unpriced
    if obstacle:
        writer.wait_to_measure(Reason.NO_READINGS if unread else Reason.NO_INTENSITY, obstacle)
        return Decision(writer.finish(last), look_again=now + LOOK_FOR_NODES)
    due = None
    if last is not None and last.counted_against is not None:
        due = backoff_until(parse_time(last.end_time), writer.failures(last.counted_against), now=now)
    if due is not None and now < due:
        writer.backing_off(due)
        return Decision(writer.finish(last), look_again=due)
    counts = manifests.replica_counts(spec)
    attempt = AttemptStatus(
        number=max(seen.job.status.attempt_count, last.number if last else 0) + 1,
        spec_hash=manifests.spec_hash(spec),
        replicas=counts,
        success_policy=spec.success_policy,
        start_time=format_time(now),
    )
    roles = spec.tf_replica_specs.roles()
    attempt = announce(
        attempt,
        gpus=_count_gpus(spec),
        grace_seconds=grace_of(
            None if spec.checkpoint is None else spec.checkpoint.grace_period_seconds,
            (r.template for _, r in roles),
        ),
        fleet=seen.fleet,
        pue=pue_of(spec.emissions, seen.intensities),
    )
    account = Account(seen, BudgetSpec(spec.energy, spec.emissions), None, now)
    attempt = announce_emissions(attempt, account, books.emissions)
    again = burnt_again(last, seen.job.status.progress)
    writer.started(attempt, again="" if again is None else _again(again, spec))
    return Decision(
        writer.finish(attempt),
        service=None if seen.has_service else manifests.build_service(seen.job),
        pods=manifests.Pods(seen.job, spec, attempt, manifests.ranks(counts)),
        record_first=True,
    )


def _count_gpus(spec: GreenTrainingJobSpec) -> int:
    return sum(
        r.replicas * count_gpus(r.template.get("spec") or {}) for _, r in spec.tf_replica_specs.roles()
    )


def _again(joules: int, spec: GreenTrainingJobSpec) -> str:
    """What a restart costs, for people."""
    why = (
        "no volume for checkpoints is set"
        if spec.checkpoint is None
        else "no confirmed checkpoint holds them"
    )
    return f"steps that the last attempt did are done again, about {format_energy(joules)}: {why}"


def _unmeasurable(seen: Snapshot, spec: GreenTrainingJobSpec, *, now: datetime) -> str | None:
    """Why a job with a budget must not begin: what it uses could not be read."""
    if not BudgetSpec(spec.energy, spec.emissions).has_budget:
        return None
    if spec.energy.scope == "Node" and seen.fleet.without_host:
        nodes = seen.fleet.without_host
        return (
            f"spec.energy.scope: Node needs the energy of processors and memory, which {len(nodes)} nodes cannot measure, "
            f"such as {nodes[0]} (kubectl describe nodepower {nodes[0]}); set GPU"
        )
    if not spec.energy.on_unknown.stops or not _count_gpus(spec):
        return None
    heard = seen.fleet.heard
    if seen.fleet.limit_milliwatts is None or heard is None or now - heard >= SILENT_AFTER:
        return (
            "no node reports the energy of its GPUs (kubectl get nodepowers), and a job with a budget does not begin "
            "without; see that agents run, or set spec.energy.onUnknown to Continue"
        )
    return None


def backoff_until(ended: datetime | None, failures: int, *, now: datetime) -> datetime | None:
    """When the next start may be: at once after the first failure of its kind, then doubling."""
    if ended is None or failures < 2:
        return None
    return until(ended, min(FIRST_BACKOFF * (1 << min(failures - 2, 20)), LONGEST_BACKOFF), now=now)


@dataclass(frozen=True, slots=True)
class _Limit:
    name: str
    allowed: int
    reason: Reason
    noun: str

    def restart(self, count: int) -> str:
        return f"{self.noun} {count} of at most {self.allowed}"

    def exceeded(self, count: int, last: str | None) -> str:
        return f"{count} failures, more than {self.name} {self.allowed} allows; the last: {last}"


def _limit(name: str, policy: RunPolicy) -> _Limit:
    if name == "backoffLimit":
        return _Limit(name, policy.backoff_limit, Reason.BACKOFF_LIMIT_EXCEEDED, "restart")
    reason = Reason.INFRASTRUCTURE_RESTART_LIMIT_EXCEEDED
    return _Limit(name, policy.infrastructure_restart_limit, reason, "infrastructure restart")


def _leftovers(seen: Snapshot, last: AttemptStatus | None) -> tuple[Deletion, ...]:
    """Pods no attempt under way has a place for."""
    number = last.number if last is not None and last.end_time is None else None
    return tuple(Deletion(p.name, p.uid) for p in seen.pods if p.attempt != number and not p.terminating)


def _suspend(
    seen: Snapshot,
    spec: GreenTrainingJobSpec | None,
    attempt: AttemptStatus,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """Stop the gang: SIGTERM reaches every rank, the trainer agrees on a step and saves it. No spec: it was refused."""
    if spec is not None:
        writer.admit(spec)
    pods = seen.pods_of(attempt.number)
    if _has_succeeded(seen, attempt, now=now):
        return _succeed(attempt, writer, now=now)
    deletions = stop_all(seen)
    text = "stopped because spec.runPolicy.suspend was set"
    if any(not p.ended for p in pods.values()):
        # The attempt stays open until every rank is down, so that its last words are still read.
        stopping = attempt.model_copy(update={"reason": Reason.SUSPENDED.value, "message": text})
        writer.suspended(gone=False)
        writer.count_pods(stopping)
        return Decision(writer.finish(stopping), deletions=deletions)
    ended = _end(attempt, Reason.SUSPENDED, text, now=now)
    writer.suspended(gone=not seen.pods)
    return Decision(writer.finish(ended), deletions=deletions, record_first=True)


def _stop_for_budget(
    seen: Snapshot,
    spec: GreenTrainingJobSpec | None,
    attempt: AttemptStatus,
    reason: Reason,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """Stop the gang to keep a budget, as a suspension does; then the job waits, or fails, or goes on where it may again."""
    if spec is not None:
        writer.admit(spec)
    books = writer.books
    pods = seen.pods_of(attempt.number)
    if _has_succeeded(seen, attempt, now=now):
        return _succeed(attempt, writer, now=now)
    begun = attempt.reason == reason
    text = attempt.message or "" if begun else _why_stopped(seen, attempt, reason, books)
    if any(not p.ended for p in pods.values()):
        # The attempt stays open until every rank is down, so that its last words are still read.
        stopping = attempt.model_copy(update={"reason": reason.value, "message": text[:MESSAGE_MAX]})
        writer.suspending(text)
        writer.count_pods(stopping)
        return Decision(writer.finish(stopping), deletions=stop_all(seen), record_first=not begun)
    ended = _end(attempt, reason, text, now=now)
    standing = books.stopping
    if standing is not None:
        if standing.fails:
            return _fail(seen, ended, Reason.BUDGET_EXHAUSTED, books.words, writer, now=now)
        writer.held(Reason.BUDGET_EXHAUSTED, gone=not seen.pods)
    elif books.unknown_stops:
        writer.held(Reason.READINGS_STOPPED, gone=not seen.pods)
    else:
        writer.restarting(ended, f"{text}; it may go on")
    return Decision(writer.finish(ended), deletions=stop_all(seen), record_first=True)


def _has_succeeded(seen: Snapshot, attempt: AttemptStatus, *, now: datetime) -> bool:
    """Whether an attempt that is to be stopped has met its success rule before."""
    pods, gone = seen.pods_of(attempt.number), seen.gone_of(attempt.number)
    return isinstance(judge(attempt, pods, gone=gone, broken_since=None, now=now), Done | Finishing)


def _why_stopped(seen: Snapshot, attempt: AttemptStatus, reason: Reason, books: Books) -> str:
    """Why an attempt is stopped to keep a budget, for people."""
    if reason is Reason.ALLOWANCE_SPENT:
        pod = acted_by_agent(seen, attempt)
        return f"the agent of its node stopped pod {pod}: what it was allowed was spent while the operator was silent"
    if reason is Reason.READINGS_STOPPED and books.unread:
        first = books.unread[0]
        return (
            f"nothing is known of the energy of pod {first.name}: node {first.node} does not report it for "
            f"{SILENT_AFTER.seconds} s (kubectl describe nodepower {first.node})"
        )
    return books.words or "stopped to keep its budget"


def stop_all(seen: Snapshot) -> tuple[Deletion, ...]:
    """What stops every pod within its own grace period, also where its deletion was asked for with a longer one."""
    return tuple(
        Deletion(p.name, p.uid, p.cut_grace)
        for p in seen.pods
        if not p.terminating or (p.cut_grace is not None and not p.ended)
    )


def _over_deadline(allowed: int | None) -> str:
    return f"ran longer than spec.runPolicy.activeDeadlineSeconds {allowed} allows"


def _stop_for_deadline(
    seen: Snapshot,
    spec: GreenTrainingJobSpec | None,
    attempt: AttemptStatus,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """The time allowed is over: the same agreed stop as a suspension's, then the job has failed. No spec: it was refused."""
    if spec is not None:
        writer.admit(spec)
    policy = run_policy_in_force(seen.job) if spec is None else spec.run_policy
    pods = seen.pods_of(attempt.number)
    if _has_succeeded(seen, attempt, now=now):
        return _succeed(attempt, writer, now=now)
    allowed = policy.active_deadline_seconds
    text = _over_deadline(allowed)
    if any(not p.ended for p in pods.values()):
        begun = attempt.reason == Reason.DEADLINE_EXCEEDED
        stopping = attempt.model_copy(update={"reason": Reason.DEADLINE_EXCEEDED.value, "message": text})
        writer.stopping(Reason.DEADLINE_EXCEEDED, text)
        writer.count_pods(stopping)
        return Decision(writer.finish(stopping), deletions=stop_all(seen), record_first=not begun)
    due = deadline(policy, seen.job.status, attempt)
    if due is None or now < due:  # raised or removed while the pods were stopping
        ended = _end(
            attempt, Reason.DEADLINE_EXCEEDED, "stopped for a deadline that was then extended", now=now
        )
        writer.restarting(ended, ended.message or "")
        return Decision(writer.finish(ended), deletions=stop_all(seen), record_first=True)
    ended = _end(attempt, Reason.DEADLINE_EXCEEDED, text, now=now)
    return _fail(seen, ended, Reason.DEADLINE_EXCEEDED, text, writer, now=now)


def _run(
    seen: Snapshot,
    spec: GreenTrainingJobSpec,
    attempt: AttemptStatus,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """An attempt is under way."""
    pods = seen.pods_of(attempt.number)
    changed = attempt.spec_hash != manifests.spec_hash(spec)
    if changed:
        writer.applies_at_next_attempt(attempt, spec)
    else:
        writer.admit(spec)
    gone = seen.gone_of(attempt.number)
    judged = judge(attempt, pods, gone=gone, broken_since=parse_time(attempt.broken_time), now=now)
    if isinstance(judged, Done):
        return _succeed(attempt, writer, now=now)
    if isinstance(judged, Finishing):
        return Decision(seen.job.status, look_again=judged.due)
    if isinstance(judged, Broken):
        return _broken(seen, spec, attempt, judged.cause, writer, now=now)
    if isinstance(judged, Settling):
        attempt = _mark_broken(attempt, now)
        writer.settling(attempt, judged.cause)
        return Decision(writer.finish(attempt), deletions=_leftovers(seen, attempt), look_again=judged.due)
    if changed and attempt.running_time is None:
        # Nothing was trained yet: begin again with what is wanted now, uncounted. A wrong image is mended so.
        ended = _end(attempt, Reason.SPEC_CHANGED, "the spec changed before every pod had started", now=now)
        writer.restarting(ended, ended.message or "")
        return Decision(writer.finish(ended), deletions=_leftovers(seen, ended), record_first=True)
    timed_out = _unscheduled(pods.values(), spec, now=now)
    if isinstance(timed_out, Pod):
        limit = (
            spec.run_policy.scheduling_policy and spec.run_policy.scheduling_policy.schedule_timeout_seconds
        )
        text = f"pod {timed_out.name} was not scheduled within {limit} s: {timed_out.waiting_message}"
        ended = _end(attempt, Reason.SCHEDULE_TIMEOUT, text, now=now)
        return _fail(seen, ended, Reason.SCHEDULE_TIMEOUT, text, writer, now=now)
    apart = _look_apart(attempt, pods, gone, spec, writer, now=now)
    if isinstance(apart, Decision):
        return apart
    seats = set(manifests.ranks(attempt.replicas)) - finished_ranks(attempt, pods.values()) - apart.held_back
    missing = sorted(seats - set(pods))
    if changed:
        # A pod outside the gang that is missing can no longer be built as the others were.
        missing = [r for r in missing if r.type.synchronous]
    writer.observe(attempt)
    if apart.told is not None:
        writer.replacing(*apart.told)
    _report_obstacles(seen, writer)
    return _look_by(
        Decision(
            writer.finish(attempt),
            service=None if seen.has_service else manifests.build_service(seen.job),
            pods=manifests.Pods(seen.job, spec, attempt, missing),
            deletions=(*_leftovers(seen, attempt), *apart.deletions),
            look_again=timed_out,
        ),
        apart.due,
    )


def _unscheduled(pods: Iterable[Pod], spec: GreenTrainingJobSpec, *, now: datetime) -> Pod | datetime | None:
    """The pod whose scheduling timed out; else when the next one will, None where none can."""
    policy = spec.run_policy.scheduling_policy
    if policy is None or policy.schedule_timeout_seconds is None:
        return None
    allowed = timedelta(seconds=policy.schedule_timeout_seconds)
    waiting = [p for p in pods if p.stuck is Reason.UNSCHEDULABLE and p.created is not None]
    first = min(waiting, key=lambda p: (p.created, p.rank), default=None)
    if first is None or first.created is None:
        return None
    due = first.created + allowed
    return first if now >= due else due


@dataclass(frozen=True, slots=True)
class _Apart:
    """What is done about the pods outside the gang."""

    deletions: tuple[Deletion, ...] = ()
    held_back: frozenset[Rank] = frozenset()
    due: datetime | None = None
    told: tuple[ReplacedPod, str] | None = None


def _look_apart(
    attempt: AttemptStatus,
    pods: Mapping[Rank, Pod],
    gone: Mapping[Rank, Pod],
    spec: GreenTrainingJobSpec,
    writer: Writer,
    *,
    now: datetime,
) -> _Apart | Decision:
    """Pods outside the gang are made again one by one; a decision where one of them ends the job."""
    known = {r.uid: r for r in attempt.replaced}
    deletions: list[Deletion] = []
    held_back: set[Rank] = set()
    dues: list[datetime] = []
    told: tuple[ReplacedPod, str] | None = None
    wanted = dict(spec.tf_replica_specs.roles())
    for rank in manifests.ranks(attempt.replicas):
        if rank.type.synchronous or rank.type not in wanted:
            continue  # of the gang, or of a role that was edited away: its failure concerns no role any more
        pod = pods.get(rank)
        if pod is None:
            last_seen = gone.get(rank)
            if last_seen is not None and failed(last_seen) and last_seen.uid not in known:
                return _replace(attempt, last_seen, spec, writer, now=now)
            name_end = f"-{rank}-{attempt.number}"
            last = next((r for r in reversed(attempt.replaced) if r.name.endswith(name_end)), None)
            due = (
                backoff_until(parse_time(last.time), writer.failures(last.counted_against), now=now)
                if last is not None
                else None
            )
            if due is not None and now < due:
                held_back.add(rank)
                dues.append(due)
            continue
        if not failed(pod):
            continue
        if pod.uid not in known:
            return _replace(attempt, pod, spec, writer, now=now)
        told = (known[pod.uid], f"{known[pod.uid].message}; it is made again when the old pod is gone")
        if not pod.terminating:
            deletions.append(Deletion(pod.name, pod.uid))
    return _Apart(tuple(deletions), frozenset(held_back), min(dues, default=None), told)


def _replace(
    attempt: AttemptStatus, pod: Pod, spec: GreenTrainingJobSpec, writer: Writer, *, now: datetime
) -> Decision:
    """Count a pod outside the gang that failed, before it is deleted; or fail the job as its policy says."""
    cause = cause_of(pod)
    limit = _limit(cause.counts_against, spec.run_policy)
    count = writer.count_failure(cause)
    policy = _policy_of(cause, spec)
    if not retries(cause, policy) or count > limit.allowed:
        over = retries(cause, policy)
        reason = limit.reason if over else cause.reason
        text = (
            limit.exceeded(count, cause.message)
            if over
            else f"{cause.message} (restartPolicy {policy.value})"
        )
        ended = _end(
            attempt, reason, text, now=now, exit_code=cause.exit_code, counted_against=cause.counts_against
        )
        return _fail(writer.seen, ended, reason, text, writer, now=now)
    entry = ReplacedPod(
        uid=pod.uid,
        name=pod.name,
        time=format_time(now),
        reason=cause.reason.value,
        message=cause.message[:1024],
        counted_against=cause.counts_against,
    )
    attempt = attempt.model_copy(update={"replaced": (*attempt.replaced, entry)[-KEPT_REPLACED:]})
    writer.observe(attempt)
    writer.replacing(entry, f"{cause.message}; {limit.restart(count)}")
    there = any(p.uid == pod.uid for p in writer.seen.pods)
    deletions = (Deletion(pod.name, pod.uid),) if there and not pod.terminating else ()
    return Decision(writer.finish(attempt), deletions=deletions, record_first=True)


def _report_obstacles(seen: Snapshot, writer: Writer) -> None:
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


def _mark_running(attempt: AttemptStatus, seen: Snapshot, now: datetime) -> AttemptStatus:
    if attempt.running_time is not None:
        return attempt
    there, gone = seen.pods_of(attempt.number), seen.gone_of(attempt.number)
    begun = {r for r, p in there.items() if p.ended or p.state is PodState.RUNNING}
    begun |= {r for r, p in gone.items() if p.ended} | finished_ranks(attempt, ())
    every = begun >= set(manifests.gang(attempt.replicas))
    return attempt.model_copy(update={"running_time": format_time(now)}) if every else attempt


def _mark_broken(attempt: AttemptStatus, now: datetime) -> AttemptStatus:
    return attempt if attempt.broken_time else attempt.model_copy(update={"broken_time": format_time(now)})


def _broken(
    seen: Snapshot,
    spec: GreenTrainingJobSpec,
    attempt: AttemptStatus,
    cause: Cause,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    """The attempt is over: restart the gang whole, or fail the job."""
    limit = _limit(cause.counts_against, spec.run_policy)
    count = writer.count_failure(cause)
    ended = _end(
        attempt,
        cause.reason,
        cause.message,
        now=now,
        exit_code=cause.exit_code,
        counted_against=cause.counts_against,
    )
    policy = _policy_of(cause, spec)
    if not retries(cause, policy):
        text = f"{cause.message} (restartPolicy {policy.value})"
        return _fail(seen, ended, cause.reason, text, writer, now=now)
    if count > limit.allowed:
        return _fail(seen, ended, limit.reason, limit.exceeded(count, ended.message), writer, now=now)
    writer.restarting(ended, f"{cause.message}; {limit.restart(count)}")
    return Decision(writer.finish(ended), deletions=_leftovers(seen, ended), record_first=True)


def _policy_of(cause: Cause, spec: GreenTrainingJobSpec) -> RestartPolicy:
    role = dict(spec.tf_replica_specs.roles()).get(cause.rank.type)
    return role.restart_policy if role is not None else RestartPolicy.NEVER


def _fail(
    seen: Snapshot,
    ended: AttemptStatus,
    reason: Reason,
    message: str,
    writer: Writer,
    *,
    now: datetime,
) -> Decision:
    writer.failed(ended, reason, message)
    return Decision(
        writer.finish(ended, completed=True),
        deletions=_cleanup(seen, now=now, completed=now),
        record_first=True,
        look_again=now + FINISH_GRACE,
    )


def _succeed(attempt: AttemptStatus, writer: Writer, *, now: datetime) -> Decision:
    running = attempt.model_copy(update={"running_time": attempt.running_time or format_time(now)})
    ended = _end(running, Reason.SUCCEEDED, "finished", now=now, exit_code=0)
    writer.succeeded(ended)
    return Decision(writer.finish(ended, completed=True), record_first=True, look_again=now + FINISH_GRACE)


def _finished(seen: Snapshot, *, now: datetime) -> Decision:
    """Nothing starts again; pods are cleaned up as the policy says, the job when its time to live is over."""
    books = keep_books(seen, spec_in_force(seen.job.status), None, now=now)
    writer = Writer(seen, books, seen.job.status.projection, now=now)
    last = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    completed = parse_time(seen.job.status.completion_time) or now
    policy = run_policy_in_force(seen.job)
    deletions = _cleanup(seen, now=now, completed=completed)
    if last is not None:
        last = fold_finished(last, seen)  # a rank that ended after the job: its pod may be deleted next
        writer.count_pods(last)
    waiting = any(not p.ended and not p.terminating for p in seen.pods) and not deletions
    due = completed + FINISH_GRACE
    decision = Decision(
        writer.finish(last), deletions=deletions, look_again=due if waiting and now < due else None
    )
    if policy.ttl_seconds_after_finished is None or isinstance(
        decide_admission(seen.job, privileged=True), Refused
    ):
        return (
            decision  # nothing is deleted by a spec that is wrong; what its pods may ask for matters no more
        )
    expiry = completed + timedelta(seconds=policy.ttl_seconds_after_finished)
    return replace(decision, delete_job=True) if now >= expiry else _look_by(decision, expiry)


def run_policy_in_force(job: Job) -> RunPolicy:
    """`spec.runPolicy`, which is obeyed also where the spec is refused; field by field as admitted last where it is wrong."""
    return read_run_policy(job.spec.get("runPolicy"), job.status.run_policy or RunPolicy())


def _cleanup(seen: Snapshot, *, now: datetime, completed: datetime) -> tuple[Deletion, ...]:
    """Pods to delete after the end; those still running get a moment to end by themselves.

    Under a budget that stops a job none runs on, whatever cleanPodPolicy says: nothing would hold what it uses.
    """
    removes_ended, removes_running = _CLEANED[run_policy_in_force(seen.job).clean_pod_policy]
    removes_running = removes_running or spec_in_force(seen.job.status).is_enforced
    late = now >= completed + FINISH_GRACE
    running = {p.uid for p in seen.pods if not p.ended}
    return tuple(
        d for d in stop_all(seen) if (removes_running and late if d.uid in running else removes_ended)
    )


_CLEANED = {
    CleanPodPolicy.NONE: (False, False),
    CleanPodPolicy.RUNNING: (False, True),
    CleanPodPolicy.ALL: (True, True),
}
"""Whether pods that have ended are removed, and those that run still."""
