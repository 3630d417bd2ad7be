"""Each pod's processor time is found wherever kubelet keeps its cgroup, and the machine's beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from greentrain.devices.errors import Unsupported
from greentrain.devices.rapl import CpuTime, CpuUse
from tests.contract.rapl.trees import write_cgroups, write_stat

A = "90d0f78b-933a-4c32-ae5d-de226493be89"
B = "0b7cbf54-2f0e-4d0a-9d8c-6c5a5a1c1d11"
C = "c3c3c3c3-c3c3-c3c3-c3c3-c3c3c3c3c3c3"
STATIC = "8f2a9b1c8f2a9b1c8f2a9b1c8f2a9b1c"
HERTZ = os.sysconf("SC_CLK_TCK")


def _slice(uid: str) -> str:
    return uid.replace("-", "_")


CGROUPFS = {
    f"kubepods/pod{A}": 10.0,
    f"kubepods/pod{A}/5e1f": 9.0,
    f"kubepods/burstable/pod{B}": 2.5,
    f"kubepods/besteffort/pod{C}": 0.25,
    f"kubepods/burstable/pod{STATIC}": 1.0,
    "system.slice/kubelet.service": 100.0,
    "user.slice": 50.0,
}
SYSTEMD = {
    f"kubepods.slice/kubepods-pod{_slice(A)}.slice": 10.0,
    f"kubepods.slice/kubepods-pod{_slice(A)}.slice/cri-containerd-5e1f.scope": 9.0,
    f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_slice(B)}.slice": 2.5,
    f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{_slice(C)}.slice": 0.25,
    f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice": 1.0,
    "system.slice/kubelet.service": 100.0,
}
NESTED = {f"greentrain-sandbox/node1/{path}": used for path, used in CGROUPFS.items()}
NESTED_SYSTEMD = {
    f"kubelet.slice/kubelet-{path.replace('/kubepods-', '/kubelet-kubepods-')}": used
    for path, used in SYSTEMD.items()
    if path.startswith("kubepods")
}
IN_A_CONTAINER = {f"docker/7e57/kubelet/{path}": used for path, used in CGROUPFS.items()}
WITH_A_CLUSTER_IN_A_POD = {**CGROUPFS, f"kubepods/pod{A}/5e1f/kubepods/burstable/pod{'d' * 32}": 4.0}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "tree",
    [CGROUPFS, SYSTEMD, NESTED, NESTED_SYSTEMD, IN_A_CONTAINER, WITH_A_CLUSTER_IN_A_POD],
    ids=["cgroupfs", "systemd", "nested", "nested systemd", "in a container", "a cluster in a pod"],
)
def test_pods_are_found_by_uid(tmp_path: Path, version: int, tree: dict[str, float]) -> None:
    write_cgroups(tmp_path / "cgroup", version, tree)
    write_stat(tmp_path / "proc", *[0] * 10)
    use = CpuTime(tmp_path / "cgroup", tmp_path / "proc").read()
    assert use == CpuUse(0.0, {A: 10.0, B: 2.5, C: 0.25, STATIC: 1.0})


@pytest.mark.parametrize("version", [1, 2])
def test_pods_come_and_go(tmp_path: Path, version: int) -> None:
    root = tmp_path / "cgroup"
    base = root if version == 2 else root / "cpuacct"
    write_cgroups(root, version, {"system.slice": 1.0})
    write_stat(tmp_path / "proc", *[0] * 10)
    time = CpuTime(root, tmp_path / "proc")
    assert time.read().pods == {}
    file = "cpu.stat" if version == 2 else "cpuacct.usage"
    text = "usage_usec 1500000\n" if version == 2 else "1500000000\n"
    for uid in (A, B):
        (base / f"kubepods/burstable/pod{uid}").mkdir(parents=True)
        (base / f"kubepods/burstable/pod{uid}" / file).write_text(text)
    assert time.read().pods == {A: 1.5, B: 1.5}
    # A cgroup whose file is gone already.
    (base / f"kubepods/burstable/pod{B}" / file).unlink()
    assert time.read().pods == {A: 1.5}
    # Kubelet with another cgroupRoot.
    shutil.move(base / "kubepods", base / "system.slice/kubepods")
    assert time.read().pods == {A: 1.5}
    shutil.rmtree(base / "system.slice")
    assert time.read().pods == {}


def test_version_1_mounted_together_with_cpu_is_found_without_its_link(tmp_path: Path) -> None:
    write_cgroups(tmp_path, 1, CGROUPFS, controller="cpu,cpuacct")
    (tmp_path / "unified").mkdir()
    write_stat(tmp_path / "proc", *[0] * 10)
    assert CpuTime(tmp_path, tmp_path / "proc").read().pods[A] == 10.0


TICKS = [
    ("user", 0, 1),
    ("nice", 1, 1),
    ("system", 2, 1),
    ("idle", 3, 0),
    ("iowait", 4, 0),
    ("irq", 5, 1),
    ("softirq", 6, 1),
    ("steal", 7, 1),
    ("guest, part of user", 8, 0),
    ("guest_nice, part of nice", 9, 0),
]


@pytest.mark.parametrize(("name", "field", "counts"), TICKS)
def test_the_machine_is_busy_while_it_does_not_wait(
    tmp_path: Path, name: str, field: int, counts: int
) -> None:
    write_cgroups(tmp_path, 2, {})
    ticks = [0] * 10
    ticks[field] = 7 * HERTZ
    write_stat(tmp_path / "proc", *ticks)
    assert CpuTime(tmp_path, tmp_path / "proc").read().busy == 7.0 * counts, name


@pytest.mark.parametrize("missing", ["cgroups", "/proc", "fields of /proc/stat"])
def test_what_is_not_mounted_is_unsupported(tmp_path: Path, missing: str) -> None:
    if missing != "cgroups":
        write_cgroups(tmp_path / "cgroup", 2, {})
    if missing != "/proc":
        write_stat(tmp_path / "proc", *[1] * (3 if missing.startswith("fields") else 10))
    with pytest.raises(Unsupported, match="processor time"):
        CpuTime(tmp_path / "cgroup", tmp_path / "proc").read()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_this_machine_is_read() -> None:
    try:
        time = CpuTime()
        first, second = time.read(), time.read()
    except Unsupported as error:
        pytest.skip(str(error))
    assert 0 < first.busy <= second.busy
    for uid, seconds in first.pods.items():
        assert second.pods.get(uid, seconds) >= seconds
