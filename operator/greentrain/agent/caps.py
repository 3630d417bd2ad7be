"""Carries out what `node.capping` decides about the caps of one node's cards: reads a card, stores the journal, sets a limit.

One request after the other, in the order in which they come: a change of a card is in the journal before the card is
touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from greentrain.agent.clock import Clock
from greentrain.agent.journal import Journal
from greentrain.api.nodepower import CapReason
from greentrain.devices.errors import (
    DeviceError,
    Gone,
    NotPermitted,
    OutOfRange,
    Unavailable,
    Unsupported,
)
from greentrain.devices.gpus import LimitedGpus
from greentrain.devices.nvidia.driver import read_load
from greentrain.node.allocations import Allocations
from greentrain.node.capping import (
    Answer,
    CapJournal,
    CapSight,
    Look,
    NodeCaps,
    Noted,
    ReadLimits,
    Request,
    StoreJournal,
    Warned,
    WriteLimit,
)
from greentrain.node.caps import Hindrance, Note
from greentrain.node.cards import Card
from greentrain.quantities import format_power

logger = logging.getLogger("greentrain.agent")

FILE = "caps.json"

REASONS: dict[type[DeviceError], CapReason] = {
    NotPermitted: "NotPermitted",
    Unsupported: "Unsupported",
    OutOfRange: "OutOfRange",
    Gone: "GpuLost",
}
"""What a card's error means for its cap; any other error is `GpuFailing`."""

_JOURNAL = TypeAdapter(CapJournal)

T = TypeVar("T")


class Caps(NodeCaps):
    """The caps of one node, on its cards and on its disk."""

    def __init__(
        self, journal: Journal, clock: Clock, *, driver: Path, dry_run: bool = False, allowed: bool = True
    ) -> None:
        """`allowed`: whether this agent has the journal's lock."""
        super().__init__(dry_run=dry_run, held=allowed)
        self._journal = journal
        self._clock = clock
        self._driver = driver
        self._problem: str | None = None
        """The last message logged on a journal that cannot be read."""

    def load(self) -> bool:
        """Read the journal; returns whether its content is known. A damaged one is moved aside."""
        self.begin(self._clock.elapsed())
        return self.awaits_journal and self._load()

    def _load(self) -> bool:
        try:
            content = self._journal.read(FILE)
            kept = CapJournal() if content is None else _JOURNAL.validate_json(content)
        except OSError as error:
            self._log_problem(f"cannot be read: {error.strerror}; no limit is changed without it")
            return False
        except ValidationError as error:
            self._put_aside(error)
            return False
        self.take_stored(kept)
        return True

    def _put_aside(self, damage: ValidationError) -> None:
        try:
            aside = self._journal.put_aside(FILE)
        except OSError as error:
            self._log_problem(f"is damaged and cannot be put aside: {error.strerror}")
            return
        self.take_stored(CapJournal())
        logger.error(
            "the journal of caps is damaged (%d errors) and was put aside as %s: a limit that is still set from then "
            "stays until another one is set (nvidia-smi -q -d POWER shows limits and defaults)",
            damage.error_count(),
            aside,
        )

    def _log_problem(self, text: str) -> None:
        if self._problem != text:
            self._problem = text
            logger.warning("the journal of caps %s", text)

    async def keep(
        self,
        gpus: LimitedGpus,
        cards: Iterable[Card],
        allocations: Allocations | None,
        hindrance: Hindrance | None = None,
    ) -> bool:
        """Read every card that has a cap or is to have one, and do what is due; returns whether anything is new.

        `hindrance` is why no card of the node may have a cap at present.

        Raises:
            Unavailable: NVML is lost.
        """
        sight = CapSight(self._clock.elapsed(), tuple(cards), allocations, hindrance)
        if self.awaits_journal:
            self._load()
        return await self._carry_out(gpus, self.look(sight))

    async def give_back(self, gpus: LimitedGpus, cards: Iterable[Card]) -> bool:
        """Restore the previous limit of every card; returns whether all have it.

        Raises:
            Unavailable: NVML is lost.
        """
        return await self._carry_out(gpus, self.release(cards))

    async def _carry_out(self, gpus: LimitedGpus, look: Look[T]) -> T:
        try:
            request = next(look)
            while True:
                request = look.send(await self._do(gpus, request))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, gpus: LimitedGpus, request: Request) -> Answer:
        match request:
            case ReadLimits(uuid):
                try:
                    limits = await gpus.read_limits(uuid)
                except DeviceError as error:
                    return self._fail(error)
                return Answer(self._clock.elapsed(), self._read_session(), limits)
            case WriteLimit(uuid, milliwatts):
                try:
                    await gpus.set_limit(uuid, milliwatts)
                except DeviceError as error:
                    return self._fail(error)
                logger.info("the power limit of %s is set to %s", uuid, format_power(milliwatts))
            case StoreJournal(content):
                try:
                    self._journal.store(_JOURNAL.dump_json(content), FILE)
                except OSError as error:
                    failure = Hindrance("NoJournal", error.strerror or str(error))
                    return Answer(self._clock.elapsed(), failure=failure)
            case Noted(uuid, note):
                _log(uuid, note)
            case Warned(text):
                logger.warning("%s", text)
        return Answer(self._clock.elapsed())

    def _fail(self, error: DeviceError) -> Answer:
        """A card's own error; an error of NVML itself ends the poll."""
        if isinstance(error, Unavailable):
            raise error
        failure = Hindrance(REASONS.get(type(error), "GpuFailing"), str(error))
        return Answer(self._clock.elapsed(), failure=failure)

    def _read_session(self) -> str:
        return f"{self._clock.boot()}/{read_load(self._driver)}"


def _log(uuid: str, note: Note) -> None:
    power = format_power(note.milliwatts)
    match note.kind:
        case "Foreign":
            text = "another program set the power limit of %s to %s: that limit is restored after the cap"
            logger.warning(text, uuid, power)
        case "Contested":
            logger.error("other programs keep changing the power limit of %s: it is left at %s", uuid, power)
        case "Left":
            logger.warning("another program set the power limit of %s to %s: it is left there", uuid, power)
        case "Restored":
            logger.info("%s has its earlier power limit again: %s", uuid, power)
