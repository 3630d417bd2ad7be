"""What the operator's log says of a job: a line for each decision its status shows, and no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from greentrain.api.conditions import Reason, Type
from greentrain.api.v1alpha1 import Condition, GreenTrainingJobStatus
from greentrain.core.status.events import changed_conditions


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a status says that the one before did not: one log line."""

    decision: str
    reason: str
    message: str
    level: int = logging.INFO


_DECISIONS: dict[tuple[str, str], str] = {
    (Type.ADMITTED, "False"): "refused",
    (Type.CREATED, "True"): "started",
    (Type.RUNNING, "True"): "running",
    (Type.RESTARTING, "True"): "restarted",
    (Type.SUSPENDED, "True"): "suspended",
    (Type.SUSPENDED, "False"): "stopping",
    (Type.SUCCEEDED, "True"): "succeeded",
    (Type.FAILED, "True"): "failed",
    (Type.PODS_READY, "False"): "waiting",
    (Type.BUDGET_EXHAUSTED, "True"): "exhausted",
}
_BAD = frozenset({"refused", "restarted", "failed", "exhausted", "warned"})
_WORTH_WAITING_FOR = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_UNAVAILABLE,
        Reason.CONTAINER_NOT_STARTED,
        Reason.CREATE_REFUSED,
        Reason.WAITING_FOR_OLD_PODS,
        Reason.BACKING_OFF,
    }
)
"""Pods that merely start or have ended are reported by other conditions."""


def find_log_lines(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> Iterator[LogLine]:
    """The decisions a new status shows, from the conditions that changed."""
    for condition in changed_conditions(old, new):
        decision = _decision(condition)
        if decision is not None:
            level = logging.WARNING if decision in _BAD else logging.INFO
            yield LogLine(decision, condition.reason, condition.message, level)


def _decision(condition: Condition) -> str | None:
    if condition.type == Type.ADMITTED and condition.reason == Reason.APPLIES_AT_NEXT_ATTEMPT:
        return "deferred"
    if condition.type == Type.SUSPENDED and condition.reason == Reason.RESUMED:
        return "resumed"
    if condition.reason in (Reason.BUDGET_WARNING, Reason.WILL_BE_EXHAUSTED):
        return "warned"
    if condition.type == Type.PODS_READY and condition.reason not in _WORTH_WAITING_FOR:
        return None
    return _DECISIONS.get((condition.type, condition.status))
