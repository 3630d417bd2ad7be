"""The command line of an agent: what the chart's values become."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from greentrain.devices.nvidia.driver import MODULE
from greentrain.devices.podresources import SOCKET
from greentrain.devices.rapl import CGROUPS, POWERCAP
from greentrain.telemetry.logs import DEFAULT_LEVEL, LogFormat, add_log_arguments

Command = Literal["run", "restore", "retire"]
COMMANDS: tuple[Command, ...] = get_args(Command)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of one agent process; all times in seconds."""

    node: str
    """Name of the node, which is that of its NodePower."""
    journal: Path = Path("/var/lib/greentrain")
    """Folder on the node's disk."""
    kubelet_socket: Path = SOCKET
    cgroup_root: Path = CGROUPS
    """The node's cgroups: CPU time by pod."""
    powercap_root: Path = POWERCAP
    """The node's RAPL."""
    interval: float = 1.0
    """How often cards are read. Energy counters are not worth reading more often: they fall short then."""
    read_deadline: float = 2.0
    """How long a card may take to answer."""
    report_interval: float = 30.0
    """How often NodePower is written, give or take a tenth."""
    report_deadline: float = 20.0
    journal_interval: float = 5.0
    """How often the account is written to the disk."""
    driver_module: Path = MODULE
    """Folder of the kernel's driver: another one after each load of it."""
    dry_run: bool = False
    """Tell which power limits would be set, and set none."""
    operator_lease: tuple[str, str] | None = None
    """Namespace and name of the Lease that the operator renews; without one it counts as silent."""
    command: Command = "run"
    """What to do; the other commands than `run` end by themselves."""
    daemonset: tuple[str, str] = ("", "")
    """Namespace and name of the agents' DaemonSet, for `retire`."""
    selector: str = ""
    """Labels of the agents' pods, for `retire`."""
    http_port: int = 8081
    log_level: str = DEFAULT_LEVEL
    log_format: LogFormat | None = None
    kubeconfig: str | None = None
    context: str | None = None


def parse_settings(arguments: Sequence[str]) -> AgentSettings:
    """Parse the command line; exits with 2 and a sentence on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m greentrain.agent",
        description="Counts the energy of one node's GPUs, by pod, and sets the power limits that jobs ask for.",
    )
    defaults = AgentSettings(node="")
    parser.add_argument(
        "command",
        nargs="?",
        choices=COMMANDS,
        default="run",
        help="run (default); restore: give every GPU of this node the power limit back it had before a cap, as the journal "
        "has it, and end; retire: end the agents of all nodes and see that every GPU has its limit back",
    )
    parser.add_argument(
        "--daemonset", metavar="NAMESPACE/NAME", help="of the agents, for retire", type=_named
    )
    parser.add_argument("--selector", metavar="LABELS", help="of the agents' pods, for retire")
    parser.add_argument(
        "--node", default=os.environ.get("NODE_NAME"), help="name of this node (default: $NODE_NAME)"
    )
    parser.add_argument("--journal", type=Path, default=defaults.journal, metavar="FOLDER")
    parser.add_argument("--kubelet-socket", type=Path, default=defaults.kubelet_socket, metavar="SOCKET")
    parser.add_argument(
        "--cgroup-root",
        type=Path,
        default=defaults.cgroup_root,
        metavar="FOLDER",
        help="the node's cgroups, for CPU time by pod (default %(default)s)",
    )
    parser.add_argument(
        "--powercap-root",
        type=Path,
        default=defaults.powercap_root,
        metavar="FOLDER",
        help="the node's RAPL counters (default %(default)s)",
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=defaults.interval,
        metavar="SECONDS",
        help="how often cards are read, at least every 1 s (default %(default)s)",
    )
    parser.add_argument(
        "--report-interval",
        type=_seconds,
        default=defaults.report_interval,
        metavar="SECONDS",
        help="how often NodePower is written (default %(default)s)",
    )
    parser.add_argument(
        "--driver-module",
        type=Path,
        default=defaults.driver_module,
        metavar="FOLDER",
        help="where the kernel shows NVIDIA's driver (default %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="report which power limits would be set, and set none"
    )
    parser.add_argument(
        "--operator-lease",
        type=_named,
        metavar="NAMESPACE/NAME",
        help="the Lease that the operator renews; while it is not renewed the agent itself holds pods to their allowances of "
        "energy. Without one the operator counts as silent at all times",
    )
    parser.add_argument(
        "--http-port", type=_port, default=defaults.http_port, help="health and metrics; 0: none"
    )
    add_log_arguments(parser)
    parser.add_argument("--kubeconfig", help="default: the pod's service account")
    parser.add_argument("--context", help="context in that kubeconfig")
    args = parser.parse_args(arguments)
    if not args.node and args.command == "run":
        parser.error("--node is not given and $NODE_NAME is not set: name the node this agent runs on")
    if args.command == "retire" and not (args.daemonset and args.selector):
        parser.error("retire needs --daemonset and --selector: which agents to end")
    return AgentSettings(
        node=args.node or "",
        journal=args.journal,
        kubelet_socket=args.kubelet_socket,
        cgroup_root=args.cgroup_root,
        powercap_root=args.powercap_root,
        interval=args.interval,
        report_interval=args.report_interval,
        driver_module=args.driver_module,
        dry_run=args.dry_run,
        operator_lease=args.operator_lease,
        command=args.command,
        daemonset=args.daemonset or ("", ""),
        selector=args.selector or "",
        http_port=args.http_port,
        log_level=args.log_level,
        log_format=args.log_format,
        kubeconfig=args.kubeconfig,
        context=args.context,
    )


def _named(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name):
        raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME")
    return namespace, name


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if 1.0 <= value <= 3600:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not between 1 and 3600 seconds")


def _port(text: str) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if 0 <= value <= 65535:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
