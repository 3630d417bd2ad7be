"""The steps of one pass over a job, in the order that makes a kill between any two of them harmless.

A decision that ends or begins an attempt is stored before a pod is deleted or created; everything else can be concluded again
from what is there. A stop is carried out also where it cannot be stored: what a job uses must not hang on what the API server
takes. A pass is a sequence of requests: the next one follows from the answer to the last.
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
    """List the job's pods: whether there are some that no watch has brought yet."""


@dataclass(frozen=True, slots=True)
class StoreFirst:
    """Store the status before anything is done."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Apply:
    """Create and delete what was decided."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class DecideAgain:
    """Decide by what is there now; no decision where the job is gone."""

    obstacles: tuple[Obstacle, ...]
    """What kept the effects of this pass from being applied."""


@dataclass(frozen=True, slots=True)
class StoreRest:
    """Store the status if it is worth a write by now, and look again when the decision says so."""

    decision: Decision
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True)
class PassAgain:
    """Begin another pass at once: this one rests on what is no longer so."""


Step: TypeAlias = FindPods | StoreFirst | Apply | DecideAgain | StoreRest | PassAgain


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a step; of each step only its own part counts."""

    found: bool = False
    """Whether `FindPods` has found pods."""
    refusal: Refusal | None = None
    """Why `StoreFirst` has stored nothing."""
    changed: bool = False
    """Whether anything in the cluster is different since `Apply`."""
    obstacles: tuple[Obstacle, ...] = ()
    """What `Apply` could not make."""
    decision: Decision | None = None
    """That of `DecideAgain`."""


def walk(
    seen: Snapshot, decision: Decision, storing: Storing, *, failing: bool
) -> Generator[Step, Answer, None]:
    """The steps of a pass that saw this and decided that; `failing`: the pass before it failed."""
    # With the job its end would be gone, where that could not be stored yet.
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
        # Effects belong to the job as it is now stored; a conflict has ended this pass already.
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

    Where the server is only in trouble for a moment the record is tried a second time first. A start is not carried out: its
    pods would be made again and again.
    """
    if decision.pods or decision.delete_job:
        return False
    again = not refusal.passing or failing
    return refusal.refuses_content or (again and not is_outrun(refusal))
