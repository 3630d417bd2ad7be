"""The state of a job's budgets in its status: a line of each for `kubectl`, and what the operator must remember of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from greentrain.api.models import StatusModel, Time
from greentrain.api.spec import MAX_REPLICAS, OnExhausted
from greentrain.quantities import Joules, Milliwatts


class PodAllowance(StatusModel):
    """How much energy one pod may use before its node's agent acts on its own."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    joules: Joules = Field(ge=0, description="Energy it may have used in all.")
    granted_joules: Joules = Field(
        Joules(0),
        ge=0,
        description="The allowance that its agent may still enforce: an earlier, higher one until it has reported that it "
        "has read this one.",
    )
    seconds: int | None = Field(
        None,
        ge=1,
        description="After how many seconds without the operator it counts as spent; none: only when it is used up.",
    )


class PodCharge(StatusModel):
    """What is charged for one pod while its readings are missing."""

    uid: str = Field(max_length=64, description="UID of the pod.")
    node: str = Field("", max_length=253, description="Node it runs on.")
    limit_milliwatts: Milliwatts = Field(ge=0, description="Power limits of its GPUs together.")
    since: Time = Field(
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When it was read last, by the operator's clock; else when it started.",
    )
    gone: Time | None = Field(
        None,
        max_length=32,
        json_schema_extra={"format": "date-time"},
        description="When it ended, where its final report is missing.",
    )
    joules: Joules = Field(
        Joules(0), ge=0, description="What is charged for it now; nothing while its node reports in time."
    )


class LineStatus(StatusModel):
    """One budget as it was evaluated last, in its own unit: joules, or micrograms of CO2 equivalent."""

    limit: int = Field(ge=1, description="The budget as it is in force.")
    percent: int = Field(
        ge=0, description="Whole percent that is used, what is charged for what is missing included."
    )
    charged: int = Field(
        0,
        ge=0,
        description="Of that, charged while readings or intensities are missing; settled when they come.",
    )
    reserved: int = Field(
        0,
        ge=0,
        description="Kept free for a stop: the job is stopped when what is used and this reach the limit.",
    )
    bound: int | None = Field(
        None, ge=0, description="By how much it could be exceeded by the attempt under way."
    )
    spent_limit: int | None = Field(
        None,
        ge=0,
        description="The limit that was spent: the job goes on when a higher one is set. None while it is not.",
    )
    lowered: bool = Field(
        False, description="Whether it is spent because it was set below what had been used."
    )


class ControlStatus(StatusModel):
    """What keeps a job within its budgets while readings are missing or the operator is silent."""

    charges: tuple[PodCharge, ...] = Field(
        (),
        max_length=4 * MAX_REPLICAS,
        description="Pods whose final report is not in, and what is charged for them.",
    )
    lost_joules: Joules = Field(
        Joules(0), ge=0, description="Charged for pods whose final report was lost; it is never settled."
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
        description="What is charged while readings or intensities are missing, and settled when they come; part of percent. "
        "None while nothing is.",
    )
    reserved: str = Field(
        "",
        max_length=32,
        description="Kept free for a stop: what the job would use until one has taken effect. None while nothing is.",
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
