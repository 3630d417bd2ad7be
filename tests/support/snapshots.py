"""Snapshots for tests of the pure core, built from plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from greentrain.api.spec import EmissionsSpec, EnergySpec, ReplicaType
from greentrain.api.status import EmissionsStatus, EnergyStatus, GreenTrainingJobStatus
from greentrain.core.books.account import Account
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.seen.intensities import CarbonSource, Intensities
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.pods import Pod, PodState, Rank
from greentrain.core.seen.snapshot import Fleet, Job, Snapshot
from greentrain.core.seen.taking import take_intensities
from greentrain.core.seen.times import format_time
from tests.support.manifests import build_job

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """A moment after the start of every test's time."""
    return START + timedelta(seconds=seconds)


def job_of(
    manifest: dict[str, Any] | None = None,
    *,
    status: GreenTrainingJobStatus | None = None,
    generation: int = 1,
) -> Job:
    """A stored job."""
    body = manifest or build_job()
    return Job(
        namespace="team",
        name=body["metadata"]["name"],
        uid="uid-1",
        generation=generation,
        resource_version="1",
        spec=body["spec"],
        status=status or GreenTrainingJobStatus(),
        created=START,
    )


def take(
    source: CarbonSource,
    reports: Iterable[NodeReport] = (),
    *,
    spec: EmissionsSpec | None = None,
    energy: EnergyStatus | None = None,
    emissions: EmissionsStatus | None = None,
    models: tuple[str, ...] = (),
    now: datetime = START,
) -> Intensities:
    """What a pass over a job with these takes from the source."""
    manifest = build_job()
    section = spec.model_dump(mode="json", by_alias=True, exclude_none=True) if spec is not None else {}
    manifest["spec"] = {**manifest["spec"], "emissions": section}
    job = job_of(manifest, status=GreenTrainingJobStatus(energy=energy, emissions=emissions))
    seen = Snapshot(job=job, reports=tuple(reports), fleet=Fleet(models=models))
    return take_intensities(source, seen, now=now)


def account_of(
    reports: Iterable[NodeReport] = (),
    *,
    energy: EnergyStatus | None = None,
    emissions: EmissionsStatus | None = None,
    spec: BudgetSpec | None = None,
    source: CarbonSource | None = None,
    is_gone: Callable[[str], bool] = lambda _: False,
    finished: bool = False,
    now: datetime = START,
) -> Account:
    """What is counted by when nodes have reported this, and the status holds that; pods are there unless they are gone."""
    reports, limits = tuple(reports), spec or BudgetSpec(EnergySpec(), EmissionsSpec())
    uids = {e.uid for r in reports for e in r.pods} | {p.uid for p in (energy.pods if energy else ())}
    state = PodState.EXITED if finished else PodState.RUNNING
    pods = tuple(
        Pod(name=uid, uid=uid, rank=worker(0), attempt=1, state=state)
        for uid in sorted(uids)
        if not is_gone(uid)
    )
    status = GreenTrainingJobStatus(
        energy=energy, emissions=emissions, completion_time=format_time(now) if finished else None
    )
    taken = None
    if source is not None:
        taken = take(source, reports, spec=limits.emissions, energy=energy, emissions=emissions, now=now)
    seen = Snapshot(job=job_of(status=status), pods=pods, reports=reports, intensities=taken)
    return Account(seen, limits, None, now)


def worker(index: int) -> Rank:
    """A worker's seat."""
    return Rank(ReplicaType.WORKER, index)


def pod(index: int, state: PodState = PodState.RUNNING, *, attempt: int = 1, **facts: Any) -> Pod:
    """A worker's pod."""
    return Pod(
        name=f"digits-worker-{index}-{attempt}",
        uid=f"pod-{index}-{attempt}",
        rank=facts.pop("rank", worker(index)),
        attempt=attempt,
        state=state,
        ready=state is PodState.RUNNING,
        **facts,
    )


def exited(index: int, code: int, second: float = 0, *, attempt: int = 1, **facts: Any) -> Pod:
    """A worker's pod whose program ended."""
    return pod(index, PodState.EXITED, attempt=attempt, exit_code=code, finished=at(second), **facts)


def seen(job: Job, *pods: Pod, service: bool = True, **facts: Any) -> Snapshot:
    """A snapshot of that job and those pods."""
    return Snapshot(job=job, pods=pods, has_service=service, **facts)
