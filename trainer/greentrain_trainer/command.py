"""The command itself: parse, supervise, say the exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

from greentrain.api.runtime import Progress
from greentrain_trainer.ending import Ending
from greentrain_trainer.environment import TERMINATION_LOG_ENV, Environment, parse_environment
from greentrain_trainer.options import Options, parse_options
from greentrain_trainer.supervise import Pipe, build_termination_message, supervise, write_termination_message

log = logging.getLogger("greentrain_trainer")


def _quiet() -> None:
    """Say less than TensorFlow does by default; whatever the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Keras may be configured for another backend by a file in HOME; this trainer is for TensorFlow.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # TensorFlow's Python side logs every collective it traces.
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_command() -> int:
    """Run one rank to its end; returns the process's exit code."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stdout,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a program prints is to be seen while it runs, also where stdout is a pipe.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        options = parse_options(sys.argv[1:])
        environment = parse_environment(os.environ)
    except Ending as ending:
        log.error("%s", ending.reason)
        path = Path(os.environ.get(TERMINATION_LOG_ENV) or "/dev/termination-log")
        write_termination_message(path, build_termination_message(Progress(step=0), ending.reason))
        return ending.code
    return run(options, environment)


def run(options: Options, environment: Environment) -> int:
    """Train under supervision."""
    cluster = environment.cluster

    def train(pipe: Pipe) -> Ending:
        # Imported in the child only: the parent stays small and single-threaded.
        from greentrain_trainer.training import train_rank

        return train_rank(options, environment, pipe)

    others = [*cluster.chiefs, *cluster.workers]
    del others[cluster.rank : cluster.rank + 1]
    return supervise(
        train,
        total_steps=options.steps,
        peers=others,
        start_timeout_seconds=environment.start_timeout_seconds,
        grace_period_seconds=environment.grace_period_seconds,
        termination_log=environment.termination_log,
    )
