"""Counters of what jobs have used that do not end with the job, so that a month can be added up by namespace.

A job's own counter shows what its stored status has. It is shown for some minutes after the job is deleted, so that its last
value is scraped. `increase()` leaves out the first value of a series, and a short job's series may have only that. So each
namespace has a counter too: it grows by the growth of its jobs since this process began, and its first samples are 0.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.quantities import Joules, Micrograms, in_grams

KEPT_SECONDS = 600.0
"""How long a deleted job's counters are shown: several scrapes at any usual interval (Prometheus' default is a minute)."""

KEPT_JOBS = 1000
"""So many of the last deleted jobs are shown; of more than that in ten minutes, the ones deleted first are left out."""

KEPT_NAMESPACES = 1000
"""So many namespaces without a job keep their counters; of more, the ones longest without a job are left out."""

ZERO_SECONDS = 180.0
"""How long a namespace's counter shows 0 from its first scrape: longer than any usual interval, so that every Prometheus that
scrapes the operator has a sample from before the growth."""


@dataclass(slots=True)
class _Counted:
    """One job's highest values so far; None where nothing is known."""

    namespace: str
    job: str
    uid: str
    joules: Joules | None = None
    micrograms: Micrograms | None = None


@dataclass(slots=True)
class _Tally:
    """One counter of a namespace."""

    grown: int = 0
    first_shown: float | None = None
    """When it was first scraped; None before."""

    def show(self, now: float) -> int:
        """Its value for a scrape at `now`."""
        if self.first_shown is None:
            self.first_shown = now
        return self.grown if now - self.first_shown >= ZERO_SECONDS else 0


@dataclass(slots=True)
class _Namespace:
    """The counters of one namespace; None until something is known of one of its jobs."""

    jobs: int = 0
    """How many of its jobs are there."""
    joules: _Tally | None = None
    micrograms: _Tally | None = None


class Accounts:
    """What each job and each namespace has used and emitted, from the statuses as they are stored."""

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._present: dict[tuple[str, str], _Counted] = {}
        self._deleted: OrderedDict[str, tuple[_Counted, float]] = OrderedDict()
        """Deleted jobs by UID, and when each was deleted; the last one last."""
        self._namespaces: dict[str, _Namespace] = {}
        self._empty: OrderedDict[str, None] = OrderedDict()
        """Namespaces without a job; the one longest without first."""

    def note(self, namespace: str, job: str, uid: str, status: GreenTrainingJobStatus) -> None:
        """Take in the stored status of a job. The first one of a job is where its growth begins.

        A value never falls: an edited scope or a corrected forecast may lower a status' sums.
        """
        energy, emissions = status.energy, status.emissions
        joules = Joules(energy.used_joules) if energy is not None and energy.used else None
        micrograms = (
            Micrograms(emissions.total_micrograms) if emissions is not None and emissions.total else None
        )
        known = self._present.get((namespace, job))
        if known is None or known.uid != uid:
            self.forget(namespace, job)  # one of that name, deleted and created again
            known = self._begin(_Counted(namespace, job, uid, joules, micrograms))
        tallies = self._namespaces[namespace]
        if joules is not None:
            tallies.joules = tallies.joules or _Tally()
            tallies.joules.grown += max(0, joules - (known.joules or 0))
            known.joules = max(joules, known.joules or Joules(0))
        if micrograms is not None:
            tallies.micrograms = tallies.micrograms or _Tally()
            tallies.micrograms.grown += max(0, micrograms - (known.micrograms or 0))
            known.micrograms = max(micrograms, known.micrograms or Micrograms(0))

    def _begin(self, counted: _Counted) -> _Counted:
        """Count a job from now on; one whose deletion was noted goes on where it was."""
        before, _ = self._deleted.pop(counted.uid, (counted, 0.0))
        self._present[before.namespace, before.job] = before
        self._namespaces.setdefault(before.namespace, _Namespace()).jobs += 1
        self._empty.pop(before.namespace, None)
        return before

    def forget(self, namespace: str, job: str) -> None:
        """The job of that name was deleted: its counters keep their values for `KEPT_SECONDS`."""
        gone = self._present.pop((namespace, job), None)
        if gone is None:
            return
        self._deleted[gone.uid] = (gone, self._elapsed())
        if len(self._deleted) > KEPT_JOBS:
            self._deleted.popitem(last=False)
        left = self._namespaces[namespace]
        left.jobs -= 1
        if not left.jobs:
            self._empty[namespace] = None
            if len(self._empty) > KEPT_NAMESPACES:
                del self._namespaces[self._empty.popitem(last=False)[0]]

    def families(self) -> tuple[CounterMetricFamily, ...]:
        """The families without their values: of a job's energy and emissions, and of a namespace's."""
        of_job, of_namespace = ["namespace", "job", "uid"], ["namespace"]
        return (
            CounterMetricFamily(
                "greentrain_job_energy_joules",
                "Energy the job has used; shown for ten minutes after its deletion.",
                labels=of_job,
            ),
            CounterMetricFamily(
                "greentrain_job_emissions_grams",
                "Emissions of the job, in CO2 equivalent; shown for ten minutes after its deletion.",
                labels=of_job,
            ),
            CounterMetricFamily(
                "greentrain_namespace_energy_joules",
                "Energy the namespace's jobs have used since the operator started.",
                labels=of_namespace,
            ),
            CounterMetricFamily(
                "greentrain_namespace_emissions_grams",
                "Emissions of the namespace's jobs since the operator started, in CO2 equivalent.",
                labels=of_namespace,
            ),
        )

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The values for one scrape."""
        now = self._elapsed()
        while self._deleted and now - next(iter(self._deleted.values()))[1] >= KEPT_SECONDS:
            self._deleted.popitem(last=False)
        job_energy, job_emissions, energy, emissions = families = self.families()
        for one in (*(counted for counted, _ in self._deleted.values()), *self._present.values()):
            labels = [one.namespace, one.job, one.uid]
            if one.joules is not None:
                job_energy.add_metric(labels, one.joules)
            if one.micrograms is not None:
                job_emissions.add_metric(labels, in_grams(one.micrograms))
        for name, tallies in self._namespaces.items():
            if tallies.joules is not None:
                energy.add_metric([name], tallies.joules.show(now))
            if tallies.micrograms is not None:
                emissions.add_metric([name], in_grams(Micrograms(tallies.micrograms.show(now))))
        yield from families
