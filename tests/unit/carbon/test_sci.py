"""SCI = (E × I + M) per R."""

from __future__ import annotations

import pytest

from greentrain.carbon.sci import Score, score
from greentrain.quantities import Micrograms


@pytest.mark.parametrize(
    ("operational", "embodied", "steps", "expected"),
    [
        (900, 100, None, Score(Micrograms(1000))),
        (900, 100, 1, Score(Micrograms(1000), Micrograms(1000))),
        (900, 100, 3, Score(Micrograms(1000), Micrograms(333))),
        (0, 0, 10, Score(Micrograms(0), Micrograms(0))),
        (5, 0, 2, Score(Micrograms(5), Micrograms(2))),
    ],
)
def test_a_score_is_per_run_and_per_step(
    operational: int, embodied: int, steps: int | None, expected: Score
) -> None:
    assert score(Micrograms(operational), Micrograms(embodied), steps=steps) == expected


@pytest.mark.parametrize(
    ("operational", "embodied", "steps", "words"),
    [(-1, 0, None, "negative"), (0, -1, None, "negative"), (1, 1, 0, "0 steps"), (1, 1, -2, "-2 steps")],
)
def test_what_cannot_be_is_refused(operational: int, embodied: int, steps: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(Micrograms(operational), Micrograms(embodied), steps=steps)
