"""The caps of a node, request by request: what is on the disk before a card is touched, and who may have a cap at all."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from greentrain.api.nodepower import CapReason, PowerLimits
from greentrain.node.allocations import Allocations, drop_ended
from greentrain.node.capping import (
    LOWEST,
    SILENT_SECONDS,
    Answer,
    CapJournal,
    CapSight,
    NodeCaps,
    ReadLimits,
    Request,
    StoreJournal,
    WriteLimit,
    find_asks,
)
from greentrain.node.caps import Ask, Hindrance
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import Milliwatts, PowerCap
from tests.support.world.looks import carry_out
from tests.support.world.pods import HoldingPod, build_holdings

RANGE = PowerLimits(min_milliwatts=100_000, default_milliwatts=300_000, max_milliwatts=300_000)
CARD = Card("GPU-a", 0, 0, "V100", partitioned=False, limits=RANGE)
CUT = Card("GPU-a", 0, 0, "A100", partitioned=True, limits=RANGE)


def hold(*pods: str, alone: bool = True) -> Allocations:
    """These pods hold the card; a pod's UID is its name, none where that is a question mark."""
    held = tuple(HoldingPod(p, None if p == "?" else p) for p in pods)
    return build_holdings({"GPU-a": held}, shared=frozenset() if alone else frozenset({"GPU-a"}))


@dataclass
class Machine:
    """A card and a disk that answer."""

    limit: int = 300_000
    full: bool = False
    refuses: CapReason | None = None
    deeds: list[str] = field(default_factory=list)
    now: float = 100.0

    def look(self, caps: NodeCaps, allocations: Allocations | None) -> bool:
        return carry_out(caps.look(CapSight(self.now, (CARD,), allocations)), self.answer)

    def answer(self, request: Request) -> Answer:
        match request:
            case ReadLimits():
                return Answer(
                    self.now, "session", CurrentLimits(Milliwatts(self.limit), Milliwatts(self.limit))
                )
            case StoreJournal(content):
                entry = content.entries.get("GPU-a")
                said = "nothing" if entry is None else f"{entry.prior} {entry.written} {entry.pending}"
                self.deeds.append(f"store {said}")
                if self.full:
                    return Answer(self.now, failure=Hindrance("NoJournal", "the disk is full"))
            case WriteLimit(_, milliwatts):
                self.deeds.append(f"set {milliwatts}")
                if self.refuses is not None:
                    return Answer(self.now, failure=Hindrance(self.refuses, "no"))
                self.limit = milliwatts
        return Answer(self.now)


def begin(*, full: bool = False, refuses: CapReason | None = None) -> tuple[NodeCaps, Machine]:
    caps = NodeCaps()
    caps.take_stored(CapJournal())
    caps.take_up({"a": PowerCap(milliwatts=Milliwatts(200_000))})
    return caps, Machine(full=full, refuses=refuses)


def test_the_disk_has_what_is_about_to_be_done_before_each_write() -> None:
    caps, machine = begin()
    machine.look(caps, hold("a"))
    machine.look(caps, hold())
    assert machine.deeds == [
        "store 300000 None 200000",
        "set 200000",
        "store 300000 200000 None",
        "store 300000 200000 300000",
        "set 300000",
        "store nothing",
    ]


@pytest.mark.parametrize(
    ("full", "refuses", "deeds", "reason"),
    [
        (True, None, {"store 300000 None 200000", "store nothing"}, "NoJournal"),
        (False, "NotPermitted", {"store 300000 None 200000", "set 200000"}, "NotPermitted"),
        (False, "GpuFailing", {"store 300000 None 200000", "set 200000"}, "GpuFailing"),
    ],
    ids=["a full disk", "a card that refuses", "a card that fails"],
)
def test_what_fails_ends_the_steps_and_is_reported(
    full: bool, refuses: CapReason | None, deeds: set[str], reason: CapReason
) -> None:
    caps, machine = begin(full=full, refuses=refuses)
    machine.look(caps, hold("a"))
    assert set(machine.deeds) == deeds
    assert caps.reports["GPU-a"].reason == reason
    assert caps.changed_cards == (() if full else ("GPU-a",))


def test_a_card_that_has_no_cap_costs_nothing() -> None:
    caps, machine = begin()
    machine.look(caps, hold("a"))
    caps.take_up({})
    machine.look(caps, hold("a"))
    machine.deeds.clear()
    assert not machine.look(caps, hold("a"))
    assert machine.deeds == []


@pytest.mark.parametrize(
    ("after", "reason"), [(1.0, "Shared"), (SILENT_SECONDS - 0.1, "Shared"), (SILENT_SECONDS, None)]
)
def test_a_card_that_pods_share_has_no_cap_either_while_the_kubelet_is_silent(
    after: float, reason: CapReason | None
) -> None:
    caps, machine = begin()
    machine.look(caps, hold("a", alone=False))
    machine.now += after
    machine.look(caps, None)
    assert (caps.reports["GPU-a"].reason if caps.reports else None) == reason
    assert machine.limit == 300_000


CAPS = {
    "a": PowerCap(milliwatts=Milliwatts(200_000)),
    "low": PowerCap(milliwatts=Milliwatts(150_000)),
    "spent": LOWEST,
}


@pytest.mark.parametrize(
    ("card", "allocations", "ask", "hindrance"),
    [
        (CARD, hold(), None, None),
        (CARD, hold("a"), Ask("a", CAPS["a"]), None),
        (CARD, hold("?"), None, None),
        (CARD, hold("uncapped"), None, None),
        (CARD, hold("a", "low"), Ask("low", CAPS["low"], ("a",)), None),
        (CARD, hold("a", "spent"), Ask("spent", LOWEST, ("a",)), None),
        (CARD, hold("a", alone=False), Ask("a", CAPS["a"]), "Shared"),
        (CUT, hold("a", alone=False), Ask("a", CAPS["a"]), "MigMode"),
        (CUT, hold("uncapped", alone=False), None, None),
    ],
)
def test_a_card_gets_the_cap_of_the_pod_that_holds_it_alone(
    card: Card, allocations: Allocations, ask: Ask | None, hindrance: CapReason | None
) -> None:
    asks, hindrances = find_asks((card,), allocations, CAPS)
    assert asks.get("GPU-a") == ask
    assert (hindrances["GPU-a"].reason if hindrances else None) == hindrance


@pytest.mark.parametrize(
    ("alive", "left"),
    [((), ["a", "?"]), (("a",), ["a", "?"]), (("b",), ["?"])],
    ids=["cgroups cannot be seen", "it runs", "it has ended"],
)
def test_a_holder_without_processes_holds_nothing(alive: tuple[str, ...], left: list[str]) -> None:
    found = drop_ended(hold("a", "?"), alive)
    assert [h.pod for h in found.cards["GPU-a"]] == left
