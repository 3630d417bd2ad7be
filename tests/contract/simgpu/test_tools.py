"""NVML programs others wrote run unchanged on the simulated cards, and what they report is what the cards did."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.cache import read_cache_directory
from sandbox.simgpu.build import Libraries
from sandbox.simgpu.cards import PICOJOULES, Process
from sandbox.simgpu.meter import Meter
from sandbox.simgpu.peers import apply_peers
from tests.contract.simgpu.conftest import STATE, Make


@pytest.fixture(scope="session")
def peers() -> Path:
    return apply_peers(read_cache_directory())


def _environment(libraries: Libraries, state: Path, home: Path) -> Mapping[str, str]:
    return {
        "PATH": f"{libraries.programs}:{os.environ.get('PATH', '/usr/bin')}",
        "LD_LIBRARY_PATH": str(libraries.folder),
        "HOME": str(home),
        STATE: str(state),
    }


def test_gpustat_shows_the_cards(make: Make, libraries: Libraries, peers: Path, tmp_path: Path) -> None:
    state = make(["A100", "H100"], virtual=False, init=False)
    state.set_load(0, 0.8)
    state.set_processes(0, [Process(os.getpid(), 5 << 30)])
    state.set_limit(0, 250)
    ran = subprocess.run(
        [peers / "bin" / "gpustat", "--json"],
        env=_environment(libraries, state.path, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = json.loads(ran.stdout)["gpus"]
    seen = {
        key: first[key] for key in ("name", "uuid", "utilization.gpu", "power.draw", "enforced.power.limit")
    }
    assert seen == {
        "name": "NVIDIA A100-SXM4-40GB",
        "uuid": state.read_card(0).uuid,
        "utilization.gpu": 80,
        "power.draw": int(state.read_card(0).watts),
        "enforced.power.limit": 250,
    }
    assert [process["pid"] for process in first["processes"]] == [os.getpid()]
    assert (second["name"], second["power.draw"]) == ("NVIDIA H100 80GB HBM3", 70)


CODECARBON = """
import sys
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(
    country_iso_code="DEU", measure_power_secs=1, save_to_file=False, log_level="error", allow_multiple_runs=True
)
tracker.start()
print("started", flush=True)
sys.stdin.readline()
tracker.stop()
data = tracker.final_emissions_data
print(data.gpu_energy * 3.6e6, data.gpu_count, data.gpu_model, sep="|", flush=True)
"""


def test_codecarbon_measures_what_the_exact_meter_does(
    make: Make, libraries: Libraries, peers: Path, tmp_path: Path
) -> None:
    state = make(["V100", "V100"], virtual=False, init=False)
    meter = Meter(state)
    with subprocess.Popen(
        [peers / "bin" / "python", "-c", CODECARBON],
        env=_environment(libraries, state.path, tmp_path),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as tracker:
        assert tracker.stdin is not None
        assert tracker.stdout is not None
        while tracker.stdout.readline().strip() != "started":
            assert tracker.poll() is None
        begin = sum(meter.total(card) for card in state)
        for load in (1.0, 0.2, 0.7, 0.0, 0.5, 0.9):
            for card in state:
                state.set_load(card, load)
            time.sleep(1)
        for card in state:
            state.set_load(card, 0)
        joules = (sum(meter.total(card) for card in state) - begin) / PICOJOULES
        tracker.stdin.write("\n")
        tracker.stdin.flush()
        measured, count, model = tracker.stdout.read().strip().split("|")
    assert (count, model) == ("2", "2 x Tesla V100-SXM2-16GB")
    assert float(measured) == pytest.approx(joules, rel=0.05)
