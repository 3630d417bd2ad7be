"""Values of environment variables and options are found wherever a template holds them, and hidden wherever quoted."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.controller.passes.hiding import KEPT_SECRETS, remember, secrets_of
from greentrain.core.gang.manifests import build_pod, replica_counts
from greentrain.kube.redaction import find_pod_secrets, find_secrets, redact, redact_beginning
from tests.support.manifests import build_job
from tests.support.snapshots import job_of, worker


def template(**container: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"name": "tensorflow", **container}]}}}


@pytest.mark.parametrize(
    ("container", "found"),
    [
        ({"env": [{"name": "A", "value": "hunter22"}]}, {"hunter22"}),
        ({"env": [{"name": "A", "value": 1234.5678}]}, {"1234.5678"}),
        ({"env": "hunter22"}, {"hunter22"}),
        ({"env": ["hunter22"]}, {"hunter22"}),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "passwords", "key": "a"}}}]}, set()),
        ({"args": ["--token=hunter22"]}, {"hunter22"}),
        ({"args": ["--token", "hunter22"]}, {"hunter22"}),
        ({"args": "--token=hunter22"}, {"--token=hunter22"}),
        ({"command": ["sh", "-c", "login hunter22"]}, {"login hunter22"}),
        ({"command": ["python3", "-m", "greentrain_trainer"], "args": ["digits", "--steps=600000"]}, set()),
        ({"env": [{"name": "A", "value": "/data/train/part-7.csv"}]}, set()),
        ({"env": [{"name": "A", "value": "https://data.example/v2/digits.npz"}]}, set()),
        ({"env": [{"name": "A", "value": "tensorflow.keras"}]}, set()),
        ({"env": [{"name": "S3_TOKEN", "value": "/path/like/secret"}]}, {"/path/like/secret"}),
        ({"env": [{"name": "A", "value": "https://u:p@data.example/x"}]}, {"https://u:p@data.example/x"}),
        ({"args": ["--data=/data/train"]}, set()),
        ({"args": ["--password", "correcthorse"]}, {"correcthorse"}),
        ({"env": [{"name": "LEVEL", "value": "INFO"}, {"name": "PORT", "value": "8080808"}]}, set()),
        ({"env": [{"name": "A", "value": "file:///etc/digits"}, {"name": "B", "value": "a/b:80/c"}]}, set()),
        ({"env": [{"name": "A", "value": "http://data:80/x"}]}, {"http://data:80/x"}),
        ({"env": [{"name": "A", "value": "QUJD/REVG/aaaa="}]}, {"QUJD/REVG/aaaa="}),
        (
            {"env": [{"name": ["A"], "value": "hunter22"}, {"name": {}, "value": "hunter23"}]},
            {"hunter22", "hunter23"},
        ),
    ],
)
def test_what_is_hidden(container: dict[str, Any], found: set[str]) -> None:
    assert find_secrets({"tfReplicaSpecs": {"Worker": template(**container)}}) == found


@pytest.mark.parametrize(
    ("text", "secret", "left"),
    [
        ('Invalid value: "hunter22": no', "hunter22", 'Invalid value: "<hidden>": no'),
        ("postgres://u:hunter22@db", "hunter22", "postgres://u:<hidden>@db"),
        ('Invalid value: "a\\"quoted\\nword"', 'a"quoted\nword', 'Invalid value: "<hidden>"'),
        ("pod digits-worker-0 of digits", "digits", "pod digits-worker-0 of <hidden>"),
        ("nothing of it", "hunter22", "nothing of it"),
    ],
)
def test_how_it_is_hidden(text: str, secret: str, left: str) -> None:
    assert redact(text, frozenset({secret})) == left


def test_of_many_values_each_is_hidden_that_is_there() -> None:
    secrets = frozenset({*(f"secret-{i:04}" for i in range(5_000)), "hunter", 'a"quoted\nword'})
    text = 'secret-0042, secret-4999x, hunters and hunter: "a\\"quoted\\nword"'
    assert redact(text, secrets) == '<hidden>, <hidden>x, hunters and <hidden>: "<hidden>"'


@pytest.mark.parametrize("most", [1, 7, 20, 21, 22, 40, 60, 200])
@pytest.mark.parametrize("length", [6, 7, 30, 500])
def test_of_a_long_text_the_beginning_is_said_and_no_part_of_a_value_at_its_end(
    most: int, length: int
) -> None:
    secret = "hünter2" * 100
    secret = secret[:length]
    text = f"the server says {secret} and {secret} " * 50
    found = redact_beginning(text, frozenset({secret}), most)
    whole = redact(text, frozenset({secret}))
    assert whole.startswith(found)
    assert "hün" not in found
    assert len(found) <= most
    if length < 10:
        assert found == whole[:most]


def test_values_lie_at_any_depth() -> None:
    node: Any = {"env": [{"name": "A", "value": "hunter22"}]}
    for _ in range(50_000):
        node = [node]
    assert find_secrets(node) == {"hunter22"}


def test_a_pod_keeps_what_its_program_may_print_after_the_job_was_edited() -> None:
    def made(generation: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        env = [{"name": "A", "value": f"hunter-{generation}"}]
        manifest = build_job(checkpoint={"volume": {"emptyDir": {}}})
        manifest["spec"]["tfReplicaSpecs"]["Worker"] |= template(env=env)
        spec = GreenTrainingJobSpec.model_validate(manifest["spec"])
        attempt = AttemptStatus(
            number=generation, replicas=replica_counts(spec), start_time="2026-01-01T00:00:00Z"
        )
        return manifest, [build_pod(job_of(manifest), spec, attempt, worker(i)) for i in (0, 1)]

    _, old = made(1)
    manifest, new = made(2)
    job = job_of(manifest, generation=2)
    assert secrets_of(job, [*old, *new]) == {"hunter-1", "hunter-2"}
    assert secrets_of(job, new) == {"hunter-2"}
    # What we set ourselves is in every message: names, addresses, folders.
    assert find_pod_secrets(old) == {"hunter-1"}


def test_what_nobody_can_say_any_more_is_kept_for_a_few_edits_and_no_longer() -> None:
    kept: tuple[frozenset[str], ...] = ()
    for edit in range(100):
        for _ in range(3):  # looked for again and again, as pods come and go
            kept = remember(kept, frozenset({f"hunter-{edit}"}))
    assert frozenset().union(*kept) == {f"hunter-{edit}" for edit in range(100 - KEPT_SECRETS, 100)}
