"""The operator's lease on a real API server, and that agents hear it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from greentrain.controller.clock import SteadyClock
from greentrain.controller.heartbeat import Heartbeat
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from greentrain.kube.client import Client, connect
from greentrain.kube.node import NodeView
from sandbox.controlplane import ControlPlane
from tests.support.api import Json, Server


def path(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/operator"


async def spec_of(server: Server, namespace: str) -> Json:
    return dict((await server.call("GET", path(namespace)))["spec"])


def beat_of(
    client: Client,
    namespace: str,
    *,
    identity: str = "operator-0",
    age: float = 0.0,
    unattended: tuple[str, ...] = (),
) -> Heartbeat:
    steady = SteadyClock()
    return Heartbeat(
        client,
        (namespace, "operator"),
        identity=identity,
        clock=lambda: steady() - timedelta(seconds=age),
        unhealthy=lambda: None,
        unattended=lambda: unattended,
    )


async def test_an_operator_makes_its_lease_once_it_is_primed(
    settings: Settings, server: Server, namespace: str
) -> None:
    async with running(replace(settings, lease=(namespace, "operator"))):
        found = await server.until(
            lambda: server.call("GET", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            lambda leases: bool(leases["items"]),
            what="a lease",
        )
    spec = found["items"][0]["spec"]
    assert spec["leaseDurationSeconds"] == 30
    assert spec["holderIdentity"]
    age = datetime.now(UTC) - datetime.fromisoformat(spec["renewTime"])  # noqa: TID251 - the server's own time
    assert abs(age.total_seconds()) < 10


async def test_it_is_renewed_taken_over_and_made_anew(
    plane: ControlPlane, server: Server, namespace: str
) -> None:
    async with await connect(str(plane.kubeconfig)) as client:
        first, second = (beat_of(client, namespace, identity=f"operator-{i}") for i in range(2))
        seen = []
        for beat in (first, first, second, first):
            assert await beat.beat()
            seen.append(await spec_of(server, namespace))
        assert len({spec["renewTime"] for spec in seen}) == 4
        assert [spec["holderIdentity"][-1] for spec in seen] == ["0", "0", "1", "0"]
        assert [spec["leaseTransitions"] for spec in seen] == [0, 0, 1, 2]
        await server.call("DELETE", path(namespace))
        assert await first.beat()
        assert (await spec_of(server, namespace))["leaseTransitions"] == 0


async def test_an_agent_hears_renewals_and_knows_the_age_of_the_first_it_sees(
    plane: ControlPlane, server: Server, namespace: str
) -> None:
    async with await connect(str(plane.kubeconfig)) as client:
        assert await beat_of(client, namespace, age=500).beat()
        view = NodeView(client, f"node-{namespace}", lease=(namespace, "operator"))
        following = asyncio.create_task(view.follow())

        async def heard_within(seconds: float) -> bool:
            return view.operator_renewed is not None and time.monotonic() - view.operator_renewed < seconds

        try:
            await server.until(lambda: heard_within(520), bool, what="the first sight")
            assert not await heard_within(490)
            assert view.unattended == {}
            assert await beat_of(client, namespace, age=450, unattended=("uid-1", "uid-2")).beat()
            await server.until(
                lambda: asyncio.sleep(0, set(view.unattended)),
                lambda named: named == {"uid-1", "uid-2"},
                what="the jobs that are named",
            )
            # However wrong the operator's clock is: a renewal that is seen was made now.
            assert await beat_of(client, namespace, age=400).beat()
            await server.until(lambda: heard_within(5), bool, what="a renewal")
            await server.until(
                lambda: asyncio.sleep(0, set(view.unattended)), lambda named: not named, what="none named"
            )
            await server.call("DELETE", path(namespace))
            heard = view.operator_renewed
            await view.listen()
            assert view.operator_renewed == heard
            assert await beat_of(client, namespace, age=-1000).beat()
            await view.listen()
            assert view.operator_renewed is not None
            assert heard is not None
            assert heard < view.operator_renewed <= time.monotonic()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
