"""The only place where quantities are converted and printed.

Inside, energy is a whole number of millijoules (NVML's unit) or joules and power of milliwatts, so that sums are exact;
people read kilowatt-hours. 1 Wh = 3,600 J (BIPM, The International System of Units, 9th edition, table 8 gives the hour).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

MILLIJOULES_PER_JOULE = 1000
JOULES_PER_WATT_HOUR = 3600
MILLIWATTS_PER_WATT = 1000

POWER_CAP_PATTERN = (
    r"(100|[1-9][0-9]?)%"
    r"|([1-9][0-9]{0,3}(\.[0-9]{1,3})?|10000)W"
    r"|([1-9](\.[0-9]{1,3})?|10|0\.([1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9]))kW"
)
"""A power cap as people write it, from 1 W to 10 kW, which no GPU comes near; in RE2's syntax too, for the server's rule."""

POWER_CAP_FORM = (
    "watts from 1W to 10kW, such as 250W or 0.3kW, or a share of the GPU's default limit, such as 70%"
)


@dataclass(frozen=True, slots=True)
class PowerCap:
    """A GPU power limit as it is asked for: an amount, or a share of each GPU's default limit. One of the two is set."""

    milliwatts: int | None = None
    percent: int | None = None

    def __str__(self) -> str:
        return f"{self.percent}%" if self.milliwatts is None else format_power(self.milliwatts)


def parse_power_cap(text: str) -> PowerCap:
    """Read `250W`, `0.3kW` or `70%`.

    Raises:
        ValueError: it is none of these; the text says what would be right.
    """
    if re.fullmatch(POWER_CAP_PATTERN, text, re.ASCII) is None:
        raise ValueError(f"write {POWER_CAP_FORM}")
    if text.endswith("%"):
        return PowerCap(percent=int(text[:-1]))
    watts = Decimal(text[:-2]) * 1000 if text.endswith("kW") else Decimal(text[:-1])
    return PowerCap(milliwatts=int(watts * MILLIWATTS_PER_WATT))


def format_power(milliwatts: int) -> str:
    """Power for people, in watts, as it can be asked for: nothing is rounded."""
    whole, rest = divmod(milliwatts, MILLIWATTS_PER_WATT)
    return f"{whole}W" if not rest else f"{whole}.{rest:03d}".rstrip("0") + "W"


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
