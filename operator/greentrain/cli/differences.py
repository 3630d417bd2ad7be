"""What a converted job does differently from its TFJob, one check for each deliberate difference.

A check reads the converted job and yields only what this manifest meets; `docs/tasks/tfjob.md` has the whole list and the
reasons. Changes that the conversion itself makes are reported where they are made, in `convert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from greentrain.api.runtime import PROGRESS_PORT, TENSORFLOW_PORT
from greentrain.api.spec import RunPolicy
from greentrain.cli import tfjob
from greentrain.cli.references import Difference, find_host_names, find_labels
from greentrain.cli.tfjob import Role, items, mapping
from greentrain.core.pod_security import find_privileges


@dataclass(frozen=True, slots=True)
class Converted:
    """A job after conversion, and the TFJob version it came from."""

    api_version: str
    job: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """Its spec."""
        return mapping(self.job.get("spec"))

    @property
    def run_policy(self) -> dict[str, Any]:
        """Its run policy."""
        return mapping(self.spec.get("runPolicy"))

    @property
    def roles(self) -> tuple[Role, ...]:
        """Its roles, in the order written."""
        return tfjob.roles(self.spec)

    @property
    def name(self) -> str:
        """The job's name; empty where the server generates one."""
        return str(mapping(self.job.get("metadata")).get("name") or "")


Check = Callable[[Converted], Iterator[Difference]]


def find_differences(seen: Converted) -> tuple[Difference, ...]:
    """Every difference this job meets, in the order of CHECKS."""
    return tuple(d for check in CHECKS for d in check(seen))


def check_restarts(seen: Converted) -> Iterator[Difference]:
    """The gang restarts whole, in new pods."""
    alone = tfjob.gang_size(seen.spec) <= 1
    for role in seen.roles:
        if not role.restarts and "infrastructureRestartLimit" in seen.run_policy:
            continue
        if not role.restarts:
            yield Difference(
                f"{role.path}.restartPolicy",
                f"under {role.restart_policy} an evicted pod starts the job again, up to "
                f"{_default('infrastructure_restart_limit')} times, where TFJob failed it; set "
                "spec.runPolicy.infrastructureRestartLimit to 0 if it must fail",
            )
            continue
        if not alone and role.name != "Evaluator":
            yield Difference(
                f"{role.path}.restartPolicy",
                f"under {role.restart_policy} a failed rank restarts the whole gang, where TFJob restarted that rank "
                "alone; keep checkpoints, so that the gang goes on from the last one",
            )
        if role.restart_policy == "Always":
            yield Difference(
                f"{role.path}.restartPolicy",
                "under Always a rank that has ended with 0 is finished, where TFJob's kubelet started it again; "
                "remove what relies on being started again",
            )
        if role.restart_policy in ("OnFailure", "Always"):
            for i, volume in enumerate(items(role.pod.get("volumes"))):
                if "emptyDir" in mapping(volume):
                    yield Difference(
                        f"{role.pod_path}.volumes[{i}].emptyDir",
                        "a restart makes a new pod and loses what this volume holds, where TFJob's kubelet restarted "
                        "the container in its pod; keep checkpoints on a claim",
                    )


def check_limits(seen: Converted) -> Iterator[Difference]:
    """Limits that count other things than TFJob's."""
    policy = seen.run_policy
    if "activeDeadlineSeconds" in policy:
        yield Difference(
            "spec.runPolicy.activeDeadlineSeconds",
            "counts the time the job's attempts run, all together, where TFJob counted from the start or the last "
            "resume, waiting included; lower it if it must bound waiting as well",
        )
    if "scheduleTimeoutSeconds" in mapping(policy.get("schedulingPolicy")):
        yield Difference(
            "spec.runPolicy.schedulingPolicy.scheduleTimeoutSeconds",
            "fails the job when one of its pods was not scheduled for that long, where TFJob handed it to a gang "
            "scheduler; remove it if pods may wait",
        )


def check_success(seen: Converted) -> Iterator[Difference]:
    """What decides that the job has succeeded."""
    chief = next((r.name for r in seen.roles if r.name in ("Chief", "Master")), None)
    if seen.spec.get("successPolicy") == "AllWorkers" and chief is not None:
        yield Difference(
            "spec.successPolicy",
            f"AllWorkers asks for every rank's exit with 0, where TFJob went by the {chief} alone; remove it if the "
            f"{chief} decides",
        )
    for role in seen.roles:
        found = [str(c.get("name")) for _, c in role.containers()]
        others = [n for n in found if n != tfjob.CONTAINER]
        if others and tfjob.CONTAINER in found:
            yield Difference(
                f"{role.pod_path}.containers",
                f"the exit of {tfjob.CONTAINER} alone decides, where TFJob also waited for "
                f"{', '.join(others)}; end {tfjob.CONTAINER} last if they have work to finish",
            )


def check_cluster(seen: Converted) -> Iterator[Difference]:
    """The content of TF_CONFIG."""
    if seen.spec.get("enableDynamicWorker") is True:
        yield Difference(
            "spec.enableDynamicWorker",
            "writes TF_CONFIG's sparse form and no more, where TFJob also went on without failed workers and took new "
            "ones while running; set it to false unless the program reads sparseCluster",
        )
    several = sum(r.replicas for r in seen.roles) > 1
    for role in seen.roles:
        if role.name == "Master" and several:
            yield Difference(
                role.path,
                "TF_CONFIG calls this rank chief, as TensorFlow 2 does, where TFJob called it master; look for chief in "
                "a program that reads TF_CONFIG itself",
            )
        if role.name == "Evaluator" and seen.api_version in tfjob.OLDER:
            yield Difference(
                role.path,
                "the evaluator stands in TF_CONFIG's cluster, as with the training operator, where tf-operator left it "
                "out; set spec.evaluatorInCluster to false if the others wait for it",
            )


def check_network(seen: Converted) -> Iterator[Difference]:
    """Ports and host networks."""
    for role in seen.roles:
        if role.pod.get("hostNetwork") is True:
            yield Difference(
                f"{role.pod_path}.hostNetwork",
                f"a pod takes ports {TENSORFLOW_PORT} and {PROGRESS_PORT} of its node, where TFJob took the first alone; "
                "keep one rank to a node, and both ports free there",
            )


def check_security(seen: Converted) -> Iterator[Difference]:
    """Pods run restricted, and without a token, unless the template sets otherwise."""
    for role in seen.roles:
        pod = role.pod
        if not (
            pod.get("serviceAccountName")
            or pod.get("serviceAccount")
            or "automountServiceAccountToken" in pod
        ):
            yield Difference(
                f"{role.pod_path}.automountServiceAccountToken",
                "the token of the default service account is not mounted, where TFJob's pods had it; set it to true if "
                "the program calls the Kubernetes API",
            )
        contexts = [
            mapping(c.get("securityContext")) for _, c in role.containers("containers", "initContainers")
        ]
        if any(not c.get("privileged") and "capabilities" not in c for c in contexts):
            yield Difference(
                f"{role.pod_path}.securityContext",
                "containers get no capabilities, no privilege escalation and the runtime's default seccomp profile, "
                "where TFJob set nothing; write the capabilities, allowPrivilegeEscalation or seccompProfile the "
                "program needs",
            )


def check_pod_security(seen: Converted) -> Iterator[Difference]:
    """What pods may not request, unless the namespace's administrator allows it."""
    for role in seen.roles:
        for found in find_privileges(role.template, f"{role.path}.template"):
            yield Difference(found.path, f"{found.message}; TFJob made such pods everywhere")


def check_scheduling(seen: Converted) -> Iterator[Difference]:
    """Queues and gang schedulers that know TFJob and do not know greentrain."""
    for role in seen.roles:
        if role.pod.get("schedulerName") in ("volcano", "scheduler-plugins-scheduler"):
            yield Difference(
                f"{role.pod_path}.schedulerName",
                "no PodGroup is made, so the pods are scheduled one by one, where TFJob made one; remove it unless that "
                "scheduler is wanted for single pods",
            )
    labels = mapping(mapping(seen.job.get("metadata")).get("labels"))
    for key in labels:
        if str(key).startswith("kueue.x-k8s.io/"):
            yield Difference(
                f"metadata.labels['{key}']",
                "Kueue manages TFJobs and does not know GreenTrainingJobs, so the job does not queue; remove it",
            )


def check_template_metadata(seen: Converted) -> Iterator[Difference]:
    """Of a template's metadata only labels and annotations reach the pods."""
    for role in seen.roles:
        for key in mapping(role.template.get("metadata")):
            # TFJob set name and namespace itself; a null creationTimestamp is what generators leave.
            if key not in ("labels", "annotations", "creationTimestamp", "name", "namespace"):
                yield Difference(
                    f"{role.path}.template.metadata.{key}",
                    "only labels and annotations are copied to the pods, where TFJob copied all; remove it",
                )


def check_references(seen: Converted) -> Iterator[Difference]:
    """Names of ranks and of labels, spelled out in the job itself."""
    metadata = {k: v for k, v in mapping(seen.job.get("metadata")).items() if k in ("labels", "annotations")}
    for value, path in ((metadata, "metadata"), (seen.spec, "spec")):
        yield from find_host_names(value, path, [seen.name])
        yield from find_labels(value, path, [seen.name])


def _default(field: str) -> Any:
    return RunPolicy.model_fields[field].default


CHECKS: tuple[Check, ...] = (
    check_restarts,
    check_limits,
    check_success,
    check_cluster,
    check_network,
    check_security,
    check_pod_security,
    check_scheduling,
    check_template_metadata,
    check_references,
)
"""Independent of each other's order; each checks its own preconditions."""
