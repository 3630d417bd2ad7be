"""What a pod draws now: over the last seconds of readings, of all device kinds, or not known."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Allocated
from greentrain.energy.intervals import CardReading
from greentrain.energy.report import report_pods
from greentrain.quantities import Millijoules, typed

WALL = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
A = Allocated("a")


class Node:
    """Cards whose draw is set, looked at when the test says so."""

    def __init__(self, *watts: int, shared: bool = False) -> None:
        self.watts = list(watts)
        self.counters: list[int | None] = [0 for _ in watts]
        self.readable = [True for _ in watts]
        self.holders: tuple[Allocated, ...] = (A,)
        if shared:
            self.holders = (Allocated("a", 0.25, alone=False), Allocated("b", 0.75, alone=False))
        self.account = NodeAccount(journal_id="j")
        self.at = 0.0
        self.look()

    def look(self, seconds: float = 0.0, *, holders_known: bool = True) -> None:
        self.at += seconds
        readings = {}
        for i, counter in enumerate(self.counters):
            if counter is not None:
                self.counters[i] = counter + round(self.watts[i] * 1000 * seconds)
            if self.readable[i]:
                readings[f"GPU-{i}"] = CardReading(typed(Millijoules, self.counters[i]))
        for hold in self.holders:
            self.account.open(hold.pod, namespace="team", name=hold.pod, uid=f"uid-{hold.pod}")
        self.account.advance(
            readings,
            {f"GPU-{i}": self.holders for i in range(len(self.watts))} if holders_known else None,
            at=self.at,
            wall=WALL + self.at,
            boot="b",
        )

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.look(1.0)

    def draws(self) -> dict[str, int | None]:
        return {e.name: e.draw_milliwatts for e in report_pods(self.account, at=self.at)}


@pytest.mark.parametrize(("seconds", "told"), [(0, None), (1, None), (2, 500_000), (60, 500_000)])
def test_it_is_known_from_two_seconds_on_and_of_all_cards(seconds: int, told: int | None) -> None:
    node = Node(200, 300)
    node.run(seconds)
    assert node.draws() == {"a": told}


@pytest.mark.parametrize(("seconds", "told"), [(0, 100_000), (5, 150_000), (10, 200_000), (30, 200_000)])
def test_it_is_that_of_the_last_ten_seconds(seconds: int, told: int) -> None:
    node = Node(100)
    node.run(60)
    node.watts = [200]
    node.run(seconds)
    assert node.draws() == {"a": pytest.approx(told, rel=0.06)}


def test_a_shared_card_draws_for_each_its_share() -> None:
    node = Node(400, shared=True)
    node.run(20)
    assert node.draws() == {"a": 100_000, "b": 300_000}


def test_a_new_holder_of_a_card_does_not_draw_what_the_one_before_did() -> None:
    node = Node(400)
    node.run(20)
    node.holders = (Allocated("b"),)
    node.watts = [50]
    node.run(1)
    assert node.draws() == {"a": 0, "b": None}
    node.run(2)
    assert node.draws() == {"a": 0, "b": 50_000}


@pytest.mark.parametrize(("seconds", "told"), [(1, 500_000), (9, 500_000), (11, None), (600, None)])
def test_once_a_card_it_holds_is_not_read_for_ten_seconds_it_is_not_known(
    seconds: int, told: int | None
) -> None:
    node = Node(200, 300)
    node.run(20)
    node.readable[1] = False
    node.run(seconds)
    assert node.draws() == {"a": told}


def test_energy_that_piled_up_while_a_card_was_not_read_is_no_draw_of_now() -> None:
    node = Node(200)
    node.run(20)
    node.readable[0] = False
    node.run(60)
    node.readable[0], node.watts = True, [100]
    node.run(1)
    assert node.draws() == {"a": None}
    node.run(2)
    assert node.draws() == {"a": 100_000}


def test_a_card_that_tells_nothing_makes_it_unknown_and_not_zero() -> None:
    node = Node(200)
    node.counters = [None]
    node.run(20)
    assert node.draws() == {"a": None}


@pytest.mark.parametrize(("seconds", "told"), [(5, 200_000), (11, None)])
def test_while_nobody_says_who_holds_what_it_is_not_known(seconds: int, told: int | None) -> None:
    node = Node(200)
    node.run(20)
    for _ in range(seconds):
        node.look(1.0, holders_known=False)
    assert node.draws() == {"a": told}


def test_where_the_agent_does_not_look_any_more_it_is_not_known() -> None:
    node = Node(200)
    node.run(20)
    node.at += 11
    assert node.draws() == {"a": None}


def test_an_ended_pod_draws_nothing() -> None:
    node = Node(200)
    node.run(20)
    node.account.close("a", wall=WALL)
    node.at += 600
    assert node.draws() == {"a": 0}


def test_it_is_not_in_the_journal() -> None:
    node = Node(200)
    node.run(20)
    node.account.add_host(Millijoules(500_000), Millijoules(0), {"a": 1.0}, begin=WALL + 15, end=WALL + 20)
    node.account = NodeAccount.from_json(node.account.to_json())
    assert node.draws() == {"a": None}
    node.look(1.0)
    assert node.draws() == {"a": None}
    node.run(2)
    assert node.draws() == {"a": 200_000}


def test_processors_and_memory_count_as_long_as_they_are_read() -> None:
    node = Node(200)
    for _ in range(4):
        node.run(5)
        wall = WALL + node.at
        node.account.add_host(
            Millijoules(300_000), Millijoules(100_000), {"a": 0.5}, begin=wall - 5, end=wall
        )
    assert node.draws() == {"a": 240_000}
    node.run(8)
    assert node.draws() == {"a": 240_000}
    node.run(8)
    assert node.draws() == {"a": 200_000}
