"""The base of every part of our objects: a model that knows its fields, and one whose working memory is stored apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from greentrain.quantities import parse_time


class Strict(BaseModel):
    """A part of an object that has the fields named here and no others, spelled as in the cluster (camelCase)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, use_enum_values=False
    )


def drop_nulls(node: Any) -> Any:
    """A copy without the fields that are null, at any depth: to Kubernetes an explicit null is an unset field.

    A null in a list stays; there it is a wrong value.
    """
    root = [node]
    left: list[tuple[Any, Any]] = [(root, 0)]  # a list, not recursion: the sender chooses the depth
    while left:
        parent, key = left.pop()
        value = parent[key]
        if isinstance(value, Mapping):
            parent[key] = {k: v for k, v in value.items() if v is not None}
            left += ((parent[key], k) for k in parent[key])
        elif isinstance(value, list):
            parent[key] = list(value)
            left += ((parent[key], i) for i in range(len(value)))
    return root[0]


FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


def _is_time(value: str) -> str:
    if parse_time(value) is None:
        raise ValueError("write a time with its offset, such as 2026-01-31T18:00:00Z")
    return value


Time = Annotated[str, AfterValidator(_is_time)]
"""RFC 3339. The API server accepts what no `datetime` can represent, such as the year 0; a ledger with that cannot be read."""


class StatusModel(Strict):
    """A part of a status; what belongs to the ledger is stored apart (`greentrain.api.stored`) and in no schema."""

    # A newer operator may have written more fields; an older one ignores those it does not know.
    model_config = ConfigDict(extra="ignore")

    LEDGER: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that are the operator's own working memory."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema without those."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name in cls.LEDGER:
            schema.get("properties", {}).pop(cls.model_fields[name].alias or name, None)
        return schema


def or_nothing(value: str, parse: Callable[[str], int]) -> str:
    """A quantity in a stored status; one that was damaged by hand counts as none, until the spec is read again."""
    with contextlib.suppress(ValueError):
        parse(value)
        return value
    return ""
