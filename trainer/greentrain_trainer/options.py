"""The command line: what is asked of a training run, parsed once into a frozen value.

A wrong option ends with exit code 2 and one sentence that names it, because that sentence is what a
person reads in the job's `Failed` condition.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from greentrain.api.runtime import BUILTIN_PROGRAMS
from greentrain_trainer.ending import misused

LOOPS = ("custom", "fit")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    program: str
    """A built-in program's name or a user's `module:function`."""
    steps: int = 500
    """Global steps until the job is done, counted over all attempts."""
    global_batch_size: int = 64
    """Samples per step, over all workers together."""
    learning_rate: float = 1e-3
    seed: int = 1
    """Seed of the initial weights and of the data order."""
    checkpoint_every: int = 100
    """Steps between checkpoints; 0 for one at a stop and at the end only."""
    keep_checkpoints: int = 3
    evaluate_every: int = 0
    """Steps between evaluations on the program's held-out data; 0 for one at the end only."""
    loop: str = "custom"
    deterministic: bool = False
    """Ask TensorFlow for deterministic kernels: slower, equal to the bit from run to run."""
    model_dir: Path | None = None
    """Where the finished model is saved; None for the checkpoint directory."""
    step_delay_seconds: float = 0.0
    """Seconds to wait after every step. For drills: it makes a small program last."""
    step_cpu_seconds: float = 0.0
    """Seconds of CPU time that every step takes at least. For drills: on simulated GPUs, which are as busy as the CPU of
    their pod, a step then costs the same on every machine."""
    settings: dict[str, str] = field(default_factory=dict)
    """The program's own settings, from `--set NAME=VALUE`."""


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is an `Ending` of one sentence, not two lines on stderr and an exit."""

    def error(self, message: str) -> NoReturn:
        raise misused(f"{message[:1].upper()}{message[1:]}; `{self.prog} --help` lists the options.")


def _number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


def _count(text: str) -> int:
    return _number(text, 1)


def _count_or_none(text: str) -> int:
    return _number(text, 0)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return amount


def _rate(text: str) -> float:
    amount = _amount(text)
    if amount == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return amount


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="python -m greentrain_trainer",
        description="Train a TensorFlow program on the cluster TF_CONFIG describes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    names = ", ".join(BUILTIN_PROGRAMS)
    add("program", metavar="PROGRAM", help=f"a built-in program ({names}) or your own module:function")
    add("--steps", type=_count, default=Options.steps, help="global steps until the job is done")
    add(
        "--global-batch-size",
        type=_count,
        default=Options.global_batch_size,
        help="samples per step, all workers together",
    )
    add("--learning-rate", type=_rate, default=Options.learning_rate, help="handed to the program")
    add("--seed", type=_count_or_none, default=Options.seed, help="of the initial weights and the data order")
    add(
        "--checkpoint-every",
        type=_count_or_none,
        default=Options.checkpoint_every,
        metavar="STEPS",
        help="0: only at a stop and at the end",
    )
    add(
        "--keep-checkpoints",
        type=_count,
        default=Options.keep_checkpoints,
        metavar="COUNT",
        help="older ones are deleted",
    )
    add(
        "--evaluate-every",
        type=_count_or_none,
        default=Options.evaluate_every,
        metavar="STEPS",
        help="0: only at the end",
    )
    add("--loop", choices=LOOPS, default=Options.loop, help="our training loop, or Keras's fit")
    add("--deterministic", action="store_true", help="bit-equal from run to run, slower")
    add(
        "--model-dir",
        type=Path,
        default=None,
        help="where model.keras is saved; by default the checkpoint directory",
    )
    add(
        "--step-delay-seconds",
        type=_amount,
        default=Options.step_delay_seconds,
        metavar="SECONDS",
        help="wait after every step; for drills only",
    )
    add(
        "--step-cpu-seconds",
        type=_amount,
        default=Options.step_cpu_seconds,
        metavar="SECONDS",
        help="CPU time that every step takes at least; for drills only",
    )
    add(
        "--set",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a setting of the program's own; repeatable",
    )
    return parser


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse a command line (without the interpreter and module name).

    Raises `Ending` with exit code 2 for anything it does not understand; `--help` exits with 0 as usual.
    """
    parsed = _build_parser().parse_args(arguments)
    return Options(**{**vars(parsed), "settings": dict(parsed.settings)})
