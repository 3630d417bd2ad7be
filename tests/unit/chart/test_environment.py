"""When `.venv` is made anew, and that what goes into it is pinned by hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox import environment

ROOT = Path(__file__).parents[3]
PYPROJECT = '[project]\nname = "x"\ndependencies = ["a"]\n[tool.ruff]\nline-length = 100\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with requirement files."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for name in environment.REQUIREMENTS:
        (tmp_path / name).write_text("a==1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "text", "anew"),
    [
        ("requirements/dev.txt", "a==2\n", True),
        ("requirements/uv.txt", "uv==2\n", True),
        ("pyproject.toml", PYPROJECT.replace('"a"', '"b"'), True),
        ("pyproject.toml", PYPROJECT.replace("100", "110"), False),
        ("pyproject.toml", PYPROJECT + '[tool.hatch.build]\npackages = ["y"]\n', True),
    ],
)
def test_the_environment_is_made_anew_when_what_it_holds_changes(
    tree: Path, path: str, text: str, anew: bool
) -> None:
    before = environment.build_fingerprint(tree, "3.11")
    (tree / path).write_text(text)
    assert (environment.build_fingerprint(tree, "3.11") != before) == anew


def test_another_interpreter_makes_it_anew(tree: Path) -> None:
    assert environment.build_fingerprint(tree, "3.11.2") != environment.build_fingerprint(tree, "3.11.7")


@pytest.mark.parametrize("name", [name for name, _ in environment.COMPILED])
def test_every_requirement_is_pinned_with_a_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = [e for e in re.split(r"\n(?=\S)", text) if e and not e.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("operator", ("tensorflow", "keras", "numpy", "grpcio", "nvidia-ml-py", "protobuf")),
        ("agent", ("tensorflow", "keras", "numpy", "kopf")),
        ("trainer-cpu", ("kopf", "kubernetes", "aiohttp")),
        ("trainer-gpu", ("kopf", "kubernetes", "aiohttp")),
    ],
)
def test_each_image_gets_only_its_sides_packages(name: str, absent: tuple[str, ...]) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE))
    assert not found & set(absent)
