"""What a job may use and emit, as last admitted: a refused edit changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.api.spec import EmissionsSpec, EnergySpec
from greentrain.api.status import AdmittedSections, GreenTrainingJobStatus


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """What a job may use and emit, and how that is counted."""

    energy: EnergySpec
    emissions: EmissionsSpec

    @property
    def has_budget(self) -> bool:
        """Whether there is a budget."""
        return self.energy.budget is not None or self.emissions.budget is not None

    @property
    def is_enforced(self) -> bool:
        """Whether there is a budget that stops the job."""
        return self.energy.is_enforced or self.emissions.is_enforced


def spec_in_force(status: GreenTrainingJobStatus) -> BudgetSpec:
    """`spec.energy` and `spec.emissions` as last admitted: a refused edit changes nothing."""
    admitted, counted = status.admitted or AdmittedSections(), status.emissions
    emissions = admitted.emissions
    if counted is not None:
        # Where the spec leaves a setting to the administrator, the stored one stays: a later default must not change past sums.
        as_counted = {
            "basis": counted.basis,
            "include_embodied": counted.include_embodied,
            "pue": emissions.pue or counted.pue or None,
        }
        emissions = emissions.model_copy(update=as_counted)
    return BudgetSpec(admitted.energy, emissions)
