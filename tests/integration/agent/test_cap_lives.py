"""Sixty nodes' lives on virtual time with power caps: what the cards are set to, whatever happens to whom.

The agent is the shipped one, with its loop, its journals and NVML's bindings; the cards' limits are read past it, and a
model that knows only what others did to them says what they may be. What nobody could tell apart is kept out:

- NVML has no compare-and-set, so nobody else sets a card that hangs: a write of ours may be on its way there.
- Others choose odd limits (155.5 W), which nobody asks for.
- The driver is loaded anew only while no agent has NVML open: it cannot be unloaded before.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import get_args

import pytest

from greentrain.agent.caps import FILE as CAPS_FILE
from greentrain.api.nodepower import CapReason, PowerLimits, resolve_cap
from greentrain.devices.nvidia.references import CardReference, FullCard, MigInstance, SharedReplica
from greentrain.node.capping import REFUSED_SECONDS, SILENT_SECONDS, START_SECONDS
from greentrain.node.caps import CONTEST_CHANGES, CONTEST_SECONDS, find_target
from greentrain.node.schedule import DISCOVER_SECONDS, LIST_SECONDS, REOPEN_SECONDS
from greentrain.quantities import Milliwatts, PowerCap, format_power
from sandbox.simgpu import cards as simulated
from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import Calls, Fault
from tests.contract.nvml.answers import STATE, answer
from tests.integration.agent.test_seeds import Outcome, Story, judge, quick_folder
from tests.integration.agent.world import LivePod, Node, Trouble
from tests.support.lives import Suite

WATT = 1000

SETTLE_SECONDS = 3.0
"""So long after the last disturbance a card is as it should be."""

LATE_SECONDS = 120.0
"""Others' changes may be further apart than the agent saw them: it was away, or its disk was full."""

HANG_REST = 0.05
"""Real seconds more than usual for a write that hung: on the clock, what comes late would come minutes late."""

INVALID_ARGUMENT = 2

REASONS = frozenset(get_args(CapReason))
HAPPENED = frozenset(
    {
        "agent ends",
        "agent killed",
        "agent without API server",
        "another load of the driver",
        "API server away",
        "calls fail",
        "cap edited",
        "cap not asked any more",
        "cap of watts",
        "cap of percent",
        "card handed over",
        "card hangs",
        "card lost",
        "card refuses",
        "contested",
        "disk full",
        "driver paused",
        "dry run",
        "foreign change",
        "given back",
        "kubelet silent for minutes",
        "kubelet silent for seconds",
        "killed after a limit was set",
        "killed before a limit is set",
        "limit set by an administrator",
        "limit set while no agent runs",
        "limit that was ours",
        "limits not supported",
        "NVML unusable",
        "pod begins",
        "pod ends",
        "reboot",
        "rival",
    }
)


@dataclass
class CardTruth:
    """One card's limit as it is, and as it would be without us; milliwatts and seconds of the story."""

    index: int
    uuid: str
    limits: PowerLimits
    mig: bool
    prior: int
    """What anybody but the agent has set last, or the default after the driver was loaded."""
    limit: int
    """What was found last."""
    settled: float = SETTLE_SECONDS
    """It need not be as it should before this time."""
    troubled: float = -1.0
    """Until then it does not answer, or refuses."""
    deaf: bool = False
    """Its limit was said not to be supported, which an agent believes for as long as it has NVML open."""
    stuck: bool = False
    """It could not be given back before NVML was let go."""
    basis: tuple[object, ...] = ()
    """Everything it depends on what is due."""
    calm: float = 0.0
    """When it was last found as it should be."""
    asked_from: float = 0.0
    """When it was last found so before the present ask."""
    others: list[float] = field(default_factory=list)
    """When others have set it."""
    overwritten: list[float] = field(default_factory=list)
    """When the agent has set it anew in place of what somebody else had set on a capped card."""
    capped: bool = False
    """Whether the agent has set it since it was last as it was before."""
    theirs: bool = False
    """Whether somebody else was the last to set it."""
    may_ask: set[str] = field(default_factory=set)
    """Pods for which the agent may still believe that a cap is due."""

    def unsettle(self, until: float) -> None:
        self.settled = max(self.settled, until)

    def may_be_contested(self, now: float) -> bool:
        """Whether others set it so often that the agent may have given up, since what is asked now is asked."""
        times = [t for t in self.others if t <= now]
        return any(
            third - first < CONTEST_SECONDS + LATE_SECONDS and third > self.asked_from
            for first, third in zip(times, times[CONTEST_CHANGES - 1 :], strict=False)
        )


class Watchman:
    """Looks at the cards whenever time passes, and says what must never be."""

    def __init__(self, node: Node, life: Life) -> None:
        self.node = node
        self._life = life
        self.broken: list[str] = []
        self.agent_since: float | None = None
        """When the agent began; None while none lives, or it gives everything back to end."""
        self.dry = False
        self.writes_allowed = False
        self._kubelet_since: float | None = None
        self._was_paused = False
        self._caps: Mapping[str, PowerCap] = {}
        """What the last agent was told, or knew from its disk."""
        self._copied: Mapping[str, PowerCap] = {}
        """What is on its disk for sure."""
        self._steady = 0.0
        """When all was last well, and on the disk."""
        self._unsure = False
        """Whether an agent that nobody tells what is asked may know something older."""
        self.cards = [self._begin(index) for index in node.cards]

    def _begin(self, index: int) -> CardTruth:
        reading = self.node.cards.read_card(index)
        profile = simulated.read_profiles()[reading.profile]
        limits = PowerLimits(
            min_milliwatts=round(profile.min_watts * WATT),
            default_milliwatts=round(profile.default_watts * WATT),
            max_milliwatts=round(profile.max_watts * WATT),
        )
        limit = round(reading.limit_watts * WATT)
        return CardTruth(index, reading.uuid, limits, reading.mig, limit, limit)

    # -- what others do -----------------------------------------------------------------------------------

    def set_by_others(self, index: int, milliwatts: int) -> None:
        now, card = self.node.clock.now(), self.cards[index]
        self._find_writes(card, now)
        self.node.cards.set_limit(index, milliwatts / WATT)
        card.prior = card.limit = milliwatts
        card.theirs = True
        card.others.append(now)
        card.unsettle(now + SETTLE_SECONDS)

    def load(self) -> dict[int, int]:
        """The driver was loaded: every card is as it comes. Returns what the agent had set, by card."""
        ours = {c.index: c.limit for c in self.cards if c.limit != c.prior}
        for card in self.cards:
            assert card.limits.default_milliwatts is not None
            card.prior = card.limit = card.limits.default_milliwatts
            card.others, card.overwritten, card.capped, card.theirs = [], [], False, False
            card.unsettle(self.node.clock.now() + SETTLE_SECONDS)
        return ours

    def trouble(self, index: int | None, until: float) -> None:
        """Until then nobody can do to a card, or to any, what should be done."""
        for card in self.cards:
            if index in (None, card.index):
                card.troubled = max(card.troubled, until)
                card.unsettle(until + SETTLE_SECONDS)

    def begin_agent(self, *, dry: bool) -> None:
        self.agent_since, self.dry, self.writes_allowed = self.node.clock.now(), dry, True
        began = max((p.begun for p in self.node.live if p.runs), default=0.0)
        self._unsure = dict(self._caps) != dict(self._copied) or began > self._steady
        for card in self.cards:
            card.overwritten.clear()
            card.deaf = card.deaf and card.troubled >= self.agent_since

    def end_agent(self) -> None:
        """It is about to end, or about to be killed."""
        self.agent_since = None

    # -- what is found ------------------------------------------------------------------------------------

    def look(self) -> None:
        """At every card."""
        now = self.node.clock.now()
        if self.agent_since is not None and self.node.api.caps is not None:
            self._caps = self.node.api.caps
        self._look_at_node(now)
        for card in self.cards:
            self._look_at(card, now)
        well = not (self.node.disk_full or self.node.kubelet_away or self._was_paused)
        if well and self.agent_since is not None and all(now > c.settled for c in self.cards):
            self._steady, self._copied = now, self._caps
        agent = self.node.agent
        if agent is not None and self.writes_allowed:
            for report in agent.caps.reports.values():
                self._life.happened[report.reason] += 1

    def _look_at_node(self, now: float) -> None:
        node = self.node
        paused = node.api.paused is not None
        if self._was_paused and not paused:
            for card in self.cards:
                card.stuck = False
                card.unsettle(now + REOPEN_SECONDS + SETTLE_SECONDS)
        self._was_paused = paused
        self._kubelet_since = None if not node.kubelet_away else self._kubelet_since or now
        unsure = self._unsure and node.api.caps is None
        if self.agent_since is None or unsure or (node.api.lag and not node.api.away):
            for card in self.cards:
                card.unsettle(now + SETTLE_SECONDS)

    def _look_at(self, card: CardTruth, now: float) -> None:
        ask, holders = self._find_ask(card)
        basis = (holders, ask, self._is_free(card), self._is_silent(now), self.node.kubelet_away)
        if basis != card.basis:
            card.basis = basis
            card.asked_from = card.calm
            card.overwritten.clear()
            card.capped = card.capped and not card.theirs
            card.unsettle(now + SETTLE_SECONDS)
        if self._was_paused and now <= card.troubled:
            card.stuck = True
        silent = self.node.kubelet_away and not self._is_silent(now)
        # Without a disk nothing is set, and what was set is kept.
        blocked = ask is not None and self.node.disk_full and not self._is_free(card)
        if silent or blocked or card.deaf or (card.stuck and self._was_paused):
            card.unsettle(now + SETTLE_SECONDS)
        if now <= card.settled:
            card.may_ask |= {p.uid for p in self._holders(card) if self._may_be_asked(p.uid)}
        self._find_writes(card, now)
        if card.limit > card.prior:
            self._fail(card, "above what it was before because of us")
        if now > card.settled:
            self._check(card, ask, now)

    def _find_writes(self, card: CardTruth, now: float) -> None:
        """The agent's, since everybody else's are known."""
        found = round(self.node.cards.read_card(card.index).limit_watts * WATT)
        if found == card.limit:
            return
        before, card.limit = card.limit, found
        self._life.say(
            f"card {card.index}: {format_power(Milliwatts(before))} -> {format_power(Milliwatts(found))} by the agent"
        )
        if not self.writes_allowed:
            self._fail(card, "set while no agent lives")
        if found == card.prior:
            card.capped = False
        elif not card.may_ask:
            self._fail(card, "set although no pod that asks holds it")
        else:
            if card.capped and card.theirs:
                card.overwritten = [t for t in card.overwritten if now - t < CONTEST_SECONDS] + [now]
            if len(card.overwritten) >= CONTEST_CHANGES:
                self._fail(card, "a quarrel goes on")
            card.capped = True
        card.theirs = False

    def _check(self, card: CardTruth, ask: PowerCap | None, now: float) -> None:
        due, free = card.prior, ask is None or self._is_free(card) or self._is_silent(now)
        if ask is not None and not free:
            asked = resolve_cap(ask, card.limits)
            assert asked is not None
            due = find_target(Milliwatts(asked), Milliwatts(card.prior), card.limits)
        left = not free and card.limit == card.prior and card.may_be_contested(now)
        if card.limit != due and not left:
            self._fail(card, f"{format_power(Milliwatts(due))} is due")
        card.calm = now
        if free:
            card.capped = False
            card.overwritten.clear()
        card.may_ask = set() if free else {p.uid for p in self._holders(card)}

    def _holders(self, card: CardTruth) -> list[LivePod]:
        return [p for p in self.node.live if p.runs and card.index in p.cards]

    def _find_ask(self, card: CardTruth) -> tuple[PowerCap | None, tuple[str, ...]]:
        """What is asked for a card as far as it was told, and who holds it."""
        holders = [p.uid for p in self._holders(card)]
        return next((self._caps[uid] for uid in holders if uid in self._caps), None), tuple(holders)

    def _may_be_asked(self, uid: str) -> bool:
        return any(uid in caps for caps in (self.node.api.caps_now or {}, self._caps, self._copied))

    def _is_free(self, card: CardTruth) -> bool:
        """Whether no cap may be on it, whatever is asked."""
        parts = any(p.devices and p.devices != (FullCard(card.uuid),) for p in self._holders(card))
        return self.dry or self._was_paused or card.mig or parts

    def _is_silent(self, now: float) -> bool:
        """Whether the kubelet has not said for so long who holds what that nothing may be capped."""
        if self._kubelet_since is None:
            return False
        if self.agent_since is not None and self.agent_since > self._kubelet_since:
            return now > self.agent_since + START_SECONDS
        return now > self._kubelet_since + SILENT_SECONDS + LIST_SECONDS

    # -- at an agent's end --------------------------------------------------------------------------------

    def check_given_back(self, begun: float) -> None:
        """An agent that was asked to end at `begun` has given back what it could."""
        for card in self.cards:
            if begun > card.troubled and not card.deaf and card.limit != card.prior:
                self._fail(card, "not given back at the agent's end")

    def check_rest(self) -> None:
        """At the very end nothing is left behind, on cards or in the journal."""
        for card in self.cards:
            if card.limit != card.prior:
                self._fail(card, "not as it was before at the end")
        path = self.node.folder / CAPS_FILE
        entries = json.loads(path.read_text())["entries"] if path.exists() else {}
        for uuid, entry in entries.items():
            if entry["written"] is not None or entry["pending"] is not None:
                self.broken.append(f"the journal still has {uuid}: {entry}")

    def _fail(self, card: CardTruth, what: str) -> None:
        agent = self.node.agent
        said = None if agent is None else agent.caps.reports.get(card.uuid)
        self.broken.append(
            f"{self.node.clock.now():.1f} card {card.index}: {what}; it is at {format_power(Milliwatts(card.limit))}, it was at "
            f"{format_power(Milliwatts(card.prior))} before; the agent says {said}"
        )

    def judge(self) -> None:
        assert not self.broken, "\n".join([self.broken[0], *self._life.told])


class Life(Story):
    """What happens on a node, one thing after the other, each drawn when the one before has happened."""

    def __init__(self, seed: int, node: Node) -> None:
        super().__init__(seed, node)
        self.length = self.chance.uniform(150, 700)
        self.happened: Counter[str] = Counter()
        self.watchman = Watchman(node, self)
        self.ending: str | None = None
        """How the agent is to end."""
        self._until: defaultdict[str, float] = defaultdict(float)
        self._pace = self.chance.choice([4.0, 10.0, 25.0])
        self._hangs_left = self.chance.choice([0, 1, 1])
        refusals = [Fault.NO_PERMISSION, Fault.NOT_SUPPORTED, None]
        self._refusals = self.chance.sample(refusals, len(refusals))
        """How calls that set a limit are refused, in turn; None: the limit is out of range."""
        self._rival_left = self.chance.choice([0, 1, 2])
        node.clock.watch = self.watchman.look
        node.api.caps_now = {}
        users: list[tuple[float, Callable[[], None]]] = [
            (4, self.begin),
            (2, self.finish),
            (3, self.edit),
            (1.5, self.administer),
            (0.5, self.contend),
        ]
        faults: list[tuple[float, Callable[[], None]]] = [
            (1.5, self.end_agent),
            (1, self.let_die),
            (1, self.silence_kubelet),
            (1, self.lose_api),
            (1, self.fill_disk),
            (2.5, self.break_card),
            (0.6, self.pause),
            (0.4, self.go_down),
        ]
        self._users, self._faults = users, faults
        self._fault_chance = self.chance.choice([0.1, 0.3, 0.5])

    @property
    def now(self) -> float:
        return self.node.clock.now()

    def write(self) -> None:
        for moment in range(int(self.length // 20) + 8):
            self.node.clock.at(20.0 * moment, self.node.operate)
        for _ in self.node.cards:
            self.node.clock.at(self.chance.uniform(0, 5), self.begin)
        self.node.clock.at(self.chance.uniform(1, 10), self.go_on)

    def go_on(self) -> None:
        """One thing more happens."""
        if self.now >= self.length:
            return
        table = self._faults if self.chance.random() < self._fault_chance else self._users
        acts, weights = [act for _, act in table], [weight for weight, _ in table]
        self.chance.choices(acts, weights)[0]()
        self.later(self.chance.expovariate(1 / self._pace), self.go_on)

    def later(self, seconds: float, deed: Callable[[], None]) -> None:
        self.node.clock.at(self.now + seconds, deed)

    def last(self, what: str, seconds: float, end: Callable[[], None]) -> None:
        """Something lasts; where it is begun anew meanwhile, until the later end."""
        until = self.now + seconds
        self._until[what] = max(self._until[what], until)

        def stop() -> None:
            if self.now >= self._until[what]:
                end()

        self.later(seconds, stop)

    def count(self, what: str, text: str = "") -> None:
        self.happened[what] += 1
        self.say(f"{what} {text}")

    # -- users and administrators -------------------------------------------------------------------------

    def choose_cap(self, card: int) -> PowerCap:
        if self.chance.random() < 0.4:
            self.happened["cap of percent"] += 1
            return PowerCap(percent=self.chance.choice([10, 30, 50, 60, 70, 80, 90, 100]))
        self.happened["cap of watts"] += 1
        limits = self.watchman.cards[card].limits
        assert limits.min_milliwatts is not None
        assert limits.max_milliwatts is not None
        least, most = limits.min_milliwatts // WATT, limits.max_milliwatts // WATT
        return PowerCap(milliwatts=Milliwatts(self.chance.randrange(least - 20, most + 20, 10) * WATT))

    def ask(self, pod: LivePod, cap: PowerCap | None) -> None:
        """The operator has it in NodePower, as long as the pod is there."""
        caps = dict(self.node.api.caps_now or {})
        caps.pop(pod.uid, None)
        if cap is not None and pod.ended is None:
            caps[pod.uid] = cap
        self.node.api.caps_now = caps
        self.node.api.bring()

    def begin(self) -> None:
        """A pod begins on cards that nobody holds, on a part of one in MIG mode, or beside others."""
        node = self.node
        held = {c for p in node.live if p.ended is None for c in p.cards}
        free = [c for c in node.cards if c not in held]
        if node.api.away or node.down or not free:
            return  # the kubelet would not learn of it
        card = self.chance.choice(free)
        truth = self.watchman.cards[card]
        if truth.mig:
            part = self.chance.choice(node.cards.read_instances(card))
            self.start((card,), (MigInstance(part.uuid),))
        elif self.chance.random() < 0.06:
            whole = FullCard(truth.uuid)
            for replica in range(self.chance.choice([1, 2])):
                self.start((card,), (SharedReplica(whole, replica),))
        else:
            whole_cards = [c for c in free if not self.watchman.cards[c].mig]
            self.start(tuple(self.chance.sample(whole_cards, self.chance.randint(1, len(whole_cards)))))

    def start(self, cards: tuple[int, ...], devices: tuple[CardReference, ...] = ()) -> None:
        node = self.node
        pod = node.begin_pod(f"job-{len(node.live)}", cards, devices)
        for card in cards:
            node.set_load(card, self.chance.choice([0.3, 0.9, 1.0]))
        self.count("pod begins", f"{pod.uid} on {cards} {devices or ''}")
        node.api.bring()
        if self.chance.random() < 0.85:
            cap = self.choose_cap(cards[0])
            self.later(self.chance.choice([0.0, self.chance.uniform(0, 3)]), lambda: self.edit_to(pod, cap))

    def edit_to(self, pod: LivePod, cap: PowerCap | None) -> None:
        if pod.ended is None:
            self.say(f"{pod.uid} asks for {cap}")
            self.ask(pod, cap)

    def finish(self) -> None:
        """A pod ends; its cards may be another's at once."""
        pods = [p for p in self.node.live if p.runs]
        if not pods:
            return
        pod = self.chance.choice(pods)
        self.end_pod(pod)
        if not pod.devices and not self.node.api.away and self.chance.random() < 0.4:
            self.count("card handed over")
            self.start(pod.cards)

    def end_pod(self, pod: LivePod) -> None:
        self.node.end_pod(pod)
        self.count("pod ends", pod.uid)
        self.node.api.bring()
        self.later(self.chance.uniform(0, 4), lambda: self.ask(pod, None))
        self.later(self.chance.uniform(0, 60), lambda: self.node.remove_pod(pod))

    def edit(self) -> None:
        pods = [p for p in self.node.live if p.ended is None]
        if not pods:
            return
        pod = self.chance.choice(pods)
        if self.chance.random() < 0.2:
            self.happened["cap not asked any more"] += 1
            self.edit_to(pod, None)
        else:
            self.happened["cap edited"] += 1
            self.edit_to(pod, self.choose_cap(pod.cards[0]))

    def odd_limit(self, card: CardTruth) -> int:
        assert card.limits.min_milliwatts is not None
        assert card.limits.max_milliwatts is not None
        least, most = card.limits.min_milliwatts // WATT // 10, card.limits.max_milliwatts // WATT // 10
        return self.chance.randrange(least, most) * 10 * WATT + 5500

    def administer(self) -> None:
        card = self.chance.choice(self.watchman.cards)
        self.set_limit(card, self.odd_limit(card), "limit set by an administrator")

    def contend(self) -> None:
        """Some tool insists on a limit for a while."""
        if not self._rival_left:
            return
        self._rival_left -= 1
        card = self.chance.choice(self.watchman.cards)
        limit, end = self.odd_limit(card), self.now + self.chance.uniform(10, 90)
        every = self.chance.choice([(2.0, 9.0), (4.0, 5.0), (20.0, 70.0)])

        def insist() -> None:
            if self.now < end:
                self.set_limit(card, limit, "rival")
                self.later(self.chance.uniform(*every), insist)

        insist()

    def set_limit(self, card: CardTruth, limit: int, who: str) -> None:
        if self.node.down or self._is_hanging() or self.now < self._until[f"lost {card.index}"]:
            return
        if self.watchman.agent_since is None:
            self.happened["limit set while no agent runs"] += 1
        self.count(who, f"sets card {card.index} to {format_power(Milliwatts(limit))}")
        self.watchman.set_by_others(card.index, limit)

    def _is_hanging(self) -> bool:
        return self.now <= self._until["hang"]

    # -- what goes wrong ----------------------------------------------------------------------------------

    def end_agent(self) -> None:
        if self.watchman.agent_since is not None and not self.ending:
            self.ending = self.chance.choice(["agent killed", "agent ends"])

    def let_die(self) -> None:
        """The next time it sets a limit it gets no further."""
        if self.watchman.agent_since is not None:
            self.node.dies = self.chance.choice(["before a limit is set", "after a limit was set"])

    def go_down(self) -> None:
        if self.watchman.agent_since is not None:
            self.ending = "reboot"

    def silence_kubelet(self) -> None:
        long = self.chance.random() < 0.3
        seconds = self.chance.uniform(75, 150) if long else self.chance.uniform(1, 12)
        self.count(f"kubelet silent for {'minutes' if long else 'seconds'}", f"({seconds:.0f} s)")
        self.node.kubelet_away = True
        self.last("kubelet", seconds, lambda: self.hear_kubelet())

    def hear_kubelet(self) -> None:
        self.node.kubelet_away = False
        self.say("the kubelet answers")

    def lose_api(self) -> None:
        seconds = self.chance.choice([self.chance.uniform(3, 20), self.chance.uniform(20, 200)])
        self.count("API server away", f"for {seconds:.0f} s")
        self.node.api.away = True
        self.last("API", seconds, self.find_api)
        if self.chance.random() < 0.4:
            self.later(self.chance.uniform(0, seconds), self.end_agent)

    def find_api(self) -> None:
        self.node.api.away = False
        self.say("the API server is there")
        self.node.api.bring()

    def fill_disk(self) -> None:
        seconds = math.exp(self.chance.uniform(math.log(2), math.log(100)))
        self.count("disk full", f"for {seconds:.0f} s")
        self.node.disk_full = True
        self.last("disk", seconds, self.empty_disk)
        if self.chance.random() < 0.3:
            self.later(self.chance.uniform(0, seconds), self.end_agent)

    def empty_disk(self) -> None:
        self.node.disk_full = False
        for card in self.watchman.cards:
            card.unsettle(self.now + SETTLE_SECONDS)
        self.say("the disk is not full any more")

    def break_card(self) -> None:
        act = self.chance.choice(
            [
                self.lose,
                self.refuse,
                self.refuse,
                self.fail,
                self.let_hang,
                self.let_hang,
                self.lose_nvml,
                self.tell_no_limit,
            ]
        )
        if not self.node.down and not self._is_hanging():
            act()

    def lose(self) -> None:
        card, seconds = self.chance.choice([*self.node.cards]), self.chance.uniform(1, 40)
        self.count("card lost", str(card))
        self.last(f"lost {card}", seconds, lambda: None)
        self.trouble(Trouble(card, Fault.LOST, self.now, self.now + seconds))
        # Left alone until cards are discovered anew.
        self.watchman.trouble(card, self.now + seconds + DISCOVER_SECONDS + 5)

    def refuse(self) -> None:
        held = [c for p in self.node.live if p.runs and not p.devices for c in p.cards]
        card, seconds = self.chance.choice(held or [*self.node.cards]), self.chance.uniform(2, 30)
        self.count("card refuses", str(card))
        kind = self._refusals[self.happened["card refuses"] % len(self._refusals)]
        if kind is None:
            answer(self.node.cards, card, INVALID_ARGUMENT, Calls.SET)
            self.later(seconds, lambda: self.node.cards.clear_faults(card))
        else:
            self.trouble(Trouble(card, kind, self.now, self.now + seconds, Calls.SET))
        self.watchman.trouble(card, self.now + seconds + REFUSED_SECONDS + 1)
        # It shows only where something is to be set.
        for pod in [p for p in self.node.live if p.runs and card in p.cards and not p.devices]:
            self.edit_to(pod, self.choose_cap(card))

    def fail(self) -> None:
        card, seconds = self.chance.choice([*self.node.cards]), self.chance.uniform(1, 20)
        kind = self.chance.choice([Fault.TIMEOUT, Fault.UNKNOWN, Fault.NO_PERMISSION])
        calls = self.chance.choice([Calls.SET, Calls.LIMIT, Calls.LIMIT | Calls.SET])
        self.count("calls fail", f"{kind.name} of {calls!r} on {card} for {seconds:.0f} s")
        self.trouble(Trouble(card, kind, self.now, self.now + seconds, calls))
        # A refusal is not tried again at once; an agent that begins meanwhile does not get to know a card without limits.
        rest = DISCOVER_SECONDS + 5 if calls & Calls.LIMIT else REFUSED_SECONDS + 1
        self.watchman.trouble(card, self.now + seconds + rest)
        if kind is Fault.UNKNOWN:
            # Where every card that is left answers so, NVML is opened anew, and cards are named a minute later.
            self.watchman.trouble(None, self.now + seconds + DISCOVER_SECONDS + REOPEN_SECONDS)

    def tell_no_limit(self) -> None:
        """A card tells no limit for a while, which an agent takes for a card without one."""
        if self.chance.random() < 0.5:
            return
        card, seconds = self.chance.choice([*self.node.cards]), self.chance.uniform(2, 10)
        self.count("limits not supported", str(card))
        self.trouble(Trouble(card, Fault.NOT_SUPPORTED, self.now, self.now + seconds, Calls.LIMIT))
        self.watchman.trouble(card, self.now + seconds)
        self.watchman.cards[card].deaf = True

    def let_hang(self) -> None:
        if not self._hangs_left:
            return
        self._hangs_left -= 1
        seconds = self.chance.uniform(1, 7)
        card = self.chance.choice([None, *self.node.cards])
        calls = self.chance.choice([Calls.SET, Calls.LIMIT | Calls.SET, Calls.ALL])
        self.count("card hangs", f"{card} for {seconds:.1f} s: {calls!r}")
        self.trouble(Trouble(card, Fault.HANG, self.now, self.now + seconds, calls))
        self.last("hang", seconds + 0.1, lambda: time.sleep(HANG_REST))
        # Beside it the others wait; a card that hung while cards were discovered is known a minute later.
        self.watchman.trouble(None, self.now + seconds + DISCOVER_SECONDS + REOPEN_SECONDS)

    def lose_nvml(self) -> None:
        seconds = self.chance.uniform(5, 15)
        self.count("NVML unusable", f"for {seconds:.0f} s")
        self.trouble(Trouble(None, Fault.UNKNOWN, self.now, self.now + seconds))
        self.watchman.trouble(None, self.now + seconds + 2 * REOPEN_SECONDS)

    def pause(self) -> None:
        if self.node.api.paused_now is not None:
            return
        seconds = self.chance.choice([self.chance.uniform(2, 15), self.chance.uniform(25, 60)])
        self.count("driver paused", f"for {seconds:.0f} s")
        self.node.api.paused_now = "the driver is being replaced."
        self.node.api.bring()
        if seconds > 25:
            self.later(self.chance.uniform(15, seconds), self.load_driver)
        self.later(seconds, self.unpause)

    def unpause(self) -> None:
        self.node.api.paused_now = None
        self.say("the driver is not paused any more")
        self.node.api.bring()

    def load_driver(self) -> None:
        if self.node.uses_driver or self.node.down or self._is_hanging():
            return
        self.count("another load of the driver")
        self.watchman.look()
        self.node.load_driver()
        self.set_again(self.watchman.load())

    def set_again(self, ours: Mapping[int, int]) -> None:
        """What the agent had set before the driver was loaded is now, by chance, an administrator's limit."""
        for index, limit in ours.items():
            if self.chance.random() < 0.5:
                self.set_limit(self.watchman.cards[index], limit, "limit that was ours")

    # -- the agent ----------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        dry = self.chance.random() < 0.06
        if dry:
            self.happened["dry run"] += 1
        if self.node.api.away:
            self.happened["agent without API server"] += 1
        self.say(f"agent begins{' a dry run' if dry else ''}")
        self.node.start_agent(dry_run=dry)
        self.watchman.begin_agent(dry=dry)

    async def follow(self, end: float) -> None:
        """The agent lives, ends and begins anew."""
        node = self.node
        while self.now < end:
            await asyncio.sleep(0)
            self.watchman.judge()
            assert node._task is not None
            if node._task.done():
                node._task.result()
            if node.dying:
                self.count(f"killed {node.dies}")
                await self.kill_agent()
                await self.begin_anew()
            elif self.ending is not None:
                how, self.ending = self.ending, None
                if how == "agent ends":
                    await self.stop()
                else:
                    self.happened["agent killed"] += 1
                    await self.kill_agent()
                if how == "reboot":
                    self.boot()
                await self.begin_anew()

    async def kill_agent(self) -> None:
        self.say("agent killed")
        self.watchman.end_agent()
        self.count_ours()
        # A write that hangs is made when its process ends.
        await self.node.kill_agent()
        self.watchman.look()
        self.watchman.writes_allowed = False

    async def stop(self) -> None:
        self.count("agent ends")
        self.node.dies, begun = None, self.now
        self.watchman.end_agent()
        await self.node.stop_agent()
        self.count_ours()
        self.say("agent has ended")
        self.watchman.look()
        self.watchman.writes_allowed = False
        self.watchman.check_given_back(begun)
        self.watchman.judge()

    async def begin_anew(self) -> None:
        """The kubelet starts it anew, sooner or later."""
        clock = self.node.clock
        clock.pass_to(clock.now() + self.chance.choice([0.2, self.chance.uniform(0.5, 6), 30]))
        if not self.node.uses_driver and self.chance.random() < 0.15:
            self.load_driver()
            clock.pass_to(clock.now() + self.chance.uniform(0, 5))
        self.start_agent()

    def boot(self) -> None:
        self.count("reboot")
        node, clock = self.node, self.node.clock
        node.go_down()
        clock.pass_to(clock.now() + self.chance.uniform(20, 90))
        self.watchman.look()
        node.come_up()
        self.say("the machine starts again")
        self.set_again(self.watchman.load())
        for pod in [p for p in node.live if p.ended is None]:
            if self.chance.random() < 0.5:
                self.later(self.chance.uniform(0, 20), functools.partial(self.restart_pod, pod))
            else:
                self.end_pod(pod)

    def restart_pod(self, pod: LivePod) -> None:
        if pod.ended is None and pod.stopped and not self.node.down:
            self.node.start_pod(pod)
            self.say(f"{pod.uid}'s containers start again")
            self.node.api.bring()

    def count_ours(self) -> None:
        """What an agent says it has met; counted, never believed."""
        agent = self.node.agent
        assert agent is not None
        self.happened["foreign change"] += sum(agent.caps.foreign_changes.values())
        self.happened["given back"] += sum(agent.caps.restores.values())
        reasons = [r.reason for r in agent.caps.reports.values()]
        self.happened.update(reasons)

    def heal(self) -> None:
        """Everything is well, and nobody uses anything."""
        self.node.dies = self.ending = None
        self.node.api.away = self.node.kubelet_away = self.node.disk_full = False
        self.node.api.paused_now = None
        self.node.end_troubles()
        self.node.clock.at(self.now, lambda: time.sleep(HANG_REST))
        self.watchman.trouble(None, self.now + DISCOVER_SECONDS + REOPEN_SECONDS)
        for pod in [p for p in self.node.live if p.ended is None]:
            self.end_pod(pod)
        self.node.api.bring()


async def live(seed: int, node: Node) -> tuple[Outcome, Counter[str]]:
    try:
        life = Life(seed, node)
        life.write()
        life.start_agent()
        await life.follow(life.length)
        life.heal()
        if any(card.deaf for card in life.watchman.cards):
            await life.kill_agent()
            await life.begin_anew()
        await life.follow(node.clock.now() + DISCOVER_SECONDS + REOPEN_SECONDS + 3 * SETTLE_SECONDS)
        await life.stop()
        life.watchman.check_rest()
        life.watchman.judge()
        life.happened["contested"] += life.happened["Contested"]
        return judge(node, life), life.happened
    finally:
        await node.let_calls_return()


def play(seed: int) -> tuple[Outcome, Counter[str]]:
    """Live a life through."""
    apply_libraries().preload()
    chance = random.Random(f"cards of {seed}")
    profiles: list[simulated.Card | str] = [
        chance.choice(["V100", "A100", "H100"]) for _ in range(chance.choice([1, 1, 2, 3]))
    ]
    if chance.random() < 0.2:
        profiles.append(simulated.Card("A100", ("3g.20gb", "2g.10gb")))
    with (
        quick_folder() as folder,
        simulated.create(folder / "state", profiles, virtual=True, seed=seed) as cards,
    ):
        os.environ[STATE] = str(cards.path)
        try:
            return asyncio.run(live(seed, Node(cards, folder / "journal", seed=seed)))
        finally:
            del os.environ[STATE]


LIVES: Suite[tuple[Outcome, Counter[str]]] = Suite(
    "node caps", 60, play, meet=lambda life: +life[1], must=HAPPENED | REASONS
)


@pytest.mark.life(LIVES)
def test_whatever_happens_cards_have_their_caps_and_afterwards_what_they_had_before(seed: int) -> None:
    outcome, _ = LIVES.play(seed)
    told = "\n".join(outcome.story)
    # Limits that come and go disturb no account.
    assert abs(outcome.parts - outcome.counted) <= 1, told
    assert outcome.counted <= outcome.board + outcome.doubled, told


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_all_of_that_has_happened() -> None:
    """A fault that never occurs, or a reason that is never told, has not been tried."""
    assert LIVES.find_missing(LIVES.seeds) == []
