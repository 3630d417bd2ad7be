"""What pods there are, however the agent comes to know: which are one and the same, and which have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from greentrain.devices.errors import DeviceError, Unavailable
from greentrain.energy.intervals import CardReading
from greentrain.quantities import Millijoules, Milliwatts, PowerCap
from tests.unit.agent.ports import Life, World

CAP = PowerCap(milliwatts=Milliwatts(150_000))


@pytest.mark.parametrize(
    ("pods_known", "cgroups", "limit"),
    [
        pytest.param(True, ("uid-a", "uid-agent"), 150_000, id="it runs"),
        pytest.param(True, ("uid-agent",), 150_000, id="the API server's word is enough"),
        pytest.param(False, ("uid-a", "uid-agent"), 150_000, id="API server away: it has processes"),
        pytest.param(False, ("uid-agent",), 300_000, id="API server away: it has none"),
        pytest.param(False, (), 150_000, id="API server away: no cgroup is seen at all"),
        pytest.param(False, None, 150_000, id="API server away: cgroups cannot be read"),
    ],
)
async def test_while_the_api_server_is_away_a_holder_without_a_cgroup_has_ended(
    tmp_path: Path, pods_known: bool, cgroups: tuple[str, ...] | None, limit: int
) -> None:
    world = World(caps={"uid-a": CAP})
    world.hold("a")
    life = Life(world, tmp_path)
    await life.look()
    assert world.limit == 150_000
    world.pods_known, world.cgroups = pods_known, cgroups
    await life.look()
    assert world.limit == limit


async def test_a_pod_that_the_api_server_knows_as_ended_is_no_holder_though_the_kubelet_lists_it(
    tmp_path: Path,
) -> None:
    world = World(caps={"uid-a": CAP})
    world.hold("a")
    life = Life(world, tmp_path)
    await life.look()
    world.pods = {uid: replace(pod, terminal=True) for uid, pod in world.pods.items()}
    await life.look()
    assert world.limit == 300_000


@dataclass
class TellingWorld(World):
    """The API server's first list arrives while the cards are read."""

    armed: bool = False

    async def read_all(self, *, deadline: float = 2.0) -> Mapping[str, CardReading | DeviceError]:
        if self.armed:
            self.pods_known = True
            self.hold("a")
        return await super().read_all(deadline=deadline)


async def test_a_pod_that_is_told_of_while_cards_are_read_stays_one_pod(tmp_path: Path) -> None:
    world = TellingWorld(pods_known=False)
    world.hold("a")
    world.pods = {}
    life = Life(world, tmp_path)
    for counter in (5_000, 705_000):
        world.answers = {"GPU-a": CardReading(counter=Millijoules(counter), draw=Milliwatts(250_000))}
        await life.look()
    assert [(p.uid, p.gpu) for p in life.agent.account.pods.values()] == [("", 700_000)]
    world.armed = True
    await life.look()
    assert [(p.uid, p.gpu, p.closed) for p in life.agent.account.pods.values()] == [("uid-a", 700_000, None)]


@pytest.mark.parametrize("device", ["GPU-a", "nvidia0"])
async def test_until_nvml_opens_a_new_agent_counts_nothing_and_the_counter_closes_the_gap(
    device: str, tmp_path: Path
) -> None:
    world = World()
    world.hold("a", device=device)

    def draw(joules: int) -> None:
        world.answers = {"GPU-a": CardReading(Millijoules(joules * 1000), Milliwatts(300_000), busy=True)}

    draw(0)
    before = Life(world, tmp_path)
    await before.run(2)
    world.nvml = Unavailable("NVML", "the driver is not loaded", "Load it.")
    after = Life(world, tmp_path, clock=before.clock)
    after.agent._begin()
    for _ in range(3):
        after.pass_time(10)
        await after.look()
    world.nvml = None
    draw(9_000)
    after.pass_time(10)
    await after.look()
    (pod,) = after.agent.account.pods.values()
    assert (pod.gpu, pod.missing_seconds) == (9_000_000, 0.0)


async def test_a_pod_whose_cap_is_reported_is_on_the_disk_under_its_uid(tmp_path: Path) -> None:
    world = World(caps={"uid-a": PowerCap(milliwatts=Milliwatts(150_000))})
    world.hold("a")
    pods, world.pods = world.pods, {}
    life = Life(world, tmp_path)
    life.agent._begin()
    await life.look()
    # The API server shows the pod between two looks: the cap does not wait for the next one.
    world.pods = pods
    world.news.set()
    await life.agent._rest(life.clock.now, life.clock.stop)
    await life.agent._report()
    assert world.limit == 150_000
    # Killed now, and the API server is away: the next agent knows whose limit it is.
    world.pods, world.pods_known, world.caps = {}, False, None
    again = Life(world, tmp_path, clock=life.clock)
    again.agent._begin()
    world.deeds.clear()
    await again.look(3)
    assert (world.limit, [d for d in world.deeds if d.startswith("limit")]) == (150_000, [])
