"""The state of the allowances of one node's pods, poll by poll; `agent.allowances` carries out what follows from it.

A poll takes what the API server shows, what the node's account has counted, and whether the operator is silent. It judges
every pod by this (`node.allowance`). It reads no clock and stores nothing: times are arguments, on the monotonic clock.
What must outlive the agent is `AllowanceStates.pods`.
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
"""After how long a refused or failed eviction is requested again. A PodDisruptionBudget may take minutes to allow it;
meanwhile the pod's cards are at their lowest limit."""

LATE_SECONDS = 15.0
"""After so long without a renewal the agent reads the Lease directly, beside the watch. A renewal is then late by half, and a
watch whose connection broke unnoticed ends only after 90 s. A working operator must not count as silent for that."""

LISTEN_SECONDS = 10.0
"""How often the agent then reads it: as often as it is renewed."""

DRAW_SECONDS = 5.0
"""The time over which a pod's draw is averaged: processors and memory are read this often."""

Haste = Literal["None", "Near", "Now"]
"""How soon to report to the operator: with the next report; soon, since a pod nears its allowance; at once."""


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
        """Whether its job has a budget, by its annotation."""
        ...

    @property
    def terminal(self) -> bool:
        """Whether its phase is Succeeded or Failed."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """What the node's account has counted of one pod."""

    namespace: str
    name: str
    used: Used = UNUSED
    """In all: its own count, and the final readings of an account before it."""
    open: bool = True
    """Whether it may use more on this node: it has not ended here."""


@dataclass(frozen=True, slots=True)
class LastRenewal:
    """What is known of the operator."""

    begun: float
    """When this agent started."""
    last: float | None = None
    """When the operator's last renewal was seen; None where none was."""
    lease: bool = True
    """Whether the agent was given a Lease to watch."""
    unattended: Mapping[str, float] = field(default_factory=dict)
    """The jobs that the operator cannot reconcile, by UID, each with the time since when."""

    def is_silent(self, now: float) -> bool:
        """Whether the operator counts as silent."""
        return is_silent(self.last, begun=self.begun, now=now)

    def find_silence(self, now: float) -> float:
        """Seconds since the last renewal was seen, or since this agent's start."""
        return find_silence(self.last, begun=self.begun, now=now)

    def find_unconfirmed(self, now: float) -> float:
        """Seconds for which nothing has confirmed that allowances are valid; 0 where no Lease is watched.

        Infinite for an agent that has restarted and has not seen a renewal yet: it cannot know how long the silence has lasted.
        """
        if not self.lease:
            return 0.0
        return float("inf") if self.last is None else self.find_silence(now)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one poll may know."""

    now: float
    counted: Mapping[str, Counted]
    """By the pod's UID."""
    given: Mapping[str, Allowance] | None
    """The given allowances, by the pod's UID; None until they were read."""
    pods: Mapping[str, KnownPod]
    """The node's pods, by UID."""
    pods_known: bool
    """Whether these are the pods of now."""
    operator: LastRenewal
    report_seconds: float
    """How often the agent reports."""


@dataclass(frozen=True, slots=True)
class AllowanceState:
    """The state of one pod's allowance; stored on the disk."""

    namespace: str
    name: str
    allowance: Allowance | None = None
    """The allowance that was read last."""
    budgeted: bool = False
    action: BudgetAction = "None"
    earlier: Used = UNUSED
    """What it used on this node and the account no longer has: it was settled, and the pod went on."""

    def in_force(self, used: Used) -> Allowance | None:
        """The allowance that is enforced when it has used so much."""
        return find_allowance(self.allowance, used, budgeted=self.budgeted)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a pod's state that is logged."""

    uid: str
    kind: Literal["Spent", "Throttled", "Lifted"]
    """Its allowance is spent, and the operator decides; it gets its lowest limit; its previous limits are restored."""
    state: AllowanceState
    used: Used


@dataclass(slots=True)
class _Watched:
    """What an agent knows of a pod until the agent ends."""

    counted: Used = UNUSED
    """What the account had counted of it at the last poll."""
    mark: tuple[float, Millijoules] | None = None
    """When its draw was computed last, and what it had used by then."""
    draw: float = 0.0
    """Milliwatts."""
    spent: bool = False
    reported: bool = False
    """Whether a report was stored in which it is throttled."""
    next_try: float = field(default=float("-inf"))


class AllowanceStates:
    """The pods of one node that have an allowance or a budget."""

    def __init__(self) -> None:
        self.pods: dict[str, AllowanceState] = {}
        """By UID."""
        self.silent = False
        """Whether the operator counted as silent at the last poll."""
        self.spent = 0
        """How many pods have spent their allowance since this agent started."""
        self._watched: dict[str, _Watched] = {}
        self._wanted: frozenset[str] = frozenset()
        """UIDs of the pods whose eviction is to be requested."""
        self._near = False
        self._next_listen = float("-inf")
        self._reports: dict[str, tuple[Joules | None, BudgetAction]] = {}
        """What a report contains of each pod, by the last poll."""

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards are to have their lowest limit."""
        return frozenset(uid for uid, one in self.pods.items() if one.action != "None")

    def take_stored(self, kept: Mapping[str, AllowanceState]) -> None:
        """Take in what was stored; what was learnt before it could be read is newer."""
        self.pods = {**kept, **self.pods}
        for uid in self.pods:
            self._watched.setdefault(uid, _Watched())

    # -- polling ------------------------------------------------------------------------------------------

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
        """How soon to report what the last poll found; `stored` is what is on the disk now. Called once a poll."""
        reports = {uid: self._report_of(uid, stored) for uid in self.pods}
        changed, self._reports = reports != self._reports, reports
        if changed:
            return "Now"
        unreported = any(not self._watched[uid].reported for uid in self._wanted)
        return "Near" if self._near or unreported else "None"

    def _take_up(self, sight: Sight) -> dict[str, AllowanceState]:
        """The state of every pod that has an allowance or a budget, with what the API server has shown since."""
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
        """All that a pod has used on this node; what left the account since the last poll is added here."""
        watched, one = self._watched[uid], self.pods[uid]
        lost = watched.counted.less(counted)
        if lost != UNUSED:
            one = self.pods[uid] = replace(one, earlier=one.earlier.plus(lost))
        watched.counted = counted
        return counted.plus(one.earlier)

    # -- evictions ----------------------------------------------------------------------------------------

    def must_listen(self, now: float, operator: LastRenewal) -> bool:
        """Whether to read the operator's Lease beside the watch; if so, not again for `LISTEN_SECONDS`."""
        late = bool(self.pods) and operator.find_silence(now) >= LATE_SECONDS
        if not late or now < self._next_listen:
            return False
        self._next_listen = now + LISTEN_SECONDS
        return True

    def take_due(self, now: float) -> tuple[str, ...]:
        """The pods whose eviction to request now; each again only after `EVICT_RETRY_SECONDS`."""
        due = tuple(
            uid for uid in self._wanted if self._watched[uid].reported and now >= self._watched[uid].next_try
        )
        for uid in due:
            self._watched[uid].next_try = now + EVICT_RETRY_SECONDS
        return due

    def may_evict(self, uid: str, pod: KnownPod | None, operator: LastRenewal, now: float) -> bool:
        """Whether a due pod is still to be evicted, after the operator's Lease was read again."""
        silent = operator.is_silent(now) or find_unattended(pod, operator) is not None
        return silent and uid in self.pods and is_evictable(pod)

    def note_reported(self, throttled: Collection[str]) -> None:
        """A report was stored in which these pods are throttled."""
        for uid in throttled:
            if uid in self._watched:
                self._watched[uid].reported = True

    def note_evicted(self, uid: str) -> None:
        """The pod's eviction was granted, or it no longer exists."""
        self.pods[uid] = replace(self.pods[uid], action="Evicted")
        self._wanted -= {uid}

    # -- reporting ----------------------------------------------------------------------------------------

    def mark(
        self, entries: tuple[PodEnergy, ...], stored: Mapping[str, AllowanceState]
    ) -> tuple[PodEnergy, ...]:
        """A report's entries with each pod's allowance and what was done about it.

        Only an allowance that is on the disk is reported: the operator relies on it that a restarted agent enforces no
        higher one.
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
    """Since when the operator cannot reconcile the pod's job, by its Lease; None where the Lease does not name the job."""
    return None if pod is None or pod.job_uid is None else operator.unattended.get(pod.job_uid)


def is_evictable(pod: KnownPod | None) -> bool:
    """Whether a pod may be evicted: only one that a GreenTrainingJob controls, and that runs."""
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
