"""The operator's own metrics, on a registry that is passed in: two operators in one process do not share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from greentrain.telemetry.accounts import Accounts
from greentrain.telemetry.jobs import JobCollector, JobMeasures
from greentrain.telemetry.nodes import NodeCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Telemetry:
    """Counters and timings of the controller's passes."""

    def __init__(self, registry: CollectorRegistry, accounts: Accounts | None = None) -> None:
        self._registry = registry
        self.accounts = accounts or Accounts()
        """What jobs have used, also of those that were deleted."""
        self.passes = Counter(
            "greentrain_passes", "Passes over a job, by what came of them.", ["outcome"], registry=registry
        )
        self.pass_seconds = Histogram(
            "greentrain_pass_duration_seconds",
            "Wall time of one pass over a job, requests included.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.queue_depth = Gauge("greentrain_queue_depth", "Jobs waiting for a pass.", registry=registry)
        self.jobs = Gauge("greentrain_jobs", "GreenTrainingJobs known to the operator.", registry=registry)
        self.status_writes = Counter("greentrain_status_writes", "Job statuses stored.", registry=registry)
        self.pods_created = Counter("greentrain_pods_created", "Pods created.", registry=registry)
        self.last_watch_event = Gauge(
            "greentrain_last_watch_event_timestamp_seconds",
            "Unix time of the last event any watch delivered.",
            registry=registry,
        )
        self.missed_changes = Counter(
            "greentrain_watch_missed_changes",
            "Changes that a list showed before the watch did. A few are in flight; many mean a watch is stale.",
            ["kind"],
            registry=registry,
        )
        self.watch_openings = Counter(
            "greentrain_watch_openings",
            "Times the watches were opened, by why: start, stale (opened again because one brought nothing), "
            "ended (they ended by themselves).",
            ["cause"],
            registry=registry,
        )
        self.stale_watches = Gauge(
            "greentrain_stale_watches",
            "Times in a row that the stalest watch was opened again and still brought nothing; 3 fail liveness.",
            registry=registry,
        )
        self.longest_pass = Gauge(
            "greentrain_longest_pass_seconds",
            "How long the longest pass of those under way has been running.",
            registry=registry,
        )
        self.clock_departure = Gauge(
            "greentrain_clock_departure_seconds",
            "How far the machine's clock is ahead of the time the operator counts since its start.",
            registry=registry,
        )
        self.emissions_problems = Gauge(
            "greentrain_emissions_source_problems",
            "What is wrong with the sources of grid intensity; the log names each.",
            registry=registry,
        )
        self.reconcile_failing = Gauge(
            "greentrain_reconcile_failing",
            "1 for a job whose last two passes or more failed, or whose stored status cannot be read: the agents of its "
            "nodes enforce its budget meanwhile.",
            ["namespace", "job"],
            registry=registry,
        )
        self.status_refused = Gauge(
            "greentrain_status_refused",
            "1 for a job whose status the API server refused to store as a whole.",
            ["namespace", "job"],
            registry=registry,
        )
        self.api_errors = Counter(
            "greentrain_api_errors",
            "Refused or failed requests of passes, by HTTP status; `none` where no answer came.",
            ["status"],
            registry=registry,
        )

    def export_jobs(self, measures: Callable[[], Iterable[JobMeasures]]) -> None:
        """Export this function's figures of each job at each scrape, and the counters of `accounts`."""
        self._registry.register(JobCollector(measures, self.accounts))

    def export_nodes(self, refused: Callable[[], Mapping[str, int]]) -> None:
        """Export this function's report of each node at each scrape."""
        self._registry.register(NodeCollector(refused))

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
