"""`up` gives nodes their cards once everything those need is there, and leaves alone what runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.shell import SandboxError
from sandbox.simgpu import nodecards
from sandbox.simgpu.nodecards import Gpus
from sandbox.state import Node, Sandbox, read_boot_id, read_start_time
from sandbox.steps import decide_order
from sandbox.up import build_gpu_steps, build_steps, decide_gpus, find_without_gpus

TWO = Gpus(2, "V100", 1.0)
NONE = Gpus(0, "V100", 1.0)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def record(sandbox: Sandbox, part: str, pid: int) -> None:
    sandbox.records.mkdir(exist_ok=True)
    fields = f'{{"pid": {pid}, "started": {read_start_time(pid)}, "boot": "{read_boot_id()}"}}'
    (sandbox.records / f"{part}.json").write_text(fields)


def test_cards_come_after_their_node_the_environment_and_the_library(sandbox: Sandbox) -> None:
    steps = {step.name: step for step in build_steps(sandbox, 2, TWO, prepared=True)}
    decide_order(list(steps.values()))
    assert set(steps["gpus-node2"].needs) == {"environment", "cards", "node2"}
    assert "2 × V100" in steps["gpus-node2"].about


def test_without_cards_no_environment_is_needed(sandbox: Sandbox) -> None:
    names = {step.name for step in build_steps(sandbox, 1, NONE, prepared=True)}
    assert not names & {"environment", "cards", "gpus-node1"}


def test_cards_of_a_node_that_runs_wait_for_no_join(sandbox: Sandbox) -> None:
    steps = build_gpu_steps(sandbox, {sandbox.node(1): TWO}, (), ())
    assert [step.name for step in decide_order(steps)] == ["environment", "cards", "gpus-node1"]


def test_a_node_keeps_the_cards_it_was_given_first(sandbox: Sandbox) -> None:
    node = sandbox.node(1)
    assert decide_gpus(node, TWO) == TWO
    nodecards.write_note(node, NONE)
    assert decide_gpus(node, TWO) == NONE


def test_a_node_whose_cards_nobody_serves_is_found(sandbox: Sandbox) -> None:
    nodes = sandbox.nodes(2)
    for node in nodes:
        nodecards.write_note(node, TWO)
        nodecards.Places(node).version.write_text(nodecards.build_version())
    record(sandbox, "simgpu-node1", os.getpid())
    assert find_without_gpus(sandbox, nodes, TWO) == {nodes[1]: TWO}
    nodecards.Places(nodes[0]).version.write_text("older sources")
    assert set(find_without_gpus(sandbox, nodes, TWO)) == set(nodes)
    for node in nodes:
        nodecards.write_note(node, NONE)
    assert find_without_gpus(sandbox, nodes, TWO) == {}


@pytest.mark.parametrize(("name", "number"), [("node1", 1), ("node2", 2)])
def test_a_nodes_folder_names_it(tmp_path: Path, name: str, number: int) -> None:
    assert nodecards.parse_node(tmp_path / name) == Node(number, tmp_path / name)


@pytest.mark.parametrize("name", ["1", "nodeX", "node", "machine1"])
def test_another_folder_is_no_nodes(tmp_path: Path, name: str) -> None:
    with pytest.raises(SandboxError, match="no node's folder"):
        nodecards.parse_node(tmp_path / name)
