"""Metrics of each job: the figures of its stored status, read at each scrape, and the counters that outlive it (`accounts`).

Of the figures nothing is kept between scrapes, so these series of a deleted job end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from greentrain.api.status import EmissionsStatus, EnergyStatus, GreenTrainingJobStatus
from greentrain.quantities import (
    Intensity,
    Joules,
    Micrograms,
    Milliwatts,
    in_grams,
    in_grams_per_kilowatt_hour,
    in_watts,
    typed,
)
from greentrain.telemetry.accounts import Accounts

LABELS = ["namespace", "job"]


@dataclass(frozen=True, slots=True)
class JobMeasures:
    """The figures of one job; None where nothing is known."""

    namespace: str
    job: str
    joules: Joules | None = None
    draw_watts: float | None = None
    grams: float | None = None
    grams_per_kilowatt_hour: float | None = None
    budget_ratios: tuple[tuple[str, float], ...] = ()
    """Used of each budget by its kind, 1 when it is spent."""


def measure_job(namespace: str, job: str, status: GreenTrainingJobStatus) -> JobMeasures:
    """Read the figures from a status as it is stored."""
    energy, emissions = status.energy or EnergyStatus(), status.emissions or EmissionsStatus()
    draw = typed(Milliwatts, energy.draw_milliwatts)
    intensity = typed(Intensity, emissions.intensity_milligrams_per_kilowatt_hour)
    ratios = (
        (kind, budget.percent / 100)
        for kind, budget in (("energy", energy.budget), ("emissions", emissions.budget))
        if budget is not None
    )
    return JobMeasures(
        namespace,
        job,
        joules=Joules(energy.used_joules) if energy.used else None,
        draw_watts=None if draw is None else in_watts(draw),
        grams=in_grams(Micrograms(emissions.total_micrograms)) if emissions.total else None,
        grams_per_kilowatt_hour=None if intensity is None else in_grams_per_kilowatt_hour(intensity),
        budget_ratios=tuple(ratios),
    )


class JobCollector(Collector):
    """Collects every job's figures and counters at each scrape.

    One collector for both: a counter's name without `_total` is that of a figure, which a registry allows in one collector
    only. In the text format, the one that is served, these are two names.
    """

    def __init__(self, measures: Callable[[], Iterable[JobMeasures]], accounts: Accounts) -> None:
        self._measures = measures
        self._accounts = accounts

    def describe(self) -> Iterable[Metric]:
        """The families without their values: no job is read before the first scrape."""
        return (*self._families(), *self._accounts.families())

    def collect(self) -> Iterator[Metric]:
        """One family a figure, one sample a job; then the counters."""
        joules, draw, grams, intensity, budget = families = self._families()
        for job in self._measures():
            labels = [job.namespace, job.job]
            for family, value in (
                (joules, job.joules),
                (draw, job.draw_watts),
                (grams, job.grams),
                (intensity, job.grams_per_kilowatt_hour),
            ):
                if value is not None:
                    family.add_metric(labels, value)
            for kind, ratio in job.budget_ratios:
                budget.add_metric([*labels, kind], ratio)
        yield from families
        yield from self._accounts.collect()

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily("greentrain_job_energy_joules", "Energy the job has used.", labels=LABELS),
            GaugeMetricFamily("greentrain_job_draw_watts", "Power its pods draw together.", labels=LABELS),
            GaugeMetricFamily(
                "greentrain_job_emissions_grams", "Emissions of the job, in CO2 equivalent.", labels=LABELS
            ),
            GaugeMetricFamily(
                "greentrain_job_grid_intensity_grams_per_kilowatt_hour",
                "Emissions of a kilowatt-hour now, where its pods run.",
                labels=LABELS,
            ),
            GaugeMetricFamily(
                "greentrain_job_budget_used_ratio",
                "Used of its budget; 1: spent.",
                labels=[*LABELS, "budget"],
            ),
        )
