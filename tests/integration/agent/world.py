"""A node on virtual time around the shipped agent: real NVML bindings on simulated cards, and the exact meter as judge.

Kubelet and API server are plain data behind the agent's own ports (their real forms are tested in the contract and
integration tiers); what happens is a list of deeds at times, which the clock carries out while the agent sleeps. The
agent's loop, account, journal and reports are those that run in production, and so are NVML's threads: where a call
hangs, they wait for a moment of real time, and the clock goes on meanwhile by what an agent would have waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from greentrain.agent.caps import Caps
from greentrain.agent.journal import FILE, Journal
from greentrain.agent.loop import Agent
from greentrain.agent.ports import Machine
from greentrain.agent.settings import AgentSettings
from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.api.status import EnergyStatus
from greentrain.core.books.ledger import decide_settled, fold
from greentrain.core.seen.nodes import NodeReport
from greentrain.devices.errors import DeviceError, Unavailable
from greentrain.devices.nvidia import nvml
from greentrain.devices.nvidia.nvml import Gpus
from greentrain.devices.nvidia.references import CardReference, FullCard
from greentrain.devices.podresources import Allocation, Listing
from greentrain.energy.intervals import CardReading
from greentrain.kube.node import NodePod, Place
from greentrain.kube.readings import find_key
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Milliwatts, PowerCap
from sandbox.simgpu.cards import Calls, Cards, Fault
from sandbox.simgpu.meter import Meter
from tests.contract.nvml.answers import no_thread, until
from tests.support.snapshots import account_of

WALL = datetime(2026, 3, 1, 11, 58, 20, tzinfo=UTC).timestamp()
PICOJOULES = 10**12

SEEN_SECONDS = 2.5
"""Looks that are not further apart leave nothing unseen that the two seconds of every job do not cover."""

HANG_SECONDS = 0.3
"""Real seconds that the agent waits for a call that hangs; on the clock it waits as long as it is set to."""

RETURN_SECONDS = 0.02
"""Real seconds that calls get to return in when they hang no more: the simulated cards look every 2 ms."""


@dataclass
class LivePod:
    """A pod as it really is."""

    name: str
    uid: str
    cards: tuple[int, ...]
    job_uid: str
    begun: float
    ended: float | None = None
    removed: bool = False
    started: float = 0.0
    """When its containers started last."""
    moments: list[float] = field(default_factory=list)
    """When it began or ceased to hold its cards."""
    stopped: bool = False
    """Its node goes down or has come up without its containers so far."""
    devices: tuple[CardReference, ...] = ()
    """What the kubelet calls its cards, where it has only parts of them."""

    @property
    def runs(self) -> bool:
        return self.ended is None and not self.stopped

    def seen_as(self, step: float) -> NodePod:
        """The pod's object: times in whole seconds by the node's clock, as the kubelet writes them."""
        return NodePod(
            namespace="team",
            name=self.name,
            uid=self.uid,
            terminal=self.ended is not None,
            job="digits",
            job_uid=self.job_uid,
            began=math.floor(WALL + step + self.started),
            ended=None if self.ended is None else math.floor(WALL + step + self.ended),
        )


class Clock:
    """Virtual time: it goes on only while the agent sleeps, and deeds are done on the way."""

    def __init__(self, cards: Cards) -> None:
        self._cards = cards
        self._deeds: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.step = 0.0
        self.woken: Callable[[], None] = lambda: None
        """Called before each look: the watch has brought what is new."""
        self.boots: list[float] = [0.0]
        """When the machine started."""
        self.sleeps: list[tuple[float, float]] = []
        """From when to when it was suspended."""
        self.watch: Callable[[], None] = lambda: None
        """Called before and after time passes: what the agent has done by then is seen."""

    def now(self) -> float:
        """Seconds since the story began, whatever happens to the machine."""
        return self._cards.now_ns / 1e9

    def at(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._deeds, (seconds, next(self._numbers), deed))

    def elapsed(self) -> float:
        return self.now() - self.boots[-1]

    def suspended(self) -> float:
        return sum(end - begin for begin, end in self.sleeps if begin >= self.boots[-1])

    def wall(self) -> float:
        return WALL + self.now() + self.step

    def boot(self) -> str:
        return f"boot-{len(self.boots)}"

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        await asyncio.sleep(0)
        self.pass_to(self.now() + seconds, wake)
        self.woken()
        await asyncio.sleep(0)
        return wake is not None and wake.is_set()

    def pass_to(self, end: float, wake: asyncio.Event | None = None) -> None:
        """Let time pass and do what is due, until then or until `wake` is set."""
        while self._deeds and self._deeds[0][0] <= end:
            if wake is not None and wake.is_set():
                return
            due, _, deed = heapq.heappop(self._deeds)
            self._advance(due)
            deed()
        if wake is None or not wake.is_set():
            self._advance(end)

    def skip(self, seconds: float) -> None:
        """The machine is suspended: time passes in which nothing is done."""
        begin = self.now()
        self._advance(begin + seconds)
        self.sleeps.append((begin, self.now()))

    def _advance(self, end: float) -> None:
        self.watch()
        more = round(end * 1e9) - self._cards.now_ns
        if more > 0:
            self._cards.advance(0, nanoseconds=more)
            self.watch()


@dataclass
class ApiServer:
    """NodePower and pods as the API server has them."""

    away: bool = False
    pods_now: dict[str, NodePod] = field(default_factory=dict)
    status: NodePowerStatus | None = None
    asked: tuple[str, ...] = ()
    pods: Mapping[str, NodePod] = field(default_factory=dict)
    settled: tuple[str, ...] = ()
    writes: int = 0
    version: int = 0
    lag: int = 0
    """Looks of an agent that began anew before its first list has come."""
    told: Callable[[], None] = lambda: None
    """Called after each report."""
    caps_now: Mapping[str, PowerCap] | None = None
    paused_now: str | None = None
    caps: Mapping[str, PowerCap] | None = None
    paused: str | None = None
    place: Place = field(default_factory=Place)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pods_known(self) -> bool:
        return not self.away and not self.lag

    def begin(self, lag: int) -> None:
        """An agent begins: it knows nothing yet."""
        self.pods, self.settled, self.lag = {}, (), lag
        self.caps, self.paused, self.news = None, None, asyncio.Event()

    def refresh(self) -> None:
        """The watch brings what is new."""
        self.lag = max(0, self.lag - 1)
        if self.pods_known:
            self.version += self.pods != self.pods_now
            self.pods, self.settled = dict(self.pods_now), self.asked
            self.caps = None if self.caps_now is None else dict(self.caps_now)
            self.paused = self.paused_now

    def bring(self) -> None:
        """The watch brings at once what must not wait for the next look."""
        before = self.caps, self.paused, self.pods if self.caps_now else None
        if self.pods_known:
            self.refresh()
        if before != (self.caps, self.paused, self.pods if self.caps_now else None):
            self.news.set()

    async def read_status(self) -> NodePowerStatus | None:
        self._fail()
        return self.status

    async def report(self, status: NodePowerStatus) -> None:
        self._fail()
        # As the server gives it back.
        self.status = NodePowerStatus.model_validate_json(status.model_dump_json(by_alias=True))
        self.writes += 1
        self.told()

    def _fail(self) -> None:
        if self.away:
            raise OSError("no route to host")


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a card, or with all, for a while or for good."""

    card: int | None
    kind: Fault
    begin: float
    end: float
    calls: Calls | None = None
    milliseconds: int = 0
    joules: float = 0.0
    share: float = 0.0
    watts: float = 0.0


class Disk(Journal):
    """The journal on a disk that can be full."""

    def __init__(self, folder: Path, node: Node) -> None:
        super().__init__(folder)
        self._folder = folder
        self._node = node

    def store(self, content: bytes, name: str = FILE) -> None:
        if self._node.disk_full:
            # What is written there meets ENOSPC, full(4).
            (self._folder / name).with_suffix(".partial").symlink_to("/dev/full")
        super().store(content, name)
        if name == FILE:
            self._node.kept = self._node.clock.now()


class Driver:
    """The shipped NVML adapter; where it waits for a call that hangs, the clock goes on by its deadline."""

    def __init__(self, node: Node, gpus: Gpus) -> None:
        self._node = node
        self._gpus = gpus

    async def read_all(
        self, *, deadline: float = nvml.READ_SECONDS
    ) -> Mapping[str, CardReading | DeviceError]:
        with self._node.waiting(deadline, nvml.READ_SECONDS) as real:
            return await self._gpus.read_all(real)

    @property
    def unnamed(self) -> Mapping[int, DeviceError]:
        return self._gpus.unnamed

    async def discover(self) -> tuple[Card, ...]:
        with self._node.waiting(nvml.DISCOVER_SECONDS) as real:
            return await self._gpus.discover(deadline=real)

    async def read_limits(self, uuid: str) -> CurrentLimits:
        with self._node.waiting(nvml.READ_SECONDS) as real:
            return await self._gpus.read_limits(uuid, deadline=real)

    async def set_limit(self, uuid: str, milliwatts: int) -> None:
        await self._node.pass_by("before a limit is set")
        with self._node.waiting(nvml.READ_SECONDS) as real:
            await self._gpus.set_limit(uuid, Milliwatts(milliwatts), deadline=real)
        await self._node.pass_by("after a limit was set")

    async def close(self) -> None:
        await self._gpus.close()
        self._node.note_closed(self._gpus)


class Node:
    """The whole node."""

    def __init__(self, cards: Cards, folder: Path, *, seed: int) -> None:
        self.cards = cards
        self.meter = Meter(cards)
        self.clock = Clock(cards)
        self.api = ApiServer()
        self.api.told = self._note_report
        self.clock.woken = self._woken
        self.folder = folder
        self.chance = random.Random(seed)
        self.live: list[LivePod] = []
        self.kubelet_away = False
        self.agent: Agent | None = None
        self.energy: dict[str, EnergyStatus | None] = {}
        self.peak = max(cards.read_card(i).watts for i in cards)
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._opened: list[Gpus] = []
        self._journal: Journal | None = None
        self.uuids = [cards.read_card(i).uuid for i in cards]
        self.looks: dict[str, list[float]] = {u: [] for u in self.uuids}
        """When each card and its holders were both seen, as far as that is still known after the agent's deaths."""
        self.breaks: dict[str, list[float]] = {u: [] for u in self.uuids}
        """When each card's counter began anew."""
        self.forgotten: list[float] = []
        """When what the agent knew was lost: with its journal, or at its death while the disk was full."""
        self.downs: list[tuple[float, float]] = []
        """From when to when the machine was down."""
        self.down = False
        self.disk_full = False
        self.kept = 0.0
        """When the journal was written last."""
        self.reported = 0.0
        """When NodePower was written last."""
        self.troubles: list[Trouble] = []
        self.dies: str | None = None
        """The place at which the agent gets no further, but for a SIGKILL."""
        self.dying = False
        self._numbers = itertools.count()
        self._loads = itertools.count()
        self.driver = folder / "driver"
        """There once a driver was loaded anew."""

    # -- pods ---------------------------------------------------------------------------------------------

    def begin_pod(self, job: str, cards: tuple[int, ...], devices: tuple[CardReference, ...] = ()) -> LivePod:
        """The kubelet gives a pod its devices and starts it."""
        number = next(self._numbers)
        pod = LivePod(
            f"{job}-worker-0-{number}", f"uid-{number}", cards, job, self.clock.now(), devices=devices
        )
        self.live.append(pod)
        self.energy.setdefault(job, None)
        self.start_pod(pod)
        return pod

    def start_pod(self, pod: LivePod) -> None:
        """Its containers start, for the first time or after its node came up again."""
        pod.stopped, pod.started = False, self.clock.now()
        pod.moments.append(pod.started)
        for card in pod.cards:
            self.meter.hold(card, pod.uid)
        self.api.pods_now[pod.uid] = pod.seen_as(self.clock.step)

    def end_pod(self, pod: LivePod) -> None:
        """Its containers end, and the kubelet takes its devices back."""
        pod.ended = self.clock.now()
        self._stop_pod(pod)
        self.api.pods_now[pod.uid] = pod.seen_as(self.clock.step)

    def _stop_pod(self, pod: LivePod) -> None:
        pod.moments.append(self.clock.now())
        for card in pod.cards:
            self.meter.hold(card, None)
            self.cards.set_load(card, 0.0)

    def remove_pod(self, pod: LivePod) -> None:
        """Its object is deleted."""
        pod.removed = True
        self.api.pods_now.pop(pod.uid, None)

    def unseen(self, pod: LivePod) -> float:
        """Seconds between looks in which something befell a pod's card that no later look can tell.

        The pod began or ended, the counter began anew, the card has none, or what the agent knew was lost.
        """
        found = 0.0
        for card in pod.cards:
            breaks = (*pod.moments, *self.breaks[self.uuids[card]], *self.forgotten)
            bare = [t for t in self.troubles if t.kind is Fault.NOT_SUPPORTED and t.card == card]
            for begin, end in self._gaps(pod, card):
                if any(begin <= t <= end for t in breaks) or any(t.begin < end for t in bare):
                    found += end - begin - self._down_between(begin, end)
        return found

    def unstated(self, pod: LivePod) -> float:
        """Those of these seconds of which an agent knows nothing because what it had known was lost."""
        return sum(
            end - begin - self._down_between(begin, end)
            for card in pod.cards
            for begin, end in self._gaps(pod, card)
            if any(begin <= t <= end for t in self.forgotten)
        )

    def is_known(self, pod: LivePod) -> bool:
        """Whether it was ever seen to hold its cards, as far as that is still known."""
        end = self.clock.now() if pod.ended is None else pod.ended
        return any(pod.begun <= t <= end for card in pod.cards for t in self.looks[self.uuids[card]])

    def _gaps(self, pod: LivePod, card: int) -> list[tuple[float, float]]:
        """Times of a pod's life in which a card or its holders were not seen."""
        looks = [0.0, *self.looks[self.uuids[card]], self.clock.now()]
        return [
            (a, b)
            for a, b in pairwise(looks)
            if b - a > SEEN_SECONDS and b > pod.begun and (pod.ended is None or a < pod.ended)
        ]

    def _down_between(self, begin: float, end: float) -> float:
        return sum(max(0.0, min(up, end) - max(down, begin)) for down, up in self.downs)

    def set_load(self, card: int, load: float) -> None:
        """What runs on a card; nothing does while the machine or its pod is down."""
        if self.down or any(p.stopped and card in p.cards for p in self.live):
            return
        self.cards.set_load(card, load)
        self.peak = max(self.peak, self.cards.read_card(card).watts)

    # -- what goes wrong ----------------------------------------------------------------------------------

    def trouble(self, one: Trouble) -> None:
        """Something is wrong with a card from now on."""
        self.troubles.append(one)
        self._arm(one)
        if one.kind is Fault.HANG:
            self.clock.at(one.end, functools.partial(time.sleep, RETURN_SECONDS))

    def _arm(self, one: Trouble) -> None:
        end = None if one.end == math.inf else round(one.end * 1e9)
        begin = round(one.begin * 1e9)
        self.cards.fault(
            one.card,
            one.kind,
            begin,
            end,
            calls=one.calls,
            milliseconds=one.milliseconds,
            joules=one.joules,
            share=one.share,
            watts=one.watts,
        )

    def end_troubles(self) -> None:
        """Everything is well again but for what is so for good."""
        now = self.clock.now()
        self.troubles = [replace(t, end=now) if now < t.end < math.inf else t for t in self.troubles]
        self._rearm()

    def _rearm(self) -> None:
        self.cards.clear_faults()
        for one in self.troubles:
            if one.end > self.clock.now():
                self._arm(one)

    def reset(self, card: int) -> None:
        """A card's counter begins anew, at 0."""
        self.troubles = [
            t for t in self.troubles if not (t.kind is Fault.SHIFTED and t.card == card and t.end == math.inf)
        ]
        self._rearm()
        self.cards.reload_driver(card)
        self.breaks[self.uuids[card]].append(self.clock.now())

    def sleep(self, seconds: float) -> None:
        """The machine sleeps: nothing runs on it, no card draws, and no counter moves."""
        loads = {card: self.cards.read_card(card).load for card in self.cards}
        used = {card: self.cards.read_card(card).counter_mj for card in self.cards}
        for card in self.cards:
            self.cards.set_load(card, 0.0)
            self.meter.hold(card, None)
        self.clock.skip(seconds)
        for card in self.cards:
            self.cards.set_load(card, loads[card])
            asleep = (self.cards.read_card(card).counter_mj - used[card]) / 1000
            self.trouble(Trouble(card, Fault.SHIFTED, self.clock.now(), math.inf, joules=-asleep))
            for pod in self.live:
                if pod.runs and card in pod.cards:
                    self.meter.hold(card, pod.uid)

    def go_down(self) -> None:
        """The machine goes down, and all that runs on it with it."""
        self.down = True
        self.downs.append((self.clock.now(), math.inf))
        for card in self.cards:
            self.cards.set_load(card, 0.0)
        for pod in self.live:
            if pod.ended is None:
                self._stop_pod(pod)
                pod.stopped = True

    def come_up(self) -> None:
        """It starts anew: another boot, cards that are well and count from 0."""
        now = self.clock.now()
        self.downs[-1] = (self.downs[-1][0], now)
        self.clock.boots.append(now)
        self.end_troubles()
        for card in self.cards:
            self.reset(card)
        self.down = False

    def damage_journal(self) -> None:
        """Half of the journal is gone, and so is what was not told before."""
        path = self.folder / FILE
        if path.exists():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            self._forget(self.reported)
            self.forgotten.append(self.clock.now())

    def _forget(self, since: float) -> None:
        """Looks of which nothing is left are none."""
        for uuid, looks in self.looks.items():
            self.looks[uuid] = [t for t in looks if t <= since]

    @contextlib.contextmanager
    def waiting(self, usual: float, deadline: float | None = None) -> Iterator[float]:
        """Real seconds to wait for NVML. Where a call hangs these are few, and `deadline` of the clock's pass instead."""
        now = self.clock.now()
        ends = [t.end for t in self.troubles if t.kind is Fault.HANG and t.begin <= now < t.end]
        if not ends:
            yield usual
            return
        end = min(max(ends), now + (usual if deadline is None else deadline))
        passing = asyncio.get_running_loop().call_later(HANG_SECONDS / 3, self.clock.pass_to, end)
        try:
            yield HANG_SECONDS
        finally:
            passing.cancel()

    # -- the agent and its ports --------------------------------------------------------------------------

    async def read_allocations(self) -> Listing:
        """As `PodResources`."""
        if self.kubelet_away:
            raise Unavailable("The kubelet", "it is away", "Wait.")
        allocations = tuple(
            Allocation("team", p.name, "tensorflow", "nvidia.com/gpu", device)
            for p in self.live
            if p.runs
            for device in p.devices or [FullCard(self.uuids[c]) for c in p.cards]
        )
        return Listing(allocations, ())

    def _woken(self) -> None:
        self.api.refresh()
        self._note_look()

    def _note_look(self) -> None:
        if self.agent is not None and self.agent.looked is not None:
            for uuid, answer in self.agent.answers.items():
                if isinstance(answer, CardReading):
                    self.looks[uuid].append(self.agent.looked + self.clock.boots[-1])

    def _note_report(self) -> None:
        self.reported = self.clock.now()

    async def open_gpus(self) -> Driver:
        """As `Gpus.open`, remembered so that a killed agent's session ends."""
        with self.waiting(nvml.OPEN_SECONDS) as real:
            gpus = await Gpus.open(deadline=real)
        self._opened.append(gpus)
        return Driver(self, gpus)

    async def pass_by(self, place: str) -> None:
        """The agent is here; it may be as far as it gets."""
        if self.dies == place:
            self.dying = True
            await asyncio.Event().wait()

    @property
    def uses_driver(self) -> bool:
        """Whether the agent has NVML open: then no driver can be replaced."""
        return bool(self._opened)

    def note_closed(self, gpus: Gpus) -> None:
        if gpus in self._opened:
            self._opened.remove(gpus)

    def load_driver(self) -> None:
        """Another load of the driver: a folder of another number; the old one stays, so that none is given out again."""
        if self.driver.exists():
            self.driver.rename(self.folder / f"driver-{next(self._loads)}")
        self.driver.mkdir(parents=True)
        for card in self.cards:
            self.reset(card)

    def start_agent(self, *, dry_run: bool = False) -> None:
        """A container with the agent starts."""
        self.api.begin(self.chance.randint(1, 4))
        self._stop = asyncio.Event()
        self._journal = Disk(self.folder, self)
        self._journal.take()
        settings = AgentSettings(node="node-1", report_interval=30.0, read_deadline=5.0)
        self.agent = Agent(
            settings,
            Machine(self.clock, self.open_gpus, self),
            view=self.api,
            journal=self._journal,
            caps=Caps(self._journal, self.clock, driver=self.driver, dry_run=dry_run),
            chance=self.chance,
        )
        self._task = asyncio.create_task(self.agent.run(self._stop))

    async def kill_agent(self) -> None:
        """SIGKILL: nothing more is written."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.dies, self.dying = None, False
        await self.let_calls_return()
        self._rearm()
        self._forget(self.kept)
        if self.disk_full:
            self.forgotten.append(self.clock.now())

    async def let_calls_return(self) -> None:
        """Calls that hang end with their process; for the next one they hang again."""
        self.cards.clear_faults()
        await self._end_life()
        await until(no_thread)

    async def stop_agent(self) -> None:
        """SIGTERM."""
        assert self._task is not None
        self._stop.set()
        await self._task
        await self._end_life()

    async def _end_life(self) -> None:
        if self._journal is not None:
            self._journal.close()
        while self._opened:
            await self._opened.pop().close()
        self._task = None

    # -- the operator -------------------------------------------------------------------------------------

    def operate(self, *, finished: bool = False) -> None:
        """One pass over every job and one over the node, as the operator's."""
        self.meter.drain()
        status = self.api.status
        if self.api.away or status is None:
            return
        now = datetime.fromtimestamp(self.clock.wall(), UTC)
        for job, energy in self.energy.items():
            entries = tuple(e for e in status.pods if job_of(e) == job)
            gone = {p.uid for p in self.live if p.removed}
            report = NodeReport("node-1", now, entries)
            account = account_of(
                (report,), energy=energy, is_gone=gone.__contains__, finished=finished, now=now
            )
            new, _ = fold(account)
            self.energy[job] = new

        def energy_of(entry: PodEnergy) -> EnergyStatus | None:
            return self.energy[job_of(entry)]

        self.api.asked = decide_settled(self.api.asked, status, energy_of=energy_of, is_ours=lambda _: True)


def job_of(entry: PodEnergy) -> str:
    """The job's UID here, which is its name; by the pod's name where the agent was not told of an owner."""
    if entry.owner_known:
        return entry.job_uid or ""
    found = find_key(entry)
    return found.name if found is not None else ""
