"""Calls that are slow or never return cost the card they concern, and neither the others nor the event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from greentrain.devices.errors import Gone, Hanging, Retry, Unavailable
from greentrain.devices.nvidia.nvml import Gpus
from greentrain.energy.intervals import CardReading
from sandbox.simgpu.cards import Calls, Fault
from tests.contract.nvml.answers import STATE, no_thread, read_threads, read_uuids, until
from tests.contract.nvml.conftest import Make

DEADLINE = 0.4
LONG_DEADLINE = 2.0
"""Much longer than a round takes on a busy machine."""
SPARE = 4
"""Threads that wait for the next call: made in moments in which another had answered and was not free yet."""

READING = Calls.ENERGY | Calls.POWER | Calls.UTILIZATION


@asynccontextmanager
async def _watch_loop(most: float = 0.3) -> AsyncIterator[None]:
    """See that the event loop is never held for longer than `most` seconds."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - begun)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert worst < most


async def _until_read(gpus: Gpus, uuid: str) -> None:
    """Read on until this card answers; a call that hung needs a moment to return."""

    async def answers() -> bool:
        return isinstance((await gpus.read_all(DEADLINE))[uuid], CardReading)

    await until(answers)


@pytest.mark.parametrize("place", [0, 1, 3])
async def test_a_card_that_hangs_does_not_hold_the_others(make: Make, place: int) -> None:
    state = make(["A100"] * 4)
    uuids = read_uuids(state)
    async with _watch_loop(), await Gpus.open() as gpus:
        state.fault(place, Fault.HANG, calls=READING)
        longest = 0.0
        for number in range(4):
            begun = time.monotonic()
            readings = await gpus.read_all(LONG_DEADLINE)
            # Only the first round waits for it.
            assert time.monotonic() - begun < (2 * LONG_DEADLINE if number == 0 else LONG_DEADLINE / 2)
            hanging = readings[uuids[place]]
            assert isinstance(hanging, Hanging)
            assert hanging.seconds > longest
            longest = hanging.seconds
            assert sum(isinstance(reading, CardReading) for reading in readings.values()) == 3
        with pytest.raises(Hanging):
            await gpus.read_limits(uuids[place], deadline=DEADLINE)
        assert read_threads() <= 4 + SPARE
        state.clear_faults()
        await _until_read(gpus, uuids[place])
        assert all(isinstance(r, CardReading) for r in (await gpus.read_all()).values())


async def test_no_more_threads_are_lost_than_there_are_cards(make: Make) -> None:
    state = make(["A100"] * 16)
    uuids = read_uuids(state)
    async with _watch_loop(), await Gpus.open() as gpus:
        for card in state:
            state.fault(card, Fault.HANG)
        for _ in range(5):
            assert {type(r) for r in (await gpus.read_all(DEADLINE)).values()} == {Hanging}
            assert [card.uuid for card in await gpus.discover(deadline=DEADLINE)] == uuids
        assert read_threads() <= 16 + SPARE
        state.clear_faults()
        for uuid in uuids:
            await _until_read(gpus, uuid)


async def test_a_card_that_hangs_from_the_beginning_is_named_when_it_answers(make: Make) -> None:
    state = make(["A100"] * 3)
    uuids = read_uuids(state)
    state.fault(1, Fault.HANG)
    async with await Gpus.open(deadline=1.0) as gpus:
        assert list(await gpus.read_all(DEADLINE)) == [uuids[0], uuids[2]]
        assert [type(error) for error in gpus.unnamed.values()] == [Hanging]
        state.clear_faults()
        async with asyncio.timeout(5):
            while gpus.unnamed:
                await gpus.discover(deadline=DEADLINE)
        assert list(await gpus.read_all()) == uuids


async def test_slow_cards_are_asked_side_by_side(make: Make) -> None:
    """Six cards of 0.15 s: 0.9 s in turn, and within the deadline beside one another."""
    state = make(["A100"] * 8)
    async with _watch_loop(), await Gpus.open() as gpus:
        for card in range(6):
            state.fault(card, Fault.SLOW, calls=Calls.POWER, milliseconds=150)
        for number in range(3):
            begun = time.monotonic()
            readings = await gpus.read_all(0.8)
            assert all(isinstance(r, CardReading) for r in readings.values()), readings
            # Once they are known to be slow, nobody waits to find out.
            assert time.monotonic() - begun < (0.75 if number == 0 else 0.5)
        state.clear_faults()
        await gpus.read_all()
        begun = time.monotonic()
        await gpus.read_all()
        assert time.monotonic() - begun < 0.3


async def test_a_reading_that_comes_too_late_is_dropped(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.SLOW, calls=Calls.POWER, milliseconds=300)
        late = (await gpus.read_all(0.1))[uuids[0]]
        assert isinstance(late, Hanging)
        assert isinstance((await gpus.read_all(0.1))[uuids[0]], Hanging)
        state.clear_faults()
        await asyncio.sleep(0.4)
        assert isinstance((await gpus.read_all(0.1))[uuids[0]], CardReading)


async def test_requests_wait_for_each_other_within_their_deadline(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.SLOW, calls=Calls.IDENTITY, milliseconds=100)
        discovery = asyncio.create_task(gpus.discover())
        await asyncio.sleep(0.05)
        assert [type(r) for r in (await gpus.read_all(0.05)).values()] == [Retry, Retry]
        with pytest.raises(Retry, match="another request"):
            await gpus.read_limits(uuids[1], deadline=0.05)
        assert all(isinstance(r, CardReading) for r in (await gpus.read_all(2.0)).values())
        assert discovery.done()
        assert [card.uuid for card in await discovery] == uuids


async def test_a_cancelled_reading_leaves_nothing_behind(make: Make) -> None:
    state = make(["A100"] * 4)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.HANG, calls=READING)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await gpus.read_all(5.0)
        assert [type(r) for r in (await gpus.read_all(DEADLINE)).values()] == [
            Hanging,
            CardReading,
            CardReading,
            CardReading,
        ]
        state.clear_faults()


async def test_closing_does_not_wait_for_a_call_that_hangs(make: Make) -> None:
    state = make(["A100"] * 2)
    gpus = await Gpus.open()
    state.fault(0, Fault.HANG, calls=READING)
    await gpus.read_all(DEADLINE)
    begun = time.monotonic()
    await gpus.close(deadline=0.2)
    await gpus.close()
    assert time.monotonic() - begun < 1.0
    # NVML counts who uses it, so a second initialisation beside the first would be none.
    with pytest.raises(Unavailable, match="have not returned"):
        await Gpus.open()
    state.clear_faults()
    await until(no_thread)
    async with await Gpus.open() as again:
        assert all(isinstance(r, CardReading) for r in (await again.read_all()).values())


async def test_nvml_that_does_not_initialise_is_given_up_and_not_asked_twice(make: Make) -> None:
    state = make()
    state.fault(None, Fault.HANG, calls=Calls.INIT)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s"):
        await Gpus.open(deadline=0.2)
    for _ in range(3):
        with pytest.raises(Unavailable, match="have not returned"):
            await Gpus.open(deadline=0.2)
    assert read_threads() == 1
    state.clear_faults()
    await until(no_thread)
    async with await Gpus.open() as gpus:
        assert len(await gpus.read_all()) == 1


async def test_nvml_that_does_not_count_its_cards_is_given_up(make: Make) -> None:
    state = make()
    gpus = await Gpus.open()
    state.fault(None, Fault.HANG, calls=Calls.IDENTITY)
    with pytest.raises(Unavailable, match="did not answer"):
        await gpus.discover(deadline=0.2)
    with pytest.raises(Unavailable, match="closed"):
        await gpus.discover()


async def test_a_card_lost_after_it_hung_is_gone(make: Make) -> None:
    state = make(["A100"] * 2)
    uuids = read_uuids(state)
    async with await Gpus.open() as gpus:
        state.fault(0, Fault.HANG)
        await gpus.read_all(DEADLINE)
        state.fault(0, Fault.LOST)
        state.clear_faults()
        state.fault(0, Fault.LOST)

        async def is_gone() -> bool:
            return isinstance((await gpus.read_all(DEADLINE))[uuids[0]], Gone)

        await until(is_gone)


def test_a_program_ends_although_a_call_hangs(make: Make) -> None:
    state = make(["A100"] * 2)
    script = """
        import asyncio
        from greentrain.devices.nvidia.nvml import Gpus
        from sandbox.simgpu import cards
        from sandbox.simgpu.build import apply_libraries
        import os

        async def main():
            apply_libraries().preload()
            gpus = await Gpus.open()
            with cards.open(os.environ["GREENTRAIN_SIMGPU_STATE"]) as state:
                state.fault(0, cards.Fault.HANG)
            print(sorted(type(r).__name__ for r in (await gpus.read_all(0.2)).values()))
            await gpus.close(deadline=0.1)

        asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**os.environ, STATE: str(state.path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "['CardReading', 'Hanging']\n", "")
