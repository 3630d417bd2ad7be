"""Stands between the operator and a real API server on loopback, and spoils what passes: by script, or by chance.

The operator is given a kubeconfig that points here; tests talk to the server itself. Nothing is pretended: a request
that is forwarded is done by the real server, one whose answer is lost was done all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from tests.support.api import Server


@dataclass(frozen=True)
class Refuse:
    """Answered with an error status instead of being forwarded."""

    status: int
    reason: str
    retry_after: int | None = None
    message: str = "refused by the test's proxy"


@dataclass(frozen=True)
class Cut:
    """The connection breaks and nothing is forwarded."""


@dataclass(frozen=True)
class LoseAnswer:
    """The server does it, then the connection breaks, and the client is not answered."""


@dataclass(frozen=True)
class CutBody:
    """The server does it, and the connection breaks in the middle of its answer."""


@dataclass(frozen=True)
class Slow:
    """Forwarded late."""

    seconds: float


@dataclass(frozen=True, eq=False)
class Allocated:
    """Forwarded when the test lets it."""

    until: asyncio.Event


@dataclass(frozen=True)
class Frozen:
    """A watch that stays open and brings nothing more after some events."""

    after: int = 0


@dataclass(frozen=True)
class Ended:
    """A watch that ends properly after some events."""

    after: int = 0


@dataclass(frozen=True)
class Expired:
    """A watch that ends with the server's 410 after some events: what it was at is forgotten."""

    after: int = 0


@dataclass(frozen=True)
class Torn:
    """A watch whose connection breaks in the middle of an event."""

    after: int = 0


Fault = Refuse | Cut | LoseAnswer | CutBody | Slow | Allocated | Frozen | Ended | Expired | Torn

ANY_REQUEST: tuple[Fault, ...] = (
    Refuse(409, "Conflict"),
    Refuse(410, "Expired"),
    Refuse(429, "TooManyRequests", retry_after=1),
    Refuse(500, "InternalError"),
    Refuse(503, "ServiceUnavailable"),
    Refuse(504, "Timeout"),
    Cut(),
    LoseAnswer(),
    LoseAnswer(),
    CutBody(),
    Slow(0.2),
    Slow(1.0),
)
"""What chance does to a request; lost answers twice, because they are the ones that double things."""


@dataclass
class Rule:
    """A scripted fault for requests of a method whose path and query match; the first rule that has times left wins."""

    method: str
    pattern: str
    fault: Fault
    times: int | None
    watch: bool
    hits: int = 0

    def fits(self, method: str, path: str, watch: bool) -> bool:
        """Whether the request is one of those."""
        left = self.times is None or self.hits < self.times
        return left and method == self.method and watch == self.watch and bool(re.search(self.pattern, path))


@dataclass(frozen=True)
class Seen:
    """One request that came by, with what was done to it."""

    time: float
    method: str
    path: str
    watch: bool
    fault: Fault | None


@dataclass
class Chance:
    """Faults by chance: a share of all requests, and most watches after a few events."""

    seed: int
    share: float = 0.15
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def choose(self, path: str, watch: bool) -> Fault | None:
        """A fault or none."""
        if watch:
            after = self.random.randrange(8)
            spoilt: tuple[Fault, ...] = (Frozen(after), Ended(after), Expired(after), Torn(after))
            refused: tuple[Fault, ...] = (Refuse(500, "InternalError"), Refuse(410, "Expired"))
            return self.random.choice((*spoilt, *spoilt, *refused, None, None, None, None, None, None))
        if self.random.random() >= self.share:
            return None
        return Refuse(410, "Expired") if "continue=" in path else self.random.choice(ANY_REQUEST)


class _Upstream(Server):
    """The real server, spoken to in whatever words came in."""

    @contextlib.asynccontextmanager
    async def forward(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request on; the answer is not read yet."""
        assert self._session is not None
        kept = {name: headers[name] for name in ("Accept", "Content-Type") if name in headers}
        async with self._session.request(
            method,
            URL(self.url + path, encoded=True),
            data=body or None,
            headers=kept,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            yield answer


class Proxy:
    """One proxy; start it with `Proxy.start`."""

    def __init__(self, kubeconfig: Path) -> None:
        self._upstream = _Upstream(kubeconfig)
        self.kubeconfig = kubeconfig.with_name("kubeconfig-not-started")
        self.chance: Chance | None = None
        self.requests: list[Seen] = []
        self.done: Callable[[Seen], None] = lambda _: None
        """Called after the server has done a request and before anybody is told."""
        self._rules: list[Rule] = []
        self._streams: dict[int, web.Request] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, kubeconfig: Path, folder: Path) -> AsyncIterator[Proxy]:
        """Listen on a free port of loopback; `kubeconfig` of the proxy, written into the folder, leads there."""
        proxy = cls(kubeconfig)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", proxy._pass_on)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        async with proxy._upstream:
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                proxy._write_kubeconfig(folder / "kubeconfig-proxy", runner.addresses[0][1])
                yield proxy
            finally:
                proxy.break_streams()
                await runner.cleanup()

    def _write_kubeconfig(self, path: Path, port: int) -> None:
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [context],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        self.kubeconfig = path

    def script(
        self, method: str, pattern: str, fault: Fault, *, times: int | None = 1, watch: bool = False
    ) -> Rule:
        """Spoil the next requests of a kind; `times=None`: all, until `forgive`."""
        rule = Rule(method, pattern, fault, times, watch)
        self._rules.append(rule)
        return rule

    def forgive(self) -> None:
        """No more faults; streams that are frozen stay so."""
        self._rules.clear()
        self.chance = None

    def break_streams(self) -> None:
        """Break every watch that is open."""
        for request in list(self._streams.values()):
            _abort(request)

    def has_stream(self, pattern: str) -> bool:
        """Whether a watch of that kind is open, so that it can be broken."""
        return any(re.search(pattern, request.path_qs) for request in self._streams.values())

    def count(self, method: str, pattern: str) -> int:
        """Requests that came by, spoilt or not."""
        return sum(s.method == method and bool(re.search(pattern, s.path)) for s in self.requests)

    def _choose(self, method: str, path: str, watch: bool) -> Fault | None:
        for rule in self._rules:
            if rule.fits(method, path, watch):
                rule.hits += 1
                return rule.fault
        return self.chance.choose(path, watch) if self.chance is not None else None

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") in ("true", "1")
        fault = self._choose(request.method, request.path_qs, watch)
        seen = Seen(asyncio.get_running_loop().time(), request.method, request.path_qs, watch, fault)
        self.requests.append(seen)
        body = await request.read()
        if isinstance(fault, Refuse):
            return _refusal(fault)
        if isinstance(fault, Cut):
            return _abort(request)
        if isinstance(fault, Slow):
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Allocated):
            await fault.until.wait()
        try:
            async with self._upstream.forward(
                request.method, request.path_qs, body, request.headers
            ) as answer:
                if watch and answer.status == 200:
                    return await self._stream(request, answer, fault)
                content = await answer.read()
        except aiohttp.ClientError:  # the server itself is away
            return _abort(request)
        self.done(seen)
        if isinstance(fault, LoseAnswer):
            return _abort(request)
        kind = answer.headers.get("Content-Type", "application/json").partition(";")[0]
        if isinstance(fault, CutBody):
            return await _halve(request, answer.status, content, kind)
        return web.Response(status=answer.status, body=content, content_type=kind)

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._streams[id(request)] = request
        events, rest = 0, b""
        try:
            if isinstance(fault, Frozen | Ended | Expired | Torn) and fault.after == 0:
                return await _end(request, response, fault, b"{}\n")
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    events += 1
                    if isinstance(fault, Frozen | Ended | Expired | Torn) and events > fault.after:
                        return await _end(request, response, fault, line + b"\n")
                    await response.write(line + b"\n")
            return response
        finally:
            del self._streams[id(request)]


async def _end(
    request: web.Request, response: web.StreamResponse, fault: Fault, line: bytes
) -> web.StreamResponse:
    if isinstance(fault, Frozen):
        await asyncio.Event().wait()  # until the client has had enough of it
    if isinstance(fault, Torn):
        await response.write(line[: len(line) // 2])
        return _abort(request)
    if isinstance(fault, Expired):
        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
    return response


def _refusal(fault: Refuse) -> web.Response:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": fault.status,
        "reason": fault.reason,
        "message": fault.message,
    }
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return web.json_response(status, status=fault.status, headers=headers)


def _abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _halve(request: web.Request, status: int, content: bytes, kind: str) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={"Content-Type": kind})
    response.content_length = len(content)
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
