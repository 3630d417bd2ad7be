"""The columns of kubectl get."""

from __future__ import annotations

from greentrain.api.conditions import Reason, Type, find_condition, is_true
from greentrain.api.v1alpha1 import (
    AttemptStatus,
    DisplayStatus,
    EmissionsStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PowerStatus,
)


def phase(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> str:
    """One word for people, derived from the conditions; no program may read it."""
    conditions = status.conditions
    admitted = find_condition(conditions, Type.ADMITTED)
    suspended = find_condition(conditions, Type.SUSPENDED)
    live = attempt is not None and attempt.end_time is None
    for type_ in (Type.FAILED, Type.SUCCEEDED):
        if is_true(conditions, type_):
            return type_.value
    if (
        admitted is not None
        and admitted.status == "False"
        and not (live and is_true(conditions, Type.RUNNING))
    ):
        return "Refused"
    if suspended is not None and suspended.status == "True":
        return "Suspended"
    if suspended is not None and suspended.reason == Reason.SUSPENDING:
        return "Suspending"
    for type_ in (Type.RUNNING, Type.RESTARTING):
        if is_true(conditions, type_):
            return type_.value
    if attempt is not None and live and attempt.broken_time:
        return "Degraded"
    return "Starting" if is_true(conditions, Type.CREATED) else "Pending"


def display(status: GreenTrainingJobStatus, attempt: AttemptStatus | None) -> DisplayStatus:
    """Words for the columns of kubectl get."""
    workers = ""
    if attempt is not None and attempt.replicas:
        wanted = sum(attempt.replicas.values())
        counts = status.replica_statuses.values()
        there = sum(c.succeeded for c in counts) if status.completion_time else sum(c.ready for c in counts)
        workers = f"{there}/{wanted}"
    progress = status.progress
    text = ""
    if progress is not None:
        text = f"{progress.percent}%" if progress.percent is not None else f"step {progress.step}"
    # Not checked here: `fit` cuts what is too long, such as the percent of a budget of 1 J.
    return DisplayStatus.model_construct(
        workers=workers,
        progress=text,
        energy=status.energy.used if status.energy is not None else "",
        budget=_display_budget(status.energy, status.emissions),
        emissions=_display_emissions(status.emissions),
        draw=_display_draw(status.energy),
        cap=_display_cap(status.power),
    )


def _display_budget(energy: EnergyStatus | None, emissions: EmissionsStatus | None) -> str:
    """Of two budgets the one that is nearer to its end."""
    percents = [
        section.budget.percent
        for section in (energy, emissions)
        if section is not None and section.budget is not None and section.budget.percent is not None
    ]
    return f"{max(percents)}%" if percents else ""


def _display_emissions(emissions: EmissionsStatus | None) -> str:
    """A + says that it is more: some of the energy has no intensity."""
    if emissions is None or not emissions.total:
        return ""
    return f"{emissions.total}+" if emissions.without_percent else emissions.total


def _display_draw(energy: EnergyStatus | None) -> str:
    if energy is None or energy.draw_milliwatts is None:
        return ""
    return f"{round(energy.draw_milliwatts / 1000)}W"


def _display_cap(power: PowerStatus | None) -> str:
    if power is None:
        return ""
    part = power.gpus_capped < power.gpus
    return f"{power.cap} {power.gpus_capped}/{power.gpus}" if part else power.cap
