"""Ends every agent of a cluster and sees that no GPU keeps a power limit of theirs; the chart's pre-delete hook.

An agent gives each card its earlier limit back when it is asked to end, and reports that. So the agents are ended first,
while the operator and the reports are still there, and a card whose agent could not do it is named.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from greentrain.api.nodepower import NodePowerStatus
from greentrain.kube.client import ApiError, Client
from greentrain.kube.node import parse_last_words
from greentrain.units import format_power

logger = logging.getLogger("greentrain.agent")

POLL_SECONDS = 1.0

_PASSING = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


async def retire(client: Client, namespace: str, daemon_set: str, selector: str, *, patience: float) -> int:
    """Delete the agents' DaemonSet, wait until its pods are gone, and look at what they reported last.

    Returns 0 where every card has its limit back; else 1, and says which has not.
    """
    try:
        await client.delete_daemon_set(namespace, daemon_set)
    except ApiError as error:
        if error.status != 404:
            raise
    left = await _wait_for_end(client, namespace, selector, patience)
    for pod in left:
        node = (pod.get("spec") or {}).get("nodeName", "")
        logger.error(
            "the agent on node %s has not ended within %.0f s: what its GPUs' limits are is not known",
            node,
            patience,
        )
    bodies, _ = await client.list_node_powers()
    kept = 0
    for body in bodies:
        status = parse_last_words(body.get("status") or {})
        kept += _name_kept(body["metadata"]["name"], status)
    if not left and not kept:
        logger.info("every GPU of %d nodes has the power limit it had before", len(bodies))
    return 1 if left or kept else 0


async def _wait_for_end(
    client: Client, namespace: str, selector: str, patience: float
) -> list[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while True:
        try:
            pods = await client.list_selected_pods(namespace, selector)
            if not pods or loop.time() >= end:
                return pods
        except _PASSING as error:
            if loop.time() >= end:
                raise
            logger.warning("%s", error)
        await asyncio.sleep(POLL_SECONDS)


def _name_kept(node: str, status: NodePowerStatus) -> int:
    kept = [gpu for gpu in status.gpus if gpu.limits.prior_milliwatts is not None]
    for gpu in kept:
        prior = format_power(gpu.limits.prior_milliwatts or 0)
        logger.error(
            "node %s: GPU %s may still have the limit of a cap; before it, it was %s. On that node: nvidia-smi -i %s -pl %s",
            node,
            gpu.uuid,
            prior,
            gpu.uuid,
            prior.removesuffix("W"),
        )
    return len(kept)
