"""Builds the pause image every pod starts from, since no registry that has one can be reached: a static C program."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from sandbox import archive, shell

SOURCE = Path(__file__).with_name("pause.c")
IMAGE = "greentrain.dev/pause:1"


def apply_pause_archive(cache: Path) -> Path:
    """The pause image's archive in the cache, built when it is not there.

    Raises:
        SandboxError: gcc or libc's static library is missing, or this is neither x86-64 nor arm64.
    """
    architecture = archive.read_architecture()
    sources = (SOURCE, Path(__file__), Path(archive.__file__))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    target = cache / "pause" / f"pause-{architecture}-{digest}.tar"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        program = Path(folder) / "pause"
        shell.run(
            ["gcc", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE],
            remedy="apt-get install gcc libc6-dev",
        )
        layer = archive.build_tar({"pause": (program.read_bytes(), 0o755)})
        partial = Path(folder) / "archive"
        partial.write_bytes(
            archive.build_image_archive(
                IMAGE, layer, architecture=architecture, entrypoint=["/pause"], user=65535
            )
        )
        partial.rename(target)
    return target
