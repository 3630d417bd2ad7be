"""What one pass counts emissions with: values of the grid and of GPUs, taken from their sources once, before it decides.

Sources are read again while passes run. A pass that read them itself might price one joule from two tables, and its input
could not be stored and decided again. So everything that it may need is copied into one frozen value (`core.seen.taking`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from greentrain.api.spec import Basis
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.quantities import Thousandths, from_years

ALLOWANCE_SECONDS = 3600
"""How far ahead the highest intensity is read for allowances. An allowance of a budget of emissions is valid for at most so
long without the operator."""

LOOK_AHEAD_SECONDS = ALLOWANCE_SECONDS
"""How far ahead a grid's intensity is read at most, however long a stop may take: so one read is a few values."""

LIFETIME_SECONDS = from_years(4)
"""Four years, over which a GPU's embodied emissions are spread where the settings have no other lifetime."""


@dataclass(frozen=True, slots=True)
class CarbonSource:
    """Where intensities come from: the sources of this cluster's settings, as they are at one moment."""

    at: Callable[[str, Basis, float], Intensity | Absent]
    """Zone, basis and Unix time → the intensity at that time."""
    zone_of: Callable[[str, str], str | None]
    """A node's region and zone → its grid zone; ("", "") → the cluster's own."""
    is_known: Callable[[str], bool] = lambda _: True
    suggest: Callable[[str], tuple[str, ...]] = lambda _: ()
    embodied: Callable[[str], Embodied | None] = lambda _: None
    """A GPU's product name → its embodied emissions."""
    lifetime_seconds: int = LIFETIME_SECONDS
    pue: Thousandths | None = None
    """None where the settings have none."""
    basis: Basis = "Lifecycle"
    include_embodied: bool = True


@dataclass(frozen=True, slots=True)
class Steps:
    """The intensities of one zone, by one basis, from one Unix time to another.

    Raises:
        ValueError: it has no steps, or they are out of order.
    """

    zone: str
    basis: Basis
    steps: tuple[Intensity | Absent, ...]
    """In order; each begins where the previous one ends, and the last one ends at `until` or later."""
    since: float
    """Unix seconds: the earliest time that can be looked up."""
    until: float
    """Unix seconds: the latest such time."""

    def __post_init__(self) -> None:
        begins = [step.begin for step in self.steps]
        if not begins or begins != sorted(begins):
            raise ValueError(f"the steps of {self.zone} begin at {begins}: they are not in order")

    def at(self, moment: float) -> Intensity | Absent:
        """The intensity at this Unix time.

        Raises:
            LookupError: nothing was taken for that time.
        """
        if not self.since <= moment <= self.until:
            raise LookupError(
                f"the intensity of {self.zone} was taken from {self.since} to {self.until}, not at {moment}"
            )
        return self.steps[bisect_right(self.steps, moment, key=lambda step: step.begin) - 1]


@dataclass(frozen=True, slots=True)
class Place:
    """The grid zone of nodes by their labels topology.kubernetes.io/region and /zone, which are empty where not set."""

    region: str
    zone: str
    grid_zone: str | None
    """None where it is not known."""


@dataclass(frozen=True, slots=True)
class Intensities:
    """What emissions are counted with in one pass, where the job does not set something else."""

    places: tuple[Place, ...] = ()
    steps: tuple[Steps, ...] = ()
    unknown_zones: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A zone that the job names but no source has → known zones that may be meant."""
    figures: Mapping[str, Embodied | None] = field(default_factory=dict)
    """A GPU's product name → its embodied emissions; None where these are not known."""
    lifetime_seconds: int = LIFETIME_SECONDS
    pue: Thousandths | None = None
    """None where the settings have none."""
    basis: Basis = "Lifecycle"
    include_embodied: bool = True

    def at(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The intensity of this zone at this Unix time.

        Raises:
            LookupError: that was not taken.
        """
        for steps in self.steps:
            if (steps.zone, steps.basis) == (zone, basis):
                return steps.at(moment)
        raise LookupError(f"the intensity of {zone} ({basis}) was not taken")

    def zone_of(self, region: str, zone: str) -> str | None:
        """The grid zone of a node by its labels; ("", "") for the cluster's own. None where it is not known.

        Raises:
            LookupError: that was not taken.
        """
        for place in self.places:
            if (place.region, place.zone) == (region, zone):
                return place.grid_zone
        raise LookupError(f"the grid zone of region {region!r} and zone {zone!r} was not taken")

    def is_known(self, zone: str) -> bool:
        """Whether a source has the zone that the job names."""
        return zone not in self.unknown_zones

    def suggest(self, zone: str) -> tuple[str, ...]:
        """Known zones that may be meant, the likeliest first."""
        return self.unknown_zones.get(zone, ())

    def embodied(self, model: str) -> Embodied | None:
        """The embodied emissions of one GPU of this product name; None where these are not known.

        Raises:
            LookupError: that was not taken.
        """
        if model not in self.figures:
            raise LookupError(f"the embodied emissions of {model!r} were not taken")
        return self.figures[model]
