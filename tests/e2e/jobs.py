"""The jobs that end-to-end tests run, and what is read of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from sandbox.images import ROOT
from sandbox.outage import find_node
from sandbox.simgpu import cards, nodecards
from sandbox.simgpu.nodecards import Places
from tests.support.statuses import read_whole

if TYPE_CHECKING:
    from tests.e2e.conftest import Bench

Json = dict[str, Any]

PLAIN_IMAGE = "localhost/greentrain/own-script:dev"
"""Python and TensorFlow without anything of ours."""

LONG = 3600

LONG_STEPS = 300

BURN = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    rest = time.monotonic() + 3
    while time.monotonic() < rest:
        pass
    time.sleep(2)
"""
"""Loads a card by fits and starts."""


def name_of(job: Json) -> str:
    """metadata.name."""
    name: str = job["metadata"]["name"]
    return name


def condition(job: Json, type_: str) -> Json:
    """A job's condition, empty where it has none."""
    found = (c for c in job.get("status", {}).get("conditions", []) if c["type"] == type_)
    return next(found, {})


def read_example() -> list[Json]:
    """The objects of examples/digits.yaml."""
    return list(yaml.safe_load_all((ROOT / "examples/digits.yaml").read_text()))


def long(job: Json, steps: int = LONG_STEPS) -> Json:
    """The same job, equal to the bit from run to run and slowed down so that there is time to disturb it; without GPUs."""
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["args"] = [
        *("digits", f"--steps={steps}", "--checkpoint-every=20"),
        *("--step-delay-seconds=0.1", "--deterministic"),
    ]
    # There are four cards: jobs side by side would wait for one another.
    container["resources"]["limits"].pop("nvidia.com/gpu")
    return job


def apart(job: Json) -> Json:
    """The same job, its workers on different nodes where there is room."""
    name = name_of(job)
    term = {
        "labelSelector": {"matchLabels": {"greentrain.dev/job-name": name}},
        "topologyKey": "kubernetes.io/hostname",
    }
    rule = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }
    job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] = rule
    return job


def plain_job(name: str, *command: str, workers: int = 2, limits: Json | None = None, **spec: Any) -> Json:
    """A job of small programs that need no TensorFlow."""
    container: Json = {
        "name": "tensorflow",
        "image": PLAIN_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "resources": {"requests": {"cpu": "1m"}, **({"limits": limits} if limits else {})},
    }
    template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 10}}
    roles = {"Worker": {"replicas": workers, "template": template}}
    return {
        "apiVersion": "greentrain.dev/v1alpha1",
        "kind": "GreenTrainingJob",
        "metadata": {"name": name},
        "spec": {"tfReplicaSpecs": roles, **spec},
    }


def node_of(bench: Bench, pod: str) -> str:
    name: str = bench.read("pod", pod)["spec"]["nodeName"]
    return name


def burn(name: str, seconds: int, node: str) -> Json:
    """A job of one pod that holds a card of one node."""
    job = plain_job(name, "python3", "-c", BURN, str(seconds), workers=1, limits={"nvidia.com/gpu": "1"})
    spec = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    spec["terminationGracePeriodSeconds"] = 2
    return job


def capped(name: str, cap: str, node: str) -> Json:
    job = burn(name, LONG, node)
    job["spec"]["power"] = {"cap": cap}
    return job


def held_by(bench: Bench, job: str, attempt: int = 1) -> str:
    """UUID of the card a job's pod holds."""
    said = bench.kubectl("exec", f"{job}-worker-0-{attempt}", "--", "printenv", "NVIDIA_VISIBLE_DEVICES")
    return said.strip()


def exact(bench: Bench, node: str, pod: str) -> float:
    """What the exact meter of a node says of a pod, in joules."""
    return nodecards.read_joules(find_node(bench.sandbox, node), f"{bench.namespace}/{pod}")


def until_used(bench: Bench, job: str, joules: int) -> None:
    def used(body: Json) -> bool:
        return bool(body.get("status", {}).get("energy", {}).get("usedJoules", 0) >= joules)

    bench.until(lambda: bench.read_job(job), used, seconds=120, what=f"{job} has used {joules} J")


def allowed(bench: Bench, node: str, joules: float) -> float:
    """1 %, or two seconds of the card's full draw."""
    with cards.open(Places(find_node(bench.sandbox, node)).state) as state:
        profile = cards.read_profiles()[state.read_card(0).profile]
    return max(0.01 * joules, 2 * profile.full_watts)


def until_final(bench: Bench, job: str) -> Json:
    energy: Json = bench.until(
        lambda: bench.read_job(job)["status"].get("energy", {}),
        lambda found: bool(found.get("final")),
        seconds=150,
        what=f"the energy of {job} is final",
    )
    return energy


def set_budget(bench: Bench, job: str, joules: int | str) -> None:
    """Edit spec.energy.budget."""
    text = joules if isinstance(joules, str) else f"{joules}J"
    bench.kubectl(
        "patch", "gtj", job, "--type=merge", f"-p={json.dumps({'spec': {'energy': {'budget': text}}})}"
    )


def read_budget(bench: Bench, job: str) -> Json:
    """How its budget of energy stands, as the operator keeps it."""
    budget: Json = read_whole(bench.read_job(job))["energy"]["budget"]
    return budget


def until_ahead(bench: Bench, job: str) -> Json:
    """The status of energy once it says what a stop would take."""
    energy: Json = bench.until(
        lambda: read_whole(bench.read_job(job)).get("energy", {}),
        lambda found: (found.get("budget") or {}).get("reserved", 0) > 0,
        seconds=60,
        what=f"{job} says what it uses until it would have stopped",
    )
    return energy


def reasons(bench: Bench, job: str) -> list[str]:
    """The reasons of a job's events."""
    events = bench.read("events", "--field-selector", f"involvedObject.name={job}")["items"]
    return [e["reason"] for e in events]
