"""A file is read as it was meant, or refused with the line, the value and what to write."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from greentrain.grid.formats.series import (
    ANY_ZONE,
    MAX_BYTES,
    Period,
    SeriesError,
    parse,
    parse_grams,
    parse_time,
)
from greentrain.quantities import Intensity

HOUR = 3600.0
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def hours(*values: tuple[float, float, int]) -> tuple[Period, ...]:
    return tuple(Period(START + a * HOUR, START + b * HOUR, Intensity(m)) for a, b, m in values)


def read(text: str, name: str = "a.csv") -> dict[str, tuple[Period, ...]]:
    return {zone: s.periods for zone, s in parse(text.encode(), name).series.items()}


TWO_HOURS = hours((0, 1, 200_000), (1, 2, 210_500))

AS_MEANT = {
    "UTC": "time,intensity\n2026-01-01T00:00:00Z,200\n2026-01-01T01:00:00Z,210.5\n",
    "an offset": "time,intensity\n2026-01-01T01:00:00+01:00,200\n2026-01-01T02:00:00+01:00,210.5\n",
    "Unix seconds": f"time,intensity\n{START:.0f},200\n{START + HOUR:.1f},210.5\n",
    "no seconds, a space": "time,intensity\n2026-01-01 00:00Z,200\n2026-01-01t01:00z,210.5\n",
    "units": "time,intensity\n2026-01-01T00:00:00Z,200gCO2e/kWh\n2026-01-01T01:00:00Z,210.5gCO2e/kWh\n",
    "a byte order mark and CRLF": "\ufefftime,intensity\r\n2026-01-01T00:00:00Z,200\r\n2026-01-01T01:00:00Z,210.5\r\n",
    "comments, blank lines, spaces": "# from the grid\n\n time , intensity \n\n2026-01-01T00:00:00Z, 200\n  # more\n,\n2026-01-01T01:00:00Z ,210.5",
    "another order of columns": "intensity,time\n200,2026-01-01T00:00:00Z\n210.5,2026-01-01T01:00:00Z\n",
    "quotes": '"time","intensity"\n"2026-01-01T00:00:00Z","200"\n2026-01-01T01:00:00Z,2.105e2\n',
    "an until that is empty": "time,until,intensity\n2026-01-01T00:00:00Z,,200\n2026-01-01T01:00:00Z,,210.5\n",
}


@pytest.mark.parametrize("text", AS_MEANT.values(), ids=AS_MEANT.keys())
def test_ways_to_write_the_same(text: str) -> None:
    assert read(text) == {ANY_ZONE: TWO_HOURS}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("0,100 1,200 2,300", hours((0, 1, 100_000), (1, 2, 200_000), (2, 3, 300_000))),
        ("0,100", hours((0, 1, 100_000))),
        ("0,100 1,200 3,300", hours((0, 1, 100_000), (1, 3, 200_000), (3, 4.5, 300_000))),
        # More than two steps of an hour: a gap after one.
        (
            "0,100 1,200 2,300 5,400",
            hours((0, 1, 100_000), (1, 2, 200_000), (2, 3, 300_000), (5, 6, 400_000)),
        ),
        ("0-9,100", hours((0, 9, 100_000))),
        ("0-1,100 5-6,200", hours((0, 1, 100_000), (5, 6, 200_000))),
        ("0-0.5,100 1,200 2,300", hours((0, 0.5, 100_000), (1, 2, 200_000), (2, 3, 300_000))),
    ],
)
def test_a_row_holds_until_the_next_or_its_until(steps: str, expected: tuple[Period, ...]) -> None:
    lines = ["time,until,intensity"]
    for step in steps.split():
        span, _, grams = step.partition(",")
        begin, _, until = span.partition("-")
        end = f"{START + float(until) * HOUR}" if until else ""
        lines.append(f"{START + float(begin) * HOUR},{end},{grams}")
    assert read("\n".join(lines)) == {ANY_ZONE: expected}


def test_zones_may_be_mixed_where_each_is_in_order() -> None:
    text = (
        "zone,time,intensity\nDE,2026-01-01T00:00:00Z,200\nFR,2026-01-01T00:00:00Z,50\n"
        "FR,2026-01-01T01:00:00Z,51\nDE,2026-01-01T01:00:00Z,210.5\n"
    )
    assert read(text) == {"DE": TWO_HOURS, "FR": hours((0, 1, 50_000), (1, 2, 51_000))}


@pytest.mark.parametrize(
    "content",
    [
        [
            {"time": "2026-01-01T00:00:00Z", "intensity": 200},
            {"time": "2026-01-01T01:00:00Z", "intensity": 210.5},
        ],
        [{"time": int(START), "intensity": "200"}, {"time": START + HOUR, "intensity": "210.5gCO2e/kWh"}],
        [
            {"time": "2026-01-01T00:00:00Z", "intensity": 200, "until": None},
            {"time": "2026-01-01T01:00:00Z", "intensity": 210.5, "until": "2026-01-01T02:00:00Z"},
        ],
    ],
)
def test_json_is_a_list_of_objects(content: Any) -> None:
    assert read(json.dumps(content), "a.json") == {ANY_ZONE: TWO_HOURS}


@pytest.mark.parametrize(
    ("text", "name", "issued"),
    [
        (
            "time,intensity,issued\n2026-01-01T00:00:00Z,200,2025-12-31T12:00:00Z\n",
            "a.csv",
            START - 12 * HOUR,
        ),
        ("issued,time,intensity\n1767225600,2026-01-01T00:00:00Z,200\n", "a.csv", START),
        ("time,intensity,issued\n2026-01-01T00:00:00Z,200,\n", "a.csv", None),
        (
            f'[{{"time": {START:.0f}, "intensity": 200, "issued": "2026-01-01T01:00:00+01:00"}}]',
            "a.json",
            START,
        ),
        (f'[{{"time": {START:.0f}, "intensity": 200, "issued": null}}]', "a.json", None),
    ],
)
def test_a_row_may_say_when_it_was_issued(text: str, name: str, issued: float | None) -> None:
    (found,) = hours((0, 1, 200_000))
    assert read(text, name) == {ANY_ZONE: (replace(found, issued=issued),)}


@pytest.mark.parametrize(
    ("times", "step"),
    [((0,), 3600), ((0, 900, 1800), 900), ((0, 900, 1800, 9000), 900), ((0, 60, 3660), 1830)],
)
def test_a_series_has_the_median_of_its_steps(times: tuple[int, ...], step: float) -> None:
    text = "time,intensity\n" + "".join(f"{START + t:.0f},200\n" for t in times)
    assert parse(text.encode(), "a.csv").series[ANY_ZONE].step == step


ROW = "2026-01-01T00:00:00Z,200"
HEAD = "time,intensity\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a.csv has no rows: write a header time,intensity and at least one row"),
        ("# only this\n\n", "a.csv has no rows"),
        (HEAD, "a.csv has no rows"),
        ("time,value\n" + ROW, "line 1 has no column intensity: the header is 'time, value'"),
        ("a,b\n" + ROW, "line 1 has no column time and no column intensity"),
        (ROW, "line 1 has no column time and no column intensity"),
        ("time;intensity\n", "line 1 is 'time;intensity': separate columns by commas"),
        ("time,intensity,time\n", "line 1 has column time twice"),
        (HEAD + ROW + ",1", "line 2 has 3 cells, the header 2"),
        (HEAD + "\n2026-01-01T00:00:00,200", "line 3: time '2026-01-01T00:00:00' has no offset from UTC"),
        (HEAD + "2026-01-01,200", "line 2: time '2026-01-01' is no time: write RFC 3339 such as"),
        (HEAD + "2026-02-30T00:00:00Z,200", "time '2026-02-30T00:00:00Z' is no time (day is out of range"),
        (HEAD + "01/02/2026 00:00,200", "time '01/02/2026 00:00' is no time"),
        (HEAD + ",200", "line 2: time '' is no time"),
        (
            HEAD + "1767225600000,200",
            "is no Unix time in seconds between 2000 and 2100; are these milliseconds?",
        ),
        (HEAD + "1826-01-01T00:00:00Z,200", "is not between 2000 and 2100"),
        (
            HEAD + "2026-01-01T00:00:00Z,-3",
            "line 2: intensity '-3' is no intensity: write grams of CO2e per kWh",
        ),
        (HEAD + "2026-01-01T00:00:00Z,5000.1", "intensity '5000.1' is no intensity"),
        (HEAD + "2026-01-01T00:00:00Z,9e99", "intensity '9e99' is no intensity"),
        (HEAD + "2026-01-01T00:00:00Z,nan", "intensity 'nan' is no number"),
        (HEAD + "2026-01-01T00:00:00Z,Infinity", "intensity 'Infinity' is no number"),
        (HEAD + "2026-01-01T00:00:00Z,1_000", "intensity '1_000' is no number"),
        (HEAD + "2026-01-01T00:00:00Z,", "intensity '' is no number"),
        (HEAD + '2026-01-01T00:00:00Z,"200,5"', "intensity '200,5' is no number: write"),
        (HEAD + "2026-01-01T00:00:00Z,0.2kgCO2e/kWh", "intensity '0.2kgCO2e/kWh' is no intensity"),
        (HEAD + "2026-01-01T00:00:00Z,200 g", "intensity '200 g' is no number"),
        (
            HEAD + "2026-01-01T01:00:00Z,1\n2026-01-01T00:00:00Z,1",
            "line 3: time 2026-01-01T00:00:00Z is before that of a.csv line 2, 2026-01-01T01:00:00Z: put the rows in order",
        ),
        (
            HEAD + "2026-01-01T01:00:00Z,1\n2026-01-01T02:00:00+01:00,2",
            "line 3: has another value for 2026-01-01T01:00:00Z than a.csv line 2",
        ),
        (
            HEAD + "1767225600,1\n1767225600.5,1",
            "line 3: time 2026-01-01T00:00:00Z is less than 1 s after a.csv line 2",
        ),
        (
            "time,intensity,until\n2026-01-01T00:00:00Z,1,2026-01-01T02:00:00Z\n2026-01-01T01:00:00Z,1,",
            "line 3: time 2026-01-01T01:00:00Z is before the until of a.csv line 2, 2026-01-01T02:00:00Z: they overlap",
        ),
        (
            "time,intensity,until\n2026-01-01T00:00:00Z,1,2026-01-01T00:00:00Z",
            "line 2: until '2026-01-01T00:00:00Z' is not after time '2026-01-01T00:00:00Z'",
        ),
        ("time,intensity,until\n2026-01-01T00:00:00Z,1,later", "line 2: until 'later' is no time"),
        ("time,intensity,issued\n2026-01-01T00:00:00Z,1,then", "line 2: issued 'then' is no time"),
        (
            "time,intensity,issued\n2026-01-01T00:00:00Z,1,2025-12-31T00:00Z\n2026-01-01T00:00:00Z,1,2026-01-01T01:00Z",
            "line 3: has another time of issue for 2026-01-01T00:00:00Z than a.csv line 2: leave the earlier one out",
        ),
        ("zone,time,intensity\n," + ROW, "line 2: zone '' is no zone: write a grid zone"),
        ("zone,time,intensity\nD E," + ROW, "zone 'D E' is no zone"),
        (
            "zone,time,intensity\nDE,2026-01-01T01:00:00Z,1\nFR,2026-01-01T01:00:00Z,1\nDE,2026-01-01T00:00:00Z,1",
            "line 4: time 2026-01-01T00:00:00Z of zone DE is before that of a.csv line 2",
        ),
        (HEAD + 'x"y,"1"2\n', "line 2 is no CSV"),
    ],
)
def test_bad_csv_is_refused_with_line_value_and_remedy(text: str, words: str) -> None:
    with pytest.raises(SeriesError) as caught:
        read(text)
    assert words in str(caught.value)
    assert all(p.startswith("a.csv") for p in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a.json line 1 is not JSON: Expecting value"),
        ("{}", 'a.json is no list: write [{"time"'),
        ("[]", "a.json has no rows"),
        ("[1]", "entry 1 is '1': write an object with time and intensity"),
        ('[{"time": "2026-01-01T00:00:00Z"}]', "entry 1 has no intensity"),
        ('[{"time": 1767225600, "intensity": null}]', "entry 1 has no intensity"),
        ('[{"time": 1767225600, "intensity": true}]', "entry 1 has True as intensity"),
        ('[{"time": 1767225600, "intensity": [1]}]', "as intensity: write a text or a number"),
        ('[{"time": 1767225600, "intensity": NaN}]', "entry 1: intensity 'NaN' is no number"),
        ('[{"time": 1767225600, "intensity": -1}]', "entry 1: intensity '-1' is no intensity"),
        ('[{"time": 1767225600, "intensity": 1, "end": 1}]', "unknown key end: known are time"),
        ('[{"time": 1767225600, "intensity": 1, "time": 1}]', "a.json has time twice in one object"),
        ("[" * 100_000, "a.json is nested too deeply"),
    ],
)
def test_bad_json_is_refused_with_entry_value_and_remedy(text: str, words: str) -> None:
    with pytest.raises(SeriesError) as caught:
        read(text, "a.json")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"time,intensity\n2026-01-01T00:00:00Z,1\xff", "is not UTF-8 at byte 37: save it as UTF-8"),
        (b" " * (MAX_BYTES + 1), "is larger than 20 MB"),
    ],
)
def test_bytes_that_are_no_text_or_too_many_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(SeriesError, match=words):
        parse(content, "a.csv")


def test_what_does_no_harm_is_a_warning() -> None:
    text = "time,intensity,note\n2026-01-01T00:00:00Z,200,x\n2026-01-01T01:00:00+01:00,200.0,y\n2026-01-01T01:00:00Z,210.5,\n"
    parsed = parse(text.encode(), "a.csv")
    assert parsed.series[ANY_ZONE].periods == TWO_HOURS
    assert parsed.warnings == (
        "a.csv line 1: columns that are not read: note",
        "a.csv line 3: repeats a.csv line 2 and is left out",
    )


def test_all_problems_are_told_up_to_a_number() -> None:
    with pytest.raises(SeriesError) as caught:
        read(HEAD + "never,-1\n" * 25)
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1] == "a.csv: and 15 problems more"


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (-1.0, (float("-inf"), 0.0)),
        (0.0, 0),
        (0.99, 0),
        (1.0, 1),
        (2.5, (2.0, 5.0)),
        (5.5, 2),
        (6.0, (6.0, float("inf"))),
    ],
)
def test_a_moment_finds_its_period_or_the_gap_around_it(
    moment: float, expected: int | tuple[float, float]
) -> None:
    text = f"time,until,intensity\n{START},,1\n{START + HOUR},{START + 2 * HOUR},2\n{START + 5 * HOUR},{START + 6 * HOUR},3\n"
    series = parse(text.encode(), "a.csv").series[ANY_ZONE]
    found = series.find(START + moment * HOUR)
    if isinstance(expected, int):
        assert found is series.periods[expected]
    else:
        assert found == tuple(START + e * HOUR for e in expected)


ROWS = st.dictionaries(st.integers(0, 100_000), st.integers(0, 5_000_000), min_size=2, max_size=20).map(
    lambda d: sorted(d.items())
)


def write(rows: list[tuple[int, int]], offset: int = 0) -> str:
    zone = timezone(timedelta(hours=offset))
    lines = [f"{datetime.fromtimestamp(START + s * 60, zone).isoformat()},{m / 1000:.3f}" for s, m in rows]
    return HEAD + "\n".join(lines)


@given(ROWS, st.integers(-11, 12))
def test_what_is_written_is_read_again(rows: list[tuple[int, int]], offset: int) -> None:
    periods = read(write(rows, offset))[ANY_ZONE]
    assert [(p.begin, p.milligrams) for p in periods] == [(START + s * 60, m) for s, m in rows]
    assert all(p.begin < p.end for p in periods)
    assert all(a.end <= b.begin for a, b in pairwise(periods))
    entries = [{"time": START + s * 60, "intensity": m / 1000} for s, m in rows]
    assert read(json.dumps(entries), "a.json")[ANY_ZONE] == periods


@given(ROWS, st.randoms(use_true_random=False))
def test_any_other_order_is_found(rows: list[tuple[int, int]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assume(shuffled != rows)
    with pytest.raises(SeriesError, match="in order of time"):
        read(write(shuffled))


@given(ROWS, st.data())
def test_any_contradiction_is_found(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    second, milligrams = rows[at]
    other = data.draw(st.integers(0, 5_000_000).filter(lambda m: m != milligrams))
    with pytest.raises(SeriesError, match="another value"):
        read(write([*rows[: at + 1], (second, other), *rows[at + 1 :]]))


@given(
    st.text(max_size=200) | st.text(alphabet='time,intsy"0123456789.:-+TZ#\n', max_size=200), st.booleans()
)
def test_any_text_is_read_or_refused(text: str, as_json: bool) -> None:
    name = "a.json" if as_json else "a.csv"
    with suppress(SeriesError):
        assert parse((text if as_json else HEAD + text).encode(errors="replace"), name).series


@given(st.text(max_size=40))
def test_any_cell_is_read_or_refused(text: str) -> None:
    for read_cell in (parse_time, parse_grams):
        with suppress(ValueError):
            assert 0 <= read_cell(text) < 5e9
