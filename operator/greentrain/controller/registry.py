"""Registers with Kopf: events only, so that no finalizer, annotation or progress record is left on an object.

The reasons are measured: `on.create` and its kin annotate, daemons add finalizers, an index is super-linear at start-up, and
merge patches without a resourceVersion lose what others wrote.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

import aiohttp
import kopf

from greentrain.api import names
from greentrain.controller.settings import Settings
from greentrain.kube.answers import LIST_BYTES, Pages, read_at_most
from greentrain.kube.cache import Slim, slim
from greentrain.kube.client import WATCH_SECONDS, WATCH_SILENCE_SECONDS
from greentrain.kube.connection import Connection, read_connection
from greentrain.kube.decoding import decode, is_shallow, whole_lines

logger = logging.getLogger("greentrain.controller")

Seen = Callable[[str, str | None, dict[str, Any]], Awaitable[None]]
"""Called with kind, event type (None for an initial listing) and the object."""


SHORT_SECONDS = 1.0
"""A watch opened again so soon after its last opening has broken at once."""

SHORT_WATCHES = 4
"""So many of them in a row are tolerated."""

LONGEST_PAUSE_SECONDS = 10.0

LISTED = (names.PLURAL, names.NODE_POWER_PLURAL, "pods", "services")
"""What Kopf lists, by the last part of its path."""

SHORT_LINE = 64 * 1024
"""Bytes up to which a line of a watch is passed on unchanged; a longer one's object is reduced first."""


class Sessions:
    """The HTTP sessions of one Kopf: the operator's own connection, and a pause before a watch that always breaks.

    Kopf opens a watch that ended again at once. Behind a proxy that breaks each stream that was thousands of requests a
    minute.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: tuple[Connection, kopf.AiohttpSession] | None = None
        self._sessions: list[aiohttp.ClientSession] = []
        self._opened: dict[str, tuple[float, int]] = {}
        self._pages: dict[str, Pages] = {}
        """By path of a list."""

    async def log_in(self) -> kopf.AiohttpSession:
        """The present connection. Unchanged, it is the same object: Kopf must see that a refusal persists."""
        connection = await read_connection(self._settings.kubeconfig, self._settings.context)
        if self._known is None or self._known[0] != connection:
            session = self.connect(connection)
            self._sessions.append(session)
            self._known = (connection, kopf.AiohttpSession(server=connection.server, aiohttp_session=session))
        return self._known[1]

    async def close(self) -> None:
        """Close what Kopf has left open."""
        for session in self._sessions:
            await session.close()

    def connect(self, connection: Connection) -> aiohttp.ClientSession:
        """A session for that connection, to be closed by the caller; it reads JSON of any depth, and lists by small pages."""
        info = kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_path,
            insecure=not connection.verify,
            certificate_path=connection.certificate_path,
            private_key_path=connection.private_key_path,
        )
        tracing = aiohttp.TraceConfig()
        tracing.on_request_start.append(self._pause)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers={"Authorization": connection.authorization} if connection.authorization else {},
            response_class=_Response,
            trace_configs=[tracing],
            middlewares=[self._read_page],
            trust_env=False,
        )

    async def _read_page(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """A whole list, as Kopf requests it, or where that is too long by pages: Kopf continues by the token it is given."""
        if request.url.name not in LISTED or request.url.query.get("watch") == "true":
            return await send(request)
        path = request.url.path
        pages = self._pages.get(path) if "continue" in request.url.query else None
        while True:
            if pages is not None:
                request.url = request.url.update_query(limit=str(pages.limit))
            response = await send(request)
            if not isinstance(response, _Response) or response.status != 200:
                return response
            size = await response.read_page(LIST_BYTES if pages is None else pages.most_bytes)
            if size is None and pages is None:
                pages = self._pages[path] = Pages()
            elif size is None and pages is not None:
                pages.shrink()
            else:
                if pages is not None:
                    pages.fit(size or 0)
                return response

    async def _pause(
        self, session: aiohttp.ClientSession, context: object, request: aiohttp.TraceRequestStartParams
    ) -> None:
        del session, context
        if request.url.query.get("watch") != "true":
            return
        now = asyncio.get_running_loop().time()
        last, short = self._opened.get(request.url.path, (float("-inf"), 0))
        short = short + 1 if now - last < SHORT_SECONDS else 0
        pause = min(0.1 * (1 << min(short, 10)), LONGEST_PAUSE_SECONDS) if short > SHORT_WATCHES else 0.0
        self._opened[request.url.path] = (now + pause, short)
        await asyncio.sleep(pause)


class _Response(aiohttp.ClientResponse):
    """An answer as Kopf reads it: a list by `json()`, a watch line by line, with a decoder that fails at some depth.

    One object that is too deep would end the watch, and Kopf as a whole, for all tenants.
    """

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """As aiohttp does; the lines of a watch come with what is too deep cut off."""
        started = await super().start(connection)
        if self.url.query.get("watch") == "true":
            self.content = cast(aiohttp.StreamReader, _ShallowLines(self.content))
        return started

    async def read_page(self, most: int | None) -> int | None:
        """Read the body: how many bytes it has, None for more than `most`."""
        body = await read_at_most(self, most)
        if body is None:
            return None
        self._body = body
        return len(body)

    async def json(
        self,
        *,
        encoding: str | None = None,
        loads: Callable[[str], Any] = decode,
        content_type: str | None = "application/json",
    ) -> Any:
        """As aiohttp does, with a decoder for any depth; of a list's objects only the needed parts."""
        found = await super().json(encoding=encoding, loads=loads, content_type=content_type)
        if isinstance(found, dict) and isinstance(found.get("items"), list):
            kind = str(found.get("kind")).removesuffix("List")
            found["items"] = list(map(Slim(kind), found["items"]))
        return found


class _ShallowLines:
    """A stream of JSON lines, each small and shallow enough for Python's own decoder; all else is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Whole lines, whatever their size."""
        async for line in whole_lines(self._stream.iter_chunked(size)):
            try:
                as_it_is = len(line) <= SHORT_LINE and is_shallow(line)
                yield (line if as_it_is else json.dumps(_slim_event(decode(line))).encode()) + b"\n"
            except ValueError as error:
                # The next list brings the object.
                logger.error("a line of %d bytes of a watch is left out: %s", len(line), error)


def _slim_event(event: Any) -> Any:
    """An event of a watch with the needed parts of its object."""
    if isinstance(event, dict) and isinstance(event.get("object"), dict):
        body = event["object"]
        return {**event, "object": slim(str(body.get("kind")), body)}
    return event


def build_registry(sessions: Sessions, seen: Seen) -> kopf.OperatorRegistry:
    """An explicit registry whose handlers pass every event on to `seen`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await sessions.log_in()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def job_seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - Kopf's keyword
        await seen("Job", type, _plain(body))

    @kopf.on.event(names.GROUP, names.VERSION, names.NODE_POWER_PLURAL, registry=registry)
    async def node_power_seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - Kopf's keyword
        await seen("NodePower", type, _plain(body))

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - Kopf's keyword
        await seen("Pod", type, _plain(body))

    @kopf.on.event("", "v1", "services", registry=registry)
    async def service_seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - Kopf's keyword
        await seen("Service", type, _plain(body))

    return registry


def _plain(body: kopf.Body) -> dict[str, Any]:
    return dict(body)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Kopf compares an object with its last handled state for `on.update`; we have no such handler and avoid the cost.

    Measured: building these copies was half of the operator's CPU time while it created pods.
    """

    def build(
        self,
        *,
        body: kopf.Body,
        extra_fields: Iterable[str | tuple[str, ...] | list[str] | None] | None = None,
    ) -> kopf.BodyEssence:
        """Nothing of the object is worth comparing."""
        del body, extra_fields
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        del body
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


class _NoProgress(kopf.ProgressStorage):
    """Event handlers have no progress to keep on an object."""

    def fetch(self, *, key: kopf.HandlerId, body: kopf.Body) -> kopf.ProgressRecord | None:
        """Nothing was stored."""
        del key, body
        return None

    def store(
        self, *, key: kopf.HandlerId, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch
    ) -> None:
        """Store nothing."""

    def purge(self, *, key: kopf.HandlerId, body: kopf.Body, patch: kopf.Patch) -> None:
        """There is nothing to remove."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Change nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """There is nothing to leave out."""
        return essence


LONGEST_BACKOFF_SECONDS = 10.0
"""A watch that could not be opened is retried at least this often, so that a server that is back is noticed by then."""


class _Backoffs(Iterable[float]):
    """Kopf's waits between retries of one request: 0.5 s, doubling, with jitter, and without an end.

    Kopf's own list ends after 54 s, and with it the watch and Kopf as a whole. A server may be away for longer.
    """

    def __iter__(self) -> Iterator[float]:
        for power in itertools.count():
            yield min(0.5 * (1 << min(power, 10)), LONGEST_BACKOFF_SECONDS) * (0.75 + 0.5 * random.random())


def build_kopf_settings(*, inactivity: float = WATCH_SILENCE_SECONDS) -> kopf.OperatorSettings:
    """Kopf as a source of events: no posting, no peering, no scanning rights, server-side selectors.

    A watch that delivers nothing, not even a bookmark, for `inactivity` seconds is opened again from where it was, without
    a new list and without a warning: an API server sends bookmarks about once a minute, but need not.
    """
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.watching.server_timeout = int(WATCH_SECONDS)
    settings.watching.inactivity_timeout = inactivity
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Backoffs()
    # Kopf would kill the process 10 minutes after it is stopped; we stop it to open the watches again.
    settings.process.ultimate_exiting_timeout = None
    ours = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_JOB}"
    settings.watching.label_selectors["pods"] = ours
    settings.watching.label_selectors["services"] = ours
    return settings
