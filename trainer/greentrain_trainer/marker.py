"""Whose checkpoints a directory has: a file with the job's UID, written before anything else.

A job deleted and created again under the same name gets the same directory. Continuing another job's
training, or pruning its checkpoints, must not happen silently, so the first chief leaves its job's UID
and every rank of another job refuses to start.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from greentrain_trainer.ending import failed

MARKER = "greentrain-job-uid"
"""Name of the marker file in the checkpoint directory."""

_UID = re.compile(r"[!-~]{1,253}")
"""One printable word: a Kubernetes UID, or, without an operator, a word of the user's choice."""


def read_marker(directory: Path) -> str | None:
    """The UID a checkpoint directory belongs to; None when it is unmarked or not there.

    Raises `Ending` with exit code 1 when the marker cannot be read or has no UID.
    """
    try:
        text = (directory / MARKER).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(
            f"The marker {directory / MARKER} cannot be read ({error.strerror or error}); "
            f"make the volume readable for uid {os.geteuid()}, for instance with fsGroup."
        ) from None
    if not _UID.fullmatch(text):
        raise failed(
            f"The marker {directory / MARKER} is damaged: it should contain the UID of the job whose checkpoints "
            f"these are, and it contains {text[:40]!r}. If they are this job's, delete the marker, and the next "
            f"attempt writes it again; else give this job another spec.checkpoint.path."
        )
    return text


def check_marker(directory: Path, uid: str) -> None:
    """Refuse, with exit code 1, a directory that another job has marked."""
    owner = read_marker(directory)
    if owner is not None and owner != uid:
        raise failed(
            f"The checkpoint directory {directory} belongs to the job with UID {owner}, and this job's UID is {uid}; "
            f"give this job another spec.checkpoint.path, or delete the directory if its checkpoints are no longer wanted."
        )


def write_marker(directory: Path, uid: str) -> None:
    """Mark a directory as this job's, creating it if need be, or refuse another job's.

    The marker appears whole or not at all, and the first of two jobs wins: it is written aside and then
    linked into place, which fails when one is there (rename would replace it). It is written aside at
    every attempt: a volume that has become full or read-only is to be found before the training, not
    hours later at its first checkpoint.
    """
    aside = directory / f".{MARKER}.{uid}.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_marker(directory, uid)
        _write(aside, uid, "w")
        try:
            (directory / MARKER).hardlink_to(aside)
        except FileExistsError:
            pass
        except OSError:
            # Some network and FUSE file systems know no hard links (EPERM, ENOTSUP). A reader may find
            # this one still empty, and refuse it as damaged; it is never taken for its own.
            with contextlib.suppress(FileExistsError):
                _write(directory / MARKER, uid, "x")
        aside.unlink(missing_ok=True)
    except OSError as error:
        raise failed(
            f"The checkpoint directory {directory} cannot be written ({error.strerror or error}); see that the "
            f"volume has space and is writable for uid {os.geteuid()}, for instance with fsGroup."
        ) from None
    check_marker(directory, uid)


def _write(path: Path, uid: str, mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.write(f"{uid}\n")
        file.flush()
        os.fsync(file.fileno())
