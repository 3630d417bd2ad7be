"""Writes down what a pass saw: conditions, counts, attempts and progress, as one new status.

A status is a fold of the snapshot over the old status, so that a pass which sees nothing new gives back
an equal one and nothing is written. Events are derived from the difference of two statuses: told once,
and only after the status that carries them is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from greentrain.api import names
from greentrain.api.bounds import fit
from greentrain.api.conditions import ConditionStatus, Reason, Type, find_condition, is_true, set_condition
from greentrain.api.runtime import Progress
from greentrain.api.v1alpha1 import (
    KEPT_ATTEMPTS,
    AttemptStatus,
    CheckpointStatus,
    Condition,
    DisplayStatus,
    EmissionsStatus,
    EnergyStatus,
    GreenTrainingJobSpec,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    PowerStatus,
    ProgressStatus,
    ProjectionStatus,
    ReplacedPod,
    ReplicaStatus,
    ReplicaType,
)
from greentrain.core.budget import Books
from greentrain.core.judge import Cause, failed, finished_ranks
from greentrain.core.ledger import SILENT_AFTER
from greentrain.core.manifests import deciding_rank, ranks, replica_counts
from greentrain.core.power import judge_cap
from greentrain.core.snapshot import Disruption, Pod, PodState, Rank, Snapshot, format_time
from greentrain.core.throttle import chosen_cap


class EventType(StrEnum):
    """Types core/v1 Events may have."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person should be told once."""

    type: EventType
    reason: str
    message: str


def reports(seen: Snapshot, attempt: AttemptStatus) -> tuple[Progress, ...]:
    """Everything the attempt's program said of itself, the deciding rank's word first."""
    pods = [p for p in (*seen.pods, *seen.last_words) if p.attempt == attempt.number]
    first = deciding_rank(attempt.replicas) if attempt.replicas else None
    pods.sort(key=lambda p: (p.rank != first, p.rank))
    final = [p.termination for p in pods if p.termination is not None]
    return (*final, *([seen.progress] if seen.progress is not None else []))


def fold_progress(
    old: ProgressStatus | None, seen: Snapshot, attempt: AttemptStatus
) -> ProgressStatus | None:
    """The furthest word of this attempt over what was known; a confirmed checkpoint is never forgotten."""
    said = reports(seen, attempt)
    if not said:
        return old
    # max keeps the first of equals: a termination message before the polled answer.
    latest = max(said, key=lambda p: p.step)
    metrics = {k: format_metric(v) for k, v in sorted(latest.metrics.items())} or (old.metrics if old else {})
    total = latest.total_steps if latest.total_steps is not None else (old.total_steps if old else None)
    return ProgressStatus(
        step=latest.step,
        total_steps=total,
        percent=min(100, latest.step * 100 // total) if total else None,
        metrics=metrics,
        checkpoint=_furthest(
            [*_confirmed(seen, attempt), *_said(seen), *([old.checkpoint] if old and old.checkpoint else [])]
        ),
        confirmed_checkpoint=_furthest(
            [
                *_confirmed(seen, attempt),
                *([old.confirmed_checkpoint] if old and old.confirmed_checkpoint else []),
            ]
        ),
        model_path=next((p.model_path for p in said if p.model_path), old.model_path if old else None),
    )


def _confirmed(seen: Snapshot, attempt: AttemptStatus) -> list[CheckpointStatus]:
    """Checkpoints the attempt's termination messages name; a bare exit code names none."""
    pods = (p for p in (*seen.pods, *seen.last_words) if p.attempt == attempt.number)
    saved = (p.termination.checkpoint for p in pods if p.termination is not None)
    return [CheckpointStatus(step=c.step, path=c.path, confirmed=True) for c in saved if c is not None]


def _said(seen: Snapshot) -> list[CheckpointStatus]:
    """The checkpoint the running program spoke of last."""
    saved = seen.progress.checkpoint if seen.progress is not None else None
    return [CheckpointStatus(step=saved.step, path=saved.path)] if saved is not None else []


def _furthest(candidates: list[CheckpointStatus]) -> CheckpointStatus | None:
    return max(candidates, key=lambda c: (c.step, c.confirmed), default=None)


def format_metric(value: float) -> str:
    """A metric as a decimal string: status holds no floats (API conventions)."""
    return f"{value:.6g}"


def last_step(seen: Snapshot, attempt: AttemptStatus) -> int | None:
    """The furthest global step this attempt reported."""
    return max((p.step for p in reports(seen, attempt)), default=attempt.last_step)


def count_pods(attempt: AttemptStatus, pods: Mapping[Rank, Pod]) -> dict[str, ReplicaStatus]:
    """Pods by role and state; a seat whose pod is still to be made counts as active."""
    counted = {}
    open_ = attempt.end_time is None and attempt.running_time is None
    for type_ in ReplicaType:
        seats = [r for r in ranks(attempt.replicas) if r.type is type_]
        if not seats:
            continue
        there = [pods[r] for r in seats if r in pods]
        finished = finished_ranks(attempt, pods.values())
        to_be_made = len(seats) - len(there) if open_ else 0
        counted[type_.value] = ReplicaStatus(
            active=sum(not p.ended for p in there) + to_be_made,
            ready=sum(p.ready and not p.terminating for p in there),
            succeeded=sum(r.type is type_ for r in finished),
            failed=sum(failed(p) and p.rank not in finished for p in there),
        )
    return counted


def find_stuck(pods: Mapping[Rank, Pod]) -> tuple[Reason, str] | None:
    """The first pod that cannot start, with the words of whoever refused it."""
    for rank in sorted(pods):
        pod = pods[rank]
        if pod.stuck is None:
            continue
        words = pod.waiting_message or pod.waiting_reason
        if pod.stuck is Reason.CONTAINER_NOT_STARTED:
            words = f"{pod.waiting_reason}: {pod.waiting_message}{_remedy(pod)}"
        return pod.stuck, f"pod {pod.name}: {words}"
    return None


def _remedy(pod: Pod) -> str:
    # The kubelet's words for an image, and for a template, that would run as root where that is denied.
    if "runAsNonRoot" in pod.waiting_message or "non-root policy" in pod.waiting_message:
        return (
            " (it would run as root; set securityContext.runAsUser in the template, "
            "or securityContext.runAsNonRoot: false to allow it)"
        )
    return ""


class Writer:
    """Folds one pass's findings over the old status; each method sets the conditions it names."""

    def __init__(
        self, seen: Snapshot, books: Books, projection: ProjectionStatus | None, *, now: datetime
    ) -> None:
        self.seen = seen
        self.books = books
        self._projection = projection
        self._old = seen.job.status
        self._now = format_time(now)
        self._moment = now
        self._conditions = self._old.conditions
        self._counts = self._old.replica_statuses
        self._run_policy = self._old.run_policy
        self._cap = self._old.power.cap if self._old.power is not None else ""
        self._failures = {
            "backoffLimit": self._old.failure_count,
            "infrastructureRestartLimit": self._old.infrastructure_failure_count,
        }

    def count_failure(self, cause: Cause) -> int:
        """Count a failure against its limit; returns how many there are now."""
        self._failures[cause.counts_against] += 1
        return self._failures[cause.counts_against]

    def failures(self, limit: str) -> int:
        """Failures counted against a limit of spec.runPolicy by its name."""
        return self._failures[limit]

    def _set(self, type_: Type, value: ConditionStatus, reason: Reason, message: str) -> None:
        self._conditions = set_condition(
            self._conditions,
            type_,
            value,
            reason,
            message,
            now=self._now,
            generation=self.seen.job.generation,
        )

    def _is(self, type_: Type) -> bool:
        return is_true(self._conditions, type_)

    def admit(self, spec: GreenTrainingJobSpec) -> None:
        """The spec is sound and in force."""
        self._run_policy = spec.run_policy
        self._cap = chosen_cap(spec, self._projection, self.seen.fleet)
        self._set(Type.ADMITTED, "True", Reason.VALID, "the spec is valid")

    def refuse(self, reason: Reason, message: str) -> None:
        """The spec, or a name it needs, is not to be had."""
        self._set(Type.ADMITTED, "False", reason, message)

    def applies_at_next_attempt(self, attempt: AttemptStatus, spec: GreenTrainingJobSpec) -> None:
        """The spec is sound, but the running attempt was built from an earlier one."""
        self._run_policy = spec.run_policy
        self._cap = chosen_cap(spec, self._projection, self.seen.fleet)
        wanted = replica_counts(spec)
        changes = [
            f"spec.tfReplicaSpecs.{t}.replicas {attempt.replicas.get(t, 0)} → {wanted.get(t, 0)}"
            for t in dict.fromkeys([*attempt.replicas, *wanted])
            if attempt.replicas.get(t, 0) != wanted.get(t, 0)
        ] or ["the changed template, checkpoint or success policy"]
        self._set(
            Type.ADMITTED,
            "True",
            Reason.APPLIES_AT_NEXT_ATTEMPT,
            f"attempt {attempt.number} goes on as it was started; at the next attempt: {', '.join(changes)}",
        )

    def started(self, attempt: AttemptStatus, *, again: str = "") -> None:
        """A new attempt begins; its pods are about to be made. `again` says what a restart costs."""
        n = len(ranks(attempt.replicas))
        text = f"attempt {attempt.number} of {n} pods" + (f"; {again}" if again else "")
        self._set(Type.CREATED, "True", Reason.ATTEMPT_CREATED, text)
        self._set(Type.PODS_READY, "False", Reason.STARTING, f"0 of {n} pods ready")
        self._set(Type.RUNNING, "False", Reason.STARTING, "waiting for every pod to start")
        self._set(Type.SUCCEEDED, "Unknown", Reason.ACTIVE, "the job has not finished")
        self._set(Type.FAILED, "False", Reason.ACTIVE, "the job has not finished")
        if find_condition(self._conditions, Type.SUSPENDED) is not None:
            self._set(Type.SUSPENDED, "False", Reason.RESUMED, f"resumed as attempt {attempt.number}")
        self._counts = count_pods(attempt, {})

    def observe(self, attempt: AttemptStatus) -> None:
        """An attempt under way: who is ready, who is stuck, whether all run."""
        pods = self.seen.pods_of(attempt.number)
        seats = ranks(attempt.replicas)
        self.count_pods(attempt)
        ready = sum(r in pods and pods[r].ready for r in seats)
        finished = len(finished_ranks(attempt, self._told(attempt)))
        leaving = next((p for p in pods.values() if p.terminating), None)
        cut_off = next((p for p in pods.values() if p.unreachable), None)
        stuck = find_stuck(pods)
        if cut_off is not None:
            text = f"pod {cut_off.name}: its node {cut_off.node} stopped answering"
            self._set(Type.PODS_READY, "False", Reason.NODE_LOST, text)
        elif leaving is not None:
            self._set(
                Type.PODS_READY, "False", Reason.POD_TERMINATING, f"pod {leaving.name} is being deleted"
            )
        elif ready + finished == len(seats):
            done = f", {finished} finished" if finished else ""
            self._set(Type.PODS_READY, "True", Reason.ALL_READY, f"{ready} of {len(seats)} pods ready{done}")
        elif stuck is not None:
            self._set(Type.PODS_READY, "False", *stuck)
        else:
            self._set(Type.PODS_READY, "False", Reason.STARTING, f"{ready} of {len(seats)} pods ready")
        if attempt.running_time is None:
            self._set(Type.RUNNING, "False", Reason.STARTING, "waiting for every pod to start")
            return
        self._set(Type.RUNNING, "True", Reason.TRAINING, f"attempt {attempt.number} is training")
        if find_condition(self._conditions, Type.RESTARTING) is not None:
            self._set(Type.RESTARTING, "False", Reason.TRAINING, f"attempt {attempt.number} is training")

    def _told(self, attempt: AttemptStatus) -> list[Pod]:
        return [p for p in (*self.seen.pods, *self.seen.last_words) if p.attempt == attempt.number]

    def count_pods(self, attempt: AttemptStatus) -> None:
        """Count the attempt's pods by role and state."""
        self._counts = count_pods(attempt, self.seen.pods_of(attempt.number))

    def pods_not_ready(self, reason: Reason, message: str) -> None:
        """Something keeps the pods from being made."""
        self._set(Type.PODS_READY, "False", reason, message)

    def settling(self, attempt: AttemptStatus, cause: Cause) -> None:
        """One rank failed and the others have not all ended yet."""
        self.count_pods(attempt)
        text = f"{cause.message}; waiting for the other ranks to end"
        self._set(Type.PODS_READY, "False", cause.reason, text)
        self._set(Type.RUNNING, "False", cause.reason, text)

    def restarting(self, ended: AttemptStatus, message: str) -> None:
        """An attempt ended and another is to follow."""
        self.count_pods(ended)
        self._not_running(Reason.WAITING_FOR_OLD_PODS, "the old pods are being removed")
        self._set(Type.RESTARTING, "True", Reason(ended.reason or Reason.POD_FAILED), message)

    def replacing(self, replaced: ReplacedPod, message: str) -> None:
        """A pod outside the gang failed and is made again; the gang goes on."""
        self._set(Type.PODS_READY, "False", Reason(replaced.reason), message)

    def waiting_for_old_pods(self, pods: Sequence[Pod]) -> None:
        """The next attempt starts when every pod of the old one is gone."""
        cut_off = next((p for p in pods if p.unreachable or p.disruption is Disruption.NODE_LOST), None)
        first = cut_off or pods[0]
        where = f" on node {first.node}" if first.node else ""
        text = (
            f"{len(pods)} old pods are still there, such as {first.name}{where}; "
            "the next attempt starts when they are gone"
        )
        if cut_off is not None:
            text += (
                f". The node stopped answering: if it is off for good, delete it (kubectl delete node {first.node}) "
                "or taint it node.kubernetes.io/out-of-service"
            )
        self._not_running(Reason.WAITING_FOR_OLD_PODS, text)
        if self._is(Type.SUSPENDED):
            self._set(Type.SUSPENDED, "False", Reason.RESUMED, text)

    def backing_off(self, due: datetime) -> None:
        """The next attempt waits, because the last ones failed."""
        failures = sum(self._failures.values())
        text = f"the next attempt starts at {format_time(due)}, after {failures} failures"
        self._not_running(Reason.BACKING_OFF, text)

    def _not_running(self, reason: Reason, message: str) -> None:
        self._set(Type.PODS_READY, "False", reason, message)
        self._set(Type.RUNNING, "False", reason, message)

    def suspended(self, *, gone: bool) -> None:
        """Suspension was asked for; it is reached when every pod is gone."""
        if gone:
            progress = self._old.progress
            at = f" at step {progress.step}" if progress is not None else ""
            text = f"suspended{at}; set spec.runPolicy.suspend to false to go on"
            self._set(Type.SUSPENDED, "True", Reason.SUSPENDED, text)
            self._counts = {}
        else:
            text = "suspension was asked for; the pods are stopping"
            self._set(Type.SUSPENDED, "False", Reason.SUSPENDING, text)
        self._not_running(Reason.SUSPENDED if gone else Reason.SUSPENDING, text)
        if self._is(Type.RESTARTING):
            self._set(Type.RESTARTING, "False", Reason.SUSPENDED, text)

    def suspending(self, why: str) -> None:
        """The pods are asked to stop, to keep a budget."""
        text = f"{why}; the pods are stopping"
        self._set(Type.SUSPENDED, "False", Reason.SUSPENDING, text)
        self._not_running(Reason.SUSPENDING, text)

    def held(self, reason: Reason, *, gone: bool) -> None:
        """The job may not run, to keep its budget; it is suspended when every pod is gone."""
        books = self.books
        if reason is Reason.BUDGET_EXHAUSTED:
            why = books.words
            raised = " and ".join(
                f"{s.path} above {s.limit}" for s in books.exhausted if s.stops and not s.by_charge
            )
            remedy = f"raise {raised} to go on" if raised else "it goes on when they are in and show less"
        else:
            nodes = books.waiting_for or tuple(p.node for p in books.unread)
            why = f"its energy is not known: node {nodes[0]} does not report (kubectl describe nodepower {nodes[0]})"
            remedy = "it goes on when it does; or set spec.energy.onUnknown to Continue"
        if not gone:
            return self.suspending(why)
        progress = self._old.progress
        at = f" at step {progress.step}" if progress is not None else ""
        text = f"{why}; suspended{at}; {remedy}"
        self._set(Type.SUSPENDED, "True", reason, text)
        self._counts = {}
        self._not_running(reason, text)
        if self._is(Type.RESTARTING):
            self._set(Type.RESTARTING, "False", reason, text)
        return None

    def wait_to_measure(self, reason: Reason, obstacle: str) -> None:
        """A job with a budget does not begin where its energy could not be read, or its emissions not be told."""
        self._not_running(reason, obstacle)

    def stopping(self, reason: Reason, message: str) -> None:
        """The gang is asked to stop for another reason than a suspension."""
        self._not_running(reason, f"{message}; the pods are stopping")

    def succeeded(self, ended: AttemptStatus) -> None:
        """The job is done."""
        self.count_pods(ended)
        progress = fold_progress(self._old.progress, self.seen, ended)
        words = [f"finished in attempt {ended.number}"]
        if progress is not None:
            words += [
                f"at step {progress.step}",
                *(f"{k} {v}" for k, v in progress.metrics.items() if k == "accuracy"),
            ]
        self._finished(", ".join(words))
        self._set(Type.SUCCEEDED, "True", Reason.SUCCEEDED, ", ".join(words))
        self._set(Type.FAILED, "False", Reason.SUCCEEDED, ", ".join(words))

    def failed(self, ended: AttemptStatus, reason: Reason, message: str) -> None:
        """The job is over without success."""
        self.count_pods(ended)
        self._finished("the job failed")
        self._set(Type.SUCCEEDED, "False", reason, message)
        self._set(Type.FAILED, "True", reason, message)

    def _finished(self, message: str) -> None:
        self._not_running(Reason.FINISHED, message)
        if find_condition(self._conditions, Type.RESTARTING) is not None:
            self._set(Type.RESTARTING, "False", Reason.FINISHED, message)

    def finish(self, attempt: AttemptStatus | None, *, completed: bool = False) -> GreenTrainingJobStatus:
        """The new status, with this attempt recorded."""
        job, old = self.seen.job, self._old
        attempts = old.attempts
        progress = old.progress
        if attempt is not None:
            attempt = _fold_steps(attempt, self.seen)
            attempts = (*(a for a in old.attempts if a.number != attempt.number), attempt)[-KEPT_ATTEMPTS:]
            progress = fold_progress(old.progress, self.seen, attempt)
            if attempt.end_time is None or not old.completion_time:
                self._checkpointed(progress)
        over = completed or old.completion_time is not None
        energy, growth = self.books.energy, self.books.growth
        if energy is not None:
            final = over and all(p.ended for p in self.seen.pods) and all(p.final for p in energy.pods)
            energy = energy.model_copy(update={"final": final})
        attempts = tuple(_grow(a, growth) for a in attempts)
        self._metered(attempt, energy, over=over)
        self._budgeted(over=over)
        if self._is(Type.STALLED):
            self._set(Type.STALLED, "False", Reason.RECONCILED, "the operator looks after this job again")
        power = self._capped(attempt, over=over)
        number = attempt.number if attempt is not None else 0
        new = GreenTrainingJobStatus(
            observed_generation=job.generation,
            conditions=self._conditions,
            replica_statuses=self._counts,
            label_selector=f"{names.job_selector(job.name)},{names.LABEL_REPLICA_TYPE}={ReplicaType.WORKER.value}",
            attempts=attempts,
            attempt_count=max(old.attempt_count, number),
            failure_count=self._failures["backoffLimit"],
            infrastructure_failure_count=self._failures["infrastructureRestartLimit"],
            active_seconds=old.active_seconds + _newly_active(old, attempt),
            start_time=old.start_time or (attempt.start_time if attempt is not None else None),
            completion_time=self._now if completed else old.completion_time,
            run_policy=self._run_policy,
            progress=progress,
            energy=energy,
            emissions=self._emissions(energy),
            power=power,
            projection=self._projection,
        )
        return fit(new.model_copy(update={"phase": phase(new, attempt), "display": display(new, attempt)}))

    def _metered(self, attempt: AttemptStatus | None, energy: EnergyStatus | None, *, over: bool) -> None:
        """Whether every GPU of the job is being read; Unknown where one is not, never a guess."""
        known = find_condition(self._conditions, Type.ENERGY_METERED)
        if over:
            if energy is None or not energy.used:
                return
            if energy.final:
                lost = f", but for the last of {energy.lost_pods} pods" if energy.lost_pods else ""
                self._set(Type.ENERGY_METERED, "True", Reason.METERED, f"every reading is in{lost}")
            else:
                waited = next((p for p in energy.pods if not p.final), None)
                text = (
                    f"pod {waited.name} on node {waited.node}"
                    if waited is not None
                    else "pods that are there yet"
                )
                self._set(
                    Type.ENERGY_METERED,
                    "Unknown",
                    Reason.LAST_WORD_MISSING,
                    f"the last reading of {text} is not in",
                )
            return
        if attempt is None or attempt.end_time is not None:
            return
        pods = self.seen.pods_of(attempt.number)
        running = [pods[r] for r in sorted(pods) if pods[r].state is PodState.RUNNING and pods[r].gpus]
        if not running:
            if known is None and _asks_for_no_gpu(attempt, pods):
                text = "no pod asks for a GPU: there is no GPU energy to count"
                self._set(Type.ENERGY_METERED, "False", Reason.NO_GPU, text)
            return
        reports = [r for r in self.seen.reports if not r.is_silent(self._moment)]
        read = {e.uid for r in reports for e in r.pods if r.reads(e)}
        unread = next((p for p in running if p.uid not in read), None)
        if unread is None:
            text = f"the GPUs of {len(running)} pods are read"
            self._set(Type.ENERGY_METERED, "True", Reason.METERED, text)
            return
        stopped = known is not None and (known.status == "True" or known.reason == Reason.READINGS_STOPPED)
        told = any(e.uid == unread.uid for r in self.seen.reports for e in r.pods)
        if stopped and told:
            reported = any(e.uid == unread.uid for r in reports for e in r.pods)
            why = "cannot read its GPUs" if reported else "does not report"
            text = (
                f"no reading of pod {unread.name} for {SILENT_AFTER.seconds} s: node {unread.node} {why} "
                f"(kubectl describe nodepower {unread.node})"
            )
            self._set(Type.ENERGY_METERED, "Unknown", Reason.READINGS_STOPPED, text)
        elif not stopped:
            text = (
                f"no reading of pod {unread.name} yet: the agent on node {unread.node} has not reported it "
                "(kubectl get nodepowers shows which nodes report)"
            )
            self._set(Type.ENERGY_METERED, "Unknown", Reason.NO_READINGS, text)

    def _emissions(self, energy: EnergyStatus | None) -> EmissionsStatus | None:
        emissions = self.books.emissions
        return emissions and emissions.model_copy(update={"final": energy is not None and energy.final})

    def _budgeted(self, *, over: bool) -> None:
        """How the budgets stand."""
        books = self.books
        known = find_condition(self._conditions, Type.BUDGET_EXHAUSTED)
        if not books.standings:
            if known is not None and not over:
                self._set(Type.BUDGET_EXHAUSTED, "False", Reason.NO_BUDGET, "no budget is set")
            return
        if books.exhausted:
            # Told once as it was found: a lowered budget is an old one at the next look.
            stands = known is not None and known.status == "True"
            named = all(f"{s.path} {s.limit} " in (known.message if known else "") for s in books.exhausted)
            text = known.message if stands and named and known is not None else books.words
            self._set(Type.BUDGET_EXHAUSTED, "True", Reason.BUDGET_EXHAUSTED, text)
        elif books.unread or books.waiting_for:
            text = "readings are missing; until they come each GPU is charged at its power limit"
            self._set(Type.BUDGET_EXHAUSTED, "Unknown", Reason.READINGS_STOPPED, text)
        elif books.unpriced:
            self._set(Type.BUDGET_EXHAUSTED, "Unknown", Reason.NO_INTENSITY, books.unpriced)
        elif self._projection is not None and self._projection.cannot_finish and not over:
            text = "the job cannot finish inside its budget at any allowed cap (status.projection says what was measured)"
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.WILL_BE_EXHAUSTED, text)
        elif any(s.warned for s in books.standings):
            text = "; ".join(
                f"{s.warned} % of {s.path} {s.limit} is used" for s in books.standings if s.warned
            )
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.BUDGET_WARNING, text)
        else:
            parts = (
                f"{s.path} {s.limit} is not spent" + (f" (at worst exceeded by {s.bound})" if s.bound else "")
                for s in books.standings
            )
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.WITHIN_BUDGET, "; ".join(parts))

    def _capped(self, attempt: AttemptStatus | None, *, over: bool) -> PowerStatus | None:
        """Whether the cap is in force on every GPU the job holds, as read back."""
        cap = self._cap
        if not cap:
            if find_condition(self._conditions, Type.POWER_CAPPED) is not None:
                self._set(Type.POWER_CAPPED, "False", Reason.NO_CAP, "spec.power.cap is not set")
            return PowerStatus() if self._old.power is not None else None
        pods = self.seen.pods_of(attempt.number) if attempt is not None and not over else {}
        running = [pods[r] for r in sorted(pods) if pods[r].state is PodState.RUNNING and pods[r].gpus]
        if running:
            found = judge_cap(cap, running, self.seen.reports, now=self._moment)
            self._set(Type.POWER_CAPPED, found.value, found.reason, found.message)
            return found.status
        if attempt is not None and not over and _asks_for_no_gpu(attempt, pods):
            text = f"no pod asks for a GPU: there is nothing that {cap} could apply to"
            self._set(Type.POWER_CAPPED, "False", Reason.NO_GPU, text)
        elif over:
            self._set(Type.POWER_CAPPED, "False", Reason.FINISHED, "the job has finished and holds no GPU")
        else:
            self._set(Type.POWER_CAPPED, "False", Reason.NOT_HELD, "no running pod holds a GPU at present")
        return PowerStatus(cap=cap)

    def _checkpointed(self, progress: ProgressStatus | None) -> None:
        if not self.seen.job.spec.get("checkpoint"):
            text = "spec.checkpoint is not set: a restart begins at step 0"
            self._set(Type.CHECKPOINTED, "False", Reason.NO_VOLUME, text)
        elif progress is None or progress.checkpoint is None:
            text = "no checkpoint was reported yet: a restart begins at step 0"
            self._set(Type.CHECKPOINTED, "Unknown", Reason.NOT_YET, text)
        else:
            # The step stands in status.progress: here it would make a condition change with every save.
            self._set(
                Type.CHECKPOINTED, "True", Reason.SAVED, "a restart resumes from status.progress.checkpoint"
            )


def _asks_for_no_gpu(attempt: AttemptStatus, pods: Mapping[Rank, Pod]) -> bool:
    """Whether none of an attempt's pods asks for a GPU; before there are pods, by what was recorded when it began."""
    return not any(p.gpus for p in pods.values()) if pods else attempt.gpus == 0


def _grow(attempt: AttemptStatus, growth: Mapping[int, int]) -> AttemptStatus:
    """The attempt with what its pods have used since the status was stored."""
    more = growth.get(attempt.number, 0)
    if not more:
        return attempt
    return attempt.model_copy(update={"energy_joules": (attempt.energy_joules or 0) + more})


def _newly_active(old: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> int:
    """Seconds an attempt adds to the sum, in the pass that writes down its end."""
    if attempt is None or attempt.end_time is None:
        return 0
    before = next((a for a in old.attempts if a.number == attempt.number), None)
    return 0 if before is not None and before.end_time is not None else attempt.active_seconds or 0


def fold_finished(attempt: AttemptStatus, seen: Snapshot) -> AttemptStatus:
    """Write down who has finished, while the attempt runs: pods may be removed before it ends.

    A program that was asked to stop, answered with 0 and had said by `/progress` that all its steps are done has finished.
    """
    pods = [p for p in (*seen.pods, *seen.last_words) if p.attempt == attempt.number]
    finished = finished_ranks(attempt, pods)
    if attempt.replicas and seen.progress is not None and seen.progress.all_steps_done:
        first = deciding_rank(attempt.replicas)
        finished |= {p.rank for p in pods if p.rank == first and p.ended and p.exit_code == 0}
    names_ = tuple(map(str, sorted(finished)))
    return (
        attempt if names_ == attempt.finished_ranks else attempt.model_copy(update={"finished_ranks": names_})
    )


def _fold_steps(attempt: AttemptStatus, seen: Snapshot) -> AttemptStatus:
    said = reports(seen, attempt)
    if not said:
        return attempt
    start = next((p.start_step for p in said if p.step > 0 or p.start_step > 0), attempt.start_step)
    step = last_step(seen, attempt) if attempt.end_time is not None else attempt.last_step
    return attempt.model_copy(update={"start_step": start, "last_step": step})


def phase(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> str:
    """One word for people, derived from the conditions; no program may read it."""
    conditions = status.conditions
    admitted = find_condition(conditions, Type.ADMITTED)
    suspended = find_condition(conditions, Type.SUSPENDED)
    live = attempt is not None and attempt.end_time is None
    for type_ in (Type.FAILED, Type.SUCCEEDED):
        if is_true(conditions, type_):
            return type_.value
    if (
        admitted is not None
        and admitted.status == "False"
        and not (live and is_true(conditions, Type.RUNNING))
    ):
        return "Refused"
    if suspended is not None and suspended.status == "True":
        return "Suspended"
    if suspended is not None and suspended.reason == Reason.SUSPENDING:
        return "Suspending"
    for type_ in (Type.RUNNING, Type.RESTARTING):
        if is_true(conditions, type_):
            return type_.value
    if attempt is not None and live and attempt.broken_time:
        return "Degraded"
    return "Starting" if is_true(conditions, Type.CREATED) else "Pending"


def display(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> DisplayStatus:
    """Words for the columns of kubectl get."""
    workers = ""
    if attempt is not None and attempt.replicas:
        wanted = sum(attempt.replicas.values())
        counts = status.replica_statuses.values()
        there = sum(c.succeeded for c in counts) if status.completion_time else sum(c.ready for c in counts)
        workers = f"{there}/{wanted}"
    progress = status.progress
    text = ""
    if progress is not None:
        text = f"{progress.percent}%" if progress.percent is not None else f"step {progress.step}"
    return DisplayStatus(
        workers=workers,
        progress=text,
        energy=status.energy.used if status.energy is not None else "",
        budget=_display_budget(status.energy, status.emissions),
        emissions=_display_emissions(status.emissions),
        draw=_display_draw(status.energy),
        cap=_display_cap(status.power),
    )


def _display_budget(energy: EnergyStatus | None, emissions: EmissionsStatus | None) -> str:
    """Of two budgets the one that is nearer to its end."""
    percents = [
        section.budget.percent
        for section in (energy, emissions)
        if section is not None and section.budget is not None and section.budget.percent is not None
    ]
    return f"{max(percents)}%" if percents else ""


def _display_emissions(emissions: EmissionsStatus | None) -> str:
    """A + says that it is more: some of the energy has no intensity."""
    if emissions is None or not emissions.total:
        return ""
    return f"{emissions.total}+" if emissions.without_percent else emissions.total


def _display_draw(energy: EnergyStatus | None) -> str:
    if energy is None or energy.draw_milliwatts is None:
        return ""
    return f"{round(energy.draw_milliwatts / 1000)}W"


def _display_cap(power: PowerStatus | None) -> str:
    if power is None:
        return ""
    part = power.gpus_capped < power.gpus
    return f"{power.cap} {power.gpus_capped}/{power.gpus}" if part else power.cap


def essence(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
    """The status without what changes all the time: two of equal essence need not be written at once."""
    return status.model_copy(
        update={
            "progress": None,
            "energy": _energy_essence(status.energy),
            "emissions": _emissions_essence(status.emissions),
            "power": _without_binding(status.power),
            "projection": _projection_essence(status.projection),
            "replica_statuses": {},
            "display": DisplayStatus(),
            "attempts": tuple(
                a.model_copy(
                    update={
                        "start_step": None,
                        "last_step": None,
                        "finished_ranks": (),
                        "energy_joules": None,
                    }
                )
                for a in status.attempts
            ),
            "conditions": tuple(
                c.model_copy(update={"message": ""}) if c.type == Type.PODS_READY else c
                for c in status.conditions
            ),
        }
    )


def _energy_essence(energy: EnergyStatus | None) -> EnergyStatus | None:
    """Whose last word is in: a node's agent waits for it. Joules themselves change all the time."""
    if energy is None:
        return None
    known = tuple(PodEnergyStatus(uid=p.uid, segment=p.segment, final=True) for p in energy.pods if p.final)
    budget = energy.budget
    if budget is not None:
        # A percent of the budget is worth a write, the joules between two are not.
        # Whom a charge is for must be known by an operator that begins anew, and when a pod was gone.
        charges = tuple(c.model_copy(update={"since": "", "joules": 0}) for c in budget.charges)
        measures = {"provisional_joules": 0, "ahead_joules": 0, "charges": charges}
        budget = budget.model_copy(update=measures)
    return EnergyStatus(
        final=energy.final, lost_pods=energy.lost_pods, pods=known, settled=energy.settled, budget=budget
    )


def _emissions_essence(emissions: EmissionsStatus | None) -> EmissionsStatus | None:
    """What is said of its budget, and whether all is in; grams themselves change all the time."""
    if emissions is None:
        return None
    budget = emissions.budget
    if budget is not None:
        measures = {"provisional_micrograms": 0, "ahead_micrograms": 0, "overshoot_bound_micrograms": None}
        budget = budget.model_copy(update={**measures, "overshoot_bound": ""})
    return EmissionsStatus(budget=budget, final=emissions.final)


def _projection_essence(projection: ProjectionStatus | None) -> ProjectionStatus | None:
    """The cap that was chosen, and that none will do; what was measured changes all the time."""
    if projection is None or projection.percent is None:
        return None
    return ProjectionStatus(percent=projection.percent, cannot_finish=projection.cannot_finish)


def _without_binding(power: PowerStatus | None) -> PowerStatus | None:
    """Whether a limit slows a GPU down changes with its load."""
    return None if power is None else power.model_copy(update={"gpus_binding": 0})


SHORT_MESSAGE = 256
"""Characters that are kept of a message where as little as possible is stored."""


def reduce_to_least(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
    """The least that must be stored: what was used, the attempts, the conditions, the phase.

    It is what is tried where the API server refuses the whole. What is left out is concluded again (counts, columns) or
    measured again (the projection).
    """
    conditions = tuple(c.model_copy(update={"message": c.message[:SHORT_MESSAGE]}) for c in status.conditions)
    attempts = tuple(
        a.model_copy(update={"message": a.message and a.message[:SHORT_MESSAGE]}) for a in status.attempts
    )
    progress = status.progress and status.progress.model_copy(update={"metrics": {}})
    return status.model_copy(
        update={
            "conditions": conditions,
            "attempts": attempts,
            "progress": progress,
            "projection": None,
            "replica_statuses": {},
            "display": DisplayStatus(),
        }
    )


def differs_in_measures_alone(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> bool:
    """Whether nothing but progress and joules has changed, which are written now and then, not each time."""

    def without(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
        attempts = tuple(a.model_copy(update={"energy_joules": None}) for a in status.attempts)
        power = _without_binding(status.power)
        bare = {
            "progress": None,
            "energy": None,
            "emissions": None,
            "projection": None,
            "power": power,
            "attempts": attempts,
        }
        workers = DisplayStatus(workers=status.display.workers, cap=status.display.cap)
        return status.model_copy(update={**bare, "display": workers})

    return without(old) == without(new)


def changed_conditions(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Iterator[Condition]:
    """The conditions of a new status that say something the old one did not; events and log lines tell them."""
    for condition in new.conditions:
        before = find_condition(old.conditions, Type(condition.type))
        if before is not None and (before.status, before.reason) == (condition.status, condition.reason):
            # A new refusal, attempt or failure in other words is told again; progress is not.
            retold = condition.type in (Type.ADMITTED, Type.CREATED, Type.RESTARTING) or (
                condition.reason == Reason.BUDGET_WARNING
            )
            if not retold or before.message == condition.message:
                continue
        yield condition


def transition_events(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> tuple[Event, ...]:
    """What a person should be told, from the conditions that changed between two statuses."""
    events = [_event_of(c) for c in changed_conditions(old, new)]
    return tuple(event for event in (*events, _throttling(old, new)) if event is not None)


def _throttling(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Event | None:
    """That another cap was chosen to keep a budget, and why."""
    before, now = old.projection, new.projection
    if before is None or now is None or before.percent is None or now.percent is None:
        return None
    if now.percent == before.percent:
        return None
    name = "Throttled" if now.percent < before.percent else "Unthrottled"
    return Event(EventType.NORMAL, name, f"power cap {before.percent}% → {now.percent}%: {now.message}")


_STUCK = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_UNAVAILABLE,
        Reason.CONTAINER_NOT_STARTED,
        Reason.CREATE_REFUSED,
        Reason.NODE_LOST,
    }
)


_UNCAPPED_IN_PASSING = frozenset(
    {Reason.APPLYING, Reason.NOT_HELD, Reason.NO_CAP, Reason.FINISHED, Reason.NO_AGENT}
)
"""Why a job is not capped without anything being wrong, or before anybody can know."""


def _event_of(condition: Condition) -> Event | None:
    type_, value, reason = Type(condition.type), condition.status, condition.reason
    normal = (value == "True" and type_ in (Type.CREATED, Type.RUNNING, Type.SUSPENDED, Type.SUCCEEDED)) or (
        type_ is Type.ADMITTED and reason == Reason.APPLIES_AT_NEXT_ATTEMPT
    )
    warning = (
        (value == "True" and type_ in (Type.RESTARTING, Type.FAILED))
        or (value == "False" and type_ is Type.ADMITTED)
        or (value == "False" and type_ is Type.PODS_READY and reason in _STUCK)
        or (type_ is Type.ENERGY_METERED and reason == Reason.READINGS_STOPPED)
        or (
            type_ is Type.BUDGET_EXHAUSTED
            and (value == "True" or reason in (Reason.BUDGET_WARNING, Reason.WILL_BE_EXHAUSTED))
        )
    )
    if normal or warning:
        kind = EventType.WARNING if warning else EventType.NORMAL
        name = type_.value if value == "True" and type_ is not Type.ADMITTED else reason
        return Event(kind, name, condition.message)
    if type_ in (Type.ENERGY_METERED, Type.POWER_CAPPED) and value == "True":
        return Event(EventType.NORMAL, type_.value, condition.message)
    if type_ is Type.POWER_CAPPED and reason not in _UNCAPPED_IN_PASSING:
        return Event(EventType.WARNING, "NotCapped", condition.message)
    if type_ is Type.SUSPENDED and reason == Reason.SUSPENDING:
        return Event(EventType.NORMAL, "Suspending", condition.message)
    if type_ is Type.SUSPENDED and reason == Reason.RESUMED:
        return Event(EventType.NORMAL, "Resumed", condition.message)
    return None
