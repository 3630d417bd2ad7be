"""What each pod may use on its node, so that agents can enforce a budget without the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from greentrain import quantities
from greentrain.api.budgets import LineStatus, PodAllowance
from greentrain.api.spec import Scope
from greentrain.api.status import EmissionsStatus, EnergyStatus
from greentrain.core.books.account import Account
from greentrain.core.books.books import Books
from greentrain.core.books.charges import Charges, overdue_seconds
from greentrain.core.books.emissions import embodied_of
from greentrain.core.seen.intensities import ALLOWANCE_SECONDS
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.pods import Pod
from greentrain.quantities import Intensity, Joules, Micrograms, Milliwatts, Thousandths, energy_of

UNFAIR_SHARE = 4
"""Allowances are divided again when what a pod has left is less than its share of the rest by more than a quarter (1/4)."""


VALID_SECONDS = (60, 300, 900, ALLOWANCE_SECONDS)
"""For how many seconds allowances of a budget of emissions may be valid without the operator. The longest is how far ahead the
grid's intensity is read; the shortest is twice the silence after which agents act."""


KEPT_PART = 4
"""At most a quarter (1/4) of what is left is reserved for the embodied emissions of that time."""


NOTHING = Micrograms(0)


@dataclass(frozen=True, slots=True)
class AllowedPod:
    """A pod that has not ended, and what is known about its energy."""

    uid: str
    used: int
    weight: int
    """Its share of the rest: the GPUs that it requests."""
    echo: int | None = None
    """The allowance that its agent enforces, as last reported."""


def find_allowed_pods(
    pods: Iterable[Pod], energy: EnergyStatus | None, reports: Iterable[NodeReport], scope: Scope
) -> tuple[AllowedPod, ...]:
    """The pods that get an allowance."""
    used: dict[str, int] = {}
    for entry in energy.pods if energy is not None else ():
        used[entry.uid] = used.get(entry.uid, 0) + entry.counted(scope)
    echoes = {e.uid: e.allowance_joules for r in reports for e in r.pods if not e.closed}
    live = sorted((p for p in pods if not p.ended and (p.gpus or scope == "Node")), key=lambda p: p.uid)
    return tuple(AllowedPod(p.uid, used.get(p.uid, 0), max(1, p.gpus), echoes.get(p.uid)) for p in live)


def divide(
    room: int, pods_allowed: Sequence[AllowedPod], known: Sequence[PodAllowance], *, slack: int = 0
) -> tuple[PodAllowance, ...]:
    """What each pod may use, so that together they cannot exceed `room`, whichever allowances their agents have read.

    `room` is what all these pods may use in total, including what they have used already. An allowance is lowered at once.
    Until its agent reports the lower one, the higher one counts; only then is the difference given to other pods.
    Where `room` shrinks with time, allowances stay as long as they exceed it by no more than `slack`.
    """
    echoes = {h.uid: h.echo for h in pods_allowed}
    before = {a.uid: _acknowledged(a, echoes[a.uid]) for a in known if a.uid in echoes}
    fair = _fair(max(0, room - sum(h.used for h in pods_allowed)), pods_allowed)
    if _is_fair(before, fair, pods_allowed, room + slack):
        return tuple(before[h.uid] for h in pods_allowed)
    kept = {h.uid: _lowered(before.get(h.uid), h.uid, fair[h.uid]) for h in pods_allowed}
    free = max(0, room - sum(a.granted_joules for a in kept.values()))
    wishes = {uid: fair[uid] - a.granted_joules for uid, a in kept.items() if fair[uid] > a.granted_joules}
    wanted = sum(wishes.values())
    for uid, wish in wishes.items():
        more = min(wish, free * wish // wanted)
        if more:
            amount = kept[uid].granted_joules + more
            kept[uid] = PodAllowance(uid=uid, joules=amount, granted_joules=amount)
    return tuple(kept[h.uid] for h in pods_allowed)


def _acknowledged(known: PodAllowance, echo: int | None) -> PodAllowance:
    if echo != known.joules or known.granted_joules == known.joules:
        return known
    return known.model_copy(update={"granted_joules": known.joules})


def _fair(remaining: int, pods_allowed: Sequence[AllowedPod]) -> dict[str, int]:
    """What each pod would be allowed in total if the rest were divided by weight now."""
    whole = sum(h.weight for h in pods_allowed)
    return {h.uid: h.used + remaining * h.weight // whole for h in pods_allowed}


def _is_fair(
    before: Mapping[str, PodAllowance], fair: Mapping[str, int], pods_allowed: Sequence[AllowedPod], room: int
) -> bool:
    """Whether the allowances may stay: every pod has one, they fit, and none is much lower than its share."""
    if before.keys() != fair.keys() or sum(a.granted_joules for a in before.values()) > max(room, 0):
        return False
    return all(
        UNFAIR_SHARE * (fair[h.uid] - before[h.uid].joules) <= fair[h.uid] - h.used for h in pods_allowed
    )


def _lowered(known: PodAllowance | None, uid: str, fair: int) -> PodAllowance:
    """A pod's allowance, lowered at once where it exceeds its share; the old one counts until its agent reports the new."""
    if known is None:
        return PodAllowance(uid=uid, joules=0)
    if known.joules <= fair:
        return known
    return known.model_copy(
        update={"joules": fair, "granted_joules": max(known.granted_joules, known.joules)}
    )


def allow(
    account: Account,
    books: Books,
    charges: Charges,
    budget: LineStatus | None,
    highest: Intensity | None,
) -> tuple[PodAllowance, ...]:
    """Allowances of the pods: unchanged while the job is being stopped, none where no budget stops it.

    `budget` is the budget of energy, `highest` the highest intensity (mg/kWh) of the next hour; None where there is none.
    """
    seen, spec, energy = account.seen, account.spec, books.energy
    if energy is None or not spec.is_enforced:
        return ()
    scope = spec.energy.scope
    known = energy.control.allowances if energy.control is not None else ()
    if books.stopping is not None and known:
        return known
    pods_allowed = find_allowed_pods(seen.pods, energy, seen.reports, scope)
    living = {h.uid for h in pods_allowed}
    counted: dict[str, int] = {}
    for entry in energy.pods:
        counted[entry.uid] = counted.get(entry.uid, 0) + entry.counted(scope)
    # The final report of a pod that has ended may be missing: it may have used its whole allowance, or what it is charged.
    waiting = {c.uid: c.joules for c in charges.pods if c.uid not in living}
    ended = tuple(a for a in known if a.uid in waiting)
    granted = {a.uid: a.granted_joules - counted.get(a.uid, 0) for a in ended}
    reserved = sum(max(joules, granted.get(uid, 0)) for uid, joules in waiting.items())
    rooms: list[tuple[int, int]] = []
    if budget is not None and spec.energy.is_enforced:
        rooms.append((budget.limit, budget.limit))
    seconds: int | None = None
    if spec.emissions.is_enforced and books.emissions is not None and highest:
        gpus = sum(p.gpus for p in seen.pods if p.uid in living)
        embodied = partial(embodied_of, books.emissions, seen.intensities, seen.fleet.models)
        # What nodes have reported is at most so old, and the next pass comes at most so much later.
        late = overdue_seconds(seen.fleet.report_seconds)
        seconds = _valid_seconds(books.emissions, known, lambda s: embodied(gpus * (2 * s + late)))
        # Twice as long as they are valid, so that they need not be lowered with every second of GPU time.
        least, most = (
            energy.used_joules
            + joules_left(books.emissions, highest, account.pue, embodied(gpus * (time + late)))
            for time in (2 * seconds, seconds)
        )
        rooms.append((least, most))
    if not rooms:
        return known
    # An agent counts the time of its own pods that is missing against their allowances itself.
    missing = sum(p.missing_seconds for p in energy.pods if p.uid in living)
    permanent = charges.permanent_joules - energy_of(charges.limit_milliwatts or Milliwatts(0), missing)
    elsewhere = energy.used_joules - sum(h.used for h in pods_allowed) + reserved + permanent
    room = min(least for least, _ in rooms)
    slack = min(most for _, most in rooms) - room
    given = divide(room - elsewhere, pods_allowed, tuple(a for a in known if a.uid in living), slack=slack)
    return (*(a.model_copy(update={"seconds": seconds}) for a in given), *ended)


def _valid_seconds(
    emissions: EmissionsStatus, known: Iterable[PodAllowance], keep: Callable[[int], int]
) -> int:
    """For how many seconds allowances of a budget of emissions are valid without the operator.

    `keep` gives the micrograms that are reserved for so many seconds. The longest of `VALID_SECONDS` whose reserve is at most
    a quarter of what is left, else the shortest. Never shorter than before: agents may not have read a shorter time yet.
    """
    left = _micrograms_left(emissions)
    found = max(s for s in VALID_SECONDS if s == VALID_SECONDS[0] or keep(s) * KEPT_PART <= left)
    return max((found, *(a.seconds for a in known if a.seconds is not None)))


def joules_left(
    emissions: EmissionsStatus, highest: Intensity, pue: Thousandths, kept: Micrograms = NOTHING
) -> Joules:
    """Joules that a budget of emissions still allows at the highest intensity, with `kept` micrograms reserved.

    Raises:
        ValueError: these emissions have no budget.
    """
    return quantities.allow(Micrograms(max(0, _micrograms_left(emissions) - kept)), pue, highest)


def _micrograms_left(emissions: EmissionsStatus) -> Micrograms:
    """Micrograms that a budget of emissions still allows; negative where it is exceeded."""
    if emissions.budget is None:
        raise ValueError(
            "status.emissions has no budget, of which something could be left: see spec.emissions.budget"
        )
    return Micrograms(emissions.budget.limit - emissions.total_micrograms - emissions.budget.charged)
