"""Finds fields in a pod template that no Kubernetes API this operator knows would read.

The CRD keeps unknown fields of a template, so the server creates a job with a misspelt `resuorces:`, and would refuse only its
pods. Here the job is rejected, by the full path, before a pod is created. The client's generated models have every field of
PodTemplateSpec, so no schema file of our own is needed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from kubernetes.aio.client import models

from greentrain.core.limits import MAX_WORD, SUGGESTIONS, shorten
from greentrain.core.seen.snapshot import TemplateProblem

_LIST = re.compile(r"^[Ll]ist\[(.+)\]$")
_MAP = re.compile(r"^[Dd]ict\[\s*str,\s*(.+)\]$")


def find_template_problems(spec: Mapping[str, Any]) -> tuple[TemplateProblem, ...]:
    """Unknown fields in the templates and the checkpoint volume of a job's raw spec, by full path.

    Of many the first are named, and how many more there are.
    """
    found = _find(spec)
    problems = list(islice(found, SUGGESTIONS))
    more = sum(1 for _ in found)
    if more:
        problems.append(TemplateProblem("spec", f"and {more} more problems in templates"))
    return tuple(problems)


def _find(spec: Mapping[str, Any]) -> Iterator[TemplateProblem]:
    walk = _Walk()
    roles = spec.get("tfReplicaSpecs")
    for type_, role in roles.items() if isinstance(roles, Mapping) else ():
        if isinstance(role, Mapping) and isinstance(role.get("template"), Mapping):
            yield from walk(
                role["template"], "V1PodTemplateSpec", f"spec.tfReplicaSpecs.{shorten(str(type_))}.template"
            )
    checkpoint = spec.get("checkpoint")
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("volume"), Mapping):
        yield from walk(checkpoint["volume"], "V1Volume", "spec.checkpoint.volume")


class _Walk:
    """One traversal of a spec."""

    def __init__(self) -> None:
        self._suggested = 0

    def _hint(self, key: str, known: Iterable[str]) -> str:
        self._suggested += 1
        near: list[str] = []
        if self._suggested <= SUGGESTIONS and len(key) <= MAX_WORD:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        return f"; did you mean {near[0]}?" if near else "; remove it"

    def __call__(self, value: Any, type_name: str, path: str) -> Iterator[TemplateProblem]:
        if value is None:
            return  # an unset field
        if found := _LIST.match(type_name):
            if not isinstance(value, list):
                yield TemplateProblem(path, f"{_shown(value)} is not a list; write one")
                return
            for i, item in enumerate(value):
                if item is None:
                    yield TemplateProblem(f"{path}[{i}]", "null is not valid in a list; remove it")
                yield from self(item, found[1], f"{path}[{i}]")
            return
        if found := _MAP.match(type_name):
            if isinstance(value, Mapping):
                for key, item in value.items():
                    yield from self(item, found[1], f"{path}.{shorten(str(key))}")
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
                hint = self._hint(str(key), by_json)
                yield TemplateProblem(f"{path}.{shorten(str(key))}", f"unknown field{hint}")
            else:
                yield from self(item, model.openapi_types[by_json[key]], f"{path}.{key}")


def _shown(value: object) -> str:
    """The kind of a value: the values of a template are its owner's, and may be secrets."""
    kinds = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a map",
    }
    return kinds.get(type(value), "this")
