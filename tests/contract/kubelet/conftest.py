"""Sockets need short paths, so each test has a folder near the root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gt-") as path:
        yield Path(path)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "kubelet.sock"
