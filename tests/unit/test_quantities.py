"""Quantities as people write and read them: power, energy, emissions, intensities."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.quantities import (
    EARLIEST,
    LATEST,
    Intensity,
    Joules,
    Micrograms,
    Microjoules,
    Microseconds,
    Microwatts,
    Millijoules,
    Milliseconds,
    Milliwatts,
    Nanoseconds,
    PowerCap,
    Thousandths,
    add,
    add_up,
    allow,
    emit,
    energy_of,
    format_emissions,
    format_energy,
    format_intensity,
    format_power,
    format_pue,
    format_size,
    format_unix_time,
    from_grams,
    from_joules,
    from_microseconds,
    from_microwatts,
    from_nanoseconds,
    from_years,
    in_grams,
    in_grams_per_kilowatt_hour,
    in_joules,
    in_minutes,
    in_watts,
    in_whole_grams,
    in_whole_grams_per_kilowatt_hour,
    parse_emissions,
    parse_energy,
    parse_intensity,
    parse_power_cap,
    parse_pue,
    parse_time,
    subtract,
    time_of,
    to_intensity,
    to_joules,
    to_joules_above,
    to_millijoules,
    to_milliseconds,
    to_seconds,
    typed,
)

REFUSAL = (
    "write watts from 1W to 10kW, such as 250W or 0.3kW, or a share of the GPU's default limit, such as 70%"
)
MOST_MILLIWATTS = 10_000_000


@pytest.mark.parametrize(
    ("text", "cap"),
    [
        ("250W", PowerCap(milliwatts=Milliwatts(250_000))),
        ("250.5W", PowerCap(milliwatts=Milliwatts(250_500))),
        ("0.001kW", PowerCap(milliwatts=Milliwatts(1_000))),
        ("0.3kW", PowerCap(milliwatts=Milliwatts(300_000))),
        ("0.300kW", PowerCap(milliwatts=Milliwatts(300_000))),
        ("0.01kW", PowerCap(milliwatts=Milliwatts(10_000))),
        ("1W", PowerCap(milliwatts=Milliwatts(1_000))),
        ("1.0W", PowerCap(milliwatts=Milliwatts(1_000))),
        ("1.001W", PowerCap(milliwatts=Milliwatts(1_001))),
        ("10kW", PowerCap(milliwatts=Milliwatts(10_000_000))),
        ("9999.999W", PowerCap(milliwatts=Milliwatts(9_999_999))),
        ("10000W", PowerCap(milliwatts=Milliwatts(10_000_000))),
        ("9.999kW", PowerCap(milliwatts=Milliwatts(9_999_000))),
        ("1%", PowerCap(percent=1)),
        ("70%", PowerCap(percent=70)),
        ("100%", PowerCap(percent=100)),
    ],
)
def test_a_cap_is_watts_kilowatts_or_a_share(text: str, cap: PowerCap) -> None:
    assert parse_power_cap(text) == cap


@pytest.mark.parametrize(
    "text",
    [
        *("", "250", "W", "kW", "%", ".", ".W", "NaNW", "2e2W"),
        *("250w", "250KW", "250mW", "0.25MW", "250Wh", "250J", "70%W"),
        *("250 W", " 250W", "250W ", "250W\n", "250\nW", "٢٥٠W", "２５０W", "70％"),
        *("-250W", "+250W", "-1%", "--1W"),
        *(".5kW", "5.kW", "250,5W", "2.5.0W", "0.0001kW", "250.0001W", "70.5%"),
        *("00250W", "070%", "00.3kW"),
        *("0%", "00%", "101%", "110%", "999%", "1000%"),
        *("0W", "0.999W", "0kW", "0.000kW", "10001W", "10000.001W", "10.001kW", "11kW", "123456W", "99999kW"),
    ],
)
def test_what_is_no_cap_is_answered_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(REFUSAL)}$"):
        parse_power_cap(text)


@pytest.mark.parametrize(
    ("milliwatts", "text"),
    [
        (0, "0W"),
        (1, "0.001W"),
        (50, "0.05W"),
        (1_000, "1W"),
        (100_000, "100W"),
        (250_000, "250W"),
        (250_500, "250.5W"),
        (250_040, "250.04W"),
        (250_001, "250.001W"),
        (10_000_000, "10000W"),
    ],
)
def test_power_is_told_in_watts_and_nothing_is_rounded(milliwatts: int, text: str) -> None:
    assert format_power(Milliwatts(milliwatts)) == text


@pytest.mark.parametrize(
    ("cap", "text"),
    [(PowerCap(milliwatts=Milliwatts(300_000)), "300W"), (PowerCap(percent=70), "70%")],
)
def test_a_cap_is_told_as_it_can_be_asked_for(cap: PowerCap, text: str) -> None:
    assert str(cap) == text


CAPS = st.builds(PowerCap, milliwatts=st.integers(1_000, MOST_MILLIWATTS)) | st.builds(
    PowerCap, percent=st.integers(1, 100)
)


@given(CAPS)
def test_what_is_told_can_be_asked_for(cap: PowerCap) -> None:
    assert parse_power_cap(str(cap)) == cap


@given(st.integers(1, 9_999))
def test_kilowatts_are_read_to_the_watt(watts: int) -> None:
    kilowatts, rest = divmod(watts, 1000)
    assert parse_power_cap(f"{kilowatts}.{rest:03d}kW").milliwatts == watts * 1000


@given(st.text(alphabet="0123456789.kW% -+eE", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_cap_within_bounds_or_refused(text: str) -> None:
    try:
        cap = parse_power_cap(text)
    except ValueError:
        return
    assert parse_power_cap(str(cap)) == cap
    amount = 1_000 <= (cap.milliwatts or 0) <= MOST_MILLIWATTS
    share = 1 <= (cap.percent or 0) <= 100
    assert amount is not share


@pytest.mark.parametrize(
    ("text", "joules"),
    [
        ("1J", 1),
        ("500Wh", 1_800_000),
        ("5kWh", 18_000_000),
        ("1.5MWh", 5_400_000_000),
        ("18MJ", 18_000_000),
        ("0.5Wh", 1800),
        ("1.0001Wh", 3600),
        ("100GWh", 360_000_000_000_000),
        ("2TJ", 2_000_000_000_000),
    ],
)
def test_energy_as_people_write_it(text: str, joules: int) -> None:
    assert parse_energy(text) == joules


@pytest.mark.parametrize(
    ("text", "micrograms"),
    [
        ("800gCO2e", 800_000_000),
        ("2kgCO2e", 2_000_000_000),
        ("1.2tCO2e", 1_200_000_000_000),
        ("0.001gCO2e", 1000),
    ],
)
def test_emissions_as_people_write_them(text: str, micrograms: int) -> None:
    assert parse_emissions(text) == micrograms


@pytest.mark.parametrize("parse", [parse_energy, parse_emissions, parse_intensity, parse_pue])
@pytest.mark.parametrize(
    "text",
    ["", "-5kWh", "-1gCO2e", "5 kWh", "5kwh", "1e3J", "0J", "0gCO2e", "101GWh", "1000000tCO2e", "5kg", "٥kWh",
     "9999gCO2e/kWh", "200g/kWh", "0.99", "5.1", "5.0001", "NaN", "1,5kWh", ".5kWh"],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_what_would_be_right(
    parse: Callable[[str], int], text: str
) -> None:
    with pytest.raises(ValueError, match=r"^write "):
        parse(text)


@given(st.integers(1, 10**14))
def test_energy_printed_is_read_again_to_four_digits(joules: int) -> None:
    assert parse_energy(format_energy(Joules(joules))) == pytest.approx(joules, rel=6e-4, abs=1)


@given(st.integers(1, 10**12 - 1))
def test_whole_joules_round_trip(joules: int) -> None:
    assert parse_energy(f"{joules}J") == joules


@given(st.integers(1000, 10**17))
def test_emissions_printed_are_read_again_to_four_digits(micrograms: int) -> None:
    text = format_emissions(Micrograms(micrograms))
    grams = f"{float(text[:-2]) / 1000:.6f}gCO2e" if text.endswith("mg") else f"{text}CO2e"
    assert parse_emissions(grams) == pytest.approx(micrograms, rel=6e-4, abs=1000)


@given(st.integers(0, 5_000_000))
def test_an_intensity_round_trips(milligrams: int) -> None:
    assert parse_intensity(format_intensity(Intensity(milligrams))) == pytest.approx(milligrams, rel=1e-5)


@given(st.integers(1000, 5000))
def test_a_pue_round_trips(thousandths: int) -> None:
    assert parse_pue(f"{thousandths / 1000}") == thousandths
    assert parse_pue(format_pue(Thousandths(thousandths))) == pytest.approx(thousandths, abs=1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01T09:00:00Z", datetime(2026, 1, 1, 9, tzinfo=UTC)),
        ("2026-01-01T09:00:00+09:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T09:00:00.123456789Z", datetime(2026, 1, 1, 9, 0, 0, 123456, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", EARLIEST),
        ("0001-01-01T00:00:00+14:00", EARLIEST),
        ("1969-12-31T23:59:59Z", EARLIEST),
        ("9999-12-31T23:59:59Z", LATEST),
        ("9999-12-31T23:59:59-12:00", LATEST),
        ("0000-01-01T00:00:00Z", None),
        ("10000-01-01T00:00:00Z", None),
        ("-001-12-31T19:00:00Z", None),
        ("2026-06-30T23:59:60Z", None),
        ("2026-01-01T09:00:00", None),
        ("2026-01-01", None),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_a_time_of_any_year_is_one_that_can_be_counted_with_and_written(
    text: str, moment: datetime | None
) -> None:
    found = parse_time(text)
    assert found == moment
    assert found is None or found.tzinfo is UTC
    assert found is None or re.fullmatch(r"[0-9]{4}-.{2}-.{2}T.{8}Z", format_unix_time(found.timestamp()))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (to_joules(Millijoules(1999)), 1),
        (to_joules_above(1999.5), 2),
        (to_joules_above(2000.0), 2),
        (to_millijoules(Microjoules(1999)), 1),
        (from_microwatts(Microwatts(1999)), 1),
        (add(Joules(1), Joules(2), Joules(3)), 6),
        (add_up(Micrograms(n) for n in range(4)), 6),
        (add_up(list[Joules]()), 0),
        (subtract(Milliwatts(1), Milliwatts(3)), -2),
        (typed(Joules, 5), 5),
        (typed(Joules, 0), 0),
        (typed(Joules, None), None),
        (from_joules(Joules(0)), 0),
        (from_joules(Joules(7)), 7000),
        (in_joules(Millijoules(0)), 0.0),
        (in_joules(Millijoules(1999)), 1.999),
        (in_watts(Milliwatts(250_001)), 250.001),
        (in_grams(Micrograms(1_500_001)), 1.500001),
        (in_whole_grams(Micrograms(1_500_000)), 2),
        (in_whole_grams(Micrograms(2_500_000)), 2),
        (from_grams(3), 3_000_000),
        (to_intensity(Decimal("210.5")), 210_500),
        (in_grams_per_kilowatt_hour(Intensity(5_000_999)), 5000.999),
        (in_whole_grams_per_kilowatt_hour(Intensity(5_000_999)), 5000),
        (in_minutes(300.0), 5.0),
        (in_minutes(45), 0.75),
        (to_milliseconds(1.9999), 1999),
        (to_seconds(Milliseconds(1999)), 1),
        (from_nanoseconds(Nanoseconds(1_500_000_000)), 1.5),
        (from_microseconds(Microseconds(1_500_000)), 1.5),
        (from_years(4), 126_144_000),
        (from_years(Decimal("0.5")), 15_768_000),
        (format_size(20_999_999), "20 MB"),
        # A kilowatt-hour at 200 g/kWh and a PUE of 1.5.
        (emit(3_600_000 * 200_000, Thousandths(1500)), 300_000_000),
        (allow(Micrograms(300_000_000), Thousandths(1500), Intensity(200_000)), 3_600_000),
    ],
)
def test_conversions(found: object, expected: object) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("milliwatts", "seconds", "joules"),
    [(1, 1, 1), (300_000, 10, 3000), (300_000, 0.001, 1), (1500, 1, 2), (0, 10, 0)],
)
def test_energy_of_a_power_is_rounded_up_to_whole_joules(
    milliwatts: int, seconds: float, joules: int
) -> None:
    assert energy_of(Milliwatts(milliwatts), seconds) == joules


@pytest.mark.parametrize(
    ("joules", "milliwatts", "seconds"),
    [
        (0, 300_000, 0),
        (1, 300_000, 1),
        (300, 300_000, 1),
        (301, 300_000, 2),
        (1, 1, 1000),
        (10**15, 1, 10**18),
    ],
)
def test_the_time_of_an_energy_is_rounded_up_to_whole_seconds(
    joules: int, milliwatts: int, seconds: int
) -> None:
    assert time_of(Joules(joules), Milliwatts(milliwatts)) == seconds


@given(st.integers(0, 10**15), st.integers(1000, 5000), st.integers(1, 5_000_000))
def test_what_is_allowed_emits_no_more_and_a_joule_more_does(
    micrograms: int, pue: int, intensity: int
) -> None:
    joules = allow(Micrograms(micrograms), Thousandths(pue), Intensity(intensity))
    assert (
        emit(joules * intensity, Thousandths(pue))
        <= micrograms
        < emit((joules + 1) * intensity, Thousandths(pue))
    )
