"""The node's account: what every card has used and for which pod, carried from reading to reading.

A card's energy is attributed when its reading and its allocations are known of the same moment. Where one of them is not,
the account waits. The next moment at which both are known closes the gap, because the counter went on counting meanwhile. So
these sums are equal whatever fails and restarts:

    pods + settled pods + idle + unattributed = what the counters have shown since the first reading + what was estimated

Allocated time follows from the allocations alone, so it is counted where the card cannot be read too.
The present draw is of no use later: it is not in the journal, and a restarted agent measures it again.

All energy is in whole millijoules. Times on the readings' clock are seconds since the machine's start, suspended time
included. Wall times are Unix seconds, and only decide to which quarter of an hour energy belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field, TypeAdapter

from greentrain.api.nodepower import PodEnergy
from greentrain.energy.attribution import Allocated, Phase, Presence, Window, find_presences, share_out, split
from greentrain.energy.cards import DRAW_SECONDS, CardAccount, Holders, LastAllocated, LastSeen, Make, Seen
from greentrain.energy.counters import Meter
from greentrain.energy.intervals import (
    COUNTER_LAG_SECONDS,
    LONGEST_STEP_SECONDS,
    UNLIMITED,
    CardReading,
    Interval,
    bound_draw,
    measure_since_start,
)
from greentrain.energy.pods import PodAccount
from greentrain.quantities import (
    SECONDS_PER_DAY,
    Millijoules,
    Milliseconds,
    Milliwatts,
    add,
    add_up,
    parse_time,
    to_milliseconds,
)

SHORTEST_STEP_SECONDS = 0.5
"""Readings nearer to each other than this give no draw. Beside a card that hangs, a round takes the whole deadline and the
next follows at once: the energy of the one would count as drawn in the other's milliseconds."""

UNKNOWN_AT_REBOOT_SECONDS = 10.0
"""Of the time between the last reading before a reboot and the machine's end at most this much counts as missing: how
old the journal's last reading may be."""


@dataclass(frozen=True, slots=True)
class _Poll:
    """One poll: when it was, and what was found in it."""

    at: float
    """On the readings' clock."""
    wall: float
    """The same as a Unix time."""
    boot: str
    """The start of the machine since which the readings' clock runs."""
    asleep: float
    """Seconds of `at` for which the machine was suspended."""
    windows: Mapping[str, Window]
    """When the pods began and ended."""
    doubts: dict[str, float] = field(default_factory=dict)
    """Millijoules in doubt, by pod."""


@dataclass(slots=True)
class NodeAccount:
    """Everything one node's agent has counted, as its journal stores it."""

    journal_id: str
    cards: dict[str, CardAccount] = field(default_factory=dict)
    pods: dict[str, PodAccount] = field(default_factory=dict)
    idle: Millijoules = Millijoules(0)
    unattributed: Millijoules = Millijoules(0)
    settled: Millijoules = Millijoules(0)
    """What GPUs used for pods that were dropped."""
    host_settled: Millijoules = Millijoules(0)
    dropped: int = 0
    host_others: Millijoules = Millijoules(0)
    """What was used of processors and memory that no listed pod had a share in."""
    inherited: dict[str, PodEnergy] = field(default_factory=dict)
    """Final reports of an account that was lost with its journal, by UID/segment, as NodePower still had them."""
    segments: dict[str, int] = field(default_factory=dict)
    """How often a pod was dropped, for pods that may come back."""
    looked: Annotated[float | None, Field(exclude=True)] = field(default=None, compare=False)
    """When allocations were last known since this agent started, on the readings' clock."""

    def advance(
        self,
        readings: Mapping[str, CardReading],
        holders: Mapping[str, Sequence[Allocated]] | None,
        *,
        at: float,
        wall: float,
        boot: str,
        windows: Mapping[str, Window] | None = None,
        asleep: float = 0.0,
    ) -> None:
        """Take in one poll of the cards and their allocations: `holders` has every card there is, read or not.

        `asleep`: seconds for which the machine has been suspended since its start. A card without a reading stays at its last moment, and
        so does every card where allocations are not known (None). Each allocation's pod must have been opened (`open`).
        """
        if holders is None:
            return
        self.looked = at
        poll = _Poll(at, wall, boot, asleep, windows or {})
        for uuid, held in holders.items():
            card = self.cards.get(uuid)
            if card is None:
                card = self.cards[uuid] = CardAccount()
            seen = tuple([(h.pod, h.share, h.alone) for h in held])
            self._count_time(card, seen, poll)
            reading = bound_draw(readings.get(uuid), card.highest)
            interval = None
            if card.last is not None and boot == card.last.boot:
                card.last.see(seen, at)
                if reading is not None:
                    interval = self._measure(card, card.last, reading, poll)
                    if self._go_on(card, card.last, reading, interval, poll):
                        continue
            if reading is None:
                if card.last is None or not card.last.was_read:
                    self._miss(card, held, seen, poll)
                continue
            if card.last is not None:
                if interval is None:
                    interval = self._begin_again(card, card.last, reading, poll)
                self._attribute(card, card.last, reading, interval, held, poll)
            card.last = LastSeen(
                at=at,
                wall=wall,
                boot=boot,
                asleep=asleep,
                counter=reading.counter,
                draw=reading.draw,
                busy=reading.busy,
            )
            card.last.see(seen, at)
            if reading.counter is not None or reading.draw is not None:
                card.note(at)
        for uuid in [u for u, card in self.cards.items() if card.is_nameless and not holders.get(u)]:
            del self.cards[uuid]
        # What begins or ends at one moment does so on all of a pod's cards: their doubts are correlated.
        for pod, doubt in poll.doubts.items():
            self.pods[pod].doubt_squared += doubt * doubt

    def _miss(self, card: CardAccount, held: Sequence[Allocated], seen: Holders, poll: _Poll) -> None:
        """A card that was never read: while it is allocated, all of its time is missing; what it used stays unknown."""
        last = card.last
        if last is not None:
            same = poll.boot == last.boot
            began = last.at + max(0.0, poll.asleep - last.asleep) if same else poll.asleep
            seconds = max(0.0, poll.at - began)
            phases = [Phase(0.0, 0.0, ()), Phase(poll.at, poll.at, tuple(held))]
            found = find_presences(
                [self._phase(s) for s in last.phases] if same else phases, windows=poll.windows
            )
            for one in found:
                self.pods[one.pod].miss(seconds * one.weight, self.find_highest(card))
            card.missing_seconds += seconds
        card.last = None
        if held:
            card.last = LastSeen(at=poll.at, wall=poll.wall, boot=poll.boot, asleep=poll.asleep)
            card.last.see(seen, poll.at)

    def find_highest(self, card: CardAccount) -> Milliwatts:
        """Its highest power limit; where its driver names none, the highest of the node's other cards, or 0."""
        if card.highest != UNLIMITED:
            return card.highest
        known = (other.highest for other in self.cards.values() if other.highest != UNLIMITED)
        return max(known, default=Milliwatts(0))

    def note_cards(self, makes: Mapping[str, Make]) -> None:
        """Take in what is known of cards that their readings do not show, by UUID; each counts from now on."""
        for uuid, make in makes.items():
            card = self.cards.setdefault(uuid, CardAccount())
            card.model, card.highest = make.model or card.model, make.highest

    def _measure(self, card: CardAccount, last: LastSeen, reading: CardReading, poll: _Poll) -> Interval:
        """What the card used since its last reading, in the same boot."""
        doubted = card.meter.doubt is not None
        if len(last.phases) != 1 and (lacking := card.meter.close(poll.wall)) is not None:
            self._add_lacking(card, last, lacking)
        interval = card.meter.read(
            last.reading,
            reading,
            begin=min(last.at + max(0.0, poll.asleep - last.asleep), poll.at),
            end=poll.at,
            idle_draw=card.idle_draw,
            highest=card.highest,
            wall=poll.wall,
        )
        if interval.fault is not None or doubted is not (card.meter.doubt is not None):
            # It contains what was used before: that is no draw of now.
            card.recent.clear()
        return interval

    def _add_lacking(self, card: CardAccount, last: LastSeen, lacking: Interval) -> None:
        """What the counter lacked until the card's last reading, for those who had it then."""
        amount = lacking.estimated
        card.estimated, card.uncertain = add(card.estimated, amount), add(card.uncertain, amount)
        found = find_presences([self._phase(last.phases[0])], windows={})
        parts = split(amount, [one.weight for one in found])
        for one, part in zip(found, parts, strict=False):
            pod = self.pods[one.pod]
            pod.add(part, begin=last.wall - lacking.seconds, end=last.wall, estimated=part)
            pod.doubt_squared += part * part
            pod.counter_faults += 1
        if found or not last.busy:
            self.idle = add(self.idle, parts[-1])
        else:
            self.unattributed = add(self.unattributed, parts[-1])

    def _begin_again(self, card: CardAccount, last: LastSeen, reading: CardReading, poll: _Poll) -> Interval:
        """What the card used since a reboot; after its last reading before that, nothing is known."""
        lost = min(max(poll.wall - last.wall - poll.at, 0.0), UNKNOWN_AT_REBOOT_SECONDS)
        for key, *_ in last.phases[-1].holders if last.phases else ():
            if key in self.pods:
                self.pods[key].miss(lost, self.find_highest(card))
        interval = measure_since_start(reading, poll.at - poll.asleep, highest=card.highest)
        card.meter = Meter(card.meter.faults, card.meter.last_fault, card.meter.last_fault_wall)
        if interval.fault is not None:
            card.meter.note(interval.fault, poll.wall)
        return interval

    def _go_on(
        self,
        card: CardAccount,
        last: LastSeen,
        reading: CardReading,
        interval: Interval,
        poll: _Poll,
    ) -> bool:
        """The ordinary case, once a second for each card: allocated to one pod throughout, and its counter went on.

        The result equals that of `_attribute`, at a third of the time (measured).
        """
        if len(last.phases) != 1 or len(last.phases[0].holders) != 1:
            return False
        at, wall = poll.at, poll.wall
        ((key, share, alone),) = last.phases[0].holders
        pod = self.pods.get(key)
        if pod is None or not alone or share != 1.0 or not 0 <= at - last.at <= LONGEST_STEP_SECONDS:
            return False
        if interval.estimated or interval.missing_seconds or interval.uncertain or interval.fault is not None:
            return False
        card.measured = add(card.measured, interval.measured)
        pod.add(interval.measured, begin=wall - (at - last.at), end=wall, estimated=Millijoules(0))
        last.at, last.wall, last.asleep = at, wall, poll.asleep
        last.counter, last.draw, last.busy = reading.counter, reading.draw, reading.busy
        last.phases[0].begin = last.phases[0].end = at
        card.note(at)
        return True

    def _count_time(self, card: CardAccount, holders: Holders, poll: _Poll) -> None:
        """Divide the time since allocations were last known as the card's energy would be, whether the card is read or not."""
        last, at, boot, windows = card.held, poll.at, poll.boot, poll.windows
        if last is None:
            card.held = LastAllocated(at, boot, holders)
            return
        began = last.at if boot == last.boot else 0.0
        # The difference of two rounded times, so that what is cut off of one interval is in the next.
        milliseconds = Milliseconds(max(0, to_milliseconds(at) - to_milliseconds(began)))
        if boot == last.boot and holders == last.holders and (not holders or holders[0][1:] == (1.0, True)):
            # The ordinary case: all of it was allocated to one pod, or to none, throughout.
            if len(holders) == 1 and milliseconds:
                self.pods[holders[0][0]].hold(card.model, milliseconds)
        else:
            # A reboot ended the pods of before it; when is not known.
            before = last.holders if boot == last.boot else ()
            phases = [self._phase(Seen(began, began, before)), self._phase(Seen(at, at, holders))]
            found = find_presences(phases, windows=windows)
            for one, part in zip(found, split(milliseconds, [p.weight for p in found]), strict=False):
                if part:
                    self.pods[one.pod].hold(card.model, part)
        last.at, last.boot, last.holders = at, boot, holders

    def find_draws(self, at: float) -> dict[str, float]:
        """Milliwatts of each pod over the last seconds, of all device kinds; pods of which that is not known are left out.

        It is not known before two seconds of readings. Nor is it where a card of the pod was not read for ten seconds, or
        allocations were not. An ended pod draws nothing.
        """
        fresh = self.looked is not None and 0.0 <= at - self.looked <= DRAW_SECONDS
        found = {
            key: 0.0 if pod.closed is not None else _find_host_draw(pod, at)
            for key, pod in self.pods.items()
            if fresh or pod.closed is not None
        }
        for card in self.cards.values():
            for one in self._find_presences(card):
                if one.pod in found and self.pods[one.pod].closed is None:
                    draw = card.find_draw(at)
                    if draw is None:
                        del found[one.pod]
                    else:
                        found[one.pod] += draw * one.weight
        return found

    def _find_presences(self, card: CardAccount) -> Sequence[Presence]:
        if card.held is None or not card.held.holders:
            return ()
        return find_presences([self._phase(Seen(0.0, 0.0, card.held.holders))], windows={})

    def _attribute(
        self,
        card: CardAccount,
        last: LastSeen,
        reading: CardReading,
        interval: Interval,
        held: Sequence[Allocated],
        poll: _Poll,
    ) -> None:
        at, wall, boot, windows, doubts = poll.at, poll.wall, poll.boot, poll.windows, poll.doubts
        if boot == last.boot:
            phases = [self._phase(seen) for seen in last.phases]
        else:
            # A reboot ended the pods of before.
            phases = [Phase(0.0, 0.0, ()), Phase(at, at, tuple(held))]
        card.measured = add(card.measured, interval.measured)
        card.estimated = add(card.estimated, interval.estimated)
        card.missing_seconds += interval.missing_seconds
        card.uncertain = add(card.uncertain, interval.uncertain)
        found = find_presences(phases, windows=windows)
        busy = (last.busy and not phases[0].held) or (reading.busy and not phases[-1].held)
        shares = share_out(found, interval.total, interval.seconds, idle_draw=card.idle_draw, busy=busy)
        weights = [p.weight for p in shares]
        measured, estimated = split(interval.measured, weights), split(interval.estimated, weights)
        since = wall - interval.seconds
        for i, share in enumerate(shares):
            pod = self.pods[share.pod]
            amount = add(measured[i], estimated[i])
            # What a pod used is dated from its containers' start, not from a poll hours before it was created.
            window = windows.get(share.pod)
            begun = since if window is None or window.begin is None else wall - (at - window.begin)
            begin = min(max(since, begun), wall)
            pod.add(amount, begin=begin, end=wall, estimated=estimated[i] if share.alone else amount)
            if interval.missing_seconds:
                pod.miss(interval.missing_seconds * found[i].weight, self.find_highest(card))
            pod.counter_faults += interval.fault is not None
            pod.guessed += share.guessed
            if share.doubt:
                lag = min(COUNTER_LAG_SECONDS / max(interval.seconds, COUNTER_LAG_SECONDS), 1.0)
                doubts[share.pod] = doubts.get(share.pod, 0.0) + share.doubt * (1.0 + lag)
            if interval.uncertain:
                # Samples of power err in either direction; a reset errs once.
                pod.doubt_squared += (interval.uncertain * share.weight) ** 2
        free = add(measured[-1], estimated[-1])
        if found or not (last.busy and reading.busy):
            # Beside a pod's time, and in the unallocated parts of a shared card, a card is idle.
            self.idle = add(self.idle, free)
        else:
            self.unattributed = add(self.unattributed, free)
        regular = SHORTEST_STEP_SECONDS <= interval.seconds <= LONGEST_STEP_SECONDS
        known = interval.fault is None and not interval.was_reset and card.meter.doubt is None
        if not found and not last.busy and not reading.busy and interval.total and regular and known:
            card.learn_idle(interval.total / interval.seconds)
        if boot != last.boot or len(last.phases) != 1 or interval.missing_seconds:
            card.recent.clear()

    def _phase(self, seen: Seen) -> Phase:
        known = tuple(Allocated(*h) for h in seen.holders if h[0] in self.pods)
        return Phase(seen.begin, seen.end, known)

    def open(self, key: str, *, namespace: str, name: str, uid: str = "") -> PodAccount:
        """The account of a pod, begun where there is none; one that was closed goes on."""
        pod = self.pods.get(key)
        if pod is None:
            pod = PodAccount(namespace=namespace, name=name, uid=uid, segment=self.segments.get(key, 0))
            self.pods[key] = pod
        pod.closed = None
        return pod

    def name(self, key: str, new: str, *, uid: str) -> None:
        """Give a pod that was counted before its UID was known its own key."""
        pod = self.pods.pop(key)
        seen: list[Seen | LastAllocated] = [
            s for card in self.cards.values() if card.last for s in card.last.phases
        ]
        for one in (*seen, *(card.held for card in self.cards.values() if card.held)):
            one.holders = tuple((new if h[0] == key else h[0], *h[1:]) for h in one.holders)
        known = self.pods.get(new)
        if known is None:
            self.pods[new] = replace(pod, uid=uid, segment=self.segments.get(new, 0))
            return
        known.absorb(pod)

    def close_unnamed(self, key: str, *, wall: float, name: str) -> None:
        """Give a pod that ended before its UID was known a made-up UID, so that it can be reported and settled."""
        pod = self.pods[key]
        pod.uid = name
        pod.closed = wall

    def inherit(self, entries: Iterable[PodEnergy], key_of: Callable[[PodEnergy], str]) -> None:
        """Keep reporting what an account lost with its journal had reported; its pods start a new segment."""
        for entry in entries:
            self.inherited[entry.key] = entry.model_copy(update={"closed": True, "draw_milliwatts": 0})
            key = key_of(entry)
            self.segments[key] = max(self.segments.get(key, 0), entry.segment + 1)
            if key in self.pods:
                self.pods[key].segment = self.segments[key]
            reported = parse_time(entry.last_reading) if entry.last_reading is not None else None
            if not entry.closed and reported is not None:
                self._miss_since(reported.timestamp(), entry, key)

    def _miss_since(self, reported: float, entry: PodEnergy, key: str) -> None:
        """What a pod used between the previous account's final report and this one's first reading is missing."""
        begun = max((c.last.wall for c in self.cards.values() if c.last is not None), default=reported)
        for k, pod in self.pods.items():
            unnamed = not pod.uid and (pod.namespace, pod.name) == (entry.namespace, entry.name)
            if k == key or unnamed:
                seconds = max(0.0, (begun if pod.first is None else pod.first) - reported)
                for card in self._find_cards(k):
                    pod.miss(seconds, self.find_highest(card))

    def add_host(
        self, cpu: Millijoules, dram: Millijoules, shares: Mapping[str, float], *, begin: float, end: float
    ) -> None:
        """Divide the processors' and the memory's energy by shares of CPU time; the rest goes to `host_others`."""
        keys = [key for key in shares if key in self.pods]
        weights = [max(0.0, shares[key]) for key in keys]
        whole = max(1.0, sum(weights))
        weights = [weight / whole for weight in weights]
        of_cpu, of_dram = split(cpu, weights), split(dram, weights)
        for i, key in enumerate(keys):
            self.pods[key].add_host(of_cpu[i], of_dram[i], begin=begin, end=end)
            if self.looked is not None and end > begin:
                self.pods[key].host_draw = (of_cpu[i] + of_dram[i]) / (end - begin), self.looked
        self.host_others = add(self.host_others, of_cpu[-1], of_dram[-1])

    def drop_overdue(self, *, wall: float) -> list[str]:
        """Drop what was not settled within 24 hours; returns the keys of these pods."""
        late = [k for k, p in self.pods.items() if p.closed is not None and wall - p.closed >= KEPT_SECONDS]
        self.settle(late, dropped=True)
        return late

    def close(self, key: str, *, wall: float) -> None:
        """The pod has ended and has no allocations any more."""
        pod = self.pods.get(key)
        if pod is not None and pod.closed is None:
            pod.closed = wall

    def settle(self, keys: Sequence[str], *, dropped: bool = False) -> None:
        """Drop closed pods whose energy is in a job's status, or, `dropped`, that were not settled in time."""
        for key in keys:
            pod = self.pods.get(key)
            if pod is None or pod.closed is None or self.awaits(key):
                continue
            del self.pods[key]
            self.settled = add(self.settled, pod.gpu)
            self.host_settled = add(self.host_settled, pod.cpu, pod.dram)
            self.dropped += dropped
            self.segments.pop(key, None)
            self.segments[key] = pod.segment + 1
            while len(self.segments) > REMEMBERED_SEGMENTS:
                self.segments.pop(next(iter(self.segments)))

    def _find_cards(self, key: str) -> list[CardAccount]:
        """The cards that are allocated to a pod, or were since their last reading."""
        return [
            card
            for card in self.cards.values()
            if card.last is not None and any(h[0] == key for seen in card.last.phases for h in seen.holders)
        ]

    def find_read_until(self, key: str) -> tuple[float | None, int]:
        """Until when all cards of a pod have been read, as a Unix time, and how many were never read since it has them.

        None where none was ever read. The time of a card that was never read at all is missing, so it delays nothing.
        """
        cards = [card.last for card in self._find_cards(key) if card.last is not None]
        until = min((last.wall for last in cards if last.was_read), default=None)
        # The first phase begins with the last reading.
        return until, sum(
            not last.was_read or all(h[0] != key for h in last.phases[0].holders) for last in cards
        )

    def awaits(self, key: str) -> bool:
        """Whether a card is allocated to a pod, or was since the card's last reading: its energy is not complete."""
        return bool(self._find_cards(key))

    def give_up(self, *, wall: float) -> list[str]:
        """Stop waiting for cards that did not come back, for pods that ended long ago; returns the keys of those pods."""
        late = [
            k
            for k, p in self.pods.items()
            if p.closed is not None and wall - p.closed >= PATIENCE_SECONDS and self.awaits(k)
        ]
        if not late:
            return late
        for card in self.cards.values():
            for seen in card.last.phases if card.last else ():
                for key, *_ in (h for h in seen.holders if h[0] in late):
                    self.pods[key].miss(max(seen.end - seen.begin, 1.0), self.find_highest(card))
                seen.holders = tuple(h for h in seen.holders if h[0] not in late)
        return late

    def to_json(self) -> bytes:
        """The account as its journal keeps it."""
        return _ACCOUNT.dump_json(self)

    @classmethod
    def from_json(cls, content: bytes) -> NodeAccount:
        """Read an account back; raises pydantic's ValidationError where it is not valid."""
        return _ACCOUNT.validate_json(content)

    @property
    def used(self) -> Millijoules:
        """What all cards have used, measured and estimated."""
        return add_up(card.used for card in self.cards.values())


def _find_host_draw(pod: PodAccount, at: float) -> float:
    """Milliwatts of processors and memory; 0 where they are not counted, or no longer."""
    if pod.host_draw is None or at - pod.host_draw[1] > DRAW_SECONDS:
        return 0.0
    return pod.host_draw[0]


PATIENCE_SECONDS = 900.0
"""How long an ended pod's final report waits for a card that cannot be read: the card may still report what it used."""

KEPT_SECONDS = SECONDS_PER_DAY
"""How long an ended pod is reported that is not settled."""

REMEMBERED_SEGMENTS = 4096
"""How many settled pods are remembered, so that a pod that returns is reported as another segment."""

_ACCOUNT = TypeAdapter(NodeAccount)
