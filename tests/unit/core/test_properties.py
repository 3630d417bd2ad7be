"""Over all specs there are: what the models allow is admitted, what is changed is refused by name, nothing crashes."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from copy import deepcopy
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from greentrain.api.spec import (
    NOT_BUILT,
    CheckpointSpec,
    EmissionsSpec,
    EnergySpec,
    GreenTrainingJobSpec,
    PowerSpec,
    ReplicaSpec,
    ReplicaSpecs,
)
from greentrain.core.admission import Admitted, Refused, decide_admission
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.pods import parse_pod
from greentrain.core.seen.snapshot import Job, Snapshot, parse_job
from greentrain.quantities import POWER_CAP_PATTERN
from tests.support.manifests import build_template
from tests.support.snapshots import at, job_of

Json = dict[str, Any]

GIVEN: dict[tuple[type[BaseModel], str], st.SearchStrategy[Any]] = {
    (ReplicaSpec, "template"): st.builds(
        build_template,
        command=st.lists(st.sampled_from(["python3", "train.py", "--steps=3"]), min_size=1),
        env=st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["A", "B"]), "value": st.text(max_size=5)}),
            max_size=2,
        ),
    ),
    (CheckpointSpec, "volume"): st.sampled_from(
        [{"emptyDir": {}}, {"persistentVolumeClaim": {"claimName": "training"}}]
    ),
    (PowerSpec, "cap"): st.from_regex(POWER_CAP_PATTERN, fullmatch=True),
    # Budget needs one; tests/unit/core/test_throttle.py has it.
    (PowerSpec, "policy"): st.just("Fixed"),
    (PowerSpec, "max_slowdown_percent"): st.none(),
    (EnergySpec, "budget"): st.builds(
        lambda n, u: f"{n}{u}", st.integers(1, 99_999), st.sampled_from(["J", "kJ", "MJ", "Wh", "kWh", "MWh"])
    ),
    (EmissionsSpec, "budget"): st.builds(
        lambda n, u: f"{n}{u}", st.integers(1, 99_999), st.sampled_from(["gCO2e", "kgCO2e", "tCO2e"])
    ),
    (EmissionsSpec, "zone"): st.sampled_from(["DE", "US-CAL-CISO"]),
    (EmissionsSpec, "pue"): st.integers(1000, 5000).map(lambda n: f"{n / 1000}"),
    (EnergySpec, "warn_at_percent"): st.lists(st.integers(1, 99), max_size=10),
}
"""What no constraint of the model describes."""


def values_of(model: type[BaseModel], name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    """JSON values a field allows, by its type and constraints."""
    if (model, name) in GIVEN:
        return GIVEN[model, name]
    return _of_type(field.annotation, field)


def _of_type(annotation: Any, field: FieldInfo) -> st.SearchStrategy[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return _of_type(next(a for a in get_args(annotation) if a is not type(None)), field)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from([e.value for e in annotation])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return specs_of(annotation)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low: Any = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
        high: Any = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
        return st.integers(low, high)
    pattern = next((m.pattern for m in field.metadata if hasattr(m, "pattern")), None)
    assert pattern, f"teach this test to make a {annotation} for {field}"
    return st.from_regex(pattern, fullmatch=True).filter(lambda s: ".." not in s.split("/"))


def specs_of(model: type[BaseModel]) -> st.SearchStrategy[Json]:
    """Objects of a model, optional fields there or not."""
    if model is ReplicaSpecs:
        return _roles()
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in model.model_fields.items():
        target = required if field.is_required() else optional
        target[field.alias or name] = values_of(model, name, field)
    return st.fixed_dictionaries(required, optional=optional)


@st.composite
def _roles(draw: st.DrawFn) -> Json:
    """Roles that may stand together: one chief by either name, one evaluator, a gang."""
    one = specs_of(ReplicaSpec).map(lambda r: {**r, "replicas": 1})
    several = specs_of(ReplicaSpec).map(lambda r: {**r, "replicas": min(r.get("replicas", 1), 4)})
    found: Json = {}
    chief = draw(st.sampled_from(["Chief", "Master", None]))
    if chief is not None:
        found[chief] = draw(one)
    if chief is None or draw(st.booleans()):
        found["Worker"] = draw(several)
    if draw(st.booleans()):
        found["Evaluator"] = draw(one)
    return found


SPECS = specs_of(GreenTrainingJobSpec)


def job_with(spec: Mapping[str, Any]) -> Job:
    return job_of({"metadata": {"name": "digits"}, "spec": spec})


@given(SPECS)
def test_everything_the_models_allow_is_admitted_and_gets_its_pods(spec: Json) -> None:
    job = job_with(spec)
    verdict = decide_admission(job)
    assert isinstance(verdict, Admitted), str(verdict)
    decision = decide(Snapshot(job=job), now=at(0))
    if verdict.spec.run_policy.suspend:
        assert not decision.pods
    else:
        assert len(decision.pods) == sum(r.replicas for _, r in verdict.spec.tf_replica_specs.roles())


def sections(node: Any, path: str = "spec") -> Iterator[tuple[str, Json]]:
    """Every object of our own schema in a spec, with its path; free-form parts are Kubernetes' own."""
    yield path, node
    for key, value in node.items():
        if isinstance(value, dict) and key not in ("template", "volume"):
            yield from sections(value, f"{path}.{key}")


@given(SPECS, st.data())
def test_an_unknown_field_anywhere_is_refused_by_its_full_path(spec: Json, data: st.DataObject) -> None:
    path, node = data.draw(st.sampled_from(list(sections(spec))))
    known = data.draw(st.sampled_from(sorted(node) or ["enregy"]))
    wrong = known[1:] + known[:1] + "x"
    node[wrong] = {"budget": "5kWh"}
    verdict = decide_admission(job_with(spec))
    assert isinstance(verdict, Refused)
    assert f"{path}.{wrong}: unknown field" in verdict.message
    assert not decide(Snapshot(job=job_with(spec)), now=at(0)).pods


WRONG: dict[type, list[Any]] = {
    bool: ["yes please", 7, [], {}],
    int: ["many", -1, 1.5, 10**12, [], {}],
    str: [7, "?!", True, {}, []],
    dict: [7, "text", True, []],
    list: ["many", 7, {}, [0], [100], ["x"]],
    type(None): ["many", -1, {}, []],
}


def leaves(node: Json, path: str = "spec") -> Iterator[tuple[str, Json, str]]:
    for key, value in node.items():
        yield f"{path}.{key}", node, key
        if isinstance(value, dict) and key not in ("template", "volume"):
            yield from leaves(value, f"{path}.{key}")


@given(SPECS, st.data())
def test_a_wrong_value_anywhere_is_refused_by_its_field(spec: Json, data: st.DataObject) -> None:
    path, node, key = data.draw(st.sampled_from(list(leaves(spec))))
    node[key] = data.draw(st.sampled_from(WRONG[type(node[key])]))
    verdict = decide_admission(job_with(spec))
    assert isinstance(verdict, Refused), f"{path}: {node[key]!r}"
    assert any(str(p).startswith(path) for p in verdict.problems), verdict.message


@given(SPECS, st.sampled_from(sorted(NOT_BUILT)))
def test_a_field_that_is_not_built_is_refused_wherever_it_stands(spec: Json, path: str) -> None:
    *parents, last = path.split(".")[1:]
    node = spec
    for part in parents:
        node = node.setdefault(part, {"volume": {"emptyDir": {}}} if part == "checkpoint" else {})
    node[last] = {}
    verdict = decide_admission(job_with(spec))
    assert isinstance(verdict, Refused)
    assert f"{path}: " in verdict.message
    assert "not built yet" in verdict.message


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["runPolicy", "tfReplicaSpecs", "checkpoint", "successPolicy", "Worker", "template", "spec", "containers"]
)
NEARLY = st.recursive(ANY, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=12)


@given(st.dictionaries(KEYS, NEARLY, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_spec_whatever_crashes_the_operator(spec: Json) -> None:
    decision = decide(Snapshot(job=job_with(spec)), now=at(0))
    assert decision.status.conditions


@given(
    SPECS, ANY, st.dictionaries(st.sampled_from(["attempts", "conditions", "progress", "failureCount"]), ANY)
)
def test_no_status_written_by_hand_crashes_the_operator(spec: Json, anything: Any, part: Json) -> None:
    for status in (anything, part):
        meta = {"namespace": "team", "name": "digits", "uid": "uid-1", "resourceVersion": "1"}
        job = parse_job({"metadata": meta, "spec": spec, "status": status})
        assert decide(Snapshot(job=job), now=at(0)).status.conditions


TIMES = st.sampled_from(["2026-01-01T00:00:05Z", "2025-01-01T00:00:00Z", "2030-01-01T00:00:00Z"])
STATES: st.SearchStrategy[Json] = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"running": st.fixed_dictionaries({}, optional={"startedAt": TIMES})}),
    st.fixed_dictionaries(
        {
            "waiting": st.fixed_dictionaries(
                {}, optional={"reason": st.sampled_from(["ErrImagePull", "Other"]), "message": st.text()}
            )
        }
    ),
    st.fixed_dictionaries(
        {
            "terminated": st.fixed_dictionaries(
                {"exitCode": st.integers(-1, 300)},
                optional={
                    "reason": st.sampled_from(["Error", "OOMKilled", "StartError", "Odd"]),
                    "finishedAt": TIMES,
                    "message": st.text(),
                },
            )
        }
    ),
)
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["DisruptionTarget", "PodScheduled", "Ready"]),
            "status": st.sampled_from(["True", "False"]),
        },
        optional={"reason": st.sampled_from(["PreemptionByScheduler", "Odd"]), "message": st.text()},
    ),
    max_size=2,
)
PODS = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {
                "name": st.just("a"),
                "uid": st.sampled_from(["1", "2", "3"]),
                "labels": st.fixed_dictionaries(
                    {},
                    optional={
                        "greentrain.dev/replica-type": st.sampled_from(["Worker", "Evaluator", "Odd"]),
                        "greentrain.dev/replica-index": st.sampled_from(["0", "1", "x"]),
                        "greentrain.dev/attempt": st.sampled_from(["1", "2", "x"]),
                    },
                ),
            },
            optional={"deletionTimestamp": TIMES, "deletionGracePeriodSeconds": st.integers(0, 99)},
        )
    },
    optional={
        "status": st.fixed_dictionaries(
            {},
            optional={
                "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
                "reason": st.sampled_from(["Evicted", "NodeLost", "DeadlineExceeded", "Odd"]),
                "message": st.text(),
                "conditions": CONDITIONS,
                "containerStatuses": st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["tensorflow", "other"]), "state": STATES}
                    ),
                    max_size=2,
                ),
            },
        )
    },
)


@given(SPECS, st.lists(PODS, max_size=4), st.integers(0, 4000))
def test_no_pods_whatever_crash_the_operator_and_deciding_settles(
    spec: Json, bodies: list[Json], second: int
) -> None:
    pods = tuple(p for p in (parse_pod(b) for b in bodies) if p is not None)
    job = job_with(spec)
    for i in range(6):
        decision = decide(Snapshot(job=job, pods=pods), now=at(second + i))
        job = job_of({"metadata": {"name": "digits"}, "spec": spec}, status=deepcopy(decision.status))


@pytest.mark.parametrize("model", [GreenTrainingJobSpec, ReplicaSpec, CheckpointSpec])
def test_the_generator_covers_every_field_of_the_models(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        values_of(model, name, field).validate()
