"""What is too deep, too large or out of its range is refused by path, with the limit and a remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.resources import MAX_GPUS
from greentrain.api.spec import MAX_GRACE_SECONDS
from greentrain.core import limits
from greentrain.core.admission import Admitted, Refused, decide_admission
from greentrain.core.limits import count_bytes, find_barrier, find_metadata_excess
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of

AT = "spec.tfReplicaSpecs.Worker.template"
Json = dict[str, Any]


def nested(levels: int, *, maps: bool = False) -> Any:
    """So many levels of lists, or of maps."""
    node: Any = {} if maps else []
    for _ in range(levels - 1):
        node = {"a": node} if maps else [node]
    return node


def with_template(template: Json, **role: Any) -> Json:
    manifest = build_job(workers=1)
    manifest["spec"]["tfReplicaSpecs"]["Worker"] |= {"template": template, **role}
    return manifest


def padded(size: int, **container: Any) -> Json:
    """A template of exactly so many bytes as JSON."""
    template = build_template(env=[{"name": "A", "value": ""}], **container)
    template["spec"]["containers"][0]["env"][0]["value"] = "ä" * ((size - count_bytes(template)) // 2)
    template["spec"]["containers"][0]["image"] += "x" * (size - count_bytes(template))
    assert len(json.dumps(template, separators=(",", ":"), ensure_ascii=False).encode()) == size
    return template


def in_pod(**fields: Any) -> Json:
    template = build_template()
    template["spec"] |= fields
    return with_template(template)


def with_limit(amount: Any, name: str = "nvidia.com/gpu", section: str = "limits") -> Json:
    return with_template(build_template(resources={section: {name: amount}}))


def said(manifest: Json) -> str:
    """What the refusal says; nothing where there is none."""
    verdict = decide_admission(job_of(manifest))
    return verdict.message if isinstance(verdict, Refused) else ""


GRACE = f"{AT}.spec.terminationGracePeriodSeconds"
GPUS = f"{AT}.spec.containers[0].resources.limits['nvidia.com/gpu']"


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        # A template is its own first level; affinity is the third.
        (in_pod(affinity=nested(62)), ""),
        (in_pod(affinity=nested(63)), f"{AT}.spec.affinity[0][0]"),
        (in_pod(affinity=nested(63)), "is more than 64 levels deep"),
        (in_pod(affinity=nested(200, maps=True)), f"{AT}.spec.affinity.a.a"),
        (
            build_job(checkpoint={"volume": {"emptyDir": nested(100)}}),
            "spec.checkpoint.volume.emptyDir[0][0]",
        ),
        (build_job(energy=nested(200, maps=True)), "spec.energy.a.a"),
        (build_job(**{"x" * 500: nested(100)}), f"spec.{'x' * 79}…[0]"),
        (with_template(padded(64 * 1024)), ""),
        (
            with_template(padded(64 * 1024 + 1)),
            f"{AT}: is 64.1 KiB as JSON, and at most 64 KiB are allowed; move scripts and data into the image, a ConfigMap or",
        ),
        (
            build_job(checkpoint={"volume": {"a": "x" * 20_000}}),
            "spec.checkpoint.volume: is 19.6 KiB as JSON, and at most 16 KiB",
        ),
        (with_template(padded(32 * 1024), replicas=1024), ""),
        (
            with_template(padded(32 * 1024 + 1), replicas=1024),
            "spec.tfReplicaSpecs: 1024 pods from these templates are 32.1 MiB as JSON, and at most 32 MiB are made; ask for",
        ),
        (build_job(note="x" * 600_000), "spec: is 586.2 KiB as JSON, and at most 512 KiB are allowed"),
        (in_pod(terminationGracePeriodSeconds=0), ""),
        (in_pod(terminationGracePeriodSeconds=86_400), ""),
        (in_pod(terminationGracePeriodSeconds=None), ""),
        (
            in_pod(terminationGracePeriodSeconds=-1),
            f"{GRACE}: -1 is not valid: set whole seconds from 0 to 86400",
        ),
        (in_pod(terminationGracePeriodSeconds=86_401), f"{GRACE}: 86401 is not valid"),
        (in_pod(terminationGracePeriodSeconds=10**12), f"{GRACE}: 1000000000000 is not valid"),
        (in_pod(terminationGracePeriodSeconds="30"), f"{GRACE}: '30' is not valid"),
        (in_pod(terminationGracePeriodSeconds=1.5), f"{GRACE}: 1.5 is not valid"),
        (in_pod(terminationGracePeriodSeconds=True), f"{GRACE}: True is not valid"),
        (
            build_job(checkpoint={"volume": {"emptyDir": {}}, "gracePeriodSeconds": 86_401}),
            "spec.checkpoint.gracePeriodSeconds: 86401 is not valid",
        ),
        (build_job(workers=10**20), f"spec.tfReplicaSpecs.Worker.replicas: {10**20} is not valid"),
        (build_job(runPolicy={"backoffLimit": 10**20}), f"spec.runPolicy.backoffLimit: {10**20} is not"),
        (with_limit(8), ""),
        (with_limit("8"), ""),
        (with_limit("1k"), ""),
        (with_limit(1024), ""),
        (with_limit(1025), f"{GPUS}: 1025 is not valid: set a whole number from 0 to 1024"),
        (with_limit(10**20), f"{GPUS}: {10**20} is not valid"),
        (with_limit("99E"), f"{GPUS}: '99E' is not valid"),
        (with_limit(-1), f"{GPUS}: -1 is not valid"),
        (with_limit(0.5), f"{GPUS}: 0.5 is not valid"),
        (with_limit("many"), f"{GPUS}: 'many' is not valid"),
        (with_limit(None), ""),
        (with_limit(["1"]), f"{GPUS}: a list is not valid"),
        (
            with_limit("x", "nvidia.com/mig-1g.5gb", "requests"),
            "requests['nvidia.com/mig-1g.5gb']: 'x' is not",
        ),
        (with_limit("0.5", "cpu"), ""),
        (in_pod(initContainers=[{"resources": {"limits": {"nvidia.com/gpu": "?"}}}]), "initContainers[0]"),
    ],
)
def test_a_limit_is_said_with_the_field_that_breaks_it(manifest: Json, expected: str) -> None:
    found = said(manifest)
    assert (expected in found) if expected else not found


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"name": "digits", "annotations": {"a": "x" * 262_000}}, ""),
        ({"name": "digits", "annotations": {"a": "x" * 262_144}}, "metadata.annotations"),
        ({"name": "digits", "annotations": {f"k{i}": "" for i in range(40_000)}}, "metadata.annotations"),
        ({"name": "digits", "labels": {f"k{i:08}": "x" * 63 for i in range(8_000)}}, "metadata"),
        ({"name": "digits", "managedFields": [{"manager": "x" * 600_000}]}, "metadata"),
    ],
)
def test_metadata_that_would_leave_no_room_for_the_status_is_refused(metadata: Json, path: str) -> None:
    found = find_metadata_excess(metadata)
    assert [p.path for p in found] == ([path] if path else [])
    assert all("as JSON, and at most" in p.message and "remove" in p.message for p in found)
    verdict = decide_admission(job_of(), found)
    assert isinstance(verdict, Refused if path else Admitted)


def test_what_is_too_large_is_said_beside_what_else_is_wrong() -> None:
    message = said(with_template(padded(70_000, ports=[{"name": "progress", "containerPort": 1}]), replica=2))
    assert f"{AT}: is 68.4 KiB" in message
    assert "spec.tfReplicaSpecs.Worker.replica: unknown field; did you mean replicas?" in message
    message = said(with_template(padded(70_000, ports=[{"name": "progress", "containerPort": 1}])))
    assert f"{AT}: is 68.4 KiB" in message
    assert f"{AT}.spec.containers[0].ports[0].containerPort: 1 is not valid" in message


def with_values(count: int) -> Json:
    """A spec of that many values, in maps and lists of several levels."""
    spec: Json = {"a": {"b": []}}
    values = count - 2
    spec["a"]["b"] = [{"c": 1} for _ in range(values // 2)] + [1] * (values % 2)
    return spec


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"a": [0] * 19_999}, False),
        ({"a": [0] * 20_000}, True),
        ({"a": [[]] * 20_000}, True),
        ({f"k{i}": {} for i in range(20_000)}, False),
        ({f"k{i}": {} for i in range(20_001)}, True),
        (with_values(20_000), False),
        (with_values(20_001), True),
        ({"a": "x" * 100_000}, False),
    ],
)
def test_a_spec_of_more_values_than_can_be_looked_at_often_is_not_looked_at(
    spec: Json, refused: bool
) -> None:
    found = find_barrier(spec)
    assert [str(p.path) for p in found] == (["spec"] if refused else [])
    assert all("holds more than 20000 values" in p.message for p in found)


def test_of_many_unknown_fields_the_first_are_explained_and_the_others_counted() -> None:
    fields: Json = {f"field{i:05}": 1 for i in range(19_000)}
    manifest = build_job(enregy={}, **fields)
    verdict = decide_admission(job_of(manifest))
    assert isinstance(verdict, Refused)
    assert "spec.enregy: unknown field; did you mean energy?" in verdict.message
    assert verdict.message.endswith("spec: and 18991 more unknown fields; remove them")
    assert len(verdict.problems) == 11


def test_a_message_names_some_problems_and_how_many_there_are() -> None:
    reserved = [{"name": "TF_CONFIG", "value": "x"}] * 100
    message = said(with_template(build_template(env=reserved)))
    assert message.count("is set by greentrain") == 20
    assert message.endswith("; and 80 more problems")


def test_the_page_of_limits_has_each_as_it_is_in_force() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/limits.md").read_text()
    shown = {
        f"{limits.MAX_TEMPLATE_BYTES // 1024} KiB",
        f"{limits.MAX_VOLUME_BYTES // 1024} KiB",
        f"{limits.MAX_PODS_BYTES // 1024**2} MiB",
        f"{limits.MAX_SPEC_BYTES // 1024} KiB",
        f"{limits.MAX_ANNOTATIONS_BYTES // 1024} KiB",
        f"{limits.MAX_METADATA_BYTES // 1024} KiB",
        f"{limits.MAX_LEVELS} levels",
        f"{limits.MAX_VALUES:,}",
        f"{MAX_GRACE_SECONDS:,} s",
        f"{MAX_GPUS:,}",
    }
    cells = set(re.findall(r"\| ([^|]*?) \|", page.replace(" |", " | |")))
    assert shown <= cells, shown - cells
