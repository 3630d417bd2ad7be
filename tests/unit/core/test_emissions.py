"""A job's emissions: every joule is priced once or told as without, however late, often or in whatever order nodes tell."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from greentrain import quantities
from greentrain.api.budgets import LineStatus
from greentrain.api.conditions import Type, find_condition
from greentrain.api.nodepower import BUCKET_SECONDS, EnergyBuckets, GpuTime, PodEnergy
from greentrain.api.spec import Basis, EmissionsSpec, EnergySpec, Scope
from greentrain.api.status import EmissionsStatus, EnergyStatus, GreenTrainingJobStatus
from greentrain.carbon.embodied import Embodied
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.books.allowances import joules_left
from greentrain.core.books.emissions import count_emissions, embodied_of, emissions_of
from greentrain.core.books.in_force import BudgetSpec, spec_in_force
from greentrain.core.books.keep import keep_books
from greentrain.core.books.ledger import fold
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.nodes import NodeReport
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import format_time
from greentrain.quantities import Joules, Thousandths
from tests.support.snapshots import START, account_of, at, job_of, take
from tests.unit.core.test_budget import FLEET, Story, budgeted

KWH = 3_600_000
QUARTER = BUCKET_SECONDS
V100 = "Tesla V100"


def steady(grams: int) -> CarbonSource:
    """A grid that never changes."""
    return CarbonSource(
        at=lambda _z, basis, _t: Intensity(quantities.Intensity(grams * 1000), "fixed", basis),
        zone_of=lambda _r, _z: "DE",
    )


def hourly(*grams: int | None, source: str = "file") -> CarbonSource:
    """A grid with a value for each quarter of an hour; None: there is none."""

    def look(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        index = int((moment - START.timestamp()) // QUARTER)
        value = grams[index] if 0 <= index < len(grams) else grams[-1]
        begin = START.timestamp() + index * QUARTER
        if value is None:
            return Absent(f"no value for {zone}", begin, begin + QUARTER)
        return Intensity(quantities.Intensity(value * 1000), source, basis, begin, begin + QUARTER, begin)

    return CarbonSource(at=look, zone_of=lambda _r, _z: "DE")


def entry(
    joules: Sequence[int], *, second: float, closed: bool = False, host: Sequence[int] = (), **facts: Any
) -> PodEnergy:
    """A pod's entry with so many joules in each quarter of an hour since the start."""
    return PodEnergy(
        uid="pod-0-1",
        namespace="team",
        name="digits-worker-0-1",
        job="digits",
        job_uid="uid-1",
        owner_known=True,
        gpu_joules=sum(joules) - sum(host),
        cpu_joules=sum(host),
        estimated_joules=sum(host),
        first_reading=format_time(START),
        last_reading=format_time(at(second)),
        closed=closed,
        buckets=EnergyBuckets(start=format_time(START), joules=tuple(joules), host_joules=tuple(host)),
        **facts,
    )


class Ledger:
    """A job's energy and emissions as they are stored, told by one node."""

    def __init__(self, carbon: CarbonSource, *, scope: Scope = "GPU", **spec: Any) -> None:
        self.carbon = carbon
        self.scope = scope
        self.spec = EmissionsSpec(**spec)
        self.energy: EnergyStatus | None = None
        self.emissions: EmissionsStatus | None = None

    def tell(self, *entries: PodEnergy, second: float = 0, finished: bool = False) -> EmissionsStatus:
        """One look at what the node tells."""
        report = NodeReport("node-1", at(second), entries, observed=at(second), region="eu", zone="eu-1")
        account = account_of(
            (report,),
            energy=self.energy,
            emissions=self.emissions,
            spec=BudgetSpec(EnergySpec(scope=self.scope), self.spec),
            source=self.carbon,
            is_gone=bool,
            finished=finished,
            now=at(second),
        )
        energy, _ = fold(account)
        counted = count_emissions(account, energy)
        assert counted.emissions is not None
        assert counted.energy is not None
        # As the server gives them back.
        self.energy = EnergyStatus.model_validate_json(counted.energy.model_dump_json(by_alias=True))
        self.emissions = EmissionsStatus.model_validate_json(counted.emissions.model_dump_json(by_alias=True))
        return self.emissions


def grams(status: EmissionsStatus) -> float:
    return status.operational_micrograms / 1_000_000


def test_energy_times_pue_times_intensity() -> None:
    status = Ledger(steady(200), pue="1.5").tell(entry([KWH], second=900, closed=True), second=900)
    assert (grams(status), status.total, status.pue, status.boundary) == (300.0, "300g", "1.5", "GPU")
    assert [(s.source, s.percent) for s in status.shares] == [("fixed", 100)]


def test_each_quarter_of_an_hour_has_its_own_intensity() -> None:
    status = Ledger(hourly(100, 500, 0)).tell(entry([KWH, KWH, KWH], second=2700, closed=True), second=2700)
    assert grams(status) == 600.0


def test_what_is_over_stays_as_it_was_priced() -> None:
    ledger = Ledger(hourly(100, 100, 100))
    ledger.tell(entry([KWH, KWH // 2], second=1000), second=1000)
    ledger.carbon = hourly(999, 400, 400, source="another")
    status = ledger.tell(entry([KWH, KWH], second=1800), second=1800)
    assert grams(status) == 500.0
    assert [(s.source, s.micrograms) for s in status.shares] == [
        ("another", 400_000_000),
        ("file", 100_000_000),
    ]


def test_an_operator_that_was_away_for_hours_loses_nothing() -> None:
    watched, away = Ledger(hourly(*range(100, 112))), Ledger(hourly(*range(100, 112)))
    joules: list[int] = []
    for quarter in range(12):
        joules.append(KWH)
        watched.tell(entry(joules, second=900 * (quarter + 1)), second=900 * (quarter + 1))
    assert grams(away.tell(entry(joules, second=10_800), second=10_800)) == sum(range(100, 112))
    assert watched.emissions is not None
    assert grams(watched.emissions) == sum(range(100, 112))


def test_a_quarter_waits_for_its_source_and_is_told_as_without_until_then() -> None:
    ledger = Ledger(hourly(100, None, 300))
    status = ledger.tell(entry([KWH, KWH, KWH // 2], second=2000), second=2000)
    assert (grams(status), status.without_joules, status.without_percent) == (250.0, KWH, 40)
    assert status.without_reason == "no value for DE"
    ledger.carbon = hourly(100, 200, 300)
    status = ledger.tell(entry([KWH, KWH, KWH], second=2700), second=2700)
    assert (grams(status), status.without_joules) == (600.0, 0)


def forecast(*grams: int, issued: float) -> CarbonSource:
    """A source of one value a quarter of an hour, all issued at one second: what began later is a forecast."""
    source = hourly(*grams)

    def look(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        found = source.at(zone, basis, moment)
        assert isinstance(found, Intensity)
        return replace(found, step=float(QUARTER), issued=START.timestamp() + issued)

    return replace(source, at=look)


def test_a_forecast_prices_a_quarter_until_its_value_was_observed_and_not_for_good() -> None:
    ledger = Ledger(forecast(100, 500, 300, issued=600))
    status = ledger.tell(entry([KWH, KWH, KWH // 2], second=2000), second=2000)
    assert (grams(status), status.without_joules) == (750.0, 0)
    assert status.fixed.shares[0].joules == KWH
    ledger.carbon = forecast(999, 200, 400, issued=1700)
    status = ledger.tell(entry([KWH, KWH, KWH], second=2700), second=2700)
    # The first was observed before and stays, the second is observed now, the third is a forecast still.
    assert (grams(status), status.fixed.shares[0].joules) == (100.0 + 200.0 + 400.0, 2 * KWH)
    ledger.carbon = forecast(1, 1, 300, issued=2800)
    status = ledger.tell(entry([KWH, KWH, KWH], second=2900), second=2900)
    assert (grams(status), status.fixed.shares[0].joules) == (600.0, 3 * KWH)


@pytest.mark.parametrize(
    ("second", "closed", "fixed"),
    [(86_400 + 1799, False, 1), (86_400 + 1801, False, 2), (1900, True, 2)],
    ids=["less than a day", "a day", "the pod has ended"],
)
def test_a_forecast_that_nothing_follows_counts_after_a_day_or_with_the_pods_end(
    second: float, closed: bool, fixed: int
) -> None:
    ledger = Ledger(forecast(100, 500, issued=600))
    status = ledger.tell(entry([KWH, KWH], second=second, closed=closed), second=second)
    assert (grams(status), status.fixed.shares[0].joules) == (600.0, fixed * KWH)


def test_what_no_source_knows_when_the_pod_ends_stays_without() -> None:
    ledger = Ledger(hourly(100, None, 300))
    ledger.tell(entry([KWH, KWH, KWH], second=2700, closed=True), second=2700)
    ledger.carbon = hourly(100, 200, 300)
    ledger.tell(second=2710)
    status = ledger.tell(second=2720, finished=True)
    assert (grams(status), status.without_joules, status.final) == (400.0, KWH, True)
    assert status.micrograms_per_run is None


def test_a_lost_last_word_leaves_energy_without_intensity_and_no_hole() -> None:
    ledger = Ledger(steady(100))
    ledger.tell(entry([KWH, KWH // 2], second=1200), second=1200)
    ledger.tell(second=1300)
    status = ledger.tell(second=1400)
    assert (grams(status), status.without_joules) == (100.0, KWH // 2)


@pytest.mark.parametrize(("scope", "expected"), [("GPU", 75.0), ("Node", 100.0)])
def test_the_boundary_says_whose_energy_counts(scope: Scope, expected: float) -> None:
    ledger = Ledger(steady(100), scope=scope)
    status = ledger.tell(entry([KWH], host=[KWH // 4], second=900, closed=True), second=900)
    assert (grams(status), status.boundary) == (expected, scope)


def test_energy_of_another_basis_is_a_share_without_intensity() -> None:
    def direct(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        del moment
        return (
            Intensity(quantities.Intensity(1), "stack", "Direct")
            if basis == "Direct"
            else Absent(f"{zone} has Direct values only")
        )

    ledger = Ledger(CarbonSource(at=direct, zone_of=lambda _r, _z: "DE"))
    status = ledger.tell(entry([KWH], second=900, closed=True), second=900)
    assert (status.basis, status.total, status.without_percent) == ("Lifecycle", "", 100)


def test_without_a_zone_it_says_what_to_set() -> None:
    ledger = Ledger(CarbonSource(at=steady(1).at, zone_of=lambda _r, _z: None))
    assert "spec.emissions.zone" in ledger.tell(entry([KWH], second=900), second=900).without_reason


def held(seconds: int, model: str = V100) -> tuple[GpuTime, ...]:
    return (GpuTime(model=model, seconds=seconds),)


@pytest.mark.parametrize(
    ("include", "model", "expected"),
    [
        (None, V100, (150_000, 100_000, 200_000, 0, "200mg")),
        (False, V100, (None, None, None, 0, "50mg")),
        (None, "Unknown 3000", (None, None, None, 900, "50mg")),
    ],
)
def test_the_embodied_share_is_by_time(include: bool | None, model: str, expected: tuple[Any, ...]) -> None:
    figures = {V100: Embodied(100, 150, 200, "a study")}
    carbon = CarbonSource(
        at=steady(50).at, zone_of=lambda _r, _z: "DE", embodied=figures.get, lifetime_seconds=900_000
    )
    ledger = Ledger(carbon, include_embodied=include)
    # 900 GPU-seconds of 900,000 are a thousandth of 150 g; 3,600 J are 1 Wh.
    status = ledger.tell(entry([3600], second=900, closed=True, gpu_time=held(900, model)), second=900)
    told = (
        status.embodied_micrograms,
        status.embodied_low_micrograms,
        status.embodied_high_micrograms,
        status.embodied_unknown_seconds,
        status.total,
    )
    assert told == expected
    ledger.tell(second=910)
    settled = ledger.tell(second=920, finished=True)
    assert (settled.total, settled.fixed.embodied_micrograms) == (
        status.total,
        150_000 if model == V100 else 0,
    )
    assert (settled.micrograms_per_run is None) is (include is False or model != V100)


def test_every_joule_is_priced_once_or_without_whatever_is_lost_and_told_twice() -> None:
    """Reports late, twice and out of order, sources that come and go, an operator that begins anew at any moment."""
    for seed in range(60):
        chance = random.Random(seed)
        values = [chance.choice([None, 50, 100, 700]) for _ in range(12)]
        ledger = Ledger(hourly(*values))
        joules, told = [0] * 12, []
        for second in range(60, 10_800, 60):
            joules[second // QUARTER] += chance.randrange(5000)
            told.append((list(joules), second))
            if chance.random() < 0.1:
                values = [v if v is not None or chance.random() < 0.5 else 300 for v in values]
                ledger.carbon = hourly(*values)
            if chance.random() < 0.3:
                seen, at_ = chance.choice(told[-5:])
                status = ledger.tell(entry(seen, second=at_), second=second)
                assert ledger.energy is not None
                assert (
                    sum(s.joules for s in status.shares) + status.without_joules == ledger.energy.used_joules
                )
        ledger.tell(entry(joules, second=10_800, closed=True), second=10_800)
        ledger.tell(second=10_810)
        status = ledger.tell(second=10_820, finished=True)
        assert sum(s.joules for s in status.shares) + status.without_joules == sum(joules)
        low, high = 50 * sum(joules) / KWH, 700 * sum(joules) / KWH
        assert grams(status) <= high
        assert status.without_joules or grams(status) >= low


# -- a budget ----------------------------------------------------------------------------------------------------


class CarbonStory(Story):
    """A job with a budget of emissions on a grid of its own."""

    def __init__(self, carbon: CarbonSource | None = None, **emissions: Any) -> None:
        manifest = budgeted(None)
        super().__init__({**manifest, "spec": {**manifest["spec"], "emissions": emissions}})
        self.carbon = carbon or steady(360)

    def seen(self) -> Snapshot:
        seen = super().seen()
        seen = Snapshot(
            job=seen.job, pods=seen.pods, has_service=True, reports=seen.reports, fleet=seen.fleet
        )
        return with_intensities(seen, self.carbon, now=at(self.second))

    def amend(self, **emissions: Any) -> None:
        """The user edits spec.emissions."""
        spec = self.manifest["spec"]
        self.manifest = {**self.manifest, "spec": {**spec, "emissions": {**spec["emissions"], **emissions}}}

    def told(self, joules: int, **facts: Any) -> None:
        """The node reports this, all used in this quarter of an hour."""
        buckets = EnergyBuckets(start=format_time(START), joules=(joules,))
        self.tell(joules, buckets=buckets, first_reading=format_time(START), **facts)


def started(carbon: CarbonSource | None = None, **emissions: Any) -> CarbonStory:
    """A job whose first attempt runs."""
    story = CarbonStory(carbon, **emissions)
    story.step()
    story.run()
    story.step(1)
    return story


def test_a_budget_of_emissions_stops_a_job_early() -> None:
    story = started(budget="100gCO2e")  # 360 g/kWh: 1 MJ
    story.told(994_800)
    assert story.step(30).deletions == ()
    assert story.status.display.budget == "99%"
    story.told(995_000)
    assert [d.uid for d in story.step(30).deletions] == ["pod-0-1"]
    assert story.condition(Type.BUDGET_EXHAUSTED) == (
        "True",
        "BudgetExhausted",
        "spec.emissions.budget 100gCO2e is spent",
    )


DEAR = 200_000
"""Grams of making a GPU, over 900,000 s."""
SECOND = DEAR * 10**6 // 900_000
"""Micrograms of that for a second."""


def making(grams: int) -> CarbonStory:
    """A job on a GPU whose making weighs, on a grid of so many g/kWh."""
    carbon = replace(
        steady(grams), embodied={V100: Embodied(1, DEAR, DEAR, "test")}.get, lifetime_seconds=900_000
    )
    story = CarbonStory(carbon, budget="100gCO2e")
    story.fleet = replace(FLEET, models=("unknown", V100))
    story.step()
    story.run()
    story.step(1)
    return story


@pytest.mark.parametrize("grams", [1, 50, 1000, 10_000])
def test_the_share_of_making_its_gpus_is_kept_free_for_a_stop_and_stands_in_the_bound(grams: int) -> None:
    story, limit = making(grams), 100_000_000
    attempt = story.status.attempts[-1]
    assert attempt.stop_seconds is not None

    def tell(second: float, **facts: Any) -> None:
        story.second = second
        story.told(int(second * 100), gpu_time=held(int(second)), **facts)

    tell(story.second + 1)
    while not story.step().deletions:
        tell(story.second + 1)
    emissions = story.status.emissions
    assert emissions is not None
    assert emissions.total_micrograms < limit, "it was not stopped before"
    assert emissions.budget is not None
    assert emissions.budget.bound is not None
    kept = emissions.budget.reserved
    tell(story.second + attempt.stop_seconds, closed=True)
    story.stop()
    story.step()
    emissions = story.status.emissions
    assert emissions is not None
    # Two seconds for the time between two reports.
    assert (
        emissions.total_micrograms
        <= limit
        + emissions_of(Joules(200), Thousandths(1000), quantities.Intensity(grams * 1000))
        + 2 * SECOND
    )
    assert kept >= attempt.stop_seconds * SECOND
    assert emissions.budget is not None
    assert emissions.budget.bound is not None
    assert emissions.budget.bound > kept


def test_a_gpu_of_which_nothing_is_told_is_charged_the_share_of_making_it() -> None:
    story = making(1)
    story.told(100, gpu_time=held(1))
    story.step()
    before = story.status.emissions
    story.step(120)
    after = story.status.emissions
    assert before is not None
    assert after is not None
    assert before.budget is not None
    assert after.budget is not None
    assert before.budget.charged == 0
    assert after.total_micrograms == before.total_micrograms
    # At least the time since a report was due, at most all of it.
    assert 60 < after.budget.charged / SECOND < 125


def test_a_part_of_a_second_that_is_charged_is_charged_a_whole_one_of_making_its_gpu() -> None:
    story = making(1)
    story.told(100, gpu_time=held(1))
    story.step()
    story.step(34.5)  # half a second longer than a report may take
    emissions, energy = story.status.emissions, story.status.energy
    assert emissions is not None
    assert emissions.budget is not None
    assert energy is not None
    assert energy.control is not None
    assert sum(c.joules for c in energy.control.charges) == 150
    assert emissions.budget.charged == SECOND + emissions_of(
        Joules(150), Thousandths(1000), quantities.Intensity(1000)
    )


@pytest.mark.parametrize(
    ("joules", "pue", "milligrams", "micrograms"),
    [(KWH, 1000, 1000, 1_000_000), (1, 1000, 1, 1), (KWH + 1, 1000, 1000, 1_000_001), (0, 1000, 1000, 0)],
)
def test_what_energy_to_come_may_emit_is_rounded_up(
    joules: int, pue: int, milligrams: int, micrograms: int
) -> None:
    assert emissions_of(Joules(joules), Thousandths(pue), quantities.Intensity(milligrams)) == micrograms


def test_the_bound_in_emissions_is_said_before_the_attempt_starts() -> None:
    story = making(50)
    attempt = story.status.attempts[-1]
    assert attempt.worst_seconds is not None
    assert attempt.overshoot_bound_joules is not None
    said = attempt.overshoot_bound_micrograms
    energy = emissions_of(
        Joules(attempt.overshoot_bound_joules), Thousandths(1000), quantities.Intensity(50_000)
    )
    assert said == pytest.approx(energy + attempt.worst_seconds * SECOND, abs=attempt.worst_seconds)
    begun = CarbonStory(story.carbon, budget="100gCO2e")
    begun.fleet = story.fleet
    decision = begun.step()
    assert decision.record_first
    assert decision.pods
    assert begun.status.attempts[-1].overshoot_bound_micrograms == said
    # What was said is shown, though nothing has been seen of the grid since.
    story.told(100, gpu_time=held(1))
    story.step()
    assert story.status.emissions is not None
    assert story.status.emissions.budget is not None
    assert story.status.emissions.budget.bound == said


@pytest.mark.parametrize(("budget", "seconds"), [("100gCO2e", 60), ("1kgCO2e", 300), ("20kgCO2e", 3600)])
def test_allowances_keep_the_share_of_making_its_gpus_free_for_as_long_as_they_hold(
    budget: str, seconds: int
) -> None:
    grams = 50
    story = making(grams)
    story.amend(budget=budget)
    story.told(100, gpu_time=held(1))
    story.step(1)
    (first,) = story.control.allowances
    assert first.seconds == seconds
    emissions = story.status.emissions
    assert emissions is not None
    assert emissions.budget is not None
    limit = emissions.budget.limit
    asked: list[int] = []
    for second in range(3, 3 + 10 * seconds // 2, 30):
        story.second = float(second)
        echo = asked[-1] if asked else None
        story.told(100 * second, gpu_time=held(second), allowance_joules=echo)
        if story.step().deletions:
            break
        (one,) = story.control.allowances
        assert one.seconds == seconds
        asked += [] if asked and asked[-1] == one.joules else [one.joules]
        # All of it used by then, and the operator silent for as long as it holds.
        worst = (
            emissions_of(Joules(one.joules), Thousandths(1000), quantities.Intensity(grams * 1000))
            + (second + seconds + 34) * SECOND
        )
        assert worst <= limit or one.joules == 100 * second
    # Once as often as it holds, not with each report.
    assert 2 <= len(asked) <= 7


def test_with_no_embodied_share_allowances_hold_for_an_hour_and_stay() -> None:
    story = started(budget="100gCO2e")
    asked = set()
    for second in range(30, 300, 30):
        story.second = float(second)
        story.told(100 * second)
        story.step()
        asked.add((story.control.allowances[0].joules, story.control.allowances[0].seconds))
    assert asked == {(1_000_000, 3600)}
    # Of a budget of energy alone nothing changes with time.
    story.manifest["spec"].pop("emissions")
    story.edit(budget="1MJ")
    story.told(31_000)
    story.step(30)
    assert [(a.joules, a.seconds) for a in story.control.allowances] == [(1_000_000, None)]


def test_where_the_share_does_not_count_nothing_is_kept_free_for_it() -> None:
    emissions = EmissionsStatus(include_embodied=False)
    carbon = take(making(1).carbon, models=("unknown", V100))
    assert embodied_of(emissions, carbon, (V100,), 900) == 0
    assert embodied_of(EmissionsStatus(), carbon, ("unknown",), 900) == 0
    assert embodied_of(EmissionsStatus(), None, (V100,), 900) == 0
    assert embodied_of(EmissionsStatus(), carbon, ("unknown", V100), 900) == 200_000_000


def test_a_grid_that_turns_dirty_stops_it_sooner() -> None:
    story = started(hourly(360, 3600), budget="100gCO2e")
    story.told(100_000)
    story.step(30)
    assert story.status.emissions is not None
    assert story.status.emissions.budget is not None
    # A stop takes 51 s, so this quarter's 360 g/kWh; agents may go by their allowances for an hour, so 3,600.
    assert story.status.emissions.budget.reserved == 510_000
    assert story.control.allowances[0].joules == 100_000 + 90_000
    story.second = 860.0
    story.told(120_000)
    story.step()
    assert story.status.emissions.budget.reserved == 5_100_000


def test_of_two_budgets_the_harder_one_counts_and_both_are_named() -> None:
    story = started(budget="100gCO2e", onExhausted="Fail")
    story.edit(budget="1MJ", onExhausted="Suspend")
    story.told(999_000)
    story.step(30)
    story.stop()
    story.step(5)
    assert story.phase == "Failed"
    text = "spec.emissions.budget 100gCO2e is spent; spec.energy.budget 1MJ is spent"
    assert story.condition(Type.FAILED)[2] == text


def test_a_raised_budget_of_emissions_lets_the_job_go_on() -> None:
    story = started(budget="100gCO2e")
    story.told(999_000)
    story.step(30)
    story.stop()
    story.told(999_500, closed=True)
    story.step(5)
    story.pods = ()
    story.step(1)
    assert "raise spec.emissions.budget above 100gCO2e to go on" in story.condition(Type.SUSPENDED)[2]
    story.amend(budget="1kgCO2e")
    assert len(story.step(1).pods) == 1


def test_a_job_with_a_budget_of_emissions_does_not_begin_without_an_intensity() -> None:
    story = CarbonStory(hourly(None), budget="100gCO2e")
    assert story.step().pods == ()
    assert story.condition(Type.PODS_READY) == (
        "False",
        "NoIntensity",
        "no value for DE; give the zone an intensity (chart value emissions), or remove the budget",
    )
    assert story.condition(Type.BUDGET_EXHAUSTED)[:2] == ("Unknown", "NoIntensity")
    story.carbon = hourly(100)
    assert len(story.step(10).pods) == 1


def test_an_intensity_that_is_missing_is_charged_at_the_highest_seen() -> None:
    story = started(hourly(360, None, None, None, None, None), budget="100gCO2e")
    story.told(100_000)
    story.step(30)
    story.second = 1000.0
    buckets = EnergyBuckets(start=format_time(START), joules=(100_000, 50_000))
    story.tell(150_000, draw=1000, buckets=buckets, first_reading=format_time(START))
    story.step()
    assert story.status.emissions is not None
    assert story.status.emissions.budget is not None
    assert story.status.emissions.budget.charged == 5_000_000
    assert story.condition(Type.BUDGET_EXHAUSTED)[:2] == ("Unknown", "NoIntensity")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budget", "0gCO2e", "'0gCO2e' is not valid: write emissions from 0.001gCO2e"),
        ("budget", "5kg", "'5kg' is not valid"),
        ("budget", "-1kgCO2e", "'-1kgCO2e' is not valid"),
        ("pue", "0.9", "'0.9' is not valid: write power usage effectiveness, a number from 1.0"),
        ("zone", "DDE", "'DDE' is not valid: no source has values for it; did you mean DE?"),
        ("basis", "Marginal", "'Marginal' is not valid"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: str, message: str) -> None:
    carbon = CarbonSource(
        at=steady(1).at, zone_of=lambda _r, _z: "DE", is_known=lambda z: z == "DE", suggest=lambda _: ("DE",)
    )
    story = CarbonStory(carbon, **{field: value})
    assert story.step().pods == ()
    assert f"spec.emissions.{field}: {message}" in story.condition(Type.ADMITTED)[2]


def test_all_that_is_wrong_is_named_at_once() -> None:
    carbon = CarbonSource(at=steady(1).at, zone_of=lambda _r, _z: "DE", is_known=lambda z: z == "DE")
    story = CarbonStory(carbon, zone="DDE", pue="0.9")
    story.step()
    message = story.condition(Type.ADMITTED)[2]
    assert "spec.emissions.pue: '0.9' is not valid" in message
    assert "spec.emissions.zone: 'DDE' is not valid" in message


def test_a_basis_is_not_changed_once_emissions_were_counted() -> None:
    story = started(budget="1kgCO2e")
    story.told(100_000)
    story.step(30)
    story.amend(basis="Direct")
    story.step(1)
    assert "emissions of basis Lifecycle have been counted already" in story.condition(Type.ADMITTED)[2]


def test_an_attempt_keeps_the_pue_it_began_with() -> None:
    story = started(pue="1.5")
    story.amend(pue="2.0")
    story.told(1_000_000)
    story.step(30)
    assert story.status.emissions is not None
    assert story.status.emissions.operational_micrograms == 150_000_000


def test_without_a_budget_emissions_are_counted_all_the_same() -> None:
    story = started()
    story.told(1_000_000)
    story.step(30)
    assert (story.status.display.emissions, story.status.display.draw) == ("100g", "100W")
    assert find_condition(story.status.conditions, Type.BUDGET_EXHAUSTED) is None


def test_books_kept_twice_are_the_same() -> None:
    story = started(budget="1kgCO2e")
    story.told(100_000)
    story.step(30)
    stored = story.status
    seen = story.seen()
    again = keep_books(
        Snapshot(
            job=job_of(story.manifest, status=stored),
            pods=seen.pods,
            reports=seen.reports,
            fleet=FLEET,
            intensities=seen.intensities,
        ),
        BudgetSpec(*_in_force(stored)),
        stored.attempts[-1],
        now=at(story.second),
    )
    assert again.growth == {}
    assert decide(story.seen(), now=at(story.second)).status == stored
    assert timedelta(0) == at(0) - START


def _in_force(stored: GreenTrainingJobStatus) -> tuple[Any, Any]:
    limits = spec_in_force(stored)
    return limits.energy, limits.emissions


@pytest.mark.parametrize(
    ("left", "joules"), [(99, 0), (100, 1), (150, 1), (199, 1), (200, 2), (0, 0), (-100, 0)]
)
def test_what_a_budget_of_emissions_still_allows_is_rounded_down(left: int, joules: int) -> None:
    budget = LineStatus(limit=1000, percent=0)
    emissions = EmissionsStatus(total_micrograms=1000 - left, budget=budget)
    assert (
        joules_left(emissions, quantities.Intensity(360_000), Thousandths(1000)) == joules
    )  # 100 micrograms a joule
    assert emissions_of(Joules(joules), Thousandths(1000), quantities.Intensity(360_000)) <= max(left, 0)


def test_what_an_ended_pod_used_at_no_known_time_stays_without_intensity() -> None:
    told = entry([KWH], second=900, closed=True)
    told = told.model_copy(
        update={"gpu_joules": 3 * KWH, "buckets": told.buckets.model_copy(update={"earlier_joules": KWH})}
    )
    ledger = Ledger(steady(100))
    for entries in ((told,), (told,), (), ()):
        status = ledger.tell(*entries, second=900)
        assert (grams(status), status.without_joules) == (200.0, KWH), "a kWh is of its last reading"


def test_of_a_spec_that_leaves_it_to_the_administrator_what_was_counted_stays_in_force() -> None:
    story = started(hourly(100))
    story.told(1000)
    story.step(30)
    counted = story.status.emissions
    assert counted is not None
    stored = story.status.model_copy(
        update={"emissions": counted.model_copy(update={"pue": "1.4", "include_embodied": False})}
    )
    kept = spec_in_force(stored).emissions
    assert (kept.pue, kept.include_embodied, kept.basis) == ("1.4", False, counted.basis)
