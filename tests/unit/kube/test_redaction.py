"""Values of environment variables and options are found wherever a template holds them, and hidden wherever quoted."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.kube.redaction import find_secrets, redact


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
