"""How a job's budgets stand in its status: a line of each for `kubectl`, and what the operator must remember of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from greentrain.api.models import StatusModel, Time, or_nothing
from greentrain.api.spec import MAX_REPLICAS, OnExhausted, OnUnknown
from greentrain.quantities import parse_emissions, parse_energy


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
        return or_nothing(value, parse_energy)

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


class EmissionsBudgetStatus(StatusModel):
    """How the budget of emissions stands."""

    @field_validator("limit")
    @classmethod
    def _is_limit(cls, value: str) -> str:
        return or_nothing(value, parse_emissions)

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
