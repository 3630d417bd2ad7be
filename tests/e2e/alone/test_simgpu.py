"""A cap on a simulated card costs a real job time, and its exact meter counts the job's joules."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from greentrain.api.runtime import PROGRESS_PORT
from sandbox.simgpu import cards, nodecards
from sandbox.simgpu.cards import Cards
from sandbox.simgpu.nodecards import Places
from sandbox.state import Node
from tests.e2e.conftest import Bench
from tests.e2e.jobs import name_of

Json = dict[str, Any]

RESOURCE = "nvidia.com/gpu"
WINDOW_SECONDS = 5.0
SETTLE_SECONDS = 2.0
ROUNDS = 3


def on_a_card(job: Json) -> Json:
    """The same job with one worker that asks for a card and has more steps than it will do."""
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    worker["replicas"] = 1
    container = worker["template"]["spec"]["containers"][0]
    container["args"] = ["digits", "--steps=1000000", "--checkpoint-every=100000"]
    container["resources"]["limits"][RESOURCE] = 1
    return job


def read_step(address: str) -> int:
    """The trainer's own word for how far it is."""
    with urllib.request.urlopen(f"http://{address}:{PROGRESS_PORT}/progress", timeout=5) as answer:
        step: int = json.load(answer)["step"]
    return step


def measure(address: str) -> float:
    """Steps per second over a window, a moment after something was changed."""
    time.sleep(SETTLE_SECONDS)
    began, first = time.monotonic(), read_step(address)
    time.sleep(WINDOW_SECONDS)
    return (read_step(address) - first) / (time.monotonic() - began)


@pytest.fixture
def worker(bench: Bench, digits: Json) -> Json:
    """The pod of a job that trains on a card."""
    name = name_of(digits)
    bench.apply(on_a_card(digits))
    selector = ("pods", "-l", f"greentrain.dev/job-name={name}")
    bench.until(
        lambda: bench.read_job(name),
        lambda job: job.get("status", {}).get("progress", {}).get("step", 0) > 0,
        seconds=180,
        what=f"{name} trains",
    )
    pod: Json
    (pod,) = bench.read(*selector)["items"]
    return pod


@pytest.fixture
def node(bench: Bench, worker: Json) -> Node:
    number = int(worker["spec"]["nodeName"].removeprefix("node"))
    return bench.sandbox.node(number)


@pytest.fixture
def state(node: Node) -> Iterator[Cards]:
    with cards.open(Places(node).state) as found:
        yield found
        for card in found:
            found.set_limit(card, cards.read_profiles()[found.read_card(card).profile].default_watts)


def test_every_node_offers_its_cards(bench: Bench) -> None:
    offered = {
        found["metadata"]["name"]: int(found["status"]["allocatable"].get(RESOURCE, 0))
        for found in bench.read("nodes")["items"]
    }
    given = {node.name: nodecards.read_note(node) for node in bench.sandbox.started_nodes()}
    assert offered == {name: gpus.cards if gpus else 0 for name, gpus in given.items()}


def test_a_jobs_step_time_rises_as_its_cards_limit_falls_and_its_joules_are_counted(
    bench: Bench, worker: Json, node: Node, state: Cards
) -> None:
    holder = f"{bench.namespace}/{worker['metadata']['name']}"
    said = bench.kubectl("exec", worker["metadata"]["name"], "--", "printenv", "NVIDIA_VISIBLE_DEVICES")
    (held,) = [card for card in state if state.read_card(card).uuid == said.strip()]
    profile = cards.read_profiles()[state.read_card(held).profile]
    address = worker["status"]["podIP"]
    before = nodecards.read_joules(node, holder)
    rates: dict[float, list[float]] = {profile.default_watts: [], profile.min_watts: []}
    slowdown = 1.0
    # Turn and turn about, so that what else the machine does falls on both alike.
    for _ in range(ROUNDS):
        for watts, measured in rates.items():
            state.set_limit(held, watts)
            measured.append(measure(address))
            slowdown = state.slowdown(held)
    fast, slow = (statistics.median(measured) for measured in rates.values())
    print(
        f"steps/s by limit: {rates}; slowdown at {profile.min_watts:g} W: {slowdown:.3f}, seen {slow / fast:.3f}"
    )
    assert slow < 0.95 * fast, f"{rates}"
    used = nodecards.read_joules(node, holder) - before
    seconds = 2 * ROUNDS * (SETTLE_SECONDS + WINDOW_SECONDS)
    assert profile.idle_watts * seconds < used < profile.full_watts * (seconds + 20)
