"""No job asks for more than Pod Security's baseline, or for another's rights, unless its namespace is opened."""

from __future__ import annotations

import re
from typing import Any

import pytest

from greentrain.core.admission import MOST_PRIVILEGES, Admitted, Refused, decide_admission
from greentrain.core.pod_security import BASELINE, OWN, asks_for_privileges, find_privileges
from greentrain.core.seen.snapshot import Job
from tests.support.manifests import build_job, build_template
from tests.support.privileges import ALLOWED, FORBIDDEN, put
from tests.support.snapshots import job_of

AT = "spec.tfReplicaSpecs.Worker.template"


def job_with(path: str, value: Any, role: str = "Worker") -> Job:
    manifest = build_job()
    role_spec = manifest["spec"]["tfReplicaSpecs"].setdefault(role, {"template": build_template()})
    put(role_spec["template"], path, value)
    return job_of(manifest)


@pytest.mark.parametrize(("path", "value"), FORBIDDEN.items())
def test_what_baseline_forbids_is_refused_by_path_and_opened_by_the_namespace(path: str, value: Any) -> None:
    job = job_with(path, value)
    verdict = decide_admission(job)
    assert isinstance(verdict, Refused)
    assert f"{AT}.{path}" in {p.path for p in verdict.problems}
    (told,) = (p for p in verdict.problems if p.path == f"{AT}.{path}")
    assert "label the namespace greentrain.dev/pod-security=privileged" in told.message
    assert asks_for_privileges(job.spec)
    assert isinstance(decide_admission(job, privileged=True), Admitted)


@pytest.mark.parametrize(("path", "value"), ALLOWED.items())
@pytest.mark.parametrize("nulled", [False, True])
def test_what_baseline_allows_is_admitted(path: str, value: Any, nulled: bool) -> None:
    job = job_with(path, None if nulled else value)
    assert isinstance(decide_admission(job), Admitted)
    assert not asks_for_privileges(job.spec)


def test_every_rule_is_broken_by_a_field_here() -> None:
    def general(path: str) -> str:
        path = re.sub(r"(?:containers|initContainers|ephemeralContainers)\[0\]", "{containers}", path)
        path = re.sub(r"\[\d\]", "[*]", path)
        return re.sub(r"\[container\.apparmor.*", "[container.apparmor.security.beta.kubernetes.io/*]", path)

    broken = {general(path) for path in FORBIDDEN}
    assert {rule.path for rule in (*BASELINE, *OWN)} | {"spec.priorityClassName"} == broken


@pytest.mark.parametrize("role", ["Chief", "Evaluator"])
def test_every_role_is_looked_at(role: str) -> None:
    verdict = decide_admission(job_with("spec.hostPID", True, role))
    assert isinstance(verdict, Refused)
    assert [p.path for p in verdict.problems] == [f"spec.tfReplicaSpecs.{role}.template.spec.hostPID"]


def test_a_checkpoint_on_the_nodes_disk_is_refused() -> None:
    job = job_of(build_job(checkpoint={"volume": {"hostPath": {"path": "/"}}}))
    verdict = decide_admission(job)
    assert isinstance(verdict, Refused)
    assert [p.path for p in verdict.problems] == ["spec.checkpoint.volume.hostPath"]
    assert asks_for_privileges(job.spec)
    assert isinstance(decide_admission(job, privileged=True), Admitted)


def test_in_a_user_namespace_of_its_own_a_pod_may_have_the_whole_of_proc() -> None:
    template = put(build_template(), "spec.containers[0].securityContext.procMount", "Unmasked")
    assert list(find_privileges(template, ""))
    assert not list(find_privileges(put(template, "spec.hostUsers", False), ""))


def test_of_thousands_of_fields_the_first_are_named() -> None:
    verdict = decide_admission(
        job_with("spec.containers[0].securityContext.capabilities.add", ["ALL"] * 5_000)
    )
    assert isinstance(verdict, Refused)
    assert len(verdict.problems) == MOST_PRIVILEGES


@pytest.mark.parametrize(
    "template",
    [
        {},
        {"spec": None},
        {"spec": []},
        {"spec": {"containers": {"privileged": True}}},
        {"spec": {"containers": [None, 1, "x"], "volumes": "x", "securityContext": [1]}},
        {"metadata": {"annotations": ["x"]}, "spec": {"containers": [{"ports": 5, "securityContext": "x"}]}},
    ],
)
def test_a_template_of_another_shape_is_left_to_the_other_checks(template: Any) -> None:
    assert list(find_privileges(template, "")) == []
    assert not asks_for_privileges({"tfReplicaSpecs": {"Worker": {"template": template}}, "checkpoint": 5})


@pytest.mark.parametrize("value", ["true", 1, [], {}])
def test_a_value_of_another_type_is_not_taken_for_an_allowed_one(value: Any) -> None:
    assert list(find_privileges({"spec": {"hostNetwork": value}}, ""))
