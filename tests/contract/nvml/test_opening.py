"""NVML that is not there says so with a remedy, and can be opened as soon as it is."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pynvml
import pytest

from greentrain.devices.errors import Unavailable
from greentrain.devices.nvidia.nvml import Gpus
from sandbox.simgpu.cards import Calls, Fault
from tests.contract.nvml.answers import answer, no_thread, until
from tests.contract.nvml.conftest import Make

OPEN = """
    import asyncio
    from greentrain.devices.errors import Unavailable
    from greentrain.devices.nvidia.nvml import Gpus

    async def main():
        for _ in range(2):
            try:
                await Gpus.open()
            except Unavailable as error:
                print(error)

    asyncio.run(main())
"""


def test_without_the_library_the_remedy_is_the_driver(tmp_path: Path) -> None:
    if ctypes.util.find_library("nvidia-ml") is not None:
        pytest.skip("this machine has NVIDIA's library")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(OPEN)],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("NVML cannot be used: libnvidia-ml.so.1 is not found. Install NVIDIA's driver")


REFUSALS = [
    (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the driver is not loaded", "modprobe nvidia"),
    (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "another version", "restart the agent's pod"),
    (pynvml.NVML_ERROR_NO_PERMISSION, "Insufficient Permissions", "nvidia-smi"),
    (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error", "nvidia-smi"),
]


@pytest.mark.parametrize(("code", "why", "remedy"), REFUSALS)
async def test_a_refused_initialisation_says_why_and_can_be_tried_again(
    make: Make, code: int, why: str, remedy: str
) -> None:
    state = make()
    answer(state, None, code, Calls.INIT)
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await Gpus.open()
        assert caught.value.what == "NVML"
        assert why in caught.value.why
        assert remedy in caught.value.remedy
    state.clear_faults()
    async with await Gpus.open() as gpus:
        assert len(await gpus.read_all()) == 1


async def test_a_driver_unloaded_and_loaded_with_other_cards_is_opened_anew(make: Make) -> None:
    state = make(["V100"] * 2, seed=1)
    async with await Gpus.open() as gpus:
        before = await gpus.discover()
    state.fault(None, Fault.NOT_LOADED)
    with pytest.raises(Unavailable):
        await Gpus.open()
    make(["H100"], seed=2)
    async with await Gpus.open() as gpus:
        after = await gpus.discover()
        assert [card.model for card in before] != [card.model for card in after]
        assert not {card.uuid for card in before} & {card.uuid for card in after}


async def test_a_library_and_driver_that_do_not_fit_are_told_apart_from_none(make: Make) -> None:
    state = make()
    state.path.with_name("old").write_bytes(b"another layout")
    state.path.with_name("old").replace(state.path)
    with pytest.raises(Unavailable, match="another version"):
        await Gpus.open()
    state.path.unlink()
    with pytest.raises(Unavailable, match="not loaded"):
        await Gpus.open()


async def test_closing_releases_nvml_and_its_threads(make: Make) -> None:
    make()
    first, second = await Gpus.open(), await Gpus.open()
    await first.close()
    assert len(await second.read_all()) == 1
    await second.close()
    await second.close()
    await until(no_thread)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
