"""RAPL's counters add up to what sockets and memory used: once each, through wraps, and what is missing is said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unsupported
from greentrain.devices.rapl import HostEnergy, Rapl
from greentrain.quantities import Millijoules, typed
from tests.contract.rapl.trees import RANGE, write_domain

Domains = dict[str, str]
JOULE = 1_000_000

TREES: list[tuple[str, Domains, int, int | None]] = [
    ("one socket", {"intel-rapl:0": "package-0"}, 1000, None),
    (
        "two sockets with memory and all parts",
        {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "package-1",
            "intel-rapl:1:0": "uncore",
            "intel-rapl:1:1": "dram",
        },
        2000,
        2000,
    ),
    (
        "several dies in a socket that show one value",
        {"intel-rapl:0": "package-0-die-0", "intel-rapl:1": "package-0-die-1"},
        1000,
        None,
    ),
    (
        "the whole platform and the second view of a package",
        {"intel-rapl:0": "package-0", "intel-rapl:1": "psys", "intel-rapl-mmio:0": "package-0"},
        1000,
        None,
    ),
    ("AMD", {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core"}, 1000, None),
]


@pytest.mark.parametrize(
    ("name", "domains", "package", "dram"), TREES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_joule_is_counted_once(
    tmp_path: Path, name: str, domains: Domains, package: int, dram: int | None
) -> None:
    (tmp_path / "intel-rapl").mkdir()
    files = [write_domain(tmp_path, folder, kind, 77 * JOULE) for folder, kind in domains.items()]
    rapl = Rapl(tmp_path)
    assert rapl.read() == HostEnergy(Millijoules(0), typed(Millijoules, None if dram is None else 0), {}), (
        name
    )
    for file in files:
        file.write_text(f"{78 * JOULE}\n")
    for _ in range(2):
        assert rapl.read() == HostEnergy(Millijoules(package), typed(Millijoules, dram), {}), name


STEPS: list[tuple[str, list[int], int]] = [
    ("nothing", [5, 5], 0),
    ("on", [5, 1005, 7005], 7),
    ("to the end", [0, RANGE], RANGE // 1000),
    ("around", [RANGE - 3000, 4000], 7),
    ("around twice", [RANGE - 3000, 4000, RANGE - 1000, 2000], (RANGE + 5000) // 1000),
    ("parts of a millijoule are kept", [0, 400, 800, 1200], 1),
]


@pytest.mark.parametrize(("name", "shown", "millijoules"), STEPS)
def test_a_counter_that_wraps_around_counts_on(
    tmp_path: Path, name: str, shown: list[int], millijoules: int
) -> None:
    rapl = Rapl(tmp_path)
    before = 0
    for microjoules in shown:
        write_domain(tmp_path, "intel-rapl:0", "package-0", microjoules)
        energy = rapl.read().package_mj
        assert energy >= before, name
        before = energy
    assert before == millijoules, name


def test_dies_that_show_one_value_count_once_and_dies_of_their_own_each(tmp_path: Path) -> None:
    def write(first: int, second: int, memory: int) -> None:
        write_domain(tmp_path, "intel-rapl:0", "package-0-die-0", first * JOULE)
        write_domain(tmp_path, "intel-rapl:1", "package-0-die-1", second * JOULE)
        for parent in range(2):
            write_domain(tmp_path, f"intel-rapl:{parent}:0", "dram", memory * JOULE)

    rapl = Rapl(tmp_path)
    write(500, 501, 70)
    rapl.read()
    write(600, 600, 75)
    assert rapl.read() == HostEnergy(Millijoules(100_000), Millijoules(5_000), {})
    write(700, 710, 75)
    assert rapl.read() == HostEnergy(Millijoules(310_000), Millijoules(5_000), {})


LIMITS = {"constraint_0_max_power_uw": 200_000_000, "constraint_1_power_limit_uw": 4_095_875_000}


@pytest.mark.parametrize(
    ("limits", "watts"),
    [(LIMITS, 200), ({}, 500), ({"constraint_0_max_power_uw": 0}, 500), ({"constraint_0_name": 7}, 500)],
    ids=["a limit", "none", "nothing said", "another file"],
)
def test_no_more_counts_than_the_domains_power_limit_allows(
    tmp_path: Path, limits: dict[str, int], watts: int
) -> None:
    most = round(watts * 7.1 * 1.1)
    for more, counted in ((most, most), (most + 1, 0)):
        root = tmp_path / str(more)
        file = write_domain(root, "intel-rapl:0", "package-0", 10 * JOULE)
        for name, value in limits.items():
            (file.parent / name).write_text(f"{value}\n")
        rapl = Rapl(root)
        rapl.read(100.0)
        file.write_text(f"{(10 + more) * JOULE}\n")
        energy = rapl.read(105.0)
        assert energy.package_mj == counted * 1000
        assert (energy.errors == {}) is (counted > 0)


def test_a_counter_that_goes_back_a_little_is_no_wrap(tmp_path: Path) -> None:
    file = write_domain(tmp_path, "intel-rapl:0", "package-0", 1000 * JOULE)
    rapl = Rapl(tmp_path)
    rapl.read(0.0)
    seen = []
    for second, shown in ((5, 1100), (10, 1099), (15, 1300), (20, 300), (25, 400), (30, 500), (35, 600)):
        file.write_text(f"{shown * JOULE}\n")
        energy = rapl.read(float(second))
        seen.append((energy.package_mj // 1000, len(energy.errors)))
    # What it used while it showed too little is counted when it is back; from another value it goes on after a while.
    assert seen == [(100, 0), (100, 1), (300, 0), (300, 1), (300, 1), (300, 1), (400, 0)]


@pytest.mark.parametrize("empty", ["no folder", "no domain", "the platform alone"])
def test_a_machine_without_rapl_says_so(tmp_path: Path, empty: str) -> None:
    root = tmp_path / "powercap"
    if empty != "no folder":
        root.mkdir()
    if empty == "the platform alone":
        write_domain(root, "intel-rapl:0", "psys", 1)
    with pytest.raises(Unsupported, match="RAPL"):
        Rapl(root).read()


def _vanish(file: Path) -> None:
    shutil.rmtree(file.parent)


def _spoil(file: Path) -> None:
    file.write_text("<unknown>\n")


def _block(file: Path) -> None:
    # Reading a folder fails with another error than a missing file.
    file.unlink()
    file.mkdir()


FAILURES: list[tuple[Callable[[Path], None], type[DeviceError]]] = [
    (_vanish, Gone),
    (_spoil, Retry),
    (_block, Retry),
]


@pytest.mark.parametrize(("fail", "kind"), FAILURES)
def test_a_domain_that_cannot_be_read_is_its_own_error(
    tmp_path: Path, fail: Callable[[Path], None], kind: type[DeviceError]
) -> None:
    first = write_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    second = write_domain(tmp_path, "intel-rapl:1", "package-1", 0)
    rapl = Rapl(tmp_path)
    rapl.read()
    first.write_text(f"{JOULE}\n")
    fail(second)
    energy = rapl.read()
    assert energy.package_mj == 1000
    assert [(name, type(error)) for name, error in energy.errors.items()] == [("intel-rapl:1", kind)]
    # Back again: what is certain is counted, and a counter that may have begun anew is no wrap.
    shutil.rmtree(second.parent, ignore_errors=True)
    write_domain(tmp_path, "intel-rapl:1", "package-1", 3 * JOULE)
    back = rapl.read()
    assert back.errors == {}
    assert back.package_mj == (1000 if kind is Gone else 4000)
    write_domain(tmp_path, "intel-rapl:1", "package-1", 5 * JOULE)
    assert rapl.read().package_mj == (3000 if kind is Gone else 6000)


def test_a_socket_that_is_switched_on_later_is_counted_from_then_on(tmp_path: Path) -> None:
    write_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    rapl = Rapl(tmp_path)
    rapl.read()
    late = write_domain(tmp_path, "intel-rapl:1", "package-1", 500 * JOULE)
    assert rapl.read().package_mj == 0
    late.write_text(f"{501 * JOULE}\n")
    assert rapl.read().package_mj == 1000


def test_a_domain_without_a_description_is_its_own_error(tmp_path: Path) -> None:
    write_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:1").mkdir()
    energy = Rapl(tmp_path).read()
    assert [(name, type(error)) for name, error in energy.errors.items()] == [("intel-rapl:1", Retry)]


@contextmanager
def _without_rights() -> Iterator[None]:
    """Root reads everything, so be somebody else for a while; whoever is not root is that already."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_may_not_read_it_is_told_what_is_needed() -> None:
    refused = 0o400 if os.getuid() == 0 else 0
    # Not pytest's folder, which is closed to others above it.
    with tempfile.TemporaryDirectory(prefix="gt-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        files = [
            write_domain(root, "intel-rapl:0", "package-0", 1),
            write_domain(root, "intel-rapl:0:0", "dram", 1),
        ]
        with _without_rights():
            assert Rapl(root).read() == HostEnergy(Millijoules(0), Millijoules(0), {})
        files[1].chmod(refused)
        with _without_rights():
            energy = Rapl(root).read()
        assert [(name, type(error)) for name, error in energy.errors.items()] == [
            ("intel-rapl:0:0", NotPermitted)
        ]
        files[0].chmod(refused)
        with _without_rights(), pytest.raises(NotPermitted, match="run as root") as caught:
            Rapl(root).read()
        assert caught.value.device.endswith("intel-rapl:0/energy_uj")
