"""A node around the agent as it is shipped: a process of its own, and everything it meets as real as it gets here.

The cards are simulated below NVML and run on the machine's clock, the kubelet is a socket, pods and NodePower are objects
of a real API server, and the exact meter says what is true. Tests play scheduler, kubelet and operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from greentrain.agent.caps import FILE as CAPS
from greentrain.api.nodepower import PodAsk
from greentrain.energy.account import NodeAccount
from greentrain.quantities import parse_power_cap
from sandbox.controlplane import CLEAN_ENVIRONMENT
from sandbox.ports import find_free_ports
from sandbox.simgpu import cards as simulated
from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import PICOJOULES, Card
from sandbox.simgpu.meter import Meter
from tests.contract.kubelet.fakes import (
    LIST,
    FakeKubelet,
    build_container,
    build_devices,
    build_list,
    build_pod,
)
from tests.support.api import MERGE, RefusedError, Server
from tests.support.manifests import build_job

Json = dict[str, Any]
NODE_POWERS = "/apis/greentrain.dev/v1alpha1/nodepowers"
PATIENCE_SECONDS = 60.0


@dataclass
class Pod:
    """A pod that holds cards."""

    name: str
    uid: str
    cards: tuple[int, ...]
    job_uid: str | None
    devices: tuple[str, ...] = ()
    """How its device plugin names what it holds, where that is not by the cards' UUIDs."""

    def key(self, segment: int = 0) -> str:
        return f"{self.uid}/{segment}"


class AgentProcess:
    """One life of an agent."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, port: int) -> None:
        self._process = process
        self._log = log
        self._port = port

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    def said(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def maps(self, path: Path) -> bool:
        """Whether a file is part of its memory, as the simulated cards are while NVML is open."""
        return str(path) in Path(f"/proc/{self._process.pid}/maps").read_text()

    async def wait(self) -> int:
        """Wait until it ends by itself; its exit code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._process.wait()

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send it a signal and wait; its exit code."""
        if self.lives:
            self._process.send_signal(number)
        return await self.wait()

    async def fetch(self, path: str) -> tuple[int, str]:
        """One page of its own; 0 while nobody listens."""
        url = f"http://127.0.0.1:{self._port}{path}"
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""


class Node:
    """One node with its cards, its kubelet, its objects and the agents that have lived on it."""

    def __init__(
        self, name: str, folder: Path, server: Server, kubeconfig: Path, profiles: Sequence[str | Card]
    ) -> None:
        self.name = name
        self.folder = folder
        self.server = server
        self.kubeconfig = kubeconfig
        self.cards = simulated.create(folder / "state", profiles, seed=len(name) * 1000 + ord(name[-1]))
        self.meter = Meter(self.cards)
        self.kubelet = FakeKubelet(folder / "kubelet.sock", {LIST: build_list()})
        self.driver = folder / "nvidia"
        self.journal = folder / "journal"
        self.powercap = folder / "powercap"
        self.cgroups = folder / "cgroups"
        self.lives: list[AgentProcess] = []
        self._held: list[Pod] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def set_up(
        cls, name: str, folder: Path, server: Server, kubeconfig: Path, profiles: Sequence[str | Card]
    ) -> AsyncIterator[Node]:
        """A node until the block ends, with a namespace of its name."""
        node = cls(name, folder, server, kubeconfig, profiles)
        await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        await node.kubelet.start()
        try:
            yield node
        except Exception as error:
            for life in node.lives:
                error.add_note(life.said()[-3000:])
            error.add_note(json.dumps(await node.status(), indent=1)[:6000])
            raise
        finally:
            for life in node.lives:
                await life.end()
            await node.kubelet.stop()
            node.cards.close()
            with contextlib.suppress(RefusedError):
                await server.call("DELETE", f"{NODE_POWERS}/{name}")

    # -- agents -------------------------------------------------------------------------------------------

    async def start_agent(
        self,
        *,
        library: Path | None = None,
        state: Path | None = None,
        kubeconfig: Path | None = None,
        report_interval: int = 2,
        without_library: bool = False,
        arguments: Sequence[str] = (),
    ) -> AgentProcess:
        """Start `python -m greentrain.agent` as its container does, with what else is said to it."""
        environment = {**CLEAN_ENVIRONMENT, "NODE_NAME": self.name}
        if not without_library:
            environment["LD_LIBRARY_PATH"] = str(library or apply_libraries().folder)
            environment["GREENTRAIN_SIMGPU_STATE"] = str(state or self.cards.path)
        port = find_free_ports(1)[0]
        command = [sys.executable, "-m", "greentrain.agent"]
        for name, value in {
            "--journal": self.journal,
            "--driver-module": self.driver,
            "--kubelet-socket": self.kubelet.path,
            "--cgroup-root": self.cgroups,
            "--powercap-root": self.powercap,
            "--report-interval": report_interval,
            "--http-port": port,
            "--kubeconfig": kubeconfig or self.kubeconfig,
        }.items():
            command += [name, str(value)]
        command += arguments
        if shutil.which("setpriv"):  # a test run that is killed must not leave agents behind
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        log = self.folder / f"agent-{len(self.lives)}.log"
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, cwd=self.folder, stdout=stream, stderr=stream
            )
        self.lives.append(AgentProcess(process, log, port))
        return self.lives[-1]

    def read_journal(self) -> NodeAccount:
        """The account as it lies on the disk."""
        return NodeAccount.from_json((self.journal / "account.json").read_bytes())

    def read_caps(self) -> Json:
        """The journal of caps as it lies on the disk; empty where there is none."""
        path = self.journal / CAPS
        return dict(json.loads(path.read_text())) if path.exists() else {}

    # -- pods and cards -----------------------------------------------------------------------------------

    async def begin_pod(
        self,
        name: str,
        cards: tuple[int, ...] = (0,),
        *,
        job: str | None = None,
        devices: tuple[str, ...] = (),
    ) -> Pod:
        """The pod is bound to this node, gets its cards and runs; a job of that name is made where there is none."""
        owner = await self._apply_job(job) if job is not None else None
        meta: Json = {"name": name, "ownerReferences": [owner] if owner else []}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [{"name": "tensorflow", "image": "x"}]},
        }
        made = await self.server.call("POST", f"/api/v1/namespaces/{self.name}/pods", body)
        return await self.take_pod(made, cards, devices=devices)

    async def take_pod(self, made: Json, cards: tuple[int, ...], *, devices: tuple[str, ...] = ()) -> Pod:
        """A pod that was made is bound to this node, gets its cards and runs."""
        meta = made["metadata"]
        owner = next(iter(meta.get("ownerReferences", ())), None)
        pod = Pod(meta["name"], meta["uid"], cards, owner["uid"] if owner else None, devices)
        self._held.append(pod)
        for card in cards:
            self.meter.hold(card, pod.uid)
        self._list()
        await self.server.run_pod(self.name, pod.name, node=self.name)
        return pod

    async def _apply_job(self, name: str) -> Json:
        try:
            job = await self.server.create_job(self.name, build_job(name))
        except RefusedError as error:
            if error.status != 409:
                raise
            job = await self.server.job(self.name, name)
        return {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }

    async def end_pod(self, pod: Pod, exit_code: int = 0) -> None:
        """Its container ends, and its cards are free."""
        self._held.remove(pod)
        for card in pod.cards:
            self.cards.set_load(card, 0.0)
            self.meter.hold(card, None)
        self._list()
        await self.server.end_pod(self.name, pod.name, exit_code)

    def _list(self) -> None:
        entries = []
        for pod in self._held:
            names = pod.devices or [self.cards.read_card(card).uuid for card in pod.cards]
            devices = build_devices("nvidia.com/gpu", *names)
            entries.append(build_pod(self.name, pod.name, build_container("tensorflow", devices)))
        self.kubelet.answers[LIST] = build_list(*entries)

    def joules(self, pod: Pod) -> float:
        """What is true of a pod."""
        return sum(self.meter.joules(card, pod.uid) for card in pod.cards)

    def limit(self, card: int = 0) -> float:
        """Watts a card's power limit is set to."""
        return self.cards.read_card(card).limit_watts

    async def until_limits(self, *watts: float, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the node's first cards have these power limits."""
        await until(
            lambda: tuple(map(self.limit, range(len(watts)))) == watts,
            what=f"limits of {watts} W",
            seconds=seconds,
        )

    def load_driver(self) -> None:
        """The kernel's driver is loaded, the one that was loaded is not any more."""
        new = self.driver.with_name("nvidia-new")
        new.mkdir()  # while the old one is there, lest the new one gets its number
        if self.driver.exists():
            self.driver.rmdir()
            self.cards.reload_driver()
        new.rename(self.driver)

    def board(self) -> float:
        """What is true of all cards."""
        return sum(self.meter.total(card) for card in self.cards) / PICOJOULES

    def peak(self, pod: Pod) -> float:
        """Watts its cards draw at full load."""
        profiles = simulated.read_profiles()
        return sum(profiles[self.cards.read_card(card).profile].full_watts for card in pod.cards)

    async def spend(self, pod: Pod, joules: float) -> None:
        """Wait until the pod has used so much more."""
        begin = self.joules(pod)
        await until(lambda: self.joules(pod) - begin >= joules, what=f"{joules} J of {pod.name}")

    # -- what is told -------------------------------------------------------------------------------------

    async def status(self) -> Json:
        """NodePower's status; empty where there is none."""
        try:
            body = await self.server.call("GET", f"{NODE_POWERS}/{self.name}")
        except RefusedError as error:
            if error.status == 404:
                return {}
            raise
        return dict(body.get("status") or {})

    async def until_told(
        self, accept: Callable[[Json], Any], what: str, *, seconds: float = PATIENCE_SECONDS
    ) -> Json:
        """Wait for a status."""
        end = time.monotonic() + seconds
        while True:
            seen = await self.status()
            if seen and accept(seen):
                return seen
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            await asyncio.sleep(0.25)

    async def ask(self, *caps: tuple[Pod, str]) -> None:
        """The operator's word on power: these caps and no others."""
        asked = []
        for pod, text in caps:
            cap = parse_power_cap(text)
            entry = PodAsk(
                uid=pod.uid,
                namespace=self.name,
                name=pod.name,
                cap_milliwatts=cap.milliwatts,
                cap_percent=cap.percent,
            )
            asked.append(entry.model_dump(by_alias=True, exclude_none=True))
        await self.server.call(
            "PATCH", f"{NODE_POWERS}/{self.name}", {"spec": {"pods": asked}}, content_type=MERGE
        )

    async def settle(self, *keys: str) -> None:
        """The operator's word."""
        await self.server.call(
            "PATCH", f"{NODE_POWERS}/{self.name}", {"spec": {"settled": list(keys)}}, content_type=MERGE
        )


async def until(check: Callable[[], bool], *, what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(0.1)


def find_cap(status: Json, card: int = 0) -> Json:
    """What is told of a card's cap; empty where none is asked for."""
    gpus = status.get("gpus", [])
    return dict(gpus[card].get("cap") or {}) if len(gpus) > card else {}


def find_entry(status: Json, key: str) -> Json:
    """A pod's entry by UID/segment; empty where it is not told of."""
    found = (p for p in status.get("pods", []) if f"{p['uid']}/{p['segment']}" == key)
    return next(found, {})


def joules_of(status: Json, key: str) -> int:
    """A pod's GPU joules."""
    return int(find_entry(status, key).get("gpuJoules", 0))


def condition_of(status: Json, type_: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found: Json = next((c for c in status.get("conditions", []) if c["type"] == type_), {})
    return found.get("status", ""), found.get("reason", "")


def message_of(status: Json, type_: str) -> str:
    """What a condition says to people."""
    return next((str(c["message"]) for c in status.get("conditions", []) if c["type"] == type_), "")


def parts_of(status: Json) -> int:
    """Joules of all that a node's GPU energy is divided into."""
    pods = sum(p["gpuJoules"] for p in status.get("pods", []))
    return int(pods + status["idleJoules"] + status["unattributedJoules"] + status["settledJoules"])


def boards_of(status: Json) -> int:
    """Joules of all cards."""
    return sum(int(g["joules"]) for g in status.get("gpus", []))


def allowed(true: float, peak: float) -> float:
    """How far the agent may be off: 1 %, or two seconds of the highest draw."""
    return max(0.01 * true, 2 * peak)


def build_kubeconfig_to_nowhere(kubeconfig: Path, folder: Path, url: str) -> Path:
    """The same rights at a server that is away."""
    path = folder / "kubeconfig-nowhere"
    path.write_text(kubeconfig.read_text().replace(url, f"https://127.0.0.1:{find_free_ports(1)[0]}"))
    path.chmod(0o600)
    return path


def forget(folder: Path) -> None:
    """The node's disk loses a folder."""
    shutil.rmtree(folder)
