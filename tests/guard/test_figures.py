"""A picture in the docs is the one its source draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.mark.parametrize("source", sorted(FIGURES.glob("*.py")), ids=lambda path: path.stem)
def test_a_picture_is_what_its_source_draws(source: Path) -> None:
    drawn = subprocess.run([sys.executable, source], capture_output=True, check=True, text=True).stdout
    assert source.with_suffix(".svg").read_text() == drawn
