"""A value says for how long it holds and where it is from."""

from __future__ import annotations

from math import inf, nan

import pytest

from greentrain import quantities
from greentrain.carbon.intensity import Absent, Intensity


@pytest.mark.parametrize(
    ("begin", "end", "moment", "covered"),
    [
        (0.0, 10.0, 0.0, True),
        (0.0, 10.0, 9.999, True),
        (0.0, 10.0, 10.0, False),
        (0.0, 10.0, -1.0, False),
        (-inf, inf, 1e12, True),
        (0.0, 10.0, nan, False),
    ],
)
def test_a_period_has_its_beginning_and_not_its_end(
    begin: float, end: float, moment: float, covered: bool
) -> None:
    assert Intensity(quantities.Intensity(1), "s", "Direct", begin, end).covers(moment) is covered
    assert Absent("none", begin, end).covers(moment) is covered


@pytest.mark.parametrize(
    ("as_of", "issued", "forecast"),
    [
        (900.0, 0.0, True),
        (900.0, 899.9, True),
        (900.0, 900.0, False),
        (900.0, None, False),
        (-inf, 0.0, False),
    ],
)
def test_what_was_issued_before_its_time_began_is_a_forecast(
    as_of: float, issued: float | None, forecast: bool
) -> None:
    found = Intensity(quantities.Intensity(1), "s", "Direct", 900, 1800, as_of=as_of, step=900, issued=issued)
    assert found.is_forecast is forecast


@pytest.mark.parametrize("step", [0.0, -1.0, nan])
def test_a_step_takes_time(step: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Intensity(quantities.Intensity(1), "s", "Direct", 0, 900, step=step)


@pytest.mark.parametrize(
    ("milligrams", "source", "begin", "end", "words"),
    [
        (-1, "s", 0.0, 1.0, "cannot be negative"),
        (1, "", 0.0, 1.0, "1 to 64 characters"),
        (1, "s" * 65, 0.0, 1.0, "1 to 64 characters"),
        (1, "s", 1.0, 1.0, "no time in it"),
        (1, "s", 2.0, 1.0, "no time in it"),
        (1, "s", nan, 1.0, "no time in it"),
    ],
)
def test_what_cannot_be_is_refused(
    milligrams: int, source: str, begin: float, end: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Intensity(quantities.Intensity(milligrams), source, "Lifecycle", begin, end)
