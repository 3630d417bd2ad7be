"""A model of a job with a budget as plain data: nodes with cards, agents, an operator, an API server, a user, a program.

What is shown by it is the bound: whatever the program draws and whichever part is away, the energy a job has truly used
never exceeds its budget by more than was said before the attempt started. The operator runs the shipped `decide` and asks of
nodes by the shipped `find_terms`; agents open, close, report and let go of pods, judge them and choose when to report by the
shipped rules of `node`. Both are stepped as their shells would step them, with what each could know and no more. Time is virtual and goes by seconds, chance is seeded.

What the product says it cannot hold is counted apart, to the joule (`World.remainders`), and only from the moment the
budget is spent:

- "outage": the lowest limits of pods whose allowance is spent, over the time in which the API server is away;
- "both": the limits of pods whose agent is away, over the time in which the operator is away too, or cannot be reached.

Kept out of the model: counters are exact and nothing is lost of them, an agent that begins anew knows which pods ran
meanwhile, pods hold whole cards, and the cards of one world are alike.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from greentrain import quantities
from greentrain.api import names
from greentrain.api.conditions import Type, is_true
from greentrain.api.lease import RENEW_SECONDS, UNATTENDED_SECONDS
from greentrain.api.nodepower import NodePowerStatus, PodAsk, PodEnergy
from greentrain.api.spec import Basis
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.asks import PodTerms, decide_asks, find_terms
from greentrain.core.books.ledger import decide_settled
from greentrain.core.books.overshoot import REPORTS_WAIT_SECONDS
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.pods import Disruption, Pod, PodState, count_gpus
from greentrain.core.seen.snapshot import Fleet, Job, Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.status.essence import find_write_delay
from greentrain.energy.account import NodeAccount
from greentrain.energy.cards import CardAccount, LastHeld
from greentrain.node.allowance import Allowance, Used, is_over, is_spent
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
from greentrain.node.holdings import Holdings
from greentrain.node.pods import close_pods, let_go, open_pods, sum_up
from greentrain.node.report import choose_pods
from greentrain.node.schedule import ReportSchedule
from greentrain.node.standings import Heard, Sight, Standing, Standings
from greentrain.quantities import Joules, Millijoules, Milliseconds, Milliwatts, typed
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import START, worker
from tests.support.world.cards import WATT, Card, Range
from tests.support.world.looks import carry_out, copy_journal
from tests.support.world.pods import HoldingPod, SeenPod, build_holdings
from tests.support.world.statuses import reread
from tests.support.world.story import Story

JOULE = 1000
"""Millijoules: a second of a watt."""

PROGRESS_SECONDS = 60.0
"""How often the operator asks a program how far it is, and at most how often joules alone are written (its default)."""
STOPPING_SECONDS = 1.0
HUNG_SECONDS = UNATTENDED_SECONDS + RENEW_SECONDS
"""For how long a pass over one job hangs at most until a renewal names that job."""
SAVE_STEPS = 20
CARDS_OF_A_NODE = 8

Remainder = Literal["outage", "both"]
Character = Literal["steady", "bursty", "lurking", "waiting"]
"""How a program draws: all the time; in phases; as little as it must to come near its budget, and then all it can; or all it
can for half of its budget, and then as little as its cards do when they wait."""


@dataclass(frozen=True)
class Kind:
    """A kind of card: its power limit, the lowest it can have, and what it draws while a program waits; milliwatts."""

    limit: int
    least: int
    idle: int


KINDS = (
    Kind(300 * WATT, 100 * WATT, 40 * WATT),
    Kind(400 * WATT, 100 * WATT, 55 * WATT),
    Kind(700 * WATT, 200 * WATT, 75 * WATT),
    Kind(350 * WATT, 100 * WATT, 35 * WATT),
)
"""Made up, in the proportions of cards of data centres: what waits draws a tenth to a seventh of the limit."""


@dataclass(frozen=True)
class Traits:
    """What is drawn once for a world."""

    gpus: int
    gpus_per_pod: int
    kind: Kind
    report_seconds: int
    grace: int
    character: Character
    work: int
    """Seconds at full draw the program needs in all."""
    budget: int
    """Joules, also where it is one of emissions: a joule is a milligram here."""
    emissions: bool = False
    """Whether it is a budget of emissions."""
    embodied: int = 0
    """Micrograms that each GPU's making adds to emissions in a second of its time: as much as so many milliwatts do."""
    action: Literal["Suspend", "Fail"] = "Suspend"
    on_unknown: Literal["Suspend", "Continue"] = "Suspend"
    watch_lag: int = 0
    pass_lag: int = 0
    kubelet_lag: int = 0
    operator_skew: float = 0.0
    stubborn: float = 0.5
    """Share of pods whose program ignores SIGTERM."""
    faults: tuple[str, ...] = ()
    """Which of `FAULTS` may happen."""
    fault_rate: float = 0.0
    """How often in a second."""
    ambush: str | None = None
    """What happens in the moment the program draws all it can, having waited just below its budget."""
    edits: tuple[str, ...] = ()
    """Which of raise, lower and remove the user may do."""
    spare_nodes: int = 0
    seconds: int = 700
    """How long there are faults and edits; then all is well until it rests."""


class Weighed(NamedTuple):
    """A budget of either kind as a status has it, in joules."""

    limit: int
    used: int
    charged: int
    ahead: int


def read_budget(status: GreenTrainingJobStatus) -> Weighed | None:
    """The budget a status tells of; None where it tells of none."""
    energy, emissions = status.energy, status.emissions
    if emissions is not None and emissions.budget is not None:
        told = emissions.budget
        amounts = (told.limit, emissions.total_micrograms, told.charged, told.reserved)
        return Weighed(*(amount // MICROGRAMS_OF_A_JOULE for amount in amounts))
    if energy is None or energy.budget is None:
        return None
    budget = energy.budget
    return Weighed(budget.limit, energy.used_joules, budget.charged, budget.reserved)


GRID = 3_600_000
"""mg/kWh, so that a joule is a milligram: 3.6 MJ are 3.6 kg."""
MICROGRAMS_OF_A_JOULE = 1000
MODEL = "CARD"
LIFETIME_SECONDS = 1000
"""Over which the making of a card is spread; short, so that grams of it are whole numbers."""


@dataclass
class SimPod:
    """A pod as it is."""

    name: str
    uid: str
    index: int
    attempt: int
    gpus: int
    grace: int
    budgeted: bool
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
    shown: PodState = PodState.PENDING
    """As the API server has it."""
    gone: bool = False
    cards: tuple[Card, ...] = ()
    """Of its node."""
    metered: float = 0.0
    """Of these seconds, for how many the account on its node has that it held its cards."""

    @property
    def running(self) -> bool:
        """Whether its program runs."""
        return self.started is not None and self.ended is None

    @property
    def throttled(self) -> bool:
        """Whether its cards have a lower limit than they come with."""
        node = self.node
        return node is not None and self.running and any(c.limit < c.range.default for c in self.cards)

    @property
    def joules(self) -> int:
        """Whole joules, cut off as agents do."""
        return self.used // JOULE


@dataclass
class Power:
    """A NodePower as the API server has it."""

    asks: tuple[PodAsk, ...] = ()
    settled: tuple[str, ...] = ()
    entries: tuple[PodEnergy, ...] = ()
    observed: datetime | None = None
    told: float | None = None
    """When it was reported, by the world's clock."""


@dataclass(eq=False)
class Node:
    """A node, its disk and its agent."""

    name: str
    skew: float
    kind: Kind
    power: Power = field(default_factory=Power)
    account: NodeAccount = field(default_factory=lambda: NodeAccount(journal_id="journal"))
    """On its disk."""
    counted: set[str] = field(default_factory=set)
    """UIDs of the pods the account ever had."""
    disk: dict[str, Standing] = field(default_factory=dict)
    disk_caps: CapJournal = field(default_factory=CapJournal)
    unlimited: bool = False
    """Whether the operator asked last under a status without a budget."""
    agent: AgentLife | None = None
    back_at: float = 0.0
    """When its agent begins anew."""
    mute_until: float = -math.inf
    """Until when its agent cannot reach the API server, while its kubelet can."""
    full_until: float = -math.inf
    """Until when what is known of allowances cannot be stored."""

    def __post_init__(self) -> None:
        limits = Range(self.kind.least, self.kind.limit, self.kind.limit)
        self.cards = {f"card-{i}": Card(f"card-{i}", limits) for i in range(CARDS_OF_A_NODE)}
        for card in self.cards.values():
            card.load(0.0)
        self.free = list(self.cards.values())
        self.holders: tuple[tuple[tuple[str, float | None], ...], Holdings] = ((), Holdings())
        """Who held cards at the last look."""

    def release(self, pod: SimPod) -> None:
        """A pod's cards are free again."""
        self.free += pod.cards


class AgentLife:
    """A node's agent, from one start to its end."""

    def __init__(self, world: World, node: Node) -> None:
        self.world, self.node = world, node
        self.begun = world.now
        self.told: dict[str, Allowance] | None = None
        """Allowances as NodePower has them; None as long as none were read."""
        self.settled: tuple[str, ...] = ()
        self.unlimited = False
        """Whether that was asked under a status without a budget."""
        self.shown: dict[str, SeenPod] = {}
        """The node's pods as they were read last."""
        self.heard: float | None = None
        self.renewed: float | None = None
        self.reports = ReportSchedule(world.traits.report_seconds)
        self.standings = Standings()
        self.standings.take_stored(node.disk)
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
        return self.world.api_up and self.world.now >= self.node.mute_until

    def look(self) -> None:
        """One look, a second after the last."""
        world, account = self.world, self.node.account
        if not self.connected:
            self.reads_at = world.now + world.random.choice((1, 2, 5))
        elif world.now >= self.reads_at:
            self._read()
        wall = world.wall(self.node.skew).timestamp()
        new = let_go(account, self.settled, wall=wall).new
        holdings = world.find_holdings(self.node)
        new = open_pods(account, holdings, self.shown) or new
        self.node.counted |= holdings.pods.keys()
        self._meter(wall)
        if self.connected and self.told is not None:
            new = close_pods(account, holdings, self.shown, wall=wall, name_unseen=lambda: "") or new
        if new:
            self.reports.hurry()
        self._judge()
        self._keep_limits(holdings)
        if self.reports.is_due(world.now):
            self._report()
        self._evict()

    def _keep_limits(self, holdings: Holdings) -> None:
        """No cap is asked for; cards of pods whose allowance is spent get their lowest limit."""
        caps = self.caps
        caps.throttle(self.standings.throttled)
        if not caps.throttled and not caps.changed_cards:
            return  # nothing to read, store or set
        cards = tuple(card.show() for card in self.node.cards.values())
        carry_out(caps.look(CapSight(self.world.now, cards, holdings)), self._answer)

    def end(self) -> None:
        """SIGTERM: cards get their limits back."""
        carry_out(self.caps.release([card.show() for card in self.node.cards.values()]), self._answer)

    def _answer(self, request: Request) -> Answer:
        node, now = self.node, self.world.now
        match request:
            case ReadLimits(uuid):
                limit = node.cards[uuid].limit
                return Answer(now, "session", CurrentLimits(Milliwatts(limit), Milliwatts(limit)))
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
            pod.add(Millijoules(true.used - pod.gpu), begin=wall - 1, end=wall, estimated=Millijoules(0))
            pod.hold(MODEL, Milliseconds(round((true.ran - true.metered) * true.gpus * 1000)))
            true.metered = true.ran
            card = account.cards.get(uid)
            if card is None:
                card = account.cards[uid] = CardAccount(held=LastHeld(world.now, "boot", ((uid, 1.0, True),)))
            card.measured = Millijoules(true.used)
            card.note(world.now)
        for uid in account.cards.keys() - account.pods.keys():
            del account.cards[uid]

    def _read(self) -> None:
        world, node = self.world, self.node
        self.told = {
            a.uid: Allowance(Joules(a.allowance_joules), a.allowance_scope, a.allowance_seconds)
            for a in node.power.asks
            if a.allowance_joules is not None
        }
        self.settled = node.power.settled
        self.unlimited = node.unlimited
        self.shown = {
            p.uid: SeenPod(p.name, p.uid, p.shown is PodState.EXITED, p.budgeted)
            for p in world.pods.values()
            if p.node is node
        }
        self._listen()

    def _listen(self) -> None:
        """A renewal is heard when it is seen; of the first the age by the clock of the node counts."""
        world, renewed = self.world, self.world.renewed
        if renewed is None or renewed == self.renewed:
            return
        first = self.renewed is None
        wall = world.now + self.node.skew
        age = max(0.0, wall - (renewed + world.traits.operator_skew)) if first else 0.0
        self.renewed, self.heard = renewed, world.now - age

    def hear(self) -> Heard:
        """What it knows of the operator; one that does not obey takes it for heard."""
        return Heard(self.begun, self.heard if self.world.obeys else self.world.now)

    def _judge(self) -> None:
        world, node, standings = self.world, self.node, self.standings
        known = self.connected and self.told is not None
        seconds = world.traits.report_seconds
        counted = sum_up(node.account)
        sight = Sight(world.now, counted, self.told, self.shown, known, self.hear(), seconds)
        for change in standings.look(sight):
            if change.kind == "Spent":
                continue
            if change.kind == "Throttled" and self.unlimited:
                world.complain(f"held: {change.standing.name} though its job has no budget any more")
            if change.kind == "Throttled" and not is_spent(change.used, change.standing.holding(change.used)):
                world.count("agent: held for too long")
            world.count(f"agent: {change.kind}")
            world.say(f"{node.name}: {change.standing.name} {change.kind} at {change.used.gpu // JOULE} J")
        self._store()
        self.reports.hurry_for(standings.find_haste(node.disk))

    def _store(self) -> None:
        if self.world.now >= self.node.full_until:
            self.node.disk = dict(self.standings.pods)

    def _report(self) -> None:
        world, node = self.world, self.node
        self.reports.note_reported(world.now, world.random.uniform(0.9, 1.1))
        if not self.connected:
            return
        node.power.entries = self.standings.mark(choose_pods(node.account, at=world.now), node.disk)
        node.power.observed = world.wall(node.skew).replace(microsecond=0)
        node.power.told = world.now
        self.standings.note_reported([e.uid for e in node.power.entries if e.budget_action == "Throttled"])
        for entry in node.power.entries:
            world.acknowledge(node, entry.uid, entry.allowance_joules)
        world.tell_operator(lambda operator: operator.take_report(node))

    def _evict(self) -> None:
        world, node = self.world, self.node
        if not (self.connected and self.told is not None):
            return
        for uid in self.standings.take_due(world.now):
            self._listen()
            if not self.standings.may_evict(uid, self.shown.get(uid), self.hear(), world.now):
                continue
            pod = world.by_uid[uid]
            if not self.hear().is_silent(world.now):
                world.complain(f"evicted: {pod.name} though the operator is heard")
            if pod.asked_to_go is None:
                pod.asked_to_go, pod.evicted = world.now, True
                world.pod_changed(pod)
            self.standings.note_evicted(uid)
            self._store()
            world.count("agent: Evicted")
            world.say(f"{node.name}: {pod.name} Evicted")


class OperatorLife:
    """The operator, from one start to its end: its caches, and what it remembers between two passes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ready_at = world.now + world.random.choice((1, 2, 3))
        self.listed = False
        self.reports: dict[str, tuple[datetime, datetime, Power]] = {}
        self.pods: dict[str, Pod] = {}
        self.spec: dict[str, Any] = {}
        self.status = GreenTrainingJobStatus()
        self.version = 0
        self.generation = 0
        self.news: deque[tuple[float, Callable[[OperatorLife], None]]] = deque()
        self.due = math.inf
        self.written = -math.inf
        self.asked = -math.inf
        self.passed = -math.inf
        self.nodes: set[str] = set()
        """Nodes whose asks may be others now."""
        self.next_beat = self.ready_at

    @property
    def now(self) -> datetime:
        return self.world.wall(self.world.traits.operator_skew)

    def step(self) -> None:
        """What it does in a second."""
        world = self.world
        if not world.api_up:
            self.listed, self.ready_at = False, world.now + world.random.choice((1, 2))
            return
        if world.now < self.ready_at:
            return
        if world.now >= self.next_beat:
            world.renewed, self.next_beat = world.now, world.now + RENEW_SECONDS
        if not self.listed:
            self._list()
        while self.news and self.news[0][0] <= world.now:
            self.news.popleft()[1](self)
        if self.due <= world.now:
            self.due, self.passed = math.inf, world.now
            self._pass()
        due, self.nodes = sorted(self.nodes), set()
        for name in due:
            self._pass_node(name)

    def _list(self) -> None:
        self.listed = True
        self.news.clear()
        self.pods = {p.name: self.world.show(p) for p in self.world.pods.values() if not p.gone}
        self.take_job()
        for node in self.world.nodes.values():
            if node.power.observed is not None:
                self.take_report(node)
            self.nodes.add(node.name)
        self.due = self.world.now

    def wake(self, *, wait: float = 0.0) -> None:
        """Something is new; `wait`: how many seconds it waits after the last pass, to be taken up with others."""
        begin = max(self.world.now, self.passed + wait)
        self.due = min(self.due, begin + self.world.traits.pass_lag)

    def take_report(self, node: Node) -> None:
        """A NodePower as a watch or a list brings it."""
        power, now = node.power, self.now
        assert power.observed is not None
        known = self.reports.get(node.name)
        if known is not None and known[2].observed == power.observed and known[2].entries == power.entries:
            return
        seen = power.observed if known is None and power.observed < now else now
        copy = Power(entries=power.entries, observed=power.observed, told=power.told)
        self.reports[node.name] = (now, seen, copy)
        self.nodes.add(node.name)
        if power.entries or node.name in self._concerned():
            self.wake(wait=REPORTS_WAIT_SECONDS)

    def take_pod(self, pod: SimPod, shown: Pod | None) -> None:
        """A pod as a watch brings it; None: it is gone."""
        if shown is None:
            self.pods.pop(pod.name, None)
        else:
            self.pods[pod.name] = shown
        if pod.node is not None:
            self.nodes.add(pod.node.name)
        self.wake()

    def take_job(self) -> None:
        """The job as a watch or a list brings it."""
        world = self.world
        if world.version > self.version:
            self.spec, self.status, self.version = world.spec, world.status, world.version
            self.generation = world.generation
            self.wake()

    def _concerned(self) -> set[str]:
        energy = self.status.energy
        found = {p.node for p in energy.pods} if energy is not None else set()
        if energy is not None and energy.control is not None:
            found |= set(energy.control.unread_nodes)
        return found

    def _see(self) -> Snapshot:
        world = self.world
        job = Job(
            "team",
            "digits",
            "uid-1",
            self.generation,
            str(self.version),
            self.spec,
            self.status,
            created=START,
        )
        concerned = self._concerned()
        reports = tuple(
            NodeReport(
                name, received, p.entries, p.observed, seen=seen, report_seconds=world.traits.report_seconds
            )
            for name, (received, seen, p) in sorted(self.reports.items())
            if p.entries or name in concerned
        )
        heard = max((received for received, _, _ in self.reports.values()), default=None)
        known = heard is not None
        fleet = Fleet(
            limit_milliwatts=typed(Milliwatts, world.traits.kind.limit if known else None),
            report_seconds=world.traits.report_seconds if known else None,
            heard=heard,
            models=(MODEL,) if known else (),
        )
        pods = tuple(self.pods.values())
        seen = Snapshot(job=job, pods=pods, has_service=True, reports=reports, fleet=fleet)
        return with_intensities(seen, world.carbon, now=self.now)

    def _pass(self) -> None:
        """As `controller.passes.jobs` does it."""
        world = self.world
        last = self.status.attempts[-1] if self.status.attempts else None
        if last is not None and last.end_time is None and last.running_time is not None:
            interval = STOPPING_SECONDS if last.reason is not None else PROGRESS_SECONDS
            if world.now - self.asked >= interval:
                self.asked = world.now
            self._again(self.asked + interval)
        if all(
            p.node is not None and p.node.agent is not None and p.node.agent.connected for p in world.living()
        ):
            world.weighed = world.embodied
        decision = decide(self._see(), now=self.now)
        if decision.record_first and not self._store(decision.status):
            return
        self._apply(decision)
        if decision.record_first or decision.pods or decision.deletions:
            decision = decide(self._see(), now=self.now)
            if decision.record_first:
                self._again(world.now)
                return
        self._record_rest(decision.status)
        if decision.look_again is not None:
            self._again(world.now + (decision.look_again - self.now).total_seconds())
        if decision.pods or decision.deletions:
            self._again(world.now)

    def _again(self, when: float) -> None:
        self.due = min(self.due, max(when, self.world.now + 1))

    def _apply(self, decision: Decision) -> None:
        for manifest in decision.pods:
            pod = self.world.create(manifest)
            if pod is not None:
                self.pods[pod.name] = self.world.show(pod)
        for deletion in decision.deletions:
            gone = self.world.delete(deletion.name, deletion.uid)
            if gone is not None:
                self.pods[gone.name] = self.world.show(gone)

    def _record_rest(self, new: GreenTrainingJobStatus) -> None:
        old = self.status
        since = self.world.now - self.written
        wait = find_write_delay(old, new, since=since, measures_every=PROGRESS_SECONDS)
        if wait is None:
            return
        if wait:
            self._again(self.world.now + wait)
            return
        if self._store(new):
            self._again(self.world.now)

    def _store(self, status: GreenTrainingJobStatus) -> bool:
        world = self.world
        if world.version != self.version:
            world.count("status conflict")
            self._again(world.now)
            return False
        self.status = world.store(status)
        self.version, self.written = world.version, world.now
        energy = self.status.energy
        self.nodes |= {p.node for p in energy.pods if p.final} if energy is not None else set()
        self.nodes |= {p.node for p in self.pods.values() if p.node}
        return True

    def _pass_node(self, name: str) -> None:
        """As `controller.passes.nodes` does it."""
        node, known = self.world.nodes[name], self.reports.get(name)
        if known is None:
            return
        energy = self.status.energy
        told = NodePowerStatus.model_construct(pods=known[2].entries)
        settled = decide_settled(node.power.settled, told, energy_of=lambda _: energy, is_ours=lambda _: True)
        asks = decide_asks(node.power.asks, self._asked_of(name), is_ours=lambda _: True)
        if set(settled) != set(node.power.settled) or asks != node.power.asks:
            self.world.ask(node, asks, settled)
        node.unlimited = read_budget(self.status) is None

    def _asked_of(self, node: str) -> Iterable[PodTerms]:
        for pod in self.pods.values():
            if pod.node == node and not pod.ended:
                budgeted = next(p.budgeted for p in self.world.every if p.uid == pod.uid)
                yield find_terms(PodTerms("team", pod.name, pod.uid, None), self.status, budgeted=budgeted)


FAULTS = (
    "agent killed",
    "agent away",
    "agents killed",
    "agents away",
    "agent mute",
    "operator killed",
    "operator away",
    "API server away",
    "API server away long",
    "program fails",
)
"""What may happen to a cluster, and how long it may last (`World.break_something`)."""


@dataclass
class World:
    """One job's whole world."""

    seed: int
    traits: Traits
    obeys: bool = True
    """Whether agents hold pods to their allowances."""

    def __post_init__(self) -> None:
        t = self.traits
        self.random = random.Random(self.seed)
        self.now = 0.0
        self.story = Story()
        self.complaints: list[str] = []
        self.api_up = True
        self.api_back = -math.inf
        self.renewed: float | None = None
        self.operator: OperatorLife | None = None
        self.operator_back = 0.0
        self.source_back = 0.0
        making = t.embodied * LIFETIME_SECONDS // 1_000_000
        self.carbon = CarbonSource(
            at=self.look_up,
            zone_of=lambda _region, _zone: "ALL",
            embodied=lambda _: Embodied(making, making, making, "made up"),
            lifetime_seconds=LIFETIME_SECONDS,
            include_embodied=t.embodied > 0,
        )
        count = math.ceil(t.gpus / (CARDS_OF_A_NODE // t.gpus_per_pod * t.gpus_per_pod)) + t.spare_nodes
        self.nodes = {
            f"node-{i}": Node(
                f"node-{i}", self.random.uniform(-2, 2), t.kind, back_at=self.random.randrange(3)
            )
            for i in range(count)
        }
        self.pods: dict[str, SimPod] = {}
        self.every: list[SimPod] = []
        self.by_uid: dict[str, SimPod] = {}
        self.version = self.generation = 1
        self.status = GreenTrainingJobStatus()
        self.limit: int | None = t.budget
        self.spec = self._build_spec()
        self.writes = 0
        self.work = t.work
        self.work_done = self.work_saved = 0.0
        self.phase_until = 0.0
        self.working = True
        self.jumped = False
        self.waits_for_report: float | None = None
        self.ceiling: int | None = None
        """What the budget is judged by, in millijoules; None while there is none."""
        self.lowered = False
        """Whether agents may still hold more than a budget that was lowered allows."""
        self.remainders: Counter[Remainder] = Counter()
        """Millijoules the product says it cannot hold."""
        self.remained: set[Remainder] = set()
        """Of which kind there ever were any."""
        self.histories: dict[str, list[int]] = {}
        self.ends: list[tuple[int, int]] = []
        """Of each attempt that was stopped for its budget: its bound, and by how much the budget is exceeded at its end."""
        self.hung: list[int] = []
        """What of each of these bounds is for a pass that hangs before its operator dies, which happens in no life."""
        self.stated: dict[int, int] = {}
        """The bound that was said of each attempt first, in joules or milligrams."""
        self.weighed = 0
        """The embodied emissions at the operator's last pass with every agent there, in micrograms: time that went by without
        them is held by what allowances leave free, and by the bound."""
        self.raised = False
        self.stopped_at = (0, 0)
        """The budget an attempt was stopped for last, and what a stop would have taken then; joules."""

    # -- telling ------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        self.story.say(self.now, line)

    def count(self, fault: str) -> None:
        self.story.count(fault)

    def complain(self, line: str) -> None:
        """Something that must never be was found; each kind is told once."""
        kind = line.partition(":")[0]
        if not any(kind == c.partition(":")[0] for c in self.complaints):
            self.complaints.append(f"{line} (second {self.now:.0f})")
            self.say(f"!! {line}")

    def wall(self, skew: float) -> datetime:
        return START + timedelta(seconds=self.now + skew)

    # -- the API server -----------------------------------------------------------------------------

    def _build_spec(self) -> dict[str, Any]:
        t = self.traits
        energy: dict[str, Any] = {"onExhausted": t.action, "onUnknown": t.on_unknown}
        emissions: dict[str, Any] = {"onExhausted": t.action}
        if self.limit is not None and t.emissions:
            emissions["budget"] = f"{self.limit // 1000}.{self.limit % 1000:03d}gCO2e"
        elif self.limit is not None:
            energy["budget"] = f"{self.limit}J"
        manifest = build_job(workers=t.gpus // t.gpus_per_pod, energy=energy, emissions=emissions)
        template = build_template(resources={"limits": {names.GPU_RESOURCE: str(t.gpus_per_pod)}})
        template["spec"]["terminationGracePeriodSeconds"] = t.grace
        manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
        spec: dict[str, Any] = manifest["spec"]
        return spec

    def look_up(self, zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        """The grid's intensity, always the same; nothing while the source is away."""
        del moment
        if self.now < self.source_back:
            return Absent(f"the source of {zone} is away")
        return Intensity(quantities.Intensity(GRID), "grid", basis)

    def edit(self, limit: int | None) -> None:
        """The user sets another budget, or none."""
        self.say(f"budget {self.limit} → {limit}")
        self.limit = limit
        self.spec = self._build_spec()
        self.generation += 1
        self.version += 1
        self.tell_operator(OperatorLife.take_job)

    def tell_operator(self, take: Callable[[OperatorLife], None]) -> None:
        """A change reaches the operator's watch."""
        if self.operator is not None and self.operator.listed:
            self.operator.news.append((self.now + self.traits.watch_lag, take))

    def pod_changed(self, pod: SimPod) -> None:
        shown = None if pod.gone else self.show(pod)
        self.tell_operator(lambda operator: operator.take_pod(pod, shown))

    def show(self, pod: SimPod) -> Pod:
        """A pod as the API server has it."""
        ended = pod.shown is PodState.EXITED
        node = pod.node
        wall = self.wall(0) if node is None else START + timedelta(seconds=node.skew)
        return Pod(
            name=pod.name,
            uid=pod.uid,
            rank=worker(pod.index),
            attempt=pod.attempt,
            state=pod.shown,
            ready=pod.shown is PodState.RUNNING,
            terminating=pod.asked_to_go is not None,
            exit_code=pod.exit_code if ended else None,
            finished=wall + timedelta(seconds=pod.ended or 0) if ended else None,
            node=node.name if node is not None else "",
            created=START + timedelta(seconds=pod.created),
            deletion_requested=None
            if pod.asked_to_go is None
            else START + timedelta(seconds=pod.asked_to_go),
            disruption=Disruption.EVICTED if pod.evicted else None,
            gpus=pod.gpus,
            started=wall + timedelta(seconds=pod.started or 0) if pod.shown is PodState.RUNNING else None,
        )

    def create(self, manifest: dict[str, Any]) -> SimPod | None:
        meta, spec = manifest["metadata"], manifest["spec"]
        if meta["name"] in self.pods:
            return None
        labels = meta["labels"]
        attempt = int(labels[names.LABEL_ATTEMPT])
        stored = self.status.attempts[-1] if self.status.attempts else None
        if stored is None or stored.number != attempt or attempt not in self.stated:
            self.complain("unsaid: a pod is made before its attempt's bound is stored")
        pod = SimPod(
            name=meta["name"],
            uid=f"pod-{len(self.every)}",
            index=int(labels[names.LABEL_REPLICA_INDEX]),
            attempt=attempt,
            gpus=count_gpus(spec),
            grace=spec["terminationGracePeriodSeconds"],
            budgeted=(meta.get("annotations") or {}).get(names.ANNOTATION_BUDGETED) == "true",
            created=self.now,
            stubborn=self.random.random() < self.traits.stubborn,
        )
        self.pods[pod.name] = pod
        self.every.append(pod)
        self.by_uid[pod.uid] = pod
        return pod

    def delete(self, name: str, uid: str) -> SimPod | None:
        pod = self.pods.get(name)
        if pod is None or pod.uid != uid or pod.asked_to_go is not None:
            return None
        pod.asked_to_go = self.now
        return pod

    def ask(self, node: Node, asks: tuple[PodAsk, ...], settled: tuple[str, ...]) -> None:
        """The operator's half of a NodePower."""
        node.power.asks, node.power.settled = asks, settled
        self.writes += 1
        for ask in asks:
            if ask.allowance_joules is not None:
                history = self.histories.setdefault(ask.uid, [])
                if not history or history[-1] != ask.allowance_joules:
                    history.append(ask.allowance_joules)

    def acknowledge(self, node: Node, uid: str, echo: int | None) -> None:
        """An agent has told which allowance it goes by: what was asked before that cannot come back."""
        kept = node.disk.get(uid)
        allowance = kept.allowance if kept is not None else None
        if echo != (allowance.joules if allowance is not None else None):
            self.complain(f"unconfirmed: {uid} goes by {echo} J, of which the next agent would not know")
        history = self.histories.get(uid)
        if history and echo in history:
            last = len(history) - 1 - history[::-1].index(echo)
            del history[:last]

    def store(self, status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
        """The job's status, as it is read back."""
        old, self.status = self.status, reread(status)
        self.version += 1
        self.writes += 1
        if old.phase != self.status.phase:
            self.say(f"{old.phase or 'new'} → {self.status.phase}")
        self._check_store(old, self.status)
        return self.status

    # -- what is checked ----------------------------------------------------------------------------

    @property
    def drawn(self) -> int:
        """Millijoules the job has truly used."""
        return sum(p.used for p in self.every)

    @property
    def embodied(self) -> int:
        """Micrograms of embodied emissions that fall to it by now, each the worth of a millijoule."""
        return round(sum(p.ran * p.gpus for p in self.every) * self.traits.embodied)

    @property
    def used(self) -> int:
        """What counts against its budget: millijoules, or as many micrograms."""
        return self.drawn + self.embodied

    def held(self) -> int:
        """Joules that the agents of living pods may go by, together."""
        stored = self._stored_allowances()
        return sum(
            max((*self.histories.get(p.uid, ()), stored.get(p.uid, 0)), default=0)
            for p in self.pods.values()
            if p.ended is None
        )

    def _promised(self) -> int:
        """Joules that pods which have ended used, and those that the living may use by what their agents hold."""
        number = self.status.attempts[-1].number if self.status.attempts else 0
        stored = self._stored_allowances()
        total = self.held()
        for pod in self.every:
            if pod.ended is not None and pod.attempt != number:
                total += pod.joules
            elif pod.ended is not None:
                # What a pod used beyond its own allowance is taken from the others' with the next report.
                most = max((*self.histories.get(pod.uid, ()), stored.get(pod.uid, 0)))
                total += min(pod.joules, most)
        return total

    def _stored_allowances(self) -> dict[str, int]:
        control = self.status.energy.control if self.status.energy is not None else None
        return {a.uid: a.joules for a in control.allowances} if control is not None else {}

    def _check_store(self, old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> None:
        self._note_bound(new)
        energy = new.energy
        if energy is None:
            return
        true, drawn = self.used, self.drawn
        if energy.used_joules * JOULE > drawn:
            self.complain(f"invented: status says {energy.used_joules} J of {drawn // JOULE} J used")
        if new.attempt_count <= 10 and energy.used_joules != sum(a.energy_joules or 0 for a in new.attempts):
            self.complain("sums: attempts do not add up to the total")
        control = energy.control
        weighed, earlier = read_budget(new), read_budget(old)
        if control is None or weighed is None:
            self.ceiling, self.lowered = None, False
            return
        limit = weighed.limit * JOULE
        if earlier is None or limit < earlier.limit * JOULE:
            # Lowered, or set while it ran: judged by what was used by then, and by what agents may hold until they know.
            self.ceiling, self.lowered = max(limit, true), True
        elif limit > earlier.limit * JOULE:
            self.ceiling = max(limit, true) if self.lowered else limit
            if true < limit:
                self.remainders.clear()
        self._check_charges(control.charges)
        self._check_begin(old, new)
        stopped = is_true(new.conditions, Type.BUDGET_EXHAUSTED) and not is_true(
            old.conditions, Type.BUDGET_EXHAUSTED
        )
        if stopped and true + (weighed.ahead + weighed.charged) * JOULE < limit:
            self.complain(f"too early: stopped at {true // JOULE} J of {weighed.limit} J")
        ended = [a for a in new.attempts if a.end_time and a.reason in STOPPED]
        known = {a.number for a in old.attempts if a.end_time}
        for attempt in ended:
            if (
                attempt.number not in known
                and self.ceiling is not None
                and weighed.limit * JOULE == self.ceiling
            ):
                bound = self.stated.get(attempt.number, 0)
                self.ends.append((bound, (true - self.ceiling - self.remainders.total()) // JOULE))
                self.hung.append(int(bound * HUNG_SECONDS / (attempt.worst_seconds or 1)))

    def _note_bound(self, new: GreenTrainingJobStatus) -> None:
        """What is said of an attempt first is what it is judged by."""
        last = new.attempts[-1] if new.attempts else None
        if last is None or last.number in self.stated:
            return
        bound = last.overshoot_bound_joules
        if self.traits.emissions:
            told = last.overshoot_bound_micrograms
            bound = None if told is None else told // MICROGRAMS_OF_A_JOULE
        if bound is not None:
            self.stated[last.number] = bound

    def _check_begin(self, old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> None:
        """What was too little to go on with is too little to begin with."""
        budget = read_budget(new)
        assert budget is not None
        last = new.attempts[-1] if new.attempts else None
        before = old.attempts[-1] if old.attempts else None
        if last is None or before is None:
            return
        if last.reason == "BudgetExhausted" and before.reason is None and before.number == last.number:
            self.stopped_at = (budget.limit, budget.ahead)
        elif last.number != before.number and before.reason == "BudgetExhausted":
            limit, ahead = self.stopped_at
            known = budget.used + budget.charged
            if budget.limit <= limit and known + ahead >= budget.limit:
                self.complain(f"begun: {known} J, a stop would take {ahead} J of {budget.limit} J")

    def _check_charges(self, entries: Iterable[Any]) -> None:
        """No pod is charged for more than its limits over the time of which nothing was told, and a second of clocks."""
        kind = self.traits.kind
        for entry in entries:
            pod = next((p for p in self.every if p.uid == entry.uid), None)
            if pod is None or pod.node is None or not entry.joules:
                continue
            known = self.operator.reports.get(pod.node.name) if self.operator is not None else None
            entries_known = known[2].entries if known is not None else ()
            told = known[2].told if known is not None else None
            listed = any(e.uid == pod.uid for e in entries_known)
            since = told if listed and told is not None else pod.started or pod.created
            silent = self.now - since + 5
            if entry.joules * JOULE > kind.limit * pod.gpus * silent:
                self.complain(f"overcharged: {pod.name} {entry.joules} J for {silent:.0f} s")

    def check(self) -> None:
        """What must never be broken, whatever happened."""
        if self.ceiling is None:
            return
        attempt = self.status.attempts[-1] if self.status.attempts else None
        used = self.used
        promised = self._promised() * JOULE + self.embodied if self.lowered else 0
        budget = read_budget(self.status)
        limit = budget.limit * JOULE if budget is not None else 0
        if self.lowered:
            if promised <= max(limit, self.ceiling):
                self.lowered = False
            else:
                promised = max(promised, self.ceiling)
        else:
            # While the job is being stopped its allowances stay as they are, and time goes on.
            stopping = attempt is not None and attempt.reason is not None
            total = self._promised() * JOULE + (0 if stopping else self.weighed)
            # Of a budget that time alone has exceeded nothing is left to be promised.
            most = max(limit, self.ceiling, self.used if self.traits.embodied else 0)
            if budget is not None and self.held() and total > most:
                self.complain(f"promised: {total // JOULE} J of {limit // JOULE} J")
        bound = self.stated.get(attempt.number, 0) if attempt is not None else 0
        most = max(self.ceiling, promised) + bound * JOULE + self.remainders.total()
        if used > most:
            self.complain(
                f"exceeded: {used // JOULE} J, budget {self.ceiling // JOULE} J, bound {bound} J, remainders "
                f"{ {k: v // JOULE for k, v in self.remainders.items()} }"
            )

    def check_end(self) -> None:
        """What must be so when everything is well and nothing runs."""
        if not self.rests:
            self.complain(f"restless: {self.status.phase}")
            return
        energy = self.status.energy
        told, true = (energy.used_joules if energy is not None else 0), sum(p.joules for p in self.every)
        if told != true:
            self.complain(f"lost: status says {told} J of {true} J when every last word is in")
        for node in self.nodes.values():
            limits = {card.uuid: card.limit for card in node.cards.values()}
            if set(limits.values()) != {node.kind.limit}:
                self.complain(f"leaked: limits of {node.name} are {limits}")
        if self.raised and self.status.phase != "Succeeded":
            self.complain(f"stuck: {self.status.phase} with budget enough")

    def _count_remainders(self, seconds: float) -> None:
        """What is drawn at most in these seconds and is not held by anybody, once the budget is spent."""
        if self.ceiling is None or self.used < self.ceiling:
            return
        reachable = self.api_up and self.operator is not None and self.now >= self.operator.ready_at
        kind, making = self.traits.kind, self.traits.embodied
        for pod in self.pods.values():
            if not pod.running or pod.node is None:
                continue
            agent = pod.node.agent
            held = (pod.node.disk if agent is None else agent.standings.pods).get(pod.uid)
            away = agent is None or held is None
            if away and not reachable:
                self.remainders["both"] += round((kind.limit + making) * pod.gpus * seconds)
                self.remained.add("both")
            elif not self.api_up and held is not None and _is_held(pod, held, agent):
                self.remainders["outage"] += round((kind.least + making) * pod.gpus * seconds)
                self.remained.add("outage")

    # -- nodes and programs -------------------------------------------------------------------------

    def find_holdings(self, node: Node) -> Holdings:
        """Who holds cards of a node; those that ended there before an agent has counted them are holders for a look."""
        found = [
            p
            for p in self.every
            if p.node is node and p.started is not None and (p.ended is None or p.uid not in node.counted)
        ]
        basis = tuple((p.uid, p.ended) for p in found)
        if basis != node.holders[0]:
            held = {c.uuid: (HoldingPod(p.name, p.uid),) for p in found if p.ended is None for c in p.cards}
            holdings = build_holdings(held)
            for pod in found:
                holdings.pods.setdefault(pod.uid, HoldingPod(pod.name, pod.uid))
            node.holders = basis, holdings
        return node.holders[1]

    def _draw(self, pod: SimPod) -> int:
        kind = self.traits.kind
        each = kind.limit if self.working else kind.idle
        return sum(min(each, card.limit) for card in pod.cards)

    def living(self) -> list[SimPod]:
        """Pods whose programs run."""
        return [p for p in self.pods.values() if p.running]

    def step(self, seconds: float = 1.0) -> None:
        """So much later; the draw of these seconds is that of their beginning."""
        living = self.living()
        self._count_remainders(seconds)
        for pod in living:
            pod.used += round(self._draw(pod) * seconds)
            pod.ran += seconds
        self._work(living, seconds)
        self.now += seconds
        self._run_kubelets()
        self._heal()
        for node in self.nodes.values():
            if node.agent is not None:
                node.agent.look()
        if self.operator is not None:
            self.operator.step()
        self.check()

    def _work(self, living: list[SimPod], seconds: float) -> None:
        wanted = self.traits.gpus // self.traits.gpus_per_pod
        if len(living) < wanted or any(p.stopping is not None for p in living):
            return
        if self.working and not any(p.throttled for p in living):
            before = self.work_done
            self.work_done += seconds
            if before // SAVE_STEPS != self.work_done // SAVE_STEPS:
                self.work_saved = self.work_done
        if self.work_done >= self.work:
            for pod in living:
                pod.ends_at, pod.exit_at_end = min(pod.ends_at, self.now + seconds), 0
        self._choose_phase(living)

    def _choose_phase(self, living: list[SimPod]) -> None:
        """What the program draws from now on."""
        t, chance = self.traits, self.random
        if t.character == "steady" or self.jumped:
            self.working = True
        elif t.character == "bursty":
            if self.now >= self.phase_until:
                self.working = not self.working
                self.phase_until = self.now + chance.randrange(5, 60 if self.working else 40)
        elif t.character == "waiting":
            if self.working and self.limit is not None and self.used >= self.limit * JOULE // 2:
                self.working = False
                if t.ambush is not None:
                    self.break_something(t.ambush)
        else:
            self._lurk(living)

    def _lurk(self, living: list[SimPod]) -> None:
        """Come as near to the budget as can be without being stopped, and draw all there is right after a reading."""
        t, kind = self.traits, self.traits.kind
        attempt = self.status.attempts[-1] if self.status.attempts else None
        if self.limit is None or attempt is None or attempt.stop_seconds is None:
            self.working = True
            return
        left = self.limit * JOULE - self.used
        full, idle = (kind.limit + t.embodied) * t.gpus, (kind.idle + t.embodied) * t.gpus
        told = max((p.node.power.told or 0.0) for p in living if p.node is not None)
        first = min((p.node.power.told or 0.0) for p in living if p.node is not None)
        if left > full * (attempt.stop_seconds + 2 * t.report_seconds):
            self.working = True
        elif left > full * t.report_seconds * 1.3 + idle * attempt.stop_seconds:
            # Bursts between two readings, over well before the next.
            self.working = self.now - told < 2 and self.now - first < t.report_seconds / 2
        else:
            self.working = False
            # The next report would show too much.
            next_told = 1.1 * t.report_seconds / len({p.node.name for p in living if p.node is not None}) + 1
            margin = idle * attempt.stop_seconds
            if margin < left <= margin + idle * next_told and self.now - told <= 1:
                self.jumped = self.working = True
                self.say(f"all it can draw, {left // JOULE} J before the budget is spent")
                if t.ambush is not None:
                    self.break_something(t.ambush)

    def lurks_again(self) -> None:
        """Another budget is another one to come near to."""
        self.jumped = False

    def _run_kubelets(self) -> None:
        t = self.traits
        lost = any(p.ended is not None and p.exit_code != 0 for p in self.pods.values())
        for pod in list(self.pods.values()):
            if pod.node is None:
                self._schedule(pod)
            if pod.started is None and pod.ended is None:
                if self.api_up and pod.asked_to_go is not None:
                    self._remove(pod)
                elif pod.node is not None and self.now >= pod.starts_at:
                    pod.started = self.now
                    self._show(pod)
                continue
            if pod.ended is None:
                asked = pod.asked_to_go
                if (
                    asked is not None
                    and pod.stopping is None
                    and self.api_up
                    and self.now >= asked + t.kubelet_lag
                ):
                    pod.stopping = self.now
                    lasts = pod.grace if pod.stubborn else self.random.uniform(1, pod.grace)
                    if self.now + lasts < pod.ends_at:
                        pod.ends_at, pod.exit_at_end = self.now + lasts, 137 if pod.stubborn else 143
                    if not pod.stubborn:
                        self.work_saved = self.work_done
                elif lost and pod.ends_at == math.inf:
                    pod.ends_at, pod.exit_at_end = self.now + self.random.randrange(3, 12), 144
                if self.now >= pod.ends_at:
                    pod.ended, pod.exit_code = self.now, pod.exit_at_end
                    assert pod.node is not None
                    pod.node.release(pod)
                    if pod.exit_code:
                        self.work_done = min(self.work_done, self.work_saved)
            if pod.ended is not None and self.api_up:
                if pod.shown is not PodState.EXITED:
                    self._show(pod)
                elif pod.asked_to_go is not None:
                    self._remove(pod)

    def _schedule(self, pod: SimPod) -> None:
        if not self.api_up or pod.asked_to_go is not None:
            return
        able = [n for n in self.nodes.values() if len(n.free) >= pod.gpus]
        if able:
            pod.node = self.random.choice(able)
            pod.cards, pod.node.free = tuple(pod.node.free[: pod.gpus]), pod.node.free[pod.gpus :]
            pod.starts_at = self.now + self.random.choice((1, 2, 5))

    def _show(self, pod: SimPod) -> None:
        if self.api_up:
            pod.shown = PodState.RUNNING if pod.ended is None else PodState.EXITED
            self.pod_changed(pod)

    def _remove(self, pod: SimPod) -> None:
        if pod.ended is None and pod.node is not None:
            pod.node.release(pod)
            pod.ended = self.now
        pod.gone = True
        del self.pods[pod.name]
        self.pod_changed(pod)

    # -- faults -------------------------------------------------------------------------------------

    def _heal(self) -> None:
        if not self.api_up and self.now >= self.api_back:
            self.api_up = True
            self.say("API server back")
        if self.operator is None and self.now >= self.operator_back:
            self.operator = OperatorLife(self)
            self.say("operator begins")
        for node in self.nodes.values():
            if node.agent is None and self.now >= node.back_at:
                node.agent = AgentLife(self, node)
                self.say(f"{node.name}: agent begins")

    def break_something(self, fault: str) -> None:
        """One thing that happens to a cluster."""
        chance, held = self.random, [p.node for p in self.living() if p.node is not None]
        nodes = held or list(self.nodes.values())
        long = chance.randrange(40, 220)
        self.say(f"-- {fault}")
        self.count(fault)
        if fault in ("agent killed", "agent away"):
            self._end_agent(
                chance.choice(nodes), chance.randrange(1, 20) if fault == "agent killed" else long
            )
        elif fault in ("agents killed", "agents away"):
            for node in dict.fromkeys(nodes):
                self._end_agent(node, chance.randrange(1, 20) if fault == "agents killed" else long)
        elif fault == "agent mute":
            chance.choice(nodes).mute_until = self.now + long
        elif fault in ("operator killed", "operator away", "operator away long"):
            self.operator = None
            away = {"operator killed": chance.randrange(1, 20), "operator away long": 2000}
            self.operator_back = self.now + away.get(fault, long)
        elif fault == "agents and operator away":
            for part in ("agents away", "operator away"):
                self.break_something(part)
        elif fault in ("API server away", "API server away long"):
            self.api_up = False
            self.api_back = self.now + (chance.randrange(2, 30) if fault == "API server away" else long)
        elif fault == "source away":
            self.source_back = self.now + long
        elif fault == "program fails" and held:
            pod = chance.choice(self.living())
            pod.ends_at, pod.exit_at_end = min(pod.ends_at, self.now + 1), 1

    def fill_disk(self, node: Node, seconds: float) -> None:
        """A node's disk is full for a while."""
        self.say(f"-- {node.name}: disk full")
        self.count("disk full")
        node.full_until = self.now + seconds

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
        for node in self.nodes.values():
            node.back_at, node.mute_until = min(node.back_at, self.now), min(node.mute_until, self.now)
            node.full_until = min(node.full_until, self.now)
        self.work = min(self.work, math.ceil(self.work_done) + 100)
        self.say("-- all is well from now on")

    # -- the end ------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the job has reached its end."""
        return is_true(self.status.conditions, Type.SUCCEEDED) or is_true(self.status.conditions, Type.FAILED)

    @property
    def rests(self) -> bool:
        """Whether nothing runs and nothing is to be told any more."""
        return (
            (self.over or (self.status.phase == "Suspended" and not self.pods))
            and not self.living()
            and all(not n.account.pods and not n.power.entries for n in self.nodes.values())
            and (self.status.energy is None or not self.status.energy.pods)
        )


def _is_held(pod: SimPod, standing: Standing, agent: AgentLife | None) -> bool:
    """Whether nothing is left of a pod's allowance, by its energy or by the operator's silence."""
    used = Used(gpu=Millijoules(pod.used))
    allowance = standing.holding(used)
    silence = agent.hear().find_unconfirmed(agent.world.now) if agent is not None else 0.0
    return is_spent(used, allowance) or is_over(allowance, silence)


STOPPED = frozenset({"BudgetExhausted", "ReadingsStopped", "AllowanceSpent"})
"""Why an attempt is stopped to keep a budget."""


SIZES = (1, 8, 64)

AMBUSHES = (
    None,
    "operator killed",
    "operator away",
    "operator away",
    "agents away",
    "agents away",
    "agents killed",
)
"""What happens in the worst moment; each by itself, so that no remainder is needed."""

WORSE_AMBUSHES = (
    *AMBUSHES,
    "API server away",
    "API server away long",
    "API server away long",
    "agents and operator away",
    "agents and operator away",
)


def draw_traits(seed: int) -> Traits:
    """The world of a seed: sizes in turn, everything else by chance.

    Of nine lives of a size three have no faults but one in the worst moment, and one is calm: a steady draw, no faults.
    """
    chance = random.Random(f"traits {seed}")
    gpus = SIZES[seed % len(SIZES)]
    per_pod = {1: 1, 8: chance.choice((1, 2, 4, 8)), 64: chance.choice((4, 8, 8, 8))}[gpus]
    kind = chance.choice(KINDS)
    character: Character = chance.choice(("steady", "bursty", "lurking", "lurking"))
    lone, calm = seed // len(SIZES) % 3 == 0, seed // len(SIZES) % 9 == 1
    if lone or calm:
        character = "lurking" if lone else "steady"
    watch = chance.choice((0, 1))
    slow = chance.choice((0, 1, 2, 3))
    pass_lag = chance.randrange(0, slow + 1)
    work = chance.randrange(150, 400)
    enough = character != "lurking" and not calm and chance.random() < 0.4
    worth = (120, 220) if character == "lurking" else (160, 420)
    emissions = seed % 4 == 3
    share = random.Random(f"embodied {seed}").choice((0.0, 0.05, 0.3, 1.0)) if emissions else 0.0
    embodied = round(kind.limit * share / JOULE) * JOULE
    full = (kind.limit + embodied) * gpus / JOULE
    budget = round(full * (work * 3 + 300 if enough else chance.randrange(*worth)))
    return Traits(
        gpus=gpus,
        gpus_per_pod=per_pod,
        kind=kind,
        report_seconds=chance.choice((10, 30, 30)),
        grace=chance.choice((5, 10, 30, 30, 60)),
        character=character,
        work=work if enough else 2000,
        budget=budget,
        action="Fail" if chance.random() < 0.15 else "Suspend",
        on_unknown="Continue" if chance.random() < 0.25 else "Suspend",
        watch_lag=watch,
        pass_lag=pass_lag,
        kubelet_lag=slow - pass_lag,
        operator_skew=chance.uniform(-2, 2),
        stubborn=chance.choice((0.0, 0.5, 1.0)) if not lone else 1.0,
        emissions=emissions,
        embodied=embodied,
        faults=() if lone or calm else (*FAULTS, *(("source away",) * (4 if emissions else 0))),
        fault_rate=0.0 if lone or calm else chance.choice((0.0, 0.003, 0.015)),
        ambush=chance.choice(AMBUSHES if lone else WORSE_AMBUSHES) if character == "lurking" else None,
        edits=() if lone or calm else chance.choice(((), ("raise",), ("raise", "lower", "remove"))),
        spare_nodes=chance.choice((0, 1)),
        seconds=1300 if character == "lurking" else 700,
    )


def enough_for(world: World) -> int:
    """A budget that no program of this world can spend, in joules."""
    t = world.traits
    return (world.used + (t.kind.limit + t.embodied) * t.gpus * 3000) // JOULE


def edit_by_chance(world: World) -> None:
    """What a user does to the budget."""
    t, chance = world.traits, world.random
    used = world.used // JOULE
    full = (t.kind.limit + t.embodied) * t.gpus // JOULE
    act = chance.choice(t.edits)
    limit = world.limit
    if act == "raise":
        world.edit(max(limit or 0, used) + full * chance.randrange(20, 200))
    elif act == "lower" and limit is not None:
        world.edit(max(1000, chance.choice((used - 1, used + full * 20, used + (limit - used) // 2))))
    elif act == "remove":
        world.edit(None)
    world.count(f"budget: {act}")
    world.lurks_again()


def live(seed: int, traits: Traits | None = None, *, obeys: bool = True) -> World:
    """A life from the job's creation until it rests."""
    t = traits or draw_traits(seed)
    world = World(seed, t, obeys=obeys)
    chance = random.Random(f"life {seed}")
    rarer = random.Random(f"rarer faults of {seed}")
    crashes = 0
    while world.now < t.seconds and not (world.over and world.rests):
        world.step()
        if t.faults and chance.random() < t.fault_rate:
            fault = chance.choice(t.faults)
            crashes += fault == "program fails"
            if fault != "program fails" or crashes <= 3:
                world.break_something(fault)
        if t.faults and rarer.random() < t.fault_rate:
            world.fill_disk(rarer.choice(list(world.nodes.values())), rarer.randrange(20, 120))
        # A budget that is spent or none makes a user act sooner.
        tempted = world.limit is None or world.status.phase == "Suspended"
        if t.edits and chance.random() < (0.02 if tempted else 0.0015) and not world.over:
            edit_by_chance(world)
        elif not t.edits and world.status.phase == "Suspended" and world.rests:
            break
    world.mend()
    if t.edits and not world.over:
        world.raised = True
        world.edit(enough_for(world))
    for _ in range(30):
        world.step()
    until = world.now + 1500
    while world.now < until and not world.rests:
        world.step()
    world.check_end()
    return world


def rest(world: World, seconds: int = 200) -> int:
    """How often something is written in the API server within so many seconds, where nothing happens any more."""
    before = world.writes
    for _ in range(seconds // 5):
        world.step(5.0)
    return world.writes - before


def measure(seeds: Iterable[int]) -> dict[int, tuple[tuple[int, int], ...]]:
    """By size, of every attempt that was stopped to keep its budget: the bound, and by how much the budget was exceeded.

    Joules; less than nothing where the attempt was stopped below the budget. Of a life with several, the worst.
    """
    found: dict[int, list[tuple[int, int]]] = {size: [] for size in SIZES}
    for seed in seeds:
        world = live(seed)
        if world.ends:
            found[world.traits.gpus].append(max(world.ends, key=lambda end: end[1]))
    return {size: tuple(ends) for size, ends in found.items()}
