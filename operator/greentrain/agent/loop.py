"""The agent's life: look at cards and holders about once a second, account for it, keep it on disk, report it.

It keeps the caps that are asked for (`agent.caps`), at once where something new is asked, and gives every card its limit
back at its end.

It needs neither the operator nor the API server to go on. What fails is named in a condition of its NodePower,
and what depends on it waits: an account whose cards or holders cannot be seen stays where it was, and the cards' own
counters close the gap.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from math import ceil
from typing import Protocol

import aiohttp

from greentrain.agent.allowances import Allowances
from greentrain.agent.caps import Caps
from greentrain.agent.clock import Clock
from greentrain.agent.holders import find_holdings
from greentrain.agent.host import Host
from greentrain.agent.journal import Journal, begin
from greentrain.agent.settings import AgentSettings
from greentrain.api.conditions import ConditionStatus, find_condition, set_condition
from greentrain.api.nodepower import MAX_COUNT, MAX_PODS, GpuStatus, NodePowerStatus
from greentrain.api.v1alpha1 import Condition
from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unavailable, Unsupported
from greentrain.devices.gpus import Gpus
from greentrain.devices.podresources import Listing
from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Window
from greentrain.energy.intervals import CardReading
from greentrain.energy.report import bound_joules, report_pods
from greentrain.kube.client import ApiError
from greentrain.kube.node import NodePod, Place
from greentrain.node.caps import Hindrance
from greentrain.node.cards import Card
from greentrain.node.holdings import Holdings, by_name, drop_ended, pod_key
from greentrain.units import PowerCap, format_unix_time, to_joules

logger = logging.getLogger("greentrain.agent")

DISCOVER_SECONDS = 60.0
"""How often cards are asked for what seldom changes: which there are, how they are cut, their limits."""

LIST_OFTEN_SECONDS = 5.0
"""How long the kubelet is asked each second after something about a pod was new."""

LIST_SECONDS = 5.0
"""How often it is asked at least: a watch may be late."""

REOPEN_SECONDS = 10.0
"""How long to wait before NVML is opened anew."""

HOST_SECONDS = 5.0
"""How often processors and memory are looked at: their counters wrap around within minutes at the earliest."""

HOST_RETRY_SECONDS = 300.0
"""How often to look whether a node has got RAPL."""

URGENT_SECONDS = 1.0
"""How soon a pod's end is reported, and at most how often."""

NEAR_SECONDS = 5.0
"""At most how often is reported while a pod nears its allowance: the operator, which reacts in this time, is to act before
the allowance is spent; more often would tell it little, for watts change slowly."""

GIVE_BACK_SECONDS = 10.0
"""How long to try to give cards their limits back before NVML is let go; the journal knows those that are left."""

LAST_WORDS_SECONDS = 12.0
"""How long an agent that ends tries to report: with GIVE_BACK_SECONDS inside the 30 s that its pod has for ending."""

WAKE_SECONDS = 0.1
"""Pause between two times that news woke the loop: many pods may change at once."""

LATER = "What it uses meanwhile is counted when it answers again."


class Kubelet(Protocol):
    """Who holds devices (`devices.podresources.PodResources`)."""

    async def read_holdings(self) -> Listing:
        """What pods hold now; Unavailable or Unsupported where it does not say."""
        ...


class View(Protocol):
    """What the API server knows (`kube.node.NodeView`)."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The node's pods by UID."""
        ...

    @property
    def pods_known(self) -> bool:
        """Whether they are those of now."""
        ...

    @property
    def version(self) -> int:
        """Another number whenever something about the pods is new."""
        ...

    @property
    def settled(self) -> tuple[str, ...]:
        """UID/segment of the pods that were settled."""
        ...

    @property
    def caps(self) -> Mapping[str, PowerCap] | None:
        """The caps that are asked for, by the pod's UID; None as long as nobody has told."""
        ...

    @property
    def place(self) -> Place:
        """Where the node is, as its labels say."""
        ...

    @property
    def paused(self) -> str | None:
        """Why NVML must be let go, in words; None while it need not."""
        ...

    @property
    def news(self) -> asyncio.Event:
        """Set when something came that should not wait for the next round."""
        ...

    async def read_status(self) -> NodePowerStatus | None:
        """What was reported last."""
        ...

    async def report(self, status: NodePowerStatus) -> None:
        """Store a report."""
        ...


class Agent:
    """One node's agent; everything it touches is handed in."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        open_gpus: Callable[[], Awaitable[Gpus]],
        kubelet: Kubelet,
        view: View,
        journal: Journal,
        caps: Caps,
        clock: Clock,
        allowances: Allowances | None = None,
        host: Host | None = None,
        find_pods: Callable[[], Collection[str]] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self._open_gpus = open_gpus
        self._kubelet = kubelet
        self._view = view
        self._journal = journal
        self.caps = caps
        self.allowances = allowances
        self._clock = clock
        self._host = host
        self._find_pods = find_pods
        self._chance = chance or random.Random()
        self.account = begin()
        self.cards: tuple[Card, ...] = ()
        self.answers: Mapping[str, CardReading | DeviceError] = {}
        self.conditions: tuple[Condition, ...] = ()
        self.looked: float | None = None
        """When cards, where there are any, and holders were last both seen, on the clock that only goes on."""
        self.beat = float("-inf")
        """When the loop last went round, on that clock."""
        self._gpus: Gpus | None = None
        self._listing: Listing | None = None
        self._listed = float("-inf")
        self._listed_often_until = float("-inf")
        self._version = -1
        self._found: tuple[tuple[Listing, int, bool, tuple[Card, ...]], Holdings] | None = None
        self._next_open = float("-inf")
        self._next_discovery = float("-inf")
        self._next_limits = float("-inf")
        self._paused_at: float | None = None
        self._next_store = float("-inf")
        self._next_host = float("-inf")
        self._host_looked = 0.0
        self._next_report = float("-inf")
        self._reported = float("-inf")
        self._reporting: asyncio.Task[None] | None = None
        self._heir = False
        """Whether what an earlier account reported may still have to be taken over."""
        self._dirty = False

    async def run(self, stop: asyncio.Event) -> None:
        """Count until `stop` is set; store and report once more at the end."""
        self._begin()
        waking = asyncio.create_task(self._wake_at(stop), name="wake")
        try:
            while not stop.is_set():
                begun = self.beat = self._clock.elapsed()
                await self.look()
                self._keep()
                self._tell_and_evict()
                await self._rest(begun + self.settings.interval, stop)
        finally:
            waking.cancel()
        await self._end()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._view.news.set()

    async def _rest(self, until: float, stop: asyncio.Event) -> None:
        """Wait for the next round; caps that are asked for meanwhile do not have to."""
        news = self._view.news
        while not stop.is_set() and await self._clock.sleep(max(0.0, until - self._clock.elapsed()), news):
            news.clear()
            if stop.is_set():
                return
            listing = await self._read_holdings() if self._must_list() else self._listing
            await self._keep_caps(None if listing is None else self._find_holdings(listing))
            self._tell_and_evict()
            await self._clock.sleep(WAKE_SECONDS)

    def _begin(self) -> None:
        try:
            self.account, problem = self._journal.load()
        except OSError as failure:
            problem = f"the journal cannot be read: {failure.strerror}"
        if problem is not None:
            logger.error("%s; the account begins anew", problem)
        self.caps.load()
        if self.allowances is not None:
            self.allowances.load()
        # NodePower may have the last words of an account before this one, which perhaps has not reported yet either.
        self._heir = True
        self._set("JournalWritable", "Unknown", "NotYet", "nothing was written yet")

    async def _end(self) -> None:
        if self.allowances is not None:
            await self.allowances.close()
        if self._reporting is not None:
            self._reporting.cancel()
            with suppress(asyncio.CancelledError):
                await self._reporting
        await self._give_back()
        self._store()
        await self._report_last()
        await self._close_gpus()

    async def _report_last(self) -> None:
        """Report what is so at the end; a server that is busy or away for a moment is asked again.

        Whoever removes the agents reads in it that no card is capped any more, and nobody tells it after them.
        """
        until = self._clock.elapsed() + LAST_WORDS_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.0, until - self._clock.elapsed())):
                    if self._heir:
                        await self._inherit()
                    await self._view.report(self.build_status())
                return
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                hopeless = isinstance(error, ApiError) and not error.passing
                if hopeless or self._clock.elapsed() + URGENT_SECONDS >= until:
                    logger.warning("NodePower was not reported at the end: %r", error)
                    return
            await self._clock.sleep(URGENT_SECONDS)

    async def _give_back(self) -> None:
        """Every card gets back the limit it had before us."""
        until = self._clock.elapsed() + GIVE_BACK_SECONDS
        try:
            if self._gpus is None and self.caps.changed_cards:
                async with asyncio.timeout(GIVE_BACK_SECONDS):
                    self._gpus = await self._open_gpus()
                    self.cards = await self._gpus.discover()
            while self._gpus is not None and not await self.caps.give_back(self._gpus, self.cards):
                if self._clock.elapsed() >= until:
                    break
                await self._clock.sleep(URGENT_SECONDS / 2)
        except (Unavailable, TimeoutError) as error:
            logger.error("cards cannot be given their power limits back: %r", error)
        for gpu in self.caps.changed_cards:
            logger.error("%s keeps the power limit of a cap: the journal has it for the next agent", gpu)

    async def _close_gpus(self) -> None:
        gpus, self._gpus = self._gpus, None
        if gpus is not None:
            await gpus.close()

    # -- looking ------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One look at holders and cards, and what follows from it."""
        self._let_go()
        listing = await self._read_holdings() if self._must_list() else self._listing
        readings, at, wall = await self._read_cards()
        # Not before these: pods that are told of meanwhile must not count as others than those without a UID.
        self._name_pods()
        holdings = self._find_holdings(listing) if listing is not None else None
        if holdings is not None:
            self._account_for(readings, holdings, at, wall)
        await self._keep_caps(holdings)

    def _account_for(
        self, readings: dict[str, CardReading], holdings: Holdings, at: float, wall: float
    ) -> None:
        problems = holdings.problems
        self._set(
            "HoldersKnown",
            "False" if problems else "True",
            "DeviceNotUnderstood" if problems else "Listed",
            "; ".join(problems[:3]) or "the kubelet says which pod holds which GPU",
        )
        self._open_pods(holdings)
        self.account.advance(
            readings,
            {u: holdings.cards.get(u, ()) for u in {*holdings.cards, *self.account.cards, *readings}},
            at=at,
            wall=wall,
            boot=self._clock.boot(),
            windows=self._windows(at, wall),
            models={c.uuid: c.model for c in self.cards},
        )
        # A node that was never seen to have a GPU needs no NVML; there an agent has nothing to count and is not in trouble.
        if self._gpus is not None or not self.account.cards:
            self.looked = at
        self._look_at_host(at, wall)
        self._close_pods(holdings, wall)

    def _look_at_host(self, at: float, wall: float) -> None:
        """Processors and memory, where the node has RAPL: shares of pods that hold GPUs and of pods of jobs."""
        if self._host is None or at < self._next_host:
            return
        self._next_host = at + HOST_SECONDS
        try:
            interval = self._host.look()
        except DeviceError as error:
            self._set(
                "HostReadable", "False", "NoRapl", f"{error} Energy of processors and memory is not counted."
            )
            self._next_host = at + HOST_RETRY_SECONDS
            return
        self._set(
            "HostReadable", "True", "Read", "energy of processors and memory is read and shared by CPU time"
        )
        if interval is not None:
            for known in self._view.pods.values():
                key = pod_key(known.namespace, known.name, known.uid)
                if known.job_uid is not None and not known.terminal and key not in self.account.pods:
                    pod = self.account.open(key, namespace=known.namespace, name=known.name, uid=known.uid)
                    pod.job, pod.job_uid, pod.owner_known = known.job, known.job_uid, True
            shares = {
                key: interval.shares.get(pod.uid, 0.0)
                for key, pod in self.account.pods.items()
                if pod.closed is None
            }
            self.account.add_host(
                interval.cpu, interval.dram, shares, begin=wall - (at - self._host_looked), end=wall
            )
        self._host_looked = at

    def _must_list(self) -> bool:
        """Whether the kubelet is to be asked who holds what: each second around whatever happens to a pod, else seldom.

        Devices change hands when a pod is bound, starts, ends or goes, and the watch on the node's pods tells of each.
        Asking is half of what an agent costs (measured).
        """
        now = self._clock.elapsed()
        if self._version != self._view.version:
            self._version = self._view.version
            self._listed_often_until = now + LIST_OFTEN_SECONDS
        known = self._listing is not None and self._view.pods_known
        return not known or now < self._listed_often_until or now - self._listed >= LIST_SECONDS

    def _find_holdings(self, listing: Listing) -> Holdings:
        """Who holds what; found anew where the listing, the pods or the cards are other ones, or the account stands in."""
        basis = (listing, self._view.version, self._view.pods_known, self.cards)
        if self._found is None or not self._view.pods_known or self._found[0] != basis:
            self._found = (basis, find_holdings(listing, self.cards, self._known_pods()))
        return self._found[1]

    def _known_pods(self) -> list[NodePod]:
        """The node's pods; while the API server has not told, those of the account too, so that a pod keeps its UID."""
        pods = list(self._view.pods.values())
        if not self._view.pods_known:
            named = by_name(pods)
            pods += [
                NodePod(p.namespace, p.name, p.uid, terminal=False, job=p.job, job_uid=p.job_uid)
                for p in self.account.pods.values()
                if p.uid and p.closed is None and (p.namespace, p.name) not in named
            ]
        return pods

    async def _read_holdings(self) -> Listing | None:
        self._listing = None
        try:
            self._listing = await self._kubelet.read_holdings()
            self._listed = self._clock.elapsed()
            return self._listing
        except Unavailable as error:
            text = f"{error} Energy is counted on and divided when it answers again."
            self._set("HoldersKnown", "Unknown", "KubeletSilent", text)
        except Unsupported as error:
            text = f"{error} Energy is counted and cannot be divided: the kubelet must be 1.15 or newer and serve it."
            self._set("HoldersKnown", "Unknown", "NoPodResources", text)
        return None

    async def _read_cards(self) -> tuple[dict[str, CardReading], float, float]:
        """What the cards tell, and when they were asked, on the clock that only goes on and on the wall's.

        Beside a card that hangs the others answer at once, and the round ends seconds later.
        """
        await self._open_cards()
        at, wall = self._clock.elapsed(), self._clock.wall()
        return await self._read_opened(), at, wall

    async def _open_cards(self) -> None:
        """See to it that NVML is open, and that the cards it has are known."""
        now = self._clock.elapsed()
        try:
            gpus = self._gpus
            if gpus is None:
                if self._view.paused is not None:
                    self.answers = {}
                    self._set("DevicesReadable", "False", "Paused", f"{self._view.paused} {LATER}")
                    return
                if now < self._next_open:
                    return
                self._next_open = now + REOPEN_SECONDS
                gpus = self._gpus = await self._open_gpus()
                self._next_discovery = now
            if now >= self._next_discovery:
                self.cards = await gpus.discover()
                # One that cannot even be named is looked for again soon.
                self._next_discovery = now + (REOPEN_SECONDS if gpus.unnamed else DISCOVER_SECONDS)
        except Unavailable as error:
            await self._lose_gpus(error)

    async def _lose_gpus(self, error: Unavailable) -> None:
        self.answers = {}
        self._set("DevicesReadable", "False", "NvmlUnavailable", str(error))
        await self._close_gpus()

    async def _read_opened(self) -> dict[str, CardReading]:
        gpus = self._gpus
        if gpus is None:
            return {}
        try:
            self.answers = await gpus.read_all(deadline=self.settings.read_deadline)
            now = self._clock.elapsed()
            if now >= self._next_limits:
                self._next_limits = now + self.settings.report_interval
                await self._read_limits(gpus)
        except Unavailable as error:
            await self._lose_gpus(error)
            return {}
        failed = {u: a for u, a in self.answers.items() if isinstance(a, DeviceError)}
        if failed:
            first, reason = next(iter(failed.items()))
            text = (
                f"{len(failed)} of {len(self.answers)} GPUs cannot be read, such as {first}: {reason} {LATER}"
            )
            lost = any(isinstance(a, Gone) for a in failed.values())
            self._set("DevicesReadable", "False", "GpuLost" if lost else "GpuFailing", text)
        elif unnamed := dict(gpus.unnamed):
            index, reason = next(iter(unnamed.items()))
            text = f"{len(unnamed)} GPUs do not even tell their UUID, such as that with index {index}: {reason} {LATER}"
            self._set("DevicesReadable", "False", "GpuFailing", text)
        elif not self.answers:
            self._set("DevicesReadable", "True", "NoGPU", "NVML answers, and this node has no GPU")
        else:
            self._set("DevicesReadable", "True", "Read", f"{len(self.answers)} GPUs are read")
        return {u: a for u, a in self.answers.items() if isinstance(a, CardReading)}

    async def _read_limits(self, gpus: Gpus) -> None:
        """What an administrator has set meanwhile; a card that does not tell keeps what it told last."""
        for gpu, answer in self.answers.items():
            if isinstance(answer, CardReading) and gpu not in self.caps.reports:
                with suppress(Retry, Gone, NotPermitted):
                    self.caps.limits[gpu] = await gpus.read_limits(gpu)

    # -- caps ---------------------------------------------------------------------------------------------

    async def _keep_caps(self, holdings: Holdings | None) -> None:
        """Do what is due about power limits; a driver that is to be replaced gets its cards back as they were, and is let go."""
        self.caps.take_up(self._view.caps)
        self._mind_allowances()
        if holdings is not None and not self._view.pods_known and (self.caps.asked or self.caps.throttled):
            holdings = self._without_ended(holdings)
        pause = self._view.paused
        if self._gpus is not None:
            try:
                hindrance = None if pause is None else Hindrance("Paused", pause)
                if await self.caps.keep(self._gpus, self.cards, holdings, hindrance):
                    self._hurry()
            except Unavailable as error:
                await self._lose_gpus(error)
        if self._gpus is None and self.caps.lose_sight(self.cards, holdings, pause):
            self._hurry()
        now = self._clock.elapsed()
        self._paused_at = None if pause is None else now if self._paused_at is None else self._paused_at
        if self._gpus is not None and self._paused_at is not None:
            late = now - self._paused_at >= GIVE_BACK_SECONDS
            if late or not self.caps.changed_cards:
                await self._close_gpus()
        if self.cards:
            self._tell_caps(pause)

    def _mind_allowances(self) -> None:
        """Have what is spent at its lowest limit, and the operator told of what is new."""
        if self.allowances is None:
            return
        haste = self.allowances.look(self.account, report_interval=self.settings.report_interval)
        self.caps.throttle(self.allowances.throttled)
        self._set("OperatorHeard", *self.allowances.judge_operator())
        if haste != "None":
            self._hurry(URGENT_SECONDS if haste == "Now" else NEAR_SECONDS)

    def _without_ended(self, holdings: Holdings) -> Holdings:
        """The holders that have processes, while the API server does not say which pods have ended."""
        try:
            alive = self._find_pods() if self._find_pods is not None else ()
        except DeviceError:
            alive = ()
        return drop_ended(holdings, alive)

    def _tell_caps(self, pause: str | None) -> None:
        off = next((c.uuid for c in self.cards if c.persistence is False), None)
        disk = self.caps.disk
        if pause is not None:
            self._set("CapsAllowed", "False", "Paused", f"{pause} Until then limits are as they were before.")
        elif self.caps.dry_run:
            self._set(
                "CapsAllowed", "False", "DryRun", "a dry run: it is told what would be set, and none is"
            )
        elif not self.caps.allowed:
            text = "there is no journal on the node's disk, and no limit is changed without it"
            self._set("CapsAllowed", "False", "NoJournal", text)
        elif disk is not None:
            text = f"the journal on the node's disk cannot be written ({disk}), and no limit is changed without it"
            self._set("CapsAllowed", "False", "NoJournal", text)
        elif off is not None:
            text = (
                f"persistence mode is off on {off}: the driver forgets a limit when nothing uses the card, which this "
                "agent does as long as it runs; nvidia-smi -pm 1 makes limits last"
            )
            self._set("CapsAllowed", "True", "PersistenceOff", text)
        else:
            self._set("CapsAllowed", "True", "Allowed", "power limits are set where jobs ask for them")

    def _windows(self, at: float, wall: float) -> dict[str, Window]:
        """When pods began and ended, on the clock of the readings."""
        offset = at - wall
        return {
            pod_key(p.namespace, p.name, p.uid): Window(
                p.began + offset, None if p.ended is None else p.ended + offset
            )
            for p in self._view.pods.values()
            if p.began is not None
        }

    # -- pods ---------------------------------------------------------------------------------------------

    def _open_pods(self, holdings: Holdings) -> None:
        for key, holder in holdings.pods.items():
            if key not in self.account.pods or self.account.pods[key].closed is not None:
                self._dirty = True
            pod = self.account.open(key, namespace=holder.namespace, name=holder.pod, uid=holder.uid or "")
            known = self._view.pods.get(pod.uid)
            if known is not None:
                pod.job, pod.job_uid, pod.owner_known = known.job, known.job_uid, True

    def _name_pods(self) -> None:
        """Pods that were counted before the API server told their UID get it now."""
        if not any(not p.uid for p in self.account.pods.values()):
            return
        named = by_name(self._view.pods.values())
        for key, pod in list(self.account.pods.items()):
            found = named.get((pod.namespace, pod.name))
            if not pod.uid and found is not None:
                new = pod_key(pod.namespace, pod.name, found.uid)
                self.account.name(key, new, uid=found.uid)
                named_pod = self.account.pods[new]
                named_pod.job, named_pod.job_uid, named_pod.owner_known = found.job, found.job_uid, True
                self._dirty = True

    def _close_pods(self, holdings: Holdings, wall: float) -> None:
        """A pod has ended that holds nothing and that the API server knows as ended, or no more."""
        if not self._view.pods_known:
            return
        for key, pod in list(self.account.pods.items()):
            if key in holdings.pods or pod.closed is not None:
                continue
            if not pod.uid:
                self.account.close_unnamed(key, wall=wall, name=f"unseen-{uuid.uuid4()}")
                self._dirty = True
                continue
            known = self._view.pods.get(pod.uid)
            if known is None or known.terminal:
                self.account.close(key, wall=wall)
                self._dirty = True

    def _let_go(self) -> None:
        """Drop what the operator has settled, on the disk first: what is gone from a report must not come back."""
        if not self.account.inherited and all(p.closed is None for p in self.account.pods.values()):
            return  # nothing has ended, so there is nothing to let go
        settled = set(self._view.settled)
        for key in settled & self.account.inherited.keys():
            del self.account.inherited[key]
            self._dirty = True
        done = [
            k
            for k, p in self.account.pods.items()
            if p.closed is not None and f"{p.uid}/{p.segment}" in settled
        ]
        for key in self.account.give_up(wall=self._clock.wall()):
            logger.error(
                "pod %s held a GPU that could not be read any more: part of its energy is missing", key
            )
            self._dirty = True
        late = self.account.drop_overdue(wall=self._clock.wall())
        for key in late:
            logger.error("the energy of pod %s was fetched by nobody for 24 hours and is dropped", key)
        if done:
            self.account.settle(done)
        if done or late:
            self._dirty = True

    # -- keeping and telling ------------------------------------------------------------------------------

    def _keep(self) -> None:
        if self._dirty or self._clock.elapsed() >= self._next_store:
            self._store()

    def _store(self) -> None:
        self._next_store = self._clock.elapsed() + self.settings.journal_interval
        try:
            self._journal.store(self.account.to_json())
        except OSError as error:
            text = f"the journal on this node's disk cannot be written: {error.strerror}; counting goes on in memory"
            self._set("JournalWritable", "False", "WriteFailed", text)
            return
        if self._dirty:
            self._dirty = False
            self._hurry()
        self._set("JournalWritable", "True", "Written", "what was counted is on this node's disk")

    def _hurry(self, seconds: float = URGENT_SECONDS) -> None:
        """Report soon: so long after the last report."""
        self._next_report = min(self._next_report, self._reported + seconds)

    def _tell_and_evict(self) -> None:
        """Report, and evict pods of which it was reported that they are to be."""
        self._report_if_due()
        if self.allowances is not None:
            self.allowances.act_if_due()

    def _report_if_due(self) -> None:
        now = self._clock.elapsed()
        if now < self._next_report or (self._reporting is not None and not self._reporting.done()):
            return
        self._reported = now
        # What is told must not be forgotten: a counter may be lost together with what the journal had not yet.
        self._store()
        self._next_report = now + self.settings.report_interval * self._chance.uniform(0.9, 1.1)
        self._reporting = asyncio.create_task(self._report(), name="report")

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(self.settings.report_deadline):
                if self._heir:
                    await self._inherit()
                throttled = self.allowances.throttled if self.allowances is not None else ()
                await self._view.report(self.build_status())
                if self.allowances is not None:
                    self.allowances.note_reported(throttled)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("NodePower was not reported: %r; again in a while", error)

    async def _inherit(self) -> None:
        before = await self._view.read_status()
        if before is not None and before.journal_id != self.account.journal_id and before.pods:
            self.account.inherit(before.pods, lambda e: pod_key(e.namespace, e.name, e.uid))
            logger.warning(
                "the journal is new, but NodePower has %d pods of an earlier one: they are told on until they are settled",
                len(before.pods),
            )
            self._store()
        self._heir = False

    def build_status(self) -> NodePowerStatus:
        """The agent's half of NodePower."""
        account = self.account
        pods = report_pods(account, at=self._clock.elapsed())
        if len(pods) > MAX_PODS:
            # Those that live come first; ended ones that do not fit are told when others have been settled.
            pods = tuple(sorted(pods, key=lambda entry: entry.closed)[:MAX_PODS])
        if self.allowances is not None:
            pods = self.allowances.mark(pods)
        return NodePowerStatus(
            observed_at=format_unix_time(self._clock.wall()),
            report_interval_seconds=max(1, ceil(self.settings.report_interval)),
            region=self._view.place.region,
            zone=self._view.place.zone,
            journal_id=account.journal_id,
            conditions=self.conditions,
            gpus=tuple(self._build_gpu(card) for card in self.cards),
            pods=pods,
            idle_joules=bound_joules(to_joules(account.idle)),
            unattributed_joules=bound_joules(to_joules(account.unattributed)),
            settled_joules=bound_joules(to_joules(account.settled)),
            other_host_joules=bound_joules(to_joules(account.host_others)),
            dropped_pods=min(account.dropped, MAX_COUNT),
            gpu_count=len(self.cards),
        )

    def _build_gpu(self, card: Card) -> GpuStatus:
        answer = self.answers.get(card.uuid)
        counted = account_joules(self.account, card.uuid)
        now = self.caps.limits.get(card.uuid)
        limits = card.limits.model_copy(
            update={
                "prior_milliwatts": self.caps.priors.get(card.uuid),
                "set_milliwatts": card.limits.set_milliwatts if now is None else now.set_milliwatts,
                "enforced_milliwatts": card.limits.enforced_milliwatts
                if now is None
                else now.enforced_milliwatts,
            }
        )
        base = GpuStatus(
            uuid=card.uuid,
            model=card.model,
            limits=limits,
            cap=self.caps.reports.get(card.uuid),
            joules=bound_joules(counted),
        )
        if isinstance(answer, CardReading):
            source = (
                "Counter" if answer.counter is not None else "Power" if answer.draw is not None else "None"
            )
            health = "Unsupported" if source == "None" else "Healthy"
            return base.model_copy(update={"source": source, "health": health})
        health = "Lost" if isinstance(answer, Gone) else "Failing"
        words = str(answer) if answer is not None else "it was not read"
        return base.model_copy(update={"health": health, "message": words[:512]})

    def _set(self, type_: str, status: ConditionStatus, reason: str, message: str) -> None:
        old = find_condition(self.conditions, type_)
        if old is not None and (old.status, old.reason, old.message) == (status, reason, message):
            return  # nearly always; to write the time for nothing was a tenth of what a look costs (measured)
        self.conditions = set_condition(
            self.conditions,
            type_,
            status,
            reason,
            message,
            now=format_unix_time(self._clock.wall()),
            generation=0,
        )
        if old is None or (old.status, old.reason) != (status, reason):
            logger.log(logging.INFO if status == "True" else logging.WARNING, "%s: %s", type_, message)
            self._hurry()


def account_joules(account: NodeAccount, gpu: str) -> int:
    """Joules of one card, whoever used them."""
    card = account.cards.get(gpu)
    return to_joules(card.measured + card.estimated) if card is not None else 0
