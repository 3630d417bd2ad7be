"""What Kopf reads through the operator's session, from a server that nests without bound."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from greentrain.controller.registry import Sessions
from greentrain.controller.settings import Settings
from greentrain.kube.client import Connection

DEEP = "[" * 1350 + "]" * 1350
LINES = [
    '{"type":"ADDED","object":{"metadata":{"name":"before"}}}',
    f'{{"type":"MODIFIED","object":{{"metadata":{{"name":"deep"}},"spec":{DEEP}}}}}',
    json.dumps({"type": "ADDED", "object": {"metadata": {"name": "wide"}, "spec": [[]] * 1000}}),
    f'{{"type":"ADDED","object":{{"spec":{DEEP}',  # no JSON, and too long to be looked at by Python's decoder alone
    '{"type":"DELETED","object":{"metadata":{"name":"after"}}}',
]


async def answer(request: web.Request) -> web.StreamResponse:
    if "watch" not in request.query:
        return web.Response(
            text=f'{{"items":[{{"spec":{DEEP}}},{{"spec":1}}]}}', content_type="application/json"
        )
    response = web.StreamResponse()
    await response.prepare(request)
    text = "".join(f"{line}\n" for line in LINES).encode()
    for begin in range(0, len(text), 1000):
        await response.write(text[begin : begin + 1000])
    return response


@pytest.fixture
async def server() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/jobs", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0]
    await runner.cleanup()


async def test_an_object_too_deep_for_python_is_one_object_of_a_list_or_watch(
    server: tuple[str, int],
) -> None:
    host, port = server
    connection = Connection(f"http://{host}:{port}", None, None, None, None, verify=False)
    session = Sessions(Settings()).connect(connection)
    try:
        async with session.get(f"{connection.server}/jobs") as response:
            listed = (await response.json())["items"]
        assert [len(json.dumps(item["spec"])) for item in listed] == [2 * 126 - 2 + 4, 1]
        async with session.get(f"{connection.server}/jobs", params={"watch": "true"}) as response:
            told = b"".join([chunk async for chunk in response.content.iter_chunked(1 << 20)])
    finally:
        await session.close()
    events = [json.loads(line) for line in told.decode().splitlines()]  # as Kopf does
    assert [e["object"]["metadata"]["name"] for e in events] == ["before", "deep", "wide", "after"]
    assert told.splitlines()[2].decode() == LINES[2]
