"""Keeps the pods of one node inside their allowances while the operator is silent: lowest limit at once, then eviction.

What `node.allowance` decides is carried out here in an order that can be told afterwards: the limit (`agent.caps`), a
report that says why, the eviction, a report that says that too. What was read and what was done stands on the node's
disk, so that an agent that begins anew while the API server is away goes on by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import aiohttp
from pydantic import TypeAdapter, ValidationError

from greentrain.agent.clock import Clock
from greentrain.agent.journal import Journal
from greentrain.api.conditions import ConditionStatus
from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.nodepower import BudgetAction, PodEnergy
from greentrain.energy.account import NodeAccount, PodAccount
from greentrain.kube.client import ApiError
from greentrain.kube.node import NodePod
from greentrain.node.allowance import (
    UNUSED,
    Allowance,
    Used,
    decide_action,
    find_allowance,
    find_silence,
    is_near,
    is_silent,
    is_spent,
)
from greentrain.units import MILLIJOULES_PER_JOULE, format_energy, to_joules

logger = logging.getLogger("greentrain.agent")

FILE = "allowances.json"

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

_AWAY = (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError)

Haste = Literal["None", "Near", "Now"]
"""How soon the operator should hear of it: in time; soon, since a pod nears its allowance; at once."""


class BudgetView(Protocol):
    """What the API server knows, and what is asked of it (`kube.node.NodeView`)."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The node's pods by UID."""
        ...

    @property
    def pods_known(self) -> bool:
        """Whether they are those of now."""
        ...

    @property
    def allowances(self) -> Mapping[str, Allowance] | None:
        """The allowances that are given, by the pod's UID; None as long as nobody has told."""
        ...

    @property
    def lease(self) -> tuple[str, str] | None:
        """Namespace and name of the Lease the operator renews; None where none is named."""
        ...

    @property
    def operator_heard(self) -> float | None:
        """When the operator was last heard, on the clock that only goes on; None where it never was."""
        ...

    @property
    def unattended(self) -> Mapping[str, float]:
        """Since when, on the same clock, the operator says that it cannot look after a job, by the job's UID."""
        ...

    async def listen(self) -> None:
        """Look whether the operator can be heard now."""
        ...

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Ask for a pod's eviction; ApiError 404 and 409: it is not there any more, 429: not now."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with one pod; what the disk holds of it."""

    namespace: str
    name: str
    allowance: Allowance | None = None
    """As it was told last."""
    budgeted: bool = False
    action: BudgetAction = "None"
    earlier: Used = UNUSED
    """What it used on this node and is not in the account any more, because it was settled and the pod went on."""

    def holding(self, used: Used) -> Allowance | None:
        """The allowance it is held to when it has used so much."""
        return find_allowance(self.allowance, used, budgeted=self.budgeted)


_JOURNAL = TypeAdapter(dict[str, Standing])


@dataclass(slots=True)
class _Watched:
    """What an agent remembers of a pod as long as it lives itself."""

    counted: Used = UNUSED
    """What the account had of it at the last look."""
    mark: tuple[float, int] | None = None
    """When its draw was looked at last, and the millijoules it had used by then."""
    draw: float = 0.0
    """Milliwatts."""
    spent: bool = False
    reported: bool = False
    """Whether a report was stored that says that it is throttled."""
    next_try: float = field(default=float("-inf"))


class Allowances:
    """The allowances of one node's pods."""

    def __init__(self, journal: Journal, clock: Clock, view: BudgetView, *, allowed: bool = True) -> None:
        self._journal = journal
        self._clock = clock
        self._view = view
        self._held = allowed
        """Whether the journal is ours alone."""
        self._read = False
        """Whether what it held is known."""
        self._standings: dict[str, Standing] = {}
        self._stored: dict[str, Standing] = {}
        """What the disk holds."""
        self._watched: dict[str, _Watched] = {}
        self._wanted: frozenset[str] = frozenset()
        """UIDs of the pods whose eviction is to be asked for."""
        self._evicting: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._next_listen = float("-inf")
        self._told: dict[str, tuple[int | None, BudgetAction]] = {}
        """What a report says of each pod, as it was at the last look."""
        self._said: dict[str, str] = {}
        self._began = clock.elapsed()
        self.silent = False
        """Whether the operator counted as silent at the last look."""
        self.spent = 0
        """How many pods have spent their allowance, since this agent began."""
        self.throttles = 0
        """How many it has put to their lowest limit."""
        self.evictions = 0
        """How many it has evicted."""

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards are to have their lowest limit."""
        return frozenset(uid for uid, one in self._standings.items() if one.action != "None")

    @property
    def silence(self) -> float:
        """Seconds since the operator was last heard, or since this agent's start."""
        return find_silence(self._view.operator_heard, begun=self._began, now=self._clock.elapsed())

    @property
    def _unconfirmed(self) -> float:
        """Seconds for which nobody has said that allowances still hold.

        An agent that has begun anew and never heard the operator cannot know for how long it was silent before.
        """
        if self._view.lease is None:
            return 0.0
        return float("inf") if self._view.operator_heard is None else self.silence

    def judge_operator(self) -> tuple[ConditionStatus, str, str]:
        """Status, reason and message of the condition `OperatorHeard`."""
        lease = self._view.lease
        if lease is None:
            text = "no --operator-lease is given: the operator counts as silent, and a spent allowance is acted on at once"
            return "False", "NoLease", text
        name = "/".join(lease)
        if self.silent:
            text = (
                f"the operator's Lease {name} was not renewed for {OPERATOR_SILENT_SECONDS:.0f} s or cannot be read: pods "
                "whose allowance of energy is spent are throttled and evicted"
            )
            return "False", "Silent", text
        if self._view.operator_heard is None:
            return "Unknown", "NotYet", f"the operator's Lease {name} was not seen yet"
        return "True", "Heard", f"the operator renews its Lease {name}: it decides about budgets"

    def load(self) -> None:
        """Read what was read and done before; a damaged file is put aside."""
        if not self._held or self._read:
            return
        try:
            content = self._journal.read(FILE)
            kept = {} if content is None else _JOURNAL.validate_json(content)
        except OSError as error:
            self._say_once(FILE, f"the journal of allowances cannot be read: {error.strerror}")
            return
        except ValidationError as error:
            try:
                aside = self._journal.put_aside(FILE)
            except OSError as failure:
                self._say_once(
                    FILE, f"the journal of allowances is damaged and cannot be put aside: {failure.strerror}"
                )
                return
            logger.error(
                "the journal of allowances is damaged (%d errors) and was put aside as %s: until the API server answers, "
                "no allowance is known",
                error.error_count(),
                aside,
            )
            kept = {}
        self._read = True
        self._stored = dict(kept)
        # What was learnt while the disk could not be read is newer.
        self._standings = {**kept, **self._standings}
        for uid, one in self._standings.items():
            if one.action == "Throttled":
                logger.warning(
                    "pod %s/%s is at its lowest limit: it had spent its allowance while the operator was silent",
                    one.namespace,
                    one.name,
                )
            self._watched.setdefault(uid, _Watched())

    # -- looking ------------------------------------------------------------------------------------------

    def look(self, account: NodeAccount, *, report_interval: float) -> Haste:
        """Judge every pod by what the account has of it now; how soon to report what is new."""
        self.load()
        now = self._clock.elapsed()
        self.silent = is_silent(self._view.operator_heard, begun=self._began, now=now)
        counted = {pod.uid: pod for pod in account.pods.values() if pod.uid}
        self._standings = self._take_up(account, counted)
        sums = _add_up(account) if self._standings else {}
        wanted = set()
        near = False
        for uid, one in self._standings.items():
            pod = counted.get(uid)
            if pod is None or pod.closed is not None:
                continue  # it uses nothing here, or has ended: what was done is told on
            used = self._count(uid, sums[uid])
            watched, standing = self._watched[uid], self._standings[uid]
            draw = self._find_draw(watched, used, standing, now)
            since = self._find_unattended(uid)
            verdict = decide_action(
                used,
                standing.holding(used),
                before=one.action,
                silent=self.silent or since is not None,
                silence=max(self._unconfirmed, 0.0 if since is None else now - since),
            )
            if verdict.spent and not watched.spent and standing.allowance is not None:
                self.spent += 1
                if not self.silent and since is None:
                    logger.info(
                        "pod %s/%s has spent its allowance: the operator decides", pod.namespace, pod.name
                    )
            watched.spent = verdict.spent
            if verdict.evict and self._is_evictable(uid):
                wanted.add(uid)
            if verdict.action != one.action:
                self._standings[uid] = replace(standing, action=verdict.action)
                self._tell(uid, verdict.action, used)
            elif verdict.action == "None":
                near = near or is_near(used, standing.allowance, draw=draw, seconds=report_interval)
        self._wanted = frozenset(wanted)
        if self._standings != self._stored:
            self._store()
        told = {uid: self._tell_of(uid) for uid in self._standings}
        changed, self._told = told != self._told, told
        if changed:
            return "Now"
        unheard = any(not self._watched[uid].reported for uid in self._wanted)
        return "Near" if near or unheard else "None"

    def _take_up(self, account: NodeAccount, counted: Mapping[str, PodAccount]) -> dict[str, Standing]:
        """What is known of every pod that has an allowance or a budget, with what the API server has told since."""
        told, pods = self._view.allowances, self._view.pods
        listed = {*counted, *(entry.uid for entry in account.inherited.values())}
        found = dict(self._standings)
        for uid in (told or {}).keys() | pods.keys() | self._standings.keys():
            before, pod = self._standings.get(uid), pods.get(uid)
            if told is not None:
                allowance = told.get(uid)
            else:
                allowance = before.allowance if before is not None else None
            budgeted = pod.budgeted if pod is not None else before is not None and before.budgeted
            if before is None and allowance is None and not budgeted:
                continue
            known = told is not None and self._view.pods_known
            if known and allowance is None and pod is None and uid not in listed:
                found.pop(uid, None)
                self._watched.pop(uid, None)
                self._said.pop(uid, None)
                continue
            name = pod or counted.get(uid) or before
            found[uid] = Standing(
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
        watched, one = self._watched[uid], self._standings[uid]
        lost = watched.counted.less(counted)
        if lost != UNUSED:
            one = self._standings[uid] = replace(one, earlier=one.earlier.plus(lost))
        watched.counted = counted
        return counted.plus(one.earlier)

    def _find_draw(self, watched: _Watched, used: Used, one: Standing, now: float) -> float:
        amount = used.within(one.allowance.scope if one.allowance is not None else "GPU")
        if watched.mark is None:
            watched.mark = (now, amount)
        since, before = watched.mark
        if now - since >= DRAW_SECONDS:
            watched.draw = max(0.0, (amount - before) / (now - since))
            watched.mark = (now, amount)
        return watched.draw

    def _find_unattended(self, uid: str) -> float | None:
        """Since when the operator says that it cannot look after the pod's job; None where it does not say so."""
        pod = self._view.pods.get(uid)
        return None if pod is None or pod.job_uid is None else self._view.unattended.get(pod.job_uid)

    def _is_evictable(self, uid: str) -> bool:
        """Only what belongs to a job of ours, and runs."""
        pod = self._view.pods.get(uid)
        return pod is not None and pod.job_uid is not None and not pod.terminal

    # -- doing --------------------------------------------------------------------------------------------

    def note_reported(self, throttled: Collection[str]) -> None:
        """A report was stored that said of these pods that they are throttled."""
        for uid in throttled:
            if uid in self._watched:
                self._watched[uid].reported = True

    def act_if_due(self) -> None:
        """Listen where renewals are late, and ask for the evictions that are due; in the background: looks go on meanwhile."""
        now = self._clock.elapsed()
        if (
            self._standings
            and self.silence >= LATE_SECONDS
            and now >= self._next_listen
            and _is_done(self._listening)
        ):
            self._next_listen = now + LISTEN_SECONDS
            self._listening = asyncio.create_task(self._listen(), name="listen")
        due = [
            uid for uid in self._wanted if self._watched[uid].reported and now >= self._watched[uid].next_try
        ]
        if not due or not _is_done(self._evicting):
            return
        for uid in due:
            self._watched[uid].next_try = now + EVICT_RETRY_SECONDS
        self._evicting = asyncio.create_task(self._evict_all(due), name="evict")

    async def close(self) -> None:
        """Ask for nothing more."""
        for task in (self._listening, self._evicting):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _listen(self) -> None:
        with suppress(*_AWAY):
            await self._view.listen()

    async def _evict_all(self, due: Collection[str]) -> None:
        try:
            # After an outage of the API server the watch that brings renewals may begin later than this does.
            await self._view.listen()
        except _AWAY as error:
            logger.warning("whether the operator is back cannot be seen: %r; no pod is evicted yet", error)
            return
        silent = is_silent(self._view.operator_heard, begun=self._began, now=self._clock.elapsed())
        await asyncio.gather(
            *(self._evict(uid) for uid in due if silent or self._find_unattended(uid) is not None)
        )

    async def _evict(self, uid: str) -> None:
        one = self._standings.get(uid)
        if one is None or not self._is_evictable(uid):
            return
        try:
            await self._view.evict(one.namespace, one.name, uid)
        except _AWAY as error:
            if not isinstance(error, ApiError) or error.status not in (404, 409):
                self._say_once(
                    uid, f"pod {one.namespace}/{one.name} cannot be evicted yet: {error!r}; again and again"
                )
                return
        if uid in self._standings:
            self._standings[uid] = replace(self._standings[uid], action="Evicted")
            self._wanted -= {uid}
            self._tell(uid, "Evicted", None)

    # -- keeping and telling ------------------------------------------------------------------------------

    def _store(self) -> None:
        if not (self._held and self._read):
            return
        try:
            self._journal.store(_JOURNAL.dump_json(self._standings), FILE)
        except OSError as error:
            self._say_once(FILE, f"the journal of allowances cannot be written: {error.strerror}")
            return
        self._said.pop(FILE, None)
        self._stored = dict(self._standings)

    def mark(self, entries: tuple[PodEnergy, ...]) -> tuple[PodEnergy, ...]:
        """A report's entries with each pod's allowance and what was done about it.

        Where there is a journal only what it holds is told: the operator counts on it that an agent that begins anew goes
        by no higher allowance.
        """
        found = []
        for entry in entries:
            if entry.uid in self._standings:
                joules, action = self._tell_of(entry.uid)
                entry = entry.model_copy(update={"allowance_joules": joules, "budget_action": action})
            found.append(entry)
        return tuple(found)

    def _tell_of(self, uid: str) -> tuple[int | None, BudgetAction]:
        kept = (self._stored if self._held else self._standings).get(uid)
        joules = kept.allowance.joules if kept is not None and kept.allowance is not None else None
        return joules, self._standings[uid].action

    def _tell(self, uid: str, action: BudgetAction, used: Used | None) -> None:
        one = self._standings[uid]
        who = f"{one.namespace}/{one.name}"
        if action == "Throttled" and used is not None:
            self.throttles += 1
            allowance = one.holding(used) or Allowance(0)
            amount = format_energy(to_joules(used.within(allowance.scope)))
            logger.error(
                "pod %s has used %s, %s, and the operator has been silent for %.0f s: its GPUs get their lowest limit, and "
                "the pod is to be evicted",
                who,
                amount,
                _describe_spent(one.allowance, used),
                self.silence,
            )
        elif action == "Evicted":
            self.evictions += 1
            logger.error(
                "pod %s is evicted: its allowance is spent or has ended, and the operator is silent", who
            )
        elif action == "None":
            self._watched[uid].reported = False
            logger.info("pod %s has a higher allowance: its GPUs may have their limits again", who)

    def _say_once(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            logger.error("%s", text)


def _add_up(account: NodeAccount) -> dict[str, Used]:
    """What the account has of each pod, by UID: its own count and the last words of one before it."""
    found: dict[str, Used] = {}
    for pod in account.pods.values():
        found[pod.uid] = found.get(pod.uid, UNUSED).plus(Used(pod.gpu, pod.cpu + pod.dram))
    for entry in account.inherited.values():
        joules = Used(entry.gpu_joules, entry.cpu_joules + entry.dram_joules)
        found[entry.uid] = found.get(entry.uid, UNUSED).plus(joules.times(MILLIJOULES_PER_JOULE))
    return found


def _describe_spent(allowance: Allowance | None, used: Used) -> str:
    if allowance is None:
        return "and no allowance of its budget is known"
    amount = format_energy(allowance.joules)
    if is_spent(used, allowance):
        return f"all of its allowance of {amount}"
    return f"and its allowance of {amount} holds for {allowance.seconds} s without the operator"


def _is_done(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()
