"""What happened in a life, in order and counted: printed where a rule is broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

LAST_LINES = 120


class Killed(Exception):  # noqa: N818 - an event of the story, not an error
    """A program was killed here, as by SIGKILL."""


@dataclass
class Story:
    """Lines with the seconds at which they happened."""

    lines: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def say(self, seconds: float, line: str) -> None:
        self.lines.append(f"{seconds:6.0f} {line}")

    def count(self, what: str) -> None:
        self.happened[what] += 1

    @property
    def text(self) -> str:
        """The last lines, for a message."""
        return "\n".join(self.lines[-LAST_LINES:])
