"""Processors and memory between two looks, and whose work the processors did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from greentrain.agent.host import Host, HostInterval
from greentrain.devices.errors import Unsupported
from greentrain.devices.rapl import CpuTime, Rapl
from greentrain.quantities import Millijoules
from tests.contract.rapl.trees import RANGE, write_domain, write_stat

A = "11111111-1111-4111-8111-111111111111"
B = "22222222-2222-4222-8222-222222222222"
HERTZ_TICKS = 100


class Machine:
    """Its files."""

    def __init__(self, folder: Path) -> None:
        self.powercap, self.cgroups, self.proc = folder / "powercap", folder / "cgroup", folder / "proc"
        self.powercap.mkdir()
        self.cgroups.mkdir()
        (self.cgroups / "cgroup.controllers").write_text("cpu\n")
        self.host = Host(Rapl(self.powercap), CpuTime(self.cgroups, self.proc))

    def show(
        self, package: float, *, busy: float, pods: Mapping[str, float], dram: float | None = None
    ) -> None:
        """Joules its counters show, seconds its processors and its pods have worked."""
        write_domain(self.powercap, "intel-rapl:0", "package-0", round(package * 1e6))
        if dram is not None:
            write_domain(self.powercap, "intel-rapl:0:0", "dram", round(dram * 1e6))
        write_stat(self.proc, round(busy * HERTZ_TICKS), 0, 0, 0, 0, 0, 0, 0)
        for uid, seconds in pods.items():
            folder = self.cgroups / "kubepods" / f"pod{uid}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.stat").write_text(f"usage_usec {round(seconds * 1e6)}\n")

    def remove(self, uid: str) -> None:
        folder = self.cgroups / "kubepods" / f"pod{uid}"
        (folder / "cpu.stat").unlink()
        folder.rmdir()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_look_tells_nothing_the_second_what_was_used_since(machine: Machine) -> None:
    machine.show(1000, busy=50, pods={A: 10, B: 5}, dram=70)
    assert machine.host.look() is None
    machine.show(1090, busy=58, pods={A: 14, B: 7}, dram=75)
    assert machine.host.look() == HostInterval(
        cpu=Millijoules(90_000), dram=Millijoules(5_000), shares={A: 0.5, B: 0.25}
    )
    assert machine.host.look() == HostInterval(cpu=Millijoules(0), dram=Millijoules(0), shares={})


@pytest.mark.parametrize(
    ("then", "shares"),
    [
        ({A: 10}, {A: 0.0}),
        ({A: 12}, {A: 0.5}),
        ({A: 9}, {A: 0.0}),
        ({A: 12, B: 1}, {A: 0.5, B: 0.0}),
    ],
    ids=["did nothing", "did half", "its counter went back", "another one came in between"],
)
def test_a_pods_share_is_its_part_of_the_processors_time(
    machine: Machine, then: dict[str, float], shares: dict[str, float]
) -> None:
    machine.show(0, busy=20, pods={A: 10})
    machine.host.look()
    machine.show(1, busy=24, pods=then)
    looked = machine.host.look()
    assert looked is not None
    assert looked.shares == shares


def test_a_pod_that_has_gone_has_no_share(machine: Machine) -> None:
    machine.show(0, busy=20, pods={A: 10, B: 1})
    machine.host.look()
    machine.remove(B)
    machine.show(1, busy=24, pods={A: 11})
    looked = machine.host.look()
    assert looked is not None
    assert looked.shares == {A: 0.25}


def test_a_counter_that_has_wrapped_around_goes_on(machine: Machine) -> None:
    machine.show(RANGE / 1e6 - 10, busy=0, pods={})
    machine.host.look()
    machine.show(30, busy=1, pods={})
    looked = machine.host.look()
    assert looked is not None
    assert (looked.cpu, looked.dram) == (40_000, 0)


def test_memory_that_is_told_only_later_counts_from_then_on(machine: Machine) -> None:
    machine.show(0, busy=0, pods={})
    machine.host.look()
    machine.show(1, busy=1, pods={}, dram=500)
    first = machine.host.look()
    machine.show(2, busy=2, pods={}, dram=507)
    second = machine.host.look()
    assert first is not None
    assert second is not None
    assert (first.dram, second.dram) == (0, 7_000)


def test_what_does_not_count_is_said(machine: Machine) -> None:
    machine.show(1000, busy=0, pods={})
    machine.host.look(0.0)
    machine.show(900, busy=1, pods={})
    looked = machine.host.look(5.0)
    assert looked is not None
    assert looked.cpu == 0
    assert "more than its power limit allows; none of it counts" in looked.problems[0]


@pytest.mark.parametrize("lacks", ["rapl", "cgroups"])
def test_a_machine_that_cannot_tell_says_so(machine: Machine, lacks: str) -> None:
    if lacks == "cgroups":
        machine.show(0, busy=0, pods={})
        (machine.cgroups / "cgroup.controllers").unlink()
    with pytest.raises(Unsupported):
        machine.host.look()
