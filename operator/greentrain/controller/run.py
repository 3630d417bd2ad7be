"""Assembles the operator: caches filled by one list, then watches, a queue and its workers.

The first pass over a job must never see half of its objects (a missing pod would be created twice). So the caches are filled
by lists before a worker starts, and compared with fresh lists from then on. The same lists show whether the watches are fresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from greentrain.api.crd import wanted_hashes
from greentrain.controller.clock import SteadyClock
from greentrain.controller.emissions import Emissions
from greentrain.controller.freshness import Freshness, Stream
from greentrain.controller.heartbeat import Heartbeat
from greentrain.controller.passes.jobs import Passes
from greentrain.controller.passes.nodes import NodePasses
from greentrain.controller.passes.records import Parts
from greentrain.controller.settings import Settings
from greentrain.controller.watches import Watches
from greentrain.controller.workqueue import WorkQueue
from greentrain.core.books.overshoot import REPORTS_WAIT_SECONDS
from greentrain.kube.cache import Cache, Key, node_of, version_of
from greentrain.kube.client import NOT_JSON, ApiError, Client, connect
from greentrain.kube.readings import NodePowers
from greentrain.kube.version import OldServerError, decide_refusal, read_server_version
from greentrain.telemetry.jobs import JobMeasures, measure_job
from greentrain.telemetry.metrics import Telemetry
from greentrain.telemetry.serving import serve

logger = logging.getLogger("greentrain.controller")

SCHEMA_CHECK_SECONDS = 15.0
UNREADABLE_CHECKS = 2
"""Checks of the CRD in a row that must fail before the operator is not ready: one lost answer is no outage."""

START_RETRY_SECONDS = 5.0
RESYNC_RETRY_SECONDS = 10.0
FIRST_RESYNCS_SECONDS = (3.0, 15.0)
"""After the watches were opened: no event reports a deletion between the list and the first watch."""

FINISH_SECONDS = 5.0
"""How long passes in progress may still take after the operator is asked to stop; the pod has 15 s."""

TLS_CLOSE_SECONDS = 0.1

_PASSING = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


class Operator:
    """One operator process."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], datetime] | None = None,
        claim_signals: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings
        self._claim_signals = claim_signals
        self.telemetry = Telemetry(CollectorRegistry())
        self.ready = asyncio.Event()
        """Set once the caches are filled and passes run."""
        steady = SteadyClock()
        self._clock = clock or steady
        self._cache = Cache(settings.gpu_resources)
        self._node_powers = NodePowers(self._clock)
        self._nodes: NodePasses | None = None
        self._queue: WorkQueue[Key] = WorkQueue()
        self._freshness = Freshness(settings.stale_after)
        self._opened = asyncio.Event()
        self._passes: Passes | None = None
        self._watches: Watches | None = None
        self._unready: str | None = "starting: the caches are not filled yet"
        self.telemetry.clock_departure.set_function(steady.departure)
        self.telemetry.stale_watches.set_function(lambda: self._freshness.verdicts)
        self.telemetry.longest_pass.set_function(lambda: self._longest_pass()[1])
        self.telemetry.export_jobs(self._measures)
        self.telemetry.export_nodes(self._node_powers.refused)

    def unready(self) -> str | None:
        """Why the operator is not ready, as a message; None when it is."""
        return self._unready

    def unhealthy(self) -> str | None:
        """Why only a restart of the process may help, as a message; None while it is not needed.

        An API server that is away is no reason: a restart would not bring it back.
        """
        key, seconds = self._longest_pass()
        if seconds > self.settings.pass_limit:
            return f"a pass over {key} has been running for {seconds:.0f} s and occupies its worker"
        if not self._freshness.is_readable:
            return None
        problem = self._watches.problem() if self._watches is not None else None
        return problem or self._freshness.problem(now=asyncio.get_running_loop().time())

    def _longest_pass(self) -> tuple[str, float]:
        found = self._passes.longest() if self._passes is not None else None
        return ("/".join(found[0]), found[1]) if found is not None else ("", 0.0)

    def _measures(self) -> Iterator[JobMeasures]:
        """The metrics of each job, from its stored status."""
        for key in self._cache.jobs():
            job = self._cache.parsed_job(key)
            if job is not None:
                yield measure_job(job.namespace, job.name, job.status)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; raises what ended a part of it, and OldServerError where nothing can be started."""
        async with contextlib.AsyncExitStack() as stack:
            if self.settings.http_port:
                runner = await serve(
                    self.settings.http_port,
                    unhealthy=self.unhealthy,
                    unready=self.unready,
                    render=self.telemetry.render,
                )
                stack.push_async_callback(runner.cleanup)
            client = await stack.enter_async_context(
                await connect(self.settings.kubeconfig, self.settings.context)
            )
            session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
            stack.callback(self._queue.close)
            emissions = Emissions(self.settings.emissions, counted=self.telemetry.emissions_problems.set)
            await emissions.refresh()
            if not await _until(stop, self._start(client)):
                return
            nodes = self._nodes = NodePasses(
                client=client,
                cache=self._cache,
                node_powers=self._node_powers,
                namespaces=self.settings.namespaces,
                clock=self._clock,
            )
            stack.callback(nodes.close)
            nodes.add_all()
            parts = Parts(client, self._cache, self._queue, self.telemetry, self._clock, nodes.add_nodes_of)
            passes = self._passes = Passes(
                parts, self._node_powers, session, self.settings, carbon=lambda: emissions.source
            )
            await self._run_parts(self._begin_parts(client, emissions, nodes, passes), passes, stop)

    def _begin_parts(
        self, client: Client, emissions: Emissions, nodes: NodePasses, passes: Passes
    ) -> list[asyncio.Task[None]]:
        """Start everything that runs as long as the operator does."""
        watches = self._watches = Watches(
            self.settings,
            self._seen,
            self.telemetry,
            opened=self._watches_opened,
            claim_signals=self._claim_signals,
        )
        parts: list[asyncio.Task[None]] = [
            asyncio.create_task(watches.run(), name="watches"),
            asyncio.create_task(self._resync(client, watches), name="resync"),
            asyncio.create_task(self._check_schema(client), name="schema"),
            asyncio.create_task(nodes.work(), name="nodes"),
            asyncio.create_task(emissions.work(), name="emissions"),
            *(asyncio.create_task(passes.work(), name=f"worker {i}") for i in range(self.settings.workers)),
        ]
        if self.settings.lease is not None:
            heartbeat = Heartbeat(
                client,
                self.settings.lease,
                identity=socket.gethostname(),
                clock=self._clock,
                unhealthy=self.unhealthy,
                unattended=passes.unattended,
            )
            parts.append(asyncio.create_task(heartbeat.work(), name="heartbeat"))
        return parts

    async def _run_parts(self, parts: list[asyncio.Task[None]], passes: Passes, stop: asyncio.Event) -> None:
        """Wait until `stop` is set and end all parts; raises RuntimeError where one ended before."""
        stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait(), name="stop")
        self.ready.set()
        try:
            done, _ = await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
            await passes.finish(FINISH_SECONDS)
        finally:
            stopping.cancel()
            for part in parts:
                part.cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
        for part, result in zip(parts, results, strict=True):
            if part in done:
                cause = result if isinstance(result, BaseException) else None
                raise RuntimeError(f"{part.get_name()} ended by itself") from cause

    async def _start(self, client: Client) -> None:
        """Wait until the CRD is the one this operator was built with, and fill the caches.

        Raises:
            OldServerError: the API server is too old.
        """
        checked = False
        while True:
            try:
                if not checked:
                    await _check_server(client)
                    checked = True
                self._unready = await _schema_problem(client)
                if self._unready is None:
                    await self._prime(client)
                    return
                logger.error("%s", self._unready)
            except _PASSING as error:
                self._unready = f"the API server cannot be read: {error!r}"
                logger.warning("%s", self._unready)
            await asyncio.sleep(START_RETRY_SECONDS)

    async def _prime(self, client: Client) -> None:
        for kind in ("Service", "Pod", "Job"):
            await self._compare(client, kind)
        await self._compare_node_powers(client)
        self._freshness.reopened(
            now=asyncio.get_running_loop().time()
        )  # no watch is open yet: none owes anything
        self.telemetry.jobs.set(len(self._cache.jobs()))
        for key in self._cache.jobs():
            self._queue.add(key)
        logger.info("primed with %d jobs", len(self._cache.jobs()))

    async def _compare(self, client: Client, kind: str) -> set[Key]:
        """Compare the cache with a fresh list; returns the jobs with news."""
        calls = {"Job": client.list_jobs, "Pod": client.list_pods, "Service": client.list_services}
        bodies: list[dict[str, Any]] = []
        version = 0
        for namespace in self.settings.namespaces or (None,):
            items, at = await calls[kind](namespace)
            bodies += items
            version = at if not version else min(version, at)
        missed = self._cache.resync(kind, bodies, version)
        now = asyncio.get_running_loop().time()
        for one in missed:
            self._freshness.missed(self._stream(kind, one.key.namespace), one.uid, one.version, now=now)
        self.telemetry.missed_changes.labels(kind).inc(len(missed))
        return {one.key for one in missed}

    async def _compare_node_powers(self, client: Client) -> set[Key]:
        """Compare what is known of nodes with a fresh list; returns the jobs with news.

        A stale watch on nodes is not detected: agents report every half minute, and their silence shows by itself.
        """
        changed = self._node_powers.resync(*await client.list_node_powers())
        if self._nodes is not None:
            self._nodes.add_all()
        return changed

    def _watches_opened(self) -> None:
        self._freshness.reopened(now=asyncio.get_running_loop().time())
        self._opened.set()

    def _stream(self, kind: str, namespace: str) -> Stream:
        return Stream(kind, namespace if self.settings.namespaces else None)

    async def _resync(self, client: Client, watches: Watches) -> None:
        early: list[float] = []
        delay = self.settings.resync_interval
        while True:
            try:
                await asyncio.wait_for(self._opened.wait(), delay)
            except TimeoutError:
                delay = await self._resync_once(client, watches)
            else:
                self._opened.clear()
                early = list(FIRST_RESYNCS_SECONDS)
            if early:
                delay = min(delay, early.pop(0))

    async def _resync_once(self, client: Client, watches: Watches) -> float:
        """Correct the caches, judge the watches; returns the seconds until the next time."""
        loop = asyncio.get_running_loop()
        interval = self.settings.resync_interval
        for kind in ("Service", "Pod", "Job"):
            try:
                changed = await self._compare(client, kind)
            except _PASSING as error:
                # Where lists fail, watches may rightly be silent.
                self._freshness.unreadable()
                logger.warning("resync of %ss failed: %r", kind, error)
                asked = error.retry_after if isinstance(error, ApiError) else None
                return max(asked or 0.0, min(interval, RESYNC_RETRY_SECONDS))
            for key in changed:
                self._queue.add(key)
        try:
            for key in await self._compare_node_powers(client):
                self._queue.add_soon(key, REPORTS_WAIT_SECONDS)
        except _PASSING as error:
            logger.warning("resync of NodePowers failed: %r", error)
        self.telemetry.jobs.set(len(self._cache.jobs()))
        self._freshness.readable(now=loop.time())
        stale = self._freshness.overdue(now=loop.time())
        if stale and watches.open:
            logger.warning(
                "stale: a list showed changes %.0f s ago that the watch has not brought (%s); the watches are opened "
                "again",
                self.settings.stale_after,
                ", ".join(map(str, stale)),
            )
            self._freshness.reopened(stale, now=loop.time())
            watches.reopen()
        return min(interval, self.settings.stale_after) if self._freshness.suspicious else interval

    async def _check_schema(self, client: Client) -> None:
        failed = 0
        while True:
            await asyncio.sleep(START_RETRY_SECONDS if failed else SCHEMA_CHECK_SECONDS)
            try:
                problem = await _schema_problem(client)
                failed = 0
            except _PASSING as error:
                failed += 1
                if failed < UNREADABLE_CHECKS:
                    continue
                problem = f"the API server cannot be read: {error!r}"
            if problem != self._unready:
                logger.warning(
                    "%s", problem or "ready again: the API server answers and the CRD is up to date"
                )
            self._unready = problem

    async def _seen(self, kind: str, type_: str | None, body: dict[str, Any]) -> None:
        self.telemetry.last_watch_event.set(self._clock().timestamp())
        meta = body["metadata"]
        if kind == "NodePower":
            self._node_power_seen(type_, body)
            return
        stream = self._stream(kind, meta["namespace"])
        self._freshness.brought(stream, meta["uid"], version_of(body), listed=type_ is None)
        key = self._cache.drop(kind, body) if type_ == "DELETED" else self._cache.put(kind, body)
        if kind == "Pod" and self._nodes is not None and (node := node_of(body)):
            self._nodes.add(node)  # also where a list has brought this version before the watch
        if key is not None:
            self._queue.add(key)
            if kind == "Job":
                self.telemetry.jobs.set(len(self._cache.jobs()))

    def _node_power_seen(self, type_: str | None, body: dict[str, Any]) -> None:
        changed = self._node_powers.drop(body) if type_ == "DELETED" else self._node_powers.put(body)
        if changed is None:
            return  # what we have written ourselves, mostly
        for key in changed:
            self._queue.add_soon(key, REPORTS_WAIT_SECONDS)
        if self._nodes is not None:
            self._nodes.add(body["metadata"]["name"])


async def _check_server(client: Client) -> None:
    """Reject a server that is too old; one whose version cannot be read counts as new enough.

    Raises:
        OldServerError: it is too old.
        ApiError: it did not answer, and may answer later.
    """
    try:
        answer = await client.read_version()
    except ApiError as error:
        if error.passing and error.reason != NOT_JSON:
            raise
        logger.warning("the API server's version cannot be read, and is not checked: %s", error)
        return
    found = read_server_version(answer)
    if found is None:
        said = {name: answer.get(name) for name in ("major", "minor", "gitVersion")}
        logger.warning("the API server's version cannot be read, and is not checked: it says %.200s", said)
        return
    refusal = decide_refusal(found)
    if refusal is not None:
        raise OldServerError(refusal)
    logger.info("the API server is Kubernetes %s", found)


async def _schema_problem(client: Client) -> str | None:
    for crd, wanted in wanted_hashes().items():
        try:
            found = await client.read_schema_hash(crd)
        except ApiError as error:
            if error.status == 404:
                return f"the CRD {crd} is not installed: kubectl apply --server-side -f crds/"
            raise
        if found != wanted:
            return (
                f"the installed CRD {crd} has schema {found or 'without a hash'}, this operator needs {wanted}: "
                "run helm upgrade with this chart (crds.enabled), or kubectl apply --server-side -f crds/"
            )
    return None


async def _until(stop: asyncio.Event, work: Any) -> bool:
    """Run `work` unless `stop` comes first; whether it was finished."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.create_task(stop.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, clock: Callable[[], datetime] | None = None
) -> AsyncIterator[Operator]:
    """An operator that runs inside this event loop until the block ends."""
    operator = Operator(settings, clock=clock)
    stop = asyncio.Event()
    task = asyncio.create_task(operator.run(stop))
    ready = asyncio.create_task(operator.ready.wait())
    try:
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield operator
    finally:
        ready.cancel()
        stop.set()
        await task
        # aiohttp closes TLS connections in the background; a loop that ends before that would leave them open.
        await asyncio.sleep(TLS_CLOSE_SECONDS)
