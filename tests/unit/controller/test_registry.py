"""What Kopf reads through the operator's session, from a server that nests without bound."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from greentrain.controller.registry import Sessions
from greentrain.controller.settings import Settings
from greentrain.kube.client import Client
from greentrain.kube.connection import Connection

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


LARGE = {"metadata": {"name": "large"}, "spec": {"notes": "x" * 600_000}}
"""600 kB: two of them are more than an answer may have."""


async def list_jobs(request: web.Request) -> web.Response:
    """By pages of so many objects as are asked for, large ones amid small ones."""
    jobs = [{"metadata": {"name": f"job-{i}"}, "spec": {}} for i in range(40)]
    jobs[5:5] = [LARGE, LARGE, LARGE]
    begin, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 500)
    request.app[ASKED].append(limit)
    end = begin + limit
    meta = {"resourceVersion": "7", "continue": str(end) if end < len(jobs) else ""}
    return web.json_response(
        {"kind": "GreenTrainingJobList", "items": jobs[begin:end], "metadata": meta},
        dumps=partial(json.dumps, separators=(",", ":")),
    )


async def watch_large(request: web.Request) -> web.StreamResponse:
    env = [{"name": "TF_CONFIG", "value": "x" * 100_000}]
    pod = {"nodeName": "node-1", "volumes": [{}] * 9, "containers": [{"name": "tensorflow", "env": env}]}
    response = web.StreamResponse()
    await response.prepare(request)
    for kind, body in (("GreenTrainingJob", LARGE), ("Pod", {"metadata": {"name": "p"}, "spec": pod})):
        line = json.dumps({"type": "ADDED", "object": {"kind": kind, **body}})
        await response.write(f"{line}\n".encode())
    return response


ASKED = web.AppKey("asked", list[int])


@pytest.fixture
def asked() -> list[int]:
    """How many objects the server was asked for, page by page."""
    return []


@pytest.fixture
async def server(asked: list[int]) -> AsyncIterator[tuple[str, int]]:
    app = web.Application()
    app[ASKED] = asked
    app.router.add_get("/large", watch_large)
    app.router.add_get("/jobs", answer)
    app.router.add_get("/apis/greentrain.dev/v1alpha1/greentrainingjobs", list_jobs)
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


async def list_as_kopf_does(connection: Connection) -> list[dict[str, Any]]:
    session = Sessions(Settings()).connect(connection)
    found, token = [], ""
    try:
        while True:
            params = {"continue": token} if token else {}
            path = "/apis/greentrain.dev/v1alpha1/greentrainingjobs"
            async with session.get(f"{connection.server}{path}", params=params) as response:
                page = await response.json()
            found += page["items"]
            token = page["metadata"]["continue"]
            if not token:
                return found
    finally:
        await session.close()


async def list_as_we_do(connection: Connection) -> list[dict[str, Any]]:
    async with Client(Configuration(host=connection.server)) as client:
        items, version = await client.list_jobs(None)
    assert version == 7
    return items


@pytest.mark.parametrize("list_all", [list_as_kopf_does, list_as_we_do])
async def test_a_list_of_large_objects_is_read_by_smaller_pages_and_what_is_too_large_is_not_kept(
    server: tuple[str, int],
    asked: list[int],
    list_all: Callable[[Connection], Awaitable[list[dict[str, Any]]]],
) -> None:
    host, port = server
    found = await list_all(Connection(f"http://{host}:{port}", None, None, None, None, verify=False))
    names = [item["metadata"]["name"] for item in found]
    assert names == [f"job-{i}" for i in range(5)] + ["large"] * 3 + [f"job-{i}" for i in range(5, 40)]
    assert max(len(json.dumps(item)) for item in found) < 1_000
    assert all("at most 512 KiB are allowed" in json.dumps(item) for item in found[5:8])
    assert min(asked) == 1
    assert len(asked) < 40


async def test_of_a_large_object_that_a_watch_brings_what_is_needed_is_passed_on(
    server: tuple[str, int],
) -> None:
    host, port = server
    connection = Connection(f"http://{host}:{port}", None, None, None, None, verify=False)
    session = Sessions(Settings()).connect(connection)
    try:
        async with session.get(f"{connection.server}/large", params={"watch": "true"}) as response:
            told = b"".join([chunk async for chunk in response.content.iter_chunked(1 << 20)])
    finally:
        await session.close()
    job, pod = (json.loads(line)["object"] for line in told.splitlines())
    assert len(told) < 2_000
    assert (job["metadata"], job["spec"]) == ({"name": "large"}, {})
    assert pod["spec"] == {"nodeName": "node-1", "containers": [{"name": "tensorflow", "env": []}]}
