"""Quantities with a unit: their types, and the only place where they are parsed, printed and converted.

Inside, energy is a whole number of millijoules (NVML's unit) or joules, power of milliwatts, emissions of micrograms of
CO2 equivalent and intensity of milligrams of it per kilowatt-hour, so that sums are exact; people read kilowatt-hours and
kilograms. 1 Wh = 3,600 J (BIPM, The International System of Units, 9th edition, table 8 gives the hour).

The types are plain numbers at run time. For mypy a sum of two of one type is an `int` again: `add` and `subtract` keep the
type and refuse two units, and what is computed otherwise takes its type by name. They are whole numbers: a mean, a share or
an error is a `float` and no amount. Seconds and percents have no type: what stands beside them has one, so they cannot be
exchanged with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import NewType, TypeVar, cast

Joules = NewType("Joules", int)
Millijoules = NewType("Millijoules", int)
Microjoules = NewType("Microjoules", int)
"""The unit of RAPL's counters."""
Microwatts = NewType("Microwatts", int)
"""The unit of RAPL's power limits."""
Milliwatts = NewType("Milliwatts", int)
Micrograms = NewType("Micrograms", int)
"""Of CO2 equivalent."""
Intensity = NewType("Intensity", int)
"""Milligrams of CO2 equivalent per kilowatt-hour; `carbon.intensity` has the value with its source and time."""
Thousandths = NewType("Thousandths", int)
"""Of a ratio that is 1 or more, such as a power usage effectiveness."""
Milliseconds = NewType("Milliseconds", int)
Microseconds = NewType("Microseconds", int)
Nanoseconds = NewType("Nanoseconds", int)

MILLIJOULES_PER_JOULE = 1000
JOULES_PER_WATT_HOUR = 3600
JOULES_PER_KILOWATT_HOUR = 3_600_000
MILLIWATTS_PER_WATT = 1000
MICROJOULES_PER_MILLIJOULE = 1000
MICROWATTS_PER_MILLIWATT = 1000
MICROGRAMS_PER_GRAM = 1_000_000
MICROGRAMS_PER_MILLIGRAM = 1000
MILLIGRAMS_PER_GRAM = 1000
BYTES_PER_MEGABYTE = 1_000_000
MILLISECONDS_PER_SECOND = 1000
MICROSECONDS_PER_SECOND = 1_000_000
NANOSECONDS_PER_SECOND = 1_000_000_000
SECONDS_PER_MINUTE = 60
SECONDS_PER_DAY = 86_400
SECONDS_PER_YEAR = 365 * SECONDS_PER_DAY
"""As the Software Carbon Intensity specification counts a lifespan (1.1.0, "Embodied emissions")."""

POWER_CAP_PATTERN = (
    r"(100|[1-9][0-9]?)%"
    r"|([1-9][0-9]{0,3}(\.[0-9]{1,3})?|10000)W"
    r"|([1-9](\.[0-9]{1,3})?|10|0\.([1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9]))kW"
)
"""A power cap as people write it, from 1 W to 10 kW, which no GPU comes near; in RE2's syntax too, for the server's rule."""

POWER_CAP_FORM = (
    "watts from 1W to 10kW, such as 250W or 0.3kW, or a share of the GPU's default limit, such as 70%"
)

_NUMBER = r"[0-9]{1,12}(\.[0-9]{1,6})?"

ENERGY_PATTERN = _NUMBER + r"(J|kJ|MJ|GJ|TJ|Wh|kWh|MWh|GWh)"
"""An amount of energy as people write it; in RE2's syntax too."""

MOST_JOULES = Joules(360_000_000_000_000)
"""100 GWh, more than any training run has used."""

ENERGY_FORM = "energy from 1J to 100GWh, such as 500Wh, 5kWh, 1.5MWh or 18MJ"

EMISSIONS_PATTERN = _NUMBER + r"(gCO2e|kgCO2e|tCO2e)"
"""An amount of emissions as people write it; in RE2's syntax too."""

MOST_MICROGRAMS = Micrograms(100_000_000_000 * MICROGRAMS_PER_GRAM)
"""100,000 t, the same energy from the dirtiest of grids."""

EMISSIONS_FORM = "emissions from 0.001gCO2e to 100000tCO2e, such as 800gCO2e, 2kgCO2e or 1.2tCO2e"

INTENSITY_PATTERN = _NUMBER + r"gCO2e/kWh"

MOST_INTENSITY = Intensity(5_000_000)
"""5,000 gCO2e/kWh in milligrams: several times that of lignite."""

INTENSITY_FORM = "an intensity from 0gCO2e/kWh to 5000gCO2e/kWh, such as 200gCO2e/kWh"

PUE_PATTERN = r"[0-9]{1,2}(\.[0-9]{1,3})?"

PUE_FORM = "power usage effectiveness, a number from 1.0 to 5.0 such as 1.2"

THOUSANDTHS = Thousandths(1000)
"""The ratio 1."""

_JOULES = {
    "J": 1,
    "kJ": 10**3,
    "MJ": 10**6,
    "GJ": 10**9,
    "TJ": 10**12,
    "Wh": JOULES_PER_WATT_HOUR,
    "kWh": JOULES_PER_WATT_HOUR * 10**3,
    "MWh": JOULES_PER_WATT_HOUR * 10**6,
    "GWh": JOULES_PER_WATT_HOUR * 10**9,
}
_MICROGRAMS = {
    "gCO2e": MICROGRAMS_PER_GRAM,
    "kgCO2e": MICROGRAMS_PER_GRAM * 10**3,
    "tCO2e": MICROGRAMS_PER_GRAM * 10**6,
}


@dataclass(frozen=True, slots=True)
class PowerCap:
    """A GPU power limit as it is asked for: an amount, or a share of each GPU's default limit. At most one of the two is set."""

    milliwatts: Milliwatts | None = None
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
    return PowerCap(milliwatts=Milliwatts(int(watts * MILLIWATTS_PER_WATT)))


def format_power(milliwatts: Milliwatts) -> str:
    """Power in watts, as it can be asked for: nothing is rounded."""
    whole, rest = divmod(milliwatts, MILLIWATTS_PER_WATT)
    return f"{whole}W" if not rest else f"{whole}.{rest:03d}".rstrip("0") + "W"


Amount = TypeVar("Amount", bound=int)


def add(*amounts: Amount) -> Amount:
    """The sum of amounts of one unit, which is of that unit; mypy refuses two units where one is expected."""
    return cast("Amount", sum(amounts))


def add_up(amounts: Iterable[Amount]) -> Amount:
    """The same of however many."""
    return cast("Amount", sum(amounts))


def subtract(amount: Amount, other: Amount) -> Amount:
    """The difference of two amounts of one unit, which is of that unit."""
    return cast("Amount", amount - other)


def typed(unit: Callable[[int], Amount], amount: int | None) -> Amount | None:
    """A plain number of an object of the API server with its unit; None where there is none."""
    return None if amount is None else unit(amount)


def to_whole_watts(milliwatts: Milliwatts) -> Milliwatts:
    """The same, rounded to a whole watt: what a card draws changes by more from one moment to the next."""
    return Milliwatts(round(milliwatts / MILLIWATTS_PER_WATT) * MILLIWATTS_PER_WATT)


def _amount(text: str, pattern: str, units: dict[str, int]) -> int | None:
    """A number and one of these units, as a whole amount of the smallest; None where it is not that."""
    if re.fullmatch(pattern, text, re.ASCII) is None:
        return None
    unit = max((u for u in units if text.endswith(u)), key=len)
    return int(Decimal(text.removesuffix(unit)) * units[unit])


def parse_energy(text: str) -> Joules:
    """Read `500Wh`, `5kWh`, `1.5MWh` or `18MJ`: whole joules, what is left over cut off.

    Raises:
        ValueError: it is none of these, or not from 1 J to 100 GWh; the text says what would be right.
    """
    joules = _amount(text, ENERGY_PATTERN, _JOULES)
    if joules is None or not 1 <= joules <= MOST_JOULES:
        raise ValueError(f"write {ENERGY_FORM}")
    return Joules(joules)


def parse_emissions(text: str) -> Micrograms:
    """Read `800gCO2e`, `2kgCO2e` or `1.2tCO2e`: whole micrograms.

    Raises:
        ValueError: it is none of these, or not from 1 mg to 100,000 t; the text says what would be right.
    """
    micrograms = _amount(text, EMISSIONS_PATTERN, _MICROGRAMS)
    if micrograms is None or not MICROGRAMS_PER_MILLIGRAM <= micrograms <= MOST_MICROGRAMS:
        raise ValueError(f"write {EMISSIONS_FORM}")
    return Micrograms(micrograms)


def parse_intensity(text: str) -> Intensity:
    """Read `200gCO2e/kWh`: whole milligrams per kilowatt-hour.

    Raises:
        ValueError: it is not that, or not from 0 to 5,000 g/kWh; the text says what would be right.
    """
    milligrams = _amount(text, INTENSITY_PATTERN, {"gCO2e/kWh": MILLIGRAMS_PER_GRAM})
    if milligrams is None or milligrams > MOST_INTENSITY:
        raise ValueError(f"write {INTENSITY_FORM}")
    return Intensity(milligrams)


def parse_pue(text: str) -> Thousandths:
    """Read a power usage effectiveness (ISO/IEC 30134-2: a facility's energy over that of its IT) in thousandths.

    Raises:
        ValueError: it is no number, or not from 1.0 to 5.0; the text says what would be right.
    """
    known = re.fullmatch(PUE_PATTERN, text, re.ASCII) is not None
    thousandths = int(Decimal(text) * THOUSANDTHS) if known else 0
    if not THOUSANDTHS <= thousandths <= 5 * THOUSANDTHS:
        raise ValueError(f"write {PUE_FORM}")
    return Thousandths(thousandths)


def format_pue(thousandths: Thousandths) -> str:
    """A power usage effectiveness as it can be written."""
    return f"{thousandths / THOUSANDTHS:.4g}"


def format_emissions(micrograms: Micrograms) -> str:
    """Emissions to read: four digits of mg, g, kg or t of CO2 equivalent."""
    amount, unit = micrograms / 1000, "mg"
    for larger in ("g", "kg", "t"):
        if amount < 999.95:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g}{unit}" if amount < 9999.5 else f"{amount:.0f}{unit}"


def format_intensity(intensity: Intensity) -> str:
    """Milligrams per kilowatt-hour in grams, as they can be written."""
    return f"{intensity / MILLIGRAMS_PER_GRAM:.6g}gCO2e/kWh"


def to_joules(millijoules: Millijoules) -> Joules:
    """Whole joules of an amount that only grows: what is left over shows up with the next ones."""
    return Joules(millijoules // MILLIJOULES_PER_JOULE)


def from_joules(joules: Joules) -> Millijoules:
    """Millijoules of so many joules."""
    return Millijoules(joules * MILLIJOULES_PER_JOULE)


def in_joules(millijoules: Millijoules) -> float:
    """Joules, not rounded: for metrics, whose numbers are floats."""
    return millijoules / MILLIJOULES_PER_JOULE


def in_watts(milliwatts: Milliwatts) -> float:
    """Watts, not rounded: for metrics."""
    return milliwatts / MILLIWATTS_PER_WATT


def to_joules_above(millijoules: float) -> Joules:
    """Whole joules that are not less: of an error."""
    return Joules(ceil(millijoules / MILLIJOULES_PER_JOULE))


def energy_of(milliwatts: Milliwatts, seconds: float) -> Joules:
    """Whole joules of so much power over so long, rounded up."""
    return Joules(ceil(milliwatts * seconds / MILLIJOULES_PER_JOULE))


def time_of(joules: Joules, milliwatts: Milliwatts) -> int:
    """Whole seconds for which so much energy lasts at a power above zero, rounded up."""
    return -(-joules * MILLIJOULES_PER_JOULE // milliwatts)


def to_millijoules(microjoules: Microjoules) -> Millijoules:
    """Whole millijoules of RAPL's microjoules; as of `to_joules`, the rest shows up later."""
    return Millijoules(microjoules // MICROJOULES_PER_MILLIJOULE)


def from_microwatts(microwatts: Microwatts) -> Milliwatts:
    """Whole milliwatts of the kernel's microwatts."""
    return Milliwatts(microwatts // MICROWATTS_PER_MILLIWATT)


def in_grams(micrograms: Micrograms) -> float:
    """Grams, not rounded: for metrics."""
    return micrograms / MICROGRAMS_PER_GRAM


def in_whole_grams(micrograms: Micrograms) -> int:
    """Whole grams, rounded half to even."""
    return round(micrograms / MICROGRAMS_PER_GRAM)


def from_grams(grams: int) -> Micrograms:
    """Micrograms of so many grams."""
    return Micrograms(grams * MICROGRAMS_PER_GRAM)


def to_intensity(grams: Decimal) -> Decimal:
    """Milligrams per kilowatt-hour of grams, exact."""
    return grams * MILLIGRAMS_PER_GRAM


def in_grams_per_kilowatt_hour(intensity: Intensity) -> float:
    """Grams per kilowatt-hour, not rounded: for metrics."""
    return intensity / MILLIGRAMS_PER_GRAM


def in_whole_grams_per_kilowatt_hour(intensity: Intensity) -> int:
    """Whole grams per kilowatt-hour, the rest cut off."""
    return intensity // MILLIGRAMS_PER_GRAM


def to_milliseconds(seconds: float) -> Milliseconds:
    """Whole milliseconds, the rest cut off."""
    return Milliseconds(int(seconds * MILLISECONDS_PER_SECOND))


def to_seconds(milliseconds: Milliseconds) -> int:
    """Whole seconds, the rest cut off."""
    return milliseconds // MILLISECONDS_PER_SECOND


def in_minutes(seconds: float) -> float:
    """Minutes, not rounded."""
    return seconds / SECONDS_PER_MINUTE


def from_nanoseconds(nanoseconds: Nanoseconds) -> float:
    """Seconds."""
    return nanoseconds / NANOSECONDS_PER_SECOND


def from_microseconds(microseconds: Microseconds) -> float:
    """Seconds."""
    return microseconds / MICROSECONDS_PER_SECOND


def from_years(years: int | Decimal) -> int:
    """Whole seconds of years of 365 days."""
    return int(years * SECONDS_PER_YEAR)


def format_size(size: int) -> str:
    """So many bytes in whole megabytes, the rest cut off."""
    return f"{size // BYTES_PER_MEGABYTE} MB"


def emit(energy: int | Fraction, pue: Thousandths) -> Fraction:
    """Micrograms, exact, of energy in joules × mg/kWh at a PUE in thousandths."""
    return Fraction(energy * pue * MICROGRAMS_PER_MILLIGRAM, THOUSANDTHS * JOULES_PER_KILOWATT_HOUR)


def allow(micrograms: Micrograms, pue: Thousandths, intensity: Intensity) -> Joules:
    """Whole joules that emit no more than this at a PUE in thousandths and an intensity above zero."""
    allowed = micrograms * THOUSANDTHS * JOULES_PER_KILOWATT_HOUR
    return Joules(allowed // (pue * intensity * MICROGRAMS_PER_MILLIGRAM))


def format_energy(joules: Joules) -> str:
    """Energy to read: joules below one watt-hour, else four digits of Wh, kWh or MWh."""
    if joules < JOULES_PER_WATT_HOUR:
        return f"{joules}J"
    amount, unit = joules / JOULES_PER_WATT_HOUR, "Wh"
    for larger in ("kWh", "MWh", "GWh"):
        if amount < 999.95:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g}{unit}"


EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)
"""Times that are read are brought between these. A kubelet or an agent may write any date from year 1 to 9999; whatever span
is added to one of these, or taken from it, the sum is a date again, and is written with four digits of its year."""


@lru_cache(maxsize=4096)
def parse_time(text: str) -> datetime | None:
    """The moment in UTC that an RFC 3339 text says, between `EARLIEST` and `LATEST`; None where it says none.

    A large job's pods have the same few thousand texts in all their entries: remembered, 20,000 of them take 2 ms and not 20.
    Without an offset the moment is not known. Python has no year 0 and no leap second.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return min(max(moment, EARLIEST), LATEST).astimezone(UTC)


def format_unix_time(seconds: float) -> str:
    """A Unix time as the API server writes metav1.Time: RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
