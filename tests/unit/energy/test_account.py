"""Whatever happens between readings, every millijoule a counter shows goes to exactly one place."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.api.nodepower import BUCKET_SECONDS, KEPT_BUCKETS, PodEnergy
from greentrain.energy.account import KEPT_SECONDS, PATIENCE_SECONDS, NodeAccount
from greentrain.energy.attribution import Allocated, Window
from greentrain.energy.intervals import CardReading, measure, measure_since_start
from greentrain.energy.pods import by_quarter
from greentrain.energy.report import report_pod, report_pods
from greentrain.quantities import Millijoules, Milliwatts, typed

WALL = datetime(2026, 1, 1, 0, 7, tzinfo=UTC).timestamp()


def account_of(*pods: str) -> NodeAccount:
    account = NodeAccount(journal_id="j")
    for name in pods:
        account.open(name, namespace="team", name=name, uid=f"uid-{name}")
    return account


def look(
    account: NodeAccount,
    at: float,
    counter: int | None,
    *holders: Allocated,
    draw: int | None = None,
    busy: bool = False,
    boot: str = "boot-1",
    windows: dict[str, Window] | None = None,
) -> None:
    reading = CardReading(typed(Millijoules, counter), typed(Milliwatts, draw), busy)
    account.advance({"GPU-1": reading}, {"GPU-1": holders}, at=at, wall=WALL + at, boot=boot, windows=windows)


A, B = Allocated("a"), Allocated("b")


def test_what_a_pod_held_throughout_is_its() -> None:
    account = account_of("a")
    for second, counter in ((0, 5_000), (1, 5_300), (2, 5_700)):
        look(account, second, counter, A)
    assert (account.pods["a"].gpu, account.idle, account.pods["a"].error) == (700, 0, 0)


@pytest.mark.parametrize(("busy", "where"), [(False, "idle"), (True, "unattributed")])
def test_what_nobody_held_is_idle_or_unattributed(busy: bool, where: str) -> None:
    account = account_of()
    look(account, 0, 0, busy=busy)
    look(account, 1, 60_001, busy=busy)
    assert getattr(account, where) == account.used == 60_001


def test_an_interval_in_which_a_pod_began_is_half_its_and_half_in_doubt() -> None:
    account = account_of("a")
    look(account, 0, 0)
    look(account, 1, 200_000, A)
    assert (account.pods["a"].gpu, account.idle) == (100_000, 100_000)
    assert account.pods["a"].error == pytest.approx(1.1 * 100_000 * 1.1)


def test_doubts_of_cards_hang_together_and_those_of_moments_do_not() -> None:
    account = account_of("a")
    for at, counter, held in ((0, 0, ()), (1, 1000, (A,)), (2, 2000, (A,)), (3, 3000, ())):
        readings = {f"GPU-{i}": CardReading(Millijoules(counter)) for i in range(4)}
        account.advance(readings, dict.fromkeys(readings, held), at=at, wall=WALL + at, boot="b")
    once = 4 * 1000 * 0.5 * 1.1
    assert account.pods["a"].error == pytest.approx(1.1 * (2 * once**2) ** 0.5)


@pytest.mark.parametrize(
    ("windows", "a", "b"),
    [
        ({"a": Window(end=125.0), "b": Window(begin=150.0)}, 25_000, 50_000),
        ({"b": Window(begin=190.0)}, 50_000, 10_000),
        ({}, 50_000, 50_000),
        ({"a": Window(end=180.0), "b": Window(begin=110.0)}, 47_058, 52_942),
    ],
    ids=["both say when", "one does", "neither", "clocks that cannot both be right"],
)
def test_a_gap_is_bridged_by_the_counter_and_divided_by_the_pods_own_times(
    windows: dict[str, Window], a: int, b: int
) -> None:
    account = account_of("a", "b")
    look(account, 100, 0, A)
    look(account, 200, 100_000, B, windows=windows)
    assert (account.pods["a"].gpu, account.pods["b"].gpu) == (a, b)
    assert account.idle == 100_000 - a - b
    assert account.pods["b"].error > 0


@pytest.mark.parametrize(
    ("windows", "first"),
    [({"b": Window(begin=8000.0)}, 8000), ({"b": Window(begin=9500.0)}, 9000), ({}, 100)],
    ids=["it began in the gap", "it began after it was seen", "it is not known when it began"],
)
def test_what_a_pod_used_in_a_gap_is_dated_from_its_beginning(windows: dict[str, Window], first: int) -> None:
    """A reading older than its pod would not be believed."""
    account = account_of("b")
    look(account, 100, 0)
    look(account, 9000, 100_000, B, windows=windows)
    pod = account.pods["b"]
    assert pod.first == WALL + first
    assert sum(pod.buckets.values()) == pod.gpu


def test_a_gap_of_the_holders_leaves_the_card_where_it_was() -> None:
    account = account_of("a")
    look(account, 0, 0, A)
    account.advance({"GPU-1": CardReading(Millijoules(5_000))}, None, at=5, wall=WALL + 5, boot="boot-1")
    assert account.pods["a"].gpu == 0
    look(account, 10, 10_000, A)
    assert (account.pods["a"].gpu, account.pods["a"].error) == (10_000, 0)


def test_a_counter_that_went_back_is_a_new_beginning_and_what_it_lost_an_estimate() -> None:
    account = account_of("a")
    look(account, 0, 900_000, A, draw=200_000)
    look(account, 1, 50_000, A, draw=200_000)
    pod = account.pods["a"]
    assert (pod.gpu, pod.estimated) == (200_000, 150_000)
    assert pod.error >= 150_000
    look(account, 2, 250_000, A, draw=200_000)
    assert (account.cards["GPU-1"].measured, account.cards["GPU-1"].estimated) == (250_000, 150_000)


def test_a_counter_that_began_anew_unseen_and_has_overtaken_itself_is_found_out() -> None:
    account = account_of("a")
    for second in range(3):
        look(account, second, 1_000 + 50_000 * second, draw=50_000)
    look(account, 3, 151_000, A, draw=50_000)
    look(account, 13, 160_000, A, draw=50_000)  # 0.9 W on the average: no card draws so little
    assert account.pods["a"].missing_seconds == 10
    assert account.cards["GPU-1"].measured == 150_000 + 160_000


def test_a_reboot_ends_what_was_and_the_counter_counts_from_its_start() -> None:
    account = account_of("a", "b")
    look(account, 1000, 900_000, A)
    look(account, 30, 30_000, B, boot="boot-2", windows={"b": Window(begin=20.0)})
    assert (account.pods["a"].gpu, account.pods["b"].gpu) == (0, 10_000)
    assert account.idle == 20_000


def test_power_is_added_up_where_there_is_no_counter_and_called_an_estimate() -> None:
    account = account_of("a")
    look(account, 0, None, A, draw=100_000)
    look(account, 1, None, A, draw=200_000)
    pod = account.pods["a"]
    assert (pod.gpu, pod.estimated, pod.missing_seconds) == (150_000, 150_000, 0)
    look(account, 600, None, A, draw=200_000)
    assert (pod.gpu, pod.missing_seconds) == (150_000, 599)


def test_a_card_that_tells_nothing_is_missing_and_not_zero() -> None:
    account = account_of("a")
    look(account, 0, None, A)
    look(account, 7, None, A)
    assert (account.pods["a"].gpu, account.pods["a"].missing_seconds) == (0, 7)


def test_a_time_shared_card_is_divided_and_its_sum_the_boards() -> None:
    account = account_of("a", "b")
    both = (Allocated("a", alone=False), Allocated("b", alone=False))
    look(account, 0, 0, *both)
    look(account, 1, 1_001, *both)
    assert sorted(p.gpu for p in account.pods.values()) == [500, 501]
    assert all(p.estimated == p.gpu for p in account.pods.values())


def test_parts_of_a_mig_card_that_nobody_holds_are_idle() -> None:
    account = account_of("a", "b")
    parts = (Allocated("a", 3 / 7, alone=False), Allocated("b", 2 / 7, alone=False))
    look(account, 0, 0, *parts, busy=True)
    look(account, 1, 700_000, *parts, busy=True)
    got = [account.pods[p].gpu for p in "ab"]
    assert got == [pytest.approx(300_000, abs=1), pytest.approx(200_000, abs=1)]
    assert (account.idle + sum(got), account.unattributed) == (700_000, 0)


def test_an_ended_pod_is_let_go_once_and_what_it_uses_later_is_another_segment() -> None:
    account = account_of("a")
    look(account, 0, 0, A)
    look(account, 1, 5_000, A)
    account.settle(["a"])  # not ended
    assert "a" in account.pods
    look(account, 2, 5_000)
    account.close("a", wall=WALL)
    account.settle(["a", "a"])
    assert (account.settled, account.pods) == (5_000, {})
    again = account.open("a", namespace="team", name="a", uid="uid-a")
    assert again.segment == 1
    look(account, 3, 5_000, A)
    look(account, 4, 6_000, A)
    assert account.settled + again.gpu + account.idle == account.used


def test_energy_falls_into_the_quarter_of_an_hour_in_which_it_was_used() -> None:
    account = account_of("a")
    look(account, 0, 0, A)
    look(account, 1800, 1_800_001, A)
    told = report_pod(account.pods["a"])
    assert told.buckets.start == "2026-01-01T00:00:00Z"
    assert told.buckets.joules == (480, 900, 420)
    assert told.gpu_joules == 1800


def test_a_clock_that_was_wrong_for_a_moment_does_not_stretch_the_list_of_quarters() -> None:
    account = account_of("a")
    for wall, at in ((WALL, 0.0), (0.0, 1.0), (WALL + 2, 2.0), (WALL + 3, 3.0)):
        reading = {"GPU-1": CardReading(Millijoules(int(at * 1000)))}
        account.advance(reading, {"GPU-1": (A,)}, at=at, wall=wall, boot="b")
    (told,) = report_pods(account)
    assert len(told.buckets.joules) <= KEPT_BUCKETS
    assert told.buckets.earlier_joules + sum(told.buckets.joules) == told.gpu_joules == 3


@given(
    amount=st.integers(0, 10**12),
    begin=st.floats(0, 4e9),
    length=st.floats(0, 40_000),
)
def test_a_division_by_quarters_loses_nothing(amount: int, begin: float, length: float) -> None:
    parts = by_quarter(Millijoules(amount), begin=begin, end=begin + length)
    assert sum(p for _, p in parts) == amount
    assert all(p >= 0 for _, p in parts)
    assert all(start % BUCKET_SECONDS == 0 for start, _ in parts)


PODS = ["a", "b", "c", "d"]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, object]]:
    hold = st.one_of(
        st.just(()),
        st.sampled_from(PODS).map(lambda p: (Allocated(p),)),
        st.lists(st.sampled_from(PODS), min_size=1, max_size=4, unique=True).map(
            lambda ps: tuple(Allocated(p, alone=False) for p in ps)
        ),
        st.lists(st.sampled_from(PODS), min_size=1, max_size=3, unique=True).map(
            lambda ps: tuple(Allocated(p, 2 / 7, alone=False) for p in ps)
        ),
    )
    step = st.one_of(
        st.tuples(
            st.just("look"),
            st.tuples(
                st.floats(0.2, 4000),
                st.integers(0, 10**6),
                hold,
                st.booleans(),
                st.sampled_from(["counter", "counter", "counter", "draw", "nothing"]),
            ),
        ),
        st.tuples(
            st.sampled_from(["holders unknown", "unreadable", "reset", "reboot", "restart"]), st.none()
        ),
        st.tuples(st.sampled_from(["close", "settle"]), st.sampled_from(PODS)),
        st.tuples(
            st.just("host"),
            st.tuples(
                st.integers(0, 10**5),
                st.integers(0, 10**4),
                st.dictionaries(st.sampled_from(PODS), st.floats(0, 1)),
            ),
        ),
    )
    return draw(st.lists(step, max_size=40))


@settings(max_examples=300)
@given(stories())
def test_pods_idle_and_unattributed_are_what_the_board_counted_whatever_happens(
    story: list[tuple[str, object]],
) -> None:
    account = account_of(*PODS)
    at, wall, counter, boot = 0.0, WALL, 10_000, 1
    last_told: dict[tuple[str, int], int] = {}
    times: dict[tuple[str, int, str], int] = {}
    elapsed = 0.0
    for act, what in story:
        if act == "reset":
            counter = 0
        elif act == "reboot":
            boot, at, counter = boot + 1, 0.0, 0
        elif act == "restart":
            account = NodeAccount.from_json(account.to_json())
        elif act == "close":
            account.close(str(what), wall=wall)
        elif act == "settle":
            account.settle([str(what)])
        elif act == "holders unknown":
            account.advance(
                {"GPU-1": CardReading(Millijoules(counter))}, None, at=at, wall=wall, boot=str(boot)
            )
        elif act == "unreadable":
            account.advance({}, {"GPU-1": ()}, at=at, wall=wall, boot=str(boot))
        elif act == "host":
            assert isinstance(what, tuple)
            account.add_host(*what, begin=wall - 5, end=wall)
        else:
            assert isinstance(what, tuple)
            seconds, used, held, busy, source = what
            at, wall, counter, elapsed = at + seconds, wall + seconds, counter + used, elapsed + seconds
            for h in held:
                account.open(h.pod, namespace="team", name=h.pod, uid=f"uid-{h.pod}")
            reading = CardReading(
                counter if source == "counter" else None,
                typed(Milliwatts, None if source == "nothing" else 100_000),
                busy,
            )
            account.advance({"GPU-1": reading}, {"GPU-1": held}, at=at, wall=wall, boot=str(boot))
        pods = account.pods.values()
        held_sum = sum(p.gpu for p in pods) + account.settled + account.idle + account.unattributed
        assert held_sum == account.used
        for pod in pods:
            told = report_pod(pod)
            assert told.joules == pod.total // 1000
            assert told.buckets.earlier_joules + sum(told.buckets.joules) == told.joules
            key = (pod.uid, pod.segment)
            assert told.joules >= last_told.get(key, 0), "what was told never falls"
            last_told[key] = told.joules
            host = told.buckets.host_joules
            assert told.buckets.earlier_host_joules + sum(host) == told.cpu_joules + told.dram_joules
            assert len(host) in (0, len(told.buckets.joules))
            assert all(0 <= part <= whole for part, whole in zip(host, told.buckets.joules, strict=False))
            for entry in told.gpu_time:
                assert entry.seconds >= times.get((*key, entry.model), 0), "nor does the time"
                times[*key, entry.model] = entry.seconds
            assert 0 <= pod.estimated <= pod.total
        assert sum(times.values()) <= elapsed + 0.001, "one card is held no longer than it was there"


@given(
    counters=st.lists(st.integers(0, 10**6), min_size=2, max_size=30),
    resets=st.sets(st.integers(1, 29)),
)
def test_what_was_measured_is_the_sum_of_the_counters_segments(counters: list[int], resets: set[int]) -> None:
    account = account_of("a")
    counter, expected = 0, 0
    for i, used in enumerate(counters):
        # Enough for a counter that began anew to be below what it was.
        counter = used if i in resets else counter + used
        began_anew = i in resets and account.cards and counter < (account.cards["GPU-1"].last.counter or 0)  # type: ignore[union-attr]
        if i:
            before = account.cards["GPU-1"].last
            assert before is not None
            expected += counter if began_anew else counter - (before.counter or 0)
        look(account, float(i), counter, A)
    assert account.cards["GPU-1"].measured == expected


def test_an_interval_says_how_well_it_is_known() -> None:
    steady = measure(CardReading(None, Milliwatts(100_000)), CardReading(None, Milliwatts(100_000)), 1.0)
    stepping = measure(CardReading(None, Milliwatts(100_000)), CardReading(None, Milliwatts(300_000)), 1.0)
    assert (steady.uncertain, stepping.uncertain) == (0, 100_000)
    lost = measure(
        CardReading(Millijoules(900_000), Milliwatts(200_000)),
        CardReading(Millijoules(50_000), Milliwatts(100_000)),
        1.0,
    )
    hidden = measure(
        CardReading(Millijoules(900_000), Milliwatts(200_000)),
        CardReading(Millijoules(90_000), Milliwatts(0)),
        1.0,
    )
    assert (lost.total, lost.uncertain) == (150_000, 100_000), "all that was lost may be too much"
    assert (hidden.total, hidden.uncertain) == (100_000, 100_000), "it may have drawn the most all the time"
    assert measure_since_start(CardReading(Millijoules(7)), 5.0).total == 7
    assert measure_since_start(CardReading(None, Milliwatts(7)), 5.0).missing_seconds == 5.0


def test_a_reading_dated_late_beside_a_card_that_hangs_is_no_counter_that_began_anew() -> None:
    account = account_of("a")
    for second in range(5):
        look(account, second, second * 45_000)
    look(account, 5, 5 * 45_000, A)
    # Taken a second after the last one, dated two seconds later: idle energy of one second in three.
    look(account, 8, 6 * 45_000, A)
    assert account.used == 6 * 45_000


def test_two_looks_at_one_time_teach_no_idle_draw() -> None:
    account = account_of()
    look(account, 0, 0)
    look(account, 1, 45_000)
    look(account, 1, 90_000)
    look(account, 1.01, 135_000)
    look(account, 2, 180_000)
    assert account.cards["GPU-1"].idle_draw == pytest.approx(45_000, rel=0.05)
    assert account.idle == 180_000


def test_what_lies_between_the_last_report_of_a_lost_account_and_a_new_ones_first_reading_is_missing() -> (
    None
):
    account = account_of("a")
    look(account, 100, 0, A)
    told = datetime.fromtimestamp(WALL + 40, UTC).isoformat()
    entry = PodEnergy(uid="uid-a", namespace="team", name="a", gpu_joules=7, last_reading=told)
    account.inherit((entry,), lambda _: "a")
    assert account.pods["a"].missing_seconds == pytest.approx(60)
    assert account.pods["a"].segment == 1, "told apart from what was told before"


@pytest.mark.parametrize("dropped", [False, True])
def test_what_let_go_pods_used_stays_in_the_nodes_sums(dropped: bool) -> None:
    account = account_of("a", "b")
    for name in ("a", "b"):
        pod = account.pods[name]
        pod.gpu, pod.cpu, pod.dram = Millijoules(100), Millijoules(20), Millijoules(3)
        account.close(name, wall=WALL)
        account.settle([name], dropped=dropped)
    assert (account.settled, account.host_settled, account.dropped) == (200, 46, 2 * dropped)


def test_nobody_comes_for_a_pod_for_a_day_and_it_is_dropped() -> None:
    account = account_of("a", "b")
    account.close("a", wall=WALL)
    assert account.drop_overdue(wall=WALL + KEPT_SECONDS - 1) == []
    assert account.drop_overdue(wall=WALL + KEPT_SECONDS) == ["a"]
    assert (account.dropped, list(account.pods)) == (1, ["b"])


def test_a_card_that_does_not_come_back_leaves_its_pods_time_missing() -> None:
    account = account_of("a")
    look(account, 0, 0, A)
    account.advance({}, {"GPU-1": (A,)}, at=30, wall=WALL + 30, boot="boot-1")
    account.close("a", wall=WALL + 30)
    assert account.give_up(wall=WALL + 30 + PATIENCE_SECONDS - 1) == []
    assert account.give_up(wall=WALL + 30 + PATIENCE_SECONDS) == ["a"]
    assert account.pods["a"].missing_seconds == 30
    account.settle(["a"])
    assert account.pods == {}


@pytest.mark.parametrize(("at", "missing"), [(30.0, 3.0), (33.0, 0.0), (2.0, 10.0)])
def test_what_a_pod_used_before_a_reboot_and_after_its_last_reading_is_missing(
    at: float, missing: float
) -> None:
    account = account_of("a")
    look(account, 1000, 900_000, A)
    reading = CardReading(Millijoules(30_000))
    account.advance({"GPU-1": reading}, {"GPU-1": ()}, at=at, wall=WALL + 1000 + 33, boot="boot-2")
    assert account.pods["a"].missing_seconds == missing


def test_what_was_divided_unseen_is_in_the_bound() -> None:
    account = account_of("a")
    look(account, 0, 0)
    look(account, 100, 100_000, A)
    assert (account.pods["a"].gpu, account.pods["a"].guessed) == (50_000, 50_000)
    assert account.pods["a"].error >= 50_000, "it may have begun at any time"


@pytest.mark.parametrize(
    ("busy", "pod", "error"),
    [(False, 950_000, 0), (True, 500_000, 450_000)],
    ids=["idle after the pod", "at work without a pod"],
)
def test_beside_a_pods_time_a_card_is_idle_unless_it_was_seen_working(
    busy: bool, pod: int, error: int
) -> None:
    account = account_of("a")
    for second in range(2):
        look(account, second, 5_000 * second, draw=5_000)  # an idle draw of 5 W is learnt
    look(account, 2, 10_000, A, draw=5_000)
    before = account.pods["a"].gpu
    # The card cannot be read for 20 s; the pod ended after 10.
    for at, held in ((12, (A,)), (12.001, ()), (22, ())):
        account.advance({}, {"GPU-1": held}, at=at, wall=WALL + at, boot="boot-1")
    look(account, 22.001, 1_010_000, draw=80_000, busy=busy)
    assert account.pods["a"].gpu - before == pytest.approx(pod, rel=1e-3)
    assert account.pods["a"].error == pytest.approx(error, abs=5_000)
