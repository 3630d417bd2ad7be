"""From what the kubelet says and what is known of the pods follows who holds which card."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.devices.nvidia.references import (
    CardReference,
    FullCard,
    MigInstance,
    SharedReplica,
    Unit,
    UnknownDevice,
    parse_device,
)
from greentrain.devices.podresources import (
    Allocation,
    Claim,
    ClaimedDevice,
    GpuPod,
    KnownPod,
    MalformedError,
    PodKey,
    group_by_unit,
    parse_listing,
)
from tests.contract.kubelet.wire import write

CARD = FullCard("GPU-0")


def _holding(pod: str, device: str, container: str = "tensorflow") -> Allocation:
    return Allocation("team", pod, container, "nvidia.com/gpu", parse_device(device))


def _holder(
    pod: str, uid: str | None, *references: CardReference, containers: tuple[str, ...] = ("tensorflow",)
) -> GpuPod:
    return GpuPod("team", pod, uid, containers, references)


def _replica(number: int) -> SharedReplica:
    return SharedReplica(CARD, number)


A, B = PodKey("team", "a"), PodKey("team", "b")
RUNNING = {A: KnownPod("uid-a", terminal=False), B: KnownPod("uid-b", terminal=False)}
A_ENDED = {**RUNNING, A: KnownPod("uid-a", terminal=True)}


@pytest.mark.parametrize(
    ("why", "allocations", "pods", "expected"),
    [
        ("nothing is held", [], RUNNING, {}),
        ("a card has its pod", [_holding("a", "GPU-0")], RUNNING, {CARD: (_holder("a", "uid-a", CARD),)}),
        (
            "an unknown pod holds, its UID unknown",
            [_holding("a", "GPU-0")],
            {},
            {CARD: (_holder("a", None, CARD),)},
        ),
        ("a pod that has ended holds nothing", [_holding("a", "GPU-0")], A_ENDED, {}),
        (
            "a card passes to the next pod though the one that has ended is listed",
            [_holding("a", "GPU-0"), _holding("b", "GPU-0")],
            A_ENDED,
            {CARD: (_holder("b", "uid-b", CARD),)},
        ),
        (
            "the pod of that name in another namespace is another",
            [_holding("a", "GPU-0")],
            {PodKey("other", "a"): KnownPod("uid-o", terminal=True)},
            {CARD: (_holder("a", None, CARD),)},
        ),
        (
            "a shared card has all its holders",
            [_holding("b", "GPU-0::1"), _holding("a", "GPU-0::0")],
            RUNNING,
            {CARD: (_holder("a", "uid-a", _replica(0)), _holder("b", "uid-b", _replica(1)))},
        ),
        (
            "two replicas of one pod are one holder",
            [_holding("a", "GPU-0::1"), _holding("a", "GPU-0::0")],
            RUNNING,
            {CARD: (_holder("a", "uid-a", _replica(0), _replica(1)),)},
        ),
        (
            "an init container's card goes on to the next container of its pod",
            [_holding("a", "GPU-0", "fetch"), _holding("a", "GPU-0")],
            RUNNING,
            {CARD: (_holder("a", "uid-a", CARD, containers=("fetch", "tensorflow")),)},
        ),
        (
            "instances of a card are units of their own, and so is what nobody can read",
            [_holding("a", "MIG-1"), _holding("b", "MIG-2"), _holding("b", "?")],
            RUNNING,
            {
                MigInstance("MIG-1"): (_holder("a", "uid-a", MigInstance("MIG-1")),),
                MigInstance("MIG-2"): (_holder("b", "uid-b", MigInstance("MIG-2")),),
                UnknownDevice("?"): (_holder("b", "uid-b", UnknownDevice("?")),),
            },
        ),
    ],
)
def test_each_card_has_its_holders(
    why: str,
    allocations: list[Allocation],
    pods: Mapping[PodKey, KnownPod],
    expected: Mapping[Unit, tuple[GpuPod, ...]],
) -> None:
    assert group_by_unit(allocations, pods) == expected, why
    assert list(group_by_unit(allocations[::-1], pods).items()) == list(
        group_by_unit(allocations, pods).items()
    )


@pytest.mark.parametrize(
    ("why", "devices", "drivers", "is_gpu"),
    [
        (
            "NVIDIA's driver",
            [ClaimedDevice("gpu.nvidia.com", "node", "gpu-0", ())],
            ("gpu.nvidia.com",),
            True,
        ),
        ("before 1.31: the CDI kind", [ClaimedDevice("", "", "", ("k8s.gpu.nvidia.com/claim=1",))], (), True),
        (
            "another driver",
            [ClaimedDevice("dra.net", "node", "eth1", ("dra.net/nic=eth1",))],
            ("dra.net",),
            False,
        ),
        (
            "both in one claim",
            [
                ClaimedDevice("gpu.nvidia.com", "node", "gpu-0", ()),
                ClaimedDevice("dra.net", "node", "eth1", ()),
            ],
            ("dra.net", "gpu.nvidia.com"),
            True,
        ),
        ("nothing is told", [], (), False),
    ],
)
def test_a_claim_tells_its_drivers(
    why: str, devices: list[ClaimedDevice], drivers: tuple[str, ...], is_gpu: bool
) -> None:
    claim = Claim("team", "a", "tensorflow", "claim", "team", tuple(devices))
    assert (claim.drivers, claim.is_gpu) == (drivers, is_gpu), why


@given(st.binary(max_size=300))
def test_bytes_that_are_no_answer_are_malformed_and_nothing_else(content: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse_listing(content)


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("empty pods without end", b"\x0a\x00" * 200_001),
        ("containers without end", write((1, write(*[(3, b"")] * 200_001)))),
        ("claims without end", write((1, write((3, write(*[(5, b"")] * 200_001)))))),
        ("a text that is no UTF-8", b"\x0a\x03\x0a\x01\xff"),
        ("a length that goes beyond the end", b"\x0a\x7f"),
        ("ten bytes of a number that does not end", b"\x0a" + b"\xff" * 11),
    ],
)
def test_an_absurd_answer_is_malformed(why: str, content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_listing(content)
    assert content, why
