"""The steps of one pass over a job, in an order that makes a kill between any two of them harmless.

A decision that ends or begins an attempt is stored before a pod is deleted or created; everything else can be decided again
from the cluster's state. A stop is carried out also where it cannot be stored: a job's energy must not depend on what the
API server accepts. A pass is a sequence of requests: each one follows from the answer to the previous one.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.snapshot import Obstacle, Snapshot
from greentrain.core.storing import Refusal, Storing, is_outrun


@dataclass(frozen=True, slots=True)
class FindPods:
    """List the job's pods: there may be some that no watch has reported yet."""


@dataclass(frozen=True, slots=True)
class StoreFirst:
    """Store the status before pods are created or deleted."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Apply:
    """Create and delete what was decided."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class DecideAgain:
    """Decide again by the present state; no decision where the job is gone."""

    obstacles: tuple[Obstacle, ...]
    """Why objects of this pass could not be created."""


@dataclass(frozen=True, slots=True)
class StoreRest:
    """Store the status if its write is due, and schedule the next pass as decided."""

    decision: Decision
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True)
class PassAgain:
    """Begin another pass at once: the snapshot of this one is outdated."""


Step: TypeAlias = FindPods | StoreFirst | Apply | DecideAgain | StoreRest | PassAgain


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a step; only the fields of that kind of step count."""

    found: bool = False
    """Whether `FindPods` has found pods."""
    refusal: Refusal | None = None
    """Why `StoreFirst` has stored nothing; None where it has stored the status."""
    changed: bool = False
    """Whether `Apply` has changed anything in the cluster."""
    obstacles: tuple[Obstacle, ...] = ()
    """What `Apply` could not create."""
    decision: Decision | None = None
    """The decision of `DecideAgain`."""


def walk(
    seen: Snapshot, decision: Decision, storing: Storing, *, failing: bool
) -> Generator[Step, Answer, None]:
    """The steps of a pass with this snapshot and decision; `failing`: the previous pass failed."""
    # A job whose end is not stored yet is not deleted: the end would be lost.
    if decision.record_first or (decision.delete_job and not storing.is_stored(seen.job)):
        if decision.pods and seen.job.status.attempt_count and (yield FindPods()).found:
            yield PassAgain()
            return
        refusal = (yield StoreFirst(decision)).refusal
        if refusal is not None:
            if is_carried_out(decision, refusal, failing=failing):
                storing.keep_unstored(seen.job, decision.status)
                yield Apply(decision)
            return
        # From here the decision is stored; a conflict has ended this pass already.
    outcome = yield Apply(decision)
    if decision.record_first or outcome.changed or outcome.obstacles:
        after = (yield DecideAgain(outcome.obstacles)).decision
        if after is None:
            return
        if after.record_first:
            yield PassAgain()
            return
        decision = after
    yield StoreRest(decision, outcome.obstacles)


def is_carried_out(decision: Decision, refusal: Refusal, *, failing: bool) -> bool:
    """Whether a decision is carried out although it could not be stored: a stop, where waiting does not help.

    Where the API server may accept it soon, storing is tried a second time first. A start is not carried out: its pods would
    be created again and again.
    """
    if decision.pods or decision.delete_job:
        return False
    again = not refusal.passing or failing
    return refusal.refuses_content or (again and not is_outrun(refusal))
