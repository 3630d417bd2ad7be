"""A model of GPU nodes as plain data: cards and their driver, a journal on a disk, an agent, pods, an administrator.

The agent here is the thinnest one that takes the steps of `node.caps`; what is tested is the core. Time is virtual,
chance is seeded, and the agent can be cut off between any two of its steps, as a SIGKILL would.

What cannot be told apart by anyone is kept out of the model:

- NVML has no compare-and-set, so nobody else sets a limit between the agent's reading and its next write, unless it was
  killed in between.
- Somebody who sets exactly what we set, or were about to set when we were killed, cannot be seen: others choose odd
  limits (15 W, 25 W, … above a hundred), which nobody asks for.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from greentrain.api.nodepower import IN_FORCE, CapReason, PowerLimits, resolve_cap
from greentrain.node.caps import (
    CONTEST_CHANGES,
    CONTEST_SECONDS,
    SAME_MILLIWATTS,
    Ask,
    Entry,
    Hindrance,
    Keep,
    Note,
    SetLimit,
    Verdict,
    decide_card,
    find_target,
    rehearse,
)
from greentrain.quantities import PowerCap, format_power

WATT = 1000
ROUNDS = 4
"""Looks at a card within which it comes to rest, the last of which finds nothing to do."""
SETTLED_SECONDS = 2.0
"""After so long without a disturbance a card is as it should be; the agent looks every second."""

UNSEEN_SECONDS = 900.0
"""So much later than it happened an agent that was away, or had a full disk, may first count a change by others."""

FOREVER = math.inf


class Killed(Exception):  # noqa: N818 - an event of the story, not an error
    """The agent was killed here."""


@dataclass(frozen=True)
class Range:
    """Limits a kind of card can have, in milliwatts."""

    least: int
    default: int
    most: int


RANGES = (
    Range(100 * WATT, 300 * WATT, 300 * WATT),  # as a V100's
    Range(100 * WATT, 400 * WATT, 400 * WATT),  # an A100's
    Range(200 * WATT, 700 * WATT, 700 * WATT),  # an H100's
    Range(100 * WATT, 200 * WATT, 300 * WATT),  # a card that may be given more than it comes with
)

T = TypeVar("T")

Rounding = Literal["none", "down", "nearest", "up"]


@dataclass
class Card:
    """One card as it is, whatever anybody believes of it; milliwatts, and seconds of the world's clock."""

    uuid: str
    range: Range
    rounding: Rounding = "none"
    tells_default: bool = True
    tells_enforced: bool = True
    lag: float = 0.0
    """Seconds by which the limit in force follows the one that is set."""
    limit: int = 0
    enforced: int = 0
    follows_at: float = 0.0
    prior: int = 0
    """What the last one but us has set, or the default after the driver was loaded: never to be exceeded by us."""
    ours: bool = False
    """Whether our write came last."""
    others: list[float] = field(default_factory=list)
    """When others have set the limit."""
    disturbed: float = 0.0
    lost_until: float = 0.0
    untold_until: float = 0.0
    """It answers, but does not tell its limit."""
    refused_until: float = 0.0
    refusal: CapReason = "NotPermitted"
    hanging_until: float = 0.0
    late: int | None = None
    """A write that hangs and will be applied when it no longer does."""
    hindrance: Hindrance | None = None
    hindered_until: float = 0.0
    rival: int | None = None
    """The limit some other tool insists on."""
    rival_at: float = 0.0
    rival_every: tuple[int, int] = (2, 9)
    """Seconds, from and to, after which it does."""
    rival_until: float = 0.0

    def load(self, now: float) -> None:
        """The driver is loaded."""
        self.limit = self.enforced = self.prior = self.range.default
        self.ours, self.others, self.disturbed = False, [], now
        self.lost_until = self.hanging_until = self.untold_until = 0.0
        self.late = None

    def round(self, milliwatts: int) -> int:
        """What the driver makes of a limit."""
        whole, rest = divmod(milliwatts, WATT)
        if self.rounding == "none" or not rest:
            return milliwatts
        up = self.rounding == "up" or (self.rounding == "nearest" and rest >= WATT // 2)
        return (whole + up) * WATT

    def set(self, milliwatts: int, now: float) -> None:
        """The limit is set, by whomever."""
        self.limit = self.round(milliwatts)
        self.follows_at = now + self.lag
        if not self.lag:
            self.enforced = self.limit

    def answers(self, now: float) -> bool:
        """Whether it can be read or set at all."""
        return now >= self.lost_until and now >= self.hanging_until

    def blocked(self, now: float) -> bool:
        """Whether nobody could do to it what should be done."""
        return not self.answers(now) or now < self.untold_until or now < self.refused_until

    def read(self, now: float) -> PowerLimits | CapReason:
        """Its limits as the driver tells them, or why it does not."""
        if now < self.lost_until:
            return "GpuLost"
        if now < self.hanging_until:
            return "GpuFailing"
        return PowerLimits(
            min_milliwatts=self.range.least,
            default_milliwatts=self.range.default if self.tells_default else None,
            max_milliwatts=self.range.most,
            set_milliwatts=None if now < self.untold_until else self.limit,
            enforced_milliwatts=self.enforced if self.tells_enforced else None,
        )


@dataclass
class Agent:
    """What an agent that runs has in memory."""

    journal: dict[str, Entry]
    behind: set[str] = field(default_factory=set)
    """Cards of which the disk may say something else than memory does, since it failed."""
    asks: dict[str, Ask] = field(default_factory=dict)
    """By card, as of the last look."""
    hindered: dict[str, Hindrance] = field(default_factory=dict)
    reasons: dict[str, CapReason] = field(default_factory=dict)


@dataclass
class Node:
    """A machine with cards; what is under `disk_` outlives everything."""

    name: str
    cards: list[Card]
    dry: bool = False
    boots: int = 1
    loads: int = 1
    booted: float = 0.0
    agent: Agent | None = None
    disk_journal: dict[str, Entry] = field(default_factory=dict)
    disk_asks: dict[str, PowerCap] = field(default_factory=dict)
    """The agent's copy of what the operator asks, by pod."""
    spec: dict[str, PowerCap] = field(default_factory=dict)
    """What the operator asks, at the API server, by pod."""
    holders: dict[str, str] = field(default_factory=dict)
    """Pods by the card they hold."""
    full_until: float = 0.0
    paused_until: float = 0.0

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
    happened: Counter[str] = field(default_factory=Counter)
    story: deque[str] = field(default_factory=lambda: deque(maxlen=120))
    pods: int = 0

    def __post_init__(self) -> None:
        self.random = chance = random.Random(self.seed)
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
        self.story.append(f"{self.now - 1000:6.0f} {line}")

    def count(self, what: str) -> None:
        self.happened[what] += 1

    @property
    def cards(self) -> list[tuple[Node, Card]]:
        return [(n, c) for n in self.nodes for c in n.cards]

    # -- the agent ------------------------------------------------------------------------------------

    def start_agent(self, node: Node) -> None:
        node.agent = Agent(dict(node.disk_journal))
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
        if self.now >= self.api_until:
            node.disk_asks = dict(node.spec)
        asks: dict[str, Ask] = {}
        hindered: dict[str, Hindrance] = {}
        for card in node.cards:
            pod = node.holders.get(card.uuid, "")
            if pod in node.disk_asks:
                asks[card.uuid] = Ask(pod, node.disk_asks[pod])
            if self.now < node.paused_until:
                hindered[card.uuid] = Hindrance("Paused", "a driver upgrade")
            elif card.hindrance is not None:
                hindered[card.uuid] = card.hindrance
            before = agent.asks.get(card.uuid), agent.hindered.get(card.uuid)
            if before != (asks.get(card.uuid), hindered.get(card.uuid)):
                card.disturbed = self.now
        agent.asks, agent.hindered, agent.reasons = asks, hindered, {}
        self.watchman.hear_asks(node, asks, hindered)
        self._serve_all(node, agent)
        if node.agent is agent:
            for uuid in sorted(agent.behind):
                entry = agent.journal.get(uuid)
                self.watchman.hear_entry(uuid, entry, durable=self._keep(node, agent, uuid, entry))

    def stop_agent(self, node: Node) -> None:
        """A SIGTERM: the agent gives all cards back and ends."""
        if node.agent is None:
            return
        self.say(f"{node.name}: agent is asked to end")
        node.agent.asks = {}
        self.watchman.hear_asks(node, {}, {})
        self._serve_all(node, node.agent)
        if node.agent is not None:
            self.watchman.check_given_back(node)
            self._end_agent(node)

    def _serve_all(self, node: Node, agent: Agent) -> None:
        try:
            for card in node.cards:
                for place in self._serve(node, agent, card):
                    self.watchman.check()
                    if self.random.random() < self.kill_chance:
                        self.count(f"killed {place}")
                        raise Killed
        except Killed:
            self.kill_agent(node)

    def _serve(self, node: Node, agent: Agent, card: Card) -> Iterator[str]:
        """Look at a card and take steps until there are none; stops at the places where a SIGKILL may fall."""
        ask = agent.asks.get(card.uuid)
        hindrance = agent.hindered.get(card.uuid)
        for _ in range(ROUNDS):
            limits = card.read(self.now)
            if not isinstance(limits, PowerLimits):
                self._tell(agent, card, ask, limits)
                return
            verdict = decide_card(
                limits,
                agent.journal.get(card.uuid),
                ask,
                session=node.session,
                now=self.now - node.booted,
                hindrance=hindrance,
            )
            if verdict.asked is None:
                self.watchman.hear_free(card)
            if node.dry:
                verdict = rehearse(verdict, limits.set_milliwatts)
            if not verdict.steps:
                self._tell(agent, card, ask, verdict.reason)
                return
            free = ask is None or verdict.asked is None or hindrance is not None
            note = verdict.note
            for step in verdict.steps:
                if isinstance(step, Keep):
                    kept = self._keep(node, agent, card.uuid, step.entry, ahead=free)
                    if not kept and not free:
                        self._tell(agent, card, ask, "NoJournal")
                        return
                    self.watchman.hear_note(card, note)
                    self.watchman.hear_entry(card.uuid, step.entry, durable=kept)
                    note = None
                    yield "after the journal"
                    continue
                if card.uuid in agent.behind and not free:
                    # What is repeated needs no new entry, but a change by others in between could not be kept.
                    self._tell(agent, card, ask, "NoJournal")
                    return
                yield "before the write"
                failure = self._set(node, card, step, ask, verdict)
                yield "after the write"
                if failure is not None:
                    self._tell(agent, card, ask, failure)
                    return
        raise AssertionError(f"{card.uuid} does not come to rest\n{self.told}")

    def _tell(self, agent: Agent, card: Card, ask: Ask | None, reason: CapReason) -> None:
        if ask is None:
            return
        agent.reasons[card.uuid] = reason
        self.count(reason)

    def _keep(self, node: Node, agent: Agent, uuid: str, entry: Entry | None, *, ahead: bool = False) -> bool:
        """Have the disk say something of a card; whether it does for certain. A disk that fails may say either.

        Memory goes ahead of it where nothing is forgotten that may have to be given back.
        """
        failed = self.now < node.full_until
        if not failed or self.random.random() < 0.3:
            store(node.disk_journal, uuid, entry)
        if not failed or ahead or entry is None:
            store(agent.journal, uuid, entry)
        if failed:
            agent.behind.add(uuid)
            self.count("journal fails to forget" if entry is None else "journal fails")
        else:
            agent.behind.discard(uuid)
        self.say(f"{uuid}: journal {'fails to say' if failed else 'says'} {brief(entry)}")
        return not failed

    def _set(
        self, node: Node, card: Card, step: SetLimit, ask: Ask | None, verdict: Verdict
    ) -> CapReason | None:
        """Write a limit; why it is not known to be set."""
        if self.now < card.refused_until:
            self.count("write refused")
            self.say(f"{card.uuid}: {format_power(step.milliwatts)} refused")
            return card.refusal
        self.watchman.judge_write(node, card, step, ask, verdict)
        if self.random.random() < 0.02:
            card.hanging_until = self.now + self.random.choice((1.5, 4, 10))
            card.late = step.milliwatts if self.random.random() < 0.6 else None
            self.count("write hangs and is applied" if card.late is not None else "write hangs and is not")
            self.say(f"{card.uuid}: {format_power(step.milliwatts)} hangs")
            return "GpuFailing"
        self._apply(card, step.milliwatts)
        return None

    def _apply(self, card: Card, milliwatts: int) -> None:
        card.set(milliwatts, self.now)
        card.ours = True
        self.say(f"{card.uuid}: set to {format_power(card.limit)} by us")

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
        self.say(f"{card.uuid}: set to {format_power(card.limit)} by somebody else")

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
            node.full_until = node.paused_until = 0.0
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
        return f"seed {self.seed}\n" + "\n".join(self.story)


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

    def hear_end(self, agent: Agent) -> None:
        """An agent ends, or is killed."""
        self.stale |= agent.behind

    def hear_entry(self, uuid: str, entry: Entry | None, *, durable: bool) -> None:
        """The agent knows, and mostly the disk too, something else of a card."""
        if durable:
            self.stale.discard(uuid)
            if entry is not None and entry.contested:
                self._given_up[uuid] = entry.contested
        if entry is None or entry.pending is None:
            self._unseen.pop(uuid, None)

    def hear_note(self, card: Card, note: Note | None) -> None:
        if note is None:
            return
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

    def judge_write(self, node: Node, card: Card, step: SetLimit, ask: Ask | None, verdict: Verdict) -> None:
        """A write may be made now, of this limit."""
        world, told = self._world, f"{card.uuid}: {step}\n{self._world.told}"
        assert not node.dry, f"written in a dry run: {told}"
        assert step.milliwatts <= card.prior, f"above what was there before: {told}"
        assert card.range.least <= step.milliwatts <= card.range.most, f"outside its range: {told}"
        entry = node.disk_journal.get(card.uuid)
        assert entry is not None, f"written without a journal: {told}"
        assert entry.session == node.session, f"written with a journal of another session: {told}"
        assert entry.prior == card.prior, f"the journal knows another limit from before: {told}"
        assert step.milliwatts in (entry.prior, entry.pending), f"the journal knows nothing of it: {told}"
        # Nobody who is not asked writes over somebody else's word, or a default.
        free = ask is None or verdict.asked is None or (node.agent and card.uuid in node.agent.hindered)
        assert card.ours or not free, f"written over somebody else's: {told}"
        if ask is None or free:
            assert step.milliwatts == card.prior, f"not given back: {told}"
            return
        assert step.milliwatts == verdict.target, told
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
            told = f"{card.uuid}, {format_power(card.limit)}\n{self._world.told}"
            assert card.ours, f"somebody else's change does not stand: {told}"
            assert card.limit < card.prior, f"above its limit from before because of us: {told}"
            entry = node.disk_journal.get(card.uuid)
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
                assert not node.disk_journal, f"{node.name} keeps a journal of a dry run\n{world.told}"
                assert reason not in IN_FORCE or card.limit == card.prior, world.told
            if world.now - card.disturbed < SETTLED_SECONDS or card.blocked(world.now):
                continue
            told = f"{card.uuid}, {format_power(card.limit)}, {reason}\n{world.told}"
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
        due = find_target(asked, card.prior, limits)
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
            assert node.disk_journal == {}, f"{node.name}: {node.disk_journal}\n{self._world.told}"


def odd_limit(card: Card, chance: random.Random) -> int:
    """A limit an administrator or another tool may choose, and no job asks for."""
    least, most = card.range.least // WATT // 10, card.range.most // WATT // 10
    return (chance.randrange(least, most) * 10 + 5) * WATT


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
