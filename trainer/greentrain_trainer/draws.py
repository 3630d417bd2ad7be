"""What a model's random layers draw at step k: a pure function of their seeds, the step and the replica.

Dropout and its like draw from `keras.random.SeedGenerator`s, each a seed and a counter that goes up with
every draw. Keras (3.15) keeps them out of `tf.train.Checkpoint`, so that a resumed run would count from 0
again and draw what the first steps drew. They also begin alike on every worker, which would all drop the
same units. Here every generator is seeded again before each step, so nothing about them needs saving, as with
the order of the samples (`batches`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

_STATE = "seed_generator_state"
"""Name of a `SeedGenerator`'s variable, two int64: its seed and its counter."""

_BOUND = 2**31 - 1
"""Keras takes a generator's numbers modulo this less one (`_cast_seed` in its TensorFlow backend)."""


class Draws:
    """The random generators of one model, and Keras's global one.

    To be built in the strategy's scope, after `keras.utils.set_random_seed` and before anything is drawn.
    """

    def __init__(self, model: Any) -> None:
        own = (variable for variable in model.variables if variable.name == _STATE)
        self._global = global_seed_generator()
        self._states = [*own, self._global.state]
        self._seeds = [int(state.numpy()[0]) for state in self._states]

    def begin(self, step: Any) -> None:
        """Set every generator for global step `step` (a scalar int64). To be called in the replica's function.

        Generators with the same seed draw alike, as they do in Keras.
        """
        # Keras keeps it per thread, and a strategy runs each replica's function in a thread of its own: there
        # an unseeded draw would make a new one inside the compiled step, which TensorFlow refuses.
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, self._global)
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        for state, seed in zip(self._states, self._seeds, strict=True):
            # Philox by name: "auto_select" may take another algorithm on another kind of device.
            folded = tf.random.experimental.stateless_fold_in(
                tf.stack([tf.constant(seed, tf.int64), step]), replica, alg="philox"
            )
            state.assign(
                tf.random.stateless_uniform(
                    [2], folded, minval=0, maxval=_BOUND, dtype=tf.int64, alg="philox"
                )
            )
