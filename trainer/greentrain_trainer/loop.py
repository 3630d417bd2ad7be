"""The default training loop: one compiled step, one number read per step, one step late.

A plain loop that shows its loss waits for it at every step. This one adds the stop votes to the same
all-reduced vector, and reads the vector of step k only after step k+1 has been given to the device, so
that the device never waits for the reading. Every rank reads the same vector at the same place, so all
leave after the same step: the one after the vote.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from greentrain_trainer.course import Course, distribute
from greentrain_trainer.ending import failed
from greentrain_trainer.feed import Feed, iterate_batches
from greentrain_trainer.strategy import local_replicas


def train_custom(course: Course) -> None:
    """Train from `course.start` to the last step or the agreed stop."""
    replicas = local_replicas(course.strategy)
    step = build_step(course)
    votes = {asked: tf.constant(1.0 if asked else 0.0) for asked in (False, True)}
    feed = Feed(iterate_batches(course.program, course.shard, course.start, course.options.steps), replicas)
    given = course.start
    unread: Any = None
    for parts in feed:
        inputs, targets = distribute(course.strategy, parts)
        result = step(inputs, targets, votes[course.stop.asked], tf.constant(given, tf.int64))
        given += 1
        if unread is not None:
            _read(course, unread)
        unread = result
        if course.stop_agreed:
            break
        if course.is_due(given):
            _read(course, unread)
            unread = None
            course.attend(given)
        course.pace()
    if unread is not None:
        _read(course, unread)
    feed.close()


def _read(course: Course, result: Any) -> None:
    loss, votes = result.numpy().tolist()
    course.count(loss, votes)


def mean_loss(strategy: Any, loss: Any, targets: Any, outputs: Any) -> Any:
    """The mean of a program's loss over this replica's samples."""
    values = loss(targets, outputs)
    if values.shape.rank != 0:
        return tf.reduce_mean(values)
    if isinstance(loss, keras.losses.Loss) and loss.reduction != "sum":
        # A Keras loss object divides its mean by the number of replicas wherever a strategy is at work
        # (`scale_loss_for_distribution` in keras/src/losses/loss.py, 3.15). Our shares do that already.
        return values * strategy.num_replicas_in_sync
    raise failed(
        "The program's loss gives one number for all samples, and its share of the global batch cannot be derived; "
        "use a Keras loss object that takes the mean, or a function that returns one value per sample."
    )


def build_step(course: Course) -> Any:
    """The compiled step: (inputs, targets, this rank's vote, steps done) → [mean loss, votes], equal on all ranks.

    Each replica's mean loss is weighted by its share of the global batch, and gradients are summed over
    replicas, so uneven shares give the gradient of the global batch's mean all the same.
    """
    strategy, model, optimizer = course.strategy, course.model, course.optimizer
    size = course.options.global_batch_size
    local, replicas = local_replicas(strategy), strategy.num_replicas_in_sync

    def on_replica(inputs: Any, targets: Any, vote: Any, done: Any) -> Any:
        course.draws.begin(done)
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            mean = mean_loss(strategy, course.program.loss, targets, outputs)
            share = tf.cast(tf.shape(tf.nest.flatten(targets)[0])[0], mean.dtype) / size
            loss = mean * share
            if model.losses:
                loss += tf.add_n(model.losses) / replicas
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return tf.stack([tf.cast(loss, tf.float32), vote / local])

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow publishes no types
    def step(inputs: Any, targets: Any, vote: Any, done: Any) -> Any:
        result = strategy.run(on_replica, args=(inputs, targets, vote, done))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None)

    return step
