"""What an agent reads of its machine: cards and their limits, allocations, processors and memory.

A condition names what fails. Later readings open it and list the cards again, each at its time (`node.schedule`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from greentrain.agent.allocations import find_allocations, needs_cards
from greentrain.agent.conditions import Conditions
from greentrain.agent.host import HostInterval
from greentrain.agent.ports import Machine, View
from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unavailable, Unsupported
from greentrain.devices.gpus import Gpus
from greentrain.devices.podresources import Listing
from greentrain.energy.account import NodeAccount
from greentrain.energy.intervals import CardReading
from greentrain.node.allocations import Allocations, drop_ended
from greentrain.node.capping import NodeCaps
from greentrain.node.cards import Card, CardAnswer, Unread
from greentrain.node.findings import (
    judge_cards,
    judge_host,
    judge_library,
    judge_old_kubelet,
    judge_pause,
    judge_silent_kubelet,
)
from greentrain.node.pods import find_known
from greentrain.node.schedule import ReadSchedule


class Readings:
    """The devices of one node as they were read last."""

    def __init__(
        self, machine: Machine, view: View, conditions: Conditions, schedule: ReadSchedule, *, deadline: float
    ) -> None:
        """`deadline`: seconds a reading of the cards may take."""
        self._machine = machine
        self._clock = machine.clock
        self._view = view
        self._conditions = conditions
        self._schedule = schedule
        self._deadline = deadline
        self.gpus: Gpus | None = None
        """The GPUs' library, while it is open."""
        self.cards: tuple[Card, ...] = ()
        self._listed = False
        """Whether the driver has listed its cards since this agent started."""
        self.answers: Mapping[str, CardAnswer] = {}
        """Each card's last answer, by UUID."""
        self._listing: Listing | None = None
        self._found: tuple[tuple[Listing, int, bool, tuple[Card, ...], bool], Allocations] | None = None
        self._host_read = 0.0

    # -- cards ------------------------------------------------------------------------------------------------

    async def read_cards(self, caps: NodeCaps) -> tuple[dict[str, CardReading], float, float]:
        """What the cards report, and when they were read, on the monotonic and on the wall clock.

        Where one card hangs, the others answer at once and the round ends seconds later. Limits of cards without a cap go into
        `caps`.
        """
        await self._open_cards()
        at, wall = self._clock.elapsed(), self._clock.wall()
        return await self._read_opened(caps), at, wall

    async def _open_cards(self) -> None:
        """Make sure that NVML is open and its cards are known."""
        now, schedule = self._clock.elapsed(), self._schedule
        try:
            gpus = self.gpus
            if gpus is None:
                if self._view.paused is not None:
                    self.answers = {}
                    self._conditions.set(judge_pause(self._view.paused))
                    return
                if not schedule.may_open(now):
                    return
                gpus = self.gpus = await self._machine.open_gpus()
                schedule.note_opened(now)
            if schedule.must_discover(now):
                await self._discover(gpus)
                schedule.note_discovered(now, all_named=not gpus.unnamed)
        except Unavailable as error:
            await self.lose_gpus(error)

    async def _discover(self, gpus: Gpus) -> None:
        self.cards = await gpus.discover()
        self._listed = True

    async def open_again(self) -> None:
        """Open NVML, and list its cards.

        Raises:
            Unavailable: it cannot be used.
        """
        self.gpus = await self._machine.open_gpus()
        await self._discover(self.gpus)

    async def lose_gpus(self, error: Unavailable) -> None:
        """NVML is lost as a whole: close it, to open it again."""
        self.answers = {}
        self._conditions.set(judge_library(str(error)))
        await self.close_gpus()

    async def close_gpus(self) -> None:
        """Close NVML, where it is open."""
        gpus, self.gpus = self.gpus, None
        if gpus is not None:
            await gpus.close()

    async def _read_opened(self, caps: NodeCaps) -> dict[str, CardReading]:
        gpus = self.gpus
        if gpus is None:
            return {}
        try:
            found = await gpus.read_all(deadline=self._deadline)
            self.answers = {u: _describe(a) if isinstance(a, DeviceError) else a for u, a in found.items()}
            if self._schedule.must_read_limits(self._clock.elapsed()):
                await self._read_limits(gpus, caps)
        except Unavailable as error:
            await self.lose_gpus(error)
            return {}
        unnamed = {index: str(error) for index, error in gpus.unnamed.items()}
        self._conditions.set(judge_cards(self.answers, unnamed))
        return {u: a for u, a in self.answers.items() if isinstance(a, CardReading)}

    async def _read_limits(self, gpus: Gpus, caps: NodeCaps) -> None:
        """The limits as an administrator may have set them meanwhile; a card that does not answer keeps its last ones."""
        for gpu, answer in self.answers.items():
            if isinstance(answer, CardReading) and gpu not in caps.reports:
                with suppress(Retry, Gone, NotPermitted):
                    caps.limits[gpu] = await gpus.read_limits(gpu)

    # -- allocations ----------------------------------------------------------------------------------------------

    async def list_allocations(self) -> None:
        """Poll the kubelet, where it is time to."""
        now, known = self._clock.elapsed(), self._listing is not None and self._view.pods_known
        if not self._schedule.must_list(now, version=self._view.version, known=known):
            return
        self._listing = None
        try:
            self._listing = await self._machine.kubelet.read_allocations()
            self._schedule.note_listed(self._clock.elapsed())
        except Unavailable as error:
            self._conditions.set(judge_silent_kubelet(str(error)))
        except Unsupported as error:
            self._conditions.set(judge_old_kubelet(str(error)))

    def find_allocations(self, account: NodeAccount) -> Allocations | None:
        """The allocations by the kubelet's last list; None where there is none.

        None also where only the driver's list of cards, which is not there yet, shows which card some of them are of: each card's
        counter closes the gap.
        Computed again where the list, the pods or the cards have changed, or the account stands in for the API server.
        """
        listing, view = self._listing, self._view
        if listing is None or (not self._listed and needs_cards(listing)):
            return None
        basis = (listing, view.version, view.pods_known, self.cards, self._listed)
        if self._found is None or not view.pods_known or self._found[0] != basis:
            pods = find_known(account, view.pods.values(), known=view.pods_known)
            self._found = (basis, find_allocations(listing, self.cards, pods, listed=self._listed))
        return self._found[1]

    def drop_ended(self, allocations: Allocations) -> Allocations:
        """The allocations of pods that have processes, while the API server does not show which pods have ended."""
        find_pods = self._machine.find_pods
        try:
            alive = find_pods() if find_pods is not None else ()
        except DeviceError:
            alive = ()
        return drop_ended(allocations, alive)

    # -- processors and memory --------------------------------------------------------------------------------

    def read_host(self, at: float) -> tuple[HostInterval, float] | None:
        """What processors and memory used since they were read last, and for how many seconds that is.

        None where it is not time to, nothing can be read, or this is the first reading.
        """
        host = self._machine.host
        if host is None or not self._schedule.must_read_host(at):
            return None
        try:
            interval = host.look(at)
        except DeviceError as error:
            self._conditions.set(judge_host(str(error)))
            self._schedule.note_no_host(at)
            return None
        self._conditions.set(judge_host(None, interval.problems if interval is not None else ()))
        since, self._host_read = self._host_read, at
        return None if interval is None else (interval, at - since)


def _describe(error: DeviceError) -> Unread:
    return Unread(str(error), isinstance(error, Gone))
