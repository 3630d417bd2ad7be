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

MOST_ROWS = 1 << 13
MOST_FIELDS = 64
"""The most of a table that is read: more than any of the models' lists and fields."""

MOST_CELLS = MOST_ROWS * MOST_FIELDS
"""The most of all tables together, in rows times fields: a few bytes cannot become gigabytes, also not in many tables. The
longest lists that the models allow have a quarter of it."""

SAME, COLUMNS, ROWS, STRINGS = "same", "columns", "rows", "strings"
REFERENCE = "~"


class TableError(ValueError):
    """A table is damaged, or larger than any that is written."""


def tabulate(whole: Mapping[str, Any]) -> dict[str, Any]:
    """An object of JSON with each long list of objects in it as a table."""
    tables = {key: _tabulate(value) for key, value in whole.items()}
    counts = Counter(_find_texts(tables, in_rows=False))
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
        raise TableError(f"{STRINGS} in it is not a list of texts")
    reading = _Reading(shared)
    return {key: reading.untabulate(value) for key, value in whole.items() if key != STRINGS}


def _tabulate(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _tabulate(value) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    entries = [_tabulate(entry) for entry in node]
    # A list of long lists is not one of objects, although each of its entries is a table by now.
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


def _is_table(node: Mapping[str, Any]) -> bool:
    return node.keys() == {SAME, COLUMNS, ROWS}


def _is_same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)  # in Python, False equals 0


def _has_references(node: Mapping[str, Any], key: str, *, in_rows: bool) -> bool:
    """Whether texts in that field are read as cells: of a table the rows alone, not its columns or what all rows share."""
    return key == ROWS if _is_table(node) else in_rows


def _find_texts(node: Any, *, in_rows: bool) -> Iterator[str]:
    """Each text in the rows of tables, as often as it is there."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _find_texts(value, in_rows=_has_references(node, key, in_rows=in_rows))
    elif isinstance(node, list):
        for value in node:
            yield from _find_texts(value, in_rows=in_rows)
    elif in_rows and isinstance(node, str):
        yield node


def _refer(node: Any, numbers: Mapping[str, int], *, in_rows: bool) -> Any:
    """The same with a reference for each of these texts in the rows of tables."""
    if isinstance(node, dict):
        return {
            key: _refer(value, numbers, in_rows=_has_references(node, key, in_rows=in_rows))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_refer(value, numbers, in_rows=in_rows) for value in node]
    if not in_rows or not isinstance(node, str):
        return node
    if node in numbers:
        return f"{REFERENCE}{numbers[node]}"
    return f"{REFERENCE}{node}" if node.startswith(REFERENCE) else node


class _Reading:
    """Reads the tables of one object, and counts their cells."""

    def __init__(self, shared: Sequence[str]) -> None:
        self._shared = shared
        self._cells = 0

    def untabulate(self, node: Any, *, in_rows: bool = False) -> Any:
        if isinstance(node, list):
            return [self.untabulate(value, in_rows=in_rows) for value in node]
        if isinstance(node, str):
            return _resolve(node, self._shared) if in_rows else node
        if not isinstance(node, dict):
            return node
        if not _is_table(node):
            return {key: self.untabulate(value, in_rows=in_rows) for key, value in node.items()}
        same, columns, rows = node[SAME], node[COLUMNS], node[ROWS]
        is_whole = isinstance(same, dict) and all(isinstance(part, list) for part in (columns, rows))
        if not is_whole or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
            raise TableError("a table in it has rows of another length than its columns")
        if any(isinstance(value, dict | list) for value in same.values()):
            raise TableError("a table in it has more than plain values for all of its rows")
        self._count(len(rows), len(same) + len(columns))
        return [{**same, **self._read_row(columns, row)} for row in rows]

    def _count(self, rows: int, fields: int) -> None:
        if rows > MOST_ROWS or fields > MOST_FIELDS:
            raise TableError(
                f"a table in it has {rows} rows of {fields} fields; {MOST_ROWS} of {MOST_FIELDS} are the most that are read"
            )
        self._cells += rows * max(fields, 1)
        if self._cells > MOST_CELLS:
            raise TableError(
                f"the tables in it have more than {MOST_CELLS} cells together, which are the most that are read"
            )

    def _read_row(self, columns: Sequence[Any], row: Sequence[Any]) -> dict[str, Any]:
        found = zip(columns, row, strict=True)
        return {str(name): self.untabulate(value, in_rows=True) for name, value in found if value is not None}


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
