"""A keyed work queue: each key is worked on by one worker at a time, and never lost.

The semantics are those of client-go's workqueue: adding a waiting key does nothing, adding one that is worked on has it come
again afterwards, failures back off per key. client-go lacks four things:

- A key can be deferred, whatever events come in meanwhile, because a server that sent Retry-After means it.
- Frequent events that are not urgent (`add_soon`) are taken together: a job on a thousand nodes, each of which reports every
  30 s, is worked on every other second, not 34 times in one.
- What is urgent goes ahead of them, for a bounded time: a pod that has died does not wait for the reports of a thousand nodes.
- Taking a key cancels its timer: a pass plans when the next one is due, by what it finds then. Else each plan that is
  outdated by news would be one more time.
"""

from __future__ import annotations

import asyncio
import itertools
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
        self._ready: asyncio.PriorityQueue[tuple[float, int, K]] = asyncio.PriorityQueue()
        """Keys by their turn. A key whose turn was moved forward is in it a second time, and counts once."""
        self._count = itertools.count()
        self._handing_out = asyncio.Lock()
        """Each round of the event loop hands out one key, not one for each worker that is free: probes are answered in between,
        and what is urgent does not find many turns given away."""
        self._waiting: dict[K, float] = {}
        """The turn of each key that waits, in the loop's seconds: the lowest is next."""
        self._working: set[K] = set()
        self._again: dict[K, float] = {}
        """Keys that were added while they are worked on, and their turns."""
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
        now = asyncio.get_running_loop().time()
        self._add(key, turn=now, since=now)

    def _add(self, key: K, *, turn: float, since: float) -> None:
        """Have the key wait for its turn, or for the end of its deferral; it is due `since` then. The earliest turn wins."""
        deferred = self._deferred.get(key)
        if deferred is not None:
            left = deferred - asyncio.get_running_loop().time()
            if left > 0:
                self.add_after(key, left)
                return
            del self._deferred[key]
        if key in self._working:
            self._again[key] = min(turn, self._again.get(key, inf))
            return
        self._due[key] = min(since, self._due.get(key, inf))
        if turn < self._waiting.get(key, inf):
            self._waiting[key] = turn
            self._ready.put_nowait((turn, next(self._count), key))

    def add_soon(self, key: K, seconds: float) -> None:
        """Have the key worked on, but not within so many seconds of the last time; events meanwhile are taken with it.

        So a quiet key comes at once. `add` does not wait, and takes along the waiting events. For so many seconds after the first
        of its events a key also lets those go ahead that were added by `add` meanwhile; after that it has its turn among them.
        The wait is part of a budget's overshoot bound (`core.books.overshoot.REPORTS_WAIT_SECONDS`): a report for which a job is
        stopped may have to wait for it.
        """
        now = asyncio.get_running_loop().time()
        due = self._taken.get(key, -inf) + seconds
        if due <= now:
            self._add(key, turn=now + seconds, since=now)
        elif key not in self._soon and key not in self._waiting:
            timer = asyncio.get_running_loop().call_at(due, self._fire_soon, key, seconds)
            self._soon[key] = (timer, now)

    def _fire_soon(self, key: K, seconds: float) -> None:
        # Whether it is worked on in time counts from the first report.
        _, since = self._soon.pop(key)
        self._add(key, turn=since + seconds, since=since)

    def add_after(self, key: K, seconds: float) -> None:
        """Have the key worked on after a delay, unless it is taken before; the earliest of several wins."""
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
        """Wait for the key whose turn it is; `done` must follow. Its timer and its waiting events end with that."""
        async with self._handing_out:
            await asyncio.sleep(0)
            while True:
                turn, _, key = await self._ready.get()
                if self._waiting.get(key) == turn:
                    break
        del self._waiting[key]
        self._working.add(key)
        self._taken[key] = asyncio.get_running_loop().time()
        self._end_wait(key)
        self._end_timer(key)
        return key

    def _end_wait(self, key: K) -> None:
        waiting = self._soon.pop(key, None)
        if waiting is not None:
            waiting[0].cancel()

    def _end_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def done(self, key: K) -> None:
        """The key was worked on, with whatever result."""
        self._working.discard(key)
        self._due.pop(key, None)
        turn = self._again.pop(key, None)
        if turn is not None:
            self._add(key, turn=turn, since=asyncio.get_running_loop().time())

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
        self._end_timer(key)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for timer, _ in self._soon.values():
            timer.cancel()
        self._soon.clear()
