"""How it stands with allowances, look by look, whatever the account, the API server and the operator do between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.node.allowance import UNUSED, Allowance, Used
from greentrain.node.allowances import (
    EVICT_RETRY_SECONDS,
    LATE_SECONDS,
    LISTEN_SECONDS,
    AllowanceState,
    AllowanceStates,
    Counted,
    LastRenewal,
    Sight,
    find_unattended,
    is_evictable,
)
from greentrain.quantities import Joules, Millijoules

JOULE = 1000


@dataclass(frozen=True)
class Shown:
    """A pod as the API server shows it."""

    namespace: str = "team"
    name: str = "digits-worker-0-1"
    job_uid: str | None = "job"
    budgeted: bool = True
    terminal: bool = False


def sight(now: float, joules: int, allowance: int | None = 100, **facts: Any) -> Sight:
    """One pod that has used so much, of an operator that was heard just now."""
    given = None if allowance is None else {"pod": Allowance(Joules(allowance))}
    seen = Sight(
        now,
        {"pod": Counted("team", "digits-worker-0-1", Used(gpu=Millijoules(joules * JOULE)))},
        given,
        {"pod": Shown()},
        pods_known=True,
        operator=LastRenewal(begun=0.0, last=now),
        report_seconds=30.0,
    )
    return replace(seen, **facts)


def silent(now: float) -> LastRenewal:
    return LastRenewal(begun=0.0, last=now - OPERATOR_SILENT_SECONDS)


def test_what_was_settled_while_a_pod_went_on_counts_on() -> None:
    """Its entry was closed and let go of; the account begins again at nothing."""
    standings = AllowanceStates()
    standings.look(sight(1, 80))
    standings.look(sight(2, 0, counted={}))
    standings.look(sight(3, 10))
    assert standings.pods["pod"].earlier == Used(gpu=Millijoules(80 * JOULE))
    assert standings.look(sight(4, 15)) == ()
    (change,) = standings.look(sight(60, 20, operator=silent(60)))
    assert (change.kind, change.used) == ("Throttled", Used(gpu=Millijoules(100 * JOULE)))
    # The next agent finds it on the disk.
    after = AllowanceStates()
    after.take_stored(standings.pods)
    after.look(sight(61, 20, operator=silent(61)))
    assert after.pods["pod"] == standings.pods["pod"]


def test_what_is_counted_never_becomes_less() -> None:
    standings = AllowanceStates()
    standings.look(sight(1, 80))
    standings.look(sight(2, 10))
    (change,) = standings.look(sight(3, 30))
    assert (change.kind, change.used) == ("Spent", Used(gpu=Millijoules(100 * JOULE)))


def test_while_the_operator_is_heard_it_decides() -> None:
    standings = AllowanceStates()
    (change,) = standings.look(sight(1, 100))
    assert (change.kind, standings.spent, standings.throttled) == ("Spent", 1, frozenset())
    assert standings.look(sight(2, 101)) == ()
    assert standings.take_due(2) == ()


def test_one_that_is_spent_in_silence_is_throttled_reported_and_then_evicted() -> None:
    standings = AllowanceStates()
    looked = sight(60, 100, operator=silent(60))
    (change,) = standings.look(looked)
    assert change.kind == "Throttled"
    assert standings.find_haste(standings.pods) == "Now"
    assert standings.find_haste(standings.pods) == "Near"
    assert standings.take_due(60) == ()
    standings.note_reported(["pod", "another"])
    assert standings.take_due(61) == ("pod",)
    assert standings.take_due(61 + EVICT_RETRY_SECONDS - 1) == ()
    assert standings.take_due(61 + EVICT_RETRY_SECONDS) == ("pod",)
    standings.note_evicted("pod")
    assert standings.pods["pod"].action == "Evicted"
    assert standings.take_due(1000) == ()
    # A higher allowance does not bring an evicted pod back.
    assert standings.look(sight(70, 100, 500)) == ()
    assert standings.throttled == {"pod"}


def test_a_higher_allowance_lifts_what_was_begun() -> None:
    standings = AllowanceStates()
    standings.look(sight(60, 100, operator=silent(60)))
    standings.note_reported(["pod"])
    (change,) = standings.look(sight(61, 100, 500))
    assert (change.kind, standings.throttled) == ("Lifted", frozenset())
    # What was reported of the last time says nothing of the next.
    standings.look(sight(100, 500, 500, operator=silent(100)))
    assert standings.take_due(100) == ()


@pytest.mark.parametrize(
    ("pods", "evicted"),
    [
        ({"pod": Shown()}, True),
        ({"pod": Shown(terminal=True)}, False),
        ({"pod": Shown(job_uid=None)}, False),
        ({}, False),
    ],
)
def test_only_pods_of_a_job_that_run_are_evicted(pods: Mapping[str, Shown], evicted: bool) -> None:
    standings = AllowanceStates()
    standings.look(sight(60, 100, operator=silent(60), pods=pods))
    standings.note_reported(["pod"])
    assert standings.take_due(60) == (("pod",) if evicted else ())
    assert is_evictable(pods.get("pod")) is evicted


def test_a_job_that_is_named_as_unattended_is_held_alone() -> None:
    standings = AllowanceStates()
    named = LastRenewal(begun=0.0, last=60.0, unattended={"job": 55.0})
    assert find_unattended(Shown(), named) == 55.0
    assert find_unattended(Shown(job_uid="another"), named) is None
    (change,) = standings.look(sight(60, 100, operator=named))
    assert change.kind == "Throttled"


def test_without_a_lease_allowances_hold_and_nobody_is_asked() -> None:
    assert LastRenewal(begun=0.0, lease=False).find_unconfirmed(100.0) == 0.0
    assert LastRenewal(begun=0.0).find_unconfirmed(100.0) == float("inf")
    assert LastRenewal(begun=0.0, last=40.0).find_unconfirmed(100.0) == 60.0


def test_what_is_reported_is_what_the_disk_holds() -> None:
    standings = AllowanceStates()
    standings.look(sight(1, 10, 100))
    stored = dict(standings.pods)
    assert standings.find_haste(stored) == "Now"
    standings.look(sight(2, 10, 500))
    # The disk has the lower one still: nothing new is reported.
    assert standings.find_haste(stored) == "None"
    assert standings.find_haste(standings.pods) == "Now"


def test_a_pod_that_nobody_knows_any_more_is_forgotten() -> None:
    standings = AllowanceStates()
    standings.look(sight(1, 10))
    standings.look(sight(2, 0, counted={}, pods={}, given={}, pods_known=False))
    assert "pod" in standings.pods
    standings.look(sight(3, 0, counted={}, pods={}, given={}))
    assert standings.pods == {}


def test_what_the_disk_held_gives_way_to_what_was_learnt_since() -> None:
    standings = AllowanceStates()
    standings.look(sight(1, 10, 100))
    standings.take_stored(
        {"pod": AllowanceState("team", "old", Allowance(Joules(5))), "other": AllowanceState("team", "b")}
    )
    assert standings.pods["pod"].allowance == Allowance(Joules(100))
    assert standings.pods["other"].earlier == UNUSED


@pytest.mark.parametrize(
    ("silence", "allowances", "must"),
    [
        (LATE_SECONDS, True, [True, False, True]),
        (LATE_SECONDS - 1, True, [False, True, False]),
        (LATE_SECONDS, False, [False, False, False]),
    ],
    ids=["it is late", "it is late a second later", "no pod has an allowance"],
)
def test_a_late_lease_is_looked_at_past_the_watch_as_often_as_it_is_renewed(
    silence: float, allowances: bool, must: list[bool]
) -> None:
    standings = AllowanceStates()
    if allowances:
        standings.look(sight(100, 0))
    late = LastRenewal(begun=0.0, last=100 - silence)
    assert [standings.must_listen(100 + s, late) for s in (0, 1, LISTEN_SECONDS)] == must


@pytest.mark.parametrize(
    ("pod", "operator", "evicted"),
    [
        (Shown(), silent(100), True),
        (Shown(), LastRenewal(begun=0.0, last=100), False),
        (Shown(), LastRenewal(begun=0.0, last=100, unattended={"job": 90.0}), True),
        (Shown(), LastRenewal(begun=0.0, last=100, unattended={"another": 90.0}), False),
        (Shown(job_uid=None), silent(100), False),
        (Shown(terminal=True), silent(100), False),
        (None, silent(100), False),
    ],
)
def test_a_pod_that_was_due_is_evicted_where_the_operator_is_still_silent(
    pod: Shown | None, operator: LastRenewal, evicted: bool
) -> None:
    standings = AllowanceStates()
    standings.look(sight(1, 0))
    assert standings.may_evict("pod", pod, operator, 100) is evicted
    assert not standings.may_evict("another", pod, operator, 100)
