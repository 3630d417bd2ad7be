"""The operator's log of a job: a line for each decision that its status shows, and no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from greentrain.api.reasons import REASONS, Reasons, Severity
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.status.events import WAITING, find_changes


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a status shows that the previous one did not: one log line."""

    decision: str
    reason: str
    message: str
    level: int = logging.INFO


def find_log_lines(
    old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, reasons: Reasons = REASONS
) -> Iterator[LogLine]:
    """The decisions a new status shows, from the conditions that changed."""
    for change in find_changes(old, new, reasons):
        if change.decision:
            # What a job waits for is its user's to fix, and its event names it.
            bad = change.severity is Severity.WARNING and change.decision != WAITING
            level = logging.WARNING if bad else logging.INFO
            yield LogLine(change.decision, change.condition.reason, change.condition.message, level)
