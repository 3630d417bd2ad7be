"""Of what a program answers to `/progress` so much is read as it may be, in however many parts it comes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from greentrain.api.runtime import PROGRESS_MAX_BYTES
from greentrain.kube.progress import read_progress

LONGEST = b'{"step": 7}'.ljust(PROGRESS_MAX_BYTES)


async def endlessly() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 100_000
        await asyncio.sleep(0)


async def in_parts(text: bytes, size: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(text), size):
        yield text[begin : begin + size]
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "encoding", "step"),
    [
        (b'{"step": 7}', "", 7),
        (in_parts(b'{"step": 7}', 3), "", 7),
        (LONGEST, "", 7),
        (in_parts(LONGEST, 5_000), "", 7),
        (LONGEST + b" ", "", None),
        (endlessly(), "", None),
        (gzip.compress(b'{"step": 7}'), "gzip", 7),
        (gzip.compress(b" " * 50_000_000 + b'{"step": 7}'), "gzip", None),
    ],
    ids=[
        "short",
        "in parts",
        "longest",
        "longest in parts",
        "longer",
        "endless",
        "packed",
        "packed and long",
    ],
)
async def test_an_answer_counts_whole_or_not_at_all(
    body: bytes | AsyncIterator[bytes], encoding: str, step: int | None
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding} if encoding else {})

    app = web.Application()
    app.router.add_get("/progress", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(trust_env=False) as session, asyncio.timeout(1.5):
            said = await read_progress(session, "127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()
    assert (said.step if said is not None else None) == step
