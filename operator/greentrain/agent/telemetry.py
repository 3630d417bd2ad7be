"""The agent's metrics, read from its account at each scrape, and whether it is alive and ready."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from greentrain.agent.clock import Clock
from greentrain.agent.loop import Agent
from greentrain.energy.intervals import CardReading
from greentrain.quantities import Milliwatts, in_joules, in_watts, typed

SILENT_SECONDS = 60.0
"""Without a poll of cards and allocations for so long the agent is not ready."""

HUNG_SECONDS = 300.0
"""Without a round of its loop for so long it is not alive. Hanging NVML calls do not block the loop."""


class AgentTelemetry(Collector):
    """What Prometheus scrapes and the kubelet asks."""

    def __init__(self, agent: Agent, clock: Clock, registry: CollectorRegistry) -> None:
        self._agent = agent
        self._clock = clock
        self._registry = registry
        self._started = clock.elapsed()
        registry.register(self)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def unready(self) -> str | None:
        """Why nothing is counted at present, as a message; None when it is."""
        looked = self._agent.looked
        if looked is not None and self._clock.elapsed() - looked < SILENT_SECONDS:
            return None
        bad = [f"{c.type}: {c.message}" for c in self._agent.conditions if c.status != "True"]
        return "; ".join(bad) or "the GPUs and their allocations have not been read yet"

    def unhealthy(self) -> str | None:
        """Why only a restart may help, as a message; None while it is not needed."""
        silent = self._clock.elapsed() - max(self._agent.beat, self._started)
        return f"the loop has not gone round for {silent:.0f} s" if silent > HUNG_SECONDS else None

    def collect(self) -> Iterable[Metric]:
        """The account as metrics; energy in joules, as counters that only grow while the journal lives."""
        agent, account = self._agent, self._agent.account
        gpu = CounterMetricFamily(
            "greentrain_gpu_energy_joules", "Energy of a GPU, of all that used it.", labels=["gpu", "model"]
        )
        draw = GaugeMetricFamily(
            "greentrain_gpu_power_watts", "Power that a GPU reports.", labels=["gpu", "model"]
        )
        readable = GaugeMetricFamily(
            "greentrain_gpu_readable", "1 where the GPU answered at the last poll.", labels=["gpu", "model"]
        )
        faults = CounterMetricFamily(
            "greentrain_gpu_counter_faults",
            "How often a GPU's energy counter showed what the GPU cannot have used.",
            labels=["gpu", "model"],
        )
        for card in agent.cards:
            labels = [card.uuid, card.model]
            counted = account.cards.get(card.uuid)
            if counted is not None:
                gpu.add_metric(labels, in_joules(counted.used))
                faults.add_metric(labels, counted.meter.faults)
            answer = agent.answers.get(card.uuid)
            known = isinstance(answer, CardReading)
            readable.add_metric(labels, float(known))
            if isinstance(answer, CardReading) and answer.draw is not None:
                draw.add_metric(labels, in_watts(answer.draw))
        yield from (gpu, draw, readable, faults)
        yield from self._collect_limits()
        yield from self._collect_allowances()
        # A pod and the previous one of its name may both be there; a metric must not be given twice.
        names = ["namespace", "pod", "uid", "job", "device"]
        pods = CounterMetricFamily(
            "greentrain_pod_energy_joules",
            "Energy a pod has used on this node, by kind of device.",
            labels=names,
        )
        for pod in account.pods.values():
            for device, amount in (("gpu", pod.gpu), ("cpu", pod.cpu), ("dram", pod.dram)):
                if amount or device == "gpu":
                    labels = [pod.namespace, pod.name, pod.uid, pod.job or "", device]
                    pods.add_metric(labels, in_joules(amount))
        yield pods
        for name, text, amount in (
            (
                "greentrain_idle_energy_joules",
                "Energy of GPUs that were allocated to no pod and did nothing.",
                account.idle,
            ),
            (
                "greentrain_unattributed_energy_joules",
                "Energy of GPUs that worked although they were allocated to no pod.",
                account.unattributed,
            ),
        ):
            yield CounterMetricFamily(name, text, value=in_joules(amount))
        age = float("nan") if agent.looked is None else self._clock.elapsed() - agent.looked
        yield GaugeMetricFamily(
            "greentrain_last_look_age_seconds",
            "Seconds since the GPUs and their allocations were last both read.",
            value=age,
        )
        yield CounterMetricFamily(
            "greentrain_dropped_pods",
            "Pods whose energy no operator settled for 24 hours.",
            value=account.dropped,
        )

    def _collect_limits(self) -> Iterable[Metric]:
        """Power limits in watts: requested, due, set and in force; and what was done about them."""
        caps = self._agent.caps
        labels = ["gpu", "model"]
        asked = GaugeMetricFamily(
            "greentrain_gpu_power_cap_asked_watts", "Power limit that a job requests.", labels=labels
        )
        target = GaugeMetricFamily(
            "greentrain_gpu_power_cap_target_watts",
            "Power limit that is due: not above the one before, within the GPU's range.",
            labels=labels,
        )
        previous = GaugeMetricFamily(
            "greentrain_gpu_power_limit_previous_watts",
            "Power limit before the agent changed it.",
            labels=labels,
        )
        present = GaugeMetricFamily(
            "greentrain_gpu_power_limit_watts", "Power limit that is set.", labels=labels
        )
        enforced = GaugeMetricFamily(
            "greentrain_gpu_power_limit_enforced_watts", "Power limit in force.", labels=labels
        )
        in_force = GaugeMetricFamily(
            "greentrain_gpu_power_cap_in_force",
            "1 where the limit in force, as read back, is not above the one that is due.",
            labels=[*labels, "reason"],
        )
        foreign = CounterMetricFamily(
            "greentrain_gpu_power_limit_foreign_changes",
            "How often another program changed the limit of a capped GPU.",
            labels=labels,
        )
        restores = CounterMetricFamily(
            "greentrain_gpu_power_limit_restores",
            "How often the previous power limit of a GPU was restored after a cap.",
            labels=labels,
        )
        for card in self._agent.cards:
            key = [card.uuid, card.model]
            now, report = caps.limits.get(card.uuid), caps.reports.get(card.uuid)
            for family, amount in (
                (asked, typed(Milliwatts, report.asked_milliwatts) if report is not None else None),
                (target, typed(Milliwatts, report.target_milliwatts) if report is not None else None),
                (previous, caps.priors.get(card.uuid)),
                (present, now.set_milliwatts if now is not None else None),
                (enforced, now.enforced_milliwatts if now is not None else None),
            ):
                if amount is not None:
                    family.add_metric(key, in_watts(amount))
            if report is not None:
                in_force.add_metric([*key, report.reason], float(report.in_force))
            foreign.add_metric(key, caps.foreign_changes[card.uuid])
            restores.add_metric(key, caps.restores[card.uuid])
        yield from (asked, target, previous, present, enforced, in_force, foreign, restores)

    def _collect_allowances(self) -> Iterable[Metric]:
        """What was done because the operator was silent, and for how long it has been."""
        allowances = self._agent.allowances
        if allowances is None:
            return
        for name, text, amount in (
            (
                "greentrain_allowances_spent",
                "Pods that have spent their allowance of energy.",
                allowances.spent,
            ),
            (
                "greentrain_allowance_throttles",
                "Pods whose GPUs were set to their lowest limit because the allowance was spent and the operator silent.",
                allowances.throttles,
            ),
            ("greentrain_allowance_evictions", "Pods evicted for the same reason.", allowances.evictions),
        ):
            yield CounterMetricFamily(name, text, value=amount)
        yield GaugeMetricFamily(
            "greentrain_operator_silence_seconds",
            "Seconds since the operator's last renewal was seen, or since the agent's start.",
            value=allowances.silence,
        )
