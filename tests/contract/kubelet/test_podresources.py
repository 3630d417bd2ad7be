"""PodResources over a real socket: what the kubelet says is read, and whatever it does instead is a typed error."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from greentrain.devices.errors import Unavailable, Unsupported
from greentrain.devices.nvidia.references import FullCard, SharedReplica, UnknownDevice
from greentrain.devices.podresources import (
    Allocation,
    Claim,
    ClaimedDevice,
    PodResources,
)
from tests.contract.kubelet.fakes import (
    LIST,
    Answer,
    FakeKubelet,
    Hang,
    Refuse,
    build_container,
    build_devices,
    build_list,
    build_pod,
    start_kubelet,
    start_stranger,
)
from tests.contract.kubelet.wire import write

GPU = "nvidia.com/gpu"
SECONDS = 5.0


def _one(pod: str = "a", *ids: str) -> bytes:
    return build_list(
        build_pod("team", pod, build_container("tensorflow", build_devices(GPU, *(ids or ("GPU-0",)))))
    )


def _held(pod: str = "a", device: str = "GPU-0") -> Allocation:
    return Allocation("team", pod, "tensorflow", GPU, FullCard(device))


def _touch(path: Path) -> None:
    path.touch()


def _abandon(path: Path) -> Path:
    """Leave a socket on which nobody listens."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    return path


async def test_each_device_of_each_container_is_told(path: Path) -> None:
    content = build_list(
        build_pod(
            "team",
            "b",
            build_container("fetch"),
            build_container(
                "tensorflow",
                build_devices(GPU, "GPU-1", "GPU-2", numa=[0, 1]),
                build_devices("nvidia.com/gpu.shared", "GPU-3::1"),
                build_devices("example.com/fpga", "GPU-4"),
            ),
        ),
        build_pod("team", "a", build_container("tensorflow", build_devices(GPU, "?"))),
        build_pod("kube-system", "dns", build_container("dns")),
        build_pod("kube-system", "empty"),
    )
    async with start_kubelet(path, content), PodResources(path) as podresources:
        listing = await podresources.read_allocations()
    assert listing.allocations == (
        Allocation("team", "a", "tensorflow", GPU, UnknownDevice("?")),
        Allocation("team", "b", "tensorflow", GPU, FullCard("GPU-1")),
        Allocation("team", "b", "tensorflow", GPU, FullCard("GPU-2")),
        Allocation("team", "b", "tensorflow", "nvidia.com/gpu.shared", SharedReplica(FullCard("GPU-3"), 1)),
    )
    assert listing.claims == ()


async def test_a_device_told_once_for_each_numa_node_is_one(path: Path) -> None:
    twice = (build_devices(GPU, "GPU-0", numa=[0]), build_devices(GPU, "GPU-0", numa=[1]))
    content = build_list(build_pod("team", "a", build_container("tensorflow", *twice)))
    async with start_kubelet(path, content), PodResources(path) as podresources:
        assert (await podresources.read_allocations()).allocations == (_held(),)


async def test_the_caller_may_choose_the_resources(path: Path) -> None:
    content = build_list(
        build_pod("team", "a", build_container("x", build_devices("example.com/gpu", "GPU-0")))
    )
    counts = "example.com/gpu".__eq__
    async with start_kubelet(path, content), PodResources(path, counts=counts) as podresources:
        (allocation,) = (await podresources.read_allocations()).allocations
    assert allocation.resource == "example.com/gpu"


async def test_claims_are_told_though_their_cards_are_not(path: Path) -> None:
    newer = write(
        (2, "a-gpu-x7"),
        (3, "team"),
        (
            4,
            write(
                (1, write((1, "k8s.gpu.nvidia.com/claim=1234-gpu-0"))),
                (2, "gpu.nvidia.com"),
                (3, "node1"),
                (4, "gpu-0"),
            ),
        ),
    )
    older = write(
        (1, "gpu.nvidia.com"), (2, "b-gpu"), (3, "team"), (4, write((1, write((1, "vendor.com/gpu=x")))))
    )
    content = build_list(
        build_pod("team", "a", build_container("tensorflow", claims=[newer])),
        build_pod("team", "b", build_container("tensorflow", claims=[older])),
    )
    async with start_kubelet(path, content), PodResources(path) as podresources:
        listing = await podresources.read_allocations()
    assert listing.allocations == ()
    assert listing.claims == (
        Claim(
            "team",
            "a",
            "tensorflow",
            "a-gpu-x7",
            "team",
            (ClaimedDevice("gpu.nvidia.com", "node1", "gpu-0", ("k8s.gpu.nvidia.com/claim=1234-gpu-0",)),),
        ),
        Claim(
            "team", "b", "tensorflow", "b-gpu", "team", (ClaimedDevice("", "", "", ("vendor.com/gpu=x",)),)
        ),
    )


async def test_a_thousand_pods_of_eight_cards_are_read(path: Path) -> None:
    pods = []
    for n in range(1000):
        # As device plugins that know the topology have it: one entry for each device; names as long as they may be.
        cards = [build_devices(GPU, f"GPU-{n:08d}-{c:04d}::{c}", numa=[c % 2]) for c in range(8)]
        others = [build_devices(f"{'x' * 253}/{'y' * 63}", *["z" * 63] * 80)]
        pods.append(build_pod("n" * 63, f"{n:063d}", build_container("c" * 63, *cards, *others)))
    content = build_list(*pods)
    assert len(content) > 6_000_000
    async with start_kubelet(path, content), PodResources(path) as podresources:
        listing = await podresources.read_allocations()
    assert len(listing.allocations) == 8000


ENDLESS_IDS = build_list(build_pod("t", "p", build_container("c", write((1, GPU), *[(2, "")] * 200_001))))

UNUSABLE: list[tuple[str, Answer, str]] = [
    ("no answer in time", Hang(), "nothing came within 0.5 s"),
    ("too many requests", Refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit"), "rate limit"),
    (
        "still starting",
        Refuse(grpc.StatusCode.FAILED_PRECONDITION, "not ready"),
        "FAILED_PRECONDITION, not ready",
    ),
    ("an error without a word", Refuse(grpc.StatusCode.INTERNAL), "INTERNAL, no reason given"),
    ("a sermon", Refuse(grpc.StatusCode.UNKNOWN, "no\n" * 1_000), "UNKNOWN, no no no"),
    ("no protobuf", b"\xff" * 100, "its answer makes no sense"),
    ("a torn message", _one()[:-3], "its answer makes no sense"),
    ("more than may be sent", b"\x0a\x00" * 9_000_000, "RESOURCE_EXHAUSTED"),
    ("pods without end", b"\x0a\x00" * 200_001, "more than 200000 entries"),
    ("devices without end", ENDLESS_IDS, "more than 200000 entries"),
]


@pytest.mark.parametrize(("why", "answer", "words"), UNUSABLE, ids=[why for why, _, _ in UNUSABLE])
async def test_an_unusable_answer_is_unavailable_and_the_next_one_counts(
    path: Path, why: str, answer: Answer, words: str
) -> None:
    async with (
        start_kubelet(path, {LIST: answer}) as kubelet,
        PodResources(path, deadline_seconds=0.5) as podresources,
    ):
        with pytest.raises(Unavailable, match=words) as caught:
            await podresources.read_allocations()
        assert caught.value.what == f"The kubelet's socket {path}", why
        assert len(str(caught.value)) < 500
        assert kubelet.calls == 1, "a kubelet that answered is not asked again at once"
        kubelet.answers[LIST] = _one()
        assert (await podresources.read_allocations()).allocations == (_held(),)


@pytest.mark.parametrize(
    ("why", "answers", "version"),
    [
        ("a server of other things", {}, "v1"),
        ("a version we do not know", {LIST: _one()}, "v1alpha1"),
        ("it says so", {LIST: Refuse(grpc.StatusCode.UNIMPLEMENTED, "no")}, "v1"),
    ],
)
async def test_a_kubelet_without_podresources_is_unsupported(
    path: Path, why: str, answers: Mapping[str, Answer], version: str
) -> None:
    async with start_kubelet(path, answers, version=version), PodResources(path) as podresources:
        with pytest.raises(Unsupported) as caught:
            await podresources.read_allocations()
    assert caught.value.feature == "v1.PodResourcesLister/List of the kubelet", why


async def test_no_socket_is_unavailable_at_once(path: Path) -> None:
    async with PodResources(path) as podresources:
        with pytest.raises(Unavailable, match="No such file"):
            await podresources.read_allocations()


async def test_a_plain_file_is_unavailable(path: Path) -> None:
    _touch(path)
    async with PodResources(path) as podresources:
        with pytest.raises(Unavailable, match="no socket"):
            await podresources.read_allocations()


async def test_a_socket_nobody_listens_on_is_unavailable_at_once(path: Path) -> None:
    _abandon(path)
    async with asyncio.timeout(SECONDS), PodResources(path) as podresources:
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            await podresources.read_allocations()


async def test_a_path_too_long_for_a_socket_is_unavailable(folder: Path) -> None:
    long = _abandon(folder / "s").rename(folder / ("x" * 120))
    async with asyncio.timeout(SECONDS), PodResources(long) as podresources:
        with pytest.raises(Unavailable):
            await podresources.read_allocations()


async def test_a_path_with_signs_of_an_address_is_a_path(folder: Path) -> None:
    odd = folder / "50% of #1?.sock"
    # gRPC's own server takes an address too, so the socket is made under a plain name.
    async with start_kubelet(folder / "plain.sock", _one()):
        os.link(folder / "plain.sock", odd)
        async with PodResources(odd) as podresources:
            assert (await podresources.read_allocations()).allocations == (_held(),)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 5_000, None])
async def test_a_server_that_speaks_no_grpc_is_unavailable_in_time(path: Path, says: bytes | None) -> None:
    async with (
        start_stranger(path, says),
        asyncio.timeout(SECONDS),
        PodResources(path, deadline_seconds=1.0) as podresources,
    ):
        with pytest.raises(Unavailable):
            await podresources.read_allocations()


async def test_a_restarted_kubelet_is_found_by_the_next_request(path: Path) -> None:
    async with PodResources(path) as podresources:
        for name in ("a", "b", "c"):
            async with start_kubelet(path, _one(name)):
                assert (await podresources.read_allocations()).allocations == (_held(name),)


async def test_a_new_socket_is_followed_while_the_old_kubelet_still_serves(path: Path) -> None:
    async with start_kubelet(path, _one("old")), PodResources(path) as podresources:
        assert (await podresources.read_allocations()).allocations == (_held("old"),)
        async with start_kubelet(path, _one("new")):
            assert (await podresources.read_allocations()).allocations == (_held("new"),)


async def test_a_long_absence_delays_nothing_once_the_kubelet_is_back(path: Path) -> None:
    async with PodResources(path) as podresources:
        async with start_kubelet(path, _one("old")):
            await podresources.read_allocations()
        for _ in range(20):
            with pytest.raises(Unavailable):
                await podresources.read_allocations()
        _abandon(path)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await podresources.read_allocations()
        async with start_kubelet(path, _one("new")), asyncio.timeout(1.0):
            assert (await podresources.read_allocations()).allocations == (_held("new"),)


async def test_a_kubelet_that_dies_over_a_request_is_unavailable_before_the_deadline(path: Path) -> None:
    kubelet = FakeKubelet(path, {LIST: Hang()})
    await kubelet.start()
    async with PodResources(path) as podresources:
        asking = asyncio.ensure_future(podresources.read_allocations())
        await kubelet.asked.wait()
        await kubelet.stop()
        async with asyncio.timeout(SECONDS):
            with pytest.raises(Unavailable):
                await asking


async def test_requests_at_the_same_time_are_each_answered(path: Path) -> None:
    async with start_kubelet(path, _one()) as kubelet, PodResources(path) as podresources:
        listings = await asyncio.gather(*(podresources.read_allocations() for _ in range(20)))
        assert [one.allocations for one in listings] == [(_held(),)] * 20
        assert kubelet.calls == 20


async def test_a_request_behind_one_that_hangs_keeps_its_own_deadline(path: Path) -> None:
    async with (
        start_kubelet(path, {LIST: Hang()}),
        asyncio.timeout(SECONDS),
        PodResources(path, deadline_seconds=0.5) as podresources,
    ):
        outcomes = await asyncio.gather(
            *(podresources.read_allocations() for _ in range(5)), return_exceptions=True
        )
    assert [type(one) for one in outcomes] == [Unavailable] * 5


async def test_a_caller_may_give_up_and_ask_again(path: Path) -> None:
    async with start_kubelet(path, {LIST: Hang()}) as kubelet, PodResources(path) as podresources:
        asking = asyncio.ensure_future(podresources.read_allocations())
        await kubelet.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        kubelet.answers[LIST] = _one()
        assert (await podresources.read_allocations()).allocations == (_held(),)


async def test_closing_twice_or_unused_is_no_error(path: Path) -> None:
    podresources = PodResources(path)
    await podresources.close()
    await podresources.close()
