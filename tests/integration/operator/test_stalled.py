"""Jobs the operator cannot look after: what a server stores of them, what is stopped all the same, what agents learn."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from greentrain.api.names import ANNOTATION_UNATTENDED
from greentrain.controller.run import Operator, running
from greentrain.controller.settings import Settings
from tests.integration.operator.test_budget import Meter, meter, start
from tests.integration.operator.test_energy import gpu_job
from tests.support.api import CRDS, JOBS, MERGE, RefusedError, Server, condition

__all__ = ["meter"]

Json = dict[str, Any]

ETCD_BYTES = 1_572_864
"""What etcd takes of one request by default."""

JOB_CRD = f"{CRDS}/greentrainingjobs.greentrain.dev"
POLICIES = "/apis/admissionregistration.k8s.io/v1"


def budgeted(name: str = "digits") -> Json:
    """A job of two workers with a budget of 1 MJ."""
    job = gpu_job()
    job["metadata"]["name"] = name
    job["spec"]["energy"] = {"budget": "1MJ"}
    return job


async def begin(server: Server, namespace: str, meter: Meter, joules: int) -> dict[str, Json]:
    """The job's first attempt runs and each of its pods has used so much."""
    await meter.report()
    await server.create_job(namespace, budgeted())
    pods = await start(server, namespace, meter, 1)
    for pod in pods.values():
        meter.tell(pod, joules)
    await meter.report()
    await server.until(
        lambda: server.job(namespace, "digits"),
        lambda body: body.get("status", {}).get("energy", {}).get("usedJoules") == 2 * joules,
        what="what they have used",
    )
    return pods


async def spend(server: Server, namespace: str, meter: Meter, pods: dict[str, Json]) -> None:
    """All of the budget is used: the pods are asked to stop, and do."""
    for pod in pods.values():
        meter.tell(pod, 500_000)
    await meter.report()
    await until_asked_to_stop(server, namespace, pods)
    for name, pod in pods.items():
        await server.end_pod(namespace, name, 143)
        meter.tell(pod, 501_000, closed=True)
    await meter.report()
    for name in pods:
        await server.remove_pod(namespace, name)


async def until_asked_to_stop(server: Server, namespace: str, pods: dict[str, Json]) -> None:
    await server.until(
        lambda: server.pods(namespace),
        lambda there: all("deletionTimestamp" in there[name]["metadata"] for name in pods),
        what="both asked to stop",
    )


async def reasons(server: Server, namespace: str) -> set[str]:
    """Reasons of the namespace's events."""
    events = await server.call("GET", f"/api/v1/namespaces/{namespace}/events")
    return {e["reason"] for e in events["items"]}


async def until_event(server: Server, namespace: str, reason: str) -> None:
    """An event is stored right after the status that it tells of."""
    await server.until(
        lambda: reasons(server, namespace), lambda found: reason in found, what=f"event {reason}"
    )


async def read_named(server: Server, namespace: str) -> str:
    """The jobs that the operator's next renewal names."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/operator"
    lease = await server.until(
        lambda: server.call("GET", path),
        lambda body: ANNOTATION_UNATTENDED in body["metadata"].get("annotations", {}),
        what="a renewal that names a job",
        seconds=25,
    )
    return str(lease["metadata"]["annotations"][ANNOTATION_UNATTENDED])


def says(operator: Operator, metric: str, namespace: str) -> bool:
    """Whether a job's gauge is there and 1."""
    line = f'{metric}{{job="digits",namespace="{namespace}"}} 1.0'
    return line in operator.telemetry.render().decode()


async def pad(server: Server, namespace: str) -> None:
    """Fill the object up until etcd takes not another 200 bytes of it."""
    # In two parts: a body of more than 1 MiB would have to be sent as a stream.
    half = ETCD_BYTES // 2
    await server.patch_job(namespace, "digits", {"spec": {"padding": "x" * half}})
    size, step = 0, half
    while step > 100:
        step //= 2
        try:
            await server.patch_job(namespace, "digits", {"spec": {"more": "x" * (size + step)}})
        except RefusedError:
            continue
        size += step


async def test_a_stop_does_not_depend_on_what_can_be_stored(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    async with running(settings) as operator:
        pods = await begin(server, namespace, meter, 100_000)
        await pad(server, namespace)
        await spend(server, namespace, meter, pods)
        await until_event(server, namespace, "StatusRefused")
        assert says(operator, "greentrain_status_refused", namespace)
        # Once there is room again the record says what was done, and why.
        await server.patch_job(namespace, "digits", {"spec": {"padding": None, "more": None}})
        stored = await server.until_condition(namespace, "digits", "Suspended", "True")
        (attempt,) = stored["status"]["attempts"]
        assert (attempt["reason"], condition(stored, "Suspended")["reason"]) == ("BudgetExhausted",) * 2
        assert stored["status"].get("infrastructureFailureCount", 0) == 0
        await server.until(
            lambda: reasons(server, namespace),
            lambda found: {"BudgetExhausted", "Suspended"} <= found,
            what="the events of what was done meanwhile",
        )
        await server.until(
            lambda: _told(operator, namespace), lambda told: not told, what="nothing is refused any more"
        )
        assert await server.pods(namespace) == {}


async def _told(operator: Operator, namespace: str) -> bool:
    return says(operator, "greentrain_status_refused", namespace)


async def test_a_job_that_was_never_recorded_makes_no_pods(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    await meter.report()
    await server.create_job(namespace, budgeted())
    await pad(server, namespace)
    async with running(settings):
        await server.until(
            lambda: reasons(server, namespace), lambda found: "StatusRefused" in found, what="an event"
        )
        assert await server.pods(namespace) == {}


async def store_action(server: Server, namespace: str, word: str) -> None:
    """Store in the job's ledger what a budget does when it is spent, as an operator that has such a word might."""
    stored = await server.job(namespace, "digits")
    ledger = json.loads(stored["status"]["ledger"])
    ledger["admitted"]["energy"]["onExhausted"] = word
    path = f"{JOBS.format(namespace)}/digits/status"
    await server.call("PATCH", path, {"status": {"ledger": json.dumps(ledger)}}, content_type=MERGE)


async def test_a_ledger_of_another_version_is_held_and_not_overwritten(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    async with running(settings):
        pods = await begin(server, namespace, meter, 100_000)
        allowed = await server.until(meter.asked, lambda a: len(a) == 2, what="allowances")
    await store_action(server, namespace, "Checkpoint")
    before = await server.job(namespace, "digits")
    lease = (namespace, "operator")
    async with running(replace(settings, lease=lease)) as operator:
        stored = await server.until_condition(namespace, "digits", "Stalled", "True")
        assert condition(stored, "Stalled")["reason"] == "LedgerUnreadable"
        assert "status.ledger.admitted.energy.onExhausted" in condition(stored, "Stalled")["message"]
        assert (stored["status"]["phase"], stored["status"]["display"]["reason"]) == (
            "Unknown",
            "LedgerUnreadable",
        )
        kept = ("energy", "attempts", "attemptCount", "ledger")
        assert {k: stored["status"][k] for k in kept} == {k: before["status"][k] for k in kept}
        assert says(operator, "greentrain_reconcile_failing", namespace)
        assert await read_named(server, namespace) == before["metadata"]["uid"]
        # Its pods run, with what they were allowed; they are stopped where its user asks for it.
        assert set(await server.pods(namespace)) == set(pods)
        assert await meter.asked() == allowed
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"suspend": True}}})
        await until_asked_to_stop(server, namespace, pods)
        # A version that reads it goes on where it was.
        await store_action(server, namespace, "Suspend")
        for name, pod in pods.items():
            await server.end_pod(namespace, name, 143)
            meter.tell(pod, 101_000, closed=True)
        await meter.report()
        for name in pods:
            await server.remove_pod(namespace, name)
        stored = await server.until_condition(namespace, "digits", "Suspended", "True")
        assert condition(stored, "Stalled")["status"] == "False"
        assert stored["status"]["energy"]["usedJoules"] == 202_000
        assert stored["status"]["attemptCount"] == 1


async def test_a_finished_job_of_another_version_stays_as_it_is_stored(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    async with running(settings):
        pods = await begin(server, namespace, meter, 100_000)
        for name in sorted(pods, reverse=True):
            await server.end_pod(namespace, name, 0)
        await server.until_condition(namespace, "digits", "Succeeded", "True")
    await store_action(server, namespace, "Checkpoint")
    before = await server.job(namespace, "digits")
    async with running(settings) as operator:
        await asyncio.sleep(2)
        assert await server.job(namespace, "digits") == before
        assert not says(operator, "greentrain_reconcile_failing", namespace)


async def test_a_pass_that_fails_twice_stalls_its_job_alone_and_is_named_in_the_lease(
    server: Server, namespace: str, settings: Settings, meter: Meter
) -> None:
    """A policy of the administrator's lets nothing be stored of what this one job uses."""
    refused = "object.metadata.name != 'digits' || !has(object.status.energy) || object.status.energy.usedJoules == 200000"
    stalled = "object.status.conditions.exists(c, c.type == 'Stalled' && c.status == 'True')"
    rules = {
        "apiGroups": ["greentrain.dev"],
        "apiVersions": ["*"],
        "operations": ["UPDATE"],
        "resources": ["greentrainingjobs/status"],
    }
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {"resourceRules": [rules]},
            "validations": [
                {
                    "expression": f"({refused}) || ({stalled})",
                    "message": "not in this namespace",
                    "reason": "Forbidden",
                }
            ],
        },
    }
    binding = {
        "metadata": {"name": namespace},
        "spec": {
            "policyName": namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": here},
        },
    }
    async with running(replace(settings, lease=(namespace, "operator"))) as operator:
        pods = await begin(server, namespace, meter, 100_000)
        await server.call("POST", f"{POLICIES}/validatingadmissionpolicies", policy)
        await server.call("POST", f"{POLICIES}/validatingadmissionpolicybindings", binding)
        try:

            async def tell_more() -> Json:
                for pod in pods.values():
                    meter.tell(pod, 110_000)
                await meter.report()
                return await server.job(namespace, "digits")

            stored = await server.until(
                tell_more,
                lambda body: condition(body, "Stalled").get("status") == "True",
                what="the condition",
                seconds=60,
            )
            said = condition(stored, "Stalled")
            assert said["reason"] == "ReconcileFailing"
            assert "not in this namespace" in said["message"]
            await until_event(server, namespace, "ReconcileFailing")
            assert says(operator, "greentrain_reconcile_failing", namespace)
            assert await read_named(server, namespace) == stored["metadata"]["uid"]
            # Another job beside it goes through its life.
            await server.create_job(namespace, budgeted("healthy"))
            healthy = await server.until_pods(
                namespace, {f"healthy-worker-{i}-1" for i in (0, 1)} | set(pods)
            )
            assert len(healthy) == 4
            # Its own budget is kept by the operator too: a stop does not wait for the policy.
            for pod in pods.values():
                meter.tell(pod, 500_000)
            await meter.report()
            await until_asked_to_stop(server, namespace, pods)
        finally:
            await server.call("DELETE", f"{POLICIES}/validatingadmissionpolicybindings/{namespace}")
            await server.call("DELETE", f"{POLICIES}/validatingadmissionpolicies/{namespace}")
        await server.patch_job(namespace, "digits", {"spec": {"runPolicy": {"backoffLimit": 4}}})
        stored = await server.until_condition(namespace, "digits", "Stalled", "False")
        assert stored["status"]["energy"]["usedJoules"] == 1_000_000
