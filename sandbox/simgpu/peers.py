"""The NVML programs others wrote, in an environment of their own, to run them unchanged on the simulated cards."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from sandbox import shell
from sandbox.uv import REQUIREMENTS, apply_uv, build_environment

STAMP = ".greentrain"


def apply_peers(cache: Path, requirements: Path = REQUIREMENTS / "peers.txt") -> Path:
    """The cached environment that holds exactly requirements/peers.txt, made when it is not there; returns its folder.

    Raises:
        SandboxError: a package could not be installed; the last log lines are in the error.
    """
    tag = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / "peers" / tag
    if (folder / STAMP).exists():
        return folder
    log = cache / "log" / "peers.log"
    uv = apply_uv(cache, log)
    environment = build_environment(cache)
    shutil.rmtree(folder, ignore_errors=True)
    shell.run([uv, "venv", "--quiet", "--python", sys.executable, folder], log=log, env=environment)
    sync: list[str | Path] = [uv, "pip", "sync", "--python", folder / "bin" / "python", "--require-hashes"]
    shell.run([*sync, requirements], log=log, env=environment)
    # Written last: a folder without it was interrupted and is made anew.
    (folder / STAMP).touch()
    return folder
