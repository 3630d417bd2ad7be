"""What ends the agents before a release is uninstalled: it needs the agents' image, three rights and no device."""

from __future__ import annotations

import pytest

from greentrain.agent.__main__ import RETIRE_SECONDS
from greentrain.agent.settings import AgentSettings, parse_settings

from .conftest import Manifest, Render, is_hook, only
from .test_rendering import FULL

NAME = "greentrain-agent-retire"
HELM_SECONDS = 300
"""How long Helm waits for a hook unless `--timeout` says otherwise."""


def hooks(manifests: list[Manifest]) -> list[Manifest]:
    """What Helm makes beside the release."""
    return [m for m in manifests if is_hook(m)]


def settings_of(manifests: list[Manifest]) -> AgentSettings:
    """What the hook's container is told."""
    (container,) = only(manifests, "Job")["spec"]["template"]["spec"]["containers"]
    return parse_settings(container["args"])


@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "everything set"])
def test_it_runs_before_anything_of_the_release_is_deleted(render: Render, values: dict[str, object]) -> None:
    manifests = hooks(render(values))
    assert sorted(m["kind"] for m in manifests) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Job",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]
    assert {m["metadata"]["name"] for m in manifests} == {NAME}
    assert {m["metadata"]["annotations"]["helm.sh/hook"] for m in manifests} == {"pre-delete"}


def test_a_release_without_agents_has_none_to_end(render: Render) -> None:
    assert hooks(render({"agent.enabled": False, "agent.image.repository": ""})) == []


def test_its_rights_are_there_before_its_job(render: Render) -> None:
    weights = {
        m["kind"]: int(m["metadata"]["annotations"].get("helm.sh/hook-weight", "0")) for m in hooks(render())
    }
    job = weights.pop("Job")
    assert max(weights.values()) < job


def test_what_it_needed_goes_and_only_a_job_that_failed_stays_until_the_next_try(render: Render) -> None:
    policies = {
        m["kind"]: set(m["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(","))
        for m in hooks(render())
    }
    job = policies.pop("Job")
    assert job == {"before-hook-creation", "hook-succeeded"}
    assert all(policy == {*job, "hook-failed"} for policy in policies.values())
    # A pod that is tried again is another one: what the first one said would have to be looked for.
    spec = only(render(), "Job")["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "ttlSecondsAfterFinished" not in spec


def test_it_has_time_to_wait_for_the_agents_and_ends_before_helm_gives_up(render: Render) -> None:
    manifests = render()
    deadline = only(manifests, "Job")["spec"]["activeDeadlineSeconds"]
    grace = only(manifests, "DaemonSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # A pod may have to be scheduled and its image to be pulled first.
    assert 2 * grace < RETIRE_SECONDS < deadline - 60
    assert deadline < HELM_SECONDS


@pytest.mark.parametrize(
    "values", [{}, FULL, {"agent.namespace": "power"}], ids=["defaults", "full", "namespace"]
)
def test_it_ends_the_agents_of_its_own_release(render: Render, values: dict[str, object]) -> None:
    manifests = render(values)
    agents = only(manifests, "DaemonSet")
    settings = settings_of(manifests)
    assert settings.command == "retire"
    assert settings.daemonset == (agents["metadata"]["namespace"], agents["metadata"]["name"])
    selected = dict(label.split("=") for label in settings.selector.split(","))
    assert selected == agents["spec"]["selector"]["matchLabels"]
    # Not itself, or it would wait for its own end.
    template = only(manifests, "Job")["spec"]["template"]
    assert not selected.items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert container["image"] == agents["spec"]["template"]["spec"]["containers"][0]["image"]


def test_it_may_do_what_it_calls_and_no_more(render: Render) -> None:
    # The calls of agent.retire; test_install.py holds the same against the API server's audit log.
    manifests = hooks(render())
    assert only(manifests, "Role")["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["daemonsets"],
            "resourceNames": ["greentrain-agent"],
            "verbs": ["delete"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    assert only(manifests, "ClusterRole")["rules"] == [
        {"apiGroups": ["greentrain.dev"], "resources": ["nodepowers"], "verbs": ["list"]}
    ]


@pytest.mark.parametrize("values", [{}, {"agent.namespace": "power"}])
def test_its_account_is_its_own_and_lives_with_the_agents(render: Render, values: dict[str, object]) -> None:
    manifests = render(values)
    home = values.get("agent.namespace", "greentrain-agent")
    placed = {m["metadata"]["namespace"] for m in hooks(manifests) if "namespace" in m["metadata"]}
    assert placed == {home}
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        binding = only(hooks(manifests), kind)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": home}]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (
            kind.removesuffix("Binding"),
            NAME,
        )
    assert only(manifests, "Job")["spec"]["template"]["spec"]["serviceAccountName"] == NAME
    assert only(hooks(manifests), "ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("values", "placed"),
    [
        ({}, {"nodeSelector": {"kubernetes.io/os": "linux"}}),
        (
            # Agents tolerate dead nodes; the hook's pod would wait there for its start.
            {"agent.nodeSelector": {"gpu": "yes"}, "agent.tolerations": [{"operator": "Exists"}]},
            {"nodeSelector": {"kubernetes.io/os": "linux"}},
        ),
        (
            {"nodeSelector": {"pool": "system"}, "tolerations": [{"key": "system", "operator": "Exists"}]},
            {
                "nodeSelector": {"kubernetes.io/os": "linux", "pool": "system"},
                "tolerations": [{"key": "system", "operator": "Exists"}],
            },
        ),
        (
            {"affinity": {"nodeAffinity": {}}, "imagePullSecrets": [{"name": "r"}]},
            {
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "affinity": {"nodeAffinity": {}},
                "imagePullSecrets": [{"name": "r"}],
            },
        ),
    ],
)
def test_it_runs_where_the_operator_may(
    render: Render, values: dict[str, object], placed: dict[str, object]
) -> None:
    pod = only(render(values), "Job")["spec"]["template"]["spec"]
    fields = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets")
    assert {field: pod[field] for field in fields if field in pod} == placed
