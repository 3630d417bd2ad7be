"""Whether a job will finish inside its budget, and at which power cap: `spec.power.budgetPolicy: LowerCap`.

The cost of a step is measured at each cap that was in force, never taken from a model of cards. A lower cap saves energy
down to a point that depends on the card and the work. Below it a step costs more, because the card idles longer. So caps go
down one rung of a ladder at a time, and each rung is measured before the next one is tried. A job is reported as unable to
finish only after all allowed caps were measured.

A measurement is a sum over windows between two samples of the same attempt at the same cap. How much the windows differ
gives the error of the sum. A projection counts as inside or outside the budget only by more than its error. All amounts are
whole numbers, so that a job's status can contain them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from greentrain.core.power.measures import (
    ENOUGH_WINDOWS,
    LEAST_ERROR_MILLIONTHS,
    LEAST_WINDOWS,
    MILLIONTHS,
    PRECISE_MILLIONTHS,
    CapMeasure,
)
from greentrain.quantities import Joules, Milliseconds, add, format_energy, subtract

RUNG_PERCENT = 10
"""Distance between two caps that are tried, in percentage points. A smaller one saves hardly anything (a few percent of a
step's energy), and each rung costs minutes of measuring."""


RAISE_MARGIN_PERCENT = 2
"""A cap is raised only where the job then leaves so much of its budget over: so caps do not go up and down."""


LEAST_GAIN_MILLISECONDS = Milliseconds(120_000)
"""A cap is raised only where the job then ends so much earlier: a cap takes up to half a minute to be in force everywhere."""


SAME_PERCENT = 1


WORSE_PERCENT = 2
"""Where no cap fits: a cap is as good as the cheapest while its steps cost at most `SAME_PERCENT` more. It is left for a lower
one only where they cost so much more. In between the cap stays, so that caps do not go up and down."""


Exceeds = Literal["Yes", "No", "Unknown"]
"""Whether a job would exceed its budget; Unknown where it is too close, or too little was measured."""


Reason = Literal[
    "NoTotal", "Measuring", "Fits", "Raised", "Lowered", "Trying", "TooSlow", "TooClose", "CannotFinish"
]
"""Why a cap was chosen.

- NoTotal: it is not known how many steps are left, so nothing is projected.
- Measuring: too little was measured at the cap in force.
- Fits: the job finishes inside its budget at the cap in force.
- Raised, Lowered: the job finishes inside its budget at this cap, the best one that was measured.
- Trying: a cap that was not measured yet is tried; mostly because no measured one fits.
- TooSlow: the cap in force slows the job down by more than is allowed.
- TooClose: the job may finish inside its budget at the cheapest cap, but that is less than 95 % certain.
- CannotFinish: the job exceeds its budget at every allowed cap, and each was measured.
"""


@dataclass(frozen=True, slots=True)
class Projection:
    """What a job will have used at its end if it goes on at this cap."""

    percent: int
    joules: Joules | None = None
    """In total, with what is used already; None where it is not known."""
    uncertainty_joules: Joules | None = None
    """The error bound of `joules` at 95 % confidence."""
    milliseconds: Milliseconds | None = None
    """Time until the end."""
    exceeds: Exceeds = "Unknown"


@dataclass(frozen=True, slots=True)
class Estimate(Projection):
    """The projection for a cap at which steps were measured: nothing of it is unknown."""

    joules: Joules
    uncertainty_joules: Joules
    milliseconds: Milliseconds
    exceeds: Exceeds

    @property
    def most(self) -> Joules:
        """Joules that are not exceeded, at 95 % confidence or more."""
        return add(self.joules, self.uncertainty_joules)


def project(
    measures: Sequence[CapMeasure], percent: int, *, used: Joules, steps_left: int | None, budget: Joules
) -> Projection:
    """What a job will have used at its end, if it has used `used` now and goes on at this cap.

    `exceeds` is decided as soon as the difference to the budget is larger than the error, after `LEAST_WINDOWS` windows.
    """
    found = next((m for m in measures if m.percent == percent), None)
    if found is None or not found.steps or steps_left is None:
        return Projection(percent)
    return _estimate(found, used=used, steps_left=steps_left, budget=budget)


def _estimate(found: CapMeasure, *, used: Joules, steps_left: int, budget: Joules) -> Estimate:
    """The projection at a cap at which at least one step was measured."""
    steps_left = max(0, steps_left)
    left = Joules(-(-found.joules * steps_left // found.steps))
    error = max(found.error_millionths, LEAST_ERROR_MILLIONTHS)
    uncertainty = Joules(-(-left * error // MILLIONTHS))
    exceeds: Exceeds = "Unknown"
    if found.windows >= LEAST_WINDOWS and used + left + uncertainty <= budget:
        exceeds = "No"
    elif found.windows >= LEAST_WINDOWS and used + left - uncertainty > budget:
        exceeds = "Yes"
    milliseconds = Milliseconds(found.milliseconds * steps_left // found.steps)
    return Estimate(found.percent, add(used, left), uncertainty, milliseconds, exceeds)


@dataclass(frozen=True, slots=True)
class Choice:
    """The cap that a job will have."""

    percent: int
    reason: Reason
    message: str
    """The reason as a message."""
    cannot_finish: bool = False
    """Whether the job will exceed its budget at every allowed cap, each of which was measured."""


def build_ladder(ceiling: int, lowest: int) -> tuple[int, ...]:
    """The caps that are tried, in percent, from the highest allowed to the lowest possible one; at least the highest.

    The last distance is between half a rung and one and a half rungs, so that no rung is measured without use.
    """
    if lowest >= ceiling:
        return (ceiling,)
    return (ceiling, *range(ceiling - RUNG_PERCENT, lowest + RUNG_PERCENT // 2 - 1, -RUNG_PERCENT), lowest)


def choose_cap(
    measures: Sequence[CapMeasure],
    percent: int,
    ladder: Sequence[int],
    *,
    used: Joules,
    steps_left: int | None,
    budget: Joules,
    max_slowdown_percent: int | None = None,
) -> Choice:
    """Choose a job's cap from the ladder; `used` is what it has used of its budget, `percent` its present cap.

    - The highest cap that was measured and fits. To raise the cap above one that fits, the higher one must fit with a
      margin and let the job end earlier.
    - Where no cap fits: the next one below those that were measured. Where there is none: the one with the cheapest steps.
    - A higher cap that was not measured, because the ceiling was lower before, is tried where it must fit. A step there
      takes no longer, so it costs at most the ratio of the two limits more.

    With `max_slowdown_percent` the ladder ends above the first cap at which a step takes so much longer than at the highest.
    """
    here = max((rung for rung in ladder if rung <= percent), default=ladder[-1])
    if steps_left is None:
        return Choice(
            here, "NoTotal", f"it does not say how many steps are left, so its cap stays at {here}%"
        )
    by_cap = {m.percent: m for m in measures if m.percent in ladder and m.steps}
    allowed = _find_allowed(ladder, by_cap, max_slowdown_percent)
    estimates = {
        rung: _estimate(by_cap[rung], used=used, steps_left=steps_left, budget=budget)
        for rung in allowed
        if rung in by_cap
    }
    # Far from the budget a rough measure is enough, unless the times of steps matter.
    rough = max_slowdown_percent is None
    found = {
        rung: one
        for rung, one in estimates.items()
        if by_cap[rung].is_enough or (rough and one.exceeds != "Unknown")
    }
    choice = _choose(_Rungs(here, allowed, by_cap, estimates, found), used, budget)
    if here in allowed:
        return choice
    reason: Reason = choice.reason if choice.reason in ("CannotFinish", "Measuring") else "TooSlow"
    text = f"{here}% slows it down by more than spec.power.maxSlowdownPercent ({max_slowdown_percent}) allows; {choice.message}"
    return replace(choice, reason=reason, message=text)


@dataclass(frozen=True, slots=True)
class _Rungs:
    """A ladder of caps with the measures on it."""

    here: int
    """The rung in force, in percent, as all rungs."""
    allowed: tuple[int, ...]
    """The rungs from the highest to the last that does not slow the job down too much."""
    measures: Mapping[int, CapMeasure]
    """The measures of all rungs at which a step was measured."""
    estimates: Mapping[int, Estimate]
    """The estimates of those rungs that are allowed."""
    found: Mapping[int, Estimate]
    """The estimates of those rungs that were measured well enough."""

    def is_due(self, rung: int, budget: Joules) -> bool:
        """Whether a cap that fits is good enough to replace the one in force, or to be kept."""
        here = self.here
        if here not in self.allowed:
            return True
        ample = add(self.found[rung].most, _margin(budget)) <= budget
        if here in self.found and self.found[here].exceeds != "No":
            # Among caps that cost the same, it is chance which one fits.
            return ample or _is_worse(self.measures[here], self.measures[rung], SAME_PERCENT)
        return rung <= here or (ample and _is_earlier(self.estimates, rung, here))

    def find_best(self, budget: Joules) -> int | None:
        """The highest cap that fits and is due; None where there is none."""
        fits = (rung for rung, one in self.found.items() if one.exceeds == "No")
        return max((rung for rung in fits if self.is_due(rung, budget)), default=None)


def _margin(budget: Joules) -> Joules:
    return Joules(budget * RAISE_MARGIN_PERCENT // 100)


def _choose(rungs: _Rungs, used: Joules, budget: Joules) -> Choice:
    """The cap among the allowed ones, and why. The caller adds the case that the one in force is not allowed."""
    here, allowed, by_cap, found = rungs.here, rungs.allowed, rungs.measures, rungs.found
    best = rungs.find_best(budget)
    if here not in found and here in allowed and (best is None or best < here):
        return Choice(here, "Measuring", _describe_measuring(by_cap.get(here, CapMeasure(here))))
    above = min((rung for rung in allowed if rung > here), default=here)
    if best == here and above not in found:
        bound = subtract(used, Joules(subtract(used, found[here].most) * above // here))
        if add(bound, _margin(budget)) <= budget:
            return Choice(above, "Trying", f"{_describe(found[here], budget)}; {above}% is tried")
    if best is not None:
        return Choice(best, _name_move(here, best), _describe(found[best], budget))
    # Here a rough measure counts too: otherwise a cap that did not fit would be tried again and again.
    known = [r for r in allowed if r in by_cap and by_cap[r].windows >= LEAST_WINDOWS]
    unknown = [r for r in allowed if r < known[-1]][:1] or [r for r in allowed if r not in known][-1:]
    if unknown:
        words = _describe(rungs.estimates[known[-1]], budget)
        return Choice(unknown[0], "Trying", f"{words}; {unknown[0]}% is tried")
    cheapest = _find_cheapest({rung: by_cap[rung] for rung in allowed}, here)
    one, words = rungs.estimates[cheapest], _describe(rungs.estimates[cheapest], budget)
    if one.exceeds == "No":
        return Choice(cheapest, _name_move(here, cheapest), words)
    if not by_cap[cheapest].is_enough:
        return Choice(cheapest, "Measuring", _describe_measuring(by_cap[cheapest]))
    words += ", and at no allowed cap does a step cost less"
    if one.exceeds == "Yes":
        text = f"it cannot finish inside its budget: {words}"
        return Choice(cheapest, "CannotFinish", text, cannot_finish=True)
    return Choice(cheapest, "TooClose", words)


def _name_move(here: int, there: int) -> Reason:
    return "Fits" if there == here else "Raised" if there > here else "Lowered"


def _is_earlier(estimates: Mapping[int, Estimate], one: int, than: int) -> bool:
    """Whether the job ends enough earlier at one cap than at another; True where the other's end is not known."""
    other = estimates.get(than)
    return other is None or other.milliseconds - estimates[one].milliseconds >= LEAST_GAIN_MILLISECONDS


def _find_allowed(
    ladder: Sequence[int], by_cap: Mapping[int, CapMeasure], max_slowdown_percent: int | None
) -> tuple[int, ...]:
    """The ladder down to the last cap that, compared with the highest, does not slow the job down too much."""
    reference = by_cap.get(ladder[0])
    if max_slowdown_percent is None or reference is None or not reference.is_enough:
        return tuple(ladder)
    for i, rung in enumerate(ladder):
        one = by_cap.get(rung)
        # Milliseconds per step, compared without a division.
        if (
            one is not None
            and one.is_enough
            and one.milliseconds * reference.steps * 100
            > (reference.milliseconds * one.steps * (100 + max_slowdown_percent))
        ):
            return tuple(ladder[:i])
    return tuple(ladder)


def _find_cheapest(found: Mapping[int, CapMeasure], here: int) -> int:
    """The cap at which a step costs least; of caps that cost about the same, the highest, because it is the fastest."""
    least = next(iter(found.values()))
    for one in found.values():
        if one.costs_less(least):
            least = one
    as_good = max(rung for rung, one in found.items() if not _is_worse(one, least, SAME_PERCENT))
    if here in found and here > as_good and not _is_worse(found[here], least, WORSE_PERCENT):
        return here
    return as_good


def _is_worse(one: CapMeasure, than: CapMeasure, percent: int) -> bool:
    """Whether a step costs so much more at one cap than at another."""
    return one.joules * than.steps * 100 > than.joules * one.steps * (100 + percent)


def _describe(one: Estimate, budget: Joules) -> str:
    return (
        f"at {one.percent}% it would use {format_energy(one.joules)} of {format_energy(budget)}, "
        f"give or take {format_energy(one.uncertainty_joules)}"
    )


def _describe_measuring(known: CapMeasure) -> str:
    if known.windows < LEAST_WINDOWS:
        return f"what a step costs at {known.percent}% is being measured: {known.windows} of {LEAST_WINDOWS} times"
    return (
        f"what a step costs at {known.percent}% is being measured: it is known to "
        f"{known.error_millionths / 10_000:.1f}%, to {PRECISE_MILLIONTHS // 10_000}% is due, or {ENOUGH_WINDOWS} times "
        f"({known.windows} so far)"
    )
