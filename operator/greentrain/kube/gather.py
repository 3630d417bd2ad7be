"""Reads the world into one snapshot: caches for what is watched, a request only for the program's progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from greentrain.api.runtime import Progress
from greentrain.api.status import AttemptStatus
from greentrain.core.gang.manifests import deciding_rank
from greentrain.core.pod_security import asks_for_privileges
from greentrain.core.seen.pods import Pod, PodState
from greentrain.core.seen.snapshot import Obstacle, Snapshot, TemplateProblem
from greentrain.kube.cache import Cache, Key
from greentrain.kube.progress import read_progress
from greentrain.kube.readings import NodePowers
from greentrain.kube.template import find_template_problems


def gather(
    cache: Cache,
    node_powers: NodePowers,
    key: Key,
    *,
    progress: Progress | None = None,
    obstacles: tuple[Obstacle, ...] = (),
) -> Snapshot | None:
    """Everything known of one job; None where it does not exist."""
    job, body = cache.parsed_job(key), cache.job(key)
    if job is None or body is None:
        return None
    pods = cache.parsed_pods(key, job.uid)
    problems, beyond_baseline = cache.once_per_generation(
        key, job.uid, job.generation, job.spec, _check_templates
    )
    return Snapshot(
        job=job,
        pods=pods,
        last_states=cache.parsed_last_states(key, job.uid),
        has_service=bool(cache.owned("Service", key, job.uid)),
        progress=progress,
        obstacles=obstacles,
        template_problems=problems,
        beyond_baseline=beyond_baseline,
        reports=node_powers.reports(
            key, job.uid, job.created, job.status.energy, cache.bindings(key, job.uid)
        ),
        fleet=node_powers.fleet([p.node for p in pods if not p.ended]),
        gpu_resources=cache.gpu_resources,
    )


def _check_templates(spec: Mapping[str, Any]) -> tuple[tuple[TemplateProblem, ...], bool]:
    """The problems of a spec's templates, and whether its pods request more than baseline."""
    return find_template_problems(spec), asks_for_privileges(spec)


async def gather_progress(session: aiohttp.ClientSession, seen: Snapshot) -> Progress | None:
    """Request the progress of the rank that saves checkpoints; None where it does not run or does not answer."""
    attempt = seen.job.status.attempts[-1] if seen.job.status.attempts else None
    pod = _deciding_pod(seen, attempt)
    if pod is None or pod.state is not PodState.RUNNING or not pod.ip:
        return None
    return await read_progress(session, pod.ip)


def _deciding_pod(seen: Snapshot, attempt: AttemptStatus | None) -> Pod | None:
    if attempt is None or attempt.end_time is not None or not attempt.replicas:
        return None
    return seen.pods_of(attempt.number).get(deciding_rank(attempt.replicas))
