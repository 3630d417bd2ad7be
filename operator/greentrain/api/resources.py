"""Which resources of a container are GPUs, and how many: one rule for both programs.

The operator counts what pods request, the agent what the kubelet has allocated. A name that only one of them counted would be
energy without a budget, or a budget on which nothing is counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_GPUS = 1024
"""Most GPUs, or parts of one, that one container may request of one resource; no node has as many."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}/([A-Za-z0-9][A-Za-z0-9._-]{0,62})?\*?", re.ASCII)
"""An extended resource's name, which Kubernetes requires a domain of; a star at its end stands for any rest."""

NAMES_FORM = "names such as nvidia.com/gpu, separated by commas; a * at the end of a name stands for any rest"


@dataclass(frozen=True, slots=True)
class GpuResources:
    """The names of the container resources that are GPUs, or parts of one."""

    names: tuple[str, ...]
    """Each is a whole name, or ends with a star that stands for any rest: `nvidia.com/mig-*`."""

    def __str__(self) -> str:
        return ",".join(self.names)

    def counts(self, resource: str) -> bool:
        """Whether a resource of this name is GPUs, or parts of one."""
        return any(
            resource.startswith(name[:-1]) if name.endswith("*") else resource == name for name in self.names
        )


SHIPPED = GpuResources(("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-*"))
"""What NVIDIA's device plugin offers (README of k8s-device-plugin): whole GPUs, GPUs that are shared in time with
`renameByDefault: true`, and MIG instances with the strategy `mixed`."""


def parse_gpu_resources(text: str) -> GpuResources:
    """Read names that are separated by commas; each counts once.

    Raises:
        ValueError: one is no name of a resource, or there is none; the text says what would be right.
    """
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if _NAME.fullmatch(name) is None or name.endswith("/"):
            raise ValueError(f"'{name}' is no name of a GPU resource: write {NAMES_FORM}")
    return GpuResources(names)


def looks_like_gpu(resource: str) -> bool:
    """Whether the name of an extended resource has "gpu" after its domain, as those of all vendors known to us do."""
    domain, slash, name = resource.rpartition("/")
    return bool(slash) and "kubernetes.io" not in domain and "gpu" in name.lower()


def is_share_of_gpu(resource: str) -> bool:
    """Whether such a resource is the memory or the cores of a GPU that is requested beside it (HAMi: `nvidia.com/gpumem`)."""
    return re.search("mem|core", resource.rpartition("/")[2].lower()) is not None


_QUANTITY = re.compile(
    r"(?P<sign>[+-]?)(?=\.?[0-9])(?P<whole>[0-9]{0,40})(\.(?P<part>[0-9]{0,40}))?"
    r"([eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<unit>[numkMGTPE]|[KMGTPE]i)?)",
    re.ASCII,
)
"""apimachinery's resource.Quantity, with bounds on its digits."""

_UNITS = {unit: Fraction(10) ** (3 * power) for power, unit in zip(range(-3, 0), "num", strict=True)}
_UNITS |= {unit: Fraction(1000) ** power for power, unit in enumerate("kMGTPE", 1)}
_UNITS |= {f"{unit}i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", 1)}

_MOST = 10**15


def parse_count(amount: object) -> int | None:
    """A quantity of GPUs, as a pod or a template has it: `8`, `"8"`, `"1k"`, `1.0`, `"1000m"`, `"1e0"`.

    None for what is no whole number from 0 to 10^15, and for any other value: the API server refuses it, except for null,
    which is an unset field.
    """
    match amount:
        case bool():
            return None
        case int():
            return amount if 0 <= amount < _MOST else None
        case float():
            return int(amount) if 0 <= amount < _MOST and amount.is_integer() else None
        case str():
            return _parse_text(amount)
        case _:
            return None


def _parse_text(text: str) -> int | None:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    part = found["part"] or ""
    exponent = int(found["exponent"] or 0) - len(part)
    value = int(found["whole"] + part) * Fraction(10) ** exponent * _UNITS.get(found["unit"] or "", 1)
    whole = value.denominator == 1 and value < _MOST and (found["sign"] != "-" or value == 0)
    return int(value) if whole else None
