"""The progress of a job: what its program reported, added to what was known."""

from __future__ import annotations

from greentrain.api.runtime import Progress
from greentrain.api.status import AttemptStatus, CheckpointStatus, ProgressStatus
from greentrain.core.gang.judge import finished_ranks
from greentrain.core.gang.manifests import deciding_rank
from greentrain.core.seen.snapshot import Snapshot


def reports(seen: Snapshot, attempt: AttemptStatus) -> tuple[Progress, ...]:
    """All reports of the attempt's program, the deciding rank's first."""
    pods = [p for p in (*seen.pods, *seen.last_states) if p.attempt == attempt.number]
    first = deciding_rank(attempt.replicas) if attempt.replicas else None
    pods.sort(key=lambda p: (p.rank != first, p.rank))
    final = [p.termination for p in pods if p.termination is not None]
    return (*final, *([seen.progress] if seen.progress is not None else []))


def fold_progress(
    old: ProgressStatus | None, seen: Snapshot, attempt: AttemptStatus
) -> ProgressStatus | None:
    """The furthest report of this attempt, added to what was known; a confirmed checkpoint is never dropped."""
    said = reports(seen, attempt)
    if not said:
        return old
    # max keeps the first of equals: a termination message before the polled answer.
    latest = max(said, key=lambda p: p.step)
    metrics = {k: format_metric(v) for k, v in sorted(latest.metrics.items())} or (old.metrics if old else {})
    total = latest.total_steps if latest.total_steps is not None else (old.total_steps if old else None)
    return ProgressStatus(
        step=latest.step,
        total_steps=total,
        percent=min(100, latest.step * 100 // total) if total else None,
        metrics=metrics,
        checkpoint=_furthest(
            [*_confirmed(seen, attempt), *_said(seen), *([old.checkpoint] if old and old.checkpoint else [])]
        ),
        confirmed_checkpoint=_furthest(
            [
                *_confirmed(seen, attempt),
                *([old.confirmed_checkpoint] if old and old.confirmed_checkpoint else []),
            ]
        ),
        model_path=next((p.model_path for p in said if p.model_path), old.model_path if old else None),
    )


def _confirmed(seen: Snapshot, attempt: AttemptStatus) -> list[CheckpointStatus]:
    """Checkpoints that the attempt's termination messages name; an exit code alone names none."""
    pods = (p for p in (*seen.pods, *seen.last_states) if p.attempt == attempt.number)
    saved = (p.termination.checkpoint for p in pods if p.termination is not None)
    return [CheckpointStatus(step=c.step, path=c.path, confirmed=True) for c in saved if c is not None]


def _said(seen: Snapshot) -> list[CheckpointStatus]:
    """The checkpoint that the running program last reported."""
    saved = seen.progress.checkpoint if seen.progress is not None else None
    return [CheckpointStatus(step=saved.step, path=saved.path)] if saved is not None else []


def _furthest(candidates: list[CheckpointStatus]) -> CheckpointStatus | None:
    return max(candidates, key=lambda c: (c.step, c.confirmed), default=None)


def format_metric(value: float) -> str:
    """A metric as a decimal string: a status contains no floats (API conventions)."""
    return f"{value:.6g}"


def last_step(seen: Snapshot, attempt: AttemptStatus) -> int | None:
    """The furthest global step that this attempt reported."""
    return max((p.step for p in reports(seen, attempt)), default=attempt.last_step)


def fold_finished(attempt: AttemptStatus, seen: Snapshot) -> AttemptStatus:
    """Record which ranks have finished while the attempt runs: their pods may be deleted before it ends.

    The deciding rank has also finished if it was asked to stop, exited with 0, and had reported on `/progress` that all
    steps are done.
    """
    pods = [p for p in (*seen.pods, *seen.last_states) if p.attempt == attempt.number]
    finished = finished_ranks(attempt, pods)
    if attempt.replicas and seen.progress is not None and seen.progress.all_steps_done:
        first = deciding_rank(attempt.replicas)
        finished |= {p.rank for p in pods if p.rank == first and p.ended and p.exit_code == 0}
    names_ = tuple(map(str, sorted(finished)))
    return (
        attempt if names_ == attempt.finished_ranks else attempt.model_copy(update={"finished_ranks": names_})
    )


def fold_steps(attempt: AttemptStatus, seen: Snapshot) -> AttemptStatus:
    """The attempt with the steps its program reported."""
    said = reports(seen, attempt)
    if not said:
        return attempt
    start = next((p.start_step for p in said if p.step > 0 or p.start_step > 0), attempt.start_step)
    step = last_step(seen, attempt) if attempt.end_time is not None else attempt.last_step
    return attempt.model_copy(update={"start_step": start, "last_step": step})
