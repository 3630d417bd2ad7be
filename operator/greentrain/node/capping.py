"""The caps of one node's cards, poll by poll: what is read, stored and set, in which order, and what is reported of it.

Each poll is a sequence of requests: the shell (`agent.caps`) carries one out, answers, and gets the next. So the order of
steps is decided here, and the agent may be killed at any of them: **a change to a card is on the disk before it is made**.
`node.caps` decides about one card. No clock is read and nothing is stored here: times come with the answers, on the
monotonic clock. What must outlive the agent is a `CapJournal`.

While the kubelet does not report allocations, caps stay for a while, since silence disproves nothing. Then the previous
limits are restored, since nothing would show a pod's end.
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
"""After a start, how long the kubelet has to report allocations before the previous limits of capped cards are restored."""

SILENT_SECONDS = 60.0
"""The same for a kubelet that has fallen silent; it restarts within seconds."""

REFUSED_SECONDS = 10.0
"""How long a card that refused a limit is left alone."""

LOWEST = PowerCap(milliwatts=Milliwatts(1))
"""Requests the lowest limit each card can have."""

ROUNDS = 3
"""Rounds for one card in one poll: to set a limit and to see that it is set takes two."""

ENDING = Hindrance("Paused", "the node's agent ends")

REFUSALS: frozenset[CapReason] = frozenset({"NotPermitted", "Unsupported", "OutOfRange"})
"""The card's own errors: its limit is as it was, and to request it again each second would change nothing."""


@dataclass
class CapJournal:
    """What is on the disk: cards whose limit we have changed, by UUID, and the last requests, by the pod's UID."""

    entries: dict[str, Entry] = field(default_factory=dict)
    asked: dict[str, PowerCap] = field(default_factory=dict)


# -- requests to the shell ----------------------------------------------------------------------------


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
    """Replace what is on the disk with this."""

    content: CapJournal


@dataclass(frozen=True, slots=True)
class Noted:
    """Report what happened to a card's limit; needs no answer."""

    uuid: str
    note: Note


@dataclass(frozen=True, slots=True)
class Warned:
    """Log a warning; needs no answer."""

    text: str


Request = ReadLimits | WriteLimit | StoreJournal | Noted | Warned


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    at: float
    """When, on the monotonic clock."""
    session: str = ""
    """Run of the machine and load of the driver."""
    limits: CurrentLimits | None = None
    """Of `ReadLimits`, where it succeeded."""
    failure: Hindrance | None = None
    """Why it was not done; `GpuFailing` where the card gave no reason."""


T = TypeVar("T")

Look = Generator[Request, Answer, T]
"""Requests one after the other; returns the result of all of them."""


@dataclass(frozen=True, slots=True)
class CapSight:
    """What one poll may know."""

    now: float
    cards: tuple[Card, ...]
    allocations: Allocations | None
    """None where the kubelet does not report it."""
    hindrance: Hindrance | None = None
    """Why no card of the node may have a cap at present."""


class NodeCaps:
    """The caps of one node."""

    def __init__(self, *, dry_run: bool = False, held: bool = True) -> None:
        """`held`: whether this agent has the journal's lock; without it no limit is changed."""
        self.dry_run = dry_run
        self._held = held
        self._known = False
        """Whether the journal was read."""
        self._kept = CapJournal()
        self._unwritten = False
        """Whether the disk has less than is known: what it lacks is never a card that we have changed."""
        self._asks: dict[str, Ask] = {}
        self._hindrances: dict[str, Hindrance] = {}
        """Why a card cannot have the requested cap, as of the last known allocations."""
        self._allocations_until = float("-inf")
        self._begun = False
        """Whether allocations are known, or are not waited for any longer."""
        self._asks_read = False
        """Whether the operator's requests were read, which override those on the disk."""
        self._throttled: frozenset[str] = frozenset()
        self._refusals: dict[str, tuple[float, Hindrance]] = {}
        self._said: dict[str, str] = {}
        self.reports: dict[str, GpuCap] = {}
        """The state of each card's cap, by UUID."""
        self.limits: dict[str, CurrentLimits] = {}
        """Limits of cards that have a cap or a request, as they were read last."""
        self.foreign_changes: Counter[str] = Counter()
        """How often another program changed the limit of a capped card, by UUID."""
        self.restores: Counter[str] = Counter()
        """How often a card's previous limit was restored, by UUID."""
        self.disk: str | None = None
        """Why the journal of caps cannot be written; None while it can."""

    @property
    def changed_cards(self) -> tuple[str, ...]:
        """UUIDs of the cards whose limit we have changed, or may have."""
        return tuple(uuid for uuid, entry in self._kept.entries.items() if entry.changed)

    @property
    def priors(self) -> dict[str, Milliwatts]:
        """The previous limits of the cards whose limit we have changed."""
        return {uuid: entry.prior for uuid, entry in self._kept.entries.items() if entry.changed}

    @property
    def asked(self) -> Mapping[str, PowerCap]:
        """The requested caps, by the pod's UID."""
        return self._kept.asked

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards get their lowest limit, whatever is requested."""
        return self._throttled

    @property
    def allowed(self) -> bool:
        """Whether there is a journal: without one no limit is changed."""
        return self._held and self._known

    @property
    def awaits_journal(self) -> bool:
        """Whether there is a journal that has not been read yet."""
        return self._held and not self._known

    def doubts_allocations(self, *, pods_known: bool) -> bool:
        """Whether to check that listed pods have processes: the API server does not show which pods have ended."""
        return not pods_known and bool(self.asked or self.throttled)

    # -- inputs -------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """An agent starts."""
        self._allocations_until = now + START_SECONDS

    def take_stored(self, kept: CapJournal) -> None:
        """Take in the stored journal, which may be empty; requests that were read from the operator are newer."""
        if self._asks_read:
            kept.asked = self._kept.asked
        self._kept = kept
        self._known = True

    def take_up(self, asked: Mapping[str, PowerCap] | None) -> None:
        """What the operator requests; None while that is not known: then its last requests stay valid."""
        if asked is None:
            return
        self._asks_read = True
        if dict(asked) != self._kept.asked:
            self._kept.asked = dict(asked)
            self._unwritten = True

    def throttle(self, pods: Iterable[str]) -> None:
        """Have the cards of these pods, by UID, at their lowest limit, and those of no others (`node.allowances`)."""
        self._throttled = frozenset(pods)

    # -- polls ------------------------------------------------------------------------------------------------

    def look(self, sight: CapSight) -> Look[bool]:
        """Read every card that has a cap or is to have one, and do what is due; returns whether anything is new."""
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
        # A card that the driver no longer lists has no cap to report.
        for uuid in self.reports.keys() - {card.uuid for card in sight.cards}:
            self._forget(uuid)
        if self._unwritten:
            yield from self._store(self._kept.entries)
        return before != self._sum_up()

    def release(self, cards: Iterable[Card]) -> Look[bool]:
        """Restore the previous limit of every card; returns whether all have it.

        The requests stay for the next agent, so that it knows of a conflict about a card.
        """
        for card in cards:
            if card.uuid in self._kept.entries:
                yield from self._look_after(card, self._asks.get(card.uuid), ENDING)
        self.reports.clear()
        return not self.changed_cards

    def lose_sight(self, cards: Iterable[Card], allocations: Allocations | None, pause: str | None) -> bool:
        """No card can be read, so nothing is known of any; returns whether that is new. `pause` is the reason, if known."""
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
                # The limit that an agent before this one set is restored, in a dry run too.
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
        """Take the steps one after the other; returns whether all were taken.

        A previous limit is restored without the journal too: a full disk must not keep a cap in place.
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
        """Store this entry of a card; the entry stays as it was where that fails, unless `anyway`."""
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
        """A card's limits could not be read: nothing is known of them, whatever was reported before."""
        text = failure.message if failure is not None else f"{uuid} gave no answer."
        lost = failure is not None and failure.reason == "GpuLost"
        known = self.reports.get(uuid)
        asked = typed(Milliwatts, known.asked_milliwatts) if known is not None else None
        self._put(uuid, ask, asked, None, "GpuLost" if lost else "GpuFailing", text)
        yield from self._warn_once(uuid, f"{text} Its power limit is checked when it answers again.")

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
    """The cap that each card's pod requests, and why a card cannot have it; `caps` by the pod's UID."""
    asks: dict[str, Ask] = {}
    hindrances: dict[str, Hindrance] = {}
    for card in cards:
        found: list[tuple[int, Ask]] = []
        alone = True
        for held in allocations.cards.get(card.uuid, ()):
            alone = alone and held.alone
            pod = allocations.pods.get(held.pod)
            if pod is not None and pod.uid and pod.uid in caps:
                cap = caps[pod.uid]
                found.append((resolve_cap(cap, card.limits) or 0, Ask(pod.uid, cap)))
        if not found:
            continue
        # Two pods may be listed for a moment while a card's allocation changes: then the lower cap applies.
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
