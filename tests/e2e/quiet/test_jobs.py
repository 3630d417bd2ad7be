"""Jobs as a user runs them, on real kubelets, containers and TensorFlow."""

from __future__ import annotations

from typing import Any

import yaml

from greentrain_trainer.programs.digits import evaluate_saved_model
from sandbox.images import ROOT
from tests.e2e.conftest import Bench
from tests.e2e.jobs import condition, long, name_of

Json = dict[str, Any]


def test_digits_succeeds_and_its_saved_model_is_as_good_as_it_says(bench: Bench, digits: Json) -> None:
    name = name_of(digits)
    bench.apply(digits)
    job = bench.until_condition(name, "Succeeded", seconds=300)
    said = float(job["status"]["progress"]["metrics"]["accuracy"])
    inside = job["status"]["progress"]["modelPath"]
    model = bench.sandbox.volume / inside.removeprefix("/checkpoints/")
    measured = evaluate_saved_model(model)
    assert measured >= 0.95
    assert abs(measured - said) < 1e-3
    row = bench.kubectl("get", "gtj", name).splitlines()
    assert row[0].split() == [
        "NAME",
        "STATE",
        "REASON",
        "WORKERS",
        "PROGRESS",
        "ENERGY",
        "BUDGET",
        "CO2E",
        "AGE",
    ]
    assert row[1].split()[1:5] == ["Succeeded", "<none>", "2/2", "100%"]
    assert job["status"]["attemptCount"] == 1
    described = bench.kubectl("describe", "gtj", name)
    # With its spec, its events and the energy and emissions of two GPUs.
    assert len(described.splitlines()) <= 185
    for word in ("Created", "Running", "Succeeded"):
        assert word in described[described.index("Events:") :]


def test_a_plain_user_image_with_its_own_script_succeeds(bench: Bench) -> None:
    job = yaml.safe_load((ROOT / "examples/own-script/job.yaml").read_text())
    bench.apply(job)
    seen = bench.until_condition(name_of(job), "Succeeded", seconds=300)
    assert condition(seen, "Checkpointed")["reason"] == "NoVolume"
    bench.kubectl("delete", "gtj", name_of(job), "--wait")


def test_suspend_saves_and_resume_ends_where_an_uninterrupted_run_does(
    bench: Bench, digits: Json, uninterrupted: str
) -> None:
    name = name_of(digits)
    bench.apply(long(digits))
    bench.until_step(name, 40)
    bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":true}}}')
    job = bench.until_condition(name, "Suspended")
    saved = job["status"]["progress"]["checkpoint"]
    assert saved["step"] >= 40
    assert not bench.read("pods", "-l", f"greentrain.dev/job-name={name}")["items"]
    bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":false}}}')
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["reason"], first.get("countedAgainst")) == ("SuspendRequested", None)
    assert saved["confirmed"]
    assert second["startStep"] == saved["step"]
    assert job["status"]["failureCount"] == 0
    assert bench.last_weights(name) == uninterrupted


def test_a_worker_killed_9_restarts_the_gang_which_ends_where_an_uninterrupted_run_does(
    bench: Bench, digits: Json, uninterrupted: str
) -> None:
    name = name_of(digits)
    bench.apply(long(digits))
    bench.until_step(name, 40)
    victim = bench.read("pod", f"{name}-worker-1-1")
    bench.kill_container(victim["metadata"]["uid"], "greentrain_trainer")
    job = bench.until_condition(name, "Restarting", reason="Killed")
    assert "worker-1 was killed by SIGKILL (exit code 137)" in condition(job, "Restarting")["message"]
    job = bench.until_condition(name, "Succeeded", seconds=300)
    first, second = job["status"]["attempts"]
    assert (first["exitCode"], first["countedAgainst"]) == (137, "backoffLimit")
    assert second["startStep"] > 0
    assert second["startStep"] % 20 == 0
    assert job["status"]["failureCount"] == 1
    assert bench.last_weights(name) == uninterrupted


def test_pods_that_cannot_start_say_why_in_the_jobs_conditions(bench: Bench, digits: Json) -> None:
    name = name_of(digits)
    container = digits["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["image"] = "localhost/greentrain/no-such-image:dev"
    bench.apply(digits)
    job = bench.until_condition(name, "PodsReady", "False", reason="ImageUnavailable", seconds=90)
    assert "no-such-image" in condition(job, "PodsReady")["message"]
    container["image"] = "localhost/greentrain/trainer:dev"
    container["resources"] = {"requests": {"cpu": "999"}}
    bench.kubectl("delete", "gtj", name, "--wait")
    bench.apply(digits)
    job = bench.until_condition(name, "PodsReady", "False", reason="Unschedulable", seconds=90)
    assert "Insufficient cpu" in condition(job, "PodsReady")["message"]


def test_a_service_of_our_name_that_is_not_ours_is_left_alone(bench: Bench, digits: Json) -> None:
    """The operator reads it by its name, a right that it uses for nothing else."""
    name = name_of(digits)
    spec = {"clusterIP": "None", "ports": [{"port": 80}]}
    bench.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    bench.apply(digits)
    bench.until_condition(name, "Admitted", "False", reason="NameTaken", seconds=60)
    assert "ownerReferences" not in bench.read("service", name)["metadata"]


def test_a_job_that_asks_for_more_than_baseline_begins_when_its_namespace_is_opened(
    bench: Bench, digits: Json
) -> None:
    name = name_of(digits)
    container = digits["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"capabilities": {"drop": ["ALL"], "add": ["SYS_NICE"]}}
    bench.apply(digits)
    job = bench.until_condition(name, "Admitted", "False", reason="InvalidSpec", seconds=60)
    assert "capabilities.add[0]: 'SYS_NICE' is more" in condition(job, "Admitted")["message"]
    label = "greentrain.dev/pod-security=privileged"
    bench.cluster.run_kubectl("label", "namespace", bench.namespace, label)
    bench.until_condition(name, "Created", seconds=60)
