"""What a training container answers on `/progress` is its word about itself, short, in time, and of nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from greentrain.api.runtime import PROGRESS_MAX_BYTES, Progress
from greentrain.kube.progress import TIMEOUT_SECONDS, read_progress

STEP = b'{"step": 7}'
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Container:
    """Whatever listens on the port of a pod."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[str] = []

    async def _note(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if request.path == "/progress":
            return await self._answer(request)
        return web.Response(body=STEP)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._note)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


async def ask(answer: Answer) -> tuple[Progress | None, list[str]]:
    """What is read of a container that answers so, and what it was asked for."""
    container = Container(answer)
    async with container.listen() as port, aiohttp.ClientSession(trust_env=False) as session:
        return await read_progress(session, "127.0.0.1", port), container.asked


def plain(status: int = 200, body: bytes = STEP, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


def in_parts(*parts: bytes, pause: float = 0.05) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(pause)
        return response

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/elsewhere", "//127.0.0.1:{port}/elsewhere", "http://localhost:{port}/elsewhere"]
)
async def test_a_redirect_is_no_answer_and_is_not_followed(status: int, location: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.url.port is not None
        return web.Response(
            status=status, headers={"Location": location.format(port=request.url.port)}, body=STEP
        )

    assert await ask(answer) == (None, ["GET /progress"])


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 304, 400, 401, 403, 404, 429, 500, 503])
async def test_only_an_answer_of_200_is_one(status: int) -> None:
    assert await ask(plain(status)) == (None, ["GET /progress"])


PADDED = STEP + b" " * (PROGRESS_MAX_BYTES - len(STEP))


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (plain(), Progress(step=7)),
        (plain(body=PADDED), Progress(step=7)),
        (plain(body=PADDED + b" "), None),
        (plain(body=b"step 7"), None),
        (plain(body=b""), None),
        (in_parts(STEP[:4], STEP[4:]), Progress(step=7)),
        (in_parts(PADDED[:100], PADDED[100:], b" "), None),
    ],
    ids=["short", "the longest", "too long", "no JSON", "empty", "in two parts", "too long in parts"],
)
async def test_an_answer_is_read_whole_or_not_at_all(answer: Answer, read: Progress | None) -> None:
    assert await ask(answer) == (read, ["GET /progress"])


async def test_a_container_that_keeps_us_waiting_is_not_waited_for() -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    loop = asyncio.get_running_loop()
    begun = loop.time()
    drips = in_parts(*(b" " for _ in range(100)), STEP, pause=0.1)
    found = await asyncio.gather(ask(silent), ask(drips))
    assert list(found) == [(None, ["GET /progress"])] * 2
    assert loop.time() - begun < TIMEOUT_SECONDS + 2


async def test_an_answer_without_end_is_cut_off_at_once() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * PROGRESS_MAX_BYTES)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await ask(endless) == (None, ["GET /progress"])
    assert loop.time() - begun < TIMEOUT_SECONDS / 2
