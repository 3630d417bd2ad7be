"""Whatever one job holds, the others go through their lives, and the operator does too."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import signal
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from greentrain.controller.run import Operator, running
from greentrain.controller.settings import Settings
from sandbox.controlplane import ControlPlane
from tests.support.api import JOBS, MERGE, RefusedError, Server, condition, container_status
from tests.support.corpus import Hostile, load_corpus
from tests.support.manifests import build_job
from tests.support.operators import OperatorProcess, asked

Json = dict[str, Any]

HOLE = "@"
"""What a test puts where a text comes that Python itself could not write."""

LONGEST_CALLBACK_SECONDS = 2.0
"""How long the event loop may be held by one callback, and a request for /healthz be unanswered."""

MOST_MIB = 64.0
"""By how much the operator may grow."""

BATCH = 45
"""Hostile objects at once, beside a healthy job."""

WIDE = 34
"""Workers of the first healthy job: more than there are connections, so that those are in the memory held before."""

POSTS = 4
"""Requests under way at once: the largest objects keep the API server busy for a while."""

LOOK_SECONDS = 0.3
"""How often all events of a batch are read."""

CORPUS = Path(__file__).parent / "hostile"

AT = "spec.tfReplicaSpecs.Worker.template"
DEEP = "[" * 1350 + "]" * 1350
"""2.7 KB: more than the 1,000 levels of Python's decoder."""


def fill(body: Json, text: str) -> str:
    return json.dumps(body).replace(f'"{HOLE}"', text)


async def until_refused(server: Server, namespace: str, name: str, *words: str) -> None:
    """By its event: the job itself may be too deep for a test to read."""

    async def said() -> list[str]:
        events = await server.events(namespace)
        return [
            e["message"]
            for e in events
            if e["reason"] == "InvalidSpec" and e["involvedObject"]["name"] == name
        ]

    await server.until(
        said, lambda found: any(all(w in m for w in words) for m in found), what=f"{name} refused: {words}"
    )


@contextlib.asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """Fails where a callback of this event loop, and so of the operator in it, takes longer than it may."""
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            begun = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - begun)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
    assert longest < LONGEST_CALLBACK_SECONDS


@contextlib.asynccontextmanager
async def sound(operator: Operator) -> AsyncIterator[None]:
    """Fails where a watch has ended by itself: all of them are opened again then, and changes come late."""
    yield
    assert b'greentrain_watch_openings_total{cause="start"} 1.0' in operator.telemetry.render()
    assert b'cause="ended"' not in operator.telemetry.render()


async def begin(server: Server, namespace: str, name: str, *, workers: int = 2) -> dict[str, Json]:
    """A job whose pods run."""
    await server.create_job(namespace, build_job(name, workers=workers))
    pods = {}
    for pod in [f"{name}-worker-{i}-1" for i in range(workers)]:
        pods[pod] = await until_pod(server, namespace, pod)
        await server.run_pod(namespace, pod)
    await server.until_condition(namespace, name, "Running", "True")
    return pods


async def until_pod(server: Server, namespace: str, name: str) -> Json:
    async def look() -> Json | None:
        try:
            return await server.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    pod: Json = await server.until(look, bool, what=f"pod {name}")
    return pod


async def end(server: Server, namespace: str, name: str, *, workers: int = 2) -> None:
    """Its program is done."""
    for i in reversed(range(workers)):
        await server.end_pod(namespace, f"{name}-worker-{i}-1", 0)
    await server.until_condition(namespace, name, "Succeeded", "True")


def batches(corpus: Sequence[Hostile]) -> Iterator[Sequence[Hostile]]:
    return (corpus[i : i + BATCH] for i in range(0, len(corpus), BATCH))


class Corpus:
    """Hostile objects on their way to an operator."""

    def __init__(self, server: Server, namespace: str) -> None:
        self._server = server
        self._namespace = namespace
        self._jobs = JOBS.format(namespace)
        self._victims: dict[str, dict[str, Json]] = {}

    async def send(self, batch: Sequence[Hostile]) -> None:
        """Create and patch; what the API server itself must refuse, it refuses."""
        turns = asyncio.Semaphore(POSTS)

        async def send_one(hostile: Hostile) -> tuple[Hostile, str]:
            async with turns:
                if hostile.patch:
                    victim = await begin(self._server, self._namespace, hostile.name, workers=1)
                    self._victims[hostile.name] = victim
                return hostile, await self._post(hostile)

        for hostile, said in await asyncio.gather(*map(send_one, batch)):
            known = bool(said) == bool(hostile.server) and all(word in said for word in hostile.server)
            assert known, f"{hostile.name}: the API server says {said[:2000] or 'nothing'}"

    async def _post(self, hostile: Hostile) -> str:
        """What the API server says where it refuses it."""
        try:
            if hostile.patch:
                path = f"{self._jobs}/{hostile.name}"
                await self._server.send("PATCH", path, hostile.body, content_type=MERGE)
            else:
                await self._server.send("POST", self._jobs, hostile.body)
        except RefusedError as error:
            return str(error)
        return ""

    async def settle(self, batch: Sequence[Hostile]) -> None:
        """Wait until of each came what must come of it."""
        waiting = {hostile.name: hostile for hostile in batch if not hostile.server}

        async def look() -> dict[str, list[str]]:
            await asyncio.sleep(LOOK_SECONDS)
            told = await self._read_events()
            for hostile in list(waiting.values()):
                with contextlib.suppress(RefusedError):  # no such pod yet
                    if await self._is_settled(hostile, told[hostile.name]):
                        del waiting[hostile.name]
            return {name: told[name] for name in waiting}

        await self._server.until(look, lambda left: not left, seconds=30, what="what must come of each")

    async def _is_settled(self, hostile: Hostile, told: list[str]) -> bool:
        if hostile.admitted is None:
            return any(all(word in message for word in hostile.refused) for message in told)
        if hostile.pods:
            pods = f"/api/v1/namespaces/{self._namespace}/pods"
            await self._server.call("GET", f"{pods}/{hostile.name}-worker-{hostile.pods - 1}-1")
        job = await self._server.job(self._namespace, hostile.name)
        told = [*told, *(c.get("message", "") for c in job.get("status", {}).get("conditions", ()))]
        return condition(job, "Admitted").get("status") == "True" and all(
            any(word in message for message in told) for word in hostile.admitted
        )

    async def _read_events(self) -> dict[str, list[str]]:
        told: dict[str, list[str]] = collections.defaultdict(list)
        for event in await self._server.events(self._namespace):
            told[event["involvedObject"]["name"]].append(event["message"])
        return told

    async def check(self, corpus: Sequence[Hostile]) -> None:
        """What ran, runs; no refused job has begun; no event has a secret, or a character that a terminal obeys."""
        told = await self._read_events()
        hidden = {hostile.name: hostile.hidden for hostile in corpus}
        for name, messages in told.items():
            for message in messages:
                assert not [
                    c for c in message if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"
                ], name
                assert not any(word in message for word in hidden.get(name, ())), name
        for hostile in corpus:
            if hostile.hidden and hostile.admitted is not None:
                job = await self._server.job(self._namespace, hostile.name)
                text = json.dumps(job["status"])
                assert not any(word in text for word in hostile.hidden), hostile.name
        for hostile in corpus:
            begun = [message for message in told[hostile.name] if message.startswith("attempt ")]
            assert not begun or hostile.patch or hostile.admitted is not None, hostile.name
        for victim in self._victims.values():
            for name, pod in victim.items():
                found = await until_pod(self._server, self._namespace, name)
                assert found["metadata"]["uid"] == pod["metadata"]["uid"], name
                assert "deletionTimestamp" not in found["metadata"], name

    async def remove(self, corpus: Sequence[Hostile]) -> None:
        """Leave nothing: other tests share the API server."""
        for hostile in corpus:
            if '"finalizers"' in hostile.body and not hostile.server:
                patch = {"metadata": {"finalizers": None}}
                with contextlib.suppress(RefusedError):  # never sent, where the test has failed before
                    await self._server.call(
                        "PATCH", f"{self._jobs}/{hostile.name}", patch, content_type=MERGE
                    )
        await self._server.send("DELETE", self._jobs, "{}")


async def test_a_corpus_of_hostile_objects_harms_neither_the_shipped_operator_nor_the_jobs_beside_them(
    server: Server, namespace: str, plane: ControlPlane
) -> None:
    corpus = list(load_corpus(CORPUS))
    sent = Corpus(server, namespace)
    operator = OperatorProcess(plane.kubeconfig, namespace)

    async def live(name: str, workers: int = 2) -> None:
        await begin(server, namespace, name, workers=workers)
        await end(server, namespace, name, workers=workers)

    try:
        await operator.start()
        await operator.until_ready()
        await live("before", workers=WIDE)
        for across in (signal.SIGKILL, signal.SIGTERM):
            await begin(server, namespace, f"across-{across.name.lower()}")
        held = operator.resident_mib()
        operator.forget_peak()
        with asked(operator.url) as answers:
            for number, batch in enumerate(batches(corpus)):
                await begin(server, namespace, f"beside-{number}")
                await sent.send(batch)
                await sent.settle(batch)
                await end(server, namespace, f"beside-{number}")
        assert 'cause="ended"' not in await operator.read_metrics()
        grown = {"with the corpus": operator.peak_mib() - held}
        for across in (signal.SIGKILL, signal.SIGTERM):
            await operator.end(across)
            await operator.start()
            await operator.until_ready()
            with asked(operator.url) as again:
                await end(server, namespace, f"across-{across.name.lower()}")
                await live(f"after-{across.name.lower()}")
            answers.longest = max(answers.longest, again.longest)
            answers.failed += again.failed
            grown[f"after {across.name}"] = operator.peak_mib() - held
        await sent.check(corpus)
    finally:
        await operator.end()
        await sent.remove(corpus)
    print(f"held {held:.0f} MiB, grown by {grown}; longest answer {answers.longest:.2f} s of {answers.count}")
    assert not answers.failed
    assert answers.longest <= LONGEST_CALLBACK_SECONDS
    assert max(grown.values()) <= MOST_MIB, grown
    assert operator.errors() == []


async def test_an_edit_that_makes_a_running_job_too_deep_leaves_its_attempt_alone(
    server: Server, namespace: str, settings: Settings
) -> None:
    template = {"spec": {"affinity": HOLE}}
    patch = {"spec": {"tfReplicaSpecs": {"Worker": {"template": template}}}}
    job = f"{JOBS.format(namespace)}/digits"
    async with responsive(), running(settings) as operator, sound(operator):
        pods = await begin(server, namespace, "digits")
        await server.send("PATCH", job, fill(patch, DEEP), content_type=MERGE)
        await until_refused(
            server, namespace, "digits", f"{AT}.spec.affinity[0][0]", "goes on as it was started"
        )
    async with running(settings):
        await begin(server, namespace, "other")
        found = await server.pods(namespace)
        for name, pod in pods.items():
            assert found[name]["metadata"]["uid"] == pod["metadata"]["uid"]
            assert "deletionTimestamp" not in found[name]["metadata"]
        await server.send("PATCH", job, fill(patch, "null"), content_type=MERGE)
        await server.until_condition(namespace, "digits", "Admitted", "True")
        await end(server, namespace, "digits")


async def test_a_wide_job_is_made_whole(server: Server, namespace: str, settings: Settings) -> None:
    """More pods than there are connections, each with the addresses of all."""
    async with responsive(), running(settings):
        await server.create_job(namespace, build_job("wide", workers=70))
        pods = await server.until_pods(namespace, {f"wide-worker-{i}-1" for i in range(70)})
    for i in (0, 69):
        env = {e["name"]: e.get("value") for e in pods[f"wide-worker-{i}-1"]["spec"]["containers"][0]["env"]}
        config = json.loads(env["TF_CONFIG"])
        assert len(config["cluster"]["worker"]) == 70
        assert config["task"] == {"type": "worker", "index": i}


DATES = {
    "zero": "0000-06-01T00:00:00Z",
    "unknown": "1970-01-01T00:00:00Z",
    "last": "9999-12-31T23:59:59Z",
    "beyond": "9999-12-31T23:59:59-12:00",  # stored as of the year 10000
}
GRACES = {"longest": 2**62, "ages": 10**9}


async def test_no_date_and_no_grace_period_keeps_a_job_from_being_stopped(
    server: Server, namespace: str, settings: Settings
) -> None:
    """A kubelet writes a pod's times; whoever may delete a pod says with what grace period, and the server takes any."""

    def state_of(name: str, state: str, **more: Any) -> Json:
        date = DATES.get(name, "2026-01-01T00:00:00Z")
        found = container_status(
            "Running" if state == "running" else "Failed", {state: {"startedAt": date, **more}}
        )
        stop = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        return {**found, "conditions": [{**stop, "lastTransitionTime": date}]}

    async def live(name: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}-worker-0-1"
        await server.until_condition(namespace, name, "Created", "True")
        await server.until(lambda: server.pods(namespace), lambda pods: f"{name}-worker-0-1" in pods)
        await server.run_pod(namespace, f"{name}-worker-0-1")
        await server.set_pod_status(namespace, f"{name}-worker-0-1", state_of(name, "running"))
        await server.until_condition(namespace, name, "Running", "True")
        if name in GRACES:
            await server.call("DELETE", path, {"gracePeriodSeconds": GRACES[name]})
        await server.patch_job(namespace, name, {"spec": {"runPolicy": {"suspend": True}}})
        await server.until_condition(namespace, name, "Suspended", "False", "StoppingPods")
        if name in GRACES:
            await server.until(
                lambda: server.pods(namespace),
                lambda pods: pods[f"{name}-worker-0-1"]["metadata"]["deletionGracePeriodSeconds"] == 30,
                what="a grace period that is the pod's own",
            )
        ended = state_of(name, "terminated", exitCode=0, finishedAt=DATES.get(name))
        await server.set_pod_status(namespace, f"{name}-worker-0-1", ended)
        # The operator's own deletion of a pod that has ended removes it at once.
        with contextlib.suppress(RefusedError):
            await server.remove_pod(namespace, f"{name}-worker-0-1")
        await server.until_condition(namespace, name, "Suspended", "True")

    names = [*DATES, *GRACES]
    async with running(settings) as operator:
        for name in names:
            manifest = build_job(name, workers=1, runPolicy={"activeDeadlineSeconds": 315_360_000})
            await server.create_job(namespace, manifest)
        await begin(server, namespace, "healthy")
        await asyncio.gather(*map(live, names))
        await end(server, namespace, "healthy")
        assert b"greentrain_reconcile_failing{" not in operator.telemetry.render()
