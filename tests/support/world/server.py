"""The API server of a world as plain data: objects as they are stored, one watch, and what it may refuse for a while.

A body is replaced and never changed, so that who has read it keeps what was read. No status is stored that no real server would
store: it is held against the CRD's schema, and has to be read again as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from greentrain.api import names
from greentrain.api.nodepower import NodePowerStatus
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.stored import dump_status
from greentrain.core.seen.snapshot import parse_status
from greentrain.core.seen.times import format_time
from greentrain.kube.client import ApiError
from tests.support.world.schema import find_problems

Body = dict[str, Any]
Kind = Literal["Job", "Pod", "Service", "NodePower"]

NAMESPACE = "team"
JOB_UID = "uid-1"


class Lease(NamedTuple):
    """The operator's lease."""

    renewed: datetime
    """By the operator's clock."""
    unattended: tuple[str, ...]
    """UIDs of jobs that it cannot look after."""


class Event(NamedTuple):
    """A change, as a watch brings it."""

    kind: Kind
    body: Body
    gone: bool = False


@dataclass
class Server:
    """The API server, with one job."""

    wall: Callable[[], datetime]
    """Its clock."""
    manifest: Body
    created: datetime
    """When the job was."""
    up: bool = True
    version: int = 0
    objects: dict[Kind, dict[str, Body]] = field(
        default_factory=lambda: {"Job": {}, "Pod": {}, "Service": {}, "NodePower": {}}
    )
    lease: Lease | None = None
    status: GreenTrainingJobStatus = field(default_factory=GreenTrainingJobStatus)
    """The job's, as it is read back."""
    decided: bool = True
    """Whether the last write of it was what a pass decided, and not the mere word that passes fail."""
    writes: int = 0
    """Of statuses, and of what is asked of agents."""
    watch: Callable[[Event], None] = lambda _: None
    refuse: Callable[[Body], ApiError | None] = lambda _: None
    """Whether a job's status is refused, and how."""
    stored: Callable[[GreenTrainingJobStatus], None] = lambda _: None
    """Called with the status that the stored one replaced."""
    problems: list[str] = field(default_factory=list)
    """Why a status could not have been stored."""
    _uids: int = 0

    def __post_init__(self) -> None:
        meta = {
            "namespace": NAMESPACE,
            "name": self.manifest["metadata"]["name"],
            "uid": JOB_UID,
            "generation": 1,
        }
        meta["creationTimestamp"] = format_time(self.created)
        self._put("Job", {**self.manifest, "metadata": meta})

    # -- objects ------------------------------------------------------------------------------------

    def _put(self, kind: Kind, body: Mapping[str, Any]) -> Body:
        self.version += 1
        stored = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.objects[kind][stored["metadata"]["name"]] = stored
        self.watch(Event(kind, stored))
        return stored

    def remove(self, kind: Kind, name: str) -> None:
        """An object is no more."""
        body = self.objects[kind].pop(name, None)
        if body is not None:
            self.version += 1
            meta = {**body["metadata"], "resourceVersion": str(self.version)}
            self.watch(Event(kind, {**body, "metadata": meta}, gone=True))

    @property
    def job(self) -> Body | None:
        """The job; None where it was deleted."""
        return next(iter(self.objects["Job"].values()), None)

    @property
    def pods(self) -> dict[str, Body]:
        """The pods by name."""
        return self.objects["Pod"]

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Body:
        """Store a new object; ApiError 409 where there is one of that name."""
        if manifest["metadata"]["name"] in self.objects[kind]:
            raise ApiError(409, "AlreadyExists", f"{kind} {manifest['metadata']['name']} already exists")
        self._uids += 1
        meta = {**manifest["metadata"], "uid": f"{kind.lower()}-{self._uids}"}
        meta["creationTimestamp"] = format_time(self.wall())
        return self._put(kind, {**manifest, "metadata": meta})

    # -- pods ---------------------------------------------------------------------------------------

    def change_pod(self, name: str, *, status: Body | None = None, node: str | None = None) -> Body:
        """Another status of a pod, or the node it is bound to."""
        body = self.pods[name]
        if node is not None:
            body = {**body, "spec": {**body["spec"], "nodeName": node}}
        return self._put("Pod", body if status is None else {**body, "status": status})

    def delete_pod(self, name: str, uid: str, *, grace: int | None = None) -> Body | None:
        """Ask for a pod's end; what it is then, None where it is not there."""
        body = self.pods.get(name)
        if body is None or body["metadata"]["uid"] != uid:
            return None
        if "deletionTimestamp" in body["metadata"]:
            return body
        own = body["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        meta = {**body["metadata"], "deletionTimestamp": format_time(self.wall() + timedelta(seconds=own))}
        meta["deletionGracePeriodSeconds"] = own
        return self._put("Pod", {**body, "metadata": meta})

    def evict(self, name: str, uid: str) -> None:
        """The eviction of a pod: it is deleted, and a condition says why."""
        if self.delete_pod(name, uid) is not None:
            body = self.pods[name]
            target = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            status = body.get("status") or {}
            self.change_pod(name, status={**status, "conditions": [*status.get("conditions", ()), target]})

    # -- the job ------------------------------------------------------------------------------------

    def edit(self, spec: Body) -> None:
        """The user writes another spec."""
        if self.job is not None:
            meta = self.job["metadata"]
            self._put(
                "Job", {**self.job, "metadata": {**meta, "generation": meta["generation"] + 1}, "spec": spec}
            )

    def replace_status(self, version: str, status: Body, *, whole: bool = True) -> Body:
        """Store a job's status; ApiError 409 where the job is another one by now, or what it is refused with.

        `whole`: it was written as one, and is read as it was written.
        """
        job = self.job
        if job is None:
            raise ApiError(404, "NotFound", "the job is not there")
        if job["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "the job has been modified")
        problems = find_problems(status, whole=whole)
        if problems:
            self.problems += problems
            raise ApiError(422, "Invalid", problems[0])
        refusal = self.refuse(status)
        if refusal is not None:
            raise refusal
        before, self.status = self.status, parse_status(status)[0]
        self.writes += 1
        self.decided = whole
        stored = self._put("Job", {**job, "status": status})
        self.stored(before)
        return stored

    def patch_status(self, version: str, changed: Body) -> Body:
        """Merge a change into a job's status (a JSON merge patch of one level of sections)."""
        status = dict((self.job or {}).get("status") or {})
        for section, value in changed.items():
            status[section] = {**status.get(section, {}), **value} if isinstance(value, dict) else value
        return self.replace_status(version, status, whole=False)

    # -- nodes --------------------------------------------------------------------------------------

    def report(self, node: str, status: NodePowerStatus | Body) -> None:
        """The agent's half of a NodePower; the object is made where there is none."""
        power = self.objects["NodePower"].get(node)
        if power is None:
            power = self.create("NodePower", {"metadata": {"name": node}, "spec": {}})
        raw = dump_status(status) if isinstance(status, NodePowerStatus) else status
        self._put("NodePower", {**power, "status": raw})

    def ask_agent(self, node: str, spec: Body) -> Body:
        """The operator's half."""
        self.writes += 1
        return self._put("NodePower", {**self.objects["NodePower"][node], "spec": spec})

    def find_pods_on(self, node: str) -> list[Body]:
        """The pods bound to a node."""
        return [body for body in self.pods.values() if body["spec"].get("nodeName") == node]


def is_budgeted(body: Mapping[str, Any]) -> bool:
    """Whether a pod was made under a budget."""
    return (body["metadata"].get("annotations") or {}).get(names.ANNOTATION_BUDGETED) == "true"
