"""kubeflow.org's TFJob: its names, its defaults, and how to traverse one, whatever its errors.

Facts are the training operator's (kubeflow/training-operator, now kubeflow/trainer, branch release-1.9):
pkg/apis/kubeflow.org/v1/{common_types,tensorflow_types,tensorflow_defaults,tensorflow_validation}.go and
pkg/controller.v1/{common,tensorflow}; differences of tf-operator, its predecessor, are noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from greentrain.api import names

KIND = "TFJob"
GROUP = "kubeflow.org"
CURRENT = f"{GROUP}/v1"
OLDER = frozenset(f"{GROUP}/{v}" for v in ("v1beta2", "v1beta1", "v1alpha2"))
"""tf-operator's versions with `tfReplicaSpecs` as a map; v1alpha1 had a list of another form."""

CONTAINER = "tensorflow"
PORT_NAME = "tfjob-port"
PORT = 2222

ROLES = ("Chief", "Master", "Worker", "PS", "Evaluator")
"""Replica types as the training operator spells them; it takes them in any case."""

RUN_POLICY_FIELDS = (
    "cleanPodPolicy",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "schedulingPolicy",
    "suspend",
)
"""Fields of `spec.runPolicy`; tf-operator had them directly under `spec`."""

OWN_MANAGERS = (f"{GROUP}/training-operator",)
"""`runPolicy.managedBy` where it requests only TFJob's own controller."""

POD_LABELS = {
    "training.kubeflow.org/job-name": names.LABEL_JOB,
    "training.kubeflow.org/replica-type": names.LABEL_REPLICA_TYPE,
    "training.kubeflow.org/replica-index": names.LABEL_REPLICA_INDEX,
    "training.kubeflow.org/job-role": names.LABEL_REPLICA_TYPE,
    "training.kubeflow.org/operator-name": names.LABEL_MANAGED_BY,
    "tf-job-name": names.LABEL_JOB,
    "tf-replica-type": names.LABEL_REPLICA_TYPE,
    "tf-replica-index": names.LABEL_REPLICA_INDEX,
}
"""Labels that only TFJob's controllers put on pods, with greentrain's instead."""

SHARED_POD_LABELS = {
    "job-name": names.LABEL_JOB,
    "replica-type": names.LABEL_REPLICA_TYPE,
    "replica-index": names.LABEL_REPLICA_INDEX,
    "job-role": names.LABEL_REPLICA_TYPE,
    "group-name": names.LABEL_MANAGED_BY,
}
"""Labels of tf-operator 1.x that other programs use as well (batch/v1 Job sets job-name): a selector's value decides."""

SERVER_METADATA = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
)
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def canonical_role(key: object) -> str | None:
    """A replica type's canonical spelling, None for a key that is none."""
    return next((r for r in ROLES if r.lower() == str(key).lower()), None)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: admission reports what is wrong with it."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class Role:
    """One entry of `tfReplicaSpecs`."""

    name: str
    spec: dict[str, Any]

    @property
    def path(self) -> str:
        """Its path."""
        return f"spec.tfReplicaSpecs.{self.name}"

    @property
    def replicas(self) -> int:
        """Pods of this role; 1, TFJob's default, where the manifest has no number."""
        found = self.spec.get("replicas")
        return int(found) if isinstance(found, int) and not isinstance(found, bool) else 1

    @property
    def restart_policy(self) -> str:
        """Never, TFJob's default, where the manifest has none."""
        return str(self.spec.get("restartPolicy") or "Never")

    @property
    def restarts(self) -> bool:
        """Whether a program's failure is retried."""
        return self.restart_policy in ("OnFailure", "Always", "ExitCode")

    @property
    def template(self) -> dict[str, Any]:
        """The pod template."""
        return mapping(self.spec.get("template"))

    @property
    def pod(self) -> dict[str, Any]:
        """The template's pod spec."""
        return mapping(self.template.get("spec"))

    @property
    def pod_path(self) -> str:
        """The pod spec's path."""
        return f"{self.path}.template.spec"

    def containers(self, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The containers of these kinds with their paths; `containers` alone by default."""
        for kind in kinds or ("containers",):
            for i, container in enumerate(items(self.pod.get(kind))):
                if isinstance(container, dict):
                    yield f"{self.pod_path}.{kind}[{i}]", container


def roles(spec: dict[str, Any]) -> tuple[Role, ...]:
    """The roles of a TFJob, or of the job made from one, in the order written."""
    found = mapping(spec.get("tfReplicaSpecs"))
    return tuple(Role(str(k), v) for k, v in found.items() if isinstance(v, dict))


def gang_size(spec: dict[str, Any]) -> int:
    """Pods that train together: all but the evaluator."""
    return sum(r.replicas for r in roles(spec) if r.name != "Evaluator")
