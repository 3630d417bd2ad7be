"""The sandbox's device plugin does what a kubelet asks of one, over real sockets and as the program that is started."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sandbox.deviceplugin import DevicePlugin, Mount, build_reader, parse_mount
from sandbox.shell import SandboxError
from tests.contract.kubelet.fakes import FakeRegistration, Registered
from tests.contract.kubelet.wire import read, read_messages, read_texts, write

ROOT = Path(__file__).parents[3]
ENDPOINT = "greentrain-nvidia.com-gpu.sock"
REGISTERED = Registered("v1beta1", ENDPOINT, "nvidia.com/gpu", {2: True})
SECONDS = 10.0


@pytest.fixture
async def kubelet(folder: Path) -> AsyncIterator[FakeRegistration]:
    directory = folder / "device-plugins"
    directory.mkdir()
    kubelet = FakeRegistration(directory)
    await kubelet.start()
    yield kubelet
    await kubelet.stop()


@pytest.fixture
def health() -> dict[str, bool]:
    return {"GPU-0": True, "GPU-1": True, "GPU-2": True}


@contextlib.asynccontextmanager
async def _run(plugin: DevicePlugin) -> AsyncIterator[None]:
    running = asyncio.ensure_future(plugin.run())
    try:
        async with asyncio.timeout(SECONDS):
            yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def plugin(kubelet: FakeRegistration, health: dict[str, bool]) -> AsyncIterator[DevicePlugin]:
    plugin = DevicePlugin(
        kubelet.directory,
        lambda: health,
        mounts=[Mount("/opt/libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1", read_only=True)],
        environment={"LD_LIBRARY_PATH": "/usr/lib"},
        look_seconds=0.05,
    )
    async with _run(plugin):
        yield plugin


@contextlib.asynccontextmanager
async def _connect(directory: Path) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"unix://{directory / ENDPOINT}", options=options) as channel:
        yield channel


async def _ask(directory: Path, method: str, *fields: tuple[int, bytes]) -> bytes:
    async with _connect(directory) as channel:
        call: Any = channel.unary_unary(f"/v1beta1.DevicePlugin/{method}")
        answer: bytes = await call(write(*fields))
        return answer


def _read_health(content: bytes) -> dict[str, str]:
    devices = (read_texts(device, 1) + read_texts(device, 2) for device in read_messages(content, 1))
    return dict(devices)


def _make(directory: Path) -> None:
    directory.mkdir()


def _list(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_it_registers_its_resource_and_its_socket_is_there(
    kubelet: FakeRegistration, plugin: DevicePlugin
) -> None:
    assert await kubelet.registered.get() == REGISTERED
    assert plugin.socket == kubelet.directory / ENDPOINT
    assert plugin.socket.is_socket()
    assert await _ask(kubelet.directory, "GetDevicePluginOptions") == write((2, 1))


async def test_a_lost_card_becomes_unhealthy_and_may_come_back(
    kubelet: FakeRegistration, plugin: DevicePlugin, health: dict[str, bool]
) -> None:
    await kubelet.registered.get()
    async with _connect(plugin.directory) as channel:
        open_stream: Any = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")
        stream = open_stream(b"")
        assert _read_health(await stream.read()) == dict.fromkeys(health, "Healthy")
        health["GPU-1"] = False
        assert _read_health(await stream.read()) == {
            "GPU-0": "Healthy",
            "GPU-1": "Unhealthy",
            "GPU-2": "Healthy",
        }
        health["GPU-1"] = True
        assert _read_health(await stream.read()) == dict.fromkeys(health, "Healthy")
        del health["GPU-2"]
        assert _read_health(await stream.read()) == dict.fromkeys(["GPU-0", "GPU-1"], "Healthy")
        stream.cancel()


async def test_each_container_gets_its_cards_by_name_and_what_all_get(
    kubelet: FakeRegistration, plugin: DevicePlugin
) -> None:
    await kubelet.registered.get()
    one, two = write((1, "GPU-2"), (1, "GPU-0")), write((1, "GPU-1"))
    containers = read_messages(await _ask(plugin.directory, "Allocate", (1, one), (1, two)), 1)
    for container, cards in zip(containers, ["GPU-2,GPU-0", "GPU-1"], strict=True):
        pairs = (read_texts(pair, 1) + read_texts(pair, 2) for pair in read_messages(container, 1))
        assert dict(pairs) == {
            "LD_LIBRARY_PATH": "/usr/lib",
            "NVIDIA_VISIBLE_DEVICES": cards,
        }
        (mount,) = read_messages(container, 2)
        assert dict(read(mount)) == {
            1: b"/usr/lib/libnvidia-ml.so.1",
            2: b"/opt/libnvidia-ml.so.1",
            3: 1,
        }


@pytest.mark.parametrize("card", ["GPU-1", "GPU-9"])
async def test_a_card_that_is_lost_or_strange_is_not_given(
    kubelet: FakeRegistration, plugin: DevicePlugin, health: dict[str, bool], card: str
) -> None:
    health["GPU-1"] = False
    await kubelet.registered.get()
    with pytest.raises(grpc.aio.AioRpcError, match=card) as caught:
        await _ask(plugin.directory, "Allocate", (1, write((1, "GPU-0"), (1, card))))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_cards_that_must_be_there_are_preferred_and_then_the_first(
    kubelet: FakeRegistration, plugin: DevicePlugin
) -> None:
    await kubelet.registered.get()
    asked = write((1, "GPU-1"), (1, "GPU-2"), (1, "GPU-0"), (2, "GPU-2"))
    answer = await _ask(plugin.directory, "GetPreferredAllocation", (1, asked + b"\x18\x02"))
    assert [read_texts(one, 1) for one in read_messages(answer, 1)] == [["GPU-2", "GPU-0"]]


async def test_before_a_start_there_is_nothing_to_do(kubelet: FakeRegistration, plugin: DevicePlugin) -> None:
    await kubelet.registered.get()
    assert await _ask(plugin.directory, "PreStartContainer", (1, b"GPU-0")) == b""


async def test_a_restarted_kubelet_is_registered_with_again_each_time(
    kubelet: FakeRegistration, plugin: DevicePlugin
) -> None:
    await kubelet.registered.get()
    for _ in range(5):
        await kubelet.stop()
        await kubelet.start()  # which has removed the plugin's socket
        assert await kubelet.registered.get() == REGISTERED
        assert await _ask(plugin.directory, "GetDevicePluginOptions") == write((2, 1))


async def test_a_kubelet_that_stops_listening_is_registered_with_again(
    kubelet: FakeRegistration, plugin: DevicePlugin
) -> None:
    for _ in range(2):  # the fake never opens the stream that a kubelet opens
        assert await kubelet.registered.get() == REGISTERED
    async with _connect(plugin.directory) as channel:
        open_stream: Any = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")
        stream = open_stream(b"")
        await stream.read()
        while not kubelet.registered.empty():
            kubelet.registered.get_nowait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await kubelet.registered.get()
        stream.cancel()


async def test_a_refusal_is_told_and_tried_again(
    kubelet: FakeRegistration, health: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    kubelet.refuses = "the version is not supported"
    async with _run(DevicePlugin(kubelet.directory, lambda: health, look_seconds=0.02)):
        await asyncio.sleep(0.3)
        assert kubelet.registered.empty()
        kubelet.refuses = None
        assert await kubelet.registered.get() == REGISTERED
    assert "the version is not supported" in capsys.readouterr().out


async def test_it_waits_for_a_kubelet_that_has_not_made_its_directory(
    folder: Path, health: dict[str, bool]
) -> None:
    directory = folder / "device-plugins"
    async with _run(DevicePlugin(directory, lambda: health, look_seconds=0.02)):
        await asyncio.sleep(0.1)
        _make(directory)
        kubelet = FakeRegistration(directory)
        await kubelet.start()
        assert await kubelet.registered.get() == REGISTERED
        await kubelet.stop()


async def test_the_program_leaves_no_socket_behind(kubelet: FakeRegistration, folder: Path) -> None:
    lost = folder / "lost"
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sandbox.deviceplugin",
        f"--directory={kubelet.directory}",
        "--device=GPU-0",
        "--device=GPU-1",
        f"--lost={lost}",
        "--resource=nvidia.com/gpu.shared",
        "--mount=/opt:/opt:ro",
        "--env=A=b=c",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(2 * SECONDS):
        registered = await kubelet.registered.get()
        assert registered.resource == "nvidia.com/gpu.shared"
        assert _list(kubelet.directory) == ["greentrain-nvidia.com-gpu.shared.sock", "kubelet.sock"]
        assert program.stdout is not None
        assert await program.stdout.readline() == b"nvidia.com/gpu.shared registered: GPU-0, GPU-1\n"
        program.send_signal(signal.SIGTERM)
        said, _ = await program.communicate()
    assert (program.returncode, said) == (0, b"")
    assert _list(kubelet.directory) == ["kubelet.sock"]


def test_the_lost_cards_are_read_from_a_file_that_need_not_be_there(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    read_devices = build_reader(["GPU-0", "GPU-1"], lost)
    assert read_devices() == {"GPU-0": True, "GPU-1": True}
    lost.write_text("GPU-1\nGPU-7\n")
    assert read_devices() == {"GPU-0": True, "GPU-1": False}


@pytest.mark.parametrize(
    ("text", "mount"),
    [("/a:/b", Mount("/a", "/b")), ("/a:/b:ro", Mount("/a", "/b", read_only=True))],
)
def test_a_mount_is_read(text: str, mount: Mount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize("text", ["", "/a", "/a:", "a:/b", "/a:b", "/a:/b:rw", "/a:/b:ro:x"])
def test_a_mount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:CONTAINER"):
        parse_mount(text)


def test_a_directory_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="too long"):
        DevicePlugin(tmp_path / ("x" * 100), dict)
