"""`make demo`: from a bare machine to a trained model, on a real Kubernetes, with every step said aloud.

It runs in the sandbox unless `GREENTRAIN_CONTEXT` names another cluster's context; then it says where it is going, needs
`IMAGE_REPOSITORY` to push the images to, and touches nothing outside that context, its own namespace and the operator's.
Agents, whose pods are privileged and run on every node, are installed there only when `GREENTRAIN_AGENT=1` asks for them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import binaries, environment, images, packages, release
from sandbox.cache import read_cache_directory
from sandbox.images import Image
from sandbox.release import Cluster
from sandbox.room import Need, check_room
from sandbox.shell import SandboxError
from sandbox.state import CONTEXT, Sandbox, read_node_count
from sandbox.steps import Step, format_duration, run_steps
from sandbox.up import bring_up, describe_use

JOB = "budgeted"
MANIFEST = images.ROOT / "examples" / "budgeted.yaml"
JOB_SECONDS = 900.0
"""How long the job may take before the demo gives up; it takes about a minute on two idle cores."""
GONE_SECONDS = 120.0
NODE_DISK = 1_500_000_000
"""Bytes a node's images, logs and pods take."""
MEMORY = 4_000_000_000
"""Bytes the cluster and the demo's job take."""
POLL_SECONDS = 1.0

SANDBOX_VALUES: Mapping[str, object] = {
    # A job of a minute is worth following closely.
    "progressIntervalSeconds": 2,
    "agent.reportIntervalSeconds": 10,
    # The simulated cards: their NVML library, and beside it the state that every user of the library maps and writes.
    "agent.driver.libraryPath": "/opt/greentrain-simgpu",
    "agent.driver.readOnly": False,
    # The nodes are one machine and share its /var/lib, but one agent acts per journal; this folder is each node's own.
    "agent.journal.hostPath": "/var/lib/kubelet/greentrain",
}
"""The chart's values in the sandbox."""

CONTEXT_VARIABLE = "GREENTRAIN_CONTEXT"
NAMESPACE_VARIABLE = "GREENTRAIN_NAMESPACE"
REPOSITORY_VARIABLE = "IMAGE_REPOSITORY"
STORAGE_CLASS_VARIABLE = "GREENTRAIN_STORAGE_CLASS"
AGENT_VARIABLE = "GREENTRAIN_AGENT"
GPU = "                  nvidia.com/gpu: 1\n"
"""The example's line that asks for a card."""
LIMITS = (
    "  energy:\n    budget: 10Wh\n    onExhausted: Suspend\n    warnAtPercent: [50, 80]\n"
    "  emissions:\n    budget: 5gCO2e\n    zone: DE\n"
    "  power:\n    cap: 70%\n"
)
"""The example's lines that set budgets and a cap."""
DEFAULT_NAMESPACE = "greentrain-demo"


@dataclass(frozen=True)
class Target:
    """Where the demo runs: the sandbox, or a user's context with the repository its nodes pull from."""

    context: str
    namespace: str
    repository: str | None = None
    storage_class: str | None = None
    agent: bool = False
    """Whether agents are installed in a user's context; in the sandbox they always are."""

    @property
    def is_sandbox(self) -> bool:
        """Whether it is our own sandbox."""
        return self.repository is None


def parse_target(environ: Mapping[str, str]) -> Target:
    """Where the environment variables say the demo shall run.

    Raises:
        SandboxError: another context was asked for without a repository to push the images to, or the variable for
            agents says neither 1 nor 0.
    """
    context = environ.get(CONTEXT_VARIABLE, "").strip()
    if not context:
        return Target(CONTEXT, "default")
    repository = environ.get(REPOSITORY_VARIABLE, "").strip().rstrip("/")
    if not repository:
        raise SandboxError(
            f"{CONTEXT_VARIABLE} is «{context}», and its nodes must pull the images from somewhere: give"
            f" {REPOSITORY_VARIABLE}=REGISTRY/PATH that you may push to, or unset {CONTEXT_VARIABLE} to use the sandbox."
        )
    agent = environ.get(AGENT_VARIABLE, "").strip()
    if agent not in ("", "0", "1"):
        raise SandboxError(
            f"{AGENT_VARIABLE} is «{agent}»; give 1 to install agents on every node, or unset it."
        )
    namespace = environ.get(NAMESPACE_VARIABLE, "").strip() or DEFAULT_NAMESPACE
    storage_class = environ.get(STORAGE_CLASS_VARIABLE, "").strip() or None
    return Target(context, namespace, repository, storage_class, agent == "1")


def build_manifest(text: str, target: Target, trainer: str) -> str:
    """The example as it is applied: in the sandbox as it stands, elsewhere with that cluster's image and storage class.

    Where agents are not asked for, neither are GPUs, budgets nor a cap: nothing there would measure them.

    Raises:
        SandboxError: the example no longer has what is to be replaced.
    """
    if target.is_sandbox:
        return text
    image = f"image: {images.TRAINER}:{images.DEVELOPMENT_TAG}"
    storage = f"  storageClassName: {CONTEXT}\n"
    for expected in (image, storage, GPU, LIMITS):
        if expected not in text:
            raise SandboxError(
                f"{MANIFEST} does not say «{expected.strip()}», which {CONTEXT_VARIABLE} replaces; restore it."
            )
    chosen = f"  storageClassName: {target.storage_class}\n" if target.storage_class else ""
    chosen_text = text.replace(image, f"image: {trainer}").replace(storage, chosen)
    return chosen_text if target.agent else chosen_text.replace(GPU, "").replace(LIMITS, "")


# --- Following the job -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What is printed of a job: one line when it changes, and how it ended."""

    line: str
    notes: tuple[str, ...]
    """Conditions that speak up, as `Type: message`."""
    finished: bool
    failed: bool


SPOKEN = ("Admitted", "PodsReady", "Restarting", "Suspended", "Failed")
"""Conditions whose message a person following a job wants to read when it is news."""

TROUBLES = ("Unschedulable", "ImageUnavailable", "ContainerNotStarted", "CreateRefused")
"""Reasons of PodsReady=False that do not pass by waiting; «1 of 2 pods ready» does."""

_CALM = {
    "Admitted": "True",
    "PodsReady": "True",
    "Restarting": "False",
    "Suspended": "False",
    "Failed": "False",
}


def build_view(job: Mapping[str, Any]) -> View:
    """What to print of a GreenTrainingJob as the API server returns it."""
    status = job.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or []}

    def is_true(kind: str) -> bool:
        return bool(conditions.get(kind, {}).get("status") == "True")

    progress = status.get("progress") or {}
    # A column without a value, <none> or <unknown>, is left out of the line.
    display = {k: v for k, v in (status.get("display") or {}).items() if not v.startswith("<")}
    words = [status.get("phase") or "waiting for the operator"]
    if display.get("reason") not in (None, words[0]):
        words[0] += f" ({display['reason']})"
    if display.get("workers"):
        words.append(f"workers {display['workers']}")
    if status.get("attemptCount", 0) > 1:
        words.append(f"attempt {status['attemptCount']}")
    if progress.get("totalSteps"):
        words.append(
            f"step {progress.get('step', 0)} of {progress['totalSteps']} ({progress.get('percent', 0)} %)"
        )
    elif progress.get("step"):
        words.append(f"step {progress['step']}")
    words += [f"{name} {value}" for name, value in sorted((progress.get("metrics") or {}).items())]
    checkpoint = progress.get("checkpoint") or {}
    if "step" in checkpoint:
        words.append(f"checkpoint at {checkpoint['step']}")
    if display.get("energy"):
        words.append(f"energy {display['energy']}")
    if display.get("budget"):
        words.append(f"budget {display['budget']}")
    if display.get("emissions"):
        words.append(f"CO2e {display['emissions']}")
    if display.get("cap"):
        words.append(f"cap {display['cap']}")
    notes = tuple(
        f"{kind}: {conditions[kind]['message']}"
        for kind in SPOKEN
        if kind in conditions
        and conditions[kind].get("status") not in (_CALM[kind], "Unknown")
        and conditions[kind].get("message")
        and (kind != "PodsReady" or conditions[kind].get("reason") in TROUBLES)
    )
    if is_true("PowerCapped"):
        notes = (*notes, f"PowerCapped: {conditions['PowerCapped'].get('message', '')}")
    failed = is_true("Failed")
    refused = conditions.get("Admitted", {}).get("status") == "False"
    return View(", ".join(words), notes, failed or refused or is_true("Succeeded"), failed or refused)


def gather_views(cluster: Cluster, namespace: str, seconds: float) -> Iterator[View]:
    """The job's view about once a second until it has finished.

    Raises:
        SandboxError: it vanished, or had not finished after `seconds`.
    """
    deadline = time.monotonic() + seconds
    missed = 0
    while time.monotonic() < deadline:
        job = cluster.read_json("--namespace", namespace, "get", "greentrainingjob", JOB)
        # The API server may be away for a moment; a job that is not there ten times in a row is gone.
        missed = missed + 1 if job is None else 0
        if missed >= 10:
            raise SandboxError(
                f"The job {JOB} is not in {namespace} any more; it was deleted. Run make demo again."
            )
        if job is not None:
            view = build_view(job)
            yield view
            if view.finished:
                return
        time.sleep(POLL_SECONDS)
    raise SandboxError(
        f"The job {JOB} had not finished after {format_duration(seconds)}.\n{gather_evidence(cluster, namespace)}",
        remedy=f"kubectl --context {cluster.context} -n {namespace} describe greentrainingjob {JOB}",
    )


def gather_evidence(cluster: Cluster, namespace: str) -> str:
    """The job's pods, their last log lines and the latest events, for a person looking for a cause."""
    selector = f"--selector=greentrain.dev/job-name={JOB}"
    here = ("--namespace", namespace)
    parts = [cluster.run_kubectl(*here, "get", "pods", selector, "-o", "wide", check=False)]
    names = cluster.run_kubectl(*here, "get", "pods", selector, "-o", "name", check=False).split()
    for name in names:
        log = cluster.run_kubectl(*here, "logs", name, "--tail=12", check=False).strip()
        parts.append(f"--- last lines of {name}\n{log}")
    events = cluster.run_kubectl(*here, "get", "events", "--sort-by=.lastTimestamp", check=False).splitlines()
    parts.append("--- latest events\n" + "\n".join(events[-12:]))
    return "\n".join(part.rstrip() for part in parts if part.strip())


def follow(cluster: Cluster, namespace: str, seconds: float = JOB_SECONDS) -> None:
    """Print a line whenever the job has moved on, until it has succeeded.

    Raises:
        SandboxError: it failed, was refused, vanished, or did not finish in time; with what is known of the cause.
    """
    began = time.monotonic()
    last: View | None = None
    for view in gather_views(cluster, namespace, seconds):
        stamp = f"{time.monotonic() - began:4.0f} s"
        if last is None or view.line != last.line:
            sys.stdout.write(f"  {stamp}  {view.line}\n")
        for note in view.notes:
            if last is None or note not in last.notes:
                sys.stdout.write(f"          {note}\n")
        sys.stdout.flush()
        last = view
    if last is not None and last.failed:
        said = "; ".join(last.notes) or last.line
        raise SandboxError(
            f"The job {JOB} did not succeed. {said}\n{gather_evidence(cluster, namespace)}",
            remedy=f"kubectl --context {cluster.context} -n {namespace} describe greentrainingjob {JOB}",
        )


def wait_energy(cluster: Cluster, namespace: str, seconds: float = 30.0) -> None:
    """Wait until the last readings of a job's GPUs are in, where there are any; what is missing then is printed as it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = cluster.read_json("--namespace", namespace, "get", "greentrainingjob", JOB) or {}
        energy = (job.get("status") or {}).get("energy")
        if energy is None or energy.get("final"):
            return
        time.sleep(POLL_SECONDS)


# --- The steps ---------------------------------------------------------------------------------------------------


def remove_previous(cluster: Cluster, namespace: str, sandbox: Sandbox | None) -> str:
    """Delete an earlier run's job and wait until its pods are gone; in the sandbox its files too.

    The trainer refuses another job's checkpoints, and an earlier run's job of the same name is another job.

    Raises:
        SandboxError: its pods are still there after two minutes.
    """
    here = ("--namespace", namespace)
    found = cluster.read_json(*here, "get", "greentrainingjob", JOB)
    if found is not None:
        cluster.run_kubectl(*here, "delete", "greentrainingjob", JOB, "--ignore-not-found", "--wait=true")
    deadline = time.monotonic() + GONE_SECONDS
    while cluster.run_kubectl(
        *here, "get", "pods", f"--selector=greentrain.dev/job-name={JOB}", "-o", "name", check=False
    ):
        if time.monotonic() > deadline:
            raise SandboxError(
                f"Pods of an earlier {JOB} job were still there after {GONE_SECONDS:.0f} s.",
                remedy=f"kubectl --context {cluster.context} -n {namespace} describe pods",
            )
        time.sleep(POLL_SECONDS)
    if sandbox is not None:
        shutil.rmtree(sandbox.volume / "greentrain" / namespace / JOB, ignore_errors=True)
    elif found is not None:
        cluster.run_kubectl(
            *here, "delete", "persistentvolumeclaim", "training", "--ignore-not-found", "--wait=true"
        )
    return "deleted" if found is not None else "none"


def apply_job(cluster: Cluster, target: Target, trainer: str, sandbox: Sandbox | None) -> str:
    """Apply the example, after deleting what an earlier run left of it."""
    if not target.is_sandbox:
        cluster.run_kubectl("create", "namespace", target.namespace, check=False)
    before = remove_previous(cluster, target.namespace, sandbox)
    manifest = build_manifest(MANIFEST.read_text(), target, trainer)
    cluster.run_kubectl("--namespace", target.namespace, "apply", "-f", "-", stdin=manifest)
    return f"earlier job: {before}"


def gather_needs(cache: Path, sandbox: Sandbox, nodes: int, repositories: Collection[str]) -> list[Need]:
    """The disk and memory that what is still to be built and started takes, all of which may be there at once."""
    building = images.find_need(cache, repositories)
    needs = [building] if building else []
    if binaries.find_folder() is None:
        module = binaries.KUBERNETES
        needs.append(Need(f"building Kubernetes {module.version}", cache, module.disk, module.memory))
    started = len(sandbox.started_nodes())
    if started < nodes:
        needs.append(Need("the sandbox", sandbox.directory, NODE_DISK * (nodes - started), MEMORY))
    return needs


def build_sandbox_steps(
    cache: Path, sandbox: Sandbox, built: list[Image], repositories: Collection[str]
) -> list[Step]:
    """Everything from the bare machine to the applied job, in the sandbox."""

    def cluster() -> Cluster:
        return Cluster(CONTEXT, binaries.gather_binaries().kubectl, sandbox.kubeconfig)

    def install() -> str:
        references = {image.repository: image.reference for image in built}
        return release.apply_release(
            cluster(), references[images.OPERATOR], agent=references[images.AGENT], values=SANDBOX_VALUES
        )

    return [
        *environment.build_machine_steps(cache),
        environment.build_step(cache, ("packages",)),
        images.build_step(cache, built, repositories, ("packages",)),
        Step(
            "sandbox",
            "bringing the sandbox up",
            7.0,
            lambda: bring_up(sandbox, read_node_count(), prepared=True),
            ("binaries",),
        ),
        Step(
            "import",
            "importing the images into the sandbox",
            20.0,
            lambda: images.import_images(cache, built, sandbox),
            ("images", "sandbox"),
        ),
        Step("operator", "installing charts/greentrain with Helm", 5.0, install, ("import", "environment")),
        Step(
            "job",
            f"applying {MANIFEST.relative_to(images.ROOT)}",
            5.0,
            lambda: apply_job(cluster(), parse_target({}), "", sandbox),
            ("operator",),
        ),
    ]


def build_context_steps(cache: Path, target: Target, built: list[Image], cluster: Cluster) -> list[Step]:
    """Everything from this machine to the applied job, in a user's own cluster."""
    pushed: dict[str, str] = {}

    def push() -> str:
        for image in built:
            pushed[image.repository] = images.push_image(cache, image, str(target.repository))
        return ", ".join(pushed.values())

    def install() -> str:
        values = {"progressIntervalSeconds": 5}
        agent = pushed.get(images.AGENT)
        return release.apply_release(cluster, pushed[images.OPERATOR], agent=agent, values=values)

    wanted = images.SHIPPED if target.agent else tuple(r for r in images.SHIPPED if r != images.AGENT)

    return [
        Step(
            "environment",
            "installing the tools into .venv",
            60.0,
            lambda: environment.apply_environment(cache),
        ),
        images.build_step(cache, built, wanted),
        Step("push", f"pushing the images to {target.repository}", 60.0, push, ("images",)),
        Step("operator", "installing charts/greentrain with Helm", 30.0, install, ("push", "environment")),
        Step(
            "job",
            f"applying {MANIFEST.relative_to(images.ROOT)}",
            5.0,
            lambda: apply_job(cluster, target, pushed[images.TRAINER], None),
            ("operator",),
        ),
    ]


def describe_end(cluster: Cluster, namespace: str) -> str:
    """The job's row, the sum of its status, and its accuracy."""
    here = ("--namespace", namespace)
    row = cluster.run_kubectl(*here, "get", "gtj", JOB, "-o", "wide")
    status = (cluster.read_json(*here, "get", "greentrainingjob", JOB) or {}).get("status", {})
    progress = status.get("progress") or {}
    lines = ["", f"$ kubectl get gtj {JOB} -o wide", row.rstrip(), ""]
    lines += [
        f"  {condition['type']}: {condition.get('message') or condition.get('reason')}"
        for condition in status.get("conditions", [])
        if condition.get("status") == "True"
    ]
    metrics = progress.get("metrics") or {}
    if "accuracy" in metrics:
        lines.append(f"  Accuracy on the held-out digits: {metrics['accuracy']}")
    if progress.get("modelPath"):
        lines.append(f"  Model, on the volume: {progress['modelPath']}")
    lines += _describe_budgets(status)
    energy = status.get("energy") or {}
    if energy:
        lines.append(
            f"  Energy of its GPUs: {energy.get('usedJoules', 0)} J, to within {energy.get('errorJoules', 0)} J "
            f"({energy.get('measuredPercent', 0)} % measured{', final' if energy.get('final') else ''})"
        )
    return "\n".join(lines)


def read_server_version(cluster: Cluster) -> str:
    """What the API server says it is, without the v: `1.37.2`."""
    version = json.loads(cluster.run_kubectl("version", "-o", "json"))
    return str(version["serverVersion"]["gitVersion"]).removeprefix("v")


def _describe_budgets(status: Mapping[str, Any]) -> Iterator[str]:
    """What is left of each budget, and where its emissions come from."""
    emissions = status.get("emissions") or {}
    for line in status.get("budgets") or ():
        bound = f", at worst exceeded by {line['bound']}" if line.get("bound") else ""
        used = line.get("used") or "unknown"
        yield f"  {line['type']}: {used} of {line['limit']}, {line.get('percent', 0)} %{bound}"
    if emissions.get("embodiedMicrograms") is not None:
        operational, made, low, high = (
            emissions.get(f"{name}Micrograms", 0) / 1000
            for name in ("operational", "embodied", "embodiedLow", "embodiedHigh")
        )
        yield f"  Of these {operational:.0f} mg from energy and {made:.0f} mg from making its GPUs ({low:.0f} to {high:.0f})"
    if emissions.get("microgramsPerRun"):
        step = emissions.get("microgramsPerStep")
        per_step = "" if step is None else f", {step / 1000:.2f} mg per step"
        yield f"  Software Carbon Intensity: {emissions['microgramsPerRun'] / 1000:.0f} mg per run{per_step}"
    for share in emissions.get("shares", []):
        zones = ", ".join(emissions.get("zones", []))
        yield f"  Grid intensity: {share['source']} for {share['percent']} % of the energy ({zones}, {emissions.get('basis', '')})"


def describe_next(target: Target, sandbox: Sandbox) -> str:
    """How a person goes on from here."""
    if target.is_sandbox:
        lines = [
            describe_use(sandbox),
            "kubectl get gtj",
            f"kubectl describe gtj {JOB}",
            "make sandbox-down      # when you are done",
        ]
    else:
        flags = f"--context {target.context} --namespace {target.namespace}"
        lines = [
            f"kubectl {flags} get gtj",
            f"kubectl {flags} describe gtj {JOB}",
            f"kubectl {flags} delete -f {MANIFEST.relative_to(images.ROOT)}",
            f"helm --kube-context {target.context} uninstall {release.RELEASE} -n {release.NAMESPACE}",
        ]
    return "To go on:\n" + "\n".join(f"  {line}" for line in lines)


def check_context(cluster: Cluster) -> None:
    """Refuse a context that the user's kubeconfig does not have.

    Raises:
        SandboxError: it does not know the context.
    """
    known = cluster.run_kubectl("config", "get-contexts", "-o", "name", check=False).split()
    if cluster.context not in known:
        raise SandboxError(
            f"{CONTEXT_VARIABLE} is «{cluster.context}», which your kubeconfig does not know ({', '.join(known) or 'it is empty'});"
            f" give one of these, or unset {CONTEXT_VARIABLE} to use the sandbox."
        )


def prepare(cache: Path) -> None:
    """Bring the sandbox up with the operator installed and the end-to-end tests' images imported, but no job.

    Raises:
        SandboxError: a step failed.
    """
    packages.check_root()
    sandbox = Sandbox.read()
    check_room(gather_needs(cache, sandbox, read_node_count(), images.ALL))
    steps = build_sandbox_steps(cache, sandbox, [], images.ALL)
    run_steps([step for step in steps if step.name != "job"])


def run_demo(environ: Mapping[str, str], cache: Path) -> None:
    """The whole demo.

    Raises:
        SandboxError: where it cannot go on, what is missing and what to do.
    """
    began = time.monotonic()
    target = parse_target(environ)
    sandbox = Sandbox.read(environ)
    built: list[Image] = []
    if target.is_sandbox:
        packages.check_root()
        check_room(gather_needs(cache, sandbox, read_node_count(environ), images.SHIPPED))
        run_steps(build_sandbox_steps(cache, sandbox, built, images.SHIPPED))
        cluster = Cluster(CONTEXT, binaries.gather_binaries().kubectl, sandbox.kubeconfig)
    else:
        kubectl = binaries.find_program("kubectl", environ)
        if kubectl is None:
            raise SandboxError("kubectl is not on PATH, and your own cluster is reached with it; install it.")
        cluster = Cluster(target.context, kubectl)
        check_context(cluster)
        sys.stdout.write(
            f"Context {target.context}, namespace {target.namespace}, operator in {release.NAMESPACE},"
            f" {f'agents in {release.AGENT_NAMESPACE}' if target.agent else 'no agents'}.\n"
        )
        run_steps(build_context_steps(cache, target, built, cluster))
    sys.stdout.write(f"▸ following the job {JOB} (about 1 min)\n")
    follow(cluster, target.namespace)
    wait_energy(cluster, target.namespace)
    sys.stdout.write(f"{describe_end(cluster, target.namespace)}\n\n{describe_next(target, sandbox)}\n")
    took = format_duration(time.monotonic() - began)
    sys.stdout.write(f"\nFrom start to trained: {took}, on Kubernetes {read_server_version(cluster)}.\n")


def main(argv: Sequence[str]) -> int:
    """`python3 -m sandbox demo`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox demo",
        description=f"Run examples/budgeted.yaml, the digits job inside budgets and with a power cap, in the sandbox, or in the cluster {CONTEXT_VARIABLE} names.",
    )
    parser.add_argument(
        "--without-job",
        action="store_true",
        help="stop before the job: the sandbox is up, the operator installed, the tests' images are there",
    )
    arguments = parser.parse_args(argv)
    cache = read_cache_directory()
    if arguments.without_job:
        prepare(cache)
    else:
        run_demo(os.environ, cache)
    return 0
