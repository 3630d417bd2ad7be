"""What one pass knows about a job's energy, its emissions and its budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from greentrain.api.spec import OnUnknown
from greentrain.api.status import EmissionsStatus, EnergyStatus
from greentrain.core.books.lines import BudgetState
from greentrain.core.seen.pods import Pod


@dataclass(frozen=True, slots=True)
class Books:
    """What one pass knows about a job's energy, its emissions and its budgets."""

    energy: EnergyStatus | None = None
    emissions: EmissionsStatus | None = None
    growth: Mapping[int, int] = field(default_factory=dict)
    """By how many joules each attempt's energy has grown since the status was stored."""
    budgets: tuple[BudgetState, ...] = ()
    """The state of each budget."""
    on_unknown: OnUnknown = OnUnknown.CONTINUE
    unread: tuple[Pod, ...] = ()
    """Running pods without a report for so long that their energy is unknown."""
    waiting_for: tuple[str, ...] = ()
    """Nodes whose silence stopped the job and that are still silent."""
    look_again: datetime | None = None
    """When the next pass is due: a report is then overdue, or its charge has grown."""
    unpriced: str = ""
    """Why a budget of emissions cannot be checked: there is no intensity now. Empty where it can be."""

    @property
    def exhausted(self) -> tuple[BudgetState, ...]:
        """The budgets that are spent, those with the strictest action first."""
        exhausted = (s for s in self.budgets if s.exhausted)
        return tuple(sorted(exhausted, key=lambda s: (s.action.fails, s.action.stops), reverse=True))

    @property
    def stopping(self) -> BudgetState | None:
        """The budget for which the job may not run: of several, the one with the strictest action."""
        return next((s for s in self.exhausted if s.stops), None)

    @property
    def words(self) -> str:
        """Which budgets are spent, in one sentence."""
        return "; ".join(s.words for s in self.exhausted)

    @property
    def unknown_stops(self) -> bool:
        """Whether the job may not run because its energy is not known."""
        return self.on_unknown.stops and bool(self.unread or self.waiting_for)
