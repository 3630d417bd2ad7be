"""How an attempt of a synchronous gang is going, judged from its pods.

The end of one rank ends the others (TensorFlow's collectives cannot lose a member), so many exits come at once and in any
order. An attempt is therefore judged once all ranks have ended or a settle window has passed. Its cause is the earliest exit
that is not a consequence of another. `docs/reference/restarts.md` has the matrix, and `tests/unit/core/test_matrix.py` tests
its cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import assert_never

from greentrain.api.reasons import Reason
from greentrain.api.runtime import EXIT_PEER_LOST, EXIT_STOPPED
from greentrain.api.spec import RestartPolicy, SuccessPolicy
from greentrain.api.status import AttemptStatus, CountedAgainst
from greentrain.core.gang.manifests import deciding_rank, gang, ranks
from greentrain.core.seen.pods import DEADLINE_EXCEEDED, NO_REASON, Disruption, Pod, PodState, Rank

SETTLE = timedelta(seconds=30)
"""How long the other ranks have to end after the first failure: three times the default peer timeout."""

SETTLE_SILENT = timedelta(seconds=75)
"""How long they have instead where a rank neither ends nor shows a reason. Kubernetes marks the pods of a node that is gone
after up to 55 seconds: a grace period of 50, checked every 5. The exits of the other ranks may come first."""

LAST_RANKS = timedelta(seconds=2)
"""How long success waits for the other ranks' exits, which usually follow within a second: so one status has them all."""

STOP_ROOM = timedelta(seconds=1)
"""A program has ended by itself only if it ended more than this before a stop was requested. Kubernetes reports both times in
whole seconds, one of them by the node's clock."""

FINISH_GRACE = timedelta(seconds=5)
"""How long the other ranks may run on after the job's success, before they are deleted."""


class CauseKind(Enum):
    """What ended an attempt, as restart policies distinguish it."""

    PROGRAM = "program"
    """The program's own failure: exit code 1–127, or a container that cannot be started."""
    SIGNAL = "signal"
    """Exit code 128 and above: killed, stopped, out of memory."""
    PEER_LOST = "peer lost"
    """Every rank reports that another was lost, and none shows why."""
    INFRASTRUCTURE = "infrastructure"
    """The pod was deleted, evicted, preempted, refused, or lost with its node."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt, or one pod outside the gang, ended without success."""

    rank: Rank
    kind: CauseKind
    reason: Reason
    message: str
    exit_code: int | None = None

    @property
    def counts_against(self) -> CountedAgainst:
        """The limit of spec.runPolicy that it counts against."""
        program = self.kind in (CauseKind.PROGRAM, CauseKind.SIGNAL)
        return "backoffLimit" if program else "infrastructureRestartLimit"


@dataclass(frozen=True, slots=True)
class Ongoing:
    """No rank has failed; some may not have started yet."""


@dataclass(frozen=True, slots=True)
class Settling:
    """A rank failed; until `due` the others may show an earlier failure."""

    cause: Cause
    due: datetime


@dataclass(frozen=True, slots=True)
class Finishing:
    """The success rule is met; the other ranks have until `due` to end too."""

    due: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """The success rule is met."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The attempt is over without success."""

    cause: Cause


_NONE: Mapping[Rank, Pod] = {}


def judge(
    attempt: AttemptStatus,
    pods: Mapping[Rank, Pod],
    *,
    gone: Mapping[Rank, Pod] = _NONE,
    broken_since: datetime | None,
    now: datetime,
) -> Ongoing | Settling | Finishing | Done | Broken:
    """Judge the gang of an attempt that has not ended.

    `gone` has the last states of pods that are gone: how a pod ended counts, whether or not the pod still exists.
    `broken_since` is when a failure was first recorded, by the operator's own clock: nodes' clocks and pods that are gone
    give no time to count from. A rank without a pod, after all had started, is lost.
    """
    known = {**gone, **pods}
    done = finished_ranks(attempt, known.values())
    seats = gang(attempt.replicas)
    if success_met(attempt, done):
        finished = max((p.finished for p in known.values() if p.exit_code == 0 and p.finished), default=None)
        everyone_down = all(r in done or (r in known and known[r].ended) for r in seats)
        # A time in the future comes from a wrong clock of a node: it is not waited for.
        if everyone_down or finished is None or not finished <= now < finished + LAST_RANKS:
            return Done()
        return Finishing(finished + LAST_RANKS)
    seats = tuple(r for r in seats if r not in done)
    started = attempt.running_time is not None
    missing = {r: _gone(r, gone.get(r), started=started) for r in seats if r not in pods}
    there = [pods[r] for r in seats if r in pods]
    failures = [cause_of(p) for p in there if failed(p) or _lost(p)]
    failures += [c for c in missing.values() if c is not None]
    if not failures:
        return Ongoing()
    # A pod that has not ended has not failed, but it may be why the others failed.
    suspects = [c for p in there if (c := _suspicion(p)) is not None]
    cause = earliest([*failures, *suspects], known)
    silent = next((p for p in there if p.state is PodState.RUNNING and _suspicion(p) is None), None)
    if cause.kind is CauseKind.PEER_LOST and silent is not None:
        cause = replace(
            cause, rank=silent.rank, message=f"{silent.rank} does not answer{_at(silent)}: {cause.message}"
        )
    due = until(broken_since or now, SETTLE if silent is None else SETTLE_SILENT, now=now)
    everyone_down = all(
        pods[r].ended or pods[r].unreachable if r in pods else missing[r] is not None for r in seats
    )
    return Broken(cause) if everyone_down or now >= due else Settling(cause, due)


def until(since: datetime, window: timedelta, *, now: datetime) -> datetime:
    """The end of a window that began at `since`; now, where the clock was set back by more than the window."""
    return now if since - now > window else since + window


def finished_ranks(attempt: AttemptStatus, pods: Iterable[Pod]) -> frozenset[Rank]:
    """Ranks whose program ended with success, as seen now or as recorded: their pods may be gone since."""
    noted = frozenset(attempt.finished_ranks)
    known = frozenset(r for r in ranks(attempt.replicas) if str(r) in noted)
    return known | {p.rank for p in pods if succeeded(p)}


def success_met(attempt: AttemptStatus, done: Set[Rank]) -> bool:
    """TFJob's rule: the chief, else worker 0, has exited with 0; under AllWorkers every rank of the gang has."""
    match attempt.success_policy:
        case SuccessPolicy.ALL_WORKERS:
            return done >= set(gang(attempt.replicas))
        case SuccessPolicy.DEFAULT:
            return deciding_rank(attempt.replicas) in done
        case _:
            assert_never(attempt.success_policy)


def succeeded(pod: Pod) -> bool:
    """Whether the pod's program ended with 0 by itself, or reports that all its steps are done.

    A program that was asked to stop may answer SIGTERM with 0: that is a stop. `docs/reference/restarts.md` has the rule.
    """
    if pod.state is not PodState.EXITED or pod.exit_code != 0:
        return False
    if not pod.stop_requested or _ended_before_stop(pod):
        return True
    return pod.termination is not None and pod.termination.all_steps_done


def _ended_before_stop(pod: Pod) -> bool:
    """Whether the program had ended before its stop was requested; of two requests the earlier one counts."""
    requests = [r for r in (pod.deletion_requested, pod.node_stop_requested) if r is not None]
    known = len(requests) == pod.terminating + pod.stopped_by_node
    return known and pod.finished is not None and pod.finished + STOP_ROOM < min(requests)


def failed(pod: Pod) -> bool:
    """Whether the pod ended without its program's success."""
    return pod.ended and not succeeded(pod)


def _lost(pod: Pod) -> bool:
    """Whether a pod that has not ended is lost with its node: its deletion is requested but not carried out."""
    return not pod.ended and pod.terminating and (pod.unreachable or pod.disruption is Disruption.NODE_LOST)


_DISRUPTIONS = {
    Disruption.EVICTED: (Reason.EVICTED, "was evicted"),
    Disruption.PREEMPTED: (Reason.PREEMPTED, "was preempted by a pod of higher priority"),
    Disruption.NODE_LOST: (Reason.NODE_LOST, "was lost with its node"),
}

_NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
"""containerd's and docker's reasons for a container whose command could not be started."""


def cause_of(pod: Pod) -> Cause:
    """Why a failed pod ended."""
    code, rank = pod.exit_code, pod.rank
    who = f"{rank}'s init container {pod.init_container}" if pod.init_container else f"{rank}"
    words = pod.termination.reason if pod.termination else _last_line_first(pod.log_tail)
    said = f": {words.strip()}" if words.strip() else ""
    where = _at(pod)
    if pod.unreachable:
        text = f"{rank}: its node stopped answering{where}"
        return Cause(rank, CauseKind.INFRASTRUCTURE, Reason.NODE_LOST, text)
    if pod.disruption is not None:
        reason, what = _DISRUPTIONS[pod.disruption]
        why = f": {pod.disruption_message}" if pod.disruption_message else said
        return Cause(rank, CauseKind.INFRASTRUCTURE, reason, f"{rank} {what}{where}{why}", code)
    if pod.exit_reason == DEADLINE_EXCEEDED:
        text = f"{rank} ran longer than its template's activeDeadlineSeconds allows{said}"
        return Cause(rank, CauseKind.PROGRAM, Reason.PROGRAM_FAILED, text, code)
    if pod.state is PodState.FAILED or code is None:
        if pod.terminating and pod.exit_reason == NO_REASON:
            # The kubelet has removed the container before it reported its end.
            text = f"{rank}: its pod was deleted{where}"
            return Cause(rank, CauseKind.INFRASTRUCTURE, Reason.POD_LOST, text)
        text = f"{rank} failed without an exit code, {pod.exit_reason}{where}{said}"
        return Cause(rank, CauseKind.INFRASTRUCTURE, Reason.POD_FAILED, text)
    if pod.stop_requested and not _ended_before_stop(pod):
        text = f"{rank}: its pod was deleted{said}"
        return Cause(rank, CauseKind.INFRASTRUCTURE, Reason.POD_LOST, text, code)
    if code == EXIT_PEER_LOST and not pod.init_container:
        return Cause(rank, CauseKind.PEER_LOST, Reason.PEER_LOST, f"{rank} lost a peer{said}", code)
    if code == EXIT_STOPPED and not pod.init_container:
        return Cause(rank, CauseKind.SIGNAL, Reason.STOPPED, f"{who} was stopped by SIGTERM{said}", code)
    if pod.exit_reason == "OOMKilled":
        text = f"{who} ran out of memory (raise its memory limit){said}"
        return Cause(rank, CauseKind.SIGNAL, Reason.OUT_OF_MEMORY, text, code)
    if pod.exit_reason in _NOT_STARTED:
        text = f"{who if pod.init_container else f'{rank}: its container'} could not be started{said}"
        return Cause(rank, CauseKind.PROGRAM, Reason.CONTAINER_NOT_STARTED, text, code)
    if code >= 128:
        return Cause(rank, CauseKind.SIGNAL, Reason.KILLED, f"{who} {_signal(code)}{said}", code)
    return Cause(rank, CauseKind.PROGRAM, Reason.PROGRAM_FAILED, f"{who} exited with {code}{said}", code)


def _at(pod: Pod) -> str:
    return f" (node {pod.node})" if pod.node else ""


def _last_line_first(tail: str) -> str:
    """A program's last lines as a message, the last one first: kubectl shows one line, and a traceback ends with the error."""
    *before, last = [line for line in tail.splitlines() if line.strip()] or [""]
    return "\n".join([last.strip(), "its last lines:", *before, last]) if before else last


def _signal(code: int) -> str:
    known = {
        130: "SIGINT",
        134: "SIGABRT",
        135: "SIGBUS",
        136: "SIGFPE",
        137: "SIGKILL",
        139: "SIGSEGV",
        143: "SIGTERM",
    }
    return f"was killed by {known[code]} (exit code {code})" if code in known else f"exited with {code}"


def _gone(rank: Rank, last: Pod | None, *, started: bool) -> Cause | None:
    """Why a rank has no pod, by the pod's last state; None where it had not started, and is simply created again."""
    if last is not None and last.ended:
        return cause_of(last)
    if not started:
        return None
    if last is not None and (last.disruption is not None or last.unreachable):
        return cause_of(last)  # removed before its kubelet reported its end
    return Cause(rank, CauseKind.INFRASTRUCTURE, Reason.POD_LOST, f"{rank}: its pod was deleted while it ran")


def _suspicion(pod: Pod) -> Cause | None:
    """Why a pod that has not ended may be the cause of the other ranks' failures; None where it is not."""
    if pod.ended:
        return None
    if pod.disruption is not None or pod.unreachable:
        return cause_of(pod)
    if pod.terminating:
        where = f" on node {pod.node}, which may not answer" if pod.node else ""
        text = f"{pod.rank}: its pod is being deleted{where}"
        return Cause(pod.rank, CauseKind.INFRASTRUCTURE, Reason.POD_LOST, text)
    if pod.stuck is not None:
        text = f"{pod.rank} never started: {pod.waiting_message or pod.waiting_reason}"
        return Cause(pod.rank, CauseKind.INFRASTRUCTURE, pod.stuck, text)
    return None


_NEVER_STARTED = frozenset({Reason.IMAGE_UNAVAILABLE, Reason.UNSCHEDULABLE, Reason.CONTAINER_NOT_STARTED})


def earliest(causes: list[Cause], pods: Mapping[Rank, Pod]) -> Cause:
    """The cause of an attempt's end; the order in which exits were seen does not matter.

    A consequence (peer lost) counts only where there is no other cause. A pod that is gone without an end has no end time:
    it counts as the reason for the stops of the others, but not for a program's own failure.
    """
    program_failed = any(c.kind is CauseKind.PROGRAM for c in causes)
    disturbed = any(c.kind is CauseKind.INFRASTRUCTURE and c.reason not in _NEVER_STARTED for c in causes)

    def order(cause: Cause) -> tuple[int, float, Rank]:
        pod = pods.get(cause.rank)
        moment = pod.finished.timestamp() if pod is not None and pod.finished else 0.0
        if cause.kind is CauseKind.PEER_LOST:
            return (3, moment, cause.rank)
        if cause.kind is CauseKind.INFRASTRUCTURE and cause.reason in _NEVER_STARTED:
            return (2, moment, cause.rank)
        # An agreed stop is a consequence of the pod that was asked to stop: one that is gone or being deleted.
        follows_a_stop = cause.reason is Reason.STOPPED and disturbed
        cleared_away = cause.reason is Reason.POD_LOST and program_failed
        return (int(follows_a_stop or cleared_away), moment, cause.rank)

    return min(causes, key=order)


def retries(cause: Cause, policy: RestartPolicy) -> bool:
    """Whether the restart policy of the failed rank allows another attempt."""
    match cause.kind:
        case CauseKind.INFRASTRUCTURE | CauseKind.PEER_LOST:
            return True
        case CauseKind.SIGNAL:
            return _RETRIES_SIGNAL[policy]
        case CauseKind.PROGRAM:
            return _RETRIES_PROGRAM[policy]
        case _:
            assert_never(cause.kind)


_RETRIES_SIGNAL = {
    RestartPolicy.NEVER: False,
    RestartPolicy.ON_FAILURE: True,
    RestartPolicy.ALWAYS: True,
    RestartPolicy.EXIT_CODE: True,
}
"""Whether a program that was killed is restarted."""

_RETRIES_PROGRAM = {
    RestartPolicy.NEVER: False,
    RestartPolicy.ON_FAILURE: True,
    RestartPolicy.ALWAYS: True,
    RestartPolicy.EXIT_CODE: False,
}
"""Whether a program that failed by itself is restarted: exit codes 1 to 127."""
