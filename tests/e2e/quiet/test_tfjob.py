"""TFJob manifests of every shape, converted by the command line and run to their end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from greentrain.api.names import LABEL_POD_SECURITY, POD_SECURITY_PRIVILEGED
from sandbox.images import ROOT
from tests.e2e.conftest import Bench
from tests.e2e.jobs import PLAIN_IMAGE, condition

Json = dict[str, Any]

EXAMPLES = sorted((ROOT / "examples/tfjob").glob("*.yaml"))
CLAIM = "training"
"""The sandbox's one claim, made from examples/digits.yaml; its files belong to uid 10001."""


def convert(example: Path) -> list[Json]:
    """What `greentrain convert` prints."""
    command = [sys.executable, "-m", "greentrain.cli", "convert", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def move_in(body: Json, namespace: str) -> Json:
    """Fit an object to the sandbox: its namespace, its one image and claim, one node for every rank's host port."""
    meta = body["metadata"]
    meta["namespace"] = namespace
    if "generateName" in meta:
        meta["name"] = f"{meta.pop('generateName')}e2e"
    for role in body.get("spec", {}).get("tfReplicaSpecs", {}).values():
        pod_spec = role["template"]["spec"]
        pod_spec.pop("hostNetwork", None)
        pod_spec.pop("dnsPolicy", None)
        for container in pod_spec["containers"]:
            container |= {"image": PLAIN_IMAGE, "imagePullPolicy": "IfNotPresent"}
            container["resources"] = {"requests": {"cpu": "10m", "memory": "300Mi"}}
        for volume in pod_spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                volume["persistentVolumeClaim"]["claimName"] = CLAIM
                pod_spec["securityContext"] |= {"runAsUser": 10001}
    return body


@pytest.fixture
def converted(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Json]:
    """The job of an example, its other objects applied before it."""
    objects = [move_in(b, bench.namespace) for b in convert(request.param)]
    job = next(b for b in objects if b["kind"] == "GreenTrainingJob")
    rest = [b for b in objects if b["kind"] not in ("GreenTrainingJob", "PersistentVolumeClaim")]
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        for role in job["spec"]["tfReplicaSpecs"].values()
        if (name := role["template"]["spec"].get("serviceAccountName"))
    ]
    rest += accounts
    if accounts:  # what an administrator does where jobs may have service accounts of their own
        label = f"{LABEL_POD_SECURITY}={POD_SECURITY_PRIVILEGED}"
        bench.cluster.run_kubectl("label", "namespace", bench.namespace, label, "--overwrite")
    if rest:
        bench.apply(*rest)
    yield job
    for body in (job, *rest):
        bench.kubectl("delete", body["kind"], body["metadata"]["name"], "--ignore-not-found", "--wait")


@pytest.mark.parametrize("converted", EXAMPLES, indirect=True, ids=lambda p: p.stem)
def test_a_converted_tfjob_runs_to_its_end(bench: Bench, converted: Json) -> None:
    name = converted["metadata"]["name"]
    bench.apply(converted)
    if converted["spec"].get("runPolicy", {}).get("suspend"):
        seen = bench.until_condition(name, "Suspended", seconds=60)
        assert "attempts" not in seen["status"] or not seen["status"]["attempts"]
        bench.kubectl("patch", "gtj", name, "--type=merge", '-p={"spec":{"runPolicy":{"suspend":false}}}')
    seen = bench.until_condition(name, "Succeeded", seconds=240)
    assert seen["status"]["attemptCount"] == 1, seen["status"]["attempts"]
    assert condition(seen, "Failed")["status"] == "False"
    roles = {t: r.get("replicas", 1) for t, r in converted["spec"]["tfReplicaSpecs"].items()}
    assert set(seen["status"]["replicaStatuses"]) == set(roles)
