"""A job that would exceed its budget is throttled step by step, on cards whose limits cost time, and goes back where it may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greentrain import quantities
from greentrain.api.conditions import Type
from greentrain.api.nodepower import EnergyBuckets, GpuCap, GpuStatus, GpuTime, PowerLimits
from greentrain.api.runtime import Progress
from greentrain.api.spec import PowerSpec
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Intensity
from greentrain.core.power.follow import ceiling_of
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.snapshot import Fleet, Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import format_time
from greentrain.quantities import Milliwatts, parse_power_cap
from tests.support.snapshots import at
from tests.unit.core.test_budget import GPU_LIMIT, Story, budgeted

STEPS = 60_000
IDLE_WATTS, FULL_WATTS = 30, 300


class Card:
    """A card that takes as long for a step as its clock needs: power above idle grows with the cube of the clock."""

    def __init__(self, percent: int) -> None:
        watts = FULL_WATTS * percent / 100
        self.seconds_per_step: float = 0.1 / ((watts - IDLE_WATTS) / (FULL_WATTS - IDLE_WATTS)) ** (1 / 3)
        self.watts = watts

    @property
    def joules_per_step(self) -> float:
        return self.watts * self.seconds_per_step


class Throttled(Story):
    """A job with budgetPolicy LowerCap on one card of 300 W that may be limited down to half of it."""

    def __init__(self, budget: str, *, total: int | None = STEPS, **power: Any) -> None:
        manifest = budgeted(budget)
        super().__init__(
            {**manifest, "spec": {**manifest["spec"], "power": {"budgetPolicy": "LowerCap", **power}}}
        )
        self.fleet = Fleet(
            limit_milliwatts=Milliwatts(GPU_LIMIT),
            report_seconds=30,
            default_milliwatts=Milliwatts(GPU_LIMIT),
            lowest_percent=50,
            reported_at=at(0),
        )
        self.total = total
        self.done = 0.0
        self.joules = 0.0
        self.caps: list[str] = []

    @property
    def percent(self) -> int:
        """The cap that is asked of the agent."""
        cap = self.status.power.cap if self.status.power is not None else ""
        asked = parse_power_cap(cap) if cap else None
        if asked is None:
            return 100
        return asked.percent if asked.percent is not None else (asked.milliwatts or 0) * 100 // GPU_LIMIT

    def seen(self) -> Snapshot:
        seen = super().seen()
        asked = GPU_LIMIT * self.percent // 100
        limits = PowerLimits(
            min_milliwatts=150_000,
            default_milliwatts=GPU_LIMIT,
            max_milliwatts=GPU_LIMIT,
            set_milliwatts=asked,
            enforced_milliwatts=asked,
        )
        pod = self.pods[0].uid if self.pods else ""
        cap = GpuCap(pod_uid=pod, asked_milliwatts=asked, target_milliwatts=asked, reason="Capped")
        gpus = (GpuStatus(uuid="GPU-1", limits=limits, cap=cap if self.percent < 100 else None),)
        reports = tuple(
            NodeReport(r.node, r.received, r.pods, r.observed, gpus, seen=r.seen, report_seconds=30)
            for r in seen.reports
        )
        return Snapshot(
            job=seen.job,
            pods=seen.pods,
            has_service=True,
            reports=reports,
            fleet=seen.fleet,
            progress=Progress(step=int(self.done), total_steps=self.total),
            sampled=at(self.second),
        )

    def begin(self) -> None:
        """Its first attempt runs."""
        self.step()
        self.run()
        self.step(1)

    def train(self, *, most_seconds: int = 40_000) -> None:
        """Run, a report and a look each half minute, until it is done or stopped."""
        begun = self.second
        while self.phase == "Running" and self.second < begun + most_seconds:
            card = Card(self.percent)
            left = STEPS - self.done
            seconds = min(30.0, left * card.seconds_per_step)
            self.done = min(STEPS, self.done + seconds / card.seconds_per_step)
            self.joules += seconds * card.watts
            self.second += 30
            if self.done >= STEPS:
                return
            self.tell(int(self.joules), draw=int(card.watts * 1000))
            self.step()
            if not self.caps or self.caps[-1] != f"{self.percent}%":
                self.caps.append(f"{self.percent}%")


class OnCleanGrid(Throttled):
    """The same on a grid of 10 g/kWh, where making its card weighs about as much as running it."""

    MODEL = "Tesla V100"

    def __init__(self, grams: float) -> None:
        super().__init__("1GWh", budgetPolicy="None")
        spec = self.manifest["spec"]
        spec = {**spec, "energy": {}, "emissions": {"budget": f"{grams:.3f}gCO2e"}}
        self.manifest = {**self.manifest, "spec": spec}
        self.fleet = replace(self.fleet, models=(self.MODEL,))
        self.carbon = CarbonSource(
            at=lambda _zone, basis, _moment: Intensity(quantities.Intensity(10_000), "fixed", basis),
            zone_of=lambda _region, _zone: "DE",
            embodied=lambda _model: Embodied(1, 100_000, 100_000, "test"),
        )

    def seen(self) -> Snapshot:
        return with_intensities(super().seen(), self.carbon, now=at(self.second))

    def tell(self, *joules: int, **facts: Any) -> None:
        start = format_time(at(0))
        buckets = EnergyBuckets(start=start, joules=joules)
        time = (GpuTime(model=self.MODEL, seconds=int(self.second)),)
        super().tell(*joules, buckets=buckets, first_reading=start, gpu_time=time, **facts)


def trained(budget: str, **facts: Any) -> Throttled:
    """A job that was run to its end, or to its stop."""
    story = Throttled(budget, **facts)
    story.begin()
    story.train()
    return story


def needed(percent: int) -> int:
    """Joules the whole job uses at one cap."""
    return int(STEPS * Card(percent).joules_per_step)


def test_a_job_that_fits_is_not_throttled() -> None:
    story = trained(f"{needed(100) * 11 // 10}J")
    assert (story.caps, story.done) == (["100%"], STEPS)
    projection = story.status.projection
    assert projection is not None
    assert (projection.percent, projection.exceeds, projection.reason) == (100, "No", "Fits")
    assert projection.energy_joules == pytest.approx(needed(100), rel=0.01)


def test_a_job_that_would_not_fit_is_throttled_into_its_budget_and_finishes() -> None:
    budget = needed(80)
    story = trained(f"{budget}J")
    assert story.done == STEPS
    assert story.joules <= budget
    assert story.caps[:2] == ["100%", "90%"]
    assert story.events[-1].startswith("Throttled: power cap ") or any(
        e.startswith("Throttled: power cap 100% → 90%: at 100% it would use") for e in story.events
    )
    assert not any("BudgetExhausted" in e for e in story.events)


def test_a_job_that_fits_nowhere_is_told_so_only_after_the_lowest_was_measured_and_then_stopped() -> None:
    story = trained(f"{needed(50) * 9 // 10}J")
    told = next(e for e in story.events if "cannot finish" in e)
    lowered = [e for e in story.events if e.startswith("Throttled")]
    assert len(lowered) == 5
    assert story.events.index(told) > story.events.index(lowered[-1])
    assert told.startswith("WillBeExhausted")
    assert story.done < STEPS
    assert story.condition(Type.BUDGET_EXHAUSTED)[0] == "True"
    assert story.caps == [f"{p}%" for p in (100, 90, 80, 70, 60, 50)]


def test_the_cap_of_the_spec_is_the_highest() -> None:
    story = trained(f"{needed(60)}J", cap="210W")
    assert story.caps[0] == "70%"
    assert max(int(c[:-1]) for c in story.caps) == 70
    assert story.status.power is not None


def test_a_slower_step_than_is_allowed_is_not_bought() -> None:
    story = trained(f"{needed(50)}J", maxSlowdownPercent=10)
    slowest = Card(min(int(c[:-1]) for c in story.caps)).seconds_per_step
    last = Card(story.percent).seconds_per_step
    assert last <= 1.1 * Card(100).seconds_per_step < slowest


def test_without_a_total_nothing_is_projected_and_the_cap_stays() -> None:
    story = trained(f"{needed(80)}J", total=None)
    assert story.caps == ["100%"]
    assert story.status.projection is not None
    assert (story.status.projection.reason, story.status.projection.exceeds) == ("NoTotal", "Unknown")


def test_back_to_fixed_the_cap_is_that_of_the_spec_again() -> None:
    story = Throttled(f"{needed(60)}J")
    story.begin()
    story.train(most_seconds=600)
    assert story.percent < 100
    spec = story.manifest["spec"]
    story.manifest = {**story.manifest, "spec": {**spec, "power": {"budgetPolicy": "None"}}}
    story.step(1)
    assert story.percent == 100
    assert story.status.projection is not None
    assert story.status.projection.percent is None


def test_a_restart_keeps_what_was_measured_and_the_cap() -> None:
    story = Throttled(f"{needed(80)}J")
    story.begin()
    story.train(most_seconds=700)
    before = story.status.projection
    assert before is not None
    cap = story.percent
    assert cap < 100
    story.stop()
    story.step(1)
    story.pods = ()
    story.step(1)
    story.run()
    story.step(1)
    assert story.percent == cap
    assert story.status.projection is not None
    assert story.status.projection.measures == before.measures


def test_what_is_said_of_emissions_at_the_end_has_the_share_of_making_the_card() -> None:
    operational = needed(100) / 3.6e6 * 10
    seconds = STEPS * Card(100).seconds_per_step
    embodied = 100_000 * seconds / (4 * 365 * 24 * 3600)
    assert embodied > operational / 2
    # A stop takes 49 s of 6,000: with less than that to spare it would be stopped just before its end.
    for part, exceeds in ((1.1, "No"), (1.02, "No"), (1.004, "Yes"), (0.9, "Yes")):
        story = OnCleanGrid((operational + embodied) * part)
        story.begin()
        story.train(most_seconds=1200)
        projection = story.status.projection
        assert projection is not None
        assert projection.exceeds == exceeds
        assert projection.emissions_micrograms is not None
        assert projection.emissions_micrograms / 1e6 == pytest.approx(operational + embodied, rel=0.02)


@pytest.mark.parametrize(
    ("cap", "ceiling"), [(None, 100), ("70%", 70), ("210W", 70), ("0.4kW", 100), ("1W", 1)]
)
def test_the_highest_cap_in_percent(cap: str | None, ceiling: int) -> None:
    assert ceiling_of(PowerSpec(cap=cap), Fleet(default_milliwatts=Milliwatts(GPU_LIMIT))) == ceiling
    assert ceiling_of(None, Fleet()) == 100
