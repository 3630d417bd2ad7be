"""Finds fields in a pod template that no Kubernetes API this operator knows would read.

The CRD keeps unknown fields of a template, so the server creates a job with a misspelt `resuorces:`, and would refuse
only its pods. This says it of the job, by the full path, before a pod is made. The client's generated models know every
field of PodTemplateSpec; walking a template along them costs no schema file of our own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes.aio.client import models

from greentrain.core.snapshot import TemplateProblem

_LIST = re.compile(r"^[Ll]ist\[(.+)\]$")
_MAP = re.compile(r"^[Dd]ict\[\s*str,\s*(.+)\]$")


def find_template_problems(spec: Mapping[str, Any]) -> tuple[TemplateProblem, ...]:
    """Unknown fields in the templates and the checkpoint volume of a job's raw spec, by full path."""
    problems: list[TemplateProblem] = []
    roles = spec.get("tfReplicaSpecs")
    for type_, role in roles.items() if isinstance(roles, Mapping) else ():
        if isinstance(role, Mapping) and isinstance(role.get("template"), Mapping):
            problems += _walk(role["template"], "V1PodTemplateSpec", f"spec.tfReplicaSpecs.{type_}.template")
    checkpoint = spec.get("checkpoint")
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("volume"), Mapping):
        problems += _walk(checkpoint["volume"], "V1Volume", "spec.checkpoint.volume")
    return tuple(problems)


def _walk(value: Any, type_name: str, path: str) -> Iterator[TemplateProblem]:
    if value is None:
        return  # a field that is not set
    if found := _LIST.match(type_name):
        if not isinstance(value, list):
            yield TemplateProblem(path, f"{_shown(value)} is not a list; write one")
            return
        for i, item in enumerate(value):
            if item is None:
                yield TemplateProblem(f"{path}[{i}]", "null is not valid in a list; remove it")
            yield from _walk(item, found[1], f"{path}[{i}]")
        return
    if found := _MAP.match(type_name):
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from _walk(item, found[1], f"{path}.{key}")
        else:
            yield TemplateProblem(path, f"{_shown(value)} is not a map; write one")
        return
    model = getattr(models, type_name, None)
    if model is None or not hasattr(model, "openapi_types"):
        return  # a plain value: the server checks it
    if not isinstance(value, Mapping):
        yield TemplateProblem(path, f"{_shown(value)} is not a map of fields; write one")
        return
    by_json = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, item in value.items():
        if key not in by_json:
            near = difflib.get_close_matches(str(key), by_json, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; remove it"
            yield TemplateProblem(f"{path}.{key}", f"unknown field{hint}")
        else:
            yield from _walk(item, model.openapi_types[by_json[key]], f"{path}.{key}")


def _shown(value: object) -> str:
    """What stands there, by its kind: the values of a template are its owner's, and may be secrets."""
    kinds = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a map",
    }
    return kinds.get(type(value), "this")
