"""The caps of one node's cards, look by look: what is read, stored and set, in which order, and what is reported of it.

Each look is a sequence of requests: the shell (`agent.caps`) carries one out, answers, and gets the next. So the order that
an agent may be killed in is decided here: **what is about to be done to a card is on the disk before the card is touched**.
`node.caps` decides about one card. No clock is read and nothing is stored here: times come with the answers, on the clock
that only goes on, and what is to be kept over the agent's end is a `CapJournal`.

While the kubelet does not say who holds what, caps stay as they are for a while, since silence disproves nothing; then they
are given back, since nothing would show a pod's end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from greentrain.api.nodepower import CapReason, GpuCap, resolve_cap
from greentrain.node.allocations import Allocations
from greentrain.node.caps import Ask, Entry, Hindrance, Keep, Note, Verdict, decide_card, rehearse
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Milliwatts, PowerCap, format_power, typed

START_SECONDS = 1.0
"""After a start, how long the kubelet has to say who holds what before caps found on cards are given back."""

SILENT_SECONDS = 60.0
"""The same for a kubelet that has fallen silent; it restarts within seconds."""

REFUSED_SECONDS = 10.0
"""How long a card that refused a limit is left alone."""

LOWEST = PowerCap(milliwatts=Milliwatts(1))
"""Asks for the lowest limit each card can have."""

ROUNDS = 3
"""Steps and looks at one card in one go: to set a limit and to see that it is set takes two."""

ENDING = Hindrance("Paused", "the node's agent ends")

REFUSALS: frozenset[CapReason] = frozenset({"NotPermitted", "Unsupported", "OutOfRange"})
"""What a card says itself, so that its limit is known to be as it was; to ask again each second would change nothing."""


@dataclass
class CapJournal:
    """What the disk holds: cards whose limit we have changed, by UUID, and what was asked last, by the pod's UID."""

    entries: dict[str, Entry] = field(default_factory=dict)
    asked: dict[str, PowerCap] = field(default_factory=dict)


# -- what the shell is asked to do ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Read a card's limits."""

    uuid: str


@dataclass(frozen=True, slots=True)
class WriteLimit:
    """Set a card's limit."""

    uuid: str
    milliwatts: Milliwatts


@dataclass(frozen=True, slots=True)
class StoreJournal:
    """Have the disk hold this and nothing else."""

    content: CapJournal


@dataclass(frozen=True, slots=True)
class Noted:
    """Say what happened to a card's limit; needs no answer."""

    uuid: str
    note: Note


@dataclass(frozen=True, slots=True)
class Warned:
    """Say what is wrong; needs no answer."""

    text: str


Request = ReadLimits | WriteLimit | StoreJournal | Noted | Warned


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    at: float
    """When, on the clock that only goes on."""
    session: str = ""
    """Run of the machine and load of the driver."""
    limits: CurrentLimits | None = None
    """Of `ReadLimits`, where it succeeded."""
    failure: Hindrance | None = None
    """Why it was not done; where a card gave no reason of its own, `GpuFailing`."""


T = TypeVar("T")

Look = Generator[Request, Answer, T]
"""Requests one after the other, and what came of all of them."""


@dataclass(frozen=True, slots=True)
class CapSight:
    """What one look may know."""

    now: float
    cards: tuple[Card, ...]
    allocations: Allocations | None
    """None where the kubelet does not say."""
    hindrance: Hindrance | None = None
    """Why no card of the node may have a cap at present."""


class NodeCaps:
    """The caps of one node."""

    def __init__(self, *, dry_run: bool = False, held: bool = True) -> None:
        """`held`: whether the journal is ours alone; without one no limit is changed."""
        self.dry_run = dry_run
        self._held = held
        self._known = False
        """Whether what the journal held is known."""
        self._kept = CapJournal()
        self._unwritten = False
        """Whether the disk holds less than is known: what it lacks is never a card that we have changed."""
        self._asks: dict[str, Ask] = {}
        self._hindrances: dict[str, Hindrance] = {}
        """Why a card cannot have what is asked for it, by who held it last."""
        self._allocations_until = float("-inf")
        self._begun = False
        """Whether it is known who holds what, or that this is not to be waited for any longer."""
        self._asks_read = False
        """Whether the operator's asks were read, which count for more than the disk's."""
        self._throttled: frozenset[str] = frozenset()
        self._refusals: dict[str, tuple[float, Hindrance]] = {}
        self._said: dict[str, str] = {}
        self.reports: dict[str, GpuCap] = {}
        """What has become of each card's cap, by UUID."""
        self.limits: dict[str, CurrentLimits] = {}
        """Limits of cards that are looked after, as they were read last."""
        self.foreign_changes: Counter[str] = Counter()
        """How often another program changed the limit of a capped card, by UUID."""
        self.restores: Counter[str] = Counter()
        """How often a card was given back the limit it had before, by UUID."""
        self.disk: str | None = None
        """Why the journal of caps cannot be written; None while it can."""

    @property
    def changed_cards(self) -> tuple[str, ...]:
        """UUIDs of the cards whose limit we have changed, or may have."""
        return tuple(uuid for uuid, entry in self._kept.entries.items() if entry.changed)

    @property
    def priors(self) -> dict[str, Milliwatts]:
        """The limits that cards had before us, of those that we have changed."""
        return {uuid: entry.prior for uuid, entry in self._kept.entries.items() if entry.changed}

    @property
    def asked(self) -> Mapping[str, PowerCap]:
        """What is asked for, by the pod's UID."""
        return self._kept.asked

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards are to have their lowest limit, whatever is asked for."""
        return self._throttled

    @property
    def allowed(self) -> bool:
        """Whether there is a journal: without one no limit is changed."""
        return self._held and self._known

    @property
    def awaits_journal(self) -> bool:
        """Whether there is a journal that was not read so far."""
        return self._held and not self._known

    def doubts_allocations(self, *, pods_known: bool) -> bool:
        """Whether it must be seen that a listed holder has processes: the API server does not show which pods have ended."""
        return not pods_known and bool(self.asked or self.throttled)

    # -- what it is given -------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """An agent begins."""
        self._allocations_until = now + START_SECONDS

    def take_stored(self, kept: CapJournal) -> None:
        """Take in what the disk held, nothing where it held nothing; asks that were read from the operator are newer."""
        if self._asks_read:
            kept.asked = self._kept.asked
        self._kept = kept
        self._known = True

    def take_up(self, asked: Mapping[str, PowerCap] | None) -> None:
        """What the operator asks for; None while that is not known, then what it asked last holds."""
        if asked is None:
            return
        self._asks_read = True
        if dict(asked) != self._kept.asked:
            self._kept.asked = dict(asked)
            self._unwritten = True

    def throttle(self, pods: Iterable[str]) -> None:
        """Have the cards of these pods, by UID, at their lowest limit, and those of no others (`node.standings`)."""
        self._throttled = frozenset(pods)

    # -- looks ------------------------------------------------------------------------------------------------

    def look(self, sight: CapSight) -> Look[bool]:
        """Look at every card that has a cap, or is to have one, and do what is due; whether anything is new."""
        if sight.allocations is not None:
            self._allocations_until = sight.now + SILENT_SECONDS
            self._take_allocations(sight.cards, sight.allocations)
            self._begun = True
        elif sight.now >= self._allocations_until:
            self._asks, self._hindrances, self._begun = {}, {}, True
        elif not self._begun:
            return False
        before = self._sum_up()
        for card in sight.cards:
            ask = self._asks.get(card.uuid)
            if ask is None and card.uuid not in self._kept.entries:
                self._forget(card.uuid)
                continue
            why = sight.hindrance or self._find_hindrance(card.uuid, sight.now)
            yield from self._look_after(card, ask, why)
        # Cards that the driver does not list any more have no cap to report.
        for uuid in self.reports.keys() - {card.uuid for card in sight.cards}:
            self._forget(uuid)
        if self._unwritten:
            yield from self._store(self._kept.entries)
        return before != self._sum_up()

    def release(self, cards: Iterable[Card]) -> Look[bool]:
        """Give every card the limit back it had before us; whether all have it.

        What is asked goes on being asked, of the next agent: a conflict about a card is not forgotten by it.
        """
        for card in cards:
            if card.uuid in self._kept.entries:
                yield from self._look_after(card, self._asks.get(card.uuid), ENDING)
        self.reports.clear()
        return not self.changed_cards

    def lose_sight(self, cards: Iterable[Card], allocations: Allocations | None, pause: str | None) -> bool:
        """No card can be asked, so nothing is known of any; whether that is news. `pause` says why, where that is known."""
        if allocations is not None:
            self._take_allocations(cards, allocations)
        reason: CapReason = "GpuFailing" if pause is None else "Paused"
        text = pause or "NVML cannot be used at present"
        known, self.reports = self.reports, {}
        for uuid, ask in self._asks.items():
            asked = typed(Milliwatts, known[uuid].asked_milliwatts) if uuid in known else None
            self._put(uuid, ask, asked, None, reason, text)
        return known != self.reports

    def _sum_up(self) -> dict[str, tuple[CapReason, int | None, int | None]]:
        return {u: (r.reason, r.asked_milliwatts, r.target_milliwatts) for u, r in self.reports.items()}

    def _find_hindrance(self, uuid: str, now: float) -> Hindrance | None:
        if not self.allowed:
            return Hindrance("NoJournal", "without a journal on the node's disk no limit is changed")
        until, hindrance = self._refusals.get(uuid, (0.0, None))
        return hindrance if now < until else self._hindrances.get(uuid)

    def _take_allocations(self, cards: Iterable[Card], allocations: Allocations) -> None:
        caps = {**self._kept.asked, **dict.fromkeys(self._throttled, LOWEST)}
        self._asks, self._hindrances = find_asks(cards, allocations, caps)

    # -- one card ---------------------------------------------------------------------------------------------

    def _look_after(self, card: Card, ask: Ask | None, hindrance: Hindrance | None) -> Look[None]:
        uuid = card.uuid
        for _ in range(ROUNDS):
            answer = yield ReadLimits(uuid)
            now = answer.limits
            if now is None:
                yield from self._report_failure(uuid, ask, answer.failure)
                return
            self.limits[uuid] = now
            limits = card.limits.model_copy(
                update={"set_milliwatts": now.set_milliwatts, "enforced_milliwatts": now.enforced_milliwatts}
            )
            entry = self._kept.entries.get(uuid)
            if self.dry_run and entry is not None:
                # What an agent before this one has set is given back: that is no trial.
                hindrance = Hindrance("DryRun", "a dry run: its limit is as it was before")
            verdict = decide_card(
                limits, entry, ask, session=answer.session, now=answer.at, hindrance=hindrance
            )
            if self.dry_run and entry is None:
                verdict = rehearse(verdict, now.set_milliwatts)
            self._report(uuid, ask, verdict, now.binding)
            if not verdict.steps:
                return
            done = yield from self._take(uuid, ask, verdict)
            if not done:
                return

    def _take(self, uuid: str, ask: Ask | None, verdict: Verdict) -> Look[bool]:
        """Take the steps one after the other; whether all were taken.

        To give a card back takes no journal: a disk that is full must not keep a cap in place.
        """
        giving_back = verdict.target is None
        note = verdict.note
        for step in verdict.steps:
            written = not self._unwritten
            if isinstance(step, Keep):
                written = yield from self._write_down(uuid, step.entry, anyway=giving_back)
            elif not written and not giving_back:
                written = yield from self._store(self._kept.entries)
            if not written and not giving_back:
                text = f"the journal on the node's disk cannot be written ({self.disk}), and no limit is changed without it"
                self._put(uuid, ask, verdict.asked, verdict.target, "NoJournal", text)
                return False
            if note is not None:
                self._count(uuid, note)
                yield Noted(uuid, note)
                note = None
            if isinstance(step, Keep):
                continue
            answer = yield WriteLimit(uuid, step.milliwatts)
            if answer.failure is not None:
                yield from self._refuse(uuid, ask, step.milliwatts, answer.failure, answer.at)
                return False
            self._said.pop(uuid, None)
        return True

    # -- the journal ------------------------------------------------------------------------------------------

    def _write_down(self, uuid: str, entry: Entry | None, *, anyway: bool) -> Look[bool]:
        """Have the disk hold this of a card; an entry that could not be written is as it was, unless `anyway`."""
        entries = {u: e for u, e in self._kept.entries.items() if u != uuid}
        if entry is not None:
            entries[uuid] = entry
        stored = yield from self._store(entries)
        if stored or anyway:
            self._kept.entries = entries
        return stored

    def _store(self, entries: dict[str, Entry]) -> Look[bool]:
        if not self.allowed:
            return False  # what is there must not be lost
        answer = yield StoreJournal(CapJournal(entries, self._kept.asked))
        self.disk = None if answer.failure is None else answer.failure.message
        self._unwritten = self.disk is not None
        return not self._unwritten

    # -- reporting --------------------------------------------------------------------------------------------

    def _count(self, uuid: str, note: Note) -> None:
        if note.kind == "Restored":
            self.restores[uuid] += 1
        else:
            self.foreign_changes[uuid] += 1

    def _report(self, uuid: str, ask: Ask | None, verdict: Verdict, binding: bool | None) -> None:
        if ask is None:
            self.reports.pop(uuid, None)
            return
        self._put(uuid, ask, verdict.asked, verdict.target, verdict.reason, verdict.message, binding)

    def _put(
        self,
        uuid: str,
        ask: Ask | None,
        asked: Milliwatts | None,
        target: Milliwatts | None,
        reason: CapReason,
        message: str,
        binding: bool | None = None,
    ) -> None:
        if ask is None:
            return
        if ask.pod in self._throttled:
            why = "its pod's allowance of energy is spent or has ended, and the operator was silent"
            lowest = reason == "Clamped" and target is not None
            message = (
                f"its limit is {format_power(target or Milliwatts(0))}, the lowest it can have: {why}"
                if lowest
                else f"{why}: {message}"
            )
        self.reports[uuid] = GpuCap(
            pod_uid=ask.pod,
            sharing_pod_uids=ask.sharing,
            asked_milliwatts=asked,
            target_milliwatts=target,
            reason=reason,
            message=message[:512],
            binding=binding,
        )

    def _report_failure(self, uuid: str, ask: Ask | None, failure: Hindrance | None) -> Look[None]:
        """A card's limits could not be read: whatever it said, nothing is known of them."""
        text = failure.message if failure is not None else f"{uuid} gave no answer."
        lost = failure is not None and failure.reason == "GpuLost"
        known = self.reports.get(uuid)
        asked = typed(Milliwatts, known.asked_milliwatts) if known is not None else None
        self._put(uuid, ask, asked, None, "GpuLost" if lost else "GpuFailing", text)
        yield from self._warn_once(uuid, f"{text} Its power limit is looked after when it answers again.")

    def _refuse(
        self, uuid: str, ask: Ask | None, milliwatts: Milliwatts, failure: Hindrance, at: float
    ) -> Look[None]:
        if failure.reason in REFUSALS:
            self._refusals[uuid] = (at + REFUSED_SECONDS, failure)
        known = self.reports.get(uuid)
        asked = typed(Milliwatts, known.asked_milliwatts) if known is not None else None
        target = typed(Milliwatts, known.target_milliwatts) if known is not None else None
        self._put(uuid, ask, asked, target, failure.reason, failure.message)
        text = f"the power limit of {uuid} cannot be set to {format_power(milliwatts)}: {failure.message}"
        yield from self._warn_once(uuid, text)

    def _warn_once(self, uuid: str, text: str) -> Look[None]:
        if self._said.get(uuid) != text:
            self._said[uuid] = text
            yield Warned(text)

    def _forget(self, uuid: str) -> None:
        self.reports.pop(uuid, None)
        self._said.pop(uuid, None)


def find_asks(
    cards: Iterable[Card], allocations: Allocations, caps: Mapping[str, PowerCap]
) -> tuple[dict[str, Ask], dict[str, Hindrance]]:
    """What is asked for each card by the pod that holds it, and why a card cannot have it; `caps` by the pod's UID."""
    asks: dict[str, Ask] = {}
    hindrances: dict[str, Hindrance] = {}
    for card in cards:
        found: list[tuple[int, Ask]] = []
        alone = True
        for held in allocations.cards.get(card.uuid, ()):
            alone = alone and held.alone
            holder = allocations.pods.get(held.pod)
            if holder is not None and holder.uid and holder.uid in caps:
                cap = caps[holder.uid]
                found.append((resolve_cap(cap, card.limits) or 0, Ask(holder.uid, cap)))
        if not found:
            continue
        # Of two that are listed for a moment while a card changes hands the lower holds.
        first = min(found, key=lambda f: f[0])[1]
        others = tuple(sorted(ask.pod for _, ask in found if ask.pod != first.pod))
        asks[card.uuid] = replace(first, sharing=others)
        if card.partitioned:
            text = "it is in MIG mode, and one limit would apply to the jobs in all its instances"
            hindrances[card.uuid] = Hindrance("MigMode", text)
        elif not alone:
            text = "pods share it, and one limit would apply to all of them"
            hindrances[card.uuid] = Hindrance("Shared", text)
    return asks, hindrances
