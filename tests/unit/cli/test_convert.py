"""A TFJob becomes the job that does what it did, and each difference it meets is told, no other."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml

from greentrain.cli.convert import Conversion, convert_job
from greentrain.cli.documents import expand_merges, read_documents, to_plain

Json = dict[str, Any]


def build_tfjob() -> Json:
    """A TFJob that meets no difference: everything that has another default is written out."""
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": "digits", "namespace": "team"},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running", "infrastructureRestartLimit": 0},
            "tfReplicaSpecs": {
                "Worker": {"replicas": 1, "restartPolicy": "Never", "template": build_template()}
            },
        },
    }


def build_template() -> Json:
    container = {
        "name": "tensorflow",
        "image": "example/train:1",
        "securityContext": {"capabilities": {"drop": ["ALL"]}},
    }
    return {
        "spec": {
            "securityContext": {"runAsNonRoot": True},
            "automountServiceAccountToken": False,
            "containers": [container],
        }
    }


REMOVED = object()


def put(manifest: Json, changes: Json) -> Json:
    """The manifest with values set, or removed, at dotted paths."""
    changed = deepcopy(manifest)
    for path, value in changes.items():
        node: Any = changed
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        if value is REMOVED:
            del node[last]
        else:
            node[int(last) if last.isdigit() else last] = deepcopy(value)
    return changed


def converted(manifest: Json) -> tuple[Json, Conversion]:
    """The job made from a TFJob, and what was said."""
    (document,) = read_documents(yaml.safe_dump(manifest, sort_keys=False).encode())
    tree = expand_merges(document.tree)
    conversion = convert_job(tree)
    return to_plain(tree), conversion


def told(manifest: Json) -> list[tuple[str, str]]:
    return [(d.path, d.message) for d in converted(manifest)[1].differences]


ROLES = "spec.tfReplicaSpecs"
WORKER = f"{ROLES}.Worker"
POD = f"{WORKER}.template.spec"
BOX = f"{POD}.containers.0"
RESTARTS = {f"{WORKER}.restartPolicy": "OnFailure", "spec.runPolicy.backoffLimit": 3}
COUNTED = "spec.runPolicy.backoffLimit"


def test_a_manifest_that_says_all_by_itself_meets_no_difference() -> None:
    job, conversion = converted(build_tfjob())
    assert conversion == Conversion((), ())
    assert job == {**build_tfjob(), "apiVersion": "greentrain.dev/v1alpha1", "kind": "GreenTrainingJob"}


def test_a_null_is_left_out_wherever_it_stands() -> None:
    fields = ("args", "env", "ports", "resources", "lifecycle")
    nulls = {f"{BOX}.{f}": None for f in fields} | {
        f"{POD}.hostname": None,
        f"{WORKER}.template.metadata": None,
    }
    job, conversion = converted(put(build_tfjob(), nulls))
    assert conversion == Conversion((), ())
    assert job == {**build_tfjob(), "apiVersion": "greentrain.dev/v1alpha1", "kind": "GreenTrainingJob"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spec.runPolicy.infrastructureRestartLimit": REMOVED}, {f"{WORKER}.restartPolicy": "an evicted pod starts the job again, up to 10 times"}),
        ({**RESTARTS}, {COUNTED: "counts the job's failures"}),
        ({**RESTARTS, f"{WORKER}.replicas": 2}, {COUNTED: "counts", f"{WORKER}.restartPolicy": "under OnFailure a failed rank restarts the whole gang"}),
        ({**RESTARTS, f"{WORKER}.restartPolicy": "ExitCode", f"{WORKER}.replicas": 2}, {COUNTED: "counts", f"{WORKER}.restartPolicy": "under ExitCode a failed rank"}),
        ({**RESTARTS, f"{WORKER}.restartPolicy": "Always"}, {COUNTED: "counts", f"{WORKER}.restartPolicy": "a rank that has ended with 0 is finished"}),
        ({**RESTARTS, f"{POD}.volumes": [{"name": "a", "hostPath": {"path": "/a"}}, {"name": "b", "emptyDir": {}}]}, {COUNTED: "counts", f"{POD}.volumes[1].emptyDir": "loses what this volume holds", f"{POD}.volumes[0].hostPath": "HostPath Volumes"}),
        ({f"{POD}.volumes": [{"name": "b", "emptyDir": {}}]}, {}),
        ({"spec.runPolicy.activeDeadlineSeconds": 60}, {"spec.runPolicy.activeDeadlineSeconds": "waiting included"}),
        ({"spec.runPolicy.ttlSecondsAfterFinished": 60}, {}),
        ({"spec.runPolicy.suspend": True}, {}),
        ({"spec.runPolicy.schedulingPolicy.scheduleTimeoutSeconds": 60}, {"spec.runPolicy.schedulingPolicy.scheduleTimeoutSeconds": "gang scheduler"}),
        ({"spec.successPolicy": "AllWorkers"}, {}),
        ({"spec.successPolicy": "AllWorkers", f"{ROLES}.Chief": {"template": build_template()}}, {"spec.successPolicy": "where TFJob went by the Chief alone"}),
        ({f"{POD}.containers.0.name": "tensorflow", f"{POD}.containers": [build_template()["spec"]["containers"][0], {"name": "board", "image": "x", "securityContext": {"capabilities": {}}}]}, {f"{POD}.containers": "where TFJob also waited for board"}),
        ({"spec.enableDynamicWorker": True}, {"spec.enableDynamicWorker": "sparse form"}),
        ({"spec.enableDynamicWorker": False}, {}),
        ({f"{ROLES}.Master": {"template": build_template()}}, {f"{ROLES}.Master": "TF_CONFIG calls this rank chief"}),
        ({f"{ROLES}.Evaluator": {"template": build_template()}}, {}),
        ({f"{ROLES}.Evaluator": {"template": build_template()}, "apiVersion": "kubeflow.org/v1beta2"}, {f"{ROLES}.Evaluator": "set spec.evaluatorInCluster to false"}),
        ({f"{POD}.hostNetwork": True}, {f"{POD}.hostNetwork": "ports 2222 and 8471 AND label the namespace greentrain.dev/pod-security=privileged; TFJob made such pods"}),
        ({f"{POD}.automountServiceAccountToken": REMOVED}, {f"{POD}.automountServiceAccountToken": "token of the default service account"}),
        ({f"{POD}.automountServiceAccountToken": REMOVED, f"{POD}.serviceAccountName": "me"}, {f"{POD}.serviceAccountName": "another account's rights"}),
        ({f"{BOX}.securityContext": REMOVED}, {f"{POD}.securityContext": "no capabilities"}),
        ({f"{BOX}.securityContext": {"privileged": True}}, {f"{POD}.containers[0].securityContext.privileged": "Privileged Containers"}),
        ({f"{POD}.schedulerName": "volcano"}, {f"{POD}.schedulerName": "no PodGroup is made"}),
        ({f"{POD}.schedulerName": "default-scheduler"}, {}),
        ({"metadata.labels": {"kueue.x-k8s.io/queue-name": "q"}}, {"metadata.labels['kueue.x-k8s.io/queue-name']": "Kueue manages TFJobs"}),
        ({f"{WORKER}.template.metadata": {"labels": {"a": "b"}, "creationTimestamp": None, "finalizers": ["x/y"]}}, {f"{WORKER}.template.metadata.finalizers": "only labels and annotations"}),
        ({f"{BOX}.args": ["--peer", "digits-worker-0.team.svc"]}, {f"{POD}.containers[0].args[1]": "write 'digits-worker-0.digits.team.svc'"}),
        ({f"{BOX}.env": [{"name": "A", "value": "digits-worker-0"}]}, {f"{POD}.containers[0].env[0].value": "write 'digits-worker-0.digits'"}),
        ({f"{POD}.initContainers": [{"name": "wait", "command": ["ping", "digits-worker-0"], "securityContext": {"capabilities": {}}}]}, {f"{POD}.initContainers[0].command[1]": "write 'digits-worker-0.digits'"}),
        ({"metadata.annotations": {"peers": "digits-worker-0.team"}}, {"metadata.annotations.peers": "write 'digits-worker-0.digits.team'"}),
        ({f"{POD}.topologySpreadConstraints": [{"labelSelector": {"matchLabels": {"training.kubeflow.org/job-name": "digits"}}}]}, {f"{POD}.topologySpreadConstraints[0].labelSelector.matchLabels['training.kubeflow.org/job-name']": "use greentrain.dev/job-name"}),
    ],
)  # fmt: skip
def test_a_difference_is_told_where_the_manifest_meets_it_and_no_other(
    changes: Json, expected: dict[str, str]
) -> None:
    found = told(put(build_tfjob(), changes))
    wanted = [(path, words) for path, said in expected.items() for words in said.split(" AND ")]
    assert sorted(p for p, _ in found) == sorted(p for p, _ in wanted)
    assert [(p, w) for p, w in wanted if not any(p == q and w in m for q, m in found)] == []


@pytest.mark.parametrize(
    ("changes", "path", "value", "said"),
    [
        ({"spec.runPolicy.cleanPodPolicy": REMOVED}, "spec.runPolicy.cleanPodPolicy", "None", "None is written"),
        ({f"{WORKER}.restartPolicy": "OnFailure"}, "spec.runPolicy.backoffLimit", 1000, "the most allowed, 1000, is written"),
        ({f"{POD}.securityContext": REMOVED}, f"{POD}.securityContext", {"runAsNonRoot": False}, "remove it if the image has a user"),
        ({f"{POD}.securityContext": {"fsGroup": 5}}, f"{POD}.securityContext", {"runAsNonRoot": False, "fsGroup": 5}, "false is written"),
        ({"spec.cleanPodPolicy": "All", "spec.runPolicy.cleanPodPolicy": REMOVED}, "spec.runPolicy.cleanPodPolicy", "All", "where it takes effect"),
        ({"apiVersion": "kubeflow.org/v1beta2", "spec.cleanPodPolicy": "All", "spec.runPolicy.cleanPodPolicy": REMOVED}, "spec.runPolicy.cleanPodPolicy", "All", "since kubeflow.org/v1; moved there"),
        ({"spec.cleanPodPolicy": "All"}, "spec.runPolicy.cleanPodPolicy", "Running", "as well, which counts; removed: All"),
        ({f"{BOX}.ports": [{"name": "tfjob-port", "containerPort": 5000}]}, f"{BOX}.ports", [{"name": "tfjob-port", "containerPort": 2222}], "where TFJob named 5000"),
        ({f"{BOX}.ports": [{"name": "http", "containerPort": 5000}]}, f"{BOX}.ports", [{"name": "http", "containerPort": 5000}], ""),
        ({f"{POD}.restartPolicy": "Always"}, f"{POD}.restartPolicy", REMOVED, "'Always' was overridden"),
        ({f"{POD}.restartPolicy": "Never"}, f"{POD}.restartPolicy", REMOVED, ""),
        ({f"{POD}.hostname": "me"}, f"{POD}.hostname", REMOVED, "'me' is not what the host is called"),
        ({f"{POD}.subdomain": "us"}, f"{POD}.subdomain", REMOVED, "'us' is not where the host is found"),
        ({f"{BOX}.env": [{"name": "TF_CONFIG", "value": "{}"}]}, f"{BOX}.env", REMOVED, "not for a single replica, where TFJob kept this one"),
        ({f"{WORKER}.replicas": 2, f"{BOX}.env": [{"name": "A", "value": "1"}, {"name": "TF_CONFIG", "value": "{}"}]}, f"{BOX}.env", [{"name": "A", "value": "1"}], "TFJob overrode it as well"),
        ({f"{ROLES}.PS": {"replicas": 0, "template": build_template()}}, f"{ROLES}.PS", REMOVED, "has 0 replicas"),
        ({"spec.runPolicy.managedBy": "kubeflow.org/training-operator"}, "spec.runPolicy.managedBy", REMOVED, ""),
        ({"spec.runPolicy.suspend": None}, "spec.runPolicy.suspend", REMOVED, ""),
        ({f"{WORKER}.replicas": None}, f"{WORKER}.replicas", REMOVED, ""),
        ({"spec.successPolicy": None}, "spec.successPolicy", REMOVED, ""),
        ({"status": {"conditions": []}}, "status", REMOVED, ""),
        ({"metadata.uid": "x"}, "metadata.uid", REMOVED, ""),
        ({"metadata.managedFields": []}, "metadata.managedFields", REMOVED, ""),
        ({"metadata.annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "metadata.annotations", REMOVED, ""),
        ({"metadata.annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}}, "metadata.annotations", {"a": "b"}, ""),
    ],
)  # fmt: skip
def test_what_would_mean_something_else_is_changed_and_told(
    changes: Json, path: str, value: Any, said: str
) -> None:
    job, conversion = converted(put(build_tfjob(), changes))
    node: Any = job
    for part in path.split("."):
        node = node[int(part)] if part.isdigit() else node.get(part, REMOVED)
    assert node == value
    messages = [d.message for d in conversion.differences]
    assert messages == [] if not said else any(said in m for m in messages), messages
    assert conversion.problems == ()


@pytest.mark.parametrize("spelling", ["worker", "WORKER", "wOrKeR"])
def test_replica_types_are_spelled_canonically(spelling: str) -> None:
    manifest = put(
        build_tfjob(),
        {WORKER: REMOVED, f"{ROLES}.{spelling}": build_tfjob()["spec"]["tfReplicaSpecs"]["Worker"]},
    )
    job, conversion = converted(manifest)
    assert list(job["spec"]["tfReplicaSpecs"]) == ["Worker"]
    assert conversion == Conversion((), ())


def test_a_user_who_is_not_root_is_left_as_written() -> None:
    one = put(build_tfjob(), {f"{POD}.securityContext": {"runAsUser": 1000}})
    other = put(build_tfjob(), {f"{POD}.securityContext": REMOVED, f"{BOX}.securityContext.runAsUser": 1000})
    assert (told(one), told(other)) == ([], [])


def test_the_default_of_tf_operator_was_ours() -> None:
    manifest = put(
        build_tfjob(), {"apiVersion": "kubeflow.org/v1beta2", "spec.runPolicy.cleanPodPolicy": REMOVED}
    )
    job, conversion = converted(manifest)
    assert (job["spec"]["runPolicy"], conversion.differences) == ({"infrastructureRestartLimit": 0}, ())


def test_the_same_difference_of_several_roles_is_told_once() -> None:
    manifest = put(build_tfjob(), {f"{ROLES}.Chief": {"template": build_template()}})
    for role in ("Chief", "Worker"):
        manifest = put(manifest, {f"{ROLES}.{role}.template.spec.hostNetwork": True})
    assert {p for p, _ in told(manifest)} == {f"{ROLES}.{{Worker,Chief}}.template.spec.hostNetwork"}
    assert len(told(manifest)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"{ROLES}.PS": {"template": build_template()}}, "spec.tfReplicaSpecs.PS: parameter servers: not built yet in this version of greentrain; remove the field; train synchronously"),
        ({"spec.runPolicy.schedulingPolicy.queue": "q"}, "spec.runPolicy.schedulingPolicy.queue: gang scheduling"),
        ({"spec.runPolicy.schedulingPolicy.minAvailable": 2}, "spec.runPolicy.schedulingPolicy.minAvailable: gang scheduling"),
        ({"spec.runPolicy.schedulingPolicy.minResources": {"cpu": 2}}, "spec.runPolicy.schedulingPolicy.minResources: gang scheduling"),
        ({"spec.runPolicy.schedulingPolicy.priorityClass": "high"}, "priorityClassName in the templates"),
        ({"spec.runPolicy.managedBy": "kueue.x-k8s.io/multikueue"}, "spec.runPolicy.managedBy: unknown field"),
        ({"spec.nprocPerNode": 2}, "spec.nprocPerNode: unknown field"),
        ({"spec.elastic": {}}, "spec.elastic: elastic sizes"),
        ({f"{ROLES}.worker": {"template": build_template()}}, "spec.tfReplicaSpecs.worker: unknown field; did you mean Worker?"),
        ({f"{ROLES}.Helper": {"template": build_template()}}, "spec.tfReplicaSpecs.Helper: unknown field"),
        ({f"{WORKER}.template": REMOVED}, "spec.tfReplicaSpecs.Worker.template: is required"),
        ({f"{WORKER}.template": {}}, "spec.tfReplicaSpecs.Worker.template.spec.containers: needs a list"),
        ({f"{WORKER}.replicas": False}, "spec.tfReplicaSpecs.Worker.replicas: False is not valid"),
        ({f"{WORKER}.replicas": 0}, "spec.tfReplicaSpecs: needs Worker, Chief or both"),
        ({f"{BOX}.name": "main"}, "holds no container named tensorflow"),
        ({f"{BOX}.env": {"A": "b"}}, "spec.tfReplicaSpecs.Worker.template.spec.containers[0].env: {'A': 'b'} is not a list; write one"),
        ({f"{BOX}.command": 5}, "spec.tfReplicaSpecs.Worker.template.spec.containers[0].command: 5 is not a list"),
        ({f"{BOX}.args": ["a", None]}, "spec.tfReplicaSpecs.Worker.template.spec.containers[0].args[1]: null is not valid in a list"),
        ({f"{BOX}.env": [{"name": []}]}, "spec.tfReplicaSpecs.Worker.template.spec.containers[0].env[0].name: [] is not a text"),
        ({f"{BOX}.env": [{"name": "GREENTRAIN_ATTEMPT", "value": "1"}]}, "'GREENTRAIN_ATTEMPT' is set by greentrain"),
        ({"metadata.name": "digits.v2"}, "metadata.name: 'digits.v2' must start with a letter"),
        ({"apiVersion": "kubeflow.org/v1alpha1"}, "apiVersion: 'kubeflow.org/v1alpha1' is of another form; write the job as one of kubeflow.org/v1"),
        ({"spec": REMOVED}, "spec.tfReplicaSpecs: is required"),
        ({"spec": []}, "spec.tfReplicaSpecs: is required"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_admissions_words(changes: Json, said: str) -> None:
    problems = [str(p) for p in converted(put(build_tfjob(), changes))[1].problems]
    assert any(said in p for p in problems), problems


def test_a_template_without_the_container_is_refused_and_not_compared() -> None:
    _, conversion = converted(put(build_tfjob(), {f"{BOX}.name": "main"}))
    assert [p.path for p in conversion.problems] == ["spec.tfReplicaSpecs.Worker.template.spec.containers"]
    assert conversion.differences == ()


def test_a_name_the_server_makes_is_judged_by_its_length() -> None:
    short = put(build_tfjob(), {"metadata": {"generateName": "digits-"}})
    long = put(build_tfjob(), {"metadata": {"generateName": "d" * 50}})
    assert converted(short)[1].problems == ()
    assert [p.path for p in converted(long)[1].problems] == ["metadata.name"]
