"""Pods by role and state, and why one cannot start."""

from __future__ import annotations

from collections.abc import Mapping

from greentrain.api.reasons import Reason
from greentrain.api.spec import ReplicaType
from greentrain.api.status import AttemptStatus, ReplicaStatus
from greentrain.core.gang.judge import failed, finished_ranks
from greentrain.core.gang.manifests import ranks
from greentrain.core.seen.pods import Pod, Rank


def count_pods(attempt: AttemptStatus, pods: Mapping[Rank, Pod]) -> dict[str, ReplicaStatus]:
    """Pods by role and state; a rank whose pod is still to be created counts as active."""
    counted = {}
    open_ = attempt.end_time is None and attempt.running_time is None
    for type_ in ReplicaType:
        seats = [r for r in ranks(attempt.replicas) if r.type is type_]
        if not seats:
            continue
        there = [pods[r] for r in seats if r in pods]
        finished = finished_ranks(attempt, pods.values())
        to_be_made = len(seats) - len(there) if open_ else 0
        counted[type_.value] = ReplicaStatus(
            active=sum(not p.ended for p in there) + to_be_made,
            ready=sum(p.ready and not p.terminating for p in there),
            succeeded=sum(r.type is type_ for r in finished),
            failed=sum(failed(p) and p.rank not in finished for p in there),
        )
    return counted


def find_stuck(pods: Mapping[Rank, Pod]) -> tuple[Reason, str] | None:
    """The first pod that cannot start: its reason and the message of what refused it; None where there is none."""
    for rank in sorted(pods):
        pod = pods[rank]
        if pod.stuck is None:
            continue
        words = pod.waiting_message or pod.waiting_reason
        if pod.stuck is Reason.CONTAINER_NOT_STARTED:
            words = f"{pod.waiting_reason}: {pod.waiting_message}{_remedy(pod)}"
        return pod.stuck, f"pod {pod.name}: {words}"
    return None


def _remedy(pod: Pod) -> str:
    # The kubelet's messages for an image, and for a template, that would run as root although runAsNonRoot is set.
    if "runAsNonRoot" in pod.waiting_message or "non-root policy" in pod.waiting_message:
        return (
            " (it would run as root; set securityContext.runAsUser in the template, "
            "or securityContext.runAsNonRoot: false to allow it)"
        )
    return ""
