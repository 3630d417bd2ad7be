"""What a training left behind, to the bit: the variables of its checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(script: str, *arguments: str) -> str:
    """What a script prints, in a process of its own: TensorFlow's warnings would be our errors here."""
    environ = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environ).stdout


HASH_SCRIPT = """
import hashlib, sys
from pathlib import Path
import tensorflow as tf
for index in sorted(Path(sys.argv[1]).glob("step-*.index")):
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if not name.startswith("_"):
            digest.update(name.encode())
            digest.update(reader.get_tensor(name).tobytes())
    print(index.stem.removeprefix("step-"), digest.hexdigest())
"""


def hash_checkpoints(directory: Path) -> dict[int, str]:
    """By step, the SHA-256 over all variables of model and optimizer and the step of each checkpoint."""
    lines = run_python(HASH_SCRIPT, str(directory / "checkpoints")).splitlines()
    return {int(step): digest for step, digest in map(str.split, lines)}
