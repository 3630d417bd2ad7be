"""Values that fit their schema, whatever they were computed from.

The API server rejects a status with one number beyond its field's range as a whole, and with it the record of a stop. Numbers
that a program reports take part in computations, so a result may be beyond any range. It is set to the nearest value that
the field can have; a text is cut.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any, TypeVar

import annotated_types
from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

MOST_INTEGER = 2**63 - 1
"""The range of an integer in the API server's JSON (int64, https://kubernetes.io/docs/reference/using-api/api-concepts/)."""


@cache
def _read_ranges(model: type[BaseModel]) -> dict[str, tuple[int, int, int | None]]:
    """By field: the least and the most an integer may be, and the longest a text may be in characters."""
    ranges = {}
    for name, field in model.model_fields.items():
        least, most, longest = -MOST_INTEGER - 1, MOST_INTEGER, None
        for bound in field.metadata:
            if isinstance(bound, annotated_types.Ge):
                least = int(bound.ge)  # type: ignore[call-overload]
            elif isinstance(bound, annotated_types.Le):
                most = int(bound.le)  # type: ignore[call-overload]
            elif isinstance(bound, annotated_types.MaxLen):
                longest = bound.max_length
        ranges[name] = (least, most, longest)
    return ranges


def fit(model: M) -> M:
    """The same model with every integer inside its field's range and every text no longer than it may be.

    Lists are not shortened: their entries are parts of a sum. Returns the model itself where everything fits.
    """
    changed, values = {}, vars(model)
    for name, (least, most, longest) in _read_ranges(type(model)).items():
        value = values[name]
        kind = type(value)
        # Nearly all of a large status: it has three thousand entries of a dozen numbers and texts each.
        if kind is int and least <= value <= most:
            continue
        if kind is str and (longest is None or len(value) <= longest):
            continue
        found = _fit(value, least, most, longest)
        if found is not value:
            changed[name] = found
    return model.model_copy(update=changed) if changed else model


def _fit(value: Any, least: int, most: int, longest: int | None) -> Any:
    if value is None or isinstance(value, bool | Enum):
        return value
    if isinstance(value, int):
        return value if least <= value <= most else min(max(value, least), most)
    if isinstance(value, str):
        return value if longest is None or len(value) <= longest else f"{value[: longest - 1]}…"
    if isinstance(value, BaseModel):
        return fit(value)
    if isinstance(value, tuple):
        items = tuple(_fit(item, least, most, None) for item in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        entries = {key: _fit(item, least, most, None) for key, item in value.items()}
        return value if all(entries[key] is item for key, item in value.items()) else entries
    return value
