"""What is decided by an enum is decided by a table that names every member: a new one cannot fall into another's place."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import pytest

from greentrain.api.spec import CleanPodPolicy, OnExhausted, OnUnknown, RestartPolicy
from greentrain.core.gang import judge
from greentrain.core.lifecycle import ends


@pytest.mark.parametrize(
    ("table", "members"),
    [
        (judge._RETRIES_SIGNAL, RestartPolicy),
        (judge._RETRIES_PROGRAM, RestartPolicy),
        (ends.CLEANED, CleanPodPolicy),
    ],
)
def test_a_table_names_every_member(table: Mapping[Enum, object], members: type[Enum]) -> None:
    assert set(table) == set(members)


def test_what_each_action_of_a_budget_does() -> None:
    assert {action: (action.stops, action.fails) for action in OnExhausted} == {
        OnExhausted.WARN: (False, False),
        OnExhausted.SUSPEND: (True, False),
        OnExhausted.FAIL: (True, True),
    }
    assert {action: action.stops for action in OnUnknown} == {
        OnUnknown.SUSPEND: True,
        OnUnknown.CONTINUE: False,
    }
