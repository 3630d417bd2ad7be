"""How many GPUs a pod needs, counted as the scheduler counts them: charges, bounds and caps follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from greentrain.api.resources import MAX_GPUS, GpuResources, parse_count


def is_sidecar(init_container: Mapping[str, Any]) -> bool:
    """Whether an init container goes on beside the others instead of ending before they start."""
    return init_container.get("restartPolicy") == "Always"


def count_gpus(spec: Mapping[str, Any], resources: GpuResources) -> int:
    """GPUs, or parts of one, that a pod of this spec needs.

    Of each resource the larger of two sums: what containers and sidecars need together, and what one init container needs
    beside the sidecars that were started before it (KEP-753, "Resources calculation for scheduling and pod admission").

    Whatever the spec holds, nothing is raised. An amount that is no whole number up to MAX_GPUS counts as none: no pod
    with it is created, or none can be scheduled.
    """
    together: Counter[str] = Counter()
    for container in iterate_containers(spec, "containers"):
        together.update(_count_limits(container, resources))
    sidecars: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for container in iterate_containers(spec, "initContainers"):
        own = _count_limits(container, resources)
        if is_sidecar(container):
            together.update(own)
            sidecars.update(own)
            alone |= sidecars
        else:
            alone |= own + sidecars
    return sum((together | alone).values())


def iterate_containers(spec: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    """The containers of one list of a pod's spec; what is no container, or no list, is left out."""
    found = spec.get(kind)
    for container in found if isinstance(found, list | tuple) else ():
        if isinstance(container, Mapping):
            yield container


def read_amounts(container: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """`limits` or `requests` of a container; empty where it has none."""
    resources = container.get("resources")
    amounts = resources.get(section) if isinstance(resources, Mapping) else None
    return amounts if isinstance(amounts, Mapping) else {}


def _count_limits(container: Mapping[str, Any], resources: GpuResources) -> Counter[str]:
    """Of each GPU resource the limit; the API server requires a request to be equal to it."""
    counts = {
        name: parse_count(amount) or 0
        for name, amount in read_amounts(container, "limits").items()
        if resources.counts(name)
    }
    return Counter({name: count for name, count in counts.items() if count <= MAX_GPUS})
