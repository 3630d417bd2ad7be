"""A node on virtual time around the shipped agent: real NVML bindings on simulated cards, and the exact meter as judge.

Kubelet and API server are plain data behind the agent's own ports (their real forms are tested in the contract and
integration tiers); what happens is a list of deeds at times, which the clock carries out while the agent sleeps. The
agent's loop, account, journal and reports are those that run in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from greentrain.agent.journal import Journal
from greentrain.agent.loop import Agent
from greentrain.agent.settings import AgentSettings
from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.api.v1alpha1 import EnergyStatus
from greentrain.core.ledger import NodeReport, decide_settled, fold
from greentrain.devices.errors import Unavailable
from greentrain.devices.nvml import Gpus
from greentrain.devices.podresources import Holding, Listing
from greentrain.devices.references import FullCard
from greentrain.energy.intervals import CardReading
from greentrain.kube.node import NodePod
from greentrain.kube.readings import find_key
from sandbox.simgpu.cards import Cards
from sandbox.simgpu.meter import Meter

WALL = datetime(2026, 3, 1, 11, 58, 20, tzinfo=UTC).timestamp()
PICOJOULES = 10**12


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

    def seen_as(self, step: float) -> NodePod:
        """The pod's object: times in whole seconds by the node's clock, as the kubelet writes them."""
        return NodePod(
            namespace="team",
            name=self.name,
            uid=self.uid,
            terminal=self.ended is not None,
            job="digits",
            job_uid=self.job_uid,
            began=math.floor(WALL + step + self.begun),
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
        self.boot_name = "boot-1"

    def at(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._deeds, (seconds, next(self._numbers), deed))

    def elapsed(self) -> float:
        return self._cards.now_ns / 1e9

    def wall(self) -> float:
        return WALL + self.elapsed() + self.step

    def boot(self) -> str:
        return self.boot_name

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.pass_to(self.elapsed() + seconds)
        self.woken()
        await asyncio.sleep(0)

    def pass_to(self, end: float) -> None:
        while self._deeds and self._deeds[0][0] <= end:
            due, _, deed = heapq.heappop(self._deeds)
            self._advance(due)
            deed()
        self._advance(end)

    def _advance(self, end: float) -> None:
        more = round(end * 1e9) - self._cards.now_ns
        if more > 0:
            self._cards.advance(0, nanoseconds=more)


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

    @property
    def pods_known(self) -> bool:
        return not self.away and not self.lag

    def begin(self, lag: int) -> None:
        """An agent begins: it knows nothing yet."""
        self.pods, self.settled, self.lag = {}, (), lag

    def refresh(self) -> None:
        """The watch brings what is new."""
        self.lag = max(0, self.lag - 1)
        if self.pods_known:
            self.version += self.pods != self.pods_now
            self.pods, self.settled = dict(self.pods_now), self.asked

    async def read_status(self) -> NodePowerStatus | None:
        self._fail()
        return self.status

    async def report(self, status: NodePowerStatus) -> None:
        self._fail()
        # As the server gives it back.
        self.status = NodePowerStatus.model_validate_json(status.model_dump_json(by_alias=True))
        self.writes += 1

    def _fail(self) -> None:
        if self.away:
            raise OSError("no route to host")


class Node:
    """The whole node."""

    def __init__(self, cards: Cards, folder: Path, *, seed: int) -> None:
        self.cards = cards
        self.meter = Meter(cards)
        self.clock = Clock(cards)
        self.api = ApiServer()
        self.clock.woken = self._woken
        self.folder = folder
        self.chance = random.Random(seed)
        self.live: list[LivePod] = []
        self.kubelet_away = False
        self.agent: Agent | None = None
        self.energy: dict[str, EnergyStatus | None] = {}
        self.peak = 0.0
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._opened: list[Gpus] = []
        self._journal: Journal | None = None
        self.uuids = [cards.read_card(i).uuid for i in cards]
        self.looks: dict[str, list[float]] = {u: [] for u in self.uuids}
        self._numbers = itertools.count()

    # -- pods ---------------------------------------------------------------------------------------------

    def begin_pod(self, job: str, cards: tuple[int, ...]) -> LivePod:
        """The kubelet gives a pod its devices and starts it."""
        number = next(self._numbers)
        pod = LivePod(f"{job}-worker-0-{number}", f"uid-{number}", cards, job, self.clock.elapsed())
        for card in cards:
            self.meter.hold(card, pod.uid)
        self.live.append(pod)
        self.energy.setdefault(job, None)
        self.api.pods_now[pod.uid] = pod.seen_as(self.clock.step)
        return pod

    def end_pod(self, pod: LivePod) -> None:
        """Its containers end, and the kubelet takes its devices back."""
        pod.ended = self.clock.elapsed()
        for card in pod.cards:
            self.meter.hold(card, None)
            self.cards.set_load(card, 0.0)
        self.api.pods_now[pod.uid] = pod.seen_as(self.clock.step)

    def remove_pod(self, pod: LivePod) -> None:
        """Its object is deleted."""
        pod.removed = True
        self.api.pods_now.pop(pod.uid, None)

    def blind_around(self, moment: float, cards: tuple[int, ...]) -> float:
        """Seconds between the last time a pod's cards and holders were both seen before a moment and the first after."""
        gaps = []
        for card in cards:
            looks = self.looks[self.uuids[card]]
            before = max((t for t in looks if t <= moment), default=0.0)
            after = min((t for t in looks if t >= moment), default=self.clock.elapsed())
            gaps.append(after - before)
        return max(gaps)

    def set_load(self, card: int, load: float) -> None:
        """What runs on a card."""
        self.cards.set_load(card, load)
        self.peak = max(self.peak, self.cards.read_card(card).watts)

    # -- the agent and its ports --------------------------------------------------------------------------

    async def read_holdings(self) -> Listing:
        """As `PodResources`."""
        if self.kubelet_away:
            raise Unavailable("The kubelet", "it is away", "Wait.")
        holdings = tuple(
            Holding("team", p.name, "tensorflow", "nvidia.com/gpu", FullCard(self.uuids[c]))
            for p in self.live
            if p.ended is None
            for c in p.cards
        )
        return Listing(holdings, ())

    def _woken(self) -> None:
        self.api.refresh()
        self._note_look()

    def _note_look(self) -> None:
        if self.agent is not None and self.agent.looked is not None:
            for uuid, answer in self.agent.answers.items():
                if isinstance(answer, CardReading):
                    self.looks[uuid].append(self.agent.looked)

    async def open_gpus(self) -> Gpus:
        """As `Gpus.open`, remembered so that a killed agent's session ends."""
        gpus = await Gpus.open()
        self._opened.append(gpus)
        return gpus

    def start_agent(self) -> None:
        """A container with the agent starts."""
        self.api.begin(self.chance.randint(1, 4))
        self._stop = asyncio.Event()
        self._journal = Journal(self.folder)
        self._journal.take()
        settings = AgentSettings(node="node-1", report_interval=30.0, read_deadline=5.0)
        self.agent = Agent(
            settings,
            open_gpus=self.open_gpus,
            kubelet=self,
            view=self.api,
            journal=self._journal,
            clock=self.clock,
            chance=self.chance,
        )
        self._task = asyncio.create_task(self.agent.run(self._stop))

    async def kill_agent(self) -> None:
        """SIGKILL: nothing more is written."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._end_life()

    async def stop_agent(self) -> None:
        """SIGTERM."""
        assert self._task is not None
        self._stop.set()
        await self._task
        await self._end_life()

    async def _end_life(self) -> None:
        assert self._journal is not None
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
            new, _ = fold(energy, (report,), gone=gone.__contains__, finished=finished, now=now)
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
