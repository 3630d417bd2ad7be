"""Jobs side by side, each test in a namespace of its own with a claim of its own: nothing here disturbs another test."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.shell import SandboxError
from tests.e2e.conftest import Bench, build_bench, build_volume
from tests.e2e.jobs import read_example

LONGEST = ("uninterrupted", "digits", "converted")
"""Fixtures of the tests that take longest, in that order: their jobs are trained whole, some more than once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left with it at the end."""
    here = Path(__file__).parent
    quiet = [item for item in items if here in item.path.parents]
    quiet.sort(key=lambda item: [n in getattr(item, "fixturenames", ()) for n in LONGEST], reverse=True)
    items[:] = [*quiet, *(item for item in items if here not in item.path.parents)]


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The sandbox, in a namespace that only this test uses."""
    desk = build_bench(f"e2e-{zlib.crc32(request.node.nodeid.encode()):08x}")
    volume = build_volume(desk)
    # A run before, which was killed, may have left it.
    with contextlib.suppress(SandboxError):
        desk.cluster.run_kubectl("delete", "namespace", desk.namespace, "--wait")
        desk.cluster.run_kubectl("delete", "persistentvolume", desk.namespace, "--wait")
    desk.cluster.run_kubectl("create", "namespace", desk.namespace)
    desk.apply(volume, *(b for b in read_example() if b["kind"] == "PersistentVolumeClaim"))
    yield desk
    desk.kubectl("delete", "gtj", "--all", "--wait")
    desk.cluster.run_kubectl("delete", "namespace", desk.namespace, "--wait=false")
    desk.cluster.run_kubectl("delete", "persistentvolume", desk.namespace, "--wait=false")
    shutil.rmtree(desk.folder("x").parent, ignore_errors=True)
