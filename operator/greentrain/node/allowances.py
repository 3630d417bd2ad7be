"""How it stands with the allowances of one node's pods, look by look; `agent.allowances` does what follows from it.

A look takes in what the API server shows, what the node's account has counted, and whether the operator is heard, and judges
every pod by it (`node.allowance`). It reads no clock and stores nothing: times are arguments, on the clock that only goes on,
and what is to be kept over the agent's end is `Standings.pods`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from greentrain.api.nodepower import BudgetAction, PodEnergy
from greentrain.node.allowance import (
    UNUSED,
    Allowance,
    Used,
    decide_action,
    find_allowance,
    find_silence,
    is_near,
    is_silent,
)
from greentrain.quantities import Joules, Millijoules

EVICT_RETRY_SECONDS = 5.0
"""How long after an eviction was refused or failed it is asked for again: a PodDisruptionBudget may take minutes to allow
it, and meanwhile the pod's cards are at their lowest limit."""

LATE_SECONDS = 15.0
"""After so long without a renewal the lease is looked at past the watch: it is late by half, and a watch whose connection
died unnoticed is given up only after 90 s. An operator that lives must not be taken for silent for that."""

LISTEN_SECONDS = 10.0
"""How often it is looked at then, as often as it is renewed."""

DRAW_SECONDS = 5.0
"""Over how long a pod's draw is averaged: processors and memory are looked at this often."""

Haste = Literal["None", "Near", "Now"]
"""How soon the operator should hear of it: in time; soon, since a pod nears its allowance; at once."""


class KnownPod(Protocol):
    """A pod of the node as the API server shows it."""

    @property
    def namespace(self) -> str:
        """Its namespace."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def job_uid(self) -> str | None:
        """UID of the GreenTrainingJob that controls it; None where none does."""
        ...

    @property
    def budgeted(self) -> bool:
        """Whether its job has a budget, as its annotation says."""
        ...

    @property
    def terminal(self) -> bool:
        """Whether its phase is Succeeded or Failed."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """What the node's account has of one pod."""

    namespace: str
    name: str
    used: Used = UNUSED
    """In all: by its own count and by the final readings of an account before it."""
    open: bool = True
    """Whether it may use more here: it has not ended on this node."""


@dataclass(frozen=True, slots=True)
class LastRenewal:
    """What is known of the operator."""

    begun: float
    """When this agent began."""
    last: float | None = None
    """When the operator was last heard; None where it never was."""
    lease: bool = True
    """Whether a Lease is named by which it can be heard."""
    unattended: Mapping[str, float] = field(default_factory=dict)
    """Since when it says that it cannot look after a job, by the job's UID."""

    def is_silent(self, now: float) -> bool:
        """Whether the operator counts as silent."""
        return is_silent(self.last, begun=self.begun, now=now)

    def find_silence(self, now: float) -> float:
        """Seconds since it was last heard, or since this agent's start."""
        return find_silence(self.last, begun=self.begun, now=now)

    def find_unconfirmed(self, now: float) -> float:
        """Seconds for which nothing has confirmed that allowances are valid; 0 where no Lease is followed.

        Infinite for an agent that has restarted and has seen no renewal yet: it cannot know how long the silence has lasted.
        """
        if not self.lease:
            return 0.0
        return float("inf") if self.last is None else self.find_silence(now)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look may know."""

    now: float
    counted: Mapping[str, Counted]
    """By the pod's UID."""
    given: Mapping[str, Allowance] | None
    """The allowances that are given, by the pod's UID; None as long as none were read."""
    pods: Mapping[str, KnownPod]
    """The node's pods, by UID."""
    pods_known: bool
    """Whether they are those of now."""
    operator: LastRenewal
    report_seconds: float
    """How often the agent reports."""


@dataclass(frozen=True, slots=True)
class AllowanceState:
    """How it stands with one pod; what the disk holds of it."""

    namespace: str
    name: str
    allowance: Allowance | None = None
    """As it was read last."""
    budgeted: bool = False
    action: BudgetAction = "None"
    earlier: Used = UNUSED
    """What it used on this node and is not in the account any more, because it was settled and the pod went on."""

    def in_force(self, used: Used) -> Allowance | None:
        """The allowance it is held to when it has used so much."""
        return find_allowance(self.allowance, used, budgeted=self.budgeted)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has changed with a pod, worth a line in the log."""

    uid: str
    kind: Literal["Spent", "Throttled", "Lifted"]
    """Its allowance is spent, and the operator decides; it gets its lowest limit; it may have its limits again."""
    state: AllowanceState
    used: Used


@dataclass(slots=True)
class _Watched:
    """What an agent remembers of a pod as long as it lives itself."""

    counted: Used = UNUSED
    """What the account had of it at the last look."""
    mark: tuple[float, Millijoules] | None = None
    """When its draw was looked at last, and what it had used by then."""
    draw: float = 0.0
    """Milliwatts."""
    spent: bool = False
    reported: bool = False
    """Whether a report was stored that says that it is throttled."""
    next_try: float = field(default=float("-inf"))


class AllowanceStates:
    """The pods of one node that have an allowance or a budget."""

    def __init__(self) -> None:
        self.pods: dict[str, AllowanceState] = {}
        """By UID."""
        self.silent = False
        """Whether the operator counted as silent at the last look."""
        self.spent = 0
        """How many pods have spent their allowance, since this agent began."""
        self._watched: dict[str, _Watched] = {}
        self._wanted: frozenset[str] = frozenset()
        """UIDs of the pods whose eviction is to be asked for."""
        self._near = False
        self._next_listen = float("-inf")
        self._reports: dict[str, tuple[Joules | None, BudgetAction]] = {}
        """What a report says of each pod, as it was at the last look."""

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards are to have their lowest limit."""
        return frozenset(uid for uid, one in self.pods.items() if one.action != "None")

    def take_stored(self, kept: Mapping[str, AllowanceState]) -> None:
        """Take in what the disk held; what was learnt before it could be read is newer."""
        self.pods = {**kept, **self.pods}
        for uid in self.pods:
            self._watched.setdefault(uid, _Watched())

    # -- looking ------------------------------------------------------------------------------------------

    def look(self, sight: Sight) -> tuple[Change, ...]:
        """Judge every pod by what is known now."""
        now, operator = sight.now, sight.operator
        self.silent = operator.is_silent(now)
        self.pods = self._take_up(sight)
        changes: list[Change] = []
        wanted = set()
        self._near = False
        for uid, one in self.pods.items():
            counted = sight.counted.get(uid)
            if counted is None:
                self._count(uid, UNUSED)  # settled: if it goes on, it is counted from nothing
                continue
            if not counted.open:
                continue  # it has ended: what was done is reported on
            used = self._count(uid, counted.used)
            watched, state = self._watched[uid], self.pods[uid]
            draw = _find_draw(watched, used, state, now)
            since = find_unattended(sight.pods.get(uid), operator)
            verdict = decide_action(
                used,
                state.in_force(used),
                before=one.action,
                silent=self.silent or since is not None,
                silence=max(operator.find_unconfirmed(now), 0.0 if since is None else now - since),
            )
            if verdict.spent and not watched.spent and state.allowance is not None:
                self.spent += 1
                if not self.silent and since is None:
                    changes.append(Change(uid, "Spent", state, used))
            watched.spent = verdict.spent
            if verdict.evict and is_evictable(sight.pods.get(uid)):
                wanted.add(uid)
            if verdict.action != one.action:
                state = self.pods[uid] = replace(state, action=verdict.action)
                if verdict.action == "None":
                    watched.reported = False
                changes.append(
                    Change(uid, "Lifted" if verdict.action == "None" else "Throttled", state, used)
                )
            elif verdict.action == "None":
                self._near = self._near or is_near(
                    used, state.allowance, draw=draw, seconds=sight.report_seconds
                )
        self._wanted = frozenset(wanted)
        return tuple(changes)

    def find_haste(self, stored: Mapping[str, AllowanceState]) -> Haste:
        """How soon to report what the last look found, `stored` being what the disk holds now; asked once a look."""
        reports = {uid: self._report_of(uid, stored) for uid in self.pods}
        changed, self._reports = reports != self._reports, reports
        if changed:
            return "Now"
        unheard = any(not self._watched[uid].reported for uid in self._wanted)
        return "Near" if self._near or unheard else "None"

    def _take_up(self, sight: Sight) -> dict[str, AllowanceState]:
        """What is known of every pod that has an allowance or a budget, with what the API server has shown since."""
        given, pods = sight.given, sight.pods
        found = dict(self.pods)
        for uid in (given or {}).keys() | pods.keys() | self.pods.keys():
            before, pod = self.pods.get(uid), pods.get(uid)
            if given is not None:
                allowance = given.get(uid)
            else:
                allowance = before.allowance if before is not None else None
            budgeted = pod.budgeted if pod is not None else before is not None and before.budgeted
            if before is None and allowance is None and not budgeted:
                continue
            known = given is not None and sight.pods_known
            if known and allowance is None and pod is None and uid not in sight.counted:
                found.pop(uid, None)
                self._watched.pop(uid, None)
                continue
            name = pod or sight.counted.get(uid) or before
            found[uid] = AllowanceState(
                namespace=name.namespace if name is not None else "",
                name=name.name if name is not None else "",
                allowance=allowance,
                budgeted=budgeted,
                action=before.action if before is not None else "None",
                earlier=before.earlier if before is not None else UNUSED,
            )
            self._watched.setdefault(uid, _Watched())
        return found

    def _count(self, uid: str, counted: Used) -> Used:
        """All that a pod has used on this node; what left the account since the last look is kept here."""
        watched, one = self._watched[uid], self.pods[uid]
        lost = watched.counted.less(counted)
        if lost != UNUSED:
            one = self.pods[uid] = replace(one, earlier=one.earlier.plus(lost))
        watched.counted = counted
        return counted.plus(one.earlier)

    # -- evictions ----------------------------------------------------------------------------------------

    def must_listen(self, now: float, operator: LastRenewal) -> bool:
        """Whether to look at the operator's lease past the watch; where so, not again for a while."""
        late = bool(self.pods) and operator.find_silence(now) >= LATE_SECONDS
        if not late or now < self._next_listen:
            return False
        self._next_listen = now + LISTEN_SECONDS
        return True

    def take_due(self, now: float) -> tuple[str, ...]:
        """The pods whose eviction is to be asked for now; each again only after `EVICT_RETRY_SECONDS`."""
        due = tuple(
            uid for uid in self._wanted if self._watched[uid].reported and now >= self._watched[uid].next_try
        )
        for uid in due:
            self._watched[uid].next_try = now + EVICT_RETRY_SECONDS
        return due

    def may_evict(self, uid: str, pod: KnownPod | None, operator: LastRenewal, now: float) -> bool:
        """Whether a pod that was due is still to be evicted, after another look at the operator's lease."""
        silent = operator.is_silent(now) or find_unattended(pod, operator) is not None
        return silent and uid in self.pods and is_evictable(pod)

    def note_reported(self, throttled: Collection[str]) -> None:
        """A report was stored that said of these pods that they are throttled."""
        for uid in throttled:
            if uid in self._watched:
                self._watched[uid].reported = True

    def note_evicted(self, uid: str) -> None:
        """The pod's eviction was granted, or it is gone."""
        self.pods[uid] = replace(self.pods[uid], action="Evicted")
        self._wanted -= {uid}

    # -- reporting ----------------------------------------------------------------------------------------

    def mark(
        self, entries: tuple[PodEnergy, ...], stored: Mapping[str, AllowanceState]
    ) -> tuple[PodEnergy, ...]:
        """A report's entries with each pod's allowance and what was done about it.

        Of the allowance only what the disk holds is reported: the operator counts on it that an agent that is started again
        goes by no higher one.
        """
        found = []
        for entry in entries:
            if entry.uid in self.pods:
                joules, action = self._report_of(entry.uid, stored)
                entry = entry.model_copy(update={"allowance_joules": joules, "budget_action": action})
            found.append(entry)
        return tuple(found)

    def _report_of(
        self, uid: str, stored: Mapping[str, AllowanceState]
    ) -> tuple[Joules | None, BudgetAction]:
        kept = stored.get(uid)
        joules = kept.allowance.joules if kept is not None and kept.allowance is not None else None
        return joules, self.pods[uid].action


def find_unattended(pod: KnownPod | None, operator: LastRenewal) -> float | None:
    """Since when the operator says that it cannot look after the pod's job; None where it does not say so."""
    return None if pod is None or pod.job_uid is None else operator.unattended.get(pod.job_uid)


def is_evictable(pod: KnownPod | None) -> bool:
    """Whether a pod may be evicted: only one that belongs to a job of ours, and runs."""
    return pod is not None and pod.job_uid is not None and not pod.terminal


def _find_draw(watched: _Watched, used: Used, one: AllowanceState, now: float) -> float:
    amount = used.within(one.allowance.scope if one.allowance is not None else "GPU")
    if watched.mark is None:
        watched.mark = (now, amount)
    since, before = watched.mark
    if now - since >= DRAW_SECONDS:
        watched.draw = max(0.0, (amount - before) / (now - since))
        watched.mark = (now, amount)
    return watched.draw
