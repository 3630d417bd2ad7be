"""A job's emissions from what its nodes reported: energy × PUE × intensity at that time, and its GPUs' embodied emissions.

Nodes report energy by quarter of an hour, for four days, so an operator that was away for hours loses nothing. A quarter is
priced once, when it is over and nothing can be added to it. That price is final, whatever a source reports later. What is
not over yet is priced again in each pass. Energy without an intensity of the job's basis is reported as such.

Only where a budget is checked, the highest intensity seen is used for missing values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil, inf

from greentrain import quantities
from greentrain.api.nodepower import BUCKET_SECONDS, PodEnergy
from greentrain.api.spec import MAX_ZONE_LENGTH, Basis, EmissionsSpec, Scope
from greentrain.api.status import (
    EmissionsShare,
    EmissionsStatus,
    EnergyStatus,
    FixedEmissions,
    GpuTimeStatus,
    PodEnergyStatus,
)
from greentrain.carbon.embodied import amortise
from greentrain.carbon.intensity import UNDATED, Absent, Intensity, Lookup
from greentrain.carbon.operational import Bucket, Priced, SourceShare, merge, price
from greentrain.carbon.sci import score
from greentrain.core.books.account import Account
from greentrain.core.seen.intensities import LOOK_AHEAD_SECONDS, Intensities
from greentrain.quantities import (
    THOUSANDTHS,
    Joules,
    Micrograms,
    Thousandths,
    emit,
    format_emissions,
    format_intensity,
    format_pue,
    format_unix_time,
    from_grams,
    parse_time,
    subtract,
    to_milliseconds,
)

WAIT_FOR_INTENSITY = timedelta(days=1)
"""How long a quarter of an hour waits for a source that has no value for it yet, or only a forecast. Nodes report it for four
days."""

NO_ZONE = (
    "the zone of its grid is not known: set spec.emissions.zone, or the cluster's (emissions.zone or emissions.zones in the "
    "chart's values)"
)


def includes_embodied(spec: EmissionsSpec, carbon: Intensities) -> bool:
    """Whether the embodied share counts: by the job's setting, else by the cluster's."""
    return carbon.include_embodied if spec.include_embodied is None else spec.include_embodied


def begin_emissions(spec: EmissionsSpec, carbon: Intensities) -> EmissionsStatus:
    """The emissions of a job before anything was counted."""
    return EmissionsStatus(basis=spec.basis or carbon.basis, include_embodied=includes_embodied(spec, carbon))


def find_zone_problem(spec: Mapping[str, object], carbon: Intensities | None) -> str | None:
    """What is wrong with `spec.emissions.zone`, as a message; `spec` is unparsed."""
    section = spec.get("emissions")
    zone = section.get("zone") if isinstance(section, Mapping) else None
    if carbon is None or not isinstance(zone, str) or len(zone) > MAX_ZONE_LENGTH or carbon.is_known(zone):
        return None  # a zone that is too long is refused for its length
    near = carbon.suggest(zone)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return f"'{zone}' is not valid: no source has values for it{hint} (docs/tasks/emissions.md says how to bring one)"


@dataclass(frozen=True, slots=True)
class Counted:
    """A job's emissions, and its energy with the part that has its final price."""

    emissions: EmissionsStatus | None
    energy: EnergyStatus | None


def count_emissions(account: Account, energy: EnergyStatus | None) -> Counted:
    """The job's emissions with what nodes have reported; `energy` is the job's energy after the fold."""
    stored, old = account.stored, account.stored_emissions
    carbon, spec = account.intensities, account.spec.emissions
    if carbon is None or (energy is None and old is None) or (old is not None and old.final):
        return Counted(old, energy)
    before = old or begin_emissions(spec, carbon)
    scope: Scope = energy.scope if energy is not None else before.boundary
    basis = before.basis
    pues = {a.number: a.pue_thousandths for a in account.attempts}
    default = account.default_pue
    progress = account.seen.job.status.progress
    reported = {e.key: (e, r) for r in account.reports for e in r.pods}
    fixed = _Fixed.of(before.fixed)
    _fix_gone(fixed, stored, energy, scope, carbon)
    open_: list[Priced] = []
    pods: list[PodEnergyStatus] = []
    zones: dict[str, None] = dict.fromkeys(before.zones)
    current_values: list[Intensity | Absent] = []
    lookups: dict[str | None, tuple[Lookup, Intensity | Absent]] = {}
    for pod in energy.pods if energy is not None else ():
        entry, report = reported.get(pod.key, (None, None))
        pue = pues.get(pod.attempt) or default
        if entry is None or report is None:
            left = pod.counted(scope) - pod.priced_joules
            if left > 0:
                open_.append(
                    Priced(without_joules=Joules(left), reasons=("its node does not say when it was used",))
                )
            pods.append(pod)
            continue
        zone = spec.zone or carbon.zone_of(report.region, report.zone)
        if zone is not None:
            zones.setdefault(zone)
        if zone not in lookups:
            at = _lookup(carbon, zone, basis)
            lookups[zone] = (at, at(account.now.timestamp()))
        at, value_now = lookups[zone]
        # The intensities that it was priced with are read again: a source may have other values now.
        found = report.kept.get(
            ("priced", zone, basis),
            pod.key,
            (pod, entry, scope, pue),
            partial(_price_pod, at=at),
            holds=_is_same(at),
        )
        if found.fixed:
            fixed.priced = merge((fixed.priced, *found.fixed))
        pods.append(found.pod)
        open_.append(found.rest)
        if not entry.closed:
            current_values.append(value_now)
    if not current_values:
        zone = spec.zone or carbon.zone_of("", "")
        current_values = [_lookup(carbon, zone, basis)(account.now.timestamp())] if zone is not None else []
    held = max(
        (h for h in current_values if isinstance(h, Intensity)), key=lambda h: h.milligrams, default=None
    )
    if energy is not None and tuple(pods) != energy.pods:
        energy = energy.model_copy(update={"pods": tuple(pods)})
    includes = includes_embodied(spec, carbon)
    emissions = _sum_up(
        fixed,
        merge((fixed.priced, *open_)),
        _embody(((t.model, t.seconds) for p in pods for t in p.gpu_time), carbon) if includes else None,
        before.model_copy(
            update={
                "boundary": scope,
                "zones": tuple(zones)[:64],
                "zone": spec.zone or "",
                "include_embodied": includes,
                "pue": "" if default == THOUSANDTHS else format_pue(default),
            }
        ),
        held,
        energy,
        steps=progress.step if progress is not None else None,
    )
    return Counted(emissions, energy)


def _lookup(carbon: Intensities, zone: str | None, basis: Basis) -> Lookup:
    if zone is None:
        return lambda _: Absent(NO_ZONE)
    known = zone
    return lambda moment: carbon.at(known, basis, moment)


@dataclass(slots=True)
class _Fixed:
    """The final sums, as they grow in one pass."""

    priced: Priced
    embodied: _Embodied

    @classmethod
    def of(cls, known: FixedEmissions) -> _Fixed:
        shares = tuple(
            SourceShare(s.source, Joules(s.joules), Micrograms(s.micrograms), _moment(s.as_of))
            for s in known.shares
        )
        embodied = _Embodied(
            known.embodied_micrograms,
            known.embodied_low_micrograms,
            known.embodied_high_micrograms,
            known.embodied_unknown_seconds,
        )
        return cls(Priced(shares, Joules(known.without_joules)), embodied)


@dataclass(frozen=True, slots=True)
class _Embodied:
    """Micrograms by the typical, lowest and highest figures, and seconds on GPUs without a figure."""

    typical: int = 0
    low: int = 0
    high: int = 0
    unknown_seconds: int = 0

    def plus(self, other: _Embodied) -> _Embodied:
        return _Embodied(
            self.typical + other.typical,
            self.low + other.low,
            self.high + other.high,
            self.unknown_seconds + other.unknown_seconds,
        )


def _embody(times: Iterable[tuple[str, int]], carbon: Intensities) -> _Embodied:
    """The embodied emissions of these times: GPU model and seconds each."""
    seconds: dict[str, int] = {}
    for model, amount in times:
        seconds[model] = seconds.get(model, 0) + amount
    total = _Embodied()
    for model, amount in seconds.items():
        known = carbon.embodied(model)
        if known is None:
            total = total.plus(_Embodied(unknown_seconds=amount))
            continue
        shares = (
            amortise(from_grams(grams), to_milliseconds(amount), carbon.lifetime_seconds)
            for grams in (known.typical, known.low, known.high)
        )
        total = total.plus(_Embodied(*shares))
    return total


def embodied_of(
    emissions: EmissionsStatus, carbon: Intensities | None, models: Iterable[str], gpu_seconds: int
) -> Micrograms:
    """The embodied share of so many future GPU-seconds, by the GPU model with the highest figure.

    0 where the share does not count, or where no model has a figure: then none will be counted later either.
    """
    if carbon is None or not emissions.include_embodied:
        return Micrograms(0)
    known = (figure.typical for figure in map(carbon.embodied, models) if figure is not None)
    grams = max(known, default=0)
    return amortise(from_grams(grams), to_milliseconds(gpu_seconds), carbon.lifetime_seconds)


def _fix_gone(
    fixed: _Fixed, stored: EnergyStatus | None, energy: EnergyStatus | None, scope: Scope, carbon: Intensities
) -> None:
    """Fix the sums of pods that the fold has just removed from the list: no report will show when the rest was used."""
    there = {p.key for p in energy.pods} if energy is not None else set()
    for pod in stored.pods if stored is not None else ():
        if pod.key in there:
            continue
        left = pod.counted(scope) - pod.priced_joules
        if left > 0:
            fixed.priced = merge((fixed.priced, Priced(without_joules=Joules(left))))
        fixed.embodied = fixed.embodied.plus(_embody(((t.model, t.seconds) for t in pod.gpu_time), carbon))


@dataclass(frozen=True, slots=True)
class _PricedPod:
    """A pod's energy as it is priced at this moment."""

    pod: PodEnergyStatus
    """With the part that has its final price by now."""
    fixed: tuple[Priced, ...]
    """The final prices that were added."""
    rest: Priced
    asked: tuple[tuple[float, Intensity | Absent], ...]
    """The moments for which the intensity was read, and its value."""


def _is_same(at: Lookup) -> Callable[[_PricedPod], bool]:
    """Whether the intensities that a pod was priced with are still the same."""
    return lambda found: all(at(moment) == held for moment, held in found.asked)


def _price_pod(
    pod: PodEnergyStatus, entry: PodEnergy, scope: Scope, pue: Thousandths, *, at: Lookup
) -> _PricedPod:
    """The part of a pod's energy that has its final price by now, and the present price of the rest."""
    asked: dict[float, Intensity | Absent] = {}

    def ask(moment: float) -> Intensity | Absent:
        asked[moment] = at(moment)
        return asked[moment]

    last = _moment(entry.last_reading)
    until = _moment(pod.priced_until)
    pending = [b for b in _buckets(entry, scope, until) if b.begin + BUCKET_SECONDS > until]
    fixed: list[Priced] = []
    for bucket in pending:
        end = bucket.begin + BUCKET_SECONDS
        if not entry.closed and end > last:
            break
        priced = price((bucket,), pue, ask)
        # A forecast is not the final price while an observed value may still come.
        waits = (priced.without_joules or priced.forecast_joules) and not entry.closed
        if waits and last - end < WAIT_FOR_INTENSITY.total_seconds():
            break
        fixed.append(priced)
        until = end
    done, rest = sum(b.joules for b in pending[: len(fixed)]), pending[len(fixed) :]
    odd = pod.counted(scope) - pod.priced_joules - sum(b.joules for b in pending)
    odds = _price_odd(odd, entry, scope, pue, ask, last)
    if entry.closed:
        fixed.append(odds)
        done, odds = Joules(done + odds.joules), Priced()
    gpu_time = tuple(GpuTimeStatus(model=t.model, seconds=t.seconds) for t in entry.gpu_time)
    further = pod.model_copy(
        update={
            "priced_joules": pod.priced_joules + done,
            "priced_until": None if until == -inf else format_unix_time(until),
            "gpu_time": gpu_time or pod.gpu_time,
        }
    )
    remaining = merge((odds, price(rest, pue, ask)))
    return _PricedPod(pod if further == pod else further, tuple(fixed), remaining, tuple(asked.items()))


def _price_odd(odd: int, entry: PodEnergy, scope: Scope, pue: Thousandths, at: Lookup, last: float) -> Priced:
    """Energy that is in no reported bucket: it is older, or known from a journal that was lost since."""
    if odd <= 0:
        return Priced()
    earlier = entry.buckets.earlier_joules
    if scope == "GPU":
        earlier = subtract(earlier, entry.buckets.earlier_host_joules)
    old = min(odd, max(0, earlier)) if earlier else 0
    without = Priced(
        without_joules=Joules(old),
        reasons=("it was used more than four days before it was counted",) if old else (),
    )
    if odd == old or last == -inf:
        return merge((without, Priced(without_joules=Joules(odd - old))))
    return merge((without, price((Bucket(last, last, Joules(odd - old)),), pue, at)))


def _buckets(entry: PodEnergy, scope: Scope, until: float) -> Iterator[Bucket]:
    """What the pod used by quarter of an hour, each cut to the time between its first and its last reading.

    Quarters that are over well before `until` are left out: four days have 384, and all but the last have their price.
    """
    start = _moment(entry.buckets.start)
    if start == -inf:
        return
    first, last = _moment(entry.first_reading), _moment(entry.last_reading)
    host = entry.buckets.host_joules
    # A bucket that is cut begins up to a quarter of an hour later than its index shows.
    first_place = 0 if until == -inf else max(0, int((until - start) // BUCKET_SECONDS) - 2)
    for i in range(first_place, len(entry.buckets.joules)):
        joules, begin = entry.buckets.joules[i], start + i * BUCKET_SECONDS
        counted = joules - (host[i] if scope == "GPU" and i < len(host) else 0)
        from_, to = (
            max(begin, first),
            min(begin + BUCKET_SECONDS, last) if last > begin else begin + BUCKET_SECONDS,
        )
        if counted > 0:
            yield Bucket(min(from_, to), to, Joules(counted))


def _moment(text: str | None) -> float:
    moment = parse_time(text) if text else None
    return -inf if moment is None else moment.timestamp()


def _sum_up(
    fixed: _Fixed,
    whole: Priced,
    embodied: _Embodied | None,
    base: EmissionsStatus,
    held: Intensity | None,
    energy: EnergyStatus | None,
    *,
    steps: int | None,
) -> EmissionsStatus:
    known, final = energy is not None and bool(energy.used), energy is not None and energy.final
    made = fixed.embodied.plus(embodied) if embodied is not None else None
    operational = whole.micrograms
    total = operational + (made.typical if made is not None else 0)
    complete = final and not whole.without_joules and made is not None and not made.unknown_seconds
    counted = (
        score(operational, Micrograms(made.typical), steps=steps or None)
        if complete and made is not None
        else None
    )
    tellable = made is not None and (made.typical > 0 or not made.unknown_seconds)
    return base.model_copy(
        update={
            "total": format_emissions(Micrograms(total))
            if known and (whole.shares or (made is not None and made.typical))
            else "",
            "total_micrograms": total,
            "operational_micrograms": operational,
            "embodied_micrograms": made.typical if made is not None and tellable else None,
            "embodied_low_micrograms": made.low if made is not None and tellable else None,
            "embodied_high_micrograms": made.high if made is not None and tellable else None,
            "embodied_unknown_seconds": made.unknown_seconds if made is not None else 0,
            "shares": _list_shares(whole),
            "without_joules": whole.without_joules,
            "without_percent": _percent(whole.without_joules, whole.joules),
            "without_reason": whole.reason[:1024],
            "intensity": "" if held is None else format_intensity(held.milligrams),
            "intensity_milligrams_per_kilowatt_hour": None if held is None else held.milligrams,
            "source": "" if held is None else held.source,
            "highest_milligrams_per_kilowatt_hour": max(
                base.highest_milligrams_per_kilowatt_hour, 0 if held is None else held.milligrams
            ),
            "micrograms_per_run": None if counted is None else counted.per_run,
            "micrograms_per_step": None if counted is None else counted.per_step,
            "fixed": FixedEmissions(
                shares=_list_shares(fixed.priced),
                without_joules=fixed.priced.without_joules,
                embodied_micrograms=fixed.embodied.typical,
                embodied_low_micrograms=fixed.embodied.low,
                embodied_high_micrograms=fixed.embodied.high,
                embodied_unknown_seconds=fixed.embodied.unknown_seconds,
            ),
            "final": final,
        }
    )


def _list_shares(priced: Priced) -> tuple[EmissionsShare, ...]:
    return tuple(
        EmissionsShare(
            source=s.source,
            joules=s.joules,
            percent=_percent(s.joules, priced.joules),
            micrograms=s.micrograms,
            as_of=None if s.as_of == UNDATED else format_unix_time(s.as_of),
        )
        for s in priced.shares
    )


def _percent(part: int, whole: int) -> int:
    return round(100 * part / whole) if whole else 0


# -- a budget --------------------------------------------------------------------------------------------------


def emissions_of(joules: Joules, pue: Thousandths, milligrams: quantities.Intensity) -> Micrograms:
    """What so much energy emits at this PUE and this intensity (mg/kWh), rounded up."""
    return Micrograms(ceil(emit(joules * milligrams, pue)))


def find_highest(account: Account, basis: Basis, *, seconds: int) -> quantities.Intensity | None:
    """The highest intensity of the next `seconds` (mg/kWh); None where no source has one.

    Never further ahead than an hour (`LOOK_AHEAD_SECONDS`).
    """
    carbon = account.intensities
    if carbon is None:
        return None
    found = [
        held.milligrams
        for zone in _zones(account, carbon)
        for moment in _moments(account.now, seconds)
        if isinstance(held := _lookup(carbon, zone, basis)(moment), Intensity)
    ]
    return max(found, default=None)


def find_absence(account: Account, basis: Basis) -> str:
    """Why there is no intensity now, as a message; empty where there is one."""
    carbon = account.intensities
    if carbon is None:
        return ""
    zones = sorted(_zones(account, carbon), key=str)
    found = [_lookup(carbon, zone, basis)(account.now.timestamp()) for zone in zones]
    return next((f.reason for f in found if isinstance(f, Absent)), "")


def _zones(account: Account, carbon: Intensities) -> set[str | None]:
    """The grid zones that a job's energy comes from now; before it has any, the cluster's own."""
    own = account.spec.emissions.zone
    zones = {own or carbon.zone_of(r.region, r.zone) for r in account.reports}
    return zones or {own or carbon.zone_of("", "")}


def _moments(now: datetime, seconds: int) -> Iterator[float]:
    seconds = min(max(seconds, 0), LOOK_AHEAD_SECONDS)
    for ahead in (*range(0, seconds, BUCKET_SECONDS), seconds):
        yield now.astimezone(UTC).timestamp() + ahead
