"""Runs passes over jobs: gather, decide, and the steps that follow from it in their order (`core.steps`).

What a pass knows may be old, where a watch is slow or an answer was lost. Before any step that could double a pod or a count,
it reads the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

import aiohttp
from pydantic import ValidationError

from greentrain.api.conditions import Type, find_condition, is_true
from greentrain.api.lease import UNATTENDED_SECONDS
from greentrain.api.reasons import Reason
from greentrain.api.runtime import Progress
from greentrain.controller.passes.hiding import without_secrets
from greentrain.controller.passes.memory import Memories, Memory, mark_job
from greentrain.controller.passes.records import REFUSED_WORDS_MAX, Parts, Records
from greentrain.controller.settings import Settings
from greentrain.controller.snapshots import forget_snapshot, keep_snapshot
from greentrain.core.books.in_force import spec_in_force
from greentrain.core.failing import is_stalled, must_report
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision, stop_all
from greentrain.core.lifecycle.ends import run_policy_in_force
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.snapshot import PASSING_OBSTACLES, Job, Obstacle, Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import parse_time
from greentrain.core.steps import (
    Answer,
    Apply,
    DecideAgain,
    FindPods,
    PassAgain,
    Step,
    StoreFirst,
    StoreRest,
    walk,
)
from greentrain.core.storing import is_outrun
from greentrain.kube.apply import Outcome, apply_effects
from greentrain.kube.cache import Key
from greentrain.kube.client import ApiError
from greentrain.kube.gather import gather, gather_progress
from greentrain.kube.namespaces import REMEMBERED_SECONDS, Namespaces
from greentrain.kube.readings import NodePowers
from greentrain.kube.redaction import redact
from greentrain.quantities import Joules

REFUSED_RETRY_SECONDS = 30.0
"""How often a creation that the server refused is retried; the foreign object may be gone, the quota raised."""

PASSING_RETRY_SECONDS = 1.0

STOPPING_PROGRESS_SECONDS = 1.0
"""How often a stopping program's progress is requested. A kubelet may remove an ended container before it has reported its
termination message (read in a kubelet's source, not proven); then only this answer has the last checkpoint."""

SAMPLE_SECONDS = 2.0
"""How soon the progress of a job with a budget may be requested again because a node has reported."""

LONGEST_SAMPLE_SECONDS = 32.0
"""It doubles up to this with each request that had no answer, since many programs serve none. Below the default interval: so the
passes for reports ask, and none is begun for that alone."""

CONFLICTS_BEFORE_LOOKING = 2
"""A status write that conflicts with a newer job is retried when the watch has delivered it, within milliseconds. After so
many conflicts in a row the watch is not waited for: the answer to our own last write may have been lost."""

LONGEST_LOOK_SECONDS = 300.0
"""The longest time between two checks whether the namespace of a rejected job was opened."""


@dataclass(slots=True)
class _UnderWay:
    """A pass in progress."""

    seen: Snapshot
    source: CarbonSource | None
    """The same for all of its decisions."""
    memory: Memory
    failure: ApiError | None = None
    """Why its status was not stored before anything was done."""


class Passes:
    """Workers that take keys from the queue and run one pass over each."""

    def __init__(
        self,
        parts: Parts,
        node_powers: NodePowers,
        session: aiohttp.ClientSession,
        settings: Settings,
        *,
        carbon: Callable[[], CarbonSource | None] = lambda: None,
    ) -> None:
        self._client, self._cache, self._queue = parts.client, parts.cache, parts.queue
        self._telemetry, self._clock = parts.telemetry, parts.clock
        self._namespaces = Namespaces(parts.client)
        self._node_powers = node_powers
        self._session = session
        self._settings = settings
        self._carbon = carbon
        self._memories = Memories()
        self._log = self._memories.log
        self._records = Records(parts, self._memories, measures_every=settings.progress_interval)
        self._begun: dict[Key, float] = {}
        self._failing: dict[Key, int] = {}
        """How often in a row the pass over a job has failed, conflicts not counted."""
        self._on_hold: set[Key] = set()
        """Jobs whose stored status cannot be read."""
        self._finishing = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def longest(self) -> tuple[Key, float] | None:
        """The pass that has been in progress longest, and for how many seconds; None where there is none."""
        key = min(self._begun, key=self._begun.__getitem__, default=None)
        return None if key is None else (key, asyncio.get_running_loop().time() - self._begun[key])

    def unattended(self) -> list[str]:
        """UIDs of the jobs that cannot be reconciled: their last pass failed, or one is due and has not ended in time."""
        keys = {*self._failing, *self._on_hold, *self._queue.late(UNATTENDED_SECONDS)}
        jobs = (self._cache.parsed_job(key) for key in keys)
        return [job.uid for job in jobs if job is not None]

    async def finish(self, seconds: float) -> None:
        """Begin no more passes and wait for those in progress, at most for this time.

        Only the pass that has stored a status stores its events and writes its log lines: they would be lost with it.
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
        """Run one pass; returns its result and its error. A conflict and a deleted job are no failure."""
        try:
            await self._pass(key)
        except ApiError as error:
            self._telemetry.api_errors.labels(str(error.status)).inc()
            delay = self._queue.retry(key, not_before=error.retry_after)
            if is_outrun(error):
                return ("conflict" if error.status == 409 else "refused"), None
            self._log(logging.WARNING, key, f"{error}; again in {delay:.2f} s")
            return "refused", error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._telemetry.api_errors.labels("none").inc()
            delay = self._queue.retry(key)
            self._log(logging.WARNING, key, f"API server unreachable ({error!r}); again in {delay:.2f} s")
            return "unreachable", error
        except Exception as error:  # noqa: BLE001 - one job's fault must not stop the others; it is logged and retried
            delay = self._queue.retry(key)
            where = "".join(traceback.format_tb(error.__traceback__))
            text = f"the pass failed: {_describe(error)}; again in {delay:.2f} s; at\n{where}"
            self._log(logging.ERROR, key, text)
            return "error", error
        self._queue.succeeded(key)
        return "ok", None

    async def _note(self, key: Key, outcome: str, failure: Exception | None) -> None:
        """Count a job's failures in a row, and report them where users must know."""
        if failure is None:
            if outcome == "ok" and self._failing.pop(key, None) is not None:
                mark_job(self._telemetry.reconcile_failing, key, on=False)
            return
        count = self._failing[key] = self._failing.get(key, 0) + 1
        if not is_stalled(count):
            return
        mark_job(self._telemetry.reconcile_failing, key, on=True)
        if outcome != "unreachable" and must_report(count):
            cause = redact(_describe(failure), self._memories.secrets(key))[:REFUSED_WORDS_MAX]
            await self._records.report_stalled(
                key,
                Reason.RECONCILE_FAILING,
                f"the last {count} passes over this job failed ({cause}). The "
                "agents of its nodes enforce its budget until one succeeds. The operator's log says where it failed: "
                "correct what it names, or report it",
            )

    async def _put_on_hold(self, key: Key, seen: Snapshot) -> None:
        """Leave a job alone whose ledger cannot be read: nothing is created, nothing of its status is overwritten.

        Its pods keep their allowances, and their agents enforce them. A stop that the user requests is carried out.
        """
        job = seen.job
        self._on_hold.add(key)
        mark_job(self._telemetry.reconcile_failing, key, on=True)
        await self._records.report_stalled(
            key,
            Reason.LEDGER_UNREADABLE,
            f"{job.unreadable}: this version of the operator cannot read what the job has used and done so far, so it is on "
            "hold: no pod is created, and running pods keep their energy allowance. Install the version of greentrain that "
            "wrote it",
        )
        if run_policy_in_force(job).suspend:
            stop = Decision(job.status, stop_all(seen))
            await self._apply(key, job, stop)

    def _forget(self, key: Key) -> None:
        """The job was deleted."""
        self._memories.forget(key)
        self._failing.pop(key, None)
        self._on_hold.discard(key)
        for gauge in (self._telemetry.reconcile_failing, self._telemetry.status_refused):
            mark_job(gauge, key, on=False)
        self._queue.forget(key)
        self._telemetry.accounts.forget(*key)
        if self._settings.snapshots is not None:
            forget_snapshot(self._settings.snapshots, *key)

    async def _pass(self, key: Key) -> None:
        if self._queue.failures(key) >= CONFLICTS_BEFORE_LOOKING:
            await self._look(key)
        seen = gather(self._cache, self._node_powers, key)
        if seen is None:
            self._forget(key)
            return
        self._telemetry.accounts.note(*key, seen.job.uid, seen.job.status)
        memory = self._memories.of(key)
        memory.find_secrets(self._cache, key, seen.job)
        memory.storing.take_up(seen.job)
        if seen.job.unreadable and not seen.job.deleting:
            if not any(is_true(seen.job.status.conditions, t) for t in (Type.SUCCEEDED, Type.FAILED)):
                await self._put_on_hold(key, seen)
            return  # a finished one stays as it is stored
        if key in self._on_hold:
            self._on_hold.discard(key)
            mark_job(self._telemetry.reconcile_failing, key, on=False)
        seen = memory.storing.complete(seen)
        await self._records.store_events(key)
        progress = await self._ask_progress(key, seen, memory)
        privileged = await self._ask_namespace(key, seen)
        seen = replace(seen, progress=progress, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
        seen = replace(seen, privileged=privileged)
        source = self._carbon()
        decision = self._decide(key, seen, source, memory)
        if decision.delete_job and memory.events:
            decision = replace(decision, delete_job=False)  # its last events could not be stored yet
        if memory.sampled is not None and memory.sampled_joules is None:
            # Steps and joules of one moment belong together, even if a later pass stores them.
            energy = decision.status.energy
            memory.sampled_joules = Joules(energy.used_joules) if energy is not None else None
        this = _UnderWay(seen, source, memory)
        steps = walk(seen, decision, memory.storing, failing=self._failing.get(key, 0) > 0)
        step = next(steps)
        while True:
            answer = await self._carry_out(key, this, step)
            try:
                step = steps.send(answer)
            except StopIteration:
                break
        if this.failure is not None:
            raise this.failure

    async def _carry_out(self, key: Key, this: _UnderWay, step: Step) -> Answer:
        """One step of a pass; returns its result."""
        match step:
            case FindPods():
                return Answer(found=await self._look_for_pods(key))
            case PassAgain():
                self._queue.add(key)
            case StoreFirst(decision):
                try:
                    await self._records.store(key, this.seen, decision.status)
                except ApiError as error:
                    this.failure = error
                return Answer(refusal=this.failure)
            case Apply(decision):
                outcome = await self._apply(key, this.seen.job, decision)
                return Answer(changed=outcome.changed, obstacles=outcome.obstacles)
            case DecideAgain(obstacles):
                return Answer(decision=self._decide_again(key, this, obstacles))
            case StoreRest(decision, obstacles):
                await self._records.store_rest(key, this.seen, decision.status)
                self._look_again(key, decision, obstacles)
            case _:
                assert_never(step)
        return Answer()

    def _decide_again(self, key: Key, this: _UnderWay, obstacles: tuple[Obstacle, ...]) -> Decision | None:
        """Decide by the present state, the same grid and the same answer of the program."""
        seen, memory = this.seen, this.memory
        after = gather(self._cache, self._node_powers, key, progress=seen.progress, obstacles=obstacles)
        if after is None:
            return None
        after = memory.storing.complete(after)
        after = replace(after, sampled=memory.sampled, sampled_joules=memory.sampled_joules)
        this.seen = replace(after, privileged=seen.privileged)
        return self._decide(key, this.seen, this.source, memory)

    def _decide(self, key: Key, seen: Snapshot, source: CarbonSource | None, memory: Memory) -> Decision:
        """What to do; `source` is the same for all decisions of one pass."""
        now = self._clock()
        seen = with_intensities(seen, source, now=now)
        if self._settings.snapshots is not None:
            try:
                keep_snapshot(self._settings.snapshots, seen, now=now)
            except OSError as error:
                self._log(logging.WARNING, key, f"its snapshot could not be stored: {error}")
        decision = decide(seen, now=now)
        return replace(decision, status=without_secrets(decision.status, memory.secrets))

    async def _apply(self, key: Key, job: Job, decision: Decision) -> Outcome:
        """Create and delete what was decided, and log it."""
        outcome = await apply_effects(self._client, self._cache, job, decision)
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
        return outcome

    async def _ask_namespace(self, key: Key, seen: Snapshot) -> bool:
        """Whether its namespace allows what the job requests beyond Pod Security's baseline, where it does request it."""
        job = seen.job
        if job.deleting or job.status.completion_time is not None or not seen.beyond_baseline:
            return False
        found = await self._namespaces.is_privileged(job.namespace)
        if not found:
            # No watch delivers a new label. The longer a job has waited, the less often it is read.
            self._queue.add_after(key, decide_next_look(job, now=self._clock()))
        return found

    async def _look(self, key: Key) -> None:
        """Read the job from the API server where our copy of it led to conflicts again and again."""
        body = await self._client.find_job(*key)
        known = self._cache.job(key)
        if body is not None:
            self._cache.put("Job", body)
        elif known is not None:
            self._cache.drop("Job", known)

    async def _look_for_pods(self, key: Key) -> bool:
        """Whether a list shows pods of the job that the cache does not have.

        An attempt begins when every pod of the last one is gone. A pod whose creation was never answered may exist although no
        watch has delivered it; it must be found now, not at the next resync.
        """
        bodies = await self._client.list_pods_of(*key)
        return sum(self._cache.put("Pod", body) is not None for body in bodies) > 0

    async def _ask_progress(self, key: Key, seen: Snapshot, memory: Memory) -> Progress | None:
        attempt = seen.job.status.attempts[-1] if seen.job.status.attempts else None
        if attempt is None or attempt.end_time is not None or attempt.running_time is None:
            memory.progress = memory.sampled = memory.sampled_joules = None
            return None
        if memory.progress_attempt != attempt.number:
            memory.progress, memory.progress_attempt, memory.unanswered = None, attempt.number, 0
            memory.sampled = memory.sampled_joules = None
        stopping = attempt.reason is not None
        interval = min(
            self._settings.progress_interval, STOPPING_PROGRESS_SECONDS if stopping else float("inf")
        )
        now = asyncio.get_running_loop().time()
        # A step's cost is most exact where steps and joules are read at the same moment.
        last_report = max((r.received for r in seen.reports), default=None)
        news = (
            last_report is not None
            and last_report != memory.last_report
            and spec_in_force(seen.job.status).has_budget
        )
        if now - memory.asked >= find_progress_wait(interval, news=news, unanswered=memory.unanswered):
            memory.asked, memory.last_report = now, last_report
            said = await gather_progress(self._session, seen)
            memory.unanswered = memory.unanswered + 1 if said is None else 0
            if said is not None:
                memory.progress, memory.sampled, memory.sampled_joules = said, self._clock(), None
        self._queue.add_after(key, memory.asked + interval - now)
        return memory.progress

    def _look_again(self, key: Key, decision: Decision, obstacles: tuple[Obstacle, ...]) -> None:
        if decision.look_again is not None:
            self._queue.add_after(key, (decision.look_again - self._clock()).total_seconds())
        if obstacles:
            passing = all(o.reason in PASSING_OBSTACLES for o in obstacles)
            self._queue.add_after(key, PASSING_RETRY_SECONDS if passing else REFUSED_RETRY_SECONDS)
        elif decision.pods or decision.deletions:
            self._queue.add(key)


def find_progress_wait(interval: float, *, news: bool, unanswered: int) -> float:
    """Seconds between two requests for a program's progress.

    `news`: a node has reported, and steps and joules of one moment give the cost of a step. `unanswered`: requests in a row
    that the program did not answer.
    """
    sample = min(SAMPLE_SECONDS * (1 << min(unanswered, 16)), LONGEST_SAMPLE_SECONDS)
    return min(interval, sample) if news else interval


def decide_next_look(job: Job, *, now: datetime) -> float:
    """Seconds until the next check whether the namespace of a rejected job was opened: a third of its wait so far.

    From 5 s to 5 min: a tenant may have any number of such jobs, and each check is a pass.
    """
    refused = find_condition(job.status.conditions, Type.ADMITTED)
    since = parse_time(refused.last_transition_time) if refused is not None else None
    waited = 0.0 if since is None else (now - since).total_seconds()
    return min(max(REMEMBERED_SECONDS, waited / 3), LONGEST_LOOK_SECONDS)


def _describe(error: Exception) -> str:
    """An unexpected error as a message; pydantic quotes its input, so only the places are named."""
    if isinstance(error, ValidationError):
        places = [".".join(map(str, e["loc"])) for e in error.errors(include_url=False, include_input=False)]
        return f"ValidationError at {', '.join(places)}"
    return repr(error)
