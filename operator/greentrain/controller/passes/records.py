"""Stores what passes over a job decided: its status, once, and the events on its changes.

A status that the API server refuses is reduced to its least, and retried later as a whole (`core.storing`). Events wait until
the status is stored. Nothing a job uses depends on either (`core.steps`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any

import aiohttp

from greentrain.api.reasons import Reason, Severity
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.stored import dump_status
from greentrain.controller.logs import find_log_lines
from greentrain.controller.passes.memory import Memories, Memory, WaitingEvent, mark_job
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.failing import build_stalled
from greentrain.core.seen.snapshot import Job, Snapshot
from greentrain.core.status.essence import find_write_delay
from greentrain.core.status.events import Event, transition_events
from greentrain.core.storing import Storing, Write
from greentrain.kube.apply import apply_events, apply_status
from greentrain.kube.cache import Cache, Key
from greentrain.kube.client import ApiError, Client
from greentrain.kube.redaction import redact
from greentrain.telemetry.metrics import Telemetry

EVENT_RETRY_SECONDS = 2.0
REFUSED_WORDS_MAX = 600
"""Longest quotation of a refusal, in characters: with the next step it fits an event's message of 1,024."""

EVENT_TRIES = 5
"""How often an event's storing is tried; the status has the same content already."""

REFUSED_STATUS_SECONDS = 3600.0
"""For how long, in seconds, one event on a refused status is enough: the API server keeps events that long (`--event-ttl`)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all passes over jobs work with."""

    client: Client
    cache: Cache
    queue: WorkQueue[Key]
    telemetry: Telemetry
    clock: Callable[[], datetime]
    stored: Callable[[Key, GreenTrainingJobStatus], None] = lambda *_: None
    """Called with each status that was stored."""


class Records:
    """Writes statuses and events of jobs."""

    def __init__(self, parts: Parts, memories: Memories, *, measures_every: float) -> None:
        self._client, self._cache, self._queue = parts.client, parts.cache, parts.queue
        self._telemetry, self._clock, self._stored = parts.telemetry, parts.clock, parts.stored
        self._memories = memories
        self._measures_every = measures_every
        """How often, in seconds, progress and joules alone are worth a write."""

    async def store(self, key: Key, seen: Snapshot, status: GreenTrainingJobStatus) -> None:
        """Store a status: the whole, or the least of it where the server refuses that.

        Raises:
            ApiError: it was not stored. `refuses_content` means that each retry will be refused too; the next one then waits.
        """
        job, memory = seen.job, self._memories.of(key)
        before = memory.storing.find_stored(job)
        status = await self._store(key, job, status, memory)
        memory.sampled = memory.sampled_joules = None
        self._telemetry.status_writes.inc()
        self._stored(key, status)
        self._telemetry.accounts.note(*key, job.uid, status)
        attempt = {"attempt": status.attempts[-1].number} if status.attempts else {}
        for line in find_log_lines(before, status, uid=job.uid):
            self._memories.log(
                line.level, key, line.message, **attempt, decision=line.decision, reason=line.reason
            )
        latest = [s.attempts[-1] for s in (job.status, status) if s.attempts]
        if not seen.pods and any(a.end_time is not None for a in latest):
            # That attempt is stored, and the next one has no pod yet.
            self._cache.forget_last_states(key)
        now = self._clock()
        memory.events += [
            WaitingEvent(job, event, now + timedelta(microseconds=i))
            for i, event in enumerate(transition_events(before, status, uid=job.uid))
        ]
        await self.store_events(key)

    async def store_rest(self, key: Key, seen: Snapshot, status: GreenTrainingJobStatus) -> None:
        """Store a status after the decision was carried out, if it is worth a write by now; else plan a pass for when it is.

        Raises:
            ApiError: as `store` does.
        """
        storing, now = self._memories.of(key).storing, asyncio.get_running_loop().time()
        rest = storing.find_rest(seen.job.status, status, now=now, measures_every=self._measures_every)
        if rest.whole_in is not None:
            self._queue.add_after(key, rest.whole_in)
        if rest.wait is None:
            return
        if rest.wait:
            self._queue.add_after(key, rest.wait)
            return
        again = may_change_decisions(storing, seen.job, rest.status)
        try:
            await self.store(key, seen, rest.status)
        except ApiError as error:
            if error.refuses_content:
                storing.keep_unstored(seen.job, rest.status)
            raise
        if again:
            # The watch returns our own write, which is nothing new, but the next pass may decide by it.
            self._queue.add(key)

    async def _store(
        self, key: Key, job: Job, status: GreenTrainingJobStatus, memory: Memory
    ) -> GreenTrainingJobStatus:
        """What of it was stored."""
        now, answer, storing = asyncio.get_running_loop().time(), None, memory.storing
        writes = storing.store(status, now=now)
        while True:
            try:
                write = writes.send(answer)
            except StopIteration as end:
                stored: GreenTrainingJobStatus | ApiError = end.value
                break
            answer = await self._write(key, job, write, memory)
        if isinstance(stored, ApiError):
            if stored.refuses_content:
                self._queue.add_after(key, storing.next_store - now)
                mark_job(self._telemetry.status_refused, key, on=True)
            raise stored.with_traceback(None)  # else it would grow each time
        return stored

    async def _write(self, key: Key, job: Job, write: Write, memory: Memory) -> ApiError | None:
        """Why a status was not stored; None where it was."""
        try:
            await apply_status(self._client, self._cache, job, write.status)
        except ApiError as error:
            if write.whole and error.refuses_content:
                text = f"the status was refused: {error}; the least of it is tried"
                self._memories.log(logging.WARNING, key, text)
                await self._report_refused(key, job, error, memory)
            return error
        if write.whole:
            memory.refused = None
        mark_job(self._telemetry.status_refused, key, on=not write.whole)
        return None

    async def _report_refused(self, key: Key, job: Job, error: ApiError, memory: Memory) -> None:
        """Report by an event that the server refuses this job's status: a condition may be refused too.

        A server checks a status against the CEL rules of the whole job. A job stored before a rule was added may break it; one
        padded to the limit of what is stored leaves no room for a status.
        """
        now = asyncio.get_running_loop().time()
        if not is_event_due(memory.refused, job, now):
            return
        memory.refused = (job.uid, job.generation, now)
        event = build_refused_event(redact(error.message, memory.secrets), too_large=error.status != 422)
        memory.events.append(WaitingEvent(job, event, self._clock()))
        await self.store_events(key)

    async def report_stalled(self, key: Key, reason: Reason, message: str) -> None:
        """Store the condition Stalled with its text in the columns, and an event, and nothing else; a failure is logged."""
        job, body = self._cache.parsed_job(key), self._cache.job(key)
        if job is None or body is None:
            return
        # The conditions of a status that cannot be read stay as they are.
        known = (body.get("status") or {}).get("conditions") or () if job.unreadable else dump_conditions(job)
        changed = build_stalled(known, reason, message, generation=job.generation, now=self._clock())
        if changed is None:
            return
        memory = self._memories.of(key)
        now = asyncio.get_running_loop().time()
        if is_event_due(memory.stalled, job, now):
            memory.stalled = (job.uid, job.generation, now)
            event = Event(Severity.WARNING, reason, message)
            memory.events.append(WaitingEvent(job, event, self._clock()))
            self._memories.log(logging.WARNING, key, message, reason=reason.value)
        try:
            self._cache.put(
                "Job", await self._client.patch_status(job.namespace, job.name, job.resource_version, changed)
            )
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            self._memories.log(logging.WARNING, key, f"the condition Stalled was not stored: {error}")
        await self.store_events(key)

    async def store_events(self, key: Key) -> None:
        """Store the events that wait for it; failed ones wait for the next pass, and are dropped after some."""
        memory = self._memories.of(key)
        waiting, memory.events = memory.events, []
        for i, one in enumerate(waiting):
            try:
                await apply_events(self._client, one.job, (one.event,), now=one.moment)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if isinstance(error, ApiError) and error.reason == "AlreadyExists":
                    continue  # the answer to the first try was lost
                one.tries += 1
                final = one.tries >= EVENT_TRIES or (isinstance(error, ApiError) and not error.passing)
                memory.events = waiting[i + final :]
                again = "" if final else "; again with the next pass"
                text = f"event {one.event.reason} not stored: {error}{again}"
                self._memories.log(logging.WARNING, key, text)
                if memory.events:
                    self._queue.add_after(key, EVENT_RETRY_SECONDS)
                return


def may_change_decisions(storing: Storing, job: Job, status: GreenTrainingJobStatus) -> bool:
    """Whether a pass may decide otherwise once this status of a job is stored, so that one must follow the write.

    Measures alone (progress, joules) change nothing: the pass that writes them has decided by them already. Of a job that runs
    nearly all writes are of such ones.
    """
    if not storing.is_stored(job):
        return True  # the stored status was older than the one that passes use
    return find_write_delay(job.status, status, since=0.0, measures_every=inf) != inf


def is_event_due(last: tuple[str, int, float] | None, job: Job, now: float) -> bool:
    """Whether a refused status is worth an event: the first of this generation, or the last one has expired.

    `last` is UID, generation and time of the last event; times are the event loop's, in seconds.
    """
    return last is None or last[:2] != (job.uid, job.generation) or now - last[2] >= REFUSED_STATUS_SECONDS


def build_refused_event(said: str, *, too_large: bool = False) -> Event:
    """What to do about a status that the API server refuses, and its message, cut where it is long."""
    words = said if len(said) <= REFUSED_WORDS_MAX else said[: REFUSED_WORDS_MAX - 1] + "…"
    remedy = (
        "There is no room for it: remove annotations, or make the pod templates smaller"
        if too_large
        else "The CustomResourceDefinition got rules after the job was created, and the job breaks one: correct the field with "
        "kubectl edit, or delete the job (not with --cascade=foreground, which waits for such a job without end)"
    )
    return Event(
        Severity.WARNING,
        Reason.STATUS_REFUSED,
        "the API server refuses to store the status of this job, so its state may not be updated and no attempt is begun; a "
        f"stop is carried out all the same. {remedy}. The server says: {words}",
    )


def dump_conditions(job: Job) -> list[dict[str, Any]]:
    """A job's conditions as the API server stores them."""
    return [dump_status(condition) for condition in job.status.conditions]
