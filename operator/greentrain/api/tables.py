"""Long lists of objects in little space: a job of a thousand pods has to fit into a status.

A list of more than `LONGEST_LIST` objects is a table: each field's name is there once (`columns`), a value that all rows share
is there once (`same`), and a row has the rest, null for a field that its object lacks. A longer text that is in rows more than
once is kept in one list (`strings`), and `~7` refers to its eighth entry. A shorter list stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LONGEST_LIST = 16
"""Entries of a list that is stored as it is."""

SHORTEST_TEXT = 8
"""Shortest text, in characters, that is worth a reference."""

MOST_ROWS = 1 << 14
MOST_FIELDS = 64
"""The most of a table that is read: more than any of the models' lists and fields, so that a few bytes cannot become
gigabytes."""

SAME, COLUMNS, ROWS, STRINGS = "same", "columns", "rows", "strings"
REFERENCE = "~"


class TableError(ValueError):
    """A table is damaged, or larger than any that is written."""


def tabulate(whole: Mapping[str, Any]) -> dict[str, Any]:
    """An object of JSON with each long list of objects in it as a table."""
    tables = {key: _tabulate(value) for key, value in whole.items()}
    counts = Counter(text for rows in _find_rows(tables) for text in _find_texts(rows))
    shared = [text for text, count in counts.items() if count > 1 and len(text) >= SHORTEST_TEXT]
    numbers = {text: number for number, text in enumerate(shared)}
    tables = {key: _refer(value, numbers, in_rows=False) for key, value in tables.items()}
    return {**tables, STRINGS: shared} if shared else tables


def untabulate(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it was.

    Raises:
        TableError: a table is damaged, or larger than any that is written.
        RecursionError: it is deeper than any that is written.
    """
    shared = whole.get(STRINGS, [])
    if not isinstance(shared, list) or not all(isinstance(text, str) for text in shared):
        raise TableError(f"{STRINGS} in it is no list of texts")
    return {key: _untabulate(value, shared) for key, value in whole.items() if key != STRINGS}


def _tabulate(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _tabulate(value) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    entries = [_tabulate(entry) for entry in node]
    # A list of long lists is none of objects, although each of its entries is a table by now.
    if len(node) <= LONGEST_LIST or not all(isinstance(entry, dict) for entry in node):
        return entries
    names = sorted({name for entry in entries for name in entry})
    first = entries[0]
    same = {
        name: first[name]
        for name in names
        if not isinstance(first.get(name), dict | list | None)
        and all(_is_same(entry.get(name), first[name]) for entry in entries)
    }
    columns = [name for name in names if name not in same]
    return {SAME: same, COLUMNS: columns, ROWS: [[entry.get(name) for name in columns] for entry in entries]}


def _is_same(one: object, other: object) -> bool:
    """Whether two plain values are the same in JSON, where 0, 0.0 and false differ."""
    return one == other and type(one) is type(other)


def _is_table(node: Mapping[str, Any]) -> bool:
    return node.keys() == {SAME, COLUMNS, ROWS}


def _find_rows(node: Any) -> Iterator[list[Any]]:
    """The rows of each table that is not in another."""
    if isinstance(node, dict):
        if _is_table(node):
            yield node[ROWS]
        else:
            for value in node.values():
                yield from _find_rows(value)
    elif isinstance(node, list):
        for value in node:
            yield from _find_rows(value)


def _find_texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _find_texts(value)


def _refer(node: Any, numbers: Mapping[str, int], *, in_rows: bool) -> Any:
    """The same with a reference for each of these texts in the rows of tables."""
    if isinstance(node, dict):
        is_table = _is_table(node)
        return {
            key: _refer(value, numbers, in_rows=in_rows or (is_table and key == ROWS))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_refer(value, numbers, in_rows=in_rows) for value in node]
    if not in_rows or not isinstance(node, str):
        return node
    if node in numbers:
        return f"{REFERENCE}{numbers[node]}"
    return f"{REFERENCE}{node}" if node.startswith(REFERENCE) else node


def _untabulate(node: Any, shared: Sequence[str], *, in_rows: bool = False) -> Any:
    if isinstance(node, list):
        return [_untabulate(value, shared, in_rows=in_rows) for value in node]
    if isinstance(node, str):
        return _resolve(node, shared) if in_rows else node
    if not isinstance(node, dict):
        return node
    if not _is_table(node):
        return {key: _untabulate(value, shared, in_rows=in_rows) for key, value in node.items()}
    same, columns, rows = node[SAME], node[COLUMNS], node[ROWS]
    is_whole = isinstance(same, dict) and all(isinstance(part, list) for part in (columns, rows))
    if not is_whole or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise TableError("a table in it has rows of another length than its columns")
    if any(isinstance(value, dict | list) for value in same.values()):
        raise TableError("a table in it has more than plain values for all of its rows")
    if in_rows:
        # A table in a row of another has references everywhere.
        same = {name: _read_plain(value, shared) for name, value in same.items()}
        columns = [_read_plain(name, shared) for name in columns]
    fields = len(same) + len(columns)
    if len(rows) > MOST_ROWS or fields > MOST_FIELDS:
        raise TableError(
            f"a table in it has {len(rows)} rows of {fields} fields; {MOST_ROWS} of {MOST_FIELDS} are the most that are read"
        )
    return [{**same, **_read_row(columns, row, shared)} for row in rows]


def _read_row(columns: Sequence[Any], row: Sequence[Any], shared: Sequence[str]) -> dict[str, Any]:
    found = zip(columns, row, strict=True)
    return {str(name): _untabulate(value, shared, in_rows=True) for name, value in found if value is not None}


def _read_plain(value: Any, shared: Sequence[str]) -> Any:
    return _resolve(value, shared) if isinstance(value, str) else value


def _resolve(text: str, shared: Sequence[str]) -> str:
    """The text that a cell means: `~7` is the eighth shared text, `~~a` the text `~a`."""
    if not text.startswith(REFERENCE):
        return text
    rest = text.removeprefix(REFERENCE)
    if rest.startswith(REFERENCE):
        return rest
    # At most as many digits as a list in a status can have entries: int() takes its time for a million.
    if rest.isascii() and rest.isdecimal() and len(rest) <= 7 and int(rest) < len(shared):
        return shared[int(rest)]
    raise TableError(f"a row of a table in it has {text[:16]!r}, and there are {len(shared)} {STRINGS}")
