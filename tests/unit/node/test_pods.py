"""A pod in its node's account from its first hold to the operator's settling, and what a report has of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.energy.account import KEPT_SECONDS, NodeAccount
from greentrain.energy.attribution import Allocated, Window
from greentrain.node.allocations import Allocations, pod_key
from greentrain.node.pods import (
    Dropped,
    StandIn,
    close_pods,
    drop_settled,
    find_host_shares,
    find_known,
    find_windows,
    inherit,
    name_pods,
    open_pods,
    open_without_gpu,
    sum_up,
)
from greentrain.node.report import choose_pods
from greentrain.quantities import Millijoules
from tests.support.world.pods import HoldingPod, SeenPod

WALL = 1_767_225_600.0
A = SeenPod("a", "uid-a")
KEY = pod_key("team", "a", "uid-a")
NAMELESS = pod_key("team", "a", None)


def hold(uid: str | None = "uid-a") -> Allocations:
    key = pod_key("team", "a", uid)
    return Allocations({"GPU-0": [Allocated(key)]}, {key: HoldingPod("a", uid)})


def begin(uid: str | None = "uid-a", *, joules: int = 7) -> NodeAccount:
    """An account of one pod that has used something."""
    account = NodeAccount(journal_id="j")
    assert open_pods(account, hold(uid), {"uid-a": A} if uid else {})
    account.pods[pod_key("team", "a", uid)].add(
        Millijoules(joules * 1000), begin=WALL, end=WALL, estimated=Millijoules(0)
    )
    return account


def close(account: NodeAccount, allocations: Allocations, *pods: SeenPod) -> bool:
    return close_pods(
        account, allocations, {p.uid: p for p in pods}, wall=WALL, name_unseen=lambda: "unseen-1"
    )


def test_a_pod_that_holds_a_card_is_opened_once_and_has_its_owner() -> None:
    account = begin()
    assert not open_pods(account, hold(), {"uid-a": A})
    pod = account.pods[KEY]
    assert (pod.job, pod.job_uid, pod.owner_known) == ("digits", "uid-1", True)


def test_a_pod_is_named_when_the_api_server_shows_it() -> None:
    account = begin(None)
    assert not name_pods(account, [])
    assert name_pods(account, [A])
    assert not name_pods(account, [A])
    assert (list(account.pods), account.pods[KEY].gpu, account.pods[KEY].job_uid) == ([KEY], 7000, "uid-1")


@pytest.mark.parametrize(
    ("allocations", "pods", "closed"),
    [
        (hold(), (), False),
        (Allocations(), (A,), False),
        (Allocations(), (), True),
        (Allocations(), (SeenPod("a", "uid-a", terminal=True),), True),
        (Allocations(), (SeenPod("a", "uid-of-the-next"),), True),
    ],
    ids=["it holds", "it runs", "it is gone", "it has ended", "another of its name"],
)
def test_a_pod_is_closed_that_holds_nothing_and_has_ended(
    allocations: Allocations, pods: tuple[SeenPod, ...], closed: bool
) -> None:
    account = begin()
    assert close(account, allocations, *pods) is closed
    assert (account.pods[KEY].closed is not None) is closed
    assert not close(account, allocations, *pods)


def test_a_pod_that_was_never_shown_is_reported_by_a_name_of_ours() -> None:
    account = begin(None)
    assert choose_pods(account, at=0.0) == ()
    assert close(account, Allocations())
    assert [(p.uid, p.gpu_joules, p.closed) for p in choose_pods(account, at=0.0)] == [("unseen-1", 7, True)]


def ended() -> NodeAccount:
    account = begin()
    close(account, Allocations())
    return account


def inherited() -> NodeAccount:
    account = NodeAccount(journal_id="j")
    assert inherit(account, BEFORE) == 1
    return account


BEFORE = NodePowerStatus(
    journal_id="before",
    pods=(PodEnergy(uid="uid-a", namespace="team", name="a", gpu_joules=7),),
)


@pytest.mark.parametrize("make", [ended, inherited])
def test_the_last_reading_of_a_pod_is_reported_until_it_is_settled(make: Callable[[], NodeAccount]) -> None:
    account = make()
    for keys, found in (((), 1), (("uid-b/0", "uid-a/1"), 1), (("uid-a/0",), 0)):
        gone = drop_settled(account, keys, wall=WALL + 1)
        assert gone == Dropped(new=found == 0)
        entries = choose_pods(account, at=0.0)
        assert [(p.uid, p.gpu_joules, p.closed) for p in entries] == [("uid-a", 7, True)] * found
    # Settled energy is still the node's.
    assert account.settled == (0 if make is inherited else 7000)


def test_a_pod_that_lives_is_not_let_go_whatever_is_settled() -> None:
    account = begin()
    assert drop_settled(account, ["uid-a/0"], wall=WALL) == Dropped(new=False)
    assert len(choose_pods(account, at=0.0)) == 1


def test_what_no_operator_settles_is_dropped_after_a_day() -> None:
    account = ended()
    assert drop_settled(account, (), wall=WALL + KEPT_SECONDS - 1).overdue == ()
    assert drop_settled(account, (), wall=WALL + KEPT_SECONDS) == Dropped(new=True, overdue=(KEY,))


@pytest.mark.parametrize(
    "before", [None, NodePowerStatus(journal_id="before"), BEFORE.model_copy(update={"journal_id": "j"})]
)
def test_nothing_is_inherited_from_no_report_an_empty_one_or_its_own(before: NodePowerStatus | None) -> None:
    account = begin()
    assert inherit(account, before) == 0
    assert account.inherited == {}


def test_what_a_pod_has_used_is_what_was_counted_before_and_after_a_lost_journal() -> None:
    account = begin()
    inherit(account, BEFORE)
    counted = sum_up(account)["uid-a"]
    assert (counted.used.gpu, counted.open) == (14_000, True)
    assert not sum_up(inherited())["uid-a"].open


def test_while_the_api_server_shows_no_pods_those_of_the_account_stand_in() -> None:
    account = begin()
    assert find_known(account, [A], known=True) == [A]
    assert find_known(account, [], known=True) == []
    assert find_known(account, [], known=False) == [StandIn("team", "a", "uid-a")]
    assert find_known(account, [A], known=False) == [A]
    assert find_known(ended(), [], known=False) == []


def test_when_pods_began_is_put_on_the_clock_of_the_readings() -> None:
    pods = [
        SeenPod("a", "uid-a", began=WALL, ended=WALL + 5),
        SeenPod("b", "uid-b", began=WALL),
        SeenPod("c", "uid-c"),
    ]
    found = find_windows(pods, offset=100.0 - WALL)
    assert found == {KEY: Window(100.0, 105.0), pod_key("team", "b", "uid-b"): Window(100.0, None)}


def test_pods_of_jobs_without_a_gpu_have_a_share_of_the_processors_and_strangers_have_none() -> None:
    account = ended()
    pods = [
        SeenPod("ps", "uid-ps"),
        SeenPod("other", "uid-other", job=None, job_uid=None),
        SeenPod("done", "uid-done", terminal=True),
    ]
    open_without_gpu(account, pods)
    shares = find_host_shares(account, {"uid-ps": 0.25, "uid-a": 0.5, "uid-other": 0.1})
    assert shares == {pod_key("team", "ps", "uid-ps"): 0.25}
