"""The trainer as the operator meets it: real processes, real TensorFlow, exit codes and messages."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.ports import find_free_ports
from tests.integration.trainer.ranks import (
    Launcher,
    Rank,
    exit_codes,
    frozen,
    is_connected,
)
from tests.support.lives import once
from tests.support.weights import hash_checkpoints, run_python

pytestmark = pytest.mark.tensorflow

STEPS = 30
"""Enough to be interrupted three times."""

PEER_TIMEOUT = 3.0
MARGIN = 10.0
"""Seconds over the peer timeout in which a lost peer must be noticed on two busy cores; TensorFlow takes up
to 60 % more than was asked for."""

PROGRAM = """
import dataclasses
import time
import keras
import numpy as np
import tensorflow as tf
from greentrain_trainer import Program, Settings, Shard, shuffled
from greentrain_trainer.programs.digits import read_digits


class Jitter(keras.layers.Layer):
    # Unseeded: it draws from Keras's global generator.
    def call(self, inputs, training=False):
        return inputs + keras.random.normal(keras.ops.shape(inputs), stddev=0.1) if training else inputs


def noisy(settings: Settings) -> Program:
    # Everything that a resume could get wrong: data order, dropout, slots, a schedule, averaged weights.
    images, digits = read_digits()

    def model():
        print("building", flush=True)
        time.sleep(float(settings.own.get("build-seconds", "0")))
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.RandomTranslation(0.1, 0.1),
                layers.Flatten(),
                layers.Dense(32, activation="relu"),
                layers.Dropout(0.3),
                layers.Dropout(0.2, seed=7),
                Jitter(),
                layers.Dense(10),
            ]
        )

    def evaluate(model):
        print("evaluating", flush=True)
        time.sleep(float(settings.own.get("evaluation-seconds", "0")))
        return {}

    def optimizer():
        rate = keras.optimizers.schedules.ExponentialDecay(settings.learning_rate, 10, 0.9)
        return keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.9)

    return Program(
        model=model,
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        batch=shuffled(images, digits, settings.seed),
        evaluate=evaluate,
    )


def heavy(settings: Settings) -> Program:
    # 64 MB of weights: long enough in the writing to be caught at it.
    return Program(
        model=lambda: keras.Sequential([keras.Input((4000,)), keras.layers.Dense(4000, use_bias=False)]),
        optimizer=lambda: keras.optimizers.SGD(settings.learning_rate),
        loss=keras.losses.mean_squared_error,
        batch=lambda step, shard: (np.ones((shard.size, 4000), "f4"), np.ones((shard.size, 4000), "f4")),
    )


def line(settings: Settings) -> Program:
    slope = float(settings.own.get("slope", "2"))

    def stream(step: int, shard: Shard) -> tf.data.Dataset:
        def example(position):
            x = tf.random.stateless_uniform([1], [settings.seed, position])
            return x, slope * x + 1
        return tf.data.Dataset.range(step * shard.size, 10**9).map(example).batch(shard.size)

    return Program(
        model=lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]),
        optimizer=lambda: keras.optimizers.SGD(settings.learning_rate),
        loss=keras.losses.mean_squared_error,
        stream=stream,
        evaluate=lambda model: {"slope": float(model.predict(np.array([[1.0]]), verbose=0)[0, 0]) - 1},
    )


def clocked(settings: Settings) -> Program:
    return dataclasses.replace(line(settings), evaluate=lambda model: {"cpu": time.process_time()})


def wrong(settings):
    raise RuntimeError("the data are not here")
"""

NOISY = ("mine:noisy", f"--steps={STEPS}", "--deterministic", "--learning-rate=0.01")


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    (tmp_path / "ranks").mkdir()
    launcher = Launcher(tmp_path / "ranks")
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the users' programs above, as module `mine`."""
    directory = tmp_path_factory.mktemp("programs")
    (directory / "mine.py").write_text(PROGRAM)
    return directory


@dataclass
class Uninterrupted:
    """A run of `NOISY` by two workers in one go, with a checkpoint of every step."""

    volume: Path
    hashes: dict[int, str]

    def copy(self, volume: Path, step: int) -> None:
        """Lay out a volume as it was when the checkpoint of `step` was the newest."""
        shutil.copytree(self.volume, volume)
        (volume / "model.keras").unlink()
        for file in (volume / "checkpoints").iterdir():
            if int(file.name.removeprefix("step-").partition(".")[0]) > step:
                file.unlink()


def train_uninterrupted(directory: Path, programs: Path) -> Uninterrupted:
    launcher = Launcher(directory)
    volume = directory / "volume"
    arguments = (*NOISY, "--checkpoint-every=1", f"--keep-checkpoints={STEPS}")
    pair = launcher.start_pair(*arguments, checkpoints=volume, python_path=programs)
    codes = exit_codes(pair)
    launcher.close()
    assert codes == [0, 0], pair[0].log
    hashes = hash_checkpoints(volume)
    assert set(hashes) == set(range(1, STEPS + 1))
    assert len(set(hashes.values())) == STEPS
    return Uninterrupted(volume, hashes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Uninterrupted:
    """One run for all workers."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    return once("uninterrupted", lambda: train_uninterrupted(directory, programs))


def test_two_workers_learn_digits_and_a_finished_job_started_again_only_evaluates(
    launcher: Launcher, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "volume" / "team" / "digits"
    pair = launcher.start_pair(
        "digits", "--steps=250", "--checkpoint-every=100", checkpoints=checkpoints, with_chief=True
    )
    pair[0].wait_for(r"begins at step 0 of 250")
    assert pair[1].progress.total_steps == 250
    assert 'greentrain_trainer_total_steps{rank="chief-0"} 250' in pair[0].read("/metrics")
    assert exit_codes(pair) == [0, 0]

    message = pair[0].message
    assert (message.step, message.start_step, message.reason) == (250, 0, "Trained 250 steps.")
    assert message.checkpoint is not None
    assert message.checkpoint.step == 250
    assert message.model_path == str(checkpoints / "model.keras")
    assert message.metrics["accuracy"] >= 0.95
    assert pair[1].message.checkpoint == message.checkpoint
    kept = {path.name for path in (checkpoints / "checkpoints").glob("*.index")}
    assert kept == {"step-100.index", "step-200.index", "step-250.index"}

    # Again, by one worker instead of two.
    again = launcher.start("digits", "--steps=250", checkpoints=checkpoints)
    recomputed = subprocess.run(
        [sys.executable, "-m", "greentrain_trainer.programs.digits", message.model_path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(recomputed.stdout) == pytest.approx(message.metrics["accuracy"], abs=5e-5)

    assert again.wait() == 0
    assert (again.message.start_step, again.message.step) == (250, 250)
    assert again.message.metrics["accuracy"] == pytest.approx(message.metrics["accuracy"])


def _list_steps(volume: Path) -> list[int]:
    names = (path.stem for path in (volume / "checkpoints").glob("*.index"))
    return sorted(int(name.removeprefix("step-")) for name in names)


def _stopped_together(pair: list[Rank]) -> int:
    """Both must have stopped on request after one step, with one checkpoint; returns the step."""
    assert exit_codes(pair) == [143, 143], pair[0].log + pair[1].log
    first, second = pair[0].message, pair[1].message
    assert first.step == second.step < STEPS
    assert first.checkpoint is not None
    assert first.checkpoint.step == first.step
    assert first.checkpoint == second.checkpoint
    assert first.reason == second.reason == f"Stopped on request after step {first.step} of {STEPS}."
    return first.step


@pytest.mark.parametrize(("loop", "lost"), [("custom", 0), ("fit", 1)])
def test_killed_then_stopped_whole_then_stopped_by_one_worker_a_run_ends_equal_to_the_bit(
    launcher: Launcher, tmp_path: Path, programs: Path, uninterrupted: Uninterrupted, loop: str, lost: int
) -> None:
    volume = tmp_path / "volume"

    def attempt(*more: str) -> list[Rank]:
        arguments = (*NOISY, f"--loop={loop}", "--checkpoint-every=4", f"--keep-checkpoints={STEPS}", *more)
        return launcher.start_pair(
            *arguments, checkpoints=volume, python_path=programs, peer_timeout=PEER_TIMEOUT
        )

    slowly = "--step-delay-seconds=0.2"

    # kill -9 of one rank, as when its node goes.
    pair = attempt(slowly)
    pair[0].wait_for("checkpoint of step 4 saved")
    children = pair[lost].children
    pair[lost].process.kill()
    assert pair[1 - lost].wait() == 144, pair[1 - lost].log
    assert pair[1 - lost].message.reason.startswith("Another worker was lost at step ")
    # The training process does not outlive its parent.
    pair[lost].process.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kept = _list_steps(volume)[-1]

    # SIGTERM to all, as at a suspension.
    pair = attempt(slowly)
    pair[0].wait_for(rf"step {kept + 1}/{STEPS}")
    for rank in pair:
        rank.process.send_signal(signal.SIGTERM)
    suspended = _stopped_together(pair)
    assert suspended > kept == pair[0].message.start_step

    # SIGTERM to one, as at a drain of its node.
    pair = attempt(slowly)
    pair[0].wait_for(rf"step {suspended + 1}/{STEPS}")
    pair[lost].process.send_signal(signal.SIGTERM)
    drained = _stopped_together(pair)
    assert drained > suspended == pair[0].message.start_step

    pair = attempt()
    assert exit_codes(pair) == [0, 0], pair[0].log + pair[1].log
    assert [rank.message.start_step for rank in pair] == [drained, drained]
    # Every checkpoint on the way, so that a failure tells at which interruption it went astray.
    hashes = hash_checkpoints(volume)
    assert {kept, suspended, drained, STEPS} <= set(hashes)
    assert hashes == {step: uninterrupted.hashes[step] for step in hashes}


def test_sigterm_to_one_worker_while_another_restores_stops_both_before_another_step(
    launcher: Launcher, tmp_path: Path, programs: Path, uninterrupted: Uninterrupted
) -> None:
    uninterrupted.copy(tmp_path / "volume", step=12)
    before = {path.name: path.read_bytes() for path in (tmp_path / "volume" / "checkpoints").iterdir()}
    arguments = (*NOISY, "--set", "build-seconds=4")
    pair = launcher.start_pair(*arguments, checkpoints=tmp_path / "volume", python_path=programs)
    pair[1].wait_for("building")
    pair[1].process.send_signal(signal.SIGTERM)
    assert _stopped_together(pair) == 12
    assert "Traceback" not in pair[0].log + pair[1].log
    after = {path.name: path.read_bytes() for path in (tmp_path / "volume" / "checkpoints").iterdir()}
    assert after == before


DRAWS_SCRIPT = """
import keras, tensorflow as tf
from greentrain_trainer.draws import Draws
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
keras.utils.set_random_seed(1)
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
    draws = Draws(model)
generators = [layer.seed_generator for layer in model.layers] + [None]

@tf.function
def draw(step):
    def on_replica():
        draws.begin(step)
        return [keras.random.uniform((), seed=generator) for generator in generators for _ in range(2)]
    return strategy.run(on_replica)

for step in 5, 6, 5:
    for value in draw(tf.constant(step, tf.int64)):
        print(*(float(each) for each in strategy.experimental_local_results(value)))
"""


def test_random_layers_draw_anew_at_every_step_and_replica_and_the_same_at_the_same_step() -> None:
    drawn = [line.split() for line in run_python(DRAWS_SCRIPT).splitlines()]
    fifth, sixth, again = drawn[:6], drawn[6:12], drawn[12:]
    assert fifth == again
    # Two layers and the global generator, twice each, in two replicas, at two steps.
    assert len({value for values in fifth + sixth for value in values}) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(("loop", "lost"), [("custom", 0), ("fit", 1)])
def test_when_a_worker_freezes_the_other_exits_144_soon_after_the_peer_timeout(
    launcher: Launcher, tmp_path: Path, loop: str, lost: int
) -> None:
    arguments = ("digits", "--steps=100000", "--checkpoint-every=10", f"--loop={loop}")
    pair = launcher.start_pair(*arguments, checkpoints=tmp_path / "volume", peer_timeout=PEER_TIMEOUT)
    pair[0].wait_for(r"checkpoint of step 10 saved")
    survivor = pair[1 - lost]
    with frozen(pair[lost]):
        started = time.monotonic()
        assert survivor.wait() == 144, survivor.log
        assert time.monotonic() - started < PEER_TIMEOUT + MARGIN
    assert survivor.message.reason.startswith("Another worker was lost at step ")
    if survivor is pair[0]:
        assert survivor.message.checkpoint is not None
        assert survivor.message.checkpoint.step >= 10


def test_sigterm_beside_a_frozen_worker_is_obeyed_before_the_grace_period_is_over(
    launcher: Launcher, tmp_path: Path
) -> None:
    pair = launcher.start_pair(
        "digits", "--steps=100000", "--checkpoint-every=10", checkpoints=tmp_path, peer_timeout=100, grace=4
    )
    pair[0].wait_for(r"checkpoint of step 10 saved")
    with frozen(pair[1]):
        started = time.monotonic()
        pair[0].process.send_signal(signal.SIGTERM)
        assert pair[0].wait() == 143
        assert time.monotonic() - started < 4
    message = pair[0].message
    assert message.checkpoint is not None
    assert message.reason == (
        "Stopped on request, but no common stop was reached within the grace period of 4 s; "
        f"work since the checkpoint of step {message.checkpoint.step} is lost."
    )


def test_a_peer_that_never_comes_ends_the_wait_with_144_and_its_name(launcher: Launcher) -> None:
    addresses = [f"127.0.0.1:{port}" for port in find_free_ports(2)]
    lone = launcher.start("digits", task=("worker", 1), cluster={"worker": addresses}, start_timeout=4)
    assert lone.wait() == 144
    assert lone.message.reason == f"Not all workers joined within 4 s: no answer from {addresses[0]}."


@pytest.mark.parametrize(
    ("lost", "number", "code"), [(0, signal.SIGKILL, -signal.SIGKILL), (1, signal.SIGTERM, 143)]
)
def test_a_worker_that_leaves_while_others_are_still_awaited_ends_the_wait_with_144(
    launcher: Launcher, lost: int, number: signal.Signals, code: int
) -> None:
    addresses = [f"127.0.0.1:{port}" for port in find_free_ports(3)]
    two = [
        launcher.start(
            "digits", task=("worker", index), cluster={"worker": addresses}, peer_timeout=PEER_TIMEOUT
        )
        for index in range(2)
    ]
    for rank in two:
        rank.wait_for("waiting for 2 other workers")
    while not is_connected(two[1], addresses[0]):
        assert two[1].process.poll() is None, two[1].log
        time.sleep(0.05)
    # What the connection is for takes a moment more.
    time.sleep(1)
    started = time.monotonic()
    two[lost].process.send_signal(number)
    assert two[lost].wait() == code
    if code == 143:
        assert time.monotonic() - started < 5
        assert two[lost].message.reason == "Stopped on request before training began."
    other = two[1 - lost]
    assert other.wait() == 144, other.log
    assert other.message.reason.startswith("Another worker was lost before training began: ")
    assert time.monotonic() - started < PEER_TIMEOUT + MARGIN


def test_a_port_that_another_program_holds_is_named(launcher: Launcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", f"127.0.0.1:{find_free_ports(1)[0]}"]
        rank = launcher.start("digits", cluster={"worker": addresses})
        assert rank.wait() == 1
    words = f"TensorFlow's server cannot listen at this rank's own port ({addresses[0]}); see that no other"
    assert rank.message.reason.startswith(words)


SIGTERM_WHILE_IMPORTING = """
import os, signal, sys


class AsTheKubelet:
    def find_spec(self, name, path=None, target=None):
        if name == "greentrain.api.runtime":
            os.kill(os.getpid(), signal.SIGTERM)


sys.meta_path.insert(0, AsTheKubelet())
"""


def test_sigterm_while_the_first_modules_are_imported_is_not_lost(launcher: Launcher, tmp_path: Path) -> None:
    # Ended by the signal's default action (-15), process 1 of a container would have gone on training.
    (tmp_path / "sitecustomize.py").write_text(SIGTERM_WHILE_IMPORTING)
    lone = launcher.start("digits", "--steps=100000", python_path=tmp_path)
    assert lone.wait() == 143, lone.log
    assert lone.message.reason == "Stopped on request before training began."


SIGTERM_WHILE_ENDING = """
import os, signal


class AsTheKubelet:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)


last = AsTheKubelet()
"""


def test_a_directory_of_another_job_is_refused_and_a_late_sigterm_changes_nothing_of_it(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SIGTERM_WHILE_ENDING)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "greentrain-job-uid").write_text("22222222-bbbb\n")
    rank = launcher.start("digits", checkpoints=volume, uid="11111111-aaaa", python_path=tmp_path)
    assert rank.wait() == 1
    for words in (
        str(volume),
        "22222222-bbbb",
        "11111111-aaaa",
        "give this job another spec.checkpoint.path",
    ):
        assert words in rank.message.reason
    assert [path.name for path in volume.iterdir()] == ["greentrain-job-uid"]
    assert (volume / "greentrain-job-uid").read_text() == "22222222-bbbb\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["didgits"],
            2,
            "Unknown program 'didgits'; name a built-in program (digits) or your own module:function",
        ),
        (["digits", "--steps=0"], 2, "Argument --steps: '0' is not a whole number of at least 1"),
        (["no_such_module:train"], 2, "there is no module 'no_such_module'"),
    ],
)
def test_what_it_does_not_understand_ends_it_with_one_sentence(
    launcher: Launcher, arguments: list[str], code: int, words: str
) -> None:
    rank = launcher.start(*arguments)
    assert rank.wait() == code
    assert words in rank.message.reason


def test_a_users_own_function_with_a_tf_data_stream_trains_in_both_loops(
    launcher: Launcher, programs: Path
) -> None:
    arguments = [
        "mine:line",
        "--steps=400",
        "--learning-rate=0.3",
        "--set",
        "slope=3",
        "--evaluate-every=200",
    ]
    nowhere = Path("/nonexistent/x")
    both = [
        launcher.start(*arguments, f"--loop={loop}", python_path=programs, termination_log=nowhere)
        for loop in ("custom", "fit")
    ]
    for rank in both:
        assert rank.wait() == 0, rank.log
        assert re.search(r"step 200 evaluated  slope 2\.\d", rank.log)
        assert re.search(r"step 400 evaluated  slope (3\.0|2\.9)", rank.log)
        # Nowhere to write the message: said, and no reason to fail.
        assert "no termination message at /nonexistent/x" in rank.log


@pytest.mark.parametrize("loop", ["custom", "fit"])
def test_every_step_takes_the_cpu_time_that_is_asked_for(
    launcher: Launcher, programs: Path, loop: str
) -> None:
    each, every = 0.1, 10
    rank = launcher.start(
        "mine:clocked",
        "--steps=31",
        "--learning-rate=0.3",
        f"--step-cpu-seconds={each}",
        f"--evaluate-every={every}",
        f"--loop={loop}",
        python_path=programs,
    )
    assert rank.wait() == 0, rank.log
    told = [float(seconds) for seconds in re.findall(r"step \d0 evaluated  cpu (\S+)", rank.log)]
    assert len(told) == 3
    # A step that was begun before an evaluation may have its time after it.
    assert all(after - before >= (every - 1) * each for before, after in itertools.pairwise(told))


def test_an_exception_of_the_program_is_exit_code_1_with_its_words(
    launcher: Launcher, programs: Path
) -> None:
    rank = launcher.start("mine:wrong", python_path=programs)
    assert rank.wait() == 1
    assert rank.message.reason == "RuntimeError: the data are not here"
    assert "Traceback" in rank.log


def test_sigterm_after_the_last_step_costs_the_model_if_the_grace_period_is_short_and_nothing_else(
    launcher: Launcher, tmp_path: Path, programs: Path
) -> None:
    volume = tmp_path / "volume"
    arguments = ("mine:noisy", "--steps=3", "--set")
    hasty = launcher.start(
        *arguments, "evaluation-seconds=60", checkpoints=volume, python_path=programs, grace=5
    )
    hasty.wait_for("evaluating")
    started = time.monotonic()
    hasty.process.send_signal(signal.SIGTERM)
    assert hasty.wait() == 143, hasty.log
    assert time.monotonic() - started < 5
    assert hasty.message.checkpoint is not None
    assert hasty.message.checkpoint.step == 3
    assert hasty.message.reason.startswith("Stopped on request after all 3 steps were trained and saved, but")
    assert hasty.message.model_path is None
    assert not (volume / "model.keras").exists()

    patient = launcher.start(*arguments, "evaluation-seconds=2", checkpoints=volume, python_path=programs)
    patient.wait_for("evaluating")
    patient.process.send_signal(signal.SIGTERM)
    assert patient.wait() == 0, patient.log
    assert patient.message.start_step == 3
    assert patient.message.reason == "Trained 3 steps."
    assert patient.message.model_path == str(volume / "model.keras")
    assert (volume / "model.keras").exists()
    assert "Traceback" not in hasty.log + patient.log


def test_a_checkpoint_that_a_kill_left_unfinished_or_that_is_torn_does_not_count(
    launcher: Launcher, tmp_path: Path, programs: Path
) -> None:
    arguments = ("mine:heavy", "--checkpoint-every=1", "--global-batch-size=1", "--keep-checkpoints=2")
    volume = tmp_path / "volume"
    rank = launcher.start(*arguments, "--steps=100000", checkpoints=volume, python_path=programs)
    rank.wait_for("checkpoint of step 3 saved")
    (child,) = rank.children
    while not list((volume / "checkpoints").glob("*_temp")):
        assert rank.process.poll() is None
    os.kill(child, signal.SIGKILL)
    assert rank.wait() == 137
    assert rank.message.reason == "The training process was ended by SIGKILL (often: out of memory)."
    assert list((volume / "checkpoints").glob("*_temp"))
    assert rank.message.checkpoint is not None
    last = rank.message.checkpoint.step
    kept = sorted(path.name for path in (volume / "checkpoints").glob("*.index"))
    assert kept == sorted(f"step-{step}.index" for step in (last - 1, last))

    data = volume / "checkpoints" / f"step-{last}.data-00000-of-00001"
    os.truncate(data, data.stat().st_size // 2)
    again = launcher.start(*arguments, f"--steps={last}", checkpoints=volume, python_path=programs)
    assert again.wait() == 0, again.log
    assert f"checkpoint step-{last} cannot be read and is passed over" in again.log
    assert (again.message.start_step, again.message.step) == (last - 1, last)
    files = {path.name for path in (volume / "checkpoints").iterdir()}
    expected = {"index", "data-00000-of-00001"}
    assert files == {f"step-{step}.{end}" for step in (last - 1, last) for end in expected}


def test_a_full_volume_ends_the_run_with_its_path_and_the_last_good_checkpoint_is_resumed(
    launcher: Launcher, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    rank = launcher.start("digits", "--steps=100000", "--checkpoint-every=10", checkpoints=volume)
    rank.wait_for("checkpoint of step 10 saved")
    (child,) = rank.children
    # No file longer than 100 kB from now on, and the checkpoints here have 350: as good as a full disk.
    resource.prlimit(child, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert rank.wait() == 1, rank.log
    reason = rank.message.reason
    assert f"cannot be written to {volume / 'checkpoints'} (" in reason
    assert reason.endswith(f"see that the volume has space and is writable for uid {os.geteuid()}.")
    assert rank.message.checkpoint is not None
    last = rank.message.checkpoint.step

    again = launcher.start("digits", f"--steps={last + 5}", checkpoints=volume)
    assert again.wait() == 0, again.log
    assert (again.message.start_step, again.message.step) == (last, last + 5)
