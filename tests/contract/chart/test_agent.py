"""The agent's part of the chart: what runs on a node, what it may touch there and at the API server, and who it may be."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cel
import pytest

from greentrain.agent.settings import parse_settings
from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.controller.settings import parse_settings as parse_operator_settings

from .conftest import HelmError, Manifest, Render, is_hook, only
from .test_rendering import FULL, KINDS_OF_SERVER

NODE_NAME = "authentication.kubernetes.io/node-name"
REPORTS = "greentrain-agent"
"""The policy on what agents write; those on what they evict are named after it."""
ACCOUNT = "system:serviceaccount:greentrain-agent:greentrain-agent"


def pod_of(manifests: list[Manifest]) -> dict[str, Any]:
    """The spec of the agent's pods."""
    spec: dict[str, Any] = only(manifests, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def container_of(manifests: list[Manifest]) -> dict[str, Any]:
    """The one container of the agent's pods."""
    (container,) = pod_of(manifests)["containers"]
    found: dict[str, Any] = container
    return found


def agents(manifests: list[Manifest]) -> list[Manifest]:
    """The objects that are there for the agent."""
    label = "app.kubernetes.io/component"
    return [m for m in manifests if m["metadata"].get("labels", {}).get(label) == "agent"]


def test_agents_can_be_left_out_with_all_that_is_theirs(render: Render) -> None:
    manifests = agents(render())
    assert {m["kind"] for m in manifests if not is_hook(m)} == {
        "Namespace",
        "ServiceAccount",
        "DaemonSet",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    # What ends them (test_retire.py).
    assert {m["metadata"]["name"] for m in manifests if is_hook(m)} == {"greentrain-agent-retire"}
    without = render({"agent.enabled": False, "agent.image.repository": ""})
    assert agents(without) == []
    assert not [m for m in without if "agent" in m["metadata"]["name"]]


def test_an_agent_image_without_a_repository_is_refused_with_both_remedies(render: Render) -> None:
    with pytest.raises(HelmError, match=r"(?s)docs/start/install\.md.*agent\.enabled=false"):
        render({"agent.image.repository": ""})


@pytest.mark.parametrize(
    ("values", "made"),
    [
        ({}, ["greentrain-agent"]),
        ({"agent.namespace": "power"}, ["power"]),
        ({"agent.createNamespace": False}, []),
        # Helm has made the release's own.
        ({"agent.namespace": "greentrain-system"}, []),
    ],
)
def test_the_agents_live_in_a_namespace_that_admits_privileged_pods(
    render: Render, values: dict[str, object], made: list[str]
) -> None:
    manifests = render(values)
    namespaces = [m["metadata"] for m in manifests if m["kind"] == "Namespace"]
    assert [n["name"] for n in namespaces] == made
    for namespace in namespaces:
        assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    home = values.get("agent.namespace", "greentrain-agent")
    # What it may read of the operator lies beside that one.
    rights = [m for m in agents(manifests) if m["kind"] in ("Role", "RoleBinding") and not is_hook(m)]
    placed = {
        m["metadata"]["namespace"]
        for m in agents(manifests)
        if "namespace" in m["metadata"] and m not in rights
    }
    assert placed == {home}
    assert {m["metadata"]["namespace"] for m in rights} == {"greentrain-system"}
    (bound,) = (s for m in rights for s in m.get("subjects", ()))
    assert bound["namespace"] == home
    (subject,) = only(manifests, "ClusterRoleBinding", "greentrain-agent")["subjects"]
    account = next(m for m in agents(manifests) if m["kind"] == "ServiceAccount" and not is_hook(m))
    assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], home)
    assert pod_of(manifests)["serviceAccountName"] == account["metadata"]["name"]


@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "everything set"])
def test_the_agent_is_privileged_and_takes_no_more_of_the_host_than_it_needs(
    render: Render, values: dict[str, object]
) -> None:
    manifests = render(values)
    pod, container = pod_of(manifests), container_of(manifests)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert container["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert pod["securityContext"] == {"runAsUser": 0, "runAsGroup": 0}
    assert not any("hostPort" in port for port in container["ports"])
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert "nvidia.com/gpu" not in str(container["resources"])


@pytest.mark.parametrize(
    ("values", "volumes"),
    [
        (
            {},
            {
                "/var/lib/greentrain": ("/var/lib/greentrain", "DirectoryOrCreate", False),
                "/var/lib/kubelet/pod-resources": ("/var/lib/kubelet/pod-resources", "Directory", False),
                "/host/cgroup": ("/sys/fs/cgroup", "Directory", True),
            },
        ),
        (
            {
                "agent.journal.hostPath": "/data/greentrain",
                "agent.kubelet.rootDirectory": "/data/kubelet",
                "agent.driver.libraryPath": "/opt/lib64",
            },
            {
                "/var/lib/greentrain": ("/data/greentrain", "DirectoryOrCreate", False),
                "/data/kubelet/pod-resources": ("/data/kubelet/pod-resources", "Directory", False),
                "/host/cgroup": ("/sys/fs/cgroup", "Directory", True),
                "/opt/lib64": ("/opt/lib64", "Directory", True),
            },
        ),
        (
            {"agent.driver.libraryPath": "/opt/lib64", "agent.driver.readOnly": False},
            {
                "/var/lib/greentrain": ("/var/lib/greentrain", "DirectoryOrCreate", False),
                "/var/lib/kubelet/pod-resources": ("/var/lib/kubelet/pod-resources", "Directory", False),
                "/host/cgroup": ("/sys/fs/cgroup", "Directory", True),
                "/opt/lib64": ("/opt/lib64", "Directory", False),
            },
        ),
    ],
)
def test_folders_of_the_node_lie_where_the_agent_looks(
    render: Render, values: dict[str, object], volumes: dict[str, tuple[str, str, bool]]
) -> None:
    manifests = render(values)
    container = container_of(manifests)
    paths = {v["name"]: v["hostPath"] for v in pod_of(manifests)["volumes"] if "hostPath" in v}
    found = {
        m["mountPath"]: (*paths[m["name"]].values(), m.get("readOnly", False))
        for m in container["volumeMounts"]
        if m["name"] in paths
    }
    assert found == volumes
    settings = parse_settings(["--node=n", *container["args"]])
    looked_at = (settings.journal, settings.kubelet_socket.parent, settings.cgroup_root)
    assert {str(folder) for folder in looked_at} <= found.keys()


@pytest.mark.parametrize(
    ("values", "environment"),
    [
        ({}, {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}),
        ({"agent.driver.libraryPath": "/opt/lib64"}, {"LD_LIBRARY_PATH": "/opt/lib64"}),
    ],
)
def test_the_drivers_library_comes_from_the_runtime_or_from_a_folder(
    render: Render, values: dict[str, object], environment: dict[str, str]
) -> None:
    container = container_of(render(values))
    assert {e["name"]: e["value"] for e in container["env"] if "value" in e} == environment


def test_the_agent_is_told_its_node(render: Render) -> None:
    (variable,) = (e for e in container_of(render())["env"] if e["name"] == "NODE_NAME")
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_the_agent_understands_every_argument_it_is_given(render: Render) -> None:
    container = container_of(render(FULL))
    settings = parse_settings(["--node=n", *container["args"]])
    assert (settings.interval, settings.report_interval) == (1.5, 10)
    # An extra argument comes last, and wins.
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert settings.kubelet_socket == Path("/data/kubelet/pod-resources/kubelet.sock")
    assert settings.dry_run
    assert settings.http_port == container["ports"][0]["containerPort"] == 9081
    defaults = parse_settings(["--node=n", *container_of(render())["args"]])
    # All but where the node's cgroups are, which a container of its own cannot see at their usual place, and the Lease of
    # this release's operator.
    assert defaults == replace(
        parse_settings(["--node=n"]),
        cgroup_root=Path("/host/cgroup"),
        operator_lease=("greentrain-system", "greentrain"),
    )


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, SHIPPED.names),
        (FULL, ("nvidia.com/gpu.h100", "nvidia.com/mig-*")),
        ({"gpus.resourceNames": ["a.b/*"]}, ("a.b/*",)),
    ],
    ids=["defaults", "everything set", "one"],
)
def test_operator_and_agent_count_the_same_resources_as_gpus(
    render: Render, values: dict[str, object], names: tuple[str, ...]
) -> None:
    manifests = render(values)
    (operator,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    at = operator["args"].index("--gpu-resources")
    counted = parse_operator_settings(operator["args"][at : at + 2]).gpu_resources
    read = parse_settings(["--node=n", *container_of(manifests)["args"]]).gpu_resources
    assert counted == read == GpuResources(names)


def test_the_agent_listens_to_the_lease_that_the_operator_renews(render: Render) -> None:
    manifests = render()
    (operator,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    at = operator["args"].index("--lease")
    renewed = parse_operator_settings(operator["args"][at : at + 2]).lease
    assert renewed is not None
    heard = parse_settings(["--node=n", *container_of(manifests)["args"]]).operator_lease
    assert renewed == heard == ("greentrain-system", "greentrain")
    # One pair for each call, held to that one name where RBAC can.
    for role, rights in (
        ("greentrain-lease", {("get", True), ("update", True), ("create", False)}),
        ("greentrain-agent", {("list", True), ("watch", True)}),
    ):
        found = only(manifests, "Role", role)
        assert found["metadata"]["namespace"] == renewed[0]
        pairs = set()
        for rule in found["rules"]:
            assert (rule["apiGroups"], rule["resources"]) == (["coordination.k8s.io"], ["leases"])
            pairs |= {(verb, rule.get("resourceNames") == [renewed[1]]) for verb in rule["verbs"]}
        assert pairs == rights


def test_every_probe_asks_the_port_that_is_served(render: Render) -> None:
    container = container_of(render(FULL))
    assert container["ports"][0]["name"] == "http"
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/healthz", "port": "http"},
        "liveness": {"path": "/healthz", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }


@pytest.mark.parametrize(
    ("values", "field", "default", "given"),
    [
        ({"agent.runtimeClassName": "nvidia"}, "runtimeClassName", None, "nvidia"),
        ({"agent.priorityClassName": "high"}, "priorityClassName", None, "high"),
        ({"imagePullSecrets": [{"name": "r"}]}, "imagePullSecrets", None, [{"name": "r"}]),
        (
            {"agent.nodeSelector": {"gpu": "yes"}},
            "nodeSelector",
            {"kubernetes.io/os": "linux"},
            {"kubernetes.io/os": "linux", "gpu": "yes"},
        ),
        ({"agent.tolerations": []}, "tolerations", [{"operator": "Exists"}], None),
        ({"agent.affinity": {"nodeAffinity": {}}}, "affinity", None, {"nodeAffinity": {}}),
    ],
)
def test_where_and_how_agents_run_can_be_chosen(
    render: Render, values: dict[str, object], field: str, default: object, given: object
) -> None:
    assert pod_of(render()).get(field) == default
    assert pod_of(render(values)).get(field) == given


@pytest.mark.parametrize("unavailable", [1, "10%"])
def test_an_update_replaces_agents_node_by_node(render: Render, unavailable: object) -> None:
    spec = only(render({"agent.updateStrategy.maxUnavailable": unavailable}), "DaemonSet")["spec"]
    assert spec["updateStrategy"] == {
        "type": "RollingUpdate",
        # Without maxSurge: two agents of one node would wait for each other's journal.
        "rollingUpdate": {"maxUnavailable": unavailable},
    }


def test_labels_of_a_users_own_do_not_part_pods_from_their_daemonset(render: Render) -> None:
    labels = {"team": "platform", "app.kubernetes.io/component": "operator"}
    spec = only(render({"agent.podLabels": labels}), "DaemonSet")["spec"]
    found = spec["template"]["metadata"]["labels"]
    assert found["team"] == "platform"
    assert spec["selector"]["matchLabels"].items() <= found.items()
    operator = only(render(), "Deployment")["spec"]["selector"]["matchLabels"]
    assert not operator.items() <= found.items()


def test_a_pod_monitor_needs_the_prometheus_operator(render: Render) -> None:
    with pytest.raises(HelmError, match="install the Prometheus operator first"):
        render({"agent.podMonitor.enabled": True})
    apis = ("monitoring.coreos.com/v1",)
    manifests = render({"agent.podMonitor.enabled": True, "agent.podMonitor.intervalSeconds": 7}, apis=apis)
    spec = only(manifests, "PodMonitor")["spec"]
    labels = only(manifests, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == (container_of(manifests)["ports"][0]["name"], "7s")
    without = render({"agent.enabled": False, "agent.podMonitor.enabled": True})
    assert not [m for m in without if m["kind"] == "PodMonitor"]


def test_an_agent_may_do_what_it_calls_and_no_more(render: Render) -> None:
    # The calls of kube.node.NodeView; test_install.py holds the same against the API server's audit log.
    role = only(render(), "ClusterRole", "greentrain-agent")
    pairs = {(v, r) for rule in role["rules"] for v in rule["verbs"] for r in rule["resources"]}
    assert pairs == {
        ("list", "pods"),
        ("watch", "pods"),
        ("list", "nodes"),
        ("watch", "nodes"),
        ("get", "nodepowers"),
        ("list", "nodepowers"),
        ("watch", "nodepowers"),
        ("create", "nodepowers"),
        ("patch", "nodepowers/status"),
        ("create", "pods/eviction"),
    }
    (own,) = (m for m in agents(render()) if m["kind"] == "Role" and not is_hook(m))
    assert {(v, r) for rule in own["rules"] for v in rule["verbs"] for r in rule["resources"]} == {
        ("list", "leases"),
        ("watch", "leases"),
    }


@pytest.mark.parametrize("values", [{}, {"namespaces": ["team-a"]}])
def test_agents_have_the_same_rights_whatever_the_operators_namespaces(
    render: Render, values: dict[str, object]
) -> None:
    assert only(render(values), "ClusterRole", "greentrain-agent") == only(
        render(), "ClusterRole", "greentrain-agent"
    )


def test_whoever_may_view_the_cluster_may_see_its_nodepowers(render: Render) -> None:
    rules = only(render(), "ClusterRole", "greentrain-view")["rules"]
    (rule,) = (r for r in rules if "nodepowers" in r["resources"])
    assert set(rule["verbs"]) == {"get", "list", "watch"}
    edit = only(render(), "ClusterRole", "greentrain-edit")["rules"]
    assert not [r for r in edit if "nodepowers" in str(r["resources"])]


# --- An agent speaks for its own node only -------------------------------------------------------------------------


@pytest.mark.parametrize("kube", KINDS_OF_SERVER)
def test_every_policy_is_there_and_bound_whatever_the_server_calls_itself(render: Render, kube: str) -> None:
    manifests = render(kube=kube)
    policies = {REPORTS, f"{REPORTS}-eviction", f"{REPORTS}-evicted", "greentrain-pods"}
    for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"):
        assert {m["metadata"]["name"] for m in manifests if m["kind"] == kind} == policies


def test_the_policy_is_bound_to_deny(render: Render) -> None:
    policy = only(render(), "ValidatingAdmissionPolicy", REPORTS)
    binding = only(render(), "ValidatingAdmissionPolicyBinding", REPORTS)
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }
    assert policy["spec"]["failurePolicy"] == "Fail"
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert set(rule["operations"]) == {"CREATE", "UPDATE"}
    assert set(rule["resources"]) == {"nodepowers", "nodepowers/status"}


def judge(
    policy: Manifest, request: dict[str, Any], body: dict[str, Any], params: dict[str, Any] | None = None
) -> bool | None:
    """Evaluate a policy as the server would: None where it does not concern the request, else whether it is admitted."""
    known: dict[str, Any] = {"request": request, "object": body, "params": params}
    spec = policy["spec"]
    if not all(cel.evaluate(c["expression"], known) for c in spec["matchConditions"]):
        return None
    known["variables"] = {}
    for variable in spec.get("variables", ()):
        value = cel.evaluate(variable["expression"], known)
        known["variables"] = {**known["variables"], variable["name"]: value}
    return all(cel.evaluate(v["expression"], known) is True for v in spec["validations"])


def request_of(
    operation: str, subresource: str | None, nodes: list[str] | None, account: str = ACCOUNT
) -> dict[str, Any]:
    """An AdmissionRequest as expressions see it: what is empty is not there at all."""
    user: dict[str, Any] = {"username": account, "groups": ["system:serviceaccounts"]}
    if nodes is not None:
        user["extra"] = {"authentication.kubernetes.io/pod-name": ["greentrain-agent-x"], NODE_NAME: nodes}
    request: dict[str, Any] = {"operation": operation, "userInfo": user, "name": "node1"}
    return request if subresource is None else {**request, "subResource": subresource}


NODE1: dict[str, Any] = {"metadata": {"name": "node1", "labels": {"a": "b"}}, "spec": {}}
NODE2 = {**NODE1, "metadata": {"name": "node2"}}
REPORTED = {**NODE1, "spec": {"settled": ["u/0"]}, "status": {"idleJoules": 7}}


@pytest.mark.parametrize(
    ("operation", "subresource", "nodes", "body", "admitted"),
    [
        ("UPDATE", "status", ["node1"], REPORTED, True),
        ("CREATE", None, ["node1"], NODE1, True),
        ("CREATE", None, ["node1"], {"metadata": {"name": "node1"}}, True),
        ("CREATE", None, ["node1"], {**NODE1, "metadata": {"name": "node1", "finalizers": []}}, True),
        # Another node's.
        ("UPDATE", "status", ["node2"], REPORTED, False),
        ("UPDATE", "status", ["node1"], {**REPORTED, **NODE2}, False),
        ("CREATE", None, ["node1"], NODE2, False),
        # A token that says no node, or not which.
        ("UPDATE", "status", None, REPORTED, False),
        ("UPDATE", "status", [], REPORTED, False),
        ("UPDATE", "status", [""], REPORTED, False),
        ("UPDATE", "status", ["node1", "node2"], REPORTED, False),
        ("CREATE", None, None, NODE1, False),
        # The operator's half.
        ("UPDATE", None, ["node1"], REPORTED, False),
        ("CREATE", None, ["node1"], {**NODE1, "spec": {"settled": []}}, False),
        ("CREATE", None, ["node1"], {**NODE1, "spec": {"later": 1}}, False),
        # What would hold the object for ever.
        ("CREATE", None, ["node1"], {**NODE1, "metadata": {"name": "node1", "finalizers": ["a/b"]}}, False),
    ],
)
def test_an_agent_writes_the_status_of_its_own_node_alone(
    render: Render,
    operation: str,
    subresource: str | None,
    nodes: list[str] | None,
    body: dict[str, Any],
    admitted: bool,
) -> None:
    policy = only(render(), "ValidatingAdmissionPolicy", REPORTS)
    request = request_of(operation, subresource, nodes)
    assert judge(policy, request, copy.deepcopy(body)) is admitted


def test_a_token_without_any_extra_of_its_pod_is_denied(render: Render) -> None:
    request = request_of("UPDATE", "status", ["node1"])
    del request["userInfo"]["extra"][NODE_NAME]
    assert judge(only(render(), "ValidatingAdmissionPolicy", REPORTS), request, REPORTED) is False


@pytest.mark.parametrize(
    "account",
    [
        "admin",
        "system:serviceaccount:greentrain-system:greentrain",
        "system:serviceaccount:greentrain-agent:default",
    ],
)
def test_the_policy_concerns_agents_alone(render: Render, account: str) -> None:
    request = request_of("UPDATE", None, None, account)
    assert judge(only(render(), "ValidatingAdmissionPolicy", REPORTS), request, REPORTED) is None


def test_the_policy_follows_the_agents_namespace_and_name(render: Render) -> None:
    manifests = render({"agent.namespace": "power"})
    request = request_of("CREATE", None, ["node2"], "system:serviceaccount:power:greentrain-agent")
    assert judge(only(manifests, "ValidatingAdmissionPolicy", REPORTS), request, NODE1) is False


# --- An agent evicts what is listed for its own node only ----------------------------------------------------------


def test_no_policy_on_evictions_can_stand_in_the_way_of_a_drain(render: Render) -> None:
    """Where parameters cannot be had the server applies failurePolicy to every request, before it asks whose it is."""
    manifests = render()
    for name in ("eviction", "evicted"):
        policy = only(manifests, "ValidatingAdmissionPolicy", f"{REPORTS}-{name}")["spec"]
        binding = only(manifests, "ValidatingAdmissionPolicyBinding", f"{REPORTS}-{name}")["spec"]
        (rule,) = policy["matchConstraints"]["resourceRules"]
        assert (rule["apiGroups"], rule["resources"], rule["operations"]) == (
            [""],
            ["pods/eviction"],
            ["CREATE"],
        )
        assert (binding["policyName"], binding["validationActions"]) == (f"{REPORTS}-{name}", ["Deny"])
        if "paramKind" not in policy:
            assert policy["failurePolicy"] == "Fail"
            continue
        assert policy["paramKind"] == {"apiVersion": "greentrain.dev/v1alpha1", "kind": "NodePower"}
        assert policy["failurePolicy"] == "Ignore"
        assert binding["paramRef"] == {"selector": {}, "parameterNotFoundAction": "Allow"}


def eviction_of(
    pod: str, nodes: list[str] | None, account: str = ACCOUNT, namespace: str = "team"
) -> dict[str, Any]:
    """An AdmissionRequest for a pod's eviction."""
    return {**request_of("CREATE", "eviction", nodes, account), "namespace": namespace, "name": pod}


def node_power(name: str, *pods: str, **spec: Any) -> dict[str, Any]:
    """A NodePower that lists pods of the namespace `team`."""
    listed = [{"uid": f"uid-{pod}", "namespace": "team", "name": pod} for pod in pods]
    return {"metadata": {"name": name}, "spec": {**({"pods": listed} if pods else {}), **spec}}


def judge_eviction(
    manifests: list[Manifest], request: dict[str, Any], *params: dict[str, Any]
) -> bool | None:
    """Both policies, the second asked of every NodePower."""
    eviction: dict[str, Any] = {"metadata": {"name": request["name"], "namespace": request["namespace"]}}
    alone = only(manifests, "ValidatingAdmissionPolicy", f"{REPORTS}-eviction")
    listed = only(manifests, "ValidatingAdmissionPolicy", f"{REPORTS}-evicted")
    found = [judge(alone, request, eviction), *(judge(listed, request, eviction, p) for p in params)]
    return None if all(one is None for one in found) else all(found)


@pytest.mark.parametrize(
    ("request_", "params", "admitted"),
    [
        (eviction_of("a", ["node1"]), [node_power("node1", "a", "b")], True),
        (eviction_of("b", ["node1"]), [node_power("node1", "a", "b"), node_power("node2", "c")], True),
        # Not listed for its node, or for none.
        (eviction_of("c", ["node1"]), [node_power("node1", "a", "b"), node_power("node2", "c")], False),
        (eviction_of("a", ["node1"], namespace="other"), [node_power("node1", "a")], False),
        (eviction_of("a", ["node1"]), [node_power("node1")], False),
        (eviction_of("a", ["node1"]), [{"metadata": {"name": "node1"}}], False),
        (eviction_of("a", ["node1"]), [node_power("node1", pods=[{"uid": "uid-a"}])], False),
        (eviction_of("a", ["node1"]), [node_power("node1", pods=[{"name": "a"}])], False),
        # A token that says no node, or not which.
        (eviction_of("a", None), [node_power("node1", "a")], False),
        (eviction_of("a", []), [node_power("node1", "a")], False),
        (eviction_of("a", [""]), [node_power("node1", "a")], False),
        (eviction_of("a", ["node1", "node2"]), [node_power("node1", "a")], False),
        # A node without a NodePower is held by no list.
        (eviction_of("a", ["node3"]), [node_power("node1", "a")], True),
        (eviction_of("a", ["node3"]), [], True),
        # Anybody else.
        (eviction_of("a", None, "admin"), [node_power("node1")], None),
        (eviction_of("a", ["node1"], "system:serviceaccount:greentrain-agent:default"), [], None),
    ],
)
def test_an_agent_evicts_what_the_operator_has_listed_for_its_own_node(
    render: Render, request_: dict[str, Any], params: list[dict[str, Any]], admitted: bool | None
) -> None:
    assert judge_eviction(render(), request_, *params) is admitted
