"""What a job may use and emit as it was admitted last: an edit that is refused changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.api.v1alpha1 import (
    EmissionsSpec,
    EmissionsStatus,
    EnergySpec,
    EnergyStatus,
    GreenTrainingJobStatus,
    OnExhausted,
)


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
