"""Plain data behind the agent's own ports: what a node's cards, kubelet and API server say at a moment of one's choice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from greentrain.agent.allowances import Allowances
from greentrain.agent.caps import Caps
from greentrain.agent.host import Host
from greentrain.agent.journal import Journal
from greentrain.agent.loop import Agent
from greentrain.agent.ports import Machine
from greentrain.agent.settings import AgentSettings
from greentrain.api.nodepower import NodePowerStatus
from greentrain.devices.errors import DeviceError, Unsupported
from greentrain.devices.nvidia.references import parse_device
from greentrain.devices.podresources import Allocation, Listing
from greentrain.energy.intervals import CardReading
from greentrain.kube.client import ApiError
from greentrain.kube.node import NodePod, Place
from greentrain.node.allowance import Allowance
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Millijoules, Milliwatts, PowerCap

WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@dataclass
class Clock:
    """Goes on while the agent sleeps; stops the agent after so many rounds."""

    stop: asyncio.Event
    rounds: int = 1
    now: float = 1000.0

    def elapsed(self) -> float:
        return self.now

    def suspended(self) -> float:
        return 0.0

    def wall(self) -> float:
        return WALL + self.now

    def boot(self) -> str:
        return "boot-1"

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        if wake is not None and wake.is_set():
            return True
        for _ in range(5):  # a report that is under way is written
            await asyncio.sleep(0)
        self.now += seconds
        self.rounds -= 1
        if self.rounds <= 0:
            self.stop.set()
        return False


@dataclass
class SteppedClock(Clock):
    """Goes on second by second, when it is told to: the agent sleeps until then."""

    asleep: asyncio.Event = field(default_factory=asyncio.Event)
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        if wake is not None and wake.is_set():
            return True
        self.asleep.set()
        await self.steps.acquire()
        self.now += seconds
        return False

    async def step(self) -> None:
        """Let the agent go round once; what it does beside that gets done too."""
        self.asleep.clear()
        self.steps.release()
        await self.settle()

    async def settle(self) -> None:
        """Wait until the agent sleeps; one that has failed never does."""
        async with asyncio.timeout(10):
            await self.asleep.wait()
        for _ in range(10):
            await asyncio.sleep(0)


class Regular(random.Random):
    """Chance that has everything done at its time, so that rounds are seconds."""

    def uniform(self, a: float, b: float) -> float:
        return min(max(a, 1.0), b)


@dataclass
class World:
    """One node."""

    cards: tuple[Card, ...] = (Card("GPU-a", 0, 0, "Tesla V100", partitioned=False),)
    answers: dict[str, CardReading | DeviceError] = field(
        default_factory=lambda: {"GPU-a": CardReading(counter=Millijoules(5_000), draw=Milliwatts(45_000))}
    )
    nvml: Exception | None = None
    kubelet: Exception | None = None
    listing: Listing = field(default_factory=lambda: Listing((), ()))
    pods: Mapping[str, NodePod] = field(default_factory=dict)
    pods_known: bool = True
    looks: int = 0
    settled: tuple[str, ...] = ()
    status: NodePowerStatus | None = None
    host: Host | None = None
    caps: Mapping[str, PowerCap] | None = None
    paused: str | None = None
    place: Place = field(default_factory=lambda: Place("eu-central-1", "eu-central-1a"))
    news: asyncio.Event = field(default_factory=asyncio.Event)
    limit: int = 300_000
    unnamed: dict[int, DeviceError] = field(default_factory=dict)
    allowances: Mapping[str, Allowance] | None = None
    lease: tuple[str, str] | None = ("greentrain", "operator")
    operator_renewed: float | None = None
    unattended: Mapping[str, float] = field(default_factory=dict)
    back_at: float | None = None
    """When the operator turns out to have been heard, where somebody looks."""
    away: bool = False
    """Whether the API server does not answer."""
    refusals: list[ApiError] = field(default_factory=list)
    """What the next evictions are answered with."""
    deeds: list[str] = field(default_factory=list)
    """What was done, in that order: limits set, reports with what they say of pods, evictions asked for."""
    cgroups: tuple[str, ...] | None = None
    """UIDs of pods that have a cgroup; None where cgroups cannot be read."""

    @property
    def version(self) -> int:
        """Another one each time: the tests change what they like, and the kubelet is asked each time."""
        self.looks += 1
        return self.looks

    def hold(self, *names: str, device: str = "GPU-a") -> None:
        """These pods, of the job `digits`, hold a device."""
        self.pods = {
            f"uid-{name}": NodePod("team", name, f"uid-{name}", False, "digits", "uid-digits")
            for name in names
        }
        self.listing = Listing(
            tuple(Allocation("team", n, "tensorflow", "nvidia.com/gpu", parse_device(device)) for n in names),
            (),
        )

    # As `devices.nvidia.nvml.Gpus`.

    async def open(self) -> World:
        if self.nvml is not None:
            raise self.nvml
        return self

    async def read_all(self, *, deadline: float = 2.0) -> Mapping[str, CardReading | DeviceError]:
        del deadline
        if self.nvml is not None:
            raise self.nvml
        return dict(self.answers)

    async def discover(self) -> tuple[Card, ...]:
        return self.cards

    async def read_limits(self, uuid: str) -> CurrentLimits:
        del uuid
        return CurrentLimits(Milliwatts(self.limit), Milliwatts(min(self.limit, 250_000)))

    async def set_limit(self, uuid: str, milliwatts: int) -> None:
        del uuid
        self.limit = milliwatts
        self.deeds.append(f"limit {milliwatts // 1000}")

    async def close(self) -> None:
        pass

    # As `devices.podresources.PodResources`.

    async def read_allocations(self) -> Listing:
        if self.kubelet is not None:
            raise self.kubelet
        return self.listing

    # As `devices.rapl.CpuTime`.

    def find_pods(self) -> tuple[str, ...]:
        if self.cgroups is None:
            raise Unsupported("processor time of cgroups below /sys/fs/cgroup")
        return self.cgroups

    # As `kube.node.NodeView`.

    async def read_status(self) -> NodePowerStatus | None:
        return self.status

    async def report(self, status: NodePowerStatus) -> None:
        if self.away:
            raise ApiError(503, "ServiceUnavailable", "away")
        self.status = status
        self.deeds.append(" ".join(["report", *(p.budget_action for p in status.pods)]))

    async def listen(self) -> None:
        if self.away:
            raise ApiError(503, "ServiceUnavailable", "away")
        if self.back_at is not None:
            self.operator_renewed = self.back_at

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        self.deeds.append(f"evict {namespace}/{name} {uid}")
        if self.refusals:
            raise self.refusals.pop(0)


class Life:
    """One agent's life, round by round."""

    def __init__(
        self,
        world: World,
        folder: Path,
        *,
        budgets: bool = False,
        settings: AgentSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`budgets`: it holds pods to their allowances, as the shipped one does."""
        self.clock = clock or Clock(asyncio.Event())
        journal = Journal(folder / "journal")
        if not (folder / "journal").exists():
            (folder / "journal").mkdir()
        self.agent = Agent(
            settings or AgentSettings(node="node-1"),
            Machine(self.clock, world.open, world, world.host, world.find_pods),
            view=world,
            journal=journal,
            caps=Caps(journal, self.clock, driver=folder / "no-driver"),
            allowances=Allowances(journal, self.clock, world) if budgets else None,
            chance=Regular(),
        )

    async def run(self, rounds: int = 1) -> None:
        """From its start to SIGTERM, which may come before its first round."""
        self.clock.rounds = rounds
        if rounds == 0:
            self.clock.stop.set()
        await self.agent.run(self.clock.stop)

    async def look(self, times: int = 1) -> None:
        """So many looks, a second apart."""
        for _ in range(times):
            await self.agent.look()
            self.clock.now += 1

    def pass_time(self, seconds: float) -> None:
        """Time passes in which it does not go round."""
        self.clock.now += seconds
