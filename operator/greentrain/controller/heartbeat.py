"""Shows that the operator is alive: it renews a Lease, and agents that see no renewals enforce budgets by themselves.

A Lease costs the API server little and is made for this. It is no lock: one operator runs at a time, and it takes the Lease
over. A renewal means that passes run: an operator that hangs does not renew. Jobs whose own passes fail, or do not end, are
named in an annotation of each renewal: for those the operator counts as silent, and for no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import aiohttp

from greentrain.api import names
from greentrain.api.lease import RENEW_SECONDS
from greentrain.kube.client import ApiError

logger = logging.getLogger("greentrain.controller")

MOST_UNATTENDED = 500
"""Most jobs that a renewal names, 18 KB of their UIDs; an operator that fails with more of them does not renew."""

DURATION_SECONDS = 30
"""The Lease's own `leaseDurationSeconds`, for other readers: how long a renewal is valid."""

_PASSING = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


class Leases(Protocol):
    """The API server's Leases (`kube.client.Client`)."""

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any]:
        """A Lease; ApiError 404 where it does not exist."""
        ...

    async def create_lease(
        self, namespace: str, name: str, spec: Mapping[str, Any], annotations: Mapping[str, str]
    ) -> dict[str, Any]:
        """Create one; ApiError 409 where it exists."""
        ...

    async def renew_lease(
        self, lease: Mapping[str, Any], spec: Mapping[str, Any], annotations: Mapping[str, str]
    ) -> dict[str, Any]:
        """Store its spec and annotations, if it is unchanged since it was read; else ApiError 409."""
        ...


class Heartbeat:
    """The renewals of one operator process."""

    def __init__(
        self,
        leases: Leases,
        lease: tuple[str, str],
        *,
        identity: str,
        clock: Callable[[], datetime],
        unhealthy: Callable[[], str | None],
        unattended: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`lease` is namespace and name; `unhealthy` gives why the operator must not renew, else None.

        `unattended` gives the UIDs of the jobs that it cannot reconcile.
        """
        self._leases = leases
        self._namespace, self._name = lease
        self._identity = identity
        self._clock = clock
        self._unhealthy = unhealthy
        self._unattended = unattended
        self._last: dict[str, Any] | None = None
        self._reported: str | None = None
        """The last error; None while renewals succeed."""

    async def beat(self) -> bool:
        """Renew the lease once, where the operator is well; returns whether it was. A failure is logged when it begins."""
        problem = self._unhealthy()
        unattended = sorted(set(self._unattended()))
        if problem is None and len(unattended) > MOST_UNATTENDED:
            problem = (
                f"the passes over {len(unattended)} jobs fail, more than the {MOST_UNATTENDED} it can name"
            )
        if problem is None:
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._renew(unattended)
            except _PASSING as error:
                self._last = None
                problem = repr(error)
        if problem is not None and self._reported is None:
            logger.warning(
                "the lease %s/%s is not renewed: %s. If this lasts, agents enforce spent allowances by themselves",
                self._namespace,
                self._name,
                problem,
            )
        elif problem is None and self._reported is not None:
            logger.info("the lease %s/%s is renewed again", self._namespace, self._name)
        self._reported = problem
        return problem is None

    async def work(self) -> None:
        """Renew it repeatedly until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await self.beat()
            await asyncio.sleep(max(0.0, begun + RENEW_SECONDS - loop.time()))

    async def _renew(self, unattended: Sequence[str]) -> None:
        if self._last is not None:
            try:
                self._last = await self._write(self._last, unattended)
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                # Another has deleted or written it: read it again now, not in ten seconds.
            else:
                return
        try:
            found = await self._leases.read_lease(self._namespace, self._name)
        except ApiError as error:
            if error.status != 404:
                raise
            self._last = await self._leases.create_lease(
                self._namespace, self._name, self._build_spec({}), _annotate({}, unattended)
            )
        else:
            self._last = await self._write(found, unattended)

    async def _write(self, lease: Mapping[str, Any], unattended: Sequence[str]) -> dict[str, Any]:
        annotations = lease["metadata"].get("annotations") or {}
        return await self._leases.renew_lease(
            lease, self._build_spec(lease.get("spec") or {}), _annotate(annotations, unattended)
        )

    def _build_spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The spec in the form of client-go's leader election."""
        now = format_micro_time(self._clock())
        spec = {
            **before,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": now,
        }
        if before.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(before.get("leaseTransitions") or 0) + (1 if before else 0)
        return spec


def _annotate(annotations: Mapping[str, str], unattended: Sequence[str]) -> dict[str, str]:
    others = {k: v for k, v in annotations.items() if k != names.ANNOTATION_UNATTENDED}
    return {**others, names.ANNOTATION_UNATTENDED: ",".join(unattended)} if unattended else others


def format_micro_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as the API server wants metav1.MicroTime."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
