"""The HTTP server of operator and agent, against clients that take what they can."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from greentrain.telemetry.serving import Bounds, serve
from sandbox.ports import find_free_ports

HOSTILE, HONEST = "127.0.0.1", "127.0.0.2"
"""Two clients: all of 127.0.0.0/8 is this machine."""

UNFINISHED = b"GET /healthz HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 4000
SHORT = Bounds(connections=8, head_seconds=0.3, seconds=0.8)


@dataclass
class Place:
    """A running server."""

    port: int
    renders: list[float] = field(default_factory=list)
    body: bytes = b"x 1\n"
    render_seconds: float = 0.0

    def render(self) -> bytes:
        """Metrics, as slow as a test wants it."""
        self.renders.append(time.monotonic())
        time.sleep(self.render_seconds)
        return self.body

    async def connect(self, client: str = HOSTILE) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from one of the clients."""
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(client, 0))

    async def ask(self, request: bytes, client: str = HONEST) -> bytes:
        """All that is answered until the connection is closed."""
        reader, writer = await self.connect(client)
        with contextlib.closing(writer):
            writer.write(request)
            return await reader.read()

    async def get(self, path: str, client: str = HONEST) -> tuple[int, bytes]:
        """Status and body of an answer."""
        head, _, body = (
            await self.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), client)
        ).partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@contextlib.asynccontextmanager
async def serving(
    bounds: Bounds = SHORT, *, unready: Callable[[], str | None] = lambda: None
) -> AsyncIterator[Place]:
    place = Place(find_free_ports(1)[0])
    runner = await serve(
        place.port, unhealthy=lambda: None, unready=unready, render=place.render, bounds=bounds
    )
    try:
        yield place
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 200, b"ok"),
        (b"GET /healthz?x=1 HTTP/1.0\r\n\r\n", 200, b"ok"),
        (b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 503, b"the GPUs have not been read yet"),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 200, b"x 1"),
        (b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n", 404, b"there are /healthz, /metrics, /readyz"),
        (b"DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405, b"use GET"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\nxxxx", 405, b"use GET"),
        (
            b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\nxx",
            405,
            b"use GET",
        ),
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400, b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 5000 + b"\r\n\r\n", 400, b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: x\r\n" * 40 + b"\r\n", 400, b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, b""),
    ],
    ids=lambda value: value.decode(errors="replace")[:24].strip() if isinstance(value, bytes) else str(value),
)
async def test_one_request_is_answered_and_the_connection_closed(
    request_: bytes, status: int, words: bytes
) -> None:
    async with serving(unready=lambda: "the GPUs have not been read yet") as place:
        async with asyncio.timeout(SHORT.seconds):
            answer = await place.ask(request_)
        assert int(answer.split()[1]) == status
        assert words in answer


async def test_what_is_no_http_leaves_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as place:
        for _ in range(3):
            await place.ask(b"no HTTP\r\n\r\n")
    assert caplog.records == []


async def test_two_requests_in_one_write_get_one_answer() -> None:
    async with serving() as place:
        answer = await place.ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "first",
    [b"", UNFINISHED, b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n"],
    ids=["nothing", "half a header", "no end"],
)
async def test_a_request_that_does_not_come_is_not_waited_for(first: bytes) -> None:
    async with serving() as place:
        reader, writer = await place.connect()
        begun = time.monotonic()
        writer.write(first)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            # A byte now and then does not keep it open either.
            while not reader.at_eof() and time.monotonic() - begun < 5:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read()
                writer.write(b"x")
        assert time.monotonic() - begun < 1.5


async def test_an_answer_that_is_not_read_is_not_waited_for() -> None:
    async with serving() as place:
        place.body = b"x 1\n" * (1 << 22)
        reader, writer = await place.connect()
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.read(1)
        await asyncio.sleep(SHORT.seconds + 0.3)
        read = 0
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 20):
                read += len(chunk)
        assert read < len(place.body)


async def test_who_holds_all_connections_loses_the_oldest_and_others_get_through() -> None:
    async with serving(Bounds(connections=8)) as place:
        held = [await place.connect() for _ in range(400)]
        for _, writer in held:
            writer.write(UNFINISHED)
        assert await place.get("/healthz") == (200, b"ok\n")
        still = 0
        for reader, writer in held:
            with contextlib.closing(writer), contextlib.suppress(ConnectionError):
                try:
                    async with asyncio.timeout(0.01):
                        await reader.read()
                except TimeoutError:
                    still += 1
        assert still == 8 - 1
        assert await place.get("/healthz") == (200, b"ok\n")


async def test_metrics_are_rendered_for_a_tenth_of_the_time_at_most() -> None:
    async with serving(Bounds()) as place:
        place.render_seconds = 0.01
        end = time.monotonic() + 1
        answers = 0
        while time.monotonic() < end:
            assert (await place.get("/metrics"))[1] == b"x 1\n"
            answers += 1
        assert answers > len(place.renders) > 1
        assert min(b - a for a, b in pairwise(place.renders)) >= 0.1


async def test_during_a_flood_others_are_answered() -> None:
    stop = asyncio.Event()

    async def flood(place: Place) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, ValueError, IndexError):
                await place.get("/metrics", HOSTILE)

    async with serving(Bounds()) as place:
        floods = [asyncio.create_task(flood(place)) for _ in range(200)]
        await asyncio.sleep(0.2)
        for _ in range(5):
            assert await place.get("/healthz") == (200, b"ok\n")
        stop.set()
        await asyncio.gather(*floods)
