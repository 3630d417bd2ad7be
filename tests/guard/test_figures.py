"""A picture in the docs is the one its source draws, and a page that is made from a table is what the table says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
TABLES = DOCS / "tables"


@pytest.mark.parametrize("source", sorted(FIGURES.glob("*.py")), ids=lambda path: path.stem)
def test_a_picture_is_what_its_source_draws(source: Path) -> None:
    assert source.with_suffix(".svg").read_text() == _run(source)


@pytest.mark.parametrize("source", sorted(TABLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_page_is_what_its_table_says(source: Path) -> None:
    assert (DOCS / "reference" / f"{source.stem}.md").read_text() == _run(source)


def _run(source: Path) -> str:
    return subprocess.run([sys.executable, source], capture_output=True, check=True, text=True).stdout
