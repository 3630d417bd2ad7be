"""Events and log lines, from the difference of two statuses: each is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from greentrain.api.conditions import Reason, Type, find_condition
from greentrain.api.v1alpha1 import Condition, GreenTrainingJobStatus


class EventType(StrEnum):
    """Types core/v1 Events may have."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """An event, stored once."""

    type: EventType
    reason: str
    message: str


def changed_conditions(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Iterator[Condition]:
    """The conditions of a new status that say something the old one did not; events and log lines report them."""
    for condition in new.conditions:
        before = find_condition(old.conditions, Type(condition.type))
        if before is not None and (before.status, before.reason) == (condition.status, condition.reason):
            # A new refusal, attempt or failure in other words is reported again; progress is not.
            retold = condition.type in (Type.ADMITTED, Type.CREATED, Type.RESTARTING) or (
                condition.reason == Reason.BUDGET_WARNING
            )
            if not retold or before.message == condition.message:
                continue
        yield condition


def transition_events(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> tuple[Event, ...]:
    """The events that follow from the conditions that changed between two statuses."""
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
