"""A job's score by the Software Carbon Intensity specification, to compare software.

SCI = (E × I + M) per R: operational emissions plus the embodied share, per functional unit (Green Software Foundation,
Software Carbon Intensity specification 1.1.0, published as ISO/IEC 21031:2024). It is location-based, and nothing may be
subtracted for offsets or certificates. The specification names a training run as a functional unit; where the number of
steps is known, one step is a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from greentrain.quantities import Micrograms, add


@dataclass(frozen=True, slots=True)
class Score:
    """Micrograms of CO2 equivalent per functional unit; None where that unit's number is not known."""

    per_run: Micrograms
    per_step: Micrograms | None = None


def score(operational: Micrograms, embodied: Micrograms, *, steps: int | None = None) -> Score:
    """The score of one training run from E × I (PUE included) and of M.

    It takes both terms, because the specification requires both: where either is not known there is no score. A step's
    score is rounded half to even.

    Raises:
        ValueError: an amount is negative, or there are no steps.
    """
    if operational < 0 or embodied < 0:
        raise ValueError(f"{operational} µg operational, {embodied} µg embodied: neither can be negative")
    if steps is not None and steps < 1:
        raise ValueError(
            f"{steps} steps: a score per step needs one at least, leave steps out where there are none"
        )
    total = add(operational, embodied)
    return Score(total, None if steps is None else Micrograms(round(Fraction(total, steps))))
