"""The state of each budget: used, charged, reserved, and whether it is spent.

A job is stopped early: when the sum of what it has used and what it would use until a stop has taken effect reaches the
budget. Every budget is checked in the same way, in its own unit. For energy that is joules. For emissions it is micrograms
of CO2 equivalent: what a stop takes counts at the highest intensity, with the embodied share of the GPUs' time. Another
kind of budget needs one more function that builds a `Line`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from greentrain.api.budgets import BudgetLine, BudgetType, LineStatus
from greentrain.api.spec import OnExhausted
from greentrain.api.status import AttemptStatus, EmissionsStatus, EnergyStatus
from greentrain.core.books.account import Account, Stage
from greentrain.core.books.charges import Charges
from greentrain.core.books.emissions import embodied_of, emissions_of, find_highest
from greentrain.quantities import (
    Intensity,
    Joules,
    Micrograms,
    Milliwatts,
    energy_of,
    format_emissions,
    format_energy,
    time_of,
)

MISSING: dict[BudgetType, str] = {"Energy": "readings", "Emissions": "readings or intensities"}
"""What is missing where a charge is made."""


@dataclass(frozen=True, slots=True)
class Line:
    """A budget and what counts against it, all in the budget's own unit."""

    type: BudgetType
    path: str
    """The field of the spec that sets it."""
    text: str
    """The limit as written in the spec."""
    limit: int
    action: OnExhausted
    used: int
    charged: int
    """What is charged for missing readings; it counts as used until they arrive."""
    ahead: int
    """What the job would use from now until a stop has taken effect; 0 while it does not run."""
    bound: int | None
    """By how much the attempt under way could exceed it; None where that is not known."""
    before: LineStatus | None
    """The stored result of the last check of this budget."""
    format: Callable[[int], str]
    """Writes an amount with its unit."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """The state of a budget, and what follows from it."""

    line: Line
    percent: int
    warned: int = 0
    """The highest value of warnAtPercent that was reached; 0 for none."""
    exhausted: bool = False
    by_charge: bool = False
    """Whether it is spent only because of what is charged for missing readings."""
    lowered: bool = False
    """Whether it was spent because it was set below what had been used."""
    reserved: int = 0
    """What is reserved for a stop."""
    spent_limit: int | None = None
    """The job goes on only with a limit above this one. A mere charge does not set it: missing readings will settle that."""

    @property
    def type(self) -> BudgetType:
        """What is limited."""
        return self.line.type

    @property
    def path(self) -> str:
        """The field of the spec that sets it."""
        return self.line.path

    @property
    def limit(self) -> str:
        """The limit as written in the spec."""
        return self.line.text

    @property
    def action(self) -> OnExhausted:
        """What happens when it is spent."""
        return self.line.action

    @property
    def bound(self) -> str:
        """By how much it could be exceeded, with its unit; empty where that is not known."""
        return "" if self.line.bound is None else self.line.format(self.line.bound)

    @property
    def stops(self) -> bool:
        """Whether the job may not run."""
        return self.exhausted and self.action.stops

    @property
    def fails(self) -> bool:
        """Whether the job has failed because of it; for a mere charge the job waits instead, until readings arrive."""
        return self.exhausted and self.action.fails and not self.by_charge

    @property
    def words(self) -> str:
        """Why it is exhausted, in one sentence."""
        if self.by_charge:
            return (
                f"{self.path} {self.limit} may be spent: {MISSING[self.type]} are missing, and until they come the most is "
                "charged that they could be"
            )
        if self.lowered:
            return f"{self.path} {self.limit} is less than what the job has used"
        return f"{self.path} {self.limit} is spent"

    def build_status(self) -> LineStatus:
        """What is stored until the next check."""
        return LineStatus(
            limit=self.line.limit,
            percent=self.percent,
            charged=self.line.charged,
            reserved=self.reserved,
            bound=self.line.bound,
            spent_limit=self.spent_limit,
            lowered=self.lowered,
        )

    def build_line(self, used: str) -> BudgetLine:
        """Its state for users; `used` has its unit, and is empty where nothing is known."""
        return BudgetLine(
            type=self.type,
            limit=self.limit,
            used=used,
            percent=self.percent,
            charged=self.line.format(self.line.charged) if self.line.charged else "",
            reserved=self.line.format(self.reserved) if self.reserved else "",
            bound=self.bound,
            warned=self.warned,
            exhausted=self.exhausted,
            action=self.action,
        )


def weigh(line: Line, stage: Stage, *, warn_at: tuple[int, ...], stopping: bool) -> BudgetState:
    """Check whether a budget is spent; `stopping`: the job was, or is being, stopped to keep a budget.

    A spent budget stays spent until a higher one is set, however little the last seconds used: the job was stopped early,
    so what was reserved for the stop may not have been used.
    """
    before = line.before
    spent = before.spent_limit if before is not None else None
    if spent is not None and line.limit > spent:
        spent = None
    early = _early(line, stage)
    now_spent = line.used + line.charged + early >= line.limit
    by_charge = now_spent and line.used + early < line.limit
    exhausted = now_spent or spent is not None
    percent = (line.used + line.charged) * 100 // line.limit
    # While the job stops it draws less power, so what a stop takes is known from before.
    reserved = max(line.ahead, before.reserved) if before is not None else line.ahead
    return BudgetState(
        line,
        percent,
        warned=max((p for p in warn_at if percent >= p), default=0),
        exhausted=exhausted,
        by_charge=by_charge and spent is None,
        lowered=exhausted and _is_lowered(line),
        reserved=reserved if stopping or exhausted else line.ahead,
        spent_limit=spent if by_charge or not now_spent else max(line.limit, spent or 0),
    )


def _early(line: Line, stage: Stage) -> int:
    """What is reserved for a stop; between attempts as before, so that a stopped job does not start again with as little."""
    if not line.action.stops or stage is Stage.OVER:
        return 0
    if stage is Stage.RUNNING:
        return line.ahead
    return line.before.reserved if line.before is not None else 0


def _is_lowered(line: Line) -> bool:
    """Whether the limit was set below what had been used; for an unchanged limit the stored answer counts."""
    if line.before is None:
        return False
    if line.limit == line.before.limit:
        return line.before.lowered
    return line.limit < line.before.limit and line.used >= line.limit


def find_energy_line(account: Account, energy: EnergyStatus | None, charged: Joules) -> Line | None:
    """The budget of energy, in joules; None where there is none.

    `energy` is the job's energy after the fold; `charged`: joules for missing readings.
    """
    spec, attempt = account.spec.energy, account.attempt
    limit = spec.budget_joules
    if limit is None or spec.budget is None:
        return None
    before = energy.budget if energy is not None else None
    bound = before.bound if before is not None else None
    return Line(
        "Energy",
        "spec.energy.budget",
        spec.budget,
        limit,
        spec.on_exhausted,
        used=energy.used_joules if energy is not None else 0,
        charged=charged,
        ahead=ahead_joules_of(energy, attempt) if account.stage is Stage.RUNNING else 0,
        bound=attempt.overshoot_bound_joules if attempt is not None else bound,
        before=before,
        format=lambda joules: format_energy(Joules(joules)),
    )


def ahead_joules_of(energy: EnergyStatus | None, attempt: AttemptStatus | None) -> Joules:
    """What the pods would use until a stop takes effect, at their present power draw."""
    seconds = attempt.stop_seconds if attempt is not None and attempt.stop_seconds is not None else 0
    return energy_of(Milliwatts((energy.draw_milliwatts if energy is not None else None) or 0), seconds)


def find_emissions_line(
    account: Account, emissions: EmissionsStatus, energy: EnergyStatus | None, charges: Charges
) -> Line | None:
    """The budget of emissions, in micrograms; None where there is none, or nothing to count it with.

    What is charged for missing readings counts at a high intensity, and so does energy without one. It is the highest until a
    stop would have taken effect, or the highest seen before if that is higher.
    """
    spec, carbon, attempt = account.spec.emissions, account.intensities, account.attempt
    limit = spec.budget_micrograms
    if limit is None or spec.budget is None or carbon is None:
        return None
    next_ = find_highest(account, emissions.basis, seconds=account.stop_seconds) or Intensity(0)
    embodied = partial(embodied_of, emissions, carbon, account.seen.fleet.models)
    pue, last = account.pue, account.last
    gpu_limit = (
        last.gpu_limit_milliwatts if last is not None else None
    ) or account.seen.fleet.limit_milliwatts
    # What is charged is the power limit × a time. The embodied share of time that is missing has been counted: GPUs are known
    # to have been allocated.
    uncounted = Joules(charges.joules - charges.missing_joules)
    charged_gpu_seconds = time_of(uncounted, Milliwatts(gpu_limit)) if gpu_limit else 0
    worst = max(next_, Intensity(emissions.highest_milligrams_per_kilowatt_hour))
    charged = emissions_of(Joules(charges.joules + emissions.without_joules), pue, worst)
    gpus = attempt.gpus if attempt is not None else 0
    ahead = 0
    if account.stage is Stage.RUNNING:
        ahead = emissions_of(ahead_joules_of(energy, attempt), pue, next_)
        ahead += embodied(gpus * account.stop_seconds)
    before = emissions.budget
    bound = before.bound if before is not None and attempt is None else None
    if attempt is not None and attempt.overshoot_bound_joules is not None and worst:
        bound = emissions_of(Joules(attempt.overshoot_bound_joules), pue, worst)
        bound += embodied(gpus * (attempt.worst_seconds or 0))
        bound = max(bound, attempt.overshoot_bound_micrograms or 0)
    return Line(
        "Emissions",
        "spec.emissions.budget",
        spec.budget,
        limit,
        spec.on_exhausted,
        used=emissions.total_micrograms,
        charged=charged + embodied(charged_gpu_seconds),
        ahead=ahead,
        bound=bound,
        before=before,
        format=lambda micrograms: format_emissions(Micrograms(micrograms)),
    )
