"""Enforces the allowances of one node's pods while the operator is silent: lowest limit at once, then eviction.

What `node.allowances` decides is carried out here, in an order that can be reconstructed afterwards: the limit
(`agent.caps`), a report of it with the reason, the eviction, a report of that too. What was read and done is on the node's
disk, so that an agent that restarts while the API server is away continues from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Protocol

import aiohttp
from pydantic import TypeAdapter, ValidationError

from greentrain.agent.clock import Clock
from greentrain.agent.journal import Journal
from greentrain.api.nodepower import PodEnergy
from greentrain.energy.account import NodeAccount
from greentrain.kube.client import ApiError
from greentrain.kube.node import NodePod
from greentrain.node.allowance import NOTHING, Allowance, Used, is_spent
from greentrain.node.allowances import AllowanceState, AllowanceStates, Change, Haste, LastRenewal, Sight
from greentrain.node.findings import Finding, judge_operator
from greentrain.node.pods import sum_up
from greentrain.quantities import format_energy, to_joules

logger = logging.getLogger("greentrain.agent")

FILE = "allowances.json"

_AWAY = (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError)


class BudgetView(Protocol):
    """What the API server shows, and what is requested of it (`kube.node.NodeView`)."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The node's pods by UID."""
        ...

    @property
    def pods_known(self) -> bool:
        """Whether these are the pods of now."""
        ...

    @property
    def allowances(self) -> Mapping[str, Allowance] | None:
        """The given allowances, by the pod's UID; None until they were read."""
        ...

    @property
    def lease(self) -> tuple[str, str] | None:
        """Namespace and name of the Lease that the operator renews; None where none was given."""
        ...

    @property
    def operator_renewed(self) -> float | None:
        """When the last renewal was seen, on the monotonic clock; None where none was."""
        ...

    @property
    def unattended(self) -> Mapping[str, float]:
        """The jobs that the operator cannot reconcile, by UID, each with the time since when, on the same clock."""
        ...

    async def listen(self) -> None:
        """Read the Lease now, beside the watch."""
        ...

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Request a pod's eviction; ApiError 404 and 409: the pod no longer exists, 429: not now."""
        ...


_JOURNAL = TypeAdapter(dict[str, AllowanceState])


class Allowances:
    """The allowances of one node's pods."""

    def __init__(self, journal: Journal, clock: Clock, view: BudgetView, *, allowed: bool = True) -> None:
        self._journal = journal
        self._clock = clock
        self._view = view
        self._may_write = allowed
        """Whether this agent has the journal's lock."""
        self._read = False
        """Whether the stored allowances were read."""
        self._states = AllowanceStates()
        self._stored: dict[str, AllowanceState] = {}
        """What is on the disk."""
        self._evicting: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._said: dict[str, str] = {}
        self._began = clock.elapsed()
        self.throttles = 0
        """How many pods it has throttled."""
        self.evictions = 0
        """How many pods it has evicted."""

    @property
    def silent(self) -> bool:
        """Whether the operator counted as silent at the last poll."""
        return self._states.silent

    @property
    def spent(self) -> int:
        """How many pods have spent their allowance since this agent started."""
        return self._states.spent

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards get their lowest limit."""
        return self._states.throttled

    @property
    def silence(self) -> float:
        """Seconds since the operator's last renewal was seen, or since this agent's start."""
        return self._find_renewal().find_silence(self._clock.elapsed())

    def _find_renewal(self) -> LastRenewal:
        view = self._view
        return LastRenewal(self._began, view.operator_renewed, view.lease is not None, view.unattended)

    @property
    def _confirmed(self) -> Mapping[str, AllowanceState]:
        """What a restarted agent will know."""
        return self._stored if self._may_write else self._states.pods

    def judge_operator(self) -> Finding:
        """The condition `OperatorActive`."""
        renewed = self._view.operator_renewed is not None
        return judge_operator(self._view.lease, silent=self.silent, renewed=renewed)

    def load(self) -> None:
        """Read what was read and done before; a damaged file is moved aside."""
        if not self._may_write or self._read:
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
        self._states.take_stored(kept)
        for one in self._states.pods.values():
            if one.action == "Throttled":
                logger.warning(
                    "pod %s/%s is at its lowest limit: it had spent its allowance while the operator was silent",
                    one.namespace,
                    one.name,
                )

    # -- polling ------------------------------------------------------------------------------------------

    def look(self, account: NodeAccount, *, report_interval: float) -> Haste:
        """Judge every pod by what the account has of it now; returns how soon to report what is new."""
        self.load()
        view, before = self._view, self._states.pods.keys()
        sight = Sight(
            now=self._clock.elapsed(),
            counted=sum_up(account),
            given=view.allowances,
            pods=view.pods,
            pods_known=view.pods_known,
            operator=self._find_renewal(),
            report_seconds=report_interval,
        )
        for change in self._states.look(sight):
            self._log(change)
        for uid in before - self._states.pods.keys():
            self._said.pop(uid, None)
        if self._states.pods != self._stored:
            self._store()
        return self._states.find_haste(self._confirmed)

    # -- acting --------------------------------------------------------------------------------------------

    def note_reported(self, throttled: Collection[str]) -> None:
        """A report was stored in which these pods are throttled."""
        self._states.note_reported(throttled)

    def act_if_due(self) -> None:
        """Read the Lease where renewals are late, and request due evictions; in the background, while polls go on."""
        now = self._clock.elapsed()
        if _is_done(self._listening) and self._states.must_listen(now, self._find_renewal()):
            self._listening = asyncio.create_task(self._listen(), name="listen")
        if not _is_done(self._evicting):
            return
        due = self._states.take_due(now)
        if due:
            self._evicting = asyncio.create_task(self._evict_all(due), name="evict")

    async def close(self) -> None:
        """Request nothing more."""
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
            # After an outage of the API server the watch for renewals may start later than this request.
            await self._view.listen()
        except _AWAY as error:
            logger.warning("whether the operator is back cannot be seen: %r; no pod is evicted yet", error)
            return
        await asyncio.gather(*map(self._evict, due))

    async def _evict(self, uid: str) -> None:
        pod, now = self._view.pods.get(uid), self._clock.elapsed()
        if not self._states.may_evict(uid, pod, self._find_renewal(), now):
            return
        one = self._states.pods[uid]
        try:
            await self._view.evict(one.namespace, one.name, uid)
        except _AWAY as error:
            if not isinstance(error, ApiError) or error.status not in (404, 409):
                self._say_once(
                    uid, f"pod {one.namespace}/{one.name} cannot be evicted yet: {error!r}; again and again"
                )
                return
        if uid in self._states.pods:
            self._states.note_evicted(uid)
            self.evictions += 1
            logger.error(
                "pod %s/%s is evicted: its allowance is spent or has ended, and the operator is silent",
                one.namespace,
                one.name,
            )

    # -- storing and reporting ------------------------------------------------------------------------------

    def _store(self) -> None:
        if not (self._may_write and self._read):
            return
        try:
            self._journal.store(_JOURNAL.dump_json(self._states.pods), FILE)
        except OSError as error:
            self._say_once(FILE, f"the journal of allowances cannot be written: {error.strerror}")
            return
        self._said.pop(FILE, None)
        self._stored = dict(self._states.pods)

    def mark(self, entries: tuple[PodEnergy, ...]) -> tuple[PodEnergy, ...]:
        """A report's entries with each pod's allowance and what was done about it."""
        return self._states.mark(entries, self._confirmed)

    def _log(self, change: Change) -> None:
        one, used = change.state, change.used
        who = f"{one.namespace}/{one.name}"
        match change.kind:
            case "Spent":
                logger.info("pod %s has spent its allowance: the operator decides", who)
            case "Lifted":
                logger.info("pod %s has a higher allowance: its GPUs may have their limits again", who)
            case "Throttled":
                self.throttles += 1
                allowance = one.in_force(used) or NOTHING
                amount = format_energy(to_joules(used.within(allowance.scope)))
                logger.error(
                    "pod %s has used %s, %s, and the operator has been silent for %.0f s: its GPUs get their lowest limit, "
                    "and the pod is to be evicted",
                    who,
                    amount,
                    _describe_spent(one.allowance, used),
                    self.silence,
                )

    def _say_once(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            logger.error("%s", text)


def _describe_spent(allowance: Allowance | None, used: Used) -> str:
    if allowance is None:
        return "and no allowance of its budget is known"
    amount = format_energy(allowance.joules)
    if is_spent(used, allowance):
        return f"all of its allowance of {amount}"
    return f"and its allowance of {amount} is valid for {allowance.seconds} s without the operator"


def _is_done(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()
