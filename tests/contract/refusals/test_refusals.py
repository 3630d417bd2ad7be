"""What an API server's refusal means: whether to try again, and whether what was to be deleted is gone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.core.lifecycle.decision import Decision, Deletion
from greentrain.kube.apply import apply_effects
from greentrain.kube.cache import Cache, Key
from greentrain.kube.client import ApiError, Client, connect
from tests.support.snapshots import job_of

Json = dict[str, Any]
KEY = Key("team", "digits")
DELETED = "uid-of-the-deleted"


def refusal(status: int, reason: str = "Refused", message: str = "refused by the test") -> Json:
    return {"kind": "Status", "code": status, "reason": reason, "message": message}


def object_of(uid: str) -> Json:
    return {
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": "digits-worker-0-1",
            "uid": uid,
            "resourceVersion": "7",
            "labels": {"greentrain.dev/job-name": "digits"},
            "ownerReferences": [
                {"kind": "GreenTrainingJob", "name": "digits", "uid": "uid-1", "controller": True}
            ],
        },
    }


@contextlib.asynccontextmanager
async def refusing(folder: Path, status: int, there: str | None) -> AsyncIterator[Client]:
    """A client of a server that refuses each deletion and eviction, and shows one object of that UID, or none."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            return web.json_response(
                refusal(status, "Conflict" if status == 409 else "Refused"), status=status
            )
        if "fieldSelector" in request.query:
            items = [] if there is None else [object_of(there)]
            return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})
        if there is None:
            return web.json_response(refusal(404, "NotFound"), status=404)
        return web.json_response(object_of(there))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        kubeconfig = folder / "kubeconfig"
        cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
            "current-context": "fake",
        }
        kubeconfig.write_text(yaml.safe_dump(config))
        async with await connect(str(kubeconfig)) as client:
            yield client
    finally:
        await runner.cleanup()


Call = Callable[[Client], Awaitable[object]]
CALLS: dict[str, Call] = {
    "a pod's deletion": lambda client: client.delete_pod("team", "digits-worker-0-1", DELETED),
    "a pod's eviction": lambda client: client.evict_pod("team", "digits-worker-0-1", DELETED),
    "a job's deletion": lambda client: client.delete_job("team", "digits", DELETED),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("there", "gone"),
    [(DELETED, False), ("uid-of-a-successor", True), (None, True)],
    ids=["it is there", "another is there", "none is there"],
)
async def test_a_conflict_says_that_it_is_gone_only_where_it_is(
    tmp_path: Path, call: Call, there: str | None, gone: bool
) -> None:
    async with refusing(tmp_path, 409, there) as client:
        with pytest.raises(ApiError) as refused:
            await call(client)
    assert (refused.value.status in (404, 409)) == gone
    if not gone:
        assert refused.value.passing, "two writers met at it: to be tried again"


ANSWERS = [
    (404, False, True),
    (409, None, True),
    (409, False, True),
    (409, True, False),
    *((status, True, False) for status in (400, 403, 405, 408, 410, 422, 429, 500, 502, 503, 504)),
]
"""Status, whether that very object is there (None: another one is), and whether it is to be taken for gone."""


@pytest.mark.parametrize(("status", "there", "gone"), ANSWERS)
async def test_a_pod_whose_deletion_is_refused_is_still_known_to_be_there(
    tmp_path: Path, status: int, there: bool | None, gone: bool
) -> None:
    cache = Cache()
    cache.put("Pod", object_of(DELETED))
    decision = Decision(GreenTrainingJobStatus(), (Deletion("digits-worker-0-1", DELETED),))
    await delete(tmp_path, status, there, DELETED, gone=gone, cache=cache, decision=decision)
    assert [body["metadata"]["uid"] for body in cache.owned("Pod", KEY, "uid-1")] == (
        [] if gone else [DELETED]
    )


@pytest.mark.parametrize(("status", "there", "gone"), ANSWERS)
async def test_a_job_whose_deletion_is_refused_is_still_known_to_be_there(
    tmp_path: Path, status: int, there: bool | None, gone: bool
) -> None:
    job, cache = job_of(), Cache()
    meta = {"namespace": job.namespace, "name": job.name, "uid": job.uid, "resourceVersion": "7"}
    cache.put("Job", {"metadata": meta})
    decision = Decision(GreenTrainingJobStatus(), delete_job=True)
    await delete(tmp_path, status, there, job.uid, gone=gone, cache=cache, decision=decision)
    assert (cache.job(KEY) is None) == gone


async def delete(
    folder: Path, status: int, there: bool | None, uid: str, *, gone: bool, cache: Cache, decision: Decision
) -> None:
    """Apply the decision where each deletion is refused so; it is an error where what was to go has not gone."""
    async with refusing(folder, status, uid if there else "another" if there is None else None) as client:
        if gone:
            assert (await apply_effects(client, cache, job_of(), decision)).changed
        else:
            with pytest.raises(ApiError):
                await apply_effects(client, cache, job_of(), decision)


CREATES = Decision(GreenTrainingJobStatus(), service={"metadata": {"namespace": "team", "name": "digits"}})


@pytest.mark.parametrize("status", [400, 403, 405, 422])
async def test_a_creation_that_is_refused_for_good_is_an_obstacle(tmp_path: Path, status: int) -> None:
    async with refusing(tmp_path, status, None) as client:
        outcome = await apply_effects(client, Cache(), job_of(), CREATES)
    assert [(o.kind, o.name, o.reason) for o in outcome.obstacles] == [("Service", "digits", "Refused")]


@pytest.mark.parametrize("status", [408, 409, 410, 429, 500, 502, 503, 504])
async def test_a_creation_that_may_succeed_later_is_an_error_and_no_obstacle(
    tmp_path: Path, status: int
) -> None:
    async with refusing(tmp_path, status, None) as client:
        with pytest.raises(ApiError) as refused:
            await apply_effects(client, Cache(), job_of(), CREATES)
    assert refused.value.status == status
