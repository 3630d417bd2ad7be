"""The operator's settings from its command line; the chart's values become these arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greentrain.grid.settings import EmissionsSettings, SettingsError, load_settings
from greentrain.kube.client import WATCH_SILENCE_SECONDS
from greentrain.settings import ProgramSettings, flag, namespaced, parse, port, seconds, whole

_SECONDS = seconds(0.1, 86_400)


def _emissions(text: str) -> EmissionsSettings:
    try:
        return load_settings(Path(text))
    except SettingsError as error:
        raise argparse.ArgumentTypeError("; ".join(error.problems)) from error


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory: create it first")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ProgramSettings):
    """Settings of one operator process; all times in seconds."""

    namespaces: tuple[str, ...] = field(
        default=(),
        metadata=flag(
            "watch this namespace only; may be repeated (default: all)", name="--namespace", form="repeated"
        ),
    )
    progress_interval: float = field(
        default=60.0,
        metadata=flag(
            "how often a running program's progress is requested, and at most how often it is stored (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    resync_interval: float = field(
        default=120.0,
        metadata=flag(
            "how often the caches are compared with a fresh list (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    stale_after: float = field(
        default=30.0,
        metadata=flag(
            "how late a watch may be with a change that a list has shown before it is opened again (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    watch_inactivity: float = field(
        default=WATCH_SILENCE_SECONDS,
        metadata=flag(
            "how long a watch may deliver nothing, not even a bookmark, before it is opened again from where it was "
            "(default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    pass_limit: float = field(
        default=600.0,
        metadata=flag(
            "how long a pass may take before /healthz fails; requests end after 30 s (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    lease: tuple[str, str] | None = field(
        default=None,
        metadata=flag(
            "the Lease to renew, so that agents know that the operator is alive (default: none, and agents whose "
            "--operator-lease names one enforce energy allowances by themselves)",
            namespaced,
            metavar="NAMESPACE/NAME",
        ),
    )
    emissions: EmissionsSettings = field(
        default_factory=EmissionsSettings,
        metadata=flag(
            "grid zones, PUE and sources of intensity as JSON (docs/tasks/emissions.md); default: the table that ships",
            _emissions,
            name="--emissions-settings",
            metavar="FILE",
        ),
    )
    workers: int = field(
        default=16,
        metadata=flag("passes that run at the same time (default %(default)s)", whole(1, 256)),
    )
    http_port: int = field(
        default=8080, metadata=flag("health and metrics; 0: none (default %(default)s)", port)
    )
    snapshots: Path | None = field(
        default=None,
        metadata=flag(
            "store there what the last pass over each job has read, to decide it again with `greentrain replay` (default: "
            "nowhere). The files contain whole specs, with any passwords in them",
            _directory,
            metavar="DIRECTORY",
        ),
    )


def parse_settings(arguments: Sequence[str]) -> Settings:
    """Parse the command line; exits with 2 and a message where it is wrong."""
    return parse(
        Settings, arguments, program="python -m greentrain.controller", description="The greentrain operator."
    )
