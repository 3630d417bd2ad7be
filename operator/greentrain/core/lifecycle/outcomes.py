"""The answers of a gate to a start, and the stop of an attempt under way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Wait:
    """No attempt begins now."""

    reason: str
    """A reason of `greentrain.api.reasons`: it decides the phase, the event and the log line."""
    message: str
    """Why, with the value; no full stop."""
    next_step: str = ""
    """What a user does next, where the table of reasons has no step that fits this case."""
    until: datetime | None = None
    """When the next pass is due, where no event starts it."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The job has failed."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Restart:
    """The job may go on: the gates decide when."""

    message: str


@dataclass(frozen=True, slots=True)
class Stop:
    """An attempt under way must be stopped."""

    reason: str
    message: str
    """Why; recorded in the attempt."""
    then: Wait | Fail | Restart
    """What follows once every pod has ended, by the present state."""
