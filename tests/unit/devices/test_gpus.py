"""What a card tells of its power limits."""

from __future__ import annotations

import pytest

from greentrain.node.cards import known_limit
from greentrain.quantities import Milliwatts, typed


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (None, None),
        (0, 0),
        (300_000, 300_000),
        (10_000_000, 10_000_000),
        (10_000_001, None),
        (2**32 - 1, None),
    ],
)
def test_a_limit_that_no_card_can_have_is_not_known(told: int | None, known: int | None) -> None:
    assert known_limit(typed(Milliwatts, told)) == known
