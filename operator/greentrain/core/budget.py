"""How a job's budgets stand, and what follows from them before they are spent.

A job is stopped early: when what it has used, and would use until a stop has taken effect, reach the budget. By how much
the budget could be exceeded all the same is said before an attempt starts, from the power limits of GPUs, which no
program can exceed: limits of all its GPUs × the longest time from the moment the budget is spent to the end of the last pod.

A stop comes about in three ways, none of which depends on the program: the operator hears of it with the next report; or it
learns nothing and charges each GPU at its limit from the moment a report is overdue; or the operator is silent, and the
node's agent acts once an allowance is spent and the silence has lasted long enough. Pods then have their grace period. Of
those who could act one may fail just when another returns, so the bound has both their times in it.

A budget of emissions is held the same way: that energy at the highest intensity, and the embodied share of the GPUs' time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from math import ceil

from greentrain.api.conditions import Reason
from greentrain.api.v1alpha1 import (
    AttemptStatus,
    EmissionsBudgetStatus,
    EmissionsSpec,
    EmissionsStatus,
    EnergyBudgetStatus,
    EnergySpec,
    EnergyStatus,
    GreenTrainingJobStatus,
    OnExhausted,
    OnUnknown,
    PodAllowance,
    ProgressStatus,
    Scope,
)
from greentrain.core.allowance import OPERATOR_SILENT_SECONDS, RENEW_SECONDS, UNATTENDED_SECONDS
from greentrain.core.charges import (
    DEFAULT_REPORT_SECONDS,
    Charges,
    energy_of,
    keep_charges,
    overdue_seconds,
)
from greentrain.core.emissions import (
    begin_emissions,
    count_emissions,
    embodied_of,
    emissions_of,
    find_absence,
    find_highest,
    pue_of,
)
from greentrain.core.intensities import ALLOWANCE_SECONDS
from greentrain.core.ledger import ABANDONED_AFTER, NodeReport, fold
from greentrain.core.snapshot import Fleet, Pod, Snapshot, parse_time
from greentrain.units import JOULES_PER_KILOWATT_HOUR, THOUSANDTHS, format_emissions, format_energy

REACTION_SECONDS = 5
"""From a report to the SIGTERM of every pod: a pass, a status write, deletions, the kubelets' next look."""

DEFAULT_GRACE_SECONDS = 30
"""Kubernetes' own terminationGracePeriodSeconds."""

UNFAIR_SHARE = 4
"""Allowances are divided anew when some pod has less left than its part of what remains by a quarter (1/4)."""

HOLD_SECONDS = (60, 300, 900, ALLOWANCE_SECONDS)
"""How long allowances of a budget of emissions may hold without the operator: beyond the last the grid was not looked at, and
the least is twice the silence after which agents act."""

KEPT_PART = 4
"""At most a quarter of what is left is kept free for the embodied share of that time."""

ENERGY_BUDGET = "spec.energy.budget"
EMISSIONS_BUDGET = "spec.emissions.budget"


SILENCE_SECONDS = OPERATOR_SILENT_SECONDS + UNATTENDED_SECONDS + RENEW_SECONDS
"""How long a job may be without an operator before the agents of its nodes act."""


def stop_seconds(report_seconds: int | None, grace_seconds: int) -> int:
    """From a report until the pods of a job that is stopped for it have ended, and until the next one came: at most."""
    return overdue_seconds(report_seconds) + REACTION_SECONDS + grace_seconds


def worst_seconds(report_seconds: int | None, grace_seconds: int) -> int:
    """From the moment a budget is spent until the last pod has ended, whoever fails meanwhile.

    An agent that is away is not missed before its report is overdue; and an operator that dies just when it returns has to
    be silent for a while before the agent acts in its place. Before it dies its pass over the job may have hung for so long
    that the next renewal would have named it.
    """
    return stop_seconds(report_seconds, grace_seconds) + ceil(SILENCE_SECONDS) + 1


def grace_of(spec_grace: int | None, templates: Iterable[Mapping[str, object]]) -> int:
    """The longest grace period of the pods that such templates make."""
    found = []
    for template in templates:
        pod = template.get("spec")
        value = pod.get("terminationGracePeriodSeconds") if isinstance(pod, Mapping) else None
        found.append(value if isinstance(value, int) else spec_grace or DEFAULT_GRACE_SECONDS)
    return max(found, default=DEFAULT_GRACE_SECONDS)


def announce(
    attempt: AttemptStatus, *, gpus: int, grace_seconds: int, fleet: Fleet, pue: int
) -> AttemptStatus:
    """The attempt with its overshoot bound, as it is said before it starts; unknown where no node has told its limits."""
    worst = worst_seconds(fleet.report_seconds, grace_seconds)
    limit = fleet.limit_milliwatts
    return attempt.model_copy(
        update={
            "gpus": gpus,
            "pue_thousandths": pue,
            "gpu_limit_milliwatts": limit,
            "report_seconds": fleet.report_seconds or DEFAULT_REPORT_SECONDS,
            "stop_seconds": stop_seconds(fleet.report_seconds, grace_seconds),
            "worst_seconds": worst,
            "overshoot_bound_joules": None if limit is None else energy_of(limit * gpus, worst),
        }
    )


def raise_bound(attempt: AttemptStatus, fleet: Fleet) -> AttemptStatus:
    """The attempt with a higher bound, where its pods have come to nodes with higher figures than it was said by.

    It was said before anybody knew on which nodes they would run, and it is never lowered.
    """
    if (
        not attempt.gpus or attempt.report_seconds is None
    ):  # one that an older operator began stays as it was said
        return attempt
    known = [x for x in (attempt.gpu_limit_milliwatts, fleet.limit_milliwatts) if x is not None]
    limit = max(known, default=None)
    every = max(attempt.report_seconds, fleet.report_seconds or 0)
    if (limit, every) == (attempt.gpu_limit_milliwatts, attempt.report_seconds):
        return attempt
    later = overdue_seconds(every) - overdue_seconds(attempt.report_seconds)
    worst = (attempt.worst_seconds or 0) + later
    return attempt.model_copy(
        update={
            "gpu_limit_milliwatts": limit,
            "report_seconds": every,
            "stop_seconds": (attempt.stop_seconds or 0) + later,
            "worst_seconds": worst,
            "overshoot_bound_joules": None if limit is None else energy_of(limit * attempt.gpus, worst),
        }
    )


def announce_emissions(
    attempt: AttemptStatus,
    emissions: EmissionsStatus | None,
    spec: EmissionsSpec,
    seen: Snapshot,
    *,
    now: datetime,
) -> AttemptStatus:
    """The attempt that was announced, with its bound in emissions; as it is where no intensity is known."""
    joules, carbon = attempt.overshoot_bound_joules, seen.intensities
    if carbon is None or joules is None:
        return attempt
    emissions = emissions or begin_emissions(spec, carbon)
    ahead = find_highest(emissions.basis, spec, carbon, seen.reports, now=now, seconds=ALLOWANCE_SECONDS)
    worst = max(ahead or 0, emissions.highest_milligrams_per_kilowatt_hour)
    if not worst:
        return attempt
    bound = emissions_of(joules, attempt.pue_thousandths or THOUSANDTHS, worst)
    bound += embodied_of(emissions, carbon, seen.fleet.models, attempt.gpus * (attempt.worst_seconds or 0))
    return attempt.model_copy(update={"overshoot_bound_micrograms": bound})


# -- how much is drawn ---------------------------------------------------------------------------------------


def draw_of(pods: Iterable[Pod], reports: Iterable[NodeReport]) -> int | None:
    """Power that these pods draw together, in milliwatts, as their nodes told last; None where none told."""
    uids = {p.uid for p in pods if not p.ended}
    told = [e.draw_milliwatts for r in reports for e in r.pods if e.uid in uids and not e.closed]
    known = [draw for draw in told if draw is not None]
    return sum(known) if known else None


# -- how it stands -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """How one budget stands, and what is to be done about it."""

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
    """By how much it could be exceeded, for people."""

    @property
    def stops(self) -> bool:
        """Whether the job may not run."""
        return self.exhausted and self.action.stops

    @property
    def fails(self) -> bool:
        """Whether the job has failed by it; for a charge it waits instead, until readings say what was used."""
        return self.exhausted and self.action is OnExhausted.FAIL and not self.by_charge

    @property
    def words(self) -> str:
        """Why it is exhausted, for people."""
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


STOPPED_FOR_BUDGET = frozenset({Reason.BUDGET_EXHAUSTED, Reason.READINGS_STOPPED, Reason.ALLOWANCE_SPENT})
"""Reasons of attempts that were stopped to keep a budget."""

WEIGH_AGAIN = timedelta(seconds=2)
"""How often a budget is weighed while a report is overdue and its charge grows."""


class Stage(Enum):
    """Where a job stands, as far as a budget is concerned."""

    RUNNING = "running"
    BETWEEN_ATTEMPTS = "between attempts"
    OVER = "over"


def _early(ahead: int, before: int | None, action: OnExhausted, stage: Stage) -> int:
    """What is reserved for a stop: what was too little to go on with is too little to begin with."""
    if not action.stops or stage is Stage.OVER:
        return 0
    return ahead if stage is Stage.RUNNING else before or 0


def _ahead(now: int, before: int | None, *, stopping: bool) -> int:
    """What is used until a stop takes effect; while it stops the job draws less, so that it is known from before."""
    return max(now, before or 0) if stopping else now


def weigh_energy(
    spec: EnergySpec,
    energy: EnergyStatus | None,
    attempt: AttemptStatus | None,
    stage: Stage,
    *,
    charged: int,
    stopping: bool,
) -> tuple[Standing, EnergyBudgetStatus] | None:
    """How the budget of energy stands at this moment; None where there is none.

    `charged` joules are for missing readings; `stopping` says that the job was, or is being, stopped to keep a budget.
    """
    limit = spec.budget_joules
    if limit is None or spec.budget is None:
        return None
    before = energy.budget if energy is not None else None
    used = energy.used_joules if energy is not None else 0
    ahead = _ahead_joules(energy, attempt) if stage is Stage.RUNNING else 0
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
        ENERGY_BUDGET,
        spec.budget,
        spec.on_exhausted,
        percent,
        max((p for p in spec.warn_at_percent if percent >= p), default=0),
        verdict.exhausted,
        verdict.by_charge,
        lowered=before is not None and limit < before.limit_joules and used >= limit,
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
            stopping=stopping or verdict.exhausted,
        ),
        overshoot_bound=standing.bound,
        overshoot_bound_joules=bound,
        warned_percent=standing.warned,
        exhausted_limit_joules=verdict.spent_limit,
    )
    return standing, status


def _ahead_joules(energy: EnergyStatus | None, attempt: AttemptStatus | None) -> int:
    """What the pods would use until a stop takes effect, at what they draw now."""
    seconds = attempt.stop_seconds if attempt is not None and attempt.stop_seconds is not None else 0
    return energy_of((energy.draw_milliwatts if energy is not None else None) or 0, seconds)


def weigh_emissions(
    spec: EmissionsSpec,
    warn_at_percent: Sequence[int],
    emissions: EmissionsStatus,
    energy: EnergyStatus | None,
    attempt: AttemptStatus | None,
    stage: Stage,
    *,
    highest: int | None,
    pue: int,
    charged_joules: int,
    charged_gpu_seconds: int,
    embodied: Callable[[int], int],
    stopping: bool,
) -> tuple[Standing, EmissionsBudgetStatus] | None:
    """How the budget of emissions stands; None where there is none.

    `highest` is the highest intensity (mg/kWh) until a stop would have taken effect, None where none is known. What is
    charged for missing readings, and energy without an intensity, count at that or the highest seen before. `embodied`
    gives the embodied share (micrograms) of so many GPU-seconds.
    """
    limit = spec.budget_micrograms
    if limit is None or spec.budget is None:
        return None
    before, next_ = emissions.budget, highest or 0
    worst = max(next_, emissions.highest_milligrams_per_kilowatt_hour)
    charged = emissions_of(charged_joules + emissions.without_joules, pue, worst)
    charged += embodied(charged_gpu_seconds)
    gpus = attempt.gpus if attempt is not None else 0
    ahead = 0
    if stage is Stage.RUNNING:
        seconds = (attempt.stop_seconds if attempt is not None else None) or 0
        ahead = emissions_of(_ahead_joules(energy, attempt), pue, next_) + embodied(gpus * seconds)
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
        EMISSIONS_BUDGET,
        spec.budget,
        spec.on_exhausted,
        percent,
        max((p for p in warn_at_percent if percent >= p), default=0),
        verdict.exhausted,
        verdict.by_charge,
        lowered=before is not None and limit < before.limit_micrograms and used >= limit,
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
            stopping=stopping or verdict.exhausted,
        ),
        overshoot_bound=standing.bound,
        overshoot_bound_micrograms=bound,
        exhausted_limit_micrograms=verdict.spent_limit,
    )
    return standing, status


# -- allowances ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod that has not ended, and what is known of its energy."""

    uid: str
    used: int
    weight: int
    """Its part of what remains: the GPUs it asks for."""
    echo: int | None = None
    """The allowance its agent goes by, as it told last."""


def holders_of(
    pods: Iterable[Pod], energy: EnergyStatus | None, reports: Iterable[NodeReport], scope: Scope
) -> tuple[Holder, ...]:
    """The pods an allowance is for."""
    used: dict[str, int] = {}
    for entry in energy.pods if energy is not None else ():
        used[entry.uid] = used.get(entry.uid, 0) + entry.counted(scope)
    echoes = {e.uid: e.allowance_joules for r in reports for e in r.pods if not e.closed}
    live = sorted((p for p in pods if not p.ended and (p.gpus or scope == "Node")), key=lambda p: p.uid)
    return tuple(Holder(p.uid, used.get(p.uid, 0), max(1, p.gpus), echoes.get(p.uid)) for p in live)


def divide(
    room: int, holders: Sequence[Holder], known: Sequence[PodAllowance], *, slack: int = 0
) -> tuple[PodAllowance, ...]:
    """What each pod may use, so that together they cannot exceed `room`, whatever their agents have read of it.

    `room` is what the holders may use in all, what they have used already included. An allowance is taken away at once and
    given only when those who lost theirs have told that they know: what their agents may still hold counts until then.
    Where room shrinks with time, those that were given stay as long as they exceed it by no more than `slack`.
    """
    echoes = {h.uid: h.echo for h in holders}
    before = {a.uid: _acknowledged(a, echoes[a.uid]) for a in known if a.uid in echoes}
    fair = _fair(max(0, room - sum(h.used for h in holders)), holders)
    if _is_fair(before, fair, holders, room + slack):
        return tuple(before[h.uid] for h in holders)
    kept = {h.uid: _lowered(before.get(h.uid), h.uid, fair[h.uid]) for h in holders}
    free = max(0, room - sum(a.granted_joules for a in kept.values()))
    wishes = {uid: fair[uid] - a.granted_joules for uid, a in kept.items() if fair[uid] > a.granted_joules}
    wanted = sum(wishes.values())
    for uid, wish in wishes.items():
        more = min(wish, free * wish // wanted)
        if more:
            amount = kept[uid].granted_joules + more
            kept[uid] = PodAllowance(uid=uid, joules=amount, granted_joules=amount)
    return tuple(kept[h.uid] for h in holders)


def _acknowledged(known: PodAllowance, echo: int | None) -> PodAllowance:
    if echo != known.joules or known.granted_joules == known.joules:
        return known
    return known.model_copy(update={"granted_joules": known.joules})


def _fair(remaining: int, holders: Sequence[Holder]) -> dict[str, int]:
    """What each would be allowed in all if what remains were divided by weight now."""
    whole = sum(h.weight for h in holders)
    return {h.uid: h.used + remaining * h.weight // whole for h in holders}


def _is_fair(
    before: Mapping[str, PodAllowance], fair: Mapping[str, int], holders: Sequence[Holder], room: int
) -> bool:
    """Whether the allowances may stay: every pod has one, they fit, and none is much shorter than its part."""
    if before.keys() != fair.keys() or sum(a.granted_joules for a in before.values()) > max(room, 0):
        return False
    return all(UNFAIR_SHARE * (fair[h.uid] - before[h.uid].joules) <= fair[h.uid] - h.used for h in holders)


def _lowered(known: PodAllowance | None, uid: str, fair: int) -> PodAllowance:
    """A pod's allowance, less at once where it has more than its part; granted until its agent has told so."""
    if known is None:
        return PodAllowance(uid=uid, joules=0)
    if known.joules <= fair:
        return known
    return known.model_copy(
        update={"joules": fair, "granted_joules": max(known.granted_joules, known.joules)}
    )


# -- what a restart costs ------------------------------------------------------------------------------------


def burnt_again(last: AttemptStatus | None, progress: ProgressStatus | None) -> int | None:
    """Joules that the next attempt uses again for steps the last one had done and no confirmed checkpoint holds.

    In proportion to steps; all of the last attempt's where it told none. None where there is nothing to tell.
    """
    if last is None or not last.energy_joules:
        return None
    confirmed = progress.confirmed_checkpoint if progress is not None else None
    kept, done, begun = confirmed.step if confirmed is not None else 0, last.last_step, last.start_step or 0
    if done is None or done <= begun:
        return last.energy_joules if confirmed is None else None
    again = min(done - begun, done - kept)
    return last.energy_joules * again // (done - begun) if again > 0 else None


# -- all of it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Books:
    """What one pass knows of a job's energy and emissions, and of its budgets."""

    energy: EnergyStatus | None = None
    emissions: EmissionsStatus | None = None
    growth: Mapping[int, int] = field(default_factory=dict)
    """By how many joules each attempt's energy has grown since the status was stored."""
    standings: tuple[Standing, ...] = ()
    """How each budget stands."""
    on_unknown: OnUnknown = OnUnknown.CONTINUE
    unread: tuple[Pod, ...] = ()
    """Running pods of which nothing was heard for so long that their energy is unknown."""
    waiting_for: tuple[str, ...] = ()
    """Nodes whose silence stopped the job and that are silent still."""
    look_again: datetime | None = None
    """When a report is overdue, or its charge has grown."""
    unpriced: str = ""
    """Why a budget of emissions cannot be weighed: there is no intensity now. Empty where it can."""

    @property
    def exhausted(self) -> tuple[Standing, ...]:
        """The budgets that are spent, what stops a job hardest first."""
        order = list(OnExhausted)
        return tuple(sorted((s for s in self.standings if s.exhausted), key=lambda s: -order.index(s.action)))

    @property
    def stopping(self) -> Standing | None:
        """The budget for which the job may not run: of several, what stops it hardest."""
        return next((s for s in self.exhausted if s.stops), None)

    @property
    def words(self) -> str:
        """Which budgets are spent, for people."""
        return "; ".join(s.words for s in self.exhausted)

    @property
    def unknown_stops(self) -> bool:
        """Whether the job may not run because its energy is not known."""
        return self.on_unknown is OnUnknown.SUSPEND and bool(self.unread or self.waiting_for)


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """What a job may use and emit, and how that is counted."""

    energy: EnergySpec
    emissions: EmissionsSpec

    @property
    def has_budget(self) -> bool:
        """Whether anything is limited."""
        return self.energy.budget is not None or self.emissions.budget is not None

    @property
    def is_enforced(self) -> bool:
        """Whether something is limited that stops the job."""
        return self.energy.is_enforced or self.emissions.is_enforced


def spec_in_force(status: GreenTrainingJobStatus) -> BudgetSpec:
    """`spec.energy` and `spec.emissions` as they were admitted last: an edit that is refused changes nothing."""
    return BudgetSpec(_energy_in_force(status.energy), _emissions_in_force(status.emissions))


def _energy_in_force(energy: EnergyStatus | None) -> EnergySpec:
    if energy is None or energy.budget is None:
        return EnergySpec() if energy is None else EnergySpec(scope=energy.scope)
    budget = energy.budget
    return EnergySpec(
        budget=budget.limit or None,
        on_exhausted=budget.on_exhausted,
        on_unknown=budget.on_unknown,
        warn_at_percent=budget.warn_at_percent,
        scope=energy.scope,
    )


def _emissions_in_force(emissions: EmissionsStatus | None) -> EmissionsSpec:
    if emissions is None:
        return EmissionsSpec()
    budget = emissions.budget
    return EmissionsSpec(
        budget=None if budget is None else budget.limit or None,
        on_exhausted=OnExhausted.SUSPEND if budget is None else budget.on_exhausted,
        zone=emissions.zone or None,
        pue=emissions.pue or None,
        basis=emissions.basis,
        include_embodied=emissions.include_embodied,
    )


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
    allowed = () if stage is Stage.OVER else _allow(seen, spec, books, charges, budget, dirtiest, pue)
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


def _allow(
    seen: Snapshot,
    spec: BudgetSpec,
    books: Books,
    charges: Charges,
    budget: EnergyBudgetStatus | None,
    highest: int | None,
    pue: int,
) -> tuple[PodAllowance, ...]:
    """Allowances of the pods; as they are while the job is being stopped, none where nothing would stop it."""
    energy, scope = books.energy, spec.energy.scope
    assert energy is not None
    known = energy.budget.allowances if energy.budget is not None else ()
    if not spec.is_enforced:
        return ()
    if books.stopping is not None and known:
        return known
    holders = holders_of(seen.pods, energy, seen.reports, scope)
    living = {h.uid for h in holders}
    counted: dict[str, int] = {}
    for entry in energy.pods:
        counted[entry.uid] = counted.get(entry.uid, 0) + entry.counted(scope)
    # Of a pod that has ended the last word may not be in: it may have used all it was allowed, or what it is charged.
    waiting = {c.uid: c.joules for c in charges.pods if c.uid not in living}
    ended = tuple(a for a in known if a.uid in waiting)
    granted = {a.uid: a.granted_joules - counted.get(a.uid, 0) for a in ended}
    reserved = sum(max(joules, granted.get(uid, 0)) for uid, joules in waiting.items())
    rooms: list[tuple[int, int]] = []
    if budget is not None and spec.energy.is_enforced:
        rooms.append((budget.limit_joules, budget.limit_joules))
    seconds: int | None = None
    if spec.emissions.is_enforced and books.emissions is not None and highest:
        gpus = sum(p.gpus for p in seen.pods if p.uid in living)
        embodied = partial(embodied_of, books.emissions, seen.intensities, seen.fleet.models)
        # What nodes have told is so old at most, and as much later it is looked at again.
        late = overdue_seconds(seen.fleet.report_seconds)
        seconds = _hold_seconds(books.emissions, known, lambda s: embodied(gpus * (2 * s + late)))
        # Twice as long as they hold, so that they need not be lowered with every second of GPU time.
        least, most = (
            energy.used_joules + joules_left(books.emissions, highest, pue, embodied(gpus * (time + late)))
            for time in (2 * seconds, seconds)
        )
        rooms.append((least, most))
    if not rooms:
        return known
    elsewhere = energy.used_joules - sum(h.used for h in holders) + reserved + charges.lost_joules
    room = min(least for least, _ in rooms)
    slack = min(most for _, most in rooms) - room
    given = divide(room - elsewhere, holders, tuple(a for a in known if a.uid in living), slack=slack)
    return (*(a.model_copy(update={"seconds": seconds}) for a in given), *ended)


def _hold_seconds(
    emissions: EmissionsStatus, known: Iterable[PodAllowance], keep: Callable[[int], int]
) -> int:
    """For how long allowances of a budget of emissions hold without the operator; `keep`: micrograms kept free for a time.

    No longer than the grid is looked at ahead, and not so long that much of what is left must be kept free for the embodied
    share of that time. Never less than agents were told before: they may not have read that it is less.
    """
    left = _micrograms_left(emissions)
    found = max(s for s in HOLD_SECONDS if s == HOLD_SECONDS[0] or keep(s) * KEPT_PART <= left)
    return max((found, *(a.seconds for a in known if a.seconds is not None)))


def joules_left(emissions: EmissionsStatus, highest: int, pue: int, kept: int = 0) -> int:
    """Joules that a budget of emissions still allows at the highest intensity, so many micrograms being kept free."""
    left = _micrograms_left(emissions) - kept
    return max(0, left * THOUSANDTHS * JOULES_PER_KILOWATT_HOUR // (pue * highest * 1000))


def _micrograms_left(emissions: EmissionsStatus) -> int:
    """What a budget of emissions still allows; less than nothing where it is exceeded."""
    assert emissions.budget is not None
    spent = emissions.total_micrograms + emissions.budget.provisional_micrograms
    return emissions.budget.limit_micrograms - spent
