"""A node of a world, its disk and its agent: the shipped rules of `node`, carried out on plain data in virtual time.

What an agent knows it has from the world's API server as it was read last, from its node's cards, whose counters are exact, and
from its disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from random import Random
from typing import Any, Protocol

from greentrain.api.nodepower import (
    MAX_MILLIWATTS,
    MAX_REPORT_SECONDS,
    NodePowerSpec,
    NodePowerStatus,
    PodEnergy,
)
from greentrain.core.seen.times import format_time, parse_time
from greentrain.energy.account import NodeAccount
from greentrain.energy.cards import CardAccount, LastAllocated
from greentrain.energy.intervals import CardReading
from greentrain.energy.pods import PodAccount
from greentrain.kube.node import NodePod, find_allowances, parse_node_pod
from greentrain.node.allocations import Allocations
from greentrain.node.allowance import Allowance, Used, is_over, is_spent
from greentrain.node.allowances import AllowanceState, AllowanceStates, LastRenewal, Sight
from greentrain.node.capping import (
    Answer,
    CapJournal,
    CapSight,
    NodeCaps,
    ReadLimits,
    Request,
    StoreJournal,
    WriteLimit,
)
from greentrain.node.cards import CurrentLimits
from greentrain.node.pods import close_pods, drop_settled, open_pods, sum_up
from greentrain.node.renewals import Renewals
from greentrain.node.report import NodeState, build_status, choose_pods
from greentrain.node.schedule import ReportSchedule
from greentrain.quantities import Millijoules, Milliseconds, Milliwatts, from_joules
from tests.support.world.cards import WATT, Card, Range
from tests.support.world.looks import carry_out, copy_journal
from tests.support.world.pods import HoldingPod, build_holdings
from tests.support.world.server import Body, Server

CARDS_OF_A_NODE = 8
MODEL = "CARD"


@dataclass(frozen=True)
class Make:
    """A kind of card: its power limit, the lowest it can have, and what it draws while a program waits; milliwatts."""

    limit: int
    least: int
    idle: int


MAKES = (
    Make(300 * WATT, 100 * WATT, 40 * WATT),
    Make(400 * WATT, 100 * WATT, 55 * WATT),
    Make(700 * WATT, 200 * WATT, 75 * WATT),
    Make(350 * WATT, 100 * WATT, 35 * WATT),
)
"""Made up, in the proportions of cards of data centres: what waits draws a tenth to a seventh of the limit."""


@dataclass
class SimPod:
    """A pod as it is, whatever anything shows of it."""

    name: str
    uid: str
    attempt: int
    gpus: int
    grace: int
    created: float
    node: Node | None = None
    starts_at: float = math.inf
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    evicted: bool = False
    asked_to_go: float | None = None
    """When the API server was asked to delete it."""
    stopping: float | None = None
    """When the kubelet sent SIGTERM."""
    ends_at: float = math.inf
    exit_at_end: int = 0
    stubborn: bool = False
    used: int = 0
    """Millijoules."""
    ran: float = 0.0
    """Seconds for which it has held its cards."""
    gone: bool = False
    """Whether its object is no more."""
    unseen: bool = False
    """Whether the operator never learnt on which node it was: no node's word of it counts (docs/reference/energy.md, "Counted once")."""
    shown_end: bool = False
    """Whether the API server has its end."""
    cards: tuple[Card, ...] = ()
    """Of its node."""
    metered: float = 0.0
    """Of these seconds, for how many the account on its node has that it held its cards."""
    before: int = 0
    """Millijoules that an account of its node had reported which was lost since."""
    unnoticed: int = 0
    """Of these, what its agent does not count: the operator had settled it before the look after it was taken over."""

    @property
    def running(self) -> bool:
        """Whether its program runs."""
        return self.started is not None and self.ended is None

    @property
    def throttled(self) -> bool:
        """Whether its cards have a lower limit than they come with."""
        return self.running and any(c.limit < c.range.default for c in self.cards)

    @property
    def joules(self) -> int:
        """Whole joules, cut off as agents do."""
        return self.used // 1000


@dataclass(eq=False)
class Node:
    """A node, its disk and its agent."""

    name: str
    skew: float
    make: Make
    account: NodeAccount = field(default_factory=lambda: NodeAccount(journal_id="journal"))
    """On its disk."""
    counted: set[str] = field(default_factory=set)
    """UIDs of the pods the account ever had."""
    dropped: dict[str, PodAccount] = field(default_factory=dict)
    """The ended pods that the account dropped last, since the operator had settled them."""
    heir: bool = False
    """Whether the account is a new one, which has yet to take over what the one before it had reported."""
    disk: dict[str, AllowanceState] = field(default_factory=dict)
    disk_caps: CapJournal = field(default_factory=CapJournal)
    agent: AgentLife | None = None
    back_at: float = 0.0
    """When its agent begins anew."""
    mute_until: float = -math.inf
    """Until when its agent cannot reach the API server, while its kubelet can."""
    full_until: float = -math.inf
    """Until when what is known of allowances cannot be stored."""
    reported: float | None = None
    """When its agent reported last, by the world's clock."""
    made: dict[str, float] = field(default_factory=dict)
    """When each of its reports was made, by that clock; by the time that is written in it."""
    unlimited: bool = False
    """Whether the operator looked last at what is asked of it under a status without a budget."""

    def __post_init__(self) -> None:
        limits = Range(self.make.least, self.make.limit, self.make.limit)
        self.cards = {f"card-{i}": Card(f"card-{i}", limits) for i in range(CARDS_OF_A_NODE)}
        for card in self.cards.values():
            card.load(0.0)
        self.free = list(self.cards.values())
        self.shown = tuple(replace(card.show(), model=MODEL) for card in self.cards.values())
        """Its cards as they are discovered."""
        self.holders: tuple[tuple[tuple[str, float | None], ...], Allocations] = ((), Allocations())
        """Who held cards at the last look."""

    def release(self, pod: SimPod) -> None:
        """A pod's cards are free again."""
        self.free += pod.cards

    def set_back(self) -> bool:
        """The journal is that of before the last drop; counters have the rest. Whether there was one."""
        found, self.dropped = self.dropped, {}
        self.account.pods = {**found, **self.account.pods}
        return bool(found)

    def lose_journal(self, report: Body, by_uid: Mapping[str, SimPod]) -> None:
        """Another account begins; `report`: the last one of the account before. Counters still have what was used since.

        Pods of which no final report was made are counted again, also those that have ended meanwhile.
        """
        old, reported = self.account, NodePowerStatus.model_validate(report)
        self.account, self.heir, self.dropped = NodeAccount(journal_id=f"{old.journal_id}'"), True, {}
        entries = {(e.uid, e.segment): e for e in reported.pods}
        for uid, pod in old.pods.items():
            true, entry = by_uid[uid], entries.get((uid, pod.segment))
            true.before += from_joules(entry.gpu_joules) if entry is not None else 0
            true.metered = sum(t.seconds for t in entry.gpu_time) / true.gpus if entry is not None else 0.0
            if entry is None or not entry.closed:
                self.counted.discard(uid)


ANSWERS: Mapping[str, CardReading] = {
    f"card-{i}": CardReading(counter=Millijoules(1)) for i in range(CARDS_OF_A_NODE)
}
"""Every card answers."""


class Ground(Protocol):
    """What agents stand on: their world, as far as it concerns them."""

    server: Server
    random: Random
    now: float
    by_uid: dict[str, SimPod]
    obeys: bool
    """Whether agents hold pods to their allowances."""
    report_seconds: float

    def wall(self, skew: float) -> datetime:
        """The time by a clock that is so many seconds ahead."""
        ...

    def find_allocations(self, node: Node) -> Allocations:
        """Who holds cards of a node."""
        ...

    def say(self, line: str) -> None:
        """A line of the story."""
        ...

    def count(self, what: str) -> None:
        """Something has happened once more."""
        ...

    def complain(self, line: str) -> None:
        """Something that must never be was found."""
        ...

    def acknowledge(self, node: Node, uid: str, echo: int | None) -> None:
        """An agent has reported which allowance it goes by."""
        ...


class AgentLife:
    """A node's agent, from one start to its end."""

    def __init__(self, world: Ground, node: Node) -> None:
        self.world, self.node = world, node
        self.begun = world.now
        self.given: dict[str, Allowance] | None = None
        """Allowances as NodePower has them; None as long as none were read."""
        self.settled: tuple[str, ...] = ()
        self.new: dict[str, PodEnergy] = {}
        """What was taken over of a lost account since the last look."""
        self.unlimited = False
        """Whether that was asked under a status without a budget."""
        self.listed = False
        """Whether the node's pods were ever read."""
        self.pods: dict[str, NodePod] = {}
        """The node's pods as they were read last."""
        self._parsed: dict[str, tuple[Body, NodePod]] = {}
        self._power: Body | None = None
        self.renewals = Renewals()
        self.reports = ReportSchedule(world.report_seconds)
        self.states = AllowanceStates()
        self.states.take_stored(node.disk)
        self.caps = NodeCaps()
        self.caps.begin(world.now)
        self.caps.take_stored(copy_journal(node.disk_caps))
        self.reads_at = world.now + world.random.choice((0, 1, 2))
        """When its lists are there, after its start or after an outage."""
        for card in node.account.cards.values():
            card.recent.clear()

    @property
    def connected(self) -> bool:
        """Whether it can talk to the API server."""
        return self.world.server.up and self.world.now >= self.node.mute_until

    @property
    def knows_pods(self) -> bool:
        """Whether the pods it knows are those of now."""
        return self.connected and self.listed

    def look(self) -> None:
        """One look, a second after the last."""
        world, account = self.world, self.node.account
        if not self.connected:
            self.reads_at = world.now + world.random.choice((1, 2, 5))
        elif world.now >= self.reads_at:
            self._read()
        wall = world.wall(self.node.skew).timestamp()
        new = self._drop_settled(wall)
        allocations = world.find_allocations(self.node)
        new = open_pods(account, allocations, self.pods) or new
        self.node.counted |= allocations.pods.keys()
        self._meter(wall)
        if self.knows_pods:
            new = close_pods(account, allocations, self.pods, wall=wall, name_unseen=lambda: "") or new
        if new:
            self.reports.hurry()
        self._judge()
        self._keep_limits(allocations)
        if self.reports.is_due(world.now):
            self._report()
        self._evict()

    def _drop_settled(self, wall: float) -> bool:
        account = self.node.account
        for entry in self.new.values():
            if entry.key in self.settled:
                self.world.by_uid[entry.uid].unnoticed += from_joules(entry.gpu_joules)
        self.new = {}
        before = dict(account.pods) if self.settled else {}
        new = drop_settled(account, self.settled, wall=wall).new
        if len(account.pods) < len(before):
            self.node.dropped = {key: pod for key, pod in before.items() if key not in account.pods}
        return new

    def _keep_limits(self, allocations: Allocations) -> None:
        """No cap is asked for; cards of pods whose allowance is spent get their lowest limit."""
        caps = self.caps
        caps.throttle(self.states.throttled)
        if not caps.throttled and not caps.changed_cards:
            return  # nothing to read, store or set
        carry_out(caps.look(CapSight(self.world.now, self.node.shown, allocations)), self._answer)

    def end(self) -> None:
        """SIGTERM: cards get their limits back."""
        carry_out(self.caps.release(list(self.node.shown)), self._answer)

    def _answer(self, request: Request) -> Answer:
        node, now = self.node, self.world.now
        match request:
            case ReadLimits(uuid):
                limit = Milliwatts(node.cards[uuid].limit)
                return Answer(now, "session", CurrentLimits(limit, limit))
            case WriteLimit(uuid, milliwatts):
                node.cards[uuid].set(milliwatts, now)
            case StoreJournal(content):
                node.disk_caps = copy_journal(content)
        return Answer(now)

    def _meter(self, wall: float) -> None:
        """Counters are exact, and a pod's cards are counted as one: the account has what the pod has used, each look."""
        world, account = self.world, self.node.account
        account.looked = world.now
        for uid, pod in account.pods.items():
            if pod.closed is not None:
                continue
            true = world.by_uid[uid]
            used = Millijoules(true.used - true.before - pod.gpu)
            pod.add(used, begin=wall - 1, end=wall, estimated=Millijoules(0))
            pod.hold(MODEL, Milliseconds(round((true.ran - true.metered) * true.gpus * 1000)))
            true.metered = true.ran
            card = account.cards.get(uid)
            if card is None:
                card = account.cards[uid] = CardAccount(
                    held=LastAllocated(world.now, "boot", ((uid, 1.0, True),))
                )
            card.measured = Millijoules(true.used)
            card.note(world.now)
        for uid in account.cards.keys() - account.pods.keys():
            del account.cards[uid]

    def _read(self) -> None:
        server = self.world.server
        power = server.objects["NodePower"].get(self.node.name)
        if power is not None and power is not self._power:
            spec = NodePowerSpec.model_validate(power["spec"])
            self.given, self.settled, self._power = find_allowances(spec.pods), spec.settled, power
        self.unlimited = self.node.unlimited
        bodies = server.find_pods_on(self.node.name)
        known, self._parsed = self._parsed, {}
        for body in bodies:
            uid = body["metadata"]["uid"]
            before = known.get(uid)
            same = before is not None and before[0] is body
            self._parsed[uid] = before if same and before is not None else (body, parse_node_pod(body))
        self.pods = {uid: pod for uid, (_, pod) in self._parsed.items()}
        self.listed = True
        self._listen()

    def _listen(self) -> None:
        world, lease = self.world, self.world.server.lease
        if lease is None:
            return
        renewed, wall = lease.renewed.isoformat(), world.wall(self.node.skew).timestamp()
        self.renewals.take(renewed, parse_time(renewed), lease.unattended, now=world.now, wall=wall)

    def hear(self) -> LastRenewal:
        """What it knows of the operator; one that does not obey takes it for heard."""
        if not self.world.obeys:
            return LastRenewal(self.begun, self.world.now)
        return LastRenewal(self.begun, self.renewals.renewed, unattended=self.renewals.unattended)

    def _judge(self) -> None:
        world, node, states = self.world, self.node, self.states
        counted = sum_up(node.account)
        sight = Sight(
            world.now, counted, self.given, self.pods, self.knows_pods, self.hear(), world.report_seconds
        )
        for change in states.look(sight):
            if change.kind == "Spent":
                continue
            if change.kind == "Throttled" and self.unlimited:
                world.complain(f"held: {change.state.name} though its job has no budget any more")
            if change.kind == "Throttled" and not is_spent(change.used, change.state.in_force(change.used)):
                world.count("agent: held for too long")
            if change.kind == "Throttled" and not self.hear().is_silent(world.now):
                world.count("agent: acts for an unattended job")
            world.count(f"agent: {change.kind}")
            if change.kind == "Throttled" and self._has_earlier(change.uid):
                world.count("agent: holds a pod whose journal was lost")
            world.say(f"{node.name}: {change.state.name} {change.kind} at {change.used.gpu // 1000} J")
        self._check_held(sight)
        self._store()
        self.reports.hurry_for(states.find_haste(node.disk))

    def _has_earlier(self, uid: str) -> bool:
        """Whether part of what a pod has used was reported of an account that was lost, and is settled by now."""
        inherited = {entry.uid for entry in self.node.account.inherited.values()}
        pod = self.world.by_uid[uid]
        return pod.before > pod.unnoticed and uid not in inherited and not self.node.heir

    def _check_held(self, sight: Sight) -> None:
        """A pod that has used its allowance is held while the operator is silent, also where its journal was lost."""
        if not self.world.obeys or self.node.heir or not sight.operator.is_silent(sight.now):
            return
        for uid, state in self.states.pods.items():
            pod, counted = self.world.by_uid[uid], sight.counted.get(uid)
            # When what a lost journal had reported is settled, at most a second of the pod's draw goes unnoticed.
            unnoticed = pod.unnoticed + (pod.gpus * self.node.make.limit if pod.before else 0)
            used = Used(gpu=Millijoules(pod.used - unnoticed))
            if counted is None or not counted.open or state.action != "None":
                continue
            if is_spent(used, state.in_force(used)):
                self.world.complain(f"not held: {state.name} has used {pod.joules} J, more than it may")

    def _store(self) -> None:
        if self.world.now >= self.node.full_until:
            self.node.disk = dict(self.states.pods)

    def _report(self) -> None:
        world, node = self.world, self.node
        self.reports.note_reported(world.now, world.random.uniform(0.9, 1.1))
        if not self.connected:
            return
        self._inherit()
        entries = self.states.mark(choose_pods(node.account, at=world.now), node.disk)
        wall = world.wall(node.skew).timestamp()
        state = NodeState(wall, world.report_seconds, "", "", (), node.shown, ANSWERS)
        status = build_status(node.account, entries, self.caps, state)
        node.made[status.observed_at or ""] = node.reported = world.now
        world.server.report(node.name, status)
        self.states.note_reported([e.uid for e in entries if e.budget_action == "Throttled"])
        for entry in entries:
            if entry.key not in node.account.inherited:
                world.acknowledge(node, entry.uid, entry.allowance_joules)

    def _inherit(self) -> None:
        """Take over what the account before this one had reported; accounts here have their pods by UID."""
        node, power = self.node, self.world.server.objects["NodePower"].get(self.node.name)
        if node.heir and power is not None:
            before = NodePowerStatus.model_validate(power.get("status") or {})
            node.account.inherit(before.pods, lambda entry: entry.uid)
            self.new = dict(node.account.inherited)
            if self.new:
                self.world.count("agent: takes over what a lost journal had reported")
        node.heir = False

    def _evict(self) -> None:
        world, node = self.world, self.node
        if not self.knows_pods:
            return
        for uid in self.states.take_due(world.now):
            self._listen()
            known = self.pods.get(uid)
            if not self.states.may_evict(uid, known, self.hear(), world.now):
                continue
            pod, hear = world.by_uid[uid], self.hear()
            if not hear.is_silent(world.now) and not hear.unattended:
                world.complain(f"evicted: {pod.name} though the operator is heard")
            if pod.asked_to_go is None:
                pod.evicted = True
                world.server.evict(pod.name, uid)
            self.states.note_evicted(uid)
            self._store()
            world.count("agent: Evicted")
            world.say(f"{node.name}: {pod.name} Evicted")


def is_held(pod: SimPod, state: AllowanceState, silence: float) -> bool:
    """Whether nothing is left of a pod's allowance, by its energy or by so many seconds of the operator's silence."""
    used = Used(gpu=Millijoules(pod.used))
    allowance = state.in_force(used)
    return is_spent(used, allowance) or is_over(allowance, silence)


def find_allocations(node: Node, pods: list[SimPod]) -> Allocations:
    """Who holds cards of a node; those that ended there before an agent has counted them are holders for a look."""
    found = [
        p
        for p in pods
        if p.node is node and p.started is not None and (p.ended is None or p.uid not in node.counted)
    ]
    basis = tuple((p.uid, p.ended) for p in found)
    if basis != node.holders[0]:
        held = {c.uuid: (HoldingPod(p.name, p.uid),) for p in found if p.ended is None for c in p.cards}
        allocations = build_holdings(held)
        for pod in found:
            allocations.pods.setdefault(pod.uid, HoldingPod(pod.name, pod.uid))
        node.holders = basis, allocations
    return node.holders[1]


OTHER_YEARS = ("1970-01-01T00:00:00Z", "2024-02-29T12:00:00Z", "2095-07-01T00:00:00Z", "yesterday")
ABSURD = (0, 10**6, 10**9, 10**12, 10**15, 2**62, -1)
"""Joules that a stolen token may report: more than a country uses, less than nothing."""


def lie(chance: Random, pods: list[Body], moment: datetime) -> Body:
    """A report by a node's stolen token: it claims pods that it does not run, at times of other years, with absurd counters."""
    now = format_time(moment)
    entries: list[dict[str, Any]] = []
    for body in pods:
        meta = body["metadata"]
        first, last = (chance.choice((now, now, now, *some)) for some in (OTHER_YEARS[:2], OTHER_YEARS[2:]))
        entries.append(
            {
                "uid": meta["uid"],
                "segment": chance.choice((0, 0, 1, 5)),
                "namespace": meta["namespace"],
                "name": meta["name"],
                **({"job": "digits", "jobUid": "uid-1", "ownerKnown": True} if chance.random() < 0.7 else {}),
                "gpuJoules": chance.choice(ABSURD),
                "drawMilliwatts": chance.choice((None, 0, 10**9, 10**12)),
                "firstReading": first,
                "lastReading": last,
                "allowanceJoules": chance.choice((None, 0, 2**53)),
                "budgetAction": chance.choice(("None", "Throttled", "Evicted")),
                "closed": chance.random() < 0.5,
                "gpuTime": [{"model": "GOLD", "seconds": 10**9}] if chance.random() < 0.3 else [],
            }
        )
    entries.append(
        {**entries[0], "uid": "never", "name": "digits-worker-7-99"} if entries else {"uid": "never"}
    )
    gpus = [{"uuid": "liar", "model": "GOLD", "limits": {"setMilliwatts": MAX_MILLIWATTS}}]
    return {
        "observedAt": chance.choice((now, now, *OTHER_YEARS)),
        "reportIntervalSeconds": MAX_REPORT_SECONDS,
        "gpus": gpus,
        "pods": entries,
    }
