"""Training by Keras's `fit`, for models whose `train_step` is their own.

Keras 3 (checked with 3.15) cannot `fit` under MultiWorkerMirroredStrategy as shipped: it reduces a tuple
of per-replica batches to build the model, and then reduces scalar logs along an axis they do not have
(keras-team/keras issue 20585). The model being trained gets functions of ours in both places, and the
second is where the stop votes join the logs' all-reduce: one collective per step, as in our own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from greentrain_trainer.course import Course
from greentrain_trainer.ending import failed
from greentrain_trainer.feed import AHEAD, iterate_batches, split_replicas
from greentrain_trainer.strategy import local_replicas

VOTES = "stop_votes"
"""Name of the votes among the step's logs."""


def train_fit(course: Course) -> None:
    """Train from `course.start` to the last step or the agreed stop."""
    remaining = course.options.steps - course.start
    if remaining <= 0:
        return
    strategy, model = course.strategy, course.model
    vote = tf.Variable(0.0, trainable=False, name="stop_vote")
    dataset = strategy.distribute_datasets_from_function(lambda _context: build_dataset(course))
    with strategy.scope():
        # Without jit: "auto" would compile collectives, which XLA cannot do on CPUs. Without automatic
        # loss scaling: it would put another optimizer into the checkpoint than the program's.
        model.compile(course.optimizer, course.program.loss, jit_compile=False, auto_scale_loss=False)
    mend(course, vote)
    # At its end `fit` puts an optimizer's averaged weights (`use_ema`) into the model, also at an agreed
    # stop: the checkpoint would contain them, and a resumed run would go on from them.
    course.optimizer.finalize_variable_values = _leave_variables
    try:
        model.fit(
            dataset,
            steps_per_epoch=remaining,
            epochs=1,
            verbose=0,
            shuffle=False,
            callbacks=[_build_callback(course, vote)],
        )
    finally:
        del course.optimizer.finalize_variable_values


def _leave_variables(_variables: Any) -> None:
    """Instead of an optimizer's `finalize_variable_values`, which the course calls after the last step."""


def build_dataset(course: Course) -> Any:
    """Build this process's batches as a `tf.data.Dataset` of one element per step and local replica."""
    replicas = local_replicas(course.strategy)

    def batches() -> Iterator[tuple[Any, Any]]:
        # Called again at every iteration of the dataset; Keras makes one only to look at a batch.
        for batch in iterate_batches(course.program, course.shard, course.start, course.options.steps):
            yield from split_replicas(tf.nest.map_structure(tf.convert_to_tensor, batch), replicas)

    def describe(tensor: Any) -> Any:
        return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)

    signature = tf.nest.map_structure(describe, next(batches()))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(AHEAD * replicas)


def _build_callback(course: Course, vote: Any) -> Any:
    class Follow(keras.callbacks.Callback):  # type: ignore[misc]  # Keras publishes no types
        """Counts Keras's steps on the course, votes, and stops when all have agreed."""

        def __init__(self) -> None:
            super().__init__()
            self._voted = False
            self._unread: Mapping[str, Any] | None = None

        def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras names them
            if course.stop.asked and not self._voted:
                vote.assign(1.0)
                self._voted = True
            # Keras's loss is a mean since the epoch's begin, and ours is one endless epoch.
            self.model.reset_metrics()

        def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras names them
            self._read()
            self._unread = logs
            if course.stop_agreed:
                self.model.stop_training = True
            elif course.is_due(course.step + 1):
                self._read()
                course.attend(course.step)
            course.pace()

        def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras names them
            self._read()

        def _read(self) -> None:
            # One step late, as in our own loop, so that a run stops after the same step with either.
            if self._unread is not None:
                course.count(float(self._unread["loss"]), float(self._unread[VOTES]))
                self._unread = None

    return Follow()


def mend(course: Course, vote: Any) -> None:
    """Give the compiled model the two functions that fail in Keras with several workers.

    On this model only: a model that the program's `evaluate` uses meanwhile keeps Keras's own.
    """
    course.model._maybe_symbolic_build = partial(_symbolic_build, course.model)
    # Keras builds its train function only where there is none.
    course.model.train_function = _build_train_function(course, vote)


def _symbolic_build(model: Any, iterator: Any = None, data_batch: Any = None) -> None:
    """Keras's own, but with the first local replica's batch where it would reduce over replicas."""
    strategy = model.distribute_strategy
    if iterator is not None:
        for _begin, _end, batches in iterator:
            data_batch = tf.nest.map_structure(
                lambda v: strategy.experimental_local_results(v)[0], next(batches)
            )
            break
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def _build_train_function(course: Course, vote: Any) -> Callable[[Any], Any]:
    strategy, model = course.strategy, course.model
    local = local_replicas(strategy)
    names: list[str] = []
    done = tf.Variable(course.start, dtype=tf.int64, trainable=False, name="steps_done")

    def on_replica(batch: Any, done: Any) -> Any:
        course.draws.begin(done)
        logs = model.train_step(batch)
        if not isinstance(logs, Mapping) or "loss" not in logs:
            raise failed(f"The model's train_step must return a dict with `loss`, and it returned {logs!r}.")
        names[:] = sorted(logs)
        return tf.stack([*(tf.cast(logs[name], tf.float32) for name in names), vote / local])

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow publishes no types
    def step(batch: Any) -> Any:
        # The mean of each log over all replicas and the sum of votes, in one all-reduce.
        logs = strategy.run(on_replica, args=(batch, done.read_value()))
        done.assign_add(1)
        total = strategy.reduce(tf.distribute.ReduceOp.SUM, logs, axis=None)
        means = {name: total[place] / strategy.num_replicas_in_sync for place, name in enumerate(names)}
        return {**means, VOTES: total[-1]}

    return lambda batches: step(next(batches))
