"""What a rank tells: its progress, its metrics, its last words."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from greentrain.api.runtime import (
    TERMINATION_MESSAGE_MAX_BYTES,
    Checkpoint,
    Progress,
    parse_progress,
    parse_termination_message,
)
from greentrain_trainer.progress import Scoreboard, render_metrics, serve_progress
from greentrain_trainer.supervise import build_termination_message, grace_margin, write_termination_message

CHECKPOINT = Checkpoint(step=100, path="/volume/checkpoints/step-100")
PROGRESS = Progress(
    step=120,
    start_step=100,
    total_steps=500,
    metrics={"loss": 0.25},
    checkpoint=CHECKPOINT,
    model_path="/volume/model.keras",
)


def test_the_scoreboard_keeps_the_latest_of_everything_and_publishes_what_matters() -> None:
    published: list[Progress] = []
    board = Scoreboard(500, published.append)
    assert board.progress == Progress(step=0, total_steps=500)
    board.begin(100, CHECKPOINT)
    board.advance(120)
    board.measure({"loss": 0.5, "accuracy": 0.9})
    board.measure({"loss": 0.25})
    board.save_model("/volume/model.keras")
    assert board.progress == PROGRESS.model_copy(update={"metrics": {"loss": 0.25, "accuracy": 0.9}})
    assert [each.step for each in published] == [100, 120, 120, 120]


def test_a_metric_that_is_no_number_or_has_no_proper_name_is_dropped_and_the_rest_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board = Scoreboard()
    board.measure({"loss": 1.0})
    board.measure({"loss": float("nan"), "top 5": 1.0, "accuracy": 0.5})
    assert board.progress.metrics == {"accuracy": 0.5}
    assert parse_progress(board.progress.model_dump_json(by_alias=True)) == board.progress
    assert "metric 'loss' = nan is not reported" in caplog.text
    assert "metric 'top 5' = 1.0 is not reported" in caplog.text


def test_metrics_are_prometheus_text() -> None:
    text = render_metrics(PROGRESS, 'work"er\\0\n')
    label = r'rank="work\"er\\0\n"'
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert samples == [
        f"greentrain_trainer_step{{{label}}} 120",
        f"greentrain_trainer_start_step{{{label}}} 100",
        f"greentrain_trainer_total_steps{{{label}}} 500",
        f"greentrain_trainer_checkpoint_step{{{label}}} 100",
        f'greentrain_trainer_metric{{{label},name="loss"}} 0.25',
    ]
    for sample in samples:
        name = sample.partition("{")[0]
        assert f"# TYPE {name} gauge\n" in text
        assert f"# HELP {name} " in text


def test_progress_is_served_as_the_operator_parses_it() -> None:
    board = Scoreboard(500)
    port = serve_progress(board, "worker-0", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert parse_progress(answer.read()) == Progress(step=0, total_steps=500)
    board.begin(100, CHECKPOINT)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b'greentrain_trainer_step{rank="worker-0"} 100' in answer.read()
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/secrets", timeout=10)
    assert raised.value.code == 404
    raised.value.close()


def test_a_port_that_is_taken_costs_the_report_only(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        assert serve_progress(Scoreboard(), "worker-0", taken.getsockname()[1]) is None
    assert "progress is not served" in caplog.text


def test_the_termination_message_is_read_back_by_the_operator() -> None:
    text = build_termination_message(PROGRESS, "Trained\n  120 steps.")
    message = parse_termination_message(text)
    assert message is not None
    assert message.reason == "Trained 120 steps."
    assert message.checkpoint == CHECKPOINT
    assert json.loads(text)["modelPath"] == "/volume/model.keras"


@pytest.mark.parametrize("letter", ["x", "ä", "💡"])
def test_the_termination_message_always_fits_and_keeps_the_checkpoint(letter: str) -> None:
    crowded = PROGRESS.model_copy(
        update={
            "metrics": {f"m{n}_{'x' * 58}": 1e-300 / 3 for n in range(16)},
            "model_path": letter * 1024,
            "checkpoint": Checkpoint(step=100, path="/" + letter * 700),
        }
    )
    text = build_termination_message(crowded, letter * 5000)
    assert len(text.encode()) <= TERMINATION_MESSAGE_MAX_BYTES
    message = parse_termination_message(text)
    assert message is not None
    assert message.checkpoint == crowded.checkpoint
    assert message.reason.endswith("…")


def test_a_message_that_cannot_be_written_is_logged_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_termination_message(tmp_path / "absent" / "log", '{"reason": "x"}')
    assert '{"reason": "x"}' in caplog.text


def test_the_grace_margin_is_a_third_and_two_seconds_at_most() -> None:
    assert [grace_margin(seconds) for seconds in (0.75, 3, 6, 30)] == [0.25, 1.0, 2.0, 2.0]
