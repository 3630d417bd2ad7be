"""Which changes of a status are written at once, and the smallest part of it that must be stored."""

from __future__ import annotations

from greentrain.api.budgets import LineStatus
from greentrain.api.conditions import Type
from greentrain.api.status import (
    DisplayStatus,
    EmissionsStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    PowerStatus,
    ProjectionStatus,
)
from greentrain.core.status.accounted import was_accounted


def essence(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
    """The status without what changes all the time: a status of the same essence need not be written at once."""
    return status.model_copy(
        update={
            "progress": None,
            "energy": _energy_essence(status.energy),
            "emissions": _emissions_essence(status.emissions),
            "power": _without_binding(status.power),
            "projection": _projection_essence(status.projection),
            "replica_statuses": {},
            "display": DisplayStatus(),
            "budgets": (),
            "attempts": tuple(
                a.model_copy(
                    update={
                        "start_step": None,
                        "last_step": None,
                        "finished_ranks": (),
                        "energy_joules": None,
                    }
                )
                for a in status.attempts
            ),
            "conditions": tuple(
                c.model_copy(update={"message": ""}) if c.type == Type.PODS_READY else c
                for c in status.conditions
            ),
        }
    )


def _energy_essence(energy: EnergyStatus | None) -> EnergyStatus | None:
    """Which pods' final reports are stored, because agents wait for that. Joules change all the time and are left out."""
    if energy is None:
        return None
    known = tuple(PodEnergyStatus(uid=p.uid, segment=p.segment, final=True) for p in energy.pods if p.final)
    control = energy.control
    if control is not None:
        # After a restart the operator must know the pods that have a charge, and when one was gone.
        charges = tuple(c.model_copy(update={"since": "", "joules": 0}) for c in control.charges)
        control = control.model_copy(update={"charges": charges})
    return EnergyStatus(
        final=energy.final,
        accounted=was_accounted(energy),
        lost_pods=energy.lost_pods,
        counter_faults=energy.counter_faults,
        pods=known,
        settled=energy.settled,
        budget=_line_essence(energy.budget),
        control=control,
    )


def _line_essence(line: LineStatus | None) -> LineStatus | None:
    """A whole percent of the budget is written at once, smaller changes are not."""
    return line and line.model_copy(update={"charged": 0, "reserved": 0})


def _emissions_essence(emissions: EmissionsStatus | None) -> EmissionsStatus | None:
    """The state of its budget, and whether it is final; grams change all the time and are left out."""
    if emissions is None:
        return None
    line = _line_essence(emissions.budget)
    # The bound changes with the intensity.
    budget = line and line.model_copy(update={"bound": None})
    return EmissionsStatus(budget=budget, final=emissions.final)


def _projection_essence(projection: ProjectionStatus | None) -> ProjectionStatus | None:
    """The chosen cap, and whether the job can finish inside its budget; measures change all the time and are left out."""
    if projection is None or projection.percent is None:
        return None
    return ProjectionStatus(percent=projection.percent, cannot_finish=projection.cannot_finish)


def _without_binding(power: PowerStatus | None) -> PowerStatus | None:
    """The power status without how many GPUs their limits slow down, which changes with the load."""
    return None if power is None else power.model_copy(update={"gpus_binding": 0})


SHORT_MESSAGE = 256
"""Characters that are kept of a message in the smallest part of a status."""


def reduce_to_least(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
    """The smallest part that must be stored: what was used, the attempts, the conditions, the phase.

    It is tried where the API server refuses the whole status. What is left out is computed again (counts, columns) or
    measured again (the projection).
    """
    conditions = tuple(c.model_copy(update={"message": c.message[:SHORT_MESSAGE]}) for c in status.conditions)
    attempts = tuple(
        a.model_copy(update={"message": a.message and a.message[:SHORT_MESSAGE]}) for a in status.attempts
    )
    progress = status.progress and status.progress.model_copy(update={"metrics": {}})
    return status.model_copy(
        update={
            "conditions": conditions,
            "attempts": attempts,
            "progress": progress,
            "projection": None,
            "replica_statuses": {},
            "display": DisplayStatus(),
        }
    )


def differs_in_measures_alone(old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> bool:
    """Whether only progress and joules have changed, which are written at intervals."""

    def without(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
        attempts = tuple(a.model_copy(update={"energy_joules": None}) for a in status.attempts)
        power = _without_binding(status.power)
        bare = {
            "progress": None,
            "energy": None,
            "emissions": None,
            "projection": None,
            "power": power,
            "attempts": attempts,
            "budgets": (),
        }
        workers = DisplayStatus(workers=status.display.workers, cap=status.display.cap)
        return status.model_copy(update={**bare, "display": workers})

    return without(old) == without(new)


COALESCE_SECONDS = 1.0
"""Changes of counts alone wait so many seconds for more of them: a gang's pods start one by one."""


def find_write_delay(
    old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, *, since: float, measures_every: float
) -> float | None:
    """In how many seconds a status must be written, `since` seconds after its last write; 0: now; None: nothing changed.

    Decisions are written at once, counts within a second, progress and joules alone every `measures_every` seconds.
    """
    if new == old:
        return None
    if essence(new) != essence(old):
        return 0.0
    wait = measures_every if differs_in_measures_alone(old, new) else COALESCE_SECONDS
    return max(0.0, wait - since)
