"""An agent's watch against a server that says nothing, ends watches and fails: only a failure is one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from greentrain.kube.client import connect
from greentrain.kube.node import NodeView
from tests.contract.watch.fakes import (
    Added,
    ApiServer,
    Bookmark,
    Failed,
    Quiet,
    Refused,
    Silent,
    Step,
    Torn,
    build_pod,
)

RETRY = 0.05
"""First wait after an error; a watch that lasts as long is no short one."""
SILENCE = 0.3
LONG = Quiet(2 * RETRY)
PATIENCE = 10.0


class Following:
    """A view that follows a server, and whether it ever called its pods old."""

    def __init__(self, server: ApiServer, view: NodeView) -> None:
        self.server = server
        self.view = view
        self.was_old = False

    async def until(self, check: Callable[[], bool], what: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while not check():
            assert loop.time() < end, f"not within {PATIENCE} s: {what}: {self.server.asked}"
            await asyncio.sleep(0.005)
            self.was_old |= bool(self.server.watches) and not self.view.pods_known


@contextlib.asynccontextmanager
async def following(folder: Path, *scripts: Sequence[Step]) -> AsyncIterator[Following]:
    """A server with the pod `old` at version 10, whose watches on pods play these scripts."""
    async with (
        ApiServer([build_pod("old", 7)], 10, list(scripts)).start(folder) as server,
        await connect(str(server.kubeconfig), silence=SILENCE) as client,
    ):
        view = NodeView(client, "node-1", retry=RETRY)
        task = asyncio.create_task(view.follow())
        try:
            yield Following(server, view)
            assert not task.done(), "it has stopped following"
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "/pods" in r.getMessage()
    ]


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ((Silent(),), "10"),
        ((LONG,), "10"),
        ((Added("a", 12), LONG), "12"),
        ((Added("a", 12), Bookmark(30), LONG), "30"),
        ((Bookmark(30), Silent()), "30"),
        ((Bookmark(30), LONG, Torn()), "30"),
        ((LONG, Torn()), "10"),
        ((Added("a", 12),), "12"),
        ((), "10"),
        ((Torn(),), "10"),
    ],
    ids=[
        "silent",
        "ended by the server",
        "ended after an event",
        "ended after a bookmark",
        "silent after a bookmark",
        "broken after a bookmark",
        "broken",
        "ended at once, with an event",
        "ended at once",
        "broken at once",
    ],
)
async def test_a_watch_that_ends_or_says_nothing_is_opened_again_from_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: Sequence[Step], version: str
) -> None:
    async with following(tmp_path, script, (Added("new", 40), Silent())) as node:
        await node.until(lambda: "new" in node.view.pods, "what the next watch brings")
        first, second = node.server.watches[:2]
    assert (first.version, second.version) == ("10", version)
    assert first.bookmarks, "no bookmarks were asked for"
    assert second.bookmarks, "no bookmarks were asked for"
    assert len(node.server.lists) == 1
    assert not node.was_old
    assert "old" in node.view.pods
    assert warnings(caplog) == []


async def test_bookmarks_keep_a_watch_open(tmp_path: Path) -> None:
    marks = [step for i in range(8) for step in (Quiet(SILENCE / 2), Bookmark(20 + i))]
    async with following(tmp_path, [*marks, Added("new", 40), Silent()]) as node:
        await node.until(lambda: "new" in node.view.pods, "what comes after eight bookmarks")
        assert len(node.server.watches) == 1


@pytest.mark.parametrize(
    "scripts",
    [
        ((LONG,), (Refused(410),)),
        ((LONG,), (Failed(410),)),
        ((LONG, Failed(410)),),
        ((Silent(),), (Failed(410),)),
    ],
    ids=["refused after an end", "ended after an end", "ended later", "ended after silence"],
)
async def test_a_version_that_is_forgotten_asks_for_a_new_list_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scripts: Sequence[Sequence[Step]]
) -> None:
    async with following(tmp_path, *scripts, (Added("new", 40), Silent())) as node:
        await node.until(lambda: "new" in node.view.pods, "what comes after the second list")
    assert len(node.server.lists) == 2
    assert node.server.watches[-1].version == "10"
    assert not node.was_old
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "scripts",
    [
        [(Refused(500),)] * 3,
        [(Refused(403),)] * 3,
        [(Failed(500),)] * 3,
        [(Refused(410),)] * 3,
        [(Failed(410),)] * 3,
        [()] * 9,
        [(Torn(),)] * 9,
    ],
    ids=[
        "refused",
        "forbidden",
        "failed",
        "what was just listed is refused",
        "what was just listed is forgotten",
        "each ends at once",
        "each breaks at once",
    ],
)
async def test_an_error_makes_the_picture_old_and_is_waited_for_longer_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scripts: Sequence[Sequence[Step]]
) -> None:
    async with following(tmp_path, *scripts, (Added("new", 40), Silent())) as node:
        await node.until(lambda: "new" in node.view.pods, "what comes after the errors")
        await node.until(lambda: node.view.pods_known, "that the picture is good again")
    lists = [asked.at for asked in node.server.lists]
    assert len(lists) == 4
    assert node.was_old
    assert len(warnings(caplog)) == 3
    assert all(b - a >= 0.75 * RETRY * 2**i for i, (a, b) in enumerate(itertools.pairwise(lists)))


async def test_a_server_that_names_a_time_is_asked_again_no_sooner(tmp_path: Path) -> None:
    async with following(tmp_path, (Refused(429, retry_after=1),)) as node:
        await node.until(lambda: len(node.server.lists) == 2, "the second list")
    first, second = node.server.lists
    assert second.at - first.at >= 1.0
