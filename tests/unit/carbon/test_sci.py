"""SCI = (E × I + M) per R."""

from __future__ import annotations

import pytest

from greentrain.carbon.sci import Score, score


@pytest.mark.parametrize(
    ("operational", "embodied", "steps", "expected"),
    [
        (900, 100, None, Score(1000)),
        (900, 100, 1, Score(1000, 1000)),
        (900, 100, 3, Score(1000, 333)),
        (0, 0, 10, Score(0, 0)),
        (5, 0, 2, Score(5, 2)),
    ],
)
def test_a_score_is_per_run_and_per_step(
    operational: int, embodied: int, steps: int | None, expected: Score
) -> None:
    assert score(operational, embodied, steps=steps) == expected


@pytest.mark.parametrize(
    ("operational", "embodied", "steps", "words"),
    [(-1, 0, None, "negative"), (0, -1, None, "negative"), (1, 1, 0, "0 steps"), (1, 1, -2, "-2 steps")],
)
def test_what_cannot_be_is_refused(operational: int, embodied: int, steps: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(operational, embodied, steps=steps)
