"""The machine's kernel settings that kubelet writes at its start, kept so that `down` puts them back.

Kubelet sets them for the whole machine, also from a namespace (pkg/kubelet/cm, setupKernelTunables).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from sandbox.state import Sandbox

ROOT = Path("/proc/sys")

WRITTEN_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def read_settings(root: Path = ROOT) -> dict[str, str]:
    """What stands in the kernel now, by path below /proc/sys; a setting this kernel lacks is left out."""
    found = {}
    for name in WRITTEN_BY_KUBELET:
        with contextlib.suppress(OSError):
            found[name] = (root / name).read_text().strip()
    return found


def set_settings(settings: Mapping[str, str], root: Path = ROOT) -> int:
    """Write settings that differ from what stands; returns how many were written."""
    standing = read_settings(root)
    written = 0
    for name, value in settings.items():
        if name in WRITTEN_BY_KUBELET and standing.get(name) not in {None, value}:
            (root / name).write_text(value)
            written += 1
    return written


def keep(sandbox: Sandbox, root: Path = ROOT) -> None:
    """Note what stands before the first kubelet starts; what a run before noted and has not put back stays noted."""
    if sandbox.kept_settings.exists():
        return
    partial = sandbox.kept_settings.with_suffix(".partial")
    partial.write_text(json.dumps(read_settings(root), indent=2))
    partial.rename(sandbox.kept_settings)


def restore(sandbox: Sandbox, root: Path = ROOT) -> int:
    """Put back what `keep` noted; returns how many settings had been changed."""
    try:
        noted = json.loads(sandbox.kept_settings.read_text())
    except (OSError, ValueError):
        return 0
    written = set_settings({str(name): str(value) for name, value in noted.items()}, root)
    sandbox.kept_settings.unlink()
    return written
