"""What a user writes: a function from `Settings` to a `Program`, found by `module:function`.

The parts are functions because they are called at different places: the model and the optimizer inside
the distribution strategy's scope, the batches in a thread that runs ahead of the training, and the
evaluation on a plain copy of the model on the chief alone, where `predict` and `evaluate` of Keras work
and wait for no other worker.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from greentrain.api.runtime import BUILTIN_PROGRAMS
from greentrain_trainer.batches import Shard
from greentrain_trainer.ending import failed, misused

BUILTIN_FUNCTIONS: Mapping[str, str] = {"digits": "greentrain_trainer.programs.digits:build_program"}
"""Where each of `BUILTIN_PROGRAMS` lives; a unit test compares the two."""


@dataclass(frozen=True)
class Settings:
    """What the command line says that a program may want to know."""

    steps: int
    """Global steps until the job is done."""
    global_batch_size: int
    learning_rate: float
    seed: int
    own: Mapping[str, str] = field(default_factory=dict)
    """The program's own settings, from `--set NAME=VALUE`."""


@dataclass(frozen=True)
class Program:
    """A training program. Keras and TensorFlow objects stand as `Any`: neither publishes types."""

    model: Callable[[], Any]
    """Builds the `keras.Model`, with its input shape known. Called inside the strategy's scope, and once
    more outside it for evaluation and saving; both calls must build the same layers."""
    optimizer: Callable[[], Any]
    """Builds the `keras.optimizers.Optimizer`."""
    loss: Callable[[Any, Any], Any]
    """A Keras loss object that takes the mean over samples, or a function `loss(targets, outputs)` that
    returns one value per sample, such as `keras.losses.mean_squared_error`."""
    batch: Callable[[int, Shard], tuple[Any, Any]] | None = None
    """`batch(step, shard)`: inputs and targets (arrays, or nested lists or dicts of them) of the shard's
    positions of global step `step`, from 0. The same arguments must give the same samples."""
    stream: Callable[[int, Shard], Iterable[tuple[Any, Any]]] | None = None
    """Instead of `batch`: what to iterate for steps `step`, `step + 1`, … such as a `tf.data.Dataset`."""
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    """`evaluate(model)`: metrics by name on held-out samples; called on the chief with a plain model."""

    def __post_init__(self) -> None:
        if (self.batch is None) == (self.stream is None):
            raise ValueError("A Program needs exactly one of `batch` and `stream`.")


def load_program(name: str) -> Callable[[Settings], Program]:
    """Find a program's function: a built-in's name, or `module:function` importable from here.

    Raises `Ending`: exit code 2 when there is no such program, 1 when its module fails while importing.
    """
    built_in = BUILTIN_FUNCTIONS.get(name)
    module_name, separator, function_name = (built_in or name).partition(":")
    known = ", ".join(BUILTIN_PROGRAMS)
    remedy = f"name a built-in program ({known}) or your own module:function, importable from the working directory or PYTHONPATH"
    if not separator or not function_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise misused(f"Unknown program {name!r}; {remedy}.")
    # `python -m` puts the working directory in front already; the console and tests may not.
    if built_in is None and (here := os.getcwd()) not in sys.path and "" not in sys.path:  # noqa: PTH109 - sys.path has strings
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise misused(f"Unknown program {name!r}: there is no module {error.name!r}; {remedy}.") from None
        raise failed(
            f"Program {name!r} cannot be imported: {error}; add what it needs to the image."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise misused(
            f"Unknown program {name!r}: module {module_name!r} has no function {function_name!r}; {remedy}."
        )
    return function  # type: ignore[no-any-return]  # whatever a user's module has; its result is checked by build_program


def build_program(name: str, settings: Settings) -> Program:
    """Find the program and call it; raises `Ending` when it returns something else."""
    program = load_program(name)(settings)
    if not isinstance(program, Program):
        raise failed(
            f"Program {name!r} returned {type(program).__name__}; it must return a greentrain_trainer.Program."
        )
    return program
