"""Times as the API server writes them."""

from __future__ import annotations

from datetime import datetime, timedelta

from greentrain import quantities

CLOCK_WRONG = timedelta(hours=1)
"""By how much a node's clock may be wrong. This limits a pod's readings and the times in its status. A time that is further
ahead of the operator's clock, or further before the pod's creation, cannot be true."""


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time as the API server writes it; None where there is none, or it cannot be read."""
    return quantities.parse_time(text) if text else None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes metav1.Time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
