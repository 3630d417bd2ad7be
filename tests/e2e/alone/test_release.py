"""The chart as a release: upgrades leave jobs alone, uninstalling strands nothing."""

from __future__ import annotations

from typing import Any

from sandbox.demo import SANDBOX_VALUES
from sandbox.release import apply_release, remove_release
from sandbox.simgpu import cards
from sandbox.simgpu.nodecards import Places
from tests.e2e.conftest import Bench
from tests.e2e.jobs import capped, long, name_of

Json = dict[str, Any]


def limits(bench: Bench) -> set[float]:
    """Watts the sandbox's cards are limited to."""
    found = set()
    for node in bench.sandbox.started_nodes():
        with cards.open(Places(node).state) as state:
            found |= {state.read_card(card).limit_watts for card in state}
    return found


def test_an_upgrade_leaves_a_running_job_untouched(bench: Bench, digits: Json) -> None:
    name = name_of(digits)
    bench.apply(long(digits, steps=360))
    bench.until_step(name, 20)

    def uids() -> set[str]:
        found = bench.read("pods", "-l", f"greentrain.dev/job-name={name}")["items"]
        return {p["metadata"]["uid"] for p in found}

    before, operator = uids(), bench.operator_pod()["metadata"]["uid"]
    values = {**SANDBOX_VALUES, "podAnnotations": {"upgraded": "yes"}}
    apply_release(bench.cluster, bench.operator_image(), agent=bench.agent_image(), values=values)
    bench.until(
        lambda: bench.operator_pod()["metadata"]["uid"],
        lambda uid: uid != operator,
        seconds=60,
        what="a new operator",
    )
    assert uids() == before
    job = bench.until_condition(name, "Succeeded", seconds=300)
    assert job["status"]["attemptCount"] == 1


def test_uninstalling_strands_nothing_and_installing_again_takes_the_jobs_up(
    bench: Bench, removed: list[str]
) -> None:
    # Jobs that outlast all of it, however long the agents take to end.
    goes, stays = names = ["e2e-release-goes", "e2e-release-stays"]
    removed += names
    nodes = [node.name for node in bench.sandbox.started_nodes()]
    bench.apply(capped(goes, "180W", nodes[0]), capped(stays, "200W", nodes[-1]))
    for name in names:
        bench.until_condition(name, "PowerCapped", reason="Capped")
    assert limits(bench) == {180, 200, 300}
    image, agent = bench.operator_image(), bench.agent_image()
    try:
        remove_release(bench.cluster)
        assert limits(bench) == {300}, "the jobs still run; their caps are given back with the agents"
        assert {bench.read_job(name)["status"]["phase"] for name in names} == {"Running"}
        # Without an operator a job can be deleted, and nothing of it stays.
        bench.kubectl("delete", "gtj", goes, "--wait", "--timeout=60s")
        selector = f"greentrain.dev/job-name={goes}"
        bench.until(
            lambda: [
                o["metadata"]["name"]
                for kind in ("pods", "services")
                for o in bench.read(kind, "-l", selector)["items"]
            ],
            lambda left: not left,
            seconds=180,
            what="nothing of the job is left",
        )
    finally:
        # The tests after this one need it, whatever was found.
        apply_release(bench.cluster, image, agent=agent, values=SANDBOX_VALUES)
    bench.until(
        lambda: limits(bench),
        lambda found: found == {200, 300},
        seconds=180,
        what="the job that stayed has its cap again",
    )
    job = bench.until_condition(stays, "PowerCapped", reason="Capped")
    assert (job["status"]["phase"], job["status"]["attemptCount"]) == ("Running", 1)
