"""Kueue in the sandbox, on request: the real queue controller, built from its Go module and installed by its own chart.

One ClusterQueue `gpus` holds the sandbox's simulated GPUs, one LocalQueue `gpus` leads to it from the namespace default.
A pod is queued when it carries the label `kueue.x-k8s.io/queue-name: gpus`; no LocalQueue is named `default`, because Kueue
then queues every pod of that namespace.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox import archive, binaries, environment, golang, node, release
from sandbox.cache import hold_lock, read_cache_directory
from sandbox.golang import GoModule
from sandbox.release import Cluster
from sandbox.room import GB
from sandbox.shell import SandboxError
from sandbox.state import CONTEXT, Sandbox
from sandbox.steps import Step, run_steps
from sandbox.up import wait_until

CHART = "charts/kueue"
KUEUE = GoModule(
    title="Kueue",
    module="sigs.k8s.io/kueue",
    folder=Path(__file__).resolve().parent,
    stamps=("sigs.k8s.io/kueue/pkg/version.GitVersion=v{version}",),
    seconds=170,
    disk=4 * GB,
    memory=3 * GB,
    files=(CHART,),
)
REPOSITORY = "localhost/greentrain/kueue"
NAMESPACE = "kueue-system"
RELEASE = "kueue"
QUEUE = "gpus"
USER = 65532
"""Who Kueue's program runs as, in its own images too."""
ROLLOUT_SECONDS = 180
REMEDY = f"kubectl --namespace {NAMESPACE} logs deployment/{RELEASE}-controller-manager"
RESOURCES = ("cpu", "memory", "nvidia.com/gpu")
ENDLESS = {"cpu": "1000", "memory": "1000Gi"}
"""Quota of what is not to be scarce: a pod is only admitted when all it asks for is in the queue."""


def build_values() -> dict[str, object]:
    """The values of Kueue's chart in the sandbox, by dotted path."""
    manager = "controllerManager.manager"
    return {
        f"{manager}.image.repository": REPOSITORY,
        f"{manager}.image.tag": KUEUE.version,
        f"{manager}.image.pullPolicy": "Never",
        # The sandbox's nodes are one small machine.
        f"{manager}.resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    }


def build_queues(gpus: int) -> list[dict[str, Any]]:
    """The flavor, the ClusterQueue with a quota of `gpus`, and the LocalQueue of the namespace default."""
    version = "kueue.x-k8s.io/v1beta2"
    quota = ENDLESS | {RESOURCES[-1]: str(gpus)}
    flavor = {"name": QUEUE, "resources": [{"name": r, "nominalQuota": quota[r]} for r in RESOURCES]}
    group = {"coveredResources": list(RESOURCES), "flavors": [flavor]}
    return [
        {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": QUEUE}},
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": QUEUE},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": QUEUE, "namespace": "default"},
            "spec": {"clusterQueue": QUEUE},
        },
    ]


def apply_archive(cache: Path) -> Path:
    """The archive of Kueue's image, which holds its program and nothing else, made when it is not there."""
    folder = KUEUE.decide_directory(cache)
    target = folder / "image.tar"
    with hold_lock(cache / KUEUE.name / "lock"):
        if not target.exists():
            layer = archive.build_tar({"manager": ((folder / "kueue").read_bytes(), 0o755)})
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
                partial.write(
                    archive.build_image_archive(
                        f"{REPOSITORY}:{KUEUE.version}",
                        layer,
                        architecture=archive.read_architecture(),
                        entrypoint=["/manager"],
                        user=USER,
                    )
                )
            Path(partial.name).rename(target)
    return target


def import_image(cache: Path, sandbox: Sandbox) -> str:
    """Bring Kueue's image into every node that lacks it; returns what was done, in words."""
    name = f"{REPOSITORY}:{KUEUE.version}"
    lacking = [
        one
        for one in sandbox.started_nodes()
        if name not in node.run_ctr(one, "images", "ls", "--quiet").split()
    ]
    for one in lacking:
        node.import_into(one, apply_archive(cache))
    return f"into {', '.join(one.name for one in lacking)}" if lacking else "there already"


def build_cluster(sandbox: Sandbox) -> Cluster:
    """The sandbox's cluster."""
    return Cluster(CONTEXT, binaries.gather_binaries().kubectl, sandbox.kubeconfig)


def count_gpus(cluster: Cluster) -> int:
    """How many GPUs the nodes offer together."""
    found = cluster.read_json("get", "nodes") or {}
    offered = (item["status"].get("allocatable", {}) for item in found.get("items", []))
    return sum(int(resources.get(RESOURCES[-1], 0)) for resources in offered)


def deliver_certificates(cluster: Cluster) -> None:
    """Begin Kueue's pod anew where it waits for the certificate that it has just made.

    Its Secret is mounted into the pod. A kubelet brings what changed in one into a running pod within a minute or two, and
    Kueue looks for it ever more rarely (seen: Ready after 3 min 10 s); a new pod has it at once.

    Raises:
        SandboxError: it has made none within a minute.
    """
    here = ("--namespace", NAMESPACE)

    def is_made() -> bool:
        found = cluster.read_json(*here, "get", "secret", f"{RELEASE}-webhook-server-cert") or {}
        return "ca.crt" in (found.get("data") or {})

    if is_made():
        return
    wait_until(is_made, 60, lambda: SandboxError("Kueue made no certificate within a minute.", remedy=REMEDY))
    cluster.run_kubectl(*here, "delete", "pods", "--all", "--now", "--wait=false")


def install(cache: Path, sandbox: Sandbox) -> str:
    """Install Kueue's chart, wait until its webhooks and its aggregated API answer, and make the queues.

    Raises:
        SandboxError: Helm failed, or something did not answer in time.
    """
    cluster = build_cluster(sandbox)
    cluster.run_helm(
        *("upgrade", "--install", RELEASE, KUEUE.decide_directory(cache) / CHART),
        *(f"--namespace={NAMESPACE}", "--create-namespace"),
        *release.build_arguments(build_values()),
    )
    deliver_certificates(cluster)
    release.wait_for_rollout(cluster, NAMESPACE, f"deployment/{RELEASE}-controller-manager", "Kueue was")
    # Its webhooks, which the API server asks about each of these, are reached through a Service.
    manifests: Mapping[str, Any] = {
        "apiVersion": "v1",
        "kind": "List",
        "items": build_queues(count_gpus(cluster)),
    }
    cluster.run_kubectl("apply", "-f", "-", stdin=json.dumps(manifests))
    ready = ("wait", "--for=condition=Active", f"clusterqueue/{QUEUE}", f"--timeout={ROLLOUT_SECONDS}s")
    cluster.run_kubectl(*ready)
    served = ("wait", "--for=condition=Available", f"--timeout={ROLLOUT_SECONDS}s", "apiservice")
    cluster.run_kubectl(*served, "v1beta2.visibility.kueue.x-k8s.io")
    return f"Kueue {KUEUE.version} in {NAMESPACE}, ClusterQueue {QUEUE}"


def build_steps(cache: Path, sandbox: Sandbox) -> list[Step]:
    """What adds Kueue to a sandbox that is up."""
    log = cache / "log" / "kueue.log"
    usually = 0.0 if KUEUE.is_built(cache) else KUEUE.seconds
    return [
        Step(
            "kueue",
            f"providing Kueue {KUEUE.version}",
            usually,
            lambda: golang.apply_programs(KUEUE, cache, log),
        ),
        environment.build_step(cache),
        Step(
            "kueue-image",
            "importing Kueue's image",
            3,
            lambda: import_image(cache, sandbox),
            ("kueue",),
        ),
        Step(
            "kueue-install",
            "installing Kueue's chart with Helm",
            20,
            lambda: install(cache, sandbox),
            ("kueue-image", "environment"),
        ),
    ]


def remove(sandbox: Sandbox) -> str:
    """Uninstall Kueue, its queues first; returns what was done, in words.

    Raises:
        SandboxError: workloads of Kueue's are still there: a pod that Kueue manages would keep its finalizer.
    """
    cluster = build_cluster(sandbox)
    if cluster.read_json("get", "namespace", NAMESPACE) is None:
        return "Kueue was not there."
    held = cluster.run_kubectl("get", "pods", "-A", "-l", "kueue.x-k8s.io/managed=true", "-o", "name").split()
    if held:
        raise SandboxError(
            f"Kueue still manages {len(held)} pods, whose finalizers only it removes; delete their jobs first:"
            " kubectl get pods -A -l kueue.x-k8s.io/managed=true"
        )
    for kind in ("localqueue --all-namespaces --all", "clusterqueue --all", "resourceflavor --all"):
        cluster.run_kubectl("delete", *kind.split(), "--wait", "--timeout=60s", "--ignore-not-found")
    cluster.run_helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait")
    cluster.run_kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=120s", "--ignore-not-found")
    return "Kueue was uninstalled."


def main(argv: Sequence[str]) -> int:
    """`python3 -m sandbox kueue [--remove]`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox kueue",
        description=f"Add Kueue {KUEUE.version} to the sandbox that is up, with one ClusterQueue over its GPUs.",
    )
    parser.add_argument("--remove", action="store_true", help="uninstall it instead")
    arguments = parser.parse_args(argv)
    sandbox = Sandbox.read(os.environ)
    if not sandbox.started_nodes():
        raise SandboxError(f"No sandbox runs in {sandbox.directory}; run: make sandbox-up")
    if arguments.remove:
        print(remove(sandbox))
    else:
        run_steps(build_steps(read_cache_directory(), sandbox))
    return 0
