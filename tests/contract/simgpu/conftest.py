"""Simulated cards for a test: a state in a folder of its own, seen by the unmodified nvidia-ml-py in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pynvml
import pytest

from sandbox.simgpu import cards
from sandbox.simgpu.build import Libraries, apply_libraries
from sandbox.simgpu.cards import Card, Cards

STATE = "GREENTRAIN_SIMGPU_STATE"

Make = Callable[..., Cards]


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    built = apply_libraries()
    built.preload()
    return built


@pytest.fixture
def make(libraries: Libraries, tmp_path: Path) -> Iterator[Make]:
    """Make cards at `tmp_path/state`, by default with a virtual clock, and initialise NVML on them."""
    del libraries
    with contextlib.ExitStack() as stack:

        def build(
            wanted: Sequence[Card | str] = ("V100",),
            *,
            virtual: bool = True,
            seed: int = 7,
            init: bool = True,
        ) -> Cards:
            made = stack.enter_context(cards.create(tmp_path / "state", wanted, virtual=virtual, seed=seed))
            os.environ[STATE] = str(made.path)
            stack.callback(os.environ.pop, STATE, None)
            if init:
                pynvml.nvmlInit()
                stack.callback(shut_down)
            return made

        yield build


def shut_down() -> None:
    with contextlib.suppress(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()
