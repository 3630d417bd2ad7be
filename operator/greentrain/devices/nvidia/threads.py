"""The threads that NVML is called on, so that a call which never returns holds up nothing but its own card.

One thread asks all cards in turn while they answer at once, which costs a single hop from the event loop and back; when it
does not come to an end, each card left gets a thread of its own.
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

    Threads are daemons of our own: concurrent.futures would wait at exit for those that hang. NVML is shut down by
    whichever thread is the last to be done, since a shutdown beside a hanging call might hang as well.
    """

    unended: set[Session] = set()  # noqa: RUF012 - of all sessions together
    """Sessions that are over but for calls that hang; while there is one, NVML cannot be initialised anew."""

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
        """What a function answers that concerns no single card.

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
        """Shut NVML down as soon as no call is under way; whether that came about within so many seconds."""
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
            # It may have been lost meanwhile; there is nothing to be done about it at the end.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self.unended.discard(self)
        self._when_ended()


def send(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in an event loop that may be over by the time a late call returns."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


class Round(Generic[_T]):
    """One question to many cards, taken from a common pile by however many threads work on it.

    Whether NVML itself is broken is judged by `readings` alone: they come at a steady rate, and ask what every card has.
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
        """Ask one card after the other until the pile is empty; runs on a thread."""
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
            # After `since`, so that a reader of the answer does not take the card for one that hangs.
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
                # The handle may be what is wrong: once more with a new one.
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
