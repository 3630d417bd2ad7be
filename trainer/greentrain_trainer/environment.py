"""What the operator and the kubelet give this process: environment variables, parsed at the door.

Nothing else in the trainer reads `os.environ`, so that a run can be described in full by its options and
one `Environment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from greentrain.api.runtime import DEFAULT_PEER_TIMEOUT_SECONDS, PEER_TIMEOUT_ENV, PROGRESS_PORT, Env
from greentrain_trainer.cluster import Cluster, parse_cluster
from greentrain_trainer.ending import misused

START_TIMEOUT_ENV = "GREENTRAIN_START_TIMEOUT_SECONDS"
"""Seconds to wait for the other workers to join before giving up with exit code 144."""

TERMINATION_LOG_ENV = "GREENTRAIN_TERMINATION_LOG"
"""Where the termination message goes; the kubelet reads `/dev/termination-log` by default."""

PROGRESS_PORT_ENV = "GREENTRAIN_PROGRESS_PORT"
"""Port of `/progress` and `/metrics` where 8471 is not to be had; 0 lets the system choose."""

DEFAULT_START_TIMEOUT_SECONDS = 600.0
"""Ten minutes: a node that must pull a GPU image of several gigabytes first is not a lost peer."""

DEFAULT_GRACE_PERIOD_SECONDS = 30.0
"""Kubernetes' own default between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Environment:
    """The surroundings of one rank."""

    cluster: Cluster
    checkpoint_dir: Path | None
    """None: nothing is saved, and a restart begins at step 0."""
    job_uid: str | None
    """UID of the job whose checkpoints these are; None outside the operator."""
    attempt: int
    grace_period_seconds: float
    peer_timeout_seconds: float
    start_timeout_seconds: float
    termination_log: Path
    progress_port: int


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise misused(f"{name} is {text!r}; it must be a number of seconds above 0, such as {default:g}.")
    return seconds


def _whole(environ: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise misused(f"{name} is {text!r}; it must be a whole number from {least} to {most}.")
    return int(text)


def parse_environment(environ: Mapping[str, str]) -> Environment:
    """Read the contract's variables; raises `Ending` with exit code 2 naming the one that is wrong."""
    checkpoint_dir = environ.get(Env.CHECKPOINT_DIR)
    return Environment(
        cluster=parse_cluster(environ.get(Env.TF_CONFIG)),
        checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir else None,
        job_uid=environ.get(Env.JOB_UID) or None,
        attempt=_whole(environ, Env.ATTEMPT, 1, 1, 2**31 - 1),
        grace_period_seconds=_seconds(environ, Env.GRACE_PERIOD_SECONDS, DEFAULT_GRACE_PERIOD_SECONDS),
        peer_timeout_seconds=_seconds(environ, PEER_TIMEOUT_ENV, DEFAULT_PEER_TIMEOUT_SECONDS),
        start_timeout_seconds=_seconds(environ, START_TIMEOUT_ENV, DEFAULT_START_TIMEOUT_SECONDS),
        termination_log=Path(environ.get(TERMINATION_LOG_ENV) or "/dev/termination-log"),
        progress_port=_whole(environ, PROGRESS_PORT_ENV, PROGRESS_PORT, 0, 65535),
    )
