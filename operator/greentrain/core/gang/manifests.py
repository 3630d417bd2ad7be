"""Builds the objects of a job: one headless Service, and the pods of an attempt.

Every manifest is a pure function of the job and the attempt. So after a crash the same object is built again, and creating
it twice gives a 409 and not a second pod.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from greentrain.api import names
from greentrain.api.runtime import CONTAINER, PROGRESS_PORT, TENSORFLOW_PORT, Env
from greentrain.api.spec import GreenTrainingJobSpec, ReplicaSpecs, ReplicaType
from greentrain.api.status import AttemptStatus
from greentrain.core.admission import CHECKPOINT_VOLUME
from greentrain.core.seen.pods import Rank
from greentrain.core.seen.snapshot import Job

Manifest = dict[str, Any]

LAST_LINES = "FallbackToLogsOnError"
"""Termination message policy: other programs write no message; then their last log lines show why they failed."""

ESCALATING = ("SYS_ADMIN", "CAP_SYS_ADMIN")
"""Capabilities that the API server refuses with `allowPrivilegeEscalation: false`."""

CHECKPOINT_MOUNT = "/checkpoints"
"""Where `spec.checkpoint.volume` is mounted in the tensorflow container."""


def spec_hash(spec: GreenTrainingJobSpec) -> str:
    """Hash of what pods are built from: the roles and the checkpoint volume, not the run policy."""
    # Defaults are left out: a field that only a newer operator knows must not look like an edit. The restart policy is not
    # part of a pod, so that a change of it applies at once.
    judged_by = {role: {"restart_policy"} for role in ReplicaSpecs.model_fields}
    built_from = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        include={
            "tf_replica_specs",
            "checkpoint",
            "success_policy",
            "enable_dynamic_worker",
            "evaluator_in_cluster",
        },
        exclude={"tf_replica_specs": judged_by},
    )
    text = json.dumps(built_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def replica_counts(spec: GreenTrainingJobSpec) -> dict[str, int]:
    """Pods by role, chief first."""
    return {t.value: s.replicas for t, s in spec.tf_replica_specs.roles()}


def ranks(replicas: Mapping[str, int]) -> tuple[Rank, ...]:
    """All ranks of a job, chief first, by index."""
    return tuple(Rank(t, i) for t in ReplicaType for i in range(replicas.get(t.value, 0)))


def gang(replicas: Mapping[str, int]) -> tuple[Rank, ...]:
    """The ranks of the synchronous gang: all but the evaluator."""
    return tuple(r for r in ranks(replicas) if r.type.synchronous)


def deciding_rank(replicas: Mapping[str, int]) -> Rank:
    """The rank that saves checkpoints and, by default, decides success: the chief, else worker 0."""
    return ranks(replicas)[0]


def write_cluster(job: Job, spec: GreenTrainingJobSpec, replicas: Mapping[str, int]) -> str:
    """The part of TF_CONFIG that all ranks of an attempt share, as JSON: about 60 bytes a rank, so it is built once.

    Empty in the sparse form, which has only a worker's own address.
    """
    if spec.enable_dynamic_worker:
        return ""
    cluster: dict[str, list[str]] = {}
    for seat in ranks(replicas):
        if seat.type is not ReplicaType.EVALUATOR or spec.evaluator_in_cluster:
            cluster.setdefault(seat.type.task_type, []).append(_address(job, seat))
    return _dump(cluster)


def write_tf_config(job: Job, rank: Rank, cluster: str) -> str:
    """TensorFlow's cluster description for one rank, of TFJob's structure, as JSON.

    `cluster` is the result of `write_cluster`. The sparse form has no `environment`, like TFJob's.
    """
    task = {"type": rank.type.task_type, "index": rank.index}
    if not cluster:
        own = {str(rank.index): _address(job, rank)}
        sparse: dict[str, Any] = {"worker": {}, "ps": [], rank.type.task_type: own}
        return _dump({"sparseCluster": sparse, "task": task})
    return f'{{"cluster":{cluster},"task":{_dump(task)},"environment":"cloud"}}'


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _address(job: Job, rank: Rank) -> str:
    return f"{names.rank_address(job.name, job.namespace, rank.type.value, rank.index)}:{TENSORFLOW_PORT}"


def owner_reference(job: Job) -> Manifest:
    """The owner reference by which the garbage collector deletes the objects of a deleted job."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
    }


def job_labels(job: Job) -> dict[str, str]:
    """Labels of everything a job owns."""
    return {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_JOB: job.name}


def build_service(job: Job) -> Manifest:
    """The headless Service that gives ranks DNS names, also before they are ready, because ranks wait for each other."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(job.name),
            "namespace": job.namespace,
            "labels": job_labels(job),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: job.name},
            "ports": [
                {"name": "tensorflow", "port": TENSORFLOW_PORT, "protocol": "TCP"},
                {"name": "progress", "port": PROGRESS_PORT, "protocol": "TCP"},
            ],
        },
    }


class Pods(Sequence[Manifest]):
    """Pods of an attempt, each built on access and not kept: a thousand in memory would be a gigabyte."""

    def __init__(
        self, job: Job, spec: GreenTrainingJobSpec, attempt: AttemptStatus, seats: Sequence[Rank]
    ) -> None:
        self._job = job
        self._spec = spec
        self._attempt = attempt
        self._seats = tuple(seats)

    @cached_property
    def _cluster(self) -> str:
        return write_cluster(self._job, self._spec, self._attempt.replicas)

    def __len__(self) -> int:
        return len(self._seats)

    @overload
    def __getitem__(self, index: int) -> Manifest: ...

    @overload
    def __getitem__(self, index: slice) -> Pods: ...

    def __getitem__(self, index: int | slice) -> Manifest | Pods:
        if isinstance(index, slice):
            return Pods(self._job, self._spec, self._attempt, self._seats[index])
        return build_pod(self._job, self._spec, self._attempt, self._seats[index], self._cluster)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def build_pod(
    job: Job,
    spec: GreenTrainingJobSpec,
    attempt: AttemptStatus,
    rank: Rank,
    cluster: str | None = None,
) -> Manifest:
    """The pod of one rank in one attempt: the user's template with what greentrain adds.

    Additions are in maps and lists of the pod's own; the rest is shared with the template, which must not be changed.
    `cluster` is the result of `write_cluster` for the attempt, where it was built already.
    """
    role = dict(spec.tf_replica_specs.roles())[rank.type]
    meta = role.template.get("metadata") or {}
    pod_spec = dict(role.template.get("spec") or {})
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names.pod_name(job.name, rank.type.value, rank.index, attempt.number),
            "namespace": job.namespace,
            "labels": {
                **(meta.get("labels") or {}),
                **job_labels(job),
                names.LABEL_REPLICA_TYPE: rank.type.value,
                names.LABEL_REPLICA_INDEX: str(rank.index),
                names.LABEL_ATTEMPT: str(attempt.number),
            },
            "annotations": {
                **(meta.get("annotations") or {}),
                names.ANNOTATION_SPEC_HASH: attempt.spec_hash,
                **(
                    {names.ANNOTATION_BUDGETED: "true"}
                    if spec.energy.is_enforced or spec.emissions.is_enforced
                    else {}
                ),
            },
            "ownerReferences": [owner_reference(job)],
        },
        "spec": pod_spec,
    }
    pod_spec["restartPolicy"] = "Never"  # the gang restarts as a whole, so the kubelet must not restart one
    pod_spec["hostname"] = names.hostname(job.name, rank.type.value, rank.index)
    pod_spec["subdomain"] = names.service_name(job.name)
    if spec.checkpoint is not None:
        pod_spec.setdefault("terminationGracePeriodSeconds", spec.checkpoint.grace_period_seconds)
        pod_spec["volumes"] = [
            *(pod_spec.get("volumes") or []),
            {"name": CHECKPOINT_VOLUME, **spec.checkpoint.volume},
        ]
    _restrict(pod_spec)
    for init in pod_spec.get("initContainers") or ():
        init.setdefault("terminationMessagePolicy", LAST_LINES)
    container = next(c for c in pod_spec["containers"] if c.get("name") == CONTAINER)
    if cluster is None:
        cluster = write_cluster(job, spec, attempt.replicas)
    grace = pod_spec.get("terminationGracePeriodSeconds", 30)
    _inject(container, job, spec, attempt, rank, cluster=cluster, grace_seconds=grace)
    return pod


def _restrict(pod_spec: Manifest) -> None:
    """Default to the Pod Security Standard *restricted* and to no token; what the template sets does not change.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/ has the fields.
    """
    if not (pod_spec.get("serviceAccountName") or pod_spec.get("serviceAccount")):
        pod_spec.setdefault("automountServiceAccountToken", False)
    context = pod_spec["securityContext"] = dict(pod_spec.get("securityContext") or {})
    if context.get("runAsUser") != 0:
        context.setdefault("runAsNonRoot", True)
    context.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    for kind in ("containers", "initContainers"):
        if pod_spec.get(kind):
            pod_spec[kind] = [_restrict_container(c) for c in pod_spec[kind]]


def _restrict_container(container: Mapping[str, Any]) -> Manifest:
    context = dict(container.get("securityContext") or {})
    added = (context.get("capabilities") or {}).get("add") or []
    if not context.get("privileged") and not any(name in added for name in ESCALATING):
        context.setdefault("allowPrivilegeEscalation", False)
    if not context.get("privileged"):
        context.setdefault("capabilities", {"drop": ["ALL"]})
    if context.get("runAsUser") == 0:
        context.setdefault("runAsNonRoot", False)
    return {**container, "securityContext": context}


def _inject(
    container: Manifest,
    job: Job,
    spec: GreenTrainingJobSpec,
    attempt: AttemptStatus,
    rank: Rank,
    *,
    cluster: str,
    grace_seconds: int,
) -> None:
    env = {
        Env.JOB_NAME: job.name,
        Env.JOB_NAMESPACE: job.namespace,
        Env.JOB_UID: job.uid,
        Env.ATTEMPT: str(attempt.number),
        Env.REPLICA_TYPE: rank.type.task_type,
        Env.REPLICA_INDEX: str(rank.index),
        Env.GRACE_PERIOD_SECONDS: str(grace_seconds),
    }
    if sum(attempt.replicas.values()) > 1:
        env[Env.TF_CONFIG] = write_tf_config(job, rank, cluster)
    if spec.checkpoint is not None:
        env[Env.CHECKPOINT_DIR] = f"{CHECKPOINT_MOUNT}/{spec.checkpoint.path}/{job.namespace}/{job.name}"
        container["volumeMounts"] = [
            *(container.get("volumeMounts") or []),
            {"name": CHECKPOINT_VOLUME, "mountPath": CHECKPOINT_MOUNT},
        ]
    container["env"] = [
        *({"name": k.value, "value": v} for k, v in env.items()),
        *(container.get("env") or []),
    ]
    ports = container.get("ports") or []
    taken = [p.get("containerPort") for p in ports]  # a list: whatever is in it, the API server checks it
    wanted = (("tfjob-port", TENSORFLOW_PORT), ("progress", PROGRESS_PORT))
    container["ports"] = [*ports, *({"name": n, "containerPort": p} for n, p in wanted if p not in taken)]
    container.setdefault("terminationMessagePolicy", LAST_LINES)
