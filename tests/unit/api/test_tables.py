"""What is stored as tables is read as it was, of the same types; a table in another one too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.tables import LONGEST_LIST, tabulate, untabulate

LONG = "a text that is worth a reference"

MORE = LONGEST_LIST + 1
"""The shortest list that is a table."""


def store(whole: dict[str, Any]) -> dict[str, Any]:
    """As it is read from its stored text."""
    found: dict[str, Any] = untabulate(json.loads(json.dumps(tabulate(whole))))
    return found


def spell(node: Any) -> str:
    """Its JSON, in which False is not 0; a field that is null is one that is not there."""

    def without_null(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: without_null(value) for key, value in node.items() if value is not None}
        return [without_null(value) for value in node] if isinstance(node, list) else node

    return json.dumps(without_null(node), sort_keys=True)


@pytest.mark.parametrize(
    "times",
    [
        [{"model": LONG, "seconds": i} for i in range(MORE)],
        [{"model": "~0", "seconds": i} for i in range(MORE)],
        [{"model": "~", "seconds": i} for i in range(MORE)],
        [{"model": f"{LONG} {i // 2}", "allocatedSeconds": i} for i in range(MORE)],
        [{"model": "~0" if i else LONG} for i in range(MORE)],
        [{"final": i % 2 == 0} if i % 3 else {"final": i % 2} for i in range(MORE)],
        [{"final": False if i else 0} for i in range(MORE)],
        [{} if i else {"priced-until": LONG} for i in range(MORE)],
        [{"shares": [{"source": LONG, "~": "~~"}] * MORE}] * MORE,
    ],
    ids=[
        "one text in all rows",
        "like a reference in all rows",
        "the mark alone",
        "long names of fields",
        "like a reference in most rows",
        "numbers and booleans",
        "false is not 0",
        "a field of one row",
        "a third table",
    ],
)
def test_a_table_in_a_table_is_read_as_it_was(times: list[Any]) -> None:
    whole = {"pods": [{"uid": f"uid-{i}", "node": LONG, "gpuTime": times} for i in range(20)]}
    assert spell(store(whole)) == spell(whole)


PLAIN = st.sampled_from([0, False, 1, True, None, "", "~", "~0", "~~1", "short", LONG, f"~{LONG}"])

NAMES = st.sampled_from(["a", "~0", "aLongerName", "same", "rows"])


def repeat(pool: list[Any], size: int, stride: int) -> list[Any]:
    return [pool[i // stride % len(pool)] for i in range(size)]


def lists_of(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Lists around the longest that is no table, with few different entries."""
    sizes = st.sampled_from([0, 1, LONGEST_LIST, MORE])
    return st.builds(repeat, st.lists(entries, min_size=1, max_size=3), sizes, st.integers(1, 9))


def objects_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=3)


INNER = lists_of(objects_of(PLAIN | lists_of(PLAIN)))
OUTER = lists_of(objects_of(PLAIN | INNER | objects_of(PLAIN | INNER)) | PLAIN)


@given(objects_of(OUTER | objects_of(OUTER)))
def test_whatever_is_stored_is_read_as_it_was(whole: dict[str, Any]) -> None:
    assert spell(store(whole)) == spell(whole)


def test_a_text_has_a_place_among_the_shared_ones_where_rows_refer_to_it_alone() -> None:
    times = [{"model": LONG, "allocatedSeconds": i} for i in range(MORE)]
    assert "strings" not in tabulate({"pods": [{"gpuTime": times}] * MORE})
