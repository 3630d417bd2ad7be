"""docs/reference/fields.md says of every field when an edit takes effect; what pods are built from decides whether that is true."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.spec import NOT_BUILT, GreenTrainingJobSpec
from greentrain.core.gang.manifests import spec_hash
from tests.support.manifests import build_job, build_template

PAGE = Path(__file__).parents[3] / "docs/reference/fields.md"
Json = dict[str, Any]


def read_table() -> dict[str, str]:
    """When an edit takes effect, by field path as the page spells it."""
    rows: dict[str, str] = {}
    for line in PAGE.read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        found = re.findall(r"`([^`]+)`", cells[0]) if line.startswith("| `spec.") else []
        for path in found:
            section = found[0].rpartition(".")[0]
            full = path if path.startswith("spec.") else f"{section}.{path}"
            if " " not in path:
                rows[full] = "live" if cells[1].startswith("at once") else "next attempt"
    return rows


TABLE = read_table()

EDITS: list[tuple[str, str, Any]] = [
    ("spec.runPolicy.suspend", "runPolicy.suspend", True),
    ("spec.runPolicy.backoffLimit", "runPolicy.backoffLimit", 7),
    ("spec.runPolicy.infrastructureRestartLimit", "runPolicy.infrastructureRestartLimit", 7),
    ("spec.runPolicy.activeDeadlineSeconds", "runPolicy.activeDeadlineSeconds", 7),
    ("spec.runPolicy.ttlSecondsAfterFinished", "runPolicy.ttlSecondsAfterFinished", 7),
    ("spec.runPolicy.cleanPodPolicy", "runPolicy.cleanPodPolicy", "All"),
    (
        "spec.runPolicy.schedulingPolicy.scheduleTimeoutSeconds",
        "runPolicy.schedulingPolicy.scheduleTimeoutSeconds",
        7,
    ),
    ("spec.successPolicy", "successPolicy", "AllWorkers"),
    ("spec.enableDynamicWorker", "enableDynamicWorker", True),
    ("spec.evaluatorInCluster", "evaluatorInCluster", False),
    ("spec.tfReplicaSpecs.*.restartPolicy", "tfReplicaSpecs.Worker.restartPolicy", "Always"),
    ("spec.tfReplicaSpecs.*.replicas", "tfReplicaSpecs.Worker.replicas", 7),
    ("spec.tfReplicaSpecs.*.template", "tfReplicaSpecs.Worker.template", build_template(image="other")),
    ("spec.checkpoint.*", "checkpoint.volume", {"persistentVolumeClaim": {"claimName": "other"}}),
    ("spec.checkpoint.*", "checkpoint.path", "other"),
    ("spec.checkpoint.*", "checkpoint.gracePeriodSeconds", 7),
    ("spec.power.cap", "power.cap", "70%"),
    ("spec.power.budgetPolicy", "power.budgetPolicy", "LowerCap"),
    ("spec.power.maxSlowdownPercent", "power.maxSlowdownPercent", 20),
    ("spec.energy.budget", "energy.budget", "5kWh"),
    ("spec.energy.onExhausted", "energy.onExhausted", "Fail"),
    ("spec.energy.onUnknown", "energy.onUnknown", "Continue"),
    ("spec.energy.warnAtPercent", "energy.warnAtPercent", [50, 90]),
    ("spec.energy.scope", "energy.scope", "Node"),
    ("spec.emissions.budget", "emissions.budget", "2kgCO2e"),
    ("spec.emissions.onExhausted", "emissions.onExhausted", "Fail"),
    ("spec.emissions.zone", "emissions.zone", "DE"),
    ("spec.emissions.pue", "emissions.pue", "1.2"),
    ("spec.emissions.basis", "emissions.basis", "Direct"),
    ("spec.emissions.includeEmbodied", "emissions.includeEmbodied", False),
]


def edited(path: str, value: Any) -> Json:
    spec: Json = deepcopy(build_job(checkpoint={"volume": {"emptyDir": {}}})["spec"])
    node = spec
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return spec


def hash_of(spec: Json) -> str:
    return spec_hash(GreenTrainingJobSpec.model_validate(spec))


@pytest.mark.parametrize(("row", "path", "value"), EDITS, ids=[e[1] for e in EDITS])
def test_an_edit_takes_effect_when_the_page_says(row: str, path: str, value: Any) -> None:
    waits = hash_of(edited(path, value)) != hash_of(edited("successPolicy", ""))
    assert waits is (TABLE[row] == "next attempt")


def leaves(model: Any = GreenTrainingJobSpec, path: str = "spec") -> list[str]:
    """Every field of the spec by path, roles as one."""
    found = []
    for name, field in model.model_fields.items():
        inner = next(
            (
                t
                for t in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if hasattr(t, "model_fields")
            ),
            None,
        )
        here = f"{path}.{field.alias or name}"
        here = re.sub(r"^spec\.tfReplicaSpecs\.[A-Z]\w+", "spec.tfReplicaSpecs.*", here)
        found += leaves(inner, here) if inner is not None else [here]
    return found


def test_the_page_and_this_test_speak_of_every_field() -> None:
    known = {re.sub(r"^spec\.checkpoint\..*", "spec.checkpoint.*", p) for p in leaves()}
    assert known == set(TABLE)
    assert {row for row, _, __ in EDITS} == set(TABLE)


def test_the_page_names_what_is_refused() -> None:
    text = PAGE.read_text().replace("\n", " ")
    for path in NOT_BUILT:
        assert path.rpartition(".")[2] in text, path
