"""A kubelet's sockets as far as node programs meet them: PodResources, and Registration of device plugins.

Answers are bytes written by `wire`; what is scripted may also be refused, kept waiting, or sent by something that is
no gRPC server at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.contract.kubelet.wire import read, write

LIST = "List"


@dataclass(frozen=True)
class Refuse:
    """Answered with a status that is not OK."""

    code: grpc.StatusCode
    details: str = ""


@dataclass(frozen=True)
class Hang:
    """Never answered."""


Answer = bytes | Refuse | Hang


def build_devices(resource: str, *ids: str, numa: Iterable[int] = ()) -> bytes:
    """One ContainerDevices."""
    nodes = [(1, write((1, node))) for node in numa]
    topology = [(3, write(*nodes))] if nodes else []
    return write((1, resource), *((2, text) for text in ids), *topology)


def build_container(name: str, *devices: bytes, claims: Iterable[bytes] = ()) -> bytes:
    """One ContainerResources, with two exclusive CPUs and some memory as a static policy gives."""
    memory = write((1, "memory"), (2, 2**33), (3, write((1, write((1, 1))))))
    return write(
        (1, name),
        *((2, one) for one in devices),
        (3, write_packed(2, 3)),
        (4, memory),
        *((5, one) for one in claims),
    )


def write_packed(*numbers: int) -> bytes:
    """A repeated number as proto3 packs it; each below 128."""
    return bytes(numbers)


def build_pod(namespace: str, name: str, *containers: bytes) -> bytes:
    """One PodResources."""
    return write((1, name), (2, namespace), *((3, one) for one in containers))


def build_list(*pods: bytes) -> bytes:
    """One ListPodResourcesResponse."""
    return write(*((1, pod) for pod in pods))


class FakeKubelet:
    """PodResources at a path; `answers` may be changed while it serves."""

    def __init__(self, path: Path, answers: Mapping[str, Answer], *, version: str = "v1") -> None:
        self.path = path
        self.answers = dict(answers)
        self.calls = 0
        self.asked = asyncio.Event()
        self._version = version
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen, in the place of whatever lay at the path, as a kubelet does that starts."""
        self._server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._build(name)) for name in self.answers
        }
        service = f"{self._version}.PodResourcesLister"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix://{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        """End at once; its socket stays, as after a kill."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _build(self, name: str) -> Any:
        async def serve(_request: bytes, context: Any) -> bytes:
            self.calls += 1
            self.asked.set()
            answer = self.answers[name]
            if isinstance(answer, Refuse):
                await context.abort(answer.code, answer.details)
            if isinstance(answer, Hang):
                await asyncio.Event().wait()
            assert isinstance(answer, bytes)
            return answer

        return serve


@contextlib.asynccontextmanager
async def start_kubelet(
    path: Path, answers: Mapping[str, Answer] | bytes, *, version: str = "v1"
) -> AsyncIterator[FakeKubelet]:
    """A kubelet that serves until the block ends; bytes alone are its answer to List."""
    kubelet = FakeKubelet(path, answers if isinstance(answers, Mapping) else {LIST: answers}, version=version)
    await kubelet.start()
    try:
        yield kubelet
    finally:
        await kubelet.stop()


@contextlib.asynccontextmanager
async def start_stranger(path: Path, says: bytes | None) -> AsyncIterator[None]:
    """Something that listens and is no gRPC server: says bytes and closes, or nothing for ever (None)."""

    writers = []

    async def meet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if says is not None:
            writer.write(says)
            writer.close()

    server = await asyncio.start_unix_server(meet, path)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


@dataclass(frozen=True)
class Registered:
    """One request to Registration."""

    version: str
    endpoint: str
    resource: str
    options: dict[int, bool]


class FakeRegistration:
    """The kubelet's side of the device-plugin directory: is registered with, and then listens to the plugin."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.refuses: str | None = None
        self.registered: asyncio.Queue[Registered] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """As a kubelet that starts: empty the directory, then listen in it."""
        for path in list(self.directory.iterdir()):
            path.unlink()
        self._server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Register": grpc.unary_unary_rpc_method_handler(self._register)
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1beta1.Registration", handlers),)
        )
        self._server.add_insecure_port(f"unix://{self.directory / 'kubelet.sock'}")
        await self._server.start()

    async def stop(self) -> None:
        """End at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def _register(self, request: bytes, context: Any) -> bytes:
        fields = dict(read(request))
        options = fields.get(4, b"")
        assert isinstance(options, bytes)
        if self.refuses is not None:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refuses)
        texts = [value.decode() if isinstance(value := fields[n], bytes) else "" for n in (1, 2, 3)]
        chosen = {number: bool(value) for number, value in read(options)}
        self.registered.put_nowait(Registered(texts[0], texts[1], texts[2], chosen))
        return b""
