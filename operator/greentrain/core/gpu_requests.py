"""What the templates of a job may request of GPUs: whole numbers, in places where their energy can be counted.

The API server would refuse some of it only when pods are created, and would create pods whose GPUs nothing counts. Here both is
refused before there are any, by the path of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from greentrain.api.resources import MAX_GPUS, GpuResources, is_share_of_gpu, looks_like_gpu, parse_count
from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.core.limits import quote, shorten
from greentrain.core.seen.gpus import count_gpus, is_sidecar, read_amounts
from greentrain.core.seen.snapshot import TemplateProblem


def find_gpu_problems(spec: GreenTrainingJobSpec, resources: GpuResources) -> Iterator[TemplateProblem]:
    """Requests for GPUs in a job's templates that cannot be granted, or whose energy could not be counted."""
    budgeted = spec.energy.budget is not None or spec.emissions.budget is not None
    for type_, role in spec.tf_replica_specs.roles():
        pod_spec = role.template.get("spec")
        if isinstance(pod_spec, Mapping):
            at = f"spec.tfReplicaSpecs.{type_.value}.template.spec"
            yield from _check_containers(at, pod_spec, resources)
            if budgeted:
                yield from _check_claims(at, pod_spec, resources)
                yield from _check_visible_devices(at, pod_spec, resources)
                uncounted = [*_find_uncounted(at, pod_spec, resources)]
                yield from uncounted or _check_runtime_class(at, pod_spec, resources)


def _iterate(at: str, pod_spec: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The kind of each container, the path of its resources, and the container."""
    for kind in ("containers", "initContainers"):
        containers = pod_spec.get(kind)
        for i, container in enumerate(containers if isinstance(containers, list) else ()):
            if isinstance(container, Mapping):
                yield kind, f"{at}.{kind}[{i}].resources", container


def _check_containers(
    at: str, pod_spec: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    for kind, path, container in _iterate(at, pod_spec):
        yield from _check_amounts(path, container, resources)
        if kind == "initContainers" and not is_sidecar(container):
            yield from _check_init_container(path, container, resources)


def _find_uncounted(
    at: str, pod_spec: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    for _, path, container in _iterate(at, pod_spec):
        yield from _check_names(path, container, resources)


def _path(resources_path: str, section: str, name: str) -> str:
    return f"{resources_path}.{section}['{shorten(name)}']"


def _check_amounts(
    path: str, container: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    """Whole numbers, and requests equal to their limits, as Kubernetes requires of extended resources."""
    limits = read_amounts(container, "limits")
    for section in ("limits", "requests"):
        for name, amount in read_amounts(container, section).items():
            if not resources.counts(name):
                continue
            count, at = parse_count(amount), _path(path, section, name)
            limit = parse_count(limits.get(name))
            if count is None or count > MAX_GPUS:
                text = f"{quote(amount)} is not valid: set a whole number from 0 to {MAX_GPUS}"
                yield TemplateProblem(at, text)
            elif name not in limits:
                text = f"{quote(amount)} is not valid without a limit: set resources.limits['{shorten(name)}'] to it"
                yield TemplateProblem(at, text)
            elif limit is not None and count != limit:
                text = f"{quote(amount)} is not valid: it must be equal to the limit of {limit}; set {limit}, or remove it"
                yield TemplateProblem(at, text)


def _check_init_container(
    path: str, container: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    """No GPU in an init container that ends before the others start.

    The kubelet's List has the devices of containers and of sidecars alone (pkg/kubelet/apis/podresources/server_v1.go).
    """
    for name, amount in read_amounts(container, "limits").items():
        if resources.counts(name) and parse_count(amount):
            text = (
                f"{quote(amount)} is not valid in an init container: the kubelet does not report its GPUs, so their energy could "
                "be neither counted nor capped; move it to a container, or set restartPolicy: Always on the init container"
            )
            yield TemplateProblem(_path(path, "limits", name), text)


def _check_names(
    path: str, container: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    """Under a budget no resource that looks like a GPU and is not counted as one."""
    limits, requests = read_amounts(container, "limits"), read_amounts(container, "requests")
    beside = any(resources.counts(name) and parse_count(amount) for name, amount in limits.items())
    for name, amount in {**requests, **limits}.items():
        if resources.counts(name) or not looks_like_gpu(name) or parse_count(amount) == 0:
            continue
        if beside and is_share_of_gpu(name):
            continue
        text = (
            f"{quote(amount)} is not valid under a budget: {shorten(name)} is not counted as GPUs, and the budget would have "
            f"nothing of their energy; add it to gpus.resourceNames of the chart, or request {_name_some(resources)}"
        )
        yield TemplateProblem(_path(path, "limits" if name in limits else "requests", name), text)


def _check_claims(at: str, pod_spec: Mapping[str, Any], resources: GpuResources) -> Iterator[TemplateProblem]:
    """Under a budget no ResourceClaim that looks like one of a GPU: the kubelet does not say which GPU it has got.

    What a claim is of only the claim itself says. Where its names do not show that it is a GPU, the node's agent reports its time as
    missing, and that is charged.
    """
    claims = pod_spec.get("resourceClaims")
    for i, claim in enumerate(claims if isinstance(claims, list) else ()):
        fields = claim if isinstance(claim, Mapping) else {}
        names = [fields.get(key) for key in ("name", "resourceClaimName", "resourceClaimTemplateName")]
        shown = next((name for name in names if isinstance(name, str) and "gpu" in name.lower()), None)
        if shown is not None:
            text = (
                f"{quote(shown)} is not valid under a budget: which GPU a ResourceClaim has got is not reported, so its energy "
                f"could not be counted; request {_name_some(resources)}, or remove the budget"
            )
            yield TemplateProblem(f"{at}.resourceClaims[{i}]", text)


VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
NO_DEVICES = frozenset({"", "void", "none"})
"""Its values for no GPU (NVIDIA Container Toolkit, docker-specialized.html)."""


def _check_visible_devices(
    at: str, pod_spec: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    """Under a budget no variable that gives a container GPUs which are not allocated to its pod."""
    for kind in ("containers", "initContainers"):
        containers = pod_spec.get(kind)
        for i, container in enumerate(containers if isinstance(containers, list) else ()):
            variables = container.get("env") if isinstance(container, Mapping) else None
            for j, variable in enumerate(variables if isinstance(variables, list) else ()):
                if not isinstance(variable, Mapping) or variable.get("name") != VISIBLE_DEVICES:
                    continue
                value = variable.get("value")
                gives_none = value is None or (isinstance(value, str) and value in NO_DEVICES)
                if gives_none and not variable.get("valueFrom"):
                    continue
                value = "valueFrom" if value is None else value
                text = (
                    f"{quote(value)} is not valid under a budget: {VISIBLE_DEVICES} gives the container GPUs that are not allocated to "
                    f"the pod, and the budget would have nothing of their energy; remove it, and request {_name_some(resources)}"
                )
                yield TemplateProblem(f"{at}.{kind}[{i}].env[{j}]", text)


def _check_runtime_class(
    at: str, pod_spec: Mapping[str, Any], resources: GpuResources
) -> Iterator[TemplateProblem]:
    """Under a budget no runtime that gives GPUs to containers which request none.

    NVIDIA's container runtime (RuntimeClasses nvidia, nvidia-cdi, nvidia-legacy of its GPU operator) gives a container the
    GPUs that the variable NVIDIA_VISIBLE_DEVICES names, and CUDA images set it to `all`.
    """
    name = pod_spec.get("runtimeClassName")
    if not isinstance(name, str) or "nvidia" not in name.lower() or count_gpus(pod_spec, resources):
        return
    text = (
        f"{quote(name)} is not valid under a budget where no container requests a GPU: it gives them GPUs that are not "
        f"allocated to the pod, and the budget would have nothing of their energy; request {_name_some(resources)}, or remove it"
    )
    yield TemplateProblem(f"{at}.runtimeClassName", text)


def _name_some(resources: GpuResources) -> str:
    """The first name of the list; the others are in the chart."""
    return resources.names[0]
