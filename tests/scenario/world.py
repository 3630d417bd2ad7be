"""A model of a cluster as plain data: jobs, pods, a kubelet, a clock; stepped beside the pure core.

No API is imitated. Objects are the manifests the core built plus the statuses a kubelet would write, read
back by the same parsers the operator uses. Time is virtual, chance is seeded, and the operator can be cut
off between any two of its effects, as a SIGKILL would.
"""

from __future__ import annotations

import random
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from greentrain.api.conditions import Type, is_true
from greentrain.api.names import LABEL_ATTEMPT
from greentrain.api.status import KEPT_ATTEMPTS, KEPT_REPLACED, AttemptStatus, GreenTrainingJobStatus
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.pods import Pod, PodState, parse_pod
from greentrain.core.seen.snapshot import Job, Snapshot
from greentrain.core.seen.times import format_time, parse_time
from tests.support.snapshots import START
from tests.support.world.statuses import reread
from tests.support.world.story import Killed

Body = dict[str, Any]


NODES = ("node-1", "node-2")
LOST: tuple[Body, ...] = (
    {"type": "Ready", "status": "False"},
    {"type": "ContainersReady", "status": "True"},
)
"""A pod's conditions once the node controller has marked it."""
GIVEN_UP: Body = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


@dataclass
class World:
    """One job's whole world."""

    manifest: Body
    seed: int
    now: datetime = START
    generation: int = 1
    status: GreenTrainingJobStatus = field(default_factory=GreenTrainingJobStatus)
    pods: dict[str, Body] = field(default_factory=dict)
    has_service: bool = False
    story: list[str] = field(default_factory=list)
    in_order: bool = False
    """Effects happen in the order they were decided, for stories a person reads."""
    cut_after: int | None = None
    """Effects the operator gets done before it is killed; None for a pass to its end."""
    finished_names: set[str] = field(default_factory=set)
    """Pods the operator has written down as ended with 0."""
    deleted: bool = False
    """The job's object is gone, and the garbage collector follows."""
    silent: set[str] = field(default_factory=set)
    """Nodes that do not answer: what runs there is nobody's to see, start or end."""
    _uids: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    # -- the operator -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        job = Job(
            namespace="team",
            name=self.manifest["metadata"]["name"],
            uid="uid-1",
            generation=self.generation,
            resource_version="1",
            spec=self.manifest["spec"],
            status=self.status,
            created=START,
        )
        return Snapshot(job=job, pods=tuple(self.parsed()), has_service=self.has_service)

    def parsed(self) -> list[Pod]:
        return [p for p in map(parse_pod, self.pods.values()) if p is not None]

    def operate(self) -> None:
        """One pass, in the shell's order: record what must be first, effects, then the rest."""
        if self.deleted:
            return
        decision = decide(self.snapshot(), now=self.now)
        try:
            if decision.record_first:
                self._effect(lambda: self._store(decision.status))
            if decision.delete_job:
                self._effect(self._delete_job)
                return
            for effect in self._effects(decision):
                self._effect(effect)
            after = decide(self.snapshot(), now=self.now)
            if not after.record_first:
                self._effect(lambda: self._store(after.status))
        except Killed:
            self.say("operator killed")

    def _effects(self, decision: Decision) -> list[Any]:
        effects: list[Any] = [lambda d=d: self._delete(d.name, d.uid) for d in decision.deletions]
        if decision.service is not None:
            effects.append(self._create_service)
        effects += [lambda p=p: self._create(p) for p in decision.pods]
        # Requests of one pass run side by side: any order may be the one a kill cuts short.
        if not self.in_order:
            self.random.shuffle(effects)
        return effects

    def _effect(self, do: Any) -> None:
        if self.cut_after is not None:
            if self.cut_after == 0:
                raise Killed
            self.cut_after -= 1
        do()

    def _store(self, status: GreenTrainingJobStatus) -> None:
        if status.phase != self.status.phase:
            self.say(f"{self.status.phase or 'new'} → {status.phase}")
        self.status = reread(status)
        last = status.attempts[-1] if status.attempts else None
        self._check_blame(last)
        done = last.finished_ranks if last is not None else ()
        self.finished_names |= {
            p.name for p in self.parsed() if last and p.attempt == last.number and str(p.rank) in done
        }

    def _check_blame(self, last: AttemptStatus | None) -> None:
        """An attempt that ended with a pod on a node known to be lost is not held against the program."""
        before = next((a for a in self.status.attempts if last and a.number == last.number), None)
        if last is None or last.end_time is None or (before is not None and before.end_time is not None):
            return
        lost = [p.name for p in self.parsed() if p.attempt == last.number and p.unreachable]
        if any("evaluator" not in name for name in lost) and last.reason not in UNCOUNTED:
            told = "\n".join(self.story)
            assert last.counted_against == "infrastructureRestartLimit", f"{last.reason}, {lost}\n{told}"

    def _create_service(self) -> None:
        self.has_service = True

    def _create(self, manifest: Body) -> None:
        name = manifest["metadata"]["name"]
        if name in self.pods:  # 409, and ours
            return
        attempt = manifest["metadata"]["labels"][LABEL_ATTEMPT]
        older = [n for n, b in self.pods.items() if b["metadata"]["labels"][LABEL_ATTEMPT] != attempt]
        assert not older, f"attempt {attempt} begins while {older} are there\n" + "\n".join(self.story)
        assert name not in self.finished_names, f"{name} had finished\n" + "\n".join(self.story)
        self._uids += 1
        body = deepcopy(manifest)
        body["metadata"]["uid"] = f"pod-{self._uids}"
        body["metadata"]["creationTimestamp"] = format_time(self.now)
        body["status"] = {"phase": "Pending"}
        self.pods[name] = body
        self.say(f"create {name}")

    def _delete(self, name: str, uid: str) -> None:
        body = self.pods.get(name)
        if body is not None and body["metadata"]["uid"] == uid:
            body["metadata"]["deletionTimestamp"] = format_time(self.now)
            self.say(f"delete {name}")

    def _delete_job(self) -> None:
        ttl = self.manifest["spec"].get("runPolicy", {}).get("ttlSecondsAfterFinished")
        ended = parse_time(self.status.completion_time)
        told = "\n".join(self.story)
        assert ttl is not None, f"deleted without a time to live\n{told}"
        assert ended is not None, f"deleted before it had finished\n{told}"
        assert self.now >= ended + timedelta(seconds=ttl), f"deleted before its time\n{told}"
        self.deleted = True
        self.pods.clear()
        self.say("job deleted")

    # -- everybody else -----------------------------------------------------------------------------

    def say(self, line: str) -> None:
        self.story.append(f"{(self.now - START).total_seconds():6.0f} {line}")

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def edit(self, manifest: Body) -> None:
        if self.deleted:
            return
        self.manifest = manifest
        self.generation += 1
        self.say("spec edited")

    def start(self, name: str) -> None:
        """The scheduler finds a node that answers, whose kubelet starts the pod's container."""
        answering = sorted(set(NODES) - self.silent)
        if not self.pods[name]["spec"].get("nodeName"):
            if not answering:
                return
            self.pods[name]["spec"]["nodeName"] = self.random.choice(answering)
        self._state(name, "Running", {"running": {"startedAt": format_time(self.now)}})

    def end(self, name: str, code: int, reason: str = "Error") -> None:
        """A container ends."""
        self._state(
            name,
            "Succeeded" if code == 0 else "Failed",
            {"terminated": {"exitCode": code, "reason": reason, "finishedAt": format_time(self.now)}},
        )
        self.say(f"{name} exits {code}" + (f" ({reason})" if reason != "Error" else ""))

    def refuse(self, name: str) -> None:
        """No node takes a pod."""
        self.pods[name]["status"] = {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/2 nodes",
                }
            ],
        }

    def lose_node(self, node: str) -> None:
        """A node stops answering. Whether its pods still run nobody can say."""
        self.silent.add(node)
        self.say(f"{node} stops answering")

    def mark_lost(self, node: str) -> None:
        """The node controller marks the pods of a node that has not reported for its grace period."""
        for name in self._running_on(node):
            self.pods[name]["status"]["conditions"] = LOST
        self.say(f"{node} is marked")

    def give_up(self, node: str, *, says_why: bool) -> None:
        """The taint manager asks for the deletion of the pods of a node marked for long; since 1.26 it says why."""
        self.mark_lost(node)
        for name in self._running_on(node):
            self._delete(name, self.pods[name]["metadata"]["uid"])
            if says_why:
                self.pods[name]["status"]["conditions"] = [*LOST, GIVEN_UP]

    def return_node(self, node: str, *, rebooted: bool) -> None:
        """A node answers again: what runs there is as it was, or it was started anew and nothing does."""
        self.silent.discard(node)
        self.say(f"{node} answers again" + (", rebooted" if rebooted else ""))
        for name in self._running_on(node):
            if rebooted:
                self.end(name, 255, "Unknown")
            else:
                self.pods[name]["status"].pop("conditions", None)

    def delete_node(self, node: str) -> None:
        """Somebody deletes a lost node: its pods are removed without anybody's word."""
        self.silent.discard(node)
        self.say(f"{node} deleted")
        for name in [n for n, b in self.pods.items() if b["spec"].get("nodeName") == node]:
            self.remove(name)

    def _running_on(self, node: str) -> list[str]:
        return sorted(p.name for p in self.parsed() if p.node == node and p.state is PodState.RUNNING)

    def step_clock(self, seconds: float) -> None:
        """The clock of the operator's machine is set."""
        self.now += timedelta(seconds=seconds)
        self.say(f"clock set by {seconds:+.0f} s")

    def evict(self, name: str) -> None:
        """The kubelet evicts a pod: there is no exit code."""
        self.pods[name]["status"] = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
        self.say(f"{name} evicted")

    def remove(self, name: str) -> None:
        """A pod's object goes away."""
        self.pods.pop(name, None)
        self.say(f"{name} gone")

    def _state(self, name: str, phase: str, state: Body) -> None:
        ready = phase == "Running"
        self.pods[name]["status"] = {
            "phase": phase,
            "containerStatuses": [{"name": "tensorflow", "ready": ready, "state": state}],
        }

    def living(self) -> list[Pod]:
        """Pods whose container runs or may still be started."""
        return [p for p in self.parsed() if not p.ended]

    @property
    def finished(self) -> bool:
        """Whether the job has reached its end."""
        return is_true(self.status.conditions, Type.SUCCEEDED) or is_true(self.status.conditions, Type.FAILED)


UNCOUNTED = frozenset({"Succeeded", "SuspendRequested", "SpecChanged", "DeadlineExceeded", "ScheduleTimeout"})
"""Ends of an attempt that are nobody's failure."""


class Watchman:
    """Checks after every step what must never be broken, whatever happened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._attempts = 0
        self._failures = (0, 0)
        self._finished = False

    def check(self) -> None:
        world, status = self._world, self._world.status
        told = "\n".join(world.story)
        seats = [p.rank for p in world.living()]
        assert len(seats) == len(set(seats)), f"two pods of one rank alive\n{told}"
        assert len({p.attempt for p in world.living()}) <= 1, f"two attempts alive\n{told}"
        assert status.attempt_count >= self._attempts, f"attempts fell\n{told}"
        failures = (status.failure_count, status.infrastructure_failure_count)
        assert all(n >= o for n, o in zip(failures, self._failures, strict=True)), f"failures fell\n{told}"
        assert not self._finished or world.finished, f"a finished job is not finished any more\n{told}"
        for ended in (a for a in status.attempts if a.end_time):
            free = ended.reason in UNCOUNTED
            assert free is (ended.counted_against is None), f"{ended.reason} is counted wrongly\n{told}"
        counted = Counter(a.counted_against for a in status.attempts)
        counted.update(r.counted_against for a in status.attempts for r in a.replaced)
        if len(status.attempts) < KEPT_ATTEMPTS and all(
            len(a.replaced) < KEPT_REPLACED for a in status.attempts
        ):
            counts = (status.failure_count, status.infrastructure_failure_count)
            listed = (counted["backoffLimit"], counted["infrastructureRestartLimit"])
            assert counts == listed, f"counted a cause twice\n{told}"
        assert max((p.attempt for p in world.parsed()), default=0) <= max(status.attempt_count, 1), told
        seen = world.snapshot()
        first = decide(seen, now=world.now)
        if world.deleted:
            return
        if not (first.record_first or first.pods or first.deletions or first.delete_job):
            stored = replace(seen, job=replace(seen.job, status=first.status))
            second = decide(stored, now=world.now)
            assert second.status == first.status, (
                f"the second of two equal passes records something else\n{told}"
            )
            acts = (second.record_first, second.pods, second.deletions)
            assert acts == (False, (), ()), told
        self._attempts, self._failures = status.attempt_count, failures
        self._finished = world.finished
