"""Emissions of the energy a job used: Σ joules × PUE × intensity at that time.

The energy comes in buckets of a quarter of an hour, the intensity in steps of its own, which need not match and may have gaps.
A bucket's joules spread evenly over its time. Each part is multiplied by the intensity valid then; a part without one is
reported as such. 1 kWh = 3,600,000 J; power usage effectiveness (ISO/IEC 30134-2) is a facility's energy over that of its IT
equipment, here in thousandths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite

from greentrain.carbon.intensity import UNDATED, Absent, Intensity, Lookup
from greentrain.quantities import THOUSANDTHS, Joules, Micrograms, Thousandths, add, add_up, emit, subtract

MOST_PERIODS = 10_000
"""Periods one bucket is divided into at most, so that a broken source costs its own answer and not the operator's time."""

KEPT_REASONS = 3
"""Reasons that are kept, the first ones of the alphabet: any fixed choice makes merging independent of the order."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Joules used evenly between two Unix times; of one moment where they are the same.

    Raises:
        ValueError: it ends before it begins, a time is not finite, or the energy is negative.
    """

    begin: float
    end: float
    joules: Joules

    def __post_init__(self) -> None:
        if not (isfinite(self.begin) and isfinite(self.end)) or self.end < self.begin:
            raise ValueError(f"a bucket from {self.begin} to {self.end} is no span of time")
        if self.joules < 0:
            raise ValueError(f"a bucket of {self.joules} J: energy used is not negative")


@dataclass(frozen=True, slots=True)
class SourceShare:
    """Energy that was priced with one source's values."""

    source: str
    joules: Joules
    """Of the devices: without PUE."""
    micrograms: Micrograms
    """Of CO2 equivalent, PUE included."""
    as_of: float = UNDATED
    """The latest Unix time its values were of (`Intensity.as_of`)."""


@dataclass(frozen=True, slots=True)
class Priced:
    """What energy emitted, by source, and for how much of it no intensity is known."""

    shares: tuple[SourceShare, ...] = ()
    """One for each source, in the order of their names."""
    without_joules: Joules = Joules(0)
    """Energy without an intensity: it is not in the emissions."""
    forecast_joules: Joules = Joules(0)
    """Energy in the shares that was priced with forecasts: values observed later may change its emissions."""
    reasons: tuple[str, ...] = ()
    """Why, in the order of the alphabet, the first few."""

    @property
    def joules(self) -> Joules:
        """All energy, priced or not."""
        return add(self.without_joules, *(s.joules for s in self.shares))

    @property
    def micrograms(self) -> Micrograms:
        """Emissions of what could be priced."""
        return add_up(s.micrograms for s in self.shares)

    @property
    def reason(self) -> str:
        """Why energy has no intensity, as a message; empty where all has one."""
        return "; ".join(self.reasons)


@dataclass(slots=True)
class _Sum:
    joules: Joules = Joules(0)
    weighted: Fraction = field(default_factory=Fraction)
    """Joules times milligrams per kilowatt-hour, exact."""
    as_of: float = UNDATED


def price(buckets: Iterable[Bucket], pue: Thousandths, at: Lookup) -> Priced:
    """Emissions of these buckets at a PUE in thousandths.

    Joules: within a bucket the whole joules up to each edge are cut off and subtracted, so that the parts add up to the
    bucket exactly. Micrograms: summed up by exact fractions from the uncut energy and rounded once per source (half to
    even). An interval's grams are, source by source, those of its parts to within 1 microgram for each split. The split
    may be between buckets or within one (where that leaves both parts whole joules).

    An answer that is not valid at the requested moment counts as none, for the rest of the bucket.

    Raises:
        ValueError: the PUE is below 1.0.
    """
    if pue < THOUSANDTHS:
        raise ValueError(f"a PUE of {pue} thousandths: a facility uses no less than its IT equipment")
    sums: dict[str, _Sum] = {}
    without, forecast, reasons = Joules(0), Joules(0), set[str]()
    parts = (part for bucket in buckets if bucket.joules for part in _divide(bucket, at))
    for part in parts:
        if isinstance(part.value, Absent):
            without = add(without, part.joules)
            reasons.add(part.value.reason)
            continue
        if part.value.is_forecast:
            forecast = add(forecast, part.joules)
        total = sums.setdefault(part.value.source, _Sum())
        total.joules = add(total.joules, part.joules)
        total.weighted += part.exact * part.value.milligrams
        total.as_of = max(total.as_of, part.value.as_of)
    shares = (
        SourceShare(s, t.joules, Micrograms(round(emit(t.weighted, pue))), t.as_of)
        for s, t in sorted(sums.items())
    )
    return Priced(tuple(shares), without, forecast, _first(reasons))


def merge(parts: Iterable[Priced]) -> Priced:
    """All of them as one; the order and the grouping make no difference."""
    shares: dict[str, SourceShare] = {}
    without, forecast, reasons = Joules(0), Joules(0), set[str]()
    for part in parts:
        without = add(without, part.without_joules)
        forecast = add(forecast, part.forecast_joules)
        reasons.update(part.reasons)
        for share in part.shares:
            known = shares.get(share.source)
            shares[share.source] = share if known is None else _add(known, share)
    return Priced(tuple(shares[s] for s in sorted(shares)), without, forecast, _first(reasons))


@dataclass(frozen=True, slots=True)
class _Part:
    value: Intensity | Absent
    joules: Joules
    exact: Fraction
    """Joules before they were cut to whole ones."""


def _divide(bucket: Bucket, at: Lookup) -> Iterator[_Part]:
    """The bucket's energy by the intensities valid meanwhile; the whole joules of the parts add up to the bucket's."""
    begin, shown = bucket.begin, Joules(0)
    length = Fraction(bucket.end) - Fraction(bucket.begin)
    reached = Fraction()
    for count in range(MOST_PERIODS + 1):
        value, end = _ask(at, begin, bucket.end, last=count == MOST_PERIODS)
        if end >= bucket.end:
            yield _Part(value, subtract(bucket.joules, shown), bucket.joules - reached)
            return
        up_to = bucket.joules * (Fraction(end) - Fraction(bucket.begin)) / length
        whole = Joules(int(up_to))
        yield _Part(value, subtract(whole, shown), up_to - reached)
        begin, shown, reached = end, whole, up_to


def _ask(at: Lookup, moment: float, limit: float, *, last: bool) -> tuple[Intensity | Absent, float]:
    """What was valid at a moment and until when; nothing until `limit` where the answer is of another time."""
    if last:
        return Absent(f"the source changes more than {MOST_PERIODS} times within one bucket"), limit
    value = at(moment)
    if value.covers(moment):
        return value, value.end
    what = f"source {value.source}" if isinstance(value, Intensity) else "a source"
    return Absent(f"{what} answered with a value of another time: report it to its maker"), limit


def _add(one: SourceShare, other: SourceShare) -> SourceShare:
    return SourceShare(
        one.source,
        add(one.joules, other.joules),
        add(one.micrograms, other.micrograms),
        max(one.as_of, other.as_of),
    )


def _first(reasons: set[str]) -> tuple[str, ...]:
    return tuple(sorted(reasons)[:KEPT_REASONS])
