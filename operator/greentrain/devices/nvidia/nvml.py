"""Reads NVIDIA GPUs through NVML; the only user of pynvml, so that nothing else can hang in a driver.

An NVML call can take seconds or never return, on a card that is failing. So calls run on threads: one thread asks all
cards in turn while they answer at once, which costs a single hop from the event loop and back; when it does not come
to an end, each card left gets a thread of its own. A card whose call has not returned is not asked anything else, so no
more threads can be lost than there are cards.

Cards are known by UUID. NVML's indices hold only from one initialisation to the next.

What NVML's answers mean is in its reference (docs.nvidia.com/deploy/nvml-api, nvmlReturn_t), what they mean for the
caller in `_translate` and `_UNUSABLE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

import pynvml

from greentrain.api.nodepower import PowerLimits
from greentrain.devices.errors import (
    DeviceError,
    Gone,
    Hanging,
    NotPermitted,
    OutOfRange,
    Retry,
    Unavailable,
    Unsupported,
)
from greentrain.energy.intervals import CardReading
from greentrain.node.cards import Card, CurrentLimits, Partition, known_limit
from greentrain.units import format_power

BUSY_PERCENT = 5
"""Utilization from which a card counts as working; an assumption, for NVML names no threshold."""

MOST_MILLIWATTS = 10_000_000
"""A power above 10 kW is garbage, not a reading: no card comes near it."""

SLOW_SECONDS = 0.05
"""A card that took longer than this is asked on a thread of its own the next time."""

UNKNOWN_ROUNDS = 3
"""After so many rounds in which every card answered UNKNOWN, NVML itself is taken for broken."""

OPEN_SECONDS = 60.0
"""How long initialising may take: without persistence mode the driver starts every card first."""

DISCOVER_SECONDS = 4.0
READ_SECONDS = 2.0
CLOSE_SECONDS = 2.0

_T = TypeVar("_T")

_ABSENT = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_STALE = frozenset(
    {pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_NOT_FOUND}
)
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})

_NO_DRIVER = (
    "Install NVIDIA's driver on this node, and run the agent's pod with the nvidia runtime class and"
    " NVIDIA_DRIVER_CAPABILITIES=utility."
)
# Answers that concern no single card: the reason and the remedy.
_UNUSABLE: dict[int, tuple[str, str]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("libnvidia-ml.so.1 is not found", _NO_DRIVER),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the driver is not loaded",
        "Load it (modprobe nvidia, or wait for the driver's pod), and see dmesg if it does not load.",
    ),
    # A library once loaded stays with its program, so opening anew may not be enough.
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the loaded driver is of another version than libnvidia-ml.so.1",
        "After an update of the driver restart the agent's pod; if that does not help, reboot the node.",
    ),
    pynvml.NVML_ERROR_UNINITIALIZED: (
        "it is not initialised any more",
        "It is initialised when opened anew.",
    ),
}
_ELSE_UNUSABLE = "See dmesg and nvidia-smi on this node; if neither answers, reboot it."


def _unusable(code: int) -> Unavailable:
    why, remedy = _UNUSABLE.get(code, (f"it answered «{pynvml.NVMLError(code)}»", _ELSE_UNUSABLE))
    return Unavailable("NVML", why, remedy)


def _translate(error: pynvml.NVMLError, device: str) -> DeviceError:
    code: int = error.value
    if code in _UNUSABLE:
        return _unusable(code)
    if code in _ABSENT:
        return Unsupported(f"such call to NVML for {device}")
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return NotPermitted(device, "NVML demands root; run the agent's pod privileged")
    if code == pynvml.NVML_ERROR_OPERATING_SYSTEM:
        return NotPermitted(device, "its device file is blocked; run the agent's pod privileged")
    if code == pynvml.NVML_ERROR_RESET_REQUIRED:
        return Gone(device, "it needs a reset (nvidia-smi --gpu-reset, or reboot the node)")
    if code == pynvml.NVML_ERROR_GPU_IS_LOST:
        return Gone(device, "it fell off the bus or cannot be reached; drain and reboot the node")
    if code in _STALE:
        return Gone(device, "NVML does not know it any more")
    return Retry(device, f"NVML answered «{error}»")


class _Slot:
    """A card by its index in this session, known by its UUID as soon as it told it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.card: Card | None = None
        self.handle: Any = None
        self.gone: Gone | None = None
        """Set while it is lost: it is left alone until the next discovery, for each look-up of a lost card makes the
        driver try to start it."""
        self.failure: DeviceError | None = None
        """Why the last discovery failed."""
        self.absent: set[Callable[[Any], object]] = set()
        """What it was found not to support."""
        self.unknown = 0
        """How many times in a row it has answered UNKNOWN."""
        self.since: float | None = None
        """Since when a call has been under way, in time.monotonic()."""
        self.seconds = 0.0
        """How long it took the last time."""

    @property
    def name(self) -> str:
        return f"The GPU with index {self.index}" if self.card is None else self.card.uuid

    def hang(self) -> Hanging | None:
        since = self.since
        return None if since is None else Hanging(self.name, time.monotonic() - since)


class _Session:
    """One initialisation of NVML and the threads that use it.

    Threads are daemons of our own: concurrent.futures would wait at exit for those that hang. NVML is shut down by
    whichever thread is the last to be done, since a shutdown beside a hanging call might hang as well.
    """

    unended: set[_Session] = set()  # noqa: RUF012 - of all sessions together
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
                raise _closed()
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
                _tell(loop, settle, None, error)
            else:
                _tell(loop, settle, result, None)

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
        self._when_ended = lambda: _tell(loop, ended.set)
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


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in an event loop that may be over by the time a late call returns."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


class _Round(Generic[_T]):
    """One question to many cards, taken from a common pile by however many threads work on it.

    Whether NVML itself is broken is judged by `readings` alone: they come at a steady rate, and ask what every card has.
    """

    def __init__(self, slots: Sequence[_Slot], ask: Callable[[_Slot], _T], *, readings: bool) -> None:
        self.waiting = deque(slots)
        self.answers: dict[_Slot, _T | DeviceError] = {}
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
                _tell(self._loop, self.done.set)
                return
            finally:
                slot.seconds = time.monotonic() - begun
                slot.since = None
            # After `since`, so that whoever sees the answer does not take the card for one that hangs.
            self.answers[slot] = answer
            if len(self.answers) == self._count:
                _tell(self._loop, self.done.set)

    def _ask_card(self, slot: _Slot) -> _T | DeviceError:
        if slot.gone is not None:
            return slot.gone
        try:
            try:
                answer = self._ask(slot)
            except pynvml.NVMLError as error:
                if error.value not in _STALE or slot.handle is None:
                    raise
                # The handle may be what is wrong: once more with a new one.
                slot.handle = None
                answer = self._ask(slot)
        except pynvml.NVMLError as error:
            if self._readings:
                slot.unknown = slot.unknown + 1 if error.value == pynvml.NVML_ERROR_UNKNOWN else 0
            translated = _translate(error, slot.name)
            if isinstance(translated, Gone):
                slot.gone = translated
                slot.handle = None
            return translated
        if self._readings:
            slot.unknown = 0
        return answer


class Gpus(AbstractAsyncContextManager["Gpus"]):
    """The node's GPUs from `open` to `close`; requests go one at a time, waiting counts towards their deadline.

    `Unavailable` from any method means that NVML as a whole is lost: this object is closed then, open another one after
    a while. Every other error is one card's alone and ends by itself: read on each second.
    """

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._turns = asyncio.Lock()
        self._slots: list[_Slot] = []
        self._missing: dict[str, Card] = {}
        self._closed = False

    @classmethod
    async def open(cls, *, deadline: float = OPEN_SECONDS) -> Gpus:
        """Initialise NVML and get to know its cards; takes at most about `deadline` seconds.

        Raises:
            Unavailable: there is no NVML or no driver, or they do not fit or do not answer; open again later.
        """
        if _Session.unended:
            raise Unavailable(
                "NVML",
                "calls from before it was closed have not returned",
                "Restart the agent's pod if this stays, and reboot the node if that does not help.",
            )
        until = asyncio.get_running_loop().time() + deadline
        gpus = cls(_Session())
        try:
            try:
                await gpus._session.call(gpus._session.initialise, until)
            except pynvml.NVMLError as error:
                raise _unusable(error.value) from error
            except TimeoutError:
                await gpus.close(deadline=0)
                raise _silent(deadline) from None
            # A card that hangs here does not hold up the others: it is asked again with the next discovery.
            left = until - asyncio.get_running_loop().time()
            await gpus.discover(deadline=min(left, DISCOVER_SECONDS))
        except BaseException:
            await gpus.close()
            raise
        return gpus

    async def close(self, *, deadline: float = CLOSE_SECONDS) -> None:
        """Shut NVML down; where a call hangs, that is done when it returns, and this waits at most `deadline` seconds."""
        if not self._closed:
            self._closed = True
            await self._session.end(deadline)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def unnamed(self) -> dict[int, DeviceError]:
        """Why cards could not tell their UUID since NVML was opened, by index: nothing can be read from them."""
        return {s.index: s.failure for s in self._slots if s.card is None and s.failure is not None}

    async def discover(self, *, deadline: float = DISCOVER_SECONDS) -> tuple[Card, ...]:
        """Every card that could be named since NVML was opened, by index; lost ones as they were known last.

        Asks anew for everything, the lost ones too: about a dozen calls a card, so do it each minute, not each second.

        Raises:
            Unavailable: NVML is lost, or does not answer within `deadline` seconds.
        """
        async with self._turn(deadline) as until:
            try:
                count = await self._session.call(pynvml.nvmlDeviceGetCount, until)
            except pynvml.NVMLError as error:
                await self.close()
                raise _unusable(error.value) from error
            except TimeoutError:
                await self.close(deadline=0)
                raise _silent(deadline) from None
            self._slots.extend(_Slot(index) for index in range(len(self._slots), count))
            for slot in self._slots:
                if slot.hang() is None:
                    slot.gone = None
            answers = await self._ask(self._slots, _describe, until)
            known = self._cards()
            for slot, answer in answers.items():
                slot.failure = answer if isinstance(answer, DeviceError) else None
                if isinstance(answer, Card):
                    slot.card = answer
            present = {slot.card.uuid for slot in self._slots if slot.card is not None}
            self._missing = {card.uuid: card for card in known if card.uuid not in present}
            return self._cards()

    def _cards(self) -> tuple[Card, ...]:
        cards = [s.card for s in self._slots if s.card is not None]
        return tuple(sorted([*cards, *self._missing.values()], key=lambda card: card.index))

    async def read_all(self, deadline: float = READ_SECONDS) -> dict[str, CardReading | DeviceError]:
        """A reading of every card discovered, by UUID, or why there is none; takes at most about `deadline` seconds.

        Cards are asked all at once or nearly so. What comes after the deadline is dropped, for nobody could tell its
        time; the counter holds what the card used meanwhile.

        Raises:
            Unavailable: NVML is lost.
        """
        slots = [slot for slot in self._slots if slot.card is not None]
        try:
            async with self._turn(deadline) as until:
                answers = await self._ask(slots, _read, until)
        except Retry as error:
            answers = dict.fromkeys(slots, error)
        told: dict[str, CardReading | DeviceError] = {
            slot.card.uuid: answer for slot, answer in answers.items() if slot.card is not None
        }
        told.update((uuid, Gone(uuid, "another card has its place")) for uuid in self._missing)
        return told

    async def read_limits(self, uuid: str, *, deadline: float = READ_SECONDS) -> CurrentLimits:
        """The power limit that is set on one card, and the one in force.

        Raises:
            Retry: no answer this time; `Hanging` where a call has not returned.
            Gone: the card is lost, needs a reset, or was never discovered.
            NotPermitted: this process may not ask.
            Unavailable: NVML is lost.
        """
        return await self._ask_one(uuid, _read_current_limits, deadline)

    async def set_limit(self, uuid: str, milliwatts: int, *, deadline: float = READ_SECONDS) -> None:
        """Set one card's power limit; whether it holds, and for how long, only reading it again tells.

        Raises:
            NotPermitted: NVML lets root alone do so.
            Unsupported: the card has no limit that can be set.
            OutOfRange: it takes other limits than this.
            Retry: no answer this time, so it may have been set or not; `Hanging` where a call has not returned.
            Gone: the card is lost, needs a reset, or was never discovered.
            Unavailable: NVML is lost.
        """

        def ask(slot: _Slot) -> OutOfRange | None:
            return _set_limit(slot, milliwatts)

        await self._ask_one(uuid, ask, deadline)

    async def _ask_one(self, uuid: str, ask: Callable[[_Slot], _T], deadline: float) -> _T:
        async with self._turn(deadline) as until:
            for slot in self._slots:
                if slot.card is not None and slot.card.uuid == uuid:
                    answer = (await self._ask([slot], ask, until))[slot]
                    if isinstance(answer, DeviceError):
                        raise answer
                    return answer
        raise Gone(uuid, "NVML does not list it")

    @contextlib.asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[float]:
        """Wait until no other request is under way; gives the event loop's time until which this one may last.

        Raises:
            Retry: the others took all the time there was.
            Unavailable: this object is closed.
        """
        until = asyncio.get_running_loop().time() + deadline
        try:
            async with asyncio.timeout_at(until):
                await self._turns.acquire()
        except TimeoutError:
            raise Retry("NVML", "another request is still under way") from None
        try:
            if self._closed:
                raise _closed()
            yield until
        finally:
            self._turns.release()

    async def _ask(
        self, slots: Sequence[_Slot], ask: Callable[[_Slot], _T], until: float
    ) -> dict[_Slot, _T | DeviceError]:
        """The answers of cards, or why there is none, in the order they were given.

        Raises:
            Unavailable: an answer says that NVML is lost.
        """
        asked = [slot for slot in slots if slot.hang() is None]
        # The slow ones first, each of which keeps one of the threads.
        asked.sort(key=lambda slot: slot.seconds < SLOW_SECONDS)
        slow = sum(slot.seconds >= SLOW_SECONDS for slot in asked)
        threads = min(len(asked), slow + 1)
        round_ = _Round(asked, ask, readings=ask is _read)
        answers = await self._gather(round_, threads, until) if asked else {}
        for slot in slots:
            if slot not in answers:
                answers[slot] = slot.hang() or Retry(slot.name, "its turn did not come in time")
        await self._check_usable(answers.values())
        return {slot: answers[slot] for slot in slots}

    async def _gather(self, round_: _Round[_T], threads: int, until: float) -> dict[_Slot, _T | DeviceError]:
        """What a round brings by the time `until`; after a quarter of it each card left gets a thread of its own."""
        begun = asyncio.get_running_loop().time()
        try:
            for end in (begun + (until - begun) / 4, until):
                for _ in range(threads):
                    self._session.start(round_.work)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(end):
                        await round_.done.wait()
                        break
                threads = len(round_.waiting)
        finally:
            round_.waiting.clear()
        if round_.bug is not None:
            raise round_.bug
        return dict(round_.answers)

    async def _check_usable(self, answers: Iterable[object]) -> None:
        lost = next((answer for answer in answers if isinstance(answer, Unavailable)), None)
        present = [s for s in self._slots if s.card is not None and s.gone is None and s.hang() is None]
        if lost is None and present and all(slot.unknown >= UNKNOWN_ROUNDS for slot in present):
            lost = _unusable(pynvml.NVML_ERROR_UNKNOWN)
        if lost is not None:
            await self.close()
            raise lost


def _closed() -> Unavailable:
    return Unavailable("NVML", "it was closed", "It is initialised when opened anew.")


def _silent(seconds: float) -> Unavailable:
    return Unavailable("NVML", f"it did not answer within {seconds:g} s", _ELSE_UNUSABLE)


# What follows runs on threads, one call after the other, for one card at a time.


def _find(slot: _Slot) -> Any:
    """The card's handle.

    Looking up by UUID makes NVML go through, and start, the other cards as well, and would hang with them; so first
    see whether the index still leads to it.
    """
    if slot.handle is None:
        assert slot.card is not None
        uuid = slot.card.uuid
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(slot.index)
            found = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            if error.value not in _STALE:
                raise
            found = None
        slot.handle = handle if found == uuid else pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return slot.handle


def _ask_optional(slot: _Slot, function: Callable[[Any], _T], absent: frozenset[int] = _ABSENT) -> _T | None:
    """What a function tells of the card, None where that is not supported, which is remembered."""
    if function in slot.absent:
        return None
    handle = _find(slot)
    try:
        return function(handle)
    except pynvml.NVMLError as error:
        if error.value not in absent:
            raise
        slot.absent.add(function)
        return None


_BUSY_ABSENT = _ABSENT | {pynvml.NVML_ERROR_NO_PERMISSION}


def _read(slot: _Slot) -> CardReading:
    counter: int | None = _ask_optional(slot, pynvml.nvmlDeviceGetTotalEnergyConsumption)
    draw: int | None = _ask_optional(slot, pynvml.nvmlDeviceGetPowerUsage)
    if draw is not None and not 0 <= draw <= MOST_MILLIWATTS:
        draw = None
    return CardReading(counter, draw, _is_busy(slot))


def _is_busy(slot: _Slot) -> bool:
    """Whether the card works; a card that tells neither utilization nor processes counts as idle.

    Utilization is not told in MIG mode, and processes there to root alone. Being refused either must not cost the
    card's energy, hence no error.
    """
    rates = _ask_optional(slot, pynvml.nvmlDeviceGetUtilizationRates, _BUSY_ABSENT)
    if rates is not None:
        return bool(rates.gpu >= BUSY_PERCENT)
    return bool(_ask_optional(slot, pynvml.nvmlDeviceGetComputeRunningProcesses, _BUSY_ABSENT))


def _read_current_limits(slot: _Slot) -> CurrentLimits:
    return CurrentLimits(
        set_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementLimit)),
        enforced_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetEnforcedPowerLimit)),
        binding=_is_binding(slot),
    )


_REASONS_ABSENT = _ABSENT | {pynvml.NVML_ERROR_NO_PERMISSION}


def _is_binding(slot: _Slot) -> bool | None:
    reasons: int | None = _ask_optional(
        slot, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, _REASONS_ABSENT
    )
    return None if reasons is None else bool(reasons & pynvml.nvmlClocksThrottleReasonSwPowerCap)


def _set_limit(slot: _Slot, milliwatts: int) -> OutOfRange | None:
    try:
        pynvml.nvmlDeviceSetPowerManagementLimit(_find(slot), milliwatts)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_INVALID_ARGUMENT:
            raise
        # The value, or the handle: asked with the same handle the range tells which.
        least, most = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(_find(slot))
        allowed = f"its power limit is between {format_power(least)} and {format_power(most)}"
        return OutOfRange(slot.name, format_power(milliwatts), allowed)
    return None


def _read_limits(slot: _Slot) -> PowerLimits:
    least, most = _ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementLimitConstraints) or (None, None)
    current = _read_current_limits(slot)
    return PowerLimits(
        min_milliwatts=known_limit(least),
        default_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementDefaultLimit)),
        max_milliwatts=known_limit(most),
        set_milliwatts=current.set_milliwatts,
        enforced_milliwatts=current.enforced_milliwatts,
    )


def _read_limits_if_told(slot: _Slot, uuid: str) -> PowerLimits:
    """The card's limits; where its calls for them fail, those of before: its energy is read all the same."""
    try:
        return _read_limits(slot)
    except pynvml.NVMLError as error:
        if error.value in _LOST or error.value in _STALE or error.value in _UNUSABLE:
            raise
        known = slot.card
        return known.limits if known is not None and known.uuid == uuid else PowerLimits()


def _describe(slot: _Slot) -> Card:
    # What was not supported may be by now: it was switched on, or the answer was a passing one.
    slot.absent.clear()
    handle = pynvml.nvmlDeviceGetHandleByIndex(slot.index)
    uuid: str = pynvml.nvmlDeviceGetUUID(handle)
    slot.handle = handle
    # [current, pending]: the pending mode comes with the next reset.
    mig = (_ask_optional(slot, pynvml.nvmlDeviceGetMigMode) or [0])[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    persistence = _ask_optional(slot, pynvml.nvmlDeviceGetPersistenceMode)
    return Card(
        uuid=uuid,
        index=slot.index,
        minor=_ask_optional(slot, pynvml.nvmlDeviceGetMinorNumber),
        model=pynvml.nvmlDeviceGetName(handle),
        partitioned=mig,
        partitions=_read_instances(handle) if mig else (),
        limits=_read_limits_if_told(slot, uuid),
        persistence=None if persistence is None else bool(persistence),
    )


def _read_instances(handle: Any) -> tuple[Partition, ...]:
    """The card's MIG devices.

    As many MIG devices fit on a card as it has compute slices, for the smallest takes one (NVIDIA's MIG user guide:
    7 on A100 and H100, 4 on A30).
    """
    total: int = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    found = []
    for number in range(total):
        try:
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            attributes = pynvml.nvmlDeviceGetAttributes_v2(device)
            found.append(
                Partition(
                    uuid=pynvml.nvmlDeviceGetUUID(device),
                    gpu_instance=pynvml.nvmlDeviceGetGpuInstanceId(device),
                    compute_instance=pynvml.nvmlDeviceGetComputeInstanceId(device),
                    slices=attributes.computeInstanceSliceCount,
                    total_slices=total,
                )
            )
        except pynvml.NVMLError as error:
            # A place without an instance, or one that was destroyed between two calls.
            if error.value not in _STALE:
                raise
    return tuple(found)
