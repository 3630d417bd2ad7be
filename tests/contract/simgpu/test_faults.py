"""Scripted faults show through NVML for as long as they last and never touch the true energy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from sandbox.simgpu.cards import BadValueError, Calls, Cards, Fault
from tests.contract.simgpu.conftest import Make

SECOND = 10**9

Call = tuple[str, tuple[Any, ...]]
ENERGY: Call = ("nvmlDeviceGetTotalEnergyConsumption", ())
POWER: Call = ("nvmlDeviceGetPowerUsage", ())
LIMIT: Call = ("nvmlDeviceGetPowerManagementLimit", ())
ENFORCED: Call = ("nvmlDeviceGetEnforcedPowerLimit", ())
SET: Call = ("nvmlDeviceSetPowerManagementLimit", (300_000,))
PROCESSES: Call = ("nvmlDeviceGetComputeRunningProcesses", ())
NAME: Call = ("nvmlDeviceGetName", ())
CLOCK: Call = ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_SM,))
USE: Call = ("nvmlDeviceGetUtilizationRates", ())
MEMORY: Call = ("nvmlDeviceGetMemoryInfo", ())
MODE: Call = ("nvmlDeviceGetMigMode", ())
OTHER: Call = ("nvmlDeviceGetTemperature", (pynvml.NVML_TEMPERATURE_GPU,))
EVERY = [ENERGY, POWER, LIMIT, ENFORCED, SET, PROCESSES, NAME, CLOCK, USE, MEMORY, MODE, OTHER]


def ask(handle: Any, call: Call) -> Any:
    return getattr(pynvml, call[0])(handle, *call[1])


def failing(handle: Any) -> dict[str, type]:
    """Which calls fail now, and how."""
    failures: dict[str, type] = {}
    for call in EVERY:
        try:
            ask(handle, call)
        except pynvml.NVMLError as error:
            failures[call[0]] = type(error)
    return failures


FAILURES: list[tuple[Fault, Calls | None, list[Call], type]] = [
    (Fault.LOST, None, EVERY, pynvml.NVMLError_GpuIsLost),
    (Fault.UNKNOWN, None, EVERY, pynvml.NVMLError_Unknown),
    (Fault.TIMEOUT, None, EVERY, pynvml.NVMLError_Timeout),
    (Fault.NOT_SUPPORTED, None, [ENERGY], pynvml.NVMLError_NotSupported),
    (Fault.NOT_SUPPORTED, Calls.POWER, [POWER], pynvml.NVMLError_NotSupported),
    (Fault.NOT_SUPPORTED, Calls.SET, [SET], pynvml.NVMLError_NotSupported),
    (Fault.NOT_SUPPORTED, Calls.PROCESSES, [PROCESSES], pynvml.NVMLError_NotSupported),
    (
        Fault.NOT_SUPPORTED,
        Calls.ENERGY | Calls.LIMIT,
        [ENERGY, LIMIT, ENFORCED],
        pynvml.NVMLError_NotSupported,
    ),
    (Fault.NO_PERMISSION, None, [SET], pynvml.NVMLError_NoPermission),
    (Fault.TIMEOUT, Calls.CLOCKS, [CLOCK], pynvml.NVMLError_Timeout),
]


@pytest.mark.parametrize("whole", [False, True], ids=["card", "library"])
@pytest.mark.parametrize(
    ("fault", "calls", "concerned", "error"), FAILURES, ids=[f"{f.value}-{c!s}" for f, c, _, _ in FAILURES]
)
def test_a_failure_concerns_its_calls_in_its_window_and_nothing_else(
    make: Make, fault: Fault, calls: Calls | None, concerned: list[Call], error: type, whole: bool
) -> None:
    state = make(["A100"] * 2)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(card) for card in state]
    state.fault(None if whole else 0, fault, 2 * SECOND, 4 * SECOND, calls=calls)
    during = {call[0]: error for call in concerned}
    for at, expected in ((1, {}), (2, during), (3, during), (4, {})):
        state.advance(at - state.now_ns / SECOND)
        assert failing(handles[0]) == expected
        assert failing(handles[1]) == (expected if whole else {})
    assert state.read_card(0).energy_pj == state.read_card(1).energy_pj == 200 * 10**12


def test_a_lost_card_is_not_even_found_while_the_others_are(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = [state.read_card(card).uuid for card in state]
    state.fault(0, Fault.LOST)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByUUID(uuids[0])
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuids[1])) == 1
    state.clear_faults()
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuids[0])) == 0


@pytest.mark.parametrize("card", [0, None], ids=["card", "library"])
def test_a_scheduled_reload_happens_at_its_time_though_nobody_writes(make: Make, card: int | None) -> None:
    state = make(["V100"] * 2)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in state]
    for index in state:
        state.set_load(index, 1)
        state.set_limit(index, 150)
    capped = state.read_card(0).watts
    state.fault(card, Fault.RESET, 5 * SECOND)
    state.advance(4.9)
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handles[0]) == 150_000
    state.advance(2.1)
    for index, met in ((0, True), (1, card is None)):
        reading = state.read_card(index)
        assert reading.limit_watts == (300 if met else 150)
        assert pynvml.nvmlDeviceGetPersistenceMode(handles[index]) == (0 if met else 1)
        counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(handles[index])
        assert counter == round((2 * 235 if met else 7 * capped) * 1000)
        assert reading.joules == pytest.approx(5 * capped + 2 * (235 if met else capped))
    state.set_limit(0, 200)
    assert state.read_card(0).faults == 0
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handles[0]) == 200_000


def test_a_stuck_counter_jumps_to_the_truth_afterwards(make: Make) -> None:
    state = make(["V100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.STUCK, SECOND, 3 * SECOND)
    seen = []
    for _ in range(4):
        state.advance(1)
        seen.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert seen == [45_000, 45_000, 135_000, 180_000]


def test_a_shifted_counter_shows_more_or_less_for_a_while(make: Make) -> None:
    state = make(["V100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.SHIFTED, 2 * SECOND, 3 * SECOND, joules=-40)
    state.fault(0, Fault.SHIFTED, 3 * SECOND, 4 * SECOND, joules=-600)
    state.fault(0, Fault.SHIFTED, 3 * SECOND, 4 * SECOND, joules=-400)
    seen = []
    for _ in range(4):
        state.advance(1)
        seen.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert seen == [45_000, 50_000, 2**64 - 1_000_000 + 135_000, 180_000]


def test_a_counter_that_counts_a_share_lags_behind_from_then_on(make: Make) -> None:
    state = make(["V100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.SHARE, SECOND, 3 * SECOND, share=0.2)
    seen = []
    for _ in range(4):
        state.advance(1)
        seen.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert seen == [45_000, 54_000, 135_000, 180_000]
    with pytest.raises(BadValueError, match="share: 2"):
        state.fault(0, Fault.SHARE, share=2)


def test_a_garbage_reading_is_what_was_asked_for(make: Make) -> None:
    state = make(["H100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.GARBAGE, watts=4_000_000)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 4_000_000_000
    state.clear_faults(0)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 70_000


def test_a_field_that_fails_fails_alone(make: Make) -> None:
    state = make(["H100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.NOT_SUPPORTED, calls=Calls.ENERGY)
    energy, power = pynvml.nvmlDeviceGetFieldValues(
        handle, [pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, pynvml.NVML_FI_DEV_POWER_INSTANT]
    )
    assert (energy.nvmlReturn, power.nvmlReturn) == (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_SUCCESS)


def test_a_driver_that_is_not_loaded_refuses_initialisation(make: Make) -> None:
    state = make(["A100"], init=False)
    state.fault(None, Fault.NOT_LOADED, 0, SECOND)
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()
    state.advance(1)
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()


def test_initialisation_can_fail_in_other_ways(make: Make) -> None:
    state = make(["A100"], init=False)
    state.fault(None, Fault.UNKNOWN, calls=Calls.INIT)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlInit()


def _timed(act: Callable[[], Any]) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


def test_a_slow_call_takes_real_time_on_the_machines_clock(make: Make) -> None:
    state = make(["A100"] * 2, virtual=False)
    handles = [pynvml.nvmlDeviceGetHandleByIndex(card) for card in state]
    state.fault(0, Fault.SLOW, calls=Calls.ENERGY, milliseconds=150)
    assert _timed(lambda: ask(handles[0], ENERGY)) >= 0.15
    assert _timed(lambda: ask(handles[0], POWER)) < 0.15
    assert _timed(lambda: ask(handles[1], ENERGY)) < 0.15
    assert state.read_card(0).slow_calls == 1


def test_a_slow_call_is_only_recorded_on_a_virtual_clock(make: Make) -> None:
    state = make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.SLOW, calls=Calls.ENERGY, milliseconds=60_000)
    assert _timed(lambda: [ask(handle, ENERGY) for _ in range(3)]) < 5
    reading = state.read_card(0)
    assert (reading.slow_calls, reading.slow_ms) == (3, 180_000)


def _hang(state: Cards, handle: Any, end: Callable[[], Any]) -> None:
    """A call that hangs does so until `end` was done, and lets other calls through meanwhile."""
    answered = threading.Event()

    def call() -> None:
        ask(handle, POWER)
        answered.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert not answered.wait(0.1)
    assert ask(handle, NAME) == "NVIDIA A100-SXM4-40GB"
    end()
    assert answered.wait(5)
    thread.join()
    assert state.read_card(0).watts == 50


@pytest.mark.parametrize("way", ["the window ends", "it is cleared"])
def test_a_hanging_call_goes_on_when(make: Make, way: str) -> None:
    state = make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.HANG, 0, 10 * SECOND, calls=Calls.POWER)
    _hang(state, handle, state.clear_faults if way == "it is cleared" else lambda: state.advance(10))


def test_a_hanging_call_goes_on_after_its_own_real_time(make: Make) -> None:
    state = make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.HANG, calls=Calls.POWER, milliseconds=120)
    assert 0.12 <= _timed(lambda: ask(handle, POWER)) < 5


def test_shutting_down_during_a_hanging_call_is_safe(make: Make) -> None:
    state = make(["A100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.fault(0, Fault.HANG, calls=Calls.POWER)

    def end() -> None:
        pynvml.nvmlShutdown()
        state.clear_faults()

    _hang(state, handle, end)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def test_past_faults_make_room_for_new_ones(make: Make) -> None:
    state = make(["A100"])
    for number in range(100):
        state.fault(0, Fault.LOST, number * SECOND, (number + 1) * SECOND)
        state.fault(None, Fault.SLOW, number * SECOND, (number + 1) * SECOND, milliseconds=1)
        state.advance(1)
    for _ in range(32):
        state.fault(0, Fault.STUCK)
    with pytest.raises(BadValueError, match="32 faults"):
        state.fault(0, Fault.STUCK)
