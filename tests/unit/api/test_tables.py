"""What is stored as tables is read as it was, of the same types; a table in another one too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import pytest
from annotated_types import MaxLen
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from greentrain.api.budgets import PodAllowance, PodCharge
from greentrain.api.status import KEPT_PODS, GreenTrainingJobStatus, PodEnergyStatus
from greentrain.api.tables import LONGEST_LIST, TableError, tabulate, untabulate

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


def table(rows: int, columns: int, same: int) -> dict[str, Any]:
    return {
        "same": {f"s{i}": 0 for i in range(same)},
        "columns": [f"c{i}" for i in range(columns)],
        "rows": [[0] * columns] * rows,
    }


def within(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """A table with one of these in each row."""
    return {"same": {}, "columns": ["gpuTime"], "rows": [[table] for table in tables]}


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([table(8193, 1, 0)], "a table in it has 8193 rows of 1 fields; 8192 of 64 are the most"),
        ([table(8192, 0, 64), table(1, 0, 0)], "the tables in it have more than 524288 cells together"),
        ([table(8192, 32, 32), table(1, 1, 0)], "the tables in it have more than 524288 cells together"),
        ([table(8192, 0, 0)] * 65, "the tables in it have more than 524288 cells together"),
        ([within([table(8192, 0, 32)] * 2)], "the tables in it have more than 524288 cells together"),
    ],
    ids=["rows", "shared fields of empty rows", "columns", "rows without fields", "in a table"],
)
def test_tables_larger_than_any_that_is_written_are_refused(tables: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(TableError, match=why):
        untabulate({f"t{i}": table for i, table in enumerate(tables)})


def test_as_much_as_may_be_read_is_read() -> None:
    assert len(untabulate({"pods": table(8192, 0, 64)})["pods"]) == 8192


def find_models(kind: Any) -> set[type[BaseModel]]:
    """The models in an annotation."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}
    return {model for part in get_args(kind) for model in find_models(part)}


def find_longest(model: type[BaseModel]) -> int:
    """The most entries that any list in a model, or in a model within it, may have."""
    longest, seen, new = 0, set[type[BaseModel]](), {model}
    while new:
        seen |= new
        fields = [field for model in new for field in model.model_fields.values()]
        lists = [field for field in fields if get_origin(field.annotation) is tuple]
        longest = max([longest, *(m.max_length for f in lists for m in f.metadata if isinstance(m, MaxLen))])
        new = {model for field in fields for model in find_models(field.annotation)} - seen
    return longest


def test_every_list_that_a_model_allows_may_be_read() -> None:
    longest = find_longest(GreenTrainingJobStatus)
    assert longest == KEPT_PODS
    pods = [PodEnergyStatus(uid=f"uid-{i}", node="n", gpu_joules=i) for i in range(longest)]
    charges = [
        PodCharge(uid=f"uid-{i}", limit_milliwatts=i, since="2026-01-01T00:00:00Z") for i in range(longest)
    ]
    allowances = [PodAllowance(uid=f"uid-{i}", joules=i) for i in range(longest)]
    lists: dict[str, Sequence[BaseModel]] = {"pods": pods, "charges": charges, "allowances": allowances}
    whole = {key: [m.model_dump(mode="json", by_alias=True) for m in models] for key, models in lists.items()}
    assert spell(store(whole)) == spell(whole)
