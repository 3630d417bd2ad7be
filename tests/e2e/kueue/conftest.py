"""Kueue in the sandbox; `make e2e` installs it before these tests and uninstalls it after them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox import kueue
from tests.e2e.conftest import Bench, build_bench
from tests.e2e.jobs import read_example


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The namespace default, which the LocalQueue stands in."""
    desk = build_bench("default")
    if desk.cluster.read_json("get", "namespace", kueue.NAMESPACE) is None:
        pytest.fail("Kueue is not in the sandbox; run: python3 -m sandbox kueue", pytrace=False)
    desk.kubectl("delete", "gtj", "--all", "--wait")
    desk.apply(*(b for b in read_example() if b["kind"] == "PersistentVolumeClaim"))
    yield desk
    desk.kubectl("delete", "gtj", "--all", "--wait")
