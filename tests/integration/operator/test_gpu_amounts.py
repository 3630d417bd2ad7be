"""What admission says of amounts of GPUs is what the API server would say of the pods, and both count the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from greentrain.api.resources import SHIPPED, GpuResources, parse_count
from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from greentrain.core.admission import Admitted, decide_admission
from greentrain.core.seen.gpus import count_gpus
from tests.support.api import RefusedError, Server, condition
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of

Json = dict[str, Any]

GPU = "nvidia.com/gpu"

AMOUNTS: tuple[object, ...] = (
    *(
        0,
        1,
        8,
        1.0,
        8e0,
        "0",
        "1",
        "1.0",
        "1.",
        "+1",
        "01",
        "-0",
        "1k",
        "1K",
        "1ki",
        "1Ki",
        "1Mi",
        "1.5k",
        "0.5k",
    ),
    *("1000m", "1500m", "1m", "1000000u", "1e0", "1E0", "1e3", "10e-1", "1e-1", "1e+1", "1e", "1E"),
    *(-1, "-1", 0.5, "0.5", ".5k", "many", "", "٣", "0x1", "NaN", True, {}, {"count": 1}, [], ["1"]),
)
"""Left out: above 10^15, and texts without a digit (`.`, `e1`), which are 0 to the server. Our parser refuses these."""


async def test_every_amount_counts_as_the_api_server_stores_it_and_is_refused_where_it_is(
    server: Server, namespace: str
) -> None:
    ours: dict[str, int | None] = {}
    theirs: dict[str, int | None] = {}
    for amount in AMOUNTS:
        template = build_template(resources={"limits": {GPU: amount}})
        stored = await post(server, namespace, template)
        ours[repr(amount)] = parse_count(amount)
        theirs[repr(amount)] = None
        if isinstance(stored, dict):
            counted = parse_count(stored["containers"][0]["resources"]["limits"][GPU])
            theirs[repr(amount)] = counted
            assert count_gpus(stored, SHIPPED) == count_gpus(template["spec"], SHIPPED), amount
    assert ours == theirs
    assert len(set(ours.values())) > 6


async def test_an_operator_counts_the_resources_that_it_was_given_and_refuses_a_budget_on_others(
    server: Server, namespace: str, settings: Settings
) -> None:
    names = {"listed": "example.com/gpu.h100", "other": GPU}
    async with running(replace(settings, gpu_resources=GpuResources(("example.com/gpu.*",)))):
        for name, resource in names.items():
            manifest = build_job(name, workers=1, energy={"budget": "1kWh", "onUnknown": "Continue"})
            template = build_template(resources={"limits": {resource: 2}})
            manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
            await server.create_job(namespace, manifest)
        await server.until_pods(namespace, {"listed-worker-0-1"})
        refused = await server.until_condition(namespace, "other", "Admitted", "False", "InvalidSpec")
        said = condition(refused, "Admitted")["message"]
        assert f"resources.limits['{GPU}']: 2 is not valid under a budget" in said
        assert "add it to gpus.resourceNames of the chart, or request example.com/gpu.*" in said


SPECS = {
    "equal": ({GPU: "1"}, {GPU: 1}, ""),
    "a limit alone": ({}, {GPU: 2}, ""),
    "unequal": ({GPU: "1"}, {GPU: 2}, "must be equal to nvidia.com/gpu limit of 2"),
    "less": ({GPU: 0}, {GPU: 2}, "must be equal to nvidia.com/gpu limit of 2"),
    "no limit": ({GPU: 1}, {}, "Limit must be set for non overcommitable resources"),
    "nothing and no limit": ({GPU: 0}, {}, "Limit must be set for non overcommitable resources"),
}


async def test_requests_and_limits_are_admitted_as_the_api_server_admits_them(
    server: Server, namespace: str
) -> None:
    for name, (requests, limits, refused) in SPECS.items():
        template = build_template(resources={"requests": requests, "limits": limits})
        manifest = build_job(workers=1)
        manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
        assert isinstance(decide_admission(job_of(manifest)), Admitted) is (not refused), name
        said = await post(server, namespace, template)
        assert (refused in said) if refused else isinstance(said, dict), f"{name}: {said}"


async def post(server: Server, namespace: str, template: Json) -> Json | str:
    """The spec of a pod as the API server would store it, or why it would not."""
    pod = {"metadata": {"name": "p"}, **template}
    try:
        stored = await server.call("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
    except RefusedError as error:
        return str(error)
    spec: Json = stored["spec"]
    return spec
