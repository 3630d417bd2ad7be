"""What nodes' agents have reported, as the watch on NodePowers has shown it, and which jobs it concerns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from greentrain.api.conditions import is_true
from greentrain.api.nodepower import NodePowerSpec, NodePowerStatus, PodAsk, PodEnergy
from greentrain.api.v1alpha1 import EnergyStatus, ReplicaType
from greentrain.core.ledger import NodeReport
from greentrain.core.projection import lowest_percent
from greentrain.core.snapshot import Fleet, parse_time
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
    """When it was observed, by that clock: of a report that was there before the operator, by the node's clock."""


class NodePowers:
    """All NodePowers by name; a body replaces another only if its resourceVersion is higher."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._known: dict[str, NodePower] = {}
        self._nodes: dict[Key, set[str]] = {}
        """The nodes that tell of a job: a pass over one job must not go through every pod of the cluster."""
        self._deleted: set[str] = set()
        self._fleet: Fleet | None = None

    def put(self, body: Body) -> set[Key] | None:
        """Take in an object; the jobs it tells of, now or before, or None if it says nothing new."""
        meta = body["metadata"]
        name, uid = meta["name"], meta["uid"]
        old = self._known.get(name)
        if uid in self._deleted or (
            old is not None and old.uid == uid and int(old.resource_version) >= version_of(body)
        ):
            return None
        try:
            status = NodePowerStatus.model_validate(body.get("status") or {})
            spec = NodePowerSpec.model_validate(body.get("spec") or {})
            observed = parse_time(status.observed_at)
        except ValueError as error:
            count = error.error_count() if isinstance(error, ValidationError) else 1
            logger.error("NodePower %s is not read: %d fields are wrong", name, count)
            return None
        before = self._forget(name)
        now = _jobs(status)
        for key in now:
            self._nodes.setdefault(key, set()).add(name)
        fresh = old is None or old.uid != uid or status != old.status
        received = self._clock() if fresh or old is None else old.received
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
        )
        self._fleet = None
        return now | before

    def _forget(self, name: str) -> set[Key]:
        """Take a node out of the lists of the jobs it told of; those jobs."""
        old = self._known.get(name)
        keys = _jobs(old.status) if old is not None else set()
        for key in keys:
            self._nodes[key].discard(name)
            if not self._nodes[key]:
                del self._nodes[key]
        return keys

    def drop(self, body: Body) -> set[Key]:
        """Forget a deleted object; the jobs it told of."""
        meta = body["metadata"]
        self._deleted.add(meta["uid"])
        old = self._known.get(meta["name"])
        if old is None or old.uid != meta["uid"]:
            return set()
        keys = self._forget(meta["name"])
        del self._known[meta["name"]]
        self._fleet = None
        return keys

    def resync(self, bodies: Iterable[Body], version: int) -> set[Key]:
        """Compare with a list made at that resourceVersion; the jobs something is new for."""
        listed, changed = set(), set()
        for body in bodies:
            listed.add(body["metadata"]["name"])
            changed |= self.put(body) or set()
        for known in list(self._known.values()):
            if known.name not in listed and int(known.resource_version) <= version:
                changed |= self.drop({"metadata": {"name": known.name, "uid": known.uid}})
        return changed

    def names(self) -> list[str]:
        """The names of all NodePowers: those of their nodes."""
        return list(self._known)

    def node_power(self, name: str) -> NodePower | None:
        """The NodePower of a node."""
        return self._known.get(name)

    def fleet(self) -> Fleet:
        """What all nodes tell of their GPUs together."""
        if self._fleet is None:
            self._fleet = _sum_up(self._known.values())
        return self._fleet

    def reports(
        self, key: Key, uid: str, created: datetime | None, energy: EnergyStatus | None
    ) -> tuple[NodeReport, ...]:
        """What is told of a job, and by nodes that told of it before, which say something by their silence too."""
        before = {p.node for p in energy.pods} if energy is not None else set()
        if energy is not None and energy.budget is not None:
            before |= {*energy.budget.unread_nodes, *(c.node for c in energy.budget.charges)} - {""}
        found = []
        for name in sorted(before | self._nodes.get(key, set())):
            known = self._known.get(name)
            if known is None:
                continue
            entries = tuple(e for e in known.status.pods if is_of_job(e, key, uid, created))
            if entries or name in before:
                observed = parse_time(known.status.observed_at)
                gpus = tuple(g for g in known.status.gpus if g.cap is not None)
                every = known.status.report_interval_seconds
                found.append(
                    NodeReport(
                        name,
                        known.received,
                        entries,
                        observed,
                        gpus,
                        seen=known.seen,
                        report_seconds=every,
                        region=known.status.region,
                        zone=known.status.zone,
                    )
                )
        return tuple(found)


def _sum_up(powers: Iterable[NodePower]) -> Fleet:
    """Limits are those the cards have without us: a cap that is set now will have ended by the time a job begins."""
    with_gpus = [p for p in powers if p.status.gpus]
    cards = [g.limits for p in with_gpus for g in p.status.gpus]
    standing = (
        x.prior_milliwatts or x.enforced_milliwatts or x.set_milliwatts or x.default_milliwatts for x in cards
    )
    ranges = [
        lowest_percent(x.min_milliwatts, x.default_milliwatts)
        for x in cards
        if x.min_milliwatts and x.default_milliwatts
    ]
    intervals = (p.status.report_interval_seconds for p in with_gpus)
    return Fleet(
        limit_milliwatts=max((x for x in standing if x), default=None),
        report_seconds=max((x for x in intervals if x), default=None),
        default_milliwatts=max((x.default_milliwatts for x in cards if x.default_milliwatts), default=None),
        lowest_percent=max(ranges, default=None),
        heard=max((p.received for p in with_gpus), default=None),
        without_host=tuple(p.name for p in with_gpus if not is_true(p.status.conditions, "HostReadable")),
        models=tuple(sorted({g.model for p in with_gpus for g in p.status.gpus if g.model})),
    )


def _jobs(status: NodePowerStatus) -> set[Key]:
    return {key for key in map(find_key, status.pods) if key is not None}


def find_key(entry: PodEnergy) -> Key | None:
    """The job an entry is of, None where it is of none; by the pod's name where its agent was told of no owner."""
    if entry.owner_known:
        return Key(entry.namespace, entry.job) if entry.job and entry.job_uid else None
    parts = entry.name.rsplit("-", 3)  # JOB-ROLE-INDEX-ATTEMPT
    return Key(entry.namespace, parts[0]) if len(parts) == 4 and parts[1] in _ROLES else None


def is_of_job(entry: PodEnergy, key: Key, uid: str, created: datetime | None) -> bool:
    """Whether an entry tells of this very job, and not of one of the same name before it."""
    if entry.owner_known:
        return entry.job_uid == uid and find_key(entry) == key
    first = parse_time(entry.first_reading)
    return find_key(entry) == key and first is not None and (created is None or first >= created)


_ROLES = frozenset(t.value.lower() for t in ReplicaType)
