"""The operator's one clock: it counts on from the time of its start, whatever happens to the machine's clock.

Deadlines, back-offs and settle windows compare times that the operator itself wrote. A wall clock that is stepped back by an
hour would delay every restart by an hour; one stepped forward would end deadlines too early. So the wall clock is read once,
and from then on elapsed time is added, which no step changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

logger = logging.getLogger("greentrain.controller")

TOLERATED_SECONDS = 5.0
"""Departure of the wall clock that is not worth a warning: NTP slews smaller errors away (it steps above 0.128 s,
chrony by default only at its start)."""


def read_clock() -> datetime:
    """The wall clock, in UTC; for `SteadyClock` alone."""
    return datetime.now(UTC)  # noqa: TID251 - the shell


def read_elapsed() -> float:
    """Seconds since boot, suspended time included: CLOCK_BOOTTIME (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """The time: the wall clock's at the start plus what has elapsed since."""

    def __init__(
        self,
        wall: Callable[[], datetime] = read_clock,
        elapsed: Callable[[], float] = read_elapsed,
    ) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._origin = wall() - timedelta(seconds=elapsed())
        self._reported = 0.0

    def __call__(self) -> datetime:
        """The time in UTC; never goes back. Warns in the log once for each step of the wall clock."""
        departure = self.departure()
        if abs(departure - self._reported) > TOLERATED_SECONDS:
            self._reported = departure
            logger.warning(
                "the machine's clock is now %+.0f s from the time the operator counts since its start; the operator "
                "goes on with its own. Restart it if the machine's clock is right now",
                departure,
            )
        return self._origin + timedelta(seconds=self._elapsed())

    def departure(self) -> float:
        """How far the wall clock is ahead of this one, in seconds; negative where it is behind."""
        return (self._wall() - self._origin).total_seconds() - self._elapsed()
