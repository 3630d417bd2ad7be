"""Runs passes: gather, decide, record what the world cannot show, apply, record the rest, tell.

The order is what makes a kill at any moment harmless. A decision that ends or begins an attempt is stored
before a pod is deleted or created; everything else can be concluded again from what is there. What a pass
believes may be old, where a watch is slow or an answer was lost: before anything that could double a pod or
a count, it looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import aiohttp
from pydantic import ValidationError

from greentrain.api.conditions import MESSAGE_MAX, Reason
from greentrain.api.runtime import Progress
from greentrain.api.v1alpha1 import AttemptStatus, GreenTrainingJobStatus
from greentrain.controller.logs import told_by
from greentrain.controller.settings import Settings
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.budget import spec_in_force
from greentrain.core.decide import Decision, decide
from greentrain.core.emissions import Carbon
from greentrain.core.snapshot import PASSING_OBSTACLES, Job, Snapshot
from greentrain.core.status import Event, EventType, differs_in_measures_alone, essence, transition_events
from greentrain.kube.apply import Outcome, apply_effects, apply_events, apply_status
from greentrain.kube.cache import Cache, Key
from greentrain.kube.client import ApiError, Client
from greentrain.kube.gather import gather, gather_progress
from greentrain.kube.readings import NodePowers
from greentrain.kube.redaction import find_pod_secrets, find_secrets, pod_group, redact
from greentrain.telemetry.metrics import Telemetry

logger = logging.getLogger("greentrain.controller")

COALESCE_SECONDS = 1.0
"""Changes of counts alone wait this long for more of their kind: a gang's pods start one by one."""

REFUSED_RETRY_SECONDS = 30.0
"""How often a creation the server refused is tried again; the stranger may be gone, the quota raised."""

PASSING_RETRY_SECONDS = 1.0

STOPPING_PROGRESS_SECONDS = 1.0
"""How often a program that is stopping is asked: a kubelet may remove an ended container before it has reported its
termination message (read in a kubelet's source, not proven), and the last checkpoint is then known from here alone."""


SAMPLE_SECONDS = 2.0
"""How soon a program of a job with a budget may be asked again because a node has reported."""

CONFLICTS_BEFORE_LOOKING = 2
"""A status write that meets a newer job is tried again when the watch has brought it, within milliseconds. After so
many conflicts in a row the watch is not waited for: the answer to our own last write may have been lost."""

EVENT_RETRY_SECONDS = 2.0
REFUSED_WORDS_MAX = 600
"""Longest quotation of a refusal, in characters: with what to do about it an event's message holds 1,024."""

REPLACED_MESSAGE_MAX = 1024
"""Longest message of a replaced pod, in characters: the schema's bound."""

KEPT_SECRETS = 4
"""Sets of secrets of a job that are kept: those of its spec and its pods as they are, and as they were before three edits."""

EVENT_TRIES = 5
"""How often an event is tried to be stored; it tells what the status says already."""

REFUSED_STATUS_SECONDS = 3600.0
"""How long, in seconds, one event says that a status was refused: the API server keeps events that long (`--event-ttl`)."""


@dataclass(slots=True)
class _Untold:
    """An event that is not stored yet; its time makes its name, so that a second try cannot double it."""

    job: Job
    event: Event
    moment: datetime
    tries: int = 0


@dataclass(slots=True)
class _Memory:
    """What may be lost with the process: it spaces out requests, and holds events that were not stored at once."""

    written: float = float("-inf")
    asked: float = float("-inf")
    heard: datetime | None = None
    """The report that was the last one when the program was asked."""
    sampled: datetime | None = None
    """When it gave the word that is not stored yet."""
    sampled_joules: int | None = None
    """What the job had used by then."""
    progress: Progress | None = None
    progress_attempt: int = 0
    untold: list[_Untold] = field(default_factory=list)
    refused: tuple[str, int, float] | None = None
    """UID and generation of the job whose status was refused, and when an event last said so; None once one is stored."""
    secrets: frozenset[str] = frozenset()
    secrets_of: tuple[str, int, frozenset[tuple[str, str]]] | None = None
    """Whose secrets were looked for last: UID and generation of the job, role and attempt of its pods."""
    told_secrets: tuple[frozenset[str], ...] = ()
    """Those of the last few looks, the latest last: somebody may speak of a pod that is gone a moment ago."""


class Passes:
    """Workers that take keys from the queue and run one pass over each."""

    def __init__(
        self,
        *,
        client: Client,
        cache: Cache,
        node_powers: NodePowers,
        stored: Callable[[Key, GreenTrainingJobStatus], None],
        queue: WorkQueue[Key],
        session: aiohttp.ClientSession,
        telemetry: Telemetry,
        settings: Settings,
        clock: Callable[[], datetime],
        carbon: Carbon | None = None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._node_powers = node_powers
        self._stored = stored
        self._queue = queue
        self._session = session
        self._telemetry = telemetry
        self._settings = settings
        self._clock = clock
        self._carbon = carbon
        self._memory: dict[Key, _Memory] = {}
        self._begun: dict[Key, float] = {}
        self._finishing = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def longest(self) -> tuple[Key, float] | None:
        """The pass that has been under way longest, and for how many seconds; None where none is."""
        key = min(self._begun, key=self._begun.__getitem__, default=None)
        return None if key is None else (key, asyncio.get_running_loop().time() - self._begun[key])

    async def finish(self, seconds: float) -> None:
        """Begin no pass any more and wait for those under way, for so long at most.

        What a pass has stored, only that pass tells: its events and log lines would be lost with it.
        """
        self._finishing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_rest.wait(), seconds)

    async def work(self) -> None:
        """Run passes until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            key = await self._queue.get()
            self._telemetry.queue_depth.set(len(self._queue))
            if self._finishing:
                continue
            self._at_rest.clear()
            begun = self._begun[key] = loop.time()
            try:
                await self._pass(key)
            except ApiError as error:
                outcome = "conflict" if error.status == 409 else "refused"
                self._telemetry.api_errors.labels(str(error.status)).inc()
                delay = self._queue.retry(key, not_before=error.retry_after)
                if error.status not in (404, 409):
                    self._log(logging.WARNING, key, f"{error}; again in {delay:.2f} s")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                outcome = "unreachable"
                self._telemetry.api_errors.labels("none").inc()
                delay = self._queue.retry(key)
                self._log(logging.WARNING, key, f"API server unreachable ({error!r}); again in {delay:.2f} s")
            except Exception as error:  # noqa: BLE001 - one job's fault must not stop the others; it is told and tried again
                outcome = "error"
                delay = self._queue.retry(key)
                where = "".join(traceback.format_tb(error.__traceback__))
                text = f"the pass failed: {_said(error)}; again in {delay:.2f} s; at\n{where}"
                self._log(logging.ERROR, key, text)
            else:
                outcome = "ok"
                self._queue.succeeded(key)
            finally:
                self._begun.pop(key, None)
                if not self._begun:
                    self._at_rest.set()
                self._queue.done(key)
            self._telemetry.passes.labels(outcome).inc()
            self._telemetry.pass_seconds.observe(loop.time() - begun)

    def _log(self, level: int, key: Key, text: str, **fields: Any) -> None:
        secrets = self._memory[key].secrets if key in self._memory else frozenset()
        logger.log(
            level, redact(text, secrets), extra={"namespace": key.namespace, "job": key.name, **fields}
        )

    async def _pass(self, key: Key) -> None:
        if self._queue.failures(key) >= CONFLICTS_BEFORE_LOOKING:
            await self._look(key)
        seen = gather(self._cache, self._node_powers, key, carbon=self._carbon)
        if seen is None:
            self._memory.pop(key, None)
            self._queue.forget(key)
            return
        memory = self._memory.setdefault(key, _Memory())
        self._find_secrets(key, seen.job, memory)
        await self._tell(key, memory)
        progress = await self._ask_progress(key, seen, memory)
        seen = replace(seen, progress=progress, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
        decision = self._decide(seen, memory)
        if memory.sampled is not None and memory.sampled_joules is None:
            # Steps and joules of one moment belong together, also where they are stored by a later pass.
            energy = decision.status.energy
            memory.sampled_joules = energy.used_joules if energy is not None else None
        if decision.record_first:
            if decision.pods and seen.job.status.attempt_count and await self._look_for_pods(key):
                self._queue.add(key)  # a pod of an earlier attempt that no watch has told of yet
                return
            await self._record(key, seen, decision.status, memory)
            # Effects belong to the job as it is now stored; a conflict has ended this pass already.
        outcome = await apply_effects(self._client, self._cache, seen.job, decision)
        self._log_effects(key, decision, outcome)
        if decision.record_first or outcome.changed or outcome.obstacles:
            after = gather(
                self._cache,
                self._node_powers,
                key,
                carbon=self._carbon,
                progress=progress,
                obstacles=outcome.obstacles,
            )
            if after is None:
                return
            after = replace(after, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
            seen, decision = after, self._decide(after, memory)
            if decision.record_first:
                self._queue.add(key)
                return
        await self._record_rest(key, seen, decision, memory)
        self._look_again(key, decision, outcome)

    def _decide(self, seen: Snapshot, memory: _Memory) -> Decision:
        decision = decide(seen, now=self._clock())
        return replace(decision, status=without_secrets(decision.status, memory.secrets))

    def _find_secrets(self, key: Key, job: Job, memory: _Memory) -> None:
        """Those of the spec, of the pods that may still say something, and of the last few edits."""
        pods = [*self._cache.owned("Pod", key, job.uid), *self._cache.last_words(key, job.uid)]
        mark = (job.uid, job.generation, frozenset(map(pod_group, pods)))
        if memory.secrets_of != mark:
            memory.secrets_of = mark
            memory.told_secrets = remember(memory.told_secrets, secrets_of(job, pods))
            memory.secrets = frozenset().union(*memory.told_secrets)

    async def _look(self, key: Key) -> None:
        """Read the job afresh where our picture of it was refused again and again."""
        body = await self._client.find_job(*key)
        known = self._cache.job(key)
        if body is not None:
            self._cache.put("Job", body)
        elif known is not None:
            self._cache.drop("Job", known)

    async def _look_for_pods(self, key: Key) -> bool:
        """Whether a list shows pods of the job that the cache does not know.

        An attempt begins when every pod of the last one is gone. A pod whose creation was never answered may be
        there without a watch having told; it must be found now, not at the next resync.
        """
        bodies = await self._client.list_pods_of(*key)
        return sum(self._cache.put("Pod", body) is not None for body in bodies) > 0

    def _log_effects(self, key: Key, decision: Decision, outcome: Outcome) -> None:
        made = outcome.created
        self._telemetry.pods_created.inc(len(made))
        attempts = decision.status.attempts
        attempt = {"attempt": attempts[-1].number} if attempts else {}
        for decided, pods in (("created", made), ("deleted", [d.name for d in decision.deletions])):
            if pods:
                self._log(logging.INFO, key, f"{decided} {', '.join(pods)}", decision=decided, **attempt)
        if decision.delete_job:
            text = "the job is deleted: spec.runPolicy.ttlSecondsAfterFinished is over"
            self._log(logging.INFO, key, text, decision="deleted", reason="TimeToLiveOver", **attempt)

    async def _ask_progress(self, key: Key, seen: Snapshot, memory: _Memory) -> Progress | None:
        attempt = seen.job.status.attempts[-1] if seen.job.status.attempts else None
        if attempt is None or attempt.end_time is not None or attempt.running_time is None:
            memory.progress = memory.sampled = memory.sampled_joules = None
            return None
        if memory.progress_attempt != attempt.number:
            memory.progress, memory.progress_attempt = None, attempt.number
            memory.sampled = memory.sampled_joules = None
        stopping = attempt.reason is not None
        interval = min(
            self._settings.progress_interval, STOPPING_PROGRESS_SECONDS if stopping else float("inf")
        )
        now = asyncio.get_running_loop().time()
        # What a step costs is seen best where steps and joules are read at the same moment.
        heard = max((r.received for r in seen.reports), default=None)
        news = heard is not None and heard != memory.heard and _has_budget(seen.job)
        if now - memory.asked >= (min(interval, SAMPLE_SECONDS) if news else interval):
            memory.asked, memory.heard = now, heard
            said = await gather_progress(self._session, seen)
            if said is not None:
                memory.progress, memory.sampled, memory.sampled_joules = said, self._clock(), None
        self._queue.add_after(key, memory.asked + interval - now)
        return memory.progress

    async def _record(
        self, key: Key, seen: Snapshot, status: GreenTrainingJobStatus, memory: _Memory
    ) -> None:
        job = seen.job
        try:
            await apply_status(self._client, self._cache, job, status)
        except ApiError as error:
            if error.status == 422:
                await self._report_refused(key, job, error, memory)
            raise
        memory.refused = None
        memory.written = asyncio.get_running_loop().time()
        memory.sampled = memory.sampled_joules = None
        self._telemetry.status_writes.inc()
        self._stored(key, status)
        attempt = {"attempt": status.attempts[-1].number} if status.attempts else {}
        for told in told_by(job.status, status):
            self._log(told.level, key, told.message, **attempt, decision=told.decision, reason=told.reason)
        if status.attempts and status.attempts[-1].end_time is not None and not seen.pods:
            self._cache.forget_last_words(key)
        now = self._clock()
        memory.untold += [
            _Untold(job, event, now + timedelta(microseconds=i))
            for i, event in enumerate(transition_events(job.status, status))
        ]
        await self._tell(key, memory)

    async def _report_refused(self, key: Key, job: Job, error: ApiError, memory: _Memory) -> None:
        """Say by an event that the server refuses this job's status: a condition cannot, it would be refused too.

        A server holds a status to the CEL rules of the whole job. A job stored before a rule was added may break it.
        """
        now = asyncio.get_running_loop().time()
        if not is_event_due(memory.refused, job, now):
            return
        memory.refused = (job.uid, job.generation, now)
        event = build_refused_event(redact(error.message, memory.secrets))
        memory.untold.append(_Untold(job, event, self._clock()))
        await self._tell(key, memory)

    async def _tell(self, key: Key, memory: _Memory) -> None:
        """Store the events that wait for it; what fails waits for the next pass, and is dropped after some."""
        waiting, memory.untold = memory.untold, []
        for i, untold in enumerate(waiting):
            try:
                await apply_events(self._client, untold.job, (untold.event,), now=untold.moment)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if isinstance(error, ApiError) and error.reason == "AlreadyExists":
                    continue  # the answer to the first try was lost
                untold.tries += 1
                final = untold.tries >= EVENT_TRIES or (isinstance(error, ApiError) and not error.passing)
                memory.untold = waiting[i + final :]
                again = "" if final else "; again with the next pass"
                text = f"event {untold.event.reason} not stored: {error}{again}"
                self._log(logging.WARNING, key, text)
                if memory.untold:
                    self._queue.add_after(key, EVENT_RETRY_SECONDS)
                return

    async def _record_rest(self, key: Key, seen: Snapshot, decision: Decision, memory: _Memory) -> None:
        old, new = seen.job.status, decision.status
        if new == old:
            return
        if essence(new) == essence(old):
            measures_alone = differs_in_measures_alone(old, new)
            wait = self._settings.progress_interval if measures_alone else COALESCE_SECONDS
            since = asyncio.get_running_loop().time() - memory.written
            if since < wait:
                self._queue.add_after(key, wait - since)
                return
        await self._record(key, seen, new, memory)
        # The watch brings our own write back and says nothing new by it, but the next pass may conclude from it.
        self._queue.add(key)

    def _look_again(self, key: Key, decision: Decision, outcome: Outcome) -> None:
        if decision.look_again is not None:
            self._queue.add_after(key, (decision.look_again - self._clock()).total_seconds())
        if outcome.obstacles:
            passing = all(o.reason in PASSING_OBSTACLES for o in outcome.obstacles)
            self._queue.add_after(key, PASSING_RETRY_SECONDS if passing else REFUSED_RETRY_SECONDS)
        elif decision.pods or decision.deletions:
            self._queue.add(key)


def is_event_due(last: tuple[str, int, float] | None, job: Job, now: float) -> bool:
    """Whether a status that is refused is worth an event: the first of this generation, or the last one is forgotten.

    `last` is UID, generation and time of the last event; times are the event loop's, in seconds.
    """
    return last is None or last[:2] != (job.uid, job.generation) or now - last[2] >= REFUSED_STATUS_SECONDS


def build_refused_event(said: str) -> Event:
    """What to do about a status that the API server refuses, and its words, cut where they are long."""
    words = said if len(said) <= REFUSED_WORDS_MAX else said[: REFUSED_WORDS_MAX - 1] + "…"
    return Event(
        EventType.WARNING,
        Reason.STATUS_REFUSED,
        "the API server refuses to store the status of this job, so its state is not updated and no attempt is begun. A "
        "job is held to rules that its CustomResourceDefinition got after the job was created: correct the field with "
        "kubectl edit, or delete the job (not with --cascade=foreground, which waits for such a job without end). The "
        f"server says: {words}",
    )


def _has_budget(job: Job) -> bool:
    return spec_in_force(job.status).has_budget


def secrets_of(job: Job, pods: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The values of a job's spec, and of the pods that may still say something, that are kept out of messages."""
    return (find_secrets(job.spec) | find_pod_secrets(pods)) - {job.name, job.namespace}


def remember(before: tuple[frozenset[str], ...], found: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The different sets of secrets that were found last, `KEPT_SECRETS` of them: more would be kept for ever."""
    return (*(known for known in before if known != found), found)[-KEPT_SECRETS:]


def without_secrets(status: GreenTrainingJobStatus, secrets: frozenset[str]) -> GreenTrainingJobStatus:
    """The status with these values hidden in its messages: they quote the API server and the container's last lines."""
    if not secrets:
        return status
    conditions = tuple(
        c.model_copy(update={"message": redact(c.message, secrets)[:MESSAGE_MAX]}) for c in status.conditions
    )
    return status.model_copy(
        update={"conditions": conditions, "attempts": tuple(_without(a, secrets) for a in status.attempts)}
    )


def _without(attempt: AttemptStatus, secrets: frozenset[str]) -> AttemptStatus:
    replaced = tuple(
        r.model_copy(update={"message": redact(r.message, secrets)[:REPLACED_MESSAGE_MAX]})
        for r in attempt.replaced
    )
    message = attempt.message and redact(attempt.message, secrets)[:MESSAGE_MAX]
    return attempt.model_copy(update={"message": message, "replaced": replaced})


def _said(error: Exception) -> str:
    """An unexpected error in words; pydantic quotes what it was given, so only its places are told."""
    if isinstance(error, ValidationError):
        places = [".".join(map(str, e["loc"])) for e in error.errors(include_url=False, include_input=False)]
        return f"ValidationError at {', '.join(places)}"
    return repr(error)
