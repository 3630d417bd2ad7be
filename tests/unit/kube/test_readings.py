"""What nodes told is found by the job it tells of, whatever nodes came, changed and went before."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from greentrain.kube.cache import Key
from greentrain.kube.readings import NodePowers
from tests.support.snapshots import START

JOBS = ["a", "b", "c"]


def body(node: str, generation: int, version: int, jobs: list[str]) -> dict[str, Any]:
    pods = [
        {
            "uid": f"{node}-{job}",
            "namespace": "team",
            "name": f"{job}-worker-0-1",
            "job": job,
            "jobUid": f"uid-{job}",
            "ownerKnown": True,
        }
        for job in jobs
    ]
    return {
        "metadata": {"name": node, "uid": f"uid-{node}-{generation}", "resourceVersion": str(version)},
        "status": {"pods": pods},
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_job_finds_the_nodes_that_tell_of_it_and_no_other(seed: int) -> None:
    chance = random.Random(seed)
    powers, told, gone = NodePowers(lambda: START), dict[str, list[str]](), Counter[str]()
    for version in range(1, 60):
        node = f"node-{chance.randint(0, 4)}"
        jobs = chance.sample(JOBS, chance.randint(0, 3))
        seen = body(node, gone[node], version, jobs)
        if node in told and chance.random() < 0.2:
            known = powers.node_power(node)
            assert known is not None
            gone[node] += 1  # one that comes back is another object
            changed = powers.drop({"metadata": {"name": node, "uid": known.uid}})
            assert changed == {Key("team", job) for job in told.pop(node)}
        else:
            before = {Key("team", job) for job in told.get(node, [])}
            assert powers.put(seen) == before | {Key("team", job) for job in jobs}
            told[node] = jobs
        for job in JOBS:
            reports = powers.reports(Key("team", job), f"uid-{job}", None, None)
            assert [r.node for r in reports] == sorted(n for n, js in told.items() if job in js)
            assert all([e.job for e in r.pods] == [job] for r in reports)


@pytest.mark.parametrize(
    "observed", ["0000-01-01T00:00:00Z", "2026-01-01T00:00:00+99:99", "2026-01-01T23:59:60Z"]
)
def test_a_node_whose_time_python_has_no_day_for_is_left_out_and_the_others_are_taken_in(
    observed: str,
) -> None:
    powers = NodePowers(lambda: START)
    odd = body("node-0", 0, 1, ["a"])
    odd["status"]["observedAt"] = observed  # the CRD's format date-time lets these pass
    assert powers.resync([odd, body("node-1", 0, 2, ["a"])], 2) == {Key("team", "a")}
    assert [r.node for r in powers.reports(Key("team", "a"), "uid-a", None, None)] == ["node-1"]
