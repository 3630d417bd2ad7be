"""A job's account does not end with the job: deletion waits for it, and it is reported once, in one message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from greentrain.api.nodepower import PodEnergy
from greentrain.api.reasons import Severity
from greentrain.api.status import EnergyStatus, GreenTrainingJobStatus
from greentrain.controller.logs import find_log_lines
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.nodes import ABANDONED_AFTER, NodeReport
from greentrain.core.seen.pods import Pod, PodState
from greentrain.core.seen.snapshot import Job
from greentrain.core.status.accounted import describe_account
from greentrain.core.status.essence import find_write_delay
from greentrain.core.status.events import Event, transition_events
from tests.support.manifests import build_job
from tests.support.snapshots import at, exited, job_of, pod, seen

HOUR = ABANDONED_AFTER.total_seconds()
END = 11.0
"""The second in which the job of these tests finishes; 1 s after its pods."""

GPU: dict[str, Any] = {"gpus": 1, "node": "node-1"}


def entry(index: int, joules: int, *, closed: bool) -> PodEnergy:
    return PodEnergy(
        uid=f"pod-{index}-1",
        namespace="team",
        name=f"digits-worker-{index}-1",
        job="digits",
        job_uid="uid-1",
        owner_known=True,
        gpu_joules=joules,
        closed=closed,
    )


def report(*closed: bool, second: float, node: str = "node-1") -> NodeReport:
    """Both pods' entries, each closed or not, received in that second."""
    entries = tuple(entry(i, 100 if done else 60, closed=done) for i, done in enumerate(closed))
    return NodeReport(node, at(second), entries)


class Story:
    """The passes over one job: each one's status is stored, as the next one finds it."""

    def __init__(self, status: GreenTrainingJobStatus | None = None, **policy: Any) -> None:
        self._manifest = build_job(runPolicy=policy)
        self.status = status or GreenTrainingJobStatus()
        self.events: list[Event] = []
        self.lines: list[str] = []

    @property
    def job(self) -> Job:
        return job_of(self._manifest, status=self.status)

    def step(self, *pods: Pod, second: float, reports: tuple[NodeReport, ...] = ()) -> Decision:
        decision = decide(seen(self.job, *pods, reports=reports), now=at(second))
        found = transition_events(self.status, decision.status, uid="uid-1")
        self.events += [e for e in found if e.reason == "Accounted"]
        lines = find_log_lines(self.status, decision.status, uid="uid-1")
        self.lines += [li.message for li in lines if li.decision == "accounted" and li.level == logging.INFO]
        self.status = decision.status
        return decision

    def finish(self, *reports: NodeReport) -> Story:
        """From the start to the end, which the reports follow."""
        self.step(second=0)
        self.step(pod(0, **GPU), pod(1, **GPU), second=5, reports=(report(False, False, second=5),))
        self.step(*ENDED, second=END, reports=reports)
        return self


ENDED = (exited(0, 0, 10, **GPU), exited(1, 0, 10, **GPU))
OPEN = report(False, False, second=5)
HALF = report(True, False, second=12)
CLOSED = report(True, True, second=12)


def test_a_time_to_live_waits_for_the_final_reports_and_for_their_status_to_be_stored() -> None:
    story = Story(ttlSecondsAfterFinished=0).finish(OPEN)
    assert not story.step(*ENDED, second=12, reports=(HALF,)).delete_job
    assert story.status.energy is not None
    assert not story.status.energy.final
    stored = story.step(*ENDED, second=13, reports=(CLOSED,))
    assert (stored.delete_job, len(story.events)) == (False, 1)
    assert story.step(*ENDED, second=13, reports=(CLOSED,)).delete_job


@pytest.mark.parametrize(
    ("what", "ttl", "reports", "deleted"),
    [
        # The node's report is of second 5: it is given up an hour later, a moment before the hour since the job's end.
        ("its node is silent: until the report is given up", 0, (OPEN,), 5 + HOUR),
        ("the time to live is longer than the wait", 2 * HOUR, (OPEN,), END + 2 * HOUR),
        ("its node is not known any more: an hour", 0, (), END + HOUR),
        ("its final reports are in", 60, (CLOSED,), END + 60),
    ],
)
def test_the_wait_ends_when_a_final_report_is_given_up(
    what: str, ttl: float, reports: tuple[NodeReport, ...], deleted: float
) -> None:
    story = Story(ttlSecondsAfterFinished=int(ttl)).finish(*(reports or (OPEN,)))
    # The pods' objects are gone, as after cleanPodPolicy All.
    due: datetime | None = at(END)
    while due is not None and due < at(deleted):
        second = (due - at(0)).total_seconds()
        decision = story.step(second=second, reports=reports)
        assert not decision.delete_job, f"{what}: {second}"
        due = decision.look_again
    assert due == at(deleted), what
    # One pass closes the account, the next one deletes.
    passes = [story.step(second=deleted, reports=reports).delete_job for _ in range(2)]
    assert (passes[-1], len(story.events), len(story.lines)) == (True, 1, 1), what


def test_a_node_that_reports_an_open_pod_without_end_delays_a_deletion_by_an_hour_at_most() -> None:
    story = Story(ttlSecondsAfterFinished=60).finish(OPEN)
    last = END + 60 + HOUR
    for second in (END + 60, END + HOUR, last - 1):
        assert not story.step(*ENDED, second=second, reports=(report(True, False, second=second),)).delete_job
        assert story.events == []
    before, now = story.status, (report(True, False, second=last),)
    assert [story.step(*ENDED, second=last, reports=now).delete_job for _ in range(2)] == [False, True]
    assert "final reports of pods that are missing: 1" in story.events[0].message
    assert find_write_delay(before, story.status, since=0.0, measures_every=60.0) == 0.0


def test_a_pod_that_outlives_its_job_is_stopped_at_the_end_of_its_time_to_live_and_then_waited_for() -> None:
    """With cleanPodPolicy None a pod may run on; its energy is counted to its end."""
    story = Story(ttlSecondsAfterFinished=600, cleanPodPolicy="None").finish(OPEN)
    runs = (ENDED[0], pod(1, **GPU))
    assert (
        story.step(*runs, second=END + 599, reports=(report(True, False, second=END + 599),)).deletions == ()
    )
    over = story.step(*runs, second=END + 600, reports=(report(True, False, second=END + 600),))
    assert ([d.uid for d in over.deletions], over.delete_job) == (["pod-1-1"], False)
    final = (report(True, True, second=END + 630),)
    assert not story.step(ENDED[0], second=END + 630, reports=final).delete_job
    assert story.step(ENDED[0], second=END + 631, reports=final).delete_job
    assert story.status.energy is not None
    assert story.status.energy.used_joules == 200


def test_without_an_account_nothing_is_waited_for() -> None:
    """No node reports: as before there were accounts, also while a pod runs on, which the deletion takes along."""
    for pods in (ENDED, (ENDED[0], pod(1, **GPU))):
        story = Story(ttlSecondsAfterFinished=60, cleanPodPolicy="None")
        story.step(second=0)
        story.step(pod(0, **GPU), pod(1, **GPU), second=5)
        story.step(*ENDED, second=END)
        assert not story.step(*pods, second=END + 59).delete_job
        over = story.step(*pods, second=END + 60)
        assert (over.delete_job, over.deletions, story.events, story.lines) == (True, (), [], [])


@pytest.mark.parametrize(
    "restart",
    [
        lambda status: status,
        lambda status: GreenTrainingJobStatus.model_validate_json(status.model_dump_json(by_alias=True)),
    ],
    ids=["one operator", "another operator after each pass"],
)
def test_an_account_is_reported_once_whatever_comes_later(
    restart: Callable[[GreenTrainingJobStatus], GreenTrainingJobStatus],
) -> None:
    story = Story().finish(OPEN)
    later = 12 + HOUR
    for second, reports in (
        (12, (HALF,)),
        (later, (HALF,)),  # the node is silent: the second pod's report is given up
        (later + 1, (report(True, False, second=later + 1),)),  # it is back
        (later + 2, (report(True, True, second=later + 2),)),
        (later + 3, (report(True, True, second=later + 2),)),
        (later + 4, (report(second=later + 4),)),
        (later + 5, (report(second=later + 5),)),
    ):
        story.step(second=second, reports=reports)
        story.status = restart(story.status)
    assert story.status.energy is not None
    assert (story.status.energy.final, story.status.energy.used_joules) == (True, 200)
    assert [(e.type, e.reason) for e in story.events] == [(Severity.NORMAL, "Accounted")]
    assert story.lines == [story.events[0].message]


def test_an_account_that_an_earlier_version_closed_is_not_reported_again() -> None:
    story = Story().finish(CLOSED)
    assert story.status.energy is not None
    assert story.status.energy.accounted
    earlier = story.status.energy.model_copy(update={"accounted": False})
    story = Story(story.status.model_copy(update={"energy": earlier}))
    story.step(*ENDED, second=20, reports=(CLOSED,))
    assert story.events == []
    assert story.status.energy is not None
    assert story.status.energy.accounted


def test_a_job_that_runs_or_used_nothing_that_is_known_has_no_account_yet() -> None:
    story = Story(energy={"budget": "1kWh"})
    story.step(second=0)
    story.step(pod(0, **GPU), pod(1, **GPU), second=5, reports=(report(True, True, second=5),))
    assert story.events == []
    empty = GreenTrainingJobStatus(energy=EnergyStatus(final=True))
    assert transition_events(GreenTrainingJobStatus(), empty) == ()


ENERGY: dict[str, Any] = {"used": "1kWh", "usedJoules": 3_600_000, "errorJoules": 36, "final": True}
EMISSIONS: dict[str, Any] = {
    "total": "344g",
    "totalMicrograms": 344_200_000,
    "zones": ["DE"],
    "shares": [{"source": "table", "joules": 3_600_000, "percent": 100, "micrograms": 344_200_000}],
    "pue": "1.2",
}


def described(energy: dict[str, Any], emissions: dict[str, Any] | None, **more: Any) -> str:
    status = {"energy": energy, **more} | ({} if emissions is None else {"emissions": emissions})
    return describe_account(GreenTrainingJobStatus.model_validate(status), uid="4f2c")


@pytest.mark.parametrize(
    ("energy", "emissions", "words"),
    [
        (
            ENERGY,
            EMISSIONS,
            (
                "the job's account is closed: energy 1kWh ± 36J at 95 % confidence, scope GPU; emissions 344.2g of CO2 "
                "equivalent, zone DE, source table, basis Lifecycle, scope GPU, PUE 1.2; every final report is in; job UID 4f2c"
            ),
        ),
        (
            {**ENERGY, "scope": "Node", "lostPods": 2, "missingSeconds": 70},
            None,
            (
                "the job's account is closed: energy 1kWh ± 36J at 95 % confidence, scope Node; emissions are not counted, "
                "because no source of intensity is set; final reports of pods that are missing: 2, what they used after their "
                "last report is not counted; 70 s of its pods' time with a GPU were not read and are in no sum; job UID 4f2c"
            ),
        ),
        (
            {**ENERGY, "final": False},
            {
                **EMISSIONS,
                "zones": ["DE", "FR"],
                "shares": [{"source": "table", "percent": 75}, {"source": "file", "percent": 25}],
                "withoutJoules": 3600,
                "pue": "",
                "basis": "Direct",
                "boundary": "Node",
            },
            (
                "the job's account is closed: energy 1kWh ± 36J at 95 % confidence, scope GPU; emissions 344.2g of CO2 "
                "equivalent, zone DE, FR, source table (75 %), file (25 %), basis Direct, scope Node, PUE 1, without 1Wh of the "
                "energy, for which there is no intensity; a pod of the job had not ended by then; job UID 4f2c"
            ),
        ),
    ],
    ids=["whole", "without emissions", "with gaps"],
)
def test_the_account_in_one_message(
    energy: dict[str, Any], emissions: dict[str, Any] | None, words: str
) -> None:
    assert described(energy, emissions) == words


def test_the_pue_of_each_attempt_counts() -> None:
    attempts = [
        {"number": n, "startTime": "2026-01-01T00:00:00Z", "pueThousandths": pue}
        for n, pue in ((1, 1200), (2, 1500), (3, 1200))
    ]
    assert ", PUE 1.2, 1.5;" in described(ENERGY, EMISSIONS, attempts=attempts)


def test_an_event_has_room_for_the_account_whatever_its_names_are() -> None:
    names = [f"{chr(27)}[31m{'Z' * 40}{n:03d}\n{'z' * 10}" for n in range(64)]
    shares = [{"source": name, "percent": 1} for name in names]
    attempts = [
        {"number": n, "startTime": "2026-01-01T00:00:00Z", "pueThousandths": 1111 + n} for n in range(1, 11)
    ]
    most = 2**62
    energy = {**ENERGY, "usedJoules": most, "errorJoules": most, "lostPods": most, "missingSeconds": most}
    text = described(
        energy,
        {**EMISSIONS, "zones": names, "shares": shares, "totalMicrograms": most, "withoutJoules": most},
        attempts=attempts,
    )
    assert len(text) < 1024
    assert text.isprintable() or "\ufffd" in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.count(" and 60 more") == 2
    assert text.endswith("; job UID 4f2c")


def test_a_pod_that_is_pending_at_the_end_is_not_ended() -> None:
    """A pod that never started has no entry: the account is closed once it is gone."""
    story = Story(ttlSecondsAfterFinished=0, cleanPodPolicy="Running").finish(OPEN)
    left = pod(1, PodState.PENDING)
    assert not story.step(ENDED[0], left, second=20, reports=(CLOSED,)).delete_job
    story.step(ENDED[0], second=30, reports=(CLOSED,))
    assert story.step(ENDED[0], second=31, reports=(CLOSED,)).delete_job
