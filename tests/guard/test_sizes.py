"""No file, function or signature outgrows its reader, and nothing is asserted where it must be checked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL_ROOMS = ("core", "node", "agent")
MOST_LINES = 500
"""Of a file in the rooms where decisions are made."""
MOST_FUNCTION_LINES = 80
MOST_PARAMETERS = 7
"""Not counting self or cls; more need a comment on the signature, or right above it, that speaks of them."""

Finding = tuple[str, str]


def find_excesses(path: str, text: str) -> Iterator[Finding]:
    """What of a module is too large or asserted, each with the module's path below the project's folder."""
    lines = text.splitlines()
    if path.split("/")[2:3] and path.split("/")[2] in SMALL_ROOMS and len(lines) > MOST_LINES:
        yield path, "lines"
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Assert():
                yield path, f"assert in line {node.lineno}"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if (node.end_lineno or node.lineno) - node.lineno + 1 > MOST_FUNCTION_LINES:
                    yield path, f"length of {node.name}"
                if count_parameters(node.args) > MOST_PARAMETERS and not has_reason(node, lines):
                    yield path, f"parameters of {node.name}"


def count_parameters(arguments: ast.arguments) -> int:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return len(named) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def has_reason(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> bool:
    begin = min(d.lineno for d in (node, *node.decorator_list)) - 2
    signature = lines[max(begin, 0) : node.body[0].lineno - 1]
    return any(re.search(r"#.*\bparameters\b.*\w{3,}", line) for line in signature)


def find_all() -> set[Finding]:
    paths = (p for top in ("operator", "trainer") for p in sorted((ROOT / top).rglob("*.py")))
    return {f for p in paths for f in find_excesses(str(p.relative_to(ROOT)), p.read_text())}


def test_nothing_is_too_large() -> None:
    assert sorted(find_all()) == []


CORE, KUBE = "operator/greentrain/core/x.py", "operator/greentrain/kube/x.py"


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (CORE, "x = 1\n" * 500, []),
        (CORE, "x = 1\n" * 501, ["lines"]),
        (KUBE, "x = 1\n" * 501, []),
        ("trainer/greentrain_trainer/x.py", "x = 1\n" * 501, []),
        (KUBE, "def f():\n" + "    x = 1\n" * 79, []),
        (KUBE, "def f():\n" + "    x = 1\n" * 80, ["length of f"]),
        (KUBE, "async def f():\n" + "    x = 1\n" * 80, ["length of f"]),
        (KUBE, "def f(a, b, c, d, *, e, f, g): pass", []),
        (KUBE, "def f(a, b, c, d, *, e, f, g, h): pass", ["parameters of f"]),
        (KUBE, "def f(a, b, c, d, e, f, *g, **h): pass", ["parameters of f"]),
        (KUBE, "class A:\n    def f(self, a, b, c, d, e, f, g): pass", []),
        (KUBE, "class A:\n    def f(self, a, b, c, d, e, f, g, h): pass", ["parameters of f"]),
        (KUBE, "def f(a, b, c, d, e, f, g, h):  # eight parameters: a request's own\n    pass", []),
        (KUBE, "# Eight parameters: a request's own.\n@cache\ndef f(a, b, c, d, e, f, g, h):\n    pass", []),
        (KUBE, "def f(a, b, c, d, e, f, g, h):  # noqa\n    pass", ["parameters of f"]),
        (KUBE, "def f(x):\n    assert x", ["assert in line 2"]),
        (KUBE, 'def f(x):\n    """An assert."""  # assert x', []),
    ],
)
def test_the_guard_finds_what_is_too_large(path: str, text: str, found: list[str]) -> None:
    assert list(find_excesses(path, text)) == [(path, what) for what in found]
