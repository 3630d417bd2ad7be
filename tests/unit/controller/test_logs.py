"""Log lines are JSON with the fields of a decision; Kopf's come without the objects it prints."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from greentrain.api.conditions import Type, set_condition
from greentrain.api.reasons import Reason
from greentrain.api.status import Condition, GreenTrainingJobStatus
from greentrain.controller.logs import LogLine, find_log_lines
from greentrain.telemetry.logs import choose_format, configure_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The root logger writes here, and as before afterwards."""
    root, kopf = logging.getLogger(), logging.getLogger("kopf")
    before = (root.level, root.handlers[:], kopf.level)
    written = io.StringIO()
    yield written
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    kopf.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_its_fields(stream: io.StringIO) -> None:
    configure_logs("INFO", "json", stream)
    extra = {"namespace": "team", "job": "digits", "attempt": 2, "decision": "restarted", "reason": "Killed"}
    logging.getLogger("greentrain.controller").warning("worker-1 was\nkilled", extra=extra)
    (line,) = lines(stream)
    moment = line.pop("time")
    assert moment.endswith("Z")
    assert len(moment) == len("2026-01-01T00:00:00.000Z")
    assert line == {
        "level": "WARNING",
        "logger": "greentrain.controller",
        "message": "worker-1 was\nkilled",
        **extra,
    }


def test_as_text_the_fields_stand_behind_the_message(stream: io.StringIO) -> None:
    configure_logs("INFO", "text", stream)
    extra = {"namespace": "team", "job": "digits", "decision": "restarted"}
    logging.getLogger("greentrain.controller").warning("killed", extra=extra)
    assert stream.getvalue().endswith(
        "WARNING greentrain.controller killed namespace=team job=digits decision=restarted\n"
    )


def test_without_a_wish_a_terminal_gets_text_and_the_rest_json() -> None:
    assert choose_format(None, Terminal()) == "text"
    assert choose_format(None, io.StringIO()) == "json"
    assert choose_format("json", Terminal()) == "json"


def test_kopfs_chatter_is_left_out_and_its_warnings_lose_objects_and_tracebacks(stream: io.StringIO) -> None:
    configure_logs("DEBUG", "json", stream)
    logging.getLogger("kopf.objects").info("Handler 'seen' succeeded.")
    logging.getLogger("kopf.objects").debug("Something")
    event = {"type": "STRANGE", "object": {"env": "hunter2"}}
    logging.getLogger("kopf._cogs.clients.watching").warning("Ignoring an unsupported event type: %r", event)
    try:
        raise ValueError("hunter2")
    except ValueError:
        logging.getLogger("kopf._core.reactor.running").exception("Watcher has failed: (%r, {})", "hunter")
    logging.getLogger("kopf.client").error("Request attempt #1 failed; will retry: GET /pods -> %r", event)
    assert "hunter2" not in stream.getvalue()
    assert [(line["level"], line["message"]) for line in lines(stream)] == [
        ("WARNING", "Ignoring an unsupported event type"),
        ("ERROR", "Watcher has failed: ('hunter'"),
        ("WARNING", "Request attempt #1 failed; will retry: GET /pods ->"),
    ]


def with_condition(
    type_: Type, status: Any, reason: Reason, message: str = "words"
) -> GreenTrainingJobStatus:
    conditions: tuple[Condition, ...] = set_condition(
        (), type_, status, reason, message, now="2026-01-01T00:00:00Z", generation=1
    )
    return GreenTrainingJobStatus(conditions=conditions)


@pytest.mark.parametrize(
    ("type_", "status", "reason", "decision", "level"),
    [
        (Type.CREATED, "True", Reason.ATTEMPT_CREATED, "started", logging.INFO),
        (Type.RUNNING, "True", Reason.TRAINING, "running", logging.INFO),
        (Type.RESTARTING, "True", Reason.KILLED, "restarted", logging.WARNING),
        (Type.SUSPENDED, "False", Reason.STOPPING_PODS, "stopping", logging.INFO),
        (Type.SUSPENDED, "True", Reason.SUSPEND_REQUESTED, "suspended", logging.INFO),
        (Type.SUSPENDED, "False", Reason.RESUMED, "resumed", logging.INFO),
        (Type.SUCCEEDED, "True", Reason.SUCCEEDED, "succeeded", logging.INFO),
        (Type.FAILED, "True", Reason.PROGRAM_FAILED, "failed", logging.WARNING),
        (Type.ADMITTED, "False", Reason.INVALID_SPEC, "refused", logging.WARNING),
        (Type.ADMITTED, "True", Reason.APPLIES_AT_NEXT_ATTEMPT, "deferred", logging.INFO),
        (Type.PODS_READY, "False", Reason.UNSCHEDULABLE, "waiting", logging.INFO),
    ],
)
def test_a_new_condition_is_told_as_a_decision(
    type_: Type, status: Any, reason: Reason, decision: str, level: int
) -> None:
    told = list(find_log_lines(GreenTrainingJobStatus(), with_condition(type_, status, reason)))
    assert told == [LogLine(decision, reason.value, "words", level)]


@pytest.mark.parametrize(
    ("type_", "status", "reason"),
    [
        (Type.PODS_READY, "False", Reason.STARTING),
        (Type.PODS_READY, "False", Reason.FINISHED),
        (Type.RUNNING, "False", Reason.FINISHED),
        (Type.FAILED, "False", Reason.ACTIVE),
    ],
)
def test_what_only_accompanies_a_decision_is_not_told(type_: Type, status: Any, reason: Reason) -> None:
    assert list(find_log_lines(GreenTrainingJobStatus(), with_condition(type_, status, reason))) == []


def test_other_words_alone_are_told_only_where_they_are_another_event() -> None:
    def told(type_: Type, status: Any, reason: Reason) -> int:
        old, new = with_condition(type_, status, reason, "one"), with_condition(type_, status, reason, "two")
        return len(list(find_log_lines(old, new)))

    assert told(Type.RESTARTING, "True", Reason.KILLED) == 1
    assert told(Type.PODS_READY, "False", Reason.UNSCHEDULABLE) == 0
