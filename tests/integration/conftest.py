"""A real kube-apiserver for the whole run, a namespace for each test; tests play the kubelet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
from yarl import URL

from greentrain.controller.settings import Settings
from sandbox.binaries import gather_binaries
from sandbox.controlplane import ControlPlane
from tests.support.api import Server, count_connections

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, alone on loopback."""
    with ControlPlane.start(tmp_path_factory.mktemp("plane"), gather_binaries()) as running:
        yield running


@pytest.fixture(scope="session")
def crd(plane: ControlPlane) -> None:
    """The committed CRDs, installed and established."""

    async def install() -> None:
        async with Server(plane.kubeconfig) as server:
            await server.install_crds()

    asyncio.run(install())


@pytest.fixture
async def server(plane: ControlPlane, crd: None) -> AsyncIterator[Server]:
    """A client with every right."""
    del crd  # needed to be there
    async with Server(plane.kubeconfig) as connected:
        yield connected
    # Clients close a TLS connection in the background. One that is open when the test's loop ends is found as garbage later,
    # and is laid at the door of whichever test runs then.
    connections = partial(count_connections, URL(plane.url).port or 0)
    await connected.until(
        lambda: asyncio.to_thread(connections), lambda left: left == 0, what="no connection left open"
    )


@pytest.fixture
async def namespace(server: Server) -> str:
    """A namespace of the test's own."""
    name = f"test-{next(_numbers)}"
    await server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def settings(plane: ControlPlane, namespace: str) -> Settings:
    """An operator for the test's namespace alone."""
    return Settings(
        namespaces=(namespace,),
        progress_interval=0.5,
        http_port=0,
        workers=4,
        kubeconfig=str(plane.kubeconfig),
    )
