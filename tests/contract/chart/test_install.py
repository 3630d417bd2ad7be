"""The chart against a real API server of the sandbox's version: install, upgrade, uninstall, and what each leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.nodepower import NodePowerStatus
from greentrain.kube.client import connect
from greentrain.kube.node import NodeView
from sandbox import release
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from sandbox.release import Cluster

CRD = "greentrainingjobs.greentrain.dev"
NODE_POWERS = "nodepowers.greentrain.dev"
AGENT = f"system:serviceaccount:{release.AGENT_NAMESPACE}:{release.AGENT}"

JOB = """\
apiVersion: greentrain.dev/v1alpha1
kind: GreenTrainingJob
metadata:
  name: kept
  namespace: default
spec:
  tfReplicaSpecs:
    Worker:
      replicas: 1
      template:
        spec:
          containers:
            - name: tensorflow
              image: registry.example.org/x:1
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, alone on loopback."""
    with ControlPlane.start(tmp_path_factory.mktemp("chart"), gather_binaries()) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(plane: ControlPlane) -> Cluster:
    """The server as Helm and kubectl reach it, with a namespace for agents.

    No controller runs here that would finish a namespace's deletion, so that the chart's own could not be made twice.
    """
    kubeconfig: Path = plane.kubeconfig
    kubectl = gather_binaries().kubectl
    name = Cluster("", kubectl, kubeconfig)
    context = json.loads(name.run_kubectl("config", "view", "-o", "json"))["current-context"]
    name = Cluster(context, kubectl, kubeconfig)
    name.run_kubectl("create", "namespace", release.AGENT_NAMESPACE)
    return name


def install(cluster: Cluster, tag: str, **values: object) -> None:
    """Install or upgrade the release without waiting: no kubelet runs the operator here."""
    images = release.build_values(
        f"registry.example.org/operator:{tag}", f"registry.example.org/agent:{tag}", {}
    )
    arguments = {**images, "agent.createNamespace": False, **values}
    cluster.run_helm(
        "upgrade",
        "--install",
        release.RELEASE,
        release.CHART,
        f"--namespace={release.NAMESPACE}",
        "--create-namespace",
        *release.build_arguments(arguments),
    )


def read(cluster: Cluster, *words: str) -> dict[str, Any]:
    """One object; it must be there."""
    found = cluster.read_json("get", *words)
    assert found is not None, words
    return found


def test_a_job_outlives_upgrade_and_uninstall_and_a_new_install_takes_over(cluster: Cluster) -> None:
    install(cluster, "one")
    cluster.run_kubectl(
        "wait", "--for=condition=Established", f"customresourcedefinition/{CRD}", "--timeout=30s"
    )
    cluster.run_kubectl("apply", "-f", "-", stdin=JOB)
    before = read(cluster, "greentrainingjob", "kept")

    install(cluster, "two")
    deployment = read(cluster, "deployment", release.RELEASE, "-n", release.NAMESPACE)
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":two")
    agents = read(cluster, "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE)
    assert agents["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":two")
    assert read(cluster, "greentrainingjob", "kept")["metadata"]["uid"] == before["metadata"]["uid"]

    cluster.run_helm("uninstall", release.RELEASE, f"--namespace={release.NAMESPACE}")
    left = cluster.run_kubectl(
        "get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=greentrain", "-o", "name"
    )
    assert left == "" or "No resources found" in left
    assert cluster.read_json("get", "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE) is None
    kept = read(cluster, "greentrainingjob", "kept")
    assert kept["metadata"]["uid"] == before["metadata"]["uid"]
    assert "finalizers" not in kept["metadata"]

    install(cluster, "three")
    assert read(cluster, "customresourcedefinition", CRD)["metadata"]["name"] == CRD
    assert read(cluster, "greentrainingjob", "kept")["metadata"]["uid"] == before["metadata"]["uid"]


def test_with_crds_not_kept_uninstall_removes_everything(cluster: Cluster) -> None:
    install(cluster, "four", **{"crds.keep": False})
    cluster.run_helm("uninstall", release.RELEASE, f"--namespace={release.NAMESPACE}", "--wait")
    assert cluster.read_json("get", "customresourcedefinition", CRD) is None


@pytest.mark.parametrize(
    ("question", "allowed"),
    [
        (("patch", "greentrainingjobs.greentrain.dev", "--subresource=status"), True),
        (("create", "pods"), True),
        (("get", f"customresourcedefinitions.apiextensions.k8s.io/{CRD}"), True),
        (("patch", "greentrainingjobs.greentrain.dev"), False),
        (("get", "secrets"), False),
        (("create", "deployments.apps"), False),
    ],
)
def test_the_operators_account_may_do_its_work_and_no_more(
    cluster: Cluster, question: tuple[str, ...], allowed: bool
) -> None:
    install(cluster, "five")
    account = f"--as=system:serviceaccount:{release.NAMESPACE}:{release.RELEASE}"
    said = cluster.run_kubectl("auth", "can-i", *question, account, "-n", "default", check=False)
    assert said.strip().splitlines()[-1] == ("yes" if allowed else "no"), said


@pytest.mark.parametrize(
    ("question", "allowed"),
    [
        (("list", "pods"), True),
        (("create", NODE_POWERS), True),
        (("patch", NODE_POWERS, "--subresource=status"), True),
        (("patch", NODE_POWERS), False),
        (("update", NODE_POWERS, "--subresource=status"), False),
        (("delete", NODE_POWERS), False),
        (("get", "secrets"), False),
        (("get", "pods", "--subresource=log"), False),
        (("create", "pods"), False),
        (("list", "nodes"), False),
    ],
)
def test_an_agents_account_may_do_its_work_and_no_more(
    cluster: Cluster, question: tuple[str, ...], allowed: bool
) -> None:
    install(cluster, "six")
    said = cluster.run_kubectl("auth", "can-i", *question, f"--as={AGENT}", "-n", "default", check=False)
    assert said.strip().splitlines()[-1] == ("yes" if allowed else "no"), said


async def until(met: Callable[[], bool]) -> None:
    """Look again and again, for half a minute."""
    for _ in range(600):
        if met():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError("not within 30 s")


async def test_an_agent_is_granted_exactly_what_it_is_seen_to_use(
    cluster: Cluster, plane: ControlPlane
) -> None:
    install(cluster, "seven")
    crd = f"customresourcedefinition/{NODE_POWERS}"
    cluster.run_kubectl("wait", "--for=condition=Established", crd, "--timeout=30s")
    kubeconfig = plane.build_kubeconfig(AGENT, ["system:serviceaccounts"])
    async with await connect(str(kubeconfig), None) as client:
        view = NodeView(client, "node1")
        following = asyncio.create_task(view.follow())
        try:
            assert await view.read_status() is None
            await view.report(NodePowerStatus(journal_id="j", idle_joules=7))
            await until(lambda: view.pods_known)
            patch = ("--type=merge", '--patch={"spec":{"settled":["u/0"]}}')
            await asyncio.to_thread(cluster.run_kubectl, "patch", "nodepower", "node1", *patch)
            await until(lambda: view.settled == ("u/0",))
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
    assert read(cluster, "nodepower", "node1")["status"]["idleJoules"] == 7

    role = read(cluster, "clusterrole", release.AGENT)
    granted = {(v, r) for rule in role["rules"] for v in rule["verbs"] for r in rule["resources"]}
    # A watch is logged when it ends, a moment after its client has gone.
    with contextlib.suppress(TimeoutError):
        await until(lambda: granted <= calls_of(AGENT, plane.audit_log))
    assert calls_of(AGENT, plane.audit_log) == granted


def calls_of(user: str, audit_log: Path) -> set[tuple[str, str]]:
    """(verb, resource) pairs a user was seen to use; none may have been refused."""
    pairs: set[tuple[str, str]] = set()
    for line in audit_log.read_text().splitlines():
        entry = json.loads(line)
        about = entry.get("objectRef", {})
        # What was asked in the user's name (impersonatedUser) stands under the name of who asked.
        if entry["user"]["username"] == user and "resource" in about:
            assert entry["responseStatus"]["code"] != 403, entry
            pairs.add((entry["verb"], "/".join(filter(None, (about["resource"], about.get("subresource"))))))
    return pairs


def test_the_chart_makes_the_agents_namespace_before_what_lives_in_it(cluster: Cluster) -> None:
    install(cluster, "eight", **{"agent.createNamespace": True, "agent.namespace": "power"})
    labels = read(cluster, "namespace", "power")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert read(cluster, "daemonset", release.AGENT, "-n", "power")
