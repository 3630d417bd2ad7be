"""What a gate says of a start, and a stop of an attempt under way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Wait:
    """No attempt begins now."""

    reason: str
    """A word of `greentrain.api.reasons`: it decides the phase, the event and the log line."""
    message: str
    """Why, with the number; no full stop."""
    next_step: str = ""
    """What a person does next, where the case knows more than the table of reasons."""
    until: datetime | None = None
    """When to look again, where no event brings it."""


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
    """Why; the attempt records it."""
    then: Wait | Fail | Restart
    """What follows once every pod has ended, as things stand now."""
