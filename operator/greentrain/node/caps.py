"""What to do about one card's power limit, so that a cap is kept and never outlives its pod.

A card has a *previous limit* from before us, which an administrator may have chosen. While the card is allocated to a pod
that requests a cap, its limit is the lower of the two. When the cap ends, the previous limit is restored, unless another
program has changed the limit meanwhile: then that limit stays. Each change is in a journal on the node's disk before the
card is touched. So an agent that was killed at any point knows afterwards what it may undo.

Decisions follow from what is read, never from what was planned: to decide again after each step shows whether the step has
worked. `node.capping` takes the steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from greentrain.api.nodepower import CapReason, PowerLimits, resolve_cap
from greentrain.quantities import Milliwatts, PowerCap, format_power, in_minutes, typed

SAME_MILLIWATTS = Milliwatts(1000)
"""Limits nearer to each other than this are equal: drivers may round to whole watts."""

CONTEST_SECONDS = 300.0
CONTEST_CHANGES = 3
"""So many changes by another program in this time are a conflict: the agent stops writing."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A cap and the pod that requests it."""

    pod: str
    """UID of the pod that the card is allocated to."""
    cap: PowerCap
    sharing: tuple[str, ...] = ()
    """UIDs of other pods that request a cap of the same card."""

    @property
    def key(self) -> str:
        """Differs where anything about the request differs."""
        return f"{self.pod}:{self.cap}"


@dataclass(frozen=True, slots=True)
class Entry:
    """The journal's entry of one card whose limit we have changed, or are about to; times in seconds."""

    session: str
    """Run of the machine and load of the driver that it belongs to: in another one limits are at their defaults again."""
    prior: Milliwatts
    written: Milliwatts | None = None
    """What we set and read back; None where the card still has its previous limit."""
    pending: Milliwatts | None = None
    """What we are about to set."""
    changes: tuple[float, ...] = ()
    """When another program changed the limit lately, on the monotonic clock."""
    contested: str = ""
    """The request that was given up because another program kept changing the limit."""

    @property
    def changed(self) -> bool:
        """Whether we set the card's limit, or may have."""
        return self.written is not None or self.pending is not None

    @property
    def present_limit(self) -> Milliwatts:
        """The limit the card has if no other program has touched it and nothing is pending."""
        return self.prior if self.written is None else self.written


@dataclass(frozen=True, slots=True)
class Keep:
    """A step: store this entry of the card before the next step; None: remove it."""

    entry: Entry | None


@dataclass(frozen=True, slots=True)
class SetLimit:
    """A step: set the card's limit."""

    milliwatts: Milliwatts


Step = Keep | SetLimit


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why a cap must not be set on a card."""

    reason: CapReason
    message: str


@dataclass(frozen=True, slots=True)
class Note:
    """A change to a card, reported once."""

    kind: Literal["Foreign", "Contested", "Restored", "Left"]
    milliwatts: Milliwatts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, in this order, and the state of the cap before it."""

    steps: tuple[Step, ...] = ()
    asked: Milliwatts | None = None
    target: Milliwatts | None = None
    reason: CapReason = "Applying"
    message: str = ""
    note: Note | None = None


def find_target(asked: Milliwatts, prior: Milliwatts, limits: PowerLimits) -> Milliwatts:
    """The limit that is due: the requested one, within the card's range, and never above the previous limit.

    Just below the previous limit it is the previous limit: else the driver's rounding would hide whether it was restored.
    """
    target = min(max(asked, Milliwatts(limits.min_milliwatts or 0)), prior)
    return prior if prior - target < 2 * SAME_MILLIWATTS else target


def decide_card(
    limits: PowerLimits,
    entry: Entry | None,
    ask: Ask | None,
    *,
    session: str,
    now: float,
    hindrance: Hindrance | None = None,
) -> Verdict:
    """What to do about a card that reads these limits at `now` and has this `entry` in the journal.

    A hindrance ends a cap as the pod's end does, and gives the reason.
    """
    if entry is not None and entry.session != session:
        # A reboot or a new driver has put every limit back to its default: we have set none of them.
        fresh = decide_card(limits, None, ask, session=session, now=now, hindrance=hindrance)
        kept = bool(fresh.steps) and isinstance(fresh.steps[0], Keep)
        return fresh if kept else replace(fresh, steps=(Keep(None), *fresh.steps))
    current = typed(Milliwatts, limits.set_milliwatts)
    if current is None:
        return Verdict(reason="Unsupported", message="its driver reports no power limit, so none can be kept")
    if ask is None:
        return _release(entry, current)
    asked = typed(Milliwatts, resolve_cap(ask.cap, limits))
    if hindrance is None and asked is None:
        text = f"its driver reports no default limit, of which {ask.cap} could be a share: ask for watts"
        hindrance = Hindrance("Unsupported", text)
    if hindrance is not None or asked is None:
        why = hindrance or Hindrance("Unsupported", "")
        released = _recall(_release(entry, current), entry, current)
        return replace(released, asked=asked, reason=why.reason, message=why.message)
    return _cap(limits, current, entry, ask, asked, session=session, now=now)


def rehearse(verdict: Verdict, current: Milliwatts | None) -> Verdict:
    """The same in a dry run: it takes no step and reports which it would take."""
    meant = next((s.milliwatts for s in verdict.steps if isinstance(s, SetLimit)), None)
    still = replace(verdict, steps=(), note=None)
    if meant is None:
        return still
    now = "" if current is None else f", which is {format_power(current)} now,"
    text = f"a dry run: its limit{now} would be set to {format_power(meant)}"
    return replace(still, reason="DryRun", message=text)


def _same(one: Milliwatts | None, other: Milliwatts) -> bool:
    return one is not None and abs(one - other) < SAME_MILLIWATTS


def _release(entry: Entry | None, current: Milliwatts) -> Verdict:
    """Restore the previous limit."""
    if entry is None:
        return Verdict()
    if _same(entry.prior, current):
        note = Note("Restored", entry.prior) if entry.written is not None else None
        return Verdict((Keep(None),), note=note)
    if entry.contested or not (_same(entry.present_limit, current) or _same(entry.pending, current)):
        return Verdict((Keep(None),), note=Note("Left", current))
    # In the journal before it is done: else an agent killed in between takes it for another program's change.
    giving = replace(entry, written=current, pending=entry.prior)
    keep = (Keep(giving),) if giving != entry else ()
    return Verdict((*keep, SetLimit(entry.prior)))


def _recall(released: Verdict, entry: Entry | None, current: Milliwatts) -> Verdict:
    """A card whose previous limit is restored while its request stays: the journal keeps a conflict until the request ends."""
    if entry is None or not (entry.changes or entry.contested) or Keep(None) not in released.steps:
        return released
    rest = replace(entry, prior=current, written=None, pending=None)
    if rest == entry:
        return Verdict()
    return Verdict((Keep(rest),), note=released.note if entry.changed else None)


def _cap(
    limits: PowerLimits,
    current: Milliwatts,
    known: Entry | None,
    ask: Ask,
    asked: Milliwatts,
    *,
    session: str,
    now: float,
) -> Verdict:
    entry, note = known, None
    if entry is not None and entry.contested == ask.key:
        return Verdict(asked=asked, reason="Contested", message=_conflict(current))
    if entry is not None and entry.contested:
        entry = None  # it is requested again
    elif entry is not None:
        entry, note = _look(entry, current, ask, now)
        if entry.contested:
            return Verdict((Keep(entry),), asked, None, "Contested", _conflict(current), note)
    prior = current if entry is None else entry.prior
    target = find_target(asked, prior, limits)
    set_limit: tuple[Step, ...] = ()
    if not _same(target, current):
        entry = replace(entry or Entry(session, prior), pending=target)
        set_limit = (SetLimit(target),)
    keep: tuple[Step, ...] = (Keep(entry),) if entry != known else ()
    reason, message = _judge(limits, current, asked=asked, prior=prior, target=target, cap=ask.cap)
    return Verdict((*keep, *set_limit), asked, target, reason, message, note)


def _look(entry: Entry, current: Milliwatts, ask: Ask, now: float) -> tuple[Entry, Note | None]:
    """The entry after the card was read: a step has worked, or another program has changed the limit."""
    if _same(entry.pending, current):
        # Read back, the driver's rounding included.
        return replace(entry, written=current, pending=None), None
    if _same(entry.present_limit, current):
        return replace(entry, pending=None), None
    changes = (*(t for t in entry.changes if now - t < CONTEST_SECONDS), now)
    theirs = replace(entry, prior=current, written=None, pending=None, changes=changes)
    if len(changes) >= CONTEST_CHANGES:
        return replace(theirs, contested=ask.key), Note("Contested", current)
    return theirs, Note("Foreign", current)


def _conflict(current: Milliwatts) -> str:
    return (
        f"another program changed its limit {CONTEST_CHANGES} times within {in_minutes(CONTEST_SECONDS):.0f} min; it is left at "
        f"{format_power(current)}. When that has stopped, change spec.power.cap to try again"
    )


def _judge(
    limits: PowerLimits,
    current: Milliwatts,
    *,
    asked: Milliwatts,
    prior: Milliwatts,
    target: Milliwatts,
    cap: PowerCap,
) -> tuple[CapReason, str]:
    """The state of the cap: whether the limit in force, as read back, is not above the one that is due."""
    enforced = typed(Milliwatts, limits.enforced_milliwatts)
    enforced = current if enforced is None else enforced
    if enforced >= target + SAME_MILLIWATTS:
        return "Applying", f"its limit in force is {format_power(enforced)}, {format_power(target)} is due"
    least, most = typed(Milliwatts, limits.min_milliwatts), typed(Milliwatts, limits.max_milliwatts)
    what = str(cap) if cap.percent is None else f"{cap} ({format_power(asked)})"
    words = f"its limit is {format_power(target)}"
    if least is not None and asked < least and target > asked:
        return "Clamped", f"{words}: {what} is below the lowest it can have, {format_power(least)}"
    if most is not None and asked > most and _same(most, target):
        return "Clamped", f"{words}: {what} is above the highest it can have, {format_power(most)}"
    if asked >= prior + SAME_MILLIWATTS:
        return "PreviousLower", f"{words}, as it was before: a job does not raise it to {what}"
    return "Capped", words
