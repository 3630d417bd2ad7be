"""How each budget stands: used, charged, ahead, and whether it is spent.

A job is stopped early: when what it has used, and would use until a stop has taken effect, reach the budget. A budget of
emissions is held the same way: that energy at the highest intensity, and the embodied share of the GPUs' time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil

from greentrain.api.budgets import BudgetType, EmissionsBudgetStatus, EnergyBudgetStatus
from greentrain.api.spec import OnExhausted
from greentrain.api.status import AttemptStatus, EmissionsStatus, EnergyStatus
from greentrain.core.books.account import Account, Stage
from greentrain.core.books.charges import energy_of
from greentrain.core.books.emissions import embodied_of, emissions_of, find_highest
from greentrain.quantities import MILLIJOULES_PER_JOULE, format_emissions, format_energy

ENERGY_BUDGET = "spec.energy.budget"


EMISSIONS_BUDGET = "spec.emissions.budget"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one budget stands, and what is to be done about it."""

    type: BudgetType
    path: str
    """The field of the spec it is set by."""
    limit: str
    action: OnExhausted
    percent: int
    warned: int = 0
    """The highest of warnAtPercent that was reached."""
    exhausted: bool = False
    by_charge: bool = False
    """Whether it would not be, but for what is charged for what is missing."""
    lowered: bool = False
    """Whether it was spent because it was set below what had been used."""
    bound: str = ""
    """By how much it could be exceeded, with its unit."""

    @property
    def stops(self) -> bool:
        """Whether the job may not run."""
        return self.exhausted and self.action.stops

    @property
    def fails(self) -> bool:
        """Whether the job has failed by it; for a charge it waits instead, until readings say what was used."""
        return self.exhausted and self.action.fails and not self.by_charge

    @property
    def words(self) -> str:
        """Why it is exhausted, in one sentence."""
        if self.by_charge:
            what = "readings" if self.path == ENERGY_BUDGET else "readings or intensities"
            return (
                f"{self.path} {self.limit} may be spent: {what} are missing, and until they come the most is charged that "
                "they could be"
            )
        if self.lowered:
            return f"{self.path} {self.limit} is less than what the job has used"
        return f"{self.path} {self.limit} is spent"


@dataclass(frozen=True, slots=True)
class _Verdict:
    exhausted: bool
    by_charge: bool
    spent_limit: int | None
    """What must be exceeded for the job to go on; a charge is settled by what was missing and leaves nothing behind."""


def _judge(limit: int, *, used: int, charged: int, early: int, spent_before: int | None) -> _Verdict:
    """Whether a budget is spent, in its own unit.

    Once it is it stays so until a higher one is set, however little the last seconds used: what the job was stopped early
    for was not used.
    """
    if spent_before is not None and limit > spent_before:
        spent_before = None
    now_spent = used + charged + early >= limit
    by_charge = now_spent and used + early < limit
    spent_limit = spent_before if by_charge or not now_spent else max(limit, spent_before or 0)
    return _Verdict(now_spent or spent_before is not None, by_charge and spent_before is None, spent_limit)


def _early(ahead: int, before: int | None, action: OnExhausted, stage: Stage) -> int:
    """What is reserved for a stop: what was too little to go on with is too little to begin with."""
    if not action.stops or stage is Stage.OVER:
        return 0
    return ahead if stage is Stage.RUNNING else before or 0


def _ahead(now: int, before: int | None, *, stopping: bool) -> int:
    """What is used until a stop takes effect; while it stops the job draws less, so that it is known from before."""
    return max(now, before or 0) if stopping else now


def weigh_energy(
    account: Account, energy: EnergyStatus | None, charged: int
) -> tuple[Standing, EnergyBudgetStatus] | None:
    """How the budget of energy stands at this moment; None where there is none.

    `energy` is the job's after the fold; `charged` joules are for missing readings.
    """
    spec, attempt, stage = account.spec.energy, account.attempt, account.stage
    limit = spec.budget_joules
    if limit is None or spec.budget is None:
        return None
    before = energy.budget if energy is not None else None
    used = energy.used_joules if energy is not None else 0
    ahead = ahead_joules_of(energy, attempt) if stage is Stage.RUNNING else 0
    verdict = _judge(
        limit,
        used=used,
        charged=charged,
        early=_early(ahead, None if before is None else before.ahead_joules, spec.on_exhausted, stage),
        spent_before=before.exhausted_limit_joules if before is not None else None,
    )
    said = attempt if attempt is not None else before
    bound = said.overshoot_bound_joules if said is not None else None
    percent = (used + charged) * 100 // limit
    standing = Standing(
        "Energy",
        ENERGY_BUDGET,
        spec.budget,
        spec.on_exhausted,
        percent,
        max((p for p in spec.warn_at_percent if percent >= p), default=0),
        verdict.exhausted,
        verdict.by_charge,
        lowered=before is not None
        and verdict.exhausted
        and (
            before.lowered if limit == before.limit_joules else limit < before.limit_joules and used >= limit
        ),
        bound="" if bound is None else format_energy(bound),
    )
    status = EnergyBudgetStatus(
        limit=spec.budget,
        limit_joules=limit,
        on_exhausted=spec.on_exhausted,
        on_unknown=spec.on_unknown,
        warn_at_percent=spec.warn_at_percent,
        percent=percent,
        provisional_joules=charged,
        ahead_joules=_ahead(
            ahead,
            None if before is None else before.ahead_joules,
            stopping=account.stopping or verdict.exhausted,
        ),
        overshoot_bound=standing.bound,
        overshoot_bound_joules=bound,
        warned_percent=standing.warned,
        exhausted_limit_joules=verdict.spent_limit,
        lowered=standing.lowered,
    )
    return standing, status


def ahead_joules_of(energy: EnergyStatus | None, attempt: AttemptStatus | None) -> int:
    """What the pods would use until a stop takes effect, at what they draw now."""
    seconds = attempt.stop_seconds if attempt is not None and attempt.stop_seconds is not None else 0
    return energy_of((energy.draw_milliwatts if energy is not None else None) or 0, seconds)


def weigh_emissions(
    account: Account, emissions: EmissionsStatus, energy: EnergyStatus | None, charged_joules: int
) -> tuple[Standing, EmissionsBudgetStatus] | None:
    """How the budget of emissions stands at this moment; None where there is none, or nothing to count it with.

    What is charged for missing readings (`charged_joules`), and energy without an intensity, count at the highest intensity
    until a stop would have taken effect, or the highest seen before where that is higher.
    """
    spec, carbon, attempt, stage = account.spec.emissions, account.intensities, account.attempt, account.stage
    limit = spec.budget_micrograms
    if limit is None or spec.budget is None or carbon is None:
        return None
    highest = find_highest(account, emissions.basis, seconds=account.stop_seconds)
    embodied = partial(embodied_of, emissions, carbon, account.seen.fleet.models)
    pue, last = account.pue, account.last
    gpu_limit = (
        last.gpu_limit_milliwatts if last is not None else None
    ) or account.seen.fleet.limit_milliwatts
    # What is charged is the limit over a time.
    charged_gpu_seconds = ceil(charged_joules * MILLIJOULES_PER_JOULE / gpu_limit) if gpu_limit else 0
    before, next_ = emissions.budget, highest or 0
    worst = max(next_, emissions.highest_milligrams_per_kilowatt_hour)
    charged = emissions_of(charged_joules + emissions.without_joules, pue, worst)
    charged += embodied(charged_gpu_seconds)
    gpus = attempt.gpus if attempt is not None else 0
    ahead = 0
    if stage is Stage.RUNNING:
        ahead = emissions_of(ahead_joules_of(energy, attempt), pue, next_)
        ahead += embodied(gpus * account.stop_seconds)
    used = emissions.total_micrograms
    verdict = _judge(
        limit,
        used=used,
        charged=charged,
        early=_early(ahead, None if before is None else before.ahead_micrograms, spec.on_exhausted, stage),
        spent_before=before.exhausted_limit_micrograms if before is not None else None,
    )
    joules = attempt.overshoot_bound_joules if attempt is not None else None
    bound = before.overshoot_bound_micrograms if before is not None and attempt is None else None
    if attempt is not None and joules is not None and worst:
        bound = emissions_of(joules, pue, worst) + embodied(gpus * (attempt.worst_seconds or 0))
        bound = max(bound, attempt.overshoot_bound_micrograms or 0)
    percent = (used + charged) * 100 // limit
    standing = Standing(
        "Emissions",
        EMISSIONS_BUDGET,
        spec.budget,
        spec.on_exhausted,
        percent,
        max((p for p in account.spec.energy.warn_at_percent if percent >= p), default=0),
        verdict.exhausted,
        verdict.by_charge,
        lowered=before is not None
        and verdict.exhausted
        and (
            before.lowered
            if limit == before.limit_micrograms
            else limit < before.limit_micrograms and used >= limit
        ),
        bound="" if bound is None else format_emissions(bound),
    )
    status = EmissionsBudgetStatus(
        limit=spec.budget,
        limit_micrograms=limit,
        on_exhausted=spec.on_exhausted,
        percent=percent,
        provisional_micrograms=charged,
        ahead_micrograms=_ahead(
            ahead,
            None if before is None else before.ahead_micrograms,
            stopping=account.stopping or verdict.exhausted,
        ),
        overshoot_bound=standing.bound,
        overshoot_bound_micrograms=bound,
        exhausted_limit_micrograms=verdict.spent_limit,
        lowered=standing.lowered,
    )
    return standing, status
