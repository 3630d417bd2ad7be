"""Each answer of NVML becomes a value, or an error that says what to do next, for the card it concerns alone."""

from __future__ import annotations

import asyncio
import time

import pynvml
import pytest

from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unavailable, Unsupported
from greentrain.devices.nvidia.nvml import Gpus
from greentrain.energy.intervals import CardReading
from sandbox.simgpu.cards import Calls, Card, Cards, Fault, Process
from tests.contract.nvml.answers import answer, read_threads, read_uuids, rename_cards
from tests.contract.nvml.conftest import Make


def _values(reading: CardReading | DeviceError) -> CardReading:
    assert isinstance(reading, CardReading), reading
    return reading


async def test_a_reading_is_the_cards_counter_power_and_work(make: Make) -> None:
    state = make(["H100"])
    state.set_load(0, 1.0)
    async with await Gpus.open() as gpus:
        await asyncio.sleep(0.3)
        before = state.read_card(0).counter_mj
        (reading,) = (await gpus.read_all()).values()
        after = state.read_card(0)
        values = _values(reading)
        assert values.counter is not None
        assert before <= values.counter <= after.counter_mj
        assert values.counter > 0
        assert values.draw is not None
        assert 0 < values.draw <= after.watts * 1000
        assert values.busy
        assert (await gpus.read_all())[after.uuid] != CardReading()


ANSWERS: list[tuple[int, type[DeviceError], str]] = [
    (pynvml.NVML_ERROR_NO_PERMISSION, NotPermitted, "privileged"),
    (pynvml.NVML_ERROR_OPERATING_SYSTEM, NotPermitted, "privileged"),
    (pynvml.NVML_ERROR_TIMEOUT, Retry, "Timeout"),
    (pynvml.NVML_ERROR_UNKNOWN, Retry, "Unknown"),
    (pynvml.NVML_ERROR_IN_USE, Retry, ""),
    (pynvml.NVML_ERROR_MEMORY, Retry, ""),
    (pynvml.NVML_ERROR_NO_DATA, Retry, ""),
    (pynvml.NVML_ERROR_NOT_READY, Retry, ""),
    (pynvml.NVML_ERROR_INSUFFICIENT_POWER, Retry, "Power"),
    (pynvml.NVML_ERROR_IRQ_ISSUE, Retry, ""),
    (pynvml.NVML_ERROR_CORRUPTED_INFOROM, Retry, ""),
    (77, Retry, ""),
    (pynvml.NVML_ERROR_GPU_IS_LOST, Gone, "reboot"),
    (pynvml.NVML_ERROR_RESET_REQUIRED, Gone, "reset"),
    (pynvml.NVML_ERROR_INVALID_ARGUMENT, Gone, "not know"),
    (pynvml.NVML_ERROR_NOT_FOUND, Gone, "not know"),
    (pynvml.NVML_ERROR_GPU_NOT_FOUND, Gone, "not know"),
]


@pytest.mark.parametrize(("code", "kind", "words"), ANSWERS)
async def test_an_error_is_its_cards_alone_and_ends_with_its_cause(
    make: Make, code: int, kind: type[DeviceError], words: str
) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        answer(state, 1, code)
        for _ in range(5):
            readings = await gpus.read_all()
            assert list(readings) == uuids
            assert type(readings[uuids[1]]) is kind
            assert words in str(readings[uuids[1]])
            assert uuids[1] in str(readings[uuids[1]])
            _values(readings[uuids[0]])
            _values(readings[uuids[2]])
        state.clear_faults()
        await gpus.discover()
        _values((await gpus.read_all())[uuids[1]])


LOST_AS_A_WHOLE = [
    (pynvml.NVML_ERROR_UNINITIALIZED, "initialised"),
    (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe"),
    (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the agent"),
]


@pytest.mark.parametrize(("code", "remedy"), LOST_AS_A_WHOLE)
async def test_what_concerns_no_single_card_closes_nvml_and_it_opens_again(
    make: Make, code: int, remedy: str
) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    gpus = await Gpus.open()
    answer(state, 1, code)
    with pytest.raises(Unavailable, match=remedy):
        await gpus.read_all()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    with pytest.raises(Unavailable, match="closed"):
        await gpus.read_all()
    state.clear_faults()
    async with await Gpus.open() as again:
        assert list(await again.read_all()) == uuids


async def test_nvml_is_given_up_when_every_card_answers_unknown_again_and_again(make: Make) -> None:
    state = make(["A100"] * 2)
    gpus = await Gpus.open()
    state.fault(0, Fault.UNKNOWN)
    state.fault(1, Fault.UNKNOWN)
    for _ in range(2):
        assert [type(r) for r in (await gpus.read_all()).values()] == [Retry, Retry]
    with pytest.raises(Unavailable, match="Unknown Error"):
        await gpus.read_all()


OPTIONAL: list[tuple[str, Calls, bool, bool]] = [
    ("everything", Calls(0), True, True),
    ("no counter", Calls.ENERGY, False, True),
    ("no power", Calls.POWER, True, False),
    ("neither", Calls.ENERGY | Calls.POWER, False, False),
]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
@pytest.mark.parametrize(("name", "missing", "counter", "draw"), OPTIONAL)
async def test_what_a_card_does_not_support_is_none_and_not_asked_for_again(
    make: Make, code: int, name: str, missing: Calls, counter: bool, draw: bool
) -> None:
    state = make(["V100"])
    async with await Gpus.open() as gpus:
        if missing:
            answer(state, 0, code, missing)
        for _ in range(2):
            (reading,) = (await gpus.read_all()).values()
            told = _values(reading)
            assert (told.counter is not None, told.draw is not None) == (counter, draw), name
            state.clear_faults()
    async with await Gpus.open() as gpus:
        (reading,) = (await gpus.read_all()).values()
        assert None not in (_values(reading).counter, _values(reading).draw)


@pytest.mark.parametrize(
    ("watts", "draw"), [(0.0, 0), (700.5, 700_500), (10_000.0, 10_000_000), (10_000.001, None), (4e6, None)]
)
async def test_a_power_no_card_can_draw_is_no_reading(make: Make, watts: float, draw: int | None) -> None:
    state = make()
    state.fault(0, Fault.GARBAGE, watts=watts)
    async with await Gpus.open() as gpus:
        (reading,) = (await gpus.read_all()).values()
        assert _values(reading).draw == draw
        assert _values(reading).counter is not None


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (0.04, False), (0.05, True), (1.0, True)])
async def test_a_card_works_from_five_percent_utilization_on(make: Make, load: float, busy: bool) -> None:
    state = make()
    state.set_load(0, load)
    async with await Gpus.open() as gpus:
        (reading,) = (await gpus.read_all()).values()
        assert _values(reading).busy is busy


@pytest.mark.parametrize("refused", [None, pynvml.NVML_ERROR_NO_PERMISSION])
async def test_without_utilization_a_card_works_while_a_process_computes(
    make: Make, refused: int | None
) -> None:
    """MIG tells no utilization; being refused one must not cost the energy either."""
    state = make([Card("A100", ("3g.20gb",) if refused is None else None)])
    if refused is not None:
        answer(state, 0, refused, Calls.UTILIZATION)
    async with await Gpus.open() as gpus:
        for processes in ([], [Process(4711)], []):
            state.set_processes(0, processes)
            (reading,) = (await gpus.read_all()).values()
            assert _values(reading).busy is bool(processes)
        answer(state, 0, pynvml.NVML_ERROR_NO_PERMISSION, Calls.PROCESSES)
        (reading,) = (await gpus.read_all()).values()
        assert _values(reading).busy is False
        assert _values(reading).counter is not None


async def test_a_lost_card_is_left_alone_until_the_next_discovery(make: Make) -> None:
    state = make(["A100"] * 4)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        known = await gpus.discover()
        state.fault(2, Fault.LOST)
        readings = await gpus.read_all()
        assert isinstance(readings[uuids[2]], Gone)
        assert sum(isinstance(reading, CardReading) for reading in readings.values()) == 3
        # A call would be seen here, for it would fail otherwise.
        state.clear_faults()
        state.fault(2, Fault.TIMEOUT)
        assert isinstance((await gpus.read_all())[uuids[2]], Gone)
        assert await gpus.discover() == known
        assert isinstance((await gpus.read_all())[uuids[2]], Retry)
        state.clear_faults()
        _values((await gpus.read_all())[uuids[2]])


async def test_cards_are_known_by_uuid_when_index_0_is_lost(make: Make) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    for card in state:
        state.set_load(card, card / 2)
    state.fault(0, Fault.LOST)
    async with await Gpus.open() as gpus:
        assert [card.uuid for card in await gpus.discover()] == uuids[1:]
        assert list(gpus.unnamed) == [0]
        assert isinstance(gpus.unnamed[0], Gone)
        assert "index 0" in str(gpus.unnamed[0])
        with pytest.raises(Gone):
            await gpus.read_limits(uuids[0])
        readings = await gpus.read_all()
        assert list(readings) == uuids[1:]
        draws = [_values(readings[uuid]).draw for uuid in uuids[1:]]
        assert draws == sorted(draws, key=lambda draw: draw or 0)
        state.clear_faults()
        assert [card.uuid for card in await gpus.discover()] == uuids
        assert gpus.unnamed == {}
        assert list(await gpus.read_all()) == uuids


async def test_cards_are_known_by_uuid_when_indices_move(make: Make) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    state.set_load(0, 1.0)
    async with await Gpus.open() as gpus:
        before = {card.uuid: card for card in await gpus.discover()}
        rename_cards(state, {uuids[0]: uuids[1], uuids[1]: uuids[0]})
        cards = await gpus.discover()
        assert [card.uuid for card in cards] == [uuids[1], uuids[0], uuids[2]]
        readings = await gpus.read_all()
        assert {uuid: _values(readings[uuid]).busy for uuid in uuids} == {
            uuids[0]: False,
            uuids[1]: True,
            uuids[2]: False,
        }
        other = "GPU-" + "f" * 32 + "-fff"
        rename_cards(state, {uuids[2]: other})
        assert {card.uuid for card in await gpus.discover()} == {*uuids, other}
        readings = await gpus.read_all()
        assert isinstance(readings[uuids[2]], Gone)
        _values(readings[other])
        rename_cards(state, {other: uuids[2]})
        assert before[uuids[2]] in await gpus.discover()
        _values((await gpus.read_all())[uuids[2]])


async def test_a_handle_that_does_not_hold_any_more_is_looked_up_by_uuid(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    state.set_load(1, 1.0)
    async with await Gpus.open() as gpus:
        assert not _values((await gpus.read_all())[uuids[0]]).busy
        rename_cards(state, {uuids[0]: uuids[1], uuids[1]: uuids[0]})
        answer(state, 0, pynvml.NVML_ERROR_INVALID_ARGUMENT)
        assert _values((await gpus.read_all())[uuids[0]]).busy


async def test_a_reloaded_drivers_counter_begins_anew_and_is_read_on(make: Make) -> None:
    state = make(["V100"])
    state.set_load(0, 1.0)
    async with await Gpus.open() as gpus:
        await asyncio.sleep(0.3)
        (before,) = (await gpus.read_all()).values()
        state.set_limit(0, 150)
        state.reload_driver()
        (after,) = (await gpus.read_all()).values()
        assert (_values(after).counter or 0) < (_values(before).counter or 0)
        (card,) = await gpus.discover()
        assert card.limits.set_milliwatts == card.limits.default_milliwatts
        assert card.persistence is False


async def test_sixteen_cards_cost_one_hop_and_well_below_a_millisecond(make: Make) -> None:
    state = make(["H100"] * 16)
    async with await Gpus.open() as gpus:
        assert list(await gpus.read_all()) == read_uuids(state)
        best = 1.0
        for _ in range(5):
            begun = time.process_time()
            for _ in range(20):
                await gpus.read_all()
            best = min(best, (time.process_time() - begun) / 20)
        assert best < 0.001
        # One works; few were made in moments in which it had answered and was not free yet.
        assert read_threads() <= 4


def test_an_unsupported_feature_is_named() -> None:
    assert Unsupported("energy counter").feature in str(Unsupported("energy counter"))


def _limits(state: Cards, card: int) -> tuple[float, float]:
    reading = state.read_card(card)
    return reading.limit_watts * 1000, reading.enforced_watts * 1000


async def test_limits_are_those_of_the_card(make: Make) -> None:
    state = make(["V100", "A100"])
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.set_limit(0, 200)
        state.set_second_limit(0, 170)
        for card, uuid in enumerate(uuids):
            current = await gpus.read_limits(uuid)
            assert (current.set_milliwatts, current.enforced_milliwatts) == _limits(state, card)
        limits = (await gpus.discover())[0].limits
        assert (limits.min_milliwatts, limits.default_milliwatts, limits.max_milliwatts) == (
            150_000,
            300_000,
            300_000,
        )
        assert (limits.set_milliwatts, limits.enforced_milliwatts) == (200_000, 170_000)
        with pytest.raises(Gone, match="does not list"):
            await gpus.read_limits("GPU-of-another-node")


async def test_limits_a_card_does_not_tell_are_none(make: Make) -> None:
    state = make(["V100"])
    answer(state, 0, pynvml.NVML_ERROR_NOT_SUPPORTED, Calls.LIMIT | Calls.OTHER)
    async with await Gpus.open() as gpus:
        (card,) = await gpus.discover()
        assert card.limits.min_milliwatts is card.limits.set_milliwatts is None
        assert card.persistence is None
        assert (await gpus.read_limits(card.uuid)).enforced_milliwatts is None


@pytest.mark.parametrize(
    ("profile", "layout", "slices"),
    [
        ("A100", None, []),
        ("A100", (), []),
        ("A100", ("3g.20gb", "2g.10gb", "1g.5gb", "1g.5gb"), [3, 2, 1, 1]),
        ("A100", ("7g.40gb",), [7]),
        ("H100", ("4g.40gb", "1g.10gb"), [4, 1]),
        ("V100", None, []),
    ],
)
async def test_mig_devices_and_their_shares_are_told(
    make: Make, profile: str, layout: tuple[str, ...] | None, slices: list[int]
) -> None:
    state = make([Card(profile, layout)])
    async with await Gpus.open() as gpus:
        (card,) = await gpus.discover()
        assert card.partitioned is (layout is not None)
        assert card.model.startswith("NVIDIA") or profile in card.model
        assert [device.slices for device in card.partitions] == slices
        assert {device.total_slices for device in card.partitions} <= {7}
        assert [device.uuid for device in card.partitions] == [i.uuid for i in state.read_instances(0)]
        places = {(device.gpu_instance, device.compute_instance) for device in card.partitions}
        assert len(places) == len(slices)
        (reading,) = (await gpus.read_all()).values()
        assert None not in (_values(reading).counter, _values(reading).draw)
