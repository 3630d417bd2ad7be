"""What a Kubernetes of today offers and the product counts on or is about to use, touched once each on the real server."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.kube.client import ApiError, connect
from sandbox.controlplane import ControlPlane
from tests.support.api import MERGE, Json, RefusedError, Server

CORE = "/api/v1/namespaces"
EXTRA = "authentication.kubernetes.io"
AUDIENCE = "greentrain.dev/agent"


def build_pod(name: str, **spec: Any) -> Json:
    """A pod with one container."""
    meta = {"name": name, "labels": {"app": "digits"}}
    return {"metadata": meta, "spec": {"containers": [{"name": "tensorflow", "image": "x"}], **spec}}


async def review(server: Server, token: str, *audiences: str) -> Json:
    """What the server makes of a token."""
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": list(audiences)},
    }
    found = await server.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)
    return dict(found["status"])


async def test_a_token_of_a_pod_names_its_pod_and_node_to_those_it_is_meant_for_alone(
    server: Server, namespace: str
) -> None:
    account = {"metadata": {"name": "trainer"}}
    await server.call("POST", f"{CORE}/{namespace}/serviceaccounts", account)
    name = f"node-of-{namespace}"
    node = await server.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    body = build_pod("digits-worker-0-1", nodeName=name, serviceAccountName="trainer")
    pod = await server.call("POST", f"{CORE}/{namespace}/pods", body)
    token = await server.request_token(namespace, "trainer", pod=pod, audiences=[AUDIENCE])

    found = await review(server, token, AUDIENCE)
    assert (found["authenticated"], found["audiences"]) == (True, [AUDIENCE])
    assert found["user"]["username"] == f"system:serviceaccount:{namespace}:trainer"
    extra = found["user"]["extra"]
    assert {key: extra[f"{EXTRA}/{key}"] for key in ("pod-name", "pod-uid", "node-name", "node-uid")} == {
        "pod-name": ["digits-worker-0-1"],
        "pod-uid": [pod["metadata"]["uid"]],
        "node-name": [name],
        "node-uid": [node["metadata"]["uid"]],
    }
    for audiences in ((), ("another.example.org",)):
        found = await review(server, token, *audiences)
        assert not found.get("authenticated")
        assert "user" not in found or not found["user"]
    plain = await server.request_token(namespace, "trainer")
    assert not (await review(server, plain, AUDIENCE)).get("authenticated")


async def test_an_eviction_waits_for_what_a_disruption_budget_allows(
    plane: ControlPlane, server: Server, namespace: str
) -> None:
    pod = await server.call("POST", f"{CORE}/{namespace}/pods", build_pod("digits-worker-0-1"))
    await server.run_pod(namespace, "digits-worker-0-1")
    # One that is not ready may be evicted while the others are enough.
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    await server.set_pod_status(namespace, "digits-worker-0-1", ready)
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "digits"}}}
    made = await server.call("POST", budgets, {"metadata": {"name": "all"}, "spec": spec})

    async def allow(disruptions: int) -> None:
        """Play the controller that counts."""
        status = {
            "observedGeneration": made["metadata"]["generation"],
            "disruptionsAllowed": disruptions,
            "currentHealthy": 1 + disruptions,
            "desiredHealthy": 1,
            "expectedPods": 1 + disruptions,
        }
        await server.call("PATCH", f"{budgets}/all/status", {"status": status}, content_type=MERGE)

    await allow(0)
    async with await connect(str(plane.kubeconfig)) as client:
        with pytest.raises(ApiError) as refused:
            await client.evict_pod(namespace, "digits-worker-0-1", pod["metadata"]["uid"])
        assert refused.value.status == 429
        assert "deletionTimestamp" not in (await server.pods(namespace))["digits-worker-0-1"]["metadata"]
        await allow(1)
        await client.evict_pod(namespace, "digits-worker-0-1", pod["metadata"]["uid"])
    assert (await server.pods(namespace))["digits-worker-0-1"]["metadata"]["deletionTimestamp"]
    counted = await server.call("GET", f"{budgets}/all")
    assert (counted["status"]["disruptionsAllowed"], list(counted["status"]["disruptedPods"])) == (
        0,
        ["digits-worker-0-1"],
    )


async def test_devices_are_claimed_by_objects_of_their_own(server: Server, namespace: str) -> None:
    api = "/apis/resource.k8s.io/v1"
    name = f"gpu-{namespace}.example.org"
    selector = {"cel": {"expression": "device.driver == 'gpu.example.org'"}}
    await server.call(
        "POST", f"{api}/deviceclasses", {"metadata": {"name": name}, "spec": {"selectors": [selector]}}
    )
    requests = [{"name": "gpus", "exactly": {"deviceClassName": name, "count": 2}}]
    body = {"metadata": {"name": "digits"}, "spec": {"devices": {"requests": requests}}}
    claims = f"{api}/namespaces/{namespace}/resourceclaims"
    await server.call("POST", claims, body)
    try:
        found = await server.call("GET", f"{api}/deviceclasses/{name}")
        assert found["spec"]["selectors"] == [selector]
        claim = await server.call("GET", f"{claims}/digits")
        (request,) = claim["spec"]["devices"]["requests"]
        assert (request["exactly"]["deviceClassName"], request["exactly"]["count"]) == (name, 2)
        assert request["exactly"]["allocationMode"] == "ExactCount"
        # An expression that is none is refused, so that the one above was read.
        wrong = {
            "metadata": {"name": f"wrong-{name}"},
            "spec": {"selectors": [{"cel": {"expression": "devise"}}]},
        }
        with pytest.raises(RefusedError, match="undeclared reference to 'devise'"):
            await server.call("POST", f"{api}/deviceclasses", wrong)
    finally:
        await server.call("DELETE", f"{api}/deviceclasses/{name}")
