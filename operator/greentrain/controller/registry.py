"""What Kopf does here: it lists and watches our kinds and goes on where a watch ended. No object passes through it.

Its session reads each object from the list or watch and brings it to the caches at once. Kopf is left the place from which it
continues. So no finalizer, annotation or progress record is left on an object, an object of any depth ends no watch, and an
event costs less. The reasons are measured: `on.create` and its kin annotate, daemons add finalizers, an index is super-linear at
start-up, merge patches without a resourceVersion lose what others wrote, and an event handler costs a task, four loggers and a
second decoding: 1.2 ms of CPU for a node's report, 0.45 ms without (on a busy machine).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

import aiohttp
import kopf

from greentrain.api import names
from greentrain.controller.settings import Settings
from greentrain.kube.answers import LIST_BYTES, Pages, read_at_most
from greentrain.kube.client import WATCH_SECONDS, WATCH_SILENCE_SECONDS
from greentrain.kube.connection import Connection, read_connection
from greentrain.kube.decoding import decode, whole_lines

logger = logging.getLogger("greentrain.controller")

Seen = Callable[[str, str | None, dict[str, Any]], Awaitable[None]]
"""Called with kind, event type (None for an initial listing) and the object."""


SHORT_SECONDS = 1.0
"""A watch opened again so soon after its last opening has broken at once."""

SHORT_WATCHES = 4
"""So many of them in a row are tolerated."""

LONGEST_PAUSE_SECONDS = 10.0

TURN_SECONDS = 0.005
"""Objects that come together are taken up for so long before passes and probes have their turn: a job of a thousand pods has
three thousand events within seconds."""

WATCHED = (
    (names.GROUP, names.VERSION, names.PLURAL, "Job"),
    (names.GROUP, names.VERSION, names.NODE_POWER_PLURAL, "NodePower"),
    ("", "v1", "pods", "Pod"),
    ("", "v1", "services", "Service"),
)
"""Group, version and plural of what Kopf watches, and the kind by which `Seen` is called."""

KINDS = {plural: kind for _, _, plural, kind in WATCHED}
"""By the last part of the path of a list or watch."""


class Sessions:
    """The HTTP sessions of one Kopf: the operator's own connection, from which each object goes to `seen`.

    Kopf opens a watch that ended again at once. Behind a proxy that breaks each stream that was thousands of requests a
    minute, so there is a pause before a watch that always breaks.
    """

    def __init__(self, settings: Settings, seen: Seen) -> None:
        self._settings = settings
        self._seen = seen
        self._known: tuple[Connection, kopf.AiohttpSession] | None = None
        self._sessions: list[aiohttp.ClientSession] = []
        self._opened: dict[str, tuple[float, int]] = {}
        self._pages: dict[str, Pages] = {}
        """By path of a list."""
        self._yielded = float("-inf")
        """When the event loop last had its turn among objects that came together."""

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
        """A session for that connection, to be closed by the caller. What it reads of our kinds goes to `seen`, by small pages."""
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
            middlewares=[self._read],
            trust_env=False,
        )

    async def _read(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """The answer, as far as Kopf needs it, once its objects were brought."""
        kind = KINDS.get(request.url.name)
        if kind is None:
            return await send(request)
        if request.url.query.get("watch") != "true":
            return await self._read_page(request, send, kind)
        response = await send(request)
        if response.status == 200:
            events = _Events(response.content, kind, self._bring)
            response.content = cast(aiohttp.StreamReader, events)
        return response

    async def _read_page(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType, kind: str
    ) -> aiohttp.ClientResponse:
        """A whole list, as Kopf requests it, or where that is too long by pages: Kopf continues by the token it is given."""
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
                items = response.take_items()[::-1]
                while items:  # each is released once it was brought
                    await self._bring(kind, None, items.pop())
                return response

    async def _bring(self, kind: str, type_: str | None, body: dict[str, Any]) -> None:
        """Pass an object on; one that cannot be taken up is left out, and the next list brings it again."""
        try:
            await self._seen(kind, type_, body)
        except Exception as error:  # noqa: BLE001 - one object must not end the watch
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error(
                "an object of kind %s was not taken up: %s at\n%s", kind, type(error).__name__, where
            )
        if asyncio.get_running_loop().time() - self._yielded >= TURN_SECONDS:
            await asyncio.sleep(0)
            self._yielded = asyncio.get_running_loop().time()

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
    """An answer as Kopf reads it, by a decoder that fails at no depth: a list without its objects."""

    async def read_page(self, most: int | None) -> int | None:
        """Read the body: how many bytes it has, None for more than `most`."""
        body = await read_at_most(self, most)
        if body is None:
            return None
        self._body = body
        return len(body)

    def take_items(self) -> list[dict[str, Any]]:
        """The objects of the list that was read, which has none after that."""
        try:
            found = decode(self._body or b"")
        except ValueError:
            return []  # Kopf finds this too
        if not isinstance(found, dict) or not isinstance(found.get("items"), list):
            return []
        items: list[dict[str, Any]] = found["items"]
        self._body = json.dumps({**found, "items": []}).encode()
        return items

    async def json(
        self,
        *,
        encoding: str | None = None,
        loads: Callable[[str], Any] = decode,
        content_type: str | None = "application/json",
    ) -> Any:
        """As aiohttp does, with a decoder for any depth."""
        return await super().json(encoding=encoding, loads=loads, content_type=content_type)


Bring = Callable[[str, str | None, dict[str, Any]], Awaitable[None]]
"""As `Seen`, and never fails."""


class _Events:
    """The stream of a watch: its objects are brought, and each event is passed on as the place it leaves.

    All else is the stream's own.
    """

    def __init__(self, stream: aiohttp.StreamReader, kind: str, bring: Bring) -> None:
        self._stream = stream
        self._kind = kind
        self._bring = bring

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Lines of JSON: a bookmark for each change, whatever else the server sends as it is."""
        async for line in whole_lines(self._stream.iter_chunked(size)):
            try:
                event = decode(line) if line else None
            except ValueError as error:
                # The next list brings the object.
                logger.error("a line of %d bytes of a watch is left out: %s", len(line), error)
                continue
            if event is not None:
                yield json.dumps(await self._take(event)).encode() + b"\n"

    async def _take(self, event: Any) -> Any:
        """What Kopf needs of an event: it goes on from the version of the last one."""
        body = event.get("object") if isinstance(event, dict) else None
        if not isinstance(body, dict) or event.get("type") not in CHANGES:
            return event
        await self._bring(self._kind, event["type"], body)
        meta = body.get("metadata")
        version = meta.get("resourceVersion") if isinstance(meta, dict) else None
        place = {} if version is None else {"resourceVersion": version}
        return {"type": "BOOKMARK", "object": {"kind": body.get("kind"), "metadata": place}}


CHANGES = frozenset({"ADDED", "MODIFIED", "DELETED"})


def build_registry(sessions: Sessions) -> kopf.OperatorRegistry:
    """An explicit registry: the login, and what is to be watched."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return await sessions.log_in()

    async def watched(**_: Any) -> None:
        """Kopf watches the kinds that have a handler; their objects do not come to it."""

    for group, version, plural, _ in WATCHED:
        kopf.on.event(group, version, plural, registry=registry)(watched)
    return registry


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
