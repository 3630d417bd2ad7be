"""Condition types of a GreenTrainingJob, and how one is set.

Types and reasons (`reasons.py`) are API: users `kubectl wait` on them and alert on them. Rules follow
kubernetes/community `api-conventions.md`: the list is keyed by type, `Unknown` where nothing is known,
and `lastTransitionTime` changes only when the status does.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from greentrain.api.runtime import clean_text
from greentrain.api.status import Condition

ConditionStatus = Literal["True", "False", "Unknown"]


class Type(StrEnum):
    """Condition types, in the order they are shown."""

    ADMITTED = "Admitted"
    CREATED = "Created"
    PODS_READY = "PodsReady"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    CHECKPOINTED = "Checkpointed"
    POWER_CAPPED = "PowerCapped"
    ENERGY_METERED = "EnergyMetered"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STALLED = "Stalled"


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, or None where it was never set."""
    return next((c for c in conditions if c.type == str(type_)), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition is True; a missing one is not."""
    found = find_condition(conditions, type_)
    return found is not None and found.status == "True"


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: str,
    generation: int,
) -> tuple[Condition, ...]:
    """Return the conditions with that one set, in the order of `Type`.

    An unchanged condition keeps its object, so that a reconcile that finds nothing new writes nothing.
    """
    message = clean_text(message)[:MESSAGE_MAX]  # it may quote a user's text
    old = find_condition(conditions, type_)
    if (
        old is not None
        and old.status == status
        and old.reason == str(reason)
        and old.message == message
        and old.observed_generation == generation
    ):
        return conditions
    same_status = old is not None and old.status == status
    new = Condition(
        type=str(type_),
        status=status,
        reason=str(reason),
        message=message,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old is not None and same_status else now,
    )
    order = {t.value: i for i, t in enumerate(Type)}
    rest = [c for c in conditions if c.type != str(type_)]
    return tuple(sorted([*rest, new], key=lambda c: order.get(c.type, len(order))))


MESSAGE_MAX = 2048
"""Longest condition message, in characters; the schema bounds it too."""
