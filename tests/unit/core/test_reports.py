"""What of a node's report is believed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from greentrain.api.nodepower import (
    KEPT_BUCKETS,
    MAX_GPUS,
    MAX_JOULES,
    MAX_MILLIWATTS,
    MAX_PODS,
    MAX_REPORT_SECONDS,
    PodEnergy,
)
from greentrain.core.seen.reports import Binding, find_false_date, read_report
from greentrain.core.seen.times import format_time
from tests.support.snapshots import at

Json = dict[str, Any]

NOW = at(7200)
HUGE = 2**62


def told(seconds: float) -> str:
    """A time so long from now."""
    return format_time(NOW + timedelta(seconds=seconds))


def entry(**fields: Any) -> Json:
    return {
        "uid": "a",
        "namespace": "team",
        "name": "digits-worker-0-1",
        "gpuJoules": 5,
        "firstReading": told(-60),
        "lastReading": told(-1),
        **fields,
    }


GPU = {"uuid": "GPU-1", "limits": {"setMilliwatts": 300_000}}


def report(**fields: Any) -> Json:
    return {
        "observedAt": told(0),
        "reportIntervalSeconds": 30,
        "journalId": "j",
        "gpus": [GPU],
        "pods": [entry(), entry(uid="b")],
        **fields,
    }


def test_a_sound_report_is_believed_as_a_whole() -> None:
    believed = read_report(report(), now=NOW)
    assert believed.status is not None
    assert ([p.uid for p in believed.status.pods], believed.doubts) == (["a", "b"], ())
    assert believed.status.report_interval_seconds == 30


NUMBERS = (
    "gpuJoules",
    "cpuJoules",
    "dramJoules",
    "estimatedJoules",
    "errorJoules",
    "missingSeconds",
    "drawMilliwatts",
    "segment",
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *[({name: value}, name) for name in NUMBERS for value in (HUGE, -1, "much")],
        ({"gpuJoules": MAX_JOULES + 1}, "gpuJoules"),
        ({"uid": "x" * 65}, "uid"),
        ({"name": "x" * 254}, "name"),
        ({"budgetAction": "Stopped"}, "budgetAction"),
        ({"gpuTime": [{"model": "V100", "seconds": HUGE}]}, "gpuTime[0].seconds"),
        ({"gpuTime": [{"model": "V100"}] * (MAX_GPUS + 1)}, "gpuTime"),
        ({"buckets": {"start": told(-900), "joules": [HUGE]}}, "buckets.joules[0]"),
        ({"buckets": {"start": told(-900), "joules": [1, -1]}}, "buckets.joules[1]"),
        ({"buckets": {"start": told(-900), "joules": [1] * (KEPT_BUCKETS + 1)}}, "buckets.joules"),
        ({"buckets": {"earlierJoules": HUGE}}, "buckets.earlierJoules"),
        ({"buckets": {"start": told(-900), "joules": [1], "hostJoules": [2]}}, "hostJoules"),
        ({"buckets": {"start": told(-900), "joules": [1], "hostJoules": [0, 0]}}, "hostJoules"),
        ({"buckets": {"earlierJoules": 1, "earlierHostJoules": 2}}, "hostJoules"),
        ({"buckets": {"start": told(0), "joules": [1] * 7}}, "more than an hour from now"),
        ({"buckets": {"start": "9999-12-31T23:59:59Z", "joules": [1]}}, "buckets.start"),
        ({"firstReading": told(0), "lastReading": told(-1)}, "is after lastReading"),
        ({"lastReading": told(3601)}, "more than an hour from now"),
        ({"firstReading": told(3601), "lastReading": None}, "more than an hour from now"),
        ({"lastReading": "9999-12-31T23:59:59Z"}, "more than an hour from now"),
        ({"lastReading": "yesterday"}, "is not a time"),
        ({"lastReading": "2026-01-01T00:00:00"}, "is not a time with its offset"),
        ({"firstReading": ""}, "is not a time"),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_true_is_left_out_and_the_others_count(fields: Json, words: str) -> None:
    believed = read_report(report(pods=[entry(**fields), entry(uid="b")]), now=NOW)
    assert believed.status is not None
    assert [p.uid for p in believed.status.pods] == ["b"]
    assert len(believed.status.gpus) == 1
    assert words in " ".join(believed.doubts)


@pytest.mark.parametrize(
    "fields",
    [
        {"lastReading": told(3599)},
        {"firstReading": told(-1), "lastReading": told(-1)},
        {"gpuJoules": MAX_JOULES},
        {"buckets": {"start": told(-900), "joules": [5, 5], "hostJoules": [5, 5]}},
        {"buckets": {"start": told(-900), "joules": [5, 5]}},
        {"firstReading": None, "lastReading": None},
        {"drawMilliwatts": None},
        {"fieldOfANewerVersion": HUGE},
    ],
    ids=str,
)
def test_an_entry_that_can_just_be_true_counts(fields: Json) -> None:
    believed = read_report(report(pods=[entry(**fields)]), now=NOW)
    assert believed.status is not None
    assert (len(believed.status.pods), believed.doubts) == (1, ())


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"reportIntervalSeconds": 10**8}, {"report_interval_seconds": None}),
        ({"reportIntervalSeconds": MAX_REPORT_SECONDS + 1}, {"report_interval_seconds": None}),
        ({"reportIntervalSeconds": 0}, {"report_interval_seconds": None}),
        ({"idleJoules": HUGE}, {"idle_joules": 0}),
        ({"region": "x" * 64}, {"region": ""}),
        ({"gpuCount": HUGE}, {"gpu_count": 0}),
        ({"gpus": [{"uuid": "GPU-1", "limits": {"setMilliwatts": MAX_MILLIWATTS + 1}}]}, {"gpus": ()}),
        ({"gpus": [{**GPU, "cap": {"podUid": "a", "reason": "Never"}}]}, {"gpus": ()}),
        ({"gpus": [{"uuid": f"GPU-{i}"} for i in range(MAX_GPUS + 1)]}, {"gpus": ()}),
        ({"pods": [entry(uid=str(i)) for i in range(MAX_PODS + 1)]}, {"pods": ()}),
        ({"conditions": [{"type": "HostReadable", "status": "Perhaps"}]}, {"conditions": ()}),
        ({"pods": "many", "gpus": 7}, {"pods": (), "gpus": ()}),
    ],
    ids=lambda f: str(f)[:60],
)
def test_a_field_that_cannot_be_true_is_left_out_and_the_rest_counts(fields: Json, left: Json) -> None:
    believed = read_report(report(**fields), now=NOW)
    assert believed.status is not None
    found = {name: getattr(believed.status, name) for name in left}
    assert found == left
    assert believed.status.journal_id == "j"
    assert believed.doubts


@pytest.mark.parametrize("observed", [told(3601), "9999-12-31T23:59:59Z", "now", "2026-01-01T00:00:00"])
def test_a_report_from_another_time_is_not_believed_at_all(observed: str) -> None:
    believed = read_report(report(observedAt=observed), now=NOW)
    assert believed.status is None
    assert "the whole report: observedAt" in believed.doubts[-1]


@pytest.mark.parametrize("raw", [None, "", [], 7, {}])
def test_a_status_that_says_nothing_is_an_empty_one(raw: object) -> None:
    believed = read_report(raw, now=NOW)
    assert believed.status is not None
    assert (believed.status.pods, believed.doubts) == ((), ())


@pytest.mark.parametrize(
    ("fields", "true"),
    [
        ({}, True),
        ({"firstReading": told(-3600)}, True),
        ({"firstReading": told(-3601)}, False),
        ({"firstReading": None, "lastReading": told(-3601)}, False),
        ({"firstReading": "0001-01-01T00:00:00Z"}, False),
        ({"firstReading": None, "lastReading": None}, True),
        ({"buckets": {"start": told(-4500), "joules": [1]}}, True),
        ({"buckets": {"start": told(-4501), "joules": [1]}}, False),
        ({"buckets": {"start": "0001-01-01T00:00:00Z", "joules": [1]}}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("created", [NOW, None])
def test_readings_are_as_old_as_their_pod_at_most(fields: Json, true: bool, created: datetime | None) -> None:
    """But for an hour by which the node's clock may be wrong."""
    found = find_false_date(PodEnergy.model_validate(entry(**fields)), Binding("node-1", created))
    assert (found is None) == (true or created is None)
