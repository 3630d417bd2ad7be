"""The chart against a real API server of the sandbox's version: install, upgrade, uninstall, and what each leaves.

All tests of a worker use one server, in any order: each installs what it needs and counts on nothing of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.nodepower import NodePowerStatus
from greentrain.controller.clock import SteadyClock
from greentrain.controller.heartbeat import Heartbeat
from greentrain.kube.client import connect
from greentrain.kube.node import NodeView
from sandbox import release
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from sandbox.release import Cluster
from sandbox.shell import SandboxError
from tests.support.api import timestamp, write_token_kubeconfig

CRD = "greentrainingjobs.greentrain.dev"
NODE_POWERS = "nodepowers.greentrain.dev"
AGENT = f"system:serviceaccount:{release.AGENT_NAMESPACE}:{release.AGENT}"
OPERATOR = f"system:serviceaccount:{release.NAMESPACE}:{release.RELEASE}"
HOOK = f"{release.AGENT}-retire"
HOOK_ACCOUNT = f"system:serviceaccount:{release.AGENT_NAMESPACE}:{HOOK}"
HOOK_JOB = f"/apis/batch/v1/namespaces/{release.AGENT_NAMESPACE}/jobs/{HOOK}"
MERGE = "application/merge-patch+json"

Pairs = set[tuple[str, str]]

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


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, alone on loopback."""
    with ControlPlane.start(tmp_path_factory.mktemp("chart"), gather_binaries()) as running:
        yield running


@pytest.fixture(scope="session")
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


def install(cluster: Cluster, tag: str, **values: object) -> int:
    """Install or upgrade the release without waiting: no kubelet runs the operator here. Returns its revision."""
    images = release.build_values(
        f"registry.example.org/operator:{tag}", f"registry.example.org/agent:{tag}", {}
    )
    arguments = {**images, "agent.createNamespace": False, **values}
    printed = cluster.run_helm(
        "upgrade",
        "--install",
        release.RELEASE,
        release.CHART,
        f"--namespace={release.NAMESPACE}",
        "--create-namespace",
        "--output=json",
        *release.build_arguments(arguments),
    )
    return int(json.loads(printed)["version"])


def read(cluster: Cluster, *words: str) -> dict[str, Any]:
    """One object; it must be there."""
    found = cluster.read_json("get", *words)
    assert found is not None, words
    return found


async def until(met: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Look again and again, on a thread: kubectl takes its time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await asyncio.to_thread(met):
        if loop.time() >= end:
            raise TimeoutError(f"not within {seconds:.0f} s")
        await asyncio.sleep(0.05)


# --- Helm uninstalls, and the tests play who runs the hook's Job ---------------------------------------------------


@dataclass
class Hooked:
    """What the hook's Job did, which ran as its own account."""

    code: int | None = None
    log: str = ""
    granted: Pairs = field(default_factory=set)
    answers: list[str] = field(default_factory=list)
    refused: str = ""
    """What Helm said where it did not uninstall."""


def forget_node_powers(cluster: Cluster) -> None:
    """Wait for the kind NodePower, and remove what another test has left of it."""
    crd = f"customresourcedefinition/{NODE_POWERS}"
    cluster.run_kubectl("wait", "--for=condition=Established", crd, "--timeout=30s")
    cluster.run_kubectl("delete", "nodepowers", "--all")


def granted_by(role: dict[str, Any]) -> Pairs:
    """(verb, resource) pairs a role gives."""
    return {(v, r) for rule in role["rules"] for v in rule["verbs"] for r in rule["resources"]}


def hook_objects(cluster: Cluster) -> set[str]:
    """What there is of the hook."""
    inside = cluster.run_kubectl(
        "get", "serviceaccounts,roles,rolebindings,jobs", "-n", release.AGENT_NAMESPACE, "-o", "name"
    )
    beside = cluster.run_kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    return {
        name.partition("/")[0].partition(".")[0]
        for name in (inside + beside).split()
        if name.endswith(f"/{HOOK}")
    }


def make_agent_pod(cluster: Cluster) -> None:
    """Play the DaemonSet's controller: one agent."""
    template = read(cluster, "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE)["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{release.AGENT}-x",
            "namespace": release.AGENT_NAMESPACE,
            "labels": template["metadata"]["labels"],
        },
        "spec": {"containers": [{"name": "agent", "image": "x"}]},
    }
    cluster.run_kubectl("apply", "-f", "-", stdin=json.dumps(pod))


def end_agents(cluster: Cluster) -> bool:
    """Play controller and kubelet: the pods of a DaemonSet that is being deleted end, then it goes itself."""
    here = ("-n", release.AGENT_NAMESPACE)
    agents = cluster.read_json("get", "daemonset", release.AGENT, *here)
    if agents is None or "deletionTimestamp" not in agents["metadata"]:
        return False
    cluster.run_kubectl("delete", "pods", *here, "--all", "--grace-period=0", "--force", "--wait=true")
    patch = ("--type=merge", '--patch={"metadata":{"finalizers":null}}')
    cluster.run_kubectl("patch", "daemonset", release.AGENT, *here, *patch)
    return True


async def run_hook(
    cluster: Cluster, plane: ControlPlane, hooked: Hooked, questions: Sequence[tuple[str, ...]]
) -> None:
    """Play the kubelet of the hook's pod: run what it is told, as its account, on this machine."""
    here = ("-n", release.AGENT_NAMESPACE)

    def begun() -> bool:
        job = cluster.read_json("get", "job", HOOK, *here)
        # One that an earlier try has left has ended.
        return job is not None and not job.get("status", {}).get("conditions")

    await until(begun, seconds=60)
    for role in (read(cluster, "role", HOOK, *here), read(cluster, "clusterrole", HOOK)):
        hooked.granted |= granted_by(role)
    for question in questions:
        said = cluster.run_kubectl("auth", "can-i", *question, f"--as={HOOK_ACCOUNT}", check=False)
        hooked.answers.append(said.strip().splitlines()[-1])
    pod = read(cluster, "job", HOOK, *here)["spec"]["template"]["spec"]
    kubeconfig = plane.build_kubeconfig(HOOK_ACCOUNT, ["system:serviceaccounts"])
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "greentrain.agent", *pod["containers"][0]["args"]),
        *("--kubeconfig", str(kubeconfig), "--log-format", "text"),
        env={name: value for name, value in os.environ.items() if name != "NODE_NAME"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    ending = asyncio.create_task(until(lambda: end_agents(cluster), seconds=60))
    try:
        printed, _ = await program.communicate()
    finally:
        with contextlib.suppress(TimeoutError):
            await ending
    hooked.code, hooked.log = program.returncode, printed.decode()


def build_job_status(*, succeeded: bool) -> dict[str, Any]:
    """The status with which a Job's controller reports its end: first the decision, then that none of its pods is left."""
    now = timestamp()
    if succeeded:
        decided, ended, more = "SuccessCriteriaMet", "Complete", {"succeeded": 1, "completionTime": now}
    else:
        decided, ended, more = "FailureTarget", "Failed", {"failed": 1}
    reason = "CompletionsReached" if succeeded else "BackoffLimitExceeded"
    conditions = [{"type": type_, "status": "True", "reason": reason} for type_ in (decided, ended)]
    return {"startTime": now, "conditions": conditions, **more}


async def uninstall(
    cluster: Cluster, plane: ControlPlane, *words: str, questions: Sequence[tuple[str, ...]] = ()
) -> Hooked:
    """`helm uninstall`, while the hook's Job is run as a cluster would."""
    hooked = Hooked()
    command = ("uninstall", release.RELEASE, f"--namespace={release.NAMESPACE}", *words)
    helm = asyncio.create_task(asyncio.to_thread(cluster.run_helm, *command))
    try:
        await run_hook(cluster, plane, hooked, questions)
    finally:
        # Helm waits for it whatever becomes of the test.
        status = build_job_status(succeeded=hooked.code == 0)
        plane.api.request("PATCH", f"{HOOK_JOB}/status", {"status": status}, content_type=MERGE)
        try:
            await helm
        except SandboxError as error:
            hooked.refused = str(error)
    return hooked


async def test_a_job_outlives_upgrade_and_uninstall_and_a_new_install_takes_over(
    cluster: Cluster, plane: ControlPlane
) -> None:
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

    hooked = await uninstall(cluster, plane)
    assert (hooked.code, hooked.refused) == (0, ""), hooked.log
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


async def test_with_crds_not_kept_uninstall_removes_everything(cluster: Cluster, plane: ControlPlane) -> None:
    install(cluster, "four", **{"crds.keep": False})
    hooked = await uninstall(cluster, plane, "--wait")
    assert (hooked.code, hooked.refused) == (0, ""), hooked.log
    assert cluster.read_json("get", "customresourcedefinition", CRD) is None


async def test_the_hook_ends_the_agents_first_with_exactly_the_rights_it_is_seen_to_use(
    cluster: Cluster, plane: ControlPlane
) -> None:
    install(cluster, "nine")
    forget_node_powers(cluster)
    make_agent_pod(cluster)
    here = ("-n", release.AGENT_NAMESPACE)
    questions = [
        ("delete", f"daemonsets.apps/{release.AGENT}", *here),
        ("delete", "daemonsets.apps/another", *here),
        ("delete", f"daemonsets.apps/{release.AGENT}", "-n", "default"),
        ("list", "pods", "-n", "default"),
        ("delete", "pods", *here),
        ("patch", NODE_POWERS),
        ("get", "secrets", *here),
    ]
    hooked = await uninstall(cluster, plane, questions=questions)
    assert (hooked.code, hooked.refused) == (0, ""), hooked.log
    assert "every GPU of 0 nodes has the power limit it had before" in hooked.log
    assert hooked.answers == ["yes", "no", "no", "no", "no", "no", "no"]
    assert hooked.granted == {("delete", "daemonsets"), ("list", "pods"), ("list", "nodepowers")}
    assert calls_of(HOOK_ACCOUNT, plane.audit_log) == hooked.granted
    assert hook_objects(cluster) == set()


async def test_a_gpu_that_keeps_a_cap_stops_the_uninstallation_until_it_has_its_limit_back(
    cluster: Cluster, plane: ControlPlane
) -> None:
    revision = install(cluster, "ten")
    forget_node_powers(cluster)
    path = "/apis/greentrain.dev/v1alpha1/nodepowers"
    body = {
        "apiVersion": "greentrain.dev/v1alpha1",
        "kind": "NodePower",
        "metadata": {"name": "left"},
        "spec": {},
    }
    plane.api.request("POST", path, body)

    def report(limits: dict[str, int]) -> None:
        status = {"status": {"gpus": [{"uuid": "GPU-1", "limits": limits}]}}
        plane.api.request("PATCH", f"{path}/left/status", status, content_type=MERGE)

    report({"previousMilliwatts": 300_000, "setMilliwatts": 210_000})
    hooked = await uninstall(cluster, plane)
    assert hooked.code == 1
    assert "node left: GPU GPU-1" in hooked.log
    assert f"job {HOOK} failed" in hooked.refused
    # The operator is still there, and the Job with what it said.
    assert read(cluster, "deployment", release.RELEASE, "-n", release.NAMESPACE)
    assert "job" in hook_objects(cluster)
    # Helm takes the release for half gone: it upgrades it no more, and rolls it back to what it was.
    with pytest.raises(SandboxError, match="no deployed releases"):
        install(cluster, "ten")
    assert cluster.read_json("get", "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE) is None
    cluster.run_helm("rollback", release.RELEASE, str(revision), f"--namespace={release.NAMESPACE}")
    assert read(cluster, "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE)
    install(cluster, "ten")

    report({"setMilliwatts": 300_000})
    hooked = await uninstall(cluster, plane)
    assert (hooked.code, hooked.refused) == (0, ""), hooked.log
    assert hook_objects(cluster) == set()
    assert cluster.read_json("get", "deployment", release.RELEASE, "-n", release.NAMESPACE) is None
    cluster.run_kubectl("delete", "nodepower", "left")


def test_without_hooks_nothing_is_waited_for(cluster: Cluster) -> None:
    install(cluster, "eleven")
    cluster.run_helm("uninstall", release.RELEASE, f"--namespace={release.NAMESPACE}", "--no-hooks")
    assert cluster.read_json("get", "daemonset", release.AGENT, "-n", release.AGENT_NAMESPACE) is None
    assert hook_objects(cluster) == set()


def may(cluster: Cluster, account: str, questions: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], bool]:
    """What the server says of each of these questions about an account; without a namespace, of `default`."""
    answers = {}
    for question in questions:
        where = () if "-n" in question else ("-n", "default")
        said = cluster.run_kubectl("auth", "can-i", *question, f"--as={account}", *where, check=False)
        answers[question] = said.strip().splitlines()[-1] == "yes"
    return answers


def test_the_operators_account_may_do_its_work_and_no_more(cluster: Cluster) -> None:
    install(cluster, "five")
    expected = {
        ("patch", "greentrainingjobs.greentrain.dev", "--subresource=status"): True,
        ("create", "pods"): True,
        ("get", f"customresourcedefinitions.apiextensions.k8s.io/{CRD}"): True,
        ("patch", "greentrainingjobs.greentrain.dev"): False,
        ("get", "secrets"): False,
        ("create", "deployments.apps"): False,
    }
    assert may(cluster, OPERATOR, expected) == expected


def test_an_agents_account_may_do_its_work_and_no_more(cluster: Cluster) -> None:
    install(cluster, "six")
    lease = "leases.coordination.k8s.io"
    here = ("-n", release.NAMESPACE)
    expected = {
        ("list", "pods"): True,
        ("create", NODE_POWERS): True,
        ("patch", NODE_POWERS, "--subresource=status"): True,
        ("patch", NODE_POWERS): False,
        ("update", NODE_POWERS, "--subresource=status"): False,
        ("delete", NODE_POWERS): False,
        ("get", "secrets"): False,
        ("get", "pods", "--subresource=log"): False,
        ("create", "pods"): False,
        ("list", "nodes"): True,
        ("get", "nodes"): False,
        ("patch", "nodes"): False,
        ("create", "pods", "--subresource=eviction"): True,
        ("delete", "pods"): False,
        ("list", f"{lease}/{release.RELEASE}", *here): True,
        ("list", lease, *here): False,
        ("update", f"{lease}/{release.RELEASE}", *here): False,
    }
    assert may(cluster, AGENT, expected) == expected


def make_agent_kubeconfig(cluster: Cluster, plane: ControlPlane, folder: Path) -> Path:
    """Play scheduler and kubelet: an agent's pod on `node1`, and a kubeconfig with the token made for it."""
    here = ("-n", release.AGENT_NAMESPACE)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent-of-node1", "namespace": release.AGENT_NAMESPACE},
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": release.AGENT,
            "containers": [{"name": "agent", "image": "x"}],
        },
    }
    cluster.run_kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    bound = ("--bound-object-kind=Pod", "--bound-object-name=agent-of-node1")
    token = cluster.run_kubectl("create", "token", release.AGENT, *here, *bound).strip()
    return write_token_kubeconfig(plane.kubeconfig, folder / "kubeconfig-agent", token)


async def test_an_agent_is_granted_exactly_what_it_is_seen_to_use(
    cluster: Cluster, plane: ControlPlane, tmp_path: Path
) -> None:
    install(cluster, "seven")
    forget_node_powers(cluster)
    kubeconfig = make_agent_kubeconfig(cluster, plane, tmp_path)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "spent", "namespace": "default"},
        "spec": {"containers": [{"name": "tensorflow", "image": "x"}]},
    }
    made = json.loads(cluster.run_kubectl("apply", "-f", "-", "-o", "json", stdin=json.dumps(pod)))
    beating = plane.build_kubeconfig(OPERATOR, ["system:serviceaccounts"])
    async with await connect(str(kubeconfig), None) as client:
        view = NodeView(client, "node1", lease=(release.NAMESPACE, release.RELEASE))
        following = asyncio.create_task(view.follow())
        try:
            assert await view.read_status() is None
            await view.report(NodePowerStatus(journal_id="j", idle_joules=7))
            await until(lambda: view.pods_known)
            # The policies let an agent evict what is listed alone.
            listed = {"uid": made["metadata"]["uid"], "namespace": "default", "name": "spent"}
            asked = json.dumps({"spec": {"settled": ["u/0"], "pods": [listed]}})
            patch = ("--type=merge", f"--patch={asked}")
            await asyncio.to_thread(cluster.run_kubectl, "patch", "nodepower", "node1", *patch)
            await until(lambda: view.settled == ("u/0",))
            driver = "nvidia.com/gpu.deploy.driver"
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "node1", "labels": {driver: "paused-for-driver-upgrade"}},
            }
            plane.api.request("POST", "/api/v1/nodes", node)
            await until(lambda: view.paused is not None)
            # By the watch, whatever the list has brought before.
            await asyncio.to_thread(cluster.run_kubectl, "label", "node", "node1", f"{driver}-")
            await until(lambda: view.paused is None)
            async with await connect(str(beating), None) as operator:
                heartbeat = Heartbeat(
                    operator,
                    (release.NAMESPACE, release.RELEASE),
                    identity="operator-0",
                    clock=SteadyClock(),
                    unhealthy=lambda: None,
                )
                assert [await heartbeat.beat() for _ in range(2)] == [True, True]
            await until(lambda: view.operator_renewed is not None)
            await view.listen()
            await view.evict("default", "spent", made["metadata"]["uid"])
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
    assert read(cluster, "nodepower", "node1")["status"]["idleJoules"] == 7

    role = read(cluster, "clusterrole", release.AGENT)
    beside = read(cluster, "role", release.AGENT, "-n", release.NAMESPACE)
    granted = granted_by(role) | granted_by(beside)
    # A watch is logged when it ends, a moment after its client has gone.
    with contextlib.suppress(TimeoutError):
        await until(lambda: granted <= calls_of(AGENT, plane.audit_log))
    assert calls_of(AGENT, plane.audit_log) == granted
    renewing = read(cluster, "role", f"{release.RELEASE}-lease", "-n", release.NAMESPACE)
    assert {(v, r) for v, r in calls_of(OPERATOR, plane.audit_log) if r == "leases"} == granted_by(renewing)


def calls_of(user: str, audit_log: Path) -> Pairs:
    """(verb, resource) pairs a user was seen to use; none may have been refused."""
    pairs: Pairs = set()
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
