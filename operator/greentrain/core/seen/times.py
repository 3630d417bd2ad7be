"""Times as the API server writes them."""

from __future__ import annotations

from datetime import datetime


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time as the API server writes it; None for none."""
    return datetime.fromisoformat(text) if text else None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes metav1.Time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
