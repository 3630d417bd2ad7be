"""Health and metrics over HTTP: alive, ready and why not, and what Prometheus scrapes.

Any pod of the cluster may reach the port, so what a client can take is bounded: connections, the size and the time of a request, the
time of an answer, and the share of time in which metrics are rendered. Each connection is for one request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from greentrain.telemetry.metrics import CONTENT_TYPE


@dataclass(frozen=True, slots=True)
class Bounds:
    """What clients can take at most. An unfinished request takes `fields` × `field_bytes` of memory at most: 128 KiB."""

    connections: int = 64
    """Open at the same time. A further one ends the oldest of the address that has the most."""
    head_seconds: float = 5.0
    """From the connection to the end of the request's headers; the kubelet's probes wait for 1 s."""
    seconds: float = 20.0
    """For the whole connection; Prometheus waits for 10 s."""
    line_bytes: int = 2048
    field_bytes: int = 4096
    fields: int = 32
    render_share: float = 0.1
    """Of the time, in which metrics are rendered: until then the last ones are given again."""


BOUNDS = Bounds()

Answer = Callable[[], web.Response]


async def serve(
    port: int,
    *,
    unhealthy: Callable[[], str | None],
    unready: Callable[[], str | None],
    render: Callable[[], bytes],
    bounds: Bounds = BOUNDS,
) -> web.BaseRunner:
    """Serve `/healthz`, `/readyz` and `/metrics` on a port; the caller cleans the runner up.

    The first two answer 200, or 503 with the reason in a sentence.
    """
    rendered = _Rendered(render, bounds.render_share)
    answers: Mapping[str, Answer] = {
        "/healthz": lambda: _answer_state(unhealthy()),
        "/readyz": lambda: _answer_state(unready()),
        "/metrics": lambda: web.Response(body=rendered.read(), headers={"Content-Type": CONTENT_TYPE}),
    }

    async def respond(request: web.BaseRequest) -> web.StreamResponse:
        response = _respond(request, answers)
        response.force_close()
        return response

    runner = web.ServerRunner(_Server(respond, bounds))
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _respond(request: web.BaseRequest, answers: Mapping[str, Answer]) -> web.Response:
    found = answers.get(request.path)
    if found is None:
        return web.Response(
            status=HTTPStatus.NOT_FOUND, text=f"not found; there are {', '.join(sorted(answers))}\n"
        )
    if request.method not in ("GET", "HEAD"):
        return web.Response(
            status=HTTPStatus.METHOD_NOT_ALLOWED, text="use GET\n", headers={"Allow": "GET, HEAD"}
        )
    return found()


def _answer_state(reason: str | None) -> web.Response:
    if reason is None:
        return web.Response(text="ok\n")
    return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"{reason}\n")


class _Rendered:
    """Metrics, rendered again only once enough time has passed since they were last."""

    def __init__(self, render: Callable[[], bytes], share: float) -> None:
        self._render = render
        self._share = share
        self._last = b""
        self._due = float("-inf")

    def read(self) -> bytes:
        """The present metrics, or the last ones."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        if begun >= self._due:
            self._last = self._render()
            ended = clock()
            self._due = ended + (ended - begun) * (1 / self._share - 1)
        return self._last


def _build_logger() -> logging.Logger:
    """The server's logger, without a line for each request that is no HTTP: any client may send a thousand a second."""
    logger = logging.getLogger("greentrain.http")
    if not logger.filters:
        logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class _Connection(NamedTuple):
    """One open connection."""

    transport: asyncio.Transport
    address: str
    """Of the client."""
    end: asyncio.TimerHandle
    """Of its time."""


class _Server(web.Server):
    """aiohttp's server, with a bound for connections and for their time."""

    def __init__(
        self, respond: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], bounds: Bounds
    ) -> None:
        super().__init__(
            respond,
            access_log=None,
            logger=_build_logger(),
            keepalive_timeout=bounds.head_seconds,
            # The rest of a body that no answer reads is not waited for.
            lingering_time=0,
            max_line_size=bounds.line_bytes,
            max_field_size=bounds.field_bytes,
            max_headers=bounds.fields,
        )
        self._bounds = bounds
        self._open: dict[web.RequestHandler, _Connection] = {}
        """By age."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection in; one too many ends another."""
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        end = asyncio.get_running_loop().call_later(self._bounds.seconds, transport.abort)
        self._open[handler] = _Connection(transport, str(peer[0]) if peer else "", end)
        if len(self._open) > self._bounds.connections:
            victim = self._find_victim()
            self._open[victim].transport.abort()
            # It counts no more from now on: the server is called of its end only in the loop's next turn.
            self._forget(victim)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection that has ended."""
        super().connection_lost(handler, exc)
        self._forget(handler)

    def _forget(self, handler: web.RequestHandler) -> None:
        found = self._open.pop(handler, None)
        if found is not None:
            found.end.cancel()

    def _find_victim(self) -> web.RequestHandler:
        """The oldest connection of the address that has the most."""
        counts = Counter(connection.address for connection in self._open.values())
        most = max(counts.values())
        return next(h for h, connection in self._open.items() if counts[connection.address] == most)
