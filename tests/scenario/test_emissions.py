"""Two hundred jobs whose nodes, operator and source of intensity die at random: every joule is priced once, at its own time.

Pods draw at random over hours, each on a node of its own zone. Agents tell energy by quarter of an hour, are away for a while
and bridge the gap; the operator is away for minutes or hours; the source has gaps, is dead for a while, and learns late what a
quarter emitted, but it never says two things of one quarter. So the true emissions are known, and what is told can differ from
them by the energy that is told as without intensity, and by nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import pytest

from greentrain import quantities
from greentrain.api.nodepower import BUCKET_SECONDS, EnergyBuckets, PodEnergy
from greentrain.api.spec import Basis
from greentrain.api.status import EmissionsStatus, EnergyStatus
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.books.emissions import count_emissions
from greentrain.core.books.ledger import fold
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.times import format_time
from greentrain.quantities import Thousandths
from tests.support.lives import Suite
from tests.support.snapshots import START, account_of, at

TICK = 30
HOURS = 6
QUARTERS = HOURS * 4 + 2
JOULES_PER_KWH = 3_600_000
PUE = 1300


@dataclass
class Pod:
    """A pod, and what its node's agent has counted of it."""

    uid: str
    zone: str
    begin: int
    end: int
    joules: list[int] = field(default_factory=lambda: [0] * QUARTERS)
    """By quarter of an hour, exactly."""
    pending: list[int] = field(default_factory=lambda: [0] * QUARTERS)
    """Used while the agent was away: told when it is back."""
    last: int = 0
    drop_settled: bool = False


@dataclass
class World:
    """One job's life."""

    seed: int
    chance: random.Random = field(init=False)
    pods: list[Pod] = field(init=False)
    truth: dict[str, list[int]] = field(init=False)
    """g/kWh by zone and quarter."""
    known: dict[str, list[bool]] = field(init=False)
    """Whether the source has the value by now."""
    energy: EnergyStatus | None = None
    emissions: EmissionsStatus | None = None
    settled: set[str] = field(default_factory=set)
    now: int = 0
    source_until: int = 0
    agents_until: int = 0
    operator_until: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        zones = ["DE", "SE"][: self.chance.randrange(1, 3)]
        last = HOURS * 3600
        self.pods = []
        for i in range(self.chance.randrange(1, 5)):
            begin = self.chance.randrange(0, last // 2, TICK)
            end = self.chance.randrange(begin + TICK, last, TICK)
            self.pods.append(Pod(f"pod-{i}", self.chance.choice(zones), begin, end, last=begin))
        self.truth = {z: [self.chance.choice([0, 20, 90, 400, 1100]) for _ in range(QUARTERS)] for z in zones}
        gaps = self.chance.choice([0.0, 0.0, 0.1, 0.4])
        self.known = {z: [self.chance.random() >= gaps for _ in range(QUARTERS)] for z in zones}

    def carbon(self) -> CarbonSource:
        """The source as it is now."""

        def look(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
            quarter = int((moment - START.timestamp()) // BUCKET_SECONDS)
            begin = START.timestamp() + quarter * BUCKET_SECONDS
            there = 0 <= quarter < QUARTERS and self.known[zone][quarter]
            if self.now < self.source_until or not there:
                return Absent(f"{zone} is not known", begin, begin + BUCKET_SECONDS)
            return Intensity(
                quantities.Intensity(self.truth[zone][quarter] * 1000),
                "tso",
                basis,
                begin,
                begin + BUCKET_SECONDS,
                begin,
            )

        return CarbonSource(
            at=look, zone_of=lambda _region, zone: zone or None, pue=Thousandths(PUE), include_embodied=False
        )

    def step(self) -> None:
        """Half a minute."""
        quarter = self.now // BUCKET_SECONDS
        self.now += TICK
        for pod in self.pods:
            if pod.begin < self.now <= pod.end:
                pod.pending[quarter] += self.chance.randrange(20_000)
        self._break()
        if self.now >= self.agents_until:
            for pod in self.pods:
                for i, joules in enumerate(pod.pending):
                    pod.joules[i] += joules
                pod.pending = [0] * QUARTERS
                pod.last = min(max(self.now, pod.begin), pod.end)
        if self.now >= self.operator_until:
            self._pass()

    def _break(self) -> None:
        roll = self.chance.random()
        away = self.chance.choice([60, 600, 3600, 7200])
        if roll < 0.004:
            self.source_until = self.now + away
            self.faults["source away"] += 1
        elif roll < 0.008:
            self.agents_until = self.now + away // 4
            self.faults["agents away"] += 1
        elif roll < 0.012:
            self.operator_until = self.now + away
            self.faults["operator away"] += 1
        elif roll < 0.02:
            zone = self.chance.choice(sorted(self.known))
            self.known[zone][self.chance.randrange(QUARTERS)] = True

    def entry(self, pod: Pod) -> PodEnergy:
        """What the agent tells of a pod."""
        closed = self.now > pod.end + TICK and not any(pod.pending)
        first = pod.begin // BUCKET_SECONDS
        return PodEnergy(
            uid=pod.uid,
            namespace="team",
            name=f"digits-worker-{pod.uid[-1]}-1",
            job="digits",
            job_uid="uid-1",
            owner_known=True,
            gpu_joules=sum(pod.joules),
            first_reading=format_time(at(pod.begin)),
            last_reading=format_time(at(pod.last)),
            closed=closed,
            buckets=EnergyBuckets(
                start=format_time(at(first * BUCKET_SECONDS)), joules=tuple(pod.joules[first:])
            ),
        )

    def _pass(self) -> None:
        reports = []
        for zone in sorted(self.truth):
            entries = [
                self.entry(p)
                for p in self.pods
                if p.zone == zone and p.begin < self.now and not p.drop_settled
            ]
            report = NodeReport(
                f"node-{zone}", at(self.now), tuple(entries), observed=at(self.now), zone=zone
            )
            reports.append(report)
        over = all(p.drop_settled for p in self.pods)
        account = account_of(
            reports,
            energy=self.energy,
            emissions=self.emissions,
            source=self.carbon(),
            is_gone=bool,
            finished=over,
            now=at(self.now),
        )
        energy, _ = fold(account)
        counted = count_emissions(account, energy)
        if counted.energy is None or counted.emissions is None:
            return
        # As the server gives them back, to an operator that may have begun anew.
        self.energy = EnergyStatus.model_validate_json(counted.energy.model_dump_json(by_alias=True))
        self.emissions = EmissionsStatus.model_validate_json(counted.emissions.model_dump_json(by_alias=True))
        self._check()
        for report in reports:
            for entry in report.pods:
                stored = any(p.key == entry.key and p.final for p in self.energy.pods)
                if entry.closed and stored and self.chance.random() < 0.5:
                    next(p for p in self.pods if p.uid == entry.uid).drop_settled = True

    def _check(self) -> None:
        """Every joule has a source or is told as without; what is priced is priced at its own time."""
        assert self.energy is not None
        assert self.emissions is not None
        found = self.emissions
        priced = sum(s.joules for s in found.shares)
        assert priced + found.without_joules == self.energy.used_joules
        assert found.operational_micrograms == sum(s.micrograms for s in found.shares)
        true = self.true_micrograms()
        most = max(max(v) for v in self.truth.values()) * 1_000_000 * PUE / 1000 / JOULES_PER_KWH
        # Rounded once for each quarter that was priced, and a joule of each cut off at an edge.
        slack = QUARTERS * len(self.pods) * (1 + ceil(most))
        assert found.operational_micrograms <= true + slack
        assert found.operational_micrograms >= true - most * found.without_joules - slack

    def true_micrograms(self) -> float:
        """What the energy that was told has truly caused."""
        return sum(
            joules * self.truth[pod.zone][i] * 1_000_000 * PUE / 1000 / JOULES_PER_KWH
            for pod in self.pods
            for i, joules in enumerate(pod.joules)
        )


def live(seed: int) -> World:
    """A job from its start to the time when all is settled."""
    world = World(seed)
    while world.now < HOURS * 3600:
        world.step()
    world.agents_until = world.operator_until = 0
    while not (world.emissions is not None and world.emissions.final):
        world.step()
        assert world.now < 4 * HOURS * 3600, "it never comes to rest"
    return world


class Life(NamedTuple):
    """What is asked of a life."""

    used_joules: int
    pods_joules: int
    """As the pods' agents have counted them."""
    left: int
    """Pods of which something is still to come."""
    without_joules: int
    zones: int
    faults: Counter[str]


def live_to_end(seed: int) -> Life:
    """A life, and what came of it."""
    world = live(seed)
    assert world.energy is not None
    assert world.emissions is not None
    return Life(
        used_joules=world.energy.used_joules,
        pods_joules=sum(sum(p.joules) for p in world.pods),
        left=len(world.energy.pods),
        without_joules=world.emissions.without_joules,
        zones=len(world.truth),
        faults=world.faults,
    )


def meet(life: Life) -> Iterator[str]:
    """What happened in a life."""
    yield from life.faults
    yield f"zones: {life.zones}"
    yield "some without intensity" if life.without_joules else "all priced"


MEET = frozenset(
    {
        "agents away",
        "all priced",
        "operator away",
        "some without intensity",
        "source away",
        "zones: 1",
        "zones: 2",
    }
)
LIVES = Suite("emissions", 200, live_to_end, meet, MEET)


@pytest.mark.life(LIVES)
def test_every_joule_is_priced_once_at_its_own_time_or_told_as_without(seed: int) -> None:
    life = LIVES.play(seed)
    assert life.used_joules == life.pods_joules
    assert life.left == 0


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_the_lives_have_what_they_are_about() -> None:
    lives = LIVES.play_all(LIVES.seeds[::4]).values()
    without = [life for life in lives if life.without_joules]
    assert sum(life.faults.total() for life in lives) > len(lives)
    assert 5 < len(without) < len(lives) - 5
    assert sum(life.zones > 1 for life in lives) > 10
