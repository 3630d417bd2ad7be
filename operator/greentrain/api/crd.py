"""Generates the CustomResourceDefinitions from the pydantic models.

The schema is made from the models' fields and their descriptions (`api.structural` converts it). What a model cannot express
is here: CEL rules, the sections whose unknown fields are kept, and the columns of `kubectl get`.

`python -m greentrain.api.crd --write` writes `crds/` and the chart's copy; `--check` compares them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from greentrain.api import names
from greentrain.api.nodepower import NodePowerSpec, NodePowerStatus
from greentrain.api.spec import MAX_GRACE_SECONDS, GreenTrainingJobSpec, ReplicaType
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.structural import Schema, structural
from greentrain.quantities import (
    EMISSIONS_FORM,
    EMISSIONS_PATTERN,
    ENERGY_FORM,
    ENERGY_PATTERN,
    POWER_CAP_FORM,
    POWER_CAP_PATTERN,
    PUE_FORM,
    PUE_PATTERN,
)

JOB_NAME_MAX = names.DNS_LABEL_MAX - len("-worker-0")

_NOT_ZERO = "'^[0-9.]*[1-9]'"
"""A digit other than zero in the number; one further on may be part of the unit, as in gCO2e."""

RULES: dict[str, list[dict[str, str]]] = {
    "": [
        {
            "rule": f"size(self.metadata.name) <= {JOB_NAME_MAX}",
            "message": f"metadata.name must be at most {JOB_NAME_MAX} characters: pods are called "
            "NAME-worker-INDEX, which must fit a DNS label of 63",
        },
        {
            "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name must start with a letter and have only lower-case letters, digits and -: "
            "it names the job's Service",
        },
    ],
    "spec.tfReplicaSpecs": [
        {
            "rule": "has(self.Chief) || has(self.Master) || has(self.Worker)",
            "message": "needs Worker, Chief or both",
        },
        {
            "rule": "!(has(self.Chief) && has(self.Master))",
            "message": "Chief and Master are two names of one role: keep one",
        },
        {
            "rule": "!has(self.Chief) || !has(self.Chief.replicas) || self.Chief.replicas == 1",
            "message": "a job has one Chief: set Chief.replicas to 1",
        },
        {
            "rule": "!has(self.Master) || !has(self.Master.replicas) || self.Master.replicas == 1",
            "message": "a job has one Master: set Master.replicas to 1",
        },
        {
            "rule": "!has(self.Evaluator) || !has(self.Evaluator.replicas) || self.Evaluator.replicas == 1",
            "message": "a job has one Evaluator: set Evaluator.replicas to 1",
        },
    ],
    "spec.power": [
        {
            "rule": f"!has(self.cap) || self.cap.matches(r'^({POWER_CAP_PATTERN})$')",
            "message": f"cap is not valid: write {POWER_CAP_FORM}",
        },
    ],
    "spec.energy": [
        {
            "rule": f"!has(self.budget) || self.budget.matches(r'^({ENERGY_PATTERN})$') && self.budget.matches({_NOT_ZERO})",
            "message": f"budget is not valid: write {ENERGY_FORM}",
        },
    ],
    "spec.emissions": [
        {
            "rule": f"!has(self.budget) || self.budget.matches(r'^({EMISSIONS_PATTERN})$') && self.budget.matches({_NOT_ZERO})",
            "message": f"budget is not valid: write {EMISSIONS_FORM}",
        },
        {
            "rule": f"!has(self.pue) || self.pue.matches(r'^({PUE_PATTERN})$') "
            "&& double(self.pue) >= 1.0 && double(self.pue) <= 5.0",
            "message": f"pue is not valid: write {PUE_FORM}",
        },
    ],
}
"""CEL rules by path. The operator checks the same again, and what a rule cannot check: unknown fields, the templates and the
exact range of a budget."""

PRESERVED = (
    "spec",
    "spec.runPolicy",
    "spec.runPolicy.schedulingPolicy",
    "spec.tfReplicaSpecs",
    "spec.tfReplicaSpecs.*",
    "spec.checkpoint",
    "spec.power",
    "spec.energy",
    "spec.emissions",
    "status",
    "status.attempts[]",
    "status.energy",
    "status.emissions",
    "status.projection",
)
"""Sections whose unknown fields the server keeps. Of a spec: so that the operator can reject them by name. Of a status, which
the server prunes as it reads it from etcd: so that one from before the ledger can still be read."""

TEMPLATE: Schema = {
    # No types, so that null stays an unset field, and the operator rejects any other value with its own message.
    "spec": {
        "description": "Spec of the pods (core/v1 PodSpec); the operator reads the whole of it.",
        "properties": {
            "terminationGracePeriodSeconds": {
                "description": "Seconds a pod is given between SIGTERM and SIGKILL, a day at most.",
                "minimum": 0,
                "maximum": MAX_GRACE_SECONDS,
                "x-kubernetes-preserve-unknown-fields": True,
            }
        },
        "x-kubernetes-preserve-unknown-fields": True,
    }
}
"""What the server itself checks of a pod template."""

COLUMNS: list[dict[str, Any]] = [
    {
        "name": "State",
        "type": "string",
        "jsonPath": ".status.phase",
        "description": "The job's state in one word.",
    },
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": ".status.display.reason",
        "description": "Why it is not training, or has failed, in one word.",
    },
    {
        "name": "Workers",
        "type": "string",
        "jsonPath": ".status.display.workers",
        "description": "Ready of wanted pods.",
    },
    {
        "name": "Progress",
        "type": "string",
        "jsonPath": ".status.display.progress",
        "description": "How much of the training is done.",
    },
    {
        "name": "Energy",
        "type": "string",
        "jsonPath": ".status.display.energy",
        "description": "Energy used by all its pods so far; nothing where nothing is known.",
    },
    {
        "name": "Budget",
        "type": "string",
        "jsonPath": ".status.display.budget",
        "description": "How much of its budget is used, in percent.",
    },
    {
        "name": "CO2e",
        "type": "string",
        "jsonPath": ".status.display.emissions",
        "description": "Emissions of its energy and the embodied share of its GPUs; nothing where nothing is known.",
    },
    {
        "name": "Cap",
        "type": "string",
        "jsonPath": ".status.display.cap",
        "description": "Power cap of each GPU, and on how many of them it is in force where not on all.",
        "priority": 1,
    },
    {
        "name": "Attempt",
        "type": "integer",
        "jsonPath": ".status.attemptCount",
        "description": "Attempts started so far.",
        "priority": 1,
    },
    {
        "name": "Draw",
        "type": "string",
        "jsonPath": ".status.display.draw",
        "description": "Power its pods draw.",
        "priority": 1,
    },
    {
        "name": "Intensity",
        "type": "string",
        "jsonPath": ".status.emissions.intensity",
        "description": "Emissions of a kilowatt-hour now.",
        "priority": 1,
    },
    {
        "name": "Source",
        "type": "string",
        "jsonPath": ".status.emissions.source",
        "description": "Where that intensity comes from.",
        "priority": 1,
    },
    {
        "name": "Accuracy",
        "type": "string",
        "jsonPath": ".status.progress.metrics.accuracy",
        "description": "Accuracy as the program last reported it.",
        "priority": 1,
    },
    {
        "name": "Model",
        "type": "string",
        "jsonPath": ".status.progress.modelPath",
        "description": "Where the trained model was saved.",
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


NODE_POWER_COLUMNS: list[dict[str, Any]] = [
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.gpuCount", "description": "GPUs of the node."},
    {
        "name": "Draw",
        "type": "string",
        "jsonPath": ".status.display.draw",
        "description": "Power that they draw together.",
    },
    {
        "name": "Idle",
        "type": "string",
        "jsonPath": ".status.display.idle",
        "description": "Energy of GPUs that were allocated to no pod and did nothing.",
    },
    {
        "name": "Unattributed",
        "type": "string",
        "jsonPath": ".status.display.unattributed",
        "description": "Energy of GPUs that worked although they were allocated to no pod.",
    },
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="DevicesReadable")].status',
        "description": "Whether its GPUs can be read.",
    },
    {
        "name": "Model",
        "type": "string",
        "jsonPath": ".status.gpus[0].model",
        "description": "Product name of the first GPU.",
        "priority": 1,
    },
    {
        "name": "Observed",
        "type": "date",
        "jsonPath": ".status.observedAt",
        "description": "How long ago the agent reported.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def _mark(out: Schema, path: str) -> None:
    roles = tuple(t.value for t in ReplicaType)
    generic = ".".join("*" if p in roles else p for p in path.split("."))
    if generic in PRESERVED:
        out["x-kubernetes-preserve-unknown-fields"] = True
    if generic == "spec.tfReplicaSpecs.*.template":
        out["properties"] = TEMPLATE
    if path in RULES:
        out["x-kubernetes-validations"] = RULES[path]


def _sections(kind: str, **models: type[BaseModel]) -> Schema:
    sections: Schema = {}
    for name, model in models.items():
        raw = model.model_json_schema(by_alias=True, mode="validation")
        sections[name] = structural(raw, raw.get("$defs", {}), name, _mark)
    return {
        "apiVersion": {"type": "string", "description": f"Always {names.API_VERSION}."},
        "kind": {"type": "string", "description": f"Always {kind}."},
        # The server owns metadata and rejects even a description of it.
        "metadata": {"type": "object"},
        **sections,
    }


def build_schema() -> Schema:
    """Return the openAPIV3Schema of GreenTrainingJob."""
    properties = _sections(names.KIND, spec=GreenTrainingJobSpec, status=GreenTrainingJobStatus)
    properties["spec"]["description"] = "What to train and under which rules."
    properties["status"]["description"] = "What the operator observed; written by it alone."
    _drop_defaults(properties["status"])
    return {
        "description": "A distributed TensorFlow training job that stays inside an energy and carbon budget.",
        "type": "object",
        "required": ["spec"],
        "properties": properties,
        "x-kubernetes-validations": RULES[""],
    }


def build_node_power_schema() -> Schema:
    """Return the openAPIV3Schema of NodePower."""
    properties = _sections(names.NODE_POWER_KIND, spec=NodePowerSpec, status=NodePowerStatus)
    properties["spec"]["description"] = "What the operator asks of the node's agent; written by the operator."
    properties["status"]["description"] = "What the node's agent observed; written by it alone."
    _drop_defaults(properties["spec"])
    _drop_defaults(properties["status"])
    return {
        "description": "Power and energy of one node's GPUs, and of the pods that used them.",
        "type": "object",
        "properties": properties,
    }


def _drop_defaults(schema: Schema) -> None:
    schema.pop("default", None)
    for child in schema.get("properties", {}).values():
        _drop_defaults(child)
    for key in ("items", "additionalProperties"):
        if key in schema:
            _drop_defaults(schema[key])


def schema_hash(schema: Schema) -> str:
    """Hash of a schema with its CEL rules, independent of key order."""
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a CRD contains for a kind beside its schema."""

    scope: Literal["Namespaced", "Cluster"]
    kind: str
    plural: str
    singular: str
    short: str
    columns: list[dict[str, Any]]
    subresources: Schema = field(default_factory=dict)
    """Beside `status`, which every kind has."""
    categories: tuple[str, ...] = ()


_JOB = _Kind(
    scope="Namespaced",
    kind=names.KIND,
    plural=names.PLURAL,
    singular=names.SINGULAR,
    short=names.SHORT_NAME,
    columns=COLUMNS,
    subresources={
        "scale": {
            "specReplicasPath": ".spec.tfReplicaSpecs.Worker.replicas",
            "statusReplicasPath": ".status.replicaStatuses.Worker.active",
            "labelSelectorPath": ".status.labelSelector",
        }
    },
    categories=("all",),
)

_NODE_POWER = _Kind(
    scope="Cluster",
    kind=names.NODE_POWER_KIND,
    plural=names.NODE_POWER_PLURAL,
    singular=names.NODE_POWER_SINGULAR,
    short=names.NODE_POWER_SHORT_NAME,
    columns=NODE_POWER_COLUMNS,
)


def _build_definition(kind: _Kind, schema: Schema) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{names.GROUP}",
            "annotations": {names.ANNOTATION_SCHEMA_HASH: schema_hash(schema)},
        },
        "spec": {
            "group": names.GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                **({"categories": list(kind.categories)} if kind.categories else {}),
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}, **kind.subresources},
                    "additionalPrinterColumns": kind.columns,
                }
            ],
        },
    }


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of GreenTrainingJob as one plain mapping."""
    return _build_definition(_JOB, build_schema())


def build_node_power_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of NodePower as one plain mapping."""
    return _build_definition(_NODE_POWER, build_node_power_schema())


def wanted_hashes() -> dict[str, str]:
    """The schema hash each CRD must carry, by the CRD's name."""
    return {
        f"{names.PLURAL}.{names.GROUP}": schema_hash(build_schema()),
        f"{names.NODE_POWER_PLURAL}.{names.GROUP}": schema_hash(build_node_power_schema()),
    }


def render(crd: dict[str, Any]) -> str:
    """Return the committed YAML of a definition; its order is that of the models."""
    # Imported here: only the generator needs YAML, the package itself needs only pydantic.
    import yaml

    class _Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    # Through JSON, so that enums and tuples become plain values.
    plain = json.loads(json.dumps(crd))
    return yaml.dump(plain, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)


FOLDERS = (Path("crds"), Path("charts/greentrain/files/crds"))


def render_all() -> dict[Path, str]:
    """Every generated file by its path below the project's folder."""
    texts = {
        f"{names.GROUP}_{crd['spec']['names']['plural']}.yaml": render(crd)
        for crd in (build_crd(), build_node_power_crd())
    }
    return {folder / name: text for folder in FOLDERS for name, text in texts.items()}


def main(argv: list[str] | None = None) -> int:
    """Write the generated files, or report which of them differ."""
    parser = argparse.ArgumentParser(prog="python -m greentrain.api.crd", description=main.__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    files = {args.root / path: text for path, text in render_all().items()}
    if args.check:
        stale = [p for p, text in files.items() if not p.exists() or p.read_text() != text]
        for path in stale:
            sys.stderr.write(f"{path} differs from the models: run make crds\n")
        return 1 if stale else 0
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
