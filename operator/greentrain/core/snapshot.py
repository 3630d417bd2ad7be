"""What one pass may know: an immutable picture of a job and everything that belongs to it.

`kube.gather` fills it from the cluster, tests from plain values. Kubernetes objects are parsed here, once,
into the few facts decisions rest on; whatever a server may leave out is optional here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from pydantic import ValidationError

from greentrain.api import names
from greentrain.api.conditions import Reason
from greentrain.api.runtime import CONTAINER, Progress, TerminationMessage, parse_termination_message
from greentrain.api.v1alpha1 import GreenTrainingJobStatus, ReplicaType
from greentrain.core.emissions import Carbon
from greentrain.core.ledger import NodeReport

Raw = Mapping[str, Any]


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 time as the API server writes it; None for none."""
    return datetime.fromisoformat(text) if text else None


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as the API server writes metav1.Time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """One seat of the gang: a role and an index."""

    type: ReplicaType
    index: int

    def __str__(self) -> str:
        return f"{self.type.value.lower()}-{self.index}"


class PodState(Enum):
    """What a pod amounts to for the gang, judged by its tensorflow container."""

    PENDING = "pending"
    RUNNING = "running"
    EXITED = "exited"
    FAILED = "failed"
    """Ended without its container's exit code: evicted, or refused by its node."""


class Disruption(Enum):
    """What the cluster, not the program, did to a pod."""

    EVICTED = "evicted"
    PREEMPTED = "preempted"
    NODE_LOST = "node lost"


_DISRUPTION_TARGET = {
    "PreemptionByScheduler": Disruption.PREEMPTED,
    "DeletionByTaintManager": Disruption.NODE_LOST,
    "DeletionByPodGC": Disruption.NODE_LOST,
    "EvictionByEvictionAPI": Disruption.EVICTED,
    "TerminationByKubelet": Disruption.EVICTED,
}
"""Reasons of the pod condition DisruptionTarget."""

_STATUS_REASONS = {
    "Evicted": Disruption.EVICTED,
    "Preempting": Disruption.PREEMPTED,
    "Preempted": Disruption.PREEMPTED,
    "Shutdown": Disruption.EVICTED,
    "NodeShutdown": Disruption.EVICTED,
    "Terminated": Disruption.EVICTED,
    "NodeLost": Disruption.NODE_LOST,
}
"""Pod status reasons the kubelet and the node controller write: eviction, critical pods, node shutdown, a lost node."""

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
PASSING_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Pod:
    """The facts of one pod that decisions rest on."""

    name: str
    uid: str
    rank: Rank
    attempt: int
    state: PodState
    ready: bool = False
    terminating: bool = False
    exit_code: int | None = None
    exit_reason: str = ""
    """The container's termination reason (`OOMKilled`, `Error`), or the pod's (`Evicted`)."""
    finished: datetime | None = None
    waiting_reason: str = ""
    waiting_message: str = ""
    termination: TerminationMessage | None = None
    log_tail: str = ""
    """Termination message of a foreign program: the container's last lines where the policy asks for them."""
    ip: str = ""
    node: str = ""
    spec_hash: str = ""
    created: datetime | None = None
    deletion_requested: datetime | None = None
    """When its deletion was asked for, before the grace period."""
    disruption: Disruption | None = None
    disruption_message: str = ""
    gpus: int = 0
    """GPUs, or parts of one, that its containers ask for."""
    started: datetime | None = None
    """When its tensorflow container started, while that runs."""
    unreachable: bool = False
    """Kubernetes has marked the pod of a node that stopped answering; whether it still runs nobody can know."""

    @property
    def ended(self) -> bool:
        """Whether this pod will never run again."""
        return self.state in (PodState.EXITED, PodState.FAILED)

    @property
    def stuck(self) -> Reason | None:
        """Why a pod that has not started cannot; None for one that is well or on its way."""
        if self.state is not PodState.PENDING or self.waiting_reason in PASSING_REASONS:
            return None
        if self.waiting_reason == "Unschedulable":
            return Reason.UNSCHEDULABLE
        if self.waiting_reason in IMAGE_REASONS:
            return Reason.IMAGE_UNAVAILABLE
        return Reason.CONTAINER_NOT_STARTED


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an object of ours could not be made."""

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
    """A field of a pod template that no Kubernetes version this operator knows would read."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A GreenTrainingJob as it stands: its spec unparsed, because it may be wrong."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    spec: Raw
    status: GreenTrainingJobStatus
    deleting: bool = False
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of the GPUs that a job's pods are on, or may come to be on, from the nodes that report (`core.fleet`)."""

    limit_milliwatts: int | None = None
    """The highest power limit one of them has, or gets back when a cap ends; None where no node reports one."""
    report_seconds: int | None = None
    """The longest interval of the nodes' reports."""
    default_milliwatts: int | None = None
    """The highest default limit of one of them."""
    lowest_percent: int | None = None
    """The lowest limit that all of them can have, as a share of their default limit."""
    heard: datetime | None = None
    """When one of the nodes with GPUs reported last."""
    without_host: tuple[str, ...] = ()
    """Nodes that cannot measure their processors and memory."""
    models: tuple[str, ...] = ()
    """Product names of the GPUs, each once."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one pass may know."""

    job: Job
    pods: tuple[Pod, ...] = ()
    last_words: tuple[Pod, ...] = ()
    """Pods that are gone but were seen ended: what they said is still read, they fill no seat."""
    has_service: bool = False
    progress: Progress | None = None
    """The deciding rank's own word, None where it did not answer."""
    sampled: datetime | None = None
    """When it was asked for that; None where its word is in the stored status already."""
    sampled_joules: int | None = None
    """What the job had used by then; None for what it has used now."""
    obstacles: tuple[Obstacle, ...] = ()
    template_problems: tuple[TemplateProblem, ...] = ()
    reports: tuple[NodeReport, ...] = ()
    """What nodes' agents told of the job's pods, and those nodes that told of them before."""
    fleet: Fleet = Fleet()
    carbon: Carbon | None = None
    """What emissions are counted with; None where nothing is set up for it."""

    def pods_of(self, attempt: int) -> dict[Rank, Pod]:
        """The pods of one attempt by rank."""
        return {p.rank: p for p in self.pods if p.attempt == attempt}


def parse_status(raw: Raw | None) -> GreenTrainingJobStatus:
    """Read a job's status; one that was damaged by hand counts as none and is computed afresh."""
    try:
        return GreenTrainingJobStatus.model_validate(raw or {})
    except ValidationError:
        return GreenTrainingJobStatus()


def parse_job(body: Raw) -> Job:
    """Read a GreenTrainingJob as the API server stores it."""
    meta = body["metadata"]
    spec = body.get("spec")
    return Job(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 0)),
        resource_version=meta.get("resourceVersion", ""),
        spec=spec if isinstance(spec, Mapping) else {},
        status=parse_status(body.get("status")),
        deleting=bool(meta.get("deletionTimestamp")),
        created=parse_time(meta.get("creationTimestamp")),
    )


def parse_pod(body: Raw) -> Pod | None:
    """Read a pod of ours; None for one whose labels do not name a rank and an attempt."""
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    try:
        rank = Rank(ReplicaType(labels[names.LABEL_REPLICA_TYPE]), int(labels[names.LABEL_REPLICA_INDEX]))
        attempt = int(labels[names.LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    status = body.get("status") or {}
    disruption, words = _disruption(status)
    pod = Pod(
        name=meta["name"],
        uid=meta["uid"],
        rank=rank,
        attempt=attempt,
        state=PodState.PENDING,
        terminating=bool(meta.get("deletionTimestamp")),
        ip=status.get("podIP") or "",
        node=(body.get("spec") or {}).get("nodeName") or "",
        spec_hash=(meta.get("annotations") or {}).get(names.ANNOTATION_SPEC_HASH, ""),
        created=parse_time(meta.get("creationTimestamp")),
        deletion_requested=_deletion_requested(meta),
        disruption=disruption,
        disruption_message=words,
        gpus=count_gpus(body.get("spec") or {}),
    )
    container: Raw = next(
        (c for c in status.get("containerStatuses") or () if c.get("name") == CONTAINER), {}
    )
    state = container.get("state") or {}
    phase = status.get("phase", "Pending")
    if terminated := state.get("terminated"):
        message = terminated.get("message")
        termination = parse_termination_message(message)
        return replace(
            pod,
            state=PodState.EXITED,
            exit_code=int(terminated.get("exitCode", -1)),
            exit_reason=terminated.get("reason") or "",
            finished=parse_time(terminated.get("finishedAt")),
            termination=termination,
            log_tail="" if termination else _tail(message or ""),
        )
    if phase == "Failed" or (phase == "Succeeded" and state.get("running") is None):
        # Without a container's own exit there is no verdict of the program, so not even Succeeded is one.
        return replace(
            pod,
            state=PodState.FAILED,
            exit_reason=status.get("reason") or NO_REASON,
            log_tail=_tail(status.get("message") or ""),
        )
    if state.get("running") is not None:
        cut_off = _unreachable(status)
        ready = bool(container.get("ready")) and not cut_off
        started = parse_time(state["running"].get("startedAt"))
        return replace(pod, state=PodState.RUNNING, ready=ready, unreachable=cut_off, started=started)
    reason, message = _why_waiting(status, state)
    return replace(pod, state=PodState.PENDING, waiting_reason=reason, waiting_message=message)


NO_REASON = "PodFailed"
"""Of a pod that has failed without a container's exit, and whose status names no reason either."""

LOG_TAIL_MAX = 1024
"""How much of a container's last lines is kept, in characters; the kubelet keeps 2,048 bytes or 80 lines."""


def _tail(text: str) -> str:
    """The last whole lines of a text."""
    if len(text) <= LOG_TAIL_MAX:
        return text
    cut = text[-LOG_TAIL_MAX:]
    return cut.partition("\n")[2] or cut


def _deletion_requested(meta: Raw) -> datetime | None:
    deadline = parse_time(meta.get("deletionTimestamp"))
    return deadline - timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0) if deadline else None


def _disruption(status: Raw) -> tuple[Disruption | None, str]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            known = _DISRUPTION_TARGET.get(condition.get("reason") or "", Disruption.EVICTED)
            return known, condition.get("message") or ""
    return _STATUS_REASONS.get(status.get("reason") or ""), status.get("message") or ""


def _unreachable(status: Raw) -> bool:
    """Whether the node controller, not the kubelet, said last that a pod is not ready.

    When a node has not reported for its grace period (`--node-monitor-grace-period`, 50 s) the
    controller sets the condition Ready of its pods to False and leaves ContainersReady as the kubelet wrote it. The
    kubelet itself writes the two apart only for a readiness gate, with a reason of its own.
    """
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    marked = ready.get("status") == "False" and containers.get("status") == "True"
    return bool(marked and ready.get("reason") != "ReadinessGatesNotReady")


def count_gpus(spec: Raw) -> int:
    """GPUs, or parts of one, that a pod of that spec asks for."""
    limits = ((c.get("resources") or {}).get("limits") or {} for c in spec.get("containers") or ())
    return sum(
        int(count)
        for limit in limits
        for name, count in limit.items()
        if name == names.GPU_RESOURCE or name.startswith(names.MIG_RESOURCE_PREFIX)
    )


def _why_waiting(status: Raw, state: Raw) -> tuple[str, str]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return condition.get("reason") or "Unschedulable", condition.get("message") or ""
    waiting = state.get("waiting") or {}
    for init in status.get("initContainerStatuses") or ():
        stuck = (init.get("state") or {}).get("waiting") or {}
        if stuck.get("reason") not in (None, "PodInitializing"):
            waiting = stuck
            break
    return waiting.get("reason") or "", waiting.get("message") or ""
