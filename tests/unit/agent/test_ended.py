"""A pod that has ended is no holder, however the agent comes to know: caps of nobody are given back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from greentrain.units import PowerCap
from tests.unit.agent.ports import Life, World

CAP = PowerCap(milliwatts=150_000)


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
