"""Between attempts: wait at a closed gate, or begin the next attempt."""

from __future__ import annotations

from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.core.books.account import Account, pue_of
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.books.overshoot import announce, announce_emissions
from greentrain.core.books.restarts import burnt_again
from greentrain.core.gang import manifests
from greentrain.core.gang.grace import grace_of
from greentrain.core.lifecycle.decision import Decision, delete_leftovers
from greentrain.core.lifecycle.ends import fail
from greentrain.core.lifecycle.gates import Start, count_job_gpus, find_closed_gate
from greentrain.core.lifecycle.outcomes import Fail
from greentrain.core.lifecycle.passing import Pass
from greentrain.core.seen.times import format_time
from greentrain.quantities import Joules, format_energy


def start_or_wait(this: Pass, spec: GreenTrainingJobSpec, last: AttemptStatus | None) -> Decision:
    """No attempt is under way: begin the next one, unless a gate is closed."""
    writer = this.writer
    writer.admit(spec)
    closed = find_closed_gate(
        Start(this.seen, spec, last, writer.failures, this.books, this.now), this.rules.gates
    )
    if isinstance(closed, Fail):
        return fail(this, last, closed)
    if closed is None:
        return _begin(this, spec, last)
    writer.wait(closed.reason, closed.message, closed.next_step)
    return Decision(writer.finish(last), deletions=delete_leftovers(this.seen, last), look_again=closed.until)


def _begin(this: Pass, spec: GreenTrainingJobSpec, last: AttemptStatus | None) -> Decision:
    seen, now = this.seen, this.now
    counts = manifests.replica_counts(spec)
    attempt = AttemptStatus(
        number=max(seen.job.status.attempt_count, last.number if last else 0) + 1,
        spec_hash=manifests.spec_hash(spec),
        replicas=counts,
        success_policy=spec.success_policy,
        start_time=format_time(now),
    )
    grace = None if spec.checkpoint is None else spec.checkpoint.grace_period_seconds
    attempt = announce(
        attempt,
        gpus=count_job_gpus(spec, seen.gpu_resources),
        grace_seconds=grace_of(grace, (r.template for _, r in spec.tf_replica_specs.roles())),
        fleet=seen.fleet,
        pue=pue_of(spec.emissions, seen.intensities),
    )
    account = Account(seen, BudgetSpec(spec.energy, spec.emissions), None, now)
    attempt = announce_emissions(attempt, account, this.books.emissions)
    again = burnt_again(last, seen.job.status.progress)
    this.writer.started(attempt, again="" if again is None else _explain_again(again, spec))
    return Decision(
        this.writer.finish(attempt),
        service=None if seen.has_service else manifests.build_service(seen.job),
        pods=manifests.Pods(seen.job, spec, attempt, manifests.ranks(counts)),
        record_first=True,
    )


def _explain_again(joules: Joules, spec: GreenTrainingJobSpec) -> str:
    """The message with what a restart costs; `joules` are used again."""
    why = (
        "no volume for checkpoints is set" if spec.checkpoint is None else "no confirmed checkpoint has them"
    )
    return f"steps that the last attempt did are done again, about {format_energy(joules)}: {why}"
