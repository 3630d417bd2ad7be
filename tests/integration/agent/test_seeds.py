"""Two hundred nodes' lives on virtual time: whatever fails, every joule is counted, once, and its doubt is honest."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.simgpu import cards as simulated
from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import Calls, Fault
from tests.integration.agent.world import PICOJOULES, LivePod, Node, Trouble
from tests.support.lives import Suite

STATE = "GREENTRAIN_SIMGPU_STATE"


@dataclass(frozen=True)
class Verdict:
    """One job's energy as it was told, and as it was."""

    job: str
    told: int
    true: float
    bound: int
    peak: float
    unseen: float
    unstated: float
    missing: int
    final: bool | None
    """None where nobody was told of it."""
    lost: int
    lies: bool
    """Whether a counter, or a power reading, was wrong in its story."""
    unknown: int
    """Its pods that nobody saw before they ended, or of which nothing is left."""
    pods: int

    @property
    def error(self) -> float:
        return abs(self.told - self.true)

    @property
    def allowed(self) -> float:
        """1 %, or two seconds of the highest draw; and what cannot be known: see docs/reference/energy.md.

        Where counters or power were wrong, also what its status says is missing, and its error bound.
        """
        doubted = self.missing * self.peak + self.bound if self.lies else 0.0
        return max(0.01 * self.true, 2 * self.peak) + self.unseen * self.peak + doubted

    @property
    def complete(self) -> bool:
        """Whether every last word is in; a pod that nobody saw has none."""
        return self.lost <= self.unknown and (
            self.final or (self.final is None and self.unknown == self.pods)
        )

    @property
    def stated(self) -> float:
        """What its status says: the bound, and time that is in no sum; and what an agent forgot that could not keep it.

        A joule is lost to whole numbers here and there.
        """
        return self.bound + 2 + (self.missing + self.unstated) * self.peak


@dataclass(frozen=True)
class Outcome:
    """What came of one story."""

    jobs: tuple[Verdict, ...]
    board: float
    counted: int
    parts: int
    doubled: float
    """What may be counted beside the board's joules: estimates of cards without a counter, and of counters begun anew."""
    story: tuple[str, ...]
    faults: frozenset[str]


@dataclass(frozen=True)
class End:
    """An agent's end by SIGKILL or with its machine."""

    moment: float
    dead: float
    """Seconds until it, or the machine, starts again."""
    kind: str = "killed"


class Story:
    """What will happen on a node, drawn from a seed."""

    def __init__(self, seed: int, node: Node) -> None:
        self.node = node
        self.chance = random.Random(seed)
        self.length = math.exp(self.chance.uniform(math.log(10), math.log(7200)))
        self.told: list[str] = []
        self.ends: list[End] = []
        self.faults: set[str] = set()
        self.rarer = random.Random(f"rarer faults of {seed}")
        """Another row of chances, so that a story is the same but for these."""
        self.lies = random.Random(f"lies of counters of {seed}")
        """And a third for these."""
        self.starts: dict[str, Callable[[], None]] = {}
        """How a job's next pod begins."""

    def say(self, text: str) -> None:
        self.told.append(f"{self.node.clock.now():8.1f} {text}")

    def write(self) -> None:
        """Put everything that will happen on the clock."""
        chance, clock = self.chance, self.node.clock
        for card in self.node.cards:
            moment = chance.uniform(0, self.length / 4)
            while moment < self.length:
                held = min(chance.uniform(10, max(11.0, self.length)), self.length - moment + 1)
                if held >= 10:
                    self.hold(card, moment, moment + held)
                moment += held + chance.choice([0.0, chance.uniform(0.1, 60)])
        faults = [self.kubelet, self.api, self.kill, self.kill, self.lost, self.reset, self.calls, self.clock]
        for _ in range(chance.randint(0, 6)):
            fault = chance.choice(faults)
            self.faults.add(fault.__name__)
            fault(chance.uniform(1, self.length))
        rarer: dict[Callable[[float], None], float] = {
            self.hang: 0.2,
            self.no_counter: 0.1,
            self.lose_counter: 0.1,
            self.reboot: 0.07,
            self.full_disk: 0.15,
            self.damage: 0.05,
        }
        for rare, likely in rarer.items():
            if self.rarer.random() < likely:
                self.faults.add(rare.__name__)
                rare(self.rarer.uniform(1, self.length))
        lies: dict[Callable[[float], None], float] = {
            self.stand_still: 0.15,
            self.count_less: 0.1,
            self.show_older: 0.15,
            self.jump: 0.15,
            self.go_on_elsewhere: 0.1,
            self.sleep: 0.1,
            self.garbage: 0.1,
        }
        for lie, likely in lies.items():
            # A counter that shows too little is known by the power alone.
            blind = lie == self.garbage and self.faults & {"stand_still", "count_less"}
            if self.lies.random() < likely and not blind:
                self.faults.add(lie.__name__)
                lie(self.lies.uniform(1, self.length))
        for i in range(int(self.length // 20) + 1):
            clock.at(20.0 * i + chance.uniform(0, 20), self.node.operate)

    def hold(self, card: int, begin: float, end: float) -> None:
        chance, clock, node = self.chance, self.node.clock, self.node
        job = f"job-{card}-{begin:.0f}"
        held: list[LivePod] = []

        def start() -> None:
            if clock.now() >= end - 5:
                return
            if any(p.ended is None and card in p.cards for p in node.live):
                return
            if node.api.away or node.down:  # a kubelet learns of new pods from there
                clock.at(clock.now() + 1, start)
                return
            held.append(node.begin_pod(job, (card,)))
            self.say(f"{held[-1].uid} of {job} holds {card}")

        def finish() -> None:
            if held and held[-1].ended is None:
                node.end_pod(held[-1])
                self.say(f"{held[-1].uid} ends")

        def remove() -> None:
            for pod in held:
                node.remove_pod(pod)

        self.starts[job] = start
        clock.at(begin, start)
        moment = begin + chance.uniform(0, 5)
        while moment < end:
            load = chance.choice([0.0, 1.0, chance.random()])
            clock.at(moment, functools.partial(node.set_load, card, load))
            moment += chance.choice([chance.uniform(0.3, 3), chance.uniform(5, 120)])
        if chance.random() < 0.3 and end - begin > 25:  # a gang restart: another pod of the same job, at once
            middle = chance.uniform(begin + 10, end - 10)
            clock.at(middle, finish)
            clock.at(middle + chance.uniform(0, 3), start)
        clock.at(end, finish)
        clock.at(end + chance.choice([0.0, chance.uniform(0, 100)]), remove)

    def kubelet(self, moment: float) -> None:
        def set_(away: bool) -> None:
            self.node.kubelet_away = away
            self.say(f"kubelet away: {away}")

        self.node.clock.at(moment, functools.partial(set_, True))
        self.node.clock.at(moment + self.chance.uniform(1, 8), functools.partial(set_, False))

    def api(self, moment: float) -> None:
        def set_(away: bool) -> None:
            self.node.api.away = away
            self.say(f"API server away: {away}")

        self.node.clock.at(moment, functools.partial(set_, True))
        self.node.clock.at(moment + self.chance.uniform(5, 3600), functools.partial(set_, False))

    def kill(self, moment: float) -> None:
        self.ends.append(End(moment, self.chance.uniform(0.5, 8)))

    def lost(self, moment: float) -> None:
        card = self.chance.randrange(len(self.node.cards))
        self.trouble(Trouble(card, Fault.LOST, moment, moment + self.chance.uniform(1, 60)))

    def reset(self, moment: float) -> None:
        card = self.chance.randrange(len(self.node.cards))
        self.node.clock.at(moment, functools.partial(self.node.reset, card))
        self.node.clock.at(moment, functools.partial(self.say, f"counter of {card} begins anew"))

    def calls(self, moment: float) -> None:
        kind = self.chance.choice([Fault.TIMEOUT, Fault.UNKNOWN, Fault.SLOW])
        card = self.chance.choice([None, *self.node.cards])
        end = moment + self.chance.uniform(1, 20)
        milliseconds = 100 if kind is Fault.SLOW else 0
        self.trouble(Trouble(card, kind, moment, end, Calls.ENERGY | Calls.POWER, milliseconds))

    def trouble(self, one: Trouble) -> None:
        def begin() -> None:
            self.node.trouble(one)
            self.say(f"{one.kind.name} on {one.card} for {one.end - one.begin:.1f} s: {one.calls}")

        self.node.clock.at(one.begin, begin)

    def hang(self, moment: float) -> None:
        """Calls hang for a while; half of the agents are killed beside them."""
        seconds = math.exp(self.rarer.uniform(math.log(0.5), math.log(120)))
        card = self.rarer.choice([None, *self.node.cards])
        calls = self.rarer.choice([Calls.ENERGY | Calls.POWER | Calls.UTILIZATION, Calls.ALL])
        self.trouble(Trouble(card, Fault.HANG, moment, moment + seconds, calls))
        self.kill_within(moment, seconds)

    def kill_within(self, moment: float, seconds: float) -> None:
        if self.rarer.random() < 0.5:
            self.ends.append(End(moment + self.rarer.uniform(0, seconds), self.rarer.uniform(0.5, 8)))

    def no_counter(self, _: float) -> None:
        """A card before Volta."""
        self.trouble(Trouble(self.rarer.choice([*self.node.cards]), Fault.NOT_SUPPORTED, 0.0, math.inf))

    def lose_counter(self, moment: float) -> None:
        self.trouble(Trouble(self.rarer.choice([*self.node.cards]), Fault.NOT_SUPPORTED, moment, math.inf))

    def lie(
        self,
        moment: float,
        seconds: float,
        kind: Fault,
        *,
        joules: float = 0.0,
        share: float = 0.0,
        watts: float = 0.0,
    ) -> None:
        """A card's counter, or its power, is wrong for so long."""
        card = self.lies.choice([*self.node.cards])
        end = moment + seconds
        self.trouble(Trouble(card, kind, moment, end, joules=joules, share=share, watts=watts))

    def stand_still(self, moment: float) -> None:
        self.lie(moment, math.exp(self.lies.uniform(math.log(0.5), math.log(600))), Fault.STUCK)

    def count_less(self, moment: float) -> None:
        seconds = math.exp(self.lies.uniform(math.log(5), math.log(600)))
        self.lie(moment, seconds, Fault.SHARE, share=self.lies.choice([0.0, 0.3, 0.5, 0.6]))

    def show_older(self, moment: float) -> None:
        """An older value comes once, or for a few seconds."""
        back = -math.exp(self.lies.uniform(math.log(1), math.log(1e6)))
        self.lie(moment, self.lies.choice([1.0, self.lies.uniform(1, 5)]), Fault.SHIFTED, joules=back)

    def jump(self, moment: float) -> None:
        """A bit is set for a while."""
        more = self.lies.choice([2**32 / 1000, 2**63 / 1000, 2 ** self.lies.randint(18, 60) / 1000])
        self.lie(moment, self.lies.choice([1.0, self.lies.uniform(1, 5)]), Fault.SHIFTED, joules=more)

    def go_on_elsewhere(self, moment: float) -> None:
        """The counter goes on from another value, for good."""
        more = self.lies.choice([-1, 1]) * math.exp(self.lies.uniform(math.log(1e4), math.log(1e8)))
        self.lie(moment, math.inf, Fault.SHIFTED, joules=more)

    def sleep(self, moment: float) -> None:
        self.node.clock.at(moment, functools.partial(self.node.sleep, self.lies.uniform(5, 300)))
        self.node.clock.at(moment, functools.partial(self.say, "the machine slept"))

    def garbage(self, moment: float) -> None:
        """The power is what no card draws."""
        self.lie(moment, self.lies.uniform(1, 60), Fault.GARBAGE, watts=self.lies.choice([4e6, 2e4]))

    def full_disk(self, moment: float) -> None:
        def set_(full: bool) -> None:
            self.node.disk_full = full
            self.say(f"disk full: {full}")

        seconds = math.exp(self.rarer.uniform(math.log(2), math.log(600)))
        self.node.clock.at(moment, functools.partial(set_, True))
        self.node.clock.at(moment + seconds, functools.partial(set_, False))
        self.kill_within(moment, seconds)

    def damage(self, moment: float) -> None:
        self.ends.append(End(moment, self.rarer.uniform(0.5, 8), "killed, and the journal damaged,"))

    def reboot(self, moment: float) -> None:
        self.ends.append(End(moment, self.rarer.uniform(20, 300), "down with its machine"))

    def come_up(self) -> None:
        """The machine starts; its pods' containers start again soon, or they are gone and others come for some."""
        node, clock, rarer = self.node, self.node.clock, self.rarer
        node.come_up()
        self.say("the machine starts again")
        for pod in node.live:
            if pod.ended is None and rarer.random() < 0.5:
                clock.at(clock.now() + rarer.uniform(0, 30), functools.partial(self.restart, pod))
            elif pod.ended is None:
                node.end_pod(pod)
                self.say(f"{pod.uid} is gone")
                if rarer.random() < 0.7:
                    clock.at(clock.now() + rarer.uniform(0, 60), self.starts[pod.job_uid])

    def restart(self, pod: LivePod) -> None:
        if pod.ended is None and not self.node.down:
            self.node.start_pod(pod)
            self.say(f"{pod.uid}'s containers start again")

    def clock(self, moment: float) -> None:
        def step(seconds: float) -> None:
            self.node.clock.step += seconds
            self.say(f"clock set by {seconds:+.0f} s")

        self.node.clock.at(moment, functools.partial(step, self.chance.choice([-3600, -5, 5, 3600])))


async def live(seed: int, node: Node) -> Outcome:
    try:
        return await live_through(seed, node)
    finally:
        await node.let_calls_return()


async def live_through(seed: int, node: Node) -> Outcome:
    story = Story(seed, node)
    story.write()
    node.start_agent()
    for end in sorted(story.ends, key=lambda e: e.moment):
        await reach(node, end.moment)
        story.say(f"agent {end.kind} for {end.dead:.1f} s")
        await node.kill_agent()
        if "machine" in end.kind:
            node.go_down()
        if "journal" in end.kind:
            node.damage_journal()
        node.clock.pass_to(node.clock.now() + end.dead)
        if node.down:
            story.come_up()
            node.clock.pass_to(node.clock.now() + story.rarer.uniform(1, 30))
        node.start_agent()
    await reach(node, story.length + 130)
    node.api.away = node.kubelet_away = node.disk_full = False
    node.end_troubles()
    for _ in range(6):
        await reach(node, node.clock.now() + 40)
        node.operate(finished=True)
    await node.stop_agent()
    return judge(node, story)


async def reach(node: Node, moment: float) -> None:
    while node.clock.now() < moment:
        await asyncio.sleep(0)
        assert node._task is not None
        if node._task.done():
            node._task.result()


def judge(node: Node, story: Story) -> Outcome:
    exact: dict[str, int] = {}
    for card in node.cards:
        for holder, amount in node.meter.read(card).items():
            exact[holder] = exact.get(holder, 0) + amount
    verdicts = []
    for job, energy in node.energy.items():
        pods = [p for p in node.live if p.job_uid == job]
        verdicts.append(
            Verdict(
                job=job,
                told=energy.used_joules if energy else 0,
                true=sum(exact.get(p.uid, 0) for p in pods) / PICOJOULES,
                bound=energy.error_joules if energy else 0,
                peak=node.peak,
                unseen=sum(node.unseen(p) for p in pods),
                unstated=sum(node.unstated(p) for p in pods),
                missing=energy.missing_seconds if energy else 0,
                lies=bool(story.faults & LIES),
                final=energy.final if energy else None,
                lost=energy.lost_pods if energy else 0,
                unknown=sum(not node.is_known(p) for p in pods),
                pods=len(pods),
            )
        )
    assert node.agent is not None
    account = node.agent.account
    return Outcome(
        jobs=tuple(verdicts),
        board=sum(exact.values()) / PICOJOULES,
        counted=account.used // 1000,
        parts=(
            sum(p.gpu for p in account.pods.values()) + account.settled + account.idle + account.unattributed
        )
        // 1000,
        doubled=0.01 * sum(exact.values()) / PICOJOULES
        + 2 * node.peak * (len(node.cards) + sum(map(len, node.breaks.values())))
        + (sum(c.uncertain for c in account.cards.values()) / 1000 if story.faults & LIES else 0.0),
        story=tuple(story.told),
        faults=frozenset(story.faults),
    )


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory: what is under test is not the disk."""
    base = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=base if base.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def play(seed: int) -> Outcome:
    """Live a story through."""
    apply_libraries().preload()
    chance = random.Random(seed)
    profiles = [chance.choice(["V100", "A100", "H100"]) for _ in range(chance.choice([1, 1, 2, 4]))]
    with (
        quick_folder() as folder,
        simulated.create(folder / "state", profiles, virtual=True, seed=seed) as cards,
    ):
        os.environ[STATE] = str(cards.path)
        try:
            return asyncio.run(live(seed, Node(cards, folder / "journal", seed=seed)))
        finally:
            del os.environ[STATE]


LIES = frozenset({"count_less", "garbage", "go_on_elsewhere", "jump", "show_older", "stand_still"})
FAULTS = LIES | frozenset(
    {
        "api",
        "calls",
        "clock",
        "damage",
        "full_disk",
        "hang",
        "kill",
        "kubelet",
        "lose_counter",
        "lost",
        "no_counter",
        "reboot",
        "reset",
        "sleep",
    }
)
LIVES: Suite[Outcome] = Suite("joules", 200, play, meet=lambda outcome: outcome.faults, must=FAULTS)


@pytest.mark.life(LIVES)
def test_every_jobs_joules_are_counted_whatever_fails(seed: int) -> None:
    outcome = LIVES.play(seed)
    told = "\n".join(outcome.story)
    assert abs(outcome.parts - outcome.counted) <= 1, told
    assert outcome.counted <= outcome.board + outcome.doubled, told
    for job in outcome.jobs:
        assert job.error <= job.allowed, f"{job}\n{told}"
        assert job.complete, f"{job}\n{told}"


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_all_of_that_has_happened() -> None:
    """A fault that never occurs has not been tried."""
    assert LIVES.find_missing(LIVES.seeds) == []


@pytest.mark.all_lives
def test_the_stated_bound_holds_19_times_of_20_and_is_not_large() -> None:
    # Of a job that no agent ever told of nothing is stated.
    every = [job for life in LIVES.play_all().values() for job in life.jobs]
    jobs = [job for job in every if job.true > 0 and job.final is not None]
    held = sum(job.error <= job.stated for job in jobs)
    assert held >= 0.95 * len(jobs), f"{held} of {len(jobs)}"
    whole = [job for job in jobs if not job.missing]
    median_bound, median_error = (
        statistics.median(job.bound for job in whole),
        statistics.median(job.error for job in whole),
    )
    assert median_bound <= 3 * median_error, f"bound {median_bound:.0f} J, error {median_error:.1f} J"
