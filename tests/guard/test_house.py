"""The house stays as it was laid out: roots, rooms, arrows, words."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from greentrain.api.runtime import BUILTIN_PROGRAMS

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = [ROOT / "operator", ROOT / "trainer"]
MODULES = sorted(
    p
    for top in ("operator/greentrain", "trainer/greentrain_trainer", "sandbox", "tests")
    for p in (ROOT / top).rglob("*.py")
)
BANNED_NAMES = {"manager", "helper", "helpers", "utils", "util", "process", "handle", "data", "info"}


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda p: p.name)
def test_a_source_root_is_no_package(root: Path) -> None:
    assert [p.name for p in root.iterdir() if p.suffix == ".py"] == []


def test_no_module_shadows_the_standard_library() -> None:
    shadowing = {
        p.relative_to(ROOT)
        for p in MODULES
        if p.is_relative_to(ROOT / "operator") and p.stem in sys.stdlib_module_names - {"__main__"}
    }
    assert shadowing == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_why_it_exists_and_has_a_telling_name(module: Path) -> None:
    tree = ast.parse(module.read_text())
    assert ast.get_docstring(tree), "needs a docstring that says why it exists"
    assert not set(module.stem.split("_")) & BANNED_NAMES


def test_imports_keep_the_layers() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("text", ["unittest.mock", "MagicMock", "monkeypatch.setattr"])
def test_nothing_is_mocked(text: str) -> None:
    here = Path(__file__)
    assert [p.relative_to(ROOT) for p in MODULES if p != here and text in p.read_text()] == []


def test_the_operator_knows_the_trainers_programs() -> None:
    programs = ROOT / "trainer/greentrain_trainer/programs"
    assert {p.stem for p in programs.glob("*.py")} - {"__init__"} == set(BUILTIN_PROGRAMS)


def test_requirement_files_are_hashed_and_name_no_registry() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text, file.name


def test_the_base_package_needs_pydantic_alone() -> None:
    code = "import greentrain.api.spec, greentrain.core.lifecycle.decide, sys; print([m for m in ('kopf', 'kubernetes', 'yaml', 'aiohttp', 'tensorflow') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
