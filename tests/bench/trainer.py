"""The trainer's throughput against a plain `tf.distribute` script (`tests/bench/plain.py`).

Both train the same network on the same arrays, and both read the same clock: the loss they share notes the
time of every step in a file. The trainer is run as its image runs it, `python -m greentrain_trainer`, with
nothing changed or switched off but checkpoints, which the script does not write either. Pairs alternate in
order (trainer first, then script first, …), so that a machine growing slower or faster favours neither.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from greentrain.api.runtime import Env
from greentrain_trainer import Program, Settings, shuffled
from greentrain_trainer.environment import PROGRESS_PORT_ENV, TERMINATION_LOG_ENV
from sandbox.ports import find_free_ports

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.bench.trainer:program"
BATCH = 128
WARM_UP, MEASURED = 10, 50
"""Steps before the first timestamp that counts, and between it and the last."""
RUN_SECONDS = 120
"""A run that takes longer is broken."""
STEP_MS = 40
"""The aim is for networks whose step takes at least this long."""


def program(settings: Settings) -> Program:
    """What the plain script trains, as a program of the trainer; `--set clock=PATH` for its clock."""
    # TensorFlow must not be imported by the bench itself.
    import keras

    from tests.bench.plain import arrays, build_loss, build_model

    return Program(
        model=build_model,
        optimizer=lambda: keras.optimizers.Adam(settings.learning_rate),
        loss=build_loss(Path(settings.own["clock"])),
        batch=shuffled(*arrays(), settings.seed),
    )


def build_environment(folder: Path, rank: int, ports: list[int]) -> dict[str, str]:
    """The surroundings of one rank, the same for both sides; alone, it has no TF_CONFIG."""
    environment = {
        k: v for k, v in os.environ.items() if k != Env.TF_CONFIG and not k.startswith("GREENTRAIN_")
    }
    environment |= {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        PROGRESS_PORT_ENV: "0",
        TERMINATION_LOG_ENV: str(folder / f"termination-{rank}"),
    }
    if len(ports) > 1:
        environment[Env.TF_CONFIG] = json.dumps(
            {
                "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                "task": {"type": "worker", "index": rank},
            }
        )
    return environment


def cores_of(rank: int, workers: int) -> list[int]:
    """The cores a rank may use: its share, so that workers of one machine do not take turns on them."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[rank::workers] if len(cores) >= workers else cores


def measure_steps(side: str, workers: int) -> list[float]:
    """Time of each step of one run, in seconds, by rank 0's clock, after the warm-up."""
    steps = WARM_UP + MEASURED + 1
    ports = find_free_ports(workers)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ranks: list[subprocess.Popen[bytes]] = []
        for rank in range(workers):
            clock = folder / f"clock-{rank}"
            arguments = [f"--steps={steps}", f"--global-batch-size={BATCH}"]
            if side == "plain":
                command = ["tests.bench.plain", *arguments, f"--clock={clock}"]
            else:
                command = ["greentrain_trainer", PROGRAM, *arguments, f"--set=clock={clock}"]
            cores = ",".join(map(str, cores_of(rank, workers)))
            log = stack.enter_context((folder / f"log-{rank}").open("wb"))
            started = subprocess.Popen(
                ["taskset", "-c", cores, sys.executable, "-m", *command],
                cwd=ROOT,
                env=build_environment(folder, rank, ports),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(started.wait)
            stack.callback(started.kill)
            ranks.append(started)
        deadline = time.monotonic() + RUN_SECONDS
        for rank, started in enumerate(ranks):
            try:
                code: int | None = started.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = None
            if code != 0:
                said = (folder / f"log-{rank}").read_text(errors="replace")[-2000:]
                ended = (
                    f"did not end within {RUN_SECONDS} s" if code is None else f"ended with exit code {code}"
                )
                raise RuntimeError(f"Rank {rank} of the {side} run {ended}; its last words:\n{said}")
        stamps = [int(line) for line in (folder / "clock-0").read_text().split()]
    if len(stamps) != steps:
        raise RuntimeError(f"The {side} run noted {len(stamps)} steps of {steps}.")
    return [(after - before) / 1e6 for before, after in pairwise(stamps[WARM_UP:])]


def compare(trainer: list[float], plain: list[float]) -> str:
    """The trainer's speed over the script's from their pairs' times: median, least and most."""
    ratios = [b / a for a, b in zip(trainer, plain, strict=True)]
    return f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"


def bench(workers: int, pairs: int) -> list[str]:
    """Compare the two with so many workers."""
    runs: dict[str, list[list[float]]] = {"trainer": [], "plain": []}
    for pair in range(pairs):
        for side in ("trainer", "plain") if pair % 2 == 0 else ("plain", "trainer"):
            runs[side].append(measure_steps(side, workers))
    means = {side: [mean(steps) for steps in each] for side, each in runs.items()}
    medians = {side: [median(steps) for steps in each] for side, each in runs.items()}
    trainer, plain = median(means["trainer"]), median(means["plain"])
    short = "" if plain * 1000 >= STEP_MS else f"; plain step below the {STEP_MS} ms it is meant for"
    return [
        (
            f"trainer throughput, {workers} worker{'s' * (workers > 1)}, global batch {BATCH}, "
            f"{MEASURED} steps after {WARM_UP}, {pairs} alternated pairs:"
        ),
        (
            f"  trainer {BATCH / trainer:.0f} samples/s ({trainer * 1000:.1f} ms a step), "
            f"plain tf.distribute {BATCH / plain:.0f} samples/s ({plain * 1000:.1f} ms a step), "
            f"ratio {compare(means['trainer'], means['plain'])}; aim ≥ 0.98{short}"
        ),
        (
            f"  by each run's median step, which other programs on the machine disturb less: "
            f"ratio {compare(medians['trainer'], medians['plain'])}"
        ),
    ]


def run() -> None:
    """Run alone, then with two workers on loopback."""
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for workers, pairs in ((1, 5), (2, 3)):
        begun = time.monotonic()
        for line in bench(workers, pairs):
            print(line, flush=True)
        print(f"  took {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    run()
