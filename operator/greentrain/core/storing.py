"""What of a job's status is stored where the API server refuses it, and when it is tried again.

The whole is tried first, then the least of it; where that is refused too, tries are spaced out, and passes go on by what could
not be stored. It spaces out requests and holds what could not be stored at once: all of it may be lost with the process.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.seen.snapshot import Job, Snapshot
from greentrain.core.status.essence import find_write_delay, reduce_to_least

LEAST_SECONDS = 60.0
"""How long, in seconds, only the least of a status is stored after the whole was refused, before the whole is tried again."""

FIRST_STORE_DELAY_SECONDS = 1.0
LONGEST_STORE_DELAY_SECONDS = 30.0
"""How long, in seconds, a status that was refused altogether waits for the next try: doubling from the one to the other."""


class Refusal(Protocol):
    """The API server's answer where it did not do what was asked (`kube.client.ApiError`)."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later."""
        ...

    @property
    def refuses_content(self) -> bool:
        """Whether it was what was sent that was refused, and will be each time."""
        ...


def is_outrun(refusal: Refusal) -> bool:
    """Whether the object is another one by now, or is no more: the next pass sees it, and nothing has failed."""
    return refusal.status in (404, 409)


@dataclass(frozen=True, slots=True)
class Unstored:
    """A status that should be stored and is refused: passes go on by it, so that a stop is carried out as a whole."""

    uid: str
    """Of its job."""
    status: GreenTrainingJobStatus
    stored: GreenTrainingJobStatus
    """What is stored instead: events and log lines say how that changes, once it can."""


@dataclass(frozen=True, slots=True)
class Write:
    """A status to be stored now."""

    status: GreenTrainingJobStatus
    whole: bool
    """Whether it is all that was decided."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is to be stored after what was decided is done."""

    status: GreenTrainingJobStatus
    wait: float | None
    """In how many seconds it is worth a write; None where it is worth none."""
    whole_in: float | None = None
    """In how many seconds the whole may be tried again, where this is the least."""


@dataclass(slots=True)
class Storing:
    """What is remembered of one job's record; times are seconds on the clock that only goes on."""

    written: float = float("-inf")
    """When it was stored last."""
    least_until: float = float("-inf")
    """Until when only the least of the status is stored."""
    next_store: float = float("-inf")
    """When the next try is, while nothing of it can be stored."""
    refusal: Refusal | None = None
    """Why nothing of it can be stored at present."""
    refusals: int = 0
    """How often in a row."""
    refused_of: tuple[str, int] | None = None
    """UID and generation of the job that this is about."""
    unstored: Unstored | None = None

    def take_up(self, job: Job) -> None:
        """Where the job was edited, perhaps because its status was refused, the whole is tried again at once."""
        if self.refused_of != (job.uid, job.generation):
            self.refused_of = (job.uid, job.generation)
            self.least_until = self.next_store = float("-inf")
            self.refusals = 0

    def keep_unstored(self, job: Job, status: GreenTrainingJobStatus) -> None:
        """Go on by a status that was refused; `job` is as the pass saw it."""
        self.unstored = Unstored(job.uid, status, self.find_stored(job))

    def find_stored(self, job: Job) -> GreenTrainingJobStatus:
        """The status that is stored of this job, whichever passes go on by."""
        unstored = self.unstored
        return unstored.stored if unstored is not None and unstored.uid == job.uid else job.status

    def is_stored(self, job: Job) -> bool:
        """Whether the status that passes over this very job go by is the one that is stored."""
        return self.unstored is None or self.unstored.uid != job.uid

    def complete(self, seen: Snapshot) -> Snapshot:
        """The snapshot with the status that could not be stored, where there is one of this very job."""
        if self.unstored is None or self.unstored.uid != seen.job.uid:
            return seen
        return replace(seen, job=replace(seen.job, status=self.unstored.status))

    def store(
        self, status: GreenTrainingJobStatus, *, now: float
    ) -> Generator[Write, Refusal | None, GreenTrainingJobStatus | Refusal]:
        """Store a status: what of it was stored, or why nothing was. Each write is answered by its refusal, None for none."""
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
        """What of a new status is to be stored now or later, `old` being the one that passes go on by.

        `measures_every` is how often, in seconds, progress and joules alone are worth a write.
        """
        if self.unstored is not None:
            return Rest(new, 0.0)  # what is stored is older than what passes go on by
        whole_in = None
        if now < self.least_until:
            new, whole_in = reduce_to_least(new), self.least_until - now
        wait = find_write_delay(old, new, since=now - self.written, measures_every=measures_every)
        return Rest(new, wait, whole_in)
