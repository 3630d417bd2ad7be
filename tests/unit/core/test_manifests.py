"""The objects of a job: what the user wrote, and what greentrain adds to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from greentrain.api.models import drop_nulls
from greentrain.api.spec import GreenTrainingJobSpec, ReplicaType
from greentrain.api.status import AttemptStatus
from greentrain.core.admission import Admitted, decide_admission
from greentrain.core.gang.manifests import build_pod, build_service, gang, ranks, replica_counts, spec_hash
from greentrain.core.seen.pods import Rank
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of, worker

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_of(manifest: dict[str, Any], rank: Rank, number: int = 1) -> dict[str, Any]:
    spec = GreenTrainingJobSpec.model_validate(manifest["spec"])
    attempt = AttemptStatus(
        number=number,
        replicas=replica_counts(spec),
        spec_hash=spec_hash(spec),
        start_time="2026-01-01T00:00:00Z",
    )
    return build_pod(job_of(manifest), spec, attempt, rank)


def env_of(pod: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod["spec"]["containers"][0]["env"]}


def test_tf_config_has_tfjobs_structure_and_a_master_is_a_chief() -> None:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Master"] = {"template": build_template()}
    pod = pod_of(manifest, worker(1))
    address = "digits-{}.digits.team.svc:2222"
    assert json.loads(env_of(pod)["TF_CONFIG"]) == {
        "cluster": {
            "chief": [address.format("master-0")],
            "worker": [address.format("worker-0"), address.format("worker-1")],
        },
        "task": {"type": "worker", "index": 1},
        "environment": "cloud",
    }


def test_a_single_replica_gets_no_tf_config() -> None:
    assert "TF_CONFIG" not in env_of(pod_of(build_job(workers=1), worker(0)))


NULLED = {
    "args": None,
    "command": None,
    "env": None,
    "ports": None,
    "volumeMounts": None,
    "resources": {"limits": {"nvidia.com/gpu": None}, "requests": None},
    "securityContext": {"capabilities": {"add": None}, "privileged": None, "runAsUser": None},
    "terminationMessagePolicy": None,
}


def test_a_null_anywhere_in_a_template_means_that_the_field_is_not_set() -> None:
    empty: dict[str, Any] = {"resources": {"limits": {}}, "securityContext": {"capabilities": {}}}
    manifests = []
    for template in (build_template(**NULLED), build_template(**empty)):
        manifest = build_job(checkpoint={"volume": {"emptyDir": {}}})
        manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
        manifests.append(manifest)
    nulled = manifests[0]["spec"]
    pod_spec = nulled["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    pod_spec |= dict.fromkeys(
        ("hostname", "restartPolicy", "initContainers", "volumes", "terminationGracePeriodSeconds")
    )
    pod_spec |= dict.fromkeys(("securityContext", "serviceAccountName", "automountServiceAccountToken"))
    nulled["tfReplicaSpecs"]["Worker"]["template"]["metadata"] = {"labels": None, "annotations": None}
    nulled["checkpoint"]["volume"]["persistentVolumeClaim"] = None
    nulled |= dict.fromkeys(("runPolicy", "energy", "power", "schedule", "successPolicy"))
    assert isinstance(decide_admission(job_of(manifests[0])), Admitted)
    built = [pod_of(m, worker(0)) for m in manifests]
    for pod in built:
        pod["metadata"]["annotations"].pop("greentrain.dev/spec-hash")
    assert built[0] == built[1]
    assert "null" not in json.dumps(built[0])


def test_a_template_of_any_depth_loses_its_nulls() -> None:
    deep: Any = {"leaf": None}
    for _ in range(5_000):
        deep = {"args": [deep]}
    node = drop_nulls(deep)
    while "args" in node:
        (node,) = node["args"]
    assert node == {}


@pytest.mark.parametrize("value", [[], {}, [[]], [{"a": []}], 5, "x", True, 1e300, -1], ids=str)
@pytest.mark.parametrize(
    "container",
    [
        lambda value: {"ports": [{"containerPort": value, "name": value}]},
        lambda value: {"securityContext": {"capabilities": {"add": [value]}, "runAsUser": value}},
        lambda value: {"env": [{"name": value, "value": value}], "volumeMounts": [{"name": value}]},
        lambda value: {"resources": {"limits": {"cpu": value}}, "image": value},
    ],
    ids=["ports", "security", "env", "resources"],
)
def test_a_value_of_a_wrong_type_is_passed_on_for_the_server_to_refuse(
    container: Callable[[object], dict[str, Any]], value: object
) -> None:
    given = container(value)
    manifest = build_job(workers=1)
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(**given)
    (built,) = pod_of(manifest, worker(0))["spec"]["containers"]
    for field, found in given.items():
        assert json.dumps(found)[1:-1] in json.dumps(built[field])


def test_an_init_container_tells_its_last_lines_too() -> None:
    manifest = build_job()
    inits = [{"name": "a", "image": "x"}, {"name": "b", "image": "x", "terminationMessagePolicy": "File"}]
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["initContainers"] = inits
    built = pod_of(manifest, worker(0))["spec"]["initContainers"]
    assert [c["terminationMessagePolicy"] for c in built] == ["FallbackToLogsOnError", "File"]


def test_a_pod_is_the_users_template_with_greentrains_additions() -> None:
    template = build_template(
        env=[{"name": "MINE", "value": "1"}], ports=[{"name": "http", "containerPort": 80}]
    )
    template["metadata"] = {
        "labels": {"team": "a", "greentrain.dev/attempt": "9"},
        "annotations": {"note": "x"},
    }
    template["spec"]["containers"].insert(0, {"name": "sidecar", "image": "s"})
    manifest = build_job(
        checkpoint={"volume": {"persistentVolumeClaim": {"claimName": "c"}}, "gracePeriodSeconds": 9}
    )
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
    pod = pod_of(manifest, worker(1), number=3)
    sidecar, main = pod["spec"]["containers"]
    assert sidecar == {"name": "sidecar", "image": "s", "securityContext": RESTRICTED}
    assert pod["metadata"]["name"] == "digits-worker-1-3"
    assert pod["metadata"]["labels"] == {
        "team": "a",
        "app.kubernetes.io/managed-by": "greentrain",
        "greentrain.dev/job-name": "digits",
        "greentrain.dev/replica-type": "Worker",
        "greentrain.dev/replica-index": "1",
        "greentrain.dev/attempt": "3",
    }
    assert pod["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("digits-worker-1", "digits")
    assert (pod["spec"]["restartPolicy"], pod["spec"]["terminationGracePeriodSeconds"]) == ("Never", 9)
    assert pod["spec"]["volumes"] == [
        {"name": "greentrain-checkpoint", "persistentVolumeClaim": {"claimName": "c"}}
    ]
    env = {e["name"]: e["value"] for e in main["env"]}
    assert env["MINE"] == "1"
    assert env["GREENTRAIN_CHECKPOINT_DIR"] == "/checkpoints/greentrain/team/digits"
    assert env["GREENTRAIN_ATTEMPT"] == "3"
    assert env["GREENTRAIN_GRACE_PERIOD_SECONDS"] == "9"
    assert [p["containerPort"] for p in main["ports"]] == [80, 2222, 8471]


def test_building_leaves_the_users_template_as_it_was() -> None:
    manifest = build_job(checkpoint={"volume": {"emptyDir": {}}})
    before = deepcopy(manifest)
    pod_of(manifest, worker(0))
    assert manifest == before


def test_the_service_is_headless_and_publishes_ranks_before_they_are_ready() -> None:
    spec = build_service(job_of())["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)


def test_the_hash_changes_with_what_pods_are_built_from_and_with_nothing_else() -> None:
    def hash_of(manifest: dict[str, Any]) -> str:
        return spec_hash(GreenTrainingJobSpec.model_validate(manifest["spec"]))

    base = hash_of(build_job())
    assert hash_of(build_job(runPolicy={"suspend": True, "backoffLimit": 9})) == base
    assert hash_of(build_job(restart_policy="Never")) == base
    assert hash_of(build_job(workers=3)) != base
    assert hash_of(build_job(checkpoint={"volume": {"emptyDir": {}}})) != base


def test_ranks_are_chief_first() -> None:
    seats = ranks({"Worker": 2, "Chief": 1})
    assert seats == (Rank(ReplicaType.CHIEF, 0), worker(0), worker(1))


def test_an_evaluator_is_outside_the_gang_and_stands_in_the_cluster_unless_it_is_switched_off() -> None:
    manifest = build_job(workers=1, evaluatorInCluster=True)
    manifest["spec"]["tfReplicaSpecs"]["Evaluator"] = {"template": build_template()}
    evaluator = Rank(ReplicaType.EVALUATOR, 0)
    inside = json.loads(env_of(pod_of(manifest, evaluator))["TF_CONFIG"])
    assert inside == {
        "cluster": {
            "worker": ["digits-worker-0.digits.team.svc:2222"],
            "evaluator": ["digits-evaluator-0.digits.team.svc:2222"],
        },
        "task": {"type": "evaluator", "index": 0},
        "environment": "cloud",
    }
    manifest["spec"]["evaluatorInCluster"] = False
    outside = json.loads(env_of(pod_of(manifest, evaluator))["TF_CONFIG"])
    assert outside == {**inside, "cluster": {"worker": inside["cluster"]["worker"]}}
    assert gang({"Worker": 1, "Evaluator": 1}) == (worker(0),)


def test_the_sparse_form_names_a_workers_own_address_only() -> None:
    manifest = build_job(enableDynamicWorker=True)
    assert json.loads(env_of(pod_of(manifest, worker(1)))["TF_CONFIG"]) == {
        "sparseCluster": {"worker": {"1": "digits-worker-1.digits.team.svc:2222"}, "ps": []},
        "task": {"type": "worker", "index": 1},
    }


def restricted_pod(pod_spec: dict[str, Any], **container: Any) -> dict[str, Any]:
    manifest = build_job()
    template = build_template(**container)
    template["spec"] |= pod_spec
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
    found: dict[str, Any] = pod_of(manifest, worker(0))["spec"]
    return found


def test_pods_default_to_restricted_security_and_no_token() -> None:
    spec = restricted_pod({"initContainers": [{"name": "init", "image": "i"}]})
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["containers"][0]["securityContext"] == RESTRICTED
    assert spec["initContainers"][0]["securityContext"] == RESTRICTED


@pytest.mark.parametrize(
    ("pod_spec", "container", "pod_context", "container_context", "token"),
    [
        ({"serviceAccountName": "bucket"}, {}, {"runAsNonRoot": True}, RESTRICTED, None),
        ({"automountServiceAccountToken": True}, {}, {"runAsNonRoot": True}, RESTRICTED, True),
        ({"securityContext": {"runAsNonRoot": False}}, {}, {"runAsNonRoot": False}, RESTRICTED, False),
        ({"securityContext": {"runAsUser": 0}}, {}, {"runAsUser": 0}, RESTRICTED, False),
        (
            {},
            {"runAsUser": 0},
            {"runAsNonRoot": True},
            {**RESTRICTED, "runAsUser": 0, "runAsNonRoot": False},
            False,
        ),
        ({}, {"privileged": True}, {"runAsNonRoot": True}, {"privileged": True}, False),
        (
            {},
            {"capabilities": {"add": ["SYS_ADMIN"]}},
            {"runAsNonRoot": True},
            {"capabilities": {"add": ["SYS_ADMIN"]}},
            False,
        ),
        (
            {},
            {"capabilities": {"add": ["IPC_LOCK"]}},
            {"runAsNonRoot": True},
            {"capabilities": {"add": ["IPC_LOCK"]}, "allowPrivilegeEscalation": False},
            False,
        ),
    ],
    ids=["account", "token", "root allowed", "root", "container root", "privileged", "admin", "capability"],
)
def test_what_a_template_says_of_security_stands(
    pod_spec: dict[str, Any],
    container: dict[str, Any],
    pod_context: dict[str, Any],
    container_context: dict[str, Any],
    token: bool | None,
) -> None:
    spec = restricted_pod(pod_spec, **({"securityContext": container} if container else {}))
    assert spec["securityContext"] == {**pod_context, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["containers"][0]["securityContext"] == container_context
    assert spec.get("automountServiceAccountToken") is token


def test_two_specs_that_build_other_pods_have_other_hashes_and_a_policy_changes_none() -> None:
    def hash_of(**spec: Any) -> str:
        return spec_hash(GreenTrainingJobSpec.model_validate(build_job(**spec)["spec"]))

    assert hash_of() == hash_of(restart_policy="Never") == hash_of(runPolicy={"suspend": True})
    others = {hash_of(workers=3), hash_of(enableDynamicWorker=True), hash_of(evaluatorInCluster=False)}
    assert len({hash_of(), *others}) == 4
