"""`greentrain replay` prints what a stored pass decides."""

from __future__ import annotations

import io
import json

import pytest

from greentrain.cli.main import Streams, main
from greentrain.core.seen.stored import dump_snapshot
from tests.support.snapshots import at, job_of, pod, seen


def run(content: bytes, *arguments: str) -> tuple[int, str, str]:
    streams = Streams(lambda: content, io.StringIO(), io.StringIO())
    code = main(["replay", *(arguments or ("-",))], streams)
    assert isinstance(streams.stdout, io.StringIO)
    assert isinstance(streams.stderr, io.StringIO)
    return code, streams.stdout.getvalue(), streams.stderr.getvalue()


def test_a_job_that_is_new_has_its_attempt_recorded_and_its_pods_made() -> None:
    code, out, said = run(dump_snapshot(seen(job_of(), service=False), now=at(5)))
    assert (code, said) == (0, "")
    shown = json.loads(out)
    assert shown["job"] == "team/digits"
    assert (shown["recordFirst"], shown["createService"]) == (True, "digits")
    assert shown["createPods"] == ["digits-worker-0-1", "digits-worker-1-1"]
    assert shown["status"]["attempts"][0]["number"] == 1
    assert shown["statusChanged"] is True


def test_pods_of_no_attempt_are_deleted() -> None:
    stray = pod(0, attempt=3)
    _, out, _ = run(dump_snapshot(seen(job_of(), stray, pod(1, attempt=2)), now=at(5)))
    assert json.loads(out)["deletePods"] == ["digits-worker-1-2"]


@pytest.mark.parametrize(
    ("content", "file", "words"),
    [
        (b"{}", "-", "-: is no snapshot of this version: now: Field required"),
        (b"", "/none.json", "/none.json: no such file or directory; name a file that can be read"),
    ],
)
def test_what_cannot_be_read_is_said(content: bytes, file: str, words: str) -> None:
    code, out, said = run(content, file)
    assert (code, out, said.strip()) == (2, "", words)
