"""An API server of a few lines: lists, and watches that do what the protocol allows and what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

PODS = "/api/v1/pods"

Json = dict[str, Any]


def build_pod(uid: str, version: int) -> Json:
    return {"metadata": {"namespace": "team", "name": uid, "uid": uid, "resourceVersion": str(version)}}


@dataclass(frozen=True)
class Added:
    """A watch brings a pod."""

    uid: str
    version: int


@dataclass(frozen=True)
class Bookmark:
    """A watch says how far it is."""

    version: int


@dataclass(frozen=True)
class Quiet:
    """A watch brings nothing for so long."""

    seconds: float


@dataclass(frozen=True)
class Silent:
    """A watch brings nothing more and stays open."""


@dataclass(frozen=True)
class Torn:
    """The connection breaks in the middle of an event."""


@dataclass(frozen=True)
class Refused:
    """The watch is not opened at all."""

    status: int
    retry_after: int | None = None


@dataclass(frozen=True)
class Failed:
    """The server ends the watch with an error event."""

    code: int


Step = Added | Bookmark | Quiet | Silent | Torn | Refused | Failed


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    at: float
    watch: bool
    version: str | None
    bookmarks: bool


@dataclass
class ApiServer:
    """Lists what `pods` holds, at `version`; each watch on pods plays the next script, and after the last stays silent.

    A script that comes to its end ends its watch as the server may at any time.
    """

    pods: list[Json]
    version: int
    scripts: list[Sequence[Step]]
    asked: list[Asked] = field(default_factory=list)
    kubeconfig: Path = Path()

    @property
    def lists(self) -> list[Asked]:
        return [a for a in self.asked if not a.watch]

    @property
    def watches(self) -> list[Asked]:
        return [a for a in self.asked if a.watch]

    @contextlib.asynccontextmanager
    async def start(self, folder: Path) -> AsyncIterator[ApiServer]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.kubeconfig = folder / "kubeconfig"
            self.kubeconfig.write_text(_kubeconfig(runner.addresses[0][1]))
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") == "true"
        ours = request.path == PODS
        if ours:
            self.asked.append(
                Asked(
                    asyncio.get_running_loop().time(),
                    watch,
                    request.query.get("resourceVersion"),
                    request.query.get("allowWatchBookmarks") == "true",
                )
            )
        if not watch:
            items = self.pods if ours else []
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        return await self._play(request, self.scripts.pop(0) if ours and self.scripts else (Silent(),))

    async def _play(self, request: web.Request, script: Sequence[Step]) -> web.StreamResponse:
        if script and isinstance(refused := script[0], Refused):
            headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
            return web.json_response({"kind": "Status"}, status=refused.status, headers=headers)
        response = web.StreamResponse()
        await response.prepare(request)
        for step in script:
            match step:
                case Added(uid, version):
                    await _write(response, "ADDED", build_pod(uid, version))
                case Bookmark(version):
                    await _write(response, "BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
                case Failed(code):
                    await _write(response, "ERROR", {"kind": "Status", "code": code, "reason": "Expired"})
                case Quiet(seconds):
                    await asyncio.sleep(seconds)
                case Torn():
                    await response.write(b'{"type": "ADD')
                    assert request.transport is not None
                    request.transport.abort()
                case _:
                    await asyncio.Event().wait()
        return response


async def _write(response: web.StreamResponse, kind: str, body: Json) -> None:
    await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")


def _kubeconfig(port: int) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "agent", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "agent"}}],
            "current-context": "fake",
        }
    )
