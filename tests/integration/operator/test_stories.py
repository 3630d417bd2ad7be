"""The scenario tier's seeded stories once more, ten of them, played against a real kube-apiserver.

Kubelet, users and restarts of the operator act as in tests/scenario; here the server stores, and watches tell late.
Only time is not the server's: the operator's clock runs ahead as the story tells, so that no delay is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from greentrain.api.conditions import Type, is_true
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.controller.clock import SteadyClock
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from greentrain.core.seen.pods import Pod, PodState, parse_pod
from greentrain.core.seen.snapshot import parse_status
from greentrain.core.seen.times import format_time
from tests.scenario.test_gangs import disturb
from tests.scenario.world import GIVEN_UP, LOST, NODES
from tests.support.api import RefusedError, Server
from tests.support.manifests import build_job

Json = dict[str, Any]
T = TypeVar("T")
SEEDS = range(10)
STEPS = 60
RESTARTS = 0.2
"""Share of the story's kills that restart the operator here; a start takes a second, and each seed still has some."""


class Stage:
    """A job and its pods on the server, with the interface of the scenario tier's world."""

    def __init__(self, server: Server, namespace: str, settings: Settings, seed: int) -> None:
        self.random = random.Random(seed)
        self.cut_after: int | None = None
        self.manifest = build_job()
        self.pods: dict[str, Json] = {}
        self.status = GreenTrainingJobStatus()
        self.deleted = False
        self.silent: set[str] = set()
        self.story: list[str] = []
        self._server = server
        self._namespace = namespace
        self._settings = settings
        self._steady = SteadyClock()
        self._ahead = timedelta()
        self._loop = asyncio.get_running_loop()
        self._operator: contextlib.AsyncExitStack | None = None
        self._touched = 0

    # -- the operator -------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        return self._steady() + self._ahead

    async def begin(self) -> None:
        self._operator = contextlib.AsyncExitStack()
        await self._operator.enter_async_context(running(self._settings, clock=self.clock))

    async def end_operator(self) -> None:
        if self._operator is not None:
            await self._operator.aclose()
            self._operator = None

    def operate(self) -> None:
        """Give the operator a moment; a cut of the story restarts it."""
        if self.cut_after is not None and self.random.random() < RESTARTS:
            self.say("operator restarted")
            self._do(self.end_operator())
            self._do(self.begin())
        self._do(asyncio.sleep(0.05))

    # -- everybody else -----------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        self.story.append(line)

    def _do(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run a request of the story; what it was about may be gone or changed meanwhile."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise
            return None

    def parsed(self) -> list[Pod]:
        return [p for p in map(parse_pod, self.pods.values()) if p is not None]

    def look(self) -> None:
        """Read the pods, then the status: what it counts is never behind them."""
        self.pods = self._do(self._server.pods(self._namespace)) or {}
        job = self._do(self._server.job(self._namespace, "digits"))
        self.deleted = job is None
        if job is not None:
            self.status, _ = parse_status(job.get("status"))

    def start(self, name: str) -> None:
        answering = sorted(set(NODES) - self.silent)
        if answering:
            self._do(self._server.run_pod(self._namespace, name, node=self.random.choice(answering)))

    def end(self, name: str, code: int, reason: str = "") -> None:
        self.say(f"{name} exits {code}")
        self._do(self._server.end_pod(self._namespace, name, code, reason=reason))

    def evict(self, name: str) -> None:
        self.say(f"{name} evicted")
        self._set_status(name, {"phase": "Failed", "reason": "Evicted", "message": "low on memory"})

    def refuse(self, name: str) -> None:
        words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
        self._set_status(name, {"conditions": [words]})

    def lose_node(self, node: str) -> None:
        self.say(f"{node} stops answering")
        self.silent.add(node)

    def mark_lost(self, node: str) -> None:
        self.say(f"{node} is marked")
        for name in self._running_on(node):
            self._set_status(name, {"conditions": LOST})

    def give_up(self, node: str, *, says_why: bool) -> None:
        self.say(f"{node} is given up")
        for name in self._running_on(node):
            path = f"/api/v1/namespaces/{self._namespace}/pods/{name}"
            self._do(self._server.call("DELETE", path, {"gracePeriodSeconds": 30}))
            self._set_status(name, {"conditions": [*LOST, GIVEN_UP] if says_why else LOST})

    def return_node(self, node: str, *, rebooted: bool) -> None:
        self.say(f"{node} answers again" + (", rebooted" if rebooted else ""))
        self.silent.discard(node)
        for name in self._running_on(node):
            if rebooted:
                self.end(name, 255, "Unknown")
            else:
                self._set_status(name, {"conditions": None})

    def delete_node(self, node: str) -> None:
        self.say(f"{node} deleted")
        self.silent.discard(node)
        for name in [p.name for p in self.parsed() if p.node == node]:
            self.remove(name)

    def _running_on(self, node: str) -> list[str]:
        return sorted(p.name for p in self.parsed() if p.node == node and p.state is PodState.RUNNING)

    def _set_status(self, name: str, status: Json) -> None:
        self._do(self._server.set_pod_status(self._namespace, name, status))

    def remove(self, name: str) -> None:
        self.say(f"{name} gone")
        self._do(self._server.remove_pod(self._namespace, name))

    def edit(self, manifest: Json) -> None:
        self.say("spec edited")
        if self._do(self._replace(lambda job: job.update(spec=manifest["spec"]))):
            self.manifest = manifest

    def pass_time(self, seconds: float) -> None:
        """The operator's clock goes on; a touch of the job stands for the timers that would have fired."""
        self._ahead += timedelta(seconds=seconds)
        self._touched += 1
        note = {"touched": str(self._touched)}
        self._do(self._replace(lambda job: job["metadata"].update(annotations=note)))

    def step_clock(self, seconds: float) -> None:
        self.pass_time(max(0.0, seconds))

    async def _replace(self, change: Callable[[Json], object]) -> bool:
        for _ in range(20):
            job = await self._server.job(self._namespace, "digits")
            change(job)
            path = f"/apis/greentrain.dev/v1alpha1/namespaces/{self._namespace}/greentrainingjobs/digits"
            try:
                await self._server.call("PUT", path, job)
            except RefusedError as error:
                if error.status != 409:
                    raise
                continue
            return True
        raise AssertionError("the job changed too often")

    @property
    def finished(self) -> bool:
        return any(is_true(self.status.conditions, t) for t in (Type.SUCCEEDED, Type.FAILED))


class Watchman:
    """What must hold in every picture of the server."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._counts = (0, 0, 0)
        self._finished = False

    def check(self) -> None:
        stage = self._stage
        stage.look()
        if stage.deleted:  # with a time to live of 0 nobody sees it finished
            policy = stage.manifest["spec"].get("runPolicy", {})
            assert "ttlSecondsAfterFinished" in policy, f"deleted without a time to live\n{self._told()}"
            return
        status = stage.status
        living = [p for p in stage.parsed() if not p.ended]
        assert len(living) == len({p.rank for p in living}), f"two pods of one rank alive\n{self._told()}"
        assert len({p.attempt for p in stage.parsed()}) <= 1, f"pods of two attempts\n{self._told()}"
        newest = max((p.attempt for p in stage.parsed()), default=0)
        assert newest <= status.attempt_count, f"a pod of an attempt nobody wrote down\n{self._told()}"
        counts = (status.attempt_count, status.failure_count, status.infrastructure_failure_count)
        assert all(n >= o for n, o in zip(counts, self._counts, strict=True)), f"counts fell\n{self._told()}"
        assert stage.finished or not self._finished, f"finished no more\n{self._told()}"
        self._counts, self._finished = counts, stage.finished

    def _told(self) -> str:
        pods = [f"{p.name} {p.uid} {p.state}" for p in self._stage.parsed()]
        return "\n".join([*self._stage.story, *pods, self._stage.status.model_dump_json(indent=1)])


def play(stage: Stage) -> None:
    """A story from its beginning to the job's end."""
    watchman = Watchman(stage)
    for _ in range(STEPS):
        stage.look()
        if stage.deleted:
            return
        disturb(stage)
        watchman.check()
    bring_to_rest(stage, watchman)


def bring_to_rest(stage: Stage, watchman: Watchman) -> None:
    for node in sorted(stage.silent):
        stage.return_node(node, rebooted=stage.random.random() < 0.5)
    spec = stage.manifest["spec"]
    if "enregy" in spec or spec.get("runPolicy", {}).get("suspend"):
        stage.edit(build_job(workers=2, runPolicy={"backoffLimit": 1000}))
    for _ in range(120):
        watchman.check()
        if stage.finished or stage.deleted:
            break
        for pod in stage.parsed():
            if pod.terminating:
                stage.remove(pod.name)
            elif pod.state.value == "pending":
                stage.start(pod.name)
            elif pod.state.value == "running" and stage.status.phase == "Running":
                stage.end(pod.name, 0)
        stage.operate()
        stage.pass_time(60)
        stage.operate()
    else:
        raise AssertionError(f"did not come to rest at {format_time(stage.clock())}\n{watchman._told()}")


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_story_of_the_scenario_tier_holds_on_a_real_server(
    server: Server, namespace: str, settings: Settings, seed: int
) -> None:
    stage = Stage(server, namespace, settings, seed)
    await server.create_job(namespace, stage.manifest)
    await stage.begin()
    try:
        await asyncio.to_thread(play, stage)
    finally:
        await stage.end_operator()
