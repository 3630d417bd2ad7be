"""To which pod an interval's energy belongs: every millijoule goes to exactly one pod, to idle, or to `unattributed`.

A card's allocations are known at the two readings that bound an interval. If it is allocated to a pod at both, it was
throughout: a kubelet allocates a device for the pod's whole life. A pod seen at one end only began or ended in between: it gets
half the interval, and the possible error is part of the answer. In a long interval (the agent was away) the pod's own start
and end times are more exact; the kubelet keeps them in whole seconds. Where only the card could not be read for a while,
its allocations were seen meanwhile: the interval then has phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from typing import cast

from greentrain.quantities import Amount, Millijoules

SHORT_SECONDS = 2.5
"""Up to this length half the interval is taken: a pod's own times, in whole seconds, would not be more exact."""

TIME_RESOLUTION_SECONDS = 1.0
"""Resolution of the times in a pod's status (metav1.Time)."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """A card's allocation to one pod."""

    pod: str
    """Key of the pod in the account."""
    share: float = 1.0
    """Its part of the card: 1, or the part that its MIG instances have."""
    alone: bool = True
    """False for a card that several pods may have at once (time-shared, MIG): its energy is divided, not measured."""


@dataclass(frozen=True, slots=True)
class Window:
    """When a pod's containers began and ended, on the readings' clock; None where that is not known."""

    begin: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A time throughout which a card was seen allocated to the same pods."""

    begin: float
    end: float
    held: tuple[Allocated, ...]


@dataclass(frozen=True, slots=True)
class Presence:
    """For what part of an interval a card was allocated to a pod, and how much of the interval is in doubt."""

    pod: str
    weight: float
    """Part of the card's energy in the interval, 0 to 1."""
    doubt: float = 0.0
    """Part of the interval in doubt because the allocation began or ended at an unknown moment in between."""
    guessed: float = 0.0
    """Part by which `weight` may be wrong because a long time or a shared card was divided."""
    alone: bool = True


def find_presences(phases: Sequence[Phase], *, windows: Mapping[str, Window]) -> tuple[Presence, ...]:
    """What part of the energy between two readings belongs to which pod; what is left belongs to none. Weights add up to 1 at most.

    The first phase begins with the first reading, the last one ends with the second.
    """
    whole = phases[-1].end - phases[0].begin
    if whole <= 0.0:
        return _divide([(one, 1.0, 0.0, 0.0) for one in phases[-1].held])
    found: dict[str, Presence] = {}
    for phase in phases:
        for one in _divide([(one, 1.0, 0.0, 0.0) for one in phase.held]):
            _add(found, one, (phase.end - phase.begin) / whole)
    for before, after in pairwise(phases):
        for one in _find_between(before, after, windows):
            _add(found, one, (after.begin - before.end) / whole)
    if any(phase.end > phase.begin for phase in phases[1:-1]):
        # It is not known when a card that could not be read drew how much.
        return tuple(_guess(one) for one in found.values())
    return tuple(found.values())


def _add(found: dict[str, Presence], one: Presence, part: float) -> None:
    known = found.get(one.pod, Presence(one.pod, 0.0))
    found[one.pod] = Presence(
        one.pod,
        known.weight + one.weight * part,
        known.doubt + one.doubt * part,
        known.guessed + one.guessed * part,
        known.alone and one.alone,
    )


def _guess(one: Presence) -> Presence:
    return Presence(
        one.pod, one.weight, one.doubt, max(one.guessed, min(one.weight, 1.0 - one.weight)), one.alone
    )


def _find_between(before: Phase, after: Phase, windows: Mapping[str, Window]) -> tuple[Presence, ...]:
    """To which pods a card was allocated between two times at which its allocations were seen."""
    first, last = {h.pod: h for h in before.held}, {h.pod: h for h in after.held}
    begin, end = before.end, after.begin
    length = end - begin
    if length <= 0.0:
        return ()
    found = []
    for pod in dict.fromkeys([*first, *last]):
        one = last.get(pod) or first[pod]
        if pod in first and pod in last:
            part, doubt, guessed = 1.0, 0.0, 0.0
        elif length <= SHORT_SECONDS:
            part, doubt, guessed = 0.5, 0.5, 0.0
        else:
            part, known = _overlap(windows.get(pod, Window()), begin, end, began=pod in last)
            doubt = min(TIME_RESOLUTION_SECONDS / length, 0.5) if known else 0.5
            guessed = min(part, 1.0 - part)
        found.append((one, part, doubt, guessed))
    return _divide(found)


def _overlap(window: Window, begin: float, end: float, *, began: bool) -> tuple[float, bool]:
    """The part of the interval a pod was there, and whether its own times show it."""
    moment = window.begin if began else window.end
    if moment is None:
        return 0.5, False
    moment = min(max(moment, begin), end)
    return ((end - moment) if began else (moment - begin)) / (end - begin), True


def _divide(found: Sequence[tuple[Allocated, float, float, float]]) -> tuple[Presence, ...]:
    """Turn times into parts of the energy where pods share a card, or seem to have had it at once."""
    shares = sum(one.share for one, *_ in found)
    crowded = max(1.0, shares)
    # A card that is not shared was never allocated to two pods at once, so their times cannot add up to more than the whole.
    longest = max(1.0, sum(part for one, part, _, _ in found if one.alone))

    def weigh(one: Allocated, part: float, doubt: float, guessed: float) -> Presence:
        if one.alone:
            return Presence(one.pod, part / longest, doubt, guessed)
        share = one.share / crowded
        return Presence(
            one.pod, part * share, doubt * share, guessed + part * share * (1.0 - share), alone=False
        )

    return tuple(starmap(weigh, found))


@dataclass(frozen=True, slots=True)
class Portion:
    """One pod's part of an interval's energy."""

    pod: str
    weight: float
    """Part of the energy, 0 to 1."""
    doubt: float
    """Millijoules by which it may be wrong in either direction, because of moments between two polls."""
    guessed: float
    """Millijoules by which it may be wrong because something was divided whose division was not seen."""
    alone: bool


def share_out(
    found: Sequence[Presence],
    total: Millijoules,
    seconds: float,
    *,
    idle_draw: float | None,
    busy: bool = False,
) -> tuple[Portion, ...]:
    """From parts of the time to parts of the energy, `total` in `seconds`.

    Where the card was allocated to one pod for a part of the time and to none for the rest, it was idle in the rest
    (`idle_draw` milliwatts, where that is known). So only the idle draw of the time in doubt is unknown. Where it was seen
    working without a pod (`busy`), the energy is divided like the time, and how much that may be wrong is part of the answer.
    """
    if idle_draw is not None and len(found) == 1 and found[0].alone and total > 0:
        (one,) = found
        free = min(float(total), idle_draw * (1.0 - one.weight) * seconds)
        if busy:
            guessed = max(0.0, total * (1.0 - one.weight) - free)
            return (Portion(one.pod, one.weight, total * one.doubt, guessed, True),)
        doubt = min(idle_draw * one.doubt * seconds, float(total))
        return (Portion(one.pod, 1.0 - free / total, doubt, 0.0, True),)
    return tuple(Portion(p.pod, p.weight, total * p.doubt, total * p.guessed, p.alone) for p in found)


def split(amount: Amount, weights: Sequence[float]) -> list[Amount]:
    """Divide an amount by weights that add up to 1 at most, exactly; the last entry is what no pod gets.

    A rounding remainder goes to the last entry, or to the heaviest where the weights are the whole.
    """
    parts = [int(amount * weight) for weight in weights]
    rest = amount - sum(parts)
    if parts and sum(weights) >= 1.0 - 1e-9:
        heaviest = max(range(len(parts)), key=lambda i: weights[i])
        parts[heaviest] += rest
        rest = 0
    # Parts of an amount are amounts of its unit.
    return cast("list[Amount]", [*parts, rest])
