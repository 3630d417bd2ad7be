"""When an agent reads, stores and reports: each deadline as a table."""

from __future__ import annotations

import pytest

from greentrain.node.allowances import Haste
from greentrain.node.schedule import (
    DISCOVER_SECONDS,
    GIVE_BACK_SECONDS,
    HOST_RETRY_SECONDS,
    HOST_SECONDS,
    LIST_OFTEN_SECONDS,
    LIST_SECONDS,
    NEAR_SECONDS,
    REOPEN_SECONDS,
    URGENT_SECONDS,
    ReadSchedule,
    ReportSchedule,
    StoreSchedule,
)


@pytest.mark.parametrize(
    ("haste", "after"), [("None", 33.0), ("Near", NEAR_SECONDS), ("Now", URGENT_SECONDS)]
)
def test_a_report_comes_at_its_interval_or_so_long_after_the_last_as_it_is_urgent(
    haste: Haste, after: float
) -> None:
    reports = ReportSchedule(30.0)
    assert reports.is_due(100.0)
    reports.note_reported(100.0, 1.1)
    reports.hurry_for(haste)
    assert [reports.is_due(100.0 + s) for s in (after - 0.1, after)] == [False, True]


def test_what_is_less_urgent_puts_no_report_off() -> None:
    reports = ReportSchedule(30.0)
    reports.note_reported(100.0, 1.0)
    reports.hurry_for("Now")
    reports.hurry_for("Near")
    assert reports.is_due(100.0 + URGENT_SECONDS)


def build_reads() -> ReadSchedule:
    return ReadSchedule(limits_interval=30.0)


@pytest.mark.parametrize(
    ("after", "version", "known", "must"),
    [
        (LIST_OFTEN_SECONDS - 0.1, 1, True, True),
        (LIST_OFTEN_SECONDS, 1, True, False),
        (LIST_OFTEN_SECONDS + LIST_SECONDS, 1, True, True),
        (LIST_OFTEN_SECONDS, 1, False, True),
        (LIST_OFTEN_SECONDS, 2, True, True),
    ],
    ids=["soon after news", "no news", "seldom all the same", "not known", "news again"],
)
def test_the_kubelet_is_asked_around_news_and_seldom_else(
    after: float, version: int, known: bool, must: bool
) -> None:
    reads = build_reads()
    assert reads.must_list(100.0, version=1, known=True)
    reads.note_listed(100.0 + LIST_OFTEN_SECONDS - 0.1)
    assert reads.must_list(100.0 + after, version=version, known=known) is must


def test_a_library_that_cannot_be_opened_is_tried_again_after_a_while() -> None:
    reads = build_reads()
    assert reads.may_open(100.0)
    tries = (100.1, 100.0 + REOPEN_SECONDS - 0.1, 100.0 + REOPEN_SECONDS)
    assert [reads.may_open(t) for t in tries] == [False, False, True]


@pytest.mark.parametrize(("all_named", "after"), [(True, DISCOVER_SECONDS), (False, REOPEN_SECONDS)])
def test_cards_are_looked_for_again_sooner_where_one_has_no_name(all_named: bool, after: float) -> None:
    reads = build_reads()
    reads.note_opened(100.0)
    assert reads.must_discover(100.0)
    reads.note_discovered(100.0, all_named=all_named)
    assert [reads.must_discover(100.0 + s) for s in (after - 0.1, after)] == [False, True]


def test_processors_are_read_at_their_interval_and_much_later_where_they_cannot_be() -> None:
    reads = build_reads()
    assert [reads.must_read_host(100.0 + s) for s in (0, 1, HOST_SECONDS)] == [True, False, True]
    reads.note_no_host(105.0)
    assert [reads.must_read_host(105.0 + s) for s in (HOST_SECONDS, HOST_RETRY_SECONDS)] == [False, True]


@pytest.mark.parametrize(
    ("paused", "changed", "after", "must"),
    [
        (False, True, 60.0, False),
        (True, False, 0.0, True),
        (True, True, GIVE_BACK_SECONDS - 0.1, False),
        (True, True, GIVE_BACK_SECONDS, True),
    ],
    ids=["no pause", "every card has its limit", "a card has not", "a card has not for long"],
)
def test_a_driver_is_let_go_when_no_limit_is_ours_or_late(
    paused: bool, changed: bool, after: float, must: bool
) -> None:
    reads = build_reads()
    reads.must_close(100.0, paused=paused, changed=True)
    assert reads.must_close(100.0 + after, paused=paused, changed=changed) is must


def test_a_pause_that_ended_counts_from_the_next_one() -> None:
    reads = build_reads()
    for now, paused in ((100.0, True), (105.0, False), (106.0, True)):
        assert not reads.must_close(now, paused=paused, changed=True)
    assert not reads.must_close(106.0 + GIVE_BACK_SECONDS - 0.1, paused=True, changed=True)


@pytest.mark.parametrize(
    ("dirty", "after", "due"), [(False, 9.9, False), (False, 10.0, True), (True, 0.1, True)]
)
def test_what_is_new_is_stored_at_once_and_the_rest_at_its_interval(
    dirty: bool, after: float, due: bool
) -> None:
    stores = StoreSchedule(10.0)
    stores.note_tried(100.0)
    stores.dirty = dirty
    assert stores.is_due(100.0 + after) is due
