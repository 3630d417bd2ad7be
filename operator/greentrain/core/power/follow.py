"""Follows a job's steps and energy, projects what it will have used at its end, and chooses its cap if its policy is so.

`core.power.projection` measures and decides. Here its numbers are taken from what a pass knows, and written to the job's
status. A sample is one pass in which the program reported its progress, with the energy that its nodes have reported by
then. What the program reports decides about a cap only: budgets are enforced by energy counters alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from greentrain.api.spec import GreenTrainingJobSpec, PowerSpec
from greentrain.api.status import (
    AttemptStatus,
    CapMeasureStatus,
    EmissionsStatus,
    GreenTrainingJobStatus,
    ProjectionStatus,
    SampleStatus,
)
from greentrain.core.books.allowances import joules_left
from greentrain.core.books.books import Books
from greentrain.core.books.charges import overdue_seconds
from greentrain.core.books.emissions import embodied_of, emissions_of
from greentrain.core.power.measures import CapMeasure, Sample, Track, observe
from greentrain.core.power.projection import Choice, Projection, build_ladder, choose_cap, project
from greentrain.core.seen.snapshot import Fleet, Snapshot
from greentrain.core.seen.times import format_time
from greentrain.quantities import (
    THOUSANDTHS,
    Intensity,
    Joules,
    Micrograms,
    Milliseconds,
    Thousandths,
    add,
    format_emissions,
    format_energy,
    parse_power_cap,
    subtract,
    to_milliseconds,
    to_seconds,
    typed,
)

NO_LIMIT = Joules(1 << 62)
"""Stands for the budget of a job without one, in joules: it is never exceeded."""


def chosen_cap(spec: GreenTrainingJobSpec, projection: ProjectionStatus | None, fleet: Fleet) -> str:
    """The requested cap: the spec's own, or the lower one that was chosen in its place."""
    power = _find_throttling(spec)
    if power is None:
        return spec.power_cap
    chosen = projection.percent if projection is not None else None
    return spec.power_cap if chosen is None or chosen >= ceiling_of(power, fleet) else f"{chosen}%"


def _find_throttling(spec: GreenTrainingJobSpec) -> PowerSpec | None:
    """`spec.power` where it allows to lower the cap to keep a budget; else None."""
    power = spec.power
    return power if power is not None and power.lowers_cap else None


def follow(
    seen: Snapshot,
    spec: GreenTrainingJobSpec,
    attempt: AttemptStatus,
    books: Books,
    *,
    now: datetime,
) -> ProjectionStatus | None:
    """The projection after this pass; the stored one where there is no new sample."""
    known, progress = seen.job.status.projection, seen.progress
    ceiling = ceiling_of(spec.power, seen.fleet)
    throttles = _find_throttling(spec)
    if throttles is None and known is not None and known.percent is not None:
        known = known.model_copy(
            update={"percent": None, "reason": "", "message": "", "cannot_finish": False}
        )
    energy = books.energy
    if progress is None or seen.sampled is None or energy is None or not energy.used:
        return known
    used = Joules(energy.used_joules)
    joules = used if seen.sampled_joules is None else seen.sampled_joules
    if _is_old(known, attempt, joules):
        return known
    present = min(known.percent, ceiling) if known is not None and known.percent is not None else ceiling
    sample = Sample(
        attempt=attempt.number,
        step=progress.step,
        joules=joules,
        moment=to_milliseconds(seen.sampled.timestamp()),
        percent=present,
        complete=_in_force(seen.job.status, chosen_cap(spec, known, seen.fleet)),
    )
    every = seen.fleet.report_seconds
    track = observe(
        _read_track(known),
        sample,
        settle_milliseconds=to_milliseconds(overdue_seconds(every)),
        window_milliseconds=to_milliseconds(ceil((every or 30) * 2 / 3)),
    )
    left = None if progress.total_steps is None else max(0, progress.total_steps - progress.step)
    pace = project(track.measures, present, used=used, steps_left=left, budget=NO_LIMIT).milliseconds
    budget = _budget_joules(books, attempt, _embodied_to_come(pace, books.emissions, attempt, seen))
    choice: Choice | None = None
    if throttles is not None and budget is not None and seen.fleet.lowest_percent is not None:
        choice = choose_cap(
            track.measures,
            present,
            build_ladder(ceiling, seen.fleet.lowest_percent),
            used=used,
            steps_left=left,
            budget=budget,
            max_slowdown_percent=throttles.max_slowdown_percent,
        )
    there = present if choice is None else choice.percent
    projected = project(
        track.measures,
        there,
        used=used,
        steps_left=left,
        budget=NO_LIMIT if budget is None else budget,
    )
    micrograms = _emissions_at_end(projected, books.emissions, used, attempt, seen)
    return _build_status(track, projected, choice, micrograms, bool(books.budgets), now=now)


def _is_old(known: ProjectionStatus | None, attempt: AttemptStatus, joules: Joules) -> bool:
    """Whether no node has reported since the last sample: then new steps would be paired with old joules."""
    last = known.last if known is not None else None
    return last is not None and (last.attempt, last.joules) == (attempt.number, joules)


def ceiling_of(power: PowerSpec | None, fleet: Fleet) -> int:
    """The highest cap that a job may have, in percent of its GPUs' default limit; 100 where it requests none."""
    if power is None or power.cap is None:
        return 100
    cap = parse_power_cap(power.cap)
    if cap.percent is not None:
        return cap.percent
    if cap.milliwatts is None or not fleet.default_milliwatts:
        return 100
    return max(1, min(100, cap.milliwatts * 100 // fleet.default_milliwatts))


def _in_force(known: GreenTrainingJobStatus, cap: str) -> bool:
    """Whether the requested cap is in force on all of the job's GPUs, as read back; with no cap, whether none is."""
    power = known.power
    if not cap:
        return power is None or not power.cap
    return power is not None and power.cap == cap and power.gpus > 0 and power.gpus_capped == power.gpus


def _budget_joules(books: Books, attempt: AttemptStatus, embodied: Micrograms) -> Joules | None:
    """Joules that the job may use by its budgets, less what is reserved for a stop; None where it has no budget.

    `embodied` is the share that its GPUs' time will add to its emissions until the end.
    """
    energy, emissions = books.energy, books.emissions
    found = []
    if energy is not None and energy.budget is not None:
        found.append(Joules(energy.budget.limit - energy.budget.reserved))
    if energy is not None and emissions is not None and emissions.budget is not None:
        intensity = typed(Intensity, emissions.intensity_milligrams_per_kilowatt_hour)
        if intensity:
            pue = Thousandths(attempt.pue_thousandths or THOUSANDTHS)
            kept = add(Micrograms(emissions.budget.reserved), embodied)
            found.append(add(Joules(energy.used_joules), joules_left(emissions, intensity, pue, kept)))
    return max(Joules(0), min(found)) if found else None


def _build_status(
    track: Track,
    projected: Projection,
    choice: Choice | None,
    micrograms: Micrograms | None,
    has_budget: bool,
    *,
    now: datetime,
) -> ProjectionStatus:
    """The projection in the job's status; `micrograms`: what the job will have emitted at its end."""
    end = None
    if projected.milliseconds is not None:
        end = format_time(now + timedelta(milliseconds=min(projected.milliseconds, 10**12)))
    return ProjectionStatus(
        energy="" if projected.joules is None else format_energy(projected.joules),
        energy_joules=projected.joules,
        uncertainty_joules=projected.uncertainty_joules,
        emissions="" if micrograms is None else format_emissions(micrograms),
        emissions_micrograms=micrograms,
        completion_time=end,
        exceeds=projected.exceeds if has_budget else "No",
        cannot_finish=choice is not None and choice.cannot_finish,
        reason="" if choice is None else choice.reason,
        message="" if choice is None else choice.message[:1024],
        percent=None if choice is None else choice.percent,
        measures=tuple(CapMeasureStatus(**_fields(m)) for m in track.measures),
        begun=_write_sample(track.begun),
        anchor=_write_sample(track.anchor),
        last=_write_sample(track.last),
    )


def _emissions_at_end(
    projected: Projection,
    emissions: EmissionsStatus | None,
    used: Joules,
    attempt: AttemptStatus,
    seen: Snapshot,
) -> Micrograms | None:
    """What the job will have emitted: so far, by the rest of its energy at the present intensity, and by its GPUs' time."""
    if emissions is None or projected.joules is None:
        return None
    intensity = typed(Intensity, emissions.intensity_milligrams_per_kilowatt_hour)
    if intensity is None:
        return None
    left = max(Joules(0), subtract(projected.joules, used))
    rest = emissions_of(left, Thousandths(attempt.pue_thousandths or THOUSANDTHS), intensity)
    made = _embodied_to_come(projected.milliseconds, emissions, attempt, seen)
    return add(Micrograms(emissions.total_micrograms), rest, made)


def _embodied_to_come(
    milliseconds: Milliseconds | None,
    emissions: EmissionsStatus | None,
    attempt: AttemptStatus,
    seen: Snapshot,
) -> Micrograms:
    """The embodied share of the remaining time; 0 where that time is not known."""
    if emissions is None:
        return Micrograms(0)
    seconds = to_seconds(milliseconds or Milliseconds(0))
    return embodied_of(emissions, seen.intensities, seen.fleet.models, attempt.gpus * seconds)


_MEASURED = ("percent", "steps", "joules", "milliseconds", "windows", "spread", "lagged", "latest")


def _fields(measure: CapMeasure | CapMeasureStatus) -> dict[str, Any]:
    return {name: getattr(measure, name) for name in _MEASURED}


def _read_track(known: ProjectionStatus | None) -> Track:
    if known is None:
        return Track()
    measures: Sequence[CapMeasure] = [CapMeasure(**_fields(m)) for m in known.measures]
    return Track(
        tuple(measures), _read_sample(known.begun), _read_sample(known.anchor), _read_sample(known.last)
    )


def _read_sample(known: SampleStatus | None) -> Sample | None:
    if known is None:
        return None
    joules, moment = Joules(known.joules), Milliseconds(known.moment)
    return Sample(known.attempt, known.step, joules, moment, known.percent, known.complete)


def _write_sample(sample: Sample | None) -> SampleStatus | None:
    if sample is None:
        return None
    return SampleStatus(
        attempt=sample.attempt,
        step=sample.step,
        joules=sample.joules,
        moment=sample.moment,
        percent=sample.percent,
        complete=sample.complete,
    )
