"""Times as the API server writes them."""

from __future__ import annotations

from datetime import datetime, timedelta

from greentrain import quantities

CLOCK_WRONG = timedelta(hours=1)
"""By how much a node's clock may be wrong. Further ahead of the operator's, or further before a pod was made, no reading of it
and no time in its status can be."""


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time as the API server writes it; None for none, and for one that cannot be read."""
    return quantities.parse_time(text) if text else None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes metav1.Time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
