"""The agent's caps, step by step: plain cards and a clock of one's choice, and a real journal on a disk that can be full."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greentrain.agent.allocations import find_allocations
from greentrain.agent.caps import FILE, Caps
from greentrain.agent.journal import FILE as ACCOUNT
from greentrain.agent.journal import Journal
from greentrain.api.nodepower import CapReason, PowerLimits
from greentrain.devices.errors import (
    DeviceError,
    Gone,
    Hanging,
    NotPermitted,
    OutOfRange,
    Retry,
    Unavailable,
    Unsupported,
)
from greentrain.devices.nvidia.references import parse_device
from greentrain.devices.podresources import Allocation, Listing
from greentrain.kube.node import NodePod
from greentrain.node.allocations import Allocations
from greentrain.node.capping import REFUSED_SECONDS, SILENT_SECONDS, START_SECONDS
from greentrain.node.caps import Hindrance
from greentrain.node.cards import Card, CurrentLimits, Partition
from greentrain.node.schedule import GIVE_BACK_SECONDS
from greentrain.quantities import Milliwatts, parse_power_cap
from tests.unit.agent.ports import Life, World

A, B = "GPU-a", "GPU-b"
INSTANCE = "MIG-3f1c7a52-8f0e-5d0e-9c5b-000000000000"
RANGE = PowerLimits(min_milliwatts=100_000, default_milliwatts=300_000, max_milliwatts=300_000)
NO_NVML = Unavailable("NVML", "the driver is not loaded", "Load it.")


def card(uuid: str, *instances: Partition) -> Card:
    """A card, cut into these parts."""
    return Card(uuid, 0, 0, "Tesla V100", partitioned=bool(instances), partitions=instances, limits=RANGE)


PART = Partition(INSTANCE, gpu_instance=1, compute_instance=0, slices=3, total_slices=7)


@dataclass
class Clock:
    """Stands still but for the tests."""

    now: float = 1000.0
    run: str = "boot-1"

    def elapsed(self) -> float:
        return self.now

    def suspended(self) -> float:
        return 0.0

    def wall(self) -> float:
        return self.now

    def boot(self) -> str:
        return self.run

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> bool:
        del wake
        self.now += seconds
        return False


class Disk(Journal):
    """The journal on a disk that can be full."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.full = False

    def store(self, content: bytes, name: str = ACCOUNT) -> None:
        if self.full:
            # What is written there meets ENOSPC, full(4).
            (self.folder / name).with_suffix(".partial").symlink_to("/dev/full")
        super().store(content, name)


@dataclass
class Node:
    """One machine; what is not an agent's memory outlives the agent."""

    folder: Path
    limits: dict[str, int] = field(default_factory=lambda: {A: 300_000, B: 300_000})
    cards: tuple[Card, ...] = (card(A), card(B))
    clock: Clock = field(default_factory=Clock)
    holds: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"a": (A,)})
    """Devices by the pod that holds them."""
    unread: dict[str, DeviceError] = field(default_factory=dict)
    refusals: dict[str, DeviceError] = field(default_factory=dict)
    tries: list[tuple[str, int]] = field(default_factory=list)
    """Every call that would set a limit."""
    written_before: list[dict[str, Any]] = field(default_factory=list)
    """What the journal held when a limit was set."""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.disk = Disk(self.folder)
        self.caps = self.start()

    def start(self, *, dry_run: bool = False, allowed: bool = True) -> Caps:
        """An agent begins."""
        self.caps = Caps(
            self.disk, self.clock, driver=self.folder.parent / "nvidia", dry_run=dry_run, allowed=allowed
        )
        self.caps.load()
        return self.caps

    def allocations(self) -> Allocations:
        """What the kubelet and the API server say."""
        held = [
            Allocation("team", pod, "tensorflow", "nvidia.com/gpu", parse_device(device))
            for pod, devices in self.holds.items()
            for device in devices
        ]
        pods = [NodePod("team", pod, f"uid-{pod}", terminal=False) for pod in self.holds]
        return find_allocations(Listing(tuple(held), ()), self.cards, pods)

    def ask(self, **caps: str) -> None:
        """What the operator asks, by pod."""
        self.caps.take_up({f"uid-{pod}": parse_power_cap(text) for pod, text in caps.items()})

    async def keep(self, hindrance: Hindrance | None = None) -> bool:
        """A look at everything."""
        return await self.caps.keep(self, self.cards, self.allocations(), hindrance)

    def lose_sight(self, pause: str | None) -> bool:
        """A look while NVML is not there."""
        return self.caps.lose_sight(self.cards, self.allocations(), pause)

    async def keep_blindly(self) -> bool:
        """A look while the kubelet does not answer."""
        return await self.caps.keep(self, self.cards, None)

    async def cap(self, text: str = "200W") -> None:
        """Have the pod `a` capped."""
        self.ask(a=text)
        await self.keep()
        assert self.reason() == "Capped"

    def reason(self, uuid: str = A) -> CapReason | None:
        """How a card's cap stands."""
        return self.caps.reports[uuid].reason if uuid in self.caps.reports else None

    def journal(self) -> dict[str, Any]:
        """What is on the disk, by card."""
        content = self.disk.read(FILE)
        return dict(json.loads(content)["entries"]) if content is not None else {}

    # As `devices.nvidia.nvml.Gpus`.

    async def read_limits(self, uuid: str) -> CurrentLimits:
        if uuid in self.unread:
            raise self.unread[uuid]
        return CurrentLimits(Milliwatts(self.limits[uuid]), Milliwatts(self.limits[uuid]), False)

    async def set_limit(self, uuid: str, milliwatts: int) -> None:
        self.tries.append((uuid, milliwatts))
        self.written_before.append(self.journal())
        if uuid in self.refusals:
            raise self.refusals[uuid]
        self.limits[uuid] = milliwatts


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "journal")


# -- keeping and giving back ------------------------------------------------------------------------------


async def test_what_is_about_to_be_done_stands_on_the_disk_before_it_is_done(node: Node) -> None:
    await node.cap("200W")
    await node.cap("180W")
    node.ask()
    await node.keep()
    assert node.tries == [(A, 200_000), (A, 180_000), (A, 300_000)]
    known = [(e[A]["prior"], e[A]["written"], e[A]["pending"]) for e in node.written_before]
    assert known == [(300_000, None, 200_000), (300_000, 200_000, 180_000), (300_000, 180_000, 300_000)]
    assert (node.journal(), node.caps.changed_cards, node.caps.restores[A]) == ({}, (), 1)


async def test_whether_anything_is_new_is_told_once(node: Node) -> None:
    node.ask(a="200W")
    assert await node.keep()
    assert not await node.keep()
    node.ask(a="190W")
    assert await node.keep()
    node.ask()
    assert await node.keep()
    assert not await node.keep()


@pytest.mark.parametrize(
    ("holds", "limits"),
    [
        ({"a": (A,)}, (200_000, 300_000)),
        ({"a": (A, B)}, (200_000, 200_000)),
        ({"b": (A,)}, (300_000, 300_000)),
        ({}, (300_000, 300_000)),
        # While a card changes hands both may be listed for a moment.
        ({"a": (A,), "lower": (A,)}, (150_000, 300_000)),
        ({"lower": (A,), "a": (A,)}, (150_000, 300_000)),
        ({"a": (A,), "lower": (B,)}, (200_000, 150_000)),
    ],
)
async def test_a_cap_is_its_pods_on_the_cards_it_holds(
    node: Node, holds: dict[str, tuple[str, ...]], limits: tuple[int, int]
) -> None:
    await node.cap()
    node.ask(a="200W", lower="150W", nobody="120W")
    node.holds = holds
    await node.keep()
    assert (node.limits[A], node.limits[B]) == limits


@pytest.mark.parametrize(
    ("cards", "device", "reason", "message"),
    [
        ((card(A, PART),), INSTANCE, "MigMode", "it is in MIG mode"),
        ((card(A, PART),), A, "MigMode", "it is in MIG mode"),
        ((card(A),), f"{A}::0", "Shared", "pods share it"),
        ((card(A),), A, "Capped", "its limit is 200W"),
    ],
    ids=["an instance", "a card in MIG mode", "a replica", "a whole card"],
)
async def test_a_card_that_several_can_hold_is_left_alone(
    node: Node, cards: tuple[Card, ...], device: str, reason: CapReason, message: str
) -> None:
    await node.cap()
    node.cards, node.holds = cards, {"a": (device,)}
    await node.keep()
    assert node.reason() == reason
    assert message in node.caps.reports[A].message
    assert node.limits[A] == (200_000 if reason == "Capped" else 300_000)


async def test_a_hindrance_of_the_whole_node_gives_everything_back_and_is_said(node: Node) -> None:
    await node.cap()
    assert await node.keep(Hindrance("Paused", "its driver is being replaced"))
    assert (node.limits[A], node.reason(), node.caps.changed_cards) == (300_000, "Paused", ())
    assert node.caps.reports[A].message == "its driver is being replaced"
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


async def test_at_its_end_an_agent_gives_back_what_it_set_and_the_next_one_is_asked_the_same(
    node: Node,
) -> None:
    await node.cap()
    assert await node.caps.give_back(node, node.cards)
    assert (node.limits[A], node.journal(), node.caps.reports) == (300_000, {}, {})
    node.start()
    node.caps.take_up(None)
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


@pytest.mark.parametrize("error", [Gone(A, "lost"), Hanging(A, 3.0), NotPermitted(A, "root")], ids=repr)
async def test_what_cannot_be_given_back_at_the_end_stays_in_the_journal(
    node: Node, error: DeviceError
) -> None:
    await node.cap()
    (node.refusals if isinstance(error, NotPermitted) else node.unread)[A] = error
    assert not await node.caps.give_back(node, node.cards)
    assert (node.caps.changed_cards, node.caps.priors) == ((A,), {A: 300_000})
    assert node.journal()[A]["prior"] == 300_000
    node.refusals, node.unread, node.holds = {}, {}, {}
    node.start()
    await node.keep()
    assert (node.limits[A], node.journal()) == (300_000, {})


# -- a kubelet that is silent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [(0.0, 200_000), (1.0, 200_000), (SILENT_SECONDS - 1, 200_000), (SILENT_SECONDS, 300_000)],
)
async def test_a_kubelet_that_falls_silent_ends_caps_after_a_while(
    node: Node, seconds: float, limit: int
) -> None:
    await node.cap()
    node.clock.now += seconds
    await node.keep_blindly()
    assert node.limits[A] == limit
    assert node.reason() == ("Capped" if limit == 200_000 else None)
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


async def test_while_it_is_silent_caps_are_kept_against_others_and_follow_no_edit_of_new_pods(
    node: Node,
) -> None:
    await node.cap()
    node.limits[A] = 250_000
    node.ask(a="200W", b="150W")
    node.clock.now += 10
    await node.keep_blindly()
    assert (node.limits, node.caps.priors) == ({A: 200_000, B: 300_000}, {A: 250_000})


@pytest.mark.parametrize(
    ("seconds", "limit"), [(0.0, 200_000), (START_SECONDS - 0.1, 200_000), (START_SECONDS, 300_000)]
)
async def test_after_a_start_it_has_less_time_for_nobody_knows_how_long_it_has_been_silent(
    node: Node, seconds: float, limit: int
) -> None:
    await node.cap()
    node.start()
    node.clock.now += seconds
    await node.keep_blindly()
    assert node.limits[A] == limit
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


# -- the journal ------------------------------------------------------------------------------------------


async def test_killed_at_any_place_the_next_one_gives_back(node: Node) -> None:
    """Every journal there was while a limit was set, with the limit before and after."""
    await node.cap("200W")
    await node.cap("180W")
    node.ask()
    await node.keep()
    before = [300_000, 200_000, 180_000]
    for entries, (_, after), old in zip(tuple(node.written_before), tuple(node.tries), before, strict=True):
        for limit in (old, after):
            node.limits[A] = limit
            node.disk.store(json.dumps({"entries": entries, "asked": {}}).encode(), FILE)
            node.start()
            node.holds = {}
            await node.keep()
            assert (node.limits[A], node.journal()) == (300_000, {})


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b'{"entries": {"GPU-a": ', b"[]", b'{"entries": {"GPU-a": {"prior": "much"}}}'],
    ids=["empty", "zeros", "half", "a list", "a word for a number"],
)
async def test_a_damaged_journal_is_put_aside_and_said_and_caps_go_on(
    node: Node, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await node.cap()
    (node.folder / FILE).write_bytes(content)
    node.start()
    assert "is damaged" in caplog.text
    assert "caps.damaged" in caplog.text
    assert "nvidia-smi -q -d POWER" in caplog.text
    assert (node.folder / "caps.damaged").read_bytes() == content
    # What it held cannot be given back; nothing else is made of it.
    node.holds = {}
    await node.keep()
    assert (node.limits[A], node.caps.changed_cards) == (200_000, ())
    node.holds = {"a": (A,)}
    await node.cap("150W")
    node.ask()
    await node.keep()
    assert node.limits[A] == 200_000


@pytest.mark.parametrize(
    ("run", "driver", "limit"),
    [("boot-1", "", 300_000), ("boot-2", "", 200_000), ("boot-1", "nvidia", 200_000)],
    ids=["the same", "another run of the machine", "another load of the driver"],
)
async def test_after_a_reboot_or_with_another_driver_the_journal_is_void(
    node: Node, run: str, driver: str, limit: int
) -> None:
    """Somebody has set by then what was ours before: theirs stays."""
    await node.cap()
    node.clock.run, node.holds = run, {}
    if driver:
        (node.folder.parent / driver).mkdir()
    node.start()
    await node.keep()
    assert (node.limits[A], node.journal(), node.caps.foreign_changes[A]) == (limit, {}, 0)


@pytest.mark.parametrize("full", [True, False])
async def test_on_a_full_disk_no_limit_is_changed_but_caps_end(node: Node, full: bool) -> None:
    await node.cap()
    node.disk.full = full
    node.ask(a="180W")
    await node.keep()
    assert node.limits[A] == (200_000 if full else 180_000)
    assert node.reason() == ("NoJournal" if full else "Capped")
    assert node.caps.disk == ("No space left on device" if full else None)
    if full:
        assert "(No space left on device), and no limit is changed without it" in node.caps.reports[A].message
    node.holds = {}
    await node.keep()
    assert node.limits[A] == 300_000
    assert node.caps.changed_cards == ()
    node.disk.full = False
    await node.keep()
    assert (node.journal(), node.caps.disk) == ({}, None)


async def test_what_a_full_disk_did_not_take_is_written_when_it_has_room(node: Node) -> None:
    node.disk.full = True
    node.ask(a="200W")
    for _ in range(3):
        await node.keep()
    assert (node.tries, node.reason()) == ([], "NoJournal")
    node.disk.full = False
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")
    assert node.journal()[A]["written"] == 200_000


async def test_somebody_elses_change_is_noticed_when_it_can_be_written_down(node: Node) -> None:
    await node.cap()
    node.disk.full = True
    node.limits[A] = 250_000
    for _ in range(3):
        await node.keep()
    assert (node.limits[A], node.reason()) == (250_000, "NoJournal")
    assert (node.caps.priors, node.caps.foreign_changes[A]) == ({A: 300_000}, 0)
    node.disk.full = False
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")
    assert (node.caps.priors, node.caps.foreign_changes[A]) == ({A: 250_000}, 1)


async def test_a_card_given_back_on_a_full_disk_is_not_changed_again_by_the_next_agent(node: Node) -> None:
    await node.cap()
    node.disk.full, node.holds = True, {}
    await node.keep()
    assert (node.limits[A], node.journal()[A]["written"]) == (300_000, 200_000)
    node.limits[A] = 250_000  # an administrator's, after we have let go
    node.start()
    await node.keep()
    assert node.limits[A] == 250_000


@pytest.mark.parametrize("asked", [{"a": "180W"}, {}], ids=["edited", "withdrawn"])
async def test_what_is_asked_is_remembered_until_something_else_is(node: Node, asked: dict[str, str]) -> None:
    await node.cap()
    node.start()
    node.caps.take_up(None)
    await node.keep()
    assert node.limits[A] == 200_000
    node.ask(**asked)
    await node.keep()
    expected = 180_000 if asked else 300_000
    assert node.limits[A] == expected
    node.start()
    node.caps.take_up(None)
    await node.keep()
    assert node.limits[A] == expected


async def test_what_is_asked_before_the_pod_has_its_card_is_remembered_too(node: Node) -> None:
    node.holds = {}
    node.ask(a="200W")
    await node.keep()
    node.start()
    node.holds = {"a": (A,)}
    node.caps.take_up(None)
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


async def test_without_a_journal_nothing_is_changed_and_it_says_why(tmp_path: Path) -> None:
    node = Node(tmp_path / "journal")
    node.start(allowed=False)
    node.ask(a="200W")
    await node.keep()
    assert (node.tries, node.reason()) == ([], "NoJournal")
    assert node.caps.reports[A].asked_milliwatts == 200_000


# -- cards that refuse or do not answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        (NotPermitted(A, "NVML demands root"), "NotPermitted", 1),
        (Unsupported("such call"), "Unsupported", 1),
        (OutOfRange(A, "200W", "its power limit is between 250W and 300W"), "OutOfRange", 1),
        (Retry(A, "NVML answered «Timeout»"), "GpuFailing", 10),
        (Hanging(A, 7.0), "GpuFailing", 10),
        (Gone(A, "it fell off the bus"), "GpuLost", 10),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DeviceError) else "",
)
async def test_a_card_that_says_no_is_left_alone_for_a_while_and_others_are_not(
    node: Node, error: DeviceError, reason: CapReason, tries: int
) -> None:
    node.refusals[A] = error
    node.holds = {"a": (A, B)}
    node.ask(a="200W")
    for _ in range(int(REFUSED_SECONDS)):
        await node.keep()
        assert (node.reason(), node.reason(B)) == (reason, "Capped")
        assert node.caps.reports[A].message == str(error)
        assert node.caps.reports[A].asked_milliwatts == 200_000
        node.clock.now += 1
    assert [uuid for uuid, _ in node.tries].count(A) == tries
    # What it refused it does not have; what gave no answer it may have.
    assert (A in node.journal()) == (tries > 1)
    node.refusals.clear()
    await node.keep()
    assert (node.limits, node.reason()) == ({A: 200_000, B: 200_000}, "Capped")


async def test_to_give_a_card_back_is_tried_each_time(node: Node) -> None:
    await node.cap()
    node.refusals[A] = NotPermitted(A, "NVML demands root")
    node.holds = {}
    for _ in range(5):
        await node.keep()
        node.clock.now += 1
    assert node.tries[1:] == [(A, 300_000)] * 5
    assert node.caps.changed_cards == (A,)
    node.refusals.clear()
    await node.keep()
    assert (node.limits[A], node.journal()) == (300_000, {})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Gone(A, "it fell off the bus"), "GpuLost"),
        (Retry(A, "NVML answered «Timeout»"), "GpuFailing"),
        (Hanging(A, 7.0), "GpuFailing"),
        (NotPermitted(A, "its device file is blocked"), "GpuFailing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DeviceError) else "",
)
async def test_a_card_that_does_not_answer_is_said_once_and_looked_after_again_when_it_does(
    node: Node, error: DeviceError, reason: CapReason, caplog: pytest.LogCaptureFixture
) -> None:
    await node.cap()
    node.unread[A] = error
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await node.keep()
    assert (node.reason(), node.caps.reports[A].message) == (reason, str(error))
    assert caplog.text.count("is checked when it answers again") == 1
    assert node.limits[A] == 200_000
    node.unread.clear()
    node.ask()
    await node.keep()
    assert (node.limits[A], node.reason()) == (300_000, None)


async def test_a_card_that_is_not_listed_any_more_keeps_its_place_in_the_journal(node: Node) -> None:
    await node.cap()
    node.cards = (card(B),)
    await node.keep()
    assert (node.reason(), node.caps.changed_cards) == (None, (A,))
    node.cards, node.holds = (card(A), card(B)), {}
    await node.keep()
    assert node.limits[A] == 300_000


async def test_when_nvml_is_lost_it_is_raised_and_said_of_every_card(node: Node) -> None:
    await node.cap()
    node.unread[A] = NO_NVML
    with pytest.raises(Unavailable):
        await node.keep()
    assert node.lose_sight(None)
    assert not node.lose_sight(None)
    assert (node.reason(), node.caps.reports[A].message) == ("GpuFailing", "NVML cannot be used at present")
    assert node.lose_sight("its driver is being replaced.")
    assert (node.reason(), node.caps.reports[A].message) == ("Paused", "its driver is being replaced.")
    # Pods come and go meanwhile: what is told is of those that are there.
    node.holds = {"b": (B,)}
    node.ask(b="200W")
    assert node.lose_sight(None)
    assert {u: r.pod_uid for u, r in node.caps.reports.items()} == {B: "uid-b"}


async def test_when_nvml_is_lost_while_a_limit_is_set_the_journal_has_it(node: Node) -> None:
    node.ask(a="200W")
    node.refusals[A] = NO_NVML
    with pytest.raises(Unavailable):
        await node.keep()
    assert node.journal()[A]["pending"] == 200_000
    node.refusals.clear()
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "Capped")


async def test_a_journal_that_cannot_be_read_is_kept_until_it_can(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await node.cap()
    path = node.folder / FILE
    path.rename(node.folder / "away")
    # /proc/self/mem answers a read from its beginning with EIO, proc(5).
    path.symlink_to("/proc/self/mem")
    node.start()
    assert not node.caps.load()
    node.ask(a="180W")
    await node.keep()
    assert (node.limits[A], node.reason()) == (200_000, "NoJournal"), "whose limit that is it cannot know"
    assert path.is_symlink(), "what it holds is not lost"
    assert sum("the journal of caps cannot be read" in m for m in caplog.messages) == 1
    path.unlink()
    (node.folder / "away").rename(path)
    await node.keep()
    assert (node.limits[A], node.caps.priors) == (180_000, {A: 300_000})
    node.holds = {}
    await node.keep()
    assert node.limits[A] == 300_000


async def test_a_damaged_journal_on_a_disk_that_takes_nothing_stops_no_agent(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    (node.folder / FILE).write_text("{")
    (node.folder / FILE).with_suffix(".damaged").mkdir()  # a name that cannot be taken
    node.start()
    await node.keep()
    assert "is damaged and cannot be put aside" in caplog.text


async def test_every_pod_that_shares_a_card_is_told(node: Node) -> None:
    node.holds = {"a": (f"{A}::0",), "b": (f"{A}::1",)}
    node.ask(a="200W", b="150W")
    await node.keep()
    report = node.caps.reports[A]
    assert (report.reason, report.pod_uid, report.sharing_pod_uids) == ("Shared", "uid-b", ("uid-a",))
    assert [report.concerns(uid) for uid in ("uid-a", "uid-b", "uid-c")] == [True, True, False]


# -- somebody else ----------------------------------------------------------------------------------------


async def test_a_quarrel_is_known_to_the_next_agent(node: Node) -> None:
    await node.cap()
    for _ in range(3):
        node.limits[A] = 270_000
        await node.keep()
        node.clock.now += 5
    assert (node.limits[A], node.reason(), node.caps.foreign_changes[A]) == (270_000, "Contested", 3)
    assert await node.caps.give_back(node, node.cards)
    assert node.limits[A] == 270_000
    node.start()
    node.caps.take_up(None)
    await node.keep()
    assert (node.limits[A], node.reason()) == (270_000, "Contested")
    await node.cap("180W")
    assert node.limits[A] == 180_000


# -- the dry run ------------------------------------------------------------------------------------------


async def test_a_dry_run_sets_nothing_and_says_what_it_would(node: Node) -> None:
    node.start(dry_run=True)
    node.ask(a="200W")
    for _ in range(3):
        await node.keep()
    assert (node.tries, node.journal(), node.reason()) == ([], {}, "DryRun")
    assert "would be set to 200W" in node.caps.reports[A].message
    assert node.caps.reports[A].target_milliwatts == 200_000


@pytest.mark.parametrize("holds", [{"a": (A,)}, {}], ids=["the pod is there", "the pod has ended"])
async def test_a_dry_run_gives_back_what_an_agent_before_it_has_set(
    node: Node, holds: dict[str, Sequence[str]]
) -> None:
    await node.cap()
    node.start(dry_run=True)
    node.holds = {pod: tuple(devices) for pod, devices in holds.items()}
    node.caps.take_up(None)
    for _ in range(3):
        await node.keep()
    assert (node.limits[A], node.journal()) == (300_000, {})
    assert node.reason() == ("DryRun" if holds else None)
    assert node.tries[1:] == [(A, 300_000)]


# -- in the agent's loop ----------------------------------------------------------------------------------


@dataclass
class StubbornWorld(World):
    """A node whose card takes limits until it is told not to, and that counts how often NVML was opened and let go."""

    refuses: bool = False
    opened: int = 0
    closed: int = 0

    async def open(self) -> World:
        self.opened += 1
        return await super().open()

    async def set_limit(self, uuid: str, milliwatts: int) -> None:
        if self.refuses:
            raise NotPermitted(uuid, "NVML demands root")
        await super().set_limit(uuid, milliwatts)

    async def close(self) -> None:
        self.closed += 1


def capped_world() -> StubbornWorld:
    world = StubbornWorld(caps={"uid-a": parse_power_cap("200W")})
    world.hold("a")
    return world


PAUSE = "the node's label nvidia.com/gpu.deploy.driver is paused: its driver is being replaced."


async def test_a_driver_that_is_to_be_replaced_is_let_go_as_soon_as_cards_have_their_limits_back(
    tmp_path: Path,
) -> None:
    world = capped_world()
    life = Life(world, tmp_path)
    await life.look(2)
    assert (world.limit, world.opened) == (200_000, 1)
    world.paused = PAUSE
    await life.look()
    assert (world.limit, world.closed) == (300_000, 1)
    await life.look(30)
    assert world.opened == 1
    assert life.agent.caps.reports["GPU-a"].reason == "Paused"
    world.paused = None
    await life.look(2)
    assert (world.limit, world.opened) == (200_000, 2)


async def test_a_card_that_cannot_be_given_back_does_not_hold_up_the_driver_for_long(tmp_path: Path) -> None:
    world = capped_world()
    life = Life(world, tmp_path)
    await life.look(2)
    world.refuses, world.paused = True, PAUSE
    await life.look(int(GIVE_BACK_SECONDS))
    assert world.closed == 0
    await life.look()
    assert (world.closed, life.agent.caps.changed_cards) == (1, ("GPU-a",))
    # The driver was not replaced after all: nothing is forgotten.
    world.refuses, world.paused, world.caps = False, None, {}
    await life.look(2)
    assert (world.limit, life.agent.caps.changed_cards) == (300_000, ())


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_end_waits_a_while_for_a_card_and_not_for_ever(
    refuses: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = capped_world()
    life = Life(world, tmp_path)
    await life.look(2)
    world.refuses, begun = refuses, life.clock.now
    await life.run(0)
    assert world.limit == (200_000 if refuses else 300_000)
    assert (life.clock.now - begun >= GIVE_BACK_SECONDS) is refuses
    assert life.clock.now - begun <= GIVE_BACK_SECONDS + 2
    assert ("GPU-a keeps the power limit of a cap" in caplog.text) is refuses
    assert world.closed == 1
    assert world.status is not None
    assert world.status.gpus[0].limits.previous_milliwatts == (300_000 if refuses else None)


async def test_nvml_that_was_lost_is_opened_once_more_at_the_end_to_give_back(tmp_path: Path) -> None:
    world = capped_world()
    life = Life(world, tmp_path)
    await life.look(2)
    world.nvml = NO_NVML
    await life.look()
    assert world.limit == 200_000
    world.nvml = None
    await life.run(0)
    assert world.limit == 300_000


async def test_a_kubelet_that_stays_silent_ends_caps_and_one_that_is_back_begins_them_again(
    tmp_path: Path,
) -> None:
    world = capped_world()
    life = Life(world, tmp_path)
    await life.look(2)
    world.kubelet = Unavailable("The kubelet", "it is away", "Wait.")
    await life.look(int(SILENT_SECONDS) - 2)
    assert world.limit == 200_000
    await life.look(3)
    assert world.limit == 300_000
    world.kubelet = None
    await life.look()
    assert world.limit == 200_000
