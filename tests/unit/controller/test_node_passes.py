"""Which nodes are looked at when a job's status is stored: those of which it says something else than before."""

from __future__ import annotations

import pytest

from greentrain.api.budgets import ControlStatus, PodAllowance
from greentrain.api.spec import EnergySpec
from greentrain.api.status import (
    AdmittedSections,
    EnergyStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    PowerStatus,
)
from greentrain.core.asks import Terms, find_nodes

PODS = {"a": "node-a", "b": "node-b", "c": "node-c", "waiting": ""}


def status(
    *,
    cap: str = "",
    final: tuple[tuple[str, int], ...] = (),
    allowances: dict[str, int] | None = None,
    limit: str = "1MJ",
) -> GreenTrainingJobStatus:
    """A status with a budget that allows pods so much, and these final entries (pod and joules)."""
    allowed = tuple(PodAllowance(uid=uid, joules=joules) for uid, joules in (allowances or {}).items())
    pods = tuple(PodEnergyStatus(uid=uid, node=f"node-{uid}", gpu_joules=j, final=True) for uid, j in final)
    running = PodEnergyStatus(uid="b", node="node-b", gpu_joules=len(pods))
    return GreenTrainingJobStatus(
        admitted=AdmittedSections(energy=EnergySpec(budget=limit or None)),
        power=PowerStatus(cap=cap),
        energy=EnergyStatus(pods=(*pods, running), control=ControlStatus(allowances=allowed)),
    )


EVERY = {"node-a", "node-b", "node-c"}
GIVEN = {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize(
    ("before", "after", "nodes"),
    [
        (None, status(allowances=GIVEN), EVERY),
        (status(allowances=GIVEN), status(allowances=GIVEN), set()),
        (status(allowances=GIVEN), status(allowances={**GIVEN, "b": 11}), {"node-b"}),
        (status(allowances=GIVEN), status(allowances={"a": 10}), {"node-b", "node-c"}),
        (status(allowances=GIVEN), status(allowances=GIVEN, cap="70%"), EVERY),
        (status(allowances=GIVEN), status(allowances=GIVEN, limit=""), EVERY),
        (status(), status(final=(("gone", 5),)), {"node-gone"}),
        (status(final=(("gone", 5),)), status(final=(("gone", 5), ("a", 1))), {"node-a"}),
        (status(final=(("gone", 5),)), status(final=(("gone", 6),)), {"node-gone"}),
        (status(final=(("gone", 5),)), status(), set()),
    ],
    ids=[
        "none is known, as after a restart",
        "counters alone",
        "one allowance",
        "two are taken away",
        "a cap",
        "the budget is taken away",
        "a final entry",
        "another final entry",
        "a final entry grows",
        "its agent has let go of it",
    ],
)
def test_a_node_is_looked_at_when_a_stored_status_says_something_else_of_it(
    before: GreenTrainingJobStatus | None, after: GreenTrainingJobStatus, nodes: set[str]
) -> None:
    known = Terms.of("uid", before) if before is not None else None
    assert find_nodes(known, Terms.of("uid", after), PODS) == nodes


def test_of_another_job_of_that_name_every_node_is_looked_at() -> None:
    same = status(allowances=GIVEN)
    assert find_nodes(Terms.of("old", same), Terms.of("new", same), PODS) == EVERY
