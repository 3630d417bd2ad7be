"""NodePower v1alpha1: the only connection between the operator and a node's agent, one object per node that has GPUs.

The operator writes `spec` and the agent writes `status`; neither writes the other's half. The object outlives the agent, the
operator and the Node, so that what was measured is not lost with any of them.

Energy is reported in whole joules that only grow: a sum of millijoules, cut off. So the joules of a pod's buckets add up to its
total, and the totals of a node to what its cards' counters have shown.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from greentrain import quantities
from greentrain.api.spec import Scope
from greentrain.api.status import Condition
from greentrain.quantities import PowerCap, typed

BUCKET_SECONDS = 900
"""Length of a bucket: a quarter of an hour, aligned to UTC, as grids publish their intensity."""

KEPT_BUCKETS = 384
"""Buckets an entry lists, four days; what is older is one sum (`earlierJoules`)."""

MAX_PODS = 1024
MAX_GPUS = 64

# An agent's token may be stolen: what it can write is bounded, far above what any node has. The operator checks each report
# against the same bounds (`core.seen.reports`), since one may be stored under an older schema.
MAX_MILLIWATTS = 10_000_000
"""10 kW, which no GPU comes near."""
MAX_DRAW_MILLIWATTS = 1_000_000_000
"""1 MW: every GPU of a node at that limit, and its processors."""
MAX_REPORT_SECONDS = 3600
MAX_JOULES = 10**15
"""More than 10,000 GPUs use in a year at 1 kW; sums over a job's pods stay within 64 bits."""
MAX_SECONDS = 10**10
"""Three centuries, of one GPU or many together."""
MAX_COUNT = 10**6

Uid = Annotated[str, Field(max_length=64)]
Joules = Annotated[quantities.Joules, Field(ge=0, le=MAX_JOULES)]
Milliwatts = Annotated[quantities.Milliwatts, Field(ge=0, le=MAX_MILLIWATTS)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class _Lenient(BaseModel):
    # The other side may be of a newer version: unknown fields are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


def _time(description: str) -> str | None:
    field: str | None = Field(
        None, max_length=32, json_schema_extra={"format": "date-time"}, description=description
    )
    return field


BudgetAction = Literal["None", "Throttled", "Evicted"]
"""What an agent has done about a pod whose allowance is spent."""


class PodAsk(_Lenient):
    """What is asked for one pod: a power limit of its GPUs, an allowance of energy, or both."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    namespace: str = Field("", max_length=63, description="Namespace of the pod.")
    name: str = Field("", max_length=253, description="Name of the pod.")
    cap_milliwatts: quantities.Milliwatts | None = Field(None, ge=1, description="Limit of each of its GPUs.")
    cap_percent: int | None = Field(
        None, ge=1, le=100, description="The same as a share of each GPU's default limit."
    )
    allowance_joules: quantities.Joules | None = Field(
        None,
        ge=0,
        description="Energy the pod may have used in all on this node; when it is spent and the operator is silent, the agent "
        "lowers the pod's GPUs to their lowest limit and evicts it. None where its job has no budget.",
    )
    allowance_scope: Scope = Field(
        "GPU", description="Which energy counts: GPU, or Node (GPUs, processors and memory)."
    )
    allowance_seconds: int | None = Field(
        None,
        ge=1,
        description="After how many seconds without the operator the allowance counts as spent: it was computed with a grid "
        "intensity and a time that are known no further ahead. None: only when it is used up.",
    )

    @property
    def cap(self) -> PowerCap:
        """The requested power cap; empty where only an allowance is given."""
        watts = typed(quantities.Milliwatts, self.cap_milliwatts)
        return PowerCap(watts, self.cap_percent if watts is None else None)


class NodePowerSpec(_Lenient):
    """What the operator asks of the agent."""

    pods: tuple[PodAsk, ...] = Field(
        (),
        max_length=MAX_PODS,
        description="Pods whose GPUs have a power limit while they are allocated to them, or that have an allowance of "
        "energy.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]},
    )

    settled: tuple[str, ...] = Field(
        (),
        max_length=MAX_PODS,
        description="UID/segment of ended pods whose energy stands in a job's status, or belongs to no job: the agent "
        "need not report them any more.",
    )


class PowerLimits(_Lenient):
    """Power limits of one GPU in milliwatts, as its driver reports them."""

    min_milliwatts: Milliwatts | None = Field(None, description="Lowest limit that can be set.")
    default_milliwatts: Milliwatts | None = Field(None, description="Limit after the driver is loaded.")
    max_milliwatts: Milliwatts | None = Field(None, description="Highest limit that can be set.")
    previous_milliwatts: Milliwatts | None = Field(
        None, description="Limit that was set before the agent changed it, and will be again."
    )
    set_milliwatts: Milliwatts | None = Field(None, description="Limit that is set.")
    enforced_milliwatts: Milliwatts | None = Field(
        None, description="Limit in force: the lowest of all that limit the card."
    )


CapReason = Literal[
    "Capped",
    "Clamped",
    "PreviousLower",
    "Applying",
    "Contested",
    "DryRun",
    "MigMode",
    "Shared",
    "Unsupported",
    "NotPermitted",
    "OutOfRange",
    "NoJournal",
    "GpuLost",
    "GpuFailing",
    "Paused",
]
"""The state of a cap on one GPU; the first three mean that it is in force."""

IN_FORCE: frozenset[CapReason] = frozenset({"Capped", "Clamped", "PreviousLower"})


class GpuCap(_Lenient):
    """The state of the requested cap on one GPU."""

    pod_uid: str = Field(max_length=64, description="UID of the pod that the GPU is allocated to.")
    sharing_pod_uids: tuple[Uid, ...] = Field(
        (),
        max_length=MAX_PODS,
        description="UIDs of other pods that a part of it is allocated to and that request a cap.",
    )
    asked_milliwatts: Milliwatts | None = Field(
        None, description="What is asked for this GPU; none where its default limit is not known."
    )
    target_milliwatts: Milliwatts | None = Field(
        None,
        description="What is due: not above the limit it had before, within the GPU's range.",
    )
    reason: CapReason = Field(
        description="Capped, Clamped (to the GPU's range) or PreviousLower (an administrator's lower limit stays): in force. "
        "Everything else: why it is not.",
    )
    message: str = Field("", max_length=512, description="The same in one sentence, with the next step.")
    binding: bool | None = Field(
        None,
        description="Whether the limit slowed the GPU down when it was last read; none where it does not say.",
    )

    def concerns(self, uid: str) -> bool:
        """Whether it concerns this pod, by its UID."""
        return uid == self.pod_uid or uid in self.sharing_pod_uids

    @property
    def in_force(self) -> bool:
        """Whether the limit in force, as read back, is not above the one that is due."""
        return self.reason in IN_FORCE


class GpuStatus(_Lenient):
    """One GPU of the node."""

    uuid: str = Field(max_length=96, description="UUID, as NVML spells it.")
    model: str = Field("", max_length=96, description="Product name.")
    health: Literal["Healthy", "Lost", "Failing", "Unsupported"] = Field(
        "Healthy",
        description="Healthy; Lost (fallen off the bus); Failing (its calls fail or hang); Unsupported (it reports neither "
        "energy nor power).",
    )
    message: str = Field("", max_length=512, description="What is wrong with it, with the next step.")
    source: Literal["Counter", "Power", "None"] = Field(
        "None",
        description="Where its energy comes from: its energy counter, its power added up (an estimate), or nowhere.",
    )
    limits: PowerLimits = Field(PowerLimits(), description="Its power limits.")
    cap: GpuCap | None = Field(
        None, description="What has become of the cap its pod asks for; none where none does."
    )
    joules: Joules = Field(
        quantities.Joules(0), description="Energy since the agent first saw it, of every user."
    )
    error_joules: Joules = Field(
        quantities.Joules(0),
        description="By how much that may be wrong because its power stood in for its counter, or the counter was reset.",
    )
    counter_faults: Count = Field(
        0, description="How often its energy counter showed what it cannot have used; see CountersPlausible."
    )


class EnergyBuckets(_Lenient):
    """Energy by quarter of an hour."""

    start: str | None = _time("Beginning of the first bucket, UTC.")
    joules: tuple[Joules, ...] = Field(
        (),
        max_length=KEPT_BUCKETS,
        description="Joules of each quarter of an hour from `start` on, of all devices.",
    )
    earlier_joules: Joules = Field(quantities.Joules(0), description="Joules of all quarters before `start`.")
    host_joules: tuple[Joules, ...] = Field(
        (),
        max_length=KEPT_BUCKETS,
        description="Of `joules`, those of processors and memory; nothing where there are none.",
    )
    earlier_host_joules: Joules = Field(
        quantities.Joules(0), description="Of `earlierJoules`, those of processors and memory."
    )


class GpuTime(_Lenient):
    """How long GPUs of one model were allocated to a pod."""

    model: str = Field("", max_length=96, description="Product name; empty where the GPU never reported it.")
    seconds: Seconds = Field(
        0, description="Seconds, added up over the GPUs; a shared GPU counts by its share."
    )


class PodEnergy(_Lenient):
    """Energy of one pod on this node."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    segment: Count = Field(
        0, description="0, or how often the pod was reported as settled and went on using energy."
    )
    namespace: str = Field(max_length=63, description="Namespace of the pod.")
    name: str = Field(max_length=253, description="Name of the pod.")
    job: str | None = Field(None, max_length=63, description="GreenTrainingJob it belongs to.")
    job_uid: str | None = Field(None, max_length=64, description="UID of that GreenTrainingJob.")
    owner_known: bool = Field(
        False,
        description="Whether the API server has confirmed whose pod it is; where not, only its name shows it.",
    )
    gpu_joules: Joules = Field(
        quantities.Joules(0), description="Energy of the GPUs that were allocated to it."
    )
    cpu_joules: Joules = Field(
        quantities.Joules(0), description="Its share of the processors' energy (RAPL package domains)."
    )
    dram_joules: Joules = Field(
        quantities.Joules(0), description="Its share of the memory's energy (RAPL dram domains)."
    )
    estimated_joules: Joules = Field(
        quantities.Joules(0),
        description="How much of all this is an estimate: added-up power, shared cards, shares of CPU time.",
    )
    error_joules: Joules = Field(
        quantities.Joules(0), description="Error bound of all this at 95 % confidence."
    )
    missing_seconds: Seconds = Field(
        0,
        description="Seconds of its GPUs of which nothing is known, neither measured nor estimated, added up over the GPUs.",
    )
    counter_faults: Count = Field(
        0,
        description="How often the energy counter of one of its GPUs showed what that GPU cannot have used; the time is "
        "counted by the GPU's power, as estimated, or is missing.",
    )
    first_reading: str | None = _time("First reading it has a part in.")
    last_reading: str | None = _time("Last reading it has a part in.")
    read_until: str | None = _time(
        "Until when all its GPUs were read, where one of them has not been read since; absent where all are."
    )
    unread_gpus: Count = Field(
        0,
        description="GPUs allocated to it that have not been read once since, or that no driver on the node lists. Their time is in "
        "missingSeconds, or in readUntil where the GPU was read before: then its counter may still show what they used.",
    )
    draw_milliwatts: quantities.Milliwatts | None = Field(
        None,
        ge=0,
        le=MAX_DRAW_MILLIWATTS,
        description="Power over the last seconds; none where it was not read twice yet.",
    )
    gpu_time: tuple[GpuTime, ...] = Field(
        (), max_length=MAX_GPUS, description="How long GPUs were allocated to it, by model."
    )
    allowance_joules: quantities.Joules | None = Field(
        None, ge=0, description="The allowance the agent goes by; none where it knows of none."
    )
    budget_action: BudgetAction = Field(
        "None",
        description="What was done because its allowance was spent and the operator was silent: None, Throttled (its GPUs "
        "are at their lowest limit) or Evicted.",
    )
    closed: bool = Field(False, description="True when the pod has ended and its GPUs are released.")
    buckets: EnergyBuckets = Field(EnergyBuckets(), description="The same energy by quarter of an hour.")

    @property
    def key(self) -> str:
        """UID/segment, as in `spec.settled`."""
        return f"{self.uid}/{self.segment}"

    @property
    def joules(self) -> quantities.Joules:
        """Energy of all device kinds."""
        return quantities.add(self.gpu_joules, self.cpu_joules, self.dram_joules)


class NodePowerDisplay(_Lenient):
    """Texts for the columns of kubectl get; no program reads them."""

    draw: str = Field("", max_length=32, description="Power that the GPUs draw together, as they report it.")
    idle: str = Field(
        "", max_length=32, description="Energy of GPUs that were allocated to no pod and did nothing."
    )
    unattributed: str = Field(
        "", max_length=32, description="Energy of GPUs that worked although they were allocated to no pod."
    )


class NodePowerStatus(_Lenient):
    """What the node's agent observed."""

    observed_at: str | None = _time("When this was observed, by the node's clock.")
    report_interval_seconds: int | None = Field(
        None, ge=1, le=MAX_REPORT_SECONDS, description="Seconds between two reports, give or take a tenth."
    )
    region: str = Field(
        "",
        max_length=63,
        description="The node's label topology.kubernetes.io/region: where its power comes from.",
    )
    zone: str = Field("", max_length=63, description="The node's label topology.kubernetes.io/zone.")
    journal_id: str = Field(
        "",
        max_length=64,
        description="Identity of the journal on the node's disk; another one begins from nothing.",
    )
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        description="Observed aspects by type: DevicesReadable, HoldersKnown, JournalWritable, CapsAllowed, "
        "HostReadable, OperatorActive, CountersPlausible.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    gpus: tuple[GpuStatus, ...] = Field(
        (),
        max_length=MAX_GPUS,
        description="The node's GPUs.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uuid"]},
    )
    pods: tuple[PodEnergy, ...] = Field(
        (), max_length=MAX_PODS, description="Pods that use energy, or have and are not settled yet."
    )
    idle_joules: Joules = Field(
        quantities.Joules(0), description="Energy of GPUs that were allocated to no pod and did nothing."
    )
    unattributed_joules: Joules = Field(
        quantities.Joules(0), description="Energy of GPUs that worked although they were allocated to no pod."
    )
    settled_joules: Joules = Field(
        quantities.Joules(0), description="GPU energy of pods that are not listed any more."
    )
    other_host_joules: Joules = Field(
        quantities.Joules(0),
        description="Energy of processors and memory that none of the listed pods had a share in.",
    )
    dropped_pods: Count = Field(
        0,
        description="Pods that fell out of this list unsettled, after 24 hours: their energy is missing.",
    )
    gpu_count: Count = Field(0, description="How many GPUs the node has; for the column.")
    display: NodePowerDisplay = Field(NodePowerDisplay(), description="Words for the columns of kubectl get.")


def resolve_cap(cap: PowerCap, limits: PowerLimits) -> int | None:
    """A cap in milliwatts on one card; None where its default limit is not known."""
    if cap.milliwatts is not None:
        return cap.milliwatts
    if cap.percent is None or limits.default_milliwatts is None:
        return None
    return limits.default_milliwatts * cap.percent // 100


def lowest_percent(min_milliwatts: Milliwatts, default_milliwatts: Milliwatts) -> int:
    """The lowest limit of a card as a share of its default limit, rounded up to a whole percent, at most 100."""
    return min(100, -(-min_milliwatts * 100 // default_milliwatts))
