"""Two hundred jobs whose nodes, operator and source of intensity die at random: every joule is priced once, at its own time.

Pods draw at random over hours, each on a node of its own zone. Agents tell energy by quarter of an hour, are away for a while
and bridge the gap; the operator is away for minutes or hours; the source has gaps, is dead for a while, and learns late what a
quarter emitted, but it never says two things of one quarter. So the true emissions are known, and what is told can differ from
them by the energy that is told as without intensity, and by nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import ceil

import pytest

from greentrain.api.nodepower import BUCKET_SECONDS, EnergyBuckets, PodEnergy
from greentrain.api.v1alpha1 import Basis, EmissionsSpec, EmissionsStatus, EnergyStatus
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.emissions import Carbon, count_emissions
from greentrain.core.ledger import NodeReport, fold
from greentrain.core.snapshot import format_time
from tests.support.snapshots import START, at

SEEDS = 200
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
    let_go: bool = False


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
    faults: int = 0

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

    def carbon(self) -> Carbon:
        """The source as it is now."""

        def look(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
            quarter = int((moment - START.timestamp()) // BUCKET_SECONDS)
            begin = START.timestamp() + quarter * BUCKET_SECONDS
            there = 0 <= quarter < QUARTERS and self.known[zone][quarter]
            if self.now < self.source_until or not there:
                return Absent(f"{zone} is not known", begin, begin + BUCKET_SECONDS)
            return Intensity(
                self.truth[zone][quarter] * 1000, "tso", basis, begin, begin + BUCKET_SECONDS, begin
            )

        return Carbon(at=look, zone_of=lambda _region, zone: zone or None, pue=PUE, include_embodied=False)

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
            self.source_until, self.faults = self.now + away, self.faults + 1
        elif roll < 0.008:
            self.agents_until, self.faults = self.now + away // 4, self.faults + 1
        elif roll < 0.012:
            self.operator_until, self.faults = self.now + away, self.faults + 1
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
                self.entry(p) for p in self.pods if p.zone == zone and p.begin < self.now and not p.let_go
            ]
            report = NodeReport(
                f"node-{zone}", at(self.now), tuple(entries), observed=at(self.now), zone=zone
            )
            reports.append(report)
        over = all(p.let_go for p in self.pods)
        energy, _ = fold(
            self.energy, reports, gone=lambda _: True, finished=over, now=at(self.now), scope="GPU"
        )
        counted = count_emissions(
            self.emissions,
            self.energy,
            energy,
            reports,
            spec=EmissionsSpec(),
            attempts=(),
            carbon=self.carbon(),
            progress=None,
            now=at(self.now),
        )
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
                    next(p for p in self.pods if p.uid == entry.uid).let_go = True

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


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_joule_is_priced_once_at_its_own_time_or_told_as_without(seed: int) -> None:
    world = live(seed)
    assert world.energy is not None
    assert world.emissions is not None
    assert world.energy.used_joules == sum(sum(p.joules) for p in world.pods)
    assert world.energy.pods == ()


def test_the_lives_have_what_they_are_about() -> None:
    worlds = [live(seed) for seed in range(0, SEEDS, 4)]
    without = [w for w in worlds if w.emissions is not None and w.emissions.without_joules]
    assert sum(w.faults for w in worlds) > len(worlds)
    assert 5 < len(without) < len(worlds) - 5
    assert sum(len(w.truth) > 1 for w in worlds) > 10
