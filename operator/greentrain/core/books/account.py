"""What one pass counts a job's energy and emissions from: the snapshot, the limits in force, and the attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from greentrain.api.reasons import Reason
from greentrain.api.spec import EmissionsSpec
from greentrain.api.status import AttemptStatus, EmissionsStatus, EnergyStatus
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.seen.intensities import Intensities
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.snapshot import Snapshot
from greentrain.quantities import THOUSANDTHS, Thousandths, parse_pue, typed

STOPPED_FOR_BUDGET = frozenset({Reason.BUDGET_EXHAUSTED, Reason.READINGS_STOPPED, Reason.ALLOWANCE_SPENT})
"""Reasons of attempts that were stopped to keep a budget."""


class Stage(Enum):
    """The state of a job, as far as a budget is concerned."""

    RUNNING = "running"
    BETWEEN_ATTEMPTS = "between attempts"
    OVER = "over"


def pue_of(spec: EmissionsSpec, intensities: Intensities | None) -> Thousandths:
    """The PUE that an attempt which starts now is counted with; 1.0 where none is set."""
    if spec.pue is not None:
        return parse_pue(spec.pue)
    return (intensities.pue if intensities is not None else None) or THOUSANDTHS


@dataclass(frozen=True, slots=True)
class Account:
    """What the calculations of a pass are given."""

    seen: Snapshot
    spec: BudgetSpec
    """What the job may use and emit, and how that is counted."""
    attempt: AttemptStatus | None
    """The attempt under way, as this pass has it; None between attempts."""
    now: datetime

    @property
    def stored(self) -> EnergyStatus | None:
        """The energy in the job's stored status."""
        return self.seen.job.status.energy

    @property
    def stored_emissions(self) -> EmissionsStatus | None:
        """The emissions in the job's stored status."""
        return self.seen.job.status.emissions

    @property
    def reports(self) -> tuple[NodeReport, ...]:
        """What nodes have reported about the job."""
        return self.seen.reports

    @property
    def intensities(self) -> Intensities | None:
        """What emissions are counted with; None where no source is configured."""
        return self.seen.intensities

    @property
    def over(self) -> bool:
        """Whether the job has completed."""
        return self.seen.job.status.completion_time is not None

    @property
    def stage(self) -> Stage:
        """The state of the job."""
        if self.over:
            return Stage.OVER
        return Stage.BETWEEN_ATTEMPTS if self.attempt is None else Stage.RUNNING

    @property
    def attempts(self) -> tuple[AttemptStatus, ...]:
        """All recorded attempts, with the one under way as this pass has it."""
        known = self.seen.job.status.attempts
        if self.attempt is None:
            return known
        return (*(a for a in known if a.number != self.attempt.number), self.attempt)

    @property
    def last(self) -> AttemptStatus | None:
        """The attempt under way, else the last recorded one."""
        return self.attempt or next(reversed(self.seen.job.status.attempts), None)

    @property
    def stopping(self) -> bool:
        """Whether the job was, or is being, stopped to keep a budget."""
        return self.last is not None and self.last.reason in STOPPED_FOR_BUDGET

    @property
    def stop_seconds(self) -> int:
        """How long a stop of the attempt under way takes; 0 where there is none."""
        return (self.attempt.stop_seconds if self.attempt is not None else None) or 0

    @property
    def default_pue(self) -> Thousandths:
        """The PUE that an attempt which starts now is counted with, in thousandths; 1.0 where none is set."""
        return pue_of(self.spec.emissions, self.intensities)

    @property
    def pue(self) -> Thousandths:
        """The PUE of the attempt under way, in thousandths; without one, that of an attempt which starts now."""
        known = self.attempt.pue_thousandths if self.attempt is not None else None
        return typed(Thousandths, known) or self.default_pue
