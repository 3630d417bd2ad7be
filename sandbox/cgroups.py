"""Where the nodes' pods live among the machine's cgroups, by what is mounted.

Version 1 (with or without systemd) and version 2 without systemd: plain folders, driver `cgroupfs`. Version 2 under
systemd (a stock Debian 12): slices, driver `systemd`. Version 1 was run; version 2 was written from kubelet's and
systemd's documentation and not run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sandbox import shell
from sandbox.shell import SandboxError
from sandbox.state import Node

TOP = "greentrain-sandbox"

V2_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "memory", "pids")
"""What kubelet demands of its root cgroup on version 2, as far as the machine has them."""


class Driver(StrEnum):
    """Who creates the pods' cgroups: kubelet's `cgroupDriver`."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True)
class CgroupMode:
    """What the machine has: `version` 1 or 2, the driver that fits, and the mounts pods' cgroups are made under.

    `beside` is version 2 mounted without controllers beside version 1: runc makes cgroups there too.
    """

    version: int
    driver: Driver
    hierarchies: tuple[Path, ...]
    beside: tuple[Path, ...] = ()


def decide_mode(mounts: str, *, systemd: bool) -> CgroupMode:
    """The mode for the text of /proc/mounts; `systemd` says whether it runs this machine.

    Raises:
        SandboxError: no cgroups are mounted.
    """
    first: list[Path] = []
    second: list[Path] = []
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[2] == "cgroup":
            first.append(Path(fields[1]))
        elif len(fields) >= 3 and fields[2] == "cgroup2":
            second.append(Path(fields[1]))
    if first:
        # Hybrid machines mount version 2 beside it without controllers; kubelet uses version 1 there.
        return CgroupMode(1, Driver.CGROUPFS, tuple(first), tuple(second))
    if second:
        return CgroupMode(2, Driver.SYSTEMD if systemd else Driver.CGROUPFS, (second[0],))
    raise SandboxError(
        "No cgroups are mounted, without which no container runs; boot with systemd or mount them (cgroupfs-mount)."
    )


def read_mode() -> CgroupMode:
    """The mode of this machine."""
    return decide_mode(Path("/proc/mounts").read_text(), systemd=Path("/run/systemd/system").is_dir())


def decide_kubelet_root(mode: CgroupMode, node: Node) -> str:
    """Kubelet's `cgroupRoot` for a node, in the notation kubelet expects."""
    if mode.driver is Driver.SYSTEMD:
        # Kubelet turns /a/b into a.slice/a-b.slice; a dash within one name would be one more level.
        return f"/greentrain/{node.name}"
    return node.cgroup


def apply_node(mode: CgroupMode, node: Node) -> None:
    """Make the cgroup below which kubelet keeps this node's pods."""
    if mode.driver is Driver.SYSTEMD:
        unit = f"greentrain-{node.name}.slice"
        shell.run(["systemctl", "start", unit])
        shell.run(
            [
                "systemctl",
                "set-property",
                "--runtime",
                unit,
                "CPUAccounting=yes",
                "MemoryAccounting=yes",
                "TasksAccounting=yes",
            ]
        )
        _enable_controllers(mode.hierarchies[0], ["greentrain.slice", unit])
        return
    for hierarchy in mode.hierarchies:
        if mode.version == 2:
            (hierarchy / TOP / node.name).mkdir(parents=True, exist_ok=True)
            _enable_controllers(hierarchy, [TOP, node.name])
            continue
        folder = hierarchy
        for part in (TOP, node.name):
            folder = folder / part
            folder.mkdir(exist_ok=True)
            # A fresh cpuset is empty and lets nothing run in it until both are filled in.
            for name in ("cpuset.cpus", "cpuset.mems"):
                with contextlib.suppress(FileNotFoundError):
                    if not (folder / name).read_text().strip():
                        (folder / name).write_text((folder.parent / name).read_text())


def _enable_controllers(hierarchy: Path, parts: list[str]) -> None:
    folder = hierarchy
    for part in parts:
        offered = (folder / "cgroup.controllers").read_text().split()
        wanted = [f"+{name}" for name in V2_CONTROLLERS if name in offered]
        (folder / "cgroup.subtree_control").write_text(" ".join(wanted))
        folder = folder / part


def find_folders(mode: CgroupMode, node: Node | None = None) -> Iterator[Path]:
    """Every cgroup of the sandbox, or of one of its nodes, deepest first."""
    systemd = mode.driver is Driver.SYSTEMD
    top = Path("greentrain.slice" if systemd else TOP)
    if node is not None:
        top /= f"greentrain-{node.name}.slice" if systemd else node.name
    for hierarchy in (*mode.hierarchies, *mode.beside):
        # os.walk: cgroup folders vanish while they are read, which Path.rglob does not forgive in Python 3.11.
        for folder, _, _ in os.walk(hierarchy / top, topdown=False):
            yield Path(folder)


def find_pids(mode: CgroupMode, node: Node | None = None) -> set[int]:
    """Program ids of everything that runs in a container of the sandbox, or of one of its nodes."""
    pids: set[int] = set()
    for folder in find_folders(mode, node):
        with contextlib.suppress(OSError):
            pids.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    return pids


def remove(mode: CgroupMode, node: Node | None = None, *, timeout: float = 10.0) -> int:
    """Remove the sandbox's cgroups, or those of one of its nodes; returns how many there were.

    Raises:
        SandboxError: some stay busy for `timeout` seconds.
    """
    count = len(list(find_folders(mode, node)))
    if count and mode.driver is Driver.SYSTEMD:
        unit = "greentrain.slice" if node is None else f"greentrain-{node.name}.slice"
        shell.run(["systemctl", "stop", unit], check=False)
    deadline = time.monotonic() + timeout
    while True:
        left = []
        for folder in find_folders(mode, node):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                left.append(folder)
        if not left:
            return count
        if time.monotonic() > deadline:
            raise SandboxError(
                f"The cgroup {left[0]} stays busy; see which processes are in its cgroup.procs and end them."
            )
        time.sleep(0.05)
