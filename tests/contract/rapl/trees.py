"""Folders as Linux shows them under /sys/class/powercap, /sys/fs/cgroup and /proc."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

RANGE = 262_143_328_850
"""Microjoules after which a counter of a server's socket begins anew: 32 bits of 2⁻¹⁴ J."""


def write_domain(root: Path, folder: str, name: str, microjoules: int, most: int = RANGE) -> Path:
    """One RAPL domain; all of them lie side by side, the subdomains as well."""
    domain = root / folder
    domain.mkdir(parents=True, exist_ok=True)
    (domain / "name").write_text(f"{name}\n")
    (domain / "max_energy_range_uj").write_text(f"{most}\n")
    (domain / "energy_uj").write_text(f"{microjoules}\n")
    return domain / "energy_uj"


def write_stat(proc: Path, *ticks: int) -> None:
    """/proc/stat of a machine whose processors spent so many ticks on user, nice, system, idle, iowait and so on."""
    proc.mkdir(exist_ok=True)
    line = " ".join(str(tick) for tick in ticks)
    (proc / "stat").write_text(f"cpu  {line}\ncpu0 {line}\nintr 1 2 3\nctxt 4\n")


def write_cgroups(
    root: Path, version: int, seconds: Mapping[str, float], controller: str = "cpuacct"
) -> None:
    """Cgroups by path, each with the time its processes used."""
    if version == 2:
        root.mkdir(exist_ok=True)
        (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    else:
        root = root / controller
        root.mkdir(parents=True)
        (root / "cpuacct.usage").write_text("9999999999999\n")
    for path, used in seconds.items():
        folder = root / path
        folder.mkdir(parents=True)
        if version == 2:
            microseconds = round(used * 1e6)
            (folder / "cpu.stat").write_text(
                f"usage_usec {microseconds}\nuser_usec {microseconds - 5}\nsystem_usec 5\nnr_periods 0\n"
            )
        else:
            (folder / "cpuacct.usage").write_text(f"{round(used * 1e9)}\n")
