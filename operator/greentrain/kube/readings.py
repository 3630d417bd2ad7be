"""What nodes' agents have reported, as the watch on NodePowers has shown it, and which jobs it concerns.

An agent's report counts only for pods on its own node: those that the operator knows to be, or to have been, there by the pods
it has seen or by a job's stored status. Whatever else a node reports of a job is left out here, once.

Each version of a NodePower is read once, and its part of a job is assembled once: for a job on a thousand nodes a pass reads
only the new reports. What is kept for that follows from the objects and the stored statuses alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from greentrain.api.nodepower import NodePowerSpec, NodePowerStatus, PodAsk, PodEnergy
from greentrain.api.spec import ReplicaType
from greentrain.api.status import EnergyStatus
from greentrain.core.seen.fleet import describe_node, find_typical, join
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.reports import Binding, find_false_date, read_report, show
from greentrain.core.seen.snapshot import Fleet
from greentrain.core.seen.times import parse_time
from greentrain.kube.cache import Key, version_of

logger = logging.getLogger("greentrain.controller")

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodePower:
    """One NodePower as it was last seen."""

    name: str
    uid: str
    resource_version: str
    settled: tuple[str, ...]
    caps: tuple[PodAsk, ...]
    status: NodePowerStatus
    received: datetime
    """When its agent's half last changed, by the operator's clock."""
    seen: datetime
    """When it was observed, by that clock; for a report from before the operator's start, by the node's clock."""
    entries: Mapping[Key, tuple[PodEnergy, ...]] = field(default_factory=dict)
    """What it reports of pods, by the job of that name."""
    fleet: Fleet | None = None
    """What it reports of its GPUs; None where it has none."""
    doubts: tuple[str, ...] = ()
    """What of its report is not accepted, and why."""


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A node's report on a job, and the inputs it was assembled from."""

    known: NodePower
    uid: str
    created: datetime | None
    bindings: tuple[Binding | None, ...]
    """Where the pods are, entry by entry."""
    report: NodeReport


class NodePowers:
    """All NodePowers by name; a body replaces another only if its resourceVersion is higher."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._known: dict[str, NodePower] = {}
        self._nodes: dict[Key, set[str]] = {}
        """The nodes that report of a job: a pass over one job must not go through every pod of the cluster."""
        self._deleted: set[str] = set()
        self._typical: Fleet | None = None
        self._foreign: dict[tuple[str, Key], int] = {}
        """By node and job: how many of its entries were not accepted."""
        self._assembled: dict[tuple[str, Key], _Assembled] = {}
        """By node and job: what was assembled last."""

    def put(self, body: Body) -> set[Key] | None:
        """Take in an object; returns the jobs it reports on, now or before, or None if it is not new."""
        meta = body["metadata"]
        name, uid = meta["name"], meta["uid"]
        old = self._known.get(name)
        if uid in self._deleted or (
            old is not None and old.uid == uid and int(old.resource_version) >= version_of(body)
        ):
            return None
        try:
            spec = NodePowerSpec.model_validate(body.get("spec") or {})
        except ValidationError as error:
            logger.error("NodePower %s is not read: %d fields are wrong", name, error.error_count())
            return None
        believed = read_report(body.get("status"), now=self._clock())
        status = believed.status
        if status is None:  # as if there were no report: the node is silent
            status = old.status if old is not None and old.uid == uid else NodePowerStatus()
        elif old is not None:
            status = _keep_same(old.status, status)
        if len(believed.doubts) > (len(old.doubts) if old is not None else 0):
            logger.warning(
                "NodePower %s: %d things its agent reports are not believed and do not count, such as %s",
                name,
                len(believed.doubts),
                believed.doubts[0],
            )
        entries = _group(status) if old is None or status is not old.status else old.entries
        before = self._forget(name)
        now = set(entries)
        for key in before - now:
            self._foreign.pop((name, key), None)
            self._assembled.pop((name, key), None)
        for key in now:
            self._nodes.setdefault(key, set()).add(name)
        fresh = old is None or old.uid != uid or status != old.status
        received = self._clock() if fresh or old is None else old.received
        fleet = describe_node(name, status, received)
        self._take_figures(old.fleet if old is not None else None, fleet)
        observed = parse_time(status.observed_at)
        first = old is None and observed is not None and observed < received
        self._known[name] = NodePower(
            name=name,
            uid=uid,
            resource_version=meta["resourceVersion"],
            settled=spec.settled,
            caps=spec.pods,
            status=status,
            received=received,
            seen=observed
            if first and observed is not None
            else received
            if fresh or old is None
            else old.seen,
            entries=entries,
            fleet=fleet,
            doubts=believed.doubts,
        )
        return now | before

    def _forget(self, name: str) -> set[Key]:
        """Remove a node from the lists of the jobs it reported on; returns those jobs."""
        old = self._known.get(name)
        keys = set(old.entries) if old is not None else set()
        for key in keys:
            self._nodes[key].discard(name)
            if not self._nodes[key]:
                del self._nodes[key]
        return keys

    def drop(self, body: Body) -> set[Key]:
        """Drop a deleted object; returns the jobs it reported on."""
        meta = body["metadata"]
        self._deleted.add(meta["uid"])
        old = self._known.get(meta["name"])
        if old is None or old.uid != meta["uid"]:
            return set()
        keys = self._forget(meta["name"])
        del self._known[meta["name"]]
        for key in keys:
            self._foreign.pop((meta["name"], key), None)
            self._assembled.pop((meta["name"], key), None)
        self._typical = None
        return keys

    def resync(self, bodies: Iterable[Body], version: int) -> set[Key]:
        """Compare with a list made at that resourceVersion; returns the jobs with news."""
        listed, changed = set(), set()
        for body in bodies:
            listed.add(body["metadata"]["name"])
            changed |= self.put(body) or set()
        for known in list(self._known.values()):
            if known.name not in listed and int(known.resource_version) <= version:
                changed |= self.drop({"metadata": {"name": known.name, "uid": known.uid}})
        return changed

    def names(self) -> list[str]:
        """The names of all NodePowers, which are those of their nodes."""
        return list(self._known)

    def node_power(self, name: str) -> NodePower | None:
        """The NodePower of a node."""
        return self._known.get(name)

    def fleet(self, nodes: Collection[str] = ()) -> Fleet:
        """The figures for a job whose pods are on these nodes; "" means no node yet.

        As long as a pod is on none, or on one that reports no GPUs, it may be any node of the cluster.
        """
        found = [self._known[n].fleet if n in self._known else None for n in dict.fromkeys(nodes)]
        there = [figures for figures in found if figures is not None]
        if found and len(there) == len(found):
            return join(there)
        if self._typical is None:
            self._typical = find_typical([p.fleet for p in self._known.values() if p.fleet is not None])
        return join([*there, self._typical])

    def _take_figures(self, old: Fleet | None, new: Fleet | None) -> None:
        """Have the typical figures computed again where a node's figures have changed since its last report."""
        typical = self._typical
        if typical is None or old == new:
            return
        self._typical = None
        if old is None or new is None or replace(old, reported_at=new.reported_at) != new:
            return
        if (
            new.reported_at is not None
            and typical.reported_at is not None
            and new.reported_at >= typical.reported_at
        ):
            self._typical = replace(typical, reported_at=new.reported_at)

    def refused(self) -> dict[str, int]:
        """By node: how much of its agent's present report is not accepted."""
        counts = {name: len(known.doubts) for name, known in self._known.items()}
        for (name, _), foreign in self._foreign.items():
            counts[name] = counts.get(name, 0) + foreign
        return counts

    def _believe(
        self,
        node: str,
        key: Key,
        entries: Iterable[tuple[PodEnergy, Binding | None]],
    ) -> tuple[PodEnergy, ...]:
        """The entries of pods that are, or were, on this node; none older than its pod."""
        found, foreign = [], {}
        for entry, binding in entries:
            if binding is None:
                foreign[entry.key] = "the operator has not seen that pod on any node"
            elif binding.node != node:
                # A pod that is not bound yet: its next event has not arrived.
                if binding.node:
                    foreign[entry.key] = f"the pod is on node {binding.node}"
            elif (false := find_false_date(entry, binding)) is not None:
                foreign[entry.key] = false
            else:
                found.append(entry)
        if foreign and (node, key) not in self._foreign:
            one = min(foreign)
            logger.warning(
                "NodePower %s: what it reports of %d pods of job %s/%s is not believed and does not count, such as %s: %s",
                node,
                len(foreign),
                *key,
                show(one),
                foreign[one],
            )
        if foreign:
            self._foreign[node, key] = len(foreign)
        else:
            self._foreign.pop((node, key), None)
        return tuple(found)

    def reports(
        self,
        key: Key,
        uid: str,
        created: datetime | None,
        energy: EnergyStatus | None,
        bindings: Mapping[str, Binding],
    ) -> tuple[NodeReport, ...]:
        """The reports on a job, also of nodes that reported on it before: their silence matters too.

        `bindings` has the job's pods, by UID, where the API server has shown them; where it has not, the stored status
        (`energy`) has them.
        """
        bindings = {**_find_stored(energy, created, bindings), **bindings}
        named = {b.name: b for b in bindings.values()}
        before = {p.node for p in energy.pods} if energy is not None else set()
        if energy is not None and energy.control is not None:
            before |= {*energy.control.unread_nodes, *(c.node for c in energy.control.charges)} - {""}
        found = []
        for name in sorted(before | self._nodes.get(key, set())):
            known = self._known.get(name)
            if known is None:
                continue
            # Of a pod that ended before the API server had shown its UID the agent knows only the name.
            there = tuple(
                bindings.get(e.uid) or (None if e.owner_known else named.get(e.name))
                for e in known.entries.get(key, ())
            )
            report = self._report(known, key, uid, created, there)
            if report.pods or name in before:
                found.append(report)
        return tuple(found)

    def _report(
        self,
        known: NodePower,
        key: Key,
        uid: str,
        created: datetime | None,
        bindings: tuple[Binding | None, ...],
    ) -> NodeReport:
        """One node's report on a job; `bindings` is where the pods are, entry by entry."""
        before = self._assembled.get((known.name, key))
        if (
            before is not None
            and before.known is known
            and (before.uid, before.created, before.bindings) == (uid, created, bindings)
        ):
            return before.report
        entries = known.entries.get(key, ())
        of_job = ((e, b) for e, b in zip(entries, bindings, strict=True) if is_of_job(e, key, uid, created))
        report = NodeReport(
            known.name,
            known.received,
            self._believe(known.name, key, of_job),
            parse_time(known.status.observed_at),
            tuple(g for g in known.status.gpus if g.cap is not None),
            seen=known.seen,
            report_seconds=known.status.report_interval_seconds,
            region=known.status.region,
            zone=known.status.zone,
        )
        if before is not None and before.uid == uid:
            report.follow(before.report)
        if entries:
            self._assembled[known.name, key] = _Assembled(known, uid, created, bindings, report)
        return report


def _find_stored(
    energy: EnergyStatus | None, created: datetime | None, shown: Mapping[str, Binding]
) -> dict[str, Binding]:
    """Where a job's pods were by its stored status, for those that the API server has not `shown`."""
    if energy is None:
        return {}
    charges = energy.control.charges if energy.control is not None else ()
    return {
        **{c.uid: Binding(c.node, created) for c in charges if c.node and c.uid not in shown},
        **{p.uid: Binding(p.node, created, p.name) for p in energy.pods if p.uid not in shown},
    }


def _keep_same(old: NodePowerStatus, new: NodePowerStatus) -> NodePowerStatus:
    """The new status with the old one's entries where they are equal, so that nothing is computed from them again."""
    if old == new:
        return old
    before = {entry.key: entry for entry in old.pods}
    pods = tuple(known if (known := before.get(entry.key)) == entry else entry for entry in new.pods)
    return new.model_copy(update={"pods": pods})


def _group(status: NodePowerStatus) -> dict[Key, tuple[PodEnergy, ...]]:
    """A node's entries of pods, by the job of that name."""
    found: dict[Key, list[PodEnergy]] = {}
    for entry in status.pods:
        key = find_key(entry)
        if key is not None:
            found.setdefault(key, []).append(entry)
    return {key: tuple(entries) for key, entries in found.items()}


def find_key(entry: PodEnergy) -> Key | None:
    """The job an entry belongs to, None where it is none's; by the pod's name where its agent knows of no owner."""
    if entry.owner_known:
        return Key(entry.namespace, entry.job) if entry.job and entry.job_uid else None
    parts = entry.name.rsplit("-", 3)  # JOB-ROLE-INDEX-ATTEMPT
    return Key(entry.namespace, parts[0]) if len(parts) == 4 and parts[1] in _ROLES else None


def is_of_job(entry: PodEnergy, key: Key, uid: str, created: datetime | None) -> bool:
    """Whether an entry belongs to this very job, and not to one of the same name before it."""
    if entry.owner_known:
        return entry.job_uid == uid and find_key(entry) == key
    first = parse_time(entry.first_reading)
    return find_key(entry) == key and first is not None and (created is None or first >= created)


_ROLES = frozenset(t.value.lower() for t in ReplicaType)
