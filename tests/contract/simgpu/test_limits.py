"""Power limits: who may set which, what they do to clock, draw and speed, and when they are lost."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pynvml
import pytest

from sandbox.simgpu import cards
from sandbox.simgpu.build import Libraries
from sandbox.simgpu.cards import Cards
from tests.contract.simgpu.conftest import STATE, Make

PROFILES = sorted(cards.read_profiles())


@pytest.mark.parametrize(
    ("milliwatts", "error"),
    [
        (100_000, None),
        (250_000, None),
        (400_000, None),
        (99_999, pynvml.NVMLError_InvalidArgument),
        (400_001, pynvml.NVMLError_InvalidArgument),
        (0, pynvml.NVMLError_InvalidArgument),
    ],
)
def test_a_limit_is_set_within_the_cards_range_only(make: Make, milliwatts: int, error: type | None) -> None:
    make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    if error is not None:
        with pytest.raises(error):
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, milliwatts)
        milliwatts = 400_000
    else:
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, milliwatts)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == milliwatts


@pytest.mark.parametrize(
    ("version", "scope", "milliwatts", "code"),
    [
        (pynvml.nvmlPowerValue_v2, pynvml.NVML_POWER_SCOPE_GPU, 250_000, pynvml.NVML_SUCCESS),
        (pynvml.nvmlPowerValue_v2, pynvml.NVML_POWER_SCOPE_GPU, 1, pynvml.NVML_ERROR_INVALID_ARGUMENT),
        (pynvml.nvmlPowerValue_v2, pynvml.NVML_POWER_SCOPE_MODULE, 250_000, pynvml.NVML_ERROR_NOT_SUPPORTED),
        (1, pynvml.NVML_POWER_SCOPE_GPU, 250_000, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
    ],
)
def test_the_second_version_takes_its_struct(
    make: Make, version: int, scope: int, milliwatts: int, code: int
) -> None:
    make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    # nvidia-ml-py ignores what the function returns, so it is called as it calls it.
    value = pynvml.c_nvmlPowerValue_v2_t(version=version, powerScope=scope, powerValueMw=milliwatts)
    function = pynvml._nvmlGetFunctionPointer("nvmlDeviceSetPowerManagementLimit_v2")
    assert function(handle, ctypes.byref(value)) == code
    pynvml.nvmlDeviceSetPowerManagementLimit_v2(handle, scope, milliwatts)
    set_to = 250_000 if milliwatts == 250_000 and scope == pynvml.NVML_POWER_SCOPE_GPU else 400_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == set_to


AS_NOBODY = """
import os, pynvml
os.setgroups([]); os.setgid(65534); os.setuid(65534)
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
for name, arguments in (
    ("nvmlDeviceSetPowerManagementLimit", (200_000,)),
    ("nvmlDeviceSetPowerManagementLimit", (1,)),
    ("nvmlDeviceSetPersistenceMode", (0,)),
    ("nvmlDeviceSetGpuLockedClocks", (210, 1000)),
):
    try:
        getattr(pynvml, name)(handle, *arguments)
        print("done")
    except pynvml.NVMLError as error:
        print(type(error).__name__)
print(pynvml.nvmlDeviceGetPowerManagementLimit(handle), pynvml.nvmlDeviceGetPowerUsage(handle))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be become by root only")
@pytest.mark.parametrize("mode", [0o644, 0o666], ids=["read-only", "writable"])
def test_another_user_reads_everything_and_sets_nothing(libraries: Libraries, mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # pytest's own folders are closed to others.
        Path(folder).chmod(0o755)
        path = Path(folder) / "state"
        cards.create(path, ["A100"], mode=mode).close()
        code = f"import ctypes; ctypes.CDLL({str(libraries.nvml)!r}, mode=ctypes.RTLD_GLOBAL)\n{AS_NOBODY}"
        ran = subprocess.run(
            [sys.executable, "-c", code], env={STATE: str(path)}, capture_output=True, text=True, check=False
        )
    assert ran.stderr == ""
    assert ran.stdout.split() == ["NVMLError_NoPermission"] * 4 + ["400000", "50000"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_lower_limit_means_less_power_and_slower_work(make: Make, profile: str) -> None:
    state = make([profile])
    kind = cards.read_profiles()[profile]
    state.set_load(0, 1)
    free = state.read_card(0)
    assert (free.watts, free.clock_mhz, free.throughput) == (kind.full_watts, kind.max_mhz, 1.0)
    previous = free
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for watts in range(int(kind.max_watts), int(kind.min_watts) - 1, -5):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, watts * 1000)
        now = state.read_card(0)
        assert now.watts <= watts
        assert now.watts <= previous.watts
        assert now.clock_mhz <= previous.clock_mhz
        assert now.throughput <= previous.throughput
        assert (kind.max_mhz - now.clock_mhz) % 15 == 0
        binds = bool(
            pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & pynvml.nvmlClocksEventReasonSwPowerCap
        )
        assert binds is (watts < kind.full_watts) is (now.clock_mhz < kind.max_mhz)
        assert pynvml.nvmlDeviceGetPowerUsage(handle) <= round(free.watts * 1000)
        previous = now
    assert previous.throughput < 0.9


def test_a_limit_above_the_draw_changes_nothing(make: Make) -> None:
    state = make(["V100"])
    state.set_load(0, 0.3)
    before = state.read_card(0)
    state.set_limit(0, 150)
    after = state.read_card(0)
    assert (after.watts, after.clock_mhz, after.throughput) == (before.watts, before.clock_mhz, 1.0)


def test_below_the_lowest_clock_the_draw_exceeds_the_limit(make: Make) -> None:
    state = make(["H100"])
    state.set_load(0, 1)
    state.set_second_limit(0, 60)
    reading = state.read_card(0)
    assert reading.clock_mhz == cards.read_profiles()["H100"].min_mhz
    assert reading.watts > reading.enforced_watts == 60


@pytest.mark.parametrize(
    ("own", "second", "enforced"), [(400, None, 400), (300, 350, 300), (300, 200, 200), (300, 300, 300)]
)
def test_the_enforced_limit_is_the_least_of_all_limiters(
    make: Make, own: float, second: float | None, enforced: float
) -> None:
    state = make(["A100"])
    state.set_load(0, 1)
    state.set_limit(0, own)
    state.set_second_limit(0, second)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == own * 1000
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == enforced * 1000
    assert pynvml.nvmlDeviceGetPowerUsage(handle) <= enforced * 1000


def test_locked_clocks_bound_the_clock(make: Make) -> None:
    state = make(["A100"])
    state.set_load(0, 1)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    free = state.read_card(0)
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 210, 1000)
    locked = state.read_card(0)
    assert locked.clock_mhz == 990
    assert locked.reasons == pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    assert locked.throughput < 1
    pynvml.nvmlDeviceResetGpuLockedClocks(handle)
    assert state.read_card(0).watts == free.watts


def test_a_driver_reload_forgets_limits_and_modes(make: Make) -> None:
    state = make(["A100"] * 2)
    for card in state:
        state.set_load(card, 1)
        state.set_limit(card, 150)
    state.advance(3)
    state.reload_driver(0)
    state.advance(1)
    first, second = state.read_card(0), state.read_card(1)
    assert (first.limit_watts, first.persistence, first.counter_mj) == (400, False, 360_000)
    assert (second.limit_watts, second.persistence) == (150, True)
    assert second.counter_mj == second.energy_pj // 10**9
    assert first.energy_pj == 3 * second.energy_pj // 4 + 360 * 10**12


def _bad(state: Cards) -> list[tuple[Any, str]]:
    return [
        (lambda: state.set_load(0, 1.5), r"load: 1\.5"),
        (lambda: state.set_load(1, 0.5), r"card: 1 is not there"),
        (lambda: state.set_load(-1, 0.5), r"card: -1 is not there"),
        (lambda: state.set_limit(0, 401), r"watts: 401"),
        (lambda: state.set_limit(0, -1), r"watts: -1"),
        (lambda: state.set_memory(0, -1), r"used_bytes: -1"),
        (lambda: state.advance(-1), r"seconds: -1"),
        (lambda: state.set_processes(0, [cards.Process(1)] * 65), r"64 processes"),
        (lambda: state.set_processes(0, [cards.Process(1, instance=0)]), r"set_processes"),
        (lambda: state.fault(0, cards.Fault.SLOW), r"milliseconds: 0"),
        (lambda: state.fault(0, cards.Fault.LOST, 5, 5), r"end_ns: 5"),
        (lambda: state.fault(0, cards.Fault.NOT_LOADED), r"card: 0"),
    ]


@pytest.mark.parametrize("number", range(12))
def test_a_bad_value_is_named(make: Make, number: int) -> None:
    state = make(["A100"], init=False)
    act, message = _bad(state)[number]
    before = state.read_card(0)
    with pytest.raises(cards.BadValueError, match=message):
        act()
    assert state.read_card(0) == before


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "0 given"),
        (["A100"] * 17, "17 given"),
        (["K80"], "there is no 'K80'; give one of V100"),
        ([cards.Card("A100", ("9g.90gb",))], "do not fit"),
        ([cards.Card("A100", ("4g.20gb", "4g.20gb"))], "do not fit"),
        ([cards.Card("V100", ("1g.5gb",))], "do not fit"),
        ([cards.Card("A100", ("1g.5gb",) * 8)], "at most 7"),
    ],
)
def test_cards_that_cannot_be_are_not_made(make: Make, wanted: list[cards.Card | str], message: str) -> None:
    with pytest.raises(cards.BadValueError, match=message):
        make(wanted)


def test_a_machines_clock_is_not_advanced(make: Make) -> None:
    state = make(["A100"], virtual=False)
    with pytest.raises(cards.BadValueError, match="virtual=True"):
        state.advance(1)
