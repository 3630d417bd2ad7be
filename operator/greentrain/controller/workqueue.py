"""A keyed work queue: each key is worked on by one worker at a time, and never forgotten.

The semantics are those of client-go's workqueue: adding a waiting key does nothing, adding one that is
being worked on has it come again afterwards, failures back off per key. What client-go lacks: a key can be
held back, because a server that said Retry-After means it, whatever events come in meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 60.0
JITTER = 0.25
"""Share of a delay added by chance, so that jobs an outage stopped together do not come back together."""


class WorkQueue(Generic[K]):
    """Keys waiting for work; belongs to one event loop."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()
        self._held: dict[K, float] = {}
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        """Since when each key that waits or is worked on has been due, in the loop's seconds."""
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Have the key worked on as soon as a worker is free, or when its hold ends."""
        held = self._held.get(key)
        if held is not None:
            left = held - asyncio.get_running_loop().time()
            if left > 0:
                self.add_after(key, left)
                return
            del self._held[key]
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._due[key] = asyncio.get_running_loop().time()
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Have the key worked on after a delay; the earliest of several wins."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def get(self) -> K:
        """Wait for a key; `done` must follow."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The key was worked on, whatever came of it."""
        self._working.discard(key)
        self._due.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def retry(self, key: K, *, not_before: float | None = None) -> float:
        """Have a key that failed come again, later each time; the delay in seconds.

        With `not_before` (seconds) the key is held: nothing makes it come earlier.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_DELAY_SECONDS * (1 << min(failures, 20)), LONGEST_DELAY_SECONDS)
        delay = max(delay, not_before or 0.0) * (1 + JITTER * self._chance.random())
        if not_before is not None:
            self._held[key] = asyncio.get_running_loop().time() + not_before
        self.add_after(key, delay)
        return delay

    def late(self, seconds: float) -> list[K]:
        """Keys that have been due for so long and are not done."""
        since = asyncio.get_running_loop().time() - seconds
        return [key for key, due in self._due.items() if due <= since]

    def failures(self, key: K) -> int:
        """How often in a row the key has failed."""
        return self._failures.get(key, 0)

    def succeeded(self, key: K) -> None:
        """Forget a key's failures."""
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """Forget everything about a key that is no more."""
        self.succeeded(key)
        self._held.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
