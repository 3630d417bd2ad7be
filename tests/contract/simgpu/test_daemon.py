"""The daemon makes cards as busy as their holders and holders as slow as their cards, and no end of it loses anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from greentrain.devices.podresources import PodResources
from sandbox.cgroups import CgroupMode, Driver
from sandbox.shell import SandboxError
from sandbox.simgpu import cards, nodecards
from sandbox.simgpu.cards import PICOJOULES, Cards
from sandbox.simgpu.daemon import Follower
from sandbox.simgpu.meter import IDLE, Meter
from sandbox.simgpu.nodecards import Gpus, Places, read_gpus
from sandbox.simgpu.throttle import (
    PERIOD_US,
    PodCgroups,
    Quota,
    Throttle,
    decide_load,
    decide_quota,
    round_load,
    smooth_load,
)
from sandbox.state import Node
from tests.contract.kubelet.fakes import (
    FakeKubelet,
    Refuse,
    build_container,
    build_devices,
    build_list,
    build_pod,
    start_kubelet,
)

ROOT = Path(__file__).parents[3]
SECOND = 1_000_000_000
UNBOUND = Quota(None, 100_000)
TWO_CORES = Quota(200_000, 100_000)
UID = "0f1e2d3c-aaaa-bbbb-cccc-000000000001"
OTHER_UID = "0f1e2d3c-aaaa-bbbb-cccc-000000000002"


# --- What is decided ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "used_s", "elapsed_s", "cores", "load"),
    [
        ("half of what it may use", 0.125, 0.25, 1.0, 0.5),
        ("all of it", 0.25, 0.25, 1.0, 1.0),
        ("all that a lowered clock leaves", 0.2, 0.25, 0.8, 1.0),
        ("a little more, for a period reaches into the next look", 0.3, 0.25, 1.0, 1.0),
        ("two cards' cores", 0.25, 0.25, 2.0, 0.5),
        ("nothing", 0.0, 0.25, 1.0, 0.0),
        ("a counter that began anew", -4.0, 0.25, 1.0, 0.0),
        ("no time passed", 0.1, 0.0, 1.0, 0.0),
    ],
)
def test_a_load_is_the_share_of_the_allowed_cpu_time_that_was_used(
    why: str, used_s: float, elapsed_s: float, cores: float, load: float
) -> None:
    assert decide_load(round(used_s * SECOND), round(elapsed_s * SECOND), cores) == pytest.approx(load), why


@pytest.mark.parametrize(
    ("begin", "measured", "load"), [(0, 1, 1), (1, 0, 0), (0, 0.5, 0.5), (0.9, 0.9, 0.9)]
)
def test_a_card_is_told_of_a_new_load_within_two_seconds(begin: float, measured: float, load: float) -> None:
    mixed = begin
    for _ in range(8):
        mixed = smooth_load(mixed, measured)
    assert round_load(mixed) == load


@pytest.mark.parametrize(
    ("why", "cores", "before", "quota"),
    [
        ("the card's speed", 0.821, UNBOUND, Quota(41_050, PERIOD_US)),
        ("lower than the pod's own limit", 0.821, TWO_CORES, Quota(41_050, PERIOD_US)),
        ("the pod's own limit is lower", 0.821, Quota(50_000, 100_000), Quota(50_000, 100_000)),
        ("the kernel takes no less than a millisecond", 0.001, UNBOUND, Quota(1_000, PERIOD_US)),
    ],
)
def test_a_quota_is_the_cards_speed_unless_the_pod_may_use_less_anyway(
    why: str, cores: float, before: Quota, quota: Quota
) -> None:
    assert decide_quota(cores, before) == quota, why


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, Gpus(2, "V100", 1.0)),
        ({"GREENTRAIN_SANDBOX_GPUS": "0"}, Gpus(0, "V100", 1.0)),
        ({"GREENTRAIN_SANDBOX_GPUS": "8", "GREENTRAIN_SANDBOX_GPU_PROFILE": "A100"}, Gpus(8, "A100", 1.0)),
        ({"GREENTRAIN_SANDBOX_GPU_CORES": "0.5"}, Gpus(2, "V100", 0.5)),
    ],
)
def test_settings_choose_the_cards(environ: dict[str, str], gpus: Gpus) -> None:
    assert read_gpus(environ) == gpus


@pytest.mark.parametrize(
    "environ",
    [
        {"GREENTRAIN_SANDBOX_GPUS": "17"},
        {"GREENTRAIN_SANDBOX_GPUS": "-1"},
        {"GREENTRAIN_SANDBOX_GPU_CORES": "0"},
        {"GREENTRAIN_SANDBOX_GPU_CORES": "nan"},
        {"GREENTRAIN_SANDBOX_GPU_CORES": "half"},
    ],
)
def test_a_setting_that_makes_no_sense_is_named(environ: dict[str, str]) -> None:
    (name,) = environ
    with pytest.raises(SandboxError, match=name):
        read_gpus(environ)


def test_a_profile_that_no_card_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(SandboxError, match="«B200»; give one of V100"):
        nodecards.check_profile(Gpus(1, "B200", 1.0))


# --- A node made of files ----------------------------------------------------------------------------------------


class Machine:
    """A node's folder, and cgroups of version 1 (two hierarchies) or 2 that are plain files."""

    def __init__(self, folder: Path, version: int = 1) -> None:
        self.node = Node(1, folder / "node1")
        self.version = version
        self.places = Places(self.node)
        self.kubelet = self.node.directory / "kubelet" / "pod-resources" / "kubelet.sock"
        self.kubelet.parent.mkdir(parents=True)
        self.pod_logs = self.node.directory / "log" / "pods"
        self.places.judge.mkdir(parents=True)
        names = ("cpu", "cpuacct") if version == 1 else ("unified",)
        self.hierarchies = [folder / name for name in names]
        for hierarchy in self.hierarchies:
            hierarchy.mkdir()
        if version == 1:
            (self.hierarchies[0] / "cpu.cfs_quota_us").write_text("-1")
            (self.hierarchies[1] / "cpuacct.usage").write_text("0")

    @property
    def mode(self) -> CgroupMode:
        return CgroupMode(self.version, Driver.CGROUPFS, tuple(self.hierarchies))

    def folder(self, uid: str, hierarchy: int) -> Path:
        return (
            self.hierarchies[hierarchy]
            / "greentrain-sandbox"
            / "node1"
            / "kubepods"
            / "burstable"
            / f"pod{uid}"
        )

    def start(self, name: str, uid: str = UID, quota: Quota = UNBOUND) -> Path:
        """A pod's folders with one container; returns the container's, where its quota is."""
        (self.pod_logs / f"default_{name}_{uid}").mkdir(parents=True)
        for hierarchy in range(len(self.hierarchies)):
            (self.folder(uid, hierarchy) / "container").mkdir(parents=True)
        self.use(uid, 0.0)
        container = self.folder(uid, 0) / "container"
        if self.version == 1:
            (container / "cpu.cfs_quota_us").write_text(str(quota.quota_us or -1))
            (container / "cpu.cfs_period_us").write_text(str(quota.period_us))
        else:
            (container / "cpu.max").write_text(f"{quota.quota_us or 'max'} {quota.period_us}\n")
        return container

    def use(self, uid: str, seconds: float) -> None:
        """Let a pod have used so much CPU time; as in the kernel, nobody ever reads half of it."""
        if self.version == 1:
            path, text = self.folder(uid, 1) / "cpuacct.usage", f"{round(seconds * SECOND)}\n"
        else:
            path, text = self.folder(uid, 0) / "cpu.stat", f"usage_usec {round(seconds * 1e6)}\nuser_usec 1\n"
        partial = path.with_name("partial")
        partial.write_text(text)
        partial.rename(path)

    def end(self, name: str, uid: str = UID) -> None:
        """Remove a pod's folders."""
        for hierarchy in range(len(self.hierarchies)):
            folder = self.folder(uid, hierarchy)
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()
        (self.pod_logs / f"default_{name}_{uid}").rmdir()

    def read_quota(self, container: Path) -> Quota:
        return PodCgroups(self.mode, self.node).read_quota(container)


@pytest.fixture
def folder() -> Iterator[Path]:
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="gt-") as path:
        yield Path(path)


@pytest.fixture(params=[1, 2], ids=["cgroup v1", "cgroup v2"])
def machine(folder: Path, request: pytest.FixtureRequest) -> Machine:
    return Machine(folder, request.param)


def hold(**held: list[str]) -> bytes:
    """The kubelet's list: these pods of the namespace default hold these cards."""
    return build_list(
        *(
            build_pod("default", name, build_container("c", build_devices("nvidia.com/gpu", *uuids)))
            for name, uuids in held.items()
        )
    )


class Scene:
    """Two V100 on a virtual clock, a kubelet, and a follower that looks four times a second of that clock."""

    def __init__(self, machine: Machine, kubelet: FakeKubelet, resources: PodResources) -> None:
        self.machine = machine
        self.kubelet = kubelet
        self.state: Cards = cards.create(machine.node.directory / "virtual", ["V100", "V100"], virtual=True)
        self.uuids = [self.state.read_card(card).uuid for card in self.state]
        self.meter = Meter(self.state, machine.places.meter)
        self.said: list[str] = []
        self.resources = resources
        self.follower = self.build_follower()
        self.used: dict[str, float] = {}

    def build_follower(self) -> Follower:
        groups = PodCgroups(self.machine.mode, self.machine.node)
        return Follower(
            self.state,
            self.meter,
            self.resources,
            groups,
            Throttle(groups, self.machine.places.quotas),
            self.machine.pod_logs,
            cores=1.0,
            report=self.said.append,
        )

    def let_hold(self, **held: list[int]) -> None:
        answer = hold(**{name: [self.uuids[card] for card in numbers] for name, numbers in held.items()})
        self.kubelet.answers["List"] = answer

    async def pass_time(self, seconds: float, **cores: float) -> None:
        """Let pods, by UID's last digit as `pod1`, use so many cores meanwhile, as far as nothing slows them."""
        for _ in range(round(seconds * 4)):
            self.state.advance(0.25)
            for name, share in cores.items():
                uid = UID[:-1] + name[-1]
                self.used[uid] = self.used.get(uid, 0.0) + share / 4
                self.machine.use(uid, self.used[uid])
            await self.follower.look()


@pytest.fixture
async def scene(machine: Machine) -> AsyncIterator[Scene]:
    async with (
        start_kubelet(machine.kubelet, hold()) as kubelet,
        PodResources(machine.kubelet, deadline_seconds=5) as resources,
    ):
        made = Scene(machine, kubelet, resources)
        with made.state:
            yield made


async def test_a_card_is_as_busy_as_its_holder_and_rests_when_it_is_free(scene: Scene) -> None:
    scene.machine.start("a")
    scene.let_hold(a=[0])
    await scene.pass_time(2, pod1=0.5)
    assert scene.state.read_card(0).load == pytest.approx(0.5, abs=0.01)
    await scene.pass_time(2, pod1=1.7)
    assert scene.state.read_card(0).load == 1.0
    assert scene.state.read_card(1).load == 0.0
    scene.let_hold()
    await scene.pass_time(0.25)
    assert scene.state.read_card(0).load == 0.0


async def test_a_holder_is_as_slow_as_its_card_and_gets_back_what_it_had(scene: Scene) -> None:
    container = scene.machine.start("a", quota=TWO_CORES)
    scene.let_hold(a=[0])
    await scene.pass_time(2, pod1=1.0)
    assert scene.machine.read_quota(container).cores == 1.0, "one card does the work of one core"
    scene.state.set_limit(0, 150)
    await scene.pass_time(2, pod1=scene.state.slowdown(0))
    slowdown = scene.state.slowdown(0)
    assert slowdown == pytest.approx(1 / 1.218, abs=0.001)
    assert scene.machine.read_quota(container).cores == pytest.approx(slowdown, abs=1e-4)
    assert scene.state.read_card(0).load == 1.0, "a slowed card is as busy as before"
    scene.let_hold()
    await scene.pass_time(0.25)
    assert scene.machine.read_quota(container) == TWO_CORES


async def test_of_several_cards_the_slowest_counts_and_each_brings_its_cores(scene: Scene) -> None:
    container = scene.machine.start("a")
    scene.let_hold(a=[0, 1])
    await scene.pass_time(3, pod1=2.0)
    assert [scene.state.read_card(card).load for card in scene.state] == [1.0, 1.0]
    scene.state.set_limit(1, 150)
    await scene.pass_time(0.5, pod1=2.0)
    assert scene.machine.read_quota(container).cores == pytest.approx(2 * scene.state.slowdown(1), abs=1e-4)


async def test_the_meter_gives_every_joule_to_who_held_the_card(scene: Scene) -> None:
    for digit, name in enumerate("ab", start=1):
        scene.machine.start(name, UID[:-1] + str(digit))
    await scene.pass_time(1)
    scene.let_hold(a=[0], b=[1])
    await scene.pass_time(10, pod1=1.0, pod2=0.0)
    scene.let_hold(b=[0])
    await scene.pass_time(5, pod2=0.0)
    shares = [scene.meter.read(card) for card in scene.state]
    assert set(shares[0]) == {IDLE, "default/a", "default/b"}
    # Known by looks, so a pod holds its card from the end of the look's quarter of a second on.
    assert shares[1] == {IDLE: round(45 * (1.25 + 4.75) * PICOJOULES), "default/b": 45 * 10 * PICOJOULES}
    assert shares[0]["default/b"] == round(45 * 4.75 * PICOJOULES)
    for card in scene.state:
        assert scene.meter.total(card) == scene.state.read_card(card).energy_pj


async def test_a_kubelet_that_is_silent_disproves_nothing(scene: Scene) -> None:
    container = scene.machine.start("a")
    scene.let_hold(a=[0])
    await scene.pass_time(3, pod1=1.0)
    scene.kubelet.answers["List"] = Refuse(grpc.StatusCode.UNAVAILABLE, "restarting")
    scene.state.set_limit(0, 150)
    await scene.pass_time(3, pod1=scene.state.slowdown(0))
    assert scene.state.read_card(0).load == 1.0
    assert scene.machine.read_quota(container).cores < 0.83
    scene.let_hold(a=[0])
    await scene.pass_time(0.25)
    assert scene.said[-1] == "The kubelet answers again."
    assert sum(line.startswith("The kubelet's socket") for line in scene.said) == 1


async def test_a_kubelet_that_has_just_started_and_lists_nobody_yet_frees_no_card(scene: Scene) -> None:
    scene.machine.start("a")
    scene.let_hold(a=[0])
    await scene.pass_time(3, pod1=1.0)
    scene.kubelet.answers["List"] = Refuse(grpc.StatusCode.UNAVAILABLE, "restarting")
    await scene.pass_time(1, pod1=1.0)
    scene.let_hold()
    await scene.pass_time(2, pod1=1.0)
    assert scene.state.read_card(0).load == 1.0
    scene.let_hold(a=[0])
    await scene.pass_time(6, pod1=1.0)
    assert set(scene.meter.read(0, scene.state.now_ns)) == {IDLE, "default/a"}
    assert scene.meter.read(0)[IDLE] == round(45 * 0.25 * PICOJOULES), "before the first look only"
    scene.let_hold()
    await scene.pass_time(0.25)
    assert scene.state.read_card(0).load == 0.0


async def test_a_pod_may_vanish_at_any_moment(scene: Scene) -> None:
    scene.machine.start("a")
    scene.let_hold(a=[0])
    await scene.pass_time(2, pod1=1.0)
    scene.machine.end("a")
    await scene.pass_time(1)
    assert scene.state.read_card(0).load == 0.0
    scene.machine.start("a", OTHER_UID)
    await scene.pass_time(3, pod2=1.0)
    assert scene.state.read_card(0).load == 1.0, "another pod has come under the same name"


async def test_a_follower_that_was_killed_leaves_quotas_that_the_next_one_puts_right(scene: Scene) -> None:
    container = scene.machine.start("a", quota=TWO_CORES)
    scene.let_hold(a=[0])
    scene.state.set_limit(0, 150)
    await scene.pass_time(3, pod1=0.8)
    assert scene.machine.read_quota(container) != TWO_CORES
    scene.follower = scene.build_follower()
    await scene.pass_time(1, pod1=0.8)
    assert scene.state.read_card(0).load > 0.9
    scene.follower = scene.build_follower()
    scene.let_hold()
    await scene.pass_time(0.25)
    assert scene.machine.read_quota(container) == TWO_CORES


async def test_a_follower_that_has_never_heard_of_the_kubelet_leaves_everything_alone(scene: Scene) -> None:
    container = scene.machine.start("a")
    scene.let_hold(a=[0])
    scene.state.set_limit(0, 150)
    await scene.pass_time(3, pod1=0.8)
    before = scene.machine.read_quota(container), scene.state.read_card(0).load
    scene.kubelet.answers["List"] = Refuse(grpc.StatusCode.UNAVAILABLE)
    scene.follower = scene.build_follower()
    await scene.pass_time(2)
    assert (scene.machine.read_quota(container), scene.state.read_card(0).load) == before


async def test_an_end_gives_back_quotas_and_lets_the_cards_rest(scene: Scene) -> None:
    container = scene.machine.start("a", quota=TWO_CORES)
    scene.let_hold(a=[0])
    await scene.pass_time(3, pod1=1.0)
    scene.follower.end()
    assert scene.machine.read_quota(container) == TWO_CORES
    assert scene.state.read_card(0).load == 0.0
    assert scene.machine.places.meter.exists()


# --- From boot to boot -------------------------------------------------------------------------------------------


def test_a_boot_that_ends_keeps_its_joules_and_loses_counters_and_limits(folder: Path) -> None:
    node = Node(2, folder / "node2")
    said: list[str] = []
    state, meter = nodecards.open_boot(node, Gpus(1, "V100", 1.0), said.append)
    uuid = state.read_card(0).uuid
    meter.hold(0, "default/a")
    state.set_limit(0, 200)
    state.set_load(0, 1.0)
    time.sleep(0.3)
    meter.save()
    state.close()
    nodecards.close_boot(node)
    used = nodecards.read_picojoules(node)[uuid]
    assert used["default/a"] > 0.29 * 190 * PICOJOULES
    assert nodecards.read_joules(node, "default/a") == used["default/a"] / PICOJOULES
    state, meter = nodecards.open_boot(node, Gpus(1, "V100", 1.0), said.append)
    with state:
        reading = state.read_card(0)
        assert (reading.uuid, reading.limit_watts) == (uuid, 300)
        assert reading.joules < 1
        assert nodecards.read_picojoules(node)[uuid]["default/a"] == used["default/a"]
    assert not said
    assert [path.name for path in Places(node).ended_boots()] == ["boot-1.json"]


def test_cards_that_cannot_be_gone_on_with_begin_a_new_boot_and_say_so(folder: Path) -> None:
    node = Node(1, folder / "node1")
    said: list[str] = []
    nodecards.open_boot(node, Gpus(1, "V100", 1.0), said.append)[0].close()
    state, _ = nodecards.open_boot(node, Gpus(2, "A100", 1.0), said.append)
    with state:
        assert [state.read_card(card).profile for card in state] == ["A100", "A100"]
    assert len(said) == 1


def test_two_nodes_have_different_cards_and_one_the_same_after_every_boot(folder: Path) -> None:
    seen = []
    for number in (1, 2, 1):
        node = Node(number, folder / f"node{number}")
        nodecards.close_boot(node) if node.directory.exists() else None
        state, _ = nodecards.open_boot(node, Gpus(2, "V100", 1.0), print)
        with state:
            seen.append([state.read_card(card).uuid for card in state])
    assert seen[0] == seen[2]
    assert len({*seen[0], *seen[1]}) == 4


# --- The program itself ------------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[[Machine], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(machine: Machine) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-m",
            "sandbox.simgpu.daemon",
            "--node-directory",
            str(machine.node.directory),
        ]
        words += ["--cards", "2", "--cgroup-version", str(machine.version)]
        for hierarchy in machine.hierarchies:
            words += ["--hierarchy", str(hierarchy)]
        program = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(program)
        return program

    yield run
    for program in started:
        program.kill()
        program.wait()
        if program.stdout is not None:
            program.stdout.close()


async def until(look: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Poll; the tree is of plain files, which unlike the kernel's are empty for a moment while they are written."""

    def met() -> bool:
        try:
            return look()
        except ValueError:
            return False

    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def burn(machine: Machine) -> AsyncIterator[None]:
    """A pod that uses a whole core of the machine's clock."""

    async def run() -> None:
        began = time.monotonic()
        while True:
            machine.use(UID, time.monotonic() - began)
            await asyncio.sleep(0.02)

    burning = asyncio.ensure_future(run())
    try:
        yield
    finally:
        burning.cancel()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_daemon_that_ends_and_starts_again_loses_no_joule_and_no_quota(
    folder: Path, start: Callable[[Machine], subprocess.Popen[str]], number: signal.Signals
) -> None:
    machine = Machine(folder)
    container = machine.start("a", quota=TWO_CORES)
    async with start_kubelet(machine.kubelet, hold()) as kubelet, burn(machine):
        first = start(machine)
        await until(machine.places.meter.exists, "the meter's file")
        with cards.open(machine.places.state) as state:
            uuid = state.read_card(0).uuid
            kubelet.answers["List"] = hold(a=[uuid])
            await until(lambda: state.read_card(0).load == 1.0, "the card is busy")
            state.set_limit(0, 150)
            await until(lambda: machine.read_quota(container).cores < 0.83, "the pod is slowed")
            before = nodecards.read_picojoules(machine.node)[uuid]["default/a"]
            first.send_signal(number)
            await asyncio.to_thread(first.wait, 10)
            ended = machine.read_quota(container)
            assert ended == TWO_CORES if number == signal.SIGTERM else ended.cores < 0.83
            start(machine)
            await until(lambda: state.read_card(0).load == 1.0, "the card is busy again")
            await until(lambda: machine.read_quota(container).cores < 0.83, "the pod is slowed again")
            kubelet.answers["List"] = hold()
            await until(lambda: machine.read_quota(container) == TWO_CORES, "its quota is back")
            await until(lambda: state.read_card(0).load == 0.0, "the card rests")
            await asyncio.sleep(1.2)
            sums = nodecards.read_picojoules(machine.node)[uuid]
            assert sums["default/a"] > before
            assert state.read_card(0).limit_watts == 150, "the same cards"
            true = state.read_card(0).energy_pj
            assert 0 <= true - sum(sums.values()) < 5 * PICOJOULES, "the little between two readings"


async def test_a_second_daemon_of_the_same_node_is_refused(
    folder: Path, start: Callable[[Machine], subprocess.Popen[str]]
) -> None:
    machine = Machine(folder)
    start(machine)
    await until(machine.places.meter.exists, "the meter's file")
    second = start(machine)
    said, _ = await asyncio.to_thread(second.communicate)
    assert second.returncode == 1
    assert "Another daemon serves the cards" in said


async def test_pods_see_the_library_and_the_state_and_nothing_of_the_meter(
    folder: Path, start: Callable[[Machine], subprocess.Popen[str]]
) -> None:
    machine = Machine(folder)
    program = start(machine)
    await until(machine.places.meter.exists, "the meter's file")
    assert {path.name for path in machine.places.shared.iterdir()} == {"libnvidia-ml.so.1", "state"}
    saved = json.loads(machine.places.meter.read_text())
    assert [set(card) for card in saved] == [
        {"uuid", "untilNanoseconds", "nextEvent", "draws", "holders", "picojoules"}
    ] * 2
    stamp = machine.places.meter.stat().st_mtime_ns
    await until(lambda: machine.places.meter.stat().st_mtime_ns != stamp, "saved again", 2.0)
    program.terminate()
    said, _ = await asyncio.to_thread(program.communicate)
    assert program.returncode == 0
    assert "every quota is as it was" in said
