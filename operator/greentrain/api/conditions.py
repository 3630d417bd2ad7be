"""Condition types and reasons of a GreenTrainingJob, and how one is set.

Types and reasons are API: people `kubectl wait` on them and alert on them. Rules follow
kubernetes/community `api-conventions.md`: the list is keyed by type, `Unknown` where nothing is known,
and `lastTransitionTime` moves only when the status does.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from greentrain.api.runtime import clean_text
from greentrain.api.v1alpha1 import Condition

ConditionStatus = Literal["True", "False", "Unknown"]


class Type(StrEnum):
    """Condition types, in the order they are shown."""

    ADMITTED = "Admitted"
    CREATED = "Created"
    PODS_READY = "PodsReady"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    CHECKPOINTED = "Checkpointed"
    POWER_CAPPED = "PowerCapped"
    ENERGY_METERED = "EnergyMetered"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STALLED = "Stalled"


class Reason(StrEnum):
    """CamelCase reasons; the message beside them is for people."""

    # Admitted
    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    APPLIES_AT_NEXT_ATTEMPT = "AppliesAtNextAttempt"
    # lifecycle
    ATTEMPT_CREATED = "AttemptCreated"
    STARTING = "Starting"
    ALL_READY = "AllReady"
    TRAINING = "Training"
    WAITING_FOR_OLD_PODS = "WaitingForOldPods"
    BACKING_OFF = "BackingOff"
    SUSPENDED = "SuspendRequested"
    SUSPENDING = "StoppingPods"
    RESUMED = "Resumed"
    FINISHED = "Finished"
    SUCCEEDED = "Succeeded"
    ACTIVE = "Active"
    # why pods are not ready
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    CREATE_REFUSED = "CreateRefused"
    STATUS_REFUSED = "StatusRefused"
    # Stalled
    RECONCILE_FAILING = "ReconcileFailing"
    LEDGER_UNREADABLE = "LedgerUnreadable"
    RECONCILED = "Reconciled"
    POD_TERMINATING = "PodTerminating"
    # why an attempt ended
    PROGRAM_FAILED = "ProgramFailed"
    KILLED = "Killed"
    OUT_OF_MEMORY = "OutOfMemory"
    STOPPED = "Stopped"
    PEER_LOST = "PeerLost"
    POD_LOST = "PodLost"
    EVICTED = "Evicted"
    POD_FAILED = "PodFailed"
    SPEC_CHANGED = "SpecChanged"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    INFRASTRUCTURE_RESTART_LIMIT_EXCEEDED = "InfrastructureRestartLimitExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    SCHEDULE_TIMEOUT = "ScheduleTimeout"
    # EnergyMetered
    METERED = "Metered"
    NO_GPU = "NoGPU"
    NO_READINGS = "NoReadings"
    READINGS_STOPPED = "ReadingsStopped"
    LAST_WORD_MISSING = "LastWordMissing"
    # BudgetExhausted
    WITHIN_BUDGET = "WithinBudget"
    BUDGET_WARNING = "BudgetWarning"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    ALLOWANCE_SPENT = "AllowanceSpent"
    WILL_BE_EXHAUSTED = "WillBeExhausted"
    NO_BUDGET = "NoBudget"
    NO_INTENSITY = "NoIntensity"
    # PowerCapped: those of NodePower's GPUs (`api.nodepower.CapReason`), and these
    CAPPED = "Capped"
    CLAMPED = "Clamped"
    PRIOR_LOWER = "PriorLower"
    APPLYING = "Applying"
    CONTESTED = "Contested"
    DRY_RUN = "DryRun"
    MIG_MODE = "MigMode"
    SHARED = "Shared"
    UNSUPPORTED = "Unsupported"
    NOT_PERMITTED = "NotPermitted"
    OUT_OF_RANGE = "OutOfRange"
    NO_JOURNAL = "NoJournal"
    GPU_LOST = "GpuLost"
    GPU_FAILING = "GpuFailing"
    PAUSED = "Paused"
    NOT_HELD = "NotHeld"
    NO_AGENT = "NoAgent"
    NO_CAP = "NoCap"
    # Checkpointed
    NO_VOLUME = "NoVolume"
    NOT_YET = "NotYet"
    SAVED = "Saved"


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of that type, or None where it was never set."""
    return next((c for c in conditions if c.type == str(type_)), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition stands at True; a missing one does not."""
    found = find_condition(conditions, type_)
    return found is not None and found.status == "True"


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: str,
    generation: int,
) -> tuple[Condition, ...]:
    """Return the conditions with that one set, in the order of `Type`.

    An unchanged condition keeps its object, so that a pass that finds nothing new writes nothing.
    """
    message = clean_text(message)[:MESSAGE_MAX]  # it may quote a user's words
    old = find_condition(conditions, type_)
    if (
        old is not None
        and old.status == status
        and old.reason == str(reason)
        and old.message == message
        and old.observed_generation == generation
    ):
        return conditions
    same_status = old is not None and old.status == status
    new = Condition(
        type=str(type_),
        status=status,
        reason=str(reason),
        message=message,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old is not None and same_status else now,
    )
    order = {t.value: i for i, t in enumerate(Type)}
    rest = [c for c in conditions if c.type != str(type_)]
    return tuple(sorted([*rest, new], key=lambda c: order.get(c.type, len(order))))


MESSAGE_MAX = 2048
"""Longest condition message, in characters; the schema bounds it too."""
