"""What the operator's own token may make at a real API server that holds the chart's roles and its policy on pods."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from greentrain.api.status import AttemptStatus
from greentrain.controller.run import TLS_CLOSE_SECONDS
from greentrain.core.admission import Admitted, decide_admission
from greentrain.core.gang import manifests
from greentrain.core.gang.manifests import ranks, replica_counts
from greentrain.core.seen.snapshot import parse_job
from greentrain.kube.client import connect
from greentrain.kube.namespaces import Namespaces
from sandbox import release
from sandbox.controlplane import ControlPlane
from tests.support.api import ROOT, Json, RefusedError, Server, write_token_kubeconfig
from tests.support.manifests import build_template
from tests.support.privileges import ALLOWED, FORBIDDEN, put

RBAC = "/apis/rbac.authorization.k8s.io/v1"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
PATHS = {
    "ServiceAccount": f"/api/v1/namespaces/{release.NAMESPACE}/serviceaccounts",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "ValidatingAdmissionPolicy": f"{ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{ADMISSION}/validatingadmissionpolicybindings",
}
OWNER = {
    "apiVersion": "greentrain.dev/v1alpha1",
    "kind": "GreenTrainingJob",
    "name": "digits",
    "uid": "u",
    "controller": True,
}
NOT_A_JOBS = "the operator makes pods of GreenTrainingJobs only"
CLOSED = "the operator makes no pods in its own namespace, its agents' or kube-system"

SERVER_REFUSES = (
    "ephemeralContainers",  # made at a pod that is there already
    "windowsOptions",  # only together with a host network, and with every container alike
    "procMount",  # only in a user namespace, where baseline lets it be
    "initContainers[0].livenessProbe",  # an init container has no probes and hooks unless it is a sidecar
    "initContainers[0].readinessProbe",
    "initContainers[0].startupProbe",
    "initContainers[0].lifecycle",
)
"""Forbidden fields in pods that a server takes from nobody: no policy is asked."""

RULED = {p: v for p, v in FORBIDDEN.items() if not any(part in p for part in SERVER_REFUSES)}


def build_pod(path: str = "", value: Any = None, *owners: Json) -> Json:
    """A pod of a job with one field set, and whatever that field needs beside it."""
    template = build_template(ports=[{"containerPort": 80}])
    template["metadata"] = {"name": "digits-worker-0-1", "ownerReferences": list(owners or (OWNER,))}
    if path.startswith("spec.initContainers"):
        template["spec"]["initContainers"] = [
            {"name": "init", "image": "x", "ports": [{"containerPort": 80}]}
        ]
    if not path:
        return template
    put(template, path, value)
    head, _, last = path.rpartition(".")
    beside: Json = {}
    if last == "host":
        beside = {"port": 80}
    elif "sysctls" in path:
        beside = {"value": "1"}
    elif value == "Localhost":
        beside = {"localhostProfile": "p"}
    for key, needed in beside.items():
        put(template, f"{head}.{key}", needed)
    for container in (*template["spec"]["containers"], *template["spec"].get("initContainers", ())):
        added = container.get("securityContext", {}).get("capabilities", {}).get("add", [])
        added[:] = [name or "CHOWN" for name in added]
    for i, volume in enumerate(template["spec"].get("volumes", ())):
        volume |= {"name": f"v{i}"}
        if volume.get("hostPath") == {}:
            volume["hostPath"] = {"path": "/"}
        if len(volume) == 1:
            volume["emptyDir"] = {}
    return template


async def make(server: Server, namespace: str, pod: Json) -> str:
    """What the server says to a pod that it judges and does not make; nothing where it would make it."""
    try:
        await server.call("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    except RefusedError as refused:
        return str(refused)
    return ""


def render_objects() -> list[Json]:
    """The operator's roles and its policy, as the chart has them."""
    values = {
        "image.repository": "o",
        "agent.image.repository": "a",
        "agent.namespace": release.AGENT_NAMESPACE,
    }
    command: list[str | Path] = [
        *(release.HELM, "template", release.RELEASE, release.CHART, "--namespace", release.NAMESPACE),
        *("--kube-version=1.37.2", *release.build_arguments(values)),
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    component = "app.kubernetes.io/component"
    return [m for m in objects if m["kind"] in PATHS and m["metadata"]["labels"].get(component) == "operator"]


@pytest.fixture(scope="session")
def token(plane: ControlPlane, crd: None) -> str:
    """A token of the operator's account, at a server that holds roles and policy."""
    del crd  # the roles name its kinds

    async def set_up() -> str:
        async with Server(plane.kubeconfig) as server:
            await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": release.NAMESPACE}})
            for manifest in render_objects():
                await server.call("POST", PATHS[manifest["kind"]], manifest)
            return await server.request_token(release.NAMESPACE, release.RELEASE)

    return asyncio.run(set_up())


def _is_answer(said: str, found: str) -> bool:
    """Whether it is refused in these words, or not at all where there are none."""
    return said in found and bool(said) == bool(found)


@pytest.fixture
async def operator(plane: ControlPlane, token: str, namespace: str) -> AsyncIterator[Server]:
    """A client with that token, once the policy is in force."""
    async with Server(plane.kubeconfig, token=token) as connected:
        for pod, said in ((build_pod("", None, {**OWNER, "kind": "Job"}), NOT_A_JOBS), (build_pod(), "")):
            ask = partial(make, connected, namespace, pod)
            await connected.until(ask, partial(_is_answer, said))
        yield connected


@pytest.mark.parametrize(
    "owners",
    [
        ({**OWNER, "apiVersion": "batch/v1", "kind": "Job"},),
        ({**OWNER, "apiVersion": "example.org/v1"},),
        ({**OWNER, "controller": False},),
    ],
    ids=["a Job's", "a kind of that name", "no controller"],
)
async def test_the_operators_token_makes_pods_of_jobs_alone(
    server: Server, operator: Server, namespace: str, owners: tuple[Json, ...]
) -> None:
    pod = build_pod("", None, *owners)
    assert NOT_A_JOBS in await make(operator, namespace, pod)
    bare = build_pod()
    del bare["metadata"]["ownerReferences"]
    assert NOT_A_JOBS in await make(operator, namespace, bare)
    # Nobody else is held by it.
    assert await make(server, namespace, pod) == await make(server, namespace, bare) == ""


async def test_it_makes_none_where_others_trust_what_runs(operator: Server) -> None:
    for name in (release.NAMESPACE, "kube-system"):
        assert CLOSED in await make(operator, name, build_pod())


async def test_what_baseline_forbids_the_server_refuses_the_operator_unless_the_namespace_is_opened(
    server: Server, operator: Server, namespace: str
) -> None:
    assert len(RULED) > 35
    opened = f"{namespace}-opened"
    labels = {"greentrain.dev/pod-security": "privileged"}
    await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": opened, "labels": labels}})
    closed = {path: await make(operator, namespace, build_pod(path, value)) for path, value in RULED.items()}
    assert {
        p: said for p, said in closed.items() if "ValidatingAdmissionPolicy 'greentrain-pods'" not in said
    } == {}
    there = {path: await make(operator, opened, build_pod(path, value)) for path, value in RULED.items()}
    assert {path: said for path, said in there.items() if said} == {}


async def test_the_pods_of_our_examples_the_operator_makes(operator: Server, namespace: str) -> None:
    said = {}
    for file in sorted((ROOT / "examples").rglob("*.yaml")):
        for body in yaml.safe_load_all(file.read_text()):
            if body["kind"] != "GreenTrainingJob":
                continue
            meta = {**body["metadata"], "namespace": namespace, "uid": "u"}
            job = parse_job({**body, "metadata": meta})
            verdict = decide_admission(job)
            assert isinstance(verdict, Admitted), verdict.message
            attempt = AttemptStatus(
                number=1, replicas=replica_counts(verdict.spec), start_time="2026-01-01T00:00:00Z"
            )
            for rank in ranks(attempt.replicas):
                pod = manifests.build_pod(job, verdict.spec, attempt, rank)
                said[f"{file.name} {rank}"] = await make(operator, namespace, pod)
    assert len(said) > 4
    assert {pod: words for pod, words in said.items() if words} == {}


async def test_what_baseline_allows_the_operator_makes(
    server: Server, operator: Server, namespace: str
) -> None:
    priority = {"metadata": {"name": "research-system-a"}, "value": 5}
    await server.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", priority)
    try:
        said = {p: await make(operator, namespace, build_pod(p, v)) for p, v in ALLOWED.items()}
    finally:
        await server.call("DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/research-system-a")
    assert {path: words for path, words in said.items() if words} == {}


async def test_a_namespaces_label_is_read_with_the_charts_rights_and_reads_as_closed_without(
    server: Server, plane: ControlPlane, token: str, namespace: str, tmp_path: Path
) -> None:
    opened, other = f"{namespace}-open", f"{namespace}-other"
    for name, value in ((opened, "privileged"), (other, "baseline")):
        labels = {"greentrain.dev/pod-security": value}
        await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    account = {"metadata": {"name": "nobody"}}
    await server.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    nobody = await server.request_token(namespace, "nobody")
    found: dict[str, list[bool]] = {}
    for who, by in (("operator", token), ("nobody", nobody)):
        kubeconfig = write_token_kubeconfig(plane.kubeconfig, tmp_path / who, by)
        async with await connect(str(kubeconfig)) as client:
            namespaces = Namespaces(client)
            names = (opened, other, namespace, "not-there")
            found[who] = [await namespaces.is_privileged(name) for name in names]
    await asyncio.sleep(TLS_CLOSE_SECONDS)
    assert found == {"operator": [True, False, False, False], "nobody": [False] * 4}
