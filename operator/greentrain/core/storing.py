"""Which part of a job's status is stored where the API server refuses it, and when storing is tried again.

The whole status is tried first, then the smallest useful part. Where that is refused too, the delay between tries grows, and
passes use the status that could not be stored. This state is only in memory: all of it may be lost with the process.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.seen.snapshot import Job, Snapshot
from greentrain.core.status.essence import find_write_delay, reduce_to_least

LEAST_SECONDS = 60.0
"""How many seconds after a refusal only the smallest part of a status is stored, before the whole is tried again."""

FIRST_STORE_DELAY_SECONDS = 1.0
LONGEST_STORE_DELAY_SECONDS = 30.0
"""Longest delay, in seconds, before a fully refused status is tried again; it doubles from `FIRST_STORE_DELAY_SECONDS`."""


class Refusal(Protocol):
    """The API server's answer where a request failed (`kube.client.ApiError`)."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        ...

    @property
    def refuses_content(self) -> bool:
        """Whether the content was refused, and will be refused each time."""
        ...


def is_outrun(refusal: Refusal) -> bool:
    """Whether the object has changed or is gone: the next pass sees that, and nothing has failed."""
    return refusal.status in (404, 409)


@dataclass(frozen=True, slots=True)
class Unstored:
    """A status that was refused: passes use it all the same, so that a stop is carried out as a whole."""

    uid: str
    """The UID of its job."""
    status: GreenTrainingJobStatus
    stored: GreenTrainingJobStatus
    """The status that is stored instead: once storing works again, events and log lines report the change from it."""


@dataclass(frozen=True, slots=True)
class Write:
    """A status to be stored now."""

    status: GreenTrainingJobStatus
    whole: bool
    """Whether it is the whole status."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is stored after the decision was carried out."""

    status: GreenTrainingJobStatus
    wait: float | None
    """In how many seconds its write is due; None where none is."""
    whole_in: float | None = None
    """In how many seconds the whole status may be tried again, where this is the smallest part; else None."""


@dataclass(slots=True)
class Storing:
    """The state of storing one job's status; times are seconds of a monotonic clock."""

    written: float = float("-inf")
    """When the status was last stored."""
    least_until: float = float("-inf")
    """Until when only the smallest part of the status is stored."""
    next_store: float = float("-inf")
    """When the next try is due, while nothing can be stored."""
    refusal: Refusal | None = None
    """Why nothing can be stored at present; None where it can."""
    refusals: int = 0
    """How many refusals in a row."""
    refused_of: tuple[str, int] | None = None
    """UID and generation of the job that this state is about."""
    unstored: Unstored | None = None

    def take_up(self, job: Job) -> None:
        """After an edit of the job, perhaps because its status was refused, try the whole status again at once."""
        if self.refused_of != (job.uid, job.generation):
            self.refused_of = (job.uid, job.generation)
            self.least_until = self.next_store = float("-inf")
            self.refusals = 0

    def keep_unstored(self, job: Job, status: GreenTrainingJobStatus) -> None:
        """Use a status that was refused in the next passes; `job` is as this pass saw it."""
        self.unstored = Unstored(job.uid, status, self.find_stored(job))

    def find_stored(self, job: Job) -> GreenTrainingJobStatus:
        """The stored status of this job, whichever status passes use."""
        unstored = self.unstored
        return unstored.stored if unstored is not None and unstored.uid == job.uid else job.status

    def is_stored(self, job: Job) -> bool:
        """Whether passes over this very job (by UID) use the stored status."""
        return self.unstored is None or self.unstored.uid != job.uid

    def complete(self, seen: Snapshot) -> Snapshot:
        """The snapshot with the status that could not be stored, where this very job has one."""
        if self.unstored is None or self.unstored.uid != seen.job.uid:
            return seen
        return replace(seen, job=replace(seen.job, status=self.unstored.status))

    def store(
        self, status: GreenTrainingJobStatus, *, now: float
    ) -> Generator[Write, Refusal | None, GreenTrainingJobStatus | Refusal]:
        """Store a status; returns what was stored, or why nothing was. Each write is answered by its refusal, None for none."""
        if self.refusal is not None and now < self.next_store:
            return self.refusal
        if now >= self.least_until:
            refusal = yield Write(status, whole=True)
            if refusal is None:
                return self._note_stored(status, now)
            if not refusal.refuses_content:
                return refusal
            self.least_until = now + LEAST_SECONDS
        least = reduce_to_least(status)
        refusal = yield Write(least, whole=False)
        if refusal is None:
            return self._note_stored(least, now)
        if refusal.refuses_content:
            delay = FIRST_STORE_DELAY_SECONDS * (1 << min(self.refusals, 10))
            self.next_store = now + min(delay, LONGEST_STORE_DELAY_SECONDS)
            self.refusal, self.refusals = refusal, self.refusals + 1
        return refusal

    def _note_stored(self, status: GreenTrainingJobStatus, now: float) -> GreenTrainingJobStatus:
        self.written, self.refusals = now, 0
        self.refusal = self.unstored = None
        return status

    def find_rest(
        self, old: GreenTrainingJobStatus, new: GreenTrainingJobStatus, *, now: float, measures_every: float
    ) -> Rest:
        """What of a new status is stored now or later; `old` is the one that passes use.

        `measures_every` is how often, in seconds, a status is written if only progress and joules changed.
        """
        if self.unstored is not None:
            return Rest(new, 0.0)  # the stored status is older than the one that passes use
        whole_in = None
        if now < self.least_until:
            new, whole_in = reduce_to_least(new), self.least_until - now
        wait = find_write_delay(old, new, since=now - self.written, measures_every=measures_every)
        return Rest(new, wait, whole_in)
