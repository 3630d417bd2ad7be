"""A misspelt field anywhere in a pod template is found by its full path."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.kube.template import find_template_problems
from tests.support.manifests import build_job, build_template

AT = "spec.tfReplicaSpecs.Worker.template"


def problems(template: Any) -> list[str]:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
    return [f"{p.path}: {p.message}" for p in find_template_problems(manifest["spec"])]


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"imagee": "x"}, f"{AT}.spec.containers[0].imagee: unknown field; did you mean image?"),
        ({"resuorces": {}}, f"{AT}.spec.containers[0].resuorces: unknown field; did you mean resources?"),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldpath": "x"}}}]},
            f"{AT}.spec.containers[0].env[0].valueFrom.fieldRef.fieldpath: unknown field; did you mean fieldPath?",
        ),
        ({"args": ["a", None]}, f"{AT}.spec.containers[0].args[1]: null is not valid in a list; remove it"),
        ({"env": [None]}, f"{AT}.spec.containers[0].env[0]: null is not valid in a list; remove it"),
        ({"env": {"A": "1"}}, f"{AT}.spec.containers[0].env: a map is not a list; write one"),
        (
            {"securityContext": "tight"},
            f"{AT}.spec.containers[0].securityContext: a text is not a map of fields",
        ),
    ],
)
def test_a_misspelt_field_is_found_by_its_path(container: dict[str, Any], said: str) -> None:
    assert said in "\n".join(problems(build_template(**container)))


def test_everything_kubernetes_knows_passes() -> None:
    template = build_template(
        resources={"limits": {"nvidia.com/gpu": 1}},
        env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        lifecycle={"preStop": {"exec": {"command": ["x"]}}},
    )
    template["metadata"] = {"labels": {"any": "thing"}}
    template["spec"] |= {
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "nodeSelector": {"gpu": "a"},
    }
    assert problems(template) == []


def test_a_field_that_is_null_is_not_set() -> None:
    template = build_template(
        args=None, env=None, ports=None, resources={"limits": None}, securityContext=None
    )
    template["metadata"] = None
    template["spec"] |= {"volumes": None, "nodeSelector": None, "initContainers": None}
    assert problems(template) == []


def test_a_misspelt_volume_source_is_found() -> None:
    manifest = build_job(checkpoint={"volume": {"persistentVolumeClaim": {"claimname": "c"}}})
    found = find_template_problems(manifest["spec"])
    assert [p.path for p in found] == ["spec.checkpoint.volume.persistentVolumeClaim.claimname"]


@pytest.mark.parametrize(
    "spec", [{}, {"tfReplicaSpecs": []}, {"tfReplicaSpecs": {"Worker": "x"}}, {"checkpoint": 1}]
)
def test_a_spec_of_the_wrong_shape_is_left_to_admission(spec: dict[str, Any]) -> None:
    assert find_template_problems(spec) == ()


def test_of_many_problems_the_first_are_named_and_the_others_counted() -> None:
    fields = {f"imag{i}": 1 for i in range(3_000)}
    found = problems(build_template(**fields))
    assert found[0] == f"{AT}.spec.containers[0].imag0: unknown field; did you mean image?"
    assert len(found) == 11
    assert found[-1] == "spec: and 2990 more problems in templates"


def test_a_long_key_is_not_quoted_whole() -> None:
    (found,) = problems(build_template(**{"x" * 10_000: 1}))
    assert found == f"{AT}.spec.containers[0].{'x' * 79}…: unknown field; remove it"
