"""The folder of everything that is built once: where it is, what of it several parts share, and its locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sandbox import shell

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""The machine's authorities, which package clients of ours are given by name."""


def read_cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$GREENTRAIN_CACHE`, else `~/.cache/greentrain`."""
    configured = environ.get("GREENTRAIN_CACHE", "")
    return Path(configured) if configured else Path(environ.get("HOME", "/root")) / ".cache" / "greentrain"


def decide_package_cache(cache: Path) -> Path:
    """Uv's cache, shared by the image builds and the virtual environment, so that TensorFlow comes once.

    This is where buildah (1.28, `internal/parse.GetCacheMount`) keeps `--mount=type=cache,id=greentrain-uv`; another
    version with another place only downloads a second time.
    """
    return cache / "buildah" / "tmp" / "buildah-cache" / "greentrain-uv"


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder: two runs with one cache work one after the other.

    Raises:
        SandboxError: another step failed, or the user interrupted, while this one waited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                shell.check_going()
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
