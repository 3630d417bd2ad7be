"""Requests of one pass: a bounded number at once, each made when its turn has come, none left under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from typing import Any, cast

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.lifecycle.decision import Decision
from greentrain.kube.apply import apply_effects, run_all
from greentrain.kube.cache import Cache
from greentrain.kube.client import CONNECTIONS, WORDS_MAX, Client
from tests.support.manifests import build_template
from tests.support.snapshots import job_of


class Requests:
    """What was begun and what has ended."""

    def __init__(self, *failing: int) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.most = 0
        self.failing = failing

    async def _request(self, number: int) -> int:
        self.most = max(self.most, len(self.begun) - len(self.ended))
        await asyncio.sleep(0.001 * (number % 3))
        self.ended.append(number)
        if number in self.failing:
            raise ValueError(number)
        return number

    def make(self, count: int, *, breaks_at: int | None = None) -> Iterator[Awaitable[int]]:
        for number in range(count):
            if number == breaks_at:
                raise KeyError(number)
            self.begun.append(number)
            yield self._request(number)


async def test_requests_are_made_a_connection_each_and_answered_in_order() -> None:
    requests = Requests()
    assert await run_all(requests.make(200)) == list(range(200))
    assert requests.most == CONNECTIONS


async def test_an_error_is_raised_once_all_others_have_ended() -> None:
    requests = Requests(3, 150)
    with pytest.raises(ValueError, match=r"^3$"):
        await run_all(requests.make(200))
    assert sorted(requests.ended) == list(range(200))


async def test_what_cannot_be_built_leaves_no_request_under_way() -> None:
    requests = Requests()
    with pytest.raises(KeyError):
        await run_all(requests.make(200, breaks_at=100))
    assert sorted(requests.ended) == list(range(100))


async def test_nothing_to_do_is_nothing_done() -> None:
    assert await run_all(iter(())) == []


@pytest.mark.parametrize(("requests", "tasks"), [(0, 0), (1, 1), (200, CONNECTIONS)])
async def test_no_more_tasks_are_begun_than_there_are_requests(requests: int, tasks: int) -> None:
    begun = count_tasks()
    assert await run_all(Requests().make(requests), count=requests) == list(range(requests))
    assert len(begun) == tasks


async def test_a_pass_that_decides_nothing_begins_no_task() -> None:
    """Nearly all passes are such ones: a job runs, and a node has reported its energy."""
    begun = count_tasks()
    async with Client(Configuration(host="http://127.0.0.1:1")) as client:
        outcome = await apply_effects(client, Cache(), job_of(), Decision(GreenTrainingJobStatus()))
    assert (outcome.changed, begun) == (False, [])


def count_tasks() -> list[asyncio.Task[Any]]:
    """The tasks that this event loop begins from now on."""
    begun: list[asyncio.Task[Any]] = []

    def begin(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any] | Generator[Any, None, Any]
    ) -> asyncio.Task[Any]:
        begun.append(asyncio.Task(cast(Coroutine[Any, Any, Any], work), loop=loop))
        return begun[-1]

    asyncio.get_running_loop().set_task_factory(begin)
    return begun


@pytest.mark.parametrize(
    ("status", "reason", "all_are_posted"),
    [
        (422, "Invalid", False),
        (400, "BadRequest", False),
        (413, "RequestEntityTooLarge", False),
        (403, "Forbidden", True),
    ],
)
async def test_of_pods_that_are_alike_one_refusal_for_their_content_is_enough(
    status: int, reason: str, all_are_posted: bool
) -> None:
    posted = 0

    async def refuse(request: web.Request) -> web.Response:
        nonlocal posted
        await request.read()
        posted += 1
        words = "spec.containers[0].env[7]: abcdef7 is not valid; " * 10_000
        return web.json_response({"kind": "Status", "reason": reason, "message": words}, status=status)

    app = web.Application()
    app.router.add_post("/api/v1/namespaces/team/pods", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    template = build_template(env=[{"name": "A", "value": "abcdef7"}])
    pods = [
        {"kind": "Pod", "metadata": {"name": f"p{i}", "namespace": "team"}, **template} for i in range(200)
    ]
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with Client(Configuration(host=host)) as client:
            decision = Decision(GreenTrainingJobStatus(), pods=pods)
            outcome = await apply_effects(client, Cache(), job_of(), decision)
    finally:
        await runner.cleanup()
    assert posted == (200 if all_are_posted else 1)
    first = outcome.obstacles[0]
    assert (first.name, first.reason, len(outcome.obstacles)) == ("p0", reason, posted)
    assert first.message.startswith("spec.containers[0].env[7]: <hidden> is not valid; ")
    assert len(first.message) == WORDS_MAX
