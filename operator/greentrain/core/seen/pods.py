"""The few facts of a pod that decisions depend on; everything that a server may leave out is optional here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from greentrain.api import names
from greentrain.api.reasons import Reason
from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.api.runtime import CONTAINER, TerminationMessage, clean_text, parse_termination_message
from greentrain.api.spec import ReplicaType
from greentrain.core.seen.gpus import count_gpus, is_sidecar, iterate_containers
from greentrain.core.seen.times import CLOCK_WRONG, parse_time

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """One rank of the gang: a role and an index."""

    type: ReplicaType
    index: int

    def __str__(self) -> str:
        return f"{self.type.value.lower()}-{self.index}"


class PodState(Enum):
    """The state of a pod for the gang, judged by its tensorflow container."""

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


DEADLINE_EXCEEDED = "DeadlineExceeded"
"""The pod's reason when its kubelet stopped it for the template's own activeDeadlineSeconds."""


IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)


PASSING_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Pod:
    """The facts of one pod that decisions depend on."""

    name: str
    uid: str
    rank: Rank
    attempt: int
    state: PodState
    ready: bool = False
    terminating: bool = False
    exit_code: int | None = None
    init_container: str = ""
    """The init container that failed: the exit in these fields is its; empty where it was the program's own."""
    exit_reason: str = ""
    """The container's termination reason (`OOMKilled`, `Error`), or the pod's (`Evicted`, `DeadlineExceeded`)."""
    finished: datetime | None = None
    waiting_reason: str = ""
    waiting_message: str = ""
    termination: TerminationMessage | None = None
    log_tail: str = ""
    """Termination message of another program than our trainer: the container's last lines, if the policy is so."""
    ip: str = ""
    node: str = ""
    spec_hash: str = ""
    created: datetime | None = None
    deletion_requested: datetime | None = None
    """When its deletion was requested, before the grace period."""
    cut_grace: int | None = None
    """Its own grace period in seconds, where its deletion was requested with a longer one: a user may set any."""
    disruption: Disruption | None = None
    disruption_message: str = ""
    stopped_by_node: bool = False
    """Its kubelet stopped it without a deletion: an eviction for lack of memory, the node's shutdown, its own deadline."""
    node_stop_requested: datetime | None = None
    """When its kubelet stopped it; None where that is not known."""
    gpus: int = 0
    """GPUs, or parts of one, that its containers request."""
    started: datetime | None = None
    """When its tensorflow container started; None unless that is running."""
    unreachable: bool = False
    """Kubernetes has marked the pod because its node stopped answering; whether it still runs is not known."""

    @property
    def ended(self) -> bool:
        """Whether this pod will never run again."""
        return self.state in (PodState.EXITED, PodState.FAILED)

    @property
    def stop_requested(self) -> bool:
        """Whether the pod was asked to stop: by its deletion, whichever client requested it, or by its own node."""
        return self.terminating or self.stopped_by_node

    @property
    def stuck(self) -> Reason | None:
        """Why a pod that has not started cannot start; None for one that runs or is starting."""
        if self.state is not PodState.PENDING or self.waiting_reason in PASSING_REASONS:
            return None
        if self.waiting_reason == "Unschedulable":
            return Reason.UNSCHEDULABLE
        if self.waiting_reason in IMAGE_REASONS:
            return Reason.IMAGE_UNAVAILABLE
        return Reason.CONTAINER_NOT_STARTED


def parse_pod(body: Raw, resources: GpuResources = SHIPPED) -> Pod | None:
    """Read a pod of a job; None for one whose labels do not name a rank and an attempt.

    `resources`: which of its containers' resources are GPUs.
    """
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    try:
        rank = Rank(ReplicaType(labels[names.LABEL_REPLICA_TYPE]), int(labels[names.LABEL_REPLICA_INDEX]))
        attempt = int(labels[names.LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    status = body.get("status") or {}
    disruption, words = _disruption(status)
    created = parse_time(meta.get("creationTimestamp"))
    stopped_by_node, node_stop_requested = _stopped_by_node(status, created)
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
        created=created,
        deletion_requested=_deletion_requested(meta),
        cut_grace=find_cut_grace(body),
        disruption=disruption,
        disruption_message=clean_text(words),
        stopped_by_node=stopped_by_node,
        node_stop_requested=node_stop_requested,
        gpus=count_gpus(body.get("spec") or {}, resources),
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
            exit_reason=_exit_reason(status, terminated),
            finished=_parse_event(terminated.get("finishedAt"), created),
            termination=termination,
            log_tail="" if termination else _tail(message or ""),
        )
    if phase == "Failed" and (init := _failed_init_container(body)) is not None:
        ended = init["state"]["terminated"]
        return replace(
            pod,
            state=PodState.EXITED,
            init_container=init.get("name") or "",
            exit_code=int(ended["exitCode"]),
            exit_reason=_exit_reason(status, ended),
            finished=_parse_event(ended.get("finishedAt"), created),
            # Not the program's own message: whatever it looks like, it confirms no checkpoint.
            log_tail=_tail(ended.get("message") or ""),
        )
    if phase == "Failed" or (phase == "Succeeded" and state.get("running") is None):
        # Without a container's exit the program's result is not known, not even where the phase is Succeeded.
        return replace(
            pod,
            state=PodState.FAILED,
            exit_reason=status.get("reason") or NO_REASON,
            log_tail=_tail(status.get("message") or ""),
        )
    if state.get("running") is not None:
        cut_off = _unreachable(status)
        ready = bool(container.get("ready")) and not cut_off
        started = _parse_event(state["running"].get("startedAt"), created)
        return replace(pod, state=PodState.RUNNING, ready=ready, unreachable=cut_off, started=started)
    reason, message = _why_waiting(status, state)
    # A container runtime quotes text from the template.
    return replace(pod, state=PodState.PENDING, waiting_reason=reason, waiting_message=clean_text(message))


def _exit_reason(status: Raw, terminated: Raw) -> str:
    """Why a container ended: the pod's own deadline overrides the container's reason."""
    late = status.get("reason") == DEADLINE_EXCEEDED
    return DEADLINE_EXCEEDED if late else terminated.get("reason") or ""


def _failed_init_container(body: Raw) -> Raw | None:
    """The status of the init container because of which a pod failed before its program started; None where there is none.

    One with `restartPolicy: Always` is a sidecar: the kubelet restarts it, and its exit does not fail the pod.
    """
    spec = body.get("spec") or {}
    sidecars = {c.get("name") for c in iterate_containers(spec, "initContainers") if is_sidecar(c)}
    for status in (body.get("status") or {}).get("initContainerStatuses") or ():
        terminated = (status.get("state") or {}).get("terminated") or {}
        if terminated.get("exitCode") and status.get("name") not in sidecars:
            found: Raw = status
            return found
    return None


NO_REASON = "PodFailed"
"""Reason of a pod that has failed without a container's exit, and whose status has no reason either."""


LOG_TAIL_MAX = 1024
"""Characters that are kept of a container's last lines; the kubelet keeps 2,048 bytes or 80 lines."""


def _tail(text: str) -> str:
    """The last whole lines of a text by a program, or by Kubernetes about it."""
    text = clean_text(text)
    if len(text) <= LOG_TAIL_MAX:
        return text
    cut = text[-LOG_TAIL_MAX:]
    return cut.partition("\n")[2] or cut


def _parse_event(text: str | None, created: datetime | None) -> datetime | None:
    """When something happened to a pod; None where the time is before the pod's creation.

    A kubelet writes 1970-01-01 for a time that its runtime does not know.
    """
    moment = parse_time(text)
    early = moment is not None and created is not None and moment < created - CLOCK_WRONG
    return None if early else moment


DEFAULT_GRACE_SECONDS = 30
"""Kubernetes' own terminationGracePeriodSeconds."""


LONGEST_GRACE = timedelta(days=36_500)
"""With a longer grace period a pod's deletionTimestamp has no meaning: `kubectl delete --grace-period` takes any number, and
the API server adds it in nanoseconds, of which an int64 has room for 292 years."""


def _deletion_requested(meta: Raw) -> datetime | None:
    deadline = parse_time(meta.get("deletionTimestamp"))
    grace = meta.get("deletionGracePeriodSeconds") or 0
    if deadline is None or not 0 <= grace <= LONGEST_GRACE.total_seconds():
        return None
    return deadline - timedelta(seconds=grace)


def find_cut_grace(body: Raw) -> int | None:
    """A pod's own grace period in seconds, where its deletion was requested with a longer one; else None."""
    given = (body.get("spec") or {}).get("terminationGracePeriodSeconds")
    own = DEFAULT_GRACE_SECONDS if given is None else int(given)
    return own if (body["metadata"].get("deletionGracePeriodSeconds") or 0) > own else None


def _disruption(status: Raw) -> tuple[Disruption | None, str]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            known = _DISRUPTION_TARGET.get(condition.get("reason") or "", Disruption.EVICTED)
            return known, condition.get("message") or ""
    return _STATUS_REASONS.get(status.get("reason") or ""), status.get("message") or ""


def _stopped_by_node(status: Raw, created: datetime | None) -> tuple[bool, datetime | None]:
    """Whether the kubelet itself stopped a pod, and when, by its conditions.

    Other reasons of DisruptionTarget announce a deletion, which may not follow: for these only the deletion counts.
    """
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            if condition.get("reason") == "TerminationByKubelet":
                return True, _parse_event(condition.get("lastTransitionTime"), created)
            break
    return status.get("reason") in (*_STATUS_REASONS, DEADLINE_EXCEEDED), None


def _unreachable(status: Raw) -> bool:
    """Whether the node controller, not the kubelet, has set a pod to not ready.

    That happens when a node has not reported for its grace period (`--node-monitor-grace-period`, 50 s). The controller then
    sets the condition Ready of its pods to False, and leaves ContainersReady as the kubelet wrote it. The kubelet itself sets
    the two differently only for a readiness gate, with a reason of its own.
    """
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    marked = ready.get("status") == "False" and containers.get("status") == "True"
    return bool(marked and ready.get("reason") != "ReadinessGatesNotReady")


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
