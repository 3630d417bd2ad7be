"""The images hold what they run and no more, and run as nobody special."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.release import NAMESPACE as RELEASE_NAMESPACE
from tests.e2e.conftest import Bench

LOOK = (
    "import importlib.util as u, json, os, shutil;"
    "names = ('tensorflow', 'keras', 'kopf', 'kubernetes', 'pip', 'pytest');"
    "print(json.dumps({'uid': os.getuid(), 'modules': [n for n in names if u.find_spec(n)],"
    "'tools': [t for t in ('gcc', 'cc', 'pip', 'uv') if shutil.which(t)]}))"
)


def look_inside(bench: Bench, image: str) -> dict[str, Any]:
    """What a Python in the image sees, by way of a pod that is removed again."""
    name = "look-inside"
    bench.kubectl(
        *("run", name, "--restart=Never", f"--image={image}", "--image-pull-policy=IfNotPresent"),
        *("--command", "--", "python3", "-c", LOOK),
    )
    try:
        # Not by attaching to it: what a container says that ends before one is attached is lost at times.
        bench.until(
            lambda: bench.read("pod", name)["status"]["phase"],
            lambda phase: phase in ("Succeeded", "Failed"),
            seconds=180,
            what=f"a look into {image} is done",
        )
        found: dict[str, Any] = json.loads(bench.kubectl("logs", name))
        return found
    finally:
        bench.kubectl("delete", "pod", name, "--wait", "--now")


@pytest.mark.parametrize(
    ("which", "modules"), [("operator", ["kopf", "kubernetes"]), ("trainer", ["tensorflow", "keras"])]
)
def test_an_image_holds_what_it_runs_and_no_more(bench: Bench, which: str, modules: list[str]) -> None:
    image = bench.operator_image() if which == "operator" else "localhost/greentrain/trainer:dev"
    assert look_inside(bench, image) == {"uid": 10001, "modules": modules, "tools": []}


def test_the_operator_runs_under_the_restricted_pod_security_standard(bench: Bench) -> None:
    pod = bench.operator_pod()
    assert pod["metadata"]["namespace"] == RELEASE_NAMESPACE
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"]["type"] == "RuntimeDefault"
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
