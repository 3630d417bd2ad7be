"""What the operator process is told on its command line; the chart's values become these arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greentrain.grid.settings import EmissionsSettings, SettingsError, load_settings
from greentrain.kube.client import WATCH_SILENCE_SECONDS
from greentrain.telemetry.logs import DEFAULT_LEVEL, LogFormat, add_log_arguments


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one operator process; all times in seconds."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; none means all."""
    progress_interval: float = 60.0
    """How often a running job's program is asked how far it is, and at most how often that is written."""
    resync_interval: float = 120.0
    """How often the caches are compared with a fresh list."""
    stale_after: float = 30.0
    """How long a watch may owe a change that a list has shown before it is stale and opened again."""
    watch_inactivity: float = WATCH_SILENCE_SECONDS
    """How long a watch may bring nothing, not even a bookmark, before it is opened again from where it was."""
    pass_limit: float = 600.0
    """How long one pass may take before the process counts as hung. Requests end after 30 s."""
    lease: tuple[str, str] | None = None
    """Namespace and name of the Lease that tells agents that the operator is alive; None: none is renewed."""
    emissions: EmissionsSettings = field(default_factory=EmissionsSettings)
    """Where the cluster runs and what its energy emits."""
    workers: int = 16
    """Passes that run at the same time."""
    http_port: int = 8080
    log_level: str = DEFAULT_LEVEL
    log_format: LogFormat | None = None
    """None: text at a terminal, else JSON."""
    snapshots: Path | None = None
    """Where what each job's last pass saw is kept; None: nowhere."""
    kubeconfig: str | None = None
    context: str | None = None


def parse_settings(arguments: Sequence[str]) -> Settings:
    """Parse the command line; exits with 2 and a sentence on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m greentrain.controller", description="The greentrain operator."
    )
    defaults = Settings()
    parser.add_argument(
        "--namespace", action="append", default=[], help="watch this namespace only; may be repeated"
    )
    parser.add_argument(
        "--progress-interval", type=_seconds, default=defaults.progress_interval, metavar="SECONDS"
    )
    parser.add_argument(
        "--resync-interval", type=_seconds, default=defaults.resync_interval, metavar="SECONDS"
    )
    parser.add_argument(
        "--stale-after",
        type=_seconds,
        default=defaults.stale_after,
        metavar="SECONDS",
        help="how long a watch may owe a change before it is opened again (default %(default)s)",
    )
    parser.add_argument(
        "--watch-inactivity",
        type=_seconds,
        default=defaults.watch_inactivity,
        metavar="SECONDS",
        help="how long a watch may bring nothing before it is opened again from where it was (default %(default)s)",
    )
    parser.add_argument(
        "--pass-limit",
        type=_seconds,
        default=defaults.pass_limit,
        metavar="SECONDS",
        help="how long a pass may take before /healthz fails (default %(default)s)",
    )
    parser.add_argument(
        "--lease",
        type=_named,
        metavar="NAMESPACE/NAME",
        help="the Lease to renew, so that agents know that the operator is alive (default: none, and agents whose "
        "--operator-lease names one enforce allowances of energy by themselves)",
    )
    parser.add_argument(
        "--emissions-settings",
        type=Path,
        metavar="FILE",
        help="grid zones, PUE and sources of intensity as JSON (docs/emissions.md); default: the table that ships",
    )
    parser.add_argument("--workers", type=_count, default=defaults.workers)
    parser.add_argument("--http-port", type=int, default=defaults.http_port, help="health and metrics")
    parser.add_argument(
        "--snapshots",
        type=_directory,
        metavar="DIRECTORY",
        help="keep there what the last pass over each job saw, to decide it again with `greentrain replay` (default: nowhere). "
        "The files hold whole specs, passwords in them included",
    )
    add_log_arguments(parser)
    parser.add_argument("--kubeconfig", help="default: the pod's service account")
    parser.add_argument("--context", help="context in that kubeconfig")
    args = parser.parse_args(arguments)
    try:
        emissions = load_settings(args.emissions_settings) if args.emissions_settings else EmissionsSettings()
    except SettingsError as error:
        parser.error("--emissions-settings: " + "; ".join(error.problems))
    return Settings(
        namespaces=tuple(dict.fromkeys(args.namespace)),
        progress_interval=args.progress_interval,
        resync_interval=args.resync_interval,
        stale_after=args.stale_after,
        watch_inactivity=args.watch_inactivity,
        pass_limit=args.pass_limit,
        lease=args.lease,
        emissions=emissions,
        workers=args.workers,
        http_port=args.http_port,
        log_level=args.log_level,
        log_format=args.log_format,
        snapshots=args.snapshots,
        kubeconfig=args.kubeconfig,
        context=args.context,
    )


def _named(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME")
    return namespace, name


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory: make it first")
    return path


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 86400 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 256")
    return value
