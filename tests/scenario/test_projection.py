"""Two hundred jobs on virtual time whose caps follow from what they are measured to use: do they end inside their budgets?

The cards are a model of their own: an idle draw, and work whose power grows with the cube of the clock, so that a cap makes
steps slower and, down to a point, cheaper. What is seen of a job comes as in life: energy with a node's report, the step
from a progress that is some seconds old, both noisy, with pauses, restarts from checkpoints and a cap that takes its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest

from greentrain.api.nodepower import lowest_percent
from greentrain.core.power.measures import LEAST_WINDOWS, Sample, Track, observe
from greentrain.core.power.projection import Choice, build_ladder, choose_cap
from greentrain.quantities import Joules, Milliseconds, Milliwatts
from tests.support.lives import Suite

DEFAULT_WATTS = 300.0
BEGIN = 1_767_225_600_000
CHECKPOINT_SECONDS = 600
ROOM = 0.06
"""Share of its budget that a job must have to spare to be sure to fit: errors of 95 %, the margins, and what the caps that
were tried on the way cost more."""


@dataclass(frozen=True)
class Work:
    """What one card does in a step."""

    idle: float
    """Watts it draws however slow it is."""
    demand: float
    """Watts it draws with no cap."""
    seconds: float
    """Length of a step with no cap."""
    bound: float
    """Part of the step that grows longer as the clock falls."""

    def step(self, percent: int) -> tuple[float, float]:
        """Seconds and joules of a step at a cap."""
        limit = min(self.demand, DEFAULT_WATTS * percent / 100)
        clock = max(0.05, (limit - self.idle) / (self.demand - self.idle)) ** (1 / 3)
        seconds = self.seconds * (self.bound / clock + 1 - self.bound)
        return seconds, limit * seconds


@dataclass
class Job:
    """A job as it really is, and what the operator sees of it."""

    work: Work
    steps: int
    gpus: int
    ladder: tuple[int, ...]
    budget: int
    noise: float
    restarts: tuple[int, ...]
    """Steps at which it fails once, to begin anew at its last checkpoint."""
    slowdown: int | None
    chance: Random
    milliseconds: int = BEGIN
    joules: float = 0.0
    step: float = 0.0
    attempt: int = 1
    percent: int = 100
    asked: int = 100
    asked_at: int = BEGIN
    starting: float = 60.0
    """Seconds until the first step."""
    track: Track = field(default_factory=Track)
    choices: list[tuple[int, Choice]] = field(default_factory=list)
    caps: list[int] = field(default_factory=list)

    def pass_time(self, seconds: float) -> None:
        """Work for a while."""
        self.milliseconds += round(seconds * 1000)
        starting = min(self.starting, seconds)
        self.starting -= starting
        self.joules += starting * self.gpus * 1.5 * self.work.idle
        seconds -= starting
        length, cost = self.work.step(self.percent)
        length *= max(0.5, self.chance.gauss(1, self.noise))
        done = min(seconds / length, self.steps - self.step)
        if self.restarts and self.step + done >= self.restarts[0]:
            done = max(0.0, self.restarts[0] - self.step)
            self.restarts = self.restarts[1:]
            kept = CHECKPOINT_SECONDS // self.work.seconds
            self.step, self.attempt, self.starting = (self.step + done) // kept * kept, self.attempt + 1, 60.0
        else:
            self.step += done
        self.joules += done * cost * self.gpus * max(0.5, self.chance.gauss(1, self.noise))

    def see(self) -> Sample:
        """What a pass makes of the last report: its step is some seconds older than its joules."""
        length, _ = self.work.step(self.percent)
        late = self.chance.uniform(0, 3) / length
        return Sample(
            attempt=self.attempt,
            step=max(0, int(self.step - late)) if self.step < self.steps else self.steps,
            joules=Joules(int(self.joules)),
            moment=Milliseconds(self.milliseconds),
            percent=self.asked,
            complete=self.percent == self.asked,
        )

    def run(self) -> None:
        """Until its last step."""
        while self.step < self.steps:
            self.pass_time(self.chance.uniform(27, 33))
            if self.percent != self.asked and self.milliseconds - self.asked_at >= 20_000:
                self.percent = self.asked
            sample = self.see()
            self.track = observe(self.track, sample)
            choice = choose_cap(
                self.track.measures,
                self.asked,
                self.ladder,
                used=sample.joules,
                steps_left=self.steps - sample.step,
                budget=Joules(self.budget),
                max_slowdown_percent=self.slowdown,
            )
            self.check(choice)
            if choice.percent != self.asked:
                self.asked, self.asked_at = choice.percent, self.milliseconds
                self.caps.append(choice.percent)

    def check(self, choice: Choice) -> None:
        """What holds of every choice."""
        assert choice.percent in self.ladder
        measured = {m.percent for m in self.track.measures if m.windows >= LEAST_WINDOWS}
        now, then = self.ladder.index(self.asked), self.ladder.index(choice.percent)
        assert measured.issuperset(self.ladder[now + 1 : then]), "no rung is jumped over"
        if choice.cannot_finish and self.slowdown is None:
            assert measured == set(self.ladder), "nothing is called impossible before each cap was measured"
        if not self.choices or self.choices[-1][1] != choice:
            self.choices.append((self.milliseconds, choice))

    def true_joules(self, percent: int) -> float:
        """What all steps cost at one cap, with nothing lost to starts and restarts."""
        return self.work.step(percent)[1] * self.steps * self.gpus

    def turns(self) -> int:
        """How often caps went up after they had gone down, or down after up."""
        caps = [self.ladder[0], *self.caps]
        ups = [after > before for before, after in pairwise(caps)]
        return sum(a != b for a, b in pairwise(ups))


def make_job(seed: int, *, budget: float | None = None, **fixed: object) -> Job:
    """A job drawn from a seed; `budget` as a share of what it uses with no cap."""
    chance = Random(seed)
    idle = chance.uniform(40, 90)
    work = Work(
        idle, chance.uniform(200, 300), chance.choice([0.05, 0.3, 1.0, 8.0]), chance.uniform(0.3, 1.0)
    )
    hours = chance.uniform(2, 5)
    steps = int(hours * 3600 / work.seconds)
    lowest = lowest_percent(Milliwatts(chance.choice([100_000, 125_000, 150_000])), Milliwatts(300_000))
    job = Job(
        work=work,
        steps=steps,
        gpus=chance.choice([1, 2, 8]),
        ladder=build_ladder(100, lowest),
        budget=0,
        noise=chance.choice([0.0, 0.01, 0.03]),
        restarts=tuple(sorted(chance.sample(range(steps), k=chance.choice([0, 0, 1, 3])))),
        slowdown=None,
        chance=chance,
    )
    for name, value in fixed.items():
        setattr(job, name, value)
    job.budget = int(job.true_joules(100) * (chance.uniform(0.6, 1.3) if budget is None else budget))
    return job


def live(seed: int) -> Job:
    """A job of which nothing is fixed, run to its end."""
    job = make_job(seed)
    job.run()
    return job


def decide_kind(job: Job) -> str:
    """What was decided for a job."""
    if any(choice.cannot_finish for _, choice in job.choices):
        return "impossible"
    return "throttled" if job.caps else "left alone"


def meet(job: Job) -> Iterator[str]:
    """What happened in a job's life."""
    yield decide_kind(job)
    yield from (choice.reason for _, choice in job.choices)
    yield f"{job.gpus} GPUs"
    if job.attempt > 1:
        yield "restarted"


MEET = frozenset(
    {
        "1 GPUs",
        "2 GPUs",
        "8 GPUs",
        "CannotFinish",
        "Fits",
        "Lowered",
        "Measuring",
        "Raised",
        "TooClose",
        "Trying",
        "impossible",
        "left alone",
        "restarted",
        "throttled",
    }
)
LIVES = Suite("projection", 200, live, meet, MEET)


def lost(job: Job) -> float:
    """Joules that starts, restarts and steps done twice cost at most; nobody can foresee them."""
    times = job.attempt
    again = CHECKPOINT_SECONDS * DEFAULT_WATTS * job.gpus
    return times * 60 * job.gpus * 1.5 * job.work.idle + (times - 1) * again


def tried(job: Job, minutes: int = 12) -> float:
    """Joules that caps cost which are no good and are measured for so long each; longer than that none is."""
    best = min(job.work.step(p)[1] for p in job.ladder)
    found = 0.0
    for percent in job.ladder:
        seconds, joules = job.work.step(percent)
        found += 60 * minutes / seconds * (joules - best) * job.gpus
    return found


@pytest.mark.life(LIVES)
def test_a_job_ends_inside_its_budget_where_some_cap_lets_it_and_is_left_alone_where_none_is_needed(
    seed: int,
) -> None:
    job = LIVES.play(seed)
    story = [(c.percent, c.reason, c.message) for _, c in job.choices if c.reason != "Measuring"][:40]
    least = min(job.true_joules(p) for p in job.ladder)
    room = job.budget * (1 - ROOM)
    if job.true_joules(100) + lost(job) <= room:
        assert not job.caps, story
    if least + lost(job) + tried(job) <= room:
        late = lost(job) if job.attempt > 1 else 0
        assert job.joules <= job.budget + late, (job.joules / job.budget, job.caps, story)
        assert late or not any(c.cannot_finish for _, c in job.choices), story
    if least > job.budget * (1 + ROOM):
        assert job.choices[-1][1].reason in ("CannotFinish", "Measuring"), story
        assert any(c.cannot_finish for _, c in job.choices), story
        best = min(job.ladder, key=job.true_joules)
        assert job.true_joules(job.asked) <= 1.04 * job.true_joules(best), story


@pytest.mark.life(LIVES)
def test_caps_do_not_go_up_and_down(seed: int) -> None:
    job = LIVES.play(seed)
    assert job.turns() <= 4, job.caps
    assert len(job.caps) <= len(job.ladder) + 4, job.caps


HEAVY = Work(idle=40.0, demand=300.0, seconds=0.5, bound=1.0)
"""At 100 % of its limit to 50 %, a step of it costs the less the lower the cap is."""


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("percent", [90, 80, 70, 60, 50])
def test_a_job_that_fits_at_one_cap_only_ends_there_and_inside_its_budget(percent: int, seed: int) -> None:
    job = make_job(seed, work=HEAVY, steps=24_000, restarts=(), noise=0.01, ladder=build_ladder(100, percent))
    job.budget = int(1.015 * job.true_joules(percent) + lost(job) + tried(job, minutes=5))
    job.run()
    assert (job.asked, job.caps) == (percent, list(job.ladder[1:]))
    assert job.joules <= job.budget


@pytest.mark.parametrize("seed", range(40))
def test_a_job_is_not_slowed_down_by_more_than_is_allowed(seed: int) -> None:
    allowed = 5 + seed % 4 * 10
    job = make_job(seed, budget=0.5, slowdown=allowed)
    job.run()
    slowest = job.work.step(job.asked)[0] / job.work.step(100)[0]
    being_measured = job.choices[-1][1].reason in ("Trying", "Measuring")
    assert being_measured or slowest <= 1 + allowed / 100 + 0.03, job.caps
    told = [c for _, c in job.choices if c.reason == "CannotFinish"]
    assert all(c.cannot_finish for c in told)


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_most_of_the_jobs_have_something_to_decide() -> None:
    assert LIVES.find_missing(LIVES.seeds) == []
    kinds = dict.fromkeys(("left alone", "throttled", "impossible"), 0)
    for job in LIVES.play_all().values():
        kinds[decide_kind(job)] += 1
    assert min(kinds.values()) >= 20, kinds
