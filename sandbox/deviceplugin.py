"""Announces simulated GPUs to a kubelet as NVIDIA's device plugin would, since that one starts only with real ones.

Run as `python -m sandbox.deviceplugin --directory DIRECTORY --device ID …` with an interpreter that has grpcio and the
project: .venv's; nothing else of the sandbox imports this module. A node's directory is `kubelet/device-plugins` in
its folder, which its kubelet sees as /var/lib/kubelet/device-plugins.

It is done by looking each second: a kubelet that restarts empties the directory and makes its socket anew, and wants
to be registered with again; a device that is lost is announced as Unhealthy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from greentrain.devices.messages import build_messages
from sandbox.shell import SandboxError

RESOURCE = "nvidia.com/gpu"
KUBELET_SOCKET = "kubelet.sock"
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
"""Environment variable by which NVIDIA's container runtime learns a container's cards."""

LOOK_SECONDS = 1.0
UNWATCHED_LOOKS = 10
"""Looks without a kubelet listening to us after which it is registered with again."""

REGISTER_SECONDS = 5.0
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket (unix(7)), without the closing zero."""

# Numbers of k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1; its `map` of variables is a repeated pair on the wire.
MESSAGES = build_messages(
    "v1beta1",
    {
        "Empty": {},
        "DevicePluginOptions": {
            "pre_start_required": (1, "bool"),
            "get_preferred_allocation_available": (2, "bool"),
        },
        "RegisterRequest": {
            "version": (1, "string"),
            "endpoint": (2, "string"),
            "resource_name": (3, "string"),
            "options": (4, "DevicePluginOptions"),
        },
        "Device": {"ID": (1, "string"), "health": (2, "string")},
        "ListAndWatchResponse": {"devices": (1, "repeated Device")},
        "PreStartContainerRequest": {"devices_ids": (1, "repeated string")},
        "PreStartContainerResponse": {},
        "ContainerPreferredAllocationRequest": {
            "available_deviceIDs": (1, "repeated string"),
            "must_include_deviceIDs": (2, "repeated string"),
            "allocation_size": (3, "int32"),
        },
        "PreferredAllocationRequest": {
            "container_requests": (1, "repeated ContainerPreferredAllocationRequest")
        },
        "ContainerPreferredAllocationResponse": {"deviceIDs": (1, "repeated string")},
        "PreferredAllocationResponse": {
            "container_responses": (1, "repeated ContainerPreferredAllocationResponse")
        },
        "ContainerAllocateRequest": {"devices_ids": (1, "repeated string")},
        "AllocateRequest": {"container_requests": (1, "repeated ContainerAllocateRequest")},
        "Variable": {"key": (1, "string"), "value": (2, "string")},
        "Mount": {"container_path": (1, "string"), "host_path": (2, "string"), "read_only": (3, "bool")},
        "ContainerAllocateResponse": {"envs": (1, "repeated Variable"), "mounts": (2, "repeated Mount")},
        "AllocateResponse": {"container_responses": (1, "repeated ContainerAllocateResponse")},
    },
)


@dataclass(frozen=True)
class Mount:
    """A path of the node that a container with a device gets."""

    host: str
    container: str
    read_only: bool = False


def parse_mount(text: str) -> Mount:
    """Read `HOST:CONTAINER` or `HOST:CONTAINER:ro`, both absolute paths.

    Raises:
        ValueError: it is neither.
    """
    host, _, rest = text.partition(":")
    container, _, mode = rest.partition(":")
    if not (host.startswith("/") and container.startswith("/") and mode in {"", "ro"}):
        raise ValueError(f"«{text}» is not HOST:CONTAINER[:ro] with absolute paths.")
    return Mount(host, container, mode == "ro")


class DevicePlugin:
    """A device plugin (v1beta1) for one resource in one kubelet's directory.

    `read_devices` gives each device's id and whether it is healthy; it is asked each second and whenever devices are
    to be given, so what it says may change. What a container that gets devices shall find besides `NVIDIA_VISIBLE_DEVICES`
    stands in `mounts` and `environment`.
    """

    def __init__(
        self,
        directory: Path,
        read_devices: Callable[[], Mapping[str, bool]],
        *,
        resource: str = RESOURCE,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Read the devices; nothing is served before `run`.

        Raises:
            SandboxError: the directory's path is too long for a socket in it.
        """
        self.directory = directory.absolute()
        self.resource = resource
        self.endpoint = f"greentrain-{resource.replace('/', '-')}.sock"
        if len(str(self.socket).encode()) > LONGEST_SOCKET:
            raise SandboxError(
                f"{self.socket} is too long for a socket ({LONGEST_SOCKET} bytes); choose a directory nearer the root."
            )
        self._mounts = tuple(mounts)
        self._environment = dict(environment or {})
        self._read_devices = read_devices
        self._devices = dict(read_devices())
        self._changed = asyncio.Condition()
        self._look_seconds = look_seconds
        self._server: grpc.aio.Server | None = None
        self._own: tuple[int, ...] | None = None
        self._registered: tuple[int, ...] | None = None
        self._watchers = 0
        self._unwatched = 0

    @property
    def socket(self) -> Path:
        """Its own socket, removed when `run` ends."""
        return self.directory / self.endpoint

    async def run(self) -> None:
        """Serve and keep registered until cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(self._look_seconds)
        finally:
            await self._stop()

    async def _look(self) -> None:
        devices = dict(self._read_devices())
        if devices != self._devices:
            async with self._changed:
                self._devices = devices
                self._changed.notify_all()
            _report(f"{self.resource}: {_describe(devices)}")
        if not self.directory.is_dir():
            return  # a kubelet that starts for the first time makes it
        if self._own is None or _identify(self.socket) != self._own:
            await self._stop()
            await self._start()
        self._unwatched = 0 if self._watchers else self._unwatched + 1
        if self._unwatched >= UNWATCHED_LOOKS:
            self._registered = None
        kubelet = _identify(self.directory / KUBELET_SOCKET)
        if kubelet is not None and kubelet != self._registered and await self._register():
            self._registered, self._unwatched = kubelet, 0

    async def _start(self) -> None:
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetDevicePluginOptions": _serve(method, self._get_options, "Empty", "DevicePluginOptions"),
            "ListAndWatch": _serve(
                grpc.unary_stream_rpc_method_handler, self._list_and_watch, "Empty", "ListAndWatchResponse"
            ),
            "GetPreferredAllocation": _serve(
                method, self._prefer, "PreferredAllocationRequest", "PreferredAllocationResponse"
            ),
            "Allocate": _serve(method, self._allocate, "AllocateRequest", "AllocateResponse"),
            "PreStartContainer": _serve(
                method, self._pre_start, "PreStartContainerRequest", "PreStartContainerResponse"
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", handlers),)
        )
        self.socket.unlink(missing_ok=True)
        server.add_insecure_port(_address(self.socket))
        self._server = server
        await server.start()
        self._own, self._registered = _identify(self.socket), None

    async def _stop(self) -> None:
        server, self._server, self._own = self._server, None, None
        if server is not None:
            await server.stop(None)
            self.socket.unlink(missing_ok=True)

    async def _register(self) -> bool:
        request = MESSAGES["RegisterRequest"](
            version="v1beta1",
            endpoint=self.endpoint,
            resource_name=self.resource,
            options=_build_options(),
        )
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
        target = _address(self.directory / KUBELET_SOCKET)
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            call: Any = channel.unary_unary("/v1beta1.Registration/Register")
            try:
                await call(request.SerializeToString(), timeout=REGISTER_SECONDS)
            except grpc.aio.AioRpcError as error:
                _report(f"The kubelet refused {self.resource}: {error.code().name}, {error.details()}")
                return False
        _report(f"{self.resource} registered: {_describe(self._devices)}")
        return True

    async def _get_options(self, _request: Any, _context: Any) -> Any:
        return _build_options()

    async def _list_and_watch(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        sent: Mapping[str, bool] | None = None
        self._watchers += 1
        try:
            while True:
                async with self._changed:
                    while self._devices is sent:
                        await self._changed.wait()
                    sent = self._devices
                device = MESSAGES["Device"]
                yield MESSAGES["ListAndWatchResponse"](
                    devices=[
                        device(ID=name, health="Healthy" if healthy else "Unhealthy")
                        for name, healthy in sent.items()
                    ]
                )
        finally:
            self._watchers -= 1

    async def _prefer(self, request: Any, _context: Any) -> Any:
        response = MESSAGES["PreferredAllocationResponse"]()
        for asked in request.container_requests:
            chosen = list(asked.must_include_deviceIDs)
            free = set(asked.available_deviceIDs) - set(chosen)
            chosen += [name for name in self._devices if name in free]
            response.container_responses.add().deviceIDs.extend(chosen[: asked.allocation_size])
        return response

    async def _allocate(self, request: Any, context: Any) -> Any:
        response = MESSAGES["AllocateResponse"]()
        devices = self._read_devices()
        for asked in request.container_requests:
            refused = [name for name in asked.devices_ids if not devices.get(name, False)]
            if refused:
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, f"No healthy device {', '.join(refused)} is here."
                )
            given = response.container_responses.add()
            variables = {**self._environment, VISIBLE_DEVICES: ",".join(asked.devices_ids)}
            for name, value in variables.items():
                given.envs.add(key=name, value=value)
            for mount in self._mounts:
                given.mounts.add(
                    host_path=mount.host, container_path=mount.container, read_only=mount.read_only
                )
        return response

    async def _pre_start(self, _request: Any, _context: Any) -> Any:
        return MESSAGES["PreStartContainerResponse"]()


def _build_options() -> Any:
    return MESSAGES["DevicePluginOptions"](get_preferred_allocation_available=True)


def _serve(
    kind: Callable[..., grpc.RpcMethodHandler[Any, Any]],
    serve: Callable[[Any, Any], Awaitable[Any] | AsyncIterator[Any]],
    request: str,
    response: str,
) -> grpc.RpcMethodHandler[Any, Any]:
    return kind(
        serve,
        request_deserializer=MESSAGES[request].FromString,
        response_serializer=MESSAGES[response].SerializeToString,
    )


def _identify(path: Path) -> tuple[int, ...] | None:
    """What distinguishes the file at a path from a later one there; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_ctime_ns)


def _address(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def _describe(devices: Mapping[str, bool]) -> str:
    return ", ".join(f"{name}{'' if healthy else ' (unhealthy)'}" for name, healthy in devices.items())


def _report(line: str) -> None:
    print(line, flush=True)


def build_reader(devices: Sequence[str], lost: Path | None) -> Callable[[], Mapping[str, bool]]:
    """Devices that are healthy but while the file `lost` names them, one on a line."""

    def read() -> Mapping[str, bool]:
        gone: set[str] = set()
        if lost is not None:
            with contextlib.suppress(OSError):
                gone = set(lost.read_text().split())
        return {name: name not in gone for name in devices}

    return read


def _parse_variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise ValueError(f"«{text}» is not NAME=VALUE.")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.deviceplugin", description=__doc__)
    add = parser.add_argument
    add("--directory", type=Path, required=True, help="the kubelet's device-plugins directory")
    add("--device", action="append", required=True, metavar="ID", help="a device's id; may be repeated")
    add("--lost", type=Path, metavar="FILE", help="file naming the devices that are lost now, one on a line")
    add("--mount", action="append", default=[], type=parse_mount, metavar="HOST:CONTAINER[:ro]")
    add("--env", action="append", default=[], type=_parse_variable, metavar="NAME=VALUE")
    add("--resource", default=RESOURCE, help="default: %(default)s")
    return parser


async def _run(asked: argparse.Namespace) -> None:
    plugin = DevicePlugin(
        asked.directory,
        build_reader(asked.device, asked.lost),
        resource=asked.resource,
        mounts=asked.mount,
        environment=dict(asked.env),
    )
    running = asyncio.ensure_future(plugin.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        asyncio.run(_run(_parser().parse_args(arguments)))
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
