"""Lives of a gang in a cluster of plain data: one job, its pods, a kubelet that does as it is asked, an operator that is killed.

The operator is that of `tests.support.world`: the shipped steps of its passes, on an API server of plain data, cut off between any
two of its effects as a SIGKILL would. Time is virtual, chance is seeded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from greentrain.api.conditions import Type, is_true
from greentrain.api.names import LABEL_ATTEMPT
from greentrain.api.status import KEPT_ATTEMPTS, KEPT_REPLACED, AttemptStatus, GreenTrainingJobStatus
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.pods import Pod, PodState, parse_pod
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.times import format_time, parse_time
from greentrain.kube.client import ApiError
from greentrain.kube.gather import gather
from tests.support.snapshots import START
from tests.support.world.nodes import lie
from tests.support.world.operator import OperatorPasses, Terrain
from tests.support.world.server import Body, Event, Server
from tests.support.world.story import Killed

NODES = ("node-1", "node-2")
LOST: tuple[Body, ...] = (
    {"type": "Ready", "status": "False"},
    {"type": "ContainersReady", "status": "True"},
)
"""A pod's conditions once the node controller has marked it."""
GIVEN_UP: Body = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


class World:
    """One job's whole world."""

    def __init__(self, manifest: Mapping[str, Any], seed: int) -> None:
        self.manifest = manifest
        self.random = random.Random(seed)
        self.now = START
        """By the clock of all machines."""
        self.seconds = 0.0
        """By the clock that only goes on."""
        self.story: list[str] = []
        self.in_order = False
        """Effects happen in the order they were decided, for stories a person reads."""
        self.cut_after: int | None = None
        """Effects the operator gets done before it is killed; None for a pass to its end."""
        self.fails = 0
        """How many of its next passes fail, after they have gathered."""
        self.refuses = 0
        """How many of the next writes of a status are refused."""
        self.refusal: tuple[ApiError, bool] | None = None
        """What they are refused with, and whether the least of them is refused too."""
        self.finished_names: set[str] = set()
        """Pods the operator has written down as ended with 0."""
        self.deleted = False
        """The job's object is gone, and the garbage collector follows."""
        self.silent: set[str] = set()
        """Nodes that do not answer: what runs there cannot be seen, start or end."""
        self._made: set[str] = set()
        self._leaving: set[str] = set()
        self.server = Server(lambda: self.now, dict(manifest), START)
        self.server.watch, self.server.stored = self._see, self._note_stored
        self.server.refuse = self._refuse
        self.terrain = Terrain(fails=self._fails, effect=self._cut, count=self._count)
        self.operator: OperatorPasses | None = None

    # -- the operator -------------------------------------------------------------------------------

    @property
    def status(self) -> GreenTrainingJobStatus:
        """The job's, as it is stored."""
        return self.server.status

    @property
    def pods(self) -> Mapping[str, Body]:
        """The pods by name."""
        return self.server.pods

    def begin(self) -> OperatorPasses:
        """A new process, with lists of all there is."""
        # It counts on from the time at its start: whether the clock of its machine is set it does not notice (docs/tasks/operations.md).
        begun = self.now - timedelta(seconds=self.seconds)
        operator = OperatorPasses(
            self.server,
            self.terrain,
            clock=lambda: begun + timedelta(seconds=self.seconds),
            elapsed=lambda: self.seconds,
        )
        operator.list()
        return operator

    def snapshot(self) -> Snapshot:
        """What a pass would see now."""
        operator = self.operator or self.begin()
        seen = gather(operator.cache, operator.powers, operator.key)
        assert seen is not None
        return operator.storing.complete(seen)

    @property
    def time(self) -> datetime:
        """The time as the operator has it."""
        return self.now if self.operator is None else self.operator.clock()

    def parsed(self) -> list[Pod]:
        """The pods as the operator reads them."""
        return [p for p in map(parse_pod, self.pods.values()) if p is not None]

    def operate(self) -> None:
        """One pass, by an operator that has seen everything."""
        if self.deleted:
            return
        self.terrain.chance = None if self.in_order else self.random
        if self.operator is None:
            self.operator = self.begin()
        try:
            self.operator.attend()
            self.operator.attend_nodes()
        except Killed:
            self.operator = None
            self.say("operator killed")
        assert not self.server.problems, "\n".join([*self.story, *self.server.problems])

    def _cut(self) -> None:
        if self.cut_after is not None:
            if self.cut_after == 0:
                raise Killed
            self.cut_after -= 1

    def _fails(self) -> bool:
        fails, self.fails = self.fails > 0, max(0, self.fails - 1)
        return fails

    def _refuse(self, status: Body) -> ApiError | None:
        if self.refusal is None or not self.refuses:
            return None
        error, least_too = self.refusal
        self.refuses -= 1
        return error if least_too or "display" in status else None

    def _count(self, what: str) -> None:
        self.say(what)

    # -- what is seen of it -------------------------------------------------------------------------

    def _see(self, event: Event) -> None:
        if self.operator is not None:
            self.operator.take(event)
        name, meta = event.body["metadata"]["name"], event.body["metadata"]
        if event.kind == "Pod" and meta["uid"] not in self._made:
            self._made.add(meta["uid"])
            self._check_made(name, meta["labels"][LABEL_ATTEMPT])
        elif event.kind == "Pod" and "deletionTimestamp" in meta and meta["uid"] not in self._leaving:
            self._leaving.add(meta["uid"])
            self.say(f"delete {name}")
        elif event.kind == "Job" and event.gone:
            self._check_job_deleted()

    def _note_stored(self, before: GreenTrainingJobStatus) -> None:
        status = self.status
        if status.phase != before.phase:
            self.say(f"{before.phase or 'new'} → {status.phase}")
        last = status.attempts[-1] if status.attempts else None
        self._check_blame(before, last)
        done = last.finished_ranks if last is not None else ()
        self.finished_names |= {
            p.name for p in self.parsed() if last and p.attempt == last.number and str(p.rank) in done
        }

    def _check_blame(self, stored: GreenTrainingJobStatus, last: AttemptStatus | None) -> None:
        """An attempt that ended with a pod on a node known to be lost is not held against the program."""
        before = next((a for a in stored.attempts if last and a.number == last.number), None)
        if last is None or last.end_time is None or (before is not None and before.end_time is not None):
            return
        lost = [p.name for p in self.parsed() if p.attempt == last.number and p.unreachable]
        if any("evaluator" not in name for name in lost) and last.reason not in UNCOUNTED:
            text = "\n".join(self.story)
            assert last.counted_against == "infrastructureRestartLimit", f"{last.reason}, {lost}\n{text}"

    def _check_made(self, name: str, attempt: str) -> None:
        older = [n for n, b in self.pods.items() if b["metadata"]["labels"][LABEL_ATTEMPT] != attempt]
        assert not older, f"attempt {attempt} begins while {older} are there\n" + "\n".join(self.story)
        assert name not in self.finished_names, f"{name} had finished\n" + "\n".join(self.story)
        self.say(f"create {name}")

    def _check_job_deleted(self) -> None:
        ttl = self.manifest["spec"].get("runPolicy", {}).get("ttlSecondsAfterFinished")
        ended = parse_time(self.status.completion_time)
        text = "\n".join(self.story)
        assert ttl is not None, f"deleted without a time to live\n{text}"
        assert ended is not None, f"deleted before it had finished\n{text}"
        assert self.time >= ended + timedelta(seconds=ttl), f"deleted before its time\n{text}"
        self.deleted = True
        for name in list(self.pods):
            self.server.remove("Pod", name)
        self.say("job deleted")

    # -- everything else ----------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """A line of the story."""
        self.story.append(f"{(self.now - START).total_seconds():6.0f} {line}")

    def pass_time(self, seconds: float) -> None:
        """So much later."""
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds

    def edit(self, manifest: Mapping[str, Any]) -> None:
        """The user writes another spec."""
        if self.deleted:
            return
        self.manifest = manifest
        self.server.edit(manifest["spec"])
        self.say("spec edited")

    def start(self, name: str) -> None:
        """The scheduler finds a node that answers, whose kubelet starts the pod's container."""
        answering = sorted(set(NODES) - self.silent)
        if not self.pods[name]["spec"].get("nodeName"):
            if not answering:
                return
            self.server.change_pod(name, node=self.random.choice(answering))
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
        unscheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/2 nodes",
        }
        self.server.change_pod(name, status={"phase": "Pending", "conditions": [unscheduled]})

    def lose_node(self, node: str) -> None:
        """A node stops answering. Whether its pods still run cannot be known."""
        self.silent.add(node)
        self.say(f"{node} stops answering")

    def mark_lost(self, node: str) -> None:
        """The node controller marks the pods of a node that has not reported for its grace period."""
        for name in self._running_on(node):
            self._set_conditions(name, LOST)
        self.say(f"{node} is marked")

    def give_up(self, node: str, *, says_why: bool) -> None:
        """The taint manager asks for the deletion of the pods of a node marked for long; since 1.26 it says why."""
        self.mark_lost(node)
        for name in self._running_on(node):
            self.server.delete_pod(name, self.pods[name]["metadata"]["uid"])
            if says_why:
                self._set_conditions(name, [*LOST, GIVEN_UP])

    def return_node(self, node: str, *, rebooted: bool) -> None:
        """A node answers again: what runs there is as it was, or it was started anew and nothing does."""
        self.silent.discard(node)
        self.say(f"{node} answers again" + (", rebooted" if rebooted else ""))
        for name in self._running_on(node):
            if rebooted:
                self.end(name, 255, "Unknown")
            else:
                self._set_conditions(name, ())

    def delete_node(self, node: str) -> None:
        """A user deletes a lost node: its pods are removed without a word of theirs."""
        self.silent.discard(node)
        self.say(f"{node} deleted")
        for name in [n for n, b in self.pods.items() if b["spec"].get("nodeName") == node]:
            self.remove(name)

    def _running_on(self, node: str) -> list[str]:
        return sorted(p.name for p in self.parsed() if p.node == node and p.state is PodState.RUNNING)

    def step_clock(self, seconds: float) -> None:
        """The clocks of all machines are set."""
        self.now += timedelta(seconds=seconds)
        self.say(f"clock set by {seconds:+.0f} s")

    def lie(self, node: str) -> None:
        """A node's token was stolen: what it reports is made up, of its own pods and of others."""
        self.server.report(node, lie(self.random, list(self.pods.values()), self.now))
        self.say(f"{node} lies")

    def mend(self) -> None:
        """No pass fails any more, no status is refused, and no node lies."""
        self.fails = self.refuses = 0
        for node in list(self.server.objects["NodePower"]):
            self.server.remove("NodePower", node)

    def evict(self, name: str) -> None:
        """The kubelet evicts a pod: there is no exit code."""
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
        self.server.change_pod(name, status=evicted)
        self.say(f"{name} evicted")

    def remove(self, name: str) -> None:
        """A pod's object goes away."""
        self.server.remove("Pod", name)
        self.say(f"{name} gone")

    def _state(self, name: str, phase: str, state: Body) -> None:
        ready = phase == "Running"
        container = {"name": "tensorflow", "ready": ready, "state": state}
        self.server.change_pod(name, status={"phase": phase, "containerStatuses": [container]})

    def _set_conditions(self, name: str, conditions: Sequence[Body]) -> None:
        self.server.change_pod(name, status={**self.pods[name]["status"], "conditions": [*conditions]})

    def living(self) -> list[Pod]:
        """Pods whose container runs or may still be started."""
        return [p for p in self.parsed() if not p.ended]

    @property
    def finished(self) -> bool:
        """Whether the job has reached its end."""
        return is_true(self.status.conditions, Type.SUCCEEDED) or is_true(self.status.conditions, Type.FAILED)


UNCOUNTED = frozenset(
    {
        *("Succeeded", "SuspendRequested", "SpecChanged", "DeadlineExceeded", "ScheduleTimeout"),
        *(
            "AllowanceSpent",
            "BudgetExhausted",
            "ReadingsStopped",
        ),  # a node that lies may say it of any pod of its own
    }
)
"""Ends of an attempt that are no failure."""


class Watchman:
    """Checks after every step what must never be broken, whatever happened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._attempts = 0
        self._failures = (0, 0)
        self._finished = False

    def check(self) -> None:
        world, status = self._world, self._world.status
        text = "\n".join(world.story)
        seats = [p.rank for p in world.living()]
        assert len(seats) == len(set(seats)), f"two pods of one rank alive\n{text}"
        assert len({p.attempt for p in world.living()}) <= 1, f"two attempts alive\n{text}"
        assert status.attempt_count >= self._attempts, f"attempts fell\n{text}"
        failures = (status.failure_count, status.infrastructure_failure_count)
        assert all(n >= o for n, o in zip(failures, self._failures, strict=True)), f"failures fell\n{text}"
        assert not self._finished or world.finished, f"a finished job is not finished any more\n{text}"
        for ended in (a for a in status.attempts if a.end_time):
            free = ended.reason in UNCOUNTED
            assert free is (ended.counted_against is None), f"{ended.reason} is counted wrongly\n{text}"
        counted = Counter(a.counted_against for a in status.attempts)
        counted.update(r.counted_against for a in status.attempts for r in a.replaced)
        if len(status.attempts) < KEPT_ATTEMPTS and all(
            len(a.replaced) < KEPT_REPLACED for a in status.attempts
        ):
            counts = (status.failure_count, status.infrastructure_failure_count)
            listed = (counted["backoffLimit"], counted["infrastructureRestartLimit"])
            assert counts == listed, f"counted a cause twice\n{text}"
        assert max((p.attempt for p in world.parsed()), default=0) <= max(status.attempt_count, 1), text
        if world.deleted:
            return
        seen = world.snapshot()
        first = decide(seen, now=world.time)
        if not (first.record_first or first.pods or first.deletions or first.delete_job):
            stored = replace(seen, job=replace(seen.job, status=first.status))
            second = decide(stored, now=world.time)
            assert second.status == first.status, (
                f"the second of two equal passes records something else\n{text}"
            )
            acts = (second.record_first, second.pods, second.deletions)
            assert acts == (False, (), ()), text
        self._attempts, self._failures = status.attempt_count, failures
        self._finished = world.finished
