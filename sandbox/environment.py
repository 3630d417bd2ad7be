"""Makes `.venv`, in which the project's tools and tests run, from hashed requirements and nothing else.

uv, itself installed by hash, brings `.venv` to exactly what requirements/dev.txt says, and the project is installed
editable, so that the tests see the sources. What it was made from is written into it: unchanged, nothing is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from sandbox import binaries, packages, shell
from sandbox.cache import hold_lock, read_cache_directory
from sandbox.images import ROOT
from sandbox.steps import Step, run_steps
from sandbox.uv import apply_uv, build_environment

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
    ("go", ("requirements/go.in",)),
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


def apply_environment(cache: Path, root: Path = ROOT) -> str:
    """Bring `.venv` to what the requirement files say, one caller at a time; returns what was done, in words.

    Raises:
        SandboxError: a package could not be installed; the last log lines are in the error.
    """
    # `demo` makes it while the sandbox it brings up waits for it.
    with hold_lock(root):
        return _apply_environment(cache, root)


def _apply_environment(cache: Path, root: Path) -> str:
    folder = root / ".venv"
    stamp = folder / STAMP
    fingerprint = build_fingerprint(root, sys.version)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return "unchanged"
    log = cache / "log" / "environment.log"
    uv = apply_uv(cache, log, root / "requirements" / "uv.txt")
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
    uv = apply_uv(cache, cache / "log" / "environment.log", root / "requirements" / "uv.txt")
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
        15.0,
        lambda: apply_environment(cache),
        needs,
    )


def build_machine_steps(cache: Path) -> list[Step]:
    """The two steps that give the machine what the sandbox is made of: Debian's packages and Kubernetes' programs."""
    return [packages.build_step(cache), binaries.build_step(cache, ("packages",))]


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
