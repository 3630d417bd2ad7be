"""One job's whole cluster as plain data: one clock, one API server, kubelets, nodes with agents, an operator, a program.

Everything goes by seconds of virtual time, and chance is seeded. What may happen to a cluster is a table (`FAULTS`): which part,
and for how long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Literal, assert_never

from greentrain.api import names
from greentrain.api.resources import SHIPPED
from greentrain.core.seen.gpus import count_gpus
from greentrain.core.seen.times import format_time
from greentrain.kube.client import ApiError
from greentrain.node.allocations import Allocations
from tests.support.snapshots import START
from tests.support.world.nodes import AgentLife, Make, Node, SimPod, find_allocations, lie
from tests.support.world.operator import Lags, OperatorLife, Terrain
from tests.support.world.server import JOB_UID, Body, Event, Server
from tests.support.world.story import Story

Part = Literal[
    "agent",
    "agents",
    "link",
    "operator",
    "server",
    "source",
    "program",
    "reconcile",
    "status",
    "liar",
    "disk",
    "backup",
    "journal",
]
"""What of a cluster is away or wrong: one node's agent, those of all nodes that run pods, one agent's way to the API server, the
operator, the API server, the source of intensities, the program; passes of the operator; what the API server takes of a status;
what a stolen token reports; a node's disk; the last thing a node's journal has of its account, or the whole journal."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a cluster."""

    parts: tuple[Part, ...]
    least: int
    """For how many seconds at least, by chance."""
    most: int


LONG = (40, 220)
FAULTS: dict[str, Fault] = {
    "agent killed": Fault(("agent",), 1, 20),
    "agent away": Fault(("agent",), *LONG),
    "agents killed": Fault(("agents",), 1, 20),
    "agents away": Fault(("agents",), *LONG),
    "agent mute": Fault(("link",), *LONG),
    "operator killed": Fault(("operator",), 1, 20),
    "operator away": Fault(("operator",), *LONG),
    "operator away long": Fault(("operator",), 2000, 2001),
    "agents and operator away": Fault(("agents", "operator"), *LONG),
    "API server away": Fault(("server",), 2, 30),
    "API server away long": Fault(("server",), *LONG),
    "source away": Fault(("source",), *LONG),
    "program fails": Fault(("program",), 1, 2),
    "reconcile fails": Fault(("reconcile",), 2, 30),
    "reconcile fails long": Fault(("reconcile",), *LONG),
    "status refused": Fault(("status",), *LONG),
    "node lies": Fault(("liar",), *LONG),
    "disk full": Fault(("disk",), 20, 120),
    "journal set back": Fault(("backup",), 1, 20),
    "journal lost": Fault(("journal",), 1, 20),
}

REFUSALS = (
    ApiError(422, "Invalid", "status is not valid"),
    ApiError(413, "RequestEntityTooLarge", "the request is too large"),
    ApiError(403, "Forbidden", "a webhook says no"),
    ApiError(500, "InternalError", "etcdserver: request is too large"),
    ApiError(503, "ServiceUnavailable", "come again"),
)
"""How a server refuses a status: for what is in it, for whose it is, for a while."""

LIAR = "node-x"


@dataclass(frozen=True)
class Layout:
    """What a cluster is made of, and how slow its ways are; seconds."""

    make: Make
    nodes: int
    report_seconds: int
    lags: tuple[int, int, int] = (0, 0, 0)
    """Of the operator's watch, of its passes, of kubelets."""
    operator_skew: float = 0.0
    stubborn: float = 0.5
    """Share of pods whose program ignores SIGTERM."""


class Cluster:
    """One job's cluster."""

    def __init__(self, seed: int, layout: Layout, manifest: Body, *, obeys: bool = True) -> None:
        self.random = Random(seed)
        self.layout, self.obeys = layout, obeys
        self.report_seconds: float = layout.report_seconds
        self.now = 0.0
        self.story = Story()
        self.complaints: list[str] = []
        self.server = Server(lambda: self.wall(0), manifest, START)
        self.server.watch, self.server.refuse = self._bring, self._refuse
        self.terrain = Terrain(
            fails=lambda: self.now < self.fails_until, count=self.count, listed=self._listed
        )
        self.operator: OperatorLife | None = None
        self.operator_back = 0.0
        self.api_back = self.source_back = self.fails_until = self.refused_until = self.lies_until = -math.inf
        self.refusal: tuple[ApiError, bool] = (REFUSALS[0], True)
        """What a status is refused with, and whether its least is refused too."""
        self.nodes = {
            f"node-{i}": Node(
                f"node-{i}", self.random.uniform(-2, 2), layout.make, back_at=self.random.randrange(3)
            )
            for i in range(layout.nodes)
        }
        self.pods: dict[str, SimPod] = {}
        self.every: list[SimPod] = []
        self.by_uid: dict[str, SimPod] = {}

    # -- the story ----------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """A line of the story."""
        self.story.say(self.now, line)

    def count(self, what: str) -> None:
        """Something has happened once more."""
        self.story.count(what)

    def complain(self, line: str) -> None:
        """Something that must never be was found; each kind is noted once."""
        kind = line.partition(":")[0]
        if not any(kind == c.partition(":")[0] for c in self.complaints):
            self.complaints.append(f"{line} (second {self.now:.0f})")
            self.say(f"!! {line}")

    def wall(self, skew: float) -> datetime:
        """The time by a clock that is so many seconds ahead."""
        return START + timedelta(seconds=self.now + skew)

    # -- the API server -----------------------------------------------------------------------------

    def _bring(self, event: Event) -> None:
        body = event.body
        if event.kind == "Pod":
            uid = body["metadata"]["uid"]
            pod = self.by_uid.get(uid) or self._make_pod(body)
            if "deletionTimestamp" in body["metadata"] and pod.asked_to_go is None:
                pod.asked_to_go = self.now
        if self.operator is not None:
            self.operator.notice(event)

    def _make_pod(self, body: Body) -> SimPod:
        meta, spec = body["metadata"], body["spec"]
        pod = SimPod(
            name=meta["name"],
            uid=meta["uid"],
            attempt=int(meta["labels"][names.LABEL_ATTEMPT]),
            gpus=count_gpus(spec, SHIPPED),
            grace=spec["terminationGracePeriodSeconds"],
            created=self.now,
            stubborn=self.random.random() < self.layout.stubborn,
        )
        self.pods[pod.name] = self.by_uid[pod.uid] = pod
        self.every.append(pod)
        self.pod_made(pod)
        return pod

    def pod_made(self, pod: SimPod) -> None:
        """A pod was created."""

    def _refuse(self, status: Body) -> ApiError | None:
        error, least_too = self.refusal
        if self.now >= self.refused_until or not (least_too or "display" in status):
            return None
        return error

    # -- kubelets -----------------------------------------------------------------------------------

    def find_allocations(self, node: Node) -> Allocations:
        """Who holds cards of a node; those that ended there before an agent has counted them are holders for a look."""
        return find_allocations(node, self.every)

    def living(self) -> list[SimPod]:
        """Pods whose programs run."""
        return [p for p in self.pods.values() if p.running]

    def run_kubelets(self) -> None:
        """What scheduler and kubelets do in a second."""
        lost = any(p.ended is not None and p.exit_code != 0 for p in self.pods.values())
        for pod in list(self.pods.values()):
            if pod.node is None:
                self._schedule(pod)
            if pod.started is None and pod.ended is None:
                if self.server.up and pod.asked_to_go is not None:
                    self._remove(pod)
                elif pod.node is not None and self.now >= pod.starts_at and self.server.up:
                    pod.started = self.now
                    self._show(pod, "Running", {"running": {"startedAt": self._write_time(pod)}})
                continue
            if pod.ended is None:
                self._run(pod, lost=lost)
            if pod.ended is not None and self.server.up:
                if not pod.shown_end:
                    pod.shown_end = True
                    ended = {
                        "exitCode": pod.exit_code,
                        "reason": "Error",
                        "finishedAt": self._write_time(pod),
                    }
                    self._show(pod, "Failed" if pod.exit_code else "Succeeded", {"terminated": ended})
                elif pod.asked_to_go is not None:
                    self._remove(pod)

    def _run(self, pod: SimPod, *, lost: bool) -> None:
        asked = pod.asked_to_go
        reached = asked is not None and self.server.up and self.now >= asked + self.layout.lags[2]
        if reached and pod.stopping is None:
            pod.stopping = self.now
            lasts = pod.grace if pod.stubborn else self.random.uniform(1, pod.grace)
            if self.now + lasts < pod.ends_at:
                pod.ends_at, pod.exit_at_end = self.now + lasts, 137 if pod.stubborn else 143
            self.pod_stops(pod)
        elif lost and pod.ends_at == math.inf:
            pod.ends_at, pod.exit_at_end = self.now + self.random.randrange(3, 12), 144
        if self.now >= pod.ends_at:
            pod.ended, pod.exit_code = self.now, pod.exit_at_end
            if pod.node is not None:
                pod.node.release(pod)
            self.pod_ended(pod)

    def pod_stops(self, pod: SimPod) -> None:
        """A pod has got SIGTERM."""

    def pod_ended(self, pod: SimPod) -> None:
        """A pod's program has ended."""

    def _schedule(self, pod: SimPod) -> None:
        if not self.server.up or pod.asked_to_go is not None:
            return
        able = [n for n in self.nodes.values() if len(n.free) >= pod.gpus]
        if able:
            node = pod.node = self.random.choice(able)
            pod.cards, node.free = tuple(node.free[: pod.gpus]), node.free[pod.gpus :]
            pod.starts_at = self.now + self.random.choice((1, 2, 5))
            self.server.change_pod(pod.name, node=node.name)

    def _write_time(self, pod: SimPod) -> str:
        """Now, by the clock of a pod's node."""
        return format_time(self.wall(0 if pod.node is None else pod.node.skew))

    def _show(self, pod: SimPod, phase: str, state: Body) -> None:
        known = self.server.pods[pod.name].get("status") or {}
        container = {"name": "tensorflow", "ready": phase == "Running", "state": state}
        status = {**known, "phase": phase, "containerStatuses": [container]}
        self.server.change_pod(pod.name, status=status)

    def _remove(self, pod: SimPod) -> None:
        if pod.ended is None and pod.node is not None:
            pod.node.release(pod)
            pod.ended = self.now
        pod.gone = True
        del self.pods[pod.name]
        self.server.remove("Pod", pod.name)

    # -- time ---------------------------------------------------------------------------------------

    def step_parts(self) -> None:
        """What every part does in a second, after what programs drew in it."""
        self.run_kubelets()
        self._heal()
        honest = self.server.objects["NodePower"].keys() - {LIAR}
        if self.now < self.lies_until and self.server.up and honest and not self.now % 3:
            pods = list(self.server.pods.values())
            self.server.report(LIAR, lie(self.random, pods, self.wall(0)))
        for node in self.nodes.values():
            if node.agent is not None:
                node.agent.look()
        if self.operator is not None:
            self.operator.step()

    def acknowledge(self, node: Node, uid: str, echo: int | None) -> None:
        """An agent has reported which allowance it goes by."""

    def _listed(self) -> None:
        """The operator has lists: what is in none of them, in no ledger and not remembered it can learn no more."""
        operator, energy = self.operator, self.server.status.energy
        if operator is None:
            return
        seen = {
            uid for uid, binding in operator.cache.bindings(operator.key, JOB_UID).items() if binding.node
        }
        if energy is not None:
            seen |= {p.uid for p in energy.pods} | {key.partition("/")[0] for key in energy.settled}
            seen |= {c.uid for c in energy.control.charges} if energy.control is not None else set()
        for pod in self.every:
            if pod.gone and pod.uid not in seen and pod.used and not pod.unseen:
                pod.unseen = True
                self.count("a pod was never seen")

    # -- faults -------------------------------------------------------------------------------------

    def begin_operator(self) -> None:
        """A new operator process, by the clock of its machine as it is now."""
        watch, a_pass, _ = self.layout.lags
        lags = Lags(watch, a_pass, lambda: self.random.choice((1, 2, 3)))
        skew = self.layout.operator_skew
        self.operator = OperatorLife(
            self.server, self.terrain, lags, clock=lambda: self.wall(skew), elapsed=lambda: self.now
        )
        self.say("operator begins")

    def _heal(self) -> None:
        if not self.server.up and self.now >= self.api_back:
            self.server.up = True
            self.say("API server back")
        if self.operator is None and self.now >= self.operator_back:
            self.begin_operator()
        for node in self.nodes.values():
            if node.agent is None and self.now >= node.back_at:
                node.agent = AgentLife(self, node)
                self.say(f"{node.name}: agent begins")

    def break_something(self, name: str, node: Node | None = None) -> None:
        """One thing that happens to a cluster; `node`: where, else by chance, rather where pods run."""
        fault, chance = FAULTS[name], self.random
        self.say(f"-- {name}")
        self.count(name)
        held = [p.node for p in self.living() if p.node is not None] or list(self.nodes.values())
        for part in fault.parts:
            self._break(part, chance.randrange(fault.least, fault.most), node or chance.choice(held), held)

    def _break(self, part: Part, seconds: float, node: Node, held: list[Node]) -> None:
        until = self.now + seconds
        match part:
            case "agent":
                self._end_agent(node, seconds)
            case "agents":
                for each in dict.fromkeys(held):
                    self._end_agent(each, seconds)
            case "link":
                node.mute_until = until
            case "operator":
                self.operator, self.operator_back = None, until
            case "server":
                self.server.up, self.api_back = False, until
            case "source":
                self.source_back = until
            case "program":
                if self.living():
                    pod = self.random.choice(self.living())
                    pod.ends_at, pod.exit_at_end = min(pod.ends_at, until), 1
            case "reconcile":
                self.fails_until = until
            case "status":
                self.refused_until = until
                self.refusal = (self.random.choice(REFUSALS), self.random.random() < 0.6)
            case "liar":
                self.lies_until = until
            case "disk":
                node.full_until = until
            case "backup":
                self._end_agent(node, seconds)
                if node.set_back():
                    self.count("a settled pod is reported again")
            case "journal":
                self._end_agent(node, seconds)
                power = self.server.objects["NodePower"].get(node.name) or {}
                node.lose_journal(power.get("status") or {}, self.by_uid)
            case _:
                assert_never(part)

    def _end_agent(self, node: Node, seconds: float) -> None:
        if node.agent is None:
            return
        if seconds >= 40:
            node.agent.end()
        node.agent = None
        node.back_at = self.now + seconds

    def mend(self) -> None:
        """Everything is well from now on."""
        self.operator_back = min(self.operator_back, self.now)
        self.api_back = min(self.api_back, self.now)
        self.source_back = min(self.source_back, self.now)
        self.fails_until = self.refused_until = self.lies_until = -math.inf
        for node in self.nodes.values():
            node.back_at, node.mute_until = min(node.back_at, self.now), min(node.mute_until, self.now)
            node.full_until = min(node.full_until, self.now)
        if LIAR in self.server.objects["NodePower"]:
            self.server.remove("NodePower", LIAR)
        self.say("-- all is well from now on")
