"""The operator's log of a job: a line for each decision that its status shows, and no other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from greentrain.api.reasons import REASONS, Reasons, Severity
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.status.events import WAITING, accounting, find_changes


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a status shows that the previous one did not: one log line."""

    decision: str
    reason: str
    message: str
    level: int = logging.INFO


def find_log_lines(
    old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, reasons: Reasons = REASONS, *, uid: str = ""
) -> Iterator[LogLine]:
    """The decisions that a new status of the job with this UID shows, from what changed."""
    for change in find_changes(old, new, reasons):
        if change.decision:
            # What a job waits for is its user's to fix, and its event names it.
            bad = change.severity is Severity.WARNING and change.decision != WAITING
            level = logging.WARNING if bad else logging.INFO
            yield LogLine(change.decision, change.condition.reason, change.condition.message, level)
    account = accounting(old, new, uid=uid)
    if account is not None:
        yield LogLine("accounted", account.reason, account.message)
