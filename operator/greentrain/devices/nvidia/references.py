"""Reads the names that device plugins give a GPU, because the kubelet passes on those texts and nothing else.

| text | from | meaning |
| `GPU-…` | NVIDIA's device plugin | a card by its NVML UUID |
| `MIG-…`, `MIG-GPU-…/1/0` | the same; the second with drivers before R470 | a MIG instance by its NVML UUID |
| `GPU-…::3`, `MIG-…::2` | the same, time-slicing or MPS | one replica of those |
| `nvidia0`, `nvidia0/gi1` | GKE's device plugin | a card by the number of /dev/nvidia0, its GPU instance 1 |
| `nvidia0/vgpu3`, `nvidia0/gi1/vgpu3` | the same, shared | one replica of those |

A printed reference equals the text it was read from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FullCard:
    """A whole card."""

    uuid: str
    """As NVML gives it: `GPU-…`."""

    def __str__(self) -> str:
        return self.uuid


@dataclass(frozen=True, slots=True)
class NumberedCard:
    """A whole card whose UUID only NVML knows."""

    minor: int
    """NVML's minor number, that of /dev/nvidia0; not the index, which follows the PCI bus."""

    def __str__(self) -> str:
        return f"nvidia{self.minor}"


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A MIG instance; limit, power and energy are those of its whole board."""

    uuid: str
    """As NVML gives it: `MIG-…`."""

    @property
    def parent(self) -> str | None:
        """UUID of its card, where the old form of the text has it; else only NVML knows it."""
        name, slash, _ = self.uuid.removeprefix("MIG-").partition("/")
        return name if slash else None

    def __str__(self) -> str:
        return self.uuid


@dataclass(frozen=True, slots=True)
class NumberedMigInstance:
    """A MIG instance by its card's minor number and its GPU instance's id there."""

    minor: int
    gpu_instance: int

    def __str__(self) -> str:
        return f"nvidia{self.minor}/gi{self.gpu_instance}"


@dataclass(frozen=True, slots=True)
class UnknownDevice:
    """A text of no known form, kept to be shown in a message."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SharedReplica:
    """One of the replicas of a card or MIG instance that several containers use at a time."""

    of: FullCard | NumberedCard | MigInstance | NumberedMigInstance
    replica: int

    def __str__(self) -> str:
        separator = "::" if isinstance(self.of, FullCard | MigInstance) else "/vgpu"
        return f"{self.of}{separator}{self.replica}"


Unit = FullCard | NumberedCard | MigInstance | NumberedMigInstance | UnknownDevice
"""What is allocated to one container alone, or shared with others."""

CardReference = Unit | SharedReplica

# Numbers as programs print them, so that a reference prints as it was read; nine digits are beyond any card.
_NUMBER = "(?:0|[1-9][0-9]{0,8})"
_NAME = "[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*"
_BY_UUID = re.compile(
    f"(?:(?P<card>GPU-{_NAME})"
    f"|(?P<mig>MIG-GPU-{_NAME}/{_NUMBER}/{_NUMBER}|MIG-(?!GPU-){_NAME}))"
    f"(?:::(?P<replica>{_NUMBER}))?"
)
_BY_NUMBER = re.compile(
    f"nvidia(?P<minor>{_NUMBER})(?:/gi(?P<instance>{_NUMBER}))?(?:/vgpu(?P<replica>{_NUMBER}))?"
)


def parse_device(text: str) -> CardReference:
    """What a device plugin's text refers to; UnknownDevice where it has none of the known forms."""
    of: FullCard | NumberedCard | MigInstance | NumberedMigInstance
    if found := _BY_UUID.fullmatch(text):
        of = FullCard(found["card"]) if found["card"] else MigInstance(found["mig"])
    elif found := _BY_NUMBER.fullmatch(text):
        minor, instance = int(found["minor"]), found["instance"]
        of = NumberedCard(minor) if instance is None else NumberedMigInstance(minor, int(instance))
    else:
        return UnknownDevice(text)
    return of if found["replica"] is None else SharedReplica(of, int(found["replica"]))


def get_unit(reference: CardReference) -> Unit:
    """The card or MIG instance itself, whichever of its replicas the reference names."""
    return reference.of if isinstance(reference, SharedReplica) else reference
