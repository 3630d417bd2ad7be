"""Who holds which card, from what the kubelet says and what the API server knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from greentrain.agent.allocations import find_allocations
from greentrain.devices.nvidia.references import parse_device
from greentrain.devices.podresources import Allocation, Claim, ClaimedDevice, Listing
from greentrain.energy.attribution import Allocated
from greentrain.kube.node import NodePod
from greentrain.node.allocations import Allocations, by_name, pod_key
from greentrain.node.cards import Card, Partition

CUT = (
    Partition("MIG-aaa", gpu_instance=1, compute_instance=0, slices=3, total_slices=7),
    Partition("MIG-bbb", gpu_instance=2, compute_instance=0, slices=1, total_slices=7),
    Partition("MIG-ccc", gpu_instance=2, compute_instance=1, slices=1, total_slices=7),
)
CARDS = (
    Card("GPU-a", index=0, minor=3, model="A100", partitioned=False),
    Card("GPU-b", index=1, minor=0, model="A100", partitioned=False),
    Card("GPU-m", index=2, minor=7, model="A100", partitioned=True, partitions=CUT),
)

A, B = NodePod("team", "a", "u-a", terminal=False), NodePod("team", "b", "u-b", terminal=False)


def held(pod: str, *devices: str, container: str = "tensorflow") -> tuple[Allocation, ...]:
    return tuple(Allocation("team", pod, container, "nvidia.com/gpu", parse_device(d)) for d in devices)


def find(
    *allocations: Allocation, pods: tuple[NodePod, ...] = (A, B), claims: tuple[Claim, ...] = ()
) -> Allocations:
    return find_allocations(Listing(allocations, claims), CARDS, pods)


def alone(pod: str) -> Allocated:
    return Allocated(f"team/{pod}/u-{pod}")


def part(pod: str, share: float) -> Allocated:
    return Allocated(f"team/{pod}/u-{pod}", share, alone=False)


def rounded(cards: dict[str, list[Allocated]]) -> dict[str, list[Allocated]]:
    return {
        card: [replace(hold, share=round(hold.share, 9)) for hold in holds] for card, holds in cards.items()
    }


@dataclass(frozen=True)
class Case:
    says: tuple[Allocation, ...]
    cards: dict[str, list[Allocated]]


CASES = {
    "nobody": Case((), {}),
    "a full card by UUID": Case(held("a", "GPU-a"), {"GPU-a": [alone("a")]}),
    "two cards of one pod": Case(held("a", "GPU-a", "GPU-b"), {"GPU-a": [alone("a")], "GPU-b": [alone("a")]}),
    "a card of each": Case(
        held("a", "GPU-b") + held("b", "GPU-a"), {"GPU-b": [alone("a")], "GPU-a": [alone("b")]}
    ),
    "a card by its device file's number, which is not its index": Case(
        held("a", "nvidia0"), {"GPU-b": [alone("a")]}
    ),
    "two containers of a pod at one card": Case(
        held("a", "GPU-a") + held("a", "GPU-a", container="init"), {"GPU-a": [alone("a")]}
    ),
    "a MIG instance by UUID": Case(held("a", "MIG-aaa"), {"GPU-m": [part("a", 3 / 7)]}),
    "MIG instances of one pod": Case(held("a", "MIG-aaa", "MIG-bbb"), {"GPU-m": [part("a", 4 / 7)]}),
    "MIG instances of two pods": Case(
        held("a", "MIG-aaa") + held("b", "MIG-ccc"), {"GPU-m": [part("a", 3 / 7), part("b", 1 / 7)]}
    ),
    "a GPU instance by number, with all that is in it": Case(
        held("a", "nvidia7/gi2"), {"GPU-m": [part("a", 2 / 7)]}
    ),
    "a time-shared card": Case(
        held("a", "GPU-a::0") + held("b", "GPU-a::3"), {"GPU-a": [part("a", 0.5), part("b", 0.5)]}
    ),
    "two of three replicas are one pod's": Case(
        held("a", "GPU-a::0", "GPU-a::2") + held("b", "GPU-a::3"),
        {"GPU-a": [part("a", 2 / 3), part("b", 1 / 3)]},
    ),
    "a time-shared card that only one uses is divided all the same": Case(
        held("a", "GPU-a::0"), {"GPU-a": [part("a", 1.0)]}
    ),
    "a time-shared card by number": Case(
        held("a", "nvidia3/vgpu0") + held("b", "nvidia3/vgpu1"),
        {"GPU-a": [part("a", 0.5), part("b", 0.5)]},
    ),
    "a time-shared MIG instance": Case(
        held("a", "MIG-aaa::0") + held("b", "MIG-aaa::1"),
        {"GPU-m": [part("a", 1.5 / 7), part("b", 1.5 / 7)]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_holds_which_part_of_which_card(case: Case) -> None:
    found = find(*case.says)
    assert rounded(found.cards) == rounded(case.cards)
    assert found.problems == []
    assert set(found.pods) == {h.pod for holds in case.cards.values() for h in holds}


UNNAMED = "has a name of no known form (only NVIDIA's GPUs can be read)"
UNLISTED = "is none of the GPUs that the driver lists (nvidia-smi -L; a reset or a reboot may bring it back)"


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("GPU-away", UNLISTED),
        ("gpu0", UNNAMED),
        ("0000:03:00.0", UNNAMED),
        ("nvidia9", UNLISTED),
        ("MIG-none", UNLISTED),
        ("nvidia7/gi9", UNLISTED),
        ("nvidia9/gi1", UNLISTED),
    ],
)
def test_a_device_that_the_driver_does_not_list_is_said_and_counts_as_a_card_that_is_never_read(
    device: str, why: str
) -> None:
    found = find(*held("a", device), *held("b", "GPU-a"))
    assert found.cards == {"GPU-a": [alone("b")], device: [alone("a")]}
    assert found.problems == [
        f"the device {device} of pod team/a {why}: what it uses is not known, and its time is missing"
    ]
    assert set(found.pods) == {"team/a/u-a", "team/b/u-b"}


def test_until_the_driver_has_listed_its_cards_none_is_unknown() -> None:
    found = find_allocations(Listing(held("a", "GPU-a"), ()), (), (A, B), listed=False)
    assert (found.cards, found.problems) == ({"GPU-a": [alone("a")]}, [])


def claim(*devices: tuple[str, str] | tuple[str, str, str]) -> Claim:
    claimed = tuple(ClaimedDevice(d[0], "pool", d[1], d[2:]) for d in devices)
    return Claim("team", "a", "tensorflow", "mine", "team", claimed)


@pytest.mark.parametrize(
    ("one", "cards"),
    [
        (claim(("gpu.nvidia.com", "gpu-0")), ["team/mine/gpu-0"]),
        (
            claim(("gpu.nvidia.com", "gpu-0"), ("gpu.nvidia.com", "gpu-1")),
            ["team/mine/gpu-0", "team/mine/gpu-1"],
        ),
        (claim(("gpu.nvidia.com", "gpu-0"), ("nic.example.com", "eth0")), ["team/mine/gpu-0"]),
        (claim(("gpu.amd.com", "gpu-56-128")), ["team/mine/gpu-56-128"]),
        (claim(("gpu.intel.com", "0000-03-00-0")), ["team/mine/0000-03-00-0"]),
        (claim(("", "", "k8s.gpu.nvidia.com/claim=1")), ["team/mine/k8s.gpu.nvidia.com/claim=1"]),
        (claim(("nic.example.com", "eth0")), []),
        (claim(("compute-domain.nvidia.com", "channel-0")), []),
    ],
    ids=["one", "two", "beside another device", "AMD's", "Intel's", "by its CDI name", "no GPU", "a channel"],
)
def test_gpus_by_resource_claim_are_said_and_count_as_cards_that_are_never_read(
    one: Claim, cards: list[str]
) -> None:
    found = find(claims=(one,))
    assert found.cards == {card: [alone("a")] for card in cards}
    assert set(found.pods) == ({"team/a/u-a"} if cards else set())
    assert len(found.problems) == bool(cards)
    for text in found.problems:
        assert "pod team/a uses a GPU by ResourceClaim mine" in text
        assert "its time is missing; request nvidia.com/gpu of a device plugin instead" in text
    ended = find(claims=(one,), pods=(ENDED,))
    assert (ended.cards, ended.pods, ended.problems) == ({}, {}, [])


ENDED = NodePod("team", "a", "u-old", terminal=True)


@pytest.mark.parametrize(
    ("pods", "holders"),
    [
        ((A,), ["team/a/u-a"]),
        ((), ["team/a/"]),
        ((ENDED,), []),
        ((ENDED, A), ["team/a/u-a"]),
        ((A, ENDED), ["team/a/u-a"]),
        ((NodePod("other", "a", "u-x", terminal=True),), ["team/a/"]),
    ],
    ids=[
        "known",
        "unknown: it has no UID yet",
        "ended: it holds nothing, whatever the kubelet lists",
        "ended, and a new one of its name",
        "the same in the other order",
        "of another namespace",
    ],
)
def test_a_pod_is_known_by_the_api_server(pods: tuple[NodePod, ...], holders: list[str]) -> None:
    found = find(*held("a", "GPU-a"), pods=pods)
    assert [h.pod for h in found.cards.get("GPU-a", [])] == holders
    assert list(found.pods) == holders


def test_an_ended_pod_leaves_a_shared_card_to_the_others() -> None:
    gone = NodePod("team", "b", "u-b", terminal=True)
    found = find(*held("a", "GPU-a::0"), *held("b", "GPU-a::1"), pods=(A, gone))
    assert found.cards == {"GPU-a": [part("a", 1.0)]}


def test_of_two_pods_of_one_name_the_living_one_counts() -> None:
    assert by_name((ENDED, A)) == by_name((A, ENDED)) == {("team", "a"): A}


def test_keys_tell_pods_of_one_name_apart() -> None:
    assert pod_key("team", "a", "u") == "team/a/u"
    assert pod_key("team", "a", None) == pod_key("team", "a", "") == "team/a/"
