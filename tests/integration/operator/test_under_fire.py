"""Nothing lost, nothing doubled: jobs go through their lives while requests and watches fail in every way there is.

A proxy stands between the operator and a real kube-apiserver; the test plays the kubelet and talks to the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from greentrain.controller.run import FINISH_SECONDS, FIRST_RESYNCS_SECONDS, Operator, running
from greentrain.controller.settings import Settings
from greentrain.kube.client import ApiError, connect
from sandbox.controlplane import ControlPlane
from sandbox.ports import find_free_ports
from tests.support.api import RefusedError, Server, condition
from tests.support.manifests import build_job, build_template
from tests.support.proxy import (
    Chance,
    Cut,
    Ended,
    Expired,
    Fault,
    Frozen,
    LoseAnswer,
    Proxy,
    Refuse,
    Seen,
    Slow,
    Torn,
)

PATIENCE = 60.0
"""Seconds a step of a story may take under fire: a lost answer costs a second, a silent watch two."""

NEVER = 3600.0

JOBS = "/greentrainingjobs"
PODS = r"/pods\?"
STATUS = "/status"


def pods_of(attempt: int, name: str = "digits") -> set[str]:
    return {f"{name}-worker-{i}-{attempt}" for i in range(2)}


def repr_of(fault: Fault) -> str:
    said = {name: value for name, value in vars(fault).items() if name in ("status", "after")}
    return " ".join([type(fault).__name__, *map(str, said.values())])


@pytest.fixture
async def proxy(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy.start(plane.kubeconfig, tmp_path) as started:
        yield started


@pytest.fixture
def under_fire(settings: Settings, proxy: Proxy) -> Settings:
    """An operator that talks through the proxy and does not wait minutes to notice."""
    return replace(
        settings,
        kubeconfig=str(proxy.kubeconfig),
        resync_interval=1.5,
        stale_after=2.0,
        watch_inactivity=2.0,
    )


class Kubelet:
    """Runs what is there: binds and starts pods, ends and removes those that are being deleted."""

    def __init__(self, server: Server, namespace: str) -> None:
        self._server = server
        self._namespace = namespace
        self.seen: dict[str, str] = {}
        """Pods by UID."""
        self.mixed: list[list[str]] = []
        """Pods of two attempts of one job that were there together."""

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Kubelet]:
        task = asyncio.create_task(self._work())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _work(self) -> None:
        while True:
            pods = await self._server.pods(self._namespace)
            self.seen |= {pod["metadata"]["uid"]: name for name, pod in pods.items()}
            attempts: dict[str, set[str]] = {}
            for pod in pods.values():
                labels = pod["metadata"]["labels"]
                attempts.setdefault(labels["greentrain.dev/job-name"], set()).add(
                    labels["greentrain.dev/attempt"]
                )
            if any(len(found) > 1 for found in attempts.values()):
                self.mixed.append(sorted(pods))
            for name, pod in pods.items():
                with contextlib.suppress(RefusedError):  # gone in between
                    await self._attend(name, pod)
            await asyncio.sleep(0.03)

    async def _attend(self, name: str, pod: dict[str, Any]) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            if pod["status"]["phase"] == "Running":
                await self._server.end_pod(self._namespace, name, 143)
            await self._server.remove_pod(self._namespace, name)
        elif not pod["spec"].get("nodeName"):
            await self._server.run_pod(self._namespace, name)


async def live(server: Server, namespace: str, name: str = "digits") -> None:
    """A job's life: created, a worker dies, restarted, suspended, resumed, done."""

    async def until_running(attempt: int) -> None:
        await server.until(
            lambda: server.job(namespace, name),
            lambda job: (
                condition(job, "Running").get("status") == "True" and job["status"]["attemptCount"] == attempt
            ),
            seconds=PATIENCE,
            what=f"attempt {attempt} of {name} running",
        )

    await server.create_job(namespace, build_job(name))
    await until_running(1)
    await server.end_pod(namespace, f"{name}-worker-1-1", 137)
    await server.end_pod(namespace, f"{name}-worker-0-1", 144)
    await until_running(2)
    await server.patch_job(namespace, name, {"spec": {"runPolicy": {"suspend": True}}})
    await server.until_condition(namespace, name, "Suspended", "True", seconds=PATIENCE)
    await server.patch_job(namespace, name, {"spec": {"runPolicy": {"suspend": False}}})
    await until_running(3)
    for pod in pods_of(3, name):
        await server.end_pod(namespace, pod, 0)
    await server.until_condition(namespace, name, "Succeeded", "True", seconds=PATIENCE)


async def check_life(
    server: Server, namespace: str, kubelet: Kubelet, plane: ControlPlane, name: str = "digits"
) -> None:
    """What a life must leave behind, however it went."""
    job = await server.job(namespace, name)
    assert (job["status"]["attemptCount"], job["status"]["failureCount"]) == (3, 1)
    reasons = [(a["number"], a["reason"]) for a in job["status"]["attempts"]]
    assert reasons == [(1, "Killed"), (2, "SuspendRequested"), (3, "Succeeded")]
    wanted = Counter(pod for attempt in (1, 2, 3) for pod in pods_of(attempt, name))
    assert created_pods(plane, namespace, name) == wanted
    assert kubelet.mixed == []
    events = [e for e in await server.events(namespace) if e["involvedObject"]["name"] == name]
    doubled = {k: n for k, n in Counter((e["reason"], e["message"]) for e in events).items() if n > 1}
    assert doubled == {}
    assert [e["reason"] for e in events].count("Restarting") <= 1


def created_pods(plane: ControlPlane, namespace: str, job: str) -> Counter[str]:
    """How often the API server stored a new pod of each name, by its audit log.

    Where the client was killed before it had the answer the log may say 500 of a pod that was stored; that it was bound
    to a node tells of it all the same.
    """
    told: dict[str | None, Counter[str]] = {None: Counter(), "binding": Counter()}
    for line in plane.audit_log.read_text().splitlines():
        entry = json.loads(line)
        found = entry.get("objectRef", {})
        about = (entry["verb"], found.get("resource"), found.get("namespace"))
        name, kind = found.get("name") or "", found.get("subresource")
        if about == ("create", "pods", namespace) and entry["responseStatus"]["code"] == 201 and kind in told:
            told[kind][name] += name.startswith(f"{job}-worker-")
    return +(told[None] | told["binding"])


@pytest.mark.parametrize("seed", range(10))
async def test_a_job_lives_through_random_faults_on_every_kind_of_request(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, plane: ControlPlane, seed: int
) -> None:
    proxy.chance = Chance(seed)
    async with running(under_fire), Kubelet(server, namespace).at_work() as kubelet:
        await live(server, namespace)
        spoilt = [s for s in proxy.requests if s.fault is not None]
        assert len(spoilt) >= 5, "hardly any fault: the test proved nothing"
    await check_life(server, namespace, kubelet, plane)


async def start(server: Server, namespace: str, workers: int = 2) -> None:
    """A job whose pods run; a kubelet must be at work."""
    await server.create_job(namespace, build_job(workers=workers))
    await server.until_condition(namespace, "digits", "Running", "True", seconds=PATIENCE)


async def test_retry_after_is_respected_whatever_happens_meanwhile(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    refused = proxy.script("POST", PODS, Refuse(429, "TooManyRequests", retry_after=3))
    async with running(under_fire):
        await server.create_job(namespace, build_job(workers=1))
        for i in range(20):  # each edit is an event, and each event asks for a pass
            await server.patch_job(namespace, "digits", {"metadata": {"labels": {"edit": str(i)}}})
            await asyncio.sleep(0.1)
        await server.until_pods(namespace, {"digits-worker-0-1"})
    assert refused.hits == 1
    first, second = [s.time for s in proxy.requests if s.method == "POST" and re.search(PODS, s.path)]
    assert second - first >= 3


async def _read_reasons(server: Server, namespace: str) -> list[str]:
    return sorted(event["reason"] for event in await server.events(namespace))


async def test_a_lost_answer_to_a_creation_ends_with_one_pod(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, plane: ControlPlane
) -> None:
    lost = proxy.script("POST", PODS, LoseAnswer(), times=3)
    proxy.script("GET", PODS, Frozen(), times=None, watch=True)
    async with running(under_fire), Kubelet(server, namespace).at_work():
        await start(server, namespace)
        await server.until(
            lambda: _read_reasons(server, namespace), lambda said: "Running" in said, what="the last event"
        )
    assert lost.hits == 3
    assert created_pods(plane, namespace, "digits") == dict.fromkeys(pods_of(1), 1)
    reasons = await _read_reasons(server, namespace)
    assert reasons == ["Created", "Running"], "a pod that is there already was refused"
    assert (await server.job(namespace, "digits"))["status"]["attemptCount"] == 1


async def test_a_pass_ends_when_all_its_requests_have_so_that_none_lands_in_a_later_one(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    """A creation still under way could land after the next pass has made that pod and somebody has deleted it."""
    proxy.script("POST", PODS, Slow(2))
    proxy.script("POST", PODS, Refuse(500, "InternalError"))
    async with running(under_fire):
        await server.create_job(namespace, build_job())
        await server.until_pods(namespace, pods_of(1))
    assert proxy.count("POST", PODS) == 3


async def test_a_lost_answer_to_a_status_write_is_not_counted_twice(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    """Nor does it wait for the next resync where the watch on jobs is silent: the operator looks."""
    proxy.script("GET", JOBS, Frozen(), times=None, watch=True)
    quiet = replace(under_fire, resync_interval=NEVER, watch_inactivity=NEVER)
    async with running(quiet), Kubelet(server, namespace).at_work():
        await start(server, namespace)
        lost = proxy.script("PATCH", STATUS, LoseAnswer(), times=4)
        await server.end_pod(namespace, "digits-worker-1-1", 137)
        await server.end_pod(namespace, "digits-worker-0-1", 144)
        job = await server.until(
            lambda: server.job(namespace, "digits"),
            lambda job: job["status"]["attemptCount"] == 2 and condition(job, "Running")["status"] == "True",
            seconds=PATIENCE,
        )
    assert lost.hits == 4
    assert proxy.count("GET", "fieldSelector=metadata.name") >= 1
    assert (job["status"]["failureCount"], len(job["status"]["attempts"])) == (1, 2)


@pytest.mark.parametrize(
    "fault",
    [
        Expired(),
        Expired(2),
        Ended(1),
        Torn(1),
        Refuse(409, "Conflict"),
        Refuse(410, "Expired"),
        Refuse(429, "TooManyRequests", retry_after=1),
        Refuse(503, "ServiceUnavailable"),
    ],
    ids=repr_of,
)
async def test_watches_that_fail_are_opened_again_and_bring_what_happened(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, fault: Fault
) -> None:
    rules = [proxy.script("GET", path, fault, times=2, watch=True) for path in (JOBS, PODS)]
    # Only the early resyncs after an opening are left to help; what is new afterwards, the watches alone can bring.
    quiet = replace(under_fire, resync_interval=NEVER, watch_inactivity=NEVER)
    async with running(quiet), Kubelet(server, namespace).at_work():
        await start(server, namespace)
        await server.until(
            lambda: _value(sum(r.hits for r in rules)), lambda hits: hits >= 3, seconds=PATIENCE
        )
        for pod in pods_of(1):
            await server.end_pod(namespace, pod, 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True", seconds=PATIENCE)


async def test_a_watch_that_always_breaks_is_not_opened_all_the_time(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    broken = proxy.script("GET", PODS, Ended(), times=None, watch=True)
    async with running(under_fire), Kubelet(server, namespace).at_work():
        await asyncio.sleep(6)
        assert 3 <= broken.hits <= 20
        await start(server, namespace)


async def _value(value: Any) -> Any:
    return value


def openings(operator: Operator, cause: str) -> float:
    found = re.search(
        rf'greentrain_watch_openings_total{{cause="{cause}"}} ([0-9.]+)', operator.telemetry.render().decode()
    )
    return float(found[1]) if found else 0.0


async def test_a_frozen_watch_is_noticed_and_opened_again(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    frozen = proxy.script("GET", PODS, Frozen(), watch=True)
    async with running(replace(under_fire, watch_inactivity=NEVER)) as operator:
        async with Kubelet(server, namespace).at_work():
            await start(server, namespace)
            await server.until(
                lambda: _value(openings(operator, "stale")), lambda count: count >= 1, seconds=PATIENCE
            )
            for pod in pods_of(1):
                await server.end_pod(namespace, pod, 0)
            await server.until_condition(namespace, "digits", "Succeeded", "True", seconds=PATIENCE)
        assert operator.unhealthy() is None
    assert frozen.hits == 1


async def test_a_watch_that_brings_nothing_is_opened_again_from_where_it_was_without_a_word(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster where nothing changes: Kopf lists once, and then only watches."""
    kinds = (rf"{JOBS}(\?|$)", PODS, r"/services\?", r"/nodepowers(\?|$)")
    for kind in kinds:
        proxy.script("GET", kind, Frozen(), times=2, watch=True)
    quiet = replace(under_fire, resync_interval=NEVER, stale_after=NEVER, watch_inactivity=0.5)
    async with running(quiet) as operator, Kubelet(server, namespace).at_work():
        await server.until(
            lambda: _value([len(watched(proxy, kind)) for kind in kinds]),
            lambda seen: min(seen) >= 3,
            what="a third watch of each kind",
        )
        await start(server, namespace)
        assert (openings(operator, "stale"), openings(operator, "ended")) == (0, 0)
    for kind in kinds:
        # The lists that the operator makes by itself come in pages.
        listed = [
            r.path for r in proxy.requests if re.search(kind, r.path) and r.method == "GET" and not r.watch
        ]
        assert len([path for path in listed if "limit=" not in path]) == 1, kind
        assert len({URL(path).query["resourceVersion"] for path in watched(proxy, kind)[:3]}) == 1, kind
    # What asyncio says of tasks that an earlier test left to the garbage collector is none of this operator's words.
    said = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]
    assert [r.getMessage() for r in said] == []


def watched(proxy: Proxy, kind: str) -> list[str]:
    return [r.path for r in proxy.requests if r.watch and re.search(kind, r.path)]


async def fetch(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_a_watch_that_stays_frozen_fails_liveness_until_it_brings_something(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    proxy.script("GET", "watch=true", Frozen(), times=None, watch=True)
    port = find_free_ports(1)[0]
    impatient = replace(under_fire, http_port=port, watch_inactivity=NEVER)
    numbers = itertools.count()

    async def edit_and_fetch() -> tuple[int, str]:
        await server.patch_job(namespace, "digits", {"metadata": {"labels": {"edit": str(next(numbers))}}})
        return await fetch(port, "/healthz")

    async with running(impatient):
        await server.create_job(namespace, build_job())
        assert (await fetch(port, "/healthz"))[0] == 200
        _, said = await server.until(edit_and_fetch, lambda seen: seen[0] == 503, seconds=PATIENCE)
        assert re.fullmatch(
            rf"the watch on Jobs in namespace {namespace} has brought nothing for \d+ s although the server has "
            r"changed, and opening it again \d+ times did not help\n",
            said,
        )
        assert (await fetch(port, "/readyz"))[0] == 200, "nothing is lost meanwhile: lists bring it"
        assert set(await server.pods(namespace)) == pods_of(1)
        proxy.forgive()
        await server.until(edit_and_fetch, lambda seen: seen[0] == 200, seconds=PATIENCE)


async def test_an_api_server_that_is_away_fails_readiness_and_never_liveness(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    async with running(under_fire) as operator, Kubelet(server, namespace).at_work():
        await start(server, namespace)
        for method in ("GET", "POST", "PATCH", "DELETE"):
            proxy.script(method, "", Cut(), times=None)
            proxy.script(method, "", Cut(), times=None, watch=True)
        proxy.break_streams()
        for pod in pods_of(1):
            await server.end_pod(namespace, pod, 0)

        async def look() -> str:
            assert operator.unhealthy() is None
            return operator.unready() or ""

        said = await server.until(look, lambda reason: reason != "", seconds=PATIENCE)
        assert said.startswith("the API server cannot be read: ")
        proxy.forgive()
        await server.until(look, lambda reason: reason == "", seconds=PATIENCE)
        await server.until_condition(namespace, "digits", "Succeeded", "True", seconds=PATIENCE)
        assert operator.unhealthy() is None


async def test_a_pass_that_hangs_fails_liveness_by_name(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    proxy.script("POST", PODS, Slow(4))
    async with running(replace(under_fire, pass_limit=1.0)) as operator:
        await server.create_job(namespace, build_job(workers=1))
        said = await server.until(lambda: _value(operator.unhealthy()), lambda reason: reason is not None)
        assert re.match(rf"a pass over {namespace}/digits has been running for \d+ s", said)
        await server.until_pods(namespace, {"digits-worker-0-1"})
        await server.until(lambda: _value(operator.unhealthy()), lambda reason: reason is None)


async def test_asked_to_stop_it_first_tells_what_it_has_stored(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    async with running(under_fire), Kubelet(server, namespace).at_work():
        await start(server, namespace, workers=1)
        # The event is still on its way when the stop is asked for, and no later pass would tell it.
        proxy.script("POST", "/events", Slow(1.0), times=None)
        await server.end_pod(namespace, "digits-worker-0-1", 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True")
    assert "Succeeded" in await _read_reasons(server, namespace)


async def test_a_pass_that_hangs_does_not_hold_up_a_stop(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    loop = asyncio.get_running_loop()
    proxy.script("POST", PODS, Slow(20))
    async with running(under_fire):
        await server.create_job(namespace, build_job(workers=1))
        await server.until(lambda: _value(proxy.count("POST", PODS)), lambda count: count == 1)
        asked = loop.time()
    assert FINISH_SECONDS <= loop.time() - asked < 15


async def _until_early_resyncs_are_over(server: Server, proxy: Proxy) -> None:
    """The list with which the operator begins, and those soon after its watches were opened."""
    lists = 1 + len(FIRST_RESYNCS_SECONDS)

    async def count() -> int:
        # NodePowers come last of the kinds; Kopf's own lists have no limit.
        return sum("/nodepowers?limit" in request.path for request in proxy.requests)

    await server.until(count, lambda seen: seen >= lists, seconds=60, what="the early resyncs")
    await asyncio.sleep(1)  # the answer to the last is read


async def test_a_pod_nobody_told_of_ends_before_the_next_attempt_begins(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    """Its creation was never answered and the watch is silent: the operator lists before it begins anew."""
    proxy.script("GET", PODS, Frozen(), times=None, watch=True)
    lost = proxy.script("POST", PODS, LoseAnswer())
    proxy.script("POST", PODS, Refuse(500, "InternalError"), times=None)
    quiet = replace(under_fire, resync_interval=NEVER, watch_inactivity=NEVER)
    async with running(quiet), Kubelet(server, namespace).at_work() as kubelet:
        await _until_early_resyncs_are_over(server, proxy)
        await server.create_job(namespace, build_job(workers=1))
        await server.until_pods(namespace, {"digits-worker-0-1"})
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": True}}})
        await server.until_condition(namespace, "digits", "Suspended", "True", seconds=PATIENCE)
        assert set(await server.pods(namespace)) == {"digits-worker-0-1"}, (
            "known after all: this proves nothing"
        )
        proxy.forgive()
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": False}}})
        await server.until_pods(namespace, set(), seconds=PATIENCE)  # found and deleted
        proxy.break_streams()
        await server.until_pods(namespace, {"digits-worker-0-2"}, seconds=PATIENCE)
    assert lost.hits == 1
    assert kubelet.mixed == []


@pytest.mark.parametrize("conflict", [Refuse(409, "Conflict"), Refuse(500, "InternalError")], ids=repr_of)
async def test_a_deletion_that_did_not_happen_is_tried_again(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, conflict: Fault
) -> None:
    """A conflict of two writers has the status of a deleted pod's successor, and does not mean one."""
    async with running(under_fire), Kubelet(server, namespace).at_work() as kubelet:
        await start(server, namespace)
        refused = proxy.script("DELETE", "/pods/", conflict, times=3)
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": True}}})
        await server.until_condition(namespace, "digits", "Suspended", "True", seconds=PATIENCE)
        assert await server.pods(namespace) == {}
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": False}}})
        await server.until_pods(namespace, pods_of(2))
    assert refused.hits == 3
    assert kubelet.mixed == []


async def test_a_list_whose_continue_token_has_expired_is_begun_again(
    server: Server, namespace: str, proxy: Proxy
) -> None:
    names = [f"pod-{i}" for i in range(7)]
    for name in names:
        labels = {"app.kubernetes.io/managed-by": "greentrain", "greentrain.dev/job-name": "digits"}
        pod = {"metadata": {"name": name, "labels": labels}, "spec": build_template()["spec"]}
        await server.call("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    async with await connect(str(proxy.kubeconfig), page=3) as client:
        expired = proxy.script("GET", "continue=", Refuse(410, "Expired"), times=2)
        items, version = await client.list_pods(namespace)
        assert [item["metadata"]["name"] for item in items] == names
        assert version > 0
        assert expired.hits == 2
        proxy.script("GET", "continue=", Refuse(410, "Expired"), times=None)
        with pytest.raises(ApiError) as refused:
            await client.list_pods(namespace)
        assert (refused.value.status, refused.value.passing) == (410, True)


async def test_events_are_told_later_and_once_where_they_could_not_be_stored(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    proxy.script("POST", "/events", LoseAnswer())
    proxy.script("POST", "/events", Refuse(503, "ServiceUnavailable"))
    proxy.script("POST", "/events", Cut())
    async with running(under_fire), Kubelet(server, namespace).at_work():
        await start(server, namespace)

        await server.until(
            lambda: _read_reasons(server, namespace),
            lambda reasons: reasons == ["Created", "Running"],
            what="each event once",
        )


class Process:
    """The operator as a process of its own, killed and started again."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        self._arguments = [
            *("-m", "greentrain.controller", "--http-port=0", "--log-level=DEBUG"),
            *(f"--namespace={namespace}" for namespace in settings.namespaces),
            f"--kubeconfig={settings.kubeconfig}",
            f"--resync-interval={settings.resync_interval}",
            f"--stale-after={settings.stale_after}",
            f"--watch-inactivity={settings.watch_inactivity}",
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._arguments, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGKILL)

    async def wait(self) -> None:
        assert self._process is not None
        await self._process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """Its log, which must be JSON objects, one a line."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


async def test_killed_at_any_request_of_a_life_it_goes_on_where_it_was(
    server: Server,
    namespace: str,
    under_fire: Settings,
    proxy: Proxy,
    plane: ControlPlane,
    tmp_path: Path,
) -> None:
    """Killed −9 a dozen times, each right after the server has done a write and before the operator knows."""
    chance, kills, wanted = random.Random(7), 0, 12
    process = Process(under_fire, tmp_path / "operator.log")

    def maybe_kill(seen: Seen) -> None:
        nonlocal kills
        if seen.method in ("POST", "PATCH", "DELETE") and kills < wanted and chance.random() < 0.3:
            kills += 1
            process.kill()

    async def keep_alive() -> None:
        while True:
            await process.start()
            await process.wait()

    proxy.done = maybe_kill
    names = [f"job-{i}" for i in range(3)]
    keeper = asyncio.create_task(keep_alive())
    try:
        async with Kubelet(server, namespace).at_work() as kubelet:
            await asyncio.gather(*(live(server, namespace, name) for name in names))
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        process.kill()
        await process.wait()
    assert kills >= 8, "hardly ever killed: the test proved little"
    for name in names:
        await check_life(server, namespace, kubelet, plane, name)


SECRETS = ("hunter2-in-the-environment", "hunter3-as-an-option", "hunter4-in-a-script")


def secretive(name: str, **container: Any) -> dict[str, Any]:
    manifest = build_job(name)
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(
        **{
            "env": [{"name": "PASSWORD", "value": SECRETS[0]}],
            "command": ["sh", "-c", f"login {SECRETS[2]} && train"],
            "args": [f"--token={SECRETS[1]}"],
            **container,
        }
    )
    return manifest


async def test_what_templates_hide_is_in_no_log_line_event_or_status(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, tmp_path: Path
) -> None:
    process = Process(under_fire, tmp_path / "operator.log")
    environment = {"name": "PASSWORD", "value": SECRETS[0]}
    # Servers and webhooks echo what they refuse.
    echo = f'Invalid value: "{SECRETS[0]}": must not be; token {SECRETS[1]!r}'
    proxy.script("POST", PODS, Refuse(422, "Invalid", message=echo), times=None)
    jobs = {
        "echoed": secretive("echoed"),
        "number": secretive("number", env=[{"name": "LEVEL", "value": 5}, environment]),
        "no-list": secretive("no-list", env=SECRETS[0]),
        "no-words": secretive("no-words", args=f"--token={SECRETS[1]}"),
        "misspelt": secretive("misspelt", envv=[environment]),
        "bad-name": secretive("bad-name", env=[{"name": "NOT=A=NAME", "value": SECRETS[0]}]),
    }
    await process.start()
    try:
        for name, manifest in jobs.items():
            await server.create_job(namespace, manifest)
            await server.until(
                partial(server.job, namespace, name),
                lambda job: (
                    condition(job, "Admitted").get("status") == "False"
                    or condition(job, "PodsReady").get("reason") == "CreateRefused"
                ),
                what=f"{name} refused",
            )
            proxy.forgive()  # only the first is refused by script
        await server.create_job(namespace, secretive("fails"))
        async with Kubelet(server, namespace).at_work():
            await server.until_condition(namespace, "fails", "Running", "True")
        await server.end_pod(namespace, "fails-worker-0-1", 1, message=f"PASSWORD={SECRETS[0]}\nboom")
        await server.end_pod(namespace, "fails-worker-1-1", 1, message=f"--token={SECRETS[1]}\nboom")
        await server.until_condition(namespace, "fails", "Restarting", "True")
    finally:
        process.kill()
        await process.wait()
    statuses = [(await server.job(namespace, name))["status"] for name in (*jobs, "fails")]
    events = await server.events(namespace)
    said = json.dumps([process.lines(), statuses, events])
    assert [secret for secret in SECRETS if secret in said] == []
    assert "boom" in said, "what the program said is told"


async def test_an_error_of_the_client_hides_what_the_request_held(
    namespace: str, under_fire: Settings, proxy: Proxy
) -> None:
    proxy.script(
        "POST", PODS, Refuse(422, "Invalid", message=f"token {SECRETS[0]!r} is too long"), times=None
    )
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "digits-worker-0-1", "namespace": namespace},
        "spec": secretive("x")["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"],
    }
    async with await connect(under_fire.kubeconfig) as client:
        with pytest.raises(ApiError, match="is too long") as caught:
            await client.create("Pod", pod)
    assert SECRETS[0] not in str(caught.value)


async def test_a_log_line_hides_what_an_earlier_generation_held(
    server: Server, namespace: str, under_fire: Settings, proxy: Proxy, tmp_path: Path
) -> None:
    """The pods of an earlier generation may still run, so a server may still speak of what is in them."""
    process = Process(under_fire, tmp_path / "operator.log")
    await process.start()
    try:
        await server.create_job(namespace, secretive("digits"))
        await server.until_condition(namespace, "digits", "Created", "True")
        echo = f"webhook failed on {SECRETS[0]}"
        proxy.script("POST", PODS, Refuse(500, "InternalError", message=echo), times=None)
        suspended = build_job(runPolicy={"suspend": True})
        await server.patch_job(namespace, "digits", {"spec": suspended["spec"]})
        await server.until_condition(namespace, "digits", "Suspended", "True")
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": False}}})
        await server.until(
            partial(asyncio.to_thread, process.lines),
            lambda lines: "webhook failed on" in json.dumps(lines),
            what="the error is logged",
        )
    finally:
        process.kill()
        await process.wait()
    assert SECRETS[0] not in json.dumps(process.lines())


async def test_an_operator_that_begins_anew_hides_what_running_pods_were_made_with(
    server: Server, namespace: str, settings: Settings
) -> None:
    """The spec holds it no more, and this operator has never seen the one that did."""
    async with running(settings):
        await server.create_job(namespace, secretive("digits"))
        async with Kubelet(server, namespace).at_work():
            await server.until_condition(namespace, "digits", "Running", "True")
        await server.patch_job(namespace, "digits", {"spec": build_job()["spec"]})
        await server.until_condition(namespace, "digits", "Admitted", "True", "AppliesAtNextAttempt")
    async with running(settings):
        for i in range(2):
            await server.end_pod(namespace, f"digits-worker-{i}-1", 1, message=f"PASSWORD={SECRETS[0]}\nboom")
        await server.until_condition(namespace, "digits", "Restarting", "True")
    told = json.dumps([(await server.job(namespace, "digits"))["status"], await server.events(namespace)])
    assert SECRETS[0] not in told
    assert "boom" in told, "what the program said is told"


async def test_log_lines_are_json_with_job_attempt_decision_and_reason(
    server: Server, namespace: str, under_fire: Settings, tmp_path: Path, plane: ControlPlane
) -> None:
    direct = replace(under_fire, kubeconfig=str(plane.kubeconfig))
    process = Process(direct, tmp_path / "operator.log")
    await process.start()
    try:
        async with Kubelet(server, namespace).at_work():
            await live(server, namespace)
    finally:
        process.kill()
        await process.wait()
    lines = process.lines()
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    about = [line for line in lines if line.get("job") == "digits" and line["namespace"] == namespace]
    story = [(line["attempt"], line["decision"], line.get("reason")) for line in about if "decision" in line]
    for told in (
        (1, "started", "AttemptCreated"),
        (1, "created", None),
        (1, "running", "Training"),
        (1, "restarted", "Killed"),
        (1, "deleted", None),
        (2, "started", "AttemptCreated"),
        (2, "stopping", "StoppingPods"),
        (2, "suspended", "SuspendRequested"),
        (3, "resumed", "Resumed"),
        (3, "succeeded", "Succeeded"),
    ):
        assert told in story
    chatter = [
        line for line in lines if line["logger"].startswith("kopf") and line["level"] in ("INFO", "DEBUG")
    ]
    assert chatter == []
