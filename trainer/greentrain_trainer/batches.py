"""Which samples make up global step k: a pure function of the seed and the step.

Nothing about the data's position is saved in a checkpoint, because there is nothing to save: any number
of workers, at any attempt, computes the same samples for the same step, and each takes its part. That is
what makes a resume exact and a change of the worker count harmless (measured in docs/tasks/trainer.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One process's part of every global batch: positions `start` up to `stop`."""

    index: int
    """This process's rank."""
    count: int
    """Number of processes."""
    start: int
    stop: int
    global_batch_size: int

    @property
    def size(self) -> int:
        """Samples per step in this process."""
        return self.stop - self.start


def split(size: int, parts: int) -> list[tuple[int, int]]:
    """Cut positions 0 to `size` into `parts` neighbouring (start, stop) whose lengths differ by at most one."""
    return [(size * part // parts, size * (part + 1) // parts) for part in range(parts)]


def build_shard(global_batch_size: int, index: int, count: int) -> Shard:
    """The part of process `index` of `count`; none is empty where `global_batch_size >= count`."""
    start, stop = split(global_batch_size, count)[index]
    return Shard(index, count, start, stop, global_batch_size)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, samples: int) -> Indices:
    # Philox is keyed: (seed, epoch) gives its stream on every platform without drawing the earlier ones.
    # Sorting its raw words, because NumPy keeps the bit generators' streams the same from version to
    # version but not what `Generator.permutation` makes of them (NEP 19).
    words = np.random.Philox(key=[seed, epoch]).random_raw(samples)
    order: Indices = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def sample_indices(step: int, shard: Shard, seed: int, samples: int) -> Indices:
    """Indices into a data set of `samples` for this shard's positions of global step `step` (from 0).

    Each epoch is a fresh permutation; a batch may end one epoch and begin the next, so every sample is
    seen exactly once per epoch whatever the batch size.
    """
    first = step * shard.global_batch_size
    positions = np.arange(first + shard.start, first + shard.stop, dtype=np.int64)
    epochs, offsets = np.divmod(positions, samples)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permutation(seed, int(epoch), samples)[offsets[here]]
    return indices


def shuffled(
    inputs: npt.NDArray[Any], targets: npt.NDArray[Any], seed: int
) -> Callable[[int, Shard], tuple[Any, Any]]:
    """A program's `batch` function over arrays in memory, reshuffled every epoch.

    `inputs` and `targets` have the samples along axis 0.
    """
    if len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"There are {len(inputs)} inputs and {len(targets)} targets; both must be as many, at least one."
        )

    def batch(step: int, shard: Shard) -> tuple[Any, Any]:
        indices = sample_indices(step, shard, seed, len(inputs))
        return inputs[indices], targets[indices]

    return batch
