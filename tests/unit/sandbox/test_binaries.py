"""The sandbox finds or builds one pinned version of Kubernetes, and says what is wrong with a set that does not serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.binaries import (
    KUBERNETES,
    PROGRAMS,
    VERSION,
    build_step,
    describe_way_out,
    find_fault,
    find_program,
    gather_binaries,
    parse_version,
)
from sandbox.shell import SandboxError

ALL = dict.fromkeys(PROGRAMS, "1.37.2")


def test_the_pinned_module_names_the_programs_of_a_complete_set() -> None:
    assert sorted(KUBERNETES.programs) == sorted(PROGRAMS)


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("Kubernetes v1.37.2\n", "1.37.2"),
        ("Client Version: v1.32.4-dispatcher\n", "1.32.4"),
        ("Kubernetes v0.0.0-master+$Format:%h$\n", "0.0.0"),
        ("command not found\n", None),
    ],
)
def test_a_programs_version_is_read_from_what_it_prints(printed: str, version: str | None) -> None:
    assert parse_version(printed) == version


@pytest.mark.parametrize(
    ("versions", "fault"),
    [
        (ALL, None),
        (dict.fromkeys(PROGRAMS, "1.37.15"), None),
        ({n: v for n, v in ALL.items() if n != "kubelet"}, "it lacks kubelet"),
        ({**ALL, "kubelet": None}, "it has kubelet of no known version and not 1.37"),
        ({**ALL, "kubectl": "1.36.0"}, "it has kubectl 1.36.0 and not 1.37"),
        ({**ALL, "kubectl": "1.3.7"}, "it has kubectl 1.3.7 and not 1.37"),
        ({}, f"it lacks {', '.join(PROGRAMS)}"),
    ],
)
def test_only_a_whole_set_of_one_minor_version_serves(
    versions: dict[str, str | None], fault: str | None
) -> None:
    assert find_fault(versions, "1.37") == fault


def _write_programs(folder: Path, version: str, names: tuple[str, ...] = PROGRAMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_whole_set_in_kubebuilder_assets_is_used(tmp_path: Path) -> None:
    assets = _write_programs(tmp_path / "assets", VERSION, (*PROGRAMS, "etcd"))
    found = gather_binaries({"HOME": str(tmp_path), "PATH": "", "KUBEBUILDER_ASSETS": str(assets)})
    assert (found.kubelet, found.kubectl) == (assets / "kubelet", assets / "kubectl")


def test_a_set_of_another_minor_version_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    assets = _write_programs(tmp_path / "assets", "1.31.0", (*PROGRAMS, "etcd"))
    environ = {"HOME": str(tmp_path), "PATH": "", "KUBEBUILDER_ASSETS": str(assets)}
    with pytest.raises(SandboxError, match=r"Kubernetes 1\.37; run: python3 -m sandbox binaries"):
        gather_binaries(environ)
    way_out = describe_way_out(environ)
    assert f"{assets}, which does not serve: it has kube-apiserver 1.31.0" in way_out


def test_what_was_built_before_is_found_without_asking_it(tmp_path: Path) -> None:
    built = KUBERNETES.decide_directory(tmp_path)
    _write_programs(built, "0.0.0")
    tools = _write_programs(tmp_path / "tools", "3.4.23", ("etcd",))
    found = gather_binaries({"HOME": "/nowhere", "GREENTRAIN_CACHE": str(tmp_path), "PATH": str(tools)})
    assert found.kube_apiserver == built / "kube-apiserver"


def test_the_step_says_whether_there_is_anything_to_build(tmp_path: Path) -> None:
    environ = {"HOME": "/nowhere", "GREENTRAIN_CACHE": str(tmp_path), "PATH": ""}
    step = build_step(tmp_path, ("packages",), environ)
    assert (step.about, step.usually) == (
        f"building Kubernetes {VERSION} from Go modules",
        KUBERNETES.seconds,
    )
    _write_programs(KUBERNETES.decide_directory(tmp_path), VERSION)
    step = build_step(tmp_path, ("packages",), environ)
    assert (step.about, step.usually, step.needs) == (f"looking for Kubernetes {VERSION}", 0, ("packages",))


def test_a_program_is_found_in_the_sbin_folders_too() -> None:
    assert find_program("ldconfig", {"PATH": "/nowhere"}) is not None
