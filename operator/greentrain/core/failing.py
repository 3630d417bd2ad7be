"""What follows where passes over a job fail: it is unattended, and after two in a row its status says so.

Agents enforce the budget of an unattended job, which the operator names in its lease.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from greentrain.api.conditions import MESSAGE_MAX, Type
from greentrain.api.reasons import Reason
from greentrain.core.seen.times import format_time

FAILURES_BEFORE_STALLED = 2
"""Once is chance, twice is trouble."""

FAILURES_BETWEEN_WORDS = 20
"""How many failures in a row after which the condition Stalled is looked at again, in case it could not be stored."""


def is_stalled(failures: int) -> bool:
    """Whether so many failures in a row are trouble."""
    return failures >= FAILURES_BEFORE_STALLED


def must_report(failures: int) -> bool:
    """Whether the condition Stalled is to be stored after so many failures in a row."""
    return failures == FAILURES_BEFORE_STALLED or (
        is_stalled(failures) and failures % FAILURES_BETWEEN_WORDS == 0
    )


def build_stalled(
    known: Sequence[Mapping[str, Any]], reason: Reason, message: str, *, generation: int, now: datetime
) -> dict[str, Any] | None:
    """The change of a stored status that says that a job is stalled, nothing else; None where it says so already.

    `known` are its conditions as they are stored: of a status that cannot be read they stay as they are.
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
