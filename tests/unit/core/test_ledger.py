"""Energy is folded once: reports twice, late, in any order, and agents that let go at any moment."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.conditions import Type, find_condition, is_true
from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.api.spec import EmissionsSpec, EnergySpec, Scope
from greentrain.api.status import (
    KEPT_PODS,
    EnergyStatus,
    GpuTimeStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
)
from greentrain.core.books.in_force import BudgetSpec
from greentrain.core.books.ledger import MOST_SQUARED, decide_settled, fold, has_final_report
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.nodes import ABANDONED_AFTER, SILENT_AFTER, NodeReport, attempt_of, is_abandoned
from greentrain.core.seen.pods import Pod
from greentrain.core.seen.times import format_time
from greentrain.core.status.events import transition_events
from tests.support.manifests import build_job
from tests.support.snapshots import START, account_of, at, exited, job_of, pod, seen


def entry(uid: str, joules: int, *, closed: bool = False, segment: int = 0, **facts: int) -> PodEnergy:
    return PodEnergy(
        uid=uid,
        segment=segment,
        namespace="team",
        name=f"digits-worker-{uid}",
        job="digits",
        job_uid="uid-1",
        owner_known=True,
        gpu_joules=joules,
        closed=closed,
        **facts,
    )


def report(*entries: PodEnergy, node: str = "node-1", second: float = 0) -> NodeReport:
    return NodeReport(node, at(second), entries)


def folded(
    old: EnergyStatus | None,
    *reports: NodeReport,
    gone: set[str] | None = None,
    finished: bool = False,
    second: float = 0,
    scope: Scope = "GPU",
) -> EnergyStatus:
    there = gone or set()
    energy, _ = fold(
        account_of(
            reports,
            energy=old,
            spec=BudgetSpec(EnergySpec(scope=scope), EmissionsSpec()),
            is_gone=there.__contains__,
            finished=finished,
            now=at(second),
        )
    )
    assert energy is not None
    # As the server gives it back.
    return EnergyStatus.model_validate_json(energy.model_dump_json(by_alias=True))


def test_without_a_report_nothing_is_known() -> None:
    assert fold(account_of(is_gone=bool, finished=True)) == (None, {})
    assert fold(account_of((report(),), is_gone=bool, finished=True)) == (None, {})


def test_used_is_what_every_pod_told_on_every_node() -> None:
    energy = folded(None, report(entry("0-1", 3_600_000)), report(entry("1-1", 854_400), node="node-2"))
    assert (energy.used_joules, energy.used) == (4_454_400, "1.237kWh")
    assert (energy.measured_percent, energy.estimated_percent, energy.final) == (100, 0, False)


def test_a_report_told_twice_or_late_changes_nothing() -> None:
    early, late = report(entry("0-1", 10)), report(entry("0-1", 30, closed=True))
    once = folded(folded(None, early), late)
    assert folded(folded(once, late), early) == once
    assert once.used_joules == 30


def test_an_end_told_with_fewer_joules_is_an_end_and_takes_none_away() -> None:
    energy = folded(None, report(entry("0-1", 1709)))
    energy = folded(energy, report(entry("0-1", 1550, closed=True)))
    assert ([p.final for p in energy.pods], energy.used_joules) == ([True], 1709)
    assert drop_settled(energy, [entry("0-1", 1550, closed=True)]) == {"0-1"}


def test_what_the_agent_let_go_of_stays_in_the_sum_and_is_not_counted_again() -> None:
    last = report(entry("0-1", 30, closed=True, error_joules=3))
    energy = folded(None, last)
    assert [p.key for p in energy.pods] == ["0-1/0"]
    energy = folded(energy, report())
    assert (energy.used_joules, energy.pods, energy.settled) == (30, (), ("0-1/0",))
    assert folded(energy, last).used_joules == 30
    assert folded(energy, report(entry("0-1", 5, segment=1))).used_joules == 35


def test_an_entry_is_not_folded_before_its_last_word_is_stored() -> None:
    energy = folded(None, report(entry("0-1", 30)))
    # The agent's next report has it no more: it was told of an end that this status has never seen.
    energy = folded(energy, report())
    assert [p.final for p in energy.pods] == [False]
    energy = folded(energy, report(), gone={"0-1"})
    assert (energy.used_joules, energy.lost_pods, energy.pods) == (30, 1, ())


def test_a_pod_is_not_given_up_while_its_node_has_no_report() -> None:
    energy = folded(None, report(entry("0-1", 30)))
    energy = folded(energy, report(node="node-2"), gone={"0-1"})
    assert ([p.key for p in energy.pods], energy.lost_pods) == (["0-1/0"], 0)


@pytest.mark.parametrize(
    ("known", "told", "holds"),
    [
        ((30, 3, 2), (30, 5, 2), (30, 5, 2)),
        ((30, 3, 2), (30, 3, 4), (30, 3, 4)),
        ((30, 3, 2), (29, 5, 4), (30, 5, 4)),
        ((30, 3, 2), (29, 1, 1), (30, 3, 2)),
        ((30, 3, 2), (31, 5, 4), (31, 5, 4)),
    ],
    ids=["doubt grows alone", "missing time grows alone", "both in an old report", "less", "more"],
)
def test_doubt_and_missing_time_are_never_less_than_what_was_told(
    known: tuple[int, int, int], told: tuple[int, int, int], holds: tuple[int, int, int]
) -> None:
    energy: EnergyStatus | None = None
    for joules, error, missing in (known, told):
        energy = folded(energy, report(entry("0-1", joules, error_joules=error, missing_seconds=missing)))
    assert energy is not None
    (pod_,) = energy.pods
    assert (pod_.joules, pod_.error_joules, pod_.missing_seconds) == holds


def test_what_was_priced_stays_so_when_more_is_told() -> None:
    priced = {
        "priced_joules": 7,
        "priced_until": "2026-01-01T00:15:00Z",
        "gpu_time": (GpuTimeStatus(model="V100", seconds=9),),
    }
    known = folded(None, report(entry("0-1", 30)))
    known = known.model_copy(update={"pods": (known.pods[0].model_copy(update=priced),)})
    (later,) = folded(known, report(entry("0-1", 31))).pods
    assert (later.joules, {name: getattr(later, name) for name in priced}) == (31, priced)


def test_a_node_that_never_comes_back_is_given_up_after_an_hour() -> None:
    told = report(entry("0-1", 30))
    energy = folded(None, told)
    hour = ABANDONED_AFTER.total_seconds()
    waiting = folded(energy, told, gone={"0-1"}, finished=True, second=hour - 1)
    assert (waiting.final, waiting.lost_pods) == (False, 0)
    given_up = folded(energy, told, gone={"0-1"}, finished=True, second=hour)
    assert (given_up.final, given_up.lost_pods, given_up.used_joules) == (True, 1, 30)
    assert folded(given_up, told, gone={"0-1"}, finished=True, second=hour) == given_up


@pytest.mark.parametrize(
    ("errors", "bound"),
    [
        ((30, 30, 30, 30), 60),
        ((1, 1), 2),
        ((2, 1), 3),
        ((1, 0), 1),
        ((0, 0), 0),
        ((3 * 10**9, 1), 3 * 10**9 + 1),
    ],
)
def test_errors_of_pods_are_independent_and_their_bound_is_rounded_up(
    errors: tuple[int, ...], bound: int
) -> None:
    told = [entry(f"{i}-1", 1000, closed=True, error_joules=error) for i, error in enumerate(errors)]
    energy = folded(None, report(*told))
    assert energy.error_joules == bound
    for i in range(1, len(told)):
        assert folded(energy, report(*told[i:])).error_joules == bound


def test_the_sum_of_squares_is_one_that_the_server_stores() -> None:
    energy = folded(None, report(entry("0-1", 1000, closed=True, error_joules=10**15)))
    assert folded(energy, report()).folded_error_squared == MOST_SQUARED


@pytest.mark.parametrize(("scope", "used", "estimated"), [("GPU", 1300, 1), ("Node", 1833, 30)])
def test_of_pods_that_are_folded_every_figure_stays_in_the_sums(
    scope: Scope, used: int, estimated: int
) -> None:
    kinds = (
        "cpu_joules",
        "dram_joules",
        "estimated_joules",
        "error_joules",
        "missing_seconds",
        "counter_faults",
    )
    figures = ((100, 30, 11, 43, 6, 2, 1), (400, 70, 23, 99, 2, 5, 0), (800, 300, 99, 404, 3, 11, 4))
    told = [
        entry(f"{i}-1", joules, closed=True, **dict(zip(kinds, of_pod, strict=True)))
        for i, (joules, *of_pod) in enumerate(figures)
    ]
    energy = folded(None, report(*told), scope=scope)
    sums = EnergyStatus(
        scope=scope,
        used=f"{used}J",
        used_joules=used,
        gpu_joules=1300,
        cpu_joules=400,
        dram_joules=133,
        measured_percent=100 - estimated,
        estimated_percent=estimated,
        error_joules=7,
        missing_seconds=18,
        counter_faults=5,
    )
    nothing = {"pods": (), "folded": None, "settled": (), "folded_error_squared": 0}
    assert energy.model_copy(update=nothing) == sums
    for i in range(1, len(told) + 1):
        energy = folded(energy, report(*told[i:]), scope=scope)
        assert len(energy.pods) == len(told) - i
        assert energy.model_copy(update=nothing) == sums


def test_attempts_share_what_their_pods_used() -> None:
    reports = (report(entry("0-1", 30), entry("0-2", 12), entry("odd", 1)),)
    _, growth = fold(account_of(reports))
    assert growth == {1: 30, 2: 12, 0: 1}
    assert [attempt_of(n) for n in ("digits-worker-0-12", "digits", "a-b", "a-99999999999")] == [12, 0, 0, 0]


def drop_settled(energy: EnergyStatus | None, shown: list[PodEnergy]) -> set[str]:
    """UIDs of the pods the agent is told to let go of."""
    status = NodePowerStatus(pods=tuple(shown))
    keys = decide_settled((), status, energy_of=lambda _: energy, is_ours=lambda _: True)
    return {key.partition("/")[0] for key in keys}


def stored_as(**facts: Any) -> EnergyStatus:
    return EnergyStatus(pods=(PodEnergyStatus(uid="0-1", gpu_joules=30, **facts),))


@pytest.mark.parametrize(
    ("stored", "joules", "may_go"),
    [
        (None, 30, False),
        (EnergyStatus(), 30, False),
        (stored_as(final=True), 30, True),
        (stored_as(final=True), 29, True),
        (stored_as(final=True), 31, False),
        (stored_as(), 30, False),
        (stored_as(final=True, segment=1), 30, False),
        (EnergyStatus(settled=("0-1/0",)), 30, True),
        (EnergyStatus(settled=("0-1/1",)), 30, False),
    ],
    ids=[
        "nothing is stored",
        "nothing of the pod is stored",
        "its end is stored",
        "more is stored",
        "less is stored",
        "its end is not stored",
        "another segment's end is stored",
        "it is in the sum",
        "another segment is in the sum",
    ],
)
def test_an_agent_lets_go_of_an_ended_pod_when_all_its_joules_are_stored_as_final(
    stored: EnergyStatus | None, joules: int, may_go: bool
) -> None:
    told = entry("0-1", joules, closed=True)
    assert has_final_report(stored, told) == may_go
    assert drop_settled(stored, [told]) == ({"0-1"} if may_go else set())


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_whatever_is_told_in_whatever_order_every_joule_is_counted_once(seed: int, pods: int) -> None:
    chance = random.Random(seed)
    truth = dict.fromkeys((f"{i}-{1 + i % 2}" for i in range(pods)), 0)
    closed: set[str] = set()
    settled: set[str] = set()
    shown: list[PodEnergy] = []
    energy: EnergyStatus | None = None
    attempts: dict[int, int] = {}
    ever = [report()]
    for _ in range(60):
        uid = chance.choice(list(truth))
        if uid not in closed:
            truth[uid] += chance.randint(0, 1000)
            if chance.random() < 0.1:
                closed.add(uid)
        if chance.random() < 0.6:  # the agent reports, and lets go of what was settled
            shown = [entry(u, j, closed=u in closed) for u, j in truth.items() if u not in settled]
            ever.append(report(*shown))
        # The operator reads the newest picture, now and then an old one before it.
        pictures = [chance.choice(ever), ever[-1]] if chance.random() < 0.3 else [ever[-1]]
        for picture in pictures:
            new, growth = fold(account_of((picture,), energy=energy))
            if chance.random() < 0.8:  # else the write met a conflict
                energy = new
                for number, more in growth.items():
                    attempts[number] = attempts.get(number, 0) + more
        if energy is not None and chance.random() < 0.7:
            settled |= drop_settled(energy, shown)
    closed |= set(truth)
    for _ in range(3):
        shown = [entry(u, j, closed=True) for u, j in truth.items() if u not in settled]
        energy, growth = fold(account_of((report(*shown),), energy=energy, is_gone=bool, finished=True))
        for number, more in growth.items():
            attempts[number] = attempts.get(number, 0) + more
        settled |= drop_settled(energy, shown)
    assert energy is not None
    assert energy.used_joules == sum(truth.values()) == sum(attempts.values())
    assert (energy.final, energy.pods, energy.lost_pods) == (True, (), 0)


def test_the_agent_may_let_go_of_what_is_stored_and_of_what_is_of_no_job() -> None:
    stored = folded(None, report(entry("0-1", 30, closed=True), entry("1-1", 30)))
    strangers = PodEnergy(uid="s", namespace="other", name="s", closed=True)
    deleted = entry("0-9", 7, closed=True).model_copy(update={"job_uid": "gone"})
    elsewhere = entry("0-3", 7, closed=True).model_copy(update={"namespace": "theirs"})
    entries = (entry("0-1", 30, closed=True), entry("1-1", 40, closed=True), strangers, deleted, elsewhere)

    def energy_of(told: PodEnergy) -> EnergyStatus | None:
        if told.job_uid in (None, "gone"):
            raise LookupError
        return stored

    asked = decide_settled(
        ("0-3/0", "old/0"),
        NodePowerStatus(pods=entries),
        energy_of=energy_of,
        is_ours=lambda namespace: namespace != "theirs",
    )
    assert asked == ("0-1/0", "s/0", "0-9/0", "0-3/0")


def test_of_an_abandoned_node_what_a_status_calls_a_last_word_is_one() -> None:
    told = entry("0-1", 30)
    given_up = folded(
        folded(None, report(told)), report(told), gone={"0-1"}, second=ABANDONED_AFTER.total_seconds()
    )
    status = NodePowerStatus(pods=(told, entry("1-1", 5)))
    for abandoned, asked in ((False, ()), (True, ("0-1/0",))):
        assert asked == decide_settled(
            (), status, energy_of=lambda _: given_up, is_ours=lambda _: True, abandoned=abandoned
        )
    assert [is_abandoned(START, now=START + ABANDONED_AFTER + timedelta(seconds=s)) for s in (-1, 0)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("at_once", [1024, 5000])
def test_segments_without_end_go_into_the_sum_and_no_joule_is_lost(at_once: int) -> None:
    energy: EnergyStatus | None = None
    for first in range(0, 10_000, at_once):
        told = report(*(entry("0-1", 1, segment=first + i) for i in range(at_once)))
        energy = folded(energy, told)
        assert (energy.used_joules, len(energy.pods)) == (first + at_once, min(first + at_once, KEPT_PODS))
    assert energy is not None
    assert energy.lost_pods == energy.used_joules - KEPT_PODS


def live(
    status: GreenTrainingJobStatus, *pods: Pod, second: float, reports: tuple[NodeReport, ...] = ()
) -> GreenTrainingJobStatus:
    return decide(seen(job_of(build_job(), status=status), *pods, reports=reports), now=at(second)).status


def started() -> GreenTrainingJobStatus:
    return decide(seen(job_of(build_job())), now=START).status


def test_a_job_says_whether_its_gpus_are_read_and_tells_when_readings_stop_and_return() -> None:
    pods = (pod(0, gpus=1), pod(1, gpus=1))
    names = {p.uid: p for p in pods}
    both = tuple(entry(uid, 10) for uid in names)
    status = live(started(), *pods, second=5)
    metered = find_condition(status.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert (metered.status, metered.reason) == ("Unknown", "NoReadings")
    read = live(status, *pods, second=30, reports=(report(*both, second=30),))
    assert [e.reason for e in transition_events(status, read)] == ["EnergyMetered"]
    assert (read.display.energy, read.attempts[0].energy_joules) == ("20J", 20)
    silent = 30 + SILENT_AFTER.total_seconds()
    still = decide(
        seen(job_of(build_job(), status=read), *pods, reports=(report(*both, second=30),)), now=at(60)
    )
    assert still.look_again == at(silent)
    stopped = live(read, *pods, second=silent, reports=(report(*both, second=30),))
    assert [(e.type.value, e.reason) for e in transition_events(read, stopped)] == [
        ("Warning", "ReadingsStopped")
    ]
    again = live(stopped, *pods, second=silent + 5, reports=(report(*both, second=silent + 5),))
    assert [e.reason for e in transition_events(stopped, again)] == ["EnergyMetered"]


def test_a_card_that_cannot_be_read_is_no_reading_although_its_node_reports() -> None:
    running = (pod(0, gpus=1), pod(1, gpus=1))

    def told(second: float, last: float) -> tuple[NodeReport, ...]:
        entries = tuple(
            entry(p.uid, 10).model_copy(update={"last_reading": format_time(at(last))}) for p in running
        )
        return (NodeReport("node-1", at(second), entries, at(second)),)

    status = live(started(), *running, second=10, reports=told(10, 9))
    status = live(status, *running, second=100, reports=told(100, 9))
    assert is_true(status.conditions, Type.ENERGY_METERED)
    status = live(status, *running, second=105, reports=told(105, 9))
    metered = find_condition(status.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert (metered.status, metered.reason) == ("Unknown", "ReadingsStopped")
    assert "cannot read its GPUs" in metered.message


def test_a_card_that_was_never_read_is_no_reading_from_the_first_report_on() -> None:
    running = (pod(0, gpus=2), pod(1, gpus=2))
    one, other = (entry(p.uid, 10, missing_seconds=5) for p in running)
    behind = one.model_copy(update={"unread_gpus": 1})
    status = live(started(), *running, second=5, reports=(report(one, other, second=5),))
    assert is_true(status.conditions, Type.ENERGY_METERED)
    for before in (started(), status):
        found = live(before, *running, second=10, reports=(report(behind, other, second=10),))
        metered = find_condition(found.conditions, Type.ENERGY_METERED)
        assert metered is not None
        assert (metered.status, metered.reason) == ("Unknown", "NoReadings")
        assert metered.message == (
            f"1 of the GPUs of pod {running[0].name} could not be read since they were allocated to it "
            f"(kubectl describe nodepower {running[0].node})"
        )
    assert found.energy is not None
    assert found.energy.missing_seconds == 10


def test_a_pod_that_is_listed_and_not_read_yet_is_no_stop_of_readings() -> None:
    running = (pod(0, gpus=1), pod(1, gpus=1))

    def seen_at(second: float, last: float | None) -> tuple[NodeReport, ...]:
        read = None if last is None else format_time(at(last))
        entries = tuple(entry(p.uid, 10).model_copy(update={"last_reading": read}) for p in running)
        return (NodeReport("node-1", at(second), entries, at(second)),)

    status = live(started(), *running, second=5, reports=seen_at(5, 4))
    for second, reports in ((7, seen_at(7, None)), (9, seen_at(9, 8))):
        status = live(status, *running, second=second, reports=reports)
        assert is_true(status.conditions, Type.ENERGY_METERED)


def test_a_gpu_that_only_a_resource_claim_gives_is_not_read() -> None:
    running = (pod(0), pod(1))
    entries = [entry(p.uid, 0, unread_gpus=1) for p in running]
    status = live(started(), *running, second=5, reports=(report(*entries, second=5),))
    metered = find_condition(status.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert (metered.status, metered.reason) == ("Unknown", "NoReadings")


def test_a_job_without_gpus_says_so() -> None:
    status = live(started(), pod(0), pod(1), second=5)
    metered = find_condition(status.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert (metered.status, metered.reason) == ("False", "NoGPU")
    assert (status.energy, status.display.energy) == (None, "<none>")


def test_a_finished_jobs_energy_is_final_when_every_last_word_is_in() -> None:
    running = (pod(0, gpus=1), pod(1, gpus=1))
    entries = [entry(p.uid, 10) for p in running]
    status = live(started(), *running, second=5, reports=(report(*entries),))
    done = (exited(0, 0, 9, gpus=1), exited(1, 0, 9, gpus=1))
    status = live(status, *done, second=10, reports=(report(*entries),))
    late = live(status, *done, second=20, reports=(report(*entries),))
    metered = find_condition(late.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert (metered.status, metered.reason) == ("Unknown", "FinalReportMissing")
    last = [entry(p.uid, 15, closed=True) for p in running]
    final = live(late, *done, second=30, reports=(report(*last),))  # finished pods stay, for their logs
    assert final.energy is not None
    assert (final.energy.final, final.energy.used_joules) == (True, 30)
    metered = find_condition(final.conditions, Type.ENERGY_METERED)
    assert metered is not None
    assert metered.status == "True"


@pytest.mark.parametrize("joules", [0, 3599, 3600, 10**7, 10**12])
def test_the_words_for_energy_stay_short(joules: int) -> None:
    energy = folded(None, report(entry("0-1", joules)))
    assert len(energy.used) <= 10
