"""What containers say is untrusted: bounded, parsed strictly, dropped when it does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greentrain.api.conditions import set_condition
from greentrain.api.runtime import PROGRESS_MAX_BYTES, clean_text, parse_progress, parse_termination_message


def test_a_sound_message_is_read() -> None:
    text = json.dumps({"step": 9, "startStep": 4, "reason": "done", "checkpoint": {"step": 9, "path": "/c"}})
    message = parse_termination_message(text)
    assert message is not None
    assert (message.step, message.start_step, message.checkpoint and message.checkpoint.step) == (9, 4, 9)


@pytest.mark.parametrize(
    "said",
    [
        {"step": -1},
        {"step": 2**60},
        {"step": "many"},
        {"step": 1, "metrics": {"a b": 1}},
        {"step": 1, "metrics": {f"m{i}": 1 for i in range(17)}},
        {"step": 1, "checkpoint": {"step": 1, "path": "x" * 2000}},
        [],
        "step",
    ],
)
def test_what_does_not_fit_is_dropped(said: Any) -> None:
    assert parse_progress(json.dumps(said)) is None


@pytest.mark.parametrize("text", [None, "", "Traceback (most recent call last):", '{"step": 1}', "x" * 5000])
def test_a_foreign_programs_last_words_are_no_termination_message(text: str | None) -> None:
    assert parse_termination_message(text) is None


def test_nan_and_endless_answers_are_dropped() -> None:
    assert parse_progress('{"step": 1, "metrics": {"loss": NaN}}') is None
    assert parse_progress(" " * (PROGRESS_MAX_BYTES + 1) + "{}") is None


HOSTILE = "a\x00\x1b[2J\x07\x7f\x85\x9b\u061c\u200f\u202e\u2066\u2028\ufeffb"
CLEAN = "a\ufffd\ufffd[2J" + "\ufffd" * 10 + "b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, CLEAN),
        ("step 1\rstep 2\r\nloss\t0.5\n", "step 1\nstep 2\nloss\t0.5\n"),
        ("größer – 日本 ✓ 👩‍🔬", "größer – 日本 ✓ 👩‍🔬"),
    ],
    ids=["controls", "lines and tabs", "letters of any script"],
)
def test_a_programs_text_cannot_command_a_terminal(text: str, shown: str) -> None:
    assert clean_text(text) == shown


def test_what_a_program_says_is_cleaned_where_it_is_parsed() -> None:
    said = {"step": 1, "checkpoint": {"step": 1, "path": f"/c/{HOSTILE}\n"}, "modelPath": HOSTILE}
    progress = parse_progress(json.dumps(said))
    assert progress is not None
    assert progress.checkpoint is not None
    assert progress.checkpoint.path == f"/c/{CLEAN}\ufffd"
    assert progress.model_path == CLEAN
    message = parse_termination_message(json.dumps({**said, "reason": f"{HOSTILE}\nmore"}))
    assert message is not None
    assert message.reason == f"{CLEAN}\nmore"


def test_a_condition_that_quotes_a_user_is_clean() -> None:
    (condition,) = set_condition(
        (), "Admitted", "False", "InvalidSpec", HOSTILE, now="2026-01-01T00:00:00Z", generation=1
    )
    assert condition.message == CLEAN
