"""Reads NVIDIA GPUs through NVML; this folder is the only user of pynvml, so that nothing else can hang in a driver.

An NVML call can take seconds or never return on a failing card. So calls run on threads (`threads`), each a request to one
card (`calls`) whose answer is a value or an error with its remedy (`answers`). A card whose call has not returned gets no
other call, so no more threads can be lost than there are cards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TypeVar

import pynvml

from greentrain.devices.errors import DeviceError, Gone, OutOfRange, Retry, Unavailable
from greentrain.devices.nvidia.answers import closed, silent, unusable
from greentrain.devices.nvidia.calls import Slot, describe, read, read_current_limits, set_limit
from greentrain.devices.nvidia.threads import Round, Session
from greentrain.energy.intervals import CardReading
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Milliwatts

SLOW_SECONDS = 0.05
"""A card that took longer than this gets a thread of its own the next time."""

UNKNOWN_ROUNDS = 3
"""After so many rounds in which every card answered UNKNOWN, NVML itself counts as broken."""

OPEN_SECONDS = 60.0
"""How long initialising may take: without persistence mode the driver starts every card first."""

DISCOVER_SECONDS = 4.0
READ_SECONDS = 2.0
CLOSE_SECONDS = 2.0

_T = TypeVar("_T")


class Gpus(AbstractAsyncContextManager["Gpus"]):
    """The node's GPUs from `open` to `close`; requests run one at a time, and waiting counts towards their deadline.

    `Unavailable` from any method means that NVML as a whole is lost: this object is then closed, open another one after
    a while. Every other error is one card's alone and passes by itself: read on each second.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turns = asyncio.Lock()
        self._slots: list[Slot] = []
        self._missing: dict[str, Card] = {}
        self._closed = False

    @classmethod
    async def open(cls, *, deadline: float = OPEN_SECONDS) -> Gpus:
        """Initialise NVML and list its cards; takes at most about `deadline` seconds.

        Raises:
            Unavailable: there is no NVML or no driver, or they do not fit or do not answer; open again later.
        """
        if Session.unended:
            raise Unavailable(
                "NVML",
                "calls from before it was closed have not returned",
                "Restart the agent's pod if this stays, and reboot the node if that does not help.",
            )
        until = asyncio.get_running_loop().time() + deadline
        gpus = cls(Session())
        try:
            try:
                await gpus._session.call(gpus._session.initialise, until)
            except pynvml.NVMLError as error:
                raise unusable(error.value) from error
            except TimeoutError:
                await gpus.close(deadline=0)
                raise silent(deadline) from None
            # A card that hangs here does not block the others: it is read again with the next discovery.
            left = until - asyncio.get_running_loop().time()
            await gpus.discover(deadline=min(left, DISCOVER_SECONDS))
        except BaseException:
            await gpus.close()
            raise
        return gpus

    async def close(self, *, deadline: float = CLOSE_SECONDS) -> None:
        """Shut NVML down; where a call hangs, that is done when it returns. Waits at most `deadline` seconds."""
        if not self._closed:
            self._closed = True
            await self._session.end(deadline)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def unnamed(self) -> dict[int, DeviceError]:
        """Why cards did not answer with their UUID since NVML was opened, by index: nothing can be read from them."""
        return {s.index: s.failure for s in self._slots if s.card is None and s.failure is not None}

    async def discover(self, *, deadline: float = DISCOVER_SECONDS) -> tuple[Card, ...]:
        """Every card that has reported its UUID since NVML was opened, by index; lost ones as they were known last.

        Reads everything again, the lost ones too: about a dozen calls a card, so do it each minute, not each second.

        Raises:
            Unavailable: NVML is lost, or does not answer within `deadline` seconds.
        """
        async with self._turn(deadline) as until:
            try:
                count = await self._session.call(pynvml.nvmlDeviceGetCount, until)
            except pynvml.NVMLError as error:
                await self.close()
                raise unusable(error.value) from error
            except TimeoutError:
                await self.close(deadline=0)
                raise silent(deadline) from None
            self._slots.extend(Slot(index) for index in range(len(self._slots), count))
            for slot in self._slots:
                if slot.hang() is None:
                    slot.gone = None
            answers = await self._ask(self._slots, describe, until)
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

        Cards are read all at once or nearly so. What comes after the deadline is dropped, because its time is uncertain; the
        counter still contains what the card used meanwhile.

        Raises:
            Unavailable: NVML is lost.
        """
        slots = [slot for slot in self._slots if slot.card is not None]
        try:
            async with self._turn(deadline) as until:
                answers = await self._ask(slots, read, until)
        except Retry as error:
            answers = dict.fromkeys(slots, error)
        found: dict[str, CardReading | DeviceError] = {
            slot.card.uuid: answer for slot, answer in answers.items() if slot.card is not None
        }
        found.update((uuid, Gone(uuid, "another card has its place")) for uuid in self._missing)
        return found

    async def read_limits(self, uuid: str, *, deadline: float = READ_SECONDS) -> CurrentLimits:
        """The power limit that is set on one card, and the one in force.

        Raises:
            Retry: no answer this time; `Hanging` where a call has not returned.
            Gone: the card is lost, needs a reset, or was never discovered.
            NotPermitted: this process may not ask.
            Unavailable: NVML is lost.
        """
        return await self._ask_one(uuid, read_current_limits, deadline)

    async def set_limit(self, uuid: str, milliwatts: Milliwatts, *, deadline: float = READ_SECONDS) -> None:
        """Set one card's power limit; whether it stays, only reading it again shows.

        Raises:
            NotPermitted: NVML allows this to root alone.
            Unsupported: the card has no limit that can be set.
            OutOfRange: the card does not accept this limit.
            Retry: no answer this time, so it may have been set or not; `Hanging` where a call has not returned.
            Gone: the card is lost, needs a reset, or was never discovered.
            Unavailable: NVML is lost.
        """

        def ask(slot: Slot) -> OutOfRange | None:
            return set_limit(slot, milliwatts)

        await self._ask_one(uuid, ask, deadline)

    async def _ask_one(self, uuid: str, ask: Callable[[Slot], _T], deadline: float) -> _T:
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
        """Wait until no other request is in progress; returns the event loop's time until which this one may last.

        Raises:
            Retry: the others took all of the time.
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
                raise closed()
            yield until
        finally:
            self._turns.release()

    async def _ask(
        self, slots: Sequence[Slot], ask: Callable[[Slot], _T], until: float
    ) -> dict[Slot, _T | DeviceError]:
        """The answers of cards, or why there is none, in the order they were given.

        Raises:
            Unavailable: an answer means that NVML is lost.
        """
        asked = [slot for slot in slots if slot.hang() is None]
        # The slow ones first, each of which keeps one of the threads.
        asked.sort(key=lambda slot: slot.seconds < SLOW_SECONDS)
        slow = sum(slot.seconds >= SLOW_SECONDS for slot in asked)
        threads = min(len(asked), slow + 1)
        round_ = Round(asked, ask, readings=ask is read)
        answers = await self._gather(round_, threads, until) if asked else {}
        for slot in slots:
            if slot not in answers:
                answers[slot] = slot.hang() or Retry(slot.name, "its turn did not come in time")
        await self._check_usable(answers.values())
        return {slot: answers[slot] for slot in slots}

    async def _gather(self, round_: Round[_T], threads: int, until: float) -> dict[Slot, _T | DeviceError]:
        """A round's answers by the time `until`; after a quarter of it each remaining card gets a thread of its own."""
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
            lost = unusable(pynvml.NVML_ERROR_UNKNOWN)
        if lost is not None:
            await self.close()
            raise lost
