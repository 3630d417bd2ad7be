"""Disk and memory: what is too small is an error before a long build begins, not after it has failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.shell import SandboxError

GB = 1_000_000_000


@dataclass(frozen=True)
class Need:
    """What one part takes: `disk` bytes below `path`, kept or while it works, and `memory` bytes at its highest."""

    what: str
    path: Path
    disk: int
    memory: int = 0


def read_available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that programs could get without swapping (MemAvailable of proc(5)); None when it is not said."""
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def find_shortages(needs: Iterable[Need], memory: int | None) -> list[str]:
    """Which disks and whether the memory are too small for all of `needs` together, each as a sentence.

    `memory` is the number of bytes available, None when unknown. Disk adds up by file system, memory does not: the
    largest need counts, because the parts that need most follow one another.
    """
    by_disk: dict[int, list[Need]] = {}
    wanted = list(needs)
    for need in wanted:
        by_disk.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    shortages = []
    for group in by_disk.values():
        asked = sum(need.disk for need in group)
        place = _existing(group[0].path)
        free = shutil.disk_usage(place).free
        if free < asked:
            parts = ", ".join(f"{need.what} {need.disk / GB:.1f} GB" for need in group if need.disk)
            shortages.append(
                f"The disk of {place} has {free / GB:.1f} GB free, and {asked / GB:.1f} GB are needed ({parts})."
            )
    most = max(wanted, key=lambda need: need.memory, default=None)
    if most is not None and memory is not None and memory < most.memory:
        shortages.append(
            f"{memory / GB:.1f} GB of memory are available, and {most.what} needs {most.memory / GB:.1f} GB."
        )
    return shortages


def check_room(needs: Iterable[Need]) -> None:
    """Refuse to begin what this machine has no room for.

    Raises:
        SandboxError: a disk or the memory is too small; it says which, how much there is and how much is needed.
    """
    shortages = find_shortages(needs, read_available_memory())
    if shortages:
        raise SandboxError(
            "\n".join(shortages),
            remedy="free some, or name a folder on a larger disk in GREENTRAIN_CACHE (what is built) or"
            " GREENTRAIN_SANDBOX_DIR (what runs)",
        )
