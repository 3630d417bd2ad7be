"""Lives of a job with a budget in a cluster of plain data: programs that lie in wait, a user who edits, parts that are away.

What is shown by it is the bound: whatever the program draws and whichever part is away, the energy a job has truly used
never exceeds its budget by more than was said before the attempt started. What each pass counts and charges is compared with
what pods have drawn (`tests.scenario.charged`). Operator and agents are those of `tests.support.world`, which carries out the
shipped rules with what each could know and no more. Here is what the program draws, what is asked of a
life after each step, and what is drawn for each seed.

What the product says it cannot hold is counted apart, to the joule (`World.remainders`), and only from the moment the
budget is spent:

- "outage": the lowest limits of pods whose allowance is spent, over the time in which the API server is away;
- "both": the limits of pods whose agent is away, over the time in which the operator is away too, cannot be reached, or fails
  at this job.

Kept out of the model: counters are exact and nothing is lost of them, also where a node's journal is, and each node loses it
once at most; an agent that begins anew knows which pods ran meanwhile, pods hold whole cards, and the cards of one world are alike.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from greentrain import quantities
from greentrain.api.conditions import Type, is_true
from greentrain.api.lease import RENEW_SECONDS, UNATTENDED_SECONDS
from greentrain.api.spec import Basis
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.snapshot import Snapshot
from tests.scenario.charged import Charged
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import START
from tests.support.world.cluster import Cluster, Layout
from tests.support.world.nodes import CARDS_OF_A_NODE, MAKES, Make, Node, SimPod, is_held
from tests.support.world.server import Event

JOULE = 1000
"""Millijoules: a second of a watt."""

HUNG_SECONDS = UNATTENDED_SECONDS + RENEW_SECONDS
"""For how long a pass over one job hangs at most until a renewal names that job."""
SAVE_STEPS = 20

Remainder = Literal["outage", "both"]
Character = Literal["steady", "bursty", "lurking", "waiting"]
"""How a program draws: all the time; in phases; as little as it must to come near its budget, and then all it can; or all it
can for half of its budget, and then as little as its cards do when they wait."""


@dataclass(frozen=True)
class Traits:
    """What is drawn once for a world."""

    gpus: int
    gpus_per_pod: int
    kind: Make
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
    """The budget that a status has; None where it has none."""
    energy, emissions = status.energy, status.emissions
    if emissions is not None and emissions.budget is not None:
        known = emissions.budget
        amounts = (known.limit, emissions.total_micrograms, known.charged, known.reserved)
        return Weighed(*(amount // MICROGRAMS_OF_A_JOULE for amount in amounts))
    if energy is None or energy.budget is None:
        return None
    budget = energy.budget
    return Weighed(budget.limit, energy.used_joules, budget.charged, budget.reserved)


GRID = 3_600_000
"""mg/kWh, so that a joule is a milligram: 3.6 MJ are 3.6 kg."""
MICROGRAMS_OF_A_JOULE = 1000
LIFETIME_SECONDS = 1000
"""Over which the making of a card is spread; short, so that grams of it are whole numbers."""

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
"""What may happen to this cluster, of all that may (`tests.support.world.cluster.FAULTS`)."""

TROUBLES = ("reconcile fails", "reconcile fails long", "status refused", "node lies")
"""What may happen to passes over this job and to what is stored and reported of it."""


LOSSES = ("journal set back", "journal lost")
"""What may happen to what a node's agent has counted."""


class World(Cluster):
    """One job's whole world."""

    def __init__(self, seed: int, traits: Traits, obeys: bool = True) -> None:
        """`obeys`: whether agents hold pods to their allowances."""
        t = self.traits = traits
        self.limit: int | None = t.budget
        count = math.ceil(t.gpus / (CARDS_OF_A_NODE // t.gpus_per_pod * t.gpus_per_pod)) + t.spare_nodes
        lags = (t.watch_lag, t.pass_lag, t.kubelet_lag)
        layout = Layout(t.kind, count, t.report_seconds, lags, t.operator_skew, t.stubborn)
        super().__init__(seed, layout, self._build_manifest(), obeys=obeys)
        self.charged = Charged(t.kind.limit, t.report_seconds, t.operator_skew)
        making = t.embodied * LIFETIME_SECONDS // 1_000_000
        self.terrain.carbon = CarbonSource(
            at=self.look_up,
            zone_of=lambda _region, _zone: "ALL",
            embodied=lambda _: Embodied(making, making, making, "made up"),
            lifetime_seconds=LIFETIME_SECONDS,
            include_embodied=t.embodied > 0,
        )
        self.terrain.decided, self.terrain.looked = self._note_weighed, self._note_asked
        self.server.stored = self._note_stored
        self.work = t.work
        self.work_done = self.work_saved = 0.0
        self.phase_until = 0.0
        self.working = True
        self.jumped = False
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
        """The highest bound that was said of each attempt, in joules or milligrams."""
        self.weighed = 0
        """The embodied emissions at the operator's last pass with every agent there, in micrograms: time that went by without
        them is held by what allowances leave free, and by the bound."""
        self.raised = False
        self.lost: set[str] = set()
        """Nodes whose journal was lost."""
        self.stopped_at = (0, 0)
        """The budget an attempt was stopped for last, and what a stop would have taken then; joules."""

    # -- the job ------------------------------------------------------------------------------------

    @property
    def status(self) -> GreenTrainingJobStatus:
        """The job's, as it is stored."""
        return self.server.status

    @property
    def writes(self) -> int:
        """How often something was written in the API server by the operator."""
        return self.server.writes

    def _build_manifest(self) -> dict[str, Any]:
        t = self.traits
        energy: dict[str, Any] = {"onExhausted": t.action, "onUnknown": t.on_unknown}
        emissions: dict[str, Any] = {"onExhausted": t.action}
        if self.limit is not None and t.emissions:
            emissions["budget"] = f"{self.limit // 1000}.{self.limit % 1000:03d}gCO2e"
        elif self.limit is not None:
            energy["budget"] = f"{self.limit}J"
        manifest = build_job(workers=t.gpus // t.gpus_per_pod, energy=energy, emissions=emissions)
        template = build_template(resources={"limits": {"nvidia.com/gpu": str(t.gpus_per_pod)}})
        template["spec"]["terminationGracePeriodSeconds"] = t.grace
        manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
        return manifest

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
        self.server.edit(self._build_manifest()["spec"])

    def pod_made(self, pod: SimPod) -> None:
        """A pod belongs to an attempt of which the bound is stored."""
        stored = self.status.attempts[-1] if self.status.attempts else None
        if stored is None or stored.number != pod.attempt or pod.attempt not in self.stated:
            self.complain("unsaid: a pod is made before its attempt's bound is stored")

    def pod_stops(self, pod: SimPod) -> None:
        """A program that obeys saves what it has done."""
        if not pod.stubborn:
            self.work_saved = self.work_done

    def pod_ended(self, pod: SimPod) -> None:
        """What was not saved is lost."""
        if pod.exit_code:
            self.work_done = min(self.work_done, self.work_saved)

    def _bring(self, event: Event) -> None:
        super()._bring(event)
        if event.kind == "NodePower" and not event.gone:
            for ask in event.body["spec"].get("pods") or ():
                history = self.histories.setdefault(ask["uid"], [])
                joules = ask.get("allowanceJoules")
                if joules is not None and (not history or history[-1] != joules):
                    history.append(joules)

    def acknowledge(self, node: Node, uid: str, echo: int | None) -> None:
        """An agent has reported which allowance it goes by: what was asked before that cannot come back."""
        kept = node.disk.get(uid)
        allowance = kept.allowance if kept is not None else None
        if echo != (allowance.joules if allowance is not None else None):
            self.complain(f"unconfirmed: {uid} goes by {echo} J, of which the next agent would not know")
        history = self.histories.get(uid)
        if history and echo in history:
            last = len(history) - 1 - history[::-1].index(echo)
            del history[:last]

    def _note_asked(self, node: str) -> None:
        """The operator has looked at what is asked of a node, by the status it knows."""
        if self.operator is not None and node in self.nodes:
            self.nodes[node].unlimited = read_budget(self.operator.status) is None

    def _note_weighed(self, seen: Snapshot, decision: Decision) -> None:
        if self.operator is not None:
            for complaint in self.charged.check(seen, decision.status, self.operator.powers, self.every):
                self.complain(complaint)
        agents = [p.node.agent if p.node is not None else None for p in self.living()]
        if all(a is not None and a.connected for a in agents) and self.now >= self.refused_until:
            self.weighed = self.embodied

    def _note_stored(self, old: GreenTrainingJobStatus) -> None:
        for problem in self.server.problems:
            self.complain(f"unstorable: {problem}")
        if old.phase != self.status.phase:
            self.say(f"{old.phase or 'new'} → {self.status.phase}")
        self._check_store(old, self.status)

    # -- what is checked ----------------------------------------------------------------------------

    @property
    def drawn(self) -> int:
        """Millijoules the job has truly used, as far as any operator could learn of it."""
        return sum(p.used for p in self.every if not p.unseen)

    @property
    def embodied(self) -> int:
        """Micrograms of embodied emissions that fall to it by now, each the worth of a millijoule."""
        return round(sum(p.ran * p.gpus for p in self.every if not p.unseen) * self.traits.embodied)

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
            if pod.unseen:
                continue
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
        self._check_kept(old, new)
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
        if self.server.decided:
            self._check_charges(control.charges)
            charged = control.lost_joules + sum(c.joules for c in control.charges)
            if weighed.charged < charged:
                self.complain(f"left out: {weighed.charged} J of {charged} J charged count")
            total = weighed.used + weighed.charged
            if total >= weighed.limit and not is_true(new.conditions, Type.BUDGET_EXHAUSTED):
                self.complain(f"not spent: {total} J of {weighed.limit} J are used and charged")
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

    def _check_kept(self, old: GreenTrainingJobStatus, new: GreenTrainingJobStatus) -> None:
        """What was counted, and what was charged for lost reports, never becomes less."""
        before, after = old.energy, new.energy
        if before is None or after is None:
            return
        amounts: list[tuple[str, int, int]] = [("the job", before.used_joules, after.used_joules)]
        now = {a.number: a.energy_joules or 0 for a in new.attempts}
        amounts += [
            (f"attempt {a.number}", a.energy_joules or 0, now[a.number])
            for a in old.attempts
            if a.number in now
        ]
        if before.control is not None and after.control is not None:
            amounts.append(("lost reports", before.control.lost_joules, after.control.lost_joules))
        for what, more, less in amounts:
            if less < more:
                self.complain(f"fallen: {more} J of {what} are {less} J now")

    def _note_bound(self, new: GreenTrainingJobStatus) -> None:
        """What is said of an attempt first is what it is judged by, or more where its pods came to nodes with higher figures."""
        last = new.attempts[-1] if new.attempts else None
        if last is None:
            return
        bound: int | None = last.overshoot_bound_joules
        if self.traits.emissions:
            known = last.overshoot_bound_micrograms
            bound = None if known is None else known // MICROGRAMS_OF_A_JOULE
        if bound is not None:
            if bound < self.stated.get(last.number, 0):
                self.complain(f"unsaid: the bound of attempt {last.number} falls to {bound}")
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
        """No pod is charged for more than its limits over the time of which nothing was reported, and a second of clocks."""
        kind = self.traits.kind
        for entry in entries:
            pod = next((p for p in self.every if p.uid == entry.uid), None)
            if pod is None or pod.node is None or not entry.joules:
                continue
            known = self.operator.powers.node_power(pod.node.name) if self.operator is not None else None
            listed = known is not None and any(e.uid == pod.uid for e in known.status.pods)
            since = pod.started or pod.created
            if known is not None and listed:
                since = (known.seen - START).total_seconds() - self.traits.operator_skew
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
        said, true = (
            (energy.used_joules if energy is not None else 0),
            sum(p.joules for p in self.every if not p.unseen),
        )
        if said != true:
            self.complain(f"lost: status says {said} J of {true} J when every last word is in")
        for node in self.nodes.values():
            limits = {card.uuid: card.limit for card in node.cards.values()}
            if set(limits.values()) != {node.make.limit}:
                self.complain(f"leaked: limits of {node.name} are {limits}")
        if self.raised and self.status.phase != "Succeeded":
            self.complain(f"stuck: {self.status.phase} with budget enough")

    def _count_remainders(self, seconds: float) -> None:
        """What is drawn at most in these seconds and nothing holds, once the budget is spent."""
        if self.ceiling is None or self.used < self.ceiling:
            return
        operator = self.operator
        ready = operator is not None and self.now >= operator.ready_at and not operator.crashed
        reachable = self.server.up and ready and self.now >= self.fails_until
        kind, making = self.traits.kind, self.traits.embodied
        for pod in self.pods.values():
            if not pod.running or pod.node is None:
                continue
            agent = pod.node.agent
            held = (pod.node.disk if agent is None else agent.states.pods).get(pod.uid)
            silence = agent.hear().find_unconfirmed(self.now) if agent is not None else 0.0
            # A new account must first read what the one before it had reported.
            away = agent is None or held is None or pod.node.heir
            if away and not reachable:
                self.remainders["both"] += round((kind.limit + making) * pod.gpus * seconds)
                self.remained.add("both")
            elif not self.server.up and held is not None and is_held(pod, held, silence):
                self.remainders["outage"] += round((kind.least + making) * pod.gpus * seconds)
                self.remained.add("outage")

    def _list_reported(self) -> set[str]:
        """UIDs of the pods that nodes report."""
        powers = self.server.objects["NodePower"].values()
        return {entry["uid"] for power in powers for entry in power.get("status", {}).get("pods", ())}

    # -- the program --------------------------------------------------------------------------------

    def _draw(self, pod: SimPod) -> int:
        kind = self.traits.kind
        each = kind.limit if self.working else kind.idle
        return sum(min(each, card.limit) for card in pod.cards)

    def step(self, seconds: float = 1.0) -> None:
        """So much later; the draw of these seconds is that of their beginning."""
        living = self.living()
        self._count_remainders(seconds)
        for pod in living:
            pod.used += round(self._draw(pod) * seconds)
            pod.ran += seconds
        self._work(living, seconds)
        self.now += seconds
        self.step_parts()
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
        latest = max((p.node.reported or 0.0) for p in living if p.node is not None)
        first = min((p.node.reported or 0.0) for p in living if p.node is not None)
        if left > full * (attempt.stop_seconds + 2 * t.report_seconds):
            self.working = True
        elif left > full * t.report_seconds * 1.3 + idle * attempt.stop_seconds:
            # Bursts between two readings, over well before the next.
            self.working = self.now - latest < 2 and self.now - first < t.report_seconds / 2
        else:
            self.working = False
            # The next report would show too much.
            next_report = (
                1.1 * t.report_seconds / len({p.node.name for p in living if p.node is not None}) + 1
            )
            margin = idle * attempt.stop_seconds
            if margin < left <= margin + idle * next_report and self.now - latest <= 1:
                self.jumped = self.working = True
                self.say(f"all it can draw, {left // JOULE} J before the budget is spent")
                if t.ambush is not None:
                    self.break_something(t.ambush)

    def lose(self, chance: random.Random) -> None:
        """What one node's agent has counted is set back, or lost: once for each node. Only where there is something to lose."""
        nodes, loss = list(self.nodes.values()), chance.choice(LOSSES)
        if loss == "journal lost":
            able = [n for n in nodes if n.account.pods and n.name not in self.lost]
        else:
            able = [n for n in nodes if n.dropped]
        if able:
            node = chance.choice(able)
            self.lost |= {node.name} if loss == "journal lost" else set()
            self.break_something(loss, node)

    def lurks_again(self) -> None:
        """Another budget is another one to come near to."""
        self.jumped = False

    def mend(self) -> None:
        """Everything is well from now on, and little is left to do."""
        super().mend()
        self.work = min(self.work, math.ceil(self.work_done) + 100)

    # -- the end ------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the job has reached its end."""
        return is_true(self.status.conditions, Type.SUCCEEDED) or is_true(self.status.conditions, Type.FAILED)

    @property
    def rests(self) -> bool:
        """Whether nothing runs and nothing is to be reported any more."""
        unseen = {p.uid for p in self.every if p.unseen}
        return (
            (self.over or (self.status.phase == "Suspended" and not self.pods))
            and not self.living()
            and not self._list_reported() - unseen
            and not any(n.account.pods.keys() - unseen for n in self.nodes.values())
            and (self.status.energy is None or not self.status.energy.pods)
            and not self._stores_later()
        )

    def _stores_later(self) -> bool:
        """Whether a whole status is still to be stored: where one was refused, the least of it stands for a minute."""
        operator = self.operator
        return operator is not None and (
            operator.storing.unstored is not None or operator.elapsed() < operator.storing.least_until + 5
        )


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
    "reconcile fails long",
    "status refused",
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
    kind = chance.choice(MAKES)
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
    rarer, troubles = random.Random(f"rarer faults of {seed}"), random.Random(f"troubles of {seed}")
    losses = random.Random(f"losses of {seed}")
    crashes = 0
    while world.now < t.seconds and not (world.over and world.rests):
        world.step()
        if t.faults and chance.random() < t.fault_rate:
            fault = chance.choice(t.faults)
            crashes += fault == "program fails"
            if fault != "program fails" or crashes <= 3:
                world.break_something(fault)
        if t.faults and rarer.random() < t.fault_rate:
            world.break_something("disk full", rarer.choice(list(world.nodes.values())))
        if t.faults and troubles.random() < t.fault_rate:
            world.break_something(troubles.choice(TROUBLES))
        if t.faults and losses.random() < t.fault_rate:
            world.lose(losses)
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
