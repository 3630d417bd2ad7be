"""Every NVML function that is simulated answers the unmodified nvidia-ml-py; the others are as absent as on an old driver."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from sandbox.simgpu.build import SOURCES, Libraries
from sandbox.simgpu.cards import Card, Process
from tests.contract.simgpu.conftest import Make

GIB = 1 << 30

Ask = Callable[[Any], Any]


def named(name: str, *arguments: Any) -> Ask:
    return lambda handle: getattr(pynvml, name)(handle, *arguments)


# What a busy A100 under a 250 W limit answers; `...` means: an answer, whatever it is.
ANSWERS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("nvmlDeviceGetName", (), "NVIDIA A100-SXM4-40GB"),
    ("nvmlDeviceGetIndex", (), 1),
    ("nvmlDeviceGetMinorNumber", (), 1),
    ("nvmlDeviceGetUUID", (), ...),
    ("nvmlDeviceGetSerial", (), ...),
    ("nvmlDeviceGetVbiosVersion", (), ...),
    ("nvmlDeviceGetBoardId", (), ...),
    ("nvmlDeviceGetMultiGpuBoard", (), 0),
    ("nvmlDeviceGetBrand", (), pynvml.NVML_BRAND_NVIDIA),
    ("nvmlDeviceGetArchitecture", (), pynvml.NVML_DEVICE_ARCH_AMPERE),
    ("nvmlDeviceGetCudaComputeCapability", (), (8, 0)),
    ("nvmlDeviceGetNumGpuCores", (), 6912),
    ("nvmlDeviceGetMemoryBusWidth", (), 5120),
    ("nvmlDeviceGetBusType", (), pynvml.NVML_BUS_TYPE_PCIE),
    ("nvmlDeviceGetPowerUsage", (), 248191),
    ("nvmlDeviceGetPowerManagementMode", (), 1),
    ("nvmlDeviceGetPowerManagementLimit", (), 250000),
    ("nvmlDeviceGetPowerManagementDefaultLimit", (), 400000),
    ("nvmlDeviceGetPowerManagementLimitConstraints", (), [100000, 400000]),
    ("nvmlDeviceGetEnforcedPowerLimit", (), 250000),
    ("nvmlDeviceGetPowerSource", (), pynvml.NVML_POWER_SOURCE_AC),
    ("nvmlDeviceGetTotalEnergyConsumption", (), 2481910),
    ("nvmlDeviceGetPersistenceMode", (), 1),
    ("nvmlDeviceSetPersistenceMode", (1,), None),
    ("nvmlDeviceSetPowerManagementLimit", (250000,), None),
    ("nvmlDeviceSetGpuLockedClocks", (210, 1410), None),
    ("nvmlDeviceResetGpuLockedClocks", (), None),
    ("nvmlDeviceGetTemperature", (pynvml.NVML_TEMPERATURE_GPU,), 61),
    ("nvmlDeviceGetTemperatureV", (pynvml.NVML_TEMPERATURE_GPU,), 61),
    ("nvmlDeviceGetTemperatureThreshold", (pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,), 89),
    ("nvmlDeviceGetNumFans", (), 0),
    ("nvmlDeviceGetFanSpeed", (), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetFanSpeed_v2", (0,), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_SM,), 1080),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_GRAPHICS,), 1080),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_MEM,), 1215),
    ("nvmlDeviceGetClockInfo", (pynvml.NVML_CLOCK_VIDEO,), 988),
    ("nvmlDeviceGetMaxClockInfo", (pynvml.NVML_CLOCK_SM,), 1410),
    ("nvmlDeviceGetMaxCustomerBoostClock", (pynvml.NVML_CLOCK_SM,), 1410),
    ("nvmlDeviceGetApplicationsClock", (pynvml.NVML_CLOCK_SM,), 1095),
    ("nvmlDeviceGetDefaultApplicationsClock", (pynvml.NVML_CLOCK_SM,), 1095),
    ("nvmlDeviceGetClock", (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_ID_CURRENT), 1080),
    ("nvmlDeviceGetClock", (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_ID_CUSTOMER_BOOST_MAX), 1410),
    ("nvmlDeviceGetSupportedMemoryClocks", (), [1215]),
    ("nvmlDeviceGetSupportedGraphicsClocks", (1215,), list(range(1410, 209, -15))),
    ("nvmlDeviceGetSupportedGraphicsClocks", (1,), pynvml.NVMLError_NotFound),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", (), pynvml.nvmlClocksThrottleReasonSwPowerCap),
    ("nvmlDeviceGetCurrentClocksEventReasons", (), pynvml.nvmlClocksEventReasonSwPowerCap),
    ("nvmlDeviceGetSupportedClocksThrottleReasons", (), 0x1FF),
    ("nvmlDeviceGetSupportedClocksEventReasons", (), 0x1FF),
    ("nvmlDeviceGetPerformanceState", (), pynvml.NVML_PSTATE_0),
    ("nvmlDeviceGetPowerState", (), pynvml.NVML_PSTATE_0),
    ("nvmlDeviceGetEncoderUtilization", (), ...),
    ("nvmlDeviceGetDecoderUtilization", (), ...),
    ("nvmlDeviceGetBAR1MemoryInfo", (), ...),
    ("nvmlDeviceGetGraphicsRunningProcesses", (), []),
    ("nvmlDeviceGetGraphicsRunningProcesses_v2", (), []),
    ("nvmlDeviceGetMPSComputeRunningProcesses", (), []),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v2", (), []),
    ("nvmlDeviceGetComputeMode", (), pynvml.NVML_COMPUTEMODE_DEFAULT),
    ("nvmlDeviceGetDisplayMode", (), 0),
    ("nvmlDeviceGetDisplayActive", (), 0),
    ("nvmlDeviceGetMaxPcieLinkGeneration", (), 4),
    ("nvmlDeviceGetCurrPcieLinkGeneration", (), 4),
    ("nvmlDeviceGetMaxPcieLinkWidth", (), 16),
    ("nvmlDeviceGetCurrPcieLinkWidth", (), 16),
    ("nvmlDeviceGetC2cModeInfoV", (), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetEccMode", (), [1, 1]),
    ("nvmlDeviceGetTotalEccErrors", (0, 0), 0),
    ("nvmlDeviceGetMigMode", (), [0, 0]),
    ("nvmlDeviceGetMaxMigDeviceCount", (), 0),
    ("nvmlDeviceGetMigDeviceHandleByIndex", (0,), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetGpuInstanceId", (), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetComputeInstanceId", (), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetAttributes", (), pynvml.NVMLError_NotSupported),
    ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", (), pynvml.NVMLError_InvalidArgument),
]


@pytest.mark.parametrize(
    ("name", "arguments", "answer"), ANSWERS, ids=[f"{name}{arguments}" for name, arguments, _ in ANSWERS]
)
def test_a_function_answers_for_a_busy_capped_a100(
    make: Make, name: str, arguments: tuple[Any, ...], answer: Any
) -> None:
    state = make(["V100", "A100"])
    state.set_load(1, 1)
    state.set_limit(1, 250)
    state.advance(10)
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    if isinstance(answer, type):
        with pytest.raises(answer):
            named(name, *arguments)(handle)
    elif answer is ...:
        assert named(name, *arguments)(handle) is not None
    else:
        assert named(name, *arguments)(handle) == answer


def test_the_library_tells_its_versions_and_counts(make: Make) -> None:
    make(["A100"] * 3)
    assert re.fullmatch(r"\d+\.\d+\.\d+", pynvml.nvmlSystemGetDriverVersion())
    assert pynvml.nvmlSystemGetNVMLVersion().endswith(pynvml.nvmlSystemGetDriverVersion())
    assert pynvml.nvmlSystemGetCudaDriverVersion() == pynvml.nvmlSystemGetCudaDriverVersion_v2() == 13000
    assert pynvml.nvmlDeviceGetCount() == 3
    assert pynvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST) == "GPU is lost"
    assert pynvml.nvmlErrorString(12345) == "Unknown Error"


def test_a_card_is_found_by_everything_that_names_it(make: Make) -> None:
    make(["A100"] * 16)
    for index in range(16):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid)
        bus = pynvml.nvmlDeviceGetPciInfo(handle)
        extended = pynvml.nvmlPciInfoExt_v1_t(version=pynvml.nvmlPciInfoExt_v1)
        pynvml.nvmlDeviceGetPciInfoExt(handle, ctypes.byref(extended))
        assert extended.busId == bus.busId
        for found in (
            pynvml.nvmlDeviceGetHandleByUUID(uuid),
            pynvml.nvmlDeviceGetHandleByUUIDV(uuid.encode(), pynvml.NVML_UUID_TYPE_ASCII),
            pynvml.nvmlDeviceGetHandleBySerial(pynvml.nvmlDeviceGetSerial(handle)),
            pynvml.nvmlDeviceGetHandleByPciBusId(bus.busId),
            pynvml.nvmlDeviceGetHandleByPciBusId(bus.busIdLegacy),
        ):
            assert pynvml.nvmlDeviceGetIndex(found) == index
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(16)
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize(("seeds", "same"), [((3, 3), True), ((3, 4), False)])
def test_uuids_follow_the_seed(make: Make, seeds: tuple[int, int], same: bool) -> None:
    found = [
        [state.read_card(card).uuid for card in state]
        for state in (make(["A100"] * 4, seed=s) for s in seeds)
    ]
    assert (found[0] == found[1]) is same
    assert len({*found[0], *found[1]}) == (4 if same else 8)


@pytest.mark.parametrize(
    ("profile", "name", "capability", "limits", "total"),
    [
        ("V100", "Tesla V100-SXM2-16GB", (7, 0), (150, 300, 300), 16 * GIB),
        ("V100-32GB", "Tesla V100-SXM2-32GB", (7, 0), (150, 300, 300), 32 * GIB),
        ("A100", "NVIDIA A100-SXM4-40GB", (8, 0), (100, 400, 400), 40 * GIB),
        ("H100", "NVIDIA H100 80GB HBM3", (9, 0), (200, 700, 700), 81559 << 20),
    ],
)
def test_a_profile_is_what_its_owner_would_see(
    make: Make, profile: str, name: str, capability: tuple[int, int], limits: tuple[int, int, int], total: int
) -> None:
    make([profile])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    least, most = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    default = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)
    assert pynvml.nvmlDeviceGetName(handle) == name
    assert pynvml.nvmlDeviceGetCudaComputeCapability(handle) == capability
    assert (least / 1000, default / 1000, most / 1000) == limits
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == total


def test_memory_and_processes_are_those_set(make: Make) -> None:
    state = make(["A100"])
    state.set_processes(0, [Process(4711, 3 * GIB), Process(4712, GIB)])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for ask in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetComputeRunningProcesses_v2,
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
    ):
        found = ask(handle)
        assert [(p.pid, p.usedGpuMemory) for p in found] == [(4711, 3 * GIB), (4712, GIB)]
        assert {p.gpuInstanceId for p in found} == {0xFFFFFFFF}
    second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    assert second.used == 4 * GIB
    assert second.used + second.free + second.reserved == second.total == 40 * GIB
    first = pynvml.nvmlDeviceGetMemoryInfo(handle)
    assert (first.used, first.used + first.free) == (second.used + second.reserved, first.total)
    state.set_processes(0, [])
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []


@pytest.mark.parametrize(("load", "percent"), [(0.0, 0), (0.000001, 1), (0.42, 42), (1.0, 100)])
def test_utilization_follows_the_load(make: Make, load: float, percent: int) -> None:
    state = make(["A100"])
    state.set_load(0, load)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == percent
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    assert bool(reasons & pynvml.nvmlClocksEventReasonGpuIdle) is (load == 0)


@pytest.mark.parametrize(
    ("profile", "averages"), [("V100", False), ("A100", False), ("H100", True)], ids=["V100", "A100", "H100"]
)
def test_power_is_the_last_seconds_average_where_the_architecture_averages(
    make: Make, profile: str, averages: bool
) -> None:
    state = make([profile])
    state.advance(5)
    idle = state.read_card(0).watts
    state.set_load(0, 1)
    state.advance(0.25)
    busy = state.read_card(0).watts
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    mixed = round((0.75 * idle + 0.25 * busy) * 1000)
    instant, average, module = pynvml.nvmlDeviceGetFieldValues(
        handle,
        [
            pynvml.NVML_FI_DEV_POWER_INSTANT,
            (pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_POWER_SCOPE_GPU),
            (pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_POWER_SCOPE_MODULE),
        ],
    )
    assert instant.value.uiVal == round(busy * 1000)
    assert average.nvmlReturn == (pynvml.NVML_SUCCESS if averages else pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert module.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == (mixed if averages else round(busy * 1000))
    if averages:
        assert average.value.uiVal == mixed


def test_field_values_agree_with_the_functions(make: Make) -> None:
    state = make(["H100"])
    state.set_limit(0, 500)
    state.set_second_limit(0, 300)
    state.advance(60)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    wanted = {
        pynvml.NVML_FI_DEV_POWER_MIN_LIMIT: 200_000,
        pynvml.NVML_FI_DEV_POWER_MAX_LIMIT: 700_000,
        pynvml.NVML_FI_DEV_POWER_DEFAULT_LIMIT: 700_000,
        pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT: 300_000,
        pynvml.NVML_FI_DEV_POWER_REQUESTED_LIMIT: 500_000,
        pynvml.NVML_FI_DEV_ECC_CURRENT: 1,
    }
    values = pynvml.nvmlDeviceGetFieldValues(
        handle, [*wanted, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, pynvml.NVML_FI_DEV_MEMORY_TEMP]
    )
    assert [value.value.uiVal for value in values[: len(wanted)]] == list(wanted.values())
    energy, memory = values[len(wanted) :]
    assert energy.value.ullVal == pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 4_200_000
    assert energy.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert memory.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nvmlDeviceGetCount", ()),
        ("nvmlSystemGetDriverVersion", ()),
        ("nvmlDeviceGetHandleByIndex", (0,)),
        ("nvmlDeviceGetHandleByUUID", ("GPU-x",)),
        ("nvmlShutdown", ()),
    ],
)
def test_before_initialisation_every_call_says_so(make: Make, name: str, arguments: tuple[Any, ...]) -> None:
    make(["A100"])
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        getattr(pynvml, name)(*arguments)


def test_initialisation_is_counted(make: Make) -> None:
    make(["A100"])
    pynvml.nvmlInit()
    pynvml.nvmlInitWithFlags(0)
    pynvml.nvmlShutdown()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 1
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetPowerUsage(handle)


def test_a_foreign_handle_is_an_invalid_argument(make: Make) -> None:
    make(["A100"])
    for address in (0, 0x1234, ctypes.addressof(ctypes.create_string_buffer(64))):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetPowerUsage(ctypes.cast(address, pynvml.c_nvmlDevice_t))


@pytest.mark.parametrize(
    "name", ["nvmlDeviceGetGspFirmwareMode", "nvmlDeviceGetNvLinkState", "nvmlVgpuInstanceGetVmID"]
)
def test_what_is_left_out_is_not_found(make: Make, name: str) -> None:
    make(["A100"])
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml._nvmlGetFunctionPointer(name)


def test_only_nvml_is_exported_and_only_what_nvidia_ml_py_knows(libraries: Libraries) -> None:
    def exported(library: Path) -> set[str]:
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
        )
        return {line.split()[-1] for line in listing.stdout.splitlines()}

    known = set(re.findall(r'"(nvml[A-Za-z0-9_]+)"', Path(pynvml.__file__).read_text()))
    # Names of older headers that programs in C are linked with.
    older = {"nvmlInit", "nvmlInit_v2", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}
    older |= {"nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetAttributes"}
    assert exported(libraries.nvml) - older <= known
    assert {name for name in exported(libraries.control) if not name.startswith("simgpu_")} == set()


def test_every_simple_function_stands_in_the_table() -> None:
    simple = set(
        re.findall(
            r"^(?:GETTER|UNSUPPORTED|NO_PROCESSES)\((nvml\w+)", (SOURCES / "nvml.c").read_text(), re.MULTILINE
        )
    )
    elsewhere = {"nvmlDeviceIsMigDeviceHandle"}
    asked = {name for name, _, _ in ANSWERS} | elsewhere
    # nvidia-ml-py calls the newest version by the plain name.
    assert {name for name in simple if name not in asked and name.removesuffix("_v3") not in asked} == set()


STRUCTS: dict[str, tuple[Any, int | None]] = {
    "nvmlPciInfo": (pynvml.nvmlPciInfo_t, None),
    "nvmlPciInfoExt": (pynvml.nvmlPciInfoExt_v1_t, pynvml.nvmlPciInfoExt_v1),
    "nvmlUtilization": (pynvml.c_nvmlUtilization_t, None),
    "nvmlMemory": (pynvml.c_nvmlMemory_t, None),
    "nvmlMemory_v2": (pynvml.c_nvmlMemory_v2_t, pynvml.nvmlMemory_v2),
    "nvmlBar1Memory": (pynvml.c_nvmlBAR1Memory_t, None),
    "nvmlProcessInfo": (pynvml.c_nvmlProcessInfo_v3_t, None),
    "nvmlTemperature": (pynvml.c_nvmlTemperature_v1_t, pynvml.nvmlTemperature_v1),
    "nvmlPowerValue": (pynvml.c_nvmlPowerValue_v2_t, pynvml.nvmlPowerValue_v2),
    "nvmlUuid": (pynvml.c_nvmlUUID_t, pynvml.nvmlUUID_v1),
    "nvmlFieldValue": (pynvml.c_nvmlFieldValue_t, None),
    "nvmlDeviceAttributes": (pynvml.c_nvmlDeviceAttributes, None),
}
RENAMED = {"bar1Total": "total", "bar1Free": "free", "bar1Used": "used"}


def test_structs_are_laid_out_as_nvidia_ml_py_lays_them_out(tmp_path: Path) -> None:
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "nvml.h"', "int main(void) {"]
    expected: list[str] = []
    for name, (struct, version) in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        if version is not None:
            # A versioned struct carries its own size in the low 24 bits.
            assert version & 0xFFFFFF == ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            ours = RENAMED.get(field, field)
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {ours}));')
            expected.append(f"{name}.{field} {getattr(struct, field).offset}")
    program = tmp_path / "layout"
    program.with_suffix(".c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["gcc", f"-I{SOURCES}", "-o", program, program.with_suffix(".c")], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == expected


def test_it_is_found_beside_its_state_without_any_variable(
    make: Make, tmp_path: Path, libraries: Libraries
) -> None:
    make(["H100"] * 2, init=False)
    place = tmp_path / "libnvidia-ml.so.1"
    place.write_bytes(libraries.nvml.read_bytes())
    code = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "2\n"


MIG = Card("A100", ("3g.20gb", "2g.10gb", "1g.5gb"))


def test_mig_instances_are_found_and_share_the_board(make: Make) -> None:
    state = make([MIG, "A100"])
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetMigMode(board) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(board) == 7
    found = []
    for number in range(3):
        instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, number)
        uuid = pynvml.nvmlDeviceGetUUID(instance)
        assert re.fullmatch(r"MIG-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid)
        assert uuid == state.read_instances(0)[number].uuid
        again = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        attributes = pynvml.nvmlDeviceGetAttributes(again)
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(again)
        assert pynvml.nvmlDeviceGetIndex(parent) == 0
        assert pynvml.nvmlDeviceIsMigDeviceHandle(again).value == 1
        found.append(
            (
                pynvml.nvmlDeviceGetName(again),
                pynvml.nvmlDeviceGetGpuInstanceId(again),
                pynvml.nvmlDeviceGetComputeInstanceId(again),
                attributes.multiprocessorCount,
                attributes.gpuInstanceSliceCount,
                attributes.memorySizeMB,
            )
        )
    assert found == [
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 1, 0, 42, 3, 20096),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", 2, 0, 28, 2, 9984),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 3, 0, 14, 1, 4864),
    ]
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 3)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetUtilizationRates(board)
    assert pynvml.nvmlDeviceGetPowerUsage(board) == 50_000
    assert pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(1)) == [0, 0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption", ()),
        ("nvmlDeviceGetPowerUsage", ()),
        ("nvmlDeviceGetPowerManagementLimit", ()),
        ("nvmlDeviceGetEnforcedPowerLimit", ()),
        ("nvmlDeviceSetPowerManagementLimit", (200_000,)),
        ("nvmlDeviceGetUtilizationRates", ()),
        ("nvmlDeviceGetIndex", ()),
    ],
)
def test_a_mig_instance_has_no_power_or_energy_of_its_own(
    make: Make, name: str, arguments: tuple[Any, ...]
) -> None:
    make([MIG])
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(pynvml.nvmlDeviceGetHandleByIndex(0), 0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        getattr(pynvml, name)(instance, *arguments)


def test_processes_and_memory_belong_to_their_mig_instance(make: Make) -> None:
    state = make([MIG])
    state.set_processes(0, [Process(10, GIB, instance=0), Process(11, 2 * GIB, instance=1), Process(12, GIB)])
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    seen = {p.pid: p.gpuInstanceId for p in pynvml.nvmlDeviceGetComputeRunningProcesses(board)}
    assert seen == {10: 1, 11: 2, 12: 0xFFFFFFFF}
    for number, pids, used in ((0, [10], GIB), (1, [11], 2 * GIB), (2, [], 0)):
        instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, number)
        assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(instance)] == pids
        assert pynvml.nvmlDeviceGetMemoryInfo(instance).used == used


def test_a_v100_knows_no_mig(make: Make) -> None:
    make(["V100"])
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(0))
