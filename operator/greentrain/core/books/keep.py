"""Adds what nodes report to a job's energy and emissions, and checks its budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from greentrain.api.budgets import ControlStatus, LineStatus
from greentrain.api.status import AttemptStatus, EmissionsStatus, EnergyStatus
from greentrain.core.books.account import Account, Stage
from greentrain.core.books.allowances import allow
from greentrain.core.books.books import Books
from greentrain.core.books.charges import Charges, keep_charges
from greentrain.core.books.emissions import (
    begin_emissions,
    count_emissions,
    find_absence,
    find_highest,
)
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.books.ledger import fold
from greentrain.core.books.lines import BudgetState, Line, find_emissions_line, find_energy_line, weigh
from greentrain.core.seen.intensities import ALLOWANCE_SECONDS
from greentrain.core.seen.nodes import ABANDONED_AFTER, NodeReport
from greentrain.core.seen.pods import Pod
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import parse_time
from greentrain.quantities import Intensity


def draw_of(pods: Iterable[Pod], reports: Iterable[NodeReport]) -> int | None:
    """Power that these pods draw together, in milliwatts, as last reported; None where no node reported it."""
    uids = {p.uid for p in pods if not p.ended}
    reported = [e.draw_milliwatts for r in reports for e in r.pods if e.uid in uids and not e.closed]
    known = [draw for draw in reported if draw is not None]
    return sum(known) if known else None


WEIGH_AGAIN = timedelta(seconds=2)
"""How often a budget is checked while a report is overdue and its charge grows."""


def keep_books(seen: Snapshot, spec: BudgetSpec, attempt: AttemptStatus | None, *, now: datetime) -> Books:
    """Add what nodes report to the job's energy and emissions, and check its budgets; `attempt`: the one under way, if any."""
    account = Account(seen, spec, attempt, now)
    energy, growth = fold(account)
    charges = Charges()
    if spec.has_budget:
        energy = energy or EnergyStatus(scope=spec.energy.scope)
        charges = keep_charges(account, energy)
    counted = count_emissions(account, energy)
    energy, stored = counted.energy, account.stored
    if energy is not None:
        draw = draw_of(seen.pods, seen.reports) if attempt is not None else None
        budget, control = (stored.budget, stored.control) if stored is not None else (None, None)
        kept = {"draw_milliwatts": draw, "budget": budget, "control": control}
        energy = energy.model_copy(update=kept)
    return replace(_weigh(account, energy, counted.emissions, charges), growth=growth)


def _weigh(
    account: Account, energy: EnergyStatus | None, emissions: EmissionsStatus | None, charges: Charges
) -> Books:
    """The state of the budgets, and what follows for the pods."""
    spec = account.spec
    budgets: list[BudgetState] = []

    def weighed(line: Line | None) -> LineStatus | None:
        if line is None:
            return None
        warn_at = spec.energy.warn_at_percent
        state = weigh(line, account.stage, warn_at=warn_at, stopping=account.stopping)
        budgets.append(state)
        return state.build_status()

    budget = weighed(find_energy_line(account, energy, charges.joules))
    unpriced = ""
    base = emissions
    if base is None and account.intensities is not None:
        base = begin_emissions(spec.emissions, account.intensities)
    limited = None
    if base is not None:
        limited = weighed(find_emissions_line(account, base, energy, charges))
    if base is not None and limited is not None:
        emissions = base.model_copy(update={"budget": limited})
        if base.intensity_milligrams_per_kilowatt_hour is None:
            unpriced = find_absence(account, base.basis)
    elif emissions is not None and emissions.budget is not None:
        emissions = emissions.model_copy(update={"budget": None})
    books = Books(energy, emissions, budgets=tuple(budgets))
    if energy is None or not spec.has_budget:
        bare = None if energy is None else energy.model_copy(update={"budget": None, "control": None})
        return replace(books, energy=bare)
    books = replace(
        books,
        on_unknown=spec.energy.on_unknown,
        unread=charges.unread,
        waiting_for=_find_waiting(account, energy),
        look_again=account.now + WEIGH_AGAIN if charges.growing else charges.due,
        unpriced=unpriced,
    )
    control = _control(account, books, budget, charges)
    return replace(books, energy=energy.model_copy(update={"budget": budget, "control": control}))


def _find_waiting(account: Account, energy: EnergyStatus) -> tuple[str, ...]:
    """Nodes that stopped the job because its energy was not known there, and that still do not report or read its pods."""
    before = energy.control
    # A running attempt waits for no node: `unread` has its silent pods.
    waits = account.stage is not Stage.RUNNING or account.stopping
    if before is None or not waits or not _may_come(account.seen, now=account.now):
        return ()
    # A GPU that is lost is waited for by its node's agent too: the entry stays open meanwhile.
    reporting = {
        r.node
        for r in account.reports
        if not r.is_silent(account.now) and all(e.closed or r.reads(e) for e in r.pods)
    }
    return tuple(n for n in before.unread_nodes if n not in reporting)


def _control(
    account: Account,
    books: Books,
    budget: LineStatus | None,
    charges: Charges,
) -> ControlStatus:
    """The charges, the allowances of the pods, and the nodes that the job waits for."""
    dirtiest = None
    if account.intensities is not None and books.emissions is not None:
        dirtiest = find_highest(account, books.emissions.basis, seconds=ALLOWANCE_SECONDS)
        # As for charges: while no intensity is known, the highest one seen before is used.
        dirtiest = dirtiest or Intensity(books.emissions.highest_milligrams_per_kilowatt_hour)
    nodes = sorted({*books.waiting_for, *(p.node for p in charges.unread)})
    return ControlStatus(
        charges=charges.pods,
        lost_joules=charges.lost_joules,
        unread_nodes=tuple(nodes)[:64],
        allowances=() if account.over else allow(account, books, charges, budget, dirtiest),
    )


def _may_come(seen: Snapshot, *, now: datetime) -> bool:
    """Whether the job still waits for nodes whose silence stopped it: after an hour they count as gone."""
    last = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    ended = parse_time(last.end_time) if last is not None else None
    return ended is None or now - ended < ABANDONED_AFTER
