"""The same on a real card where there is one: whatever NVIDIA's library answers fits the types; nothing is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/proc/driver/nvidia/version").exists(), reason="no NVIDIA driver is loaded"),
]

# In a program of its own: this one may have loaded the simulated library.
READ = """
    import asyncio, dataclasses, json, time
    from greentrain.devices.nvidia.nvml import Gpus

    async def main():
        async with await Gpus.open() as gpus:
            cards = await gpus.discover()
            first = await gpus.read_all()
            began, cpu = time.monotonic(), time.process_time()
            for _ in range(10):
                await gpus.read_all()
            wall, cpu = (time.monotonic() - began) / 10, (time.process_time() - cpu) / 10
            await asyncio.sleep(2)
            second = await gpus.read_all()
            limits = [dataclasses.asdict(await gpus.read_limits(card.uuid)) for card in cards]
            plain = lambda told: {k: dataclasses.asdict(v) for k, v in told.items()}
            print(json.dumps({
                "cards": [dataclasses.asdict(card) for card in cards],
                "first": plain(first), "second": plain(second), "limits": limits, "wall": wall, "cpu": cpu,
            }))

    asyncio.run(main())
"""


def test_a_real_card_is_discovered_and_read() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GREENTRAIN_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(READ)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    print(json.dumps(told, indent=1))
    assert told["cards"]
    for card, limits in zip(told["cards"], told["limits"], strict=True):
        assert card["uuid"].startswith("GPU-")
        assert card["model"]
        assert {name: card["limits"][name] for name in limits} == limits
        first, second = told["first"][card["uuid"]], told["second"][card["uuid"]]
        if first["counter"] is not None and first["draw"] is not None:
            # Over two seconds the counter moves by what a card can draw.
            assert 0 < second["counter"] - first["counter"] < 2.5 * 1_500_000
        assert sum(device["slices"] for device in card["instances"]) <= 7 or not card["mig"]
