"""The share of a GPU's embodied emissions for the time it was allocated to a job.

The M of the Software Carbon Intensity specification (1.1.0, "Embodied emissions"; ISO/IEC 21031:2024): the emissions of
making the hardware, times the time it was reserved over its expected lifespan, times the share of it that was reserved.
Reserved time counts whether the GPU worked or not. A card that is idle for half of its life charges that half to no job.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from greentrain.quantities import Micrograms, Milliseconds, to_milliseconds


@dataclass(frozen=True, slots=True)
class Embodied:
    """Grams of CO2 equivalent emitted in making one GPU, and how far apart the known figures lie.

    Raises:
        ValueError: the three are not in order, or negative.
    """

    low: int
    typical: int
    high: int
    source: str
    year: int | None = None
    """Year of the source; None where it is a site's own figure."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.typical <= self.high:
            raise ValueError(f"low {self.low}, typical {self.typical}, high {self.high} g are not in order")


def amortise(made: Micrograms, gpu_milliseconds: Milliseconds, lifetime_seconds: int) -> Micrograms:
    """The share for so much GPU time of what was `made` in making one GPU that lasts `lifetime_seconds`.

    GPU time is the sum over the GPUs allocated to a job (two for a second are 2,000 ms); of a part of a GPU, that part of its
    time. Rounded once, half to even.

    Raises:
        ValueError: an amount is negative, or the lifetime is not positive.
    """
    if made < 0 or gpu_milliseconds < 0:
        raise ValueError(f"{made} µg and {gpu_milliseconds} ms of GPU time: neither can be negative")
    if lifetime_seconds <= 0:
        raise ValueError(f"a lifetime of {lifetime_seconds} s: it must be positive")
    return Micrograms(round(Fraction(made * gpu_milliseconds, to_milliseconds(lifetime_seconds))))
