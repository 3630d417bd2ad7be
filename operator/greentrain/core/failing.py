"""What follows where passes over a job fail: it is unattended, and after two failures in a row its status reports it.

The operator names unattended jobs in its Lease, and agents enforce their budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from greentrain.api.conditions import MESSAGE_MAX, Type
from greentrain.api.reasons import Reason
from greentrain.core.seen.times import format_time

FAILURES_BEFORE_STALLED = 2
"""One failure may be chance; after two in a row the job is stalled."""

FAILURES_BETWEEN_WORDS = 20
"""After so many more failures in a row the condition Stalled is written again, in case it could not be stored."""


def is_stalled(failures: int) -> bool:
    """Whether a job with so many failures in a row is stalled."""
    return failures >= FAILURES_BEFORE_STALLED


def must_report(failures: int) -> bool:
    """Whether the condition Stalled must be stored after so many failures in a row."""
    return failures == FAILURES_BEFORE_STALLED or (
        is_stalled(failures) and failures % FAILURES_BETWEEN_WORDS == 0
    )


def build_stalled(
    known: Sequence[Mapping[str, Any]], reason: Reason, message: str, *, generation: int, now: datetime
) -> dict[str, Any] | None:
    """The patch of a stored status that reports a job as stalled, and nothing else; None where it does so already.

    `known` are the stored conditions: in a status that cannot be read the other conditions do not change.
    """
    before: Mapping[str, Any] = next((c for c in known if c.get("type") == Type.STALLED), {})
    if (before.get("status"), before.get("reason")) == ("True", str(reason)):
        return None
    condition = {
        "type": Type.STALLED.value,
        "status": "True",
        "reason": reason.value,
        "message": message[:MESSAGE_MAX],
        "observedGeneration": generation,
        "lastTransitionTime": format_time(now),
    }
    others = [c for c in known if c.get("type") != Type.STALLED]
    changed: dict[str, Any] = {
        "conditions": [*others, condition],
        "display": {"reason": reason.value},
    }
    if reason.about.phase is not None:
        changed["phase"] = reason.about.phase.value
    return changed
