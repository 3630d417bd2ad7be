"""The threads that NVML is called on, so that a call which never returns blocks nothing but its own card.

One thread reads all cards in turn while they answer at once, which costs a single switch from the event loop and back. When
it does not finish, each remaining card gets a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

import pynvml

from greentrain.devices.errors import DeviceError, Gone
from greentrain.devices.nvidia.answers import STALE, closed, translate
from greentrain.devices.nvidia.calls import Slot

_T = TypeVar("_T")


class Session:
    """One initialisation of NVML and the threads that use it.

    Threads are our own daemon threads: concurrent.futures would wait at exit for those that hang. The last thread that
    finishes shuts NVML down, since a shutdown beside a hanging call might hang as well.
    """

    unended: set[Session] = set()  # noqa: RUF012 - of all sessions together
    """Sessions that have ended but for calls that hang; while there is one, NVML cannot be initialised again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], None] | None]] = []
        self._running = 0
        self._initialised = False
        self._ending = False
        self._when_ended: Callable[[], None] = lambda: None

    def start(self, job: Callable[[], None]) -> None:
        """Run a job, which never raises, on a thread.

        Raises:
            Unavailable: the session is over.
        """
        with self._lock:
            if self._ending:
                raise closed()
            self._running += 1
            queue = self._idle.pop() if self._idle else None
        if queue is None:
            queue = SimpleQueue()
            threading.Thread(target=self._work, args=(queue,), name="nvml", daemon=True).start()
        queue.put(job)

    def _work(self, queue: SimpleQueue[Callable[[], None] | None]) -> None:
        while (job := queue.get()) is not None:
            job()
            with self._lock:
                self._running -= 1
                if not self._ending:
                    self._idle.append(queue)
                    continue
                last = self._running == 0
            if last:
                self._shut_down()
            return

    async def call(self, function: Callable[[], _T], until: float) -> _T:
        """A function's answer that concerns no single card.

        Raises:
            TimeoutError: it did not return by the time `until` of the event loop.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def job() -> None:
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                send(loop, settle, None, error)
            else:
                send(loop, settle, result, None)

        self.start(job)
        async with asyncio.timeout_at(until):
            return await answer

    def initialise(self) -> None:
        """Initialise NVML; runs on a thread."""
        pynvml.nvmlInit()
        self._initialised = True

    async def end(self, seconds: float) -> bool:
        """Shut NVML down as soon as no call is in progress; returns whether that happened within so many seconds."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._when_ended = lambda: send(loop, ended.set)
        self.unended.add(self)
        with self._lock:
            self._ending = True
            idle, self._idle = self._idle, []
            last = self._running == 0
        for queue in idle:
            queue.put(None)
        if last:
            threading.Thread(target=self._shut_down, name="nvml", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ended.wait()
        return ended.is_set()

    def _shut_down(self) -> None:
        if self._initialised:
            # It may have been lost meanwhile; nothing can be done about it at the end.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self.unended.discard(self)
        self._when_ended()


def send(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in an event loop that may be over by the time a late call returns."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


class Round(Generic[_T]):
    """One request to many cards, taken from a common queue by all threads that work on it.

    Only `readings` decides whether NVML itself is broken: they come at a steady rate, and request what every card has.
    """

    def __init__(self, slots: Sequence[Slot], ask: Callable[[Slot], _T], *, readings: bool) -> None:
        self.waiting = deque(slots)
        self.answers: dict[Slot, _T | DeviceError] = {}
        self.done = asyncio.Event()
        self.bug: Exception | None = None
        self._ask = ask
        self._readings = readings
        self._count = len(slots)
        self._loop = asyncio.get_running_loop()

    def work(self) -> None:
        """Read one card after the other until the queue is empty; runs on a thread."""
        while True:
            try:
                slot = self.waiting.popleft()
            except IndexError:
                return
            begun = slot.since = time.monotonic()
            try:
                answer = self._ask_card(slot)
            except Exception as error:  # noqa: BLE001 - raised again where the round is awaited
                self.bug = error
                self.waiting.clear()
                send(self._loop, self.done.set)
                return
            finally:
                slot.seconds = time.monotonic() - begun
                slot.since = None
            # After `since`, so that for a reader of the answer the card does not count as hanging.
            self.answers[slot] = answer
            if len(self.answers) == self._count:
                send(self._loop, self.done.set)

    def _ask_card(self, slot: Slot) -> _T | DeviceError:
        if slot.gone is not None:
            return slot.gone
        try:
            try:
                answer = self._ask(slot)
            except pynvml.NVMLError as error:
                if error.value not in STALE or slot.handle is None:
                    raise
                # The handle may be wrong: retry with a new one.
                slot.handle = None
                answer = self._ask(slot)
        except pynvml.NVMLError as error:
            if self._readings:
                slot.unknown = slot.unknown + 1 if error.value == pynvml.NVML_ERROR_UNKNOWN else 0
            translated = translate(error, slot.name)
            if isinstance(translated, Gone):
                slot.gone = translated
                slot.handle = None
            return translated
        if self._readings:
            slot.unknown = 0
        return answer
