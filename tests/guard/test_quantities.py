"""Units are converted in `quantities` and nowhere else, so that no factor of a thousand can be forgotten or doubled.

And what is named by a unit has the type of that unit, so that mypy refuses joules where millijoules are due.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME = "operator/greentrain/quantities.py"

FACTORS = frozenset({60, 1000, 3600, 86_400, 10**6, 3_600_000, 10**9})
"""Numbers that one unit has of another."""

UNIT = re.compile(r"(MILLI|MICRO|NANO|KILO)(JOULES|WATTS|GRAMS|SECONDS)|THOUSANDTHS")

EXCEPTIONS = {
    "operator/greentrain/core/power/measures.py": "Student's factor is in thousandths, and no quantity",
    "operator/greentrain/kube/apply.py": "makes a name of a time, so that events have names of their own",
}
"""Modules that convert by themselves, and why; one that does not any more must not stand here."""


TYPES = {
    "joules": "Joules",
    "millijoules": "Millijoules",
    "mj": "Millijoules",
    "microjoules": "Microjoules",
    "milliwatts": "Milliwatts",
    "micrograms": "Micrograms",
    "milligrams": "Intensity",
    "intensity": "Intensity",
    "per_kilowatt_hour": "Intensity",
    "thousandths": "Thousandths",
    "pue": "Thousandths",
    "milliseconds": "Milliseconds",
    "microseconds": "Microseconds",
    "nanoseconds": "Nanoseconds",
    "microwatts": "Microwatts",
    "watts": "",
    "grams": "",
}
"""What a name ends in, and its type; units without one stand in no sum. Seconds and percents are plain numbers: what stands
beside them has a type, so they cannot be exchanged with it."""

NUMBERS = frozenset({"int", "float", "Decimal", "Fraction", *TYPES.values()})

NAMED = re.compile(f"(?:^|_)({'|'.join(sorted(TYPES, key=len, reverse=True))})$")

EDGE = re.compile(r"(in|from|parse|to_whole)_")
"""Functions that are named by the plain number they give, or by what they are given."""

UNTYPED = {
    ("quantities.py", "to_joules_above", "millijoules"): "an error, which is no whole number",
    ("quantities.py", "from_grams", "grams"): "the tables of GPUs have whole grams",
    ("quantities.py", "to_intensity", "grams"): "as a file has it, not rounded yet",
    ("quantities.py", "to_intensity", "to_intensity"): "the same",
    ("telemetry/jobs.py", "JobMeasures", "draw_watts"): "metrics are floats in Prometheus' base units",
    ("telemetry/jobs.py", "JobMeasures", "grams"): "the same",
    ("telemetry/jobs.py", "JobMeasures", "grams_per_kilowatt_hour"): "the same",
}
"""Numbers that are named by a unit and do not have its type, by module and by function or class, and why."""


def find_untyped(text: str) -> Iterator[tuple[str, str]]:
    """Parameters, fields and results that are named by a unit and are numbers without its type, each with where it stands."""
    for node in ast.walk(ast.parse(text)):
        named: list[tuple[str, ast.expr | None]]
        match node:
            case (
                ast.FunctionDef(name=where, args=args, returns=returns)
                | ast.AsyncFunctionDef(name=where, args=args, returns=returns)
            ):
                every = (*args.posonlyargs, *args.args, *args.kwonlyargs)
                named = [(a.arg, a.annotation) for a in every]
                named += [(where, returns)] if EDGE.match(where) is None else []
            case ast.ClassDef(name=where, body=body):
                fields = [n for n in body if isinstance(n, ast.AnnAssign)]
                named = [(ast.unparse(n.target), n.annotation) for n in fields]
            case _:
                continue
        yield from ((where, name) for name, annotation in named if is_untyped(name, annotation))


def is_untyped(name: str, annotation: ast.expr | None) -> bool:
    unit = NAMED.search(name)
    if unit is None or annotation is None:
        return False
    words = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
    words |= {n.attr for n in ast.walk(annotation) if isinstance(n, ast.Attribute)}
    return bool(words & NUMBERS) and TYPES[unit[1]] not in words


def find_renamed(text: str) -> Iterator[tuple[str, str]]:
    """Where a number that is named by one unit is given the type of another, each with that type."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case (
                ast.Call(func=ast.Name(id="typed"), args=[type_, value]) | ast.Call(func=type_, args=[value])
            ):
                pass
            case _:
                continue
        name, unit = last_name(type_), NAMED.search(last_name(value).lower())
        if name in NUMBERS and name in TYPES.values() and unit is not None and TYPES[unit[1]] != name:
            yield name, last_name(value)


def last_name(node: ast.expr) -> str:
    """What a value is called where it is taken from; empty where it is computed."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Call(func=ast.Name(id=name)):
            return name
        case ast.BoolOp(values=[first, *_]):
            return last_name(first)
    return ""


def find_all_untyped() -> set[tuple[str, str, str]]:
    root = ROOT / "operator/greentrain"
    texts = {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*.py"))}
    return {(name, *found) for name, text in texts.items() for found in find_untyped(text)}


def test_what_is_named_by_a_unit_has_its_type() -> None:
    assert sorted(find_all_untyped() - UNTYPED.keys()) == []


def test_what_is_named_here_still_has_no_type() -> None:
    assert sorted(UNTYPED.keys() - find_all_untyped()) == []


def test_no_number_is_given_the_type_of_another_unit_than_it_is_named_by() -> None:
    paths = sorted((ROOT / "operator").rglob("*.py"))
    assert {p.name: found for p in paths if (found := list(find_renamed(p.read_text())))} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Joules(entry.millijoules)", [("Joules", "millijoules")]),
        ("quantities.Joules(MOST_WATTS)", [("Joules", "MOST_WATTS")]),
        ("typed(Milliwatts, energy.draw_watts)", [("Milliwatts", "draw_watts")]),
        ("Millijoules(used_joules or 0)", [("Millijoules", "used_joules")]),
        ("Joules(status.used_joules)", []),
        ("typed(quantities.Intensity, emissions.intensity_milligrams_per_kilowatt_hour)", []),
        ("Joules(used - charged)", []),
        ("to_joules(millijoules)", []),
    ],
)
def test_the_guard_finds_a_number_of_another_unit(text: str, found: list[tuple[str, str]]) -> None:
    assert list(find_renamed(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def spend(joules: int): ...", [("spend", "joules")]),
        ("def spend(*, used_joules: float): ...", [("spend", "used_joules")]),
        ("async def spend(limit_milliwatts: int | None): ...", [("spend", "limit_milliwatts")]),
        ("def spend(joules: Millijoules): ...", [("spend", "joules")]),
        ("def spend(millijoules: Joules): ...", [("spend", "millijoules")]),
        ("def find_micrograms() -> int: ...", [("find_micrograms", "find_micrograms")]),
        ("class Card:\n    draw_watts: float", [("Card", "draw_watts")]),
        ("class Card:\n    pue: Annotated[int, 'x'] = 1000", [("Card", "pue")]),
        ("class Card:\n    per_pod_joules: dict[str, int]", [("Card", "per_pod_joules")]),
        (
            "class Grid:\n    milligrams_per_kilowatt_hour: Micrograms",
            [("Grid", "milligrams_per_kilowatt_hour")],
        ),
        ("def spend(joules: Joules | None): ...", []),
        ("def spend(milligrams: quantities.Intensity): ...", []),
        ("def format_joules() -> str: ...", []),
        ("def in_joules(millijoules: Millijoules) -> float: ...", []),
        ("def parse_grams(text: str) -> Intensity: ...", []),
        ("def wait(seconds: float, percent: int): ...", []),
        ("class Spec:\n    pue: str | None", []),
    ],
)
def test_the_guard_finds_numbers_without_a_type(text: str, found: list[tuple[str, str]]) -> None:
    assert list(find_untyped(text)) == found


def find_conversions(text: str) -> Iterator[int]:
    """The lines in which something is multiplied with, or divided by, a factor between two units."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.BinOp(left=left, op=op, right=right):
                operands = (left, right)
            case ast.AugAssign(op=op, value=right):
                operands = (right, right)
            case ast.Call(args=args) if any(is_constant(a) for a in args):
                yield node.lineno  # a factor is passed to be multiplied with
                continue
            case _:
                continue
        if isinstance(op, ast.Mult | ast.Div | ast.FloorDiv | ast.Mod) and any(map(is_factor, operands)):
            yield node.lineno


def is_factor(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value in FACTORS
        case ast.Name() | ast.Attribute():
            return is_constant(node)
        case ast.BinOp(left=ast.Constant(value=int() as base), op=ast.Pow()):
            return base in FACTORS
    return False


def is_constant(node: ast.expr) -> bool:
    """Whether it names a factor: by both units, or by one that has so many of another."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return "_PER_" in name or UNIT.fullmatch(name) is not None
    return False


def find_all() -> dict[str, list[int]]:
    paths = ((str(p.relative_to(ROOT)), p) for p in sorted((ROOT / "operator").rglob("*.py")))
    found = {name: sorted(find_conversions(p.read_text())) for name, p in paths if name != HOME}
    return {name: lines for name, lines in found.items() if lines}


def test_nothing_is_converted_outside_but_where_it_is_named_here() -> None:
    assert {name: lines for name, lines in find_all().items() if name not in EXCEPTIONS} == {}


def test_what_is_named_here_still_converts() -> None:
    assert sorted(EXCEPTIONS.keys() - find_all()) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("watts = milliwatts / 1000", [1]),
        ("joules = 1000 * joules", [1]),
        ("x = 1\njoules = millijoules // 1000", [2]),
        ("watt_hours = joules / 3_600", [1]),
        ("minutes = seconds / 60.0", [1]),
        ("seconds = 24 * 3600", [1]),
        ("seconds = nanoseconds / 1e9", [1]),
        ("joules *= 1000", [1]),
        ("rest = millijoules % 1000", [1]),
        ("joules = millijoules // MILLIJOULES_PER_JOULE", [1]),
        ("joules = millijoules // quantities.MILLIJOULES_PER_JOULE", [1]),
        ("joules = kilojoules * 1000**1", [1]),
        ("MILLIJOULES = 1000\njoules = millijoules / MILLIJOULES", [2]),
        ("used = joules.times(MILLIJOULES_PER_JOULE)", [1]),
        ("pue = emissions.pue or THOUSANDTHS", []),
        ("limit = 2 * SAME_MILLIWATTS", []),
        ("joules = to_joules(millijoules)", []),
        ("percent = part * 100 // whole", []),
        ("limit = 1000", []),
        ("later = now + 3600", []),
    ],
)
def test_the_guard_finds_conversions(text: str, lines: list[int]) -> None:
    assert list(find_conversions(text)) == lines
