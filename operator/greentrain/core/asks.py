"""What is requested from nodes for a job's pods: their caps and allowances, in `NodePower.spec`.

All of it comes from jobs' *stored* statuses. So a refused spec changes nothing, and an operator that restarts knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from greentrain.api.nodepower import PodAsk
from greentrain.api.spec import Scope
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.books.in_force import spec_in_force
from greentrain.quantities import Joules, PowerCap, parse_power_cap

NO_CAP = PowerCap()

UNLIMITED_JOULES = Joules(1 << 53)
"""The allowance of a pod that was created under a budget which its job no longer has. Without an allowance its agent would
allow it nothing while the operator is silent. More than a country uses in a day, and exact in JSON."""


@dataclass(frozen=True, slots=True)
class PodTerms:
    """A pod on a node that has not ended, and what its job's stored status requests for it."""

    namespace: str
    name: str
    uid: str
    cap: PowerCap | None
    """The power cap, `NO_CAP` for none; None where the job is gone."""
    allowance: Joules | None = None
    """Joules that it may use in total; None where its job has no budget that stops it."""
    allowance_seconds: int | None = None
    """For how long the allowance is valid while the operator is silent; None: until it is used up."""
    scope: Scope = "GPU"


def find_terms(pod: PodTerms, status: GreenTrainingJobStatus, *, budgeted: bool) -> PodTerms:
    """The pod with what its job's stored status requests for it; `budgeted`: the pod was created under a budget."""
    energy, text = status.energy, status.power.cap if status.power is not None else ""
    allowances = energy.control.allowances if energy is not None and energy.control is not None else ()
    known = next((a for a in allowances if a.uid == pod.uid), None)
    allowance, seconds = (Joules(known.joules), known.seconds) if known is not None else (None, None)
    if allowance is None and budgeted and not spec_in_force(status).is_enforced:
        allowance = UNLIMITED_JOULES
    scope = energy.scope if energy is not None else pod.scope
    cap = parse_power_cap(text) if text else NO_CAP
    return replace(pod, cap=cap, allowance=allowance, allowance_seconds=seconds, scope=scope)


def decide_asks(
    known: Sequence[PodAsk], pods: Iterable[PodTerms], *, is_ours: Callable[[str], bool]
) -> tuple[PodAsk, ...]:
    """What `NodePower.spec.pods` of a node must contain; `known` is its present content, `pods` are the jobs' pods there.

    `is_ours` reports whether this operator runs the jobs of a namespace: what other operators request stays.
    """
    before = {p.uid: p for p in known}
    wanted = {p.uid: p for p in known if not is_ours(p.namespace)}
    for pod in pods:
        cap = pod.cap or NO_CAP
        if pod.cap is None and pod.uid in before:
            wanted[pod.uid] = before[pod.uid]
        elif cap != NO_CAP or pod.allowance is not None:
            wanted[pod.uid] = PodAsk(
                uid=pod.uid,
                namespace=pod.namespace,
                name=pod.name,
                cap_milliwatts=cap.milliwatts,
                cap_percent=cap.percent,
                allowance_joules=pod.allowance,
                allowance_seconds=pod.allowance_seconds,
                allowance_scope=pod.scope,
            )
    return tuple(wanted[uid] for uid in sorted(wanted))


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of a job's stored status that concern agents."""

    uid: str
    whole: tuple[str | None, str | None, bool]
    """What is the same for all of its pods: cap, scope, and whether a budget is enforced."""
    allowances: Mapping[str, tuple[int, int | None]]
    """By UID of a pod: allowance in joules, and for how many seconds it is valid."""
    final: Mapping[str, tuple[str, int]]
    """By key of an entry that is final: its node and joules."""

    @classmethod
    def of(cls, uid: str, status: GreenTrainingJobStatus) -> Terms:
        """The terms in the status of the job with this UID."""
        energy, power = status.energy, status.power
        control = energy.control if energy is not None else None
        return cls(
            uid,
            (
                power.cap if power is not None else None,
                energy.scope if energy is not None else None,
                spec_in_force(status).is_enforced,
            ),
            {a.uid: (a.joules, a.seconds) for a in (control.allowances if control is not None else ())},
            {p.key: (p.node, p.joules) for p in (energy.pods if energy is not None else ()) if p.final},
        )


def find_nodes(before: Terms | None, terms: Terms, pods: Mapping[str, str]) -> set[str]:
    """The nodes for which a stored status has other terms than the previous one; `pods`: UID → node, "" for none."""
    if before is not None and before.uid != terms.uid:
        before = None  # another job of the same name
    final = before.final if before is not None else {}
    nodes = {entry[0] for key, entry in terms.final.items() if final.get(key) != entry}
    if before is None or before.whole != terms.whole:
        nodes |= set(pods.values())
    else:
        nodes |= {
            node for uid, node in pods.items() if before.allowances.get(uid) != terms.allowances.get(uid)
        }
    return nodes - {""}
