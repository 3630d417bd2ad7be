"""Events and log lines, from the difference of two statuses: each is stored once.

How a condition's change is reported is a row of `_CHANGES`; where its reason decides, a row of `greentrain.api.reasons`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from greentrain.api.conditions import Type, find_condition
from greentrain.api.reasons import REASONS, UNLISTED, Reason, Reasons, Severity
from greentrain.api.status import Condition, GreenTrainingJobStatus
from greentrain.core.status.accounted import describe_account, was_accounted

ACCOUNTED = "Accounted"
"""The event's reason, and that of its line in the log, when the account of a finished job is closed."""

WAITING = "waiting"
"""The decision in the log for pods that are not ready, if the table of reasons marks the reason so."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event, stored once; its type is Normal or Warning."""

    type: Severity
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change between a job's previous status and its new one."""

    condition: Condition
    severity: Severity
    """The severity of its event and its log line."""
    event: str = ""
    """The event's reason; empty where there is no event."""
    decision: str = ""
    """The decision in the log; empty where there is no line."""


_CHANGES: dict[tuple[Type, str], tuple[Severity, str, str]] = {
    (Type.ADMITTED, "False"): (Severity.WARNING, "", "refused"),
    (Type.CREATED, "True"): (Severity.NORMAL, "Created", "started"),
    (Type.RUNNING, "True"): (Severity.NORMAL, "Running", "running"),
    (Type.RESTARTING, "True"): (Severity.WARNING, "Restarting", "restarted"),
    (Type.SUSPENDED, "True"): (Severity.NORMAL, "Suspended", "suspended"),
    (Type.BUDGET_EXHAUSTED, "True"): (Severity.WARNING, "BudgetExhausted", "exhausted"),
    (Type.SUCCEEDED, "True"): (Severity.NORMAL, "Succeeded", "succeeded"),
    (Type.FAILED, "True"): (Severity.WARNING, "Failed", "failed"),
    (Type.ENERGY_METERED, "True"): (Severity.NORMAL, "EnergyMetered", ""),
    (Type.POWER_CAPPED, "True"): (Severity.NORMAL, "PowerCapped", ""),
}
"""Severity, event and log decision of a condition that now has this status, whatever its reason; event "": its reason."""

_BY_REASON: dict[tuple[Type, str], tuple[Severity, str, str]] = {
    (Type.ADMITTED, Reason.APPLIES_AT_NEXT_ATTEMPT): (Severity.NORMAL, "", "deferred"),
    (Type.SUSPENDED, Reason.STOPPING_PODS): (Severity.NORMAL, "Suspending", "stopping"),
    (Type.SUSPENDED, Reason.RESUMED): (Severity.NORMAL, "Resumed", "resumed"),
    (Type.BUDGET_EXHAUSTED, Reason.BUDGET_WARNING): (Severity.WARNING, "", "warned"),
    (Type.BUDGET_EXHAUSTED, Reason.WILL_BE_EXHAUSTED): (Severity.WARNING, "", "warned"),
    (Type.ENERGY_METERED, Reason.READINGS_STOPPED): (Severity.WARNING, "", ""),
}
"""The same for a condition that now has this reason."""


def find_changes(
    old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, reasons: Reasons = REASONS
) -> Iterator[Change]:
    """The changes from an old status to a new one, in the order of its conditions."""
    for condition in new.conditions:
        before = find_condition(old.conditions, Type(condition.type))
        if before is not None and (before.status, before.reason) == (condition.status, condition.reason):
            # A refusal, attempt or failure with another message is reported again; progress is not.
            again = condition.type in (Type.ADMITTED, Type.CREATED, Type.RESTARTING) or (
                condition.reason == Reason.BUDGET_WARNING
            )
            if not again or before.message == condition.message:
                continue
        yield _classify(condition, reasons)


def _classify(condition: Condition, reasons: Reasons) -> Change:
    type_, reason = Type(condition.type), condition.reason
    found = _BY_REASON.get((type_, reason)) or _CHANGES.get((type_, condition.status))
    if found is not None:
        severity, event, decision = found
        return Change(condition, severity, event or reason, decision)
    about = reasons.get(reason, UNLISTED)
    if type_ is Type.PODS_READY and condition.status == "False" and about.waits:
        event = reason if about.severity is not Severity.SILENT else ""
        return Change(condition, about.severity, event, WAITING)
    if type_ is Type.POWER_CAPPED and about.severity is Severity.WARNING:
        return Change(condition, about.severity, "NotCapped")
    return Change(condition, Severity.SILENT)


def transition_events(
    old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, reasons: Reasons = REASONS, *, uid: str = ""
) -> tuple[Event, ...]:
    """The events for what changed between two statuses of the job with this UID."""
    changes = find_changes(old, new, reasons)
    events = [Event(c.severity, c.event, c.condition.message) for c in changes if c.event]
    more = (_throttling(old, new), _doubting(old, new), accounting(old, new, uid=uid))
    return (*events, *(event for event in more if event is not None))


def _doubting(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Event | None:
    """The event that a GPU's energy counter showed what cannot be, and on which node; None where none did."""
    if new.energy is None:
        return None
    before = {p.key: p.counter_faults for p in old.energy.pods} if old.energy is not None else {}
    doubted = [p for p in new.energy.pods if p.counter_faults > before.get(p.key, 0)]
    if not doubted:
        return None
    first, more = doubted[0], f" and of {len(doubted) - 1} other pods" if doubted[1:] else ""
    text = (
        f"an energy counter of pod {first.name}{more} showed what its GPU cannot have used: nothing of it counts, and that time "
        f"is estimated from the GPU's power (kubectl describe nodepower {first.node})"
    )
    return Event(Severity.WARNING, "CounterFault", text)


def _throttling(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Event | None:
    """The event that another cap was chosen to keep a budget, and why; None where none was."""
    before, now = old.projection, new.projection
    if before is None or now is None or before.percent is None or now.percent is None:
        return None
    if now.percent == before.percent:
        return None
    name = "Throttled" if now.percent < before.percent else "Unthrottled"
    return Event(Severity.NORMAL, name, f"power cap {before.percent}% → {now.percent}%: {now.message}")


def accounting(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, *, uid: str) -> Event | None:
    """The event that the account of a finished job is closed, with its figures; None where it was closed before, or is open.

    Its message is in the log too.
    """
    if new.energy is None or not new.energy.accounted or was_accounted(old.energy):
        return None
    return Event(Severity.NORMAL, ACCOUNTED, describe_account(new, uid=uid))
