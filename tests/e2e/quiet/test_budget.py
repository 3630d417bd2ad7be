"""A job with a budget that is used up: stopped in time, and gone on at the exact step once the budget is raised."""

from __future__ import annotations

from typing import Any

from tests.e2e.conftest import Bench
from tests.e2e.jobs import (
    condition,
    exact,
    long,
    name_of,
    reasons,
    set_budget,
    until_ahead,
)

Json = dict[str, Any]


def test_a_job_stops_inside_its_budget_and_goes_on_at_the_exact_step_when_it_is_raised(
    bench: Bench, digits: Json, uninterrupted: str
) -> None:
    name = name_of(digits)
    job = long(digits)
    job["spec"]["energy"] = {"budget": "1kWh"}
    job["spec"]["checkpoint"]["gracePeriodSeconds"] = 15
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = "1"

    def read_meter() -> float:
        return sum(
            exact(bench, node.name, f"{name}-worker-{index}-1")
            for node in bench.sandbox.started_nodes()
            for index in (0, 1)
        )

    # The meter knows pods by name: those of an earlier run had the same.
    before = read_meter()
    bench.apply(job)
    bench.until_step(name, 40)
    energy = until_ahead(bench, name)
    assert bench.read_job(name)["status"]["attempts"][0]["overshootBoundJoules"] == 2 * 300 * (
        12 + 7 + 15 + 61
    )
    # Less than it would use until it stands still, by the longest that each step of a stop may take: it is stopped at once,
    # even where it has come to draw half of what it did. In truth the steps take a fraction of that.
    budget = energy["usedJoules"] + energy["budget"]["reserved"] // 2
    set_budget(bench, name, budget)
    job = bench.until_condition(name, "Suspended", reason="BudgetExhausted", seconds=120)
    true = read_meter() - before
    used = job["status"]["energy"]["usedJoules"]
    print(f"budget {budget} J, used {used} J, the meter {true:.0f} J, when it stood still")
    assert 0 < true <= budget
    assert used <= budget
    assert f"raise spec.energy.budget above {budget}J" in condition(job, "Suspended")["message"]
    row = bench.kubectl("get", "gtj", name).splitlines()
    assert row[0].split()[:7] == ["NAME", "STATE", "REASON", "WORKERS", "PROGRESS", "ENERGY", "BUDGET"]
    assert row[1].split()[1:3] == ["Suspended", "BudgetExhausted"]
    assert bench.read_pods(name) == {}

    set_budget(bench, name, "1kWh")
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first.get("countedAgainst")) == ("BudgetExhausted", None)
    assert second["startStep"] == first["lastStep"] >= 40
    assert bench.last_weights(name) == uninterrupted
    assert {"BudgetExhausted", "Suspended", "Resumed", "Succeeded"} <= set(reasons(bench, name))
