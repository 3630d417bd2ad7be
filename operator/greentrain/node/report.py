"""What an agent reports of its node: every pod it has counted, every card, and every problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from greentrain.api.nodepower import (
    MAX_COUNT,
    MAX_PODS,
    GpuStatus,
    NodePowerDisplay,
    NodePowerStatus,
    PodEnergy,
)
from greentrain.api.status import Condition
from greentrain.energy.account import NodeAccount
from greentrain.energy.intervals import CardReading, bound_draw
from greentrain.energy.report import bound_joules, report_pods
from greentrain.node.capping import NodeCaps
from greentrain.node.cards import Card, CardAnswer
from greentrain.quantities import (
    Joules,
    Milliwatts,
    add_up,
    format_energy,
    format_power,
    format_unix_time,
    to_joules,
    to_joules_above,
    to_whole_watts,
)

UNREAD = "it was not read"
UNKNOWN = "<unknown>"


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is known of a node at the time of a report, beside what was counted."""

    wall: float
    """Unix time."""
    report_interval: float
    """Seconds."""
    region: str
    zone: str
    conditions: tuple[Condition, ...]
    cards: tuple[Card, ...]
    answers: Mapping[str, CardAnswer]
    """Each card's last answer, by UUID."""


def choose_pods(account: NodeAccount, *, at: float) -> tuple[PodEnergy, ...]:
    """The pods of a report at `at`, on the readings' clock: all, ended ones too, as far as there is room.

    Running pods come first; ended ones that do not fit are reported when others have been settled.
    """
    pods = report_pods(account, at=at)
    if len(pods) > MAX_PODS:
        pods = tuple(sorted(pods, key=lambda entry: entry.closed)[:MAX_PODS])
    return pods


def build_status(
    account: NodeAccount, pods: tuple[PodEnergy, ...], caps: NodeCaps, state: NodeState
) -> NodePowerStatus:
    """The agent's half of NodePower."""
    idle, unattributed = (bound_joules(to_joules(part)) for part in (account.idle, account.unattributed))
    return NodePowerStatus(
        observed_at=format_unix_time(state.wall),
        report_interval_seconds=max(1, ceil(state.report_interval)),
        region=state.region,
        zone=state.zone,
        journal_id=account.journal_id,
        conditions=state.conditions,
        gpus=tuple(_build_gpu(account, card, caps, state.answers.get(card.uuid)) for card in state.cards),
        pods=pods,
        idle_joules=idle,
        unattributed_joules=unattributed,
        settled_joules=bound_joules(to_joules(account.settled)),
        other_host_joules=bound_joules(to_joules(account.host_others)),
        dropped_pods=min(account.dropped, MAX_COUNT),
        gpu_count=len(state.cards),
        display=NodePowerDisplay(
            draw=_display_draw(account, state),
            idle=format_energy(idle),
            unattributed=format_energy(unattributed),
        ),
    )


def _display_draw(account: NodeAccount, state: NodeState) -> str:
    """What the cards draw together; unknown where one of them does not report it, or more than it can draw."""
    draws = [_find_draw(account, card.uuid, state.answers.get(card.uuid)) for card in state.cards]
    known = [draw for draw in draws if draw is not None]
    return format_power(to_whole_watts(add_up(known))) if known and len(known) == len(draws) else UNKNOWN


def _find_draw(account: NodeAccount, gpu: str, answer: CardAnswer | None) -> Milliwatts | None:
    if not isinstance(answer, CardReading):
        return None
    counted = account.cards.get(gpu)
    reading = answer if counted is None else bound_draw(answer, counted.highest)
    return reading.draw if reading is not None else None


def _build_gpu(account: NodeAccount, card: Card, caps: NodeCaps, answer: CardAnswer | None) -> GpuStatus:
    now, counted = caps.limits.get(card.uuid), account.cards.get(card.uuid)
    limits = card.limits.model_copy(
        update={
            "previous_milliwatts": caps.priors.get(card.uuid),
            "set_milliwatts": card.limits.set_milliwatts if now is None else now.set_milliwatts,
            "enforced_milliwatts": card.limits.enforced_milliwatts
            if now is None
            else now.enforced_milliwatts,
        }
    )
    base = GpuStatus(
        uuid=card.uuid,
        model=card.model,
        limits=limits,
        cap=caps.reports.get(card.uuid),
        joules=bound_joules(find_joules(account, card.uuid)),
        error_joules=bound_joules(to_joules_above(counted.uncertain)) if counted is not None else Joules(0),
        counter_faults=min(counted.meter.faults, MAX_COUNT) if counted is not None else 0,
    )
    if isinstance(answer, CardReading):
        believed = counted is None or counted.meter.doubt is None
        with_power = "None" if answer.draw is None else "Power"
        source = "Counter" if answer.counter is not None and believed else with_power
        silent = answer.counter is None and answer.draw is None
        health = "Unsupported" if silent else "Failing" if source == "None" else "Healthy"
        return base.model_copy(update={"source": source, "health": health})
    health = "Lost" if answer is not None and answer.gone else "Failing"
    text = answer.message if answer is not None else UNREAD
    return base.model_copy(update={"health": health, "message": text[:512]})


def find_joules(account: NodeAccount, gpu: str) -> Joules:
    """Joules of one card, of all that used it."""
    card = account.cards.get(gpu)
    return to_joules(card.used) if card is not None else Joules(0)
