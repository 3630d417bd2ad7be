"""Converts JSON Schema as pydantic writes it to the structural schemas that a CRD may have.

A structural schema has no `$ref`, no `const` and no unions with null. The conversion knows the constructs the models use and
raises on any other, so that a new one cannot become a silently weaker schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

Mark = Callable[[Schema, str], None]
"""Adds to the schema at a path what no model can express: rules, and which unknown fields are kept."""

_COPIED = frozenset(
    {
        "description",
        "enum",
        "format",
        "items",
        "maximum",
        "minimum",
        "maxItems",
        "maxLength",
        "minItems",
        "minLength",
        "pattern",
        "type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }
)
_DROPPED = frozenset({"title"})


class UnknownConstructError(Exception):
    """A model uses a JSON Schema construct for which the generator has no structural form."""

    def __init__(self, path: str, construct: str) -> None:
        super().__init__(
            f"{path or '.'}: {construct} has no structural form here; add it to greentrain.api.structural"
        )


def _leave(schema: Schema, path: str) -> None:
    """Add nothing."""


def structural(schema: Schema, defs: dict[str, Schema], path: str = "", mark: Mark = _leave) -> Schema:
    """Convert one JSON Schema node to a structural one; `mark` adds what only a CRD can express for a path.

    Raises:
        UnknownConstructError: a construct that is new here.
    """
    node = dict(schema)
    if "$ref" in node:
        target = defs[node.pop("$ref").removeprefix("#/$defs/")]
        # The description at the place of use is more specific than the type's.
        return structural({**target, **node}, defs, path, mark)
    if "allOf" in node and len(node["allOf"]) == 1:
        only = node.pop("allOf")[0]
        return structural({**only, **node}, defs, path, mark)
    if "anyOf" in node:
        branches = [b for b in node.pop("anyOf") if b != {"type": "null"}]
        if len(branches) != 1:
            raise UnknownConstructError(path, "a union of several types")
        if node.get("default", 0) is None:
            del node["default"]
        return structural({**branches[0], **node}, defs, path, mark)
    node.pop("$defs", None)
    out: Schema = {}
    properties = node.pop("properties", None)
    additional = node.pop("additionalProperties", None)
    required = node.pop("required", None)
    default = node.pop("default", None)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "prefixItems" in node:
        raise UnknownConstructError(path, "prefixItems")
    for key, value in node.items():
        if key in _DROPPED:
            continue
        if key not in _COPIED:
            raise UnknownConstructError(path, key)
        out[key] = structural(value, defs, f"{path}[]", mark) if key == "items" else value
    if properties is not None:
        out["properties"] = {
            k: structural(v, defs, f"{path}.{k}".lstrip("."), mark) for k, v in properties.items()
        }
        if required:
            out["required"] = sorted(required)
    elif isinstance(additional, dict):
        out["additionalProperties"] = structural(additional, defs, f"{path}.*", mark)
    elif additional is True:
        out["x-kubernetes-preserve-unknown-fields"] = True
    if _is_plain(default):
        out["default"] = default
    mark(out, path)
    return out


def _is_plain(default: object) -> bool:
    # An empty string means the same as its absence, and object defaults would appear in applied manifests.
    return default not in (None, "") and isinstance(default, bool | int | str)
