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
from prometheus_client import Gauge
from pydantic import ValidationError

from greentrain.api.conditions import MESSAGE_MAX, Type, find_condition, is_true
from greentrain.api.lease import UNATTENDED_SECONDS
from greentrain.api.reasons import Reason, Severity
from greentrain.api.runtime import Progress
from greentrain.api.stored import dump_status
from greentrain.api.v1alpha1 import AttemptStatus, GreenTrainingJobStatus
from greentrain.controller.logs import find_log_lines
from greentrain.controller.settings import Settings
from greentrain.controller.snapshots import forget_snapshot, keep_snapshot
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.books.in_force import spec_in_force
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision, stop_all
from greentrain.core.lifecycle.ends import run_policy_in_force
from greentrain.core.pod_security import asks_for_privileges
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.snapshot import PASSING_OBSTACLES, Job, Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import format_time, parse_time
from greentrain.core.status.essence import find_write_delay, reduce_to_least
from greentrain.core.status.events import Event, transition_events
from greentrain.kube.apply import Outcome, apply_effects, apply_events, apply_status
from greentrain.kube.cache import Cache, Key
from greentrain.kube.client import ApiError, Client
from greentrain.kube.gather import gather, gather_progress
from greentrain.kube.namespaces import REMEMBERED_SECONDS, Namespaces
from greentrain.kube.readings import NodePowers
from greentrain.kube.redaction import find_pod_secrets, find_secrets, pod_group, redact
from greentrain.telemetry.metrics import Telemetry

logger = logging.getLogger("greentrain.controller")

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

FAILURES_BEFORE_STALLED = 2
FAILURES_BETWEEN_WORDS = 20
"""How many failures in a row after which the condition Stalled is looked at again, in case it could not be stored."""

LONGEST_LOOK_SECONDS = 300.0
"""How rarely at most it is looked whether the namespace of a refused job was opened."""

LEAST_SECONDS = 60.0
"""How long, in seconds, only the least of a status is stored after the whole was refused, before the whole is tried again."""

FIRST_STORE_DELAY_SECONDS = 1.0
LONGEST_STORE_DELAY_SECONDS = 30.0
"""How long, in seconds, a status that was refused altogether waits for the next try: doubling from the one to the other."""


@dataclass(slots=True)
class _Untold:
    """An event that is not stored yet; its time makes its name, so that a second try cannot double it."""

    job: Job
    event: Event
    moment: datetime
    tries: int = 0


@dataclass(frozen=True, slots=True)
class _Unstored:
    """A status that should be stored and is refused: passes go on by it, so that a stop is carried out as a whole."""

    uid: str
    """Of its job."""
    status: GreenTrainingJobStatus
    stored: GreenTrainingJobStatus
    """What is stored instead: events and log lines say how that changes, once it can."""


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
    stalled: tuple[str, int, float] | None = None
    """The same of the last event that said that the job is stalled."""
    least_until: float = float("-inf")
    """Until when only the least of the status is stored."""
    refusal: ApiError | None = None
    """Why nothing of it can be stored at present."""
    refused_of: tuple[str, int] | None = None
    """UID and generation of the job that this is about."""
    refusals: int = 0
    """How often in a row."""
    next_store: float = float("-inf")
    unstored: _Unstored | None = None
    asks: bool = False
    """Whether its spec asks for more than Pod Security's baseline."""
    asks_of: tuple[str, int] | None = None
    """UID and generation of the job of which that is known."""
    secrets: frozenset[str] = frozenset()
    secrets_of: tuple[str, int, frozenset[tuple[str, str]]] | None = None
    """Whose secrets were looked for last: UID and generation of the job, role and attempt of its pods."""
    earlier_secrets: tuple[frozenset[str], ...] = ()
    """Those of the last few looks, the latest last: somebody may speak of a pod that is gone a moment ago."""

    def take_up(self, job: Job) -> None:
        """Where the job was edited, perhaps because its status was refused, the whole is tried again at once."""
        if self.refused_of != (job.uid, job.generation):
            self.refused_of = (job.uid, job.generation)
            self.least_until = self.next_store = float("-inf")
            self.refusals = 0

    def keep_unstored(self, job: Job, status: GreenTrainingJobStatus) -> None:
        """Go on by a status that was refused; `job` is as the pass saw it."""
        before = self.unstored
        stored = before.stored if before is not None and before.uid == job.uid else job.status
        self.unstored = _Unstored(job.uid, status, stored)


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
        carbon: Callable[[], CarbonSource | None] = lambda: None,
    ) -> None:
        self._client = client
        self._namespaces = Namespaces(client)
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
        self._failing: dict[Key, int] = {}
        """How often in a row the pass over a job has failed, conflicts apart."""
        self._held: set[Key] = set()
        """Jobs whose stored status cannot be read."""
        self._finishing = False
        self._turn = asyncio.Lock()
        """Passes begin one in each round of the event loop, not as many as there are workers: probes are answered between."""
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def longest(self) -> tuple[Key, float] | None:
        """The pass that has been under way longest, and for how many seconds; None where none is."""
        key = min(self._begun, key=self._begun.__getitem__, default=None)
        return None if key is None else (key, asyncio.get_running_loop().time() - self._begun[key])

    def unattended(self) -> list[str]:
        """UIDs of the jobs that cannot be looked after: their last pass failed, or one is due and has not ended in time."""
        keys = {*self._failing, *self._held, *self._queue.late(UNATTENDED_SECONDS)}
        jobs = (self._cache.parsed_job(key) for key in keys)
        return [job.uid for job in jobs if job is not None]

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
            async with self._turn:
                await asyncio.sleep(0)
            self._telemetry.queue_depth.set(len(self._queue))
            if self._finishing:
                continue
            self._at_rest.clear()
            begun = self._begun[key] = loop.time()
            try:
                outcome, failure = await self._try(key)
                await self._note(key, outcome, failure)
            finally:
                self._begun.pop(key, None)
                if not self._begun:
                    self._at_rest.set()
                self._queue.done(key)
            self._telemetry.passes.labels(outcome).inc()
            self._telemetry.pass_seconds.observe(loop.time() - begun)

    async def _try(self, key: Key) -> tuple[str, Exception | None]:
        """Run one pass: what came of it, in a word, and what it failed with; a conflict and a job that is gone are no failure."""
        try:
            await self._pass(key)
        except ApiError as error:
            self._telemetry.api_errors.labels(str(error.status)).inc()
            delay = self._queue.retry(key, not_before=error.retry_after)
            if error.status in (404, 409):
                return ("conflict" if error.status == 409 else "refused"), None
            self._log(logging.WARNING, key, f"{error}; again in {delay:.2f} s")
            return "refused", error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._telemetry.api_errors.labels("none").inc()
            delay = self._queue.retry(key)
            self._log(logging.WARNING, key, f"API server unreachable ({error!r}); again in {delay:.2f} s")
            return "unreachable", error
        except Exception as error:  # noqa: BLE001 - one job's fault must not stop the others; it is told and tried again
            delay = self._queue.retry(key)
            where = "".join(traceback.format_tb(error.__traceback__))
            text = f"the pass failed: {_said(error)}; again in {delay:.2f} s; at\n{where}"
            self._log(logging.ERROR, key, text)
            return "error", error
        self._queue.succeeded(key)
        return "ok", None

    async def _note(self, key: Key, outcome: str, failure: Exception | None) -> None:
        """Count a job's failures in a row, and say so where it matters: once is chance, twice is trouble."""
        if failure is None:
            if outcome == "ok" and self._failing.pop(key, None) is not None:
                _mark(self._telemetry.reconcile_failing, key, on=False)
            return
        count = self._failing[key] = self._failing.get(key, 0) + 1
        if count < FAILURES_BEFORE_STALLED:
            return
        _mark(self._telemetry.reconcile_failing, key, on=True)
        if outcome != "unreachable" and (
            count == FAILURES_BEFORE_STALLED or count % FAILURES_BETWEEN_WORDS == 0
        ):
            secrets = self._memory[key].secrets if key in self._memory else frozenset()
            await self._report_stalled(
                key,
                Reason.RECONCILE_FAILING,
                f"the last {count} passes over this job failed ({redact(_said(failure), secrets)[:REFUSED_WORDS_MAX]}). The "
                "agents of its nodes enforce its budget until one succeeds. The operator's log says where it failed: "
                "correct what it names, or report it",
            )

    async def _report_stalled(self, key: Key, reason: Reason, message: str, **more: Any) -> None:
        """Store the condition Stalled and an event, and nothing else of the status; what fails is logged alone."""
        job, body = self._cache.parsed_job(key), self._cache.job(key)
        if job is None or body is None:
            return
        # Of a status that cannot be read the conditions stay as they are, whatever they say.
        known = (body.get("status") or {}).get("conditions") or () if job.unreadable else dump_conditions(job)
        conditions = [c for c in known if c.get("type") != Type.STALLED]
        before: dict[str, Any] = next((c for c in known if c.get("type") == Type.STALLED), {})
        if (before.get("status"), before.get("reason")) == ("True", str(reason)):
            return
        condition = {
            "type": Type.STALLED.value,
            "status": "True",
            "reason": reason.value,
            "message": message[:MESSAGE_MAX],
            "observedGeneration": job.generation,
            "lastTransitionTime": format_time(self._clock()),
        }
        changed = {**more, "conditions": [*conditions, condition]}
        memory = self._memory.setdefault(key, _Memory())
        now = asyncio.get_running_loop().time()
        if is_event_due(memory.stalled, job, now):
            memory.stalled = (job.uid, job.generation, now)
            memory.untold.append(_Untold(job, Event(Severity.WARNING, reason, message), self._clock()))
            self._log(logging.WARNING, key, message, reason=reason.value)
        try:
            self._cache.put(
                "Job", await self._client.patch_status(job.namespace, job.name, job.resource_version, changed)
            )
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log(logging.WARNING, key, f"the condition Stalled was not stored: {error}")
        await self._tell(key, memory)

    async def _hold(self, key: Key, seen: Snapshot) -> None:
        """Leave a job as it is whose ledger cannot be read: nothing is begun, nothing of its status is overwritten.

        Its pods keep the allowance they have, and their agents enforce it. What its user asks to be stopped is stopped.
        """
        job = seen.job
        self._held.add(key)
        _mark(self._telemetry.reconcile_failing, key, on=True)
        await self._report_stalled(
            key,
            Reason.LEDGER_UNREADABLE,
            f"{job.unreadable}: this version of the operator cannot read what the job has used and done so far, so it is held: "
            "no pod is made, and pods that run keep the allowance of energy they have. Install the version of greentrain that "
            "wrote it",
            phase="Unknown",
        )
        if run_policy_in_force(job).suspend:
            stop = Decision(job.status, stop_all(seen))
            self._log_effects(key, stop, await apply_effects(self._client, self._cache, job, stop))

    def _log(self, level: int, key: Key, text: str, **fields: Any) -> None:
        secrets = self._memory[key].secrets if key in self._memory else frozenset()
        logger.log(
            level, redact(text, secrets), extra={"namespace": key.namespace, "job": key.name, **fields}
        )

    async def _pass(self, key: Key) -> None:
        if self._queue.failures(key) >= CONFLICTS_BEFORE_LOOKING:
            await self._look(key)
        seen = gather(self._cache, self._node_powers, key)
        if seen is None:
            self._memory.pop(key, None)
            self._failing.pop(key, None)
            self._held.discard(key)
            for gauge in (self._telemetry.reconcile_failing, self._telemetry.status_refused):
                _mark(gauge, key, on=False)
            self._queue.forget(key)
            if self._settings.snapshots is not None:
                forget_snapshot(self._settings.snapshots, *key)
            return
        memory = self._memory.setdefault(key, _Memory())
        self._find_secrets(key, seen.job, memory)
        memory.take_up(seen.job)
        if seen.job.unreadable and not seen.job.deleting:
            if not any(is_true(seen.job.status.conditions, t) for t in (Type.SUCCEEDED, Type.FAILED)):
                await self._hold(key, seen)
            return  # one that has finished stays as it is stored
        if key in self._held:
            self._held.discard(key)
            _mark(self._telemetry.reconcile_failing, key, on=False)
        seen = _with_unstored(seen, memory)
        await self._tell(key, memory)
        progress = await self._ask_progress(key, seen, memory)
        privileged = await self._ask_namespace(key, seen.job, memory)
        seen = replace(seen, progress=progress, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
        seen = replace(seen, privileged=privileged)
        source = self._carbon()
        decision = self._decide(key, seen, source, memory)
        if memory.sampled is not None and memory.sampled_joules is None:
            # Steps and joules of one moment belong together, also where they are stored by a later pass.
            energy = decision.status.energy
            memory.sampled_joules = energy.used_joules if energy is not None else None
        if decision.record_first:
            if decision.pods and seen.job.status.attempt_count and await self._look_for_pods(key):
                self._queue.add(key)  # a pod of an earlier attempt that no watch has told of yet
                return
            try:
                await self._record(key, seen, decision.status, memory)
            except ApiError as error:
                again = not error.passing or self._failing.get(key, 0) > 0
                if error.refuses_content or (again and error.status not in (404, 409)):
                    await self._stop_all_the_same(key, seen, decision, memory)
                raise
            # Effects belong to the job as it is now stored; a conflict has ended this pass already.
        outcome = await apply_effects(self._client, self._cache, seen.job, decision)
        self._log_effects(key, decision, outcome)
        if decision.record_first or outcome.changed or outcome.obstacles:
            after = gather(
                self._cache,
                self._node_powers,
                key,
                progress=progress,
                obstacles=outcome.obstacles,
            )
            if after is None:
                return
            after = _with_unstored(after, memory)
            after = replace(after, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
            after = replace(after, privileged=privileged)
            seen, decision = after, self._decide(key, after, source, memory)
            if decision.record_first:
                self._queue.add(key)
                return
        await self._record_rest(key, seen, decision, memory)
        self._look_again(key, decision, outcome)

    def _decide(self, key: Key, seen: Snapshot, source: CarbonSource | None, memory: _Memory) -> Decision:
        """What to do; `source` is the same for all decisions of one pass."""
        now = self._clock()
        seen = with_intensities(seen, source, now=now)
        if self._settings.snapshots is not None:
            try:
                keep_snapshot(self._settings.snapshots, seen, now=now)
            except OSError as error:
                self._log(logging.WARNING, key, f"its snapshot was not kept: {error}")
        decision = decide(seen, now=now)
        return replace(decision, status=without_secrets(decision.status, memory.secrets))

    def _find_secrets(self, key: Key, job: Job, memory: _Memory) -> None:
        """Those of the spec, of the pods that may still say something, and of the last few edits."""
        pods = [*self._cache.owned("Pod", key, job.uid), *self._cache.last_words(key, job.uid)]
        mark = (job.uid, job.generation, frozenset(map(pod_group, pods)))
        if memory.secrets_of != mark:
            memory.secrets_of = mark
            memory.earlier_secrets = remember(memory.earlier_secrets, secrets_of(job, pods))
            memory.secrets = frozenset().union(*memory.earlier_secrets)

    async def _ask_namespace(self, key: Key, job: Job, memory: _Memory) -> bool:
        """Whether its namespace lets a job have what it asks for beyond Pod Security's baseline, where it does ask."""
        over = job.deleting or job.status.completion_time is not None
        if memory.asks_of != (job.uid, job.generation):
            memory.asks_of, memory.asks = (job.uid, job.generation), asks_for_privileges(job.spec)
        if over or not memory.asks:
            return False
        found = await self._namespaces.is_privileged(job.namespace)
        if not found:
            # No watch brings a label that is set. The longer a job has waited the more rarely it is looked at.
            self._queue.add_after(key, decide_next_look(job, now=self._clock()))
        return found

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
        """Store a status: the whole, or the least of it where the server refuses that.

        Raises:
            ApiError: it was not stored. `refuses_content` says that the server will have none of it; the next try waits then.
        """
        job, unstored = seen.job, memory.unstored
        before = unstored.stored if unstored is not None and unstored.uid == job.uid else job.status
        status = await self._store(key, job, status, memory)
        memory.written = asyncio.get_running_loop().time()
        memory.sampled = memory.sampled_joules = None
        self._telemetry.status_writes.inc()
        self._stored(key, status)
        attempt = {"attempt": status.attempts[-1].number} if status.attempts else {}
        for line in find_log_lines(before, status):
            self._log(line.level, key, line.message, **attempt, decision=line.decision, reason=line.reason)
        latest = [s.attempts[-1] for s in (seen.job.status, status) if s.attempts]
        if not seen.pods and any(a.end_time is not None for a in latest):
            # That attempt is written down, and the next one has no pod yet.
            self._cache.forget_last_words(key)
        now = self._clock()
        memory.untold += [
            _Untold(job, event, now + timedelta(microseconds=i))
            for i, event in enumerate(transition_events(before, status))
        ]
        await self._tell(key, memory)

    async def _store(
        self, key: Key, job: Job, status: GreenTrainingJobStatus, memory: _Memory
    ) -> GreenTrainingJobStatus:
        """What of it was stored."""
        now = asyncio.get_running_loop().time()
        if memory.refusal is not None and now < memory.next_store:
            self._queue.add_after(key, memory.next_store - now)
            raise memory.refusal.with_traceback(None)  # else it would grow each time
        if now >= memory.least_until:
            try:
                await apply_status(self._client, self._cache, job, status)
            except ApiError as error:
                if not error.refuses_content:
                    raise
                memory.least_until = now + LEAST_SECONDS
                self._log(logging.WARNING, key, f"the status was refused: {error}; the least of it is tried")
                await self._report_refused(key, job, error, memory)
            else:
                memory.refused = memory.refusal = memory.unstored = None
                memory.refusals = 0
                _mark(self._telemetry.status_refused, key, on=False)
                return status
        status = reduce_to_least(status)
        try:
            await apply_status(self._client, self._cache, job, status)
        except ApiError as error:
            if error.refuses_content:
                delay = FIRST_STORE_DELAY_SECONDS * (1 << min(memory.refusals, 10))
                memory.next_store = now + min(delay, LONGEST_STORE_DELAY_SECONDS)
                memory.refusal, memory.refusals = error, memory.refusals + 1
                self._queue.add_after(key, memory.next_store - now)
                _mark(self._telemetry.status_refused, key, on=True)
            raise
        memory.refusal = memory.unstored = None
        memory.refusals = 0
        _mark(self._telemetry.status_refused, key, on=True)
        return status

    async def _stop_all_the_same(self, key: Key, seen: Snapshot, decision: Decision, memory: _Memory) -> None:
        """Carry out a stop that could not be recorded: what a job uses must not hang on what can be stored of it.

        Where the server is only in trouble for a moment the record is tried a second time first (`_pass`).
        A start is not carried out: its pods would be made again and again. What was decided is kept in memory, so that the
        passes to come, and the record once it can be stored, know why the pods are gone.
        """
        if decision.pods or decision.delete_job:
            return
        memory.keep_unstored(seen.job, decision.status)
        outcome = await apply_effects(self._client, self._cache, seen.job, decision)
        self._log_effects(key, decision, outcome)

    async def _report_refused(self, key: Key, job: Job, error: ApiError, memory: _Memory) -> None:
        """Say by an event that the server refuses this job's status: a condition may be refused too.

        A server holds a status to the CEL rules of the whole job. A job stored before a rule was added may break it; one
        padded to the limit of what is stored leaves no room for a status.
        """
        now = asyncio.get_running_loop().time()
        if not is_event_due(memory.refused, job, now):
            return
        memory.refused = (job.uid, job.generation, now)
        event = build_refused_event(redact(error.message, memory.secrets), too_large=error.status != 422)
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
        now = asyncio.get_running_loop().time()
        if now < memory.least_until and memory.unstored is None:
            new = reduce_to_least(new)
            self._queue.add_after(key, memory.least_until - now)
        if memory.unstored is None:
            since = asyncio.get_running_loop().time() - memory.written
            every = self._settings.progress_interval
            wait = find_write_delay(old, new, since=since, measures_every=every)
            if wait is None:
                return
            if wait:
                self._queue.add_after(key, wait)
                return
        try:
            await self._record(key, seen, new, memory)
        except ApiError as error:
            if error.refuses_content:
                memory.keep_unstored(seen.job, new)
            raise
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


def decide_next_look(job: Job, *, now: datetime) -> float:
    """In how many seconds to look again whether the namespace of a refused job was opened: a third of its wait so far.

    From 5 s to 5 min: a tenant may have any number of such jobs, and each look is a pass.
    """
    refused = find_condition(job.status.conditions, Type.ADMITTED)
    since = parse_time(refused.last_transition_time) if refused is not None else None
    waited = 0.0 if since is None else (now - since).total_seconds()
    return min(max(REMEMBERED_SECONDS, waited / 3), LONGEST_LOOK_SECONDS)


def is_event_due(last: tuple[str, int, float] | None, job: Job, now: float) -> bool:
    """Whether a status that is refused is worth an event: the first of this generation, or the last one is forgotten.

    `last` is UID, generation and time of the last event; times are the event loop's, in seconds.
    """
    return last is None or last[:2] != (job.uid, job.generation) or now - last[2] >= REFUSED_STATUS_SECONDS


def build_refused_event(said: str, *, too_large: bool = False) -> Event:
    """What to do about a status that the API server refuses, and its words, cut where they are long."""
    words = said if len(said) <= REFUSED_WORDS_MAX else said[: REFUSED_WORDS_MAX - 1] + "…"
    remedy = (
        "There is no room for it: remove annotations, or make the pod templates smaller"
        if too_large
        else "A job is held to rules that its CustomResourceDefinition got after the job was created: correct the field with "
        "kubectl edit, or delete the job (not with --cascade=foreground, which waits for such a job without end)"
    )
    return Event(
        Severity.WARNING,
        Reason.STATUS_REFUSED,
        "the API server refuses to store the status of this job, so its state may not be updated and no attempt is begun; a "
        f"stop is carried out all the same. {remedy}. The server says: {words}",
    )


def _mark(gauge: Gauge, key: Key, *, on: bool) -> None:
    """Set a job's gauge to 1, or remove it."""
    if on:
        gauge.labels(key.namespace, key.name).set(1)
    else:
        with contextlib.suppress(KeyError):
            gauge.remove(key.namespace, key.name)


def _with_unstored(seen: Snapshot, memory: _Memory) -> Snapshot:
    """The snapshot with the status that could not be stored, where there is one of this very job."""
    if memory.unstored is None or memory.unstored.uid != seen.job.uid:
        return seen
    return replace(seen, job=replace(seen.job, status=memory.unstored.status))


def _has_budget(job: Job) -> bool:
    return spec_in_force(job.status).has_budget


def dump_conditions(job: Job) -> list[dict[str, Any]]:
    """A job's conditions as the API server stores them."""
    return [dump_status(condition) for condition in job.status.conditions]


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
