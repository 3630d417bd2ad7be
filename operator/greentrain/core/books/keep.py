"""Folds what nodes report into a job's energy and emissions, and weighs its budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from math import ceil

from greentrain.api.v1alpha1 import AttemptStatus, EmissionsStatus, EnergyBudgetStatus, EnergyStatus
from greentrain.core.books.allowances import allow
from greentrain.core.books.books import Books
from greentrain.core.books.charges import Charges, keep_charges
from greentrain.core.books.emissions import (
    begin_emissions,
    count_emissions,
    embodied_of,
    find_absence,
    find_highest,
    pue_of,
)
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.books.ledger import fold
from greentrain.core.books.lines import STOPPED_FOR_BUDGET, Stage, Standing, weigh_emissions, weigh_energy
from greentrain.core.seen.intensities import ALLOWANCE_SECONDS
from greentrain.core.seen.nodes import ABANDONED_AFTER, NodeReport
from greentrain.core.seen.pods import Pod
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import parse_time


def draw_of(pods: Iterable[Pod], reports: Iterable[NodeReport]) -> int | None:
    """Power that these pods draw together, in milliwatts, as their nodes told last; None where none told."""
    uids = {p.uid for p in pods if not p.ended}
    told = [e.draw_milliwatts for r in reports for e in r.pods if e.uid in uids and not e.closed]
    known = [draw for draw in told if draw is not None]
    return sum(known) if known else None


WEIGH_AGAIN = timedelta(seconds=2)
"""How often a budget is weighed while a report is overdue and its charge grows."""


def keep_books(seen: Snapshot, spec: BudgetSpec, attempt: AttemptStatus | None, *, now: datetime) -> Books:
    """Fold what nodes tell into the job's energy and emissions and weigh them; `attempt` is the one under way, if any."""
    known = seen.job.status
    stored = known.energy
    over = known.completion_time is not None
    present = {p.uid for p in seen.pods}
    energy, growth = fold(
        stored,
        seen.reports,
        gone=lambda uid: uid not in present,
        finished=over and all(p.ended for p in seen.pods),
        now=now,
        scope=spec.energy.scope,
    )
    charges = Charges()
    if spec.has_budget:
        energy = energy or EnergyStatus(scope=spec.energy.scope)
        charges = _charge(seen, stored, energy, attempt, now=now)
    attempts = _with_attempt(known.attempts, attempt)
    counted = count_emissions(
        known.emissions,
        stored,
        energy,
        seen.reports,
        spec=spec.emissions,
        attempts=attempts,
        carbon=seen.intensities,
        progress=known.progress,
        now=now,
    )
    energy = counted.energy
    if energy is not None:
        draw = draw_of(seen.pods, seen.reports) if attempt is not None else None
        budget = stored.budget if stored is not None else None
        energy = energy.model_copy(update={"draw_milliwatts": draw, "budget": budget})
    return _weigh(seen, spec, attempt, energy, counted.emissions, growth, charges, now=now)


def _charge(
    seen: Snapshot,
    stored: EnergyStatus | None,
    energy: EnergyStatus,
    attempt: AttemptStatus | None,
    *,
    now: datetime,
) -> Charges:
    """What is charged for pods of which no reading comes."""
    before = stored.budget if stored is not None else None
    attempts = _with_attempt(seen.job.status.attempts, attempt)
    limits = {a.number: a.gpu_limit_milliwatts or seen.fleet.limit_milliwatts for a in attempts}
    return keep_charges(
        before.charges if before is not None else (),
        before.lost_joules if before is not None else 0,
        stored=stored,
        energy=energy,
        pods=seen.pods,
        reports=seen.reports,
        limits={number: limit for number, limit in limits.items() if limit is not None},
        now=now,
    )


def _with_attempt(
    attempts: Sequence[AttemptStatus], attempt: AttemptStatus | None
) -> tuple[AttemptStatus, ...]:
    if attempt is None:
        return tuple(attempts)
    return (*(a for a in attempts if a.number != attempt.number), attempt)


def _weigh(
    seen: Snapshot,
    spec: BudgetSpec,
    attempt: AttemptStatus | None,
    energy: EnergyStatus | None,
    emissions: EmissionsStatus | None,
    growth: Mapping[int, int],
    charges: Charges,
    *,
    now: datetime,
) -> Books:
    over = seen.job.status.completion_time is not None
    stage = Stage.OVER if over else Stage.BETWEEN_ATTEMPTS if attempt is None else Stage.RUNNING
    standings: list[Standing] = []
    unpriced = ""
    pue = attempt.pue_thousandths if attempt is not None else None
    pue = pue or pue_of(spec.emissions, seen.intensities)
    last = attempt or next(reversed(seen.job.status.attempts), None)
    stopping = last is not None and last.reason in STOPPED_FOR_BUDGET
    weighed = weigh_energy(spec.energy, energy, attempt, stage, charged=charges.joules, stopping=stopping)
    budget = None if weighed is None else weighed[1]
    standings += [] if weighed is None else [weighed[0]]
    highest: int | None = None
    if seen.intensities is not None and spec.emissions.budget is not None:
        base = emissions or begin_emissions(spec.emissions, seen.intensities)
        until_stopped = (attempt.stop_seconds if attempt is not None else None) or 0
        highest = find_highest(
            base.basis, spec.emissions, seen.intensities, seen.reports, now=now, seconds=until_stopped
        )
        limit = (last.gpu_limit_milliwatts if last is not None else None) or seen.fleet.limit_milliwatts
        found = weigh_emissions(
            spec.emissions,
            spec.energy.warn_at_percent,
            base,
            energy,
            attempt,
            stage,
            highest=highest,
            pue=pue,
            charged_joules=charges.joules,
            # What is charged is the limit over a time.
            charged_gpu_seconds=ceil(charges.joules * 1000 / limit) if limit else 0,
            embodied=partial(embodied_of, base, seen.intensities, seen.fleet.models),
            stopping=stopping,
        )
        assert found is not None
        standings.append(found[0])
        emissions = base.model_copy(update={"budget": found[1]})
        if base.intensity_milligrams_per_kilowatt_hour is None:
            unpriced = find_absence(spec.emissions, seen.intensities, base.basis, seen.reports, now=now)
    elif emissions is not None and emissions.budget is not None:
        emissions = emissions.model_copy(update={"budget": None})
    if energy is None or not spec.has_budget:
        bare = None if energy is None else energy.model_copy(update={"budget": None})
        return Books(bare, emissions, growth, tuple(standings))
    heard = {r.node for r in seen.reports if not r.is_silent(now)}
    before = energy.budget
    # A running attempt waits for nobody: what of it is unread is known by itself.
    waits = before is not None and (stage is not Stage.RUNNING or stopping) and _may_come(seen, now=now)
    waited = before.unread_nodes if before is not None and waits else ()
    waiting = tuple(n for n in waited if n not in heard)
    again = now + WEIGH_AGAIN if charges.growing else charges.due
    books = Books(
        energy,
        emissions,
        growth,
        tuple(standings),
        spec.energy.on_unknown,
        charges.unread,
        waiting,
        again,
        unpriced,
    )
    nodes = {"unread_nodes": tuple(sorted({*waiting, *(p.node for p in charges.unread)}))[:64]}
    dirtiest = None
    if seen.intensities is not None and books.emissions is not None:
        dirtiest = find_highest(
            books.emissions.basis,
            spec.emissions,
            seen.intensities,
            seen.reports,
            now=now,
            seconds=ALLOWANCE_SECONDS,
        )
        # As with what is charged, the highest that was seen stands in while none is known.
        dirtiest = dirtiest or books.emissions.highest_milligrams_per_kilowatt_hour
    allowed = () if stage is Stage.OVER else allow(seen, spec, books, charges, budget, dirtiest, pue)
    # Without a budget of energy the section holds what a budget of emissions allows and waits for.
    shown = budget or EnergyBudgetStatus(
        on_unknown=spec.energy.on_unknown, warn_at_percent=spec.energy.warn_at_percent
    )
    shown = shown.model_copy(
        update={
            **nodes,
            "provisional_joules": charges.joules,
            "charges": charges.pods,
            "lost_joules": charges.lost_joules,
            "allowances": allowed,
        }
    )
    return replace(books, energy=energy.model_copy(update={"budget": shown}))


def _may_come(seen: Snapshot, *, now: datetime) -> bool:
    """Whether nodes whose silence stopped the job are still waited for: one that is no more will not report."""
    last = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    ended = parse_time(last.end_time) if last is not None else None
    return ended is None or now - ended < ABANDONED_AFTER
