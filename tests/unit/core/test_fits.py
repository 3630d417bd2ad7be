"""Whatever a program or an agent reports, the status that follows is one that the API server stores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.api.bounds import MOST_INTEGER, fit
from greentrain.api.runtime import Checkpoint, Progress
from greentrain.api.status import DisplayStatus, GreenTrainingJobStatus, ProgressStatus, ProjectionStatus
from greentrain.api.stored import dump_job_status
from greentrain.core.seen.snapshot import Snapshot, parse_status
from greentrain.core.status.essence import reduce_to_least
from greentrain.quantities import Joules
from tests.unit.core.test_throttle import OnCleanGrid, Throttled

CRD = Path(__file__).parents[3] / "crds" / "greentrain.dev_greentrainingjobs.yaml"
MOST_STEP = 2**53 - 1
"""The most that `/progress` may say."""
MOST_JOULES = 10**15


def read_status_schema() -> dict[str, Any]:
    """The schema of `status` as the API server has it."""
    versions = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema: dict[str, Any] = versions[0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    return schema


VALIDATOR = jsonschema.Draft202012Validator(read_status_schema())


def check(status: GreenTrainingJobStatus) -> None:
    """It is valid by the CRD, its integers are the server's, and it is read again as it was written."""
    dumped = json.loads(json.dumps(dump_job_status(status)))
    assert [f"{'.'.join(map(str, e.path))}: {e.message}" for e in VALIDATOR.iter_errors(dumped)] == []
    assert [v for v in walk(dumped) if isinstance(v, int) and not -MOST_INTEGER <= v <= MOST_INTEGER] == []
    read, unreadable = parse_status(dumped)
    assert unreadable == ""
    assert dump_job_status(read) == dumped


def walk(node: Any) -> list[Any]:
    """Every value that is no map and no list."""
    if isinstance(node, dict):
        return [v for value in node.values() for v in walk(value)]
    if isinstance(node, list):
        return [v for value in node for v in walk(value)]
    return [node]


class Hostile(Throttled):
    """A job whose program says what it likes."""

    said: Progress | None = None

    def seen(self) -> Snapshot:
        return replace(super().seen(), progress=self.said)


class HostileOnCleanGrid(OnCleanGrid):
    """The same with a budget of emissions."""

    said: Progress | None = None

    def seen(self) -> Snapshot:
        return replace(super().seen(), progress=self.said)


steps = st.one_of(st.integers(0, 1000), st.sampled_from([MOST_STEP, MOST_STEP - 1]))
progresses = st.builds(
    Progress,
    step=steps,
    total_steps=st.one_of(st.none(), steps),
    metrics=st.dictionaries(
        st.sampled_from(["loss", "accuracy"]),
        st.floats(allow_nan=False, allow_infinity=False),
        max_size=2,
    ),
    checkpoint=st.one_of(
        st.none(), st.builds(Checkpoint, step=steps, path=st.text(st.characters(codec="utf-8"), max_size=40))
    ),
)
reports = st.tuples(
    st.integers(1, 40),
    st.one_of(st.integers(0, 10_000), st.just(MOST_JOULES)),
    st.one_of(st.integers(0, 400_000), st.just(10**9)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(reports, progresses), max_size=6), st.sampled_from([Hostile, HostileOnCleanGrid]))
def test_a_status_is_one_that_the_server_stores_whatever_is_reported(
    story: list[tuple[tuple[int, int, int], Progress]], kind: type[Hostile] | type[HostileOnCleanGrid]
) -> None:
    job: Any = kind("1GWh") if kind is Hostile else kind(1e9)  # type: ignore[arg-type]
    job.begin()
    joules = 0
    for (seconds, more, draw), said in story:
        joules = min(MOST_JOULES, joules + more)
        job.said = said
        job.second += seconds
        job.tell(joules, draw=draw)
        check(job.step().status)


def test_steps_without_end_do_not_make_a_number_that_the_server_refuses() -> None:
    job = Hostile("100GWh", budgetPolicy="None")
    job.begin()
    for second in range(30, 900, 30):
        job.said = Progress(step=second // 30, total_steps=MOST_STEP)
        job.second += 30
        job.tell(second * 10**10, draw=300_000)
        status = job.step().status
        check(status)
    assert status.projection is not None
    assert status.projection.energy_joules == MOST_INTEGER


@pytest.mark.parametrize(
    ("model", "fitted"),
    [
        (ProjectionStatus(energy_joules=5), ProjectionStatus(energy_joules=5)),
        (
            ProjectionStatus.model_construct(energy_joules=Joules(2**63), percent=200),
            ProjectionStatus.model_construct(energy_joules=Joules(MOST_INTEGER), percent=100),
        ),
        (
            ProjectionStatus.model_construct(energy_joules=Joules(-1)),
            ProjectionStatus.model_construct(energy_joules=Joules(0)),
        ),
        (
            DisplayStatus.model_construct(budget="1" * 17),
            DisplayStatus.model_construct(budget="1" * 15 + "…"),
        ),
        (
            GreenTrainingJobStatus.model_construct(progress=ProgressStatus.model_construct(step=2**70)),
            GreenTrainingJobStatus.model_construct(
                progress=ProgressStatus.model_construct(step=MOST_INTEGER)
            ),
        ),
    ],
)
def test_what_is_beyond_a_fields_range_is_brought_to_its_end(model: Any, fitted: Any) -> None:
    assert fit(model) == fitted
    assert fit(fitted) is fitted


def test_the_least_of_a_status_keeps_what_decides_and_what_was_used() -> None:
    job = Hostile("1GWh")
    job.begin()
    job.tell(1000)
    status = job.step(30).status
    least = reduce_to_least(status)
    check(least)
    kept = (
        "energy",
        "emissions",
        "attempt_count",
        "failure_count",
        "active_seconds",
        "phase",
        "admitted",
        "power",
    )
    assert {name: getattr(least, name) for name in kept} == {name: getattr(status, name) for name in kept}
    assert [(c.type, c.status, c.reason) for c in least.conditions] == [
        (c.type, c.status, c.reason) for c in status.conditions
    ]
    assert len(json.dumps(dump_job_status(least))) < len(json.dumps(dump_job_status(status)))
