"""Keeps what each job's last pass saw, so that its decision can be explained and repeated."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.stored import dump_snapshot


def keep_snapshot(directory: Path, seen: Snapshot, *, now: datetime) -> None:
    """Write NAMESPACE.NAME.json into the directory, in place of the previous pass's file.

    Only the owner can read it: a spec may contain passwords.

    Raises:
        OSError: it could not be written.
    """
    path = _find_path(directory, seen.job.namespace, seen.job.name)
    partial = path.with_suffix(".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump_snapshot(seen, now=now))
    partial.replace(path)


def forget_snapshot(directory: Path, namespace: str, name: str) -> None:
    """Remove the file of a job that was deleted; the file of one deleted while the operator was away stays."""
    with contextlib.suppress(OSError):
        _find_path(directory, namespace, name).unlink()


def _find_path(directory: Path, namespace: str, name: str) -> Path:
    return directory / f"{namespace}.{name}.json"
