"""One pod of a node's account: its part of all cards, processors and memory, by quarter of an hour.

Millijoules, and wall times in Unix seconds; the journal stores these objects as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, sqrt
from typing import Annotated

from pydantic import Field

from greentrain.api.nodepower import BUCKET_SECONDS, KEPT_BUCKETS
from greentrain.quantities import Millijoules, Milliseconds, Milliwatts, add

NONE = Millijoules(0)

SPREAD = 1.1
"""Factor from the root of the sum of squares of the single bounds to a bound at 95 % confidence.

Each moment between two readings is equally likely, so the beginning or the end of an allocation is wrong by at most h in either
direction. For one allocation the two errors add up to a triangular distribution of half width 2h, and the root is h * sqrt(2).
Within 1.1 times the root lies 1 - (1 - 1.1 / sqrt(2))^2 = 0.951 of it; for a single end all of it, for more ends more than 0.951.
"""


@dataclass(slots=True)
class PodAccount:
    """One pod's part of all cards, processors and memory of the node."""

    namespace: str
    name: str
    uid: str = ""
    job: str | None = None
    job_uid: str | None = None
    owner_known: bool = False
    """Whether the API server has shown which job's pod it is."""
    segment: int = 0
    gpu: Millijoules = Millijoules(0)
    cpu: Millijoules = Millijoules(0)
    dram: Millijoules = Millijoules(0)
    estimated: Millijoules = Millijoules(0)
    doubt_squared: float = 0.0
    """Sum of squares of uncorrelated doubts, in square millijoules."""
    guessed: float = 0.0
    """Sum of doubts that may all err in one direction, in millijoules."""
    missing_seconds: float = 0.0
    """Seconds of its GPUs of which nothing is known, added up over the GPUs."""
    missing_most: Millijoules = Millijoules(0)
    """The most it can have used in them, by the GPUs' highest power limits."""
    counter_faults: int = 0
    """How often the counter of a card that it had showed what cannot be."""
    first: float | None = None
    last: float | None = None
    closed: float | None = None
    """Wall time at which it was found to have no allocations any more."""
    buckets: dict[int, Millijoules] = field(default_factory=dict)
    """By the Unix time at which a quarter of an hour begins."""
    earlier: Millijoules = Millijoules(0)
    host_buckets: dict[int, Millijoules] = field(default_factory=dict)
    """Of `buckets`, what processors and memory used."""
    earlier_host: Millijoules = Millijoules(0)
    held: dict[str, Milliseconds] = field(default_factory=dict)
    """For how long cards were allocated to it, by their model; of a shared card, its share of them."""
    host_draw: Annotated[tuple[float, float] | None, Field(exclude=True)] = field(default=None, compare=False)
    """Milliwatts of processors and memory, and when they were found, on the readings' clock."""

    @property
    def total(self) -> Millijoules:
        """What all device kinds have used."""
        return add(self.gpu, self.cpu, self.dram)

    @property
    def error(self) -> float:
        """Error bound of the total in millijoules, at 95 % confidence."""
        return SPREAD * sqrt(self.doubt_squared) + self.guessed

    def absorb(self, other: PodAccount) -> None:
        """Take in what was counted of the same pod under another key."""
        self.gpu = add(self.gpu, other.gpu)
        self.cpu = add(self.cpu, other.cpu)
        self.dram = add(self.dram, other.dram)
        self.estimated = add(self.estimated, other.estimated)
        self.doubt_squared += other.doubt_squared
        self.guessed += other.guessed
        self.missing_seconds += other.missing_seconds
        self.missing_most = add(self.missing_most, other.missing_most)
        self.counter_faults += other.counter_faults
        self.first = min((t for t in (self.first, other.first) if t is not None), default=None)
        self.last = max((t for t in (self.last, other.last) if t is not None), default=None)
        self.earlier = add(self.earlier, other.earlier)
        self.earlier_host = add(self.earlier_host, other.earlier_host)
        for mine, others in (
            (self.buckets, other.buckets),
            (self.host_buckets, other.host_buckets),
        ):
            for start, amount in others.items():
                mine[start] = add(mine.get(start, NONE), amount)
        for model, milliseconds in other.held.items():
            self.hold(model, milliseconds)

    def hold(self, model: str, milliseconds: Milliseconds) -> None:
        """Take in time for which a card was allocated to it."""
        self.held[model] = add(self.held.get(model, Milliseconds(0)), milliseconds)

    def miss(self, seconds: float, highest: Milliwatts) -> None:
        """Take in time of a GPU of which nothing is known; `highest` is its highest power limit."""
        self.missing_seconds += seconds
        self.missing_most = add(self.missing_most, Millijoules(ceil(highest * seconds)))

    def add(self, amount: Millijoules, *, begin: float, end: float, estimated: Millijoules) -> None:
        """Take in GPU energy used between two wall times."""
        self.gpu = add(self.gpu, amount)
        self.estimated = add(self.estimated, estimated)
        self._date(amount, begin=begin, end=end)

    def add_host(self, cpu: Millijoules, dram: Millijoules, *, begin: float, end: float) -> None:
        """Take in a share of the processors' and the memory's energy: divided, so estimated."""
        self.cpu = add(self.cpu, cpu)
        self.dram = add(self.dram, dram)
        self.estimated = add(self.estimated, cpu, dram)
        self._date(add(cpu, dram), begin=begin, end=end, host=True)

    def _date(self, amount: Millijoules, *, begin: float, end: float, host: bool = False) -> None:
        self.first = begin if self.first is None else min(self.first, begin)
        self.last = end if self.last is None else max(self.last, end)
        for start, part in by_quarter(amount, begin=begin, end=end):
            self.buckets[start] = add(self.buckets.get(start, NONE), part)
            if host:
                self.host_buckets[start] = add(self.host_buckets.get(start, NONE), part)
        # By span, not by count: a clock that was wrong for a moment must not stretch the list over years.
        while max(self.buckets) - min(self.buckets) >= KEPT_BUCKETS * BUCKET_SECONDS:
            oldest = min(self.buckets)
            self.earlier = add(self.earlier, self.buckets.pop(oldest))
            self.earlier_host = add(self.earlier_host, self.host_buckets.pop(oldest, NONE))


def by_quarter(amount: Millijoules, *, begin: float, end: float) -> list[tuple[int, Millijoules]]:
    """An amount used evenly between two Unix times, by the quarter of an hour (UTC) it falls into; adds up exactly."""
    first, last = int(begin // BUCKET_SECONDS), int(end // BUCKET_SECONDS)
    if last <= first or end <= begin:
        return [(last * BUCKET_SECONDS, amount)]
    edges = [begin, *(float(i * BUCKET_SECONDS) for i in range(first + 1, last + 1)), end]
    shown = [int(amount * ((edge - begin) / (end - begin))) for edge in edges]
    shown[-1] = amount
    return [
        ((first + i) * BUCKET_SECONDS, Millijoules(later - earlier))
        for i, (earlier, later) in enumerate(pairwise(shown))
    ]
