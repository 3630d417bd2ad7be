"""The agent's main loop: about once a second it polls cards and allocations, accounts for them, stores and reports.

It sets requested caps (`agent.caps`), at once where a request is new, and restores every card's previous limit at its end.

It needs neither the operator nor the API server to go on. A condition of its NodePower names what fails, and what depends on
it waits: where cards or allocations cannot be read, the account stays where it was, and the cards' own counters close the
gap.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Mapping
from contextlib import suppress

import aiohttp

from greentrain.agent.allowances import Allowances
from greentrain.agent.caps import Caps
from greentrain.agent.conditions import Conditions
from greentrain.agent.journal import Journal
from greentrain.agent.ports import Machine, View
from greentrain.agent.readings import Readings
from greentrain.agent.settings import AgentSettings
from greentrain.agent.stored_account import StoredAccount
from greentrain.api.nodepower import NodePowerStatus
from greentrain.api.status import Condition
from greentrain.devices.errors import Unavailable
from greentrain.energy.account import NodeAccount
from greentrain.energy.intervals import CardReading
from greentrain.kube.client import ApiError
from greentrain.node.allocations import Allocations
from greentrain.node.caps import Hindrance
from greentrain.node.cards import Card, CardAnswer, describe
from greentrain.node.findings import judge_allocations, judge_caps, judge_counters
from greentrain.node.pods import (
    close_pods,
    find_host_shares,
    find_windows,
    name_pods,
    open_pods,
    open_without_gpu,
)
from greentrain.node.report import NodeState, build_status, choose_pods
from greentrain.node.schedule import GIVE_BACK_SECONDS, URGENT_SECONDS, ReadSchedule, ReportSchedule

logger = logging.getLogger("greentrain.agent")

LAST_REPORT_SECONDS = 12.0
"""How long an ending agent tries to report: with GIVE_BACK_SECONDS within its pod's grace period of 30 s."""

WAKE_SECONDS = 0.1
"""Pause after an event that woke the loop before the next one does: many pods may change at once."""

_AWAY = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


class Agent:
    """One node's agent; everything it touches is passed in."""

    def __init__(
        self,
        settings: AgentSettings,
        machine: Machine,
        *,
        view: View,
        journal: Journal,
        caps: Caps,
        allowances: Allowances | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self._clock = clock = machine.clock
        self._view = view
        self.caps = caps
        self.allowances = allowances
        self._chance = chance or random.Random()
        self.looked: float | None = None
        """When cards, where there are any, and allocations were last both known, on the monotonic clock."""
        self.beat = float("-inf")
        """When the loop's last round was, on that clock."""
        self._reports = ReportSchedule(settings.report_interval)
        self._conditions = Conditions(clock, self._reports)
        self._stored = StoredAccount(
            journal, clock, self._conditions, self._reports, interval=settings.journal_interval
        )
        self._schedule = ReadSchedule(limits_interval=settings.report_interval)
        self._readings = Readings(
            machine, view, self._conditions, self._schedule, deadline=settings.read_deadline
        )
        self._reporting: asyncio.Task[None] | None = None

    @property
    def account(self) -> NodeAccount:
        """What was counted."""
        return self._stored.account

    @property
    def cards(self) -> tuple[Card, ...]:
        """The node's cards, as they were discovered last."""
        return self._readings.cards

    @property
    def answers(self) -> Mapping[str, CardAnswer]:
        """Each card's last answer, by UUID."""
        return self._readings.answers

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of its NodePower."""
        return self._conditions.all

    # -- main loop ---------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Count until `stop` is set; store and report once more at the end."""
        self._begin()
        waking = asyncio.create_task(self._wake_at(stop), name="wake")
        try:
            while not stop.is_set():
                begun = self.beat = self._clock.elapsed()
                await self.look()
                self._stored.store_if_due()
                self._report_and_evict()
                # A program may go in phases of the same length: looks must not fall into the same phase each time.
                await self._rest(begun + self.settings.interval * self._chance.uniform(1.0, 1.1), stop)
        finally:
            waking.cancel()
        await self._end()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._view.news.set()

    async def _rest(self, until: float, stop: asyncio.Event) -> None:
        """Wait for the next round; newly requested caps do not have to."""
        news = self._view.news
        while not stop.is_set() and await self._clock.sleep(max(0.0, until - self._clock.elapsed()), news):
            news.clear()
            if stop.is_set():
                return
            await self._readings.list_allocations()
            await self._keep_caps(self._take_up_pods())
            self._stored.store_if_due()
            self._report_and_evict()
            await self._clock.sleep(WAKE_SECONDS)

    def _begin(self) -> None:
        self._stored.load()
        self.caps.load()
        if self.allowances is not None:
            self.allowances.load()

    async def _end(self) -> None:
        if self.allowances is not None:
            await self.allowances.close()
        if self._reporting is not None:
            self._reporting.cancel()
            with suppress(asyncio.CancelledError):
                await self._reporting
        await self._give_back()
        self._stored.store()
        await self._report_last()
        await self._readings.close_gpus()

    async def _give_back(self) -> None:
        """Restore every card's previous limit."""
        until, readings = self._clock.elapsed() + GIVE_BACK_SECONDS, self._readings
        try:
            if readings.gpus is None and self.caps.changed_cards:
                async with asyncio.timeout(GIVE_BACK_SECONDS):
                    await readings.open_again()
            while readings.gpus is not None and not await self.caps.give_back(readings.gpus, self.cards):
                if self._clock.elapsed() >= until:
                    break
                await self._clock.sleep(URGENT_SECONDS / 2)
        except (Unavailable, TimeoutError) as error:
            logger.error("the previous power limits cannot be restored: %r", error)
        for gpu in self.caps.changed_cards:
            logger.error(
                "%s keeps the power limit of a cap: the next agent restores the previous one from the journal",
                gpu,
            )

    # -- polling ----------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One poll of allocations and cards, and what follows from it."""
        self._stored.drop_settled(self._view.settled)
        await self._readings.list_allocations()
        readings, at, wall = await self._readings.read_cards(self.caps)
        allocations = self._take_up_pods()
        if allocations is not None:
            self._account_for(readings, allocations, at, wall)
        await self._keep_caps(allocations)

    def _take_up_pods(self) -> Allocations | None:
        """The allocations by the last list, and an account for each pod that has some, under its UID as far as that is known.

        With that on the disk the next agent knows whose limit it finds, also while the API server does not show the pod.
        """
        # Not before the allocations: a pod shown meanwhile must not count as another one than its entry without a UID.
        self._stored.note_new(name_pods(self.account, self._view.pods.values()))
        allocations = self._readings.find_allocations(self.account)
        if allocations is not None:
            self._stored.note_new(open_pods(self.account, allocations, self._view.pods))
        return allocations

    def _account_for(
        self, readings: dict[str, CardReading], allocations: Allocations, at: float, wall: float
    ) -> None:
        account, pods = self.account, self._view.pods
        self._conditions.set(judge_allocations(allocations.problems))
        account.note_cards({c.uuid: describe(c, self.caps.limits.get(c.uuid)) for c in self.cards})
        account.advance(
            readings,
            {u: allocations.cards.get(u, ()) for u in {*allocations.cards, *account.cards, *readings}},
            at=at,
            wall=wall,
            boot=self._clock.boot(),
            windows=find_windows(pods.values(), offset=at - wall),
            asleep=self._clock.suspended(),
        )
        if self.cards:
            self._conditions.set(judge_counters(account, self.cards))
        # A node that was never seen to have a GPU needs no NVML; there an agent has nothing to count and is not in trouble.
        if self._readings.gpus is not None or not account.cards:
            self.looked = at
        self._account_for_host(at, wall)
        if self._view.pods_known:
            new = close_pods(
                account, allocations, pods, wall=wall, name_unseen=lambda: f"unseen-{uuid.uuid4()}"
            )
            self._stored.note_new(new)

    def _account_for_host(self, at: float, wall: float) -> None:
        """Processors and memory, where the node has RAPL: shares of pods that have GPUs and of pods of jobs."""
        read = self._readings.read_host(at)
        if read is None:
            return
        interval, seconds = read
        open_without_gpu(self.account, self._view.pods.values())
        shares = find_host_shares(self.account, interval.shares)
        self.account.add_host(interval.cpu, interval.dram, shares, begin=wall - seconds, end=wall)

    # -- caps and allowances ----------------------------------------------------------------------------------

    async def _keep_caps(self, allocations: Allocations | None) -> None:
        """Do what is due about power limits; before the driver is replaced, previous limits are restored and NVML is closed."""
        readings, caps = self._readings, self.caps
        caps.take_up(self._view.caps)
        self._enforce_allowances()
        if allocations is not None and caps.doubts_allocations(pods_known=self._view.pods_known):
            allocations = readings.drop_ended(allocations)
        pause = self._view.paused
        if readings.gpus is not None:
            try:
                hindrance = None if pause is None else Hindrance("Paused", pause)
                if await caps.keep(readings.gpus, self.cards, allocations, hindrance):
                    self._reports.hurry()
            except Unavailable as error:
                await readings.lose_gpus(error)
        if readings.gpus is None and caps.lose_sight(self.cards, allocations, pause):
            self._reports.hurry()
        now, changed = self._clock.elapsed(), bool(caps.changed_cards)
        if self._schedule.must_close(now, paused=pause is not None, changed=changed):
            await readings.close_gpus()
        if self.cards:
            self._conditions.set(judge_caps(caps, self.cards, pause))

    def _enforce_allowances(self) -> None:
        """Throttle pods whose allowance is spent, and report soon what is new."""
        if self.allowances is None:
            return
        haste = self.allowances.look(self.account, report_interval=self.settings.report_interval)
        self.caps.throttle(self.allowances.throttled)
        self._conditions.set(self.allowances.judge_operator())
        self._reports.hurry_for(haste)

    # -- reporting --------------------------------------------------------------------------------------------

    def _report_and_evict(self) -> None:
        """Report, and evict pods that are due once this was reported."""
        self._report_if_due()
        if self.allowances is not None:
            self.allowances.act_if_due()

    def _report_if_due(self) -> None:
        now = self._clock.elapsed()
        if not self._reports.is_due(now) or (self._reporting is not None and not self._reporting.done()):
            return
        self._reports.note_reported(now, self._chance.uniform(0.9, 1.1))
        self._reporting = asyncio.create_task(self._report(), name="report")

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(self.settings.report_deadline):
                await self._stored.inherit(self._view)
                # What is reported must be stored: a counter may be lost together with what the journal does not have yet.
                self._stored.store()
                throttled = self.allowances.throttled if self.allowances is not None else ()
                await self._view.report(self.build_status())
                if self.allowances is not None:
                    self.allowances.note_reported(throttled)
        except _AWAY as error:
            logger.warning("NodePower was not reported: %r; again in a while", error)

    async def _report_last(self) -> None:
        """Report the state at the end; retried where the API server is busy or away for a moment.

        A program that removes the agents reads in it that no card is capped any more; there is no report after it.
        """
        until = self._clock.elapsed() + LAST_REPORT_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.0, until - self._clock.elapsed())):
                    await self._stored.inherit(self._view)
                    await self._view.report(self.build_status())
                return
            except _AWAY as error:
                hopeless = isinstance(error, ApiError) and not error.passing
                if hopeless or self._clock.elapsed() + URGENT_SECONDS >= until:
                    logger.warning("NodePower was not reported at the end: %r", error)
                    return
            await self._clock.sleep(URGENT_SECONDS)

    def build_status(self) -> NodePowerStatus:
        """The agent's half of NodePower."""
        place = self._view.place
        state = NodeState(
            wall=self._clock.wall(),
            report_interval=self.settings.report_interval,
            region=place.region,
            zone=place.zone,
            conditions=self.conditions,
            cards=self.cards,
            answers=self.answers,
        )
        pods = choose_pods(self.account, at=self._clock.elapsed())
        if self.allowances is not None:
            pods = self.allowances.mark(pods)
        return build_status(self.account, pods, self.caps, state)
