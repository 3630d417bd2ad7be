"""What the API server asks of a job's status: the CRD's structural schema, compiled once, because lives ask after every write."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from greentrain.api.bounds import MOST_INTEGER
from greentrain.api.crd import build_schema
from greentrain.api.stored import dump_job_status
from greentrain.core.seen.snapshot import parse_status

Json = dict[str, Any]
Check = Callable[[Any, str], Iterator[str]]

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
KNOWN = frozenset(
    {
        *(
            "additionalProperties",
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
        ),
        *("minItems", "minLength", "minimum", "pattern", "properties", "required", "type"),
        *("x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-preserve-unknown-fields"),
        "x-kubernetes-validations",
    }
)
"""CEL rules are the API server's alone: a status has none."""


@functools.cache
def read_status_check() -> Check:
    """What is wrong with a status by the schema that is generated."""
    return compile_schema(build_schema()["properties"]["status"])


def compile_schema(schema: Json) -> Check:
    """A check of one node of a structural schema, and of all below it.

    Raises:
        ValueError: the schema says something that is not checked here.
    """
    if unknown := sorted(set(schema) - KNOWN):
        raise ValueError(
            f"the schema has {unknown}, which the worlds do not check: add it to tests.support.world.schema"
        )
    types = TYPES[schema["type"]]
    enum, pattern = schema.get("enum"), re.compile(schema["pattern"]) if "pattern" in schema else None
    least, most = schema.get("minimum"), schema.get("maximum")
    shortest: int = schema.get("minLength") or schema.get("minItems") or 0
    longest: int | None = schema.get("maxLength", schema.get("maxItems"))
    fields = {name: compile_schema(part) for name, part in schema.get("properties", {}).items()}
    required = schema.get("required", ())
    items = compile_schema(schema["items"]) if "items" in schema else None
    others = compile_schema(schema["additionalProperties"]) if "additionalProperties" in schema else None

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            yield f"{path}: {value!r} is no {schema['type']}"
            return
        if enum is not None and value not in enum:
            yield f"{path}: {value!r} is none of {enum}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = -MOST_INTEGER if least is None else least, MOST_INTEGER if most is None else most
            if not low <= value <= high:
                yield f"{path}: {value} is not within {low} and {high}"
        elif isinstance(value, str | list):
            if len(value) < shortest or (longest is not None and len(value) > longest):
                yield f"{path}: has {len(value)} of {shortest} to {longest}"
            if pattern is not None and not pattern.search(value):
                yield f"{path}: {value!r} does not match {pattern.pattern}"
        if isinstance(value, list) and items is not None:
            for i, item in enumerate(value):
                yield from items(item, f"{path}[{i}]")
        elif isinstance(value, dict):
            for name in required:
                if name not in value:
                    yield f"{path}.{name}: is not there"
            for name, part in value.items():
                below = fields.get(name, others)
                if below is not None:
                    yield from below(part, f"{path}.{name}")

    return check


def find_problems(status: Json, *, whole: bool = True) -> list[str]:
    """Why no server would store a status, or why it is not read again, the `whole` as it was written; empty where all is well."""
    found = list(read_status_check()(status, "status"))
    read, unreadable = parse_status(status)
    if unreadable:
        found.append(f"it is not read again: {unreadable}")
    elif whole and dump_job_status(read) != status:
        found.append("it is read as another one than was written")
    return found
