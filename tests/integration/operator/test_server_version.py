"""The operator as it is shipped refuses an older API server at its start, in words, and no other server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from greentrain.controller.__main__ import OLD_SERVER_EXIT
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from sandbox.controlplane import ControlPlane
from tests.support.api import Server
from tests.support.proxy import Proxy, Refuse

OLD = {
    "major": "1",
    "minor": "31+",
    "gitVersion": "v1.31.14-eks-1a2b3c",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2025-11-11T00:00:00Z",
    "goVersion": "go1.23.12",
    "compiler": "gc",
    "platform": "linux/amd64",
}
"""What such a server answers; none is at hand."""

NONSENSE = "<html>Welcome</html>"


@contextlib.asynccontextmanager
async def start_server(version: str, folder: Path) -> AsyncIterator[tuple[Path, list[str]]]:
    """An HTTP server that answers /version and nothing else: a kubeconfig for it, and the paths it was asked for."""
    asked: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/version":
            return web.Response(text=version, content_type="application/json")
        return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        kubeconfig = folder / "kubeconfig"
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        kubeconfig.write_text(yaml.safe_dump(config))
        yield kubeconfig, asked
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def start_operator(kubeconfig: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The shipped process; it is killed when the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "greentrain.controller", "--http-port=0", f"--kubeconfig={kubeconfig}"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def read_lines(log: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.decode().splitlines()]


async def test_an_older_server_ends_the_process_with_the_reason_and_a_code_of_its_own(tmp_path: Path) -> None:
    async with (
        start_server(json.dumps(OLD), tmp_path) as (kubeconfig, asked),
        start_operator(kubeconfig) as process,
        asyncio.timeout(60),
    ):
        _, log = await process.communicate()
    assert process.returncode == OLD_SERVER_EXIT == 3
    errors = [line for line in read_lines(log) if line["level"] == "ERROR"]
    (error,) = errors
    assert error["message"] == (
        "the API server is Kubernetes v1.31.14-eks-1a2b3c; this operator needs Kubernetes 1.32 or newer: upgrade the"
        " cluster"
    )
    # What the kubelet makes the termination message of.
    assert read_lines(log)[-1] == error
    assert len(log) <= 2048
    assert set(asked) == {"/version"}, "nothing else was asked, let alone done"


async def test_a_server_that_says_no_version_is_not_refused_but_warned_of_once(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    async with (
        start_server(NONSENSE, tmp_path) as (kubeconfig, asked),
        start_operator(kubeconfig) as process,
        asyncio.timeout(60),
    ):
        assert process.stderr is not None
        # It has gone on to the CRD, and tries that again and again.
        while sum("is not installed" in line["message"] for line in lines) < 2:
            lines.append(json.loads(await process.stderr.readline()))
        assert process.returncode is None
    warnings = [line["message"] for line in lines if line["level"] == "WARNING"]
    assert len(warnings) == 1
    assert "version cannot be read, and is not checked" in warnings[0]
    assert asked.count("/version") == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Refuse(403, "Forbidden"), "version cannot be read, and is not checked"),
        (Refuse(503, "ServiceUnavailable"), "the API server cannot be read"),
    ],
    ids=["it may not ask", "the server is in trouble"],
)
async def test_a_server_of_today_whose_version_it_cannot_read_at_once_is_worked_on(
    server: Server,
    settings: Settings,
    plane: ControlPlane,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: Refuse,
    said: str,
) -> None:
    del server  # its namespace and CRDs are there
    async with Proxy.start(plane.kubeconfig, tmp_path) as proxy:
        rule = proxy.script("GET", "^/version$", fault)
        async with running(replace(settings, kubeconfig=str(proxy.kubeconfig))) as operator:
            assert operator.unready() is None
        assert rule.hits == 1
        assert proxy.count("GET", "^/version$") == (1 if fault.status == 403 else 2)
    assert said in caplog.text
