"""Energy of processors and memory by quarter of an hour: a part of all energy, to the joule."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.nodepower import BUCKET_SECONDS, KEPT_BUCKETS, MAX_DRAW_MILLIWATTS, MAX_JOULES
from greentrain.energy.account import NodeAccount
from greentrain.energy.pods import PodAccount
from greentrain.energy.report import report_pod
from greentrain.quantities import Millijoules, Milliseconds, add

START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def pod_of(*used: tuple[int, int, int, int]) -> PodAccount:
    """A pod that used so many millijoules (GPU, CPU, DRAM) in the quarters of these numbers."""
    pod = PodAccount("team", "a", uid="uid-a")
    for quarter, gpu, cpu, dram in used:
        moment = START + quarter * BUCKET_SECONDS + 1
        if gpu:
            pod.add(Millijoules(gpu), begin=moment, end=moment, estimated=Millijoules(0))
        if cpu or dram:
            pod.add_host(Millijoules(cpu), Millijoules(dram), begin=moment, end=moment)
    return pod


@pytest.mark.parametrize(
    ("used", "joules", "host"),
    [
        ([], (), ()),
        ([(0, 5000, 0, 0)], (5,), ()),
        ([(0, 5000, 2000, 1000)], (8,), (3,)),
        ([(0, 0, 2000, 1000)], (3,), (3,)),
        ([(0, 5000, 2000, 0), (2, 1000, 0, 3000)], (7, 0, 4), (2, 0, 3)),
        ([(0, 900, 100, 0), (1, 200, 0, 0)], (1, 0), (0, 0)),
        ([(0, 400, 400, 0), (1, 400, 400, 0)], (0, 1), (0, 1)),
    ],
    ids=["nothing", "GPUs alone", "all kinds", "no GPU", "quarters", "parts of joules", "more parts"],
)
def test_it_is_told_beside_all_energy(
    used: list[tuple[int, int, int, int]], joules: tuple[int, ...], host: tuple[int, ...]
) -> None:
    told = report_pod(pod_of(*used)).buckets
    assert (told.joules, told.host_joules) == (joules, host)


def test_what_is_older_than_the_kept_quarters_is_one_sum_of_each() -> None:
    told = report_pod(pod_of((0, 5000, 2000, 1000), (KEPT_BUCKETS + 1, 1000, 1000, 0))).buckets
    assert (told.earlier_joules, told.earlier_host_joules) == (8, 3)
    assert (told.joules[-1], told.host_joules[-1]) == (2, 1)


AMOUNTS = st.integers(0, 3000)


@given(st.lists(st.tuples(st.integers(0, KEPT_BUCKETS + 9), AMOUNTS, AMOUNTS, AMOUNTS), max_size=20))
def test_each_part_is_within_its_whole_and_they_add_up(used: list[tuple[int, int, int, int]]) -> None:
    pod = pod_of(*used)
    told = report_pod(pod)
    parts = (told.buckets.earlier_host_joules, *told.buckets.host_joules)
    wholes = (told.buckets.earlier_joules, *told.buckets.joules)
    assert all(0 <= part <= whole for part, whole in zip(parts, wholes, strict=False))
    assert sum(parts) == told.cpu_joules + told.dram_joules
    exact, told_so_far = pod.earlier_host, parts[0]
    for start, part in zip(sorted_quarters(pod), parts[1:], strict=False):
        exact, told_so_far = Millijoules(exact + pod.host_buckets.get(start, 0)), add(told_so_far, part)
        assert abs(told_so_far * 1000 - exact) < 2000, "and no part is dated to another quarter"


def sorted_quarters(pod: PodAccount) -> range:
    return range(min(pod.buckets, default=0), max(pod.buckets, default=-1) + 1, BUCKET_SECONDS)


def test_of_an_older_journal_it_is_put_where_all_energy_was() -> None:
    pod = pod_of((0, 6000, 4000, 0), (1, 20_000, 0, 0))
    pod.host_buckets.clear()
    account = NodeAccount("j", pods={"a": pod})
    told = report_pod(NodeAccount.from_json(account.to_json()).pods["a"])
    assert told.buckets.joules == (10, 20)
    assert told.buckets.host_joules == (1, 3)
    assert sum(told.buckets.host_joules) == told.cpu_joules == 4


def test_a_pod_that_was_counted_under_two_keys_has_both() -> None:
    pod = pod_of((0, 0, 2000, 0))
    pod.absorb(pod_of((0, 1000, 1000, 0), (1, 0, 1000, 1000)))
    told = report_pod(pod).buckets
    assert (told.joules, told.host_joules) == ((4, 2), (3, 2))


ONE = PodAccount(
    "team",
    "a",
    uid="uid-a",
    job="digits",
    job_uid="uid-1",
    owner_known=True,
    segment=2,
    gpu=Millijoules(1),
    cpu=Millijoules(2),
    dram=Millijoules(3),
    estimated=Millijoules(4),
    doubt_squared=5.0,
    guessed=6.0,
    missing_seconds=7.0,
    missing_most=Millijoules(7_000),
    counter_faults=4,
    first=START + 10,
    last=START + 90,
    closed=START + 91,
    buckets={0: Millijoules(8), BUCKET_SECONDS: Millijoules(9)},
    earlier=Millijoules(10),
    host_buckets={0: Millijoules(11), BUCKET_SECONDS: Millijoules(12)},
    earlier_host=Millijoules(13),
    held={"V100": Milliseconds(14), "A100": Milliseconds(15)},
    host_draw=(16.0, 17.0),
)
OTHER = replace(
    ONE,
    gpu=Millijoules(100),
    cpu=Millijoules(200),
    dram=Millijoules(300),
    estimated=Millijoules(400),
    doubt_squared=500.0,
    guessed=600.0,
    missing_seconds=700.0,
    missing_most=Millijoules(700_000),
    counter_faults=30,
    buckets={BUCKET_SECONDS: Millijoules(900), 2 * BUCKET_SECONDS: Millijoules(950)},
    earlier=Millijoules(1000),
    host_buckets={BUCKET_SECONDS: Millijoules(1200), 2 * BUCKET_SECONDS: Millijoules(1250)},
    earlier_host=Millijoules(1300),
    held={"V100": Milliseconds(1400), "H100": Milliseconds(1500)},
)


@pytest.mark.parametrize(
    ("times", "first", "last"),
    [
        ((START + 5, START + 95), START + 5, START + 95),
        ((START + 20, START + 80), START + 10, START + 90),
        ((None, None), START + 10, START + 90),
    ],
    ids=["around its own", "within its own", "never read"],
)
def test_of_what_was_counted_of_a_pod_under_another_key_nothing_is_lost(
    times: tuple[float | None, float | None], first: float, last: float
) -> None:
    mine = replace(ONE, buckets=dict(ONE.buckets), host_buckets=dict(ONE.host_buckets), held=dict(ONE.held))
    mine.absorb(replace(OTHER, first=times[0], last=times[1]))
    sums: dict[str, Any] = {
        "gpu": 101,
        "cpu": 202,
        "dram": 303,
        "estimated": 404,
        "doubt_squared": 505.0,
        "guessed": 606.0,
        "missing_seconds": 707.0,
        "missing_most": 707_000,
        "counter_faults": 34,
        "earlier": 1010,
        "earlier_host": 1313,
        "buckets": {0: 8, BUCKET_SECONDS: 909, 2 * BUCKET_SECONDS: 950},
        "host_buckets": {0: 11, BUCKET_SECONDS: 1212, 2 * BUCKET_SECONDS: 1250},
        "held": {"V100": 1414, "A100": 15, "H100": 1500},
    }
    assert mine == replace(ONE, first=first, last=last, **sums)
    names = {"namespace", "name", "uid", "job", "job_uid", "owner_known", "segment", "closed", "host_draw"}
    assert {f.name for f in fields(PodAccount)} == {*names, *sums, "first", "last"}, "each is thought of"


@pytest.mark.parametrize(
    ("guessed", "doubt_squared", "missing", "error", "seconds"),
    [
        (0.0, 0.0, 0.0, 0, 0),
        (1.0, 0.0, 0.1, 1, 1),
        (1000.0, 0.0, 1.0, 1, 1),
        (1000.1, 0.0, 1.001, 2, 2),
        (0.0, 1.0, 0.0, 1, 0),
    ],
)
def test_a_bound_and_missing_time_are_rounded_up(
    guessed: float, doubt_squared: float, missing: float, error: int, seconds: int
) -> None:
    pod = PodAccount(
        "team", "a", uid="u", guessed=guessed, doubt_squared=doubt_squared, missing_seconds=missing
    )
    told = report_pod(pod)
    assert (told.error_joules, told.missing_seconds) == (error, seconds)


def test_a_counter_gone_mad_is_reported_with_the_most_that_a_report_takes() -> None:
    pod = pod_of((0, 2**63, 2**64, 2**64), (KEPT_BUCKETS, 2**63, 2**64, 2**64))
    pod.guessed = 1e22
    told = report_pod(pod, draw=1e12)
    assert {told.gpu_joules, told.cpu_joules, told.dram_joules, told.estimated_joules, told.error_joules} == {
        MAX_JOULES
    }
    assert told.draw_milliwatts == MAX_DRAW_MILLIWATTS
    assert told.buckets.earlier_joules == told.buckets.joules[-1] == MAX_JOULES
    assert told.buckets.earlier_host_joules == told.buckets.host_joules[-1] == MAX_JOULES
