"""Budgets of real jobs: failed on a dirty grid, kept without the operator, kept by lower caps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from greentrain.core.power.measures import CapMeasure
from sandbox.cache import read_cache_directory
from sandbox.demo import SANDBOX_VALUES
from sandbox.release import NAMESPACE, RELEASE, apply_release
from sandbox.simgpu.peers import apply_peers
from tests.e2e.alone.test_caps import Nvml
from tests.e2e.conftest import Bench
from tests.e2e.jobs import (
    LONG,
    burn,
    condition,
    exact,
    held_by,
    name_of,
    node_of,
    read_budget,
    reasons,
    set_budget,
    until_ahead,
    until_used,
)
from tests.support.statuses import read_whole

Json = dict[str, Any]

GRID = "e2e-grid"
CLEAN, DIRTY = 10, 5000
"""gCO2e/kWh."""
TURN_SECONDS = 15
"""Until the grid turns: long enough for the kubelet to bring the file to the operator's pod."""


@pytest.fixture(scope="module")
def peers() -> Path:
    return apply_peers(read_cache_directory())


def write_series(bench: Bench, turns: float) -> None:
    """A grid that is clean until a moment (Unix time) and dirty from then on."""
    rows = ((turns - 3600, CLEAN), (turns, DIRTY))
    lines = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%dT%H:%M:%SZ},{v},{GRID}" for t, v in rows]
    last = datetime.fromtimestamp(turns + 7200, UTC)
    text = "time,intensity,zone,until\n" + f"{lines[0]},\n{lines[1]},{last:%Y-%m-%dT%H:%M:%SZ}\n"
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": GRID, "namespace": NAMESPACE},
        "data": {"grid.csv": text},
    }
    bench.cluster.run_kubectl("apply", "-f", "-", stdin=json.dumps(body))


@pytest.fixture
def turn_dirty(bench: Bench) -> Iterator[Callable[[], float]]:
    """The release with a file of intensities, and what makes the grid dirty in a moment; afterwards as it was."""
    image, agent = bench.operator_image(), bench.agent_image()
    source = {"type": "file", "name": "e2e", "path": "/etc/greentrain/intensity/grid.csv"}
    values = {
        **SANDBOX_VALUES,
        "emissions.configMap": GRID,
        "emissions.sources": [source, {"type": "table"}],
    }

    write_series(bench, time.time() + LONG)
    apply_release(bench.cluster, image, agent=agent, values=values)

    def turn() -> float:
        turns = float(int(time.time()) + TURN_SECONDS)
        write_series(bench, turns)
        # Kubelet looks at what is mounted when a pod changes, else once in a minute or more.
        who = ("pods", "-l", "app.kubernetes.io/name=greentrain", f"e2e-turned={turns:.0f}", "--overwrite")
        bench.cluster.run_kubectl("--namespace", NAMESPACE, "annotate", *who)
        return turns

    yield turn
    apply_release(bench.cluster, image, agent=agent, values=SANDBOX_VALUES)
    bench.cluster.run_kubectl("--namespace", NAMESPACE, "delete", "configmap", GRID)


def test_a_budget_of_emissions_fails_a_job_when_the_grid_turns_dirty(
    bench: Bench, removed: list[str], turn_dirty: Callable[[], float]
) -> None:
    name = "e2e-carbon"
    removed.append(name)
    node = bench.sandbox.started_nodes()[0].name
    job = burn(name, LONG, node)
    job["spec"]["emissions"] = {"budget": "15gCO2e", "onExhausted": "Fail", "zone": GRID}
    bench.apply(job)
    until_used(bench, name, 500)
    seen = bench.read_job(name)["status"]
    assert seen["emissions"]["intensity"] == f"{CLEAN}gCO2e/kWh"
    assert (seen["emissions"]["source"], seen["emissions"]["zones"]) == ("e2e", [GRID])
    assert condition({"status": seen}, "BudgetExhausted")["status"] == "False"
    said = seen["attempts"][0]["overshootBoundMicrograms"]
    turns = turn_dirty()
    job = bench.until_condition(name, "Failed", seconds=180)
    assert time.time() > turns
    assert condition(job, "Failed")["reason"] == "BudgetExhausted"
    assert condition(job, "Failed")["message"] == "spec.emissions.budget 15gCO2e is spent"
    emissions = bench.until(
        lambda: bench.read_job(name)["status"]["emissions"],
        lambda found: bool(found.get("final")),
        seconds=120,
        what="its emissions are final",
    )
    total = emissions["operationalMicrograms"] / 1e6
    joules = sum(s["joules"] for s in emissions["shares"])
    print(
        f"{total:.2f} g of {joules} J, of which a clean grid would have made {joules / 3.6e6 * CLEAN:.2f} g"
    )
    assert emissions.get("withoutJoules", 0) == 0
    assert joules == bench.read_job(name)["status"]["energy"]["usedJoules"]
    assert joules / 3.6e6 * CLEAN < total <= joules / 3.6e6 * DIRTY
    # Before it started the grid was to turn dirty within the hour.
    assert said >= bench.read_job(name)["status"]["attempts"][0]["overshootBoundJoules"] * DIRTY / 3.6
    assert total <= 15 + said / 1e6
    assert emissions["total"] in bench.kubectl("get", "gtj", name).splitlines()[1].split()


def test_without_the_operator_the_agent_keeps_the_budget(
    bench: Bench, removed: list[str], peers: Path
) -> None:
    name = "e2e-alone"
    removed.append(name)
    node = bench.sandbox.started_nodes()[0].name
    job = burn(name, LONG, node)
    job["spec"]["energy"] = {"budget": "1kWh"}
    bench.apply(job)
    until_used(bench, name, 500)
    energy = until_ahead(bench, name)
    budget = energy["usedJoules"] + 2 * energy["budget"]["reserved"]
    set_budget(bench, name, budget)

    def asked() -> list[int]:
        spec = bench.read("nodepower", node)["spec"]
        return [p["allowanceJoules"] for p in spec.get("pods", []) if "allowanceJoules" in p]

    bench.until(asked, lambda found: found == [budget], seconds=30, what="the agent is told what is left")
    bound = bench.read_job(name)["status"]["attempts"][0]["overshootBoundJoules"]
    uuid = held_by(bench, name)
    nvml = Nvml(bench, node, peers)
    deployment = ("--namespace", NAMESPACE, "scale", f"deployment/{RELEASE}")
    bench.cluster.run_kubectl(*deployment, "--replicas=0")
    try:
        bench.until(
            lambda: nvml.limits()[uuid],
            lambda watts: watts < 300,
            seconds=240,
            what="the agent lowers the limit of the card",
        )
        bench.until(
            lambda: list(bench.read_pods(name)),
            lambda names: names == [],
            seconds=60,
            what="the pod is evicted",
        )
        told = [p for p in bench.read("nodepower", node)["status"]["pods"] if p["name"].startswith(name)]
        assert [p["budgetAction"] for p in told] == ["Evicted"]
    finally:
        bench.cluster.run_kubectl(*deployment, "--replicas=1")
    job = bench.until_condition(name, "Suspended", reason="BudgetExhausted", seconds=120)
    attempt = job["status"]["attempts"][0]
    assert attempt["reason"] in ("BudgetExhausted", "AllowanceSpent")
    assert job["status"].get("infrastructureFailureCount", 0) == 0
    true = exact(bench, node, f"{name}-worker-0-1")
    print(f"budget {budget} J, used {true:.0f} J without an operator; the bound was {bound} J")
    assert budget <= true <= budget + bound
    bench.until(
        lambda: nvml.limits()[uuid],
        lambda watts: watts == 300,
        seconds=30,
        what="the card has its limit back",
    )


FULL_MILLIWATTS = 300_000
"""The highest limit of the sandbox's cards."""
DRAW_SECONDS = 15.0
"""Over how long the exact meter is read at the lower cap."""
MEASURED = ("percent", "steps", "joules", "milliseconds", "windows", "spread", "lagged", "latest")
THROTTLED_STEPS = 4_800
STEP_CPU_SECONDS = 0.03
"""More than a step of the digits program needs of a core anywhere: what one costs then depends on the cap alone, not on
what else the machine does. Some two and a half minutes in all, at the caps it is to have."""


def test_a_job_is_throttled_into_its_budget_and_finishes(bench: Bench, digits: Json) -> None:
    name = name_of(digits)
    spec = digits["spec"]
    worker = spec["tfReplicaSpecs"]["Worker"]
    worker["replicas"] = 1
    container = worker["template"]["spec"]["containers"][0]
    container["args"] = [
        *("digits", f"--steps={THROTTLED_STEPS}", "--checkpoint-every=2000"),
        f"--step-cpu-seconds={STEP_CPU_SECONDS}",
    ]
    container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = "1"
    spec["power"] = {"budgetPolicy": "LowerCap", "cap": "70%"}
    spec["energy"] = {"budget": "1kWh"}
    spec["checkpoint"]["gracePeriodSeconds"] = 5
    bench.apply(digits)

    def projection() -> Json:
        found: Json = bench.read_job(name).get("status", {}).get("projection", {})
        return found

    first = bench.until(
        projection,
        lambda found: found.get("reason") == "Fits",
        seconds=240,
        what="what a step costs at 70 % is measured",
    )
    assert (first["percent"], first["exceeds"]) == (70, "No")
    # What a stop would take is kept free to the end.
    within = first["energyJoules"] * 95 // 100
    budget = within + read_budget(bench, name)["reserved"]
    set_budget(bench, name, budget)
    bench.until(
        projection,
        lambda found: found.get("percent", 70) < 70,
        # Where steps cost now more, now less, a cap is only left after 20 windows of a report each.
        seconds=180,
        what="the cap goes down",
    )
    held = bench.until(
        lambda: bench.read_job(name)["status"]["power"],
        lambda power: power.get("enforcedMilliwatts", FULL_MILLIWATTS) < FULL_MILLIWATTS * 70 // 100,
        seconds=30,
        what="the lower cap is in force",
    )
    node = node_of(bench, f"{name}-worker-0-1")
    begun, before = time.monotonic(), exact(bench, node, f"{name}-worker-0-1")
    time.sleep(DRAW_SECONDS)
    drawn = (exact(bench, node, f"{name}-worker-0-1") - before) / (time.monotonic() - begun)
    print(f"at {held['cap']} ({held['enforcedMilliwatts']} mW) the meter saw {drawn:.1f} W")
    assert drawn <= 1.02 * held["enforcedMilliwatts"] / 1000
    job = bench.until_condition(name, "Succeeded", seconds=900)
    energy = bench.until(
        lambda: bench.read_job(name)["status"]["energy"],
        lambda found: bool(found.get("final")),
        seconds=150,
        what="its energy is final",
    )
    last = read_whole(job)["projection"]
    print(
        f"at 70 % it would have used {first['energyJoules']} J ±{first['uncertaintyJoules']} J; budget {budget} J, "
        f"{within} J but for a stop; used "
        f"{energy['usedJoules']} J, projected {last.get('energyJoules', 'nothing at a cap that is new')} J "
        f"±{last.get('uncertaintyJoules', 0)} J at {last['percent']} %: "
        + ", ".join(
            f"{m['percent']} % {m['joules'] / m['steps']:.3f} J and {m['milliseconds'] / m['steps']:.2f} ms a step"
            for m in last["measures"]
        )
    )
    assert energy["usedJoules"] <= budget
    assert job["status"]["attemptCount"] == 1
    assert "Throttled" in reasons(bench, name)
    # Each cap held, as far as the product's own measure knows. What a step costs, and how busy the card is, depends on what
    # else the machine does, and is printed.
    by_cap = {m["percent"]: m for m in last["measures"]}
    assert min(by_cap) < 70
    errors = {
        percent: CapMeasure(**{k: m.get(k, 0) for k in MEASURED}).error_millionths / 1e6
        for percent, m in by_cap.items()
    }
    watts = {percent: m["joules"] / m["milliseconds"] * 1000 for percent, m in by_cap.items()}
    assert {
        p: (w, errors[p])
        for p, w in watts.items()
        if w * (1 - errors[p]) > 1.02 * FULL_MILLIWATTS / 1000 * p / 100
    } == {}
    # Of the cap it ended at nothing may be measured yet, and then nothing is projected.
    assert first["completionTime"]
    assert last.get("completionTime") or last["percent"] not in by_cap
