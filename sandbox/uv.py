"""Uv, the package installer: itself installed by hash into the cache, and the environment it runs in."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from sandbox import packages, shell
from sandbox.cache import CA_BUNDLE, decide_package_cache, hold_lock

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def build_environment(cache: Path) -> dict[str, str]:
    """The environment uv and pip run in: the machine's CA bundle counts, and the cache is the image builds' too."""
    environment = {
        **os.environ,
        "UV_CACHE_DIR": str(decide_package_cache(cache)),
        "UV_SYSTEM_CERTS": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    # Set by an activated environment; uv would then work on that one.
    environment.pop("VIRTUAL_ENV", None)
    if CA_BUNDLE.exists():
        environment.setdefault("SSL_CERT_FILE", str(CA_BUNDLE))
        environment.setdefault("PIP_CERT", str(CA_BUNDLE))
    return environment


def apply_uv(cache: Path, log: Path, requirements: Path = REQUIREMENTS / "uv.txt") -> Path:
    """Install the pinned uv into the cache unless it is there; returns the program.

    Safe to call twice at once: the second waits for the first and finds its result.

    Raises:
        SandboxError: this Python cannot make virtual environments and python3-venv could not be installed, or pip failed.
    """
    tag = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / "uv" / tag
    program = folder / "bin" / "uv"
    # The virtual environment and Go from PyPI are fetched side by side, and both begin here.
    with hold_lock(cache / "uv" / "lock"):
        if program.exists():
            return program
        if importlib.util.find_spec("ensurepip") is None:
            packages.check_root()
            apt = {**os.environ, **packages.APT_ENV}
            shell.run(["apt-get", "-q", "update"], log=log, env=apt)
            install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", "python3-venv"]
            shell.run(install, log=log, env=apt)
        # uv is one program, which runs wherever it lies.
        partial = cache / "uv" / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        shell.run([sys.executable, "-m", "venv", partial], log=log)
        pip: list[str | Path] = [
            *(partial / "bin" / "pip", "install", "--quiet", "--no-cache-dir"),
            *("--disable-pip-version-check", "--require-hashes", "--requirement", requirements),
        ]
        shell.run(pip, log=log, env=build_environment(cache))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return program
