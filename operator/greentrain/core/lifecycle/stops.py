"""The reasons to stop an attempt under way, in their order.

Each is a pure function of a running attempt. It returns None where the attempt may go on, or a `Stop` with the reason and
with what follows by the present state. A stop that has begun is completed, also when its reason is gone meanwhile: pods are
being deleted. Every stop is carried out in the same way (`stopping.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from greentrain.api.reasons import Reason
from greentrain.api.spec import RunPolicy
from greentrain.api.status import AttemptStatus
from greentrain.core.books.books import Books
from greentrain.core.lifecycle.attempts import explain_deadline, find_deadline
from greentrain.core.lifecycle.gates import SUSPENSION, fail_for_budget, wait_for_budget, wait_while_unknown
from greentrain.core.lifecycle.outcomes import Fail, Restart, Stop, Wait
from greentrain.core.seen.nodes import SILENT_AFTER, attempt_of
from greentrain.core.seen.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt under way."""

    seen: Snapshot
    policy: RunPolicy
    """The run policy of the spec; where the spec is refused, the policy that was read separately."""
    attempt: AttemptStatus
    books: Books
    now: datetime

    def has_begun(self, reason: str) -> bool:
        """Whether a stop for this reason is under way."""
        return self.attempt.reason == reason

    def explain(self, reason: str, why: str) -> str:
        """Why it is stopped; for a stop under way, the recorded message."""
        return self.attempt.message or why if self.has_begun(reason) else why


StopRule = Callable[[Running], Stop | None]


def stop_for_suspension(running: Running) -> Stop | None:
    """Stop when spec.runPolicy.suspend is set."""
    reason = Reason.SUSPEND_REQUESTED
    if not running.policy.suspend and not running.has_begun(reason):
        return None
    return Stop(reason, "stopped because spec.runPolicy.suspend was set", SUSPENSION)


def stop_for_deadline(running: Running) -> Stop | None:
    """Stop when activeDeadlineSeconds is over; where it was extended during the stop, the job starts again."""
    reason = Reason.DEADLINE_EXCEEDED
    due = find_deadline(running.policy, running.seen.job.status, running.attempt)
    over = due is not None and running.now >= due
    if not over and not running.has_begun(reason):
        return None
    text = running.explain(reason, explain_deadline(running.policy))
    return Stop(reason, text, Fail(reason, text) if over else Restart(f"{text}; it was extended since"))


def stop_for_budget(running: Running) -> Stop | None:
    """Stop when a budget is spent, or would be by the time a stop has taken effect."""
    reason, books = Reason.BUDGET_EXHAUSTED, running.books
    return _keep_budget(running, reason, books.words, due=books.stopping is not None)


def stop_after_allowance(running: Running) -> Stop | None:
    """Stop after a node's agent has stopped a pod while the operator was silent."""
    pod = find_acted(running.seen, running.attempt)
    why = f"the agent of its node stopped pod {pod}: what it was allowed was spent while the operator was silent"
    return _keep_budget(running, Reason.ALLOWANCE_SPENT, why, due=pod is not None)


def stop_without_readings(running: Running) -> Stop | None:
    """Stop while the job's energy is not known, where its onUnknown does not let it go on."""
    books, why = running.books, ""
    if books.unread:
        first = books.unread[0]
        why = (
            f"the energy of pod {first.name} is not known: for {SILENT_AFTER.seconds} s node {first.node} has not reported it, or "
            f"could not read its GPUs (kubectl describe nodepower {first.node})"
        )
    return _keep_budget(running, Reason.READINGS_STOPPED, why or books.words, due=books.unknown_stops)


def _keep_budget(running: Running, reason: Reason, why: str, *, due: bool) -> Stop | None:
    if not due and not running.has_begun(reason):
        return None
    text = running.explain(reason, why or "stopped to keep its budget")
    then = _follow(running.books, running.now) or Restart(f"{text}; it may go on")
    return Stop(reason, text, then)


def _follow(books: Books, now: datetime) -> Wait | Fail | None:
    return fail_for_budget(books) or wait_for_budget(books) or wait_while_unknown(books, now)


STOPS: tuple[StopRule, ...] = (
    stop_for_suspension,
    stop_for_deadline,
    stop_for_budget,
    stop_after_allowance,
    stop_without_readings,
)


def find_stop(running: Running, stops: tuple[StopRule, ...] = STOPS) -> Stop | None:
    """The stop of an attempt, the one under way before any other; None where the attempt may go on."""
    found = [stop for rule in stops if (stop := rule(running)) is not None]
    return next((stop for stop in found if running.has_begun(stop.reason)), found[0] if found else None)


def find_acted(seen: Snapshot, attempt: AttemptStatus) -> str | None:
    """The name of a pod that its node's agent stopped because its allowance was spent while the operator was silent.

    An agent reports an eviction after it, so a pod counts too that is ending and was throttled in the last report.
    """
    going_on = {p.uid for p in seen.pods if not p.ended and not p.terminating}
    for report in seen.reports:
        for entry in report.pods:
            if entry.budget_action == "None" or attempt_of(entry.name) != attempt.number:
                continue
            if entry.budget_action == "Evicted" or entry.uid not in going_on:
                return entry.name
    return None
