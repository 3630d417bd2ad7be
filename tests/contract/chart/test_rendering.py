"""The chart as a cluster gets it: valid for every supported server, least rights, restricted pods, whole CRDs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from greentrain.controller.settings import parse_settings
from greentrain.core.pod_security import BASELINE, CAPABILITIES, OWN, PROFILES, SELINUX_TYPES, SYSCTLS
from greentrain.kube.version import OLDEST

from .conftest import CHART, ROOT, HelmError, Manifest, Render, is_hook, only, run_helm

SERVERS = [f"1.{minor}" for minor in range(OLDEST.minor, 38)]
KINDS_OF_SERVER = ("1.32.0", "1.32.0-alpha.1", "1.34.4-gke.100", "1.35.1-eks-1a2b3c", "1.37.2")
CRD_FILES = sorted((ROOT / "crds").glob("*.yaml"))

FULL: dict[str, object] = {
    "image.tag": "v9",
    "imagePullSecrets": [{"name": "registry"}],
    "namespaces": ["team-a", "team-b"],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
            }
        }
    },
    "podAnnotations": {"example.org/team": "platform"},
    "logLevel": "debug",
    "extraArgs": ["--stale-after=60", "--log-format=text", "--workers=8"],
    "progressIntervalSeconds": 15,
    "gpus.resourceNames": ["nvidia.com/gpu.h100", "nvidia.com/mig-*"],
    "emissions.zones": {"eu-central-1": "DE"},
    "emissions.zone": "SE",
    "emissions.pue": "1.2",
    "emissions.configMap": "grid",
    "emissions.embodied.models": {"NVIDIA L40S": "150kgCO2e"},
    "emissions.sources": [
        {"type": "file", "name": "tso", "path": "/etc/greentrain/intensity/de.csv", "zone": "DE"},
        {"type": "table"},
    ],
    "agent.namespace": "power",
    "agent.image.tag": "v9",
    "agent.image.pullPolicy": "Always",
    "agent.runtimeClassName": "nvidia",
    "agent.driver.libraryPath": "/home/kubernetes/bin/nvidia/lib64",
    "agent.driver.readOnly": False,
    "agent.intervalSeconds": 1.5,
    "agent.reportIntervalSeconds": 10,
    "agent.caps.dryRun": True,
    "agent.journal.hostPath": "/data/greentrain",
    "agent.kubelet.rootDirectory": "/data/kubelet",
    "agent.httpPort": 9081,
    "agent.logLevel": "debug",
    "agent.logFormat": "text",
    "agent.extraArgs": ["--log-format=json"],
    "agent.resources": {"limits": {"cpu": 1, "memory": "128Mi"}},
    "agent.nodeSelector": {"nvidia.com/gpu.present": "true"},
    "agent.tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "agent.affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "type", "operator": "DoesNotExist"}]}]
            }
        }
    },
    "agent.podAnnotations": {"example.org/team": "platform"},
    "agent.podLabels": {"example.org/cost-centre": "42"},
    "agent.priorityClassName": "system-node-critical",
    "agent.updateStrategy.maxUnavailable": "10%",
}


def test_helm_lint_finds_nothing() -> None:
    said = run_helm("lint", "--strict", CHART)
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "everything set"])
def test_every_object_fits_the_schemas_of_every_supported_server(
    render: Render, server: str, values: dict[str, object]
) -> None:
    for manifest in render(values, kube=f"{server}.0"):
        kubernetes_validate.validate(manifest, server, strict=True)


@pytest.mark.parametrize("crd", CRD_FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("kube", KINDS_OF_SERVER)
def test_the_rendered_crd_is_the_generated_one_with_its_rules(render: Render, crd: Path, kube: str) -> None:
    generated = yaml.safe_load(crd.read_text())
    rendered = only(render(kube=kube), "CustomResourceDefinition", generated["metadata"]["name"])
    assert rendered["spec"] == generated["spec"]
    assert generated["metadata"]["annotations"].items() <= rendered["metadata"]["annotations"].items()


@pytest.mark.parametrize("kube", ["1.31.0", "1.31.14-gke.100", "1.20.2"])
def test_an_older_server_is_refused_by_helm(render: Render, kube: str) -> None:
    said = f"chart requires kubeVersion: >={OLDEST}.0-0 which is incompatible with Kubernetes v{kube}"
    with pytest.raises(HelmError, match=re.escape(said)):
        render(kube=kube)


def test_there_is_a_crd_and_it_holds_cel_rules() -> None:
    assert CRD_FILES
    assert "x-kubernetes-validations" in CRD_FILES[0].read_text()


@pytest.mark.parametrize(("keep", "policy"), [(True, "keep"), (False, None)])
def test_crds_stay_at_uninstall_when_they_are_to_be_kept(
    render: Render, keep: bool, policy: str | None
) -> None:
    crds = [m for m in render({"crds.keep": keep}) if m["kind"] == "CustomResourceDefinition"]
    assert len(crds) == len(CRD_FILES)
    assert {crd["metadata"]["annotations"].get("helm.sh/resource-policy") for crd in crds} == {policy}


def test_crds_can_be_left_out(render: Render) -> None:
    assert not [m for m in render({"crds.enabled": False}) if m["kind"] == "CustomResourceDefinition"]


@pytest.mark.parametrize("values", [{}, FULL], ids=["all namespaces", "two namespaces"])
def test_no_role_holds_a_star(render: Render, values: dict[str, object]) -> None:
    roles = [m for m in render(values) if m["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in json.dumps(rule), role["metadata"]["name"]


def operator_rights(manifests: list[Manifest], kind: str) -> set[tuple[str, str]]:
    """(verb, resource) pairs the operator's roles of a kind give."""
    roles = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == "greentrain-operator"]
    return {
        (verb, resource)
        for role in roles
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_with_namespaces_the_operator_has_rights_on_jobs_in_these_alone(render: Render) -> None:
    everywhere, named = render(), render(FULL)
    anywhere = operator_rights(named, "ClusterRole")
    assert {resource for _, resource in anywhere} == {"customresourcedefinitions", "nodepowers"}
    assert operator_rights(everywhere, "ClusterRole") == anywhere | operator_rights(named, "Role")
    # Beside them only the hook that ends the agents has a Role, in the agents' namespace (test_retire.py), and the Lease
    # that says that the operator is alive has two (test_agent.py).
    leases = ("greentrain-lease", "greentrain-agent")

    def namespaces_of(manifests: list[Manifest], kind: str) -> list[str]:
        found = [m["metadata"] for m in manifests if m["kind"] == kind and not is_hook(m)]
        return [m["namespace"] for m in found if m["name"] not in leases]

    assert namespaces_of(named, "RoleBinding") == ["team-a", "team-b"]
    assert not namespaces_of(everywhere, "Role")


def test_the_operator_never_writes_a_spec(render: Render) -> None:
    rights = operator_rights(render(), "ClusterRole")
    assert {verb for verb, resource in rights if resource == "greentrainingjobs"} == {
        "list",
        "watch",
        "delete",
    }


def test_the_operator_cannot_read_secrets(render: Render) -> None:
    assert not [
        pair
        for pair in operator_rights(render(), "ClusterRole")
        if pair[1] in ("secrets", "configmaps", "nodes")
    ]


def test_the_policy_on_the_operators_pods_has_the_lists_of_its_own_admission(render: Render) -> None:
    spec = only(render(), "ValidatingAdmissionPolicy", "greentrain-pods")["spec"]
    said = {v["message"]: v["expression"] for v in spec["validations"]}
    baseline = {f"Pod Security's baseline, {rule.control}" for rule in BASELINE}
    assert {m for m in said if "baseline" in m} == baseline
    assert {rule.control for rule in OWN} <= set(said)
    for control, allowed in (
        ("Capabilities", CAPABILITIES),
        ("Sysctls", SYSCTLS),
        ("SELinux", SELINUX_TYPES),
    ):
        words = re.findall(r"'([^']*)'", said[f"Pod Security's baseline, {control}"])
        assert {w for w in words if w} == {a for a in allowed if a}
    for control in ("Seccomp", "AppArmor"):
        assert str(list(PROFILES)) in said[f"Pod Security's baseline, {control}"]


@pytest.mark.parametrize(
    ("values", "closed"),
    [
        ({}, ["greentrain-system", "kube-system", "greentrain-agent"]),
        ({"agent.enabled": False}, ["greentrain-system", "kube-system"]),
    ],
)
def test_the_policy_holds_the_operators_account_alone_and_its_own_namespaces_are_closed(
    render: Render, values: dict[str, object], closed: list[str]
) -> None:
    manifests = render(values)
    spec = only(manifests, "ValidatingAdmissionPolicy", "greentrain-pods")["spec"]
    (by,) = (c["expression"] for c in spec["matchConditions"])
    assert by == "request.userInfo.username == 'system:serviceaccount:greentrain-system:greentrain'"
    assert spec["failurePolicy"] == "Fail"
    assert json.dumps(closed, separators=(",", ":")) in spec["validations"][1]["expression"]
    binding = only(manifests, "ValidatingAdmissionPolicyBinding", "greentrain-pods")["spec"]
    assert binding == {"policyName": "greentrain-pods", "validationActions": ["Deny"]}


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "everything set"])
def test_the_operators_pod_and_the_hooks_meet_the_restricted_pod_security_standard(
    render: Render, values: dict[str, object], kind: str
) -> None:
    pod = only(render(values), kind)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {key for volume in pod.get("volumes", ()) for key in volume} <= {"name", "emptyDir", "configMap"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", ()))


def mount(manifests: list[Manifest], pod: Manifest, arguments: list[str], folder: Path) -> list[str]:
    """The arguments with the pod's ConfigMaps of this release in a folder in place of where they are mounted."""
    for volume in pod["volumes"]:
        name = volume.get("configMap", {}).get("name")
        found = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == name]
        if found:
            path = next(
                m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"]
            )
            for file, text in found[0]["data"].items():
                (folder / file).write_text(text)
            arguments = [a.replace(path, str(folder)) for a in arguments]
    return arguments


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"emissions.pue": "0.9"}, "emissions.pue"),
        ({"emissions.pue": 1.2}, "emissions.pue"),
        ({"emissions.pue": "5.001"}, "emissions.pue"),
        ({"emissions.embodied.lifetimeYears": "0.0"}, "emissions.embodied.lifetimeYears"),
        ({"emissions.embodied.models": {"NVIDIA L40S": "0kgCO2e"}}, "NVIDIA L40S"),
        ({"emissions.basis": "Marginal"}, "emissions.basis"),
        ({"emissions.sources": []}, "emissions.sources"),
        ({"emissions.sources": [{"type": "http"}]}, "emissions.sources"),
        ({"emissions.zonne": "DE"}, "zonne"),
        ({"emissions.embodied.models": {"NVIDIA L40S": "many"}}, "NVIDIA L40S"),
    ],
)
def test_wrong_settings_of_emissions_are_refused_by_helm(
    render: Render, values: dict[str, object], said: str
) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(values)


def test_other_settings_of_emissions_make_another_pod(render: Render) -> None:
    def annotations(values: dict[str, object]) -> object:
        return only(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations({}) == annotations({}) != annotations({"emissions.zone": "DE"})


def test_the_operator_understands_every_argument_it_is_given(render: Render, tmp_path: Path) -> None:
    manifests = render(FULL)
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    settings = parse_settings(mount(manifests, pod, container["args"], tmp_path))
    assert settings.emissions.zones == {"eu-central-1": "DE"}
    assert settings.emissions.pue == 1200
    assert [s.name for s in settings.emissions.sources] == ["tso", "table"]
    assert settings.lease == ("greentrain-system", "greentrain")
    assert settings.namespaces == ("team-a", "team-b")
    assert settings.progress_interval == 15
    assert settings.log_level == "DEBUG"
    assert (settings.stale_after, settings.log_format, settings.workers) == (60, "text", 8)
    assert settings.http_port == container["ports"][0]["containerPort"]


def test_there_is_one_operator_at_a_time(render: Render) -> None:
    spec = only(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_why_the_operator_ended_is_its_termination_message(render: Render) -> None:
    (container,) = only(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_an_image_without_a_repository_is_refused_with_the_remedy(render: Render) -> None:
    with pytest.raises(HelmError, match=re.escape("docs/start/install.md")):
        render({"image.repository": ""})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 2}, "replicas"),
        ({"image.repo": "x"}, "repo"),
        ({"logLevel": "verbose"}, "logLevel"),
        ({"extraArgs": ["stale-after"]}, "extraArgs"),
        ({"progressIntervalSeconds": "2s"}, "progressIntervalSeconds"),
        ({"namespaces": ["Team"]}, "namespaces"),
        *(
            ({"gpus.resourceNames": names}, "resourceNames")
            for names in (
                [],
                ["gpu"],
                ["*"],
                ["a.b/"],
                ["a.b/x-*-y"],
                ["a.b/x,a.b/y"],
                ["a.b/x", "a.b/x"],
                "a.b/x",
            )
        ),
        ({"gpus.names": ["a.b/x"]}, "names"),
        ({"crds.keep": "yes"}, "keep"),
        ({"agent.hostPID": True}, "hostPID"),
        ({"agent.namespace": ""}, "namespace"),
        ({"agent.intervalSeconds": 0.1}, "intervalSeconds"),
        ({"agent.reportIntervalSeconds": "30s"}, "reportIntervalSeconds"),
        ({"agent.driver.libraryPath": "lib64"}, "libraryPath"),
        ({"agent.caps.dryRun": "yes"}, "dryRun"),
        ({"agent.caps.enabled": True}, "enabled"),
        ({"agent.journal.hostPath": ""}, "hostPath"),
        ({"agent.kubelet.rootDirectory": "/var/lib/kubelet/"}, "rootDirectory"),
        ({"agent.httpPort": 0}, "httpPort"),
        ({"agent.logLevel": "verbose"}, "logLevel"),
        ({"agent.logFormat": "xml"}, "logFormat"),
        ({"agent.extraArgs": ["-v"]}, "extraArgs"),
        ({"agent.updateStrategy.maxUnavailable": 0}, "maxUnavailable"),
        ({"agent.updateStrategy.maxUnavailable": "some"}, "maxUnavailable"),
    ],
)
def test_a_value_that_does_not_exist_or_fit_is_refused(
    render: Render, values: dict[str, object], named: str
) -> None:
    with pytest.raises(HelmError, match=named):
        render(values)


def test_every_value_is_described_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    undescribed: list[str] = []

    def look(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for name, value in values.items():
            described = schema.get("properties", {}).get(name)
            if described is None or not described.get("description"):
                undescribed.append(path + name)
            elif isinstance(value, dict) and "properties" in described:
                look(value, described, f"{path}{name}.")

    look(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
    assert undescribed == []


def test_every_value_has_a_default_and_stands_in_the_installation_guide() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    guide = (ROOT / "docs/start/install.md").read_text()
    missing: list[str] = []

    def look(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for name, described in schema["properties"].items():
            if path + name == "global":
                continue
            if name not in values:
                missing.append(f"{path}{name} has no default")
            elif "properties" in described and name != "resources":
                look(values[name], described, f"{path}{name}.")
            elif f"`{path}{name}`" not in guide:
                missing.append(f"{path}{name} is not in docs/start/install.md")

    look(defaults, json.loads((CHART / "values.schema.json").read_text()), "")
    assert missing == []


def test_a_service_monitor_needs_the_prometheus_operator(render: Render) -> None:
    with pytest.raises(HelmError, match="install the Prometheus operator first"):
        render({"serviceMonitor.enabled": True})
    manifests = render({"serviceMonitor.enabled": True}, apis=("monitoring.coreos.com/v1",))
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["honorLabels"]  # else a job's labels are renamed to exported_namespace and exported_job


def test_the_metrics_service_selects_the_operator(render: Render) -> None:
    manifests = render()
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert only(manifests, "Service")["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("name", "aggregates", "verbs"),
    [
        ("greentrain-view", {"view", "edit", "admin"}, {"get", "list", "watch"}),
        ("greentrain-edit", {"edit", "admin"}, {"create", "update", "patch", "delete", "deletecollection"}),
    ],
)
def test_people_who_may_view_or_edit_workloads_may_do_so_with_jobs(
    render: Render, name: str, aggregates: set[str], verbs: set[str]
) -> None:
    role = only(render(), "ClusterRole", name)
    labels = {f"rbac.authorization.k8s.io/aggregate-to-{kind}": "true" for kind in aggregates}
    found = {key: value for key, value in role["metadata"]["labels"].items() if "aggregate-to" in key}
    assert found == labels
    assert set(role["rules"][0]["verbs"]) == verbs
