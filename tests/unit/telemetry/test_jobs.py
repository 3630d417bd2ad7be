"""Metrics of jobs say what statuses say: nothing where nothing is known, and no job that is gone."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.quantities import Joules
from greentrain.telemetry.jobs import JobMeasures, measure_job
from greentrain.telemetry.metrics import Telemetry

STATUS: dict[str, Any] = {
    "energy": {
        "used": "1kWh",
        "usedJoules": 3_600_000,
        "drawMilliwatts": 250_500,
        "budget": {"limit": 5_000_000, "percent": 72},
    },
    "emissions": {
        "total": "344g",
        "totalMicrograms": 344_000_000,
        "intensityMilligramsPerKilowattHour": 344_000,
        "budget": {"limit": 265_000_000, "percent": 130},
    },
}


def measure(job: str, status: dict[str, Any]) -> JobMeasures:
    return measure_job("team", job, GreenTrainingJobStatus.model_validate(status))


def test_the_figures_of_a_status() -> None:
    assert measure("digits", STATUS) == JobMeasures(
        "team", "digits", Joules(3_600_000), 250.5, 344.0, 344.0, (("energy", 0.72), ("emissions", 1.3))
    )


def test_what_is_not_known_is_not_told() -> None:
    assert measure("digits", {}) == JobMeasures("team", "digits")
    charged = {
        "energy": {"usedJoules": 0, "control": {"lostJoules": 9}},
        "emissions": {"totalMicrograms": 0},
    }
    assert measure("digits", charged) == JobMeasures("team", "digits")


def test_each_scrape_tells_of_the_jobs_that_are_there() -> None:
    telemetry = Telemetry(CollectorRegistry())
    there = [measure("digits", STATUS), measure("empty", {})]
    telemetry.export_jobs(lambda: there)
    text = telemetry.render().decode()
    assert 'greentrain_job_energy_joules{job="digits",namespace="team"} 3.6e+06' in text
    assert 'greentrain_job_budget_used_ratio{budget="emissions",job="digits",namespace="team"} 1.3' in text
    assert 'job="empty"' not in text
    there.clear()
    assert 'job="digits"' not in telemetry.render().decode()
