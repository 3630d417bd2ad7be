"""The gates that an attempt passes before it begins, in their order.

Each is a pure function of a start. It returns None where the start may pass, `Wait` with the reason where the job must wait,
or `Fail`. The first closed gate decides. A new reason to wait needs a function and a row here, and a row in
`greentrain.api.reasons`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from greentrain.api.reasons import Reason
from greentrain.api.resources import GpuResources
from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus, CountedAgainst
from greentrain.core.books.books import Books
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.lifecycle.attempts import backoff_until, explain_deadline, find_limit
from greentrain.core.lifecycle.outcomes import Fail, Wait
from greentrain.core.seen.gpus import count_gpus
from greentrain.core.seen.nodes import SILENT_AFTER
from greentrain.core.seen.pods import Disruption
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import format_time, parse_time

LOOK_FOR_NODES = timedelta(seconds=10)
"""How often a job that waits for reports of nodes is decided again; no event starts that pass."""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt that could begin now."""

    seen: Snapshot
    spec: GreenTrainingJobSpec
    """The spec, as admitted."""
    last: AttemptStatus | None
    """The previous attempt; None before the first."""
    failures: Mapping[CountedAgainst, int]
    """How many failures count against each limit of spec.runPolicy."""
    books: Books
    now: datetime


Gate = Callable[[Start], Wait | Fail | None]


SUSPENSION = Wait(Reason.SUSPEND_REQUESTED, "spec.runPolicy.suspend is set", "set it to false to go on")


def wait_while_suspended(start: Start) -> Wait | None:
    """Wait while spec.runPolicy.suspend is set."""
    return SUSPENSION if start.spec.run_policy.suspend else None


def fail_over_deadline(start: Start) -> Fail | None:
    """Fail where activeDeadlineSeconds is used up."""
    policy, last = start.spec.run_policy, start.last
    allowed = policy.active_deadline_seconds
    if last is None or allowed is None or start.seen.job.status.active_seconds < allowed:
        return None
    text = f"{explain_deadline(policy)}, and attempt {last.number} ended: {last.message}"
    return Fail(Reason.DEADLINE_EXCEEDED, text)


def fail_over_limit(start: Start) -> Fail | None:
    """Fail where the limit on failures was lowered since the last failure."""
    last = start.last
    if last is None or last.counted_against is None:
        return None
    limit, count = (
        find_limit(last.counted_against, start.spec.run_policy),
        start.failures[last.counted_against],
    )
    return Fail(limit.reason, limit.exceeded(count, last.message)) if count > limit.allowed else None


def wait_or_fail_for_budget(start: Start) -> Wait | Fail | None:
    """Wait or fail where a budget is spent; before its first attempt a job waits, also where it would fail."""
    failed = fail_for_budget(start.books) if start.last is not None else None
    return failed or wait_for_budget(start.books)


def fail_for_budget(books: Books) -> Fail | None:
    """The failure by a budget; None where there is none."""
    state = books.stopping
    return Fail(Reason.BUDGET_EXHAUSTED, books.words) if state is not None and state.fails else None


def wait_for_budget(books: Books) -> Wait | None:
    """The wait for a spent budget; None where the job may run."""
    if books.stopping is None:
        return None
    raised = " and ".join(f"{s.path} above {s.limit}" for s in books.exhausted if s.stops and not s.by_charge)
    remedy = f"raise {raised} to go on" if raised else "it goes on when they are in and show less"
    return Wait(Reason.BUDGET_EXHAUSTED, books.words, remedy)


def wait_for_reports(start: Start) -> Wait | None:
    """Wait while the job's energy is not known, where its onUnknown does not let it go on."""
    return wait_while_unknown(start.books, start.now)


def wait_while_unknown(books: Books, now: datetime) -> Wait | None:
    """The wait for energy that is not known; None where the job may run."""
    if not books.unknown_stops:
        return None
    node = (books.waiting_for or tuple(p.node for p in books.unread))[0]
    why = f"its energy is not known: node {node} does not report, or cannot read its GPUs (kubectl describe nodepower {node})"
    remedy = "it goes on when it does; or set spec.energy.onUnknown to Continue"
    return Wait(Reason.READINGS_STOPPED, why, remedy, now + LOOK_FOR_NODES)


def wait_for_old_pods(start: Start) -> Wait | None:
    """Wait until every pod of the previous attempt is gone."""
    pods = start.seen.pods
    if not pods:
        return None
    cut_off = next((p for p in pods if p.unreachable or p.disruption is Disruption.NODE_LOST), None)
    first = cut_off or pods[0]
    where = f" on node {first.node}" if first.node else ""
    text = f"{len(pods)} old pods are still there, such as {first.name}{where}"
    if cut_off is None:
        return Wait(Reason.WAITING_FOR_OLD_PODS, text)
    remedy = (
        "the next attempt starts when they are gone. The node stopped answering: if it is off for good, delete it "
        f"(kubectl delete node {first.node}) or taint it node.kubernetes.io/out-of-service"
    )
    return Wait(Reason.WAITING_FOR_OLD_PODS, text, remedy)


def wait_for_readings(start: Start) -> Wait | None:
    """Wait where a job has a budget but its energy could not be read."""
    seen, spec = start.seen, start.spec
    if not BudgetSpec(spec.energy, spec.emissions).has_budget:
        return None
    until = start.now + LOOK_FOR_NODES
    if spec.energy.scope == "Node" and seen.fleet.without_host:
        nodes = seen.fleet.without_host
        text = (
            f"spec.energy.scope: Node needs the energy of processors and memory, which {len(nodes)} nodes cannot measure, "
            f"such as {nodes[0]} (kubectl describe nodepower {nodes[0]})"
        )
        return Wait(Reason.NO_READINGS, text, "set GPU", until)
    if not spec.energy.on_unknown.stops or not count_job_gpus(spec, seen.gpu_resources):
        return None
    reported_at = seen.fleet.reported_at
    reporting = reported_at is not None and start.now - reported_at < SILENT_AFTER
    if reporting and seen.fleet.limit_milliwatts is not None:
        return None
    if reporting:
        text = (
            "the GPUs of the nodes that report name no power limit (kubectl describe nodepowers), so it is not known by how much the "
            "budget could be exceeded"
        )
        remedy = "see that the driver supports power limits (nvidia-smi -q -d POWER), or set spec.energy.onUnknown to Continue"
        return Wait(Reason.NO_READINGS, text, remedy, until)
    text = "no node reports the energy of its GPUs (kubectl get nodepowers), and a job with a budget does not begin without"
    return Wait(
        Reason.NO_READINGS, text, "see that agents run, or set spec.energy.onUnknown to Continue", until
    )


def wait_for_intensity(start: Start) -> Wait | None:
    """Wait where a job has a budget of emissions but they could not be counted."""
    text = start.books.unpriced
    return Wait(Reason.NO_INTENSITY, text, until=start.now + LOOK_FOR_NODES) if text else None


def back_off(start: Start) -> Wait | None:
    """Wait for the back-off after failures."""
    last = start.last
    if last is None or last.counted_against is None:
        return None
    due = backoff_until(parse_time(last.end_time), start.failures[last.counted_against], now=start.now)
    if due is None or start.now >= due:
        return None
    text = f"the next attempt starts at {format_time(due)}, after {sum(start.failures.values())} failures"
    return Wait(Reason.BACKING_OFF, text, until=due)


GATES: tuple[Gate, ...] = (
    wait_while_suspended,
    fail_over_deadline,
    fail_over_limit,
    wait_or_fail_for_budget,
    wait_for_reports,
    wait_for_old_pods,
    wait_for_readings,
    wait_for_intensity,
    back_off,
)


def find_closed_gate(start: Start, gates: tuple[Gate, ...] = GATES) -> Wait | Fail | None:
    """The answer of the first closed gate; None where all are open."""
    return next((outcome for gate in gates if (outcome := gate(start)) is not None), None)


def count_job_gpus(spec: GreenTrainingJobSpec, resources: GpuResources) -> int:
    """GPUs that all replicas of a job need together."""
    return sum(
        r.replicas * count_gpus(r.template.get("spec") or {}, resources)
        for _, r in spec.tf_replica_specs.roles()
    )
