"""The sandbox with the chart installed; `make e2e` brings both up before these tests run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from sandbox.binaries import gather_binaries
from sandbox.cache import hold_lock, read_cache_directory
from sandbox.controlplane import build_api
from sandbox.images import TRAINER, decide_image
from sandbox.release import AGENT_NAMESPACE, Cluster
from sandbox.state import CONTEXT, Sandbox
from sandbox.volume import STORAGE_CLASS
from tests.e2e.jobs import LONG_STEPS, condition, long, read_example
from tests.support.api import JOBS
from tests.support.weights import hash_checkpoints

Json = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make e2e` says of a run that a single test cannot know."""
    parser.addoption(
        "--whole", action="store_true", help="the lanes before this one were run in this sandbox"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what failed at once: a run that is cut short never comes to its summary."""
    report = yield
    if report.failed:
        item.config.get_terminal_writer().line(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}")
    return report


class Bench:
    """A person at a terminal: kubectl, eyes on the job, and a process list for what kubectl cannot do."""

    def __init__(self, cluster: Cluster, sandbox: Sandbox, namespace: str) -> None:
        self.cluster = cluster
        self.sandbox = sandbox
        self.namespace = namespace
        self._api = build_api(sandbox.server)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the tests' namespace."""
        return self.cluster.run_kubectl("--namespace", self.namespace, *words, stdin=stdin)

    def apply(self, *bodies: Json) -> None:
        """kubectl apply."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(bodies))

    def read_job(self, name: str) -> Json:
        """A job as `kubectl get gtj NAME -o json` shows it, without starting a program: jobs are looked at twice a second."""
        return self._api.get(f"{JOBS.format(self.namespace)}/{name}")

    def read_pods(self, job: str) -> dict[str, Json]:
        """A job's pods by name, read in the same way."""
        selector = quote(f"greentrain.dev/job-name={job}")
        found = self._api.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}")
        return {p["metadata"]["name"]: p for p in found["items"]}

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
                text = json.dumps(seen, indent=1, default=str)[:4000]
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
            return self.read_job(job)

        seen: Json = self.until(look, met, seconds=seconds, what=f"{job}: {type_}={status} {reason or ''}")
        return seen

    def until_step(self, job: str, step: int, *, seconds: float = 180) -> Json:
        """Wait until a job has reported a step and a checkpoint."""

        def reached(body: Json) -> bool:
            progress = body.get("status", {}).get("progress", {})
            return bool(progress.get("step", 0) >= step and progress.get("checkpoint"))

        seen: Json = self.until(
            lambda: self.read_job(job), reached, seconds=seconds, what=f"{job} at step {step}"
        )
        return seen

    def folder(self, job: str) -> Path:
        """Where a job's checkpoints lie on the shared volume."""
        return self.sandbox.volume / "greentrain" / self.namespace / job

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


def build_bench(namespace: str) -> Bench:
    """A desk in one namespace of the sandbox."""
    sandbox = Sandbox.read()
    return Bench(Cluster(CONTEXT, gather_binaries().kubectl, sandbox.kubeconfig), sandbox, namespace)


def build_volume(bench: Bench) -> Json:
    """A volume of the same folder as the sandbox's one, whose only claim is the desk's own."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": bench.namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "claimRef": {"namespace": bench.namespace, "name": "training"},
            "hostPath": {"path": str(bench.sandbox.volume), "type": "Directory"},
        },
    }


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


@pytest.fixture
def uninterrupted(bench: Bench) -> str:
    """What `Bench.last_weights` says of a `long` job that nothing disturbed; run once for an image, job and processor."""
    job = long(next(b for b in read_example() if b["kind"] == "GreenTrainingJob"))
    job["metadata"]["name"] = name = "e2e-uninterrupted"
    image = decide_image(TRAINER)
    processor = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    digest = hashlib.sha256(f"{json.dumps(job, sort_keys=True)}\0{processor}".encode()).hexdigest()[:12]
    kept = read_cache_directory() / "e2e" / f"weights-{image.tag}-{digest}"
    with hold_lock(kept.parent / "lock"):
        if not kept.exists():
            shutil.rmtree(bench.folder(name), ignore_errors=True)
            bench.apply(job)
            seen = bench.until_condition(name, "Succeeded", seconds=300)
            assert seen["status"]["attemptCount"] == 1
            partial = kept.with_suffix(".partial")
            partial.write_text(bench.last_weights(name))
            partial.rename(kept)
            bench.kubectl("delete", "gtj", name, "--wait")
            shutil.rmtree(bench.folder(name), ignore_errors=True)
    return kept.read_text()
