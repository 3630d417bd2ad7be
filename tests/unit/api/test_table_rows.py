"""A long list of objects is stored as a table, and read as it was: whatever JSON is in it, to the type of each value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greentrain.api.tables import LONGEST_LIST, tabulate, untabulate

MANY = LONGEST_LIST + 1


def canonical(value: Any) -> str:
    """JSON, in which 0, false and 0.0 differ."""
    return json.dumps(value, sort_keys=True)


def assert_kept(value: Any) -> None:
    whole = {"list": value}
    stored = json.loads(json.dumps(tabulate(whole)))
    assert canonical(untabulate(stored)) == canonical(whole)


LONG, REFERENCE = "a text that is long enough", "~0"
NESTED = [{"allocatedModel": LONG, "n": i} for i in range(MANY)]


@pytest.mark.parametrize(
    "rows",
    [
        [{"v": v} for v in (0, False) * MANY],
        [{"v": v} for v in (1, True) * MANY],
        [{"v": v} for v in (1, 1.0) * MANY],
        [{"v": False}] + [{"v": 0}] * MANY,
        [{"v": ""}] * MANY,
        [{"v": v} for v in ("", "a") * MANY],
        [{"v": REFERENCE}] * MANY,
        [{"v": v} for v in ("~", "~~", "~0", "~~0", "~x", f"~{LONG}") * MANY],
        [{"v": LONG, "w": i} for i in range(MANY)],
        [{"v": v} for v in (LONG, f"~{LONG}", LONG.upper()) * MANY],
        [{str(i): i} for i in range(MANY)],
        [{"a": i} if i % 2 else {} for i in range(MANY)],
        [{}] * MANY,
        [{"v": i} for i in range(LONGEST_LIST)],
        [{"v": i} for i in range(MANY)],
        [{"v": i} for i in range(LONGEST_LIST)] + [[]],
        [{"v": [LONG, "~1", i]} for i in range(MANY)],
        [{"v": {"w": LONG, "x": "~1"}} for i in range(MANY)],
        [{"v": NESTED, "w": i} for i in range(MANY)],
        [{"v": [{"v": NESTED}], "w": "~"} for i in range(MANY)],
        [[{"v": LONG}] * MANY] * MANY,
    ],
    ids=[
        "0 and false",
        "1 and true",
        "1 and 1.0",
        "false first",
        "empty texts",
        "an empty text and another",
        "a text like a reference in all rows",
        "texts like references",
        "a long text in all rows",
        "long texts",
        "no field in common",
        "empty rows between",
        "empty rows",
        "one less than a table",
        "the shortest table",
        "something else among objects",
        "lists in rows",
        "objects in rows",
        "tables in rows",
        "tables in tables in rows",
        "lists of tables",
    ],
)
def test_rows_are_read_as_they_were(rows: list[Any]) -> None:
    assert_kept(rows)


def test_a_field_that_is_null_is_a_field_that_is_not_there() -> None:
    """Nothing that is stored has one: `dump_status` leaves them out."""
    rows = [{"a": i, "b": None} for i in range(MANY)]
    assert untabulate(tabulate({"list": rows})) == {"list": [{"a": i} for i in range(MANY)]}
    short = rows[:LONGEST_LIST]
    assert untabulate(tabulate({"list": short})) == {"list": short}
