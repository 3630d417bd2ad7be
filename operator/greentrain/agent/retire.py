"""Ends every agent of a cluster and checks that no GPU keeps a power limit of a cap; the chart's pre-delete hook.

Each agent restores its cards' previous limits when it is ended, and reports that. So the agents are ended first, while the
operator and the reports still exist. A card whose agent could not do it is named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
from pydantic import ValidationError

from greentrain.api.nodepower import NodePowerStatus
from greentrain.kube.client import ApiError, Client
from greentrain.quantities import Milliwatts, format_power

logger = logging.getLogger("greentrain.agent")

T = TypeVar("T")

POLL_SECONDS = 1.0

_PASSING = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


async def retire(client: Client, namespace: str, daemon_set: str, selector: str, *, patience: float) -> int:
    """Delete the agents' DaemonSet, wait until its pods have ended, and read their final reports.

    Returns 0 where every card has its previous limit; else 1, and prints which has not, or of which that is not known.
    Requests that fail for a moment are retried for `patience` seconds, as long as agents have to end.
    """
    end = asyncio.get_running_loop().time() + patience
    await _insist(lambda: client.delete_daemon_set(namespace, daemon_set), end)
    left = await _wait_for_end(client, namespace, selector, end)
    for pod in left:
        node = (pod.get("spec") or {}).get("nodeName", "")
        logger.error(
            "the agent on node %s has not ended within %.0f s: what its GPUs' limits are is not known",
            node,
            patience,
        )
    listed = await _insist(client.list_node_powers, end + POLL_SECONDS)
    bodies = listed[0] if listed is not None else []
    kept = sum([name_kept(body["metadata"]["name"], body.get("status") or {}) for body in bodies])
    if not left and not kept:
        logger.info("every GPU of %d nodes has the power limit it had before", len(bodies))
    return 1 if left or kept else 0


async def _insist(request: Callable[[], Awaitable[T]], end: float) -> T | None:
    """The answer to a request, retried where only waiting helps; None where there is no such object (404)."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await request()
        except _PASSING as error:
            if isinstance(error, ApiError) and error.status == 404:
                return None
            if loop.time() >= end or (isinstance(error, ApiError) and not error.passing):
                raise
            logger.warning("%s", error)
        await asyncio.sleep(POLL_SECONDS)


async def _wait_for_end(client: Client, namespace: str, selector: str, end: float) -> list[dict[str, Any]]:
    """The agents' pods that still run when `patience` is over."""
    loop = asyncio.get_running_loop()
    while True:
        pods = await _insist(lambda: client.list_selected_pods(namespace, selector), end)
        running = [pod for pod in pods or () if not _has_ended(pod)]
        if not running or loop.time() >= end:
            return running
        await asyncio.sleep(POLL_SECONDS)


def _has_ended(pod: Mapping[str, Any]) -> bool:
    """Whether a pod that is being deleted has stopped; a kubelet may leave its object there for a minute after that."""
    states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or ()]
    deleted = "deletionTimestamp" in pod["metadata"]
    return deleted and bool(states) and all("terminated" in state for state in states)


def name_kept(node: str, status: Mapping[str, Any]) -> int:
    """Print a node's cards that may still have the limit of a cap; returns how many."""
    try:
        gpus = NodePowerStatus.model_validate(status).gpus
    except ValidationError:
        logger.error(
            "node %s: what its agent reported cannot be read: look at it with nvidia-smi -q -d POWER", node
        )
        return 1
    kept = [gpu for gpu in gpus if gpu.limits.previous_milliwatts is not None]
    for gpu in kept:
        previous = format_power(Milliwatts(gpu.limits.previous_milliwatts or 0))
        logger.error(
            "node %s: GPU %s may still have the limit of a cap; before it, it was %s. On that node: nvidia-smi -i %s -pl %s",
            node,
            gpu.uuid,
            previous,
            gpu.uuid,
            previous.removesuffix("W"),
        )
    return len(kept)
