"""Distinguishes one load of NVIDIA's kernel driver from the next: a reload puts every card's settings back to their defaults."""

from __future__ import annotations

from pathlib import Path

MODULE = Path("/sys/module/nvidia")
"""Exists while the driver is loaded."""


def read_load(module: Path = MODULE) -> str:
    """A name of the present load of the driver, another one after each reload; empty where none is loaded.

    sysfs numbers its inodes one after the other and gives a recreated folder a new number (kernfs allocates them cyclically).
    Times do not work: they belong to the inode in memory, which may be dropped and read again.
    """
    try:
        return str(module.stat().st_ino)
    except OSError:
        return ""
