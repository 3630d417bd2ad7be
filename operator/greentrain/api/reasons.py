"""Every reason that a condition of a GreenTrainingJob can have, in one table.

A row has what the reason does to the phase, whether it makes an event, whether the log has a line for it, and what its reader
does next. Reasons are API: users alert on them, and the column REASON shows one. `docs/reference/reasons.md` is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType


class Severity(Enum):
    """The type of the event that a condition with this reason makes."""

    SILENT = "none"
    """No event: it passes by itself, or another condition reports it."""
    NORMAL = "Normal"
    WARNING = "Warning"


class Phase(StrEnum):
    """The values of the column STATE. Only Succeeded and Failed are final, and only those two are a contract."""

    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    DEGRADED = "Degraded"
    RESTARTING = "Restarting"
    STOPPING = "Stopping"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    REFUSED = "Refused"
    UNKNOWN = "Unknown"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class About:
    """What a reason means to its reader."""

    severity: Severity = Severity.SILENT
    phase: Phase | None = None
    """The phase of a job that is on hold or stopped for it; None where its conditions alone decide it."""
    waits: bool = False
    """Whether the log has a line when pods are not ready for it."""
    next_step: str = ""
    """What its reader does next, in one sentence without a full stop; empty where there is nothing to do."""


_WARNED = About(Severity.WARNING)


def _waits(next_step: str, severity: Severity = Severity.SILENT, phase: Phase | None = None) -> About:
    return About(severity, phase, waits=True, next_step=next_step)


def _stuck(next_step: str) -> About:
    return _waits(next_step, Severity.WARNING)


def _suspends(next_step: str) -> About:
    return About(Severity.NORMAL, Phase.SUSPENDED, next_step=next_step)


class Reason(StrEnum):
    """CamelCase reasons; the message beside them has the numbers."""

    about: About

    def __new__(cls, word: str, about: About = About()) -> Reason:
        """A reason by its name."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.about = about
        return member

    # Admitted
    VALID = "Valid"
    INVALID_SPEC = (
        "InvalidSpec",
        About(Severity.WARNING, next_step="correct the field that the message names and apply again"),
    )
    NAME_TAKEN = (
        "NameTaken",
        About(
            Severity.WARNING,
            next_step="delete or rename the object that the message names; it is not the job's",
        ),
    )
    APPLIES_AT_NEXT_ATTEMPT = (
        "AppliesAtNextAttempt",
        About(
            Severity.NORMAL, next_step="nothing; to have it at once set spec.runPolicy.suspend, then unset it"
        ),
    )
    # the life of an attempt
    ATTEMPT_CREATED = "AttemptCreated"
    STARTING = "Starting", About(next_step="nothing; its pods are being scheduled and started")
    ALL_READY = "AllReady"
    TRAINING = "Training"
    WAITING_FOR_OLD_PODS = (
        "WaitingForOldPods",
        _waits("the next attempt starts when they are gone"),
    )
    BACKING_OFF = (
        "BackingOff",
        _waits("nothing; status.attempts says why the last ones failed"),
    )
    SUSPEND_REQUESTED = (
        "SuspendRequested",
        _suspends("set spec.runPolicy.suspend to false to go on"),
    )
    STOPPING_PODS = (
        "StoppingPods",
        About(
            Severity.NORMAL, Phase.SUSPENDING, next_step="nothing; each pod may save within its grace period"
        ),
    )
    RESUMED = "Resumed"
    FINISHED = "Finished"
    SUCCEEDED = "Succeeded"
    ACTIVE = "Active"
    # why pods are not ready
    UNSCHEDULABLE = (
        "Unschedulable",
        _stuck("ask for less, or free or add what the scheduler's message names"),
    )
    IMAGE_UNAVAILABLE = (
        "ImageUnavailable",
        _stuck("correct the image's name, or the secret its registry needs (imagePullSecrets)"),
    )
    CONTAINER_NOT_STARTED = (
        "ContainerNotStarted",
        _stuck(
            "correct what the message names: a volume, a ConfigMap or Secret, the command, the user it runs as"
        ),
    )
    CREATE_REFUSED = (
        "CreateRefused",
        _stuck("do what the API server's message asks for: a quota, a policy, an admission webhook"),
    )
    POD_TERMINATING = "PodTerminating"
    STATUS_REFUSED = (
        "StatusRefused",
        About(
            Severity.WARNING,
            next_step="make the object smaller, or correct the policy that refuses its status",
        ),
    )
    # Stalled
    RECONCILE_FAILING = (
        "ReconcileFailing",
        About(
            Severity.WARNING,
            next_step="see the operator's log for this job, and report it with `--snapshots`",
        ),
    )
    LEDGER_UNREADABLE = (
        "LedgerUnreadable",
        About(
            Severity.WARNING,
            Phase.UNKNOWN,
            next_step="install the version of greentrain that wrote this status",
        ),
    )
    RECONCILED = "Reconciled"
    # why an attempt ended
    PROGRAM_FAILED = "ProgramFailed", About(next_step="read the container's last lines in the message")
    KILLED = "Killed", About(next_step="see what sent the signal; the message has its number")
    OUT_OF_MEMORY = "OutOfMemory", About(next_step="raise the container's memory limit")
    STOPPED = "Stopped"
    PEER_LOST = (
        "PeerLost",
        About(next_step="see the network between the pods; none of them says why it ended"),
    )
    POD_LOST = "PodLost", About(next_step="see who deleted the pod")
    EVICTED = "Evicted", About(next_step="see why in the message: a drain, a full node, a lower priority")
    POD_FAILED = "PodFailed", About(next_step="see the kubelet's reason in the message")
    SPEC_CHANGED = "SpecChanged"
    NODE_LOST = (
        "NodeLost",
        About(Severity.WARNING, next_step="if the node is off for good, delete it (kubectl delete node)"),
    )
    PREEMPTED = "Preempted", About(next_step="nothing; or give the job a higher priorityClassName")
    BACKOFF_LIMIT_EXCEEDED = (
        "BackoffLimitExceeded",
        About(
            next_step="correct the program, or raise spec.runPolicy.backoffLimit, and create the job again"
        ),
    )
    INFRASTRUCTURE_RESTART_LIMIT_EXCEEDED = (
        "InfrastructureRestartLimitExceeded",
        About(
            next_step="see the nodes; or raise spec.runPolicy.infrastructureRestartLimit, and create the job again"
        ),
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        About(
            next_step="raise spec.runPolicy.activeDeadlineSeconds and create the job again",
        ),
    )
    SCHEDULE_TIMEOUT = (
        "ScheduleTimeout",
        About(next_step="free or add what the scheduler's message names, and create the job again"),
    )
    # EnergyMetered
    METERED = "Metered"
    NO_GPU = "NoGPU", _WARNED
    NO_READINGS = (
        "NoReadings",
        _waits("see that an agent runs on each GPU node (kubectl get nodepowers)", Severity.WARNING),
    )
    READINGS_STOPPED = (
        "ReadingsStopped",
        About(
            Severity.WARNING,
            Phase.SUSPENDED,
            next_step="it goes on when the node reports; or set spec.energy.onUnknown to Continue",
        ),
    )
    FINAL_REPORT_MISSING = "FinalReportMissing"
    # BudgetExhausted
    WITHIN_BUDGET = "WithinBudget"
    BUDGET_WARNING = (
        "BudgetWarning",
        About(Severity.WARNING, next_step="see status.energy and status.emissions"),
    )
    BUDGET_EXHAUSTED = (
        "BudgetExhausted",
        About(
            Severity.WARNING, Phase.SUSPENDED, next_step="raise the budget that the message names to go on"
        ),
    )
    ALLOWANCE_SPENT = (
        "AllowanceSpent",
        About(
            Severity.WARNING,
            Phase.SUSPENDED,
            next_step="see why the operator was silent (docs/internals/allowances.md)",
        ),
    )
    WILL_BE_EXHAUSTED = (
        "WillBeExhausted",
        About(
            Severity.WARNING,
            next_step="raise the budget, or train less; status.projection has what was measured",
        ),
    )
    NO_BUDGET = "NoBudget"
    NO_INTENSITY = (
        "NoIntensity",
        _waits("give the zone an intensity (chart value emissions), or remove the budget", Severity.WARNING),
    )
    # PowerCapped: those of NodePower's GPUs (`api.nodepower.CapReason`), and these
    CAPPED = "Capped"
    CLAMPED = "Clamped"
    PREVIOUS_LOWER = "PreviousLower"
    APPLYING = "Applying"
    CONTESTED = "Contested", _WARNED
    DRY_RUN = "DryRun", _WARNED
    MIG_MODE = "MigMode", _WARNED
    SHARED = "Shared", _WARNED
    UNSUPPORTED = "Unsupported", _WARNED
    NOT_PERMITTED = "NotPermitted", _WARNED
    OUT_OF_RANGE = "OutOfRange", _WARNED
    NO_JOURNAL = "NoJournal", _WARNED
    GPU_LOST = "GpuLost", _WARNED
    GPU_FAILING = "GpuFailing", _WARNED
    PAUSED = "Paused", _WARNED
    NOT_ALLOCATED = "NotAllocated"
    NO_AGENT = "NoAgent"
    NO_CAP = "NoCap"
    # Checkpointed
    NO_VOLUME = "NoVolume"
    NOT_YET = "NotYet"
    SAVED = "Saved"


Reasons = Mapping[str, About]

REASONS: Reasons = MappingProxyType({reason.value: reason.about for reason in Reason})
"""What each reason means, by its name."""

UNLISTED = About()
"""What is known of a reason that the table lacks: another version wrote it."""
