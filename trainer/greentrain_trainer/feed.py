"""Batches ahead of the training: a thread builds the next ones while a step runs.

Without it the accelerator would wait for the program's Python at every step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from greentrain_trainer.batches import Shard, split
from greentrain_trainer.ending import failed
from greentrain_trainer.program import Program

AHEAD = 2
"""Batches in memory: one ready, one being built."""


def iterate_batches(program: Program, shard: Shard, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
    """Yield this process's (inputs, targets) of global steps `start` up to `stop`."""
    if program.batch is not None:
        for step in range(start, stop):
            yield program.batch(step, shard)
        return
    step = start
    # A program has one of the two (`Program`).
    batches = () if program.stream is None or start >= stop else program.stream(start, shard)
    for inputs, targets in batches:
        yield inputs, targets
        step += 1
        if step == stop:
            return
    if step < stop:
        raise failed(
            f"The program's stream ended at step {step} of {stop}; let it repeat, or ask for fewer --steps."
        )


def split_replicas(batch: tuple[Any, Any], replicas: int) -> list[tuple[Any, Any]]:
    """Cut a process's batch along axis 0 into one part for each of its replicas."""
    if replicas == 1:
        return [batch]
    size = len(tf.nest.flatten(batch)[0])
    return [
        tf.nest.map_structure(lambda array, a=start, b=stop: array[a:b], batch)
        for start, stop in split(size, replicas)
    ]


class Feed:
    """Iterates over batches as tensors, one list entry per local replica, built in a thread."""

    def __init__(self, batches: Iterator[tuple[Any, Any]], replicas: int) -> None:
        self._queue: queue.Queue[list[tuple[Any, Any]] | BaseException | None] = queue.Queue(AHEAD)
        self._closed = False
        self._thread = threading.Thread(target=self._fill, args=(batches, replicas), name="feed", daemon=True)
        self._thread.start()

    def _fill(self, batches: Iterator[tuple[Any, Any]], replicas: int) -> None:
        end: BaseException | None = None
        try:
            for batch in batches:
                tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
                self._queue.put(split_replicas(tensors, replicas))
                if self._closed:
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the batch is taken
            end = error
        self._queue.put(end)

    def __iter__(self) -> Iterator[list[tuple[Any, Any]]]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Let the thread end; the batches that are ready are dropped."""
        self._closed = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
