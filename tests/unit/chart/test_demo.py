"""Where the demo runs, what it says of a job, and what it applies to a cluster that is not the sandbox."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from greentrain.api.reasons import Reason
from sandbox import demo, images, node, release
from sandbox.demo import Target
from sandbox.shell import SandboxError
from sandbox.state import Sandbox

SANDBOX = Target("greentrain-sandbox", "default")


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({}, SANDBOX),
        ({"KUBECONFIG": "/root/production", "GREENTRAIN_CONTEXT": ""}, SANDBOX),
        ({"IMAGE_REPOSITORY": "registry.example.org/x"}, SANDBOX),
        (
            {"GREENTRAIN_CONTEXT": "prod", "IMAGE_REPOSITORY": "registry.example.org/x/"},
            Target("prod", "greentrain-demo", "registry.example.org/x"),
        ),
        (
            {
                "GREENTRAIN_CONTEXT": "prod",
                "IMAGE_REPOSITORY": "registry.example.org/x",
                "GREENTRAIN_NAMESPACE": "ml",
                "GREENTRAIN_STORAGE_CLASS": "nfs",
            },
            Target("prod", "ml", "registry.example.org/x", "nfs"),
        ),
        (
            {
                "GREENTRAIN_CONTEXT": "prod",
                "IMAGE_REPOSITORY": "registry.example.org/x",
                "GREENTRAIN_AGENT": "1",
            },
            Target("prod", "greentrain-demo", "registry.example.org/x", agent=True),
        ),
        (
            {
                "GREENTRAIN_CONTEXT": "prod",
                "IMAGE_REPOSITORY": "registry.example.org/x",
                "GREENTRAIN_AGENT": "0",
            },
            Target("prod", "greentrain-demo", "registry.example.org/x"),
        ),
    ],
)
def test_it_runs_in_the_sandbox_unless_a_context_is_named(environ: dict[str, str], target: Target) -> None:
    assert demo.parse_target(environ) == target


def test_a_context_without_a_repository_is_refused_with_the_remedy() -> None:
    with pytest.raises(SandboxError, match="IMAGE_REPOSITORY"):
        demo.parse_target({"GREENTRAIN_CONTEXT": "prod"})


@pytest.mark.parametrize("said", ["true", "yes", "2"])
def test_whether_agents_are_wanted_is_not_guessed(said: str) -> None:
    environ = {"GREENTRAIN_CONTEXT": "prod", "IMAGE_REPOSITORY": "registry.example.org/x"}
    with pytest.raises(SandboxError, match="GREENTRAIN_AGENT"):
        demo.parse_target({**environ, "GREENTRAIN_AGENT": said})


def test_the_example_is_applied_as_it_stands_in_the_sandbox() -> None:
    text = demo.MANIFEST.read_text()
    assert demo.build_manifest(text, SANDBOX, "unused") == text


@pytest.mark.parametrize("storage_class", [None, "nfs"])
def test_elsewhere_it_names_that_clusters_image_and_storage(storage_class: str | None) -> None:
    target = Target("prod", "ml", "registry.example.org/x", storage_class)
    text = demo.build_manifest(demo.MANIFEST.read_text(), target, "registry.example.org/x/trainer:a1")
    assert "image: registry.example.org/x/trainer:a1" in text
    assert "localhost/" not in text
    assert ("  storageClassName: nfs\n" in text) == (storage_class is not None)
    assert "\n  storageClassName: greentrain-sandbox" not in text
    assert demo.GPU not in text


def test_elsewhere_it_asks_for_gpus_where_agents_are_asked_for() -> None:
    target = Target("prod", "ml", "registry.example.org/x", agent=True)
    assert demo.GPU in demo.build_manifest(demo.MANIFEST.read_text(), target, "x:1")


def test_an_example_that_was_changed_is_not_applied_elsewhere_half_replaced() -> None:
    with pytest.raises(SandboxError, match="does not say"):
        demo.build_manifest("kind: GreenTrainingJob\n", Target("prod", "ml", "registry.example.org/x"), "x:1")


def job(**status: Any) -> dict[str, Any]:
    """A job with this status."""
    return {"metadata": {"name": "digits"}, "status": status}


def condition(kind: str, status: str, message: str = "", reason: str = "Because") -> dict[str, str]:
    """A condition as the API server returns it."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("found", "line", "finished", "failed"),
    [
        ({"metadata": {}}, "waiting for the operator", False, False),
        (
            job(phase="Starting", display={"reason": "Starting", "workers": "1/2", "energy": "<unknown>"}),
            "Starting, workers 1/2",
            False,
            False,
        ),
        (
            job(phase="Starting", display={"reason": "ImageUnavailable", "workers": "0/2", "cap": "<none>"}),
            "Starting (ImageUnavailable), workers 0/2",
            False,
            False,
        ),
        (
            job(
                phase="Running",
                display={"workers": "2/2", "energy": "1.2Wh"},
                attemptCount=2,
                progress={
                    "step": 120,
                    "totalSteps": 600,
                    "percent": 20,
                    "metrics": {"loss": "0.31", "accuracy": "0.91"},
                    "checkpoint": {"step": 100},
                },
            ),
            "Running, workers 2/2, attempt 2, step 120 of 600 (20 %), accuracy 0.91, loss 0.31, checkpoint at 100, energy 1.2Wh",
            False,
            False,
        ),
        (job(phase="Succeeded", conditions=[condition("Succeeded", "True")]), "Succeeded", True, False),
        (
            job(phase="Failed", conditions=[condition("Failed", "True", "worker 0: boom")]),
            "Failed",
            True,
            True,
        ),
        (job(phase="Refused", conditions=[condition("Admitted", "False", "spec.x")]), "Refused", True, True),
        (job(phase="Running", conditions=[condition("Failed", "Unknown")]), "Running", False, False),
    ],
)
def test_a_job_is_told_in_one_line(found: dict[str, Any], line: str, finished: bool, failed: bool) -> None:
    view = demo.build_view(found)
    assert (view.line, view.finished, view.failed) == (line, finished, failed)


@pytest.mark.parametrize(
    ("conditions", "notes"),
    [
        (
            [condition("PodsReady", "False", "0/1 nodes available", "Unschedulable")],
            ("PodsReady: 0/1 nodes available",),
        ),
        ([condition("PodsReady", "False", "1 of 2 pods ready", "Starting")], ()),
        ([condition("PodsReady", "True", "all ready")], ()),
        (
            [condition("Restarting", "True", "worker 1 exited with 137")],
            ("Restarting: worker 1 exited with 137",),
        ),
        ([condition("Running", "True", "training")], ()),
    ],
)
def test_conditions_that_are_out_of_order_speak_up(
    conditions: list[dict[str, str]], notes: tuple[str, ...]
) -> None:
    assert demo.build_view(job(phase="x", conditions=conditions)).notes == notes


def test_every_trouble_is_a_reason_the_operator_gives() -> None:
    assert set(demo.TROUBLES) <= {reason.value for reason in Reason}


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("localhost/greentrain/operator:a1", ("localhost/greentrain/operator", "a1")),
        ("registry.example.org:5000/x/operator:a1", ("registry.example.org:5000/x/operator", "a1")),
    ],
)
def test_an_image_is_split_at_its_tag(reference: str, parts: tuple[str, str]) -> None:
    assert release.split_reference(reference) == parts


def test_a_registrys_port_is_not_taken_for_a_tag() -> None:
    with pytest.raises(ValueError, match="has no tag"):
        release.split_reference("registry.example.org:5000/x/operator")


def test_chart_values_keep_their_types() -> None:
    assert release.build_arguments({"b": 2, "a.c": "x", "d": ["y"], "e": True}) == [
        '--set-json=a.c="x"',
        "--set-json=b=2",
        '--set-json=d=["y"]',
        "--set-json=e=true",
    ]


OPERATOR = {"image.repository": "localhost/greentrain/operator", "image.tag": "a1"}


@pytest.mark.parametrize(
    ("agent", "more", "values"),
    [
        (None, {}, OPERATOR | {"agent.enabled": False}),
        (
            "localhost/greentrain/agent:b2",
            {},
            OPERATOR
            | {
                "agent.namespace": "greentrain-agent",
                "agent.image.repository": "localhost/greentrain/agent",
                "agent.image.tag": "b2",
            },
        ),
        (
            None,
            {"agent.enabled": True, "logLevel": "debug"},
            OPERATOR | {"agent.enabled": True, "logLevel": "debug"},
        ),
    ],
)
def test_without_an_agents_image_the_release_has_no_agents(
    agent: str | None, more: dict[str, object], values: dict[str, object]
) -> None:
    assert release.build_values("localhost/greentrain/operator:a1", agent, more) == values


def test_each_node_of_the_sandbox_has_a_journal_of_its_own() -> None:
    journal = PurePosixPath(str(demo.SANDBOX_VALUES["agent.journal.hostPath"]))
    assert any(journal.is_relative_to(folder) for folder in node.OVERLAID_FOLDERS.values())


def test_room_is_asked_for_what_is_still_to_be_built_and_started(tmp_path: Path) -> None:
    place = Sandbox(tmp_path / "sandbox")
    one, two = (
        {need.what: need.disk for need in demo.gather_needs(tmp_path, place, count, images.SHIPPED)}
        for count in (1, 2)
    )
    assert one["building the images"] == two["building the images"] == images.DISK
    assert two["the sandbox"] == 2 * one["the sandbox"]
