"""Simulated cards that the adapter reads in this process, through the unmodified nvidia-ml-py."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sandbox.simgpu import cards
from sandbox.simgpu.build import Libraries, apply_libraries
from sandbox.simgpu.cards import Card, Cards
from tests.contract.nvml.answers import STATE, read_threads

Make = Callable[..., Cards]


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    built = apply_libraries()
    built.preload()
    return built


@pytest.fixture
def make(libraries: Libraries, tmp_path: Path) -> Iterator[Make]:
    """Make cards, on the machine's clock; afterwards nothing hangs and every thread has ended."""
    del libraries
    with contextlib.ExitStack() as stack:

        def build(wanted: Sequence[Card | str] = ("A100",), *, seed: int = 7) -> Cards:
            made = stack.enter_context(cards.create(tmp_path / "state", wanted, seed=seed))
            stack.callback(made.clear_faults)
            os.environ[STATE] = str(made.path)
            stack.callback(os.environ.pop, STATE, None)
            return made

        yield build
    patience = time.monotonic() + 5
    while read_threads() and time.monotonic() < patience:
        time.sleep(0.005)
    assert read_threads() == 0, [thread.name for thread in threading.enumerate()]
