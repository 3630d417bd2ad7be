"""Keeps what each job's last pass saw, for whoever must find out why it decided as it did."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.stored import dump_snapshot


def keep_snapshot(directory: Path, seen: Snapshot, *, now: datetime) -> None:
    """Write NAMESPACE.NAME.json into the directory, in place of what the pass before left there.

    The owner alone can read it: a spec may hold passwords.

    Raises:
        OSError: it could not be written.
    """
    path = directory / f"{seen.job.namespace}.{seen.job.name}.json"
    partial = path.with_suffix(".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump_snapshot(seen, now=now))
    partial.replace(path)
