"""Bad jobs are refused by the full path of the field, whoever sends them, and nothing is made for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest

from greentrain.api.crd import RULES
from greentrain.api.spec import NOT_BUILT
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import JOBS, MERGE, RefusedError, Server, condition
from tests.support.manifests import build_job, build_template

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/greentrainingjobs.greentrain.dev"


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


def with_roles(*roles: str, replicas: int = 1, worker: bool = True) -> dict[str, Any]:
    manifest = build_job("bad")
    specs = manifest["spec"]["tfReplicaSpecs"]
    for role in roles:
        specs[role] = {"replicas": replicas, "template": build_template()}
    if not worker:
        del specs["Worker"]
    return manifest


def with_container(**container: Any) -> dict[str, Any]:
    manifest = build_job("bad")
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = {
        "spec": {"containers": [{"name": "tensorflow", "image": "x", **container}]}
    }
    return manifest


def with_section(section: str, **fields: str) -> dict[str, Any]:
    manifest = build_job("bad")
    manifest["spec"][section] = fields
    return manifest


@dataclass(frozen=True)
class Ruled:
    """A job that breaks a CEL rule of its CRD: what the server says of it, and what the operator would."""

    manifest: dict[str, Any]
    server: str
    operator: str


RULED = {
    "no role that trains": Ruled(
        with_roles("Evaluator", worker=False),
        "needs Worker, Chief or both",
        "needs Worker, Chief or both; add Worker",
    ),
    "two chiefs by name": Ruled(
        with_roles("Chief", "Master"),
        "Chief and Master are two names of one role: keep one",
        "Chief and Master are two names of one role; keep one of them",
    ),
    "two chiefs by number": Ruled(
        with_roles("Chief", replicas=2),
        "a job has one Chief: set Chief.replicas to 1",
        "spec.tfReplicaSpecs.Chief.replicas: 2 is not valid",
    ),
    "two masters": Ruled(
        with_roles("Master", replicas=2),
        "a job has one Master: set Master.replicas to 1",
        "spec.tfReplicaSpecs.Master.replicas: 2 is not valid",
    ),
    "two evaluators": Ruled(
        with_roles("Evaluator", replicas=2),
        "a job has one Evaluator: set Evaluator.replicas to 1",
        "spec.tfReplicaSpecs.Evaluator.replicas: 2 is not valid",
    ),
    "a long name": Ruled(
        build_job("a" * 60), "metadata.name must be at most 54 characters", "makes the host name"
    ),
    "a digit first": Ruled(
        build_job("9lives"), "metadata.name must start with a letter", "'9lives' must start with a letter"
    ),
    "a cap in words": Ruled(
        with_section("power", cap="150 watts"),
        "cap is not valid: write watts from 1W to 10kW",
        "spec.power.cap: '150 watts' is not valid",
    ),
    "energy with a space": Ruled(
        with_section("energy", budget="5 kWh"),
        "budget is not valid: write energy from 1J to 100GWh",
        "spec.energy.budget: '5 kWh' is not valid",
    ),
    "no energy": Ruled(
        with_section("energy", budget="0kWh"),
        "budget is not valid: write energy from 1J to 100GWh",
        "spec.energy.budget: '0kWh' is not valid",
    ),
    "emissions without their unit": Ruled(
        with_section("emissions", budget="5kg"),
        "budget is not valid: write emissions from 0.001gCO2e",
        "spec.emissions.budget: '5kg' is not valid",
    ),
    "no emissions": Ruled(
        with_section("emissions", budget="0gCO2e"),
        "budget is not valid: write emissions from 0.001gCO2e",
        "spec.emissions.budget: '0gCO2e' is not valid",
    ),
    "a pue below one": Ruled(
        with_section("emissions", budget="5kgCO2e", pue="0.5"),
        "pue is not valid: write power usage effectiveness",
        "spec.emissions.pue: '0.5' is not valid",
    ),
    "a pue above five": Ruled(
        with_section("emissions", budget="5kgCO2e", pue="6"),
        "pue is not valid: write power usage effectiveness",
        "spec.emissions.pue: '6' is not valid",
    ),
}


def test_each_rule_of_the_crd_is_broken_by_a_job_here() -> None:
    messages = {rule["message"] for rules in RULES.values() for rule in rules}
    assert {m for m in messages if not any(ruled.server in m for ruled in RULED.values())} == set()


@pytest.mark.parametrize("ruled", RULED.values(), ids=RULED.keys())
async def test_what_a_rule_of_the_crd_forbids_the_server_refuses(
    server: Server, namespace: str, ruled: Ruled
) -> None:
    with pytest.raises(RefusedError) as refused:
        await server.create_job(namespace, ruled.manifest)
    assert refused.value.status == 422
    assert ruled.server in str(refused.value)


def drop_rules(schema: Any) -> Any:
    """A schema without its CEL rules."""
    if isinstance(schema, dict):
        return {k: drop_rules(v) for k, v in schema.items() if k != "x-kubernetes-validations"}
    if isinstance(schema, list):
        return [drop_rules(v) for v in schema]
    return schema


@pytest.fixture
async def crd_without_rules(server: Server, namespace: str) -> AsyncIterator[None]:
    """A CRD that has lost its CEL rules, until the test's end: what they forbid reaches the operator."""
    whole = (await server.call("GET", CRD))["spec"]["versions"]

    async def put(versions: Any, *, refuses: bool) -> None:
        await server.call("PATCH", CRD, {"spec": {"versions": versions}}, content_type=MERGE)

        async def is_refused() -> bool:
            try:
                await server.call(
                    "POST", f"{JOBS.format(namespace)}?dryRun=All", with_roles("Chief", "Master")
                )
            except RefusedError as error:
                if error.status != 422:
                    raise
                return True
            return False

        # The server goes by a new schema a moment after it has taken it.
        await server.until(is_refused, lambda refused: refused is refuses, what="the schema in force")

    try:
        await put(drop_rules(whole), refuses=False)
        yield
    finally:
        await server.call("DELETE", JOBS.format(namespace))
        await put(whole, refuses=True)


async def test_what_a_rule_would_forbid_the_operator_refuses_too(
    server: Server, namespace: str, settings: Settings, crd_without_rules: None
) -> None:
    """Someone may have dropped the rules, and a job may be older than they are."""
    del crd_without_rules
    made = {}
    for number, (name, ruled) in enumerate(RULED.items()):
        manifest = deepcopy(ruled.manifest)
        if manifest["metadata"]["name"] == "bad":
            manifest["metadata"]["name"] = f"bad-{number}"
        made[name] = (await server.create_job(namespace, manifest))["metadata"]["name"]
    async with running(settings):
        said = {
            name: condition(await server.until_condition(namespace, job, "Admitted", "False"), "Admitted")
            for name, job in made.items()
        }
        assert [name for name, ruled in RULED.items() if ruled.operator not in said[name]["message"]] == []
        assert {found["reason"] for found in said.values()} == {"InvalidSpec"}
        assert await server.pods(namespace) == {}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (with_container(name="main"), "holds no container named tensorflow"),
        (with_container(imagee="y"), "containers[0].imagee: unknown field; did you mean image?"),
        (
            with_container(command=["python3", "-m", "greentrain_trainer", "mnist"]),
            "'mnist' is no program of the trainer",
        ),
        (with_section("energy", budget="101GWh"), "spec.energy.budget: '101GWh' is not valid"),
        (with_section("energy", budget="0.5J"), "spec.energy.budget: '0.5J' is not valid"),
    ],
    ids=["container", "template field", "program", "too much energy", "too little energy"],
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


async def test_a_job_that_would_be_root_on_its_node_waits_for_its_namespace_to_be_opened(
    server: Server, namespace: str, settings: Settings
) -> None:
    manifest = with_container(securityContext={"privileged": True})
    at = "spec.tfReplicaSpecs.Worker.template.spec.containers[0].securityContext.privileged"
    async with running(settings):
        await server.create_job(namespace, manifest)
        job = await server.until_condition(namespace, "bad", "Admitted", "False", "InvalidSpec")
        assert f"{at}: true is more than jobs may ask for" in condition(job, "Admitted")["message"]
        assert "greentrain.dev/pod-security=privileged" in condition(job, "Admitted")["message"]
        assert await server.pods(namespace) == {}
        labels = {"metadata": {"labels": {"greentrain.dev/pod-security": "privileged"}}}
        await server.call("PATCH", f"/api/v1/namespaces/{namespace}", labels, content_type=MERGE)
        pods = await server.until_pods(namespace, {"bad-worker-0-1", "bad-worker-1-1"})
        job = await server.until_condition(namespace, "bad", "Admitted", "True")
    (container,) = pods["bad-worker-0-1"]["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True}


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
