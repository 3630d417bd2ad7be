"""Bad jobs are refused by the full path of the field, whoever sends them, and nothing is made for them."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest

from greentrain.api.v1alpha1 import NOT_BUILT
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import RefusedError, Server, condition
from tests.support.manifests import build_job, build_template


def with_field(path: str, value: Any, name: str = "bad") -> dict[str, Any]:
    manifest = build_job(name, checkpoint={"volume": {"emptyDir": {}}})
    node: Any = manifest
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return manifest


async def test_unknown_and_not_yet_built_fields_posted_raw_are_refused_by_path(
    server: Server, namespace: str, settings: Settings
) -> None:
    paths = ["spec.enregy", *NOT_BUILT]
    async with running(settings):
        for i, path in enumerate(paths):
            await server.create_job(namespace, with_field(path, {"budget": "5kWh"}, f"bad-{i}"))
        for i, path in enumerate(paths):
            job = await server.until_condition(namespace, f"bad-{i}", "Admitted", "False", "InvalidSpec")
            assert f"{path}: " in condition(job, "Admitted")["message"]
            assert job["status"]["phase"] == "Refused"
        assert await server.pods(namespace) == {}
        services = await server.call("GET", f"/api/v1/namespaces/{namespace}/services")
        assert services["items"] == []

        async def told() -> set[str]:
            events = await server.events(namespace)
            return {e["involvedObject"]["name"] for e in events if e["reason"] == "InvalidSpec"}

        await server.until(
            lambda: _listed(told()), lambda found: len(found) == len(paths), what="an event each"
        )


async def _listed(pending: Any) -> list[str]:
    return sorted(await pending)


async def test_an_edit_mends_a_refused_job(server: Server, namespace: str, settings: Settings) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job(enregy={"budget": "5kWh"}))
        await server.until_condition(namespace, "digits", "Admitted", "False")
        await server.patch_job(namespace, "digits", {"spec": {"enregy": None}})
        await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})


def chiefs(*roles: str, replicas: int = 1) -> dict[str, Any]:
    manifest = build_job("bad")
    for role in roles:
        manifest["spec"]["tfReplicaSpecs"][role] = {"replicas": replicas, "template": build_template()}
    return manifest


def containers(**container: Any) -> dict[str, Any]:
    manifest = build_job("bad")
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = {
        "spec": {"containers": [{"name": "tensorflow", "image": "x", **container}]}
    }
    return manifest


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (chiefs("Chief", "Master"), "Chief and Master are two names of one role"),
        (chiefs("Chief", replicas=2), "spec.tfReplicaSpecs.Chief.replicas: 2 is not valid"),
        (containers(name="main"), "holds no container named tensorflow"),
        (containers(imagee="y"), "containers[0].imagee: unknown field; did you mean image?"),
        (
            containers(command=["python3", "-m", "greentrain_trainer", "mnist"]),
            "'mnist' is no program of the trainer",
        ),
        (build_job("a" * 60), "makes the host name"),
        (build_job("9lives"), "'9lives' must start with a letter"),
    ],
    ids=[
        "two chiefs by name",
        "two chiefs by number",
        "container",
        "template field",
        "program",
        "long",
        "digit",
    ],
)
async def test_what_the_server_cannot_see_the_operator_refuses(
    server: Server, namespace: str, settings: Settings, manifest: dict[str, Any], said: str
) -> None:
    async with running(settings):
        await server.create_job(namespace, manifest)
        job = await server.until_condition(namespace, manifest["metadata"]["name"], "Admitted", "False")
        assert said in condition(job, "Admitted")["message"]
        assert await server.pods(namespace) == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.tfReplicaSpecs.Worker.replicas", 0),
        ("spec.tfReplicaSpecs.Worker.restartPolicy", "Sometimes"),
        ("spec.runPolicy.backoffLimit", -1),
        ("spec.successPolicy", "Most"),
    ],
)
async def test_what_the_schema_knows_is_refused_at_the_door(
    server: Server, namespace: str, path: str, value: Any
) -> None:
    manifest = build_job("bad")
    node: Any = manifest
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    with pytest.raises(RefusedError) as refused:
        await server.create_job(namespace, manifest)
    assert refused.value.status == 422
    assert path in str(refused.value)


async def test_an_invalid_edit_leaves_the_running_generation_alone(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job())
        pods = await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        for name in pods:
            await server.run_pod(namespace, name)
        await server.until_condition(namespace, "digits", "Running", "True")
        await server.patch_job(namespace, "digits", {"spec": {"elastic": {"minWorkers": 1}}})
        job = await server.until_condition(namespace, "digits", "Admitted", "False", "InvalidSpec")
        assert condition(job, "Running")["status"] == "True"
        after = await server.pods(namespace)
        assert {p["metadata"]["uid"] for p in after.values()} == {p["metadata"]["uid"] for p in pods.values()}
        for name in pods:
            await server.end_pod(namespace, name, 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True")


@pytest.mark.parametrize("kind", ["pods", "services"])
async def test_an_object_of_our_name_that_is_not_ours_is_named_and_never_touched(
    server: Server, namespace: str, settings: Settings, kind: str
) -> None:
    name = "digits-worker-1-1" if kind == "pods" else "digits"
    spec = deepcopy(build_template()["spec"]) if kind == "pods" else {"ports": [{"port": 80}]}
    stranger = await server.call(
        "POST", f"/api/v1/namespaces/{namespace}/{kind}", {"metadata": {"name": name}, "spec": spec}
    )
    async with running(settings):
        await server.create_job(namespace, build_job())
        job = await server.until_condition(namespace, "digits", "Admitted", "False", "NameTaken")
        message = condition(job, "Admitted")["message"]
        assert f" {name} exists and is not this job's (it has no controller)" in message
        await asyncio.sleep(1)
        now = await server.call("GET", f"/api/v1/namespaces/{namespace}/{kind}/{name}")
        assert now["metadata"]["resourceVersion"] == stranger["metadata"]["resourceVersion"]
        events = [e for e in await server.events(namespace) if e["reason"] == "NameTaken"]
        assert len(events) == 1


async def test_a_pod_the_server_refuses_is_told_with_its_words(
    server: Server, namespace: str, settings: Settings
) -> None:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(imagePullPolicy="Sometimes")
    async with running(settings):
        await server.create_job(namespace, manifest)
        job = await server.until_condition(namespace, "digits", "PodsReady", "False", "CreateRefused")
    assert "Sometimes" in condition(job, "PodsReady")["message"]


async def test_scaling_a_running_job_is_reported_and_applied_at_the_next_attempt(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with running(settings):
        await server.create_job(namespace, build_job())
        pods = await server.until_pods(namespace, {"digits-worker-0-1", "digits-worker-1-1"})
        for name in pods:
            await server.run_pod(namespace, name)
        job = await server.until_condition(namespace, "digits", "Running", "True")
        assert (
            job["status"]["labelSelector"]
            == "greentrain.dev/job-name=digits,greentrain.dev/replica-type=Worker"
        )
        path = f"/apis/greentrain.dev/v1alpha1/namespaces/{namespace}/greentrainingjobs/digits/scale"
        await server.call(
            "PATCH", path, {"spec": {"replicas": 3}}, content_type="application/merge-patch+json"
        )
        job = await server.until_condition(namespace, "digits", "Admitted", "True", "AppliesAtNextAttempt")
        assert "replicas 2 → 3" in condition(job, "Admitted")["message"]
        assert set(await server.pods(namespace)) == set(pods)
        await server.end_pod(namespace, "digits-worker-0-1", 137)
        await server.end_pod(namespace, "digits-worker-1-1", 144)
        await server.until_condition(namespace, "digits", "Restarting", "True")
        await server.until(
            lambda: server.clear_terminating(namespace),
            lambda found: set(found) == {f"digits-worker-{i}-2" for i in range(3)},
        )
