"""Many processes share one state: no lock stops a reader, no kill breaks it, and no joule is lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pynvml
import pytest

from sandbox.simgpu import cards
from sandbox.simgpu.build import Libraries
from sandbox.simgpu.cards import StateUnusableError
from sandbox.simgpu.meter import Meter
from tests.contract.simgpu.conftest import STATE, Make

FORK = multiprocessing.get_context("fork")


def _write(path: Path, seconds: float, seed: int) -> None:
    chance = random.Random(seed)
    until = time.monotonic() + seconds
    with cards.open(path) as state:
        while time.monotonic() < until:
            card = chance.randrange(state.count)
            if chance.random() < 0.7:
                state.set_load(card, chance.random())
            else:
                state.set_limit(card, chance.choice([150, 200, 250, 300]))
            time.sleep(chance.random() * 0.002)


def _read(seconds: float) -> None:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    last = [0] * len(handles)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for index, handle in enumerate(handles):
            counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            assert counter >= last[index]
            last[index] = counter
            assert 45_000 <= pynvml.nvmlDeviceGetPowerUsage(handle) <= 235_000
            assert 150_000 <= pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) <= 300_000
    pynvml.nvmlShutdown()


def test_the_counter_is_monotone_for_every_reader_while_others_write(make: Make) -> None:
    state = make(["V100"] * 4, virtual=False, init=False)
    meter = Meter(state)
    workers = [
        *(FORK.Process(target=_write, args=(state.path, 1.5, seed)) for seed in range(3)),
        *(FORK.Process(target=_read, args=(1.5,)) for _ in range(3)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    for card in state:
        reading = state.read_card(card)
        assert reading.events > 100
        assert meter.total(card, reading.at_ns) == reading.energy_pj


def _write_wildly(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with cards.open(path) as state:
        while True:
            state.set_load(chance.randrange(state.count), chance.random())


def test_writers_killed_at_any_instant_leave_a_whole_state(make: Make) -> None:
    state = make(["V100"] * 16, virtual=False)
    meter = Meter(state)
    chance = random.Random(0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for seed in range(40):
        before = [state.read_card(card).energy_pj for card in state]
        events = sum(state.read_card(card).events for card in state)
        writers = [FORK.Process(target=_write_wildly, args=(state.path, 2 * seed + i)) for i in range(2)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 10
        while sum(state.read_card(card).events for card in state) == events and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        meter.drain()
        for card in state:
            reading = state.read_card(card)
            assert reading.energy_pj > before[card]
            assert meter.total(card, reading.at_ns) == reading.energy_pj
        # The next writer is not held up, and what it sets is what is read.
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 150_000 + seed)
        assert state.read_card(0).limit_watts == 150 + seed / 1000


def test_a_stopped_writer_holds_up_no_reader(make: Make) -> None:
    state = make(["V100"], virtual=False)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    writer = FORK.Process(target=_write_wildly, args=(state.path, 1))
    writer.start()
    assert writer.pid is not None
    try:
        for _ in range(20):
            os.kill(writer.pid, signal.SIGSTOP)
            begin = time.monotonic()
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            state.read_card(0)
            assert time.monotonic() - begin < 1
            os.kill(writer.pid, signal.SIGCONT)
            time.sleep(0.002)
    finally:
        writer.kill()
        writer.join()


def test_threads_share_one_initialisation(make: Make) -> None:
    state = make(["V100"] * 4, virtual=False)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(card) for card in state]
    wrong: list[object] = []

    def work(number: int) -> None:
        for round_ in range(200):
            try:
                pynvml.nvmlInit()
                pynvml.nvmlDeviceSetPowerManagementLimit(handles[number], 200_000 + round_)
                if pynvml.nvmlDeviceGetPowerManagementLimit(handles[number]) != 200_000 + round_:
                    wrong.append(round_)
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_of_an_initialised_program_goes_on(make: Make) -> None:
    state = make(["V100"], virtual=False)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def child() -> None:
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 222_000)

    worker = FORK.Process(target=child)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert state.read_card(0).limit_watts == 222


READ_ONLY = """
import os, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(1)
print(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetPowerUsage(handle))
try:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 200_000)
except pynvml.NVMLError as error:
    print(type(error).__name__, os.geteuid())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_state_mounted_read_only_is_read_and_not_set_even_by_root(
    make: Make, libraries: Libraries, tmp_path: Path
) -> None:
    state = make(["H100"] * 2, virtual=False, init=False)
    (tmp_path / "seen").mkdir()
    script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && exec "$3" -c "$4"'
    ran = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            tmp_path,
            tmp_path / "seen",
            sys.executable,
            READ_ONLY,
        ],
        env={
            **os.environ,
            STATE: str(tmp_path / "seen" / "state"),
            "LD_LIBRARY_PATH": str(libraries.folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"no private mounts here: {ran.stderr.strip()}")
    assert ran.stdout.splitlines() == ["NVIDIA H100 80GB HBM3 70000", "NVMLError_NoPermission 0"]
    assert state.read_card(1).limit_watts == 700


def _spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "absent":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(content[:-1])
    elif how == "of another program":
        content[0:4] = b"GIF8"
        path.write_bytes(content)
    else:
        content[8] += 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("absent", pynvml.NVMLError_DriverNotLoaded),
        ("empty", pynvml.NVMLError_LibRmVersionMismatch),
        ("cut short", pynvml.NVMLError_LibRmVersionMismatch),
        ("of another program", pynvml.NVMLError_LibRmVersionMismatch),
        ("of another version", pynvml.NVMLError_LibRmVersionMismatch),
    ],
)
def test_a_state_that_is_unusable_is_refused(make: Make, how: str, error: type[Exception]) -> None:
    path = make(["V100"], init=False).path
    _spoil(path, how)
    with pytest.raises(error):
        pynvml.nvmlInit()
    with pytest.raises(StateUnusableError, match="create --state"):
        cards.open(path)


def test_a_replaced_state_is_seen_after_the_next_initialisation(make: Make) -> None:
    make(["V100"] * 2)
    make(["V100"] * 5, init=False)
    assert pynvml.nvmlDeviceGetCount() == 2
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 5
