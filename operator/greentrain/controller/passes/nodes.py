"""Runs passes over nodes: what is requested of a node's agent, which entries are settled, and when its NodePower is deleted.

Level-triggered like the passes over jobs, but by node. The requests follow from the present pods, from the reports in
NodePowers and from jobs' *stored* statuses, so they can be computed again at any time. When a status is stored, only nodes
whose part of it has changed get a pass: else each write of a job on a thousand nodes would be a thousand passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import aiohttp

from greentrain.api import names
from greentrain.api.nodepower import PodEnergy
from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus
from greentrain.api.stored import dump_status
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.asks import PodTerms, Terms, decide_asks, find_nodes, find_terms
from greentrain.core.books.ledger import decide_settled
from greentrain.core.seen.nodes import ABANDONED_AFTER, is_abandoned
from greentrain.kube.cache import Cache, Key, controller_uid, node_of
from greentrain.kube.client import ApiError, Client
from greentrain.kube.readings import NodePower, NodePowers, find_key, is_of_job

logger = logging.getLogger("greentrain.controller")


class NodePasses:
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
        self._terms: dict[Key, Terms] = {}
        """By job, the terms of its last stored status; where a job is missing here, all of its nodes get a pass."""

    def add_all(self) -> None:
        """Run a pass over every node."""
        for node in self._node_powers.names():
            self.add(node)
        self._terms = {key: terms for key, terms in self._terms.items() if self._cache.job(key) is not None}

    def add(self, node: str) -> None:
        """A change that may concern the requests to a node's agent."""
        self._queue.add(node)

    def add_nodes_of(self, key: Key, status: GreenTrainingJobStatus) -> None:
        """A job's status was stored: agents may drop entries that are final now, and requests for its pods may have changed."""
        job = self._cache.parsed_job(key)
        if job is None:
            return
        before, terms = self._terms.get(key), Terms.of(job.uid, status)
        self._terms[key] = terms
        pods = {body["metadata"]["uid"]: node_of(body) for body in self._cache.pods_of(key)}
        for node in find_nodes(before, terms, pods):
            self.add(node)

    def close(self) -> None:
        """End the timers."""
        self._queue.close()

    async def work(self) -> None:
        """Work until cancelled."""
        while True:
            node = await self._queue.get()
            try:
                await self._pass(node)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                # It may take a while: agents keep what is not settled, and the requested caps.
                delay = self._queue.retry(node)
                if not (isinstance(error, ApiError) and error.status in (404, 409)):
                    logger.warning("NodePower %s: %s; again in %.2f s", node, error, delay)
            except Exception as error:  # noqa: BLE001 - one node's or job's content must not stop the others
                delay = self._queue.retry(node)
                logger.error("NodePower %s: %r; again in %.2f s", node, error, delay)
            else:
                self._queue.succeeded(node)
            finally:
                self._queue.done(node)

    async def _pass(self, node: str) -> None:
        known = self._node_powers.node_power(node)
        if known is None:
            self._queue.forget(node)
            return
        now = self._clock()
        abandoned = is_abandoned(known.received, now=now)
        settled = decide_settled(
            known.settled,
            known.status,
            energy_of=self._energy_of,
            is_ours=self._is_ours,
            abandoned=abandoned,
        )
        if abandoned and {p.key for p in known.status.pods} <= set(settled):
            await self._remove(known)
            return
        caps = decide_asks(known.caps, self._pods_on(node), is_ours=self._is_ours)
        if set(settled) != set(known.settled) or caps != known.caps:
            spec = {"settled": list(settled), "pods": [dump_status(cap) for cap in caps]}
            body = await self._client.ask_agent(node, known.resource_version, spec)
            self._node_powers.put(body)
        self._queue.add_after(node, (known.received + ABANDONED_AFTER - now).total_seconds())

    def _pods_on(self, node: str) -> Iterator[PodTerms]:
        """The node's pods that have not ended, stopping ones too: they keep their GPUs to the end."""
        for key, body in self._cache.on_node(node):
            if (body.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            meta = body["metadata"]
            yield self._build_ask(key, body, PodTerms(meta["namespace"], meta["name"], meta["uid"], None))

    def _build_ask(self, key: Key, body: Mapping[str, Any], pod: PodTerms) -> PodTerms:
        job = self._cache.parsed_job(key)
        if job is None or job.uid != controller_uid(body):
            return pod
        if job.unreadable:
            return pod  # the previous requests stay in force
        marked = names.ANNOTATION_BUDGETED in (body["metadata"].get("annotations") or {})
        return find_terms(pod, job.status, budgeted=marked)

    async def _remove(self, known: NodePower) -> None:
        await self._client.delete_node_power(known.name, known.uid, known.resource_version)
        self._node_powers.drop({"metadata": {"name": known.name, "uid": known.uid}})
        logger.info(
            "NodePower %s is removed: its agent has been silent for an hour and all it reported is settled",
            known.name,
        )

    def _is_ours(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    def _energy_of(self, entry: PodEnergy) -> EnergyStatus | None:
        key = find_key(entry)
        job = self._cache.parsed_job(key) if key is not None else None
        if key is None or job is None:
            raise LookupError
        if not is_of_job(entry, key, job.uid, job.created):
            raise LookupError
        return EnergyStatus() if job.unreadable else job.status.energy
