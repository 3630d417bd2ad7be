"""What a token of an agent may do at a real API server that holds the chart's roles and admission policies.

One table says it. Each of its rows is tried by everyone it names, and docs/start/install.md shows the table as it is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from sandbox import release
from sandbox.controlplane import ControlPlane
from tests.support.api import CRDS, JOBS, MERGE, ROOT, Json, RefusedError, Server
from tests.support.manifests import build_job

NODE_POWERS = "/apis/greentrain.dev/v1alpha1/nodepowers"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "ServiceAccount": f"/api/v1/namespaces/{release.AGENT_NAMESPACE}/serviceaccounts",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "ValidatingAdmissionPolicy": f"{ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{ADMISSION}/validatingadmissionpolicybindings",
}
AGENT_PODS = f"/api/v1/namespaces/{release.AGENT_NAMESPACE}/pods"
CRD = "nodepowers.greentrain.dev"
DOCUMENT = ROOT / "docs/start/install.md"

FIRST, SECOND, BARE = "guarded-1", "guarded-2", "guarded-3"
"""Nodes with an agent each. The first two have a NodePower that lists one pod; the third has none."""

# Whose token. The agent's account is one and the same; the node is that of the pod which the token was made for.
OWN, OTHER, NODELESS, ADMINISTRATOR = (
    "that node's agent",
    "another node's agent",
    "the agent's account, no pod",
    "an administrator",
)
WHO = (OWN, OTHER, NODELESS, ADMINISTRATOR)

# What the server says of a refusal. The first is RBAC's, the others are the policies'.
NO_RIGHT = "cannot"
NO_NODE = (
    "this agent's token does not say on which node it is used; only a token the kubelet made for a pod does"
)
NOT_ITS_OWN = "an agent writes the NodePower of its own node only"
STATUS_ONLY = "an agent writes the status of a NodePower only; its spec is the operator's"
WITH_SPEC = "an agent creates a NodePower with an empty spec; the spec is the operator's"
WITH_FINALIZERS = "an agent creates a NodePower without finalizers; they would keep it after its node is gone"
NOT_LISTED = (
    "an agent evicts pods alone that the operator has listed in the NodePower of the agent's own node"
)
REASONS = {
    NO_RIGHT: "the account has no such right (RBAC)",
    **{text: f"“{text}”" for text in (NO_NODE, NOT_ITS_OWN, WITH_SPEC, WITH_FINALIZERS, NOT_LISTED)},
}
"""What the documentation says of each, in the order of its numbers."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; `{namespace}` in its path is that of the test's pods and job."""

    method: str
    path: str
    body: Json | None = None


@dataclass(frozen=True)
class Row:
    """A request about a node, and for everyone who may make it why it is refused; None where it is done."""

    says: str
    node: str
    request: Request
    own: str | None
    other: str | None
    nodeless: str | None
    without_kind: bool = False
    """While the cluster has no kind NodePower."""

    @property
    def expected(self) -> dict[str, str | None]:
        """By who asks. An administrator is never refused."""
        return {OWN: self.own, OTHER: self.other, NODELESS: self.nodeless, ADMINISTRATOR: None}


def create(node: str, *, finalizers: bool = False, **spec: object) -> Request:
    meta: Json = {"name": node} | ({"finalizers": ["example.org/held"]} if finalizers else {})
    body = {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower", "metadata": meta, "spec": spec}
    return Request("POST", NODE_POWERS, body)


def evict(pod: str) -> Request:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    return Request("POST", f"/api/v1/namespaces/{{namespace}}/pods/{pod}/eviction", body)


SETTLED = ["u/0"]
TABLE = (
    Row("read a NodePower", FIRST, Request("GET", f"{NODE_POWERS}/{FIRST}"), None, None, None),
    Row("create a NodePower", BARE, create(BARE), None, NOT_ITS_OWN, NO_NODE),
    Row("… with a `spec`", BARE, create(BARE, settled=SETTLED), WITH_SPEC, NOT_ITS_OWN, NO_NODE),
    Row("… with finalizers", BARE, create(BARE, finalizers=True), WITH_FINALIZERS, NOT_ITS_OWN, NO_NODE),
    Row(
        "change a NodePower's `status`",
        FIRST,
        Request("PATCH", f"{NODE_POWERS}/{FIRST}/status", {"status": {"gpuCount": 2}}),
        None,
        NOT_ITS_OWN,
        NO_NODE,
    ),
    Row(
        "change its `spec`",
        FIRST,
        Request("PATCH", f"{NODE_POWERS}/{FIRST}", {"spec": {"settled": SETTLED}}),
        NO_RIGHT,
        NO_RIGHT,
        NO_RIGHT,
    ),
    Row("delete it", FIRST, Request("DELETE", f"{NODE_POWERS}/{FIRST}"), NO_RIGHT, NO_RIGHT, NO_RIGHT),
    Row("evict a pod that the node's NodePower lists", FIRST, evict("listed"), None, NOT_LISTED, NO_NODE),
    Row("evict a pod that it does not list", FIRST, evict("unlisted"), NOT_LISTED, NOT_LISTED, NO_NODE),
    Row("evict a pod, from a node without a NodePower", BARE, evict("listed"), None, NOT_LISTED, NO_NODE),
    Row(
        "delete a pod",
        FIRST,
        Request("DELETE", "/api/v1/namespaces/{namespace}/pods/listed"),
        NO_RIGHT,
        NO_RIGHT,
        NO_RIGHT,
    ),
    Row("list the pods of all namespaces", FIRST, Request("GET", "/api/v1/pods"), None, None, None),
    Row("list the nodes", FIRST, Request("GET", "/api/v1/nodes"), None, None, None),
    Row(
        "read Secrets",
        FIRST,
        Request("GET", "/api/v1/namespaces/{namespace}/secrets"),
        NO_RIGHT,
        NO_RIGHT,
        NO_RIGHT,
    ),
    Row(
        "change a job",
        FIRST,
        Request("PATCH", f"{JOBS}/digits", {"spec": {"runPolicy": {"suspend": True}}}),
        NO_RIGHT,
        NO_RIGHT,
        NO_RIGHT,
    ),
    # Last: the kind is gone for a while.
    Row(
        "evict a pod while the cluster has no kind NodePower",
        FIRST,
        evict("listed"),
        None,
        None,
        NO_NODE,
        without_kind=True,
    ),
)


async def ask(server: Server, request: Request, namespace: str) -> str | None:
    """Make a request that the server judges and does not carry out; why it is refused, None where it would be done."""
    path = request.path.replace("{namespace}", namespace).replace("{}", namespace)
    if request.method != "GET":
        path += "?dryRun=All"
    content_type = MERGE if request.method == "PATCH" else "application/json"
    try:
        await server.call(request.method, path, request.body, content_type=content_type)
    except RefusedError as refused:
        if refused.status != 403:
            raise
        return str(refused)
    return None


async def until_answered(
    server: Server, asking: Server, request: Request, namespace: str, reason: str | None
) -> None:
    """Wait until a request is refused for this reason, or done where that is None: policies and roles take a moment."""

    def is_so(found: str | None) -> bool:
        return found is None if reason is None else reason in (found or "")

    await server.until(
        partial(ask, asking, request, namespace), is_so, what=f"{request.method} {request.path}: {reason}"
    )


def render_policies(version: str) -> list[Json]:
    """The agent's roles and policies, as the chart has them for a server of that version."""
    values = {
        "image.repository": "registry.example.org/o",
        "agent.image.repository": "registry.example.org/a",
    }
    command: list[str | Path] = [
        *(release.HELM, "template", release.RELEASE, release.CHART, f"--kube-version={version}"),
        *release.build_arguments({**values, "agent.namespace": release.AGENT_NAMESPACE}),
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    return [
        m
        for m in manifests
        if m["kind"] in PATHS
        and m["metadata"]["labels"]["app.kubernetes.io/component"] == "agent"
        and "helm.sh/hook" not in m["metadata"].get("annotations", {})
    ]


@pytest.fixture(scope="session")
def tokens(plane: ControlPlane, crd: None) -> dict[str, str]:
    """Tokens of the agents' pods by node, and of their account alone, at a server that holds roles and policies."""
    del crd  # needed to be there

    async def set_up() -> dict[str, str]:
        async with Server(plane.kubeconfig) as server:
            version = (await server.call("GET", "/version"))["gitVersion"]
            await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": release.AGENT_NAMESPACE}})
            for manifest in render_policies(version):
                await server.call("POST", PATHS[manifest["kind"]], manifest)
            found = {NODELESS: await server.request_token(release.AGENT_NAMESPACE, release.AGENT)}
            for node in (FIRST, SECOND, BARE):
                await server.call("POST", "/api/v1/nodes", {"metadata": {"name": node}})
                spec = {
                    "nodeName": node,
                    "serviceAccountName": release.AGENT,
                    "containers": [{"name": "agent", "image": "x"}],
                }
                body = {"metadata": {"name": f"agent-{node}"}, "spec": spec}
                pod = await server.call("POST", AGENT_PODS, body)
                found[node] = await server.request_token(release.AGENT_NAMESPACE, release.AGENT, pod=pod)
            return found

    return asyncio.run(set_up())


@pytest.fixture
async def agents(plane: ControlPlane, tokens: dict[str, str]) -> AsyncIterator[dict[str, Server]]:
    """Clients with these tokens."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            whose: await stack.enter_async_context(Server(plane.kubeconfig, token=token))
            for whose, token in tokens.items()
        }


async def set_up_node_powers(server: Server, agents: dict[str, Server], namespace: str) -> None:
    """Make the NodePowers, and wait until the policies are in force and know them."""
    for node, pod in ((FIRST, "listed"), (SECOND, "elsewhere")):
        entry = {"uid": f"uid-of-{pod}", "namespace": namespace, "name": pod}
        made = create(node, pods=[entry])
        await server.call(made.method, made.path, made.body)
    for who, request, reason in (
        (NODELESS, create(BARE), NO_NODE),
        (NODELESS, evict("listed"), NO_NODE),
        (FIRST, evict("unlisted"), NOT_LISTED),
        (SECOND, evict("listed"), NOT_LISTED),
        (FIRST, evict("listed"), None),
        (SECOND, evict("elsewhere"), None),
    ):
        await until_answered(server, agents[who], request, namespace, reason)


async def remove_node_powers(server: Server) -> None:
    for node in (FIRST, SECOND):
        with contextlib.suppress(RefusedError):
            await server.call("DELETE", f"{NODE_POWERS}/{node}")


@pytest.fixture
async def guarded(server: Server, agents: dict[str, Server], namespace: str) -> AsyncIterator[Server]:
    """A namespace with a job and pods, of which NodePowers list some, behind policies that are in force."""
    await server.create_job(namespace, build_job())
    for name in ("listed", "unlisted", "elsewhere"):
        body = {"metadata": {"name": name}, "spec": {"containers": [{"name": "tensorflow", "image": "x"}]}}
        await server.call("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    await set_up_node_powers(server, agents, namespace)
    yield server
    await remove_node_powers(server)


@contextlib.asynccontextmanager
async def without_kind(server: Server) -> AsyncIterator[None]:
    """The CRD of NodePower is deleted, with all there are, until the block ends."""

    async def is_there() -> bool:
        found = await server.call("GET", CRDS)
        return any(item["metadata"]["name"] == CRD for item in found["items"])

    await server.call("DELETE", f"{CRDS}/{CRD}")
    await server.until(is_there, lambda there: not there, what="the CRD gone")
    try:
        yield
    finally:
        await server.install_crds(CRD)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.says)
async def test_what_the_table_says_the_server_does(
    guarded: Server, agents: dict[str, Server], namespace: str, row: Row
) -> None:
    clients = {
        OWN: agents[row.node],
        OTHER: agents[FIRST if row.node == SECOND else SECOND],
        NODELESS: agents[NODELESS],
        ADMINISTRATOR: guarded,
    }
    async with without_kind(guarded) if row.without_kind else contextlib.nullcontext():
        said = {who: await ask(clients[who], row.request, namespace) for who in WHO}
    for who, expected in row.expected.items():
        found = said[who]
        if expected is None:
            assert found is None, f"{who} is refused"
        else:
            assert found is not None, f"{who} is allowed"
            assert expected in found, who
            # RBAC is asked before any policy.
            assert ("ValidatingAdmissionPolicy" in found) is (expected != NO_RIGHT), who


async def test_an_agent_that_was_given_more_rights_still_writes_no_spec(
    guarded: Server, agents: dict[str, Server], namespace: str
) -> None:
    name = f"widened-{namespace}"
    rule = {"apiGroups": ["greentrain.dev"], "resources": ["nodepowers"], "verbs": ["patch"]}
    subject = {"kind": "ServiceAccount", "name": release.AGENT, "namespace": release.AGENT_NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    await guarded.call("POST", f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": [rule]})
    binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
    await guarded.call("POST", f"{RBAC}/clusterrolebindings", binding)
    request = Request("PATCH", f"{NODE_POWERS}/{FIRST}", {"spec": {"settled": SETTLED}})

    try:
        for node, reason in ((FIRST, STATUS_ONLY), (SECOND, NOT_ITS_OWN)):
            await until_answered(guarded, agents[node], request, namespace, reason)
    finally:
        await guarded.call("DELETE", f"{RBAC}/clusterrolebindings/{name}")
        await guarded.call("DELETE", f"{RBAC}/clusterroles/{name}")
        # No other test may see that right.
        await until_answered(guarded, agents[FIRST], request, namespace, NO_RIGHT)


BEGIN, END = (
    "<!-- policy table: made from tests/integration/agent/test_policies.py -->",
    "<!-- /policy table -->",
)


def build_document() -> str:
    """The table as docs/start/install.md has it."""
    numbers = {reason: number for number, reason in enumerate(REASONS, 1)}
    lines = [BEGIN, "| request | " + " | ".join(WHO) + " |", "|---" * (len(WHO) + 1) + "|"]
    for row in TABLE:
        cells = ("yes" if r is None else f"no ({numbers[r]})" for r in row.expected.values())
        lines.append(f"| {row.says} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"{number}. {text}" for number, text in enumerate(REASONS.values(), 1)]
    return "\n".join([*lines, END])


def test_the_documented_table_is_the_one_that_is_tried() -> None:
    text = DOCUMENT.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text[text.index(BEGIN) : text.index(END) + len(END)] == build_document()


def test_every_reason_is_documented_and_seen() -> None:
    seen = {reason for row in TABLE for reason in row.expected.values() if reason is not None}
    assert seen == set(REASONS)
