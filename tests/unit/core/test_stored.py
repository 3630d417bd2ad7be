"""A stored status is read by sections, and a ledger that cannot be read is never taken for an empty one."""

from __future__ import annotations

from typing import Any

import pytest

from greentrain.core.snapshot import parse_job, parse_status
from greentrain.kube.apply import dump_status
from tests.support.manifests import build_job
from tests.unit.core.test_throttle import Throttled

Json = dict[str, Any]


@pytest.fixture(scope="module")
def stored() -> Json:
    """The status of a job that has run for a while, as it is stored."""
    job = Throttled("1MWh")
    job.begin()
    job.train(most_seconds=300)
    return dump_status(job.status)


def change(status: Any, path: str, value: Any) -> Any:
    """The status with another value at a path of keys and positions."""
    here, _, rest = path.partition(".")
    if isinstance(status, list):
        return [change(v, rest, value) if str(i) == here and rest else v for i, v in enumerate(status)]
    return {**status, here: change(status[here], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("phase", 5),
        ("phase", "a word that is longer than this version stores"),
        ("display", {"cap": "x" * 200}),
        ("replicaStatuses", {"Worker": {"active": -1}}),
        ("projection.exceeds", "Perhaps"),
        ("projection", []),
        ("power", {"cap": "x" * 2000}),
    ],
)
def test_what_is_concluded_again_counts_as_none_and_the_ledger_is_read(
    stored: Json, path: str, value: Any
) -> None:
    status, unreadable = parse_status(change(stored, path, value))
    known, _ = parse_status(stored)
    assert unreadable == ""
    assert (status.energy, status.attempts, status.attempt_count) == (known.energy, known.attempts, 1)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("attempts.0.successPolicy", "Quorum", "status.attempts[0].successPolicy: "),
        ("attempts.0.reason", "x" * 65, "status.attempts[0].reason: "),
        ("attempts", {"1": {}}, "status.attempts: "),
        ("attemptCount", "many", "status.attemptCount: "),
        ("failureCount", -1, "status.failureCount: "),
        ("energy.budget.onExhausted", "Checkpoint", "status.energy.budget.onExhausted: "),
        ("energy.pods.0.gpuJoules", "12kWh", "status.energy.pods[0].gpuJoules: "),
        ("energy.scope", "Rack", "status.energy.scope: "),
        ("energy", "1kWh", "status.energy: "),
        ("conditions.0.status", "Maybe", "status.conditions[0].status: "),
        ("progress", {"step": -1}, "status.progress.step: "),
        ("runPolicy", {"backoffLimit": 3, "backoffPolicy": "Linear"}, "status.runPolicy.backoffPolicy: "),
    ],
)
def test_a_ledger_that_cannot_be_read_is_said_by_its_path(
    stored: Json, path: str, value: Any, said: str
) -> None:
    manifest = build_job()
    body = {**manifest, "metadata": {**manifest["metadata"], "namespace": "team", "uid": "uid-1"}}
    job = parse_job({**body, "status": change(stored, path, value)})
    assert job.unreadable.startswith(said)
    assert str(value) not in job.unreadable.removeprefix(said)


@pytest.mark.parametrize("raw", [None, {}, {"somethingNew": {"a": 1}}])
def test_a_job_without_a_status_is_a_new_one(raw: Json | None) -> None:
    status, unreadable = parse_status(raw)
    assert (status.attempt_count, unreadable) == (0, "")
