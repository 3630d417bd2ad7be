"""The node's account: what every card has used and whose it was, carried from reading to reading.

A card's energy is attributed when two things are known of the same moment: its reading and its holders. Where one of
them is not, the account waits, and the next moment at which both are known closes the gap: the counter has gone on
counting meanwhile. So the sums hold whatever fails and restarts:

    pods + settled pods + idle + unattributed = what the counters have shown since the first reading + what was estimated

All energy is in whole millijoules. Times on the readings' clock are seconds since the machine's start, time in which it
was suspended included; wall times are Unix seconds and only say to which quarter of an hour energy belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil, hypot, sqrt

from pydantic import BaseModel, ConfigDict, Field

from greentrain.api.nodepower import BUCKET_SECONDS, KEPT_BUCKETS, PodEnergy
from greentrain.energy.attribution import Held, Window, find_presences, split
from greentrain.energy.intervals import (
    COUNTER_LAG_SECONDS,
    CardReading,
    Interval,
    measure,
    measure_since_start,
)

SPREAD = 1.1
"""Times the root of the sum of squares of doubts makes a bound that holds 19 times of 20.

A moment between two readings is equally likely anywhere, so an end of a hold is wrong by at most h to either side. Of
two such ends the sum's distribution is a triangle of half width 2h, the root h times sqrt(2), and within 1.1 times the
root lies 1 - (1 - 1.1 / sqrt(2))^2 = 0.951 of it; of one end all, of more than two more than that.
"""

UNKNOWN_AT_REBOOT_SECONDS = 10.0
"""Of the time between the last reading before a reboot and the machine's end at most this much counts as missing: how
old the journal's last reading may be."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", validate_assignment=False)


class LastSeen(_Model):
    """The last moment at which a card's reading and its holders were both known."""

    at: float
    wall: float
    boot: str
    counter: int | None = None
    draw: int | None = None
    busy: bool = False
    holders: tuple[tuple[str, float, bool], ...] = ()
    """Pod, share and whether alone, of each holder."""

    @property
    def reading(self) -> CardReading:
        """The reading of that moment."""
        return CardReading(self.counter, self.draw, self.busy)

    @property
    def held(self) -> tuple[Held, ...]:
        """The holders of that moment."""
        return tuple(Held(*h) for h in self.holders)


class CardAccount(_Model):
    """One card, whoever used it."""

    last: LastSeen | None = None
    measured: int = 0
    estimated: int = 0
    missing_seconds: float = 0.0


class PodAccount(_Model):
    """One pod's part of all cards, processors and memory of the node."""

    namespace: str
    name: str
    uid: str = ""
    job: str | None = None
    job_uid: str | None = None
    segment: int = 0
    gpu: int = 0
    cpu: int = 0
    dram: int = 0
    estimated: int = 0
    doubt_squared: float = 0.0
    """Sum of squares of doubts that do not hang together, in square millijoules."""
    guessed: float = 0.0
    """Sum of doubts that may all lie on one side, in millijoules."""
    missing_seconds: float = 0.0
    first: float | None = None
    last: float | None = None
    closed: float | None = None
    """Wall time at which it was found to hold nothing any more."""
    buckets: dict[int, int] = Field(default_factory=dict)
    """Millijoules by the Unix time at which a quarter of an hour begins."""
    earlier: int = 0

    @property
    def total(self) -> int:
        """Millijoules of all device kinds."""
        return self.gpu + self.cpu + self.dram

    @property
    def error(self) -> float:
        """Millijoules by which the total may be wrong; 19 times of 20 it is not more."""
        return SPREAD * sqrt(self.doubt_squared) + self.guessed

    def absorb(self, other: PodAccount) -> None:
        """Take in what was counted of the same pod under another key."""
        self.gpu += other.gpu
        self.cpu += other.cpu
        self.dram += other.dram
        self.estimated += other.estimated
        self.doubt_squared += other.doubt_squared
        self.guessed += other.guessed
        self.missing_seconds += other.missing_seconds
        self.first = min((t for t in (self.first, other.first) if t is not None), default=None)
        self.last = max((t for t in (self.last, other.last) if t is not None), default=None)
        self.earlier += other.earlier
        for start, amount in other.buckets.items():
            self.buckets[start] = self.buckets.get(start, 0) + amount

    def add(self, amount: int, *, begin: float, end: float, estimated: int) -> None:
        """Take in GPU energy used between two wall times."""
        self.gpu += amount
        self.estimated += estimated
        self._date(amount, begin=begin, end=end)

    def add_host(self, cpu: int, dram: int, *, begin: float, end: float) -> None:
        """Take in a share of the processors' and the memory's energy: divided, so estimated."""
        self.cpu += cpu
        self.dram += dram
        self.estimated += cpu + dram
        self._date(cpu + dram, begin=begin, end=end)

    def _date(self, amount: int, *, begin: float, end: float) -> None:
        self.first = begin if self.first is None else min(self.first, begin)
        self.last = end if self.last is None else max(self.last, end)
        for start, part in by_quarter(amount, begin=begin, end=end):
            self.buckets[start] = self.buckets.get(start, 0) + part
        # By span, not by count: a clock that was wrong for a moment must not stretch the list over years.
        while max(self.buckets) - min(self.buckets) >= KEPT_BUCKETS * BUCKET_SECONDS:
            self.earlier += self.buckets.pop(min(self.buckets))


def by_quarter(amount: int, *, begin: float, end: float) -> list[tuple[int, int]]:
    """An amount used evenly between two Unix times, by the quarter of an hour (UTC) it falls into; to the unit."""
    first, last = int(begin // BUCKET_SECONDS), int(end // BUCKET_SECONDS)
    if last <= first or end <= begin:
        return [(last * BUCKET_SECONDS, amount)]
    edges = [begin, *(float(i * BUCKET_SECONDS) for i in range(first + 1, last + 1)), end]
    shown = [int(amount * ((edge - begin) / (end - begin))) for edge in edges]
    shown[-1] = amount
    return [
        ((first + i) * BUCKET_SECONDS, later - earlier) for i, (earlier, later) in enumerate(pairwise(shown))
    ]


class NodeAccount(_Model):
    """Everything one node's agent has counted; what its journal holds."""

    journal_id: str
    cards: dict[str, CardAccount] = Field(default_factory=dict)
    pods: dict[str, PodAccount] = Field(default_factory=dict)
    idle: int = 0
    unattributed: int = 0
    settled: int = 0
    """GPU millijoules of pods that were let go."""
    host_settled: int = 0
    dropped: int = 0
    host_others: int = 0
    """Millijoules of processors and memory that no listed pod had a share in."""
    inherited: dict[str, PodEnergy] = Field(default_factory=dict)
    """Last words of an account that was lost with its journal, by UID/segment, as NodePower still had them."""
    segments: dict[str, int] = Field(default_factory=dict)
    """How often a pod was let go, for those that may come back."""

    def advance(
        self,
        readings: Mapping[str, CardReading],
        holders: Mapping[str, Sequence[Held]] | None,
        *,
        at: float,
        wall: float,
        boot: str,
        windows: Mapping[str, Window] | None = None,
    ) -> None:
        """Take in one look at the cards and at who holds them.

        A card without a reading, and every card where the holders are not known (None), stays at its last moment.
        Holders must be pods that were opened (`open`).
        """
        if holders is None:
            return
        doubts: dict[str, float] = {}
        for uuid, reading in readings.items():
            card = self.cards.setdefault(uuid, CardAccount())
            held = tuple(holders.get(uuid, ()))
            if card.last is not None:
                self._attribute(card, card.last, reading, held, at, wall, boot, windows or {}, doubts)
            card.last = LastSeen(
                at=at,
                wall=wall,
                boot=boot,
                counter=reading.counter,
                draw=reading.draw,
                busy=reading.busy,
                holders=tuple((h.pod, h.share, h.alone) for h in held),
            )
        # What begins or ends at one moment does so on all of a pod's cards: their doubts hang together.
        for pod, doubt in doubts.items():
            self.pods[pod].doubt_squared += doubt * doubt

    def _attribute(
        self,
        card: CardAccount,
        last: LastSeen,
        reading: CardReading,
        held: Sequence[Held],
        at: float,
        wall: float,
        boot: str,
        windows: Mapping[str, Window],
        doubts: dict[str, float],
    ) -> None:
        before: Sequence[Held] = last.held
        if boot == last.boot:
            begin = min(last.at, at)
            interval = measure(last.reading, reading, at - begin)
        else:
            # The pods of before are gone with the machine, and what it used after its last reading is not known.
            begin = 0.0
            lost = min(max(wall - last.wall - at, 0.0), UNKNOWN_AT_REBOOT_SECONDS)
            for hold in before:
                if hold.pod in self.pods:
                    self.pods[hold.pod].missing_seconds += lost
            before = ()
            interval = measure_since_start(reading, at)
        card.measured += interval.measured
        card.estimated += interval.estimated
        card.missing_seconds += interval.missing_seconds
        known = [h for h in before if h.pod in self.pods]
        found = find_presences(known, held, begin=begin, end=at, windows=windows)
        weights = [p.weight for p in found]
        measured, estimated = split(interval.measured, weights), split(interval.estimated, weights)
        since = wall - interval.seconds
        for i, presence in enumerate(found):
            pod = self.pods[presence.pod]
            amount = measured[i] + estimated[i]
            pod.add(amount, begin=since, end=wall, estimated=estimated[i] if presence.alone else amount)
            pod.missing_seconds += interval.missing_seconds * presence.weight
            _doubt(pod, presence.doubt, presence.guessed, presence.weight, interval, doubts, presence.pod)
        free = measured[-1] + estimated[-1]
        # Parts of a shared card that nobody holds are idle while others work.
        divided = any(not p.alone for p in found)
        if free and not divided and (reading.busy if before else last.busy):
            self.unattributed += free
        else:
            self.idle += free

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
        for card in self.cards.values():
            if card.last is not None:
                card.last.holders = tuple((new if h[0] == key else h[0], *h[1:]) for h in card.last.holders)
        known = self.pods.get(new)
        if known is None:
            self.pods[new] = pod.model_copy(update={"uid": uid, "segment": self.segments.get(new, 0)})
            return
        known.absorb(pod)

    def forfeit(self, key: str) -> None:
        """What a pod used whose name nobody can tell any more is nobody's."""
        if not self._is_held(key):
            pod = self.pods.pop(key)
            self.unattributed += pod.gpu
            self.host_others += pod.cpu + pod.dram

    def inherit(self, entries: Iterable[PodEnergy], key_of: Callable[[PodEnergy], str]) -> None:
        """Go on telling what an account before this one, lost with its journal, had told; its pods begin anew."""
        for entry in entries:
            self.inherited[entry.key] = entry.model_copy(update={"closed": True})
            key = key_of(entry)
            self.segments[key] = max(self.segments.get(key, 0), entry.segment + 1)
            if key in self.pods:
                self.pods[key].segment = self.segments[key]

    def add_host(self, cpu: int, dram: int, shares: Mapping[str, float], *, begin: float, end: float) -> None:
        """Divide the processors' and the memory's millijoules by shares of CPU time; the rest is others'."""
        keys = [key for key in shares if key in self.pods]
        weights = [max(0.0, shares[key]) for key in keys]
        whole = max(1.0, sum(weights))
        weights = [weight / whole for weight in weights]
        of_cpu, of_dram = split(cpu, weights), split(dram, weights)
        for i, key in enumerate(keys):
            self.pods[key].add_host(of_cpu[i], of_dram[i], begin=begin, end=end)
        self.host_others += of_cpu[-1] + of_dram[-1]

    def drop_overdue(self, *, wall: float) -> list[str]:
        """Let go of what nobody came for in 24 hours; the keys of the pods it concerns."""
        late = [k for k, p in self.pods.items() if p.closed is not None and wall - p.closed >= KEPT_SECONDS]
        self.settle(late, dropped=True)
        return late

    def close(self, key: str, *, wall: float) -> None:
        """The pod holds nothing any more and has ended."""
        pod = self.pods.get(key)
        if pod is not None and pod.closed is None:
            pod.closed = wall

    def settle(self, keys: Sequence[str], *, dropped: bool = False) -> None:
        """Let go of closed pods whose energy stands elsewhere, or, `dropped`, that nobody came for."""
        for key in keys:
            pod = self.pods.get(key)
            if pod is None or pod.closed is None or self._is_held(key):
                continue
            del self.pods[key]
            self.settled += pod.gpu
            self.host_settled += pod.cpu + pod.dram
            self.dropped += dropped
            self.segments.pop(key, None)
            self.segments[key] = pod.segment + 1
            while len(self.segments) > REMEMBERED_SEGMENTS:
                self.segments.pop(next(iter(self.segments)))

    def _is_held(self, key: str) -> bool:
        return any(h[0] == key for card in self.cards.values() if card.last for h in card.last.holders)

    @property
    def used(self) -> int:
        """Millijoules of all cards, measured and estimated."""
        return sum(card.measured + card.estimated for card in self.cards.values())


KEPT_SECONDS = 24 * 3600
"""How long an ended pod is reported while nobody settles it."""

REMEMBERED_SEGMENTS = 4096
"""Settled pods whose return would be told as another segment."""


def _doubt(
    pod: PodAccount,
    doubt: float,
    guessed: float,
    weight: float,
    interval: Interval,
    doubts: dict[str, float],
    key: str,
) -> None:
    if doubt:
        lag = min(COUNTER_LAG_SECONDS / max(interval.seconds, COUNTER_LAG_SECONDS), 1.0)
        doubts[key] = doubts.get(key, 0.0) + interval.total * doubt * (1.0 + lag)
    pod.guessed += interval.total * guessed
    if interval.uncertain:
        # Samples of power are wrong to either side; a reset is wrong once.
        pod.doubt_squared += (interval.uncertain * weight) ** 2


def combine_errors(errors: Sequence[float]) -> int:
    """The bound of a sum of independent parts with these bounds, rounded up."""
    return ceil(hypot(*errors)) if errors else 0
