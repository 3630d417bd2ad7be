"""GreenTrainingJob's status: what the operator observed. The CRD is generated from these models."""

from __future__ import annotations

import contextlib
from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from greentrain.api.budgets import BudgetLine, ControlStatus, LineStatus
from greentrain.api.models import StatusModel, Strict, Time, or_nothing
from greentrain.api.spec import (
    MAX_REPLICAS,
    Basis,
    EmissionsSpec,
    EnergySpec,
    PowerSpec,
    RunPolicy,
    Scope,
    SuccessPolicy,
)
from greentrain.quantities import (
    Intensity,
    Joules,
    Micrograms,
    Milliseconds,
    Milliwatts,
    Thousandths,
    add,
    parse_power_cap,
    parse_pue,
)

KEPT_REPLACED = 10
"""How many replaced pods an attempt lists; the counts of the status count them all."""


KEPT_PODS = 4 * MAX_REPLICAS
"""How many entries of pods `status.energy.pods` lists."""


KEPT_SETTLED = 128
"""How many settled pods are remembered by name. A report of one older than 128 others is long out of date."""


KEPT_ATTEMPTS = 10
"""How many attempts `status.attempts` lists; `attemptCount` and `failureCount` count them all."""


CountedAgainst = Literal["backoffLimit", "infrastructureRestartLimit"]
"""The limits of `spec.runPolicy` that failures count against."""


MAX_LEDGER = 1 << 20
"""Characters: a job of 1,024 pods, each with its sums, takes about half; etcd takes objects of 1.5 MiB."""


class Condition(Strict):
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

    step: int = Field(ge=0, description="Global step that it contains.")
    path: str = Field("", max_length=1024, description="Where it lies, inside the containers.")
    confirmed: bool = Field(
        False, description="True when the program's termination message named it after writing it completely."
    )


class ProgressStatus(StatusModel):
    """The progress that the program reports."""

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
    energy_joules: Joules | None = Field(
        None, ge=0, description="Energy its pods have used; none where nothing was measured."
    )
    gpus: int = Field(0, ge=0, description="GPUs its pods ask for.")
    gpu_limit_milliwatts: Milliwatts | None = Field(
        None,
        ge=0,
        description="The highest power limit one of them can have: before they were on nodes, the highest that two nodes of the "
        "cluster report; then also that of their own nodes.",
    )
    report_seconds: int | None = Field(
        None, ge=1, description="The longest interval between reports of its nodes, found in the same way."
    )
    pue_thousandths: Thousandths | None = Field(
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
        description="How long it could go on after its budget was spent, whatever fails: the same, and the time until agents "
        "act when the operator has failed.",
    )
    overshoot_bound_joules: Joules | None = Field(
        None,
        ge=0,
        description="By how much it could exceed its budget: the limits of all its GPUs over that time. Said before it "
        "started, and raised where its pods came to nodes with higher limits or longer intervals; none where no node has "
        "reported.",
    )
    overshoot_bound_micrograms: Micrograms | None = Field(
        None,
        ge=0,
        description="The same of a budget of emissions: that energy at the highest intensity that was seen or is known for the "
        "next hour, and the embodied share of that time; none where no intensity was known.",
    )


class GpuTimeStatus(StatusModel):
    """For how long GPUs of one model were allocated."""

    model: str = Field("", max_length=96, description="Product name; empty where the GPU never reported it.")
    seconds: int = Field(0, ge=0, description="Seconds, added up over the GPUs.")


class PodEnergyStatus(StatusModel):
    """What one pod used, as its node's agent reported last; folded into the sums once the agent has dropped it."""

    uid: str = Field("", max_length=64, description="UID of the pod; none for a sum.")
    segment: int = Field(
        0, ge=0, description="As in NodePower: 0, or how often the pod went on after it was settled."
    )
    node: str = Field("", max_length=253, description="Node it ran on.")
    name: str = Field("", max_length=253, description="Name of the pod.")
    attempt: int = Field(0, ge=0, description="Attempt it belonged to; 0 where that is not known.")
    gpu_joules: Joules = Field(Joules(0), ge=0, description="Energy of the GPUs that were allocated to it.")
    cpu_joules: Joules = Field(Joules(0), ge=0, description="Its share of the processors' energy.")
    dram_joules: Joules = Field(Joules(0), ge=0, description="Its share of the memory's energy.")
    estimated_joules: Joules = Field(Joules(0), ge=0, description="How much of it is an estimate.")
    error_joules: Joules = Field(Joules(0), ge=0, description="Its error bound at 95 % confidence.")
    missing_seconds: int = Field(0, ge=0, description="Seconds of which nothing is known.")
    counter_faults: int = Field(0, ge=0, description="How often a counter of its GPUs showed what cannot be.")
    priced_joules: Joules = Field(
        Joules(0), ge=0, description="How much of its energy is in the emissions' fixed sums already."
    )
    priced_until: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="End of the last quarter of an hour that is in them.",
    )
    gpu_time: tuple[GpuTimeStatus, ...] = Field(
        (), max_length=64, description="How long GPUs were allocated to it, by model."
    )
    final: bool = Field(False, description="True when the pod has ended and this is its final report.")

    @property
    def key(self) -> str:
        """UID/segment."""
        return f"{self.uid}/{self.segment}"

    @property
    def joules(self) -> Joules:
        """Energy of all device kinds."""
        return add(self.gpu_joules, self.cpu_joules, self.dram_joules)

    def counted(self, scope: Scope) -> Joules:
        """Joules within a scope."""
        return self.gpu_joules if scope == "GPU" else self.joules


class EnergyStatus(StatusModel):
    """Energy the job has used, over all attempts, pods and nodes."""

    LEDGER = frozenset(
        {"accounted", "budget", "control", "folded", "folded_error_squared", "pods", "settled"}
    )

    scope: Scope = Field("GPU", description="What is counted as used: GPU, or Node.")
    budget: LineStatus | None = Field(None, description="Its budget, in joules; none without one.")
    control: ControlStatus | None = Field(
        None, description="What keeps its budgets, of energy or of emissions; none without one."
    )
    draw_milliwatts: Milliwatts | None = Field(
        None, ge=0, description="Power its pods draw together; none where it is not known."
    )
    used: str = Field("", max_length=32, description="Energy used within `scope`, with its unit.")
    used_joules: Joules = Field(
        Joules(0), ge=0, description="Energy used within `scope`, exactly what was counted."
    )
    gpu_joules: Joules = Field(Joules(0), ge=0, description="Energy of GPUs.")
    cpu_joules: Joules = Field(
        Joules(0), ge=0, description="Energy of processors (RAPL); used where scope is Node."
    )
    dram_joules: Joules = Field(
        Joules(0), ge=0, description="Energy of memory (RAPL); used where scope is Node."
    )
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
    counter_faults: int = Field(
        0,
        ge=0,
        description="How often the energy counter of one of its GPUs showed what that GPU cannot have used. Nothing of that is "
        "counted: the GPU's power is added up instead, or the time is missing.",
    )
    error_joules: Joules = Field(Joules(0), ge=0, description="Error bound of usedJoules at 95 % confidence.")
    lost_pods: int = Field(
        0,
        ge=0,
        description="Pods whose final report never arrived: what they used after their last report is in no sum.",
    )
    final: bool = Field(
        False, description="True when the job has finished and every pod's final report is in the sum."
    )
    accounted: bool = Field(
        False,
        description="True from when the account was final for the first time, or a missing report was given up: the event "
        "Accounted is created once.",
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
        description="Pods that their nodes still report, or whose final report is missing.",
    )
    settled: tuple[str, ...] = Field(
        (),
        max_length=KEPT_SETTLED,
        description="UID/segment of pods in `folded`, last ones last: an old report of one is not counted again.",
    )


class EmissionsShare(StatusModel):
    """Energy that was priced with the values of one source."""

    source: str = Field(max_length=64, description="Name of the source.")
    joules: Joules = Field(Joules(0), ge=0, description="Energy of the devices; PUE is not in it.")
    percent: int = Field(0, ge=0, le=100, description="Its share of the energy, in whole percent.")
    micrograms: Micrograms = Field(Micrograms(0), ge=0, description="Emissions, PUE included.")
    as_of: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="What time the latest of its values was of: how old the intensity is.",
    )


class FixedEmissions(StatusModel):
    """Sums that no longer change, whatever a source publishes later."""

    shares: tuple[EmissionsShare, ...] = Field((), max_length=64, description="By source.")
    without_joules: Joules = Field(Joules(0), ge=0, description="Energy for which there was no intensity.")
    embodied_micrograms: Micrograms = Field(
        Micrograms(0), ge=0, description="Embodied share of pods that are settled and not listed any more."
    )
    embodied_low_micrograms: Micrograms = Field(
        Micrograms(0), ge=0, description="The same by the lowest known figures."
    )
    embodied_high_micrograms: Micrograms = Field(
        Micrograms(0), ge=0, description="The same by the highest known figures."
    )
    embodied_unknown_seconds: int = Field(
        0, ge=0, description="Their time on GPUs of which no figure is known."
    )


class EmissionsStatus(StatusModel):
    """Emissions the job has caused, over all attempts, pods and nodes."""

    LEDGER = frozenset(
        {"budget", "fixed", "highest_milligrams_per_kilowatt_hour", "zone", "include_embodied"}
    )

    @field_validator("pue")
    @classmethod
    def _is_pue(cls, value: str) -> str:
        return or_nothing(value, parse_pue)

    total: str = Field("", max_length=32, description="Operational and embodied emissions, with the unit.")
    total_micrograms: Micrograms = Field(
        Micrograms(0), ge=0, description="The same, in micrograms of CO2 equivalent."
    )
    operational_micrograms: Micrograms = Field(
        Micrograms(0),
        ge=0,
        description="Energy × PUE × intensity at that time; energy without intensity is not in it.",
    )
    embodied_micrograms: Micrograms | None = Field(
        None,
        ge=0,
        description="Share of making its GPUs, by time; none where it does not count or nothing is known.",
    )
    embodied_low_micrograms: Micrograms | None = Field(
        None, ge=0, description="The same by the lowest known figures."
    )
    embodied_high_micrograms: Micrograms | None = Field(
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
    without_joules: Joules = Field(Joules(0), ge=0, description="Energy for which there is no intensity.")
    without_percent: int = Field(0, ge=0, le=100, description="Its share of the energy, in whole percent.")
    without_reason: str = Field("", max_length=1024, description="Why there is none, in one sentence.")
    intensity: str = Field("", max_length=32, description="Intensity now, with its unit.")
    intensity_milligrams_per_kilowatt_hour: Intensity | None = Field(
        None, ge=0, description="The highest of its nodes' intensities now; none where there is none."
    )
    source: str = Field("", max_length=64, description="Where that comes from.")
    highest_milligrams_per_kilowatt_hour: Intensity = Field(
        Intensity(0), ge=0, description="The highest intensity seen since the job began."
    )
    micrograms_per_run: int | None = Field(
        None,
        ge=0,
        description="Software Carbon Intensity (ISO/IEC 21031) of one training run; none where a part of it is not known.",
    )
    micrograms_per_step: int | None = Field(None, ge=0, description="The same of one step.")
    budget: LineStatus | None = Field(None, description="Its budget, in micrograms; none without one.")
    fixed: FixedEmissions = Field(FixedEmissions(), description="Sums that no source can change any more.")
    final: bool = Field(False, description="True when the job has finished and all its energy is in.")


class PowerStatus(StatusModel):
    """Power limits of the job's present GPUs, as their nodes' agents have read them back."""

    cap: str = Field(
        "", max_length=16, description="spec.power.cap as it is in force; nothing where none is."
    )

    @field_validator("cap")
    @classmethod
    def _is_cap(cls, value: str) -> str:
        # It is requested of agents: one that was damaged by hand counts as none, until the spec is read again.
        with contextlib.suppress(ValueError):
            parse_power_cap(value)
            return value
        return ""

    asked_milliwatts: Milliwatts | None = Field(
        None, ge=0, description="What that asks of a GPU; the most, where GPUs differ."
    )
    set_milliwatts: Milliwatts | None = Field(
        None, ge=0, description="Limit that is set; the highest of its GPUs."
    )
    enforced_milliwatts: Milliwatts | None = Field(
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
    joules: Joules = Field(Joules(0), ge=0, description="Energy they used.")
    milliseconds: Milliseconds = Field(Milliseconds(0), ge=0, description="Time they took.")
    windows: int = Field(0, ge=0, description="Windows they were measured in.")
    spread: int = Field(
        0, ge=0, description="How much the windows differ; a sum of squares, see docs/tasks/budgets.md."
    )
    lagged: int = Field(0, description="How much neighbouring windows differ together.")
    latest: int = Field(0, description="How much the last one differed.")


class SampleStatus(StatusModel):
    """How far a job was, and what it had used by then."""

    attempt: int = Field(ge=0, description="Attempt it was seen in.")
    step: int = Field(ge=0, description="Steps done.")
    joules: Joules = Field(ge=0, description="Energy used.")
    moment: int = Field(ge=0, description="Unix time in milliseconds.")
    percent: int = Field(ge=1, le=100, description="The cap that was asked for; 100: none.")
    complete: bool = Field(True, description="Whether it was in force on all of its GPUs.")


class ProjectionStatus(StatusModel):
    """What the job will have used and emitted when it has finished, from what its steps were measured to cost."""

    LEDGER = frozenset({"measures", "begun", "anchor", "last"})

    energy: str = Field(
        "", max_length=32, description="Energy at the end, with its unit; empty where it is not known."
    )
    energy_joules: Joules | None = Field(None, ge=0, description="The same in joules, with what is used.")
    uncertainty_joules: Joules | None = Field(
        None, ge=0, description="Error bound of that at 95 % confidence."
    )
    emissions: str = Field("", max_length=32, description="Emissions at the end, with the unit.")
    emissions_micrograms: Micrograms | None = Field(
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
    """Sections of the spec as they were admitted last: they stay in force where an edit is rejected."""

    run_policy: RunPolicy = Field(RunPolicy(), description="spec.runPolicy.")
    energy: EnergySpec = Field(EnergySpec(), description="spec.energy.")
    emissions: EmissionsSpec = Field(EmissionsSpec(), description="spec.emissions.")
    power: PowerSpec | None = Field(None, description="spec.power.")


class DisplayStatus(StatusModel):
    """Texts for the columns of kubectl get; no program reads them."""

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
        "ledger cannot be read is put on hold.",
    )
