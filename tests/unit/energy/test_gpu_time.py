"""How long a pod has held GPUs, by model: as its energy is divided, and also where a card cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from greentrain.api.nodepower import GpuTime, PodEnergy
from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Allocated, Window
from greentrain.energy.cards import Make
from greentrain.energy.intervals import CardReading
from greentrain.energy.report import report_pod
from greentrain.quantities import Millijoules

WALL = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
A, B = Allocated("a"), Allocated("b")
TWO = (Allocated("a", 0.5, alone=False), Allocated("b", 0.5, alone=False))
MAKES = {"GPU-1": Make("Tesla V100"), "GPU-2": Make("Tesla V100"), "GPU-3": Make("A100")}


@dataclass(frozen=True)
class Look:
    """One look at one card."""

    at: float
    held: tuple[Allocated, ...] | None
    """None where the kubelet did not say."""
    readable: bool = True
    boot: str = "boot-1"
    restarted: bool = False
    """Whether the agent began anew before it."""
    windows: tuple[tuple[str, Window], ...] = ()


def account_after(looks: list[Look]) -> NodeAccount:
    account = NodeAccount(journal_id="j")
    for look in looks:
        if look.restarted:
            account = NodeAccount.from_json(account.to_json())
        for hold in look.held or ():
            account.open(hold.pod, namespace="team", name=hold.pod, uid=f"uid-{hold.pod}")
        account.note_cards(MAKES)
        account.advance(
            {"GPU-1": CardReading(Millijoules(int(look.at * 1000)))} if look.readable else {},
            None if look.held is None else {"GPU-1": look.held},
            at=look.at,
            wall=WALL + look.at,
            boot=look.boot,
            windows=dict(look.windows),
        )
    return account


STORIES: dict[str, tuple[list[Look], dict[str, int]]] = {
    "one pod, second by second": ([Look(s, (A,)) for s in range(11)], {"a": 10_000}),
    "it began between two looks": ([Look(0, ()), Look(1, (A,)), Look(2, (A,))], {"a": 1500}),
    "it ended between two looks": ([Look(0, (A,)), Look(1, (A,)), Look(2, ()), Look(9, ())], {"a": 1500}),
    "one after the other": ([Look(0, (A,)), Look(1, (B,)), Look(2, (B,))], {"a": 500, "b": 1500}),
    "the agent was away": ([Look(0, (A,)), Look(100, (A,), restarted=True)], {"a": 100_000}),
    "the agent was away while another came": (
        [
            Look(0, (A,)),
            Look(
                100,
                (B,),
                restarted=True,
                windows=(("a", Window(0, 30.0)), ("b", Window(60.0))),
            ),
        ],
        {"a": 30_000, "b": 40_000},
    ),
    "the kubelet was silent": ([Look(0, (A,)), Look(5, None), Look(10, (A,))], {"a": 10_000}),
    "the card was not read": (
        [Look(0, (A,)), *(Look(s, (A,), readable=False) for s in range(1, 8))],
        {"a": 7000},
    ),
    "the card was never read": ([Look(s, (A,), readable=False) for s in range(8)], {"a": 7000}),
    "the card was not read while another came": (
        [Look(0, (A,)), Look(1, (A,), readable=False), Look(2, (B,), readable=False), Look(3, (B,))],
        {"a": 1500, "b": 1500},
    ),
    "two share it": ([Look(0, TWO), Look(1, TWO), Look(2, TWO)], {"a": 1000, "b": 1000}),
    "a part of it": (
        [Look(s, (Allocated("a", 3 / 7, alone=False),)) for s in (0, 7)],
        {"a": 3000},
    ),
    "the machine was down": (
        [
            Look(1000, (A,)),
            Look(30, (A,), boot="boot-2", restarted=True, windows=(("a", Window(20.0)),)),
            Look(35, (A,), boot="boot-2"),
        ],
        {"a": 15_000},
    ),
    "the card is not read after the machine was down": (
        [
            Look(1000, (A,)),
            Look(30, (A,), boot="boot-2", readable=False, windows=(("a", Window(20.0)),)),
            Look(35, (A,), boot="boot-2", readable=False),
        ],
        {"a": 15_000},
    ),
    "two looks at one time": ([Look(0, (A,)), Look(0, (A,)), Look(0, (B,))], {"a": 0, "b": 0}),
    "looks at odd times": ([Look(0.1 + s * 1.0003, (A,)) for s in range(1001)], {"a": 1_000_300}),
}


@pytest.mark.parametrize(("looks", "expected"), STORIES.values(), ids=STORIES)
def test_time_is_counted_where_the_holders_are_known(looks: list[Look], expected: dict[str, int]) -> None:
    account = account_after(looks)
    found = {name: pod.held.get("Tesla V100", 0) for name, pod in account.pods.items()}
    assert found == {name: pytest.approx(held, abs=1) for name, held in expected.items()}


def test_it_is_told_by_model_in_whole_seconds() -> None:
    account = NodeAccount(journal_id="j")
    account.open("a", namespace="team", name="a", uid="uid-a")
    for at in (0.0, 1.0, 2.9):
        cards = dict.fromkeys(MAKES, (A,))
        account.note_cards(MAKES)
        account.advance({}, cards, at=at, wall=WALL + at, boot="b")
    assert report_pod(account.pods["a"]).gpu_time == (
        GpuTime(model="A100", seconds=2),
        GpuTime(model="Tesla V100", seconds=5),
    )


def test_a_card_that_is_not_listed_any_more_keeps_its_model_and_one_that_never_was_has_none() -> None:
    account = NodeAccount(journal_id="j")
    account.open("a", namespace="team", name="a", uid="uid-a")
    cards = {"GPU-1": (A,), "GPU-9": (A,)}
    account.note_cards(MAKES)
    account.advance({}, cards, at=0, wall=WALL, boot="b")
    account = NodeAccount.from_json(account.to_json())
    account.advance({}, cards, at=5, wall=WALL, boot="b")
    assert account.pods["a"].held == {"Tesla V100": 5000, "": 5000}


def test_a_journal_of_an_agent_that_did_not_count_it_begins_from_nothing() -> None:
    old = (
        b'{"journal_id": "j", "cards": {"GPU-1": {"last": {"at": 1, "wall": 1, "boot": "b", "counter": 5}}},'
    )
    old += b' "pods": {"a": {"namespace": "team", "name": "a", "uid": "uid-a", "gpu": 7000}}}'
    account = NodeAccount.from_json(old)
    told = report_pod(account.pods["a"])
    assert (told.gpu_joules, told.gpu_time, told.buckets.host_joules) == (7, (), ())


def test_time_before_the_uid_was_known_is_not_lost_with_the_name() -> None:
    account = NodeAccount(journal_id="j")
    for at, key in ((0, "new"), (4, "new"), (5, "old"), (8, "old")):
        account.open(key, namespace="team", name="a", uid="" if key == "old" else "uid-a")
        account.note_cards(MAKES)
        account.advance({}, {"GPU-1": (Allocated(key),)}, at=at, wall=WALL + at, boot="b")
    assert account.pods["old"].held == {"Tesla V100": 3500}
    account.name("old", "new", uid="uid-a")
    assert account.pods["new"].held == {"Tesla V100": 8000}
    account.note_cards(MAKES)
    account.advance({}, {"GPU-1": (Allocated("new"),)}, at=10, wall=WALL + 10, boot="b")
    assert account.pods["new"].held == {"Tesla V100": 10_000}


def test_what_an_account_before_had_told_is_told_on_and_draws_nothing() -> None:
    account = NodeAccount(journal_id="j")
    time = (GpuTime(model="A100", seconds=77),)
    entry = PodEnergy(uid="u", namespace="team", name="a", gpu_time=time, draw_milliwatts=250_000)
    account.inherit((entry,), lambda _: "a")
    (told,) = account.inherited.values()
    assert (told.gpu_time, told.draw_milliwatts, told.closed) == (time, 0, True)
