"""Conditions are keyed by type, ordered, and move their transition time only with their status."""

from __future__ import annotations

from greentrain.api.conditions import (
    MESSAGE_MAX,
    ConditionStatus,
    Type,
    find_condition,
    is_true,
    set_condition,
)
from greentrain.api.reasons import Reason
from greentrain.api.status import Condition

Conditions = tuple[Condition, ...]
FIRST, SECOND, THIRD = (f"2026-01-01T00:00:0{i}Z" for i in range(3))


def put(
    conditions: Conditions,
    value: ConditionStatus,
    message: str = "m",
    *,
    now: str = FIRST,
    type_: Type = Type.RUNNING,
) -> Conditions:
    return set_condition(conditions, type_, value, Reason.TRAINING, message, now=now, generation=1)


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = put((), "False")
    retold = put(first, "False", "other words", now=SECOND)
    turned = put(retold, "True", now=THIRD)
    assert [c[0].last_transition_time for c in (first, retold, turned)] == [FIRST, FIRST, THIRD]


def test_an_unchanged_condition_changes_nothing() -> None:
    first = put((), "True")
    assert put(first, "True", now=SECOND) is first


def test_conditions_stand_in_a_fixed_order() -> None:
    conditions = put(put((), "True", type_=Type.SUCCEEDED), "True", type_=Type.ADMITTED)
    assert [c.type for c in conditions] == ["Admitted", "Succeeded"]


def test_a_missing_condition_is_not_true() -> None:
    assert not is_true((), Type.RUNNING)
    assert find_condition((), Type.RUNNING) is None


def test_a_long_message_is_cut_to_what_the_schema_allows() -> None:
    assert len(put((), "True", "x" * 9999)[0].message) == MESSAGE_MAX
