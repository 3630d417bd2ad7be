"""The counters add up to what was used: over short jobs, deleted jobs, restarts of the operator and months."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.telemetry.accounts import KEPT_JOBS, KEPT_NAMESPACES, KEPT_SECONDS, ZERO_SECONDS, Accounts
from greentrain.telemetry.jobs import measure_job
from greentrain.telemetry.metrics import Telemetry

JOB = "greentrain_job_energy_joules_total"
JOB_GRAMS = "greentrain_job_emissions_grams_total"
NAMESPACE = "greentrain_namespace_energy_joules_total"
NAMESPACE_GRAMS = "greentrain_namespace_emissions_grams_total"

Series = tuple[str, tuple[tuple[str, str], ...]]


def used(joules: int | None, grams: float | None = None) -> GreenTrainingJobStatus:
    status: dict[str, Any] = {}
    if joules is not None:
        status["energy"] = {"used": f"{joules}J", "usedJoules": joules}
    if grams is not None:
        status["emissions"] = {"total": f"{grams}g", "totalMicrograms": int(grams * 1_000_000)}
    return GreenTrainingJobStatus.model_validate(status)


class Process:
    """One operator process: its counters, as Prometheus reads them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.accounts = Accounts(lambda: self.now)
        self.telemetry = Telemetry(CollectorRegistry(), self.accounts)
        self.telemetry.export_jobs(lambda: [measure_job("team", "digits", used(5, 1.0))])

    def scrape(self, *, after: float = 30.0) -> dict[Series, float]:
        """Every counter of jobs and namespaces by name and labels, so many seconds later."""
        self.now += after
        found = {}
        for family in text_string_to_metric_families(self.telemetry.render().decode()):
            for sample in family.samples:
                if sample.name in (JOB, JOB_GRAMS, NAMESPACE, NAMESPACE_GRAMS):
                    assert family.type == "counter", sample.name
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        return found


def of_job(uid: str, name: str = JOB, job: str = "digits", namespace: str = "team") -> Series:
    return name, (("job", job), ("namespace", namespace), ("uid", uid))


def of_namespace(name: str = NAMESPACE, namespace: str = "team") -> Series:
    return name, (("namespace", namespace),)


def test_a_job_and_its_namespace_are_counted_and_nothing_is_shown_where_nothing_is_known() -> None:
    process = Process()
    process.accounts.note("team", "digits", "u1", used(None))
    assert process.scrape() == {}
    process.accounts.note("team", "digits", "u1", used(100))
    assert process.scrape() == {of_job("u1"): 100, of_namespace(): 0}
    process.accounts.note("team", "digits", "u1", used(250, 0.5))
    assert process.scrape(after=ZERO_SECONDS) == {
        of_job("u1"): 250,
        of_job("u1", JOB_GRAMS): 0.5,
        of_namespace(): 250,
        of_namespace(NAMESPACE_GRAMS): 0,
    }
    text = process.telemetry.render().decode()
    assert "# TYPE greentrain_job_energy_joules gauge" in text
    assert "# TYPE greentrain_job_energy_joules_total counter" in text


@pytest.mark.parametrize(
    ("what", "values", "shown", "grown"),
    [
        ("it grows", (0, 10, 30), 30, 30),
        ("the operator was restarted: its growth begins at the stored value", (500, 510), 510, 10),
        ("its scope was edited from Node to GPU, and it goes on", (0, 100, 60, 90), 100, 100),
        ("until it has passed its highest value", (0, 100, 60, 130), 130, 130),
        ("nothing is known any more", (0, 100, None), 100, 100),
    ],
)
def test_a_value_never_falls(what: str, values: tuple[int | None, ...], shown: int, grown: int) -> None:
    process = Process()
    for value in values:
        process.accounts.note("team", "digits", "u1", used(value, None if value is None else value / 4))
    process.scrape()
    assert process.scrape(after=ZERO_SECONDS) == {
        of_job("u1"): shown,
        of_job("u1", JOB_GRAMS): shown / 4,
        of_namespace(): grown,
        of_namespace(NAMESPACE_GRAMS): grown / 4,
    }, what


def test_a_deleted_job_is_shown_for_some_scrapes_and_its_namespace_goes_on() -> None:
    process = Process()
    process.accounts.note("team", "digits", "u1", used(0))
    process.accounts.note("team", "digits", "u1", used(70))
    process.accounts.forget("team", "digits")
    process.accounts.forget("team", "digits")  # the pass after its deletion may run twice
    process.accounts.note("team", "digits", "u2", used(5))  # created again under the same name
    assert process.scrape() == {of_job("u1"): 70, of_job("u2"): 5, of_namespace(): 0}
    assert of_job("u1") in process.scrape(after=KEPT_SECONDS - 31)
    assert process.scrape(after=1) == {of_job("u2"): 5, of_namespace(): 70}
    # A job of the same name whose deletion was never seen: its values stay as those of a deleted one.
    process.accounts.note("team", "digits", "u3", used(1))
    assert process.scrape() == {of_job("u2"): 5, of_job("u3"): 1, of_namespace(): 70}


def test_a_job_that_a_list_lacked_by_mistake_goes_on_where_it_was() -> None:
    process = Process()
    process.accounts.note("team", "digits", "u1", used(0))
    process.accounts.note("team", "digits", "u1", used(70))
    process.accounts.forget("team", "digits")
    process.accounts.note("team", "digits", "u1", used(90))
    process.scrape()
    assert process.scrape(after=ZERO_SECONDS) == {of_job("u1"): 90, of_namespace(): 90}


def test_deleted_jobs_and_empty_namespaces_are_limited_in_number() -> None:
    process = Process()
    more = 5
    for n in range(max(KEPT_JOBS, KEPT_NAMESPACES) + more):
        process.accounts.note(f"n{n}", "digits", f"u{n}", used(n))
        process.accounts.forget(f"n{n}", "digits")
    process.accounts.note("n6", "digits", "again", used(1))  # it has a job again, and stays
    found = process.scrape()
    jobs = [labels for name, labels in found if name == JOB]
    assert len(jobs) == KEPT_JOBS + 1
    assert of_job(f"u{more - 1}", namespace=f"n{more - 1}") not in found
    assert of_job(f"u{more}", namespace=f"n{more}") in found
    assert len([labels for name, labels in found if name == NAMESPACE]) == KEPT_NAMESPACES
    process.accounts.note("last", "digits", "last", used(1))
    for n in range(KEPT_NAMESPACES):
        process.accounts.note(f"m{n}", "digits", f"v{n}", used(n))
        process.accounts.forget(f"m{n}", "digits")
    found = process.scrape()
    assert of_namespace(namespace="n6") in found
    assert of_namespace(namespace="n7") not in found


def increase(samples: list[float | None]) -> float:
    """What Prometheus adds up over a series: its first value counts for nothing, a fall is a reset to 0.

    Without the extrapolation to the ends of the range (promql/functions.go, extrapolatedRate).
    """
    there = [value for value in samples if value is not None]
    return sum(b - a if b >= a else b for a, b in pairwise(there))


def live(seed: int) -> tuple[list[float | None], int]:
    """The scrapes of one namespace over restarts of the operator, and what its jobs have used by their stored statuses."""
    chance = random.Random(seed)
    process, total, scrapes, since = Process(), 0, list[float | None](), 0.0
    jobs: dict[str, int] = {}
    for n in range(400):
        name = f"j{n}"
        if chance.random() < 0.3:
            jobs[name] = 0
            process.accounts.note("team", name, name, used(None))
        for job in list(jobs):
            more = chance.choice([0, 7, 1000])
            jobs[job] += more
            total += more
            process.accounts.note("team", job, job, used(jobs[job]))
            if chance.random() < 0.2:  # many live for less than one scrape
                process.accounts.forget("team", job)
                del jobs[job]
        since += 10
        if since >= 60:
            scrapes.append(process.scrape(after=since).get(of_namespace()))
            since = 0.0
        if chance.random() < 0.01:
            # What was counted after the last scrape is lost with the process; here there is one more scrape.
            scrapes.append(process.scrape(after=ZERO_SECONDS).get(of_namespace()))
            scrapes.append(process.scrape(after=ZERO_SECONDS).get(of_namespace()))
            process = Process()
            for job, value in jobs.items():
                process.accounts.note("team", job, job, used(value))
    for _ in range(2):
        scrapes.append(process.scrape(after=ZERO_SECONDS).get(of_namespace()))
    return scrapes, total


@pytest.mark.parametrize("seed", range(20))
def test_increase_by_namespace_is_what_its_jobs_have_used(seed: int) -> None:
    scrapes, total = live(seed)
    assert increase(scrapes) == total > 0
