"""GreenTrainingJob's spec: the one source of its fields.

The CRD, `kubectl explain` and the operator's admission are generated from or checked against these models. A field that is
not here does not exist: admission refuses it by its full path, because a structural schema would prune a misspelt `enregy:`
without an error and run a job without a budget.

Names and meanings of `runPolicy`, `successPolicy` and `tfReplicaSpecs` are kubeflow.org/v1 TFJob's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, assert_never

from pydantic import Field, field_validator, model_validator

from greentrain.api.models import FreeForm, Strict, drop_nulls
from greentrain.quantities import (
    Joules,
    Micrograms,
    parse_emissions,
    parse_energy,
    parse_power_cap,
    parse_pue,
)

MAX_REPLICAS = 1024
"""Upper bound of one replica type; keeps TF_CONFIG (about 60 bytes a rank) below a pod's size limits."""


MAX_GRACE_SECONDS = 86_400
"""Longest time a pod may have between SIGTERM and SIGKILL: a day. A stop for a budget takes so long at worst."""


ZONE_PATTERN = r"[A-Za-z0-9]+([-_.:][A-Za-z0-9]+)*"
"""A grid zone's name: an ISO 3166-1 alpha-2 country (DE), what a grid operator calls its zone (US-CAL-CISO), or a zone of
the table that ships, such as TECH:wind-onshore; in RE2's syntax too."""


MAX_ZONE_LENGTH = 63


class ReplicaType(StrEnum):
    """Roles in TensorFlow's cluster description, spelled as TFJob spells them."""

    CHIEF = "Chief"
    MASTER = "Master"
    WORKER = "Worker"
    EVALUATOR = "Evaluator"

    @property
    def task_type(self) -> str:
        """The name in TF_CONFIG: a Master is TensorFlow's chief."""
        return "chief" if self is ReplicaType.MASTER else self.value.lower()

    @property
    def synchronous(self) -> bool:
        """Whether ranks of this role are members of the gang, which cannot lose one of them."""
        return self is not ReplicaType.EVALUATOR


class RestartPolicy(StrEnum):
    """When the program's own exit starts a new attempt."""

    NEVER = "Never"
    ON_FAILURE = "OnFailure"
    ALWAYS = "Always"
    EXIT_CODE = "ExitCode"


class CleanPodPolicy(StrEnum):
    """Which pods are deleted once a job has finished."""

    RUNNING = "Running"
    ALL = "All"
    NONE = "None"


class SuccessPolicy(StrEnum):
    """Which exit with 0 makes the job succeed."""

    DEFAULT = ""
    ALL_WORKERS = "AllWorkers"


class OnExhausted(StrEnum):
    """What happens to a job whose budget is spent, the strongest last."""

    WARN = "Warn"
    SUSPEND = "Suspend"
    FAIL = "Fail"

    @property
    def stops(self) -> bool:
        """Whether the job's pods are stopped."""
        match self:
            case OnExhausted.WARN:
                return False
            case OnExhausted.SUSPEND | OnExhausted.FAIL:
                return True
            case _:
                assert_never(self)

    @property
    def fails(self) -> bool:
        """Whether the job fails by it."""
        match self:
            case OnExhausted.WARN | OnExhausted.SUSPEND:
                return False
            case OnExhausted.FAIL:
                return True
            case _:
                assert_never(self)


class OnUnknown(StrEnum):
    """What happens to a job with a budget while its energy cannot be read."""

    SUSPEND = "Suspend"
    CONTINUE = "Continue"

    @property
    def stops(self) -> bool:
        """Whether the job's pods are stopped, and none created."""
        match self:
            case OnUnknown.SUSPEND:
                return True
            case OnUnknown.CONTINUE:
                return False
            case _:
                assert_never(self)


Scope = Literal["GPU", "Node"]
"""Which energy counts: that of GPUs, or that of processors and memory too."""


Basis = Literal["Lifecycle", "Direct"]
"""What an intensity counts: everything from fuel supply to disposal, or only what leaves the stack."""


class SchedulingPolicy(Strict):
    """What is requested of scheduling."""

    schedule_timeout_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="Seconds a pod may stay unscheduled before the job fails with the scheduler's reason. Without "
        "it pods wait as long as it takes.",
    )


class RunPolicy(Strict):
    """How the job as a whole is run, as in TFJob."""

    clean_pod_policy: CleanPodPolicy = Field(
        CleanPodPolicy.RUNNING,
        description="Which pods are deleted when the job has finished: Running (those still running, so that "
        "a finished job's GPUs are released), All, or None. Under a budget that stops the job None is Running too.",
    )
    backoff_limit: int = Field(
        3,
        ge=0,
        le=1000,
        description="How many times the program may fail and be restarted before the job is Failed; kept in "
        "status.failureCount.",
    )
    infrastructure_restart_limit: int = Field(
        10,
        ge=0,
        le=1000,
        description="How many times evictions, lost nodes, preemptions and deleted pods may restart the job before "
        "it is Failed; kept in status.infrastructureFailureCount.",
    )
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=315_360_000,
        description="Seconds the attempts may run together before the job is stopped and Failed. Time suspended, "
        "queued or waiting for pods does not count, and a resume does not start it again.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="Seconds after which a finished job is deleted with everything it owns; 0 is at once.",
    )
    scheduling_policy: SchedulingPolicy | None = Field(None, description="What is asked of scheduling.")
    suspend: bool = Field(
        False,
        description="True stops the job after an agreed checkpoint and removes its pods; back to false starts "
        "the next attempt from that checkpoint.",
    )


class ReplicaSpec(Strict):
    """One role of the cluster: how many pods, from which template."""

    replicas: int = Field(
        1,
        ge=1,
        le=MAX_REPLICAS,
        description="Number of pods of this role. Changed on a running job it applies at the next attempt.",
    )
    restart_policy: RestartPolicy = Field(
        RestartPolicy.NEVER,
        description="What a program's failure does: Never fails the job; OnFailure and Always start the next "
        "attempt; ExitCode does so for exit codes of 128 and above. The whole gang restarts, never one pod of it.",
    )
    template: FreeForm = Field(
        description="Pod template (core/v1 PodTemplateSpec). Its main container is named tensorflow; TF_CONFIG "
        "and GREENTRAIN_* variables are added to that container.",
    )


class ReplicaSpecs(Strict):
    """The roles of the TensorFlow cluster by their canonical TFJob names."""

    chief: ReplicaSpec | None = Field(
        None,
        alias="Chief",
        description="The rank that saves checkpoints and decides success; at most one.",
    )
    master: ReplicaSpec | None = Field(None, alias="Master", description="TFJob's older name for Chief.")
    worker: ReplicaSpec | None = Field(
        None,
        alias="Worker",
        description="Workers of a synchronous gang; without a Chief, worker 0 has its duties.",
    )
    evaluator: ReplicaSpec | None = Field(
        None,
        alias="Evaluator",
        description="Evaluates checkpoints beside the gang and is restarted alone; at most one.",
    )

    def roles(self) -> tuple[tuple[ReplicaType, ReplicaSpec], ...]:
        """The roles present, chief first."""
        by_type = (
            (ReplicaType.CHIEF, self.chief),
            (ReplicaType.MASTER, self.master),
            (ReplicaType.WORKER, self.worker),
            (ReplicaType.EVALUATOR, self.evaluator),
        )
        return tuple((t, s) for t, s in by_type if s is not None)


class CheckpointSpec(Strict):
    """Where training state survives a pod."""

    volume: FreeForm = Field(
        description="Pod volume source, such as {persistentVolumeClaim: {claimName: training}}; ReadWriteMany "
        "when the pods may run on more than one node. Mounted at /checkpoints in the tensorflow container.",
    )
    path: str = Field(
        "greentrain",
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$",
        description="Folder inside the volume; the job's files live under {path}/{namespace}/{job}.",
    )
    grace_period_seconds: int = Field(
        60,
        ge=1,
        le=MAX_GRACE_SECONDS,
        description="Seconds a pod is given between SIGTERM and SIGKILL to agree on a step and save it.",
    )


class BudgetPolicy(StrEnum):
    """What a budget may do to the cap."""

    NONE = "None"
    LOWER_CAP = "LowerCap"


class PowerSpec(Strict):
    """How much power the job's GPUs may draw."""

    cap: str | None = Field(
        None,
        max_length=16,
        description="Power limit of each of its GPUs while it is allocated to the job: watts (250W, 0.3kW) or a share of the GPU's "
        "default limit (70%). A lower limit that an administrator has set stays. Applies at once, also to a running job.",
    )

    budget_policy: BudgetPolicy = Field(
        BudgetPolicy.NONE,
        description="None: the cap stays as it is. LowerCap: it is lowered step by step, never above cap, while what was "
        "measured says that the job would not finish inside its budget at the present one but might at a lower one.",
    )
    max_slowdown_percent: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="By how much a step may take longer for that than at the highest allowed cap; any amount by default.",
    )

    @field_validator("cap")
    @classmethod
    def _is_cap(cls, value: str | None) -> str | None:
        if value is not None:
            parse_power_cap(value)
        return value

    @property
    def lowers_cap(self) -> bool:
        """Whether a lower cap may be chosen to keep a budget."""
        match self.budget_policy:
            case BudgetPolicy.LOWER_CAP:
                return True
            case BudgetPolicy.NONE:
                return False
            case _:
                assert_never(self.budget_policy)


class EnergySpec(Strict):
    """How much energy the job may use."""

    budget: str | None = Field(
        None,
        max_length=32,
        description="Energy the job may use in all, over every attempt: 500Wh, 5kWh, 1.5MWh, 18MJ. Applies at once, also to "
        "a running job: raised, a job suspended for it goes on; lowered below what was used, it is spent at once.",
    )
    on_exhausted: OnExhausted = Field(
        OnExhausted.SUSPEND,
        description="What happens when the budget is spent: Suspend (the job is stopped at a checkpoint and goes on when the "
        "budget is raised), Fail (stopped the same way, and Failed) or Warn (reported, and nothing else).",
    )
    on_unknown: OnUnknown = Field(
        OnUnknown.SUSPEND,
        description="What happens while the energy of a job with a budget cannot be read: Suspend, until it can be, or "
        "Continue. Until then each GPU is charged at its power limit.",
    )
    warn_at_percent: tuple[Annotated[int, Field(ge=1, le=99)], ...] = Field(
        (80,), max_length=10, description="Percents of the budget at which an event warns."
    )
    scope: Scope = Field(
        "GPU",
        description="Which energy counts: GPU, or Node (GPUs, processors and memory), where every node can measure it. "
        "Cannot be changed once the job has started.",
    )

    @field_validator("budget")
    @classmethod
    def _is_energy(cls, value: str | None) -> str | None:
        if value is not None:
            parse_energy(value)
        return value

    @property
    def budget_joules(self) -> Joules | None:
        """The budget in joules; None where there is none."""
        return None if self.budget is None else parse_energy(self.budget)

    @property
    def is_enforced(self) -> bool:
        """Whether there is a budget that stops the job."""
        return self.budget is not None and self.on_exhausted.stops


class EmissionsSpec(Strict):
    """How much CO2 equivalent the job may emit, and how it is counted."""

    budget: str | None = Field(
        None,
        max_length=32,
        description="Emissions the job may cause in all, over every attempt, the embodied share included: 800gCO2e, 2kgCO2e, "
        "1.2tCO2e. Applies at once, as spec.energy.budget does.",
    )
    on_exhausted: OnExhausted = Field(
        OnExhausted.SUSPEND,
        description="What happens when the budget is spent: Suspend, Fail or Warn, as in spec.energy. Where both budgets are "
        "spent Fail goes before Suspend and Suspend before Warn.",
    )
    zone: str | None = Field(
        None,
        max_length=MAX_ZONE_LENGTH,
        pattern=f"^{ZONE_PATTERN}$",
        description="Grid zone its energy comes from, such as DE; by default that of each node.",
    )
    pue: str | None = Field(
        None,
        max_length=8,
        description="Power usage effectiveness of the site, such as 1.2; by default the cluster's. Fixed for each attempt.",
    )
    basis: Basis | None = Field(
        None,
        description="Which intensities count: Lifecycle (with fuel supply and building) or Direct (stacks only); by default "
        "the cluster's. Energy for which there is none of this basis is reported as without intensity.",
    )
    include_embodied: bool | None = Field(
        None,
        description="Whether a share of making the GPUs counts, by their allocated time; by default as the cluster says.",
    )

    @field_validator("budget")
    @classmethod
    def _is_emissions(cls, value: str | None) -> str | None:
        if value is not None:
            parse_emissions(value)
        return value

    @field_validator("pue")
    @classmethod
    def _is_pue(cls, value: str | None) -> str | None:
        if value is not None:
            parse_pue(value)
        return value

    @property
    def budget_micrograms(self) -> Micrograms | None:
        """The budget in micrograms; None where there is none."""
        return None if self.budget is None else parse_emissions(self.budget)

    @property
    def is_enforced(self) -> bool:
        """Whether there is a budget that stops the job."""
        return self.budget is not None and self.on_exhausted.stops


class GreenTrainingJobSpec(Strict):
    """What to train and under which rules."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        # The API server drops some of them; in templates, and in a manifest that is converted, they are still there.
        return drop_nulls(value)

    run_policy: RunPolicy = Field(RunPolicy(), description="How the job as a whole is run.")
    success_policy: SuccessPolicy = Field(
        SuccessPolicy.DEFAULT,
        description="Empty: the chief, else worker 0, decides by exiting with 0. AllWorkers: every worker must.",
    )
    tf_replica_specs: ReplicaSpecs = Field(description="The roles of the TensorFlow cluster.")
    enable_dynamic_worker: bool = Field(
        False,
        description="True writes TF_CONFIG in TFJob's sparse form (sparseCluster): a worker gets its own address "
        "only. For scripts that read it themselves; tf.distribute needs the full form.",
    )
    evaluator_in_cluster: bool = Field(
        True,
        description="Whether the evaluator stands in TF_CONFIG's cluster. False leaves it out, which "
        "tf.estimator and some versions of tf.distribute ask for.",
    )
    checkpoint: CheckpointSpec | None = Field(
        None, description="Where checkpoints are kept; without it every restart begins at step 0."
    )
    power: PowerSpec | None = Field(None, description="How much power the job's GPUs may draw.")
    energy: EnergySpec = Field(EnergySpec(), description="How much energy the job may use.")
    emissions: EmissionsSpec = Field(
        EmissionsSpec(), description="How much CO2 equivalent the job may emit, and how it is counted."
    )

    @property
    def power_cap(self) -> str:
        """`spec.power.cap`; empty where none is requested."""
        return self.power.cap or "" if self.power is not None else ""


NOT_BUILT: dict[str, str] = {
    "spec.schedule": "carbon-aware scheduling",
    "spec.power.optimization": "finding the cap at which a step costs least",
    "spec.elastic": "elastic sizes",
    "spec.checkpoint.restoreFrom": "restoring from another job's checkpoint",
    "spec.runPolicy.schedulingPolicy.queue": "gang scheduling",
    "spec.runPolicy.schedulingPolicy.minAvailable": "gang scheduling",
    "spec.runPolicy.schedulingPolicy.minResources": "gang scheduling",
    "spec.runPolicy.schedulingPolicy.priorityClass": "gang scheduling",
    "spec.tfReplicaSpecs.PS": "parameter servers",
}
"""Fields of the agreed API that this version rejects, with their purpose.

A job that requests them must not run as if it had not: it is rejected with the full path until they exist.
"""


REPLACED: dict[str, str] = {
    "spec.power.policy": "it is spec.power.budgetPolicy now: write LowerCap there for Budget, or nothing for Fixed",
}
"""Fields that this version no longer has, by path, with what replaces them."""
