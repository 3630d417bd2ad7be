"""Units are converted in `quantities` and nowhere else, so that no factor of a thousand can be forgotten or doubled."""

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
    "operator/greentrain/core/seen/pods.py": "Kubernetes' suffixes k, M, G of a count",
    "operator/greentrain/kube/apply.py": "makes a name of a time, so that events have names of their own",
}
"""Modules that convert by themselves, and why; one that does not any more must not stand here."""


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
