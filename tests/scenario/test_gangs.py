"""Two hundred seeded lives of a gang: kubelet, users and an operator that is killed act in random order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, NamedTuple, Protocol

import pytest

from greentrain.core.seen.pods import Pod
from tests.scenario.world import NODES, Watchman, World
from tests.support.lives import Suite
from tests.support.manifests import build_job, build_template
from tests.support.world.cluster import REFUSALS

STEPS = 120
CODES = [1, 127, 137, 143, 144, 255]


class Scene(Protocol):
    """Where a story can be played: the model of tests/scenario, or a real server."""

    random: Random
    cut_after: int | None
    """Effects the operator gets done before it is killed; None for a pass to its end."""
    silent: set[str]
    """Nodes that do not answer."""

    @property
    def pods(self) -> Mapping[str, Any]: ...
    def parsed(self) -> list[Pod]: ...
    def operate(self) -> None: ...
    def start(self, name: str) -> None: ...
    def end(self, name: str, code: int, reason: str = ...) -> None: ...
    def remove(self, name: str) -> None: ...
    def evict(self, name: str) -> None: ...
    def refuse(self, name: str) -> None: ...
    def lose_node(self, node: str) -> None: ...
    def mark_lost(self, node: str) -> None: ...
    def give_up(self, node: str, *, says_why: bool) -> None: ...
    def return_node(self, node: str, *, rebooted: bool) -> None: ...
    def delete_node(self, node: str) -> None: ...
    def edit(self, manifest: dict[str, Any]) -> None: ...
    def pass_time(self, seconds: float) -> None: ...
    def step_clock(self, seconds: float) -> None: ...


def spec_of(world: Scene) -> dict[str, Any]:
    """A spec a user may write next."""
    chance = world.random
    run_policy: dict[str, Any] = {"suspend": chance.random() < 0.3, "backoffLimit": chance.randint(0, 6)}
    run_policy["cleanPodPolicy"] = chance.choice(["Running", "All", "None"])
    run_policy["infrastructureRestartLimit"] = chance.randint(0, 6)
    if chance.random() < 0.2:
        run_policy["activeDeadlineSeconds"] = chance.choice([30, 300, 3000])
    if chance.random() < 0.2:
        run_policy["ttlSecondsAfterFinished"] = chance.choice([0, 60, 600])
    if chance.random() < 0.2:
        run_policy["schedulingPolicy"] = {"scheduleTimeoutSeconds": chance.choice([60, 600])}
    extra: dict[str, Any] = {"successPolicy": "AllWorkers"} if chance.random() < 0.3 else {}
    if chance.random() < 0.2:
        extra["enregy"] = {"budget": "5kWh"}
    policy = chance.choice(["Never", "OnFailure", "Always", "ExitCode"])
    manifest = build_job(workers=chance.randint(1, 3), restart_policy=policy, runPolicy=run_policy, **extra)
    if chance.random() < 0.3:
        evaluator = {"restartPolicy": chance.choice(["Never", "OnFailure"]), "template": build_template()}
        manifest["spec"]["tfReplicaSpecs"]["Evaluator"] = evaluator
    return manifest


def disturb(world: Scene) -> None:
    """One thing that happens in a cluster."""
    chance = world.random
    names = sorted(world.pods)
    pods = {p.name: p for p in world.parsed()}
    names_seen = names
    names = [n for n in names if pods[n].node not in world.silent]
    pending = [n for n in names if pods[n].state.value == "pending"]
    running = [n for n in names if pods[n].state.value == "running"]
    leaving = [n for n in names if pods[n].terminating]
    act = chance.random()
    if act < 0.35:
        world.cut_after = chance.randint(0, 4) if chance.random() < 0.4 else None
        world.operate()
        world.cut_after = None
    elif act < 0.55 and pending:
        world.start(chance.choice(pending))
    elif act < 0.64 and running:
        world.end(chance.choice(running), chance.choice(CODES) if chance.random() < 0.5 else 0)
    elif act < 0.65 and running:
        world.end(chance.choice(running), 137, "OOMKilled")
    elif act < 0.72 and running:
        fallen = chance.choice(running)
        world.end(fallen, chance.choice([1, 137]))
        for other in running:  # the others lose their peer, in any order
            if other != fallen and chance.random() < 0.8:
                world.end(other, 144)
    elif act < 0.82 and leaving:
        gone = chance.choice(leaving)
        if gone in running and chance.random() < 0.5:
            world.end(gone, 143)
        world.remove(gone)
    elif act < 0.84 and running:
        world.evict(chance.choice(running))
    elif act < 0.86:
        disturb_nodes(world)
    elif act < 0.87 and pending:
        world.refuse(chance.choice(pending))
    elif act < 0.88 and names_seen:
        world.remove(chance.choice(names_seen))
    elif act < 0.93:
        world.edit(spec_of(world))
    elif act < 0.94:
        world.step_clock(chance.choice([-3600, -30, 30, 3600]))
    else:
        world.pass_time(chance.choice([1, 5, 10, 31, 120]))


def disturb_nodes(world: Scene) -> None:
    """A node falls silent; one that did is marked, given up, deleted, or back as if nothing had been."""
    chance = world.random
    if not world.silent or (len(world.silent) < len(NODES) and chance.random() < 0.1):
        world.lose_node(chance.choice(sorted(set(NODES) - world.silent)))
        return
    node, act = chance.choice(sorted(world.silent)), chance.random()
    if act < 0.35:
        world.mark_lost(node)
    elif act < 0.55:
        world.give_up(node, says_why=chance.random() < 0.5)
    elif act < 0.85:
        world.return_node(node, rebooted=chance.random() < 0.5)
    else:
        world.delete_node(node)


def trouble(world: World) -> None:
    """One thing that no real server can be made to do when it is wanted: passes fail, statuses are refused, a node lies."""
    chance = world.random
    act = chance.random()
    if act < 0.3:
        world.fails = chance.randint(1, 6)
    elif act < 0.7:
        world.refuses = chance.randint(1, 8)
        world.refusal = (chance.choice(REFUSALS), chance.random() < 0.6)
    else:
        world.lie(chance.choice((*NODES, "node-x")))


def bring_to_rest(world: World, watchman: Watchman) -> None:
    """No more disturbances: a sound spec, a diligent kubelet, an operator that lives."""
    world.mend()
    for node in sorted(world.silent):
        world.return_node(node, rebooted=world.random.random() < 0.5)
    spec = world.manifest["spec"]
    # Where the spec allows it is not edited again: an edit begins a new attempt and would hide a stuck one.
    if "enregy" in spec or spec.get("runPolicy", {}).get("suspend"):
        world.edit(build_job(workers=2, runPolicy={"backoffLimit": 1000}))
    for _ in range(60):
        world.operate()
        watchman.check()
        if world.finished:
            break
        for pod in world.parsed():
            if pod.terminating:
                world.remove(pod.name)
            elif pod.state.value == "pending":
                world.start(pod.name)
        world.operate()
        watchman.check()
        for pod in world.parsed():
            if pod.state.value == "running" and not pod.terminating:
                world.end(pod.name, 0)
        world.pass_time(60)
    else:
        raise AssertionError("did not come to rest\n" + "\n".join(world.story[-80:]))
    world.pass_time(100_000)  # however often the clock was set back
    world.operate()
    watchman.check()
    lives = "ttlSecondsAfterFinished" in world.manifest["spec"].get("runPolicy", {})
    assert world.deleted is lives, "\n".join(world.story[-80:])


class Life(NamedTuple):
    """What happened in a life."""

    story: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why its last attempts ended."""


def live(seed: int) -> Life:
    """A life to its end, with every rule looked at after every step."""
    world = World(build_job(), seed)
    watchman = Watchman(world)
    troubles = Random(f"troubles of {seed}")
    for _ in range(STEPS):
        disturb(world)
        if troubles.random() < 0.06:
            trouble(world)
        watchman.check()
    bring_to_rest(world, watchman)
    return Life(tuple(world.story), tuple(a.reason for a in world.status.attempts if a.reason))


def meet(life: Life) -> Iterator[str]:
    """What happened in a life: lines of its story without times and names, phases it reached, why attempts ended."""
    yield from life.reasons
    for line in life.story:
        _, _, phase = line.partition("→")
        words = line.split()[1:]
        yield phase.strip() or " ".join(w for w in words if not w.startswith(("digits-", "node-", "+", "-")))


HAPPENED = frozenset(
    {
        "answers again",
        "answers again, rebooted",
        "clock set by s",
        "deleted",
        "evicted",
        *(f"exits {code}" for code in (0, *CODES)),
        "exits 137 (OOMKilled)",
        "is marked",
        "job deleted",
        "lies",
        "operator killed",
        *(f"refused: {error.reason}" for error in REFUSALS),
        "spec edited",
        "stalled",
        "stops answering",
        "the least was stored",
    }
)
PHASES = frozenset(
    {
        "Degraded",
        "Failed",
        "Refused",
        "Restarting",
        "Running",
        "Starting",
        "Succeeded",
        "Suspended",
        "Suspending",
    }
)
REASONS = frozenset(
    {
        "Evicted",
        "Killed",
        "OutOfMemory",
        "PeerLost",
        "PodLost",
        "ProgramFailed",
        "SpecChanged",
        "Stopped",
        "SuspendRequested",
    }
)
LIVES = Suite("gangs", 200, live, meet, HAPPENED | PHASES | REASONS)


@pytest.mark.life(LIVES)
def test_whatever_happens_no_rank_is_doubled_no_attempt_lost_and_the_job_ends(seed: int) -> None:
    assert LIVES.play(seed).story


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_all_of_that_has_happened() -> None:
    """A fault that never occurs, or an end of an attempt that never comes, has not been tried."""
    assert LIVES.find_missing(LIVES.seeds) == []


def test_the_story_of_a_killed_worker_reads_as_it_happened() -> None:
    """The golden story: what a person would write down."""
    world = World(build_job(), seed=0)
    world.in_order = True
    world.operate()
    for name in sorted(world.pods):
        world.start(name)
    world.operate()
    world.pass_time(30)
    world.end("digits-worker-1-1", 137)
    world.operate()
    world.pass_time(10)
    world.end("digits-worker-0-1", 144)
    world.operate()
    for name in sorted(world.pods):
        world.remove(name)
    world.operate()
    for name in sorted(world.pods):
        world.start(name)
    world.operate()
    for name in sorted(world.pods):
        world.end(name, 0)
    world.operate()
    assert [line.strip() for line in world.story] == [
        "0 new → Starting",
        "0 create digits-worker-0-1",
        "0 create digits-worker-1-1",
        "0 Starting → Running",
        "30 digits-worker-1-1 exits 137",
        "30 Running → Degraded",
        "40 digits-worker-0-1 exits 144",
        "40 Degraded → Restarting",
        "40 delete digits-worker-0-1",
        "40 delete digits-worker-1-1",
        "40 digits-worker-0-1 gone",
        "40 digits-worker-1-1 gone",
        "40 create digits-worker-0-2",
        "40 create digits-worker-1-2",
        "40 Restarting → Running",
        "40 digits-worker-0-2 exits 0",
        "40 digits-worker-1-2 exits 0",
        "40 Running → Succeeded",
    ]


def test_the_story_of_a_lost_node_reads_as_it_happened() -> None:
    world = World(build_job(), seed=0)
    world.in_order = True
    world.operate()
    world.silent = {"node-2"}
    world.start("digits-worker-0-1")
    world.silent = {"node-1"}
    world.start("digits-worker-1-1")
    world.silent = set()
    world.operate()
    world.pass_time(30)
    world.lose_node("node-2")
    world.pass_time(10)
    world.end("digits-worker-0-1", 144)
    world.operate()
    world.pass_time(33)
    world.mark_lost("node-2")
    world.operate()
    first = world.status.attempts[0]
    assert (first.reason, first.counted_against) == ("NodeLost", "infrastructureRestartLimit")
    assert first.message == "worker-1: its node stopped answering (node node-2)"
    world.remove("digits-worker-0-1")
    world.pass_time(3600)
    world.operate()  # whether the other one still runs is not known
    waiting = next(c for c in world.status.conditions if c.type == "PodsReady")
    assert "kubectl delete node node-2" in waiting.message
    world.delete_node("node-2")
    world.operate()
    assert [line.strip() for line in world.story] == [
        "0 new → Starting",
        "0 create digits-worker-0-1",
        "0 create digits-worker-1-1",
        "0 Starting → Running",
        "30 node-2 stops answering",
        "40 digits-worker-0-1 exits 144",
        "40 Running → Degraded",
        "73 node-2 is marked",
        "73 Degraded → Restarting",
        "73 delete digits-worker-0-1",
        "73 delete digits-worker-1-1",
        "73 digits-worker-0-1 gone",
        "3673 node-2 deleted",
        "3673 digits-worker-1-1 gone",
        "3673 create digits-worker-0-2",
        "3673 create digits-worker-1-2",
    ]
