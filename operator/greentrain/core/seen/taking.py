"""Takes from the sources what one pass may need: values for the zones, times and GPU models of its job, and nothing else.

A quarter of an hour gets its final price once it is over. So the values begin with the earliest quarter without one, four
days ago at most, and end after the hour that budgets read ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf

from greentrain.api.nodepower import BUCKET_SECONDS, PodEnergy
from greentrain.api.spec import MAX_ZONE_LENGTH, Basis
from greentrain.api.status import EnergyStatus
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.seen.intensities import LOOK_AHEAD_SECONDS, CarbonSource, Intensities, Place, Steps
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import parse_time

MOST_STEPS = 20_000
"""Most steps of one zone and basis: four days of 20 s. Of a source that changes more often, the later values are missing."""

BASES: tuple[Basis, ...] = ("Lifecycle", "Direct")


def with_intensities(seen: Snapshot, source: CarbonSource | None, *, now: datetime) -> Snapshot:
    """The snapshot with what its pass, at time `now`, may need for emissions; unchanged where no source is configured."""
    return seen if source is None else replace(seen, intensities=take_intensities(source, seen, now=now))


def take_intensities(source: CarbonSource, seen: Snapshot, *, now: datetime) -> Intensities:
    """What a pass over this snapshot at time `now` (with its offset) may need."""
    emissions, energy = seen.job.status.emissions, seen.job.status.energy
    asked = _read_section(seen.job.spec)
    named = asked.get("zone")
    wrong = isinstance(named, str) and len(named) <= MAX_ZONE_LENGTH and not source.is_known(named)
    labels = dict.fromkeys([("", ""), *((r.region, r.zone) for r in seen.reports)])
    places = tuple(Place(*label, source.zone_of(*label)) for label in labels)
    zones = dict.fromkeys(place.grid_zone for place in places)
    if isinstance(named, str) and len(named) <= MAX_ZONE_LENGTH and not wrong:
        zones.setdefault(named)
    if emissions is not None and emissions.zone:
        zones.setdefault(emissions.zone)
    bases = {asked.get("basis"), source.basis, emissions.basis if emissions is not None else None}
    entries = [entry for report in seen.reports for entry in report.pods]
    moment = now.astimezone(UTC).timestamp()
    spans = [(e.key, r.kept.get("span", e.key, (e,), _read_span)) for r in seen.reports for e in r.pods]
    since = min((moment, *_find_earliest(spans, energy)))
    until = max((moment + LOOK_AHEAD_SECONDS, *(s.latest for _, s in spans)))
    return Intensities(
        places=places,
        steps=tuple(
            Steps(zone, basis, tuple(_walk(source, zone, basis, since, until)), since, until)
            for zone in zones
            if zone is not None
            for basis in BASES
            if basis in bases
        ),
        unknown_zones={str(named): source.suggest(str(named))} if wrong else {},
        figures={model: source.embodied(model) for model in _find_models(seen, entries)},
        lifetime_seconds=source.lifetime_seconds,
        pue=source.pue,
        basis=source.basis,
        include_embodied=source.include_embodied,
    )


def _read_section(spec: Mapping[str, object]) -> Mapping[str, object]:
    """The texts of `spec.emissions`, unparsed."""
    section = spec.get("emissions")
    return {k: v for k, v in section.items() if isinstance(v, str)} if isinstance(section, Mapping) else {}


@dataclass(frozen=True, slots=True)
class _Span:
    """The time that an entry covers, in Unix seconds."""

    start: float
    """The start of its first bucket; infinity where it has none."""
    last: float
    """Its last reading; infinity where it has none."""
    latest: float
    """The latest time for which it may be priced; minus infinity where there is none."""


def _read_span(entry: PodEnergy) -> _Span:
    start, last = _moment(entry.buckets.start), _moment(entry.last_reading)
    ends = -inf if start is None else start + len(entry.buckets.joules) * BUCKET_SECONDS
    latest = max(ends, -inf if last is None else last)
    return _Span(inf if start is None else start, inf if last is None else last, latest)


def _find_earliest(spans: Iterable[tuple[str, _Span]], energy: EnergyStatus | None) -> Iterator[float]:
    """The beginnings of what does not have its final price yet."""
    priced = {p.key: p.priced_until for p in energy.pods} if energy is not None else {}
    moments = {text: _moment(text) for text in set(priced.values())}
    for key, span in spans:
        done = moments[priced[key]] if key in priced else None
        yield max(span.start, (done or -inf) - BUCKET_SECONDS)
        yield span.last


def _find_models(seen: Snapshot, entries: Iterable[PodEnergy]) -> Iterator[str]:
    energy = seen.job.status.energy
    yield from seen.fleet.models
    yield from (t.model for entry in entries for t in entry.gpu_time)
    yield from (t.model for pod in (energy.pods if energy is not None else ()) for t in pod.gpu_time)


def _walk(
    source: CarbonSource, zone: str, basis: Basis, since: float, until: float
) -> Iterator[Intensity | Absent]:
    """The intensities from one Unix time to another (included), step by step."""
    at = since
    for _ in range(MOST_STEPS):
        found = source.at(zone, basis, at)
        if not found.covers(at):
            what = f"source {found.source}" if isinstance(found, Intensity) else "a source"
            reason = f"{what} answered with a value of another time: report it to its maker"
            found = Absent(reason, at, at + BUCKET_SECONDS)
        yield found
        if found.end > until:
            return
        at = found.end
    yield Absent(
        f"the intensity of {zone} changes more than {MOST_STEPS} times in the time to be counted", at
    )


def _moment(text: str | None) -> float | None:
    moment = parse_time(text)
    return None if moment is None else moment.timestamp()
