"""The CRD on a real server: what its rules refuse, and what becomes of a job that was stored before a rule."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.support.api import JOBS, MERGE, RefusedError, Server
from tests.support.manifests import build_job, build_template

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/greentrainingjobs.greentrain.dev"
PASSWORD = "hunter2-in-the-environment"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"energy": {"budget": "0.0kWh"}},
            "spec.energy: Invalid value: budget is not valid: write energy from 1J",
        ),
        (
            {"emissions": {"budget": "0gCO2e"}},
            "spec.emissions: Invalid value: budget is not valid: write emissions",
        ),
        ({"emissions": {"budget": "00.0tCO2e"}}, "spec.emissions: Invalid value: budget is not valid"),
        (
            {"emissions": {"budget": "1kgCO2e", "pue": "0.9"}},
            "pue is not valid: write power usage effectiveness",
        ),
        ({"emissions": {"budget": "1kgCO2e", "pue": "5.001"}}, "pue is not valid"),
        ({"emissions": {"budget": "1kgCO2e", "pue": "much"}}, "pue is not valid"),
        ({"power": {"cap": "0.0kW"}}, "spec.power: Invalid value: cap is not valid: write watts from 1W"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_an_amount_that_is_not_valid_is_refused_in_words(
    server: Server, namespace: str, section: dict[str, Any], said: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        await server.create_job(namespace, build_job(**section))
    assert refused.value.status == 422
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "section",
    [
        {"energy": {"budget": "0.5kWh"}},
        {"emissions": {"budget": "0.2kgCO2e", "pue": "1.0"}},
        {"emissions": {"budget": "20tCO2e", "pue": "5.0"}},
        {"power": {"cap": "0.3kW"}},
        # As TFJob's own type writes what is not set.
        {"successPolicy": ""},
        {"successPolicy": None},
    ],
    ids=str,
)
async def test_what_is_valid_is_taken(server: Server, namespace: str, section: dict[str, Any]) -> None:
    stored = await server.create_job(namespace, build_job(**section))
    for name, value in section.items():
        found = stored["spec"].get(name)
        assert found == value if not isinstance(value, dict) else value.items() <= found.items()


def with_grace(role: str, seconds: object) -> dict[str, Any]:
    manifest = build_job()
    template = build_template()
    template["spec"]["terminationGracePeriodSeconds"] = seconds
    manifest["spec"]["tfReplicaSpecs"][role] = {"template": template}
    return manifest


async def test_a_grace_period_of_more_than_a_day_is_refused_and_null_is_none(
    server: Server, namespace: str
) -> None:
    probe = f"{JOBS.format(namespace)}?dryRun=All"
    for role in ("Chief", "Worker", "Evaluator"):
        field = f"spec.tfReplicaSpecs.{role}.template.spec.terminationGracePeriodSeconds"
        for seconds, bound in ((86_401, "less than or equal to 86400"), (-1, "greater than or equal to 0")):
            with pytest.raises(RefusedError) as refused:
                await server.call("POST", probe, with_grace(role, seconds))
            assert refused.value.status == 422
            assert f"{field}: Invalid value: {seconds}" in str(refused.value)
            assert bound in str(refused.value)
        for accepted in (86_400, 0, None):
            stored = await server.call("POST", probe, with_grace(role, accepted))
            spec = stored["spec"]["tfReplicaSpecs"][role]["template"]["spec"]
            assert spec.pop("terminationGracePeriodSeconds", None) == accepted
            assert spec == build_template()["spec"]


def build_two_chiefs(name: str) -> dict[str, Any]:
    """A job that breaks a rule of spec.tfReplicaSpecs."""
    manifest = build_job(name)
    template = build_template(env=[{"name": "PASSWORD", "value": PASSWORD}])
    for role in ("Chief", "Master"):
        manifest["spec"]["tfReplicaSpecs"][role] = {"replicas": 1, "template": template}
    return manifest


async def is_refused(server: Server, namespace: str) -> bool:
    """Whether the server applies that rule now; it does so a moment after the CRD was changed."""
    try:
        await server.call("POST", JOBS.format(namespace) + "?dryRun=All", build_two_chiefs("probe"))
    except RefusedError:
        return True
    return False


@contextlib.asynccontextmanager
async def without_the_rule(server: Server, namespace: str) -> AsyncIterator[None]:
    """The CRD as it was before the rules of spec.tfReplicaSpecs; afterwards it is as committed again."""
    versions = (await server.call("GET", CRD))["spec"]["versions"]
    older = copy.deepcopy(versions)
    spec = older[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["tfReplicaSpecs"]["x-kubernetes-validations"]
    look = partial(is_refused, server, namespace)
    await server.call("PATCH", CRD, {"spec": {"versions": older}}, content_type=MERGE)
    try:
        await server.until(look, lambda refused: not refused)
        yield
    finally:
        await server.call("PATCH", CRD, {"spec": {"versions": versions}}, content_type=MERGE)
        await server.until(look, bool)


async def read_refusals(server: Server, namespace: str) -> list[dict[str, Any]]:
    return [e for e in await server.events(namespace) if e["reason"] == "StatusRefused"]


def has_failed(times: int) -> Callable[[str], bool]:
    """Whether metrics show that so many requests were answered with 422."""
    return lambda text: any(
        line.startswith('greentrain_api_errors_total{status="422"}')
        and float(line.rpartition(" ")[2]) >= times
        for line in text.splitlines()
    )


async def test_a_job_whose_status_the_server_refuses_says_so_once_and_goes_on_when_it_is_mended(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with without_the_rule(server, namespace):
        await server.create_job(namespace, build_two_chiefs("frozen"))
    async with running(replace(settings, namespaces=(namespace,))) as operator:

        async def read_metrics() -> str:
            return operator.telemetry.render().decode()

        await server.until(read_metrics, has_failed(5), what="tried again and again")
        (event,) = await read_refusals(server, namespace)
        assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "frozen")
        assert 'The server says: GreenTrainingJob.greentrain.dev "frozen" is invalid' in event["message"]
        assert "Chief and Master are two names of one role" in event["message"]
        assert "correct the field with kubectl edit, or delete the job" in event["message"]
        assert PASSWORD not in str(await server.events(namespace))
        assert "status" not in await server.job(namespace, "frozen")
        assert await server.pods(namespace) == {}

        roles = {"Master": None}
        await server.patch_job(namespace, "frozen", {"spec": {"tfReplicaSpecs": roles}})
        # Tries are up to some seconds apart by now, but an edit is looked at at once.
        await server.until_condition(namespace, "frozen", "Created", "True")
        assert len(await read_refusals(server, namespace)) == 1
