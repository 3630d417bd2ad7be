"""A model of GPU nodes as plain data: cards and their driver, a journal on a disk, a kubelet, pods, an administrator.

What an agent does is decided by the shipped `node.capping`, request by request; the world answers, and may cut it off
between any two requests, as a SIGKILL would. What is due is worked out apart from it, from what the agent was shown. Time
is virtual, chance is seeded.

What cannot be told apart by anyone is kept out of the model:

- NVML has no compare-and-set, so nobody else sets a limit between the agent's reading and its next write, unless it was
  killed in between.
- Somebody who sets exactly what we set, or were about to set when we were killed, cannot be seen: others choose odd
  limits (15 W, 25 W, … above a hundred), which nobody asks for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TypeVar

from greentrain.api.nodepower import IN_FORCE, CapReason, PowerLimits, resolve_cap
from greentrain.node import cards as shown
from greentrain.node.capping import (
    ENDING,
    REFUSALS,
    REFUSED_SECONDS,
    SILENT_SECONDS,
    START_SECONDS,
    Answer,
    CapJournal,
    CapSight,
    Look,
    NodeCaps,
    Noted,
    ReadLimits,
    Request,
    StoreJournal,
    WriteLimit,
)
from greentrain.node.caps import (
    CONTEST_CHANGES,
    CONTEST_SECONDS,
    SAME_MILLIWATTS,
    Ask,
    Entry,
    Hindrance,
    Note,
    find_target,
)
from greentrain.quantities import Milliwatts, PowerCap, format_power, typed
from tests.support.world.cards import FOREVER, RANGES, WATT, Card
from tests.support.world.looks import carry_out, copy_journal
from tests.support.world.pods import HoldingPod, build_holdings
from tests.support.world.story import Killed, Story

SETTLED_SECONDS = 2.0
"""After so long without a disturbance a card is as it should be; the agent looks every second."""

UNSEEN_SECONDS = 900.0
"""So much later than it happened an agent that was away, or had a full disk, may first count a change by others."""

T = TypeVar("T")


@dataclass
class AgentLife:
    """A node's agent from one start to its end: the shipped rules, and beside them what the world knows that it was shown."""

    caps: NodeCaps
    asked: dict[str, PowerCap]
    """What the operator asked last as far as this agent could read it, by pod."""
    holders_until: float
    """Until then a silent kubelet disproves nothing; seconds since the machine's start."""
    begun: bool = False
    """Whether it has been shown who holds what, or has waited for that long enough."""
    asks: dict[str, Ask] = field(default_factory=dict)
    """What is asked of each card, as of the last look."""
    listed: dict[str, Hindrance] = field(default_factory=dict)
    """Why cards could not have a cap when the kubelet listed them last."""
    refused: dict[str, tuple[float, Hindrance]] = field(default_factory=dict)
    """Until when a card that refused a limit is left alone."""
    hindered: dict[str, Hindrance] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    """Cards of which the disk may say something else than memory does, since it failed."""

    @property
    def reasons(self) -> dict[str, CapReason]:
        """What it reports of each card's cap."""
        return {uuid: report.reason for uuid, report in self.caps.reports.items()}


@dataclass
class Node:
    """A machine with cards; its `disk` outlives everything."""

    name: str
    cards: list[Card]
    dry: bool = False
    boots: int = 1
    loads: int = 1
    booted: float = 0.0
    agent: AgentLife | None = None
    disk: CapJournal = field(default_factory=CapJournal)
    spec: dict[str, PowerCap] = field(default_factory=dict)
    """What the operator asks, at the API server, by pod."""
    holders: dict[str, str] = field(default_factory=dict)
    """Pods by the card they hold."""
    full_until: float = 0.0
    paused_until: float = 0.0
    silent_until: float = 0.0
    """Until when its kubelet does not answer."""

    @property
    def session(self) -> str:
        return f"boot-{self.boots}/load-{self.loads}"


@dataclass
class World:
    """Nodes, users, an operator, an API server."""

    seed: int
    now: float = 1000.0
    nodes: list[Node] = field(default_factory=list)
    caps: dict[str, PowerCap] = field(default_factory=dict)
    """What users ask for, by pod that lives."""
    operator_until: float = 0.0
    """The operator is away until then."""
    api_until: float = 0.0
    kill_chance: float = 0.0
    """Of being killed at each place where that is possible."""
    story: Story = field(default_factory=Story)
    pods: int = 0

    def __post_init__(self) -> None:
        self.random = chance = random.Random(self.seed)
        self.rarer = random.Random(f"rarer faults of {self.seed}")
        """Another row of chances, so that a life is the same but for these."""
        for n in range(chance.randint(1, 3)):
            node = Node(f"node-{n}", [], dry=chance.random() < 0.08, booted=self.now - chance.randint(0, 900))
            model = chance.choice(RANGES)
            for c in range(chance.randint(1, 4)):
                card = Card(
                    f"card-{n}{c}",
                    model,
                    rounding=chance.choice(("none", "none", "down", "nearest", "up")),
                    tells_default=chance.random() > 0.1,
                    tells_enforced=chance.random() > 0.2,
                    lag=chance.choice((0.0, 0.0, 1.0, 4.0)),
                )
                card.load(self.now)
                if chance.random() < 0.4:
                    self.set_by_others(card, odd_limit(card, chance))
                card.enforced = card.limit
                node.cards.append(card)
            self.nodes.append(node)
            self.start_agent(node)
        self.watchman = Watchman(self)

    def say(self, line: str) -> None:
        self.story.say(self.now - 1000, line)

    def count(self, what: str) -> None:
        self.story.count(what)

    @property
    def cards(self) -> list[tuple[Node, Card]]:
        return [(n, c) for n in self.nodes for c in n.cards]

    # -- the agent ------------------------------------------------------------------------------------

    def start_agent(self, node: Node) -> None:
        caps = NodeCaps(dry_run=node.dry)
        now = self.now - node.booted
        caps.begin(now)
        caps.take_stored(copy_journal(node.disk))
        node.agent = AgentLife(caps, dict(node.disk.asked), now + START_SECONDS)
        self._disturb(node)
        self.say(f"{node.name}: agent starts")

    def kill_agent(self, node: Node) -> None:
        self._end_agent(node)
        self.say(f"{node.name}: agent killed")

    def _end_agent(self, node: Node) -> None:
        if node.agent is not None:
            self.watchman.hear_end(node.agent)
        node.agent = None

    def look(self, node: Node) -> None:
        """One look of a node's agent at all its cards."""
        agent = node.agent
        if agent is None:
            return
        reads = self.now >= self.api_until
        if reads:
            agent.asked = dict(node.spec)
        agent.caps.take_up(dict(node.spec) if reads else None)
        silent = self.now < node.silent_until
        self._expect(node, agent, silent=silent)
        self.watchman.hear_asks(node, agent.asks, agent.hindered)
        shared = frozenset(c.uuid for c in node.cards if c.hindrance is not None)
        held = {card: (HoldingPod(pod, pod),) for card, pod in node.holders.items()}
        sight = CapSight(
            self.now - node.booted,
            tuple(card.show() for card in node.cards),
            None if silent else build_holdings(held, shared=shared),
            PAUSED if self.now < node.paused_until else None,
        )
        self._carry_out(node, agent, agent.caps.look(sight))
        for reason in agent.reasons.values():
            self.count(reason)

    def _expect(self, node: Node, agent: AgentLife, *, silent: bool) -> None:
        """What an agent that was shown this is to go by."""
        now = self.now - node.booted
        before = {c.uuid: (agent.asks.get(c.uuid), agent.hindered.get(c.uuid)) for c in node.cards}
        if not silent:
            agent.begun, agent.holders_until = True, now + SILENT_SECONDS
            asked = {card: agent.asked.get(pod) for card, pod in node.holders.items()}
            agent.asks = {
                card: Ask(node.holders[card], cap) for card, cap in asked.items() if cap is not None
            }
            agent.listed = {c.uuid: c.hindrance for c in node.cards if c.hindrance is not None}
        elif now >= agent.holders_until:
            agent.begun, agent.asks, agent.listed = True, {}, {}
        agent.hindered = dict(agent.listed)
        for uuid, (until, refusal) in agent.refused.items():
            if now < until:
                agent.hindered[uuid] = refusal
        for card in node.cards:
            if self.now < node.paused_until:
                agent.hindered[card.uuid] = PAUSED
            after = agent.asks.get(card.uuid), agent.hindered.get(card.uuid)
            if before[card.uuid] != after or not agent.begun:
                card.disturbed = self.now

    def stop_agent(self, node: Node) -> None:
        """A SIGTERM: the agent gives all cards back and ends."""
        agent = node.agent
        if agent is None:
            return
        self.say(f"{node.name}: agent is asked to end")
        agent.hindered = {card.uuid: ENDING for card in node.cards}
        self.watchman.hear_asks(node, agent.asks, agent.hindered)
        self._carry_out(node, agent, agent.caps.release([card.show() for card in node.cards]))
        if node.agent is not None:
            self.watchman.check_given_back(node)
            self._end_agent(node)

    def _carry_out(self, node: Node, agent: AgentLife, look: Look[bool]) -> None:
        try:
            carry_out(look, lambda request: self._answer(node, agent, request))
        except Killed:
            self.kill_agent(node)
        self.watchman.hear_written()

    def _answer(self, node: Node, agent: AgentLife, request: Request) -> Answer:
        """Do what is asked for; a SIGKILL may fall before and after."""
        now = self.now - node.booted
        if not isinstance(request, Noted):
            self.watchman.hear_written()
        match request:
            case ReadLimits(uuid):
                return self._read(node, agent, find_card(node, uuid))
            case WriteLimit(uuid, milliwatts):
                self._pass_by("before the write")
                failure = self._set(node, agent, find_card(node, uuid), milliwatts)
                self._pass_by("after the write")
                if failure is not None and failure.reason in REFUSALS:
                    agent.refused[uuid] = (now + REFUSED_SECONDS, failure)
                return Answer(now, failure=failure)
            case StoreJournal(content):
                failure = self._store(node, agent, content)
                self._pass_by("after the journal")
                return Answer(now, failure=failure)
            case Noted(uuid, note):
                self.watchman.hear_note(find_card(node, uuid), note)
        return Answer(now)

    def _pass_by(self, place: str) -> None:
        self.watchman.check()
        if self.random.random() < self.kill_chance:
            self.count(f"killed {place}")
            raise Killed

    def _read(self, node: Node, agent: AgentLife, card: Card) -> Answer:
        now, limits = self.now - node.booted, card.read(self.now)
        if not isinstance(limits, PowerLimits):
            return Answer(now, failure=Hindrance(limits, "it does not answer"))
        ask = agent.asks.get(card.uuid)
        if ask is None or limits.set_milliwatts is None or resolve_cap(ask.cap, limits) is None:
            self.watchman.hear_free(card)
        found = shown.CurrentLimits(
            typed(Milliwatts, limits.set_milliwatts), typed(Milliwatts, limits.enforced_milliwatts)
        )
        return Answer(now, node.session, found)

    def _store(self, node: Node, agent: AgentLife, content: CapJournal) -> Hindrance | None:
        """Have the disk hold this; why it may not. A disk that fails may hold either."""
        assert content.asked == agent.asked, (
            f"{node.name}: the next agent would not know what is asked\n{self.told}"
        )
        failed, before = self.now < node.full_until, node.disk.entries
        changed = {
            uuid
            for uuid in before.keys() | content.entries.keys()
            if before.get(uuid) != content.entries.get(uuid)
        }
        if not failed or self.random.random() < 0.3:
            node.disk = copy_journal(content)
        for uuid in sorted(changed):
            entry = content.entries.get(uuid)
            self.say(f"{uuid}: journal {'fails to say' if failed else 'says'} {brief(entry)}")
            if failed:
                self.count("journal fails to forget" if entry is None else "journal fails")
        if failed:
            agent.behind |= changed
            return Hindrance("NoJournal", "the disk is full")
        agent.behind.clear()
        for card in node.cards:
            self.watchman.hear_entry(card.uuid, content.entries.get(card.uuid))
        self.watchman.written |= changed
        return None

    def _set(self, node: Node, agent: AgentLife, card: Card, milliwatts: int) -> Hindrance | None:
        """Write a limit; why it is not known to be set."""
        if self.now < card.refused_until:
            self.count("write refused")
            self.say(f"{card.uuid}: {format_power(Milliwatts(milliwatts))} refused")
            return Hindrance(card.refusal, "it refuses")
        self.watchman.judge_write(node, agent, card, milliwatts)
        if self.random.random() < 0.02:
            card.hanging_until = self.now + self.random.choice((1.5, 4, 10))
            card.late = milliwatts if self.random.random() < 0.6 else None
            self.count("write hangs and is applied" if card.late is not None else "write hangs and is not")
            self.say(f"{card.uuid}: {format_power(Milliwatts(milliwatts))} hangs")
            return Hindrance("GpuFailing", "it hangs")
        self._apply(card, milliwatts)
        return None

    def _apply(self, card: Card, milliwatts: int) -> None:
        card.set(milliwatts, self.now)
        card.ours = True
        self.say(f"{card.uuid}: set to {format_power(Milliwatts(card.limit))} by us")

    # -- everybody else -------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Time passes, and what was for a while ends."""
        before, self.now = self.now, self.now + seconds
        for node, card in self.cards:
            if card.late is not None and self.now >= card.hanging_until:
                self._apply(card, card.late)
                card.late = None
            if self.now >= card.follows_at:
                card.enforced = card.limit
            if card.hindrance is not None and self.now >= card.hindered_until:
                card.hindrance = None
            ends = (
                card.lost_until,
                card.untold_until,
                card.refused_until,
                card.hanging_until,
                node.full_until,
            )
            if any(before < end <= self.now for end in ends):
                card.disturbed = self.now
        if self.now >= self.operator_until and self.now >= self.api_until:
            for node in self.nodes:
                here = set(node.holders.values())
                node.spec = {pod: cap for pod, cap in self.caps.items() if pod in here}

    def set_by_others(self, card: Card, milliwatts: int) -> None:
        if not card.answers(self.now):
            return
        card.set(milliwatts, self.now)
        card.prior, card.ours, card.disturbed = card.limit, False, self.now
        card.others.append(self.now)
        self.say(f"{card.uuid}: set to {format_power(Milliwatts(card.limit))} by somebody else")

    def let_rivals_act(self) -> None:
        for _, card in self.cards:
            if card.rival is None:
                continue
            if self.now >= card.rival_until:
                card.rival = None
            elif self.now >= card.rival_at:
                self.set_by_others(card, card.rival)
                card.rival_at = self.now + self.random.randint(*card.rival_every)

    def load_driver(self, node: Node, *, reboot: bool) -> None:
        """A reboot, or another load of the driver: nothing that used a card survives either."""
        if reboot:
            node.boots, node.loads, node.booted = node.boots + 1, 1, self.now
            self._end_agent(node)
        else:
            node.loads += 1
        for card in node.cards:
            card.load(self.now)
        # A pod may keep its UID and its cards: its container is started anew.
        for pod in sorted(set(node.holders.values())):
            if self.random.random() < 0.7:
                self.end_pod(node, pod)
        self.watchman.forget(node)
        self.say(f"{node.name}: {'reboots' if reboot else 'loads its driver anew'}")

    def start_pod(self, node: Node, cards: list[Card], cap: PowerCap | None) -> None:
        self.pods += 1
        pod = f"pod-{self.pods}"
        if cap is not None:
            self.caps[pod] = cap
        for card in cards:
            node.holders[card.uuid] = pod
        self.say(f"{pod} holds {', '.join(c.uuid for c in cards)}, cap {cap}")

    def end_pod(self, node: Node, pod: str) -> None:
        self.caps.pop(pod, None)
        node.holders = {card: holder for card, holder in node.holders.items() if holder != pod}
        self.say(f"{pod} ends")

    def edit_cap(self, pod: str, cap: PowerCap | None) -> None:
        store(self.caps, pod, cap)
        self.say(f"{pod}: cap {cap}")

    def heal(self) -> None:
        """Everything works again, nobody uses anything, and agents live."""
        self.kill_chance = 0.0
        self.operator_until = self.api_until = 0.0
        for node in self.nodes:
            node.full_until = node.paused_until = node.silent_until = 0.0
            if any(card.lost_until == FOREVER for card in node.cards):
                self.load_driver(node, reboot=True)
            for card in node.cards:
                card.lost_until = card.untold_until = card.refused_until = 0.0
                card.hindrance = card.rival = None
            for pod in sorted(set(node.holders.values())):
                self.end_pod(node, pod)
            if node.agent is None:
                self.start_agent(node)
            self._disturb(node)

    def _disturb(self, node: Node) -> None:
        for card in node.cards:
            card.disturbed = self.now

    @property
    def told(self) -> str:
        return f"seed {self.seed}\n{self.story.text}"


PAUSED = Hindrance("Paused", "a driver upgrade")


class Watchman:
    """Checks after every step what must never be broken, whatever happened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._given_up: dict[str, str] = {}
        """Asks by card that the agent has called contested."""
        self._wars: dict[str, list[tuple[str, float]]] = {}
        """Asks and times by card at which the agent wrote over what somebody else had set in place of a cap."""
        self._capping: set[str] = set()
        """Cards that have been written for an ask since they were last free."""
        self._unseen: dict[str, int] = {}
        """Cards by whose journal a write is still to be made, and what was there before it."""
        self.written: set[str] = set()
        """Cards whose entry on the disk is another one, until what was noted of them has been said."""
        self.stale: set[str] = set()
        """Cards of which the disk was behind when the agent ended: the next one cannot know who came last."""

    def hear_asks(self, node: Node, asks: dict[str, Ask], hindered: dict[str, Hindrance]) -> None:
        """An ask that has ended, or was replaced, takes its quarrels with it."""
        for card in node.cards:
            if card.uuid not in asks or card.uuid in hindered:
                self.hear_free(card)
            key = asks[card.uuid].key if card.uuid in asks else ""
            if self._given_up.get(card.uuid, key) != key:
                self._given_up.pop(card.uuid)
                self.hear_free(card)
            self._wars[card.uuid] = [war for war in self._wars.get(card.uuid, []) if war[0] == key]

    def hear_free(self, card: Card) -> None:
        """Nothing that can be kept is asked of a card: what is asked next begins from what it then has."""
        self._capping.discard(card.uuid)

    def forget(self, node: Node) -> None:
        """Another session: all begins anew."""
        self.hear_asks(node, {}, {})

    def hear_end(self, agent: AgentLife) -> None:
        """An agent ends, or is killed."""
        self.stale |= agent.behind

    def hear_entry(self, uuid: str, entry: Entry | None) -> None:
        """What the disk holds of a card now."""
        if entry is not None and entry.contested:
            self._given_up[uuid] = entry.contested
        if entry is None or entry.pending is None:
            self._unseen.pop(uuid, None)

    def hear_written(self) -> None:
        """What was said of cards by the entries that the disk holds now was said."""
        self.stale -= self.written
        self.written.clear()

    def hear_note(self, card: Card, note: Note) -> None:
        world = self._world
        world.count(note.kind)
        world.say(f"{card.uuid}: {note.kind} {format_power(note.milliwatts)}")
        assert abs(note.milliwatts - card.limit) < SAME_MILLIWATTS, (
            f"{card.uuid}: {note} is not so\n{world.told}"
        )
        if note.kind != "Restored" and card.ours:
            assert card.uuid in self.stale, (
                f"{card.uuid}: {note}, yet we were the last to set it\n{world.told}"
            )
            card.others.append(world.now)
        if note.kind == "Contested":
            recent = [t for t in card.others if world.now - t < CONTEST_SECONDS + UNSEEN_SECONDS]
            assert len(recent) >= CONTEST_CHANGES, f"{card.uuid}: contested by nobody\n{world.told}"

    def judge_write(self, node: Node, agent: AgentLife, card: Card, milliwatts: int) -> None:
        """A write may be made now, of this limit."""
        world, told = self._world, f"{card.uuid}: {format_power(Milliwatts(milliwatts))}\n{self._world.told}"
        assert not node.dry, f"written in a dry run: {told}"
        assert milliwatts <= card.prior, f"above what was there before: {told}"
        assert card.range.least <= milliwatts <= card.range.most, f"outside its range: {told}"
        entry = node.disk.entries.get(card.uuid)
        assert entry is not None, f"written without a journal: {told}"
        assert entry.session == node.session, f"written with a journal of another session: {told}"
        assert entry.prior == card.prior, f"the journal knows another limit from before: {told}"
        assert milliwatts in (entry.prior, entry.pending), f"the journal knows nothing of it: {told}"
        ask, limits = agent.asks.get(card.uuid), card.read(world.now)
        assert isinstance(limits, PowerLimits), f"written though it does not answer: {told}"
        asked = None if ask is None else resolve_cap(ask.cap, limits)
        if ask is None or asked is None or card.uuid in agent.hindered:
            # Nobody who is not asked writes over somebody else's word, or a default.
            assert card.ours, f"written over somebody else's: {told}"
            assert milliwatts == card.prior, f"not given back: {told}"
            return
        assert milliwatts == find_target(Milliwatts(asked), Milliwatts(card.prior), limits), told
        assert self._given_up.get(card.uuid) is None, f"written although contested: {told}"
        # A write that nobody saw to have worked: others who set again what was there before look as if it had not.
        again = self._unseen.get(card.uuid) == card.prior
        self._unseen[card.uuid] = card.prior
        over, self._capping = card.uuid in self._capping and not card.ours, self._capping | {card.uuid}
        if over and not again:
            wars = self._wars.setdefault(card.uuid, [])
            wars.append((ask.key, world.now))
            lately = [w for w in wars if world.now - w[1] < CONTEST_SECONDS]
            assert len(lately) < CONTEST_CHANGES, f"too many wars: {told}"

    def check(self) -> None:
        """After any step, the agent's or the world's."""
        for node, card in self._world.cards:
            if card.limit == card.prior:
                continue
            told = f"{card.uuid}, {format_power(Milliwatts(card.limit))}\n{self._world.told}"
            assert card.ours, f"somebody else's change does not stand: {told}"
            assert card.limit < card.prior, f"above its limit from before because of us: {told}"
            entry = node.disk.entries.get(card.uuid)
            assert entry is not None, f"leaked, nothing in the journal: {told}"
            assert (entry.session, entry.prior) == (node.session, card.prior), f"leaked: {entry} {told}"
            mine = [v for v in (entry.written, entry.pending) if v is not None]
            assert any(abs(v - card.limit) < SAME_MILLIWATTS for v in mine), f"leaked: {entry} {told}"

    def check_settled(self) -> None:
        """After a look of every agent: what has been let alone for a while is as it should be."""
        self.check()
        world = self._world
        for node, card in world.cards:
            agent = node.agent
            if agent is None:
                continue
            reason = agent.reasons.get(card.uuid)
            ask = agent.asks.get(card.uuid)
            if ask is not None and reason == "Contested":
                self._given_up[card.uuid] = ask.key
            if node.dry:
                assert not node.disk.entries, f"{node.name} keeps a journal of a dry run\n{world.told}"
                assert reason not in IN_FORCE or card.limit == card.prior, world.told
            if world.now - card.disturbed < SETTLED_SECONDS or card.blocked(world.now):
                continue
            told = f"{card.uuid}, {format_power(Milliwatts(card.limit))}, {reason}\n{world.told}"
            hindrance = agent.hindered.get(card.uuid)
            if node.dry or ask is None or hindrance is not None or reason == "Contested":
                assert card.limit == card.prior, f"not as it was before: {told}"
                if ask is not None and hindrance is not None and not node.dry:
                    assert reason == hindrance.reason, f"hindered by {hindrance}: {told}"
                continue
            self._check_cap(node, card, ask, reason, told)

    def _check_cap(self, node: Node, card: Card, ask: Ask, reason: CapReason | None, told: str) -> None:
        limits = card.read(self._world.now)
        assert isinstance(limits, PowerLimits)
        asked = resolve_cap(ask.cap, limits)
        if asked is None:
            assert (card.limit, reason) == (card.prior, "Unsupported"), told
            return
        if self._world.now < node.full_until:
            return
        due = find_target(Milliwatts(asked), Milliwatts(card.prior), limits)
        assert abs(card.limit - due) < SAME_MILLIWATTS, f"{format_power(due)} is due: {told}"
        lags = card.tells_enforced and card.enforced >= due + SAME_MILLIWATTS
        assert reason in ({"Applying"} if lags else IN_FORCE), f"{ask.cap}: {told}"

    def check_given_back(self, node: Node) -> None:
        """An agent that was asked to end has."""
        for card in node.cards:
            if not card.blocked(self._world.now):
                assert card.limit == card.prior, f"{card.uuid} is not given back\n{self._world.told}"

    def check_rest(self) -> None:
        """At the end nothing is left behind."""
        for node, card in self._world.cards:
            assert card.limit == card.prior, f"{card.uuid} is not as it was before\n{self._world.told}"
            assert node.disk.entries == {}, f"{node.name}: {node.disk.entries}\n{self._world.told}"


def odd_limit(card: Card, chance: random.Random) -> int:
    """A limit an administrator or another tool may choose, and no job asks for."""
    least, most = card.range.least // WATT // 10, card.range.most // WATT // 10
    return (chance.randrange(least, most) * 10 + 5) * WATT


def find_card(node: Node, uuid: str) -> Card:
    """A card of a node."""
    return next(card for card in node.cards if card.uuid == uuid)


def brief(entry: Entry | None) -> str:
    """An entry as a story tells it."""
    if entry is None:
        return "nothing"
    said = [f"before {format_power(entry.prior)}"]
    if entry.written is not None:
        said.append(f"written {format_power(entry.written)}")
    if entry.pending is not None:
        said.append(f"about to write {format_power(entry.pending)}")
    if entry.changes:
        said.append(f"{len(entry.changes)} changes by others")
    if entry.contested:
        said.append(f"contested {entry.contested}")
    return ", ".join(said)


def store(where: dict[str, T], key: str, value: T | None) -> None:
    """Put it there, or take away what was there."""
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
