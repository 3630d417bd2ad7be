"""GreenTrainingJob v1alpha1: the one source of its fields.

The CRD, `kubectl explain`, the operator's admission and the status it writes are all generated from or
checked against these models. A field that is not here does not exist: admission refuses it by its full
path, because a structural schema would prune a misspelt `enregy:` without a word and run a job without
a budget.

Names and meanings of `runPolicy`, `successPolicy` and `tfReplicaSpecs` are kubeflow.org/v1 TFJob's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, assert_never

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from greentrain.quantities import parse_emissions, parse_energy, parse_power_cap, parse_pue, parse_time

MAX_REPLICAS = 1024
"""Upper bound of one replica type; keeps TF_CONFIG (about 60 bytes a rank) below a pod's size limits."""

MAX_GRACE_SECONDS = 86_400
"""Longest time a pod may have between SIGTERM and SIGKILL: a day. A stop for a budget takes so long at worst."""

ZONE_PATTERN = r"[A-Za-z0-9]+([-_.:][A-Za-z0-9]+)*"
"""A grid zone's name: an ISO 3166-1 alpha-2 country (DE), what a grid operator calls its zone (US-CAL-CISO), or a zone of
the table that ships, such as TECH:wind-onshore; in RE2's syntax too."""

MAX_ZONE_LENGTH = 63

KEPT_REPLACED = 10
"""How many replaced pods an attempt lists; the counts of the status count them all."""

KEPT_PODS = 4 * MAX_REPLICAS
"""How many entries of pods `status.energy.pods` lists."""

KEPT_SETTLED = 128
"""How many settled pods are remembered by name. A report of one that is older than 128 others was overtaken long ago."""

KEPT_ATTEMPTS = 10
"""How many attempts `status.attempts` lists; `attemptCount` and `failureCount` count them all."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, use_enum_values=False
    )


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
    """Whose exit with 0 makes the job succeed."""

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
        """Whether the job has failed by it."""
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
        """Whether the job's pods are stopped, and none begun."""
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

CountedAgainst = Literal["backoffLimit", "infrastructureRestartLimit"]
"""The limits of `spec.runPolicy` failures are counted against."""


def drop_nulls(node: Any) -> Any:
    """A copy without the fields that are null, at any depth: to Kubernetes an explicit null is a field that is not set.

    A null in a list stays; there it is a wrong value.
    """
    root = [node]
    left: list[tuple[Any, Any]] = [
        (root, 0)
    ]  # a list, not recursion: how deep it goes is the sender's to choose
    while left:
        holder, key = left.pop()
        value = holder[key]
        if isinstance(value, Mapping):
            holder[key] = {k: v for k, v in value.items() if v is not None}
            left += ((holder[key], k) for k in holder[key])
        elif isinstance(value, list):
            holder[key] = list(value)
            left += ((holder[key], i) for i in range(len(value)))
    return root[0]


FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class SchedulingPolicy(_Strict):
    """What is asked of scheduling."""

    schedule_timeout_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="Seconds a pod may stay unscheduled before the job fails with the scheduler's reason. Without "
        "it pods wait as long as it takes.",
    )


class RunPolicy(_Strict):
    """How the job as a whole is run, as in TFJob."""

    clean_pod_policy: CleanPodPolicy = Field(
        CleanPodPolicy.RUNNING,
        description="Which pods are deleted when the job has finished: Running (those still running, so that "
        "no finished job holds a GPU), All, or None. Under a budget that stops the job None is Running too.",
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
        "queued or waiting for pods does not count, and a resume does not start it anew.",
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


class ReplicaSpec(_Strict):
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


class ReplicaSpecs(_Strict):
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


class CheckpointSpec(_Strict):
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


class PowerSpec(_Strict):
    """How much power the job's GPUs may draw."""

    cap: str | None = Field(
        None,
        max_length=16,
        description="Power limit of each of its GPUs while the job holds it: watts (250W, 0.3kW) or a share of the GPU's "
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


class EnergySpec(_Strict):
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
    def budget_joules(self) -> int | None:
        """The budget in joules; None where there is none."""
        return None if self.budget is None else parse_energy(self.budget)

    @property
    def is_enforced(self) -> bool:
        """Whether there is a budget that stops the job."""
        return self.budget is not None and self.on_exhausted.stops


class EmissionsSpec(_Strict):
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
        description="Whether a share of making the GPUs counts, by the time they were held; by default as the cluster says.",
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
    def budget_micrograms(self) -> int | None:
        """The budget in micrograms; None where there is none."""
        return None if self.budget is None else parse_emissions(self.budget)

    @property
    def is_enforced(self) -> bool:
        """Whether there is a budget that stops the job."""
        return self.budget is not None and self.on_exhausted.stops


class GreenTrainingJobSpec(_Strict):
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
        """`spec.power.cap`, nothing where none is asked for."""
        return self.power.cap or "" if self.power is not None else ""


MAX_LEDGER = 1 << 20
"""Characters: a job of 1,024 pods, each with its sums, takes about half; etcd takes objects of 1.5 MiB."""


def _is_time(value: str) -> str:
    if parse_time(value) is None:
        raise ValueError("write a time with its offset, such as 2026-01-31T18:00:00Z")
    return value


Time = Annotated[str, AfterValidator(_is_time)]
"""RFC 3339. The API server lets pass what no `datetime` holds, such as the year 0; a ledger with that cannot be read."""


class Condition(_Strict):
    """One observed aspect of the job."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(max_length=64, description="Name of the aspect, such as Running or Succeeded.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    observed_generation: int = Field(
        0, ge=0, description="metadata.generation this was seen for; where it is missing, the status's own."
    )
    last_transition_time: Time = Field(
        max_length=32, json_schema_extra={"format": "date-time"}, description="When status last changed."
    )
    reason: str = Field(max_length=64, description="One CamelCase word for programs.")
    message: str = Field("", max_length=2048, description="What a person should know.")


class StatusModel(_Strict):
    """A part of a status; what belongs to the ledger is stored apart (`greentrain.api.stored`) and in no schema."""

    # A newer operator may have written more; what an older one does not know it leaves out.
    model_config = ConfigDict(extra="ignore")

    LEDGER: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that are the operator's own working memory."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema without those."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name in cls.LEDGER:
            schema.get("properties", {}).pop(cls.model_fields[name].alias or name, None)
        return schema


class ReplicaStatus(StatusModel):
    """How many pods of one role are in which state."""

    active: int = Field(0, ge=0, description="Pods pending or running.")
    ready: int = Field(0, ge=0, description="Pods whose tensorflow container runs and is ready.")
    succeeded: int = Field(
        0,
        ge=0,
        description="Pods whose program finished: exited with 0, and not because it was asked to stop.",
    )
    failed: int = Field(0, ge=0, description="Pods that failed.")


class CheckpointStatus(StatusModel):
    """A checkpoint the program reported."""

    step: int = Field(ge=0, description="Global step it holds.")
    path: str = Field("", max_length=1024, description="Where it lies, inside the containers.")
    confirmed: bool = Field(
        False, description="True when the program's termination message named it after writing it completely."
    )


class ProgressStatus(StatusModel):
    """How far the program says it is."""

    LEDGER = frozenset({"confirmed_checkpoint"})

    step: int = Field(0, ge=0, description="Global steps done.")
    total_steps: int | None = Field(None, ge=0, description="Global steps planned.")
    percent: int | None = Field(None, ge=0, le=100, description="Whole percent of the planned steps done.")
    metrics: dict[str, str] = Field(
        {}, description="Latest values by name as decimal strings, such as accuracy (a fraction) and loss."
    )
    checkpoint: CheckpointStatus | None = Field(
        None,
        description="Latest checkpoint the program spoke of; a restart resumes from the latest on the volume.",
    )
    confirmed_checkpoint: CheckpointStatus | None = Field(
        None,
        description="Latest checkpoint a termination message named: certainly complete, and at least what a restart "
        "resumes from.",
    )
    model_path: str | None = Field(None, max_length=1024, description="Where the trained model was saved.")


class ReplacedPod(StatusModel):
    """A pod outside the gang that failed and was made again within its attempt."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    name: str = Field(max_length=253, description="Name of the pod.")
    time: Time = Field(
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When its failure was written down.",
    )
    counted_against: CountedAgainst = Field(description="The limit of spec.runPolicy it counts against.")
    reason: str = Field(max_length=64, description="Why it ended, one word for programs.")
    message: str = Field("", max_length=1024, description="Why it ended, in one sentence.")


class AttemptStatus(StatusModel):
    """One run of the whole gang."""

    LEDGER = frozenset(
        {
            "spec_hash",
            "success_policy",
            "broken_time",
            "finished_ranks",
            "pue_thousandths",
            "gpu_limit_milliwatts",
            "report_seconds",
            "stop_seconds",
            "worst_seconds",
        }
    )

    number: int = Field(ge=1, description="Number of the attempt, from 1.")
    spec_hash: str = Field("", max_length=64, description="Hash of the spec its pods were built from.")
    replicas: dict[str, int] = Field({}, description="Pods by role, as this attempt was started.")
    success_policy: SuccessPolicy = Field(
        SuccessPolicy.DEFAULT, description="successPolicy this attempt is judged by."
    )
    start_time: Time = Field(
        max_length=32, json_schema_extra={"format": "date-time"}, description="When it was started."
    )
    running_time: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When every pod had started; from then on a missing pod is a lost one.",
    )
    broken_time: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When a failed rank was first seen; the others then have a settle window to end.",
    )
    end_time: Time | None = Field(
        None, max_length=32, json_schema_extra={"format": "date-time"}, description="When it was judged over."
    )
    start_step: int | None = Field(
        None, ge=0, description="Global step it began at, as the program reported."
    )
    last_step: int | None = Field(None, ge=0, description="Last global step it reported.")
    reason: str | None = Field(None, max_length=64, description="Why it ended, one word for programs.")
    message: str | None = Field(None, max_length=2048, description="Why it ended, in one sentence.")
    exit_code: int | None = Field(None, description="Exit code it was judged by.")
    counted_against: CountedAgainst | None = Field(
        None, description="The limit of spec.runPolicy it counts against; none for a stop that was asked for."
    )
    active_seconds: int | None = Field(
        None, ge=0, description="Seconds from every pod's start to its end; once it has ended."
    )
    finished_ranks: tuple[str, ...] = Field(
        (),
        max_length=4 * MAX_REPLICAS,
        description="Ranks whose program has finished, such as worker-1: never started again, also when their "
        "pods are gone.",
    )
    replaced: tuple[ReplacedPod, ...] = Field(
        (),
        max_length=KEPT_REPLACED,
        description="Pods outside the gang that were made again, last ones last.",
    )
    energy_joules: int | None = Field(
        None, ge=0, description="Energy its pods have used; none where nothing was measured."
    )
    gpus: int = Field(0, ge=0, description="GPUs its pods ask for.")
    gpu_limit_milliwatts: int | None = Field(
        None,
        ge=0,
        description="The highest power limit one of them can have: before they were on nodes, the highest that two nodes of the "
        "cluster report; then also that of their own nodes.",
    )
    report_seconds: int | None = Field(
        None, ge=1, description="The longest interval between reports of its nodes, found in the same way."
    )
    pue_thousandths: int | None = Field(
        None, ge=1000, description="Power usage effectiveness its emissions are counted with, in thousandths."
    )
    stop_seconds: int | None = Field(
        None,
        ge=0,
        description="How long it goes on after a report for which it is stopped, until the next one included: report "
        "interval, reaction and grace period. What it draws over that time is kept free.",
    )
    worst_seconds: int | None = Field(
        None,
        ge=0,
        description="How long it could go on after its budget was spent, whatever fails meanwhile: the same, and the silence "
        "of an operator that has died.",
    )
    overshoot_bound_joules: int | None = Field(
        None,
        ge=0,
        description="By how much it could exceed its budget: the limits of all its GPUs over that time. Said before it "
        "started, and raised where its pods came to nodes with higher limits or longer intervals; none where no node has "
        "reported.",
    )
    overshoot_bound_micrograms: int | None = Field(
        None,
        ge=0,
        description="The same of a budget of emissions: that energy at the highest intensity that was seen or is known for the "
        "next hour, and the embodied share of that time; none where no intensity was known.",
    )


class GpuTimeStatus(StatusModel):
    """How long GPUs of one model were held."""

    model: str = Field("", max_length=96, description="Product name; empty where the GPU never reported it.")
    seconds: int = Field(0, ge=0, description="Seconds, added up over the GPUs.")


class PodEnergyStatus(StatusModel):
    """What one pod used, as its node's agent reported last; folded into the sums once the agent has let go of it."""

    uid: str = Field("", max_length=64, description="UID of the pod; none for a sum.")
    segment: int = Field(
        0, ge=0, description="As in NodePower: 0, or how often the pod went on after it was settled."
    )
    node: str = Field("", max_length=253, description="Node it ran on.")
    name: str = Field("", max_length=253, description="Name of the pod.")
    attempt: int = Field(0, ge=0, description="Attempt it belonged to; 0 where that is not known.")
    gpu_joules: int = Field(0, ge=0, description="Energy of the GPUs it held.")
    cpu_joules: int = Field(0, ge=0, description="Its share of the processors' energy.")
    dram_joules: int = Field(0, ge=0, description="Its share of the memory's energy.")
    estimated_joules: int = Field(0, ge=0, description="How much of it is an estimate.")
    error_joules: int = Field(0, ge=0, description="Its error bound at 95 % confidence.")
    missing_seconds: int = Field(0, ge=0, description="Seconds of which nothing is known.")
    priced_joules: int = Field(
        0, ge=0, description="How much of its energy is in the emissions' fixed sums already."
    )
    priced_until: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="End of the last quarter of an hour that is in them.",
    )
    gpu_time: tuple[GpuTimeStatus, ...] = Field(
        (), max_length=64, description="How long it has held GPUs, by model."
    )
    final: bool = Field(False, description="True when the pod has ended and this is its last word.")

    @property
    def key(self) -> str:
        """UID/segment."""
        return f"{self.uid}/{self.segment}"

    @property
    def joules(self) -> int:
        """Energy of all device kinds."""
        return self.gpu_joules + self.cpu_joules + self.dram_joules

    def counted(self, scope: Scope) -> int:
        """Joules within a scope."""
        return self.gpu_joules if scope == "GPU" else self.joules


class PodAllowance(StatusModel):
    """How much energy one pod may use before its node's agent acts by itself."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    joules: int = Field(ge=0, description="Energy it may have used in all.")
    granted_joules: int = Field(
        0,
        ge=0,
        description="The most that its agent may still hold for that: an earlier, higher allowance until it has reported that it "
        "has read this one.",
    )
    seconds: int | None = Field(
        None,
        ge=1,
        description="How long it holds while the operator is silent; none where it holds until it is used up.",
    )


def _or_nothing(value: str, parse: Callable[[str], int]) -> str:
    """A quantity in a stored status; one that was damaged by hand counts as none, until the spec is looked at again."""
    with contextlib.suppress(ValueError):
        parse(value)
        return value
    return ""


class PodCharge(StatusModel):
    """What is charged for one pod while its readings are missing."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    node: str = Field("", max_length=253, description="Node it runs on.")
    limit_milliwatts: int = Field(ge=0, description="Power limits of its GPUs together.")
    since: Time = Field(
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When it was read last, by the operator's clock; else when it started.",
    )
    gone: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When it ended, where its last word is not in.",
    )
    joules: int = Field(
        0, ge=0, description="What is charged for it now; nothing while its node reports in time."
    )


class EnergyBudgetStatus(StatusModel):
    """How the budget of energy stands."""

    @field_validator("limit")
    @classmethod
    def _is_limit(cls, value: str) -> str:
        return _or_nothing(value, parse_energy)

    limit: str = Field(
        "", max_length=32, description="spec.energy.budget as it is in force; nothing where there is none."
    )
    limit_joules: int = Field(0, ge=0, description="The same in joules.")
    on_exhausted: OnExhausted = Field(
        OnExhausted.SUSPEND, description="spec.energy.onExhausted as it is in force."
    )
    on_unknown: OnUnknown = Field(OnUnknown.SUSPEND, description="spec.energy.onUnknown as it is in force.")
    warn_at_percent: tuple[int, ...] = Field(
        (), max_length=10, description="spec.energy.warnAtPercent as it is in force."
    )
    percent: int | None = Field(
        None,
        ge=0,
        description="Whole percent that is used, what is charged for missing readings included; none where nothing is known.",
    )
    provisional_joules: int = Field(
        0,
        ge=0,
        description="Of that, charged while readings are missing, at the GPUs' power limits; settled when they come.",
    )
    ahead_joules: int = Field(
        0,
        ge=0,
        description="What they would use until a stop takes effect: the job is stopped when used and this reach the limit.",
    )
    overshoot_bound: str = Field(
        "", max_length=32, description="The bound of the attempt under way, with its unit."
    )
    overshoot_bound_joules: int | None = Field(
        None, ge=0, description="By how much the budget could be exceeded, said before the attempt started."
    )
    warned_percent: int = Field(0, ge=0, le=100, description="The highest of warnAtPercent that was reached.")
    exhausted_limit_joules: int | None = Field(
        None,
        ge=0,
        description="The limit that was spent: the job goes on when a higher one is set. None while it is not.",
    )
    lowered: bool = Field(
        False, description="Whether it is spent because it was set below what had been used."
    )
    charges: tuple[PodCharge, ...] = Field(
        (),
        max_length=4 * MAX_REPLICAS,
        description="Pods whose last word is not in, and what is charged for them.",
    )
    lost_joules: int = Field(
        0, ge=0, description="Charged for pods whose last word was lost; it is never settled."
    )
    unread_nodes: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Nodes whose missing readings stopped the job: it goes on when they report.",
    )
    allowances: tuple[PodAllowance, ...] = Field(
        (),
        max_length=4 * MAX_REPLICAS,
        description="What each pod may use while the operator is silent; together never more than what remains.",
    )


class EnergyStatus(StatusModel):
    """Energy the job has used, over all attempts, pods and nodes."""

    LEDGER = frozenset({"budget", "folded", "folded_error_squared", "pods", "settled"})

    scope: Scope = Field("GPU", description="What is counted as used: GPU, or Node.")
    budget: EnergyBudgetStatus | None = Field(None, description="How its budget stands; none without one.")
    draw_milliwatts: int | None = Field(
        None, ge=0, description="Power its pods draw together; none where it is not known."
    )
    used: str = Field("", max_length=32, description="Energy used within `scope`, with its unit.")
    used_joules: int = Field(0, ge=0, description="Energy used within `scope`, exactly what was counted.")
    gpu_joules: int = Field(0, ge=0, description="Energy of GPUs.")
    cpu_joules: int = Field(0, ge=0, description="Energy of processors (RAPL); used where scope is Node.")
    dram_joules: int = Field(0, ge=0, description="Energy of memory (RAPL); used where scope is Node.")
    measured_percent: int = Field(
        0, ge=0, le=100, description="Share that counters measured for this job alone, in whole percent."
    )
    estimated_percent: int = Field(
        0,
        ge=0,
        le=100,
        description="Share that was added up from power or divided between jobs, in whole percent.",
    )
    missing_seconds: int = Field(
        0, ge=0, description="Pod-seconds with a GPU of which nothing is known; they are in no sum."
    )
    error_joules: int = Field(0, ge=0, description="Error bound of usedJoules at 95 % confidence.")
    lost_pods: int = Field(
        0,
        ge=0,
        description="Pods whose last word never came: what they used after their last report is in no sum.",
    )
    final: bool = Field(
        False, description="True when the job has finished and every pod's last word is in the sum."
    )
    folded: PodEnergyStatus | None = Field(
        None, description="Sum of the pods that are settled and not listed any more."
    )
    folded_error_squared: int = Field(
        0,
        ge=0,
        description="Sum of the squares of their error bounds, in square joules: errors of pods are independent.",
    )
    pods: tuple[PodEnergyStatus, ...] = Field(
        (),
        max_length=KEPT_PODS,
        description="Pods whose nodes still report them, or have not said their last word.",
    )
    settled: tuple[str, ...] = Field(
        (),
        max_length=KEPT_SETTLED,
        description="UID/segment of pods in `folded`, last ones last: an old report of one is not counted again.",
    )


class EmissionsShare(StatusModel):
    """Energy that was priced with the values of one source."""

    source: str = Field(max_length=64, description="Name of the source.")
    joules: int = Field(0, ge=0, description="Energy of the devices; PUE is not in it.")
    percent: int = Field(0, ge=0, le=100, description="Its share of the energy, in whole percent.")
    micrograms: int = Field(0, ge=0, description="Emissions, PUE included.")
    as_of: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="What time the latest of its values was of: how old the intensity is.",
    )


class FixedEmissions(StatusModel):
    """Sums that nothing changes any more, whatever a source says later."""

    shares: tuple[EmissionsShare, ...] = Field((), max_length=64, description="By source.")
    without_joules: int = Field(0, ge=0, description="Energy for which there was no intensity.")
    embodied_micrograms: int = Field(
        0, ge=0, description="Embodied share of pods that are settled and not listed any more."
    )
    embodied_low_micrograms: int = Field(0, ge=0, description="The same by the lowest known figures.")
    embodied_high_micrograms: int = Field(0, ge=0, description="The same by the highest known figures.")
    embodied_unknown_seconds: int = Field(
        0, ge=0, description="Their time on GPUs of which no figure is known."
    )


class EmissionsBudgetStatus(StatusModel):
    """How the budget of emissions stands."""

    @field_validator("limit")
    @classmethod
    def _is_limit(cls, value: str) -> str:
        return _or_nothing(value, parse_emissions)

    limit: str = Field(max_length=32, description="spec.emissions.budget as it is in force.")
    limit_micrograms: int = Field(ge=0, description="The same in micrograms.")
    on_exhausted: OnExhausted = Field(
        OnExhausted.SUSPEND, description="spec.emissions.onExhausted as it is in force."
    )
    percent: int | None = Field(
        None, ge=0, description="Whole percent that is used, what is charged for missing values included."
    )
    provisional_micrograms: int = Field(
        0,
        ge=0,
        description="Of that, charged while readings or intensities are missing, at the highest intensity seen.",
    )
    ahead_micrograms: int = Field(0, ge=0, description="What it would emit until a stop takes effect.")
    overshoot_bound: str = Field(
        "", max_length=32, description="The bound of the attempt under way, with its unit."
    )
    overshoot_bound_micrograms: int | None = Field(
        None,
        ge=0,
        description="The bound of its energy at the highest intensity seen, and the embodied share of that time.",
    )
    exhausted_limit_micrograms: int | None = Field(
        None, ge=0, description="The limit that was spent: the job goes on when a higher one is set."
    )
    lowered: bool = Field(
        False, description="Whether it is spent because it was set below what had been emitted."
    )


class EmissionsStatus(StatusModel):
    """Emissions the job has caused, over all attempts, pods and nodes."""

    LEDGER = frozenset(
        {"budget", "fixed", "highest_milligrams_per_kilowatt_hour", "zone", "include_embodied"}
    )

    @field_validator("pue")
    @classmethod
    def _is_pue(cls, value: str) -> str:
        return _or_nothing(value, parse_pue)

    total: str = Field("", max_length=32, description="Operational and embodied emissions, with the unit.")
    total_micrograms: int = Field(0, ge=0, description="The same, in micrograms of CO2 equivalent.")
    operational_micrograms: int = Field(
        0, ge=0, description="Energy × PUE × intensity at that time; energy without intensity is not in it."
    )
    embodied_micrograms: int | None = Field(
        None,
        ge=0,
        description="Share of making its GPUs, by time; none where it does not count or nothing is known.",
    )
    embodied_low_micrograms: int | None = Field(
        None, ge=0, description="The same by the lowest known figures."
    )
    embodied_high_micrograms: int | None = Field(
        None, ge=0, description="The same by the highest known figures."
    )
    embodied_unknown_seconds: int = Field(
        0, ge=0, description="Time on GPUs of which no figure is known: it is not in the embodied share."
    )
    basis: Basis = Field("Lifecycle", description="What its intensities count.")
    boundary: Scope = Field("GPU", description="Whose energy counts: GPU, or Node.")
    zone: str = Field("", max_length=64, description="spec.emissions.zone as it is in force.")
    zones: tuple[str, ...] = Field((), max_length=64, description="Grid zones its energy came from.")
    include_embodied: bool = Field(True, description="Whether the embodied share counts.")
    pue: str = Field(
        "", max_length=8, description="Power usage effectiveness; nothing where no overhead counts."
    )
    shares: tuple[EmissionsShare, ...] = Field((), max_length=64, description="By source.")
    without_joules: int = Field(0, ge=0, description="Energy for which there is no intensity.")
    without_percent: int = Field(0, ge=0, le=100, description="Its share of the energy, in whole percent.")
    without_reason: str = Field("", max_length=1024, description="Why there is none, in one sentence.")
    intensity: str = Field("", max_length=32, description="Intensity now, with its unit.")
    intensity_milligrams_per_kilowatt_hour: int | None = Field(
        None, ge=0, description="The highest of its nodes' intensities now; none where there is none."
    )
    source: str = Field("", max_length=64, description="Where that comes from.")
    highest_milligrams_per_kilowatt_hour: int = Field(
        0, ge=0, description="The highest intensity seen since the job began."
    )
    micrograms_per_run: int | None = Field(
        None,
        ge=0,
        description="Software Carbon Intensity (ISO/IEC 21031) of one training run; none where a part of it is not known.",
    )
    micrograms_per_step: int | None = Field(None, ge=0, description="The same of one step.")
    budget: EmissionsBudgetStatus | None = Field(None, description="How its budget stands; none without one.")
    fixed: FixedEmissions = Field(FixedEmissions(), description="Sums that no source can change any more.")
    final: bool = Field(False, description="True when the job has finished and all its energy is in.")


class PowerStatus(StatusModel):
    """Power limits of the GPUs the job holds now, as their nodes' agents have read them back."""

    cap: str = Field(
        "", max_length=16, description="spec.power.cap as it is in force; nothing where none is."
    )

    @field_validator("cap")
    @classmethod
    def _is_cap(cls, value: str) -> str:
        # Agents are asked by it: one that was damaged by hand counts as none, until the spec is looked at again.
        with contextlib.suppress(ValueError):
            parse_power_cap(value)
            return value
        return ""

    asked_milliwatts: int | None = Field(
        None, ge=0, description="What that asks of a GPU; the most, where GPUs differ."
    )
    set_milliwatts: int | None = Field(None, ge=0, description="Limit that is set; the highest of its GPUs.")
    enforced_milliwatts: int | None = Field(
        None, ge=0, description="Limit in force, as read back; the highest of its GPUs."
    )
    gpus: int = Field(0, ge=0, description="GPUs its running pods ask for.")
    gpus_capped: int = Field(
        0,
        ge=0,
        description="GPUs on which the limit in force, as read back, is not above the one that is due.",
    )
    gpus_binding: int = Field(
        0,
        ge=0,
        description="GPUs that the limit slowed down when they were last read: without it they would draw more.",
    )


class CapMeasureStatus(StatusModel):
    """What steps at one cap cost, summed up over windows of time."""

    percent: int = Field(ge=1, le=100, description="The cap, of the GPUs' default limit; 100: none.")
    steps: int = Field(0, ge=0, description="Steps that were measured.")
    joules: int = Field(0, ge=0, description="Energy they used.")
    milliseconds: int = Field(0, ge=0, description="Time they took.")
    windows: int = Field(0, ge=0, description="Windows they were measured in.")
    spread: int = Field(
        0, ge=0, description="How much the windows differ; a sum of squares, see docs/budgets.md."
    )
    lagged: int = Field(0, description="How much neighbouring windows differ together.")
    latest: int = Field(0, description="How much the last one differed.")


class SampleStatus(StatusModel):
    """How far a job was, and what it had used by then."""

    attempt: int = Field(ge=0, description="Attempt it was seen in.")
    step: int = Field(ge=0, description="Steps done.")
    joules: int = Field(ge=0, description="Energy used.")
    moment: int = Field(ge=0, description="Unix time in milliseconds.")
    percent: int = Field(ge=1, le=100, description="The cap that was asked for; 100: none.")
    complete: bool = Field(True, description="Whether it was in force on all of its GPUs.")


class ProjectionStatus(StatusModel):
    """What the job will have used and emitted when it has finished, from what its steps were measured to cost."""

    LEDGER = frozenset({"measures", "begun", "anchor", "last"})

    energy: str = Field(
        "", max_length=32, description="Energy at the end, with its unit; empty where it is not known."
    )
    energy_joules: int | None = Field(None, ge=0, description="The same in joules, with what is used.")
    uncertainty_joules: int | None = Field(None, ge=0, description="Error bound of that at 95 % confidence.")
    emissions: str = Field("", max_length=32, description="Emissions at the end, with the unit.")
    emissions_micrograms: int | None = Field(
        None, ge=0, description="The same at the present intensity, with what was emitted."
    )
    completion_time: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When it will have finished.",
    )
    exceeds: Literal["Yes", "No", "Unknown"] = Field(
        "Unknown", description="Whether a budget will be exceeded; Unknown where it is too close to say."
    )
    cannot_finish: bool = Field(
        False,
        description="True when a budget will be exceeded at every allowed cap, and the lowest was measured.",
    )
    reason: str = Field("", max_length=64, description="Why the cap is what it is, one word for programs.")
    message: str = Field("", max_length=1024, description="The same in one sentence.")
    percent: int | None = Field(
        None,
        ge=1,
        le=100,
        description="The cap that was chosen; none where spec.power.budgetPolicy does not choose.",
    )
    measures: tuple[CapMeasureStatus, ...] = Field(
        (), max_length=32, description="What was measured, by cap."
    )
    begun: SampleStatus | None = Field(None, description="First sample at the present cap.")
    anchor: SampleStatus | None = Field(None, description="Where the window under way began.")
    last: SampleStatus | None = Field(None, description="Last sample.")


class AdmittedSections(StatusModel):
    """Sections of the spec as they were admitted last: what holds where an edit is refused."""

    run_policy: RunPolicy = Field(RunPolicy(), description="spec.runPolicy.")
    energy: EnergySpec = Field(EnergySpec(), description="spec.energy.")
    emissions: EmissionsSpec = Field(EmissionsSpec(), description="spec.emissions.")
    power: PowerSpec | None = Field(None, description="spec.power.")


BudgetType = Literal["Energy", "Emissions"]


class BudgetLine(StatusModel):
    """How one budget stands."""

    type: BudgetType = Field(description="What is limited: Energy or Emissions.")
    limit: str = Field(max_length=32, description="The budget as it is in force.")
    used: str = Field("", max_length=32, description="What the job has used or emitted of it.")
    percent: int = Field(
        ge=0,
        description="Whole percent of the limit that is used, what is charged for missing readings included.",
    )
    charged: str = Field(
        "",
        max_length=32,
        description="What is charged while readings or intensities are missing, and settled when they come; part of percent.",
    )
    reserved: str = Field(
        "",
        max_length=32,
        description="Kept free for a stop: what the job would use until one has taken effect.",
    )
    bound: str = Field(
        "", max_length=32, description="By how much it could be exceeded at worst by the attempt under way."
    )
    warned: int = Field(
        0, ge=0, le=100, description="The highest of spec.energy.warnAtPercent that was reached."
    )
    exhausted: bool = Field(
        description="Whether it is spent, or would be by the time a stop has taken effect."
    )
    action: OnExhausted = Field(description="What happens when it is spent: Suspend, Fail or Warn.")


class DisplayStatus(StatusModel):
    """Words for the columns of kubectl get; read by no program."""

    reason: str = Field(
        "",
        max_length=64,
        description="Why it is not training, or has failed; nothing where it trains or has succeeded.",
    )
    workers: str = Field("", max_length=32, description="Ready of wanted pods.")
    progress: str = Field("", max_length=64, description="Percent done, or the step where no total is known.")
    energy: str = Field("", max_length=32, description="Energy used; nothing where nothing is known.")
    budget: str = Field("", max_length=16, description="Percent of its budget that is used.")
    emissions: str = Field("", max_length=32, description="Emissions; nothing where nothing is known.")
    draw: str = Field("", max_length=32, description="Power its pods draw.")
    cap: str = Field(
        "",
        max_length=48,
        description="The power cap, and on how many of its GPUs it is in force where not on all.",
    )


class GreenTrainingJobStatus(StatusModel):
    """What the operator observed."""

    LEDGER = frozenset({"admitted"})

    observed_generation: int = Field(0, ge=0, description="metadata.generation this status was computed for.")
    phase: str = Field(
        "",
        max_length=32,
        description="Its state in one word, derived from the conditions; Succeeded and Failed are final.",
    )
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=32,
        description="Observed aspects by type.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    replica_statuses: dict[str, ReplicaStatus] = Field({}, description="Pods by role and state.")
    label_selector: str = Field(
        "", max_length=512, description="Selects the worker pods; for the scale subresource."
    )
    attempts: tuple[AttemptStatus, ...] = Field(
        (),
        max_length=KEPT_ATTEMPTS,
        description="The last ten attempts, oldest first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    attempt_count: int = Field(0, ge=0, description="Attempts started so far.")
    failure_count: int = Field(0, ge=0, description="Failures counted against backoffLimit.")
    infrastructure_failure_count: int = Field(
        0, ge=0, description="Failures counted against infrastructureRestartLimit."
    )
    active_seconds: int = Field(
        0, ge=0, description="Seconds all ended attempts have run; counts against activeDeadlineSeconds."
    )
    start_time: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When the first attempt began.",
    )
    completion_time: Time | None = Field(
        None, max_length=32, json_schema_extra={"format": "date-time"}, description="When the job finished."
    )
    admitted: AdmittedSections | None = Field(
        None, description="Sections of the spec as they were admitted last; none before that."
    )
    progress: ProgressStatus | None = Field(None, description="How far the program says it is.")
    energy: EnergyStatus | None = Field(
        None, description="Energy the job has used; none where no node of its measures."
    )
    emissions: EmissionsStatus | None = Field(
        None, description="Emissions the job has caused; none where no energy is known."
    )
    power: PowerStatus | None = Field(
        None, description="Power limits of its GPUs; none where no cap was ever asked for."
    )
    projection: ProjectionStatus | None = Field(
        None,
        description="What the job will have used when it has finished; none before anything was measured.",
    )
    budgets: tuple[BudgetLine, ...] = Field(
        (),
        max_length=8,
        description="One line for each budget.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    display: DisplayStatus = Field(DisplayStatus(), description="Words for the columns of kubectl get.")
    ledger: str = Field(
        "",
        max_length=MAX_LEDGER,
        description="The operator's own working memory, as JSON: what each pod used, what is charged and allowed, what was "
        "measured, and the spec's sections as they were admitted last. Not to be edited: a job whose "
        "ledger cannot be read is held.",
    )


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
"""Fields of the agreed API this version refuses, with what they are for.

A job that asks for them must not run as if it had not: it is refused by the full path until they exist.
"""

REPLACED: dict[str, str] = {
    "spec.power.policy": "it is spec.power.budgetPolicy now: write LowerCap there for Budget, or nothing for Fixed",
}
"""Fields that this version does not have any more, by path, with what stands in their place."""
