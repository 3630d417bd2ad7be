"""One operator process of a world: its caches, and the shipped steps of its passes, carried out on the world's API server.

What it knows it has from lists and a watch, which may be late. Whatever it decides, stores, asks and names in its lease follows
from shipped rules; this only keeps time, and is where a pass fails or the process is killed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import Any, assert_never

from greentrain.api.lease import RENEW_SECONDS
from greentrain.api.nodepower import PodEnergy
from greentrain.api.reasons import Reason
from greentrain.api.runtime import Progress
from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus
from greentrain.api.stored import dump_job_status, dump_status
from greentrain.controller.passes.records import may_change_decisions
from greentrain.controller.workqueue import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS
from greentrain.core.asks import PodTerms, Terms, decide_asks, find_nodes, find_terms
from greentrain.core.books.ledger import decide_settled
from greentrain.core.books.overshoot import REPORTS_WAIT_SECONDS
from greentrain.core.failing import build_stalled, must_report
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.nodes import is_abandoned
from greentrain.core.seen.snapshot import Obstacle, Snapshot
from greentrain.core.seen.taking import with_intensities
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
from greentrain.core.storing import Storing, is_outrun
from greentrain.kube.cache import Cache, Key, node_of
from greentrain.kube.client import ApiError
from greentrain.kube.gather import gather
from greentrain.kube.readings import NodePowers, find_key, is_of_job
from greentrain.quantities import Joules
from tests.support.world.server import JOB_UID, NAMESPACE, Event, Lease, Server, is_budgeted

PROGRESS_SECONDS = 60.0
"""How often the operator asks a program how far it is, and at most how often joules alone are written (its default)."""
STOPPING_SECONDS = 1.0
"""How often it asks while the program is stopping."""


class PassFailedError(Exception):
    """A pass fails at something it has no word for."""


@dataclass
class Terrain:
    """What surrounds an operator, and may be in its way."""

    carbon: CarbonSource | None = None
    ask: Callable[[], Progress | None] = lambda: None
    """The program's answer to `/progress`."""
    fails: Callable[[], bool] = lambda: False
    """Whether a pass fails now, between what it has gathered and what it would record."""
    effect: Callable[[], None] = lambda: None
    """Called before each request that changes something; raises `Killed` where the process is killed there."""
    chance: Random | None = None
    """Puts the effects of a pass in any order; None: as they were decided."""
    count: Callable[[str], None] = lambda _: None
    """Called with what happened to a pass."""
    decided: Callable[[Snapshot, Decision], None] = lambda *_: None
    """Called with what each pass saw and decided."""
    listed: Callable[[], None] = lambda: None
    """Called when it has lists of all there is."""
    looked: Callable[[str], None] = lambda _: None
    """Called with the name of each node of which it was looked at what is asked."""


class OperatorPasses:
    """What an operator does when it looks, and what it remembers from one pass to the next."""

    def __init__(
        self, server: Server, terrain: Terrain, *, clock: Callable[[], datetime], elapsed: Callable[[], float]
    ) -> None:
        """`clock` is that of its machine, `elapsed` the one that only goes on, in seconds."""
        self.server, self.terrain, self.clock, self.elapsed = server, terrain, clock, elapsed
        self.cache, self.powers, self.storing = Cache(), NodePowers(clock), Storing()
        self.key = Key(NAMESPACE, server.manifest["metadata"]["name"])
        self.failures = 0
        """How many passes in a row have failed, conflicts apart."""
        self.retries = 0
        """How many in a row did not end well, conflicts among them."""
        self.crashed = False
        """Whether the last pass failed without an answer of the API server."""
        self.held_until = -math.inf
        self.lag = 0.0
        """From news to a pass, in seconds."""
        self.due = math.inf
        self.passed = self.asked = -math.inf
        self.progress: Progress | None = None
        self.progress_attempt = 0
        self.sampled: datetime | None = None
        self.sampled_joules: Joules | None = None
        self.terms: Terms | None = None
        self.nodes: set[str] = set()
        """Nodes whose asks may be others now."""

    # -- what it is shown ---------------------------------------------------------------------------

    def list(self) -> None:
        """All there is, as after a start or an outage."""
        objects, version = self.server.objects, self.server.version
        for kind in ("Job", "Pod", "Service"):
            self.cache.resync(kind, objects[kind].values(), version)
        self.powers.resync(objects["NodePower"].values(), version)
        self.nodes |= set(self.powers.names())
        self.terrain.listed()
        self.wake()

    def take(self, event: Event) -> None:
        """A change as the watch brings it."""
        kind, body = event.kind, event.body
        if kind == "NodePower":
            changed = self.powers.drop(body) if event.gone else self.powers.put(body)
            self.nodes.add(body["metadata"]["name"])
            if changed:
                self.wake(wait=REPORTS_WAIT_SECONDS)
            return
        key = self.cache.drop(kind, body) if event.gone else self.cache.put(kind, body)
        if kind == "Pod" and node_of(body):
            self.nodes.add(node_of(body))
        if key is not None:
            self.wake()

    def wake(self, *, wait: float = 0.0) -> None:
        """Something is new; `wait`: how many seconds it waits after the last pass, to be taken up with others."""
        begin = max(self.elapsed(), self.passed + wait) + self.lag
        self.due = min(self.due, max(begin, self.held_until))

    def again(self, seconds: float) -> None:
        """Another pass so much later; the next one is a second away at least."""
        self.due = min(self.due, max(self.elapsed() + max(1.0, seconds), self.held_until))

    @property
    def status(self) -> GreenTrainingJobStatus:
        """The job's, as its cache has it."""
        job = self.cache.parsed_job(self.key)
        return job.status if job is not None else GreenTrainingJobStatus()

    # -- passes -------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Renew the lease, and name what it cannot look after."""
        self.server.lease = Lease(self.clock(), (JOB_UID,) if self.failures else ())

    def attend(self) -> bool:
        """One pass over the job, whatever comes of it; whether it went well."""
        self.due, self.passed = math.inf, self.elapsed()
        try:
            self.run_pass()
        except ApiError as error:
            self.terrain.count("conflict" if is_outrun(error) else f"refused: {error.reason}")
            if not is_outrun(error):
                self._note_failure(error)
        except PassFailedError as error:
            self.crashed = True
            self._note_failure(error)
        else:
            self.failures, self.retries, self.crashed = 0, 0, False
            return True
        delay = min(FIRST_DELAY_SECONDS * (1 << min(self.retries, 20)), LONGEST_DELAY_SECONDS)
        self.retries += 1
        self.held_until = self.elapsed() + delay
        self.again(delay)
        return False

    def _note_failure(self, error: Exception) -> None:
        self.failures += 1
        job = self.cache.parsed_job(self.key)
        if job is None or not must_report(self.failures):
            return
        known = [dump_status(c) for c in job.status.conditions]
        now, generation = self.clock(), job.generation
        text = f"the last {self.failures} passes over this job failed ({error})"
        changed = build_stalled(known, Reason.RECONCILE_FAILING, text, generation=generation, now=now)
        if changed is not None:
            self.terrain.count("stalled")
            try:
                self.cache.put("Job", self.server.patch_status(job.resource_version, changed))
            except ApiError:
                self.terrain.count("stalled, and not stored")

    def run_pass(self) -> None:
        """Gather, decide, and the steps that follow; raises what its shell would note."""
        seen = gather(self.cache, self.powers, self.key)
        if seen is None:
            return
        self.storing.take_up(seen.job)
        seen = self._with_progress(self.storing.complete(seen))
        if self.terrain.fails():
            raise PassFailedError("made up")
        this = _UnderWay(seen)
        decision = self._decide(seen)
        if self.sampled is not None and self.sampled_joules is None and decision.status.energy is not None:
            self.sampled_joules = Joules(decision.status.energy.used_joules)
        steps = walk(seen, decision, self.storing, failing=self.failures > 0)
        step = next(steps)
        while True:
            answer = self._carry_out(this, step)
            try:
                step = steps.send(answer)
            except StopIteration:
                break
        if this.failure is not None:
            raise this.failure

    def _decide(self, seen: Snapshot) -> Decision:
        seen = with_intensities(seen, self.terrain.carbon, now=self.clock())
        decision = decide(seen, now=self.clock())
        self.terrain.decided(seen, decision)
        return decision

    def _with_progress(self, seen: Snapshot) -> Snapshot:
        attempt = seen.job.status.attempts[-1] if seen.job.status.attempts else None
        if attempt is None or attempt.end_time is not None or attempt.running_time is None:
            self.progress = self.sampled = self.sampled_joules = None
            return seen
        if self.progress_attempt != attempt.number:
            self.progress, self.progress_attempt = None, attempt.number
            self.sampled = self.sampled_joules = None
        interval = STOPPING_SECONDS if attempt.reason is not None else PROGRESS_SECONDS
        if self.elapsed() - self.asked >= interval:
            self.asked = self.elapsed()
            said = self.terrain.ask()
            if said is not None:
                self.progress, self.sampled, self.sampled_joules = said, self.clock(), None
        self.again(self.asked + interval - self.elapsed())
        return replace(seen, progress=self.progress, sampled=self.sampled, sampled_joules=self.sampled_joules)

    def _carry_out(self, this: _UnderWay, step: Step) -> Answer:
        match step:
            case FindPods():
                bodies = self.server.pods.values()
                return Answer(found=sum(self.cache.put("Pod", b) is not None for b in bodies) > 0)
            case PassAgain():
                self.again(0)
            case StoreFirst(decision):
                try:
                    self._store(this.seen, decision.status)
                except ApiError as error:
                    this.failure = error
                return Answer(refusal=this.failure)
            case Apply(decision):
                return self._apply(decision)
            case DecideAgain(obstacles):
                after = gather(
                    self.cache, self.powers, self.key, progress=this.seen.progress, obstacles=obstacles
                )
                if after is None:
                    return Answer()
                after = self.storing.complete(after)
                this.seen = replace(after, sampled=self.sampled, sampled_joules=self.sampled_joules)
                return Answer(decision=self._decide(this.seen))
            case StoreRest(decision, _):
                self._store_rest(this.seen, decision)
                if decision.look_again is not None:
                    self.again((decision.look_again - self.clock()).total_seconds())
                if decision.pods or decision.deletions:
                    self.again(0)
            case _:
                assert_never(step)
        return Answer()

    def _store(self, seen: Snapshot, status: GreenTrainingJobStatus) -> None:
        answer: ApiError | None = None
        writes = self.storing.store(status, now=self.elapsed())
        while True:
            try:
                write = writes.send(answer)
            except StopIteration as end:
                found: GreenTrainingJobStatus | ApiError = end.value
                break
            answer = None
            self.terrain.effect()
            try:
                raw = dump_job_status(write.status)
                self.cache.put("Job", self.server.replace_status(seen.job.resource_version, raw))
                if not write.whole:
                    self.terrain.count("the least was stored")
            except ApiError as error:
                answer = error
        if isinstance(found, ApiError):
            if found.refuses_content:
                self.again(self.storing.next_store - self.elapsed())
            raise found
        self.sampled = self.sampled_joules = None
        self._look_at_nodes(found)

    def _store_rest(self, seen: Snapshot, decision: Decision) -> None:
        rest = self.storing.find_rest(
            seen.job.status, decision.status, now=self.elapsed(), measures_every=PROGRESS_SECONDS
        )
        for wait in (rest.whole_in, rest.wait):
            if wait:
                self.again(wait)
        if rest.wait is None or rest.wait:
            return
        again = may_change_decisions(self.storing, seen.job, rest.status)
        try:
            self._store(seen, rest.status)
        except ApiError as error:
            if error.refuses_content:
                self.storing.keep_unstored(seen.job, rest.status)
            raise
        if again:
            self.again(0)

    def _apply(self, decision: Decision) -> Answer:
        if decision.delete_job:
            self.terrain.effect()
            self.server.remove("Job", self.key.name)
            return Answer(changed=True)
        effects: list[Callable[[], Obstacle | None]] = [
            lambda d=d: self._delete(d.name, d.uid, d.grace_seconds)  # type: ignore[misc]
            for d in decision.deletions
        ]
        if decision.service is not None:
            effects.append(lambda: self._create("Service", decision.service or {}))
        effects += [lambda p=p: self._create("Pod", p) for p in decision.pods]  # type: ignore[misc]
        if self.terrain.chance is not None:
            self.terrain.chance.shuffle(effects)
        obstacles = [effect() for effect in effects]
        return Answer(changed=bool(effects), obstacles=tuple(o for o in obstacles if o is not None))

    def _create(self, kind: Any, manifest: dict[str, Any]) -> Obstacle | None:
        self.terrain.effect()
        try:
            self.cache.put(kind, self.server.create(kind, manifest))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                return Obstacle(kind, manifest["metadata"]["name"], error.reason, error.message)
            self.cache.put(kind, self.server.objects[kind][manifest["metadata"]["name"]])
        return None

    def _delete(self, name: str, uid: str, grace: int | None) -> None:
        self.terrain.effect()
        body = self.server.delete_pod(name, uid, grace=grace)
        if body is not None:
            self.cache.put("Pod", body)
        else:
            labels = {"greentrain.dev/job": self.key.name}
            meta = {"namespace": NAMESPACE, "name": name, "uid": uid, "labels": labels}
            self.cache.drop("Pod", {"metadata": meta})

    # -- nodes --------------------------------------------------------------------------------------

    def _look_at_nodes(self, status: GreenTrainingJobStatus) -> None:
        """A status was stored: the nodes of which it says something else than before."""
        before, self.terms = self.terms, Terms.of(JOB_UID, status)
        pods = {body["metadata"]["uid"]: node_of(body) for body in self.cache.pods_of(self.key)}
        self.nodes |= find_nodes(before, self.terms, pods)

    def attend_nodes(self) -> None:
        """A pass over each node that something is new of."""
        due, self.nodes = sorted(self.nodes), set()
        for name in due:
            self._pass_node(name)

    def _pass_node(self, name: str) -> None:
        known = self.powers.node_power(name)
        if known is None:
            return
        abandoned = is_abandoned(known.received, now=self.clock())
        settled = decide_settled(
            known.settled,
            known.status,
            energy_of=self._energy_of,
            is_ours=lambda _: True,
            abandoned=abandoned,
        )
        asks = decide_asks(known.caps, self._asked_of(name), is_ours=lambda _: True)
        if set(settled) != set(known.settled) or asks != known.caps:
            spec = {"settled": [*settled], "pods": [dump_status(ask) for ask in asks]}
            self.powers.put(self.server.ask_agent(name, spec))
        self.terrain.looked(name)

    def _asked_of(self, node: str) -> Iterator[PodTerms]:
        for _, body in self.cache.on_node(node):
            meta = body["metadata"]
            if (body.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                terms = PodTerms(NAMESPACE, meta["name"], meta["uid"], None)
                yield find_terms(terms, self.status, budgeted=is_budgeted(body))

    def _energy_of(self, entry: PodEnergy) -> EnergyStatus | None:
        key, job = find_key(entry), self.cache.parsed_job(self.key)
        if key != self.key or job is None or not is_of_job(entry, key, job.uid, job.created):
            raise LookupError
        return job.status.energy


@dataclass
class _UnderWay:
    seen: Snapshot
    failure: ApiError | None = None


@dataclass(frozen=True)
class Lags:
    """How long things take on their way, in seconds."""

    watch: float = 0.0
    """From a change to the operator's watch."""
    a_pass: float = 0.0
    """From news to a pass."""
    listing: Callable[[], float] = lambda: 1.0
    """From a start, or the end of an outage, to complete lists."""


class OperatorLife(OperatorPasses):
    """An operator in a world whose seconds go by, from one start to its end."""

    def __init__(
        self,
        server: Server,
        terrain: Terrain,
        lags: Lags,
        *,
        clock: Callable[[], datetime],
        elapsed: Callable[[], float],
    ) -> None:
        super().__init__(server, terrain, clock=clock, elapsed=elapsed)
        self.lags, self.lag = lags, lags.a_pass
        self.ready_at = self.next_beat = elapsed() + lags.listing()
        self.listed = False
        self.news: deque[tuple[float, Event]] = deque()

    def notice(self, event: Event) -> None:
        """A change is on its way to it."""
        if self.listed:
            self.news.append((self.elapsed() + self.lags.watch, event))

    def step(self) -> None:
        """What it does in a second."""
        now = self.elapsed()
        if not self.server.up:
            self.listed, self.ready_at = False, now + self.lags.listing()
            return
        if now < self.ready_at:
            return
        if now >= self.next_beat:
            self.renew()
            self.next_beat = now + RENEW_SECONDS
        if not self.listed:
            self.listed = True
            self.news.clear()
            self.list()
            self.due = max(now, self.held_until)
        while self.news and self.news[0][0] <= now:
            self.take(self.news.popleft()[1])
        if self.due <= now:
            self.attend()
        self.attend_nodes()
