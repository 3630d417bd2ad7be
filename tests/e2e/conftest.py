"""The sandbox with the chart installed; `make e2e` brings both up before these tests run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.binaries import gather_binaries
from sandbox.images import ROOT
from sandbox.release import AGENT_NAMESPACE, Cluster
from sandbox.state import CONTEXT, Sandbox
from tests.support.weights import hash_checkpoints

Json = dict[str, Any]
NAMESPACE = "default"
"""Where the claim of the sandbox's one ReadWriteMany volume lives."""


PLAIN_IMAGE = "localhost/greentrain/own-script:dev"
"""Python and TensorFlow without anything of ours."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what failed at once: a run that is cut short never comes to its summary."""
    report = yield
    if report.failed:
        item.config.get_terminal_writer().line(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}")
    return report


class Bench:
    """A person at a terminal: kubectl, eyes on the job, and a process list for what kubectl cannot do."""

    def __init__(self, cluster: Cluster, sandbox: Sandbox) -> None:
        self.cluster = cluster
        self.sandbox = sandbox

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the tests' namespace."""
        return self.cluster.run_kubectl("--namespace", NAMESPACE, *words, stdin=stdin)

    def apply(self, *bodies: Json) -> None:
        """kubectl apply."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(bodies))

    def read(self, *words: str) -> Json:
        """kubectl get … -o json."""
        found: Json = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def until(
        self, look: Callable[[], Any], accept: Callable[[Any], bool], *, seconds: float, what: str
    ) -> Any:
        """Poll until what is seen is accepted."""
        end = time.monotonic() + seconds
        while True:
            seen = look()
            if accept(seen):
                return seen
            if time.monotonic() > end:
                text = json.dumps(seen, indent=1)[:4000]
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{text}\n{self._evidence()}")
            time.sleep(0.5)

    def _evidence(self) -> str:
        parts = [self.kubectl("get", "gtj,pods", "-o", "wide"), self.kubectl("get", "events")]
        return "\n".join(p[-4000:] for p in parts)

    def until_condition(
        self, job: str, type_: str, status: str = "True", *, reason: str | None = None, seconds: float = 180
    ) -> Json:
        """Wait for a job's condition; returns the job."""

        def met(body: Json) -> bool:
            found = condition(body, type_)
            return found.get("status") == status and reason in (None, found.get("reason"))

        def look() -> Json:
            return self.read("gtj", job)

        seen: Json = self.until(look, met, seconds=seconds, what=f"{job}: {type_}={status} {reason or ''}")
        return seen

    def until_step(self, job: str, step: int, *, seconds: float = 180) -> Json:
        """Wait until a job has reported a step and a checkpoint."""

        def reached(body: Json) -> bool:
            progress = body.get("status", {}).get("progress", {})
            return bool(progress.get("step", 0) >= step and progress.get("checkpoint"))

        seen: Json = self.until(
            lambda: self.read("gtj", job), reached, seconds=seconds, what=f"{job} at step {step}"
        )
        return seen

    def folder(self, job: str) -> Path:
        """Where a job's checkpoints lie on the shared volume."""
        return self.sandbox.volume / "greentrain" / NAMESPACE / job

    def last_weights(self, job: str) -> str:
        """The SHA-256 over all variables of model, optimizer and step in the last checkpoint of a `long` job."""
        return hash_checkpoints(self.folder(job))[LONG_STEPS]

    def kill_container(self, pod_uid: str, word: str) -> None:
        """SIGKILL the process of a pod whose command line holds that word, as a crash would."""
        killed = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                in_pod = f"pod{pod_uid}" in (folder / "cgroup").read_text()
                if in_pod and word in (folder / "cmdline").read_text():
                    os.kill(int(folder.name), signal.SIGKILL)
                    killed += 1
        assert killed, f"no process of pod {pod_uid} has {word} in its command line"

    def operator_image(self) -> str:
        """The image the installed operator runs."""
        image: str = self.operator_pod()["spec"]["containers"][0]["image"]
        return image

    def agent_image(self) -> str:
        """The image the installed agents run."""
        found = self.cluster.read_json("--namespace", AGENT_NAMESPACE, "get", "daemonsets")
        assert found is not None
        (agents,) = found["items"]
        image: str = agents["spec"]["template"]["spec"]["containers"][0]["image"]
        return image

    def agent_pod(self, node: str) -> Json:
        """The agent's pod on a node."""
        where = f"--field-selector=spec.nodeName={node}"
        found = self.cluster.read_json("--namespace", AGENT_NAMESPACE, "get", "pods", where)
        assert found is not None
        agent: Json
        (agent,) = (p for p in found["items"] if not p["metadata"].get("deletionTimestamp"))
        return agent

    def operator_pod(self) -> Json:
        """The operator's pod."""
        found = self.cluster.read_json(
            "--namespace", "greentrain-system", "get", "pods", "-l", "app.kubernetes.io/name=greentrain"
        )
        assert found is not None
        running = [p for p in found["items"] if not p["metadata"].get("deletionTimestamp")]
        assert len(running) == 1
        body: Json = running[0]
        return body


def condition(job: Json, type_: str) -> Json:
    """A job's condition, empty where it has none."""
    found = (c for c in job.get("status", {}).get("conditions", []) if c["type"] == type_)
    return next(found, {})


LONG_STEPS = 400


def long(job: Json) -> Json:
    """The same job, equal to the bit from run to run and slowed down so that there is time to disturb it."""
    container = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["args"] = [
        *("digits", f"--steps={LONG_STEPS}", "--checkpoint-every=20"),
        *("--step-delay-seconds=0.1", "--deterministic"),
    ]
    return job


def apart(job: Json) -> Json:
    """The same job, its workers on different nodes where there is room."""
    name = name_of(job)
    term = {
        "labelSelector": {"matchLabels": {"greentrain.dev/job-name": name}},
        "topologyKey": "kubernetes.io/hostname",
    }
    rule = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }
    job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] = rule
    return job


def name_of(job: Json) -> str:
    """metadata.name."""
    name: str = job["metadata"]["name"]
    return name


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The sandbox, with an empty namespace for these tests."""
    sandbox = Sandbox.read()
    cluster = Cluster(CONTEXT, gather_binaries().kubectl, sandbox.kubeconfig)
    desk = Bench(cluster, sandbox)
    desk.kubectl("delete", "gtj", "--all", "--wait")
    desk.apply(*(b for b in read_example() if b["kind"] == "PersistentVolumeClaim"))
    yield desk
    desk.kubectl("delete", "gtj", "--all", "--wait=false")


def read_example() -> list[Json]:
    """The objects of examples/digits.yaml."""
    return list(yaml.safe_load_all((ROOT / "examples/digits.yaml").read_text()))


@pytest.fixture(scope="session")
def uninterrupted(bench: Bench) -> Iterator[str]:
    """What `Bench.last_weights` says of a `long` job that nothing disturbed."""
    job = long(next(b for b in read_example() if b["kind"] == "GreenTrainingJob"))
    job["metadata"]["name"] = name = "e2e-uninterrupted"
    shutil.rmtree(bench.folder(name), ignore_errors=True)
    bench.apply(job)
    seen = bench.until_condition(name, "Succeeded", seconds=300)
    assert seen["status"]["attemptCount"] == 1
    yield bench.last_weights(name)
    bench.kubectl("delete", "gtj", name, "--wait")
    shutil.rmtree(bench.folder(name), ignore_errors=True)


@pytest.fixture
def removed(bench: Bench) -> Iterator[list[str]]:
    """Names of jobs to remove afterwards."""
    names: list[str] = []
    yield names
    bench.kubectl("delete", "gtj", *names, "--ignore-not-found", "--wait")


@pytest.fixture
def digits(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Json]:
    """The job of examples/digits.yaml under a name of the test's own; its files are removed before and after."""
    job = next(b for b in read_example() if b["kind"] == "GreenTrainingJob")
    name = f"e2e-{zlib.crc32(request.node.name.encode()):08x}"
    job["metadata"]["name"] = name
    folder = bench.folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    yield job
    bench.kubectl("delete", "gtj", name, "--ignore-not-found", "--wait")
    shutil.rmtree(folder, ignore_errors=True)
