"""What both training loops share: the count of steps, and what is due after which of them.

A loop computes; the `Course` says where to begin, keeps the score, saves, evaluates, and says when the
ranks have agreed to stop.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from greentrain_trainer.batches import Shard
from greentrain_trainer.checkpoints import Checkpoints
from greentrain_trainer.draws import Draws
from greentrain_trainer.ending import StopRequest, failed
from greentrain_trainer.options import Options
from greentrain_trainer.program import Program
from greentrain_trainer.progress import Scoreboard

log = logging.getLogger(__name__)

MODEL_FILE = "model.keras"

SCORE_SECONDS = 1.0
"""Least time between two updates of the loss in the score."""

LOG_SECONDS = 3.0
"""Least time between two log lines: people follow them."""


class Course:
    """One rank's way from its start step to the last."""

    # Twelve parameters: all that both loops share, each made once by `training`; a value around them would name them again.
    def __init__(
        self,
        options: Options,
        program: Program,
        strategy: Any,
        model: Any,
        optimizer: Any,
        draws: Draws,
        shard: Shard,
        stop: StopRequest,
        scoreboard: Scoreboard,
        checkpoints: Checkpoints | None,
        model_dir: Path | None,
        is_chief: bool,
    ) -> None:
        self.options = options
        self.program = program
        self.strategy = strategy
        self.model = model
        self.optimizer = optimizer
        self.draws = draws
        self.shard = shard
        self.stop = stop
        self.scoreboard = scoreboard
        self.checkpoints = checkpoints
        self.model_dir = model_dir
        self.is_chief = is_chief
        self.start = scoreboard.progress.step
        self.stop_agreed = False
        self._plain: Any = None
        self._counted = self.start
        self._scored_at = self._logged_at = time.monotonic()
        self._logged_step = self.start
        self._scored_step = self.start
        self._paced_at = time.process_time()

    @property
    def step(self) -> int:
        """Global steps done, as far as their result has been seen."""
        return self._counted

    def count(self, loss: float, votes: float) -> None:
        """One more step has its result: the global batch's mean loss and the ranks that ask to stop."""
        self._counted += 1
        self.stop_agreed = self.stop_agreed or votes > 0
        self.scoreboard.advance(self._counted)
        now = time.monotonic()
        last = self._counted == self.options.steps
        if now - self._scored_at >= SCORE_SECONDS or last:
            rate = (
                (self._counted - self._scored_step) * self.options.global_batch_size / (now - self._scored_at)
            )
            self.scoreboard.measure({"loss": loss, "samples_per_second": rate})
            self._scored_at, self._scored_step = now, self._counted
        if now - self._logged_at >= LOG_SECONDS or last or self._counted == self.start + 1:
            rate = (
                (self._counted - self._logged_step) * self.options.global_batch_size / (now - self._logged_at)
            )
            log.info("step %d/%d  loss %.4f  %.0f samples/s", self._counted, self.options.steps, loss, rate)
            self._logged_at, self._logged_step = now, self._counted

    def is_due(self, step: int) -> bool:
        """Whether there is something to save or evaluate after `step` steps."""
        every = (self.options.checkpoint_every if self.checkpoints else 0, self.options.evaluate_every)
        return step < self.options.steps and any(n and step % n == 0 for n in every)

    def attend(self, step: int) -> None:
        """Save and evaluate what is due after `step` steps; `step` must be `self.step`."""
        if step >= self.options.steps:
            return
        if self.options.checkpoint_every and step % self.options.checkpoint_every == 0:
            self.save_checkpoint()
        if self.options.evaluate_every and step % self.options.evaluate_every == 0:
            self.evaluate()

    def pace(self) -> None:
        """Compute and wait as `--step-cpu-seconds` and `--step-delay-seconds` ask."""
        if self.options.step_cpu_seconds:
            end = self._paced_at + self.options.step_cpu_seconds
            while time.process_time() < end:
                pass
            self._paced_at = time.process_time()
        if self.options.step_delay_seconds:
            time.sleep(self.options.step_delay_seconds)

    def save_checkpoint(self) -> None:
        """On the chief, save where we are, unless that is saved already."""
        known = self.scoreboard.progress.checkpoint
        if self.checkpoints is None or not self.is_chief or (known is not None and known.step == self.step):
            return
        started = time.monotonic()
        checkpoint = self.checkpoints.save(self.step)
        self.scoreboard.confirm(checkpoint)
        log.info(
            "checkpoint of step %d saved in %.2f s: %s",
            checkpoint.step,
            time.monotonic() - started,
            checkpoint.path,
        )

    def finish(self) -> None:
        """After the last step and its checkpoint: let the optimizer put its final weights into the model.

        With `use_ema` these are the averaged ones.
        """
        with self.strategy.scope():
            self.optimizer.finalize_variable_values(self.model.trainable_variables)

    def evaluate(self) -> None:
        """On the chief, the program's metrics on its held-out samples."""
        if self.program.evaluate is None or not self.is_chief:
            return
        metrics = {name: float(value) for name, value in self.program.evaluate(self._plain_model()).items()}
        self.scoreboard.measure(metrics)
        log.info(
            "step %d evaluated  %s",
            self.step,
            "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
        )

    def save_model(self) -> None:
        """On the chief, save the model whole or not at all."""
        if self.model_dir is None or not self.is_chief:
            return
        target = self.model_dir / MODEL_FILE
        # Keras insists on the suffix; hidden, so that the unfinished file is not taken for a model.
        aside = self.model_dir / f".{os.getpid()}.{MODEL_FILE}"
        try:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            self._plain_model().save(aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(target)
        except OSError as error:
            raise failed(
                f"The model cannot be saved to {target} ({error.strerror or error}); make the directory writable for uid {os.getuid()}."
            ) from error
        finally:
            aside.unlink(missing_ok=True)
        self.scoreboard.save_model(str(target))
        log.info("model saved: %s", target)

    def _plain_model(self) -> Any:
        # Evaluated and saved is a copy outside the strategy: `predict` of a model inside it is a
        # collective, in which the chief alone would wait without end.
        if self._plain is None:
            self._plain = self.program.model()
        self._plain.set_weights(self.model.get_weights())
        return self._plain


def distribute(strategy: Any, parts: list[Any]) -> Any:
    """One value per local replica, as `strategy.run` takes it; a lone one is passed as it is."""
    if len(parts) == 1:
        return parts[0]

    def spread(*values: Any) -> Any:
        local = iter(values)
        return strategy.experimental_distribute_values_from_function(lambda _context: next(local))

    return tf.nest.map_structure(spread, *parts)
