"""The Debian packages the sandbox needs, so that a bare machine becomes able to build and run it with one command."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sandbox import shell
from sandbox.shell import SandboxError
from sandbox.steps import Step

BUILD_PACKAGES = ("gcc", "libc6-dev", "make")
"""Needed to build the pause program and the simulated NVML library."""

RUN_PACKAGES = (
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "iptables",
    "conntrack",
    "socat",
    "ethtool",
    "dnsmasq-base",
    "iproute2",
    "util-linux",
    "procps",
    "openssl",
)
"""Needed to run the sandbox's control plane and nodes."""

IMAGE_PACKAGES = ("buildah", "mmdebstrap", "python3-venv", "ca-certificates")
"""Needed to build the images that run in it and the virtual environment of `make`."""

PACKAGES = (*BUILD_PACKAGES, *RUN_PACKAGES, *IMAGE_PACKAGES)

APT_ENV = {"DEBIAN_FRONTEND": "noninteractive"}


def parse_installed(listing: str) -> set[str]:
    """Names of fully installed packages in what dpkg-query prints as lines of «${Package} ${db:Status-Abbrev}»."""
    names = set()
    for line in listing.splitlines():
        name, _, status = line.partition(" ")
        if status.strip() == "ii":
            names.add(name)
    return names


def gather_missing(wanted: Iterable[str] = PACKAGES) -> list[str]:
    """Packages of `wanted` that are not installed, in that order.

    Raises:
        SandboxError: this is not a Debian machine.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise SandboxError(
            "The sandbox needs Debian 12's packages, and this machine has no apt-get or dpkg-query;"
            " use a Debian 12 machine, or an existing cluster with GREENTRAIN_CONTEXT=<name>."
        )
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    installed = parse_installed(listing)
    return [name for name in wanted if name not in installed]


def check_root() -> None:
    """Refuse to go on without root's rights.

    Raises:
        SandboxError: the effective user is not root.
    """
    if os.geteuid() != 0:
        raise SandboxError(
            "The sandbox installs packages, starts containerd and makes network namespaces, which needs root;"
            " run it again with sudo -E."
        )


def apply_packages(log: Path) -> str:
    """Install what is missing of `PACKAGES` with one apt-get call; returns what was done, in words.

    Raises:
        SandboxError: not root, not Debian, or apt-get failed (its last lines are in the error).
    """
    missing = gather_missing()
    if not missing:
        return "all installed"
    check_root()
    env = {**os.environ, **APT_ENV}
    remedy = f"see what apt says: apt-get update && apt-get install {' '.join(missing)}"
    shell.run(["apt-get", "-q", "update"], log=log, env=env, remedy=remedy)
    # The daemons that come along (etcd, containerd) must not start: the sandbox runs its own, elsewhere.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        shell.run(
            ["apt-get", "-q", "-y", "--no-install-recommends", "install", *missing],
            log=log,
            env=env,
            remedy=remedy,
        )
    finally:
        if ours:
            policy.unlink(missing_ok=True)
    return f"installed {len(missing)}"


def build_step(cache: Path) -> Step:
    """The step `packages`, which says whether there is anything to install; its log is in the cache.

    Raises:
        SandboxError: this is not a Debian machine.
    """
    missing = gather_missing()
    about = f"installing {len(missing)} Debian packages" if missing else "looking for Debian packages"
    log = cache / "log" / "packages.log"
    return Step("packages", about, 60 if missing else 0, lambda: apply_packages(log))
