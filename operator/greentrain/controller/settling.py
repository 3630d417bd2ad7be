"""Tells agents what they may let go of, and removes the NodePowers of nodes that are no more.

Level-triggered like the passes over jobs, but by node: what is settled follows from what NodePowers list and what jobs'
stored statuses hold, so it can be concluded again at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

import aiohttp

from greentrain.api.nodepower import PodEnergy
from greentrain.api.v1alpha1 import EnergyStatus
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.ledger import ABANDONED_AFTER, decide_settled, is_abandoned
from greentrain.core.snapshot import parse_job
from greentrain.kube.cache import Cache
from greentrain.kube.client import ApiError, Client
from greentrain.kube.readings import NodePower, NodePowers, find_key, is_of_job

logger = logging.getLogger("greentrain.controller")


class Settling:
    """One worker over nodes."""

    def __init__(
        self,
        *,
        client: Client,
        cache: Cache,
        node_powers: NodePowers,
        namespaces: tuple[str, ...],
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._cache = cache
        self._node_powers = node_powers
        self._namespaces = namespaces
        self._clock = clock
        self._queue: WorkQueue[str] = WorkQueue()

    def add(self, node: str) -> None:
        """Something changed that may let a node's agent let go."""
        self._queue.add(node)

    def add_nodes_of(self, energy: EnergyStatus | None) -> None:
        """A job's status was stored: the nodes it has a last word of may let go."""
        for node in {p.node for p in energy.pods if p.final} if energy is not None else ():
            self.add(node)

    def close(self) -> None:
        """End the timers."""
        self._queue.close()

    async def work(self) -> None:
        """Work until cancelled."""
        while True:
            node = await self._queue.get()
            try:
                await self._settle(node)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                # Told once in a while is enough: agents keep what is not settled.
                delay = self._queue.retry(node)
                if not (isinstance(error, ApiError) and error.status in (404, 409)):
                    logger.warning("NodePower %s: %s; again in %.2f s", node, error, delay)
            else:
                self._queue.succeeded(node)
            finally:
                self._queue.done(node)

    async def _settle(self, node: str) -> None:
        known = self._node_powers.node_power(node)
        if known is None:
            self._queue.forget(node)
            return
        now = self._clock()
        abandoned = is_abandoned(known.received, now=now)
        wanted = decide_settled(
            known.settled,
            known.status,
            energy_of=self._energy_of,
            is_ours=self._is_ours,
            abandoned=abandoned,
        )
        if abandoned and {p.key for p in known.status.pods} <= set(wanted):
            await self._remove(known)
            return
        if set(wanted) != set(known.settled):
            body = await self._client.settle(node, known.resource_version, wanted)
            self._node_powers.put(body)
        self._queue.add_after(node, (known.received + ABANDONED_AFTER - now).total_seconds())

    async def _remove(self, known: NodePower) -> None:
        await self._client.delete_node_power(known.name, known.uid, known.resource_version)
        self._node_powers.drop({"metadata": {"name": known.name, "uid": known.uid}})
        logger.info(
            "NodePower %s is removed: its agent has been silent for an hour and all it told is settled",
            known.name,
        )

    def _is_ours(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    def _energy_of(self, entry: PodEnergy) -> EnergyStatus | None:
        key = find_key(entry)
        body = self._cache.job(key) if key is not None else None
        if key is None or body is None:
            raise LookupError
        job = parse_job(body)
        if not is_of_job(entry, key, job.uid, job.created):
            raise LookupError
        return job.status.energy
