"""Whether a job's power cap is in force, judged from the reports of its nodes' agents.

The cap comes from the caller: the one chosen in this pass, or that of the stored status where the spec was refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from greentrain.api.conditions import ConditionStatus
from greentrain.api.nodepower import GpuCap, GpuStatus, resolve_cap
from greentrain.api.reasons import Reason
from greentrain.api.status import PowerStatus
from greentrain.core.seen.nodes import SILENT_AFTER, NodeReport
from greentrain.core.seen.pods import Pod
from greentrain.quantities import PowerCap, parse_power_cap


@dataclass(frozen=True, slots=True)
class CapVerdict:
    """What a job's status reports about its cap."""

    status: PowerStatus
    value: ConditionStatus
    reason: Reason
    message: str


_SEVERITY: Mapping[Reason, int] = {
    Reason.CAPPED: 0,
    Reason.PREVIOUS_LOWER: 1,
    Reason.CLAMPED: 2,
    Reason.APPLYING: 3,
    Reason.NO_AGENT: 4,
    Reason.READINGS_STOPPED: 5,
}
"""Of several findings the worst is reported; every reason that is not listed here is worse than these."""


_IN_FORCE = frozenset({Reason.CAPPED, Reason.PREVIOUS_LOWER, Reason.CLAMPED})


_UNKNOWN = frozenset({Reason.NO_AGENT, Reason.READINGS_STOPPED})


def judge_cap(
    cap: str, running: Sequence[Pod], reports: Iterable[NodeReport], *, now: datetime
) -> CapVerdict:
    """Whether a cap is in force on the GPUs of a job's running pods, each of which requests at least one.

    Raises:
        ValueError: `cap` is none.
    """
    by_node, parsed = {r.node: r for r in reports}, parse_power_cap(cap)
    findings: list[tuple[Reason, str]] = []
    gpus: list[tuple[GpuStatus, GpuCap]] = []
    for pod in running:
        report = by_node.get(pod.node)
        entry = next((e for e in report.pods if e.uid == pod.uid), None) if report is not None else None
        if report is None or entry is None:
            text = f"the agent on node {pod.node} has not reported pod {pod.name} (kubectl get nodepowers)"
            findings.append((Reason.NO_AGENT, text))
            continue
        if report.is_silent(now):
            text = f"node {pod.node} does not report for {SILENT_AFTER.seconds} s (kubectl describe nodepower {pod.node})"
            findings.append((Reason.READINGS_STOPPED, text))
            continue
        allocated, found = report.kept.get("capped", entry.key, (cap, parsed, pod, report.gpus), _find_all)
        gpus += allocated
        findings += found
        if len(allocated) < pod.gpus:
            text = f"the agent on node {pod.node} has taken up {len(allocated)} of the {pod.gpus} GPUs of pod {pod.name}"
            findings.append((Reason.APPLYING, text))
    reason, text = max(findings, key=lambda f: _SEVERITY.get(f[0], len(_SEVERITY)))
    total = sum(p.gpus for p in running)
    capped = sum(r in _IN_FORCE for r, _ in findings)
    status = PowerStatus(
        cap=cap,
        asked_milliwatts=_highest(reported.asked_milliwatts for _, reported in gpus),
        set_milliwatts=_highest(g.limits.set_milliwatts for g, _ in gpus),
        enforced_milliwatts=_highest(g.limits.enforced_milliwatts for g, _ in gpus),
        gpus=total,
        gpus_capped=capped,
        gpus_binding=sum(bool(reported.binding) for _, reported in gpus),
    )
    if reason in _IN_FORCE:
        words = f"{capped} of {total} GPUs are capped at {cap}" + (
            f"; {text}" if reason != Reason.CAPPED else ""
        )
        return CapVerdict(status, "True", reason, words)
    value: ConditionStatus = "Unknown" if reason in _UNKNOWN else "False"
    return CapVerdict(status, value, reason, text)


def _find_all(
    cap: str, parsed: PowerCap, pod: Pod, gpus: Sequence[GpuStatus]
) -> tuple[tuple[tuple[GpuStatus, GpuCap], ...], tuple[tuple[Reason, str], ...]]:
    """The GPUs that are allocated to a pod, with their reported caps, and the finding on each."""
    allocated = tuple((g, g.cap) for g in gpus if g.cap is not None and g.cap.concerns(pod.uid))
    return allocated, tuple(_find(cap, parsed, pod, gpu, reported) for gpu, reported in allocated)


def _find(cap: str, parsed: PowerCap, pod: Pod, gpu: GpuStatus, reported: GpuCap) -> tuple[Reason, str]:
    where = f"GPU {gpu.uuid} of pod {pod.name} on node {pod.node}"
    asked = resolve_cap(parsed, gpu.limits)
    if asked is not None and reported.asked_milliwatts not in (None, asked):
        return Reason.APPLYING, f"{where}: the change to {cap} is on its way"
    return Reason(reported.reason), f"{where}: {reported.message}"


def _highest(amounts: Iterable[int | None]) -> int | None:
    return max((a for a in amounts if a is not None), default=None)
