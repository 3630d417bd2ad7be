"""Values that must not be in a job's messages: its containers' environment, which the API server and programs quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from greentrain.api.conditions import MESSAGE_MAX
from greentrain.api.status import AttemptStatus, GreenTrainingJobStatus
from greentrain.core.seen.snapshot import Job
from greentrain.kube.redaction import find_pod_secrets, find_secrets, redact

REPLACED_MESSAGE_MAX = 1024
"""Longest message of a replaced pod, in characters: the schema's bound."""

KEPT_SECRETS = 4
"""Sets of secrets of a job that are kept: those of its present spec and pods, and those before its last three edits."""


def secrets_of(job: Job, pods: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The values of a job's spec, and of pods that may still be reported on, that are kept out of messages."""
    return (find_secrets(job.spec) | find_pod_secrets(pods)) - {job.name, job.namespace}


def remember(before: tuple[frozenset[str], ...], found: frozenset[str]) -> tuple[frozenset[str], ...]:
    """The last different sets of secrets that were found, `KEPT_SECRETS` of them: else they would grow without end."""
    return (*(known for known in before if known != found), found)[-KEPT_SECRETS:]


def without_secrets(status: GreenTrainingJobStatus, secrets: frozenset[str]) -> GreenTrainingJobStatus:
    """The status with these values hidden in its messages, which quote the API server and the container's last lines."""
    if not secrets:
        return status
    conditions = tuple(
        c.model_copy(update={"message": redact(c.message, secrets)[:MESSAGE_MAX]}) for c in status.conditions
    )
    return status.model_copy(
        update={"conditions": conditions, "attempts": tuple(_without(a, secrets) for a in status.attempts)}
    )


def _without(attempt: AttemptStatus, secrets: frozenset[str]) -> AttemptStatus:
    replaced = tuple(
        r.model_copy(update={"message": redact(r.message, secrets)[:REPLACED_MESSAGE_MAX]})
        for r in attempt.replaced
    )
    message = attempt.message and redact(attempt.message, secrets)[:MESSAGE_MAX]
    return attempt.model_copy(update={"message": message, "replaced": replaced})
