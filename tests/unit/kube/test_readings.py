"""What nodes told is found by the job it tells of, whatever nodes came, changed and went before."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from greentrain.api.budgets import ControlStatus, PodCharge
from greentrain.api.status import EnergyStatus, PodEnergyStatus
from greentrain.core.seen.reports import Binding
from greentrain.core.seen.times import format_time
from greentrain.kube.cache import Key
from greentrain.kube.readings import NodePowers
from tests.support.snapshots import START, at

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
            there = {f"{n}-{job}": Binding(n) for n in told}
            reports = powers.reports(Key("team", job), f"uid-{job}", None, None, there)
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
    told = {name: powers.node_power(name) for name in ("node-0", "node-1")}
    assert {name: bool(known and known.status.pods) for name, known in told.items()} == {
        "node-0": False,
        "node-1": True,
    }


KEY = Key("team", "a")
HOUR = 3600


def tell(
    powers: NodePowers, version: int, node: str, *uids: str, gpus: bool = True, **fields: Any
) -> set[Key] | None:
    """A node reports so of job a's pods."""
    found = body(node, 0, version, [])
    pods = [{**body(node, 0, version, ["a"])["status"]["pods"][0], "uid": uid, **fields} for uid in uids]
    gpu = {"uuid": "GPU-1", "limits": {"setMilliwatts": 300_000}}
    found["status"] = {"pods": pods, "gpus": [gpu] if gpus else [], "reportIntervalSeconds": 30}
    return powers.put(found)


def believed(
    powers: NodePowers, bindings: dict[str, Binding], energy: EnergyStatus | None = None
) -> dict[str, list[str]]:
    """The entries of job a that are believed, by the node that reports them."""
    reports = powers.reports(KEY, "uid-a", START, energy, bindings)
    return {r.node: [e.uid for e in r.pods] for r in reports}


STORED = EnergyStatus(
    pods=(PodEnergyStatus(uid="p", node="node-1"),),
    control=ControlStatus(
        charges=(PodCharge(uid="q", node="node-1", limit_milliwatts=1, since="2026-01-01T00:00:00Z"),)
    ),
)


@pytest.mark.parametrize(
    ("bindings", "energy", "expected", "refused"),
    [
        ({"p": Binding("node-1", START)}, None, {"node-1": ["p"]}, {"node-1": 1, "node-2": 2}),
        ({"p": Binding("node-2", START)}, None, {"node-2": ["p"]}, {"node-1": 2, "node-2": 1}),
        ({"p": Binding("", START)}, None, {}, {"node-1": 1, "node-2": 1}),
        ({}, None, {}, {"node-1": 2, "node-2": 2}),
        ({}, STORED, {"node-1": ["p", "q"]}, {"node-1": 0, "node-2": 2}),
        (
            {"p": Binding("node-2", START)},
            STORED,
            {"node-1": ["q"], "node-2": ["p"]},
            {"node-1": 1, "node-2": 1},
        ),
        ({"p": Binding("node-1", at(2 * HOUR))}, None, {}, {"node-1": 2, "node-2": 2}),
    ],
    ids=[
        "it is on node-1",
        "it is on node-2",
        "it is not bound yet",
        "it was never seen",
        "it was on node-1, as is stored",
        "it is where the API server shows it, whatever is stored",
        "it was made after the reading",
    ],
)
def test_what_a_node_reports_counts_for_pods_that_are_or_were_on_it(
    bindings: dict[str, Binding],
    energy: EnergyStatus | None,
    expected: dict[str, list[str]],
    refused: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    powers = NodePowers(lambda: at(HOUR))
    for version, node in enumerate(("node-1", "node-2"), 1):
        tell(powers, version, node, "p", "q", budgetAction="Evicted", firstReading="2026-01-01T00:30:00Z")
    found = believed(powers, bindings, energy)
    assert {node: uids for node, uids in found.items() if uids} == expected
    assert powers.refused() == refused
    said = len(caplog.records)
    assert said == sum(bool(count) for count in refused.values())
    believed(powers, bindings, energy)
    assert len(caplog.records) == said, "the same is said once"


@pytest.mark.parametrize(
    ("owner_known", "name", "node", "counts"),
    [
        (False, "a-worker-0-1", "node-1", True),
        (False, "a-worker-0-1", "node-2", False),
        (False, "a-worker-1-1", "node-1", False),
        (True, "a-worker-0-1", "node-1", False),
    ],
    ids=["the pod of that name is there", "it is elsewhere", "no pod has that name", "its UID is known"],
)
def test_a_pod_whose_uid_its_agent_never_learnt_is_known_by_its_name(
    owner_known: bool, name: str, node: str, counts: bool
) -> None:
    powers = NodePowers(lambda: at(HOUR))
    tell(
        powers,
        1,
        node,
        "a name of the agent's",
        name=name,
        ownerKnown=owner_known,
        firstReading=format_time(START),
    )
    assert bool(believed(powers, {"p": Binding("node-1", START, "a-worker-0-1")})) == counts


def test_what_is_not_believed_of_a_job_is_forgotten_when_its_node_no_longer_says_it() -> None:
    powers = NodePowers(lambda: START)
    tell(powers, 1, "node-2", "p")
    believed(powers, {"p": Binding("node-1", START)})
    assert powers.refused() == {"node-2": 1}
    tell(powers, 2, "node-2")
    assert powers.refused() == {"node-2": 0}


def test_an_entry_that_breaks_a_bound_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """As it may be stored under an older schema."""
    powers = NodePowers(lambda: START)
    there = {"p": Binding("node-1", START), "q": Binding("node-1", START)}
    found = body("node-1", 0, 1, ["a"])
    sound = {**found["status"]["pods"][0], "uid": "q"}
    found["status"]["pods"] = [{**sound, "uid": "p", "gpuJoules": 2**62}, sound]
    assert powers.put(found) == {KEY}
    assert believed(powers, there) == {"node-1": ["q"]}
    found["metadata"]["resourceVersion"] = "2"
    assert powers.put(found) == {KEY}
    assert powers.refused() == {"node-1": 1}
    (said,) = caplog.records
    assert said.getMessage() == (
        "NodePower node-1: 1 things its agent reports are not believed and do not count, such as pods[0].gpuJoules: "
        f"{2**62} is not believed (Input should be less than or equal to 1000000000000000)"
    )


def test_a_report_from_another_time_is_as_one_that_did_not_come() -> None:
    now = START
    powers = NodePowers(lambda: now)
    tell(powers, 1, "node-1", "p")
    there = {"p": Binding("node-1", START)}
    now = at(50)
    late = body("node-1", 0, 2, ["a"])
    late["status"] |= {"observedAt": "2027-01-01T00:00:00Z", "pods": []}
    powers.put(late)
    (report,) = powers.reports(KEY, "uid-a", START, None, there)
    assert (report.received, [e.uid for e in report.pods]) == (START, ["p"])
    assert powers.refused() == {"node-1": 1}
    known = powers.node_power("node-1")
    assert known is not None
    assert known.resource_version == "2"


@pytest.mark.parametrize(
    ("nodes", "limit"),
    [
        ([], 300_000),
        (["node-1"], 300_000),
        (["node-3"], 10_000_000),
        (["node-1", "node-3"], 10_000_000),
        (["node-1", ""], 300_000),
        (["node-4"], 300_000),
        (["node-5"], 300_000),
    ],
    ids=str,
)
def test_a_job_is_reckoned_with_the_nodes_its_pods_are_on_and_not_with_one_other(
    nodes: list[str], limit: int
) -> None:
    powers = NodePowers(lambda: START)
    for version, node in enumerate(("node-1", "node-2"), 1):
        tell(powers, version, node)
    liar = body("node-3", 0, 3, [])
    liar["status"] = {"gpus": [{"uuid": "GPU-1", "limits": {"setMilliwatts": 10_000_000}}]}
    powers.put(liar)
    tell(powers, 4, "node-4", gpus=False)
    assert powers.fleet(nodes).limit_milliwatts == limit
    assert powers.fleet(nodes).report_seconds == (None if nodes == ["node-3"] else 30)
