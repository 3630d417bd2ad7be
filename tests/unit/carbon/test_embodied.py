"""The share of a GPU's making is the share of its life a job held it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.carbon.embodied import Embodied, amortise
from greentrain.quantities import Micrograms, Milliseconds

FOUR_YEARS = 4 * 365 * 24 * 3600
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("micrograms", "milliseconds", "lifetime", "share"),
    [
        # The specification's own example: 1000 kg over four years, an hour: around 28 g.
        (10**12, HOUR, FOUR_YEARS, 28_538_813),
        (10**12, 8 * HOUR, FOUR_YEARS, 228_310_502),
        (150 * 10**9, FOUR_YEARS * 1000, FOUR_YEARS, 150 * 10**9),
        (150 * 10**9, 0, FOUR_YEARS, 0),
        (0, HOUR, FOUR_YEARS, 0),
        (1, 500, 1, 0),
        (3, 500, 1, 2),
    ],
)
def test_a_job_bears_its_part_of_the_lifetime(
    micrograms: int, milliseconds: int, lifetime: int, share: int
) -> None:
    assert amortise(Micrograms(micrograms), Milliseconds(milliseconds), lifetime) == share


@pytest.mark.parametrize("amounts", [(-1, 1, 1), (1, -1, 1), (1, 1, 0), (1, 1, -1)])
def test_what_cannot_be_is_refused(amounts: tuple[Micrograms, Milliseconds, int]) -> None:
    with pytest.raises(ValueError, match=r"negative|positive"):
        amortise(*amounts)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1), st.integers(1, 10**9))
def test_parts_of_the_time_bear_the_whole(micrograms: int, times: list[int], lifetime: int) -> None:
    apart = sum(amortise(Micrograms(micrograms), Milliseconds(t), lifetime) for t in times)
    assert abs(apart - amortise(Micrograms(micrograms), Milliseconds(sum(times)), lifetime)) <= len(times)


@pytest.mark.parametrize("figures", [(2, 1, 3), (1, 3, 2), (-1, 0, 1)])
def test_figures_are_in_order(figures: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="order"):
        Embodied(*figures, source="s")
