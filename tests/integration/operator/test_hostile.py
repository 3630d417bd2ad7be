"""Whatever one job holds, the others go through their lives, and the operator does too."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from greentrain.controller.run import Operator, running
from greentrain.controller.settings import Settings
from tests.support.api import JOBS, MERGE, RefusedError, Server, container_status
from tests.support.manifests import build_job, build_template

Json = dict[str, Any]

HOLE = "@"
"""What a test puts where a text comes that Python itself could not write."""

LONGEST_CALLBACK_SECONDS = 2.0

AT = "spec.tfReplicaSpecs.Worker.template"
DEEP = {
    # 2.7 KB: more than the 1,000 levels of Python's decoder.
    "lists": "[" * 1350 + "]" * 1350,
    "maps": '{"a":' * 1350 + "1" + "}" * 1350,
    # The API server stores 10,000 levels.
    "deepest": "[" * 9_900 + "]" * 9_900,
    # Python reads these, and then stumbles over them.
    "half-as-deep": "[" * 400 + "]" * 400,
}


def fill(body: Json, text: str) -> str:
    return json.dumps(body).replace(f'"{HOLE}"', text)


def with_affinity(affinity: Any, name: str) -> Json:
    manifest = build_job(name)
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["affinity"] = affinity
    return manifest


async def until_refused(server: Server, namespace: str, name: str, *words: str) -> None:
    """By its event: the job itself may be too deep for a test to read."""

    async def said() -> list[str]:
        events = await server.events(namespace)
        return [
            e["message"]
            for e in events
            if e["reason"] == "InvalidSpec" and e["involvedObject"]["name"] == name
        ]

    await server.until(
        said, lambda found: any(all(w in m for w in words) for m in found), what=f"{name} refused: {words}"
    )


@contextlib.asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """Fails where a callback of this event loop, and so of the operator in it, takes longer than it may."""
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            begun = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - begun)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
    assert longest < LONGEST_CALLBACK_SECONDS


@contextlib.asynccontextmanager
async def sound(operator: Operator) -> AsyncIterator[None]:
    """Fails where a watch has ended by itself: all of them are opened again then, and changes come late."""
    yield
    assert b'greentrain_watch_openings_total{cause="start"} 1.0' in operator.telemetry.render()
    assert b'cause="ended"' not in operator.telemetry.render()


async def begin(server: Server, namespace: str, name: str) -> dict[str, Json]:
    """A job whose pods run."""
    await server.create_job(namespace, build_job(name))
    wanted = {f"{name}-worker-{i}-1" for i in range(2)}
    pods: dict[str, Json] = await server.until(
        lambda: server.pods(namespace), lambda found: wanted <= set(found), what=f"the pods of {name}"
    )
    for pod in wanted:
        await server.run_pod(namespace, pod)
    await server.until_condition(namespace, name, "Running", "True")
    return pods


async def end(server: Server, namespace: str, name: str) -> None:
    """Its program is done."""
    for i in (1, 0):
        await server.end_pod(namespace, f"{name}-worker-{i}-1", 0)
    await server.until_condition(namespace, name, "Succeeded", "True")


async def test_jobs_too_deep_to_be_read_are_refused_by_path_and_no_other_notices(
    server: Server, namespace: str, settings: Settings
) -> None:
    jobs = JOBS.format(namespace)
    async with responsive():
        async with running(settings) as operator, sound(operator):
            await begin(server, namespace, "before")
            for name, text in DEEP.items():
                await server.send("POST", jobs, fill(with_affinity(HOLE, name), text))
            for name in DEEP:
                path = f"{AT}.spec.affinity{'.a.a' if name == 'maps' else '[0][0]'}"
                await until_refused(server, namespace, name, path, "is more than 64 levels deep")
            await end(server, namespace, "before")
            await begin(server, namespace, "across")
        async with running(settings) as operator, sound(operator):
            await end(server, namespace, "across")
            await begin(server, namespace, "after")
            await end(server, namespace, "after")
            made = {name.rpartition("-worker-")[0] for name in await server.pods(namespace)}
            assert made == {"before", "across", "after"}
            for name in DEEP:
                await server.send("DELETE", f"{jobs}/{name}", "{}")


async def test_an_edit_that_makes_a_running_job_too_deep_leaves_its_attempt_alone(
    server: Server, namespace: str, settings: Settings
) -> None:
    template = {"spec": {"affinity": HOLE}}
    patch = {"spec": {"tfReplicaSpecs": {"Worker": {"template": template}}}}
    job = f"{JOBS.format(namespace)}/digits"
    async with running(settings) as operator, sound(operator):
        pods = await begin(server, namespace, "digits")
        await server.send("PATCH", job, fill(patch, DEEP["lists"]), content_type=MERGE)
        await until_refused(
            server, namespace, "digits", f"{AT}.spec.affinity[0][0]", "goes on as it was started"
        )
    async with running(settings):
        await begin(server, namespace, "other")
        found = await server.pods(namespace)
        for name, pod in pods.items():
            assert found[name]["metadata"]["uid"] == pod["metadata"]["uid"]
            assert "deletionTimestamp" not in found[name]["metadata"]
        await server.send("PATCH", job, fill(patch, "null"), content_type=MERGE)
        await server.until_condition(namespace, "digits", "Admitted", "True")
        await end(server, namespace, "digits")


def with_template(name: str, template: Json, **role: Any) -> Json:
    manifest = build_job(name)
    manifest["spec"]["tfReplicaSpecs"]["Worker"] |= {"template": template, **role}
    return manifest


def with_env(name: str, value: str) -> Json:
    return with_template(name, build_template(env=[{"name": "A", "value": value}]))


def with_metadata(name: str, **fields: Any) -> Json:
    manifest = build_job(name)
    manifest["metadata"] |= fields
    return manifest


def with_grace(name: str, seconds: Any) -> Json:
    template = build_template()
    template["spec"]["terminationGracePeriodSeconds"] = seconds
    return with_template(name, template)


def with_gpus(name: str, count: Any) -> Json:
    return with_template(name, build_template(resources={"limits": {"nvidia.com/gpu": count}}))


UNKNOWN: Json = {f"field{i:05}": "x" for i in range(5_000)}

HOSTILE: list[tuple[Json, str]] = [
    (with_env("slashes", "/" * 130_000 + "="), f"{AT}: is 127."),
    (with_env("base64", "QUJD/" * 200_000 + "="), "spec: is 976."),
    (with_template("large", build_template(args=["x" * 193_000]), replicas=1024), f"{AT}: is 188."),
    (
        with_template("many", build_template(args=["x" * 40_000]), replicas=1024),
        "1024 pods from these templates",
    ),
    (build_job("unknown", **UNKNOWN), "4990 more unknown fields"),
    (with_template("misspelt", build_template(**{f"f{i}": 1 for i in range(1_500)})), "1490 more problems"),
    (with_grace("for-ever", "1" + "0" * 9), f"{AT}.spec.terminationGracePeriodSeconds: '1000000000' is not"),
    (with_grace("half", 0.5), f"{AT}.spec.terminationGracePeriodSeconds: 0.5 is not valid"),
    (with_gpus("no-number", "many"), "resources.limits['nvidia.com/gpu']: 'many' is not valid"),
    (with_gpus("too-many", 10**20), "resources.limits['nvidia.com/gpu']: "),
    (with_metadata("labels", labels={f"k{i:08}": "x" * 63 for i in range(5_600)}), "metadata: is "),
    (with_metadata("note", finalizers=[f"e.example/{i:060}" for i in range(4_000)]), "metadata: is "),
]


async def test_jobs_of_any_size_are_refused_by_path_while_a_healthy_one_goes_through_its_life(
    server: Server, namespace: str, settings: Settings
) -> None:
    async with responsive():
        async with running(settings):
            await begin(server, namespace, "healthy")
            for manifest, _ in HOSTILE:
                await server.create_job(namespace, manifest)
            for manifest, words in HOSTILE:
                await until_refused(server, namespace, manifest["metadata"]["name"], words)
        async with running(settings):
            await end(server, namespace, "healthy")
            assert set(await server.pods(namespace)) <= {f"healthy-worker-{i}-1" for i in range(2)}
    for manifest, _ in HOSTILE:
        path = f"{JOBS.format(namespace)}/{manifest['metadata']['name']}"
        await server.call("PATCH", path, {"metadata": {"finalizers": None}}, content_type=MERGE)
        await server.call("DELETE", path)


async def test_a_wide_job_is_made_whole(server: Server, namespace: str, settings: Settings) -> None:
    """More pods than there are connections, each with the addresses of all."""
    async with running(settings):
        await server.create_job(namespace, build_job("wide", workers=70))
        pods = await server.until_pods(namespace, {f"wide-worker-{i}-1" for i in range(70)})
    for i in (0, 69):
        env = {e["name"]: e.get("value") for e in pods[f"wide-worker-{i}-1"]["spec"]["containers"][0]["env"]}
        config = json.loads(env["TF_CONFIG"])
        assert len(config["cluster"]["worker"]) == 70
        assert config["task"] == {"type": "worker", "index": i}


DATES = {
    "zero": "0000-06-01T00:00:00Z",
    "unknown": "1970-01-01T00:00:00Z",
    "last": "9999-12-31T23:59:59Z",
    "beyond": "9999-12-31T23:59:59-12:00",  # stored as of the year 10000
}
GRACES = {"longest": 2**62, "ages": 10**9}


async def test_no_date_and_no_grace_period_keeps_a_job_from_being_stopped(
    server: Server, namespace: str, settings: Settings
) -> None:
    """A kubelet writes a pod's times; whoever may delete a pod says with what grace period, and the server takes any."""

    def state_of(name: str, state: str, **more: Any) -> Json:
        date = DATES.get(name, "2026-01-01T00:00:00Z")
        found = container_status(
            "Running" if state == "running" else "Failed", {state: {"startedAt": date, **more}}
        )
        stop = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        return {**found, "conditions": [{**stop, "lastTransitionTime": date}]}

    async def live(name: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}-worker-0-1"
        await server.until_condition(namespace, name, "Created", "True")
        await server.until(lambda: server.pods(namespace), lambda pods: f"{name}-worker-0-1" in pods)
        await server.run_pod(namespace, f"{name}-worker-0-1")
        await server.set_pod_status(namespace, f"{name}-worker-0-1", state_of(name, "running"))
        await server.until_condition(namespace, name, "Running", "True")
        if name in GRACES:
            await server.call("DELETE", path, {"gracePeriodSeconds": GRACES[name]})
        await server.patch_job(namespace, name, {"spec": {"runPolicy": {"suspend": True}}})
        await server.until_condition(namespace, name, "Suspended", "False", "StoppingPods")
        ended = state_of(name, "terminated", exitCode=0, finishedAt=DATES.get(name))
        await server.set_pod_status(namespace, f"{name}-worker-0-1", ended)
        # The operator's own deletion of a pod that has ended removes it at once.
        with contextlib.suppress(RefusedError):
            await server.remove_pod(namespace, f"{name}-worker-0-1")
        await server.until_condition(namespace, name, "Suspended", "True")

    names = [*DATES, *GRACES]
    async with running(settings) as operator:
        for name in names:
            manifest = build_job(name, workers=1, runPolicy={"activeDeadlineSeconds": 315_360_000})
            await server.create_job(namespace, manifest)
        await begin(server, namespace, "healthy")
        await asyncio.gather(*map(live, names))
        await end(server, namespace, "healthy")
        assert b"greentrain_reconcile_failing{" not in operator.telemetry.render()
