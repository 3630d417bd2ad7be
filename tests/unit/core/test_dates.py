"""Dates that a kubelet, an agent or anybody who may write statuses may write, of whatever year."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from greentrain.core.books.charges import Charges
from greentrain.core.gang.judge import failed, succeeded
from greentrain.core.lifecycle.decision import Deletion, stop_all
from greentrain.core.seen.pods import Pod, PodState, parse_pod
from greentrain.core.seen.snapshot import parse_status
from greentrain.core.seen.times import format_time
from greentrain.kube.cache import slim_pod
from greentrain.quantities import EARLIEST, LATEST
from tests.support.snapshots import START, at, job_of, pod, seen
from tests.unit.core.test_budget import charged

Json = dict[str, Any]
DAY = 24 * 3600


def pod_of(state: Json, *conditions: Json, spec: Json | None = None, **meta: Any) -> Pod:
    """A worker's pod that was made at the start of every test's time."""
    body = {
        "metadata": {
            "name": "digits-worker-0-1",
            "uid": "pod-0-1",
            "creationTimestamp": format_time(START),
            "labels": {
                "greentrain.dev/replica-type": "Worker",
                "greentrain.dev/replica-index": "0",
                "greentrain.dev/attempt": "1",
            },
            **meta,
        },
        "spec": spec or {},
        "status": {
            "phase": "Running",
            "conditions": list(conditions),
            "containerStatuses": [{"name": "tensorflow", "state": state}],
        },
    }
    found = parse_pod(body)
    assert found == parse_pod(slim_pod(body)), "what the cache keeps says the same"
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (format_time(at(60)), at(60)),
        ("2026-01-01T09:01:00+09:00", at(60)),
        # A kubelet's clock may be behind the server's.
        (format_time(at(-1800)), at(-1800)),
        ("1970-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("0000-01-01T00:00:00Z", None),
        ("-001-12-31T19:00:00Z", None),
        ("9999-12-31T23:59:59-12:00", LATEST),
        ("10000-01-01T04:59:59Z", None),
        (None, None),
    ],
)
def test_a_time_before_a_pod_was_made_is_not_known_and_none_is_beyond_what_can_be_counted_with(
    text: str | None, moment: object
) -> None:
    running = pod_of({"running": {"startedAt": text}})
    ended = pod_of({"terminated": {"exitCode": 0, "finishedAt": text}})
    assert (running.state, running.started) == (PodState.RUNNING, moment)
    assert (ended.state, ended.finished) == (PodState.EXITED, moment)
    stop = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    stopped = pod_of({"running": {}}, {**stop, "lastTransitionTime": text})
    assert (stopped.stopped_by_node, stopped.node_stop_requested) == (True, moment)


@pytest.mark.parametrize(
    ("deadline", "grace", "requested"),
    [
        (at(90), 30, at(60)),
        (at(60), None, at(60)),
        (at(60), 0, at(60)),
        (at(60 + 10 * DAY), 10 * DAY, at(60)),
        (at(60), 2**62, None),
        (at(60), -(2**62), None),
        (at(60), -1, None),
        (EARLIEST, 3 * 10**9, EARLIEST - timedelta(seconds=3 * 10**9)),
    ],
)
def test_when_a_deletion_was_asked_for_is_known_where_its_grace_period_can_be(
    deadline: Any, grace: int | None, requested: object
) -> None:
    meta: Json = {"deletionTimestamp": format_time(deadline), "deletionGracePeriodSeconds": grace}
    found = pod_of({"running": {}}, **meta)
    assert (found.terminating, found.deletion_requested) == (True, requested)


@pytest.mark.parametrize(
    ("own", "named", "cut"),
    [
        (None, None, None),
        (None, 30, None),
        (None, 31, 30),
        (60, 31, None),
        (60, 2**62, 60),
        (0, 1, 0),
        (0, 0, None),
        (86_400, 86_401, 86_400),
    ],
)
def test_a_grace_period_that_is_longer_than_a_pods_own_is_cut_short_by_a_stop(
    own: int | None, named: int | None, cut: int | None
) -> None:
    spec = {} if own is None else {"terminationGracePeriodSeconds": own}
    meta: Json = {"deletionTimestamp": format_time(at(90)), "deletionGracePeriodSeconds": named}
    going = pod_of({"running": {}}, spec=spec, **meta)
    ended = replace(going, state=PodState.EXITED, exit_code=143)
    assert going.cut_grace == cut
    wanted = () if cut is None else (Deletion(going.name, going.uid, cut),)
    assert stop_all(seen(job_of(), going)) == wanted
    assert stop_all(seen(job_of(), ended)) == ()
    assert stop_all(seen(job_of(), replace(going, terminating=False, cut_grace=None))) == (
        Deletion(going.name, going.uid),
    )


@pytest.mark.parametrize(
    ("finished", "grace", "is_success"),
    [
        (at(50), 30, True),
        (at(60), 30, False),
        (EARLIEST, 30, False),
        (at(50), 2**62, False),
        (LATEST, 30, False),
    ],
    ids=["before its stop", "after", "its runtime does not know when", "no grace period there is", "never"],
)
def test_an_exit_0_is_a_success_only_where_it_is_known_to_be_before_its_stop(
    finished: Any, grace: int, is_success: bool
) -> None:
    meta: Json = {"deletionTimestamp": format_time(at(90)), "deletionGracePeriodSeconds": grace}
    found = pod_of({"terminated": {"exitCode": 0, "finishedAt": format_time(finished)}}, **meta)
    assert (succeeded(found), failed(found)) == (is_success, not is_success)


@pytest.mark.parametrize(
    ("started", "seconds"),
    [
        (at(20), 200 - 20 - 34),
        (at(-30), 200 - 10 - 34),
        (EARLIEST, 200 - 10 - 34),
        (LATEST, 200 - 100 - 34),
        (None, 200 - 100 - 34),
    ],
    ids=["after it was made", "a little before", "long before", "in the future", "not known"],
)
def test_a_nodes_clock_puts_no_charge_off_and_before_no_pods_beginning(started: Any, seconds: int) -> None:
    running = pod(0, gpus=1, node="node-1", started=started, created=at(10))
    first = charged(Charges(), running, second=100)
    assert charged(first, running, second=200).joules == 300 * seconds


@pytest.mark.parametrize("since", ["2026-01-01T00:10:00Z", "9999-12-31T23:59:59Z"])
def test_a_stored_charge_that_begins_in_the_future_begins_now(since: str) -> None:
    running = pod(0, gpus=1, node="node-1", started=at(0))
    first = charged(Charges(), running, second=10)
    forged = Charges(tuple(c.model_copy(update={"since": since}) for c in first.pods))
    assert charged(forged, running, second=100).due == at(134)


ATTEMPT = {"number": 1, "startTime": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("startTime", "", "status.startTime"),
        ("completionTime", "0000-01-01T00:00:00Z", "status.completionTime"),
        ("completionTime", "2026-01-01T00:00:00", "status.completionTime"),
        ("attempts", [{**ATTEMPT, "runningTime": "yesterday"}], "status.attempts[0].runningTime"),
        ("attempts", [{**ATTEMPT, "endTime": "10000-01-01T00:00:00Z"}], "status.attempts[0].endTime"),
        (
            "conditions",
            [{"type": "Running", "status": "True", "reason": "Training", "lastTransitionTime": "t"}],
            "status.conditions[0].lastTransitionTime",
        ),
    ],
)
def test_a_stored_time_that_is_none_cannot_be_read_and_is_said_by_its_path(
    field: str, value: Any, path: str
) -> None:
    assert parse_status({field: value})[1].startswith(f"{path}: ")


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T09:00:00+09:00"]
)
def test_a_stored_time_of_any_year_is_read(text: str) -> None:
    status, unreadable = parse_status({"completionTime": text})
    assert (unreadable, status.completion_time) == ("", text)
