"""Where what is built is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.cache import decide_package_cache, read_cache_directory
from sandbox.images import Workshop


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/greentrain"),
        ({"HOME": "/home/a", "GREENTRAIN_CACHE": "/big"}, "/big"),
        ({"HOME": "/home/a", "GREENTRAIN_CACHE": ""}, "/home/a/.cache/greentrain"),
    ],
)
def test_the_cache_is_where_the_environment_says(environ: dict[str, str], folder: str) -> None:
    assert read_cache_directory(environ) == Path(folder)


def test_packages_are_cached_where_buildah_keeps_a_builds_cache() -> None:
    """Buildah keeps it below its TMPDIR."""
    assert Workshop(Path("/c")).temporary in decide_package_cache(Path("/c")).parents
