"""Energy is integrated exactly, whatever happens in which order, and NVML's counter shows it in its steps."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.simgpu import cards
from sandbox.simgpu.cards import BadValueError, Cards, EventsLostError
from sandbox.simgpu.meter import IDLE, Meter
from tests.contract.simgpu.conftest import Make

PICO = 10**12


def test_energy_is_draw_times_time(make: Make) -> None:
    state = make(["V100"])
    expected = 0
    for load, limit, nanoseconds in (
        (0, 300, 7),
        (1, 300, 10**9 + 1),
        (0.5, 200, 3),
        (1, 150, 36 * 10**11),
        (0, 150, 1),
    ):
        state.set_load(0, load)
        state.set_limit(0, limit)
        draw = round(state.read_card(0).watts * 1000)
        state.advance(nanoseconds=nanoseconds)
        expected += draw * nanoseconds
    assert state.read_card(0).energy_pj == expected


def test_years_at_full_power_lose_nothing(make: Make) -> None:
    state = make(["H100"])
    state.set_load(0, 1)
    for _ in range(10):
        state.advance(nanoseconds=365 * 86400 * 10**9 + 1)
    reading = state.read_card(0)
    assert reading.energy_pj == 640_000 * (3650 * 86400 * 10**9 + 10) > 1 << 64
    assert reading.counter_mj == 640 * 3650 * 86400 * 1000


@pytest.mark.parametrize(
    ("nanoseconds", "millijoules"),
    [
        (0, 0),
        (99_999_999, 0),
        (100_000_000, 4_500),
        (199_999_999, 4_500),
        (200_000_000, 9_000),
        (1_050_000_000, 45_000),
    ],
)
def test_the_counter_moves_every_100_ms(make: Make, nanoseconds: int, millijoules: int) -> None:
    state = make(["V100"])
    state.advance(nanoseconds=nanoseconds)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == millijoules


def test_a_change_between_two_steps_counts_from_its_own_time(make: Make) -> None:
    state = make(["V100"])
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    state.advance(0.13)
    state.set_load(0, 1)
    seen = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)]
    state.advance(0.04)
    state.set_load(0, 0)
    seen.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    state.advance(0.03)
    seen.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert seen == [4_500, 4_500, (130 + 30) * 45 + 40 * 235]


Act = tuple[str, int, float]
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("load"), st.integers(0, 2), st.floats(0, 1)),
        st.tuples(st.just("limit"), st.integers(0, 2), st.floats(200, 300)),
        st.tuples(st.just("second"), st.integers(0, 2), st.floats(0, 700)),
        st.tuples(st.just("advance"), st.just(0), st.floats(0, 1e4)),
        st.tuples(st.just("nanoseconds"), st.just(0), st.integers(0, 2 * 10**8)),
        st.tuples(st.just("reload"), st.integers(0, 2), st.just(0.0)),
        st.tuples(st.just("scheduled"), st.integers(0, 2), st.floats(0, 3)),
        st.tuples(st.just("hold"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("drain"), st.just(0), st.just(0.0)),
    ),
    max_size=60,
)


def _act(state: Cards, meter: Meter, act: Act) -> None:
    name, card, value = act
    if name == "load":
        state.set_load(card, value)
    elif name == "limit":
        state.set_limit(card, value)
    elif name == "second":
        state.set_second_limit(card, value)
    elif name == "advance":
        state.advance(value)
    elif name == "nanoseconds":
        state.advance(nanoseconds=int(value))
    elif name == "reload":
        state.reload_driver(card)
    elif name == "scheduled":
        start = state.now_ns + round(value * 10**9)
        state.clear_faults(card)
        state.fault(card, cards.Fault.RESET, start)
    elif name == "hold":
        meter.hold(card, None if value == 0 else f"pod-{value}")
    elif name == "drain":
        meter.drain()


@given(acts=ACTS)
def test_whatever_happens_the_meter_and_the_cards_agree_to_the_picojoule(acts: list[Act]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        cards.create(Path(folder) / "state", ["V100", "A100", "H100"], virtual=True) as state,
    ):
        meter = Meter(state)
        counters = [0, 0, 0]
        for act in acts:
            _act(state, meter, act)
            may_reset = act[0] in {"reload", "scheduled", "advance", "nanoseconds"}
            for card in state:
                reading = state.read_card(card)
                assert meter.total(card) == reading.energy_pj
                assert may_reset or reading.counter_mj >= counters[card]
                counters[card] = reading.counter_mj
        events, end = state.drain_events(1)
        assert end == len(events) == state.read_card(1).events
        assert [event.at_ns for event in events] == sorted(event.at_ns for event in events)


@given(
    steps=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3 * 10**8)), max_size=30),
    reads=st.integers(1, 7),
)
def test_without_a_reload_the_counter_never_falls_and_is_the_truth_of_its_boundary(
    steps: list[tuple[float, int]], reads: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        cards.create(Path(folder) / "state", ["A100"], virtual=True) as state,
    ):
        stretches: list[tuple[int, int, int]] = []
        before = 0
        for load, nanoseconds in steps:
            state.set_load(0, load)
            draw = round(state.read_card(0).watts * 1000)
            for part in range(reads):
                start = state.now_ns
                end = state.advance(
                    nanoseconds=nanoseconds * (part + 1) // reads - nanoseconds * part // reads
                )
                stretches.append((start, end, draw))
                boundary = end - end % 10**8
                truth = sum(mw * max(0, min(stop, boundary) - begin) for begin, stop, mw in stretches)
                counter = state.read_card(0).counter_mj
                assert counter == truth // 10**9 >= before
                before = counter
        assert state.read_card(0).energy_pj == sum(mw * (stop - begin) for begin, stop, mw in stretches)


def test_joules_go_to_who_held_the_card(make: Make) -> None:
    state = make(["V100"] * 2)
    meter = Meter(state)
    state.advance(10)
    meter.hold(0, "a")
    state.set_load(0, 1)
    state.advance(20)
    meter.hold(0, "b")
    state.advance(5)
    meter.hold(0, None)
    state.set_load(0, 0)
    state.advance(2)
    assert meter.read(0) == {IDLE: 12 * 45 * PICO, "a": 20 * 235 * PICO, "b": 5 * 235 * PICO}
    assert meter.read(1) == {IDLE: 37 * 45 * PICO}
    assert meter.joules(0, "a") == 4700.0
    assert meter.joules(0, "nobody") == 0.0
    with pytest.raises(BadValueError, match="in order"):
        meter.hold(0, "c", 1)


def test_a_meter_goes_on_where_its_file_ends(make: Make, tmp_path: Path) -> None:
    state = make(["V100"])
    first = Meter(state, tmp_path / "joules.json")
    first.hold(0, "a")
    state.advance(3)
    first.save()
    state.set_load(0, 1)
    state.advance(4)
    second = Meter(state, tmp_path / "joules.json")
    assert second.read(0) == {"a": (3 * 45 + 4 * 235) * PICO}
    second.save()
    for others in (make(["V100"], seed=99), make(["V100"]), make(["V100", "V100"])):
        with pytest.raises(BadValueError, match="other cards"):
            Meter(others, tmp_path / "joules.json")


def test_a_meter_that_was_not_drained_in_time_says_so(make: Make) -> None:
    state = make(["V100"])
    meter = Meter(state)
    for number in range(8_001):
        state.set_load(0, (number % 2) / 2 + 0.1)
        state.advance(nanoseconds=1)
    with pytest.raises(EventsLostError, match="overwritten"):
        meter.drain()
    assert state.read_card(0).events == 8_002
    recent, end = state.drain_events(0, 200)
    assert (len(recent), end) == (7_802, 8_002)


def test_the_average_is_exact_over_many_changes(make: Make) -> None:
    state = make(["H100"])
    state.advance(3)
    total = 0
    for number in range(100):
        state.set_load(0, number / 100)
        total += round(state.read_card(0).watts * 1000)
        state.advance(0.01)
    assert state.read_card(0).average_watts == round(total / 100) / 1000
