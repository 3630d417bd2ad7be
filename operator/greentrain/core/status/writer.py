"""Builds the new status of a pass: conditions, counts, attempts and progress.

A status is computed from the old status and the snapshot. So a pass that sees nothing new returns an equal one, and nothing
is written. Events are derived from the difference of two statuses: each is stored once, and only after the new status is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from greentrain.api import names
from greentrain.api.bounds import fit
from greentrain.api.budgets import BudgetLine, BudgetType
from greentrain.api.conditions import ConditionStatus, Type, find_condition, is_true, set_condition
from greentrain.api.reasons import REASONS, UNLISTED, Phase, Reason, Reasons
from greentrain.api.spec import GreenTrainingJobSpec, ReplicaType
from greentrain.api.status import (
    KEPT_ATTEMPTS,
    AdmittedSections,
    AttemptStatus,
    CountedAgainst,
    EmissionsStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PowerStatus,
    ProgressStatus,
    ProjectionStatus,
    ReplacedPod,
)
from greentrain.core.books.books import Books
from greentrain.core.gang.judge import Cause, finished_ranks
from greentrain.core.gang.manifests import ranks, replica_counts
from greentrain.core.power.capped import judge_cap
from greentrain.core.power.follow import chosen_cap
from greentrain.core.seen.nodes import SILENT_AFTER, find_read_until, find_unread_pods
from greentrain.core.seen.pods import Pod, PodState, Rank
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import format_time
from greentrain.core.status.accounted import was_accounted
from greentrain.core.status.display import display, find_phase
from greentrain.core.status.pods import count_pods, find_stuck
from greentrain.core.status.progress import fold_progress, fold_steps


class Writer:
    """Adds the findings of one pass to the old status; each method sets the conditions of one finding."""

    def __init__(
        self,
        seen: Snapshot,
        books: Books,
        projection: ProjectionStatus | None,
        *,
        now: datetime,
        reasons: Reasons = REASONS,
    ) -> None:
        self.seen = seen
        self.books = books
        self._reasons = reasons
        self._projection = projection
        self._old = seen.job.status
        self._now = format_time(now)
        self._moment = now
        self._conditions = self._old.conditions
        self._counts = self._old.replica_statuses
        self._admitted = self._old.admitted
        self._cap = self._old.power.cap if self._old.power is not None else ""
        self.failures: dict[CountedAgainst, int] = {
            "backoffLimit": self._old.failure_count,
            "infrastructureRestartLimit": self._old.infrastructure_failure_count,
        }

    def count_failure(self, cause: Cause) -> int:
        """Count a failure against its limit; returns how many there are now."""
        self.failures[cause.counts_against] += 1
        return self.failures[cause.counts_against]

    def _set(self, type_: Type, value: ConditionStatus, reason: str, message: str) -> None:
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
        """The spec is valid and in force."""
        self._put_in_force(spec)
        self._set(Type.ADMITTED, "True", Reason.VALID, "the spec is valid")

    def _put_in_force(self, spec: GreenTrainingJobSpec) -> None:
        admitted = AdmittedSections(
            run_policy=spec.run_policy, energy=spec.energy, emissions=spec.emissions, power=spec.power
        )
        # The same object where nothing has changed.
        self._admitted = self._admitted if self._admitted == admitted else admitted
        self._cap = chosen_cap(spec, self._projection, self.seen.fleet)

    def refuse(self, reason: str, message: str) -> None:
        """The spec is invalid, or the name of an object that it needs is taken."""
        self._set(Type.ADMITTED, "False", reason, message)

    def applies_at_next_attempt(self, attempt: AttemptStatus, spec: GreenTrainingJobSpec) -> None:
        """The spec is valid, but the running attempt was built from an earlier one."""
        self._put_in_force(spec)
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
        """A new attempt begins; its pods are created next. `again`: the message with what a restart costs."""
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
        """An attempt is under way: which pods are ready, which cannot start, whether all run."""
        pods = self.seen.pods_of(attempt.number)
        seats = ranks(attempt.replicas)
        self.count_pods(attempt)
        ready = sum(r in pods and pods[r].ready for r in seats)
        finished = len(finished_ranks(attempt, self._pods_seen(attempt)))
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

    def _pods_seen(self, attempt: AttemptStatus) -> list[Pod]:
        return [p for p in (*self.seen.pods, *self.seen.last_states) if p.attempt == attempt.number]

    def count_pods(self, attempt: AttemptStatus) -> None:
        """Count the attempt's pods by role and state."""
        self._counts = count_pods(attempt, self.seen.pods_of(attempt.number))

    def pods_not_ready(self, reason: str, message: str) -> None:
        """The pods cannot be created."""
        self._set(Type.PODS_READY, "False", reason, message)

    def settling(self, attempt: AttemptStatus, cause: Cause) -> None:
        """One rank failed and the others have not all ended yet."""
        self.count_pods(attempt)
        text = f"{cause.message}; waiting for the other ranks to end"
        self._set(Type.PODS_READY, "False", cause.reason, text)
        self._set(Type.RUNNING, "False", cause.reason, text)

    def restarting(self, ended: AttemptStatus, message: str) -> None:
        """An attempt has ended and another follows."""
        self.count_pods(ended)
        self._not_running(Reason.WAITING_FOR_OLD_PODS, "the old pods are being removed")
        self._set(Type.RESTARTING, "True", ended.reason or Reason.POD_FAILED, message)

    def replacing(self, replaced: ReplacedPod, message: str) -> None:
        """A pod outside the gang failed and is created again; the gang goes on."""
        self._set(Type.PODS_READY, "False", replaced.reason, message)

    def _not_running(self, reason: str, message: str) -> None:
        self._set(Type.PODS_READY, "False", reason, message)
        self._set(Type.RUNNING, "False", reason, message)

    def wait(self, reason: str, why: str, next_step: str = "") -> None:
        """No attempt begins now; if the reason puts the job on hold, it is suspended when every pod is gone."""
        about = self._reasons.get(str(reason), UNLISTED)
        next_step = next_step or about.next_step
        if about.phase is not Phase.SUSPENDED:
            text = f"{why}; {next_step}" if next_step else why
            self._not_running(reason, text)
            held = find_condition(self._conditions, Type.SUSPENDED)
            if held is not None and (held.status == "True" or held.reason == Reason.STOPPING_PODS):
                self._set(Type.SUSPENDED, "False", Reason.RESUMED, text)
            return
        if self.seen.pods:
            self.stopping(reason, why)
            return
        progress = self._old.progress
        at = f" at step {progress.step}" if progress is not None else ""
        text = f"{why}; suspended{at}; {next_step}"
        self._set(Type.SUSPENDED, "True", reason, text)
        self._counts = {}
        self._not_running(reason, text)
        if self._is(Type.RESTARTING):
            self._set(Type.RESTARTING, "False", reason, text)

    def stopping(self, reason: str, why: str) -> None:
        """The gang is asked to stop; if the reason puts the job on hold, it is being suspended."""
        text = f"{why}; the pods are stopping"
        if self._reasons.get(str(reason), UNLISTED).phase is Phase.SUSPENDED:
            reason = Reason.STOPPING_PODS
            self._set(Type.SUSPENDED, "False", reason, text)
        self._not_running(reason, text)

    def succeeded(self, ended: AttemptStatus) -> None:
        """The job has succeeded."""
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

    def failed(self, ended: AttemptStatus | None, reason: str, message: str) -> None:
        """The job is over without success; `ended` is its last attempt, None where none has begun."""
        if ended is not None:
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
            attempt = fold_steps(attempt, self.seen)
            attempts = (*(a for a in old.attempts if a.number != attempt.number), attempt)[-KEPT_ATTEMPTS:]
            progress = fold_progress(old.progress, self.seen, attempt)
            if attempt.end_time is None or not old.completion_time:
                self._checkpointed(progress)
        over = completed or old.completion_time is not None
        energy, growth = self.books.energy, self.books.growth
        if energy is not None:
            final = over and all(p.ended for p in self.seen.pods) and all(p.final for p in energy.pods)
            accounted = was_accounted(old.energy) or (final and bool(energy.used))
            energy = energy.model_copy(update={"final": final, "accounted": accounted})
        attempts = tuple(_grow(a, growth) for a in attempts)
        self._metered(attempt, energy, over=over)
        self._budgeted(over=over)
        if self._is(Type.STALLED):
            self._set(Type.STALLED, "False", Reason.RECONCILED, "the operator reconciles this job again")
        power = self._capped(attempt, over=over)
        number = attempt.number if attempt is not None else 0
        new = GreenTrainingJobStatus(
            observed_generation=job.generation,
            conditions=self._conditions,
            replica_statuses=self._counts,
            label_selector=f"{names.job_selector(job.name)},{names.LABEL_REPLICA_TYPE}={ReplicaType.WORKER.value}",
            attempts=attempts,
            attempt_count=max(old.attempt_count, number),
            failure_count=self.failures["backoffLimit"],
            infrastructure_failure_count=self.failures["infrastructureRestartLimit"],
            active_seconds=old.active_seconds + _newly_active(old, attempt),
            start_time=old.start_time or (attempt.start_time if attempt is not None else None),
            completion_time=self._now if completed else old.completion_time,
            admitted=self._admitted,
            progress=progress,
            energy=energy,
            emissions=self._emissions(energy),
            power=power,
            projection=self._projection,
            budgets=self._draw_lines(energy),
        )
        shown = {
            "phase": find_phase(new, attempt, self._reasons),
            "display": display(new, attempt, self._reasons),
        }
        return fit(new.model_copy(update=shown))

    def _metered(self, attempt: AttemptStatus | None, energy: EnergyStatus | None, *, over: bool) -> None:
        """Set EnergyMetered: whether every GPU of the job is read; Unknown where one is not."""
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
                    Reason.FINAL_REPORT_MISSING,
                    f"the last reading of {text} is not in",
                )
            return
        if attempt is None or attempt.end_time is not None:
            return
        pods = self.seen.pods_of(attempt.number)
        claimed = find_unread_pods(self.seen.reports)
        running = [
            p for _, p in sorted(pods.items()) if p.state is PodState.RUNNING and (p.gpus or p.uid in claimed)
        ]
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
        entry = next(
            (e for r in self.seen.reports for e in r.pods if e.uid == unread.uid and e.unread_gpus), None
        )
        if entry is not None:
            text = (
                f"{entry.unread_gpus} of the GPUs of pod {unread.name} could not be read since they were allocated to it "
                f"(kubectl describe nodepower {unread.node})"
            )
            self._set(Type.ENERGY_METERED, "Unknown", Reason.NO_READINGS, text)
            return
        stopped = known is not None and (known.status == "True" or known.reason == Reason.READINGS_STOPPED)
        # An agent lists a pod a moment before it has read its GPUs.
        read_before = any(
            e.uid == unread.uid and (find_read_until(e) is not None or r.is_silent(self._moment))
            for r in self.seen.reports
            for e in r.pods
        )
        if stopped and read_before:
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

    def _draw_lines(self, energy: EnergyStatus | None) -> tuple[BudgetLine, ...]:
        emissions = self.books.emissions
        used: dict[BudgetType, str] = {
            "Energy": energy.used if energy is not None else "",
            "Emissions": emissions.total if emissions is not None else "",
        }
        return tuple(s.build_line(used[s.type]) for s in self.books.budgets)

    def _budgeted(self, *, over: bool) -> None:
        """Set BudgetExhausted from the state of the budgets."""
        books = self.books
        known = find_condition(self._conditions, Type.BUDGET_EXHAUSTED)
        if not books.budgets:
            if known is not None and not over:
                self._set(Type.BUDGET_EXHAUSTED, "False", Reason.NO_BUDGET, "no budget is set")
            return
        if books.exhausted:
            self._set(Type.BUDGET_EXHAUSTED, "True", Reason.BUDGET_EXHAUSTED, books.words)
        elif books.unread or books.waiting_for:
            text = "readings are missing; until they come each GPU is charged at its power limit"
            self._set(Type.BUDGET_EXHAUSTED, "Unknown", Reason.READINGS_STOPPED, text)
        elif books.unpriced:
            self._set(Type.BUDGET_EXHAUSTED, "Unknown", Reason.NO_INTENSITY, books.unpriced)
        elif self._projection is not None and self._projection.cannot_finish and not over:
            text = "the job cannot finish inside its budget at any allowed cap (status.projection says what was measured)"
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.WILL_BE_EXHAUSTED, text)
        elif any(s.warned for s in books.budgets):
            text = "; ".join(f"{s.warned} % of {s.path} {s.limit} is used" for s in books.budgets if s.warned)
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.BUDGET_WARNING, text)
        else:
            parts = (
                f"{s.path} {s.limit} is not spent" + (f" (at worst exceeded by {s.bound})" if s.bound else "")
                for s in books.budgets
            )
            self._set(Type.BUDGET_EXHAUSTED, "False", Reason.WITHIN_BUDGET, "; ".join(parts))

    def _capped(self, attempt: AttemptStatus | None, *, over: bool) -> PowerStatus | None:
        """Set PowerCapped: whether the cap is in force on every GPU that is allocated to the job, as read back."""
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
            self._set(
                Type.POWER_CAPPED, "False", Reason.FINISHED, "the job has finished; its GPUs are released"
            )
        else:
            self._set(
                Type.POWER_CAPPED,
                "False",
                Reason.NOT_ALLOCATED,
                "no GPU is allocated to a running pod at present",
            )
        return PowerStatus(cap=cap)

    def _checkpointed(self, progress: ProgressStatus | None) -> None:
        if not self.seen.job.spec.get("checkpoint"):
            text = "spec.checkpoint is not set: a restart begins at step 0"
            self._set(Type.CHECKPOINTED, "False", Reason.NO_VOLUME, text)
        elif progress is None or progress.checkpoint is None:
            text = "no checkpoint was reported yet: a restart begins at step 0"
            self._set(Type.CHECKPOINTED, "Unknown", Reason.NOT_YET, text)
        else:
            # The step is in status.progress: here it would change the condition with every checkpoint.
            self._set(
                Type.CHECKPOINTED, "True", Reason.SAVED, "a restart resumes from status.progress.checkpoint"
            )


def _asks_for_no_gpu(attempt: AttemptStatus, pods: Mapping[Rank, Pod]) -> bool:
    """Whether none of an attempt's pods requests a GPU; before there are pods, by the record of its beginning."""
    return not any(p.gpus for p in pods.values()) if pods else attempt.gpus == 0


def _grow(attempt: AttemptStatus, growth: Mapping[int, int]) -> AttemptStatus:
    """The attempt with what its pods have used since the status was stored."""
    more = growth.get(attempt.number, 0)
    if not more:
        return attempt
    return attempt.model_copy(update={"energy_joules": (attempt.energy_joules or 0) + more})


def _newly_active(old: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> int:
    """Seconds that an attempt adds to the sum, in the pass that records its end."""
    if attempt is None or attempt.end_time is None:
        return 0
    before = next((a for a in old.attempts if a.number == attempt.number), None)
    return 0 if before is not None and before.end_time is not None else attempt.active_seconds or 0
