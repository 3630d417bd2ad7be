"""What was counted and which limits were changed, on the node's disk: a new agent continues where a killed one was.

The whole account is one file, replaced atomically. It may be some seconds old when the agent is killed; the cards' counters
go on counting, so nothing is lost. The caps are another file, written before a card is touched (`agent.caps`).

One agent acts per node: it has the journal's lock from its start to its end. The kernel frees the lock however the agent ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from greentrain.energy.account import NodeAccount

FILE = "account.json"
LOCK = "lock"


class TakenError(Exception):
    """Another agent has the lock of this node's journal."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"another agent holds {directory / LOCK}: one agent runs per node; this one waits until it has ended"
        )


class Journal:
    """One folder on the node's disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: TextIO | None = None

    def take(self) -> None:
        """Keep the folder's lock until `close`.

        Raises:
            TakenError: another agent has it.
            OSError: the folder cannot be made or written.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        stream = (self._directory / LOCK).open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise TakenError(self._directory) from error
        self._lock = stream

    def close(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self) -> tuple[NodeAccount, str | None]:
        """The account as it was stored last, or an empty one; and what was wrong with a file that was moved aside.

        Raises:
            OSError: the disk cannot be read.
        """
        content = self.read()
        if content is None:
            return begin(), None
        try:
            return NodeAccount.from_json(content), None
        except ValidationError as error:
            count, aside = error.error_count(), self.put_aside()
            path = self._directory / FILE
            return begin(), f"the journal {path} cannot be read ({count} errors) and was put aside as {aside}"

    def read(self, name: str = FILE) -> bytes | None:
        """A file as it was stored last; None where it never was.

        Raises:
            OSError: the disk cannot be read.
        """
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def put_aside(self, name: str = FILE) -> str:
        """Move a damaged file aside; returns its new name."""
        path = self._directory / name
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        return aside.name

    def store(self, content: bytes, name: str = FILE) -> None:
        """Replace a stored file, by default the account's; on the disk when this returns.

        Raises:
            OSError: the disk is full or does not take it. The old file is as it was; where the folder alone could not be
                synced, the new one is in its place, and may be the old one again after a power cut.
        """
        path = self._directory / name
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            folder = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def begin() -> NodeAccount:
    """An account that begins now."""
    return NodeAccount(journal_id=str(uuid.uuid4()))
