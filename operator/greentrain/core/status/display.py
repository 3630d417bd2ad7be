"""The columns of kubectl get."""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.api.conditions import Type, find_condition, is_true
from greentrain.api.reasons import REASONS, UNLISTED, Phase, Reason, Reasons
from greentrain.api.status import (
    AttemptStatus,
    Condition,
    DisplayStatus,
    EmissionsStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PowerStatus,
)
from greentrain.quantities import Milliwatts, format_power, to_whole_watts

NONE = "<none>"
"""A column where nothing was requested, as kubectl prints it elsewhere."""

UNKNOWN = "<unknown>"
"""A column whose value is not known."""


def find_phase(
    status: GreenTrainingJobStatus, attempt: AttemptStatus | None, reasons: Reasons = REASONS
) -> Phase:
    """The column STATE, derived from the conditions and from the phases of their reasons."""
    conditions = status.conditions
    live = attempt is not None and attempt.end_time is None
    running = is_true(conditions, Type.RUNNING)
    for type_, phase in ((Type.FAILED, Phase.FAILED), (Type.SUCCEEDED, Phase.SUCCEEDED)):
        if is_true(conditions, type_):
            return phase
    if _is_refused(status) and not (live and running):
        return Phase.REFUSED
    suspended = find_condition(conditions, Type.SUSPENDED)
    if suspended is not None and suspended.status == "True":
        return Phase.SUSPENDED
    if suspended is not None and suspended.reason == Reason.STOPPING_PODS:
        return Phase.SUSPENDING
    if running:
        return Phase.RUNNING
    unready = _find_unready(status)
    meant = reasons.get(unready.reason, UNLISTED).phase if unready is not None else None
    if meant is not None:
        return meant
    if attempt is not None and live and attempt.reason:
        return Phase.STOPPING
    if is_true(conditions, Type.RESTARTING):
        return Phase.RESTARTING
    if attempt is not None and live and attempt.broken_time:
        return Phase.DEGRADED
    return Phase.STARTING if is_true(conditions, Type.CREATED) else Phase.PENDING


def find_reason(
    status: GreenTrainingJobStatus, attempt: AttemptStatus | None, reasons: Reasons = REASONS
) -> str:
    """The column REASON: why the job is not training, or has failed; empty where it trains or has succeeded."""
    conditions = status.conditions
    if is_true(conditions, Type.SUCCEEDED):
        return ""
    live = attempt is not None and attempt.end_time is None
    refused = live and is_true(conditions, Type.RUNNING) and _is_refused(status)
    stopping = attempt.reason if attempt is not None else None
    suspends = stopping is not None and reasons.get(stopping, UNLISTED).phase is Phase.SUSPENDED
    suspending = _find(conditions, Type.SUSPENDED, "False")
    on_its_way = suspending is not None and suspending.reason == Reason.STOPPING_PODS
    if not live and not (suspends and on_its_way):
        stopping = None  # this reason ended the attempt; now the job waits for something else
    unready = _find_unready(status)
    found = (
        _find(conditions, Type.FAILED, "True"),
        _find(conditions, Type.STALLED, "True"),
        None if refused else _find(conditions, Type.ADMITTED, "False"),
        _find(conditions, Type.SUSPENDED, "True"),
    )
    first = next((c.reason for c in found if c is not None), None)
    return first or stopping or (unready.reason if unready is not None else "")


def _find(conditions: Iterable[Condition], type_: Type, status: str) -> Condition | None:
    condition = find_condition(conditions, type_)
    return condition if condition is not None and condition.status == status else None


def _is_refused(status: GreenTrainingJobStatus) -> bool:
    return _find(status.conditions, Type.ADMITTED, "False") is not None


def _find_unready(status: GreenTrainingJobStatus) -> Condition | None:
    return _find(status.conditions, Type.PODS_READY, "False")


def display(
    status: GreenTrainingJobStatus, attempt: AttemptStatus | None, reasons: Reasons = REASONS
) -> DisplayStatus:
    """The columns of kubectl get: `<none>` where nothing was requested, `<unknown>` where the value is not known."""
    # No length is checked here: `fit` cuts what is too long, such as the percent of a budget of 1 J.
    return DisplayStatus.model_construct(
        reason=find_reason(status, attempt, reasons) or NONE,
        workers=_display_workers(status, attempt),
        progress=_display_progress(status, attempt),
        energy=_display_energy(status, attempt),
        budget=_display_budget(status.energy, status.emissions),
        emissions=_display_emissions(status.emissions),
        draw=_display_draw(status.energy, attempt),
        cap=_display_cap(status.power),
    )


def _display_workers(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> str:
    if attempt is None or not attempt.replicas:
        return NONE
    counts = status.replica_statuses.values()
    there = sum(c.succeeded for c in counts) if status.completion_time else sum(c.ready for c in counts)
    return f"{there}/{sum(attempt.replicas.values())}"


def _display_progress(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> str:
    progress = status.progress
    if progress is None:
        return NONE if attempt is None else UNKNOWN
    return f"{progress.percent}%" if progress.percent is not None else f"step {progress.step}"


def _display_energy(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> str:
    if status.energy is not None and status.energy.used:
        return status.energy.used
    return UNKNOWN if _asks_for_gpus(attempt) else NONE


def _asks_for_gpus(attempt: AttemptStatus | None) -> bool:
    return attempt is not None and attempt.gpus > 0


def _display_budget(energy: EnergyStatus | None, emissions: EmissionsStatus | None) -> str:
    """Of two budgets the one of which more is used."""
    budgets = [s.budget for s in (energy, emissions) if s is not None and s.budget is not None]
    if budgets:
        return f"{max(b.percent for b in budgets)}%"
    return UNKNOWN if energy is not None and energy.control is not None else NONE


def _display_emissions(emissions: EmissionsStatus | None) -> str:
    """The emissions; a + marks that they are higher, because some of the energy has no intensity."""
    if emissions is None:
        return NONE
    if not emissions.total:
        return UNKNOWN
    return f"{emissions.total}+" if emissions.without_percent else emissions.total


def _display_draw(energy: EnergyStatus | None, attempt: AttemptStatus | None) -> str:
    if energy is None or energy.draw_milliwatts is None:
        running = attempt is not None and attempt.end_time is None
        return UNKNOWN if running and _asks_for_gpus(attempt) else NONE
    return format_power(to_whole_watts(Milliwatts(energy.draw_milliwatts)))


def _display_cap(power: PowerStatus | None) -> str:
    if power is None or not power.cap:
        return NONE
    part = power.gpus_capped < power.gpus
    return f"{power.cap} {power.gpus_capped}/{power.gpus}" if part else power.cap
