"""What passes over a job remember from one to the next; all of it may be lost with the process.

It spaces out requests, and keeps what could not be stored at once. All that a restart needs is in the job's status.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client import Gauge

from greentrain.api.runtime import Progress
from greentrain.controller.passes.hiding import remember, secrets_of
from greentrain.core.seen.snapshot import Job
from greentrain.core.status.events import Event
from greentrain.core.storing import Storing
from greentrain.kube.cache import Cache, Key
from greentrain.kube.redaction import pod_group, redact
from greentrain.quantities import Joules

logger = logging.getLogger("greentrain.controller")


@dataclass(slots=True)
class WaitingEvent:
    """An event that is not stored yet; its time makes its name, so that a retry cannot double it."""

    job: Job
    event: Event
    moment: datetime
    tries: int = 0


@dataclass(slots=True)
class Memory:
    """What is remembered of one job."""

    storing: Storing = field(default_factory=Storing)
    asked: float = float("-inf")
    """When the program was last asked how far it is, by a monotonic clock."""
    unanswered: int = 0
    """How many times in a row it has not answered."""
    last_report: datetime | None = None
    """The last report at the time of the request to the program."""
    sampled: datetime | None = None
    """When the program gave the answer that is not stored yet."""
    sampled_joules: Joules | None = None
    """What the job had used by then."""
    progress: Progress | None = None
    progress_attempt: int = 0
    events: list[WaitingEvent] = field(default_factory=list)
    """Events to be stored."""
    refused: tuple[str, int, float] | None = None
    """UID and generation of the job whose status was refused, and when its last event was; None once a status is stored."""
    stalled: tuple[str, int, float] | None = None
    """The same of the last event on the condition Stalled."""
    secrets: frozenset[str] = frozenset()
    secrets_of: tuple[str, int, frozenset[tuple[str, str]]] | None = None
    """For what secrets were found last: UID and generation of the job, role and attempt of its pods."""
    earlier_secrets: tuple[frozenset[str], ...] = ()
    """The last few sets of secrets, the latest last: a message may be about a pod deleted a moment ago."""

    def find_secrets(self, cache: Cache, key: Key, job: Job) -> None:
        """Find the secrets of the spec and of the pods that may still be reported on; those of the last few edits stay."""
        pods = [*cache.owned("Pod", key, job.uid), *cache.last_states(key, job.uid)]
        mark = (job.uid, job.generation, frozenset(map(pod_group, pods)))
        if self.secrets_of != mark:
            self.secrets_of = mark
            self.earlier_secrets = remember(self.earlier_secrets, secrets_of(job, pods))
            self.secrets = frozenset().union(*self.earlier_secrets)


class Memories:
    """The memories of all jobs, and the log, which hides every job's secrets."""

    def __init__(self) -> None:
        self._known: dict[Key, Memory] = {}

    def of(self, key: Key) -> Memory:
        """The memory of one job."""
        return self._known.setdefault(key, Memory())

    def forget(self, key: Key) -> None:
        """The job was deleted."""
        self._known.pop(key, None)

    def secrets(self, key: Key) -> frozenset[str]:
        """What must not be in a message about a job."""
        known = self._known.get(key)
        return known.secrets if known is not None else frozenset()

    def log(self, level: int, key: Key, text: str, **fields: Any) -> None:
        """Write a line about a job."""
        where = {"namespace": key.namespace, "job": key.name, **fields}
        logger.log(level, redact(text, self.secrets(key)), extra=where)


def mark_job(gauge: Gauge, key: Key, *, on: bool) -> None:
    """Set a job's gauge to 1, or remove it."""
    if on:
        gauge.labels(key.namespace, key.name).set(1)
    else:
        with contextlib.suppress(KeyError):
            gauge.remove(key.namespace, key.name)
