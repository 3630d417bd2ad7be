"""Makes `.venv`, in which the project's tools and tests run, from hashed requirements and nothing else.

uv, itself installed by hash, brings `.venv` to exactly what requirements/dev.txt says, and the project is installed
editable, so that the tests see the sources. What it was made from is written into it: unchanged, nothing is done.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox import binaries, packages, shell
from sandbox.binaries import read_cache_directory
from sandbox.images import CA_BUNDLE, ROOT, Workshop
from sandbox.steps import Step, run_steps

STAMP = ".greentrain"
REQUIREMENTS = ("requirements/dev.txt", "requirements/uv.txt")

COMPILED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("operator", ("pyproject.toml", "--extra=operator")),
    ("agent", ("pyproject.toml", "--extra=agent")),
    ("trainer-cpu", ("pyproject.toml", "--extra=trainer-cpu")),
    ("trainer-gpu", ("pyproject.toml", "--extra=trainer-gpu")),
    (
        "dev",
        (
            "pyproject.toml",
            "requirements/dev.in",
            "--extra=operator",
            "--extra=agent",
            "--extra=trainer-cpu",
            "--group=dev",
        ),
    ),
    ("build", ("--group=build",)),
    ("peers", ("--group=peers",)),
    ("uv", ("requirements/uv.in",)),
)
"""Which requirements/*.txt is compiled from what."""


def build_fingerprint(root: Path, python: str) -> str:
    """What `.venv` depends on: the requirement files, the project's own metadata and the interpreter."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    metadata = [project.get("project"), project.get("build-system"), project.get("tool", {}).get("hatch")]
    digest = hashlib.sha256(f"{python}\0{json.dumps(metadata, sort_keys=True)}".encode())
    for name in REQUIREMENTS:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def build_environment(cache: Path) -> dict[str, str]:
    """The environment uv and pip run in: the machine's CA bundle counts, and the cache is the image builds' too."""
    environment = {
        **os.environ,
        "UV_CACHE_DIR": str(Workshop(cache).package_cache),
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


def apply_uv(cache: Path, root: Path = ROOT) -> Path:
    """Install the pinned uv into the cache unless it is there; returns the program.

    Raises:
        SandboxError: this Python cannot make virtual environments and python3-venv could not be installed, or pip failed.
    """
    requirements = root / "requirements" / "uv.txt"
    tag = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / "uv" / tag
    program = folder / "bin" / "uv"
    if program.exists():
        return program
    log = cache / "log" / "environment.log"
    if importlib.util.find_spec("ensurepip") is None:
        packages.check_root()
        apt = {**os.environ, **packages.APT_ENV}
        shell.run(["apt-get", "-q", "update"], log=log, env=apt)
        shell.run(
            ["apt-get", "-q", "-y", "--no-install-recommends", "install", "python3-venv"], log=log, env=apt
        )
    shutil.rmtree(folder, ignore_errors=True)
    shell.run([sys.executable, "-m", "venv", folder], log=log)
    pip: list[str | Path] = [
        folder / "bin" / "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--disable-pip-version-check",
    ]
    shell.run(
        [*pip, "--require-hashes", "--requirement", requirements], log=log, env=build_environment(cache)
    )
    return program


@contextlib.contextmanager
def _hold_lock(root: Path) -> Iterator[None]:
    """Wait until nobody else works on `.venv`: `demo` makes it while the sandbox it brings up waits for it."""
    descriptor = os.open(root, os.O_RDONLY)
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


def apply_environment(cache: Path, root: Path = ROOT) -> str:
    """Bring `.venv` to what the requirement files say, one caller at a time; returns what was done, in words.

    Raises:
        SandboxError: a package could not be installed; the last log lines are in the error.
    """
    with _hold_lock(root):
        return _apply_environment(cache, root)


def _apply_environment(cache: Path, root: Path) -> str:
    folder = root / ".venv"
    stamp = folder / STAMP
    fingerprint = build_fingerprint(root, sys.version)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return "unchanged"
    uv = apply_uv(cache, root)
    log = cache / "log" / "environment.log"
    environment = build_environment(cache)
    python = folder / "bin" / "python"
    stamp.unlink(missing_ok=True)
    if not python.exists():
        shell.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], log=log, env=environment
        )
    sync: list[str | Path] = [
        uv,
        "pip",
        "sync",
        "--python",
        python,
        "--require-hashes",
        root / "requirements" / "dev.txt",
    ]
    shell.run(sync, log=log, env=environment)
    # No build isolation: hatchling is in dev.txt, by hash.
    editable: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--python",
        python,
        "--no-deps",
        "--no-build-isolation",
        "--editable",
        root,
    ]
    shell.run(editable, log=log, env=environment)
    stamp.write_text(fingerprint)
    return "installed"


def apply_requirements(cache: Path, root: Path = ROOT, *, upgrade: bool = False) -> str:
    """Compile every requirements/*.txt anew, with hashes and without any index's address; returns what was done."""
    uv = apply_uv(cache, root)
    for name, sources in COMPILED:
        shell.run(
            [
                uv,
                "pip",
                "compile",
                *sources,
                *(("--upgrade",) if upgrade else ()),
                "--generate-hashes",
                "--python-version=3.11",
                "--no-annotate",
                "--no-emit-index-url",
                "--no-emit-find-links",
                "--quiet",
                "--custom-compile-command=make requirements",
                f"--output-file=requirements/{name}.txt",
            ],
            cwd=root,
            env=build_environment(cache),
        )
    return f"compiled {len(COMPILED)} files"


def build_step(cache: Path, needs: tuple[str, ...] = ()) -> Step:
    """The step that makes `.venv`."""
    return Step(
        "environment",
        "installing the tools and TensorFlow into .venv",
        60.0,
        lambda: apply_environment(cache),
        needs,
    )


def build_machine_steps(cache: Path) -> list[Step]:
    """The two steps that give the machine what the sandbox is made of: Debian's packages and Kubernetes' programs."""
    return [
        Step(
            "packages",
            "installing Debian packages",
            60.0,
            lambda: packages.apply_packages(cache / "log" / "packages.log"),
        ),
        Step(
            "binaries",
            f"providing Kubernetes {binaries.VERSION}, built from Debian's source the first time (about 7 min)",
            0.0,
            lambda: binaries.apply_binaries(cache / "log" / "kubernetes.log"),
            ("packages",),
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """`python3 -m sandbox environment`: make `.venv`, or with --requirements compile the requirement files."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox environment", description="Bring .venv to what requirements/dev.txt says."
    )
    parser.add_argument("--requirements", action="store_true", help="compile requirements/*.txt anew instead")
    parser.add_argument(
        "--upgrade", action="store_true", help="with --requirements: to the newest versions allowed"
    )
    parser.add_argument(
        "--with-binaries",
        action="store_true",
        help="and Debian's packages and Kubernetes' programs, as the tests need them",
    )
    arguments = parser.parse_args(argv)
    cache = read_cache_directory()
    if arguments.requirements:
        about = "compiling requirements/*.txt from pyproject.toml"
        run_steps(
            [Step("requirements", about, 20.0, lambda: apply_requirements(cache, upgrade=arguments.upgrade))]
        )
    elif arguments.with_binaries:
        run_steps([*build_machine_steps(cache), build_step(cache, ("packages",))])
    else:
        run_steps([build_step(cache)])
    return 0
