"""What each pass counts and charges, compared with what the pods of a world have truly drawn.

What no report has is charged: until a running pod's report is overdue nothing, from then on all it can draw. For a pod that
has ended it is all that it can have drawn since its last reading. Here it is known when that reading was made; the product has
only clocks. What a report needed to arrive counts as known: the operator cannot charge for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus, PodEnergyStatus
from greentrain.core.seen.pods import PodState
from greentrain.core.seen.snapshot import Snapshot
from greentrain.kube.readings import NodePowers
from tests.support.snapshots import START
from tests.support.world.nodes import Node, SimPod

JOULE = 1000
"""Millijoules."""

OVERDUE = (1.1, 2)
"""A report is overdue after the interval, its jitter of a tenth, and 1 s for the API server; in whole seconds, rounded up."""


class Charged:
    """All that was ever charged in a life."""

    def __init__(self, limit: int, report_seconds: float, skew: float) -> None:
        """`limit`: of each card, in milliwatts; `skew`: by how much the operator's clock is ahead, in seconds."""
        self.limit, self.skew = limit, skew
        self.overdue = OVERDUE[0] * report_seconds + OVERDUE[1]
        self.counted: set[str] = set()
        """Pods of which every joule is counted."""
        self.charged: set[str] = set()
        """Pods that were ever charged for."""
        self._read: dict[str, PodEnergyStatus] = {}
        """What is counted of each pod, by its key; also of those that are in a sum by now."""
        self._heard: dict[str, float] = {}
        """When each node's last report was known, at the latest that any pass could take it for."""

    def check(
        self, seen: Snapshot, status: GreenTrainingJobStatus, powers: NodePowers, pods: Iterable[SimPod]
    ) -> Iterator[str]:
        """What is wrong with what a pass has decided to store; `pods`: all that ever were."""
        energy = status.energy
        if energy is None:
            return
        read, missing_ends = self._sum_up(energy)
        control = energy.control
        if control is None:
            self.charged.clear()
            return
        charges = {c.uid: c for c in control.charges}
        self.charged |= charges.keys()
        running = {p.uid for p in seen.pods if p.gpus and p.state is PodState.RUNNING}
        lost = 0
        for pod in pods:
            if pod.uid in self.counted or pod.unseen or pod.node is None or pod.started is None:
                continue
            uid, missing = pod.uid, pod.used - read.get(pod.uid, 0)
            if uid in read and uid not in missing_ends and missing < JOULE:
                self.counted.add(uid)
                continue
            charge, most = charges.get(uid), self.limit * pod.gpus
            # Reports and charges are in whole joules, cut off.
            missing -= 2 * JOULE + round(most * self._find_delay(pod, pod.node, powers))
            if charge is None and uid in self.charged:
                lost += max(0, missing)
            elif charge is not None and charge.gone is not None:
                if missing > charge.joules * JOULE:
                    yield f"undercharged at its end: {pod.name} {charge.joules} J, {missing // JOULE} J are missing"
            elif uid in running and seen.fleet.limit_milliwatts is not None:
                joules = charge.joules if charge is not None else 0
                missing -= round(most * self.overdue)
                if missing > joules * JOULE:
                    yield f"undercharged: {pod.name} {joules} J, {missing // JOULE} J are overdue"
        if lost > control.lost_joules * JOULE:
            yield f"lost: {control.lost_joules} J are charged for lost reports, {lost // JOULE} J are missing"

    def _sum_up(self, energy: EnergyStatus) -> tuple[dict[str, int], set[str]]:
        """Millijoules counted of each pod, and the pods of which a final report is missing; by UID."""
        now = {p.key: p for p in energy.pods}
        settled = {k: p for k, p in self._read.items() if k not in now and k in energy.settled}
        self._read = {**settled, **now}
        read: dict[str, int] = {}
        for entry in self._read.values():
            read[entry.uid] = read.get(entry.uid, 0) + entry.gpu_joules * JOULE
        return read, {p.uid for p in now.values() if not p.final}

    def _find_delay(self, pod: SimPod, node: Node, powers: NodePowers) -> float:
        """For how many seconds a pod's last reading, or its start, was not known: the latest it could be taken for."""
        known = powers.node_power(node.name)
        made = pod.started or 0.0
        since = made + node.skew - self.skew
        if known is not None and any(e.uid == pod.uid for e in known.status.pods):
            made = node.made[known.status.observed_at or ""]
            seen = (known.seen - START).total_seconds() - self.skew
            self._heard[node.name] = max(self._heard.get(node.name, 0.0), seen)
            since = max(since, self._heard[node.name])
        return max(0.0, since - made)
