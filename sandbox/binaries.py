"""The Kubernetes programs of the one pinned version, found or built from Go modules and cached.

No registry of a bare machine has them as programs, but the Go module `k8s.io/kubernetes` holds their whole source, with
all generated code. `sandbox/kubernetes/` pins it; a complete set of the same minor version that is already there counts
too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox import golang, shell
from sandbox.cache import read_cache_directory
from sandbox.golang import GoModule
from sandbox.room import GB
from sandbox.shell import SandboxError
from sandbox.steps import Step

KUBERNETES = GoModule(
    title="Kubernetes",
    module="k8s.io/kubernetes",
    folder=Path(__file__).resolve().parent / "kubernetes",
    # Servers and nodes read the first package, clients (their User-Agent) the second; Kubernetes' own build stamps both.
    stamps=tuple(
        f"{package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in (
            ("gitVersion", "v{version}"),
            ("gitMajor", "{major}"),
            ("gitMinor", "{minor}"),
            ("gitTreeState", "clean"),
        )
    ),
    seconds=360,
    disk=8 * GB,
    memory=4_500_000_000,
)
VERSION = KUBERNETES.version
MINOR = VERSION.rpartition(".")[0]

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
"""What a complete set holds; the `tool` lines of sandbox/kubernetes/go.mod are these."""

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
WAY_OUT = (
    f"; or name a folder with {', '.join(PROGRAMS[:-1])} and {PROGRAMS[-1]} of Kubernetes {MINOR}"
    f" in {ASSETS_VARIABLE}"
)


@dataclass(frozen=True)
class Binaries:
    """Where each program lies; all of them exist."""

    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubelet: Path
    kube_proxy: Path
    kubectl: Path
    etcd: Path


def parse_version(text: str) -> str | None:
    """The version in what a Kubernetes program prints («Kubernetes v1.37.2»); None when there is none."""
    match = re.search(r"\bv(\d+\.\d+\.\d+)", text)
    return match.group(1) if match else None


def find_fault(versions: Mapping[str, str | None], minor: str = MINOR) -> str | None:
    """What keeps programs by name with these versions from being a whole set of one minor version; None if nothing."""
    missing = [name for name in PROGRAMS if name not in versions]
    if missing:
        return f"it lacks {', '.join(missing)}"
    others = [
        f"{name} {versions[name] or 'of no known version'}"
        for name in PROGRAMS
        if not (versions[name] or "").startswith(f"{minor}.")
    ]
    return f"it has {', '.join(others)} and not {minor}" if others else None


def find_program(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """A program by name on `PATH`, in the sbin folders, or in `KUBEBUILDER_ASSETS`."""
    places = [*environ.get("PATH", "").split(os.pathsep), *shell.SYSTEM_FOLDERS]
    found = shutil.which(
        name, path=os.pathsep.join([*filter(None, places), environ.get(ASSETS_VARIABLE, "")])
    )
    return Path(found) if found else None


def read_versions(folder: Path) -> dict[str, str | None]:
    """The programs of a complete set that a folder holds, each with the version it prints."""
    found: dict[str, str | None] = {}
    for name in PROGRAMS:
        if os.access(folder / name, os.X_OK):
            words = ["version", "--client"] if name == "kubectl" else ["--version"]
            found[name] = parse_version(shell.run([folder / name, *words], check=False, timeout=30))
    return found


def _find_set(environ: Mapping[str, str]) -> Path | None:
    """A folder of `KUBEBUILDER_ASSETS` or `PATH` that holds the whole set of the pinned minor version."""
    for place in [environ.get(ASSETS_VARIABLE, ""), *environ.get("PATH", "").split(os.pathsep)]:
        folder = Path(place)
        # Not started before all are there: most folders of PATH hold none of them.
        if not place or not all(os.access(folder / name, os.X_OK) for name in PROGRAMS):
            continue
        if find_fault(read_versions(folder)) is None:
            return folder
    return None


def find_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the programs that the sandbox uses; None while there is none."""
    cache = read_cache_directory(environ)
    return KUBERNETES.decide_directory(cache) if KUBERNETES.is_built(cache) else _find_set(environ)


def gather_binaries(environ: Mapping[str, str] = os.environ) -> Binaries:
    """The programs that are there now, without building any.

    Raises:
        SandboxError: one of them is missing; it says which and the command that brings it.
    """
    folder, etcd = find_folder(environ), find_program("etcd", environ)
    if folder is None or etcd is None:
        wanted = ((f"Kubernetes {MINOR}", folder), ("etcd", etcd))
        missing = [name for name, found in wanted if found is None]
        raise SandboxError(
            f"Not found on PATH, in {ASSETS_VARIABLE} or in {read_cache_directory(environ)}: {', '.join(missing)};"
            " run: python3 -m sandbox binaries"
        )
    return Binaries(
        kube_apiserver=folder / "kube-apiserver",
        kube_controller_manager=folder / "kube-controller-manager",
        kube_scheduler=folder / "kube-scheduler",
        kubelet=folder / "kubelet",
        kube_proxy=folder / "kube-proxy",
        kubectl=folder / "kubectl",
        etcd=etcd,
    )


def describe_way_out(environ: Mapping[str, str]) -> str:
    """How to do without building, and why the folder that `KUBEBUILDER_ASSETS` names now does not serve."""
    assets = environ.get(ASSETS_VARIABLE, "")
    if not assets:
        return WAY_OUT
    fault = find_fault(read_versions(Path(assets)))
    return f"{WAY_OUT} (that is now {assets}, which does not serve: {fault})" if fault else WAY_OUT


def apply_binaries(log: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Make sure that the programs are there, building them if need be; returns what was done, in words.

    Raises:
        SandboxError: they cannot be built (golang.apply_programs says why).
    """
    folder = find_folder(environ)
    if folder is not None:
        return f"there in {folder}"
    way_out = describe_way_out(environ)
    return golang.apply_programs(
        KUBERNETES, read_cache_directory(environ), log, way_out=way_out, environ=environ
    )


def build_step(cache: Path, needs: tuple[str, ...] = (), environ: Mapping[str, str] = os.environ) -> Step:
    """The step `binaries`, which says whether there is anything to build; the build's log is in the cache."""
    there = find_folder(environ) is not None
    about = f"looking for Kubernetes {VERSION}" if there else f"building Kubernetes {VERSION} from Go modules"
    log = cache / "log" / "kubernetes.log"
    usually = 0 if there else KUBERNETES.seconds
    return Step("binaries", about, usually, lambda: apply_binaries(log, environ), needs)
