"""What the operator's session brings to the caches and leaves to Kopf, from a server that nests without bound."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from greentrain.controller.registry import Sessions
from greentrain.controller.settings import Settings
from greentrain.kube.cache import slim
from greentrain.kube.client import Client
from greentrain.kube.connection import Connection

DEEP = "[" * 1350 + "]" * 1350
LINES = [
    '{"type":"ADDED","object":{"metadata":{"name":"before","resourceVersion":"11"}}}',
    f'{{"type":"MODIFIED","object":{{"metadata":{{"name":"deep","resourceVersion":"12"}},"spec":{DEEP}}}}}',
    json.dumps({"type": "ADDED", "object": {"metadata": {"name": "wide"}, "spec": [[]] * 1000}}),
    f'{{"type":"ADDED","object":{{"spec":{DEEP}',  # no JSON, and too deep for Python's own decoder
    '{"type":"ADDED","object":{"metadata":"of no use"}}',
    "",
    '{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"13"}}}',
    '{"type":"DELETED","object":{"kind":"Pod","metadata":{"name":"after","resourceVersion":"14"}}}',
    '{"type":"ERROR","object":{"kind":"Status","code":410}}',
]


async def answer(request: web.Request) -> web.StreamResponse:
    if "watch" not in request.query:
        return web.Response(
            text=f'{{"kind":"PodList","metadata":{{"resourceVersion":"7"}},"items":[{{"spec":{DEEP}}},{{"spec":1}}]}}',
            content_type="application/json",
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
    app.router.add_get("/deep/pods", answer)
    app.router.add_get("/large/greentrainingjobs", watch_large)
    app.router.add_get("/apis/greentrain.dev/v1alpha1/greentrainingjobs", list_jobs)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0]
    await runner.cleanup()


class Brought:
    """What a session brings; an object whose metadata are no map is not taken up, as by the caches."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, str | None, dict[str, Any]]] = []

    async def __call__(self, kind: str, type_: str | None, body: dict[str, Any]) -> None:
        body.get("metadata", {}).get("name")
        self.bodies.append((kind, type_, body))

    def named(self) -> list[tuple[str, str | None, str | None]]:
        return [(kind, type_, body.get("metadata", {}).get("name")) for kind, type_, body in self.bodies]


@contextlib.asynccontextmanager
async def session_to(server: tuple[str, int], brought: Brought) -> AsyncIterator[aiohttp.ClientSession]:
    """A session as Kopf has it."""
    host, port = server
    connection = Connection(f"http://{host}:{port}", None, None, None, None, verify=False)
    async with Sessions(Settings(), brought).connect(connection) as session:
        yield session


async def watch_as_kopf_does(
    server: tuple[str, int], path: str, brought: Brought
) -> list[tuple[str, str | None]]:
    """By its line of the watch: an event's type, and the version from which Kopf would go on."""
    async with session_to(server, brought) as session:
        url = f"http://{server[0]}:{server[1]}{path}"
        async with session.get(url, params={"watch": "true"}) as response:
            passed_on = b"".join([chunk async for chunk in response.content.iter_chunked(1 << 20)])
    events = [json.loads(line) for line in passed_on.decode().splitlines()]
    return [(e["type"], e["object"].get("metadata", {}).get("resourceVersion")) for e in events]


async def test_a_watch_brings_each_object_and_leaves_kopf_the_place_from_which_it_goes_on(
    server: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is too deep for Python is one object, and one that cannot be read or taken up is left out."""
    brought = Brought()
    assert await watch_as_kopf_does(server, "/deep/pods", brought) == [
        ("BOOKMARK", "11"),
        ("BOOKMARK", "12"),
        ("BOOKMARK", None),
        ("BOOKMARK", None),
        ("BOOKMARK", "13"),
        ("BOOKMARK", "14"),
        ("ERROR", None),
    ]
    assert brought.named() == [
        ("Pod", "ADDED", "before"),
        ("Pod", "MODIFIED", "deep"),
        ("Pod", "ADDED", "wide"),
        ("Pod", "DELETED", "after"),
    ]
    assert len(json.dumps(brought.bodies[1][2]["spec"])) == 2 * 126 + 4
    assert brought.bodies[2][2]["spec"] == [[]] * 1000
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"a line of {len(LINES[3])} bytes of a watch is left out",
        "an object of kind Pod was not taken up",
    ]


async def test_a_list_brings_each_object_and_leaves_kopf_none(server: tuple[str, int]) -> None:
    brought = Brought()
    async with (
        session_to(server, brought) as session,
        session.get(f"http://{server[0]}:{server[1]}/deep/pods") as response,
    ):
        listed = await response.json()
    assert listed == {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": []}
    assert [(kind, type_) for kind, type_, _ in brought.bodies] == [("Pod", None)] * 2
    assert [len(json.dumps(body["spec"])) for _, _, body in brought.bodies] == [2 * 126 - 2 + 4, 1]


async def test_while_many_objects_come_together_all_else_has_its_turn(server: tuple[str, int]) -> None:
    """Each takes 3 ms here: after two of them it is another's turn."""
    turns: list[int] = []

    class Slow(Brought):
        async def __call__(self, kind: str, type_: str | None, body: dict[str, Any]) -> None:
            await super().__call__(kind, type_, body)
            time.sleep(0.003)  # noqa: ASYNC251 - as what takes up an object does

    brought = Slow()

    async def look() -> None:
        while True:
            turns.append(len(brought.bodies))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await list_as_kopf_does(server, brought)
    looking.cancel()
    assert len(brought.bodies) == 43
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2


async def list_as_kopf_does(server: tuple[str, int], brought: Brought) -> None:
    token = ""
    async with session_to(server, brought) as session:
        while True:
            params = {"continue": token} if token else {}
            url = f"http://{server[0]}:{server[1]}/apis/greentrain.dev/v1alpha1/greentrainingjobs"
            async with session.get(url, params=params) as response:
                page = await response.json()
            assert page["items"] == []
            token = page["metadata"]["continue"]
            if not token:
                return


async def list_for_caches(server: tuple[str, int]) -> list[dict[str, Any]]:
    """What a cache keeps of what Kopf's list brings."""
    brought = Brought()
    await list_as_kopf_does(server, brought)
    return [slim(kind, body) for kind, _, body in brought.bodies]


async def list_as_we_do(server: tuple[str, int]) -> list[dict[str, Any]]:
    async with Client(Configuration(host=f"http://{server[0]}:{server[1]}")) as client:
        items, version = await client.list_jobs(None)
    assert version == 7
    return items


@pytest.mark.parametrize("list_all", [list_for_caches, list_as_we_do])
async def test_a_list_of_large_objects_is_read_by_smaller_pages_and_what_is_too_large_is_not_kept(
    server: tuple[str, int],
    asked: list[int],
    list_all: Callable[[tuple[str, int]], Awaitable[list[dict[str, Any]]]],
) -> None:
    found = await list_all(server)
    names = [item["metadata"]["name"] for item in found]
    assert names == [f"job-{i}" for i in range(5)] + ["large"] * 3 + [f"job-{i}" for i in range(5, 40)]
    assert max(len(json.dumps(item)) for item in found) < 1_000
    assert all("at most 512 KiB are allowed" in json.dumps(item) for item in found[5:8])
    assert min(asked) == 1
    assert len(asked) < 40


async def test_of_a_large_object_that_a_watch_brings_what_is_needed_is_kept(server: tuple[str, int]) -> None:
    brought = Brought()
    assert len(await watch_as_kopf_does(server, "/large/greentrainingjobs", brought)) == 2
    job, pod = (slim(body["kind"], body) for _, _, body in brought.bodies)
    assert (job["metadata"], job["spec"]) == ({"name": "large"}, {})
    assert pod["spec"] == {"nodeName": "node-1", "containers": [{"name": "tensorflow", "env": []}]}
