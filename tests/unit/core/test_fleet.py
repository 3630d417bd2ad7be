"""What a job is reckoned with: its own nodes' figures, and never what one other node alone says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.nodepower import MAX_MILLIWATTS, MAX_REPORT_SECONDS, NodePowerStatus
from greentrain.core.seen.fleet import describe_node, find_typical, join
from greentrain.core.seen.snapshot import Fleet
from tests.support.snapshots import at


def node(limit: int | None = 300_000, every: int | None = 30, model: str = "V100", **limits: int) -> Fleet:
    gpu = {"uuid": "GPU-1", "model": model, "limits": {"setMilliwatts": limit, **limits}}
    status = NodePowerStatus.model_validate({"gpus": [gpu], "reportIntervalSeconds": every})
    found = describe_node("node", status, at(0))
    assert found is not None
    return found


def test_a_node_without_gpus_tells_nothing_of_any() -> None:
    assert describe_node("node", NodePowerStatus(), at(0)) is None


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], (None, None, ())),
        ([node()], (300_000, 30, ("V100",))),
        ([node(), node(400_000, 60, "A100")], (300_000, 30, ("A100", "V100"))),
        ([node(), node(), node(400_000, 60, "A100")], (300_000, 30, ("V100",))),
        ([node(400_000), node(), node(400_000)], (400_000, 30, ("V100",))),
        ([node(), node(None, None)], (300_000, 30, ("V100",))),
    ],
    ids=["none", "one", "two", "one of three differs", "two of three are higher", "one says nothing"],
)
def test_of_nodes_that_a_job_may_come_to_two_must_say_the_same_or_more(
    nodes: list[Fleet], expected: tuple[Any, ...]
) -> None:
    found = find_typical(nodes)
    assert (found.limit_milliwatts, found.report_seconds, found.models) == expected


def test_of_nodes_that_a_job_is_on_the_highest_counts() -> None:
    found = join([node(), node(400_000, 60, "A100")])
    assert (found.limit_milliwatts, found.report_seconds, found.models) == (400_000, 60, ("A100", "V100"))


LIMITS = st.one_of(st.none(), st.integers(1, MAX_MILLIWATTS))
INTERVALS = st.one_of(st.none(), st.integers(1, MAX_REPORT_SECONDS))


@given(
    st.lists(st.builds(node, st.integers(1, MAX_MILLIWATTS), st.integers(1, 85)), min_size=1, max_size=5),
    st.builds(node, LIMITS, INTERVALS, st.just("GB200"), defaultMilliwatts=st.integers(1, MAX_MILLIWATTS)),
)
def test_one_liar_raises_nothing_for_a_job_that_is_not_on_it(honest: list[Fleet], liar: Fleet) -> None:
    with_liar, true = find_typical([*honest, liar]), join(honest)
    assert (with_liar.limit_milliwatts or 0) <= (true.limit_milliwatts or 0)
    assert (with_liar.report_seconds or 0) <= (true.report_seconds or 0)
