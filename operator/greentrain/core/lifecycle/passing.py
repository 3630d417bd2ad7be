"""What every step of a pass uses: the snapshot, the time, the rules, and the writer of the status."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from greentrain.api.reasons import REASONS, Reasons
from greentrain.core.books.books import Books
from greentrain.core.lifecycle.gates import GATES, Gate
from greentrain.core.lifecycle.stops import STOPS, StopRule
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.status.writer import Writer


@dataclass(frozen=True, slots=True)
class Rules:
    """The tables that a pass decides by."""

    gates: tuple[Gate, ...] = GATES
    stops: tuple[StopRule, ...] = STOPS
    reasons: Reasons = field(default_factory=lambda: REASONS)


RULES = Rules()
"""The shipped tables."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over one job."""

    seen: Snapshot
    now: datetime
    rules: Rules
    writer: Writer

    @property
    def books(self) -> Books:
        """What is known about the job's energy, emissions and budgets."""
        return self.writer.books
