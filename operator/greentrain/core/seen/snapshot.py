"""What one pass may know: an immutable snapshot of a job and everything that belongs to it.

`kube.gather` fills it from the cluster, tests from plain values. Kubernetes objects are parsed here, once, into the few
facts that decisions depend on; everything that a server may leave out is optional here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from greentrain.api import names
from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.api.runtime import Progress
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.stored import LEDGER, LedgerError, join_ledger
from greentrain.core.seen.intensities import Intensities
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.pods import Pod, Rank, Raw
from greentrain.core.seen.times import parse_time
from greentrain.quantities import Joules, Milliwatts


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an object of a job could not be created."""

    kind: str
    name: str
    reason: str
    """`NameTaken`, one of `PASSING_OBSTACLES`, or the server's reason, such as `Forbidden` or `Invalid`."""
    message: str


BEING_REMOVED = "BeingRemoved"


VANISHED = "Vanished"


PASSING_OBSTACLES = frozenset({BEING_REMOVED, VANISHED})
"""Obstacles that go away by themselves within seconds."""


@dataclass(frozen=True, slots=True)
class TemplateProblem:
    """A problem with a field of the spec, such as one that no supported Kubernetes version reads in a template."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A GreenTrainingJob as stored; its spec is unparsed, because it may be invalid."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    spec: Raw
    status: GreenTrainingJobStatus
    barrier: tuple[TemplateProblem, ...] | None = None
    """Why its spec is not parsed: it is too deep or too large, and little of it was kept. None where that was not checked."""
    unreadable: str = ""
    """Why the ledger in its stored status cannot be read; such a job is on hold, and its status is not overwritten."""
    deleting: bool = False
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known about the GPUs of the nodes that a job's pods are on, or may be scheduled to (`core.seen.fleet`)."""

    limit_milliwatts: Milliwatts | None = None
    """The highest power limit of one of them, or that it will have when its cap ends; None where no node reports one."""
    report_seconds: int | None = None
    """The longest interval of the nodes' reports."""
    default_milliwatts: Milliwatts | None = None
    """The highest default limit of one of them."""
    lowest_percent: int | None = None
    """The lowest limit that all of them can have, in percent of their default limit."""
    reported_at: datetime | None = None
    """When a node with GPUs last reported."""
    without_host: tuple[str, ...] = ()
    """Nodes that cannot measure their processors and memory."""
    models: tuple[str, ...] = ()
    """Product names of the GPUs, each once."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one pass may know."""

    job: Job
    pods: tuple[Pod, ...] = ()
    last_states: tuple[Pod, ...] = ()
    """The last states of pods that are gone: their ends and reports still count, but their ranks are free."""
    has_service: bool = False
    progress: Progress | None = None
    """The deciding rank's answer to `GET /progress`; None where it did not answer."""
    sampled: datetime | None = None
    """When it was asked; None where its answer is in the stored status already."""
    sampled_joules: Joules | None = None
    """Joules that the job had used by then; None for what it has used now."""
    obstacles: tuple[Obstacle, ...] = ()
    template_problems: tuple[TemplateProblem, ...] = ()
    reports: tuple[NodeReport, ...] = ()
    """Reports of the job's pods by nodes' agents, and reports of nodes that had its pods before."""
    fleet: Fleet = Fleet()
    beyond_baseline: bool = True
    """Whether its pods may request more than Pod Security's baseline; True where that was not checked."""
    privileged: bool = False
    """Whether the namespace's label allows more than Pod Security's baseline; read only for a job that needs it."""
    gpu_resources: GpuResources = SHIPPED
    """Which resources of containers are GPUs."""
    intensities: Intensities | None = None
    """What emissions are counted with; None where no source is configured."""

    def pods_of(self, attempt: int) -> dict[Rank, Pod]:
        """The pods of one attempt by rank."""
        return {p.rank: p for p in self.pods if p.attempt == attempt}

    def gone_of(self, attempt: int) -> dict[Rank, Pod]:
        """The last states of those ranks of one attempt that have no pod."""
        there = self.pods_of(attempt)
        return {p.rank: p for p in self.last_states if p.attempt == attempt and p.rank not in there}


DERIVED = frozenset(
    {"phase", "display", "budgets", "replicaStatuses", "labelSelector", "power", "projection"}
)
"""Sections of a status that are computed or measured again; if any other cannot be read, the job is put on hold."""


def parse_status(raw: Raw | None) -> tuple[GreenTrainingJobStatus, str]:
    """Read a job's status by sections, and why its ledger cannot be read; empty where it can.

    Another version of the operator may have written values that this one does not know. Derived sections then count as empty.
    A ledger that cannot be read does not: the energy used and the number of failures would begin again at zero.
    """
    stored = raw if isinstance(raw, Mapping) else {}
    try:
        joined = join_ledger(stored)
    except LedgerError as error:
        people = {key: value for key, value in stored.items() if key != LEDGER}
        status, why = _read_sections(people, people)
        return status, why or f"status.ledger: {error}"
    return _read_sections(joined, stored)


def _read_sections(joined: Raw, stored: Raw) -> tuple[GreenTrainingJobStatus, str]:
    try:
        return GreenTrainingJobStatus.model_validate(joined), ""
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
    wrong = {str(e["loc"][0]) for e in errors if e["loc"]}
    first = next((e for e in errors if e["loc"] and str(e["loc"][0]) not in DERIVED), None)
    kept = {key: value for key, value in joined.items() if key not in wrong}
    why = "" if first is None else f"{_find_path(first['loc'], stored)}: {first['msg'][:200]}"
    return GreenTrainingJobStatus.model_validate(kept), why


def _find_path(location: tuple[int | str, ...], stored: Raw) -> str:
    """The path at which a value of a status is stored: in the fields for users, or in the ledger."""
    node: Any = stored
    for part in location:
        listed = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if not listed and not (isinstance(node, Mapping) and part in node):
            node = None
            break
        node = node[part]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location)
    return f"status{path}" if node is not None or LEDGER not in stored else f"status.ledger{path}"


BARRIER = f"{names.GROUP}/barrier"
"""Key of a job's body, beside `spec`, with the paths and messages of its barrier (`kube.cache.slim_job`); never stored."""


def parse_job(body: Raw) -> Job:
    """Read a GreenTrainingJob as the API server stores it."""
    meta = body["metadata"]
    spec, barrier = body.get("spec"), body.get(BARRIER)
    status, unreadable = parse_status(body.get("status"))
    return Job(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 0)),
        resource_version=meta.get("resourceVersion", ""),
        spec=spec if isinstance(spec, Mapping) else {},
        status=status,
        barrier=None if barrier is None else tuple(TemplateProblem(path, text) for path, text in barrier),
        unreadable=unreadable,
        deleting=bool(meta.get("deletionTimestamp")),
        created=parse_time(meta.get("creationTimestamp")),
    )
