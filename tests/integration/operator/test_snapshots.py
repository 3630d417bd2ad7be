"""What the operator kept of a job's last pass is decided again as it was."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

from greentrain.cli.main import Streams, main
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import JOBS, Server
from tests.support.manifests import build_job


def look(folder: Path) -> dict[str, int]:
    """Permissions by file name; a file that goes or is renamed meanwhile is not there."""
    found = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mode & 0o777
    return found


async def test_what_was_kept_goes_with_its_job(
    server: Server, namespace: str, settings: Settings, tmp_path: Path
) -> None:
    async with running(replace(settings, snapshots=tmp_path)):
        await server.create_job(namespace, build_job("digits"))
        await server.until_pods(namespace, {f"digits-worker-{i}-1" for i in range(2)})
        assert look(tmp_path)
        await server.call("DELETE", f"{JOBS.format(namespace)}/digits")
        await server.until(
            lambda: asyncio.to_thread(look, tmp_path), lambda left: not left, what="its file is gone"
        )


async def test_a_kept_pass_is_decided_again(
    server: Server, namespace: str, settings: Settings, tmp_path: Path
) -> None:
    async with running(replace(settings, snapshots=tmp_path)):
        await server.create_job(namespace, build_job("digits", energy={"budget": "1kWh"}))
        await server.until_pods(namespace, {f"digits-worker-{i}-1" for i in range(2)})
        for i in range(2):
            await server.run_pod(namespace, f"digits-worker-{i}-1")
        await server.until_condition(namespace, "digits", "Running", "True")
    file = tmp_path / f"{namespace}.digits.json"
    assert look(tmp_path) == {file.name: 0o600}
    streams = Streams(lambda: b"", io.StringIO(), io.StringIO())
    assert main(["replay", str(file)], streams) == 0
    assert isinstance(streams.stdout, io.StringIO)
    shown = json.loads(streams.stdout.getvalue())
    assert shown["job"] == f"{namespace}/digits"
    assert (shown["createPods"], shown["deletePods"], shown["recordFirst"]) == ([], [], False)
    job = await server.job(namespace, "digits")
    assert shown["status"]["attempts"][0]["startTime"] == job["status"]["attempts"][0]["startTime"]
    assert {c["type"]: c["status"] for c in shown["status"]["conditions"]} == {
        c["type"]: c["status"] for c in job["status"]["conditions"]
    }
