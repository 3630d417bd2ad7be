"""Applies a decision: each object is checked for its owner first, the status is guarded by resourceVersion, events come last.

Everything here may be done twice. A pod that exists already answers 409, and then its owner decides.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from greentrain.api import names
from greentrain.api.reasons import Reason
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.api.stored import dump_job_status
from greentrain.core.lifecycle.decision import Decision, Deletion
from greentrain.core.seen.snapshot import BEING_REMOVED, VANISHED, Job, Obstacle
from greentrain.core.seen.times import format_time
from greentrain.core.status.events import Event
from greentrain.kube.cache import Cache, controller_name, controller_uid
from greentrain.kube.client import CONNECTIONS, ApiError, Client

COMPONENT = "greentrain-operator"
T = TypeVar("T")

CONTENT_REASONS = frozenset({"Invalid", "BadRequest", "RequestEntityTooLarge"})
"""The server's reasons for a refusal of what is in an object (422, 400, 413)."""


AT_ONCE = 8
"""So many pods are created at once: a small gang does not wait for its first pod's answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a decision's creations and deletions."""

    changed: bool
    """Whether anything in the cluster has changed."""
    obstacles: tuple[Obstacle, ...] = ()
    created: tuple[str, ...] = ()
    """Names of the pods that exist now."""


async def apply_effects(client: Client, cache: Cache, job: Job, decision: Decision) -> Outcome:
    """Delete and create what the decision names; raises ApiError where only waiting helps."""
    if decision.delete_job:
        await _delete_job(client, cache, job)
        return Outcome(True)
    deleted = await run_all(
        (_delete(client, cache, job, d) for d in decision.deletions), count=len(decision.deletions)
    )
    changed = any(deleted)
    if decision.service is not None:
        obstacle = await _create(client, cache, job, "Service", decision.service)
        if obstacle is not None:
            return Outcome(changed, (obstacle,))
        changed = True
    # Each pod is built when its turn has come, and dropped when it is sent. If the server refuses one for its content, it would
    # refuse each: a thousand answers of half a megabyte, again and again. So of many pods the first one goes ahead.
    count = len(decision.pods)
    ahead = 1 if count > AT_ONCE else count
    pods = (_create_pod(client, cache, job, pod) for pod in decision.pods)
    outcomes = await run_all(itertools.islice(pods, ahead), count=ahead)
    if not any(isinstance(o, Obstacle) and o.reason in CONTENT_REASONS for o in outcomes):
        outcomes += await run_all(pods, count=count - ahead)
    obstacles = tuple(o for o in outcomes if isinstance(o, Obstacle))
    created = tuple(o for o in outcomes if isinstance(o, str))
    return Outcome(changed or bool(created), obstacles, created)


async def run_all(requests: Iterable[Awaitable[T]], *, count: int = CONNECTIONS) -> list[T]:
    """Every request's outcome, as many at once as there are connections; raises the first error once all have ended.

    The next request starts when one has ended. One left in progress could arrive after the next pass has done and undone the
    same: a pod created twice. `count` is how many requests there are at most: a pass usually has none, and 32 tasks that find
    nothing to do, three times, took 0.4 ms of it (measured).
    """
    waiting = iter(enumerate(requests))
    outcomes: dict[int, T] = {}
    errors: list[Exception] = []

    async def work() -> None:
        while True:
            try:
                place, request = next(waiting)
                outcomes[place] = await request
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - raised below, once the others have ended
                errors.append(error)

    await asyncio.gather(*(work() for _ in range(min(count, CONNECTIONS))))
    if errors:
        raise errors[0]
    return [outcomes[place] for place in sorted(outcomes)]


async def _delete_job(client: Client, cache: Cache, job: Job) -> None:
    try:
        body = await client.delete_job(job.namespace, job.name, job.uid)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        body = {}  # this very job no longer exists; the client has checked
    if body.get("kind") == names.KIND and body["metadata"].get("finalizers"):
        cache.put("Job", body)  # another program's finalizer keeps it a while
    else:
        cache.drop("Job", {"metadata": {"namespace": job.namespace, "name": job.name, "uid": job.uid}})


async def _delete(client: Client, cache: Cache, job: Job, deletion: Deletion) -> bool:
    try:
        body = await client.delete_pod(
            job.namespace, deletion.name, deletion.uid, grace_seconds=deletion.grace_seconds
        )
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        # Gone, or a successor of the same name took its place: in both cases this UID no longer exists.
        cache.drop("Pod", _ghost(job, deletion))
        return True
    meta = body.get("metadata") or {}
    if body.get("kind") == "Pod" and (meta.get("deletionGracePeriodSeconds") or meta.get("finalizers")):
        cache.put("Pod", body)
    elif body.get("kind") == "Pod":
        # Never bound, or ended: removed at once. A watch that is just being opened would not show it.
        cache.drop("Pod", body)
    return True


def _ghost(job: Job, deletion: Deletion) -> Mapping[str, Any]:
    return {
        "metadata": {
            "namespace": job.namespace,
            "name": deletion.name,
            "uid": deletion.uid,
            "labels": {names.LABEL_JOB: job.name},
        }
    }


async def _create_pod(client: Client, cache: Cache, job: Job, manifest: Mapping[str, Any]) -> str | Obstacle:
    return await _create(client, cache, job, "Pod", manifest) or str(manifest["metadata"]["name"])


async def _create(
    client: Client, cache: Cache, job: Job, kind: str, manifest: Mapping[str, Any]
) -> Obstacle | None:
    name = manifest["metadata"]["name"]
    try:
        cache.put(kind, await client.create(kind, manifest))
    except ApiError as error:
        if error.passing:
            raise
        if error.status == 409 and error.reason == "AlreadyExists":
            return await _look_whose(client, cache, job, kind, name)
        return Obstacle(kind, name, error.reason, error.message)
    return None


async def _look_whose(client: Client, cache: Cache, job: Job, kind: str, name: str) -> Obstacle | None:
    try:
        body = await client.read(kind, job.namespace, name)
    except ApiError as error:
        if error.status == 404:  # gone in between: the next pass creates it
            return Obstacle(kind, name, VANISHED, f"{kind} {name} was there a moment ago")
        raise
    if controller_uid(body) == job.uid:
        cache.put(kind, body)
        return None
    owner = controller_name(body)
    if owner == (names.KIND, job.name):
        text = f"{kind} {name} of a deleted job of the same name is still being removed"
        return Obstacle(kind, name, BEING_REMOVED, text)
    whose = f"it belongs to {owner[0]} {owner[1]}" if owner else "it has no controller"
    text = (
        f"{kind} {name} exists and is not this job's ({whose}); "
        "delete it or create the job under another name"
    )
    return Obstacle(kind, name, Reason.NAME_TAKEN, text)


async def apply_status(client: Client, cache: Cache, job: Job, status: GreenTrainingJobStatus) -> None:
    """Store the status; ApiError 409 where the job changed since the snapshot."""
    body = await client.replace_status(job.namespace, job.name, job.resource_version, dump_job_status(status))
    cache.put("Job", body)


async def apply_events(client: Client, job: Job, events: tuple[Event, ...], *, now: datetime) -> None:
    """Store events; one that cannot be stored is not worth a failed pass, so ApiError is the caller's to log."""
    moment = format_time(now)
    for i, event in enumerate(events):
        await client.create_event(
            job.namespace,
            {
                "apiVersion": "v1",
                "kind": "Event",
                # client-go's form of a name: unique by time and place in this pass.
                "metadata": {
                    "name": f"{job.name}.{int(now.timestamp() * 1_000_000):x}{i:02x}",
                    "namespace": job.namespace,
                },
                "involvedObject": {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "namespace": job.namespace,
                    "name": job.name,
                    "uid": job.uid,
                    "resourceVersion": job.resource_version,
                },
                "type": event.type.value,
                "reason": event.reason,
                "message": event.message[:1024],
                "firstTimestamp": moment,
                "lastTimestamp": moment,
                "count": 1,
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
                "reportingInstance": COMPONENT,
            },
        )
