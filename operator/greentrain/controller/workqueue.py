"""A keyed work queue: each key is worked on by one worker at a time, and never lost.

The semantics are those of client-go's workqueue: adding a waiting key does nothing, adding one that is worked on has it come
again afterwards, failures back off per key. client-go lacks two things. A key can be deferred, whatever events come in
meanwhile, because a server that sent Retry-After means it. And frequent events that are not urgent (`add_soon`) are taken
together: a job on a thousand nodes, each of which reports every 30 s, is worked on every other second, not 34 times in one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 60.0
JITTER = 0.25
"""Random share added to a delay, so that jobs that an outage stopped together do not come back together."""


class WorkQueue(Generic[K]):
    """Keys waiting for work; belongs to one event loop."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()
        self._deferred: dict[K, float] = {}
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        """Since when each key that waits or is worked on has been due, in the loop's seconds."""
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._taken: dict[K, float] = {}
        """When a worker last took each key."""
        self._soon: dict[K, tuple[asyncio.TimerHandle, float]] = {}
        """Keys of `add_soon` that wait to be taken together, and since when."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Have the key worked on as soon as a worker is free, or when its deferral ends."""
        deferred = self._deferred.get(key)
        if deferred is not None:
            left = deferred - asyncio.get_running_loop().time()
            if left > 0:
                self.add_after(key, left)
                return
            del self._deferred[key]
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._due[key] = asyncio.get_running_loop().time()
            self._ready.put_nowait(key)

    def add_soon(self, key: K, seconds: float) -> None:
        """Have the key worked on, but not within so many seconds of the last time; events meanwhile are taken with it.

        So a quiet key comes at once. `add` does not wait, and takes along the waiting events. The wait is part of a budget's
        overshoot bound (`core.books.overshoot.REPORTS_WAIT_SECONDS`): a report for which a job is stopped may have to wait for
        it.
        """
        now = asyncio.get_running_loop().time()
        due = self._taken.get(key, -inf) + seconds
        if due <= now:
            self.add(key)
        elif key not in self._soon and key not in self._waiting:
            timer = asyncio.get_running_loop().call_at(due, self._fire_soon, key)
            self._soon[key] = (timer, now)

    def _fire_soon(self, key: K) -> None:
        _, since = self._soon.pop(key)
        self.add(key)
        if key in self._waiting:
            # Whether it is worked on in time counts from the first report.
            self._due[key] = min(self._due[key], since)

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
        self._taken[key] = asyncio.get_running_loop().time()
        self._end_wait(key)
        return key

    def _end_wait(self, key: K) -> None:
        waiting = self._soon.pop(key, None)
        if waiting is not None:
            waiting[0].cancel()

    def done(self, key: K) -> None:
        """The key was worked on, with whatever result."""
        self._working.discard(key)
        self._due.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def retry(self, key: K, *, not_before: float | None = None) -> float:
        """Have a failed key come again, later each time; returns the delay in seconds.

        With `not_before` (seconds) the key is deferred: nothing makes it come earlier.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_DELAY_SECONDS * (1 << min(failures, 20)), LONGEST_DELAY_SECONDS)
        delay = max(delay, not_before or 0.0) * (1 + JITTER * self._chance.random())
        if not_before is not None:
            self._deferred[key] = asyncio.get_running_loop().time() + not_before
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
        """Reset a key's failures."""
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """Drop everything about a key that no longer exists."""
        self.succeeded(key)
        self._deferred.pop(key, None)
        self._taken.pop(key, None)
        self._end_wait(key)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for timer, _ in self._soon.values():
            timer.cancel()
        self._soon.clear()
