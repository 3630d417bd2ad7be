"""Turns a TFJob into the GreenTrainingJob that does what the TFJob did.

Each step changes the manifest in place where the two differ and reports the change, unless no user could notice. Where
greentrain's default differs from TFJob's and nothing was written, TFJob's is written out. What cannot be converted is left in
place: the operator's own admission, which runs at the end, rejects it by its path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from greentrain.api import names
from greentrain.api.runtime import TENSORFLOW_PORT, Env
from greentrain.api.spec import RunPolicy
from greentrain.api.status import GreenTrainingJobStatus
from greentrain.cli import tfjob
from greentrain.cli.differences import Converted, find_differences
from greentrain.cli.documents import insert_first, remove_item, remove_key, rename_key, to_plain
from greentrain.cli.references import Difference
from greentrain.cli.tfjob import Role, items, mapping
from greentrain.core.admission import Problem, Refused, decide_admission
from greentrain.core.seen.snapshot import Job

REMEDIES = {
    "spec.tfReplicaSpecs.PS": "train synchronously (tf.distribute.MultiWorkerMirroredStrategy), or stay with TFJob",
    "spec.runPolicy.schedulingPolicy.priorityClass": "priorityClassName in the templates gives the pods a priority",
    "spec.runPolicy.schedulingPolicy.minAvailable": "the ranks wait for each other before they train, not before they are scheduled",
    "spec.runPolicy.managedBy": "no other controller takes GreenTrainingJobs over",
}
"""What to do instead, added to admission's messages for fields a TFJob may have."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result for one TFJob, whose tree was changed in place."""

    differences: tuple[Difference, ...]
    problems: tuple[Problem, ...]
    """Why the operator would reject the result; none when it can run."""


def is_tfjob(tree: Any) -> bool:
    """Whether a manifest is a TFJob, of whatever version."""
    return (
        isinstance(tree, dict)
        and tree.get("kind") == tfjob.KIND
        and str(tree.get("apiVersion") or "").partition("/")[0] == tfjob.GROUP
    )


def convert_job(tree: CommentedMap) -> Conversion:
    """Change a TFJob into a GreenTrainingJob, in place."""
    version = str(tree.get("apiVersion"))
    if version != tfjob.CURRENT and version not in tfjob.OLDER:
        known = ", ".join([tfjob.CURRENT, *sorted(tfjob.OLDER)])
        return Conversion(
            (),
            (
                Problem(
                    "apiVersion", f"'{version}' is of another form; write the job as one of {known} first"
                ),
            ),
        )
    tree["apiVersion"], tree["kind"] = names.API_VERSION, names.KIND
    _drop_what_the_server_set(tree)
    differences: list[Difference] = []
    spec = tree.get("spec")
    if isinstance(spec, CommentedMap):
        _drop_nulls(spec)
        differences += _move_run_policy(spec, version)
        differences += _name_roles(spec)
        for role in tfjob.roles(spec):
            differences += _clear_pod(role, spec)
            differences += _set_port(role)
            differences += _allow_root(role)
        differences += _write_out_run_policy(spec, version)
    plain = to_plain(tree)
    differences += find_differences(Converted(version, plain))
    return Conversion(merge_roles(differences), find_problems(plain))


def _drop_what_the_server_set(tree: CommentedMap) -> None:
    if "status" in tree:
        remove_key(tree, "status")
    meta = tree.get("metadata")
    if not isinstance(meta, CommentedMap):
        return
    for key in tfjob.SERVER_METADATA:
        if key in meta:
            remove_key(meta, key)
    annotations = meta.get("annotations")
    if isinstance(annotations, CommentedMap) and tfjob.LAST_APPLIED in annotations:
        remove_key(annotations, tfjob.LAST_APPLIED)
        if not annotations:
            remove_key(meta, "annotations")


def _drop_nulls(node: object) -> None:
    """To Kubernetes a null field is unset, at any place. A null in a list stays: there it is a mistake."""
    if isinstance(node, CommentedMap):
        for key in [k for k, v in node.items() if v is None]:
            remove_key(node, key)
    for child in node.values() if isinstance(node, CommentedMap) else tfjob.items(node):
        _drop_nulls(child)


def _move_run_policy(spec: CommentedMap, version: str) -> Iterator[Difference]:
    """tf-operator had these fields directly under spec."""
    for key in tfjob.RUN_POLICY_FIELDS:
        if key not in spec:
            continue
        value = spec[key]
        policy = _run_policy(spec)
        if policy is None or key in policy:
            yield Difference(
                f"spec.{key}", f"is written in spec.runPolicy as well, which counts; removed: {value}"
            )
        else:
            policy[key] = value
            yield Difference(
                f"spec.{key}",
                "the training operator ignored it here, where tf-operator had it; moved to spec.runPolicy, where it "
                "takes effect"
                if version == tfjob.CURRENT
                else "stands in spec.runPolicy since kubeflow.org/v1; moved there",
            )
        remove_key(spec, key)
    policy = spec.get("runPolicy")
    if isinstance(policy, CommentedMap) and policy.get("managedBy") in tfjob.OWN_MANAGERS:
        remove_key(policy, "managedBy")


def _run_policy(spec: CommentedMap) -> CommentedMap | None:
    """The run policy, created where there is none; None where another type is in its place."""
    if "runPolicy" not in spec:
        insert_first(spec, "runPolicy", CommentedMap())
    policy = spec["runPolicy"]
    return policy if isinstance(policy, CommentedMap) else None


def _name_roles(spec: CommentedMap) -> Iterator[Difference]:
    """Canonical spelling; TFJob takes any case. A role without replicas has no pods and is removed."""
    found = spec.get("tfReplicaSpecs")
    if not isinstance(found, CommentedMap):
        return
    for key in list(found):
        name = tfjob.canonical_role(key)
        if name is not None and name != key and name not in found:
            rename_key(found, key, name)
    for role in tfjob.roles(spec):
        if role.replicas == 0 and role.name in tfjob.ROLES:
            remove_key(found, role.name)
            yield Difference(role.path, "has 0 replicas, which greentrain refuses; removed, it made no pods")


_OVERRIDDEN = {
    "restartPolicy": "was overridden by the restartPolicy beside replicas; removed",
    "hostname": "is not what the host is called, greentrain names every rank itself; removed, use the rank's own name",
    "subdomain": "is not where the host is found, greentrain puts every rank under the job's Service; removed, use the rank's own name",
}


def _clear_pod(role: Role, spec: CommentedMap) -> Iterator[Difference]:
    """What greentrain sets itself, and does not accept in a manifest."""
    pod = role.pod
    for key, why in _OVERRIDDEN.items():
        if isinstance(pod, CommentedMap) and key in pod:
            value = pod[key]
            remove_key(pod, key)
            if not (key == "restartPolicy" and value == "Never"):
                yield Difference(f"{role.pod_path}.{key}", f"'{value}' {why}")
    for path, container in role.containers():
        env = container.get("env")
        if (
            not isinstance(container, CommentedMap)
            or container.get("name") != tfjob.CONTAINER
            or not isinstance(env, CommentedSeq)
        ):
            continue
        for i in reversed(range(len(env))):
            if mapping(env[i]).get("name") == Env.TF_CONFIG:
                remove_item(env, i) if len(env) > 1 else remove_key(container, "env")
                alone = sum(r.replicas for r in tfjob.roles(spec)) == 1
                yield Difference(
                    f"{path}.env[{i}]",
                    "TF_CONFIG is set by greentrain alone, and not for a single replica, where TFJob kept this one; "
                    "removed, pass what it said under another name"
                    if alone
                    else "TF_CONFIG is set by greentrain; removed, TFJob overrode it as well",
                )


def _set_port(role: Role) -> Iterator[Difference]:
    """TF_CONFIG names one port for all jobs."""
    for path, container in role.containers():
        if container.get("name") != tfjob.CONTAINER:
            continue
        ports = items(container.get("ports"))
        for i, port in enumerate(ports):
            number = mapping(port).get("containerPort")
            if mapping(port).get("name") != tfjob.PORT_NAME or number == TENSORFLOW_PORT:
                continue
            port["containerPort"] = TENSORFLOW_PORT
            yield Difference(
                f"{path}.ports[{i}].containerPort",
                f"TF_CONFIG names port {TENSORFLOW_PORT}, where TFJob named {number}; changed, make a program that "
                f"spells {number} out read TF_CONFIG",
            )


def _allow_root(role: Role) -> Iterator[Difference]:
    """Write TFJob's default, root allowed, where neither the pod nor all its containers set a user."""
    pod = role.pod
    if not isinstance(pod, CommentedMap):
        return
    context = pod.get("securityContext", CommentedMap())
    if not isinstance(context, CommentedMap) or {"runAsNonRoot", "runAsUser"} & set(context):
        return
    said = [
        {"runAsNonRoot", "runAsUser"} & set(mapping(c.get("securityContext")))
        for _, c in role.containers("containers", "initContainers")
    ]
    if not said or all(said):
        return
    insert_first(context, "runAsNonRoot", False)
    if "securityContext" not in pod:
        insert_first(pod, "securityContext", context)
    yield Difference(
        f"{role.pod_path}.securityContext.runAsNonRoot",
        "greentrain refuses images that run as root unless they are allowed to, and TFJob ran them; false is written, "
        "remove it if the image has a user of its own",
    )


def _write_out_run_policy(spec: CommentedMap, version: str) -> Iterator[Difference]:
    """TFJob's defaults, where ours differ and nothing was written."""
    restarting = any(r.restarts for r in tfjob.roles(spec))
    most = next(m.le for m in RunPolicy.model_fields["backoff_limit"].metadata if hasattr(m, "le"))
    written = spec.get("runPolicy", {})
    if not isinstance(written, dict):
        return
    if "backoffLimit" in written:
        if restarting:
            yield Difference(
                "spec.runPolicy.backoffLimit",
                "counts the job's failures, each gang restart as one, where TFJob summed the restarts of all running "
                "containers; lower it if it was chosen for several replicas",
            )
    elif restarting and (policy := _run_policy(spec)) is not None:
        insert_first(policy, "backoffLimit", most)
        yield Difference(
            "spec.runPolicy.backoffLimit",
            f"TFJob restarts without end and greentrain {RunPolicy().backoff_limit} times; the most allowed, {most}, is "
            "written, lower it to what a failing program may cost",
        )
    if (
        "cleanPodPolicy" not in written
        and version == tfjob.CURRENT
        and (policy := _run_policy(spec)) is not None
    ):
        insert_first(policy, "cleanPodPolicy", "None")
        yield Difference(
            "spec.runPolicy.cleanPodPolicy",
            "TFJob leaves a finished job's pods and greentrain deletes those still running; None is written, remove it "
            "so that no finished job holds a GPU",
        )


def merge_roles(differences: list[Difference]) -> tuple[Difference, ...]:
    """The same difference in several roles is reported once: `spec.tfReplicaSpecs.{Chief,Worker}.template…`."""
    pattern = re.compile(rf"^(spec\.tfReplicaSpecs\.)({'|'.join(tfjob.ROLES)})(?=$|\.)")
    grouped: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        found = pattern.match(difference.path)
        key = (pattern.sub(r"\1{}", difference.path), difference.message)
        roles = grouped.setdefault(key, [])
        if found and found[2] not in roles:
            roles.append(found[2])
    return tuple(
        Difference(
            path.replace("{}", f"{{{','.join(roles)}}}" if len(roles) > 1 else "".join(roles), 1)
            if roles
            else path,
            message,
        )
        for (path, message), roles in grouped.items()
    )


def find_problems(job: dict[str, Any]) -> tuple[Problem, ...]:
    """Why greentrain's operator would reject a job, as its own admission's messages."""
    meta = mapping(job.get("metadata"))
    # The server completes a generateName with five characters.
    name = str(meta.get("name") or (f"{meta['generateName']}xxxxx" if meta.get("generateName") else ""))
    misshapen = tuple(check_shapes(mapping(job.get("spec"))))
    if misshapen:
        return misshapen
    verdict = decide_admission(
        Job(
            namespace=str(meta.get("namespace") or "default"),
            name=name,
            uid="",
            generation=0,
            resource_version="",
            spec=mapping(job.get("spec")),
            status=GreenTrainingJobStatus(),
        ),
        privileged=True,  # its namespace decides: reported as a difference
    )
    if not isinstance(verdict, Refused):
        return ()
    return tuple(
        Problem(p.path, f"{p.message}; {REMEDIES[p.path]}" if p.path in REMEDIES else p.message)
        for p in verdict.problems
    )


_LISTS = ("command", "args", "env", "ports", "volumeMounts")


def check_shapes(spec: dict[str, Any]) -> Iterator[Problem]:
    """Lists of a template that are not lists, and names in them that are not strings: a server would refuse the pods."""
    for role in tfjob.roles(spec):
        found: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [(role.pod_path, role.pod, ("volumes",))]
        found += [(p, c, _LISTS) for p, c in role.containers("containers", "initContainers")]
        for path, section, keys in found:
            for key in keys:
                value = section.get(key)
                if value is not None and not isinstance(value, list):
                    yield Problem(f"{path}.{key}", f"{value!r:.80} is not a list; write one")
                for i, item in enumerate(items(value)):
                    if item is None:
                        yield Problem(f"{path}.{key}[{i}]", "null is not valid in a list; remove it")
                    name = mapping(item).get("name")
                    if name is not None and not isinstance(name, str):
                        yield Problem(f"{path}.{key}[{i}].name", f"{name!r:.80} is not a text; write one")
