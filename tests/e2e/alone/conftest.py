"""Tests that kill, drain, cap, upgrade and uninstall: one after the other, with the sandbox to themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Bench, build_bench
from tests.e2e.jobs import read_example


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The sandbox, with the namespace default empty, where the claim of its one volume lives."""
    desk = build_bench("default")
    desk.kubectl("delete", "gtj", "--all", "--wait")
    desk.apply(*(b for b in read_example() if b["kind"] == "PersistentVolumeClaim"))
    yield desk
    desk.kubectl("delete", "gtj", "--all", "--wait=false")
