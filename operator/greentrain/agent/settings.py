"""An agent's settings from its command line; the chart's values become these arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from greentrain.devices.nvidia.driver import MODULE
from greentrain.devices.podresources import SOCKET
from greentrain.devices.rapl import CGROUPS, POWERCAP
from greentrain.settings import ProgramSettings, flag, namespaced, parse, port, seconds

Command = Literal["run", "restore", "retire"]
COMMANDS: tuple[Command, ...] = get_args(Command)

_SECONDS = seconds(1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(ProgramSettings):
    """Settings of one agent process; all times in seconds."""

    command: Command = field(
        default="run",
        metadata=flag(
            "run (default); restore: restore the previous power limit of every GPU of this node from the journal, and exit; "
            "retire: end the agents of all nodes and check that every previous limit is restored",
            choices=COMMANDS,
            form="command",
        ),
    )
    daemonset: tuple[str, str] = field(
        default=("", ""),
        metadata=flag("of the agents, for retire", namespaced, metavar="NAMESPACE/NAME"),
    )
    selector: str = field(default="", metadata=flag("of the agents' pods, for retire", metavar="LABELS"))
    node: str = field(
        metadata=flag(
            "name of this node, which is that of its NodePower (default: $NODE_NAME)", variable="NODE_NAME"
        )
    )
    journal: Path = field(
        default=Path("/var/lib/greentrain"),
        metadata=flag("folder on the node's disk (default %(default)s)", Path, metavar="FOLDER"),
    )
    kubelet_socket: Path = field(
        default=SOCKET,
        metadata=flag("the kubelet's PodResources (default %(default)s)", Path, metavar="SOCKET"),
    )
    cgroup_root: Path = field(
        default=CGROUPS,
        metadata=flag(
            "the node's cgroups, for CPU time by pod (default %(default)s)", Path, metavar="FOLDER"
        ),
    )
    powercap_root: Path = field(
        default=POWERCAP,
        metadata=flag("the node's RAPL counters (default %(default)s)", Path, metavar="FOLDER"),
    )
    interval: float = field(
        default=1.0,
        metadata=flag(
            "seconds between two readings of the cards; not below 1 (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    """Not less than 1 s: energy counters show too little when they are read more often."""
    read_deadline: float = 2.0
    """How long a card may take to answer."""
    report_interval: float = field(
        default=30.0,
        metadata=flag(
            "how often NodePower is written, give or take a tenth (default %(default)s)",
            _SECONDS,
            metavar="SECONDS",
        ),
    )
    report_deadline: float = 20.0
    journal_interval: float = 5.0
    """How often the account is written to the disk."""
    driver_module: Path = field(
        default=MODULE,
        metadata=flag(
            "where the kernel shows NVIDIA's driver, another folder after each load of it (default %(default)s)",
            Path,
            metavar="FOLDER",
        ),
    )
    dry_run: bool = field(
        default=False, metadata=flag("log which power limits would be set, and set none", form="switch")
    )
    operator_lease: tuple[str, str] | None = field(
        default=None,
        metadata=flag(
            "the Lease that the operator renews; while it is not renewed the agent itself enforces the pods' energy "
            "allowances. Without one the operator counts as silent at all times",
            namespaced,
            metavar="NAMESPACE/NAME",
        ),
    )
    http_port: int = field(
        default=8081, metadata=flag("health and metrics; 0: none (default %(default)s)", port)
    )


def parse_settings(arguments: Sequence[str]) -> AgentSettings:
    """Parse the command line; exits with 2 and a message where it is wrong."""
    return parse(
        AgentSettings,
        arguments,
        program="python -m greentrain.agent",
        description="Counts the energy of one node's GPUs, by pod, and sets the power limits that jobs ask for.",
        environment=os.environ,
        find_problem=_find_problem,
    )


def _find_problem(settings: AgentSettings) -> str:
    if not settings.node and settings.command == "run":
        return "--node is not given and $NODE_NAME is not set: name the node this agent runs on"
    if settings.command == "retire" and not (all(settings.daemonset) and settings.selector):
        return "retire needs --daemonset and --selector: which agents to end"
    return ""
