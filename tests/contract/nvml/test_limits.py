"""Setting power limits: what is set is read back, and a refusal says what to do, for the card it concerns alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pynvml
import pytest

from greentrain.devices.errors import (
    DeviceError,
    Gone,
    Hanging,
    NotPermitted,
    OutOfRange,
    Retry,
    Unavailable,
    Unsupported,
)
from greentrain.devices.nvidia.nvml import UNKNOWN_ROUNDS, Gpus
from greentrain.energy.intervals import CardReading
from greentrain.node.cards import CurrentLimits
from greentrain.quantities import Milliwatts
from sandbox.simgpu import cards as simulated
from sandbox.simgpu.build import Libraries
from sandbox.simgpu.cards import Calls, Card, Fault
from tests.contract.nvml.answers import STATE, answer, read_uuids, rename_cards, until
from tests.contract.nvml.conftest import Make

DEADLINE = 0.4


async def test_a_limit_that_is_set_is_read_back_as_set_and_in_force(make: Make) -> None:
    state = make(["V100", "A100"])
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        for watts in (150, 299, 200):
            await gpus.set_limit(uuids[0], Milliwatts(watts * 1000))
            assert await gpus.read_limits(uuids[0]) == CurrentLimits(
                Milliwatts(watts * 1000), Milliwatts(watts * 1000), False
            )
            assert state.read_card(0).limit_watts == watts
        assert await gpus.read_limits(uuids[1]) == CurrentLimits(
            Milliwatts(400_000), Milliwatts(400_000), False
        )
        assert (await gpus.discover())[0].limits.set_milliwatts == 200_000


async def test_another_limiter_shows_in_what_is_in_force(make: Make) -> None:
    state = make()
    (uuid,) = read_uuids(state)
    state.set_second_limit(0, 250)
    async with await Gpus.open() as gpus:
        for watts, enforced in ((350, 250), (200, 200)):
            await gpus.set_limit(uuid, Milliwatts(watts * 1000))
            now = await gpus.read_limits(uuid)
            assert (now.set_milliwatts, now.enforced_milliwatts) == (watts * 1000, enforced * 1000)


@pytest.mark.parametrize(
    ("load", "watts", "binding"),
    [(0.0, 100, False), (1.0, 150, True), (1.0, 400, False), (0.1, 150, False)],
    ids=["idle", "a low limit", "a limit above its draw", "little to do"],
)
async def test_a_limit_binds_where_it_slows_the_card_down(
    make: Make, load: float, watts: int, binding: bool
) -> None:
    state = make()
    (uuid,) = read_uuids(state)
    state.set_load(0, load)
    async with await Gpus.open() as gpus:
        await gpus.set_limit(uuid, Milliwatts(watts * 1000))
        assert (await gpus.read_limits(uuid)).binding is binding


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
    ],
)
async def test_whether_a_limit_binds_is_none_where_the_card_does_not_tell(make: Make, code: int) -> None:
    state = make()
    (uuid,) = read_uuids(state)
    state.set_load(0, 1.0)
    answer(state, 0, code, Calls.CLOCKS)
    async with await Gpus.open() as gpus:
        await gpus.set_limit(uuid, Milliwatts(150_000))
        assert await gpus.read_limits(uuid) == CurrentLimits(Milliwatts(150_000), Milliwatts(150_000), None)


@pytest.mark.parametrize(
    ("milliwatts", "value"), [(99_999, "99.999W"), (400_001, "400.001W"), (0, "0W"), (4_000_000, "4000W")]
)
async def test_a_limit_outside_the_range_is_refused_with_the_range(
    make: Make, milliwatts: int, value: str
) -> None:
    state = make()
    (uuid,) = read_uuids(state)
    async with await Gpus.open() as gpus:
        for _ in range(2):
            with pytest.raises(OutOfRange) as caught:
                await gpus.set_limit(uuid, Milliwatts(milliwatts))
            assert (
                str(caught.value)
                == f"{uuid} does not take {value}: its power limit is between 100W and 400W."
            )
        assert state.read_card(0).limit_watts == 400
        # The card is well: it is asked on as before.
        await gpus.set_limit(uuid, Milliwatts(100_000))
        assert state.read_card(0).limit_watts == 100


REFUSALS: list[tuple[int, type[DeviceError], str]] = [
    (pynvml.NVML_ERROR_NO_PERMISSION, NotPermitted, "privileged"),
    (pynvml.NVML_ERROR_OPERATING_SYSTEM, NotPermitted, "privileged"),
    (pynvml.NVML_ERROR_NOT_SUPPORTED, Unsupported, ""),
    (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, Unsupported, ""),
    (pynvml.NVML_ERROR_UNKNOWN, Retry, "Unknown"),
    (pynvml.NVML_ERROR_TIMEOUT, Retry, "Timeout"),
    (pynvml.NVML_ERROR_IN_USE, Retry, ""),
    (77, Retry, ""),
    (pynvml.NVML_ERROR_GPU_IS_LOST, Gone, "reboot"),
    (pynvml.NVML_ERROR_RESET_REQUIRED, Gone, "reset"),
    (pynvml.NVML_ERROR_GPU_NOT_FOUND, Gone, "not know"),
]


@pytest.mark.parametrize(("code", "kind", "words"), REFUSALS)
async def test_a_refusal_is_its_cards_alone_and_ends_with_its_cause(
    make: Make, code: int, kind: type[DeviceError], words: str
) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        answer(state, 1, code, Calls.SET)
        for _ in range(5):
            with pytest.raises(DeviceError) as caught:
                await gpus.set_limit(uuids[1], Milliwatts(200_000))
            assert type(caught.value) is kind
            assert uuids[1] in str(caught.value)
            assert words in str(caught.value)
            await gpus.set_limit(uuids[0], Milliwatts(150_000))
        assert [state.read_card(card).limit_watts for card in state] == [150, 400, 400]
        state.clear_faults()
        await gpus.discover()
        # What was refused once is not taken for refused for good.
        await gpus.set_limit(uuids[1], Milliwatts(200_000))
        assert [state.read_card(card).limit_watts for card in state] == [150, 200, 400]


async def test_a_card_that_is_not_there_is_gone(make: Make) -> None:
    make()
    async with await Gpus.open() as gpus:
        with pytest.raises(Gone, match="NVML does not list it"):
            await gpus.set_limit("GPU-elsewhere", Milliwatts(200_000))


async def test_a_lost_card_is_not_asked_until_the_next_discovery(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.LOST)
        with pytest.raises(Gone, match="reboot"):
            await gpus.set_limit(uuids[0], Milliwatts(200_000))
        await gpus.set_limit(uuids[1], Milliwatts(200_000))
        state.clear_faults()
        with pytest.raises(Gone):
            await gpus.set_limit(uuids[0], Milliwatts(200_000))
        await gpus.discover()
        await gpus.set_limit(uuids[0], Milliwatts(200_000))
        assert [state.read_card(card).limit_watts for card in state] == [200, 200]


async def test_mig_instances_do_not_keep_the_board_from_having_a_limit(make: Make) -> None:
    """What it means for their holders is decided elsewhere."""
    state = make([Card("A100", ("3g.20gb",))])
    (uuid,) = read_uuids(state)
    async with await Gpus.open() as gpus:
        await gpus.set_limit(uuid, Milliwatts(200_000))
        assert (await gpus.read_limits(uuid)).set_milliwatts == 200_000


async def test_a_call_that_hangs_holds_its_card_alone_and_may_have_set_the_limit(make: Make) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.HANG, calls=Calls.SET)
        with pytest.raises(Hanging):
            await gpus.set_limit(uuids[0], Milliwatts(200_000), deadline=DEADLINE)
        for card in (1, 2):
            await gpus.set_limit(uuids[card], Milliwatts(150_000), deadline=DEADLINE)
        for _ in range(2):
            with pytest.raises(Hanging):
                await gpus.set_limit(uuids[0], Milliwatts(250_000), deadline=DEADLINE)
        with pytest.raises(Hanging):
            await gpus.read_limits(uuids[0], deadline=DEADLINE)
        assert [state.read_card(card).limit_watts for card in state] == [400, 150, 150]
        state.clear_faults()

        async def answers() -> bool:
            try:
                await gpus.read_limits(uuids[0], deadline=DEADLINE)
            except Hanging:
                return False
            return True

        await until(answers)
        # The first one has come about after all, the others were never begun.
        assert (await gpus.read_limits(uuids[0])).set_milliwatts == 200_000


async def test_a_slow_card_does_not_hold_up_the_event_loop(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.SLOW, calls=Calls.SET, milliseconds=300)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        await gpus.set_limit(uuids[0], Milliwatts(200_000))
        ticking.cancel()
        assert ticks >= 5
        assert state.read_card(0).limit_watts == 200


async def test_a_handle_that_does_not_hold_any_more_is_looked_up_and_the_right_card_is_set(
    make: Make,
) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        rename_cards(state, {uuids[0]: uuids[1], uuids[1]: uuids[0]})
        # The first place knows its old handle no more, neither for setting nor for its range.
        answer(state, 0, pynvml.NVML_ERROR_INVALID_ARGUMENT, Calls.SET | Calls.LIMIT)
        await gpus.set_limit(uuids[0], Milliwatts(200_000))
        assert [state.read_card(card).limit_watts for card in state] == [400, 200]


async def test_a_handle_that_never_holds_is_tried_twice_and_the_card_is_gone(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        answer(state, 0, pynvml.NVML_ERROR_INVALID_ARGUMENT)
        answer(state, 0, pynvml.NVML_ERROR_INVALID_ARGUMENT, Calls.SET | Calls.LIMIT)
        with pytest.raises(Gone, match="does not know it any more"):
            await gpus.set_limit(uuids[0], Milliwatts(200_000))
        await gpus.set_limit(uuids[1], Milliwatts(200_000))


async def test_a_driver_reload_is_seen_and_limits_can_be_set_again(make: Make) -> None:
    state = make(["V100"])
    (uuid,) = read_uuids(state)
    async with await Gpus.open() as gpus:
        await gpus.set_limit(uuid, Milliwatts(200_000))
        state.reload_driver()
        assert (await gpus.read_limits(uuid)).set_milliwatts == 300_000
        await gpus.set_limit(uuid, Milliwatts(200_000))
        assert (await gpus.read_limits(uuid)).enforced_milliwatts == 200_000


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED], ids=["closed", "unloaded"]
)
async def test_what_concerns_no_single_card_closes_nvml_and_it_opens_again(make: Make, code: int) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    gpus = await Gpus.open()
    answer(state, 1, code, Calls.SET)
    with pytest.raises(Unavailable):
        await gpus.set_limit(uuids[1], Milliwatts(200_000))
    with pytest.raises(Unavailable, match="closed"):
        await gpus.set_limit(uuids[0], Milliwatts(200_000))
    state.clear_faults()
    async with await Gpus.open() as again:
        await again.set_limit(uuids[1], Milliwatts(200_000))
        assert state.read_card(1).limit_watts == 200


AS_NOBODY = """
    import asyncio, ctypes, os, sys
    from greentrain.devices.errors import NotPermitted, OutOfRange
    from greentrain.devices.nvidia.nvml import Gpus

    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)

    async def main():
        async with await Gpus.open() as gpus:
            (card,) = await gpus.discover()
            for milliwatts in (200_000, 1):
                try:
                    await gpus.set_limit(card.uuid, milliwatts)
                except NotPermitted as error:
                    print(error)
            print(await gpus.read_limits(card.uuid))

    asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be become by root only")
@pytest.mark.parametrize("mode", [0o644, 0o666], ids=["read-only", "writable"])
def test_another_user_than_root_reads_limits_and_is_told_what_setting_needs(
    libraries: Libraries, mode: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own folders are closed to others
        path = Path(folder) / "state"
        with simulated.create(path, ["A100"], mode=mode) as state:
            (uuid,) = read_uuids(state)
            ran = subprocess.run(
                [sys.executable, "-W", "error", "-c", textwrap.dedent(AS_NOBODY), str(libraries.nvml)],
                env={**os.environ, STATE: str(path)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert state.read_card(0).limit_watts == 400
    refusal = f"{uuid} refuses: NVML demands root; run the agent's pod privileged."
    assert ran.stdout.splitlines() == [
        refusal,
        refusal,
        str(CurrentLimits(Milliwatts(400_000), Milliwatts(400_000), False)),
    ], ran.stderr


@pytest.mark.parametrize("fault", [Fault.TIMEOUT, Fault.UNKNOWN, Fault.NOT_SUPPORTED])
async def test_a_card_whose_limit_calls_fail_is_known_and_read_all_the_same(make: Make, fault: Fault) -> None:
    state = make()
    (uuid,) = read_uuids(state)
    state.fault(0, fault, calls=Calls.LIMIT)
    async with await Gpus.open() as gpus:
        (card,) = await gpus.discover()
        assert (card.uuid, card.limits.default_milliwatts, gpus.unnamed) == (uuid, None, {})
        for _ in range(UNKNOWN_ROUNDS + 1):  # asked again and again, they do not make NVML look broken
            with contextlib.suppress(Retry):
                await gpus.read_limits(uuid)
        assert isinstance((await gpus.read_all())[uuid], CardReading)
        state.clear_faults()
        (card,) = await gpus.discover()
        assert card.limits.default_milliwatts == 400_000, "told again, whatever was answered before"
        state.fault(0, fault, calls=Calls.LIMIT)
        (card,) = await gpus.discover()
        expected = None if fault is Fault.NOT_SUPPORTED else 400_000
        assert card.limits.default_milliwatts == expected, "what is known stays known"
