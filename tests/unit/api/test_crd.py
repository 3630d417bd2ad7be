"""The CRD that is committed is the one the models give, and keeps the API conventions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from greentrain.api.crd import (
    JOB_NAME_MAX,
    RULES,
    build_crd,
    build_node_power_crd,
    build_schema,
    main,
    render_all,
    schema_hash,
)
from greentrain.api.spec import ReplicaType
from greentrain.api.structural import UnknownConstructError, structural
from tests.support.manifests import build_job

ROOT = Path(__file__).parents[3]


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{path}[]")


FIELDS = dict(fields(build_schema()))


def test_the_committed_files_are_generated() -> None:
    for path, text in render_all().items():
        assert (ROOT / path).read_text() == text, f"{path} is stale: make crds"


def test_writing_and_checking_agree(tmp_path: Path) -> None:
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert main(["--root", str(tmp_path), "--write"]) == 0
    assert main(["--root", str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize("path", [p for p in FIELDS if p != ".metadata"])
def test_every_field_is_described(path: str) -> None:
    assert len(FIELDS[path].get("description", "")) >= 10


def test_no_field_is_a_float_and_none_is_nullable() -> None:
    for path, field in FIELDS.items():
        assert field.get("type") != "number", path
        assert "nullable" not in field, path
        assert "anyOf" not in field, path
        assert "$ref" not in field, path


def test_sections_keep_unknown_fields_so_that_they_can_be_refused_by_name_or_are_of_an_earlier_form() -> None:
    kept = {p for p, f in FIELDS.items() if f.get("x-kubernetes-preserve-unknown-fields")}
    roles = [f".spec.tfReplicaSpecs.{r}" for r in ReplicaType]
    assert kept == {
        ".spec",
        ".spec.runPolicy",
        ".spec.runPolicy.schedulingPolicy",
        ".spec.tfReplicaSpecs",
        ".spec.checkpoint",
        ".spec.checkpoint.volume",
        ".spec.power",
        ".spec.energy",
        ".spec.emissions",
        *roles,
        *(f"{r}.template" for r in roles),
        *(f"{r}.template.spec" for r in roles),
        *(f"{r}.template.spec.terminationGracePeriodSeconds" for r in roles),
        ".status",
        ".status.energy",
        ".status.emissions",
        ".status.projection",
    }
    attempts = build_schema()["properties"]["status"]["properties"]["attempts"]
    assert attempts["items"]["x-kubernetes-preserve-unknown-fields"]


def test_every_rule_has_a_message_and_a_place_in_the_schema() -> None:
    schema = build_schema()
    placed = {p for p, f in FIELDS.items() if "x-kubernetes-validations" in f}
    assert placed == {f".{p}" for p in RULES if p}
    assert schema["x-kubernetes-validations"] == RULES[""]
    assert all(rule["message"] for rules in RULES.values() for rule in rules)
    assert JOB_NAME_MAX == 54


def test_a_nodes_columns_say_what_its_cards_draw_and_whether_they_can_be_read() -> None:
    (version,) = build_node_power_crd()["spec"]["versions"]
    shown = [c["name"].upper() for c in version["additionalPrinterColumns"] if not c.get("priority")]
    assert shown == ["GPUS", "DRAW", "IDLE", "UNATTRIBUTED", "READY", "OBSERVED", "AGE"]


def test_the_crd_offers_what_kubectl_needs() -> None:
    spec = build_crd()["spec"]
    version = spec["versions"][0]
    assert spec["names"]["shortNames"] == ["gtj"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.tfReplicaSpecs.Worker.replicas"
    assert [c["name"].upper() for c in version["additionalPrinterColumns"] if not c.get("priority")] == [
        "STATE",
        "REASON",
        "WORKERS",
        "PROGRESS",
        "ENERGY",
        "BUDGET",
        "CO2E",
        "AGE",
    ]
    known = {"." + p.lstrip(".") for p in FIELDS} | {".metadata.creationTimestamp"}
    for column in version["additionalPrinterColumns"]:
        assert column["jsonPath"].removesuffix(".accuracy") in known, column["name"]


def test_the_hash_tells_schemas_and_rules_apart_but_not_the_order_of_keys() -> None:
    schema = build_schema()
    fewer = [RULES[""][0]]
    others = [
        {k: v for k, v in schema.items() if k != "x-kubernetes-validations"},
        {**schema, "x-kubernetes-validations": fewer},
        {**schema, "description": "other"},
    ]
    assert len({schema_hash(s) for s in (schema, *others)}) == 4
    assert schema_hash(dict(reversed(schema.items()))) == schema_hash(schema)


@pytest.mark.parametrize(
    "schema", [{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "array", "uniqueItems": True}]
)
def test_a_construct_without_a_structural_form_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(UnknownConstructError):
        structural(schema, {}, "spec.x")


def manifests() -> list[tuple[str, dict[str, Any]]]:
    found = [("test job", build_job())]
    for file in sorted((ROOT / "examples").rglob("*.yaml")):
        bodies = (
            b for b in yaml.safe_load_all(file.read_text()) if b and b.get("kind") == "GreenTrainingJob"
        )
        found += [(str(file.relative_to(ROOT)), body) for body in bodies]
    return found


@pytest.mark.parametrize("manifest", [m for _, m in manifests()], ids=[n for n, _ in manifests()])
def test_the_examples_fit_the_schema(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, build_schema())
