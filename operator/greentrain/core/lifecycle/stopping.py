"""The one protocol by which a gang is stopped, whatever the reason.

Every rank gets SIGTERM; the ranks agree on a step and save it as a checkpoint. The attempt stays open until every rank has
ended, so that its final report is still read. A gang that met its success rule before the stop has succeeded.
"""

from __future__ import annotations

from greentrain.api.conditions import MESSAGE_MAX
from greentrain.api.spec import GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.core.gang.judge import Done, Finishing, judge
from greentrain.core.lifecycle.attempts import end_attempt
from greentrain.core.lifecycle.decision import Decision, stop_all
from greentrain.core.lifecycle.ends import fail, succeed
from greentrain.core.lifecycle.outcomes import Fail, Restart, Stop, Wait
from greentrain.core.lifecycle.passing import Pass


def stop_attempt(
    this: Pass, spec: GreenTrainingJobSpec | None, attempt: AttemptStatus, stop: Stop
) -> Decision:
    """Begin a stop, or continue it; `spec` is None where it was refused."""
    seen, writer, then = this.seen, this.writer, stop.then
    if spec is not None:
        writer.admit(spec)
    if _has_succeeded(this, attempt):
        return succeed(this, attempt)
    if any(not p.ended for p in seen.pods_of(attempt.number).values()):
        begun = attempt.reason == stop.reason
        update = {"reason": str(stop.reason), "message": stop.message[:MESSAGE_MAX] or None}
        stopping = attempt.model_copy(update=update)
        writer.stopping(stop.reason, stop.message)
        writer.count_pods(stopping)
        return Decision(writer.finish(stopping), deletions=stop_all(seen), record_first=not begun)
    ended = end_attempt(attempt, stop.reason, stop.message, now=this.now)
    match then:
        case Fail():
            return fail(this, ended, then)
        case Wait():
            writer.wait(then.reason, then.message, then.next_step)
        case Restart():
            writer.restarting(ended, then.message)
    return Decision(writer.finish(ended), deletions=stop_all(seen), record_first=True)


def _has_succeeded(this: Pass, attempt: AttemptStatus) -> bool:
    pods, gone = this.seen.pods_of(attempt.number), this.seen.gone_of(attempt.number)
    return isinstance(judge(attempt, pods, gone=gone, broken_since=None, now=this.now), Done | Finishing)
