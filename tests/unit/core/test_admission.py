"""Every bad spec is refused by the full path of the field, with its value and the remedy."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from greentrain.api.spec import NOT_BUILT
from greentrain.core.admission import CHECKS, Admitted, Refused, decide_admission
from greentrain.core.seen.snapshot import TemplateProblem
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of


def put(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(manifest)
    node: Any = changed
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return changed


def refusal(manifest: dict[str, Any]) -> str:
    verdict = decide_admission(job_of(manifest))
    assert isinstance(verdict, Refused), "was admitted"
    return verdict.message


CONTAINER = "spec.tfReplicaSpecs.Worker.template.spec.containers.0"
TRAINER = ["python3", "-m", "greentrain_trainer"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.enregy", {"budget": "5kWh"}, "spec.enregy: unknown field; did you mean energy?"),
        (
            "spec.runPolicy.backofLimit",
            3,
            "spec.runPolicy.backofLimit: unknown field; did you mean backoffLimit?",
        ),
        ("spec.tfReplicaSpecs.worker", {}, "spec.tfReplicaSpecs.worker: unknown field; did you mean Worker?"),
        ("spec.tfReplicaSpecs.Worker.replica", 2, "spec.tfReplicaSpecs.Worker.replica: unknown field"),
        ("spec.checkpoint", {"volume": {"emptyDir": {}}, "pth": "x"}, "spec.checkpoint.pth: unknown field"),
        ("spec.tfReplicaSpecs.Worker.replicas", 0, "spec.tfReplicaSpecs.Worker.replicas: 0 is not valid"),
        (
            "spec.tfReplicaSpecs.Worker.replicas",
            "two",
            "spec.tfReplicaSpecs.Worker.replicas: 'two' is not valid",
        ),
        (
            "spec.tfReplicaSpecs.Worker.restartPolicy",
            "Sometimes",
            "spec.tfReplicaSpecs.Worker.restartPolicy: 'Sometimes'",
        ),
        ("spec.tfReplicaSpecs", {}, "spec.tfReplicaSpecs: needs Worker"),
        ("spec.runPolicy.suspend", "yes please", "spec.runPolicy.suspend: 'yes please' is not valid"),
        (
            "spec.tfReplicaSpecs.Chief",
            {"replicas": 2, "template": build_template()},
            "spec.tfReplicaSpecs.Chief.replicas: 2 is not valid: a job has one Chief; set 1",
        ),
        (
            "spec.tfReplicaSpecs.Evaluator",
            {"replicas": 2, "template": build_template()},
            "spec.tfReplicaSpecs.Evaluator.replicas: 2 is not valid: a job has one Evaluator; set 1",
        ),
        (
            "spec.tfReplicaSpecs.Evaluator",
            {"template": build_template(command=["python3", "-m", "greentrain_trainer", "digits"])},
            "spec.tfReplicaSpecs.Evaluator.template: the built-in trainer evaluates within its training loop",
        ),
        (
            "spec.runPolicy.schedulingPolicy",
            {"queue": "a"},
            "spec.runPolicy.schedulingPolicy.queue: gang scheduling: not built yet",
        ),
        (
            "spec.runPolicy.schedulingPolicy",
            {"scheduleTimeout": 3},
            "spec.runPolicy.schedulingPolicy.scheduleTimeout: unknown field; did you mean scheduleTimeoutSeconds?",
        ),
        (
            "spec.runPolicy.activeDeadlineSeconds",
            0,
            "spec.runPolicy.activeDeadlineSeconds: 0 is not valid",
        ),
        (
            "spec.runPolicy.ttlSecondsAfterFinished",
            -1,
            "spec.runPolicy.ttlSecondsAfterFinished: -1 is not valid",
        ),
        (f"{CONTAINER}.name", "main", "['main'] holds no container named tensorflow"),
        ("spec.tfReplicaSpecs.Worker.template", {}, "template.spec.containers: needs a list"),
        (
            f"{CONTAINER}.env",
            [{"name": "TF_CONFIG", "value": "{}"}],
            "env[0].name: 'TF_CONFIG' is set by greentrain",
        ),
        (
            f"{CONTAINER}.ports",
            [{"name": "tfjob-port", "containerPort": 1}],
            "ports[0].containerPort: 1 is not valid",
        ),
        (
            f"{CONTAINER}.command",
            [*TRAINER, "digit"],
            "'digit' is no program of the trainer; use one of digits",
        ),
        (f"{CONTAINER}.command", TRAINER, "the trainer's first argument is its program"),
        (
            "spec.tfReplicaSpecs.Worker.template.spec.hostname",
            "me",
            "spec.hostname: 'me' is set by greentrain",
        ),
        ("metadata.name", "a" * 60, f"makes the host name '{'a' * 60}-worker-1' of 69 characters"),
        ("metadata.name", "1st", "'1st' must start with a letter"),
        ("metadata.name", "a.b", "'a.b' must start with a letter and have only"),
        ("spec.checkpoint", {"volume": {}}, "spec.checkpoint.volume: nothing is not one pod volume source"),
        (
            "spec.checkpoint",
            {"volume": {"emptyDir": {}}, "path": "a/../b"},
            "spec.checkpoint.path: 'a/../b' leaves the volume",
        ),
        (
            "spec.power",
            {"cap": "250"},
            "spec.power.cap: '250' is not valid: write watts from 1W to 10kW, such as 250W or 0.3kW, or a share of",
        ),
        ("spec.power", {"cap": "120%"}, "spec.power.cap: '120%' is not valid: write watts"),
        ("spec.power", {"cup": "250W"}, "spec.power.cup: unknown field; did you mean cap?"),
        ("spec.power", {"budgetPolicy": "Optimize"}, "spec.power.budgetPolicy: 'Optimize' is not valid"),
        (
            "spec.power",
            {"budgetPolicy": "LowerCap"},
            "spec.power.budgetPolicy: 'LowerCap' is not valid without a budget",
        ),
        (
            "spec.power",
            {"policy": "Budget"},
            "spec.power.policy: it is spec.power.budgetPolicy now: write LowerCap there for Budget",
        ),
        (
            "spec.power",
            {"maxSlowdownPercent": 9},
            "spec.power.maxSlowdownPercent: '9' is only for spec.power.budgetPolicy",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_the_remedy(path: str, value: Any, said: str) -> None:
    assert said in refusal(put(build_job(), path, value))


@pytest.mark.parametrize("path", NOT_BUILT)
def test_a_field_of_the_agreed_api_that_is_not_built_yet_is_refused_by_its_full_path(path: str) -> None:
    manifest = put(build_job(), "spec.checkpoint", {"volume": {"emptyDir": {}}})
    message = refusal(put(manifest, path, {"anything": 1}))
    assert f"{path}: " in message
    assert "not built yet" in message
    assert "unknown field" not in message


def test_two_chiefs_by_two_names_are_refused() -> None:
    manifest = build_job()
    for name in ("Chief", "Master"):
        manifest = put(manifest, f"spec.tfReplicaSpecs.{name}", {"template": build_template()})
    assert "Chief and Master are two names of one role" in refusal(manifest)


def test_all_problems_are_named_at_once() -> None:
    manifest = put(put(build_job(), "spec.schedule", {}), "spec.successPolicy", "Most")
    message = refusal(manifest)
    assert "spec.schedule" in message
    assert "spec.successPolicy" in message


def test_a_template_field_no_kubernetes_knows_is_refused() -> None:
    problem = TemplateProblem("spec.tfReplicaSpecs.Worker.template.spec.imagee", "unknown field")
    verdict = decide_admission(job_of(), (problem,))
    assert isinstance(verdict, Refused)
    assert str(verdict.problems[0]) == f"{problem.path}: unknown field"


@pytest.mark.parametrize(
    "words",
    [
        {"command": [*TRAINER, "digits", "--steps=5"]},
        {"command": TRAINER, "args": ["my_package.train:program"]},
        {"command": ["python", "train.py", "anything"]},
        {},
    ],
    ids=["built-in", "own function", "foreign script", "entry point"],
)
def test_programs_that_may_exist_are_admitted(words: dict[str, Any]) -> None:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(**words)
    assert isinstance(decide_admission(job_of(manifest)), Admitted)


def test_checks_do_not_lean_on_each_other() -> None:
    manifest = put(
        build_job("1" * 70), "spec.tfReplicaSpecs.Worker.template", {"spec": {"containers": "none"}}
    )
    job = job_of(manifest)
    from greentrain.api.spec import GreenTrainingJobSpec

    spec = GreenTrainingJobSpec.model_validate(job.spec)
    assert [len(list(check(job, spec))) > 0 for check in CHECKS] == [True, False, True, False, False, False]
