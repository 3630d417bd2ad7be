"""An agent's clocks: a monotonic one, and the wall clock."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where an agent reads time; tests pass their own."""

    def elapsed(self) -> float:
        """Seconds since the machine's start, suspended time included."""
        ...

    def suspended(self) -> float:
        """Seconds of that for which the machine was suspended."""
        ...

    def wall(self) -> float:
        """Unix time in seconds; may be stepped."""
        ...

    def boot(self) -> str:
        """The kernel's name for this run of the machine."""
        ...

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        """Wait, or until `wake` is set; returns whether it was."""
        ...


class MachineClock:
    """The machine's own."""

    def __init__(self) -> None:
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def elapsed(self) -> float:
        """CLOCK_BOOTTIME (clock_gettime(2)): no step of the wall clock touches it."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def suspended(self) -> float:
        """What CLOCK_MONOTONIC lacks (clock_gettime(2))."""
        return max(0.0, self.elapsed() - time.clock_gettime(time.CLOCK_MONOTONIC))

    def wall(self) -> float:
        """The system's clock."""
        return time.time()

    def boot(self) -> str:
        """/proc/sys/kernel/random/boot_id."""
        return self._boot

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        """The event loop's."""
        if wake is None:
            await asyncio.sleep(seconds)
            return False
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            return False
        return True
