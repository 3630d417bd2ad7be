"""Checkpoints: written by the chief, restored by all, named only once they are whole.

Which checkpoint to restore is the chief's decision alone, given to the others by an all-reduce: with a
network volume, two ranks that each look for the newest one may see different directories.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from greentrain.api.runtime import Checkpoint
from greentrain_trainer.ending import failed
from greentrain_trainer.strategy import RankSum

log = logging.getLogger(__name__)

DIRECTORY = "checkpoints"
"""Folder within the job's checkpoint directory."""

NAME = "step"
"""Prefix of the files: `step-120.index`."""

_FILE = re.compile(rf"{NAME}-(\d+)(_temp|\.index|\.data-.+)")
"""All that TensorFlow writes for a checkpoint; `_temp` is the directory it writes in before it renames."""

VISIBLE_WITHIN_SECONDS = 60.0
"""How long a rank waits to see what the chief sees: NFS caches directory entries up to 60 s (acdirmax)."""


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in a job's checkpoint directory (TensorFlow's file prefix)."""
    return directory / DIRECTORY / f"{NAME}-{step}"


def read_step(path: Path, *, whole: bool = False) -> int:
    """The step a checkpoint's own variable says; raises `tf.errors.OpError` where it cannot be read.

    With `whole` every tensor is read, and its checksum with it.
    """
    try:
        reader = tf.train.load_checkpoint(str(path))
        for name in reader.get_variable_to_shape_map() if whole else ():
            reader.get_tensor(name)
        return int(reader.get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE"))
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        # The reader has Python's errors for some of TensorFlow's (py_checkpoint_reader.error_translator).
        raise tf.errors.DataLossError(None, None, str(error)) from error


def find_newest(directory: Path) -> int | None:
    """Step of the newest readable checkpoint in a directory; None when there is none at all.

    Looks at the files themselves: a list of them, as TensorFlow's `CheckpointManager` keeps, may name one
    that was deleted, and `tf.train.latest_checkpoint` then finds nothing: a start at step 0 in silence.
    Raises `Ending` when there are checkpoints and none can be read.
    """
    steps = _list_steps(directory)
    for step in reversed(steps):
        try:
            written = read_step(directory / f"{NAME}-{step}", whole=True)
        except tf.errors.OpError as error:
            log.warning(
                "checkpoint %s-%d cannot be read and is passed over: %s", NAME, step, _first_line(error)
            )
            continue
        if written == step:
            return step
        log.warning("checkpoint %s-%d contains step %d and is skipped", NAME, step, written)
    if steps:
        raise failed(
            f"None of the {len(steps)} checkpoints in {directory} can be read; delete them to begin at step 0."
        )
    return None


def _list_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, whole or not, in ascending order."""
    names = (
        path.name.removesuffix(".index").removeprefix(f"{NAME}-")
        for path in directory.glob(f"{NAME}-*.index")
    )
    return sorted(int(name) for name in names if name.isdecimal())


class Checkpoints:
    """The checkpoints of one job's model, optimizer and step."""

    def __init__(self, directory: Path, model: Any, optimizer: Any, keep: int) -> None:
        self._root = directory
        self._directory = directory / DIRECTORY
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=self._step)
        self._keep = keep

    def restore(self, rank_sum: RankSum, is_chief: bool) -> Checkpoint | None:
        """Restore the newest checkpoint on every rank; None when there is none.

        Raises `Ending` when it cannot be read or does not fit the program's model.
        """
        found = find_newest(self._directory) if is_chief else 0
        step = rank_sum(-1 if found is None else found)
        if step < 0:
            return None
        path = checkpoint_path(self._root, step)
        deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
        while not path.with_name(f"{path.name}.index").exists():
            if time.monotonic() > deadline:
                raise failed(
                    f"The chief restores {path} and this worker does not see it; "
                    f"all workers must mount the same volume (ReadWriteMany)."
                )
            time.sleep(0.2)
        try:
            self._checkpoint.read(str(path)).assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise failed(
                f"The checkpoint {path} does not fit the program or is damaged ({_first_line(error)}); "
                f"run the program that wrote it, or delete it to go on from an older one."
            ) from error
        return Checkpoint(step=step, path=str(path))

    def save(self, step: int) -> Checkpoint:
        """Write one, on the chief. Returns when it is on the disk and has been read back.

        Older ones are deleted only then, so that there is one that counts at every moment. Raises `Ending`
        with exit code 1 when the volume does not take it.
        """
        self._step.assign(step)
        path = checkpoint_path(self._root, step)
        try:
            self._directory.mkdir(exist_ok=True)
            self._checkpoint.write(str(path))
            # TensorFlow writes aside and renames, but leaves the syncing to the kernel's good time.
            for file in (*self._directory.glob(f"{path.name}.*"), self._directory):
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            written = read_step(path)
        except (OSError, tf.errors.OpError) as error:
            raise failed(
                f"The checkpoint of step {step} cannot be written to {self._directory} ({_first_line(error)}); "
                f"see that the volume has space and is writable for uid {os.geteuid()}."
            ) from error
        if written != step:
            raise failed(
                f"The checkpoint {path} was read back as step {written}; it should be step {step}. Check the volume."
            )
        self._prune(step)
        return Checkpoint(step=step, path=str(path))

    def _prune(self, newest: int) -> None:
        """Delete what is older than the `keep` newest, and what a save or a deletion that was killed has left.

        Files are looked at, and no list of earlier saves: that would forget those of earlier attempts.
        """
        # A later one than `newest` was passed over at the start; it is overwritten when its step is reached.
        kept = [step for step in _list_steps(self._directory) if step <= newest][-self._keep :]
        outdated = []
        for file in self._directory.iterdir():
            match = _FILE.fullmatch(file.name)
            if match and (match[2] == "_temp" or (int(match[1]) <= newest and int(match[1]) not in kept)):
                outdated.append(file)
        try:
            # The indices first: without it the rest does not count as a checkpoint.
            for file in sorted(outdated, key=lambda file: file.suffix != ".index"):
                if file.is_dir():
                    shutil.rmtree(file)
                else:
                    file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old checkpoints stay: %s cannot be deleted (%s)", error.filename, error.strerror)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
