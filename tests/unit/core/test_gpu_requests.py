"""A pod's GPUs are counted as the scheduler counts them, and what could not be counted is refused by path with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from greentrain.api.resources import MAX_GPUS, SHIPPED, GpuResources
from greentrain.core.admission import Refused, decide_admission
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.gpus import count_gpus
from greentrain.core.seen.pods import parse_pod
from greentrain.core.seen.snapshot import Fleet, Snapshot
from greentrain.kube.cache import Cache, Key, slim_pod
from greentrain.quantities import Joules, Milliwatts, format_energy
from tests.support.manifests import build_job
from tests.support.snapshots import job_of

Json = dict[str, Any]

GPU, SHARED, MIG = "nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.5gb"
AMD = GpuResources(("amd.com/gpu",))


def container(limits: object = None, **fields: Any) -> Json:
    """A container with these limits; a number is so many whole GPUs."""
    limits = {GPU: limits} if isinstance(limits, int) else limits
    return {"name": "c", "image": "i", "resources": {"limits": limits}, **fields}


def sidecar(limits: object = None) -> Json:
    return container(limits, restartPolicy="Always")


def pod(*containers: Any, init: tuple[Any, ...] = ()) -> Json:
    return {"containers": list(containers), "initContainers": list(init)}


@pytest.mark.parametrize(
    ("spec", "gpus"),
    [
        ({}, 0),
        (pod(container()), 0),
        (pod(container(2), container(1)), 3),
        (pod(container({GPU: 1, SHARED: "2", MIG: "1k"})), 1003),
        # The larger of the two, of each resource.
        (pod(container(2), init=(container(1), container(1))), 2),
        (pod(container(1), init=(container(4), container(2))), 4),
        (pod(container({MIG: 1}), init=(container(2),)), 3),
        # Sidecars add to the containers, and to the init containers after them.
        (pod(container(2), init=(sidecar(1),)), 3),
        (pod(container(1), init=(sidecar(1), container(4))), 5),
        (pod(container(1), init=(container(4), sidecar(1))), 4),
        (pod(container(1), init=(sidecar(1), container(3), sidecar(2), container(1))), 4),
        (pod(container(0), init=(sidecar(1), sidecar(2))), 3),
        # Another restart policy of its own makes no sidecar.
        (pod(container(1), init=(container(3, restartPolicy="Never"),)), 3),
        # Whatever there is, it is counted or it is none.
        ({"containers": "x", "initContainers": {"a": 1}}, 0),
        ({"containers": None, "initContainers": None}, 0),
        (pod("x", None, {"resources": "x"}, container([GPU]), container("1"), init=("x", None, {})), 0),
        (pod(container({GPU: None, MIG: {}, SHARED: [1]})), 0),
        (pod(container({GPU: "", MIG: "many", SHARED: -1})), 0),
        (pod(container({GPU: 10**20, MIG: "1e1000000", SHARED: MAX_GPUS + 1})), 0),
        (pod(container({GPU: "1000m", MIG: 1.0, SHARED: "1e0"}), init=(sidecar({GPU: True}),)), 3),
        (pod(container({"amd.com/gpu": 4, "cpu": 8, "nvidia.com/gpumem": 4000})), 0),
    ],
)  # fmt: skip
def test_a_pod_needs_the_gpus_that_the_scheduler_counts(spec: Json, gpus: int) -> None:
    assert count_gpus(spec, SHIPPED) == gpus
    labels = {
        f"greentrain.dev/{k}": v
        for k, v in (("replica-type", "Worker"), ("replica-index", "0"), ("attempt", "1"))
    }
    whole = {"metadata": {"name": "p", "uid": "u", "labels": labels}, "spec": spec}
    seen = parse_pod(whole)
    assert seen is not None
    assert seen.gpus == gpus
    if all(isinstance(k, list) and all(isinstance(c, dict) for c in k) for k in spec.values()):
        assert parse_pod(slim_pod(whole)) == seen, "what the cache keeps says the same"


def test_gpus_are_those_of_the_list() -> None:
    spec = pod(container({GPU: 1, "amd.com/gpu": 4}))
    assert (count_gpus(spec, SHIPPED), count_gpus(spec, AMD)) == (1, 4)


AT = "spec.tfReplicaSpecs.Worker.template.spec"


def job(spec: Json, budget: str = "") -> Json:
    sections: Json = {budget: {"budget": BUDGETS[budget]}} if budget else {}
    manifest = build_job(workers=1, **sections)
    spec["containers"][0]["name"] = "tensorflow"
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = {"spec": spec}
    return manifest


BUDGETS: Mapping[str, str] = {"energy": "5kWh", "emissions": "1kgCO2e"}


def read_problems(manifest: Json, resources: GpuResources | None = SHIPPED) -> dict[str, str]:
    verdict = decide_admission(job_of(manifest), gpu_resources=resources)
    return {p.path: p.message for p in verdict.problems} if isinstance(verdict, Refused) else {}


LIMIT = f"{AT}.containers[0].resources.limits"
WHOLE = "set a whole number from 0 to 1024"


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        *(({GPU: amount}, "") for amount in (0, 1, "8", "1k", "1.0", "1000m", "1e0", 1.0, 1024, None)),
        ({GPU: ""}, f"'' is not valid: {WHOLE}"),
        ({GPU: "many"}, f"'many' is not valid: {WHOLE}"),
        ({GPU: -1}, f"-1 is not valid: {WHOLE}"),
        ({GPU: "500m"}, f"'500m' is not valid: {WHOLE}"),
        ({GPU: 0.5}, f"0.5 is not valid: {WHOLE}"),
        ({GPU: True}, f"True is not valid: {WHOLE}"),
        ({GPU: 1025}, f"1025 is not valid: {WHOLE}"),
        ({GPU: "1Ei"}, f"'1Ei' is not valid: {WHOLE}"),
        ({GPU: 10**400}, f"1{'0' * 76}... is not valid: {WHOLE}"),
        ({GPU: ["1"]}, f"a list is not valid: {WHOLE}"),
        ({GPU: {"count": 1}}, f"a map is not valid: {WHOLE}"),
        ({SHARED: "x"}, f"'x' is not valid: {WHOLE}"),
        ({MIG: "x"}, f"'x' is not valid: {WHOLE}"),
        ({"cpu": "0.5", "amd.com/gpu": "x"}, ""),
    ],
)  # fmt: skip
def test_only_whole_numbers_of_gpus_are_admitted(limits: Json, said: str) -> None:
    path = f"{LIMIT}['{next(iter(limits))}']"
    assert read_problems(job(pod(container(limits)))) == ({path: said} if said else {})


@pytest.mark.parametrize(
    ("requests", "limits", "said"),
    [
        ({GPU: "1"}, {GPU: 1.0}, ""),
        ({GPU: None}, {GPU: 1}, ""),
        ({GPU: 1}, {GPU: 2}, "1 is not valid: it must be equal to the limit of 2; set 2, or remove it"),
        ({GPU: 0}, {GPU: 2}, "0 is not valid: it must be equal to the limit of 2; set 2, or remove it"),
        ({GPU: 1}, {}, f"1 is not valid without a limit: set resources.limits['{GPU}'] to it"),
        ({GPU: 1}, None, f"1 is not valid without a limit: set resources.limits['{GPU}'] to it"),
        ({GPU: "x"}, {}, f"'x' is not valid: {WHOLE}"),
        ({"amd.com/gpu": 1}, {}, ""),
    ],
)
def test_a_request_of_gpus_is_equal_to_its_limit(requests: Json, limits: Json | None, said: str) -> None:
    spec = pod({"image": "i", "resources": {"requests": requests, "limits": limits}})
    path = f"{AT}.containers[0].resources.requests['{GPU}']"
    assert read_problems(job(spec)) == ({path: said} if said else {})


@pytest.mark.parametrize(
    ("init", "refused"),
    [
        (container(1), f"initContainers[0].resources.limits['{GPU}']"),
        (container({MIG: "1"}), f"initContainers[0].resources.limits['{MIG}']"),
        (container({SHARED: "1000m"}, restartPolicy="Never"), f"initContainers[0].resources.limits['{SHARED}']"),
        (sidecar(1), ""),
        (container(0), ""),
        (container({"cpu": 4}), ""),
    ],
)  # fmt: skip
def test_a_gpu_in_an_init_container_that_ends_first_is_refused(init: Json, refused: str) -> None:
    found = read_problems(job(pod(container(1), init=(init,))))
    assert [*found] == ([f"{AT}.{refused}"] if refused else [])
    for message in found.values():
        assert message.endswith(
            "is not valid in an init container: the kubelet does not report its GPUs, so their energy could be neither counted "
            "nor capped; move it to a container, or set restartPolicy: Always on the init container"
        )


def with_env(spec: Json, *variables: Json, kind: str = "containers") -> Json:
    spec[kind][0]["env"] = [{"name": "A", "value": "b"}, *variables]
    return spec


def with_claims(*claims: object) -> Json:
    return {**pod(container()), "resourceClaims": [*claims]}


VISIBLE = "NVIDIA_VISIBLE_DEVICES"


@pytest.mark.parametrize("budget", ["", *BUDGETS])
@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (with_env(pod(container()), {"name": VISIBLE, "value": "all"}), "containers[0].env[1]"),
        (with_env(pod(container(1)), {"name": VISIBLE, "value": "0,1"}), "containers[0].env[1]"),
        (with_env(pod(container()), {"name": VISIBLE, "value": ["all"]}), "containers[0].env[1]"),
        (with_env(pod(container()), {"name": VISIBLE, "value": 0}), "containers[0].env[1]"),
        (with_env(pod(container()), {"name": VISIBLE, "valueFrom": {"fieldRef": {"fieldPath": "x"}}}), "containers[0].env[1]"),
        (with_env(pod(container(1), init=(container(),)), {"name": VISIBLE, "value": "all"}, kind="initContainers"),
            "initContainers[0].env[1]"),
        *((with_env(pod(container()), {"name": VISIBLE, "value": value}), "") for value in ("void", "none", "", None)),
        (with_env(pod(container()), {"name": "CUDA_VISIBLE_DEVICES", "value": "0"}), ""),
        (with_claims({"name": "gpu", "resourceClaimTemplateName": "one"}), "resourceClaims[0]"),
        (with_claims({"name": "nic"}, {"name": "card", "resourceClaimTemplateName": "single-GPU"}), "resourceClaims[1]"),
        (with_claims({"name": "card", "resourceClaimName": "my-gpus"}), "resourceClaims[0]"),
        (with_claims({"name": "nic", "resourceClaimName": "fabric"}), ""),
    ],
)  # fmt: skip
def test_under_a_budget_gpus_that_are_not_allocated_by_the_kubelet_are_refused(
    spec: Json, path: str, budget: str
) -> None:
    found = read_problems(job(spec, budget))
    assert [*found] == ([f"{AT}.{path}"] if path and budget else [])
    for message in found.values():
        assert "is not valid under a budget: " in message
        assert "request nvidia.com/gpu" in message


NAMES_REMEDY = "add it to gpus.resourceNames of the chart, or request nvidia.com/gpu"
CLASS_REMEDY = "request nvidia.com/gpu, or remove it"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("spec", "path", "remedy"),
    [
        (pod(container({"amd.com/gpu": 1})), f"{LIMIT}['amd.com/gpu']", NAMES_REMEDY),
        (pod(container({"nvidia.com/gpu.h100": "8"})), f"{LIMIT}['nvidia.com/gpu.h100']", NAMES_REMEDY),
        (pod(container({GPU: 1, "amd.com/gpu": 1})), f"{LIMIT}['amd.com/gpu']", NAMES_REMEDY),
        (pod(container({"aliyun.com/gpu-mem": 8})), f"{LIMIT}['aliyun.com/gpu-mem']", NAMES_REMEDY),
        (pod(container({"volcano.sh/vGPU-number": {}})), f"{LIMIT}['volcano.sh/vGPU-number']", NAMES_REMEDY),
        (
            pod({"image": "i", "resources": {"requests": {"amd.com/gpu": 1}}}),
            f"{AT}.containers[0].resources.requests['amd.com/gpu']",
            NAMES_REMEDY,
        ),
        (
            pod(container(1), init=(container({"amd.com/gpu": 1}),)),
            f"{AT}.initContainers[0].resources.limits['amd.com/gpu']",
            NAMES_REMEDY,
        ),
        # HAMi's memory of the GPU beside it is no other GPU.
        (pod(container({GPU: 1, "nvidia.com/gpumem": 3000})), "", ""),
        (pod(container(1), container({"nvidia.com/gpumem": 3000})),
            f"{AT}.containers[1].resources.limits['nvidia.com/gpumem']", NAMES_REMEDY),
        (pod(container({"amd.com/gpu": 0})), "", ""),
        (pod(container({"amd.com/gpu": None})), "", ""),
        (pod(container({"example.com/fpga": 1})), "", ""),
        ({**pod(container()), "runtimeClassName": "nvidia"}, f"{AT}.runtimeClassName", CLASS_REMEDY),
        ({**pod(container(0)), "runtimeClassName": "nvidia-cdi"}, f"{AT}.runtimeClassName", CLASS_REMEDY),
        ({**pod(container({"amd.com/gpu": 1})), "runtimeClassName": "nvidia"}, f"{LIMIT}['amd.com/gpu']", NAMES_REMEDY),
        ({**pod(container(1)), "runtimeClassName": "nvidia"}, "", ""),
        ({**pod(container({MIG: 1})), "runtimeClassName": "nvidia"}, "", ""),
        ({**pod(container()), "runtimeClassName": "gvisor"}, "", ""),
        ({**pod(container()), "runtimeClassName": None}, "", ""),
        (pod(container()), "", ""),
    ],
)  # fmt: skip
def test_under_a_budget_no_gpu_is_admitted_that_nothing_would_count(
    spec: Json, path: str, remedy: str, budget: str
) -> None:
    found = read_problems(job(spec, budget))
    assert [*found] == ([path] if path else [])
    for message in found.values():
        assert "is not valid under a budget" in message
        assert message.endswith(remedy)
    assert read_problems(job(spec)) == {}, "without a budget nothing is promised"


def test_a_name_that_the_list_has_counts_and_one_that_it_has_no_more_does_not() -> None:
    found = read_problems(job(pod(container({"amd.com/gpu": 1})), "energy"), AMD)
    assert found == {}
    (path,) = read_problems(job(pod(container(1)), "energy"), AMD)
    assert path == f"{LIMIT}['{GPU}']"
    (path,) = read_problems(job(pod(container(1), init=(container({"amd.com/gpu": 1}),))), AMD)
    assert path == f"{AT}.initContainers[0].resources.limits['amd.com/gpu']"


def test_what_a_finished_jobs_pods_requested_does_not_matter_any_more() -> None:
    assert read_problems(job(pod(container(1), init=(container(1),)), "energy"), None) == {}


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limits", "resources", "gpus", "bound"),
    [
        ({GPU: 2}, SHIPPED, 2, 2 * 300 * 132),
        ({"amd.com/gpu": 4}, AMD, 4, 4 * 300 * 132),
        ({"cpu": 4}, SHIPPED, 0, None),
    ],
)
def test_an_attempt_begins_with_the_gpus_of_the_list_and_without_any_there_is_no_bound(
    limits: Json, resources: GpuResources, gpus: int, bound: int | None
) -> None:
    fleet = Fleet(limit_milliwatts=Milliwatts(300_000), report_seconds=30, reported_at=NOW)
    manifest = job(pod(container(limits)), "energy")
    seen = Snapshot(job_of(manifest), fleet=fleet, gpu_resources=resources)
    begun = decide(seen, now=NOW).status
    (attempt,) = begun.attempts
    assert (attempt.gpus, attempt.overshoot_bound_joules) == (gpus, bound)
    later = decide(replace(seen, job=replace(seen.job, status=begun)), now=NOW).status
    messages = {c.type: c.message for c in later.conditions}
    exceeded = f" (at worst exceeded by {format_energy(Joules(bound))})" if bound else ""
    assert messages["BudgetExhausted"] == f"spec.energy.budget 5kWh is not spent{exceeded}"
    assert ("there is no GPU energy to count" in messages.get("EnergyMetered", "")) is (not gpus)


def test_the_cache_reads_pods_by_its_list() -> None:
    labels = {"job-name": "digits", "replica-type": "Worker", "replica-index": "0", "attempt": "1"}
    meta = {
        "namespace": "team",
        "name": "p",
        "uid": "u",
        "resourceVersion": "1",
        "labels": {f"greentrain.dev/{key}": value for key, value in labels.items()},
        "ownerReferences": [{"kind": "GreenTrainingJob", "name": "digits", "uid": "job", "controller": True}],
    }
    found = {}
    for name, resources in (("shipped", SHIPPED), ("named", AMD)):
        cache = Cache(resources)
        cache.put("Pod", {"metadata": meta, "spec": pod(container({GPU: 1, "amd.com/gpu": 4}))})
        (seen,) = cache.parsed_pods(Key("team", "digits"), "job")
        found[name] = seen.gpus
    assert found == {"shipped": 1, "named": 4}
