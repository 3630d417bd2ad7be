"""What one kilowatt-hour of the grid emitted at a moment, its source, and for how long it is valid.

Two numbers of the same grid differ by their *basis*: `Lifecycle` counts fuel supply, building and disposal of power
stations too, `Direct` only what leaves their stacks. They are never mixed in one sum, so each value has its own.

A value that was published before its time began is a *forecast*: it may change until it is observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from greentrain import quantities
from greentrain.api.spec import Basis

MAX_SOURCE_LENGTH = 64
"""Characters a source's short name may have: a job's status contains it once per source."""

UNDATED = -inf
"""`as_of` of a value whose time is not known."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """Emissions per energy, from `begin` up to but not including `end`.

    Raises:
        ValueError: it is negative, its source has no name or one of more than 64 characters, or its time or step is empty.
    """

    milligrams: quantities.Intensity
    """Milligrams of CO2 equivalent per kilowatt-hour."""
    source: str
    basis: Basis
    begin: float = -inf
    """Unix seconds; -inf where it was always valid."""
    end: float = inf
    as_of: float = UNDATED
    """Unix time the value is of: the period's beginning in a time series, 1 January after the year of an annual average."""
    step: float | None = None
    """Seconds from one value of its source to the next, in a time series; None for a value that has no next one."""
    issued: float | None = None
    """Unix time at which the source published it; None where its format does not give it."""

    @property
    def is_forecast(self) -> bool:
        """Whether it was published before its time began."""
        return self.issued is not None and self.issued < self.as_of

    def __post_init__(self) -> None:
        if self.milligrams < 0:
            raise ValueError(f"an intensity of {self.milligrams} mg/kWh: it cannot be negative")
        if not 1 <= len(self.source) <= MAX_SOURCE_LENGTH:
            raise ValueError(
                f"a source's name has 1 to {MAX_SOURCE_LENGTH} characters, not {len(self.source)}"
            )
        if self.step is not None and not self.step > 0:
            raise ValueError(f"a step of {self.step} s: it must be positive")
        _check_period(self.begin, self.end)

    def covers(self, moment: float) -> bool:
        """Whether it is valid at this Unix time."""
        return self.begin <= moment < self.end


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no value from `begin` up to but not including `end`, and why.

    Raises:
        ValueError: its time is empty.
    """

    reason: str
    """A message: the zone, the source and what would help."""
    begin: float = -inf
    end: float = inf
    """Unix seconds, so that a gap in a series ends where the series goes on."""

    def __post_init__(self) -> None:
        _check_period(self.begin, self.end)

    def covers(self, moment: float) -> bool:
        """Whether the gap includes this Unix time."""
        return self.begin <= moment < self.end


Lookup = Callable[[float], Intensity | Absent]
"""Unix time → what was valid then; zone and basis are chosen already."""


def _check_period(begin: float, end: float) -> None:
    if not begin < end:
        raise ValueError(f"a period from {begin} to {end} has no time in it")
