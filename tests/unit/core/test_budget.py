"""A budget of energy: when a job is stopped for it, what is charged, allowed and said."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.api.budgets import ControlStatus, PodAllowance
from greentrain.api.conditions import Type, find_condition, is_true
from greentrain.api.nodepower import BudgetAction, PodEnergy
from greentrain.api.status import (
    AttemptStatus,
    CheckpointStatus,
    EnergyStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    ProgressStatus,
)
from greentrain.api.stored import dump_job_status
from greentrain.core.books.account import Account
from greentrain.core.books.allowances import AllowedPod, divide
from greentrain.core.books.charges import Charges, keep_charges, overdue_seconds
from greentrain.core.books.in_force import spec_in_force
from greentrain.core.books.overshoot import stop_seconds, worst_seconds
from greentrain.core.books.restarts import burnt_again
from greentrain.core.gang.grace import grace_of
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.nodes import ABANDONED_AFTER, SILENT_AFTER, NodeReport
from greentrain.core.seen.pods import Pod, PodState
from greentrain.core.seen.snapshot import Fleet, Job, Snapshot
from greentrain.core.seen.times import format_time
from greentrain.core.status.events import transition_events
from greentrain.quantities import Joules, Milliwatts, format_energy
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import at, exited, job_of, pod

GPU_LIMIT = 300_000
FLEET = Fleet(limit_milliwatts=Milliwatts(GPU_LIMIT), report_seconds=30, reported_at=at(0))
TEMPLATE = build_template(resources={"limits": {"nvidia.com/gpu": "1"}})


def budgeted(budget: str | None = "1MJ", workers: int = 1, **energy: Any) -> dict[str, Any]:
    """A job whose pods hold a GPU each and are given 10 s to stop."""
    manifest = build_job(workers=workers, checkpoint={"volume": {"emptyDir": {}}, "gracePeriodSeconds": 10})
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = TEMPLATE
    section = {**({"budget": budget} if budget is not None else {}), **energy}
    return {**manifest, "spec": {**manifest["spec"], "energy": section}}


class Story:
    """One job, stepped by hand: what is stored, what its pods are, and what their node told last."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.status = GreenTrainingJobStatus()
        self.second = 0.0
        self.pods: tuple[Pod, ...] = ()
        self.entries: tuple[PodEnergy, ...] = ()
        self.told_at = 0.0
        self.fleet = FLEET
        self.events: list[str] = []
        self.first_bound: int | None = None

    def edit(self, **energy: Any) -> None:
        """The user edits spec.energy; None takes a field away."""
        section = {**self.manifest["spec"]["energy"], **energy}
        section = {k: v for k, v in section.items() if v is not None}
        self.manifest = {**self.manifest, "spec": {**self.manifest["spec"], "energy": section}}

    def run(self) -> None:
        """The pods the last pass wanted run."""
        number = self.status.attempt_count
        self.pods = tuple(
            pod(i, attempt=number, gpus=1, node="node-1", started=at(self.second))
            for i in range(self.workers)
        )

    @property
    def workers(self) -> int:
        return int(self.manifest["spec"]["tfReplicaSpecs"]["Worker"]["replicas"])

    def tell(self, *joules: int, draw: int = 100_000, closed: bool = False, **facts: Any) -> None:
        """The node reports this of the pods of the latest attempt, and still of those before."""
        number = self.status.attempt_count
        old = tuple(e for e in self.entries if not e.name.endswith(f"-{number}"))
        self.told_at = self.second
        self.entries = (
            *old,
            *(
                PodEnergy(
                    uid=f"pod-{i}-{number}",
                    namespace="team",
                    name=f"digits-worker-{i}-{number}",
                    job="digits",
                    job_uid="uid-1",
                    owner_known=True,
                    gpu_joules=used,
                    last_reading=format_time(at(self.second)),
                    draw_milliwatts=0 if closed else draw,
                    closed=closed,
                    **facts,
                )
                for i, used in enumerate(joules)
            ),
        )

    def seen(self) -> Snapshot:
        """What a pass would know now."""
        job: Job = job_of(self.manifest, status=self.status)
        told = at(self.told_at)
        reports = (
            (NodeReport("node-1", told, self.entries, observed=told, seen=told, report_seconds=30),)
            if self.entries
            else ()
        )
        fleet = replace(self.fleet, reported_at=self.fleet.reported_at and at(self.second))
        return Snapshot(job=job, pods=self.pods, has_service=True, reports=reports, fleet=fleet)

    def step(self, seconds: float = 0) -> Decision:
        """One pass, so much later; its status is stored."""
        self.second += seconds
        decision = decide(self.seen(), now=at(self.second))
        self.events += [f"{e.reason}: {e.message}" for e in transition_events(self.status, decision.status)]
        self.status = GreenTrainingJobStatus.model_validate_json(
            decision.status.model_dump_json(by_alias=True)
        )
        return decision

    def stop(self) -> None:
        """Every pod ends as it was asked to."""
        self.pods = tuple(
            exited(p.rank.index, 143, self.second, attempt=p.attempt, gpus=1, node="node-1")
            for p in self.pods
        )

    @property
    def phase(self) -> str:
        return self.status.phase

    @property
    def budget(self) -> Any:
        assert self.status.energy is not None
        return self.status.energy.budget

    @property
    def control(self) -> ControlStatus:
        assert self.status.energy is not None
        assert self.status.energy.control is not None
        return self.status.energy.control

    def condition(self, type_: Type) -> tuple[str, str, str]:
        found = find_condition(self.status.conditions, type_)
        assert found is not None
        return found.status, found.reason, found.message


def running(manifest: dict[str, Any] | None = None) -> Story:
    """A job whose first attempt runs."""
    story = Story(manifest or budgeted())
    story.step()
    story.first_bound = story.status.attempts[-1].overshoot_bound_joules
    story.run()
    story.step(1)
    return story


def spent() -> Story:
    """A job that was stopped for its budget and whose pods are gone."""
    story = running()
    story.tell(995_500)
    story.step(30)
    story.stop()
    story.tell(996_000, closed=True)
    story.step(5)
    story.pods = ()
    story.step(1)
    return story


def test_the_bound_is_said_before_the_attempt_starts() -> None:
    story = Story(budgeted(workers=2))
    decision = story.step()
    assert decision.record_first
    assert len(decision.pods) == 2
    # 33 s of a report's interval and jitter and 1 s on the way, 2 s until it is taken up with others, 5 s of reaction, 10 s of
    # grace.
    assert stop_seconds(30, 10) == 34 + 2 + 5 + 10
    # And a pass that hung for 20 s and was to be named 10 s later, when the operator died and was silent for 30 s.
    assert worst_seconds(30, 10) == 51 + 61
    assert story.status.attempts[-1].overshoot_bound_joules == 2 * 300 * 112
    assert all(p["metadata"]["annotations"]["greentrain.dev/budgeted"] == "true" for p in decision.pods)


@pytest.mark.parametrize(
    ("used", "draw", "stopped"),
    [
        (900_000, 100_000, False),
        (994_800, 100_000, False),  # 994,800 + 100 W × 51 s = 999,900 J
        (995_000, 100_000, True),
        (984_700, 300_000, True),
        (984_600, 300_000, False),
        (1_000_000, 0, True),
    ],
)
def test_a_job_is_stopped_early(used: int, draw: int, stopped: bool) -> None:
    story = running()
    story.tell(used, draw=draw)
    decision = story.step(30)
    assert [d.uid for d in decision.deletions] == (["pod-0-1"] if stopped else [])
    assert is_true(story.status.conditions, Type.BUDGET_EXHAUSTED) is stopped
    assert story.phase == ("Suspending" if stopped else "Running")


def test_a_spent_budget_suspends_until_a_higher_one_is_set() -> None:
    story = spent()
    assert story.phase == "Suspended"
    assert story.condition(Type.SUSPENDED)[2] == (
        "spec.energy.budget 1MJ is spent; suspended; raise spec.energy.budget above 1MJ to go on"
    )
    assert story.status.attempts[-1].counted_against is None
    assert story.step(600).pods == ()  # however little the last seconds used
    story.edit(budget="0.9MJ")
    assert story.step(1).pods == ()
    story.edit(budget="1MJ")
    assert story.step(1).pods == ()
    story.edit(budget="2MJ")
    assert len(story.step(1).pods) == 1
    assert story.status.energy is not None
    assert story.budget.spent_limit is None
    assert any(e.startswith("BudgetExhausted: spec.energy.budget 1MJ is spent") for e in story.events)
    assert any(e.startswith("Resumed: ") for e in story.events)


def test_what_was_too_little_to_go_on_with_is_too_little_to_begin_with() -> None:
    story = spent()
    story.edit(budget="1.0011MJ")
    assert story.step(1).pods == ()  # 996,000 used, 5,100 until a stop takes effect: 1,001,100
    story.edit(budget="1.0012MJ")
    assert len(story.step(1).pods) == 1


def test_a_budget_raised_while_the_pods_stop_lets_the_job_go_on() -> None:
    story = running()
    story.tell(996_000)
    story.step(30)
    story.edit(budget="2MJ")
    assert (
        story.step(1).status.attempts[-1].end_time is None
    )  # the stop is finished: the pods are on their way
    story.stop()
    story.step(5)
    assert is_true(story.status.conditions, Type.RESTARTING)
    story.pods = ()
    assert len(story.step(1).pods) == 1


@pytest.mark.parametrize("action", ["Suspend", "Fail", "Warn"])
def test_each_action_does_what_it_says(action: str) -> None:
    story = running(budgeted(onExhausted=action))
    story.tell(1_000_000)
    story.step(30)
    if action == "Warn":
        assert story.phase == "Running"
        assert story.condition(Type.BUDGET_EXHAUSTED)[0] == "True"
        return
    story.stop()
    story.step(5)
    story.pods = ()
    story.step(1)
    assert story.phase == {"Suspend": "Suspended", "Fail": "Failed"}[action]
    if action == "Fail":
        assert story.condition(Type.FAILED)[1:] == ("BudgetExhausted", "spec.energy.budget 1MJ is spent")


def test_a_budget_lowered_below_what_was_used_is_spent_at_once_and_says_so() -> None:
    story = running()
    story.tell(500_000)
    story.step(30)
    story.edit(budget="100kJ")
    story.step(1)
    said = ("True", "BudgetExhausted", "spec.energy.budget 100kJ is less than what the job has used")
    assert story.condition(Type.BUDGET_EXHAUSTED) == said
    story.step(1)
    assert story.condition(Type.BUDGET_EXHAUSTED) == said


def test_a_budget_that_is_removed_binds_nobody() -> None:
    story = running()
    story.tell(999_000)
    story.edit(budget=None)
    decision = story.step(30)
    assert decision.deletions == ()
    assert story.phase == "Running"
    assert story.condition(Type.BUDGET_EXHAUSTED)[:2] == ("False", "NoBudget")
    assert story.status.energy is not None
    assert story.budget is None


def test_warnings_are_told_once_each() -> None:
    story = running(budgeted(warnAtPercent=[50, 80]))
    for used in (400_000, 510_000, 520_000, 810_000, 820_000):
        story.tell(used, draw=1000)
        story.step(30)
    told = [e for e in story.events if e.startswith("BudgetWarning")]
    assert told == [f"BudgetWarning: {p} % of spec.energy.budget 1MJ is used" for p in (50, 80)]
    assert story.status.display.budget == "82%"


def test_an_edit_that_is_refused_leaves_the_budget_in_force() -> None:
    story = running()
    story.tell(100_000)
    story.step(30)
    story.edit(budget="many")
    story.step(1)
    assert story.condition(Type.ADMITTED)[0] == "False"
    assert story.budget.limit == 1_000_000
    story.tell(999_000)
    assert [d.uid for d in story.step(30).deletions] == ["pod-0-1"]


def test_missing_readings_are_charged_at_the_limit_and_settled() -> None:
    story = running()
    story.tell(900_000)
    story.step()
    story.step(overdue_seconds(30) + 10)
    assert (story.budget.charged, story.budget.percent) == (3000, 90)
    story.step(40)
    assert story.budget.charged == 15_000
    story.tell(903_000)
    story.step(1)
    assert (story.budget.charged, story.phase) == (0, "Running")


def test_a_stop_for_a_charge_is_undone_by_readings() -> None:
    story = running(budgeted(onUnknown="Continue"))
    story.tell(980_000, draw=50_000)
    story.step(30)
    decision = story.step(overdue_seconds(30) + 60)
    assert decision.deletions
    assert "readings are missing" in story.condition(Type.BUDGET_EXHAUSTED)[2]
    story.stop()
    story.step(5)
    story.pods = ()
    story.step(1)
    assert story.phase == "Suspended"
    story.tell(985_000, closed=True)
    assert len(story.step(60).pods) == 1


def test_a_charge_alone_fails_no_job() -> None:
    story = running(budgeted(onUnknown="Continue", onExhausted="Fail"))
    story.tell(980_000, draw=50_000)
    story.step(30)
    story.step(overdue_seconds(30) + 60)
    story.stop()
    story.step(5)
    story.pods = ()
    story.step(1)
    assert story.phase == "Suspended"
    story.tell(1_000_100, closed=True)
    story.step(60)
    assert story.phase == "Failed"


def test_a_finished_job_needs_no_reserve() -> None:
    story = running()
    story.tell(994_800)
    story.step(1)
    story.pods = (exited(0, 0, story.second, gpus=1, node="node-1"),)
    story.tell(999_000, closed=True)
    story.step(1)
    story.step(30)
    assert story.phase == "Succeeded"
    assert story.condition(Type.BUDGET_EXHAUSTED)[:2] == ("False", "BudgetWarning")
    assert story.status.display.budget == "99%"


def test_a_node_that_never_comes_back_is_not_waited_for_for_ever() -> None:
    story = running()
    story.tell(100_000, draw=50_000)
    story.step(30)
    story.step(SILENT_AFTER.seconds)
    story.stop()
    story.step(5)
    story.pods, story.entries = (), ()
    story.step(1)
    assert story.step(3500).pods == ()
    assert len(story.step(120).pods) == 1


def test_a_job_whose_energy_is_unknown_waits_until_its_node_reports() -> None:
    story = running()
    story.tell(100_000, draw=50_000)
    story.step(30)
    decision = story.step(SILENT_AFTER.seconds)
    assert decision.deletions
    assert story.condition(Type.BUDGET_EXHAUSTED)[:2] == ("Unknown", "ReadingsStopped")
    story.stop()
    story.step(5)
    story.pods = ()
    story.step(1)
    status, reason, text = story.condition(Type.SUSPENDED)
    assert (status, reason) == ("True", "ReadingsStopped")
    assert "node-1 does not report" in text
    assert story.step(600).pods == ()
    story.tell(120_000, closed=True)
    assert len(story.step(60).pods) == 1


def test_a_job_whose_gpu_is_lost_waits_until_it_is_read_or_its_nodes_agent_gives_it_up() -> None:
    story = running()
    lost: dict[str, Any] = {"read_until": format_time(at(30))}
    story.tell(100_000, draw=50_000)
    story.step(30)
    story.second += SILENT_AFTER.seconds
    story.tell(110_000, draw=50_000, **lost)
    assert story.step().deletions
    story.stop()
    story.step(5)
    story.pods = ()
    for _ in range(5):
        # Its node reports all the time, and waits for the GPU to come back.
        story.second += 60
        story.tell(110_000, **lost)
        assert story.step().pods == ()
    status, reason, text = story.condition(Type.SUSPENDED)
    assert (status, reason) == ("True", "ReadingsStopped")
    assert "cannot read its GPUs" in text
    story.second += 600
    story.tell(110_000, closed=True, missing_seconds=900)
    assert len(story.step().pods) == 1


def test_on_unknown_continue_goes_on_charging() -> None:
    story = running(budgeted(onUnknown="Continue"))
    story.tell(100_000)
    story.step()
    assert story.step(600).deletions == ()
    assert story.budget.charged == (600 - 34) * 300


def test_a_job_that_goes_on_elsewhere_waits_for_no_node() -> None:
    story = running(budgeted(onUnknown="Continue"))
    story.tell(100_000)
    story.step()
    story.step(SILENT_AFTER.seconds)
    assert story.condition(Type.BUDGET_EXHAUSTED)[0] == "Unknown"
    moved = pod(0, attempt=1, gpus=1, node="node-2", started=at(story.second))
    story.pods = (replace(moved, uid="pod-elsewhere"),)
    story.step(1)
    assert story.condition(Type.BUDGET_EXHAUSTED)[0] == "False"
    assert story.control.unread_nodes == ()


@pytest.mark.parametrize(
    ("fleet", "why"),
    [
        (Fleet(), "no node reports the energy of its GPUs"),
        (replace(FLEET, limit_milliwatts=None), "the GPUs of the nodes that report name no power limit"),
    ],
    ids=["no node reports", "no GPU names a limit"],
)
def test_a_job_with_a_budget_does_not_begin_where_nobody_measures(fleet: Fleet, why: str) -> None:
    story = Story(budgeted())
    story.fleet = fleet
    decision = story.step()
    assert decision.pods == ()
    assert decision.look_again == at(10)
    assert why in story.condition(Type.PODS_READY)[2]
    story.edit(onUnknown="Continue")
    assert len(story.step(1).pods) == 1
    assert story.status.attempts[-1].overshoot_bound_joules is None


def test_a_scope_that_nodes_cannot_measure_is_said_before_the_job_begins() -> None:
    story = Story(budgeted(scope="Node"))
    story.fleet = replace(FLEET, without_host=("node-1",))
    assert story.step().pods == ()
    assert "set GPU" in story.condition(Type.PODS_READY)[2]


def test_a_scope_is_not_changed_once_energy_was_counted() -> None:
    story = running()
    story.tell(100_000)
    story.step(30)
    story.edit(scope="Node")
    story.step(1)
    assert "the energy of GPU has been counted already" in story.condition(Type.ADMITTED)[2]
    assert story.status.energy is not None
    assert story.status.energy.scope == "GPU"


@pytest.mark.parametrize(("action", "ending"), [("Evicted", False), ("Throttled", True)])
def test_a_pod_its_agent_stopped_is_exhaustion_and_no_failure(action: BudgetAction, ending: bool) -> None:
    story = running(budgeted(workers=2))
    story.tell(400_000, 500_000, draw=1000, budget_action=action)
    story.pods = (pod(0, gpus=1, node="node-1", started=at(1), terminating=ending), story.pods[1])
    decision = story.step(30)
    assert {d.uid for d in decision.deletions} >= {"pod-1-1"}
    story.stop()
    story.step(5)
    attempt = story.status.attempts[-1]
    assert (attempt.reason, attempt.counted_against) == ("AllowanceSpent", None)
    assert story.status.infrastructure_failure_count == 0


def test_a_counter_that_was_not_believed_is_an_event_each_time_with_its_node() -> None:
    story = running()
    story.tell(1_000)
    story.step(30)
    for faults in (1, 1, 3):
        story.tell(1_000, counter_faults=faults)
        story.step(30)
    assert story.status.energy is not None
    assert story.status.energy.counter_faults == 3
    said = [e for e in story.events if e.startswith("CounterFault")]
    text = (
        "CounterFault: an energy counter of pod digits-worker-0-1 showed what its GPU cannot have used: nothing of it counts, and "
        "that time is estimated from the GPU's power (kubectl describe nodepower node-1)"
    )
    assert said == [text, text]


def test_a_pod_that_is_throttled_alone_goes_on() -> None:
    story = running()
    story.tell(400_000, budget_action="Throttled")
    assert story.step(30).deletions == ()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0Wh", "'0Wh' is not valid: write energy from 1J to 100GWh"),
        ("-5kWh", "'-5kWh' is not valid"),
        ("5 kWh", "'5 kWh' is not valid"),
        ("5", "'5' is not valid"),
        ("200GWh", "'200GWh' is not valid"),
        ("5kwh", "'5kwh' is not valid"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: str, message: str) -> None:
    story = Story(budgeted(budget))
    assert story.step().pods == ()
    assert f"spec.energy.budget: {message}" in story.condition(Type.ADMITTED)[2]


# -- the parts -----------------------------------------------------------------------------------------------


def test_the_longest_grace_period_counts() -> None:
    own = {"spec": {"terminationGracePeriodSeconds": 90}}
    assert [grace_of(60, ({}, own)), grace_of(60, ({},)), grace_of(None, ({},))] == [90, 60, 30]


@pytest.mark.parametrize(
    ("confirmed", "begun", "done", "again"),
    [
        (None, 0, 100, 1000),
        (100, 0, 100, None),
        (50, 0, 100, 500),
        (50, 50, 100, 1000),
        (None, None, None, 1000),
        (10, None, None, None),
    ],
)
def test_a_restart_says_what_it_burns_again(
    confirmed: int | None, begun: int | None, done: int | None, again: int | None
) -> None:
    last = AttemptStatus(
        number=1, start_time=format_time(at(0)), energy_joules=1000, start_step=begun, last_step=done
    )
    checkpoint = None if confirmed is None else CheckpointStatus(step=confirmed, confirmed=True)
    assert burnt_again(last, ProgressStatus(confirmed_checkpoint=checkpoint)) == again


def charged(
    before: Charges,
    *pods: Pod,
    second: float,
    stored: EnergyStatus | None = None,
    energy: EnergyStatus | None = None,
    reports: tuple[NodeReport, ...] = (),
) -> Charges:
    control = ControlStatus(charges=before.pods, lost_joules=before.lost_joules)
    known = (stored or energy or EnergyStatus()).model_copy(update={"control": control})
    attempt = AttemptStatus(
        number=1, start_time=format_time(at(0)), gpu_limit_milliwatts=GPU_LIMIT, replicas={"Worker": 1}
    )
    job = job_of(status=GreenTrainingJobStatus(energy=known, attempts=(attempt,)))
    account = Account(
        Snapshot(job=job, pods=pods, reports=reports), spec_in_force(job.status), attempt, at(second)
    )
    return keep_charges(account, energy or EnergyStatus())


def test_what_is_charged_for_a_pod_that_was_never_read() -> None:
    held = pod(0, gpus=2, node="node-1", started=at(0))
    first = charged(Charges(), held, second=10)
    assert (first.joules, first.due, first.growing) == (0, at(34), False)
    late = charged(first, held, second=100)
    assert (late.joules, late.growing) == (2 * 300 * (100 - 34), True)
    assert charged(Charges(), pod(0, PodState.PENDING, gpus=1), second=100).pods == ()
    # Once it has ended nobody will report in between: all the time since its last reading counts.
    over = charged(late, second=120)
    assert (over.joules, over.growing) == (2 * 300 * 120, False)
    assert charged(over, second=500) == over
    # Its node reports and never knew it.
    empty = NodeReport("node-1", at(700))
    assert charged(over, second=700, reports=(empty,)) == Charges(
        (), Joules(2 * 300 * 120), limit_milliwatts=Milliwatts(300_000)
    )


NOTHING = Charges(limit_milliwatts=Milliwatts(300_000))


@pytest.mark.parametrize(
    ("entry", "missing", "joules", "unread"),
    [
        ({"last_reading": 130}, 0, 0, False),
        ({"last_reading": 130}, 7, 300 * 7, False),
        ({"unread_gpus": 2}, 200, 300 * 200, True),
        ({"last_reading": 130, "unread_gpus": 1}, 100, 300 * 100, True),
        ({"last_reading": 130, "read_until": 10}, 0, 2 * 300 * (130 - 44), True),
        ({"last_reading": 130, "read_until": 90}, 0, 2 * 300 * (130 - 124), False),
        ({"read_until": 10}, 0, 2 * 300 * (130 - 44), True),
        (
            {"last_reading": 130, "read_until": 10, "unread_gpus": 1},
            100,
            2 * 300 * (130 - 44) + 300 * 100,
            True,
        ),
    ],
    ids=[
        "read",
        "a gap that no counter closes",
        "neither of its GPUs was ever read",
        "one of its GPUs was never read",
        "one was lost",
        "one was lost a moment ago",
        "it was lost before the pod began",
        "one was lost and one never read",
    ],
)
def test_time_of_a_gpu_that_is_not_read_is_charged_as_that_of_a_node_that_fell_silent(
    entry: dict[str, int], missing: int, joules: int, unread: bool
) -> None:
    held = pod(0, gpus=2, node="node-1", started=at(0))
    fields = {name: v if name == "unread_gpus" else format_time(at(v)) for name, v in entry.items()}
    listed = PodEnergy(uid="pod-0-1", namespace="team", name="a", missing_seconds=missing, **fields)
    report = NodeReport("node-1", at(130), (listed,), observed=at(130), seen=at(130), report_seconds=30)
    counted = PodEnergyStatus(uid="pod-0-1", node="node-1", attempt=1, missing_seconds=missing)
    energy = EnergyStatus(pods=(counted,), missing_seconds=missing)
    begun = charged(Charges(), held, second=1)
    found = charged(begun, held, second=130, energy=energy, reports=(report,))
    assert (found.joules, bool(found.unread)) == (joules, unread)
    assert report.reads(listed) is (not unread)


def test_after_a_lost_journal_a_gpu_that_is_not_read_is_charged_once() -> None:
    held = pod(0, gpus=1, node="node-1", started=at(0))
    ended = PodEnergy(
        uid="pod-0-1", namespace="team", name="a", last_reading=format_time(at(10)), closed=True
    )
    anew = PodEnergy(uid="pod-0-1", namespace="team", name="a", segment=1, unread_gpus=1, missing_seconds=90)
    report = NodeReport("node-1", at(130), (ended, anew), observed=at(130), seen=at(130), report_seconds=30)
    energy = EnergyStatus(missing_seconds=90)
    found = charged(charged(Charges(), held, second=1), held, second=130, energy=energy, reports=(report,))
    assert (found.joules, found.unread) == (300 * 90, (held,))


def test_a_gpu_that_only_a_resource_claim_gives_stops_a_job_that_may_not_go_on_unread() -> None:
    held = pod(0, node="node-1", started=at(0))
    claimed = PodEnergy(uid="pod-0-1", namespace="team", name="a", unread_gpus=1, missing_seconds=100)
    report = NodeReport("node-1", at(100), (claimed,), observed=at(100), seen=at(100), report_seconds=30)
    energy = EnergyStatus(missing_seconds=100)
    found = charged(Charges(), held, second=100, energy=energy, reports=(report,))
    assert (found.joules, found.unread) == (300 * 100, (held,))
    assert charged(Charges(), held, second=100).pods == (), "a pod without a GPU is charged nothing"


HOUR = ABANDONED_AFTER.total_seconds()
READ = EnergyStatus(pods=(PodEnergyStatus(uid="pod-0-1", node="node-1", attempt=1, gpu_joules=7),))


def reported(second: float, *, read: float | None = None) -> tuple[NodeReport, ...]:
    """A report, with the pod's last reading of that second if any."""
    last = "" if read is None else format_time(at(read))
    entries = (
        () if read is None else (PodEnergy(uid="pod-0-1", namespace="team", name="a", last_reading=last),)
    )
    return (NodeReport("node-1", at(second), entries, observed=at(second)),)


@pytest.mark.parametrize(
    ("facts", "second", "is_lost"),
    [
        ({}, 100 + HOUR - 1, False),
        ({}, 100 + HOUR, True),
        ({"reports": reported(0)}, 100 + HOUR - 1, False),
        ({"reports": reported(0)}, 100 + HOUR, True),
        ({"reports": reported(159)}, 170, False),
        ({"reports": reported(160)}, 170, True),
        ({"reports": reported(160, read=0)}, 170, False),
        ({"energy": READ}, 100 + 2 * HOUR, False),
        ({"energy": READ, "reports": reported(160)}, 170, False),
        ({"stored": READ}, 101, True),
    ],
    ids=[
        "no report for less than an hour",
        "no report for an hour",
        "an old report for less than an hour",
        "an old report for an hour",
        "a report too soon after its end",
        "a report a minute after its end",
        "a report that tells of it",
        "its readings are listed",
        "its readings are listed, and its agent has let go of it",
        "its agent has let go of its readings before the last",
    ],
)
def test_a_charge_is_made_final_when_the_last_word_cannot_come_any_more(
    facts: dict[str, Any], second: float, is_lost: bool
) -> None:
    running_ = charged(Charges(), pod(0, gpus=1, node="node-1", started=at(0)), second=50)
    ended = charged(running_, second=100)
    assert (ended.joules, ended.lost_joules) == (300 * 100, 0)
    later = charged(ended, second=second, **facts)
    assert (later.joules, later.lost_joules) == (300 * 100, 300 * 100 if is_lost else 0)
    assert [c.uid for c in later.pods] == ([] if is_lost else ["pod-0-1"])
    again = charged(later, second=second + 1, **{**facts, "stored": None})
    assert again.joules == later.joules, "and no charge is made final twice"


def test_a_charge_ends_when_all_entries_of_its_pod_are_final() -> None:
    first, second = (
        PodEnergyStatus(uid="pod-0-1", segment=i, node="node-1", attempt=1, gpu_joules=7, final=not i)
        for i in range(2)
    )
    ended = charged(charged(Charges(), pod(0, gpus=1, node="node-1", started=at(0)), second=50), second=100)
    assert charged(ended, second=101, energy=EnergyStatus(pods=(first, second))).joules == 300 * 100
    final = second.model_copy(update={"final": True})
    assert charged(ended, second=101, energy=EnergyStatus(pods=(first, final))) == NOTHING


@pytest.mark.parametrize(
    ("finished", "seen", "seconds"),
    [
        (100, 200, 105),
        (100, 102, 102),
        (100, 102.001, 103),
        (100.5, 200, 106),
        (300, 200, 200),
        (None, 200, 200),
        (None, 200.5, 201),
    ],
    ids=[
        "long ago",
        "just now",
        "just now, within a second",
        "within a second",
        "in the future",
        "not reported",
        "not reported, within a second",
    ],
)
def test_an_ended_pod_is_charged_until_its_end_by_the_latest_its_nodes_clock_could_mean(
    finished: float | None, seen: float, seconds: int
) -> None:
    before = charged(Charges(), pod(0, gpus=1, node="node-1", started=at(0)), second=10)
    ended = pod(0, PodState.EXITED, gpus=1, node="node-1", exit_code=0)
    ended = replace(ended, finished=None if finished is None else at(finished))
    first = charged(before, ended, second=seen)
    assert first.joules == 300 * seconds
    assert charged(first, second=seen + 100).joules == 300 * seconds, "and no less when it is read again"


@pytest.mark.parametrize(
    ("reads", "joules"),
    [((30,), 300 * 70), ((30, 20), 300 * 70), ((150,), 0), ((30, 150), 0)],
    ids=["read before its end", "an old report came later", "a report after its end", "both"],
)
def test_an_ended_pod_is_charged_from_its_last_reading_and_never_less_than_nothing(
    reads: tuple[int, ...], joules: int
) -> None:
    charges = charged(Charges(), pod(0, gpus=1, node="node-1", started=at(0)), second=10)
    for read in reads:
        ended = exited(0, 0, 95, gpus=1, node="node-1")
        charges = charged(charges, ended, second=200, energy=READ, reports=reported(read, read=read))
    assert (charges.joules, charges.lost_joules) == (joules, 0)
    assert all(c.since <= (c.gone or "") for c in charges.pods)


@pytest.mark.parametrize(("read", "joules"), [(170, 300 * 6), (None, 300 * 106)])
def test_a_pod_whose_journal_was_lost_is_charged_from_its_last_reading_since(
    read: int | None, joules: int
) -> None:
    """Its node reports what an account before had counted as an ended entry, and what it uses since as another."""
    name = {"uid": "pod-0-1", "namespace": "team", "name": "digits-worker-0-1"}
    before = PodEnergy(**name, segment=0, gpu_joules=7, last_reading=format_time(at(70)), closed=True)
    since = PodEnergy(**name, segment=1, last_reading=None if read is None else format_time(at(read)))
    energy = EnergyStatus(
        pods=tuple(
            PodEnergyStatus(
                uid=e.uid, segment=e.segment, node="node-1", gpu_joules=e.gpu_joules, final=e.closed
            )
            for e in (before, since)
        )
    )
    for entries in ((before, since), (since, before)):
        report = NodeReport("node-1", at(170), entries, observed=at(170), seen=at(170), report_seconds=30)
        held = pod(0, gpus=1, node="node-1", started=at(0))
        assert charged(Charges(), held, second=210, energy=energy, reports=(report,)).joules == joules


def test_a_pod_of_which_its_node_tells_is_charged_though_nobody_saw_it_run() -> None:
    told = PodEnergy(
        uid="pod-0-1",
        namespace="team",
        name="digits-worker-0-1",
        gpu_joules=50,
        last_reading=format_time(at(100)),
    )
    report = NodeReport("node-1", at(100), (told,), observed=at(100), seen=at(100), report_seconds=30)
    energy = EnergyStatus(pods=(PodEnergyStatus(uid="pod-0-1", node="node-1", attempt=1, gpu_joules=50),))
    for state in (PodState.PENDING, PodState.FAILED):
        held = pod(0, state, gpus=1, node="node-1")
        over = charged(Charges(), held, second=150, energy=energy, reports=(report,))
        late = 150 - 100 - (34 if state is PodState.PENDING else 0)
        assert over.joules == 300 * late


def test_a_report_from_before_a_pod_does_not_settle_it() -> None:
    held = pod(0, gpus=1, node="node-1", started=at(50))
    old = NodeReport("node-1", at(0))
    over = charged(charged(Charges(), held, second=60, reports=(old,)), second=80, reports=(old,))
    assert [(c.uid, c.joules) for c in over.pods] == [("pod-0-1", 300 * 30)]
    last = PodEnergyStatus(uid="pod-0-1", node="node-1", attempt=1, gpu_joules=7, final=True)
    assert charged(over, second=90, energy=EnergyStatus(pods=(last,))) == NOTHING


def test_a_stop_for_a_charge_is_not_begun_again_while_its_last_word_is_missing() -> None:
    story = running(budgeted(onUnknown="Continue"))
    story.tell(990_000)
    story.step()
    story.step(55)
    assert story.phase == "Suspending"
    story.stop()
    story.step(3)
    story.pods = ()
    for _ in range(5):
        assert story.step(1).pods == ()


@pytest.mark.parametrize(
    ("there", "limit", "worst"),
    [
        (FLEET, GPU_LIMIT, 112),
        (replace(FLEET, limit_milliwatts=Milliwatts(250_000), report_seconds=10), GPU_LIMIT, 112),
        (Fleet(), GPU_LIMIT, 112),
        (replace(FLEET, limit_milliwatts=Milliwatts(700_000)), 700_000, 112),
        (replace(FLEET, report_seconds=60), GPU_LIMIT, 112 + 33),
        (replace(FLEET, report_seconds=3600), GPU_LIMIT, 112 + 61),
        (replace(FLEET, limit_milliwatts=Milliwatts(700_000), report_seconds=60), 700_000, 112 + 33),
    ],
    ids=[
        "the same",
        "lower",
        "not known",
        "higher limit",
        "longer interval",
        "longest interval",
        "both higher",
    ],
)
def test_a_bound_is_raised_where_pods_come_to_nodes_with_higher_figures_and_never_lowered(
    there: Fleet, limit: int, worst: int
) -> None:
    story = Story(budgeted(workers=2))
    story.step()
    story.run()
    story.fleet = there
    story.tell(0, 0)
    story.step(1)
    story.fleet = FLEET
    (attempt,) = story.step(1).status.attempts
    assert attempt.gpu_limit_milliwatts == limit
    assert attempt.worst_seconds == worst
    assert attempt.overshoot_bound_joules == 2 * limit * worst // 1000
    assert attempt.stop_seconds == worst - 61


def test_a_bound_that_nobody_could_say_is_said_when_the_pods_nodes_report() -> None:
    story = Story(budgeted(onUnknown="Continue"))
    story.fleet = Fleet()
    story.step()
    story.run()
    assert story.status.attempts[0].overshoot_bound_joules is None
    story.fleet = FLEET
    story.tell(0)
    assert story.step(1).status.attempts[0].overshoot_bound_joules == GPU_LIMIT * 112 // 1000


@pytest.mark.parametrize(
    ("every", "seconds"), [(None, 34), (1, 3), (30, 34), (60, 67), (85, 95), (86, 95), (3600, 95)]
)
def test_a_report_is_overdue_when_its_node_counts_as_silent_at_the_latest(
    every: int | None, seconds: int
) -> None:
    assert overdue_seconds(every) == seconds


def test_a_report_that_is_overdue_is_looked_for() -> None:
    story = running()
    story.tell(500_000)
    decision = story.step()
    assert decision.look_again == at(story.second + overdue_seconds(30))
    assert story.step(overdue_seconds(30)).look_again == at(story.second + 2)


def test_what_an_ended_pod_may_have_used_is_not_allowed_to_others() -> None:
    story = running()
    story.tell(100_000)
    story.step()
    story.step(1)
    story.pods = (exited(0, 1, story.second + 24, gpus=1, node="node-1"),)
    story.step(24)
    story.pods = ()
    story.step(1)
    story.run()
    story.step(1)
    (mine,) = (a for a in story.control.allowances if a.uid == "pod-0-2")
    # The first pod was allowed all, and its last word is not in.
    assert mine.joules == 0
    story.tell(5000)
    story.entries = (
        story.entries[0].model_copy(update={"closed": True, "gpu_joules": 107_000}),
        *story.entries[1:],
    )
    story.step(1)
    (mine,) = story.control.allowances
    assert mine.joules == 1_000_000 - 107_000


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_allowances_together_never_exceed_what_remains(seed: int, count: int) -> None:
    """Agents hold any value that was ever asked of them since they told last; pods use at most what theirs says."""
    chance = random.Random(seed)
    limit = chance.randrange(1, 10**9)
    used = [0] * count
    weights = [chance.randrange(1, 9) for _ in range(count)]
    history: list[list[int]] = [[] for _ in range(count)]
    echo: list[int | None] = [None] * count
    known: tuple[PodAllowance, ...] = ()
    for _ in range(40):
        holders = [AllowedPod(str(i), used[i], weights[i], echo[i]) for i in range(count)]
        known = divide(limit, holders, known)
        assert [a.uid for a in known] == [h.uid for h in holders]
        for i, allowance in enumerate(known):
            if not history[i] or history[i][-1] != allowance.joules:
                history[i].append(allowance.joules)
        assert sum(max(h) for h in history) <= limit
        for i in range(count):
            if chance.random() < 0.5:
                # The agent reads one of what was asked since, and tells so.
                read = chance.randrange(len(history[i]))
                history[i] = history[i][read:]
                echo[i] = history[i][0]
            left = history[i][0] - used[i]
            if left > 0 and chance.random() < 0.7:
                used[i] += chance.randrange(left)


def test_equal_pods_are_never_asked_anew() -> None:
    known: tuple[PodAllowance, ...] = ()
    first: tuple[PodAllowance, ...] = ()
    for used in range(0, 900, 10):
        holders = [AllowedPod(str(i), used, 1, 1000) for i in range(4)]
        known = divide(4000, holders, known)
        first = first or known
        assert [a.joules for a in known] == [a.joules for a in first] == [1000] * 4


def test_a_pod_that_uses_more_gets_more_in_time() -> None:
    known = divide(2000, [AllowedPod("a", 0, 1), AllowedPod("b", 0, 1)], ())
    known = divide(2000, [AllowedPod("a", 900, 1, 1000), AllowedPod("b", 100, 1, 1000)], known)
    assert [(a.joules, a.granted_joules) for a in known] == [(1000, 1000), (600, 1000)]
    known = divide(2000, [AllowedPod("a", 900, 1, 1000), AllowedPod("b", 100, 1, 600)], known)
    assert [a.joules for a in known] == [1400, 600]


def test_energy_beyond_what_nodes_told_is_not_called_used() -> None:
    story = running()
    story.step(200)
    assert story.status.energy is not None
    assert (story.status.energy.used, story.status.display.energy) == ("", "<unknown>")
    assert story.budget.charged > 0


def test_a_restart_without_a_confirmed_checkpoint_is_told_with_its_price() -> None:
    story = running()
    story.tell(360_000)
    story.step()
    story.step(1)
    story.pods = (exited(0, 137, story.second, gpus=1, node="node-1"),)
    story.tell(360_000, closed=True)
    story.step(1)
    story.pods = ()
    story.step(60)
    story.step(60)
    said = next(e for e in story.events if e.startswith("Created: attempt 2"))
    assert said == (
        "Created: attempt 2 of 1 pods; steps that the last attempt did are done again, about 100Wh: no confirmed checkpoint "
        "has them"
    )


@pytest.mark.parametrize("room", [100, 101, 102, 2, 1, 0])
def test_allowances_that_are_lowered_fit_into_what_remains(room: int) -> None:
    known = divide(300, [AllowedPod(str(i), 0, 1) for i in range(3)], ())
    lowered = divide(room, [AllowedPod(str(i), 0, 1, 100) for i in range(3)], known)
    assert sum(a.joules for a in lowered) <= room


def test_a_line_of_the_status_has_what_is_charged_and_what_is_kept_for_a_stop() -> None:
    story = running()
    story.step(60)
    (line,) = story.status.budgets
    assert (line.type, line.limit, line.action) == ("Energy", "1MJ", "Suspend")
    assert story.budget.charged > 0
    assert line.charged == format_energy(story.budget.charged)
    assert story.budget.reserved == 0
    assert line.reserved == ""
    stored = dump_job_status(story.status)["budgets"][0]
    assert {"charged", "limit", "percent", "bound"} <= set(stored)
