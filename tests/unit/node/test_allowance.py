"""What is done about a spent allowance: every case of the decision, as a table."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.nodepower import BudgetAction
from greentrain.api.spec import Scope
from greentrain.node.allowance import (
    NOTHING,
    START_GRACE_SECONDS,
    Allowance,
    Used,
    Verdict,
    decide_action,
    find_allowance,
    find_silence,
    is_near,
    is_silent,
    is_spent,
)
from greentrain.quantities import Joules, Millijoules

PLENTY = Used(gpu=Millijoules(400_000))
LAST_JOULE = Used(gpu=Millijoules(499_999))
SPENT = Used(gpu=Millijoules(500_000))
OVER = Used(gpu=Millijoules(700_000))
HALF_A_KILOJOULE = Allowance(Joules(500))

NONE = Verdict("None")
LEFT_ALONE = Verdict("None", spent=True)
BEGUN = Verdict("Throttled", evict=True, spent=True)
KEPT = Verdict("Throttled", spent=True)


@pytest.mark.parametrize(
    ("used", "allowance", "before", "silent", "verdict"),
    [
        # Enough is left, whoever is silent.
        (PLENTY, HALF_A_KILOJOULE, "None", False, NONE),
        (PLENTY, HALF_A_KILOJOULE, "None", True, NONE),
        (LAST_JOULE, HALF_A_KILOJOULE, "None", True, NONE),
        # Spent: the operator decides as long as it is heard.
        (SPENT, HALF_A_KILOJOULE, "None", False, LEFT_ALONE),
        (SPENT, HALF_A_KILOJOULE, "None", True, BEGUN),
        (OVER, HALF_A_KILOJOULE, "None", True, BEGUN),
        # What was begun goes on while it is silent, and stays when it is heard again.
        (OVER, HALF_A_KILOJOULE, "Throttled", True, BEGUN),
        (OVER, HALF_A_KILOJOULE, "Throttled", False, KEPT),
        # A higher allowance ends it, one that is still spent does not.
        (OVER, Allowance(Joules(701)), "Throttled", False, NONE),
        (OVER, Allowance(Joules(701)), "Throttled", True, NONE),
        (OVER, Allowance(Joules(700)), "Throttled", False, KEPT),
        # The job has no budget any more.
        (OVER, None, "Throttled", False, NONE),
        # An evicted pod is told of, and nothing more is done.
        (OVER, HALF_A_KILOJOULE, "Evicted", True, Verdict("Evicted", spent=True)),
        (OVER, Allowance(Joules(900)), "Evicted", False, Verdict("Evicted")),
        # No budget.
        (OVER, None, "None", True, NONE),
        # A budget of which nothing is known allows nothing.
        (Used(), NOTHING, "None", False, LEFT_ALONE),
        (Used(), NOTHING, "None", True, BEGUN),
        (OVER, NOTHING, "Throttled", False, KEPT),
        # What counts.
        (
            Used(gpu=Millijoules(400_000), host=Millijoules(200_000)),
            Allowance(Joules(500), "GPU"),
            "None",
            True,
            NONE,
        ),
        (
            Used(gpu=Millijoules(400_000), host=Millijoules(200_000)),
            Allowance(Joules(500), "Node"),
            "None",
            True,
            BEGUN,
        ),
    ],
)
def test_what_is_done_about_a_pod(
    used: Used, allowance: Allowance | None, before: BudgetAction, silent: bool, verdict: Verdict
) -> None:
    assert decide_action(used, allowance, before=before, silent=silent) == verdict


FOR_A_MINUTE = Allowance(Joules(500), seconds=60)


@pytest.mark.parametrize(
    ("used", "before", "silent", "silence", "verdict"),
    [
        (PLENTY, "None", False, 5.0, NONE),
        (PLENTY, "None", True, 59.9, NONE),
        (PLENTY, "None", True, 60.0, BEGUN),
        (PLENTY, "Throttled", True, 600.0, BEGUN),
        # Heard again: it holds again, for what was done was for the silence alone.
        (PLENTY, "Throttled", False, 0.5, NONE),
        (SPENT, "Throttled", False, 0.5, KEPT),
        # An agent that has just begun and was not told for how long: it goes on with what was done, and begins nothing.
        (PLENTY, "Throttled", False, inf, Verdict("Throttled")),
        (PLENTY, "None", False, inf, NONE),
        (PLENTY, "None", True, inf, BEGUN),
        (PLENTY, "Evicted", True, 600.0, Verdict("Evicted")),
        # Energy counts all the same.
        (SPENT, "None", True, 31.0, BEGUN),
    ],
)
def test_an_allowance_that_holds_for_a_time_is_worth_nothing_after_it(
    used: Used, before: BudgetAction, silent: bool, silence: float, verdict: Verdict
) -> None:
    assert decide_action(used, FOR_A_MINUTE, before=before, silent=silent, silence=silence) == verdict


@pytest.mark.parametrize(
    ("told", "used", "budgeted", "allocation"),
    [
        (None, PLENTY, False, None),
        (None, PLENTY, True, NOTHING),
        # A parameter server without a GPU.
        (None, Used(gpu=Millijoules(0), host=Millijoules(9_000)), True, None),
        (Allowance(Joules(7)), PLENTY, True, Allowance(Joules(7))),
        (
            Allowance(Joules(7), "Node"),
            Used(gpu=Millijoules(0), host=Millijoules(9_000)),
            False,
            Allowance(Joules(7), "Node"),
        ),
    ],
)
def test_a_pod_with_a_budget_has_an_allowance_told_or_none_at_all(
    told: Allowance | None, used: Used, budgeted: bool, allocation: Allowance | None
) -> None:
    assert find_allowance(told, used, budgeted=budgeted) == allocation


@pytest.mark.parametrize(
    ("heard", "now", "silence", "silent"),
    [
        # Never heard: from the agent's start on.
        (None, 100.0, 0.0, False),
        (None, 100.0 + START_GRACE_SECONDS - 0.1, START_GRACE_SECONDS - 0.1, False),
        (None, 100.0 + START_GRACE_SECONDS, START_GRACE_SECONDS, True),
        # Heard: from then on.
        (105.0, 105.0, 0.0, False),
        (105.0, 105.0 + OPERATOR_SILENT_SECONDS - 0.1, OPERATOR_SILENT_SECONDS - 0.1, False),
        (105.0, 105.0 + OPERATOR_SILENT_SECONDS, OPERATOR_SILENT_SECONDS, True),
        # A lease that was old when it was first seen gives no grace.
        (-500.0, 100.0, 600.0, True),
        # A clock that is a moment behind.
        (105.0, 104.9, 0.0, False),
    ],
)
def test_silence_is_the_time_since_the_last_renewal(
    heard: float | None, now: float, silence: float, silent: bool
) -> None:
    assert find_silence(heard, begun=100.0, now=now) == pytest.approx(silence)
    assert is_silent(heard, begun=100.0, now=now) is silent


@pytest.mark.parametrize(
    ("used", "allowance", "draw", "near"),
    [
        (490_000, Allowance(Joules(500)), 300.0, False),
        (490_000, Allowance(Joules(500)), 333.0, False),
        (490_000, Allowance(Joules(500)), 334.0, True),
        (600_000, Allowance(Joules(500)), 1.0, True),
        # It draws nothing, or that is not known yet.
        (499_999, Allowance(Joules(500)), 0.0, False),
        (600_000, Allowance(Joules(500)), 0.0, False),
        (600_000, None, 300.0, False),
    ],
)
def test_a_pod_is_near_when_it_may_spend_the_rest_before_the_next_report(
    used: int, allowance: Allowance | None, draw: float, near: bool
) -> None:
    assert is_near(Used(gpu=Millijoules(used)), allowance, draw=draw, seconds=30.0) is near


scopes: st.SearchStrategy[Scope] = st.sampled_from(["GPU", "Node"])
actions: st.SearchStrategy[BudgetAction] = st.sampled_from(["None", "Throttled", "Evicted"])
amounts = st.integers(0, 10**12)
allowances = st.none() | st.builds(Allowance, st.integers(0, 10**9), scopes)


@given(used=st.builds(Used, amounts, amounts), allowance=allowances, before=actions, silent=st.booleans())
def test_nothing_new_is_done_while_the_operator_is_heard_or_before_an_allowance_is_spent(
    used: Used, allowance: Allowance | None, before: BudgetAction, silent: bool
) -> None:
    verdict = decide_action(used, allowance, before=before, silent=silent)
    spent = is_spent(used, allowance)
    if verdict.evict or verdict.action not in ("None", before):
        assert silent
        assert spent
    if spent and silent:
        assert verdict.action != "None"
    if not spent and before != "Evicted":
        assert verdict.action == "None"
    # Deciding again changes nothing.
    again = decide_action(used, allowance, before=verdict.action, silent=silent)
    assert again.action == verdict.action
