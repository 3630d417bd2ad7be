"""Fifty seeded lives in which everything that comes from outside is made up: specs, pods, reports of nodes, `/progress`, clocks.

Nothing of it has to be likely. Whatever it is, a pass decides, its status is one that the API server stores and that is read as
it was written, no joule is lost from a sum, allowances are not given twice, and once all is well the job comes to its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import pytest

from greentrain import quantities
from greentrain.api.runtime import Progress, parse_progress
from greentrain.api.spec import Basis
from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus
from greentrain.api.stored import dump_job_status
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.pods import PodState
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import format_time
from tests.scenario.test_gangs import bring_to_rest, disturb, spec_of, trouble
from tests.scenario.world import NODES, Watchman, World
from tests.support.lives import Suite
from tests.support.manifests import build_job
from tests.support.world.schema import find_problems
from tests.support.world.server import Body

STEPS = 70
LIAR = "node-x"
LIMIT = 300_000
"""Milliwatts of each GPU."""

SECTIONS: dict[str, dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]] = {
    "energy": {
        "budget": (("1J", "20kJ", "1MJ", "5kWh", "9000TWh"), ("0J", "much", "")),
        "onExhausted": (("Suspend", "Suspend", "Fail", "Warn"), ("Wait",)),
        "onUnknown": (("Suspend", "Continue"), ("Ask",)),
        "warnAtPercent": (([50], [], [1, 50, 99]), ([0], [50, 50])),
        "scope": (("GPU", "GPU", "Node"), ("Rack",)),
    },
    "emissions": {
        "budget": (("1gCO2e", "0.001gCO2e", "2kgCO2e", "9000tCO2e"), ("0gCO2e", "gCO2e")),
        "onExhausted": (("Suspend", "Fail", "Warn"), ("Wait",)),
        "zone": (("DE", "FR"), ("XX",)),
        "basis": (("Lifecycle", "Direct"), ("Both",)),
        "includeEmbodied": ((True, False), ("no",)),
        "pue": (("1.2", "5.0"), ("0.5", 1.2)),
    },
    "power": {
        "cap": (("250W", "70%", "100%", "1%"), ("5kW", "cold")),
        "budgetPolicy": (("None", "LowerCap"), ("Halve",)),
        "maxSlowdownPercent": ((0, 25), (-1, 1000)),
    },
}
"""By section of a spec and by field: values that are sound, and values that are refused."""

ACTIONS = (*("None",) * 12, "Throttled", "Evicted")
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    7,
    1000,
    2**31,
    2**53 - 1,
    2**53,
    2**63,
    -1,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    None,
    "7",
    [],
)


def draw_spec(world: FuzzedWorld) -> Body:
    """A spec that a user may write, or should not have."""
    chance, manifest = world.random, spec_of(world)
    spec: Body = manifest["spec"]
    spec["runPolicy"]["suspend"] = chance.random() < 0.1
    for role in spec["tfReplicaSpecs"].values():
        if chance.random() < 0.8:
            limits = {"limits": {"nvidia.com/gpu": chance.choice((1, 2, "4", "64"))}}
            role["template"]["spec"]["containers"][0]["resources"] = limits
        if chance.random() < 0.4:
            role["template"]["spec"]["terminationGracePeriodSeconds"] = chance.choice((0, 5, 30, 3600))
    odd = chance.random() < 0.2
    for section, fields in SECTIONS.items():
        if chance.random() < 0.7:
            chosen = {name: values[odd and chance.random() < 0.3] for name, values in fields.items()}
            spec[section] = pick(chance, **chosen)
    return manifest


def pick(chance: Random, **fields: tuple[Any, ...]) -> Body:
    """Some of these fields, each with one of its values."""
    return {name: chance.choice(values) for name, values in fields.items() if chance.random() < 0.6}


def draw_progress(chance: Random) -> Progress | None:
    """What a program may answer when it is asked how far it is; mostly something that can be read."""
    if chance.random() < 0.5:
        step = chance.randrange(1000)
        said: Any = {"step": step, "totalSteps": chance.choice((None, 1000, step))}
        said["checkpoint"] = chance.choice((None, {"step": step // 2, "path": "/c/7"}))
    else:
        said = pick(chance, step=NUMBERS, startStep=NUMBERS, totalSteps=NUMBERS)
        said["metrics"] = {chance.choice(("loss", "", "\u202e", "x" * 63)): chance.choice(NUMBERS)}
        said["modelPath"] = chance.choice(("/m", "\x1b[2J", "x" * 1024, None))
    return parse_progress(json.dumps(said))


class FuzzedWorld(World):
    """A gang's world with nodes that report, a grid, and a program that answers."""

    def __init__(self, seed: int) -> None:
        super().__init__(build_job(), seed)
        self.chance = Random(f"fuzz {seed}")
        self.met: set[str] = set()
        self.used: dict[str, int] = {}
        """Joules that nodes have reported, by the pod's UID."""
        self.reports: dict[str, list[Body]] = {}
        """What each node has reported so far."""
        self.terrain.ask = lambda: draw_progress(self.chance)
        self.terrain.carbon = CarbonSource(
            at=self._look_up,
            zone_of=lambda *_: "DE",
            is_known=lambda zone: zone in ("DE", "FR"),
            embodied=lambda model: Embodied(100_000, 150_000, 300_000, "made up") if model else None,
        )
        self.terrain.decided = self._check_decision

    def _look_up(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        hour = int(moment // 3600)
        drawn = Random(f"{zone} {basis} {hour} {self.random.random() < 0.02}")
        begin, end = hour * 3600.0, (hour + 1) * 3600.0
        if drawn.random() < 0.2:
            return Absent("the source is away", begin, end)
        return Intensity(
            quantities.Intensity(drawn.choice((1, 45_000, 380_000, 10**7))),
            "grid",
            basis,
            begin=begin,
            end=end,
        )

    # -- nodes --------------------------------------------------------------------------------------

    def report(self, node: str) -> None:
        """A node reports: what is so, or the last but some report once more, so that ends come twice and counters go back."""
        chance, before = self.chance, self.reports.setdefault(node, [])
        if before and chance.random() < 0.2:
            self.met.add("a report goes back")
            self.server.report(node, {**chance.choice(before), "observedAt": format_time(self.now)})
            return
        bodies = {p.uid: p for p in self.parsed() if p.node == node}
        entries = []
        for uid, pod in sorted(bodies.items()):
            self.used[uid] = self.used.get(uid, 0) + chance.choice((0, 100, 9000, 10**6, 10**12))
            entries.append(self._build_entry(uid, pod.name, closed=pod.ended))
        earlier = {e["uid"]: e for report in before for e in report["pods"] if e["uid"] not in bodies}
        entries += [{**e, "closed": True} for e in earlier.values() if chance.random() < 0.7]
        gpu = {"uuid": "g", "model": "CARD", "limits": {"setMilliwatts": LIMIT, "defaultMilliwatts": LIMIT}}
        status = {
            "observedAt": format_time(self.now),
            "reportIntervalSeconds": 30,
            "gpus": [gpu],
            "pods": [{k: v for k, v in e.items() if v is not None} for e in entries],
        }
        before.append(status)
        self.server.report(node, status)

    def _build_entry(self, uid: str, name: str, *, closed: bool) -> Body:
        chance, joules, now = self.chance, self.used[uid], format_time(self.now)
        return {
            "uid": uid,
            "namespace": "team",
            "name": name,
            "job": "digits",
            "jobUid": "uid-1",
            "ownerKnown": True,
            "gpuJoules": joules,
            "estimatedJoules": chance.choice((0, joules)),
            "errorJoules": chance.choice((0, joules // 100)),
            "firstReading": now,
            "lastReading": now,
            "drawMilliwatts": chance.choice((None, 0, LIMIT, 10**9)),
            "gpuTime": [{"model": "CARD", "seconds": chance.choice((1, 3600, 10**10))}],
            "allowanceJoules": chance.choice((None, 0, 1000)),
            "budgetAction": chance.choice(ACTIONS),
            "closed": closed,
            "buckets": {"start": now, "joules": [joules]},
        }

    # -- what is checked ----------------------------------------------------------------------------

    def _check_decision(self, seen: Snapshot, decision: Decision) -> None:
        problems = find_problems(dump_job_status(decision.status))
        assert not problems, "\n".join([*self.story, *problems])
        self.met |= set(find_met(decision.status))
        check_sums(seen.job.status.energy, decision.status)


def check_sums(before: EnergyStatus | None, status: GreenTrainingJobStatus) -> None:
    """No joule leaves a sum, and allowances together grow no higher than what is left of the budget."""
    energy = status.energy
    if energy is None:
        assert before is None
        return
    old = before or EnergyStatus()
    for field in ("gpu_joules", "cpu_joules", "dram_joules", "lost_pods"):
        assert getattr(energy, field) >= getattr(old, field), f"{field} falls"
    budget, control, known = energy.budget, energy.control, old.control
    assert status.admitted is not None
    if budget is None or control is None or not status.admitted.energy.is_enforced or not control.allowances:
        return
    held = {a.uid for a in control.allowances}
    elsewhere: int = sum(p.counted(energy.scope) for p in energy.pods if p.uid not in held)
    elsewhere += energy.folded.counted(energy.scope) if energy.folded is not None else 0
    total = sum(a.granted_joules for a in control.allowances)
    total_before = (
        sum(a.granted_joules for a in known.allowances if a.uid in held) if known is not None else 0
    )
    assert all(a.granted_joules >= a.joules for a in control.allowances)
    assert total <= max(budget.limit - elsewhere, total_before), (
        total,
        elsewhere,
        budget.limit,
    )


def find_met(status: GreenTrainingJobStatus) -> Iterator[str]:
    """What a status shows to have happened."""
    yield from (a.reason for a in status.attempts if a.reason in STOPS)
    if status.projection is not None:
        yield "projected"
    energy, emissions = status.energy, status.emissions
    if energy is not None:
        if energy.lost_pods:
            yield "a last word was lost"
        if energy.budget is not None and energy.budget.charged:
            yield "charged"
        if energy.control is not None and energy.control.allowances:
            yield "allowed"
    if emissions is not None and emissions.total_micrograms:
        yield "emissions"
    if emissions is not None and emissions.without_joules:
        yield "energy without a price"
    if status.progress is not None:
        yield "progress"


STOPS = frozenset(
    {"AllowanceSpent", "BudgetExhausted", "DeadlineExceeded", "ReadingsStopped", "SuspendRequested"}
)


def step(world: FuzzedWorld) -> None:
    """One thing that happens, by anyone's doing."""
    chance = world.chance
    act = chance.random()
    if act < 0.3:
        disturb(world)
        return
    if act < 0.5:
        world.report(chance.choice(NODES))
    elif act < 0.65:
        for pod in world.parsed():
            if pod.state is PodState.PENDING and not pod.terminating:
                world.start(pod.name)
    elif act < 0.78:
        world.pass_time(chance.choice((3, 30, 100)))
    elif act < 0.82:
        world.edit(draw_spec(world))
    elif act < 0.88:
        trouble(world)
    elif act < 0.95:
        world.lie(chance.choice((LIAR, *NODES)))
    else:
        world.step_clock(chance.choice((-86_400, -3600, -40, 40, 3600, 86_400)))
    world.operate()


def build_sound(status: GreenTrainingJobStatus) -> Body:
    """A job without a budget that may go on: what was counted is counted in the same way."""
    counted: Body = {"runPolicy": {"backoffLimit": 1000, "infrastructureRestartLimit": 1000}}
    if status.energy is not None:
        counted["energy"] = {"scope": status.energy.scope}
    if status.emissions is not None:
        basis, embodied = status.emissions.basis, status.emissions.include_embodied
        counted["emissions"] = {"basis": basis, "includeEmbodied": embodied}
    return build_job(workers=2, **counted)


class Life(NamedTuple):
    """What happened in a life."""

    story: tuple[str, ...]
    met: frozenset[str]


def live(seed: int) -> Life:
    """A life to its end, with every rule looked at after every step."""
    world = FuzzedWorld(seed)
    watchman = Watchman(world)
    world.edit(draw_spec(world))
    for _ in range(STEPS):
        step(world)
        watchman.check()
        assert not world.server.problems, "\n".join([*world.story, *world.server.problems])
    operator = world.operator or world.begin()
    if operator.powers.refused():
        world.met.add("a report is not believed")
    world.edit(build_sound(world.status))
    bring_to_rest(world, watchman)
    world.met |= {f"ends: {world.status.phase}"}
    return Life(tuple(world.story), frozenset(world.met))


MEET = {
    "AllowanceSpent",
    "BudgetExhausted",
    "SuspendRequested",
    "a last word was lost",
    "a report goes back",
    "a report is not believed",
    "allowed",
    "charged",
    "emissions",
    "ends: Failed",
    "ends: Succeeded",
    "energy without a price",
    "progress",
    "projected",
}
LIVES = Suite("fuzz", 50, live, lambda life: life.met, MEET)


@pytest.mark.life(LIVES)
def test_whatever_comes_from_outside_a_pass_decides_and_its_status_can_be_stored(seed: int) -> None:
    assert LIVES.play(seed).story


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_all_of_that_has_happened() -> None:
    assert LIVES.find_missing(LIVES.seeds) == []
