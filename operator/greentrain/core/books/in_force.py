"""What a job may use and emit as it was admitted last: an edit that is refused changes nothing."""

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
        """Whether anything is limited."""
        return self.energy.budget is not None or self.emissions.budget is not None

    @property
    def is_enforced(self) -> bool:
        """Whether something is limited that stops the job."""
        return self.energy.is_enforced or self.emissions.is_enforced


def spec_in_force(status: GreenTrainingJobStatus) -> BudgetSpec:
    """`spec.energy` and `spec.emissions` as they were admitted last: an edit that is refused changes nothing."""
    admitted, counted = status.admitted or AdmittedSections(), status.emissions
    emissions = admitted.emissions
    if counted is not None:
        # What the spec leaves to the administrator stays as it was counted: a later default changes no sum that is made.
        as_counted = {
            "basis": counted.basis,
            "include_embodied": counted.include_embodied,
            "pue": emissions.pue or counted.pue or None,
        }
        emissions = emissions.model_copy(update=as_counted)
    return BudgetSpec(admitted.energy, emissions)
