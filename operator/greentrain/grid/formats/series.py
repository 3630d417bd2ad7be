"""Reading a time series of carbon intensity from the bytes of a CSV or JSON file.

Writers of such a file read other tools' logs, not ours. So what is not certain is refused with the line, the value and what to
write instead, and nothing is guessed. A time without an offset from UTC is an hour off for half of the year. Rows out of
order are two files pasted together. An intensity of 0.4 in kilograms looks like a very clean grid.

docs/tasks/emissions.md has the format for those who write it.
"""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any, NoReturn, TypeVar

from greentrain.api.spec import MAX_ZONE_LENGTH, ZONE_PATTERN
from greentrain.grid.source import ZONE_FORM
from greentrain.quantities import (
    MOST_INTENSITY,
    Intensity,
    format_size,
    format_unix_time,
    in_whole_grams_per_kilowatt_hour,
    parse_intensity,
    to_intensity,
)

MAX_BYTES = 20_000_000
"""A year of quarter hours of 15 zones; a larger file is a mistake, and reading it would delay the operator."""

SINGLE_ROW_SECONDS = 3600.0
"""For how long a series of one row is valid: it has no step of its own."""

GAP_STEPS = 2
"""Rows further apart than so many median steps have a gap between them."""

SHORTEST_STEP_SECONDS = 1.0
"""Rows nearer to each other are a mistake: no grid is published so often."""

EARLIEST, LATEST = 946_684_800.0, 4_102_444_800.0
"""2000 and 2100: Unix times outside are in another unit."""

SHOWN = 10
"""Problems of one file that are named; the others are counted."""

COLUMNS = ("time", "intensity", "zone", "until", "issued")
REQUIRED = ("time", "intensity")

NUMBER_PATTERN = r"[+-]?\d{1,20}(\.\d{1,30})?([eE][+-]?\d{1,2})?"

TIME_PATTERN = r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(:\d{2}(\.\d+)?)?)([Zz]|[+-]\d{2}:\d{2})?"
TIME_FORM = "RFC 3339 such as 2026-01-31T18:00:00Z or 2026-01-31T19:00:00+01:00, or Unix seconds"

_T = TypeVar("_T")

ANY_ZONE = ""
"""The zone of a file without a zone column: whatever zone the file is configured for."""


class SeriesError(ValueError):
    """The file is not such a series; `problems` are what to correct, each with the file's name and the line."""

    def __init__(self, problems: Sequence[str]) -> None:
        """With at least one problem."""
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Period:
    """So many milligrams per kilowatt-hour from one Unix time up to another."""

    begin: float
    end: float
    milligrams: Intensity
    issued: float | None = None
    """The Unix time at which it was published; None where the file does not have it."""


@dataclass(frozen=True, slots=True)
class Series:
    """Periods in order and without overlaps."""

    periods: tuple[Period, ...]
    step: float
    """Seconds from one period's beginning to the next one's: the median."""

    def find(self, moment: float) -> Period | tuple[float, float]:
        """The period of a Unix time, or from when to when there is none around it."""
        at = bisect_right(self.periods, moment, key=lambda p: p.begin)
        before = self.periods[at - 1] if at else None
        if before is not None and moment < before.end:
            return before
        after = self.periods[at].begin if at < len(self.periods) else inf
        return (before.end if before is not None else -inf), after


@dataclass(frozen=True, slots=True)
class Parsed:
    """The series of each zone (`ANY_ZONE` where the file names none), and harmless oddities."""

    series: Mapping[str, Series]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    place: str
    zone: str
    begin: float
    until: float | None
    milligrams: Intensity
    issued: float | None = None


def parse(content: bytes, name: str) -> Parsed:
    """Read a file's content: JSON where its name ends in .json, else CSV.

    Raises:
        SeriesError: it is not in the documented format; all problems up to ten are named.
    """
    if len(content) > MAX_BYTES:
        _refuse(
            name, f"is larger than {format_size(MAX_BYTES)}: leave out zones and times that are not needed"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(name, f"is not UTF-8 at byte {error.start}: save it as UTF-8")
    warnings: list[str] = []
    entries = (
        _json_entries(text, name) if name.lower().endswith(".json") else _csv_entries(text, name, warnings)
    )
    rows, problems = _read_rows(entries)
    if not rows and not problems:
        problems = [f"{name} has no rows: write a header time,intensity and at least one row"]
    if not problems:
        rows, problems = _check_order(rows, warnings)
    if problems:
        rest = len(problems) - SHOWN
        raise SeriesError([*problems[:SHOWN], *([f"{name}: and {rest} problems more"] if rest > 0 else [])])
    by_zone: dict[str, list[_Row]] = {}
    for row in rows:
        by_zone.setdefault(row.zone, []).append(row)
    series = {zone: _build_series(of) for zone, of in by_zone.items()}
    return Parsed(series, tuple(warnings[:SHOWN]))


def parse_time(text: str) -> float:
    """Unix seconds of a time as users or programs write it.

    Raises:
        ValueError: it is not a time, or has no offset from UTC; the text is what would be right.
    """
    if re.fullmatch(r"\d{1,13}(\.\d+)?", text, re.ASCII):
        seconds = float(text)
        if not EARLIEST <= seconds < LATEST:
            raise ValueError("is no Unix time in seconds between 2000 and 2100; are these milliseconds?")
        return seconds
    match = re.fullmatch(TIME_PATTERN, text, re.ASCII)
    if match is None:
        raise ValueError(f"is no time: write {TIME_FORM}")
    if match[5] is None:
        raise ValueError(
            "has no offset from UTC, without which the moment is not known: add Z, or one such as +01:00"
        )
    try:
        moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{match[5].upper()}").timestamp()
    except ValueError as error:
        raise ValueError(f"is no time ({error}): write {TIME_FORM}") from error
    if not EARLIEST <= moment < LATEST:
        raise ValueError("is not between 2000 and 2100")
    return moment


@lru_cache(maxsize=8192)  # the same numbers are in a file again and again
def parse_grams(text: str) -> Intensity:
    """Milligrams per kilowatt-hour of `210.5` (grams) or `210.5gCO2e/kWh`.

    Raises:
        ValueError: it is not that, negative, or more than 5,000 g; the text is what would be right.
    """
    form = f"write grams of CO2e per kWh from 0 to {in_whole_grams_per_kilowatt_hour(MOST_INTENSITY)}, such as 210.5 or 210.5gCO2e/kWh"
    if text.endswith("gCO2e/kWh"):
        try:
            return parse_intensity(text)
        except ValueError:
            raise ValueError(f"is no intensity: {form}") from None
    if re.fullmatch(NUMBER_PATTERN, text, re.ASCII) is None:
        raise ValueError(f"is no number: {form}")
    milligrams = to_intensity(Decimal(text))
    if not 0 <= milligrams <= MOST_INTENSITY:
        raise ValueError(f"is no intensity: {form}")
    return Intensity(round(milligrams))


_Entry = tuple[str, Mapping[str, str]]
"""The row's place, and its cells as they are written."""


def _csv_entries(text: str, name: str, warnings: list[str]) -> Iterator[_Entry]:
    lines = ["" if line.lstrip().startswith("#") else line for line in text.splitlines()]
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            place = f"{name} line {reader.line_num}"
            if header is None:
                header = [c.strip() for c in cells]
                warnings.extend(_check_header(header, place))
                continue
            if len(cells) != len(header):
                _refuse(place, f"has {len(cells)} cells, the header {len(header)}: write one for each column")
            yield place, dict(zip(header, (c.strip() for c in cells), strict=True))
    except csv.Error as error:
        _refuse(f"{name} line {reader.line_num}", f"is no CSV: {error}")


def _check_header(header: Sequence[str], place: str) -> Iterator[str]:
    missing = [c for c in REQUIRED if c not in header]
    if missing and len(header) == 1 and re.search(r"[;\t|]", header[0]):
        _refuse(place, f"is '{_short(header[0])}': separate columns by commas")
    if missing:
        found = _short(", ".join(header))
        _refuse(
            place,
            f"has no column {' and no column '.join(missing)}: the header is '{found}', write time,intensity",
        )
    twice = {c for c in header if header.count(c) > 1}
    if twice:
        _refuse(place, f"has column {', '.join(sorted(twice))} twice: leave one out")
    unread = [c for c in header if c not in COLUMNS]
    if unread:
        yield f"{place}: columns that are not read: {_short(', '.join(unread))}"


def _json_entries(text: str, name: str) -> Iterator[_Entry]:
    try:
        # Numbers stay as they are written: 0.1 is no binary fraction.
        content = json.loads(
            text, parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=refuse_twice
        )
    except json.JSONDecodeError as error:
        _refuse(f"{name} line {error.lineno}", f"is not JSON: {error.msg} at column {error.colno}")
    except RepeatedKeyError as error:
        _refuse(name, str(error))
    except RecursionError:
        _refuse(name, "is nested too deeply: write a list of objects")
    if not isinstance(content, list):
        _refuse(name, 'is no list: write [{"time": "2026-01-31T18:00:00Z", "intensity": 210.5}]')
    for number, item in enumerate(content, start=1):
        yield f"{name} entry {number}", _as_cells(item, f"{name} entry {number}")


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice; a reader would use one of them without a warning."""


def refuse_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`.

    Raises:
        RepeatedKeyError: it has a key twice.
    """
    keys = [k for k, _ in pairs]
    twice = next((k for k in keys if keys.count(k) > 1), None)
    if twice is not None:
        raise RepeatedKeyError(f"has {_short(twice)} twice in one object: leave one out")
    return dict(pairs)


def _as_cells(item: Any, place: str) -> Mapping[str, str]:
    if not isinstance(item, dict):
        _refuse(place, f"is {_short(repr(item))}: write an object with time and intensity")
    unknown = [k for k in item if k not in COLUMNS]
    if unknown:
        _refuse(place, f"has an unknown key {_short(unknown[0])}: known are {', '.join(COLUMNS)}")
    cells = {k: v for k, v in item.items() if v is not None}
    missing = [c for c in REQUIRED if c not in cells]
    if missing:
        _refuse(place, f"has no {' and no '.join(missing)}")
    wrong = next((k for k, v in cells.items() if not isinstance(v, str)), None)
    if wrong is not None:
        _refuse(place, f"has {_short(repr(cells[wrong]))} as {wrong}: write a text or a number")
    return cells


def _read_rows(entries: Iterator[_Entry]) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    problems: list[str] = []
    for place, cells in entries:
        try:
            rows.append(_read_row(place, cells))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    return rows, problems


def _read_row(place: str, cells: Mapping[str, str]) -> _Row:
    zone = _read(cells, "zone", _check_zone) if "zone" in cells else ANY_ZONE
    begin = _read(cells, "time", parse_time)
    until = _read(cells, "until", parse_time) if cells.get("until") else None
    if until is not None and until <= begin:
        raise ValueError(f"until '{cells['until']}' is not after time '{cells['time']}'")
    issued = _read(cells, "issued", parse_time) if cells.get("issued") else None
    return _Row(place, zone, begin, until, _read(cells, "intensity", parse_grams), issued)


def _read(cells: Mapping[str, str], column: str, parse_cell: Callable[[str], _T]) -> _T:
    try:
        return parse_cell(cells[column])
    except ValueError as error:
        raise ValueError(f"{column} '{_short(cells[column])}' {error}") from None


@lru_cache(maxsize=1024)
def _check_zone(text: str) -> str:
    if len(text) > MAX_ZONE_LENGTH or re.fullmatch(ZONE_PATTERN, text, re.ASCII) is None:
        raise ValueError(f"is no zone: write {ZONE_FORM}")
    return text


def _check_order(rows: Sequence[_Row], warnings: list[str]) -> tuple[list[_Row], list[str]]:
    """The rows without repeated ones; and those out of order, contradicting an earlier row, or overlapping it."""
    kept: list[_Row] = []
    problems: list[str] = []
    last: dict[str, _Row] = {}
    for row in rows:
        before = last.get(row.zone)
        problem = _compare(before, row) if before is not None else None
        if before is not None and _same(before, row):
            warnings.append(f"{row.place}: repeats {before.place} and is left out")
        elif problem is not None:
            problems.append(f"{row.place}: {problem}")
        else:
            kept.append(row)
            last[row.zone] = row
    return kept, problems


def _same(one: _Row, other: _Row) -> bool:
    return replace(one, place="") == replace(other, place="")


def _compare(before: _Row, row: _Row) -> str | None:
    of = f" of zone {row.zone}" if row.zone else ""
    now, then = format_unix_time(row.begin), format_unix_time(before.begin)
    if row.begin == before.begin and replace(row, place="", issued=before.issued) == replace(
        before, place=""
    ):
        return f"has another time of issue{of} for {now} than {before.place}: leave the earlier one out"
    if row.begin == before.begin:
        return f"has another value{of} for {now} than {before.place}: leave one of them out"
    if row.begin < before.begin:
        return f"time {now}{of} is before that of {before.place}, {then}: put the rows in order of time"
    if row.begin - before.begin < SHORTEST_STEP_SECONDS:
        return f"time {now}{of} is less than {SHORTEST_STEP_SECONDS:.0f} s after {before.place}: keep one of them"
    if before.until is not None and before.until > row.begin:
        return f"time {now}{of} is before the until of {before.place}, {format_unix_time(before.until)}: they overlap"
    return None


def _build_series(rows: Sequence[_Row]) -> Series:
    """Each row until its `until`; without one until the next row, or for one median step where that is far away or missing."""
    steps = [b.begin - a.begin for a, b in pairwise(rows)]
    step = median(steps) if steps else SINGLE_ROW_SECONDS
    periods = []
    for number, row in enumerate(rows):
        to_next = steps[number] if number < len(steps) else inf
        held = to_next if to_next <= GAP_STEPS * step else step
        until = row.begin + held if row.until is None else row.until
        periods.append(Period(row.begin, until, row.milligrams, row.issued))
    return Series(tuple(periods), step)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(place: str, problem: str) -> NoReturn:
    raise SeriesError([f"{place} {problem}"])
