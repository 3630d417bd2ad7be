"""The only place where quantities are converted and printed.

Inside, energy is a whole number of millijoules (NVML's unit) or joules and power of milliwatts, so that sums are exact;
people read kilowatt-hours. 1 Wh = 3,600 J (BIPM, The International System of Units, 9th edition, table 8 gives the hour).
"""

from __future__ import annotations

from datetime import UTC, datetime

MILLIJOULES_PER_JOULE = 1000
JOULES_PER_WATT_HOUR = 3600


def to_joules(millijoules: int) -> int:
    """Whole joules of an amount that only grows: what is left over shows up with the next ones."""
    return millijoules // MILLIJOULES_PER_JOULE


def format_energy(joules: int) -> str:
    """Energy for people: joules below one watt-hour, else four digits of Wh, kWh or MWh."""
    if joules < JOULES_PER_WATT_HOUR:
        return f"{joules}J"
    amount, unit = joules / JOULES_PER_WATT_HOUR, "Wh"
    for larger in ("kWh", "MWh", "GWh"):
        if amount < 999.95:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g}{unit}"


def format_unix_time(seconds: float) -> str:
    """A Unix time as the API server writes metav1.Time: RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
