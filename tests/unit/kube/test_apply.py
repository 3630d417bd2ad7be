"""Requests of one pass: a bounded number at once, each made when its turn has come, none left under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

import pytest

from greentrain.kube.apply import run_all
from greentrain.kube.client import CONNECTIONS


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
