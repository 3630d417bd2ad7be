"""One agent and its pods' allowances, round by round: what is done in which order, and what the disk makes of a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from greentrain.agent.allowances import FILE
from greentrain.agent.caps import FILE as CAPS
from greentrain.agent.settings import AgentSettings
from greentrain.agent.telemetry import AgentTelemetry
from greentrain.api.conditions import find_condition
from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.nodepower import NodePowerStatus, PodEnergy
from greentrain.energy.intervals import CardReading
from greentrain.kube.client import ApiError
from greentrain.node.allowance import START_GRACE_SECONDS, Allowance
from greentrain.node.allowances import EVICT_RETRY_SECONDS
from greentrain.node.cards import Card
from greentrain.node.schedule import NEAR_SECONDS
from greentrain.quantities import Joules, Millijoules, Milliwatts, PowerCap
from tests.unit.agent.ports import Life, SteppedClock, World

GRACE = int(START_GRACE_SECONDS)
PDB = ApiError(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")


class Story:
    """A node whose one card is held by the pod `a`, and its agent."""

    def __init__(self, folder: Path, *, report_interval: float = 30.0, **allowances: Allowance) -> None:
        card = Card("GPU-a", 0, 0, "Tesla V100", partitioned=False)
        limits = card.limits.model_copy(
            update={"min_milliwatts": 150_000, "default_milliwatts": 300_000, "max_milliwatts": 300_000}
        )
        self.world = World(
            cards=(replace(card, limits=limits),),
            allowances={f"uid-{name}": one for name, one in allowances.items()},
        )
        self.world.hold("a")
        self.folder = folder
        self.settings = AgentSettings(node="node-1", report_interval=report_interval)
        self.used = 0
        self.clock = SteppedClock(asyncio.Event())
        self.life = self._begin()
        self._running: asyncio.Task[None] | None = None

    def _begin(self) -> Life:
        return Life(self.world, self.folder, budgets=True, settings=self.settings, clock=self.clock)

    def budget(self, **changes: Any) -> None:
        """Pod `a` belongs to a job with a budget, as its annotation says."""
        pod = self.world.pods["uid-a"]
        self.world.pods = {"uid-a": replace(pod, **{"budgeted": True, **changes})}

    def use(self, joules: int) -> None:
        """The card has used so much more."""
        self.used += joules * 1000
        # Without its power: what is used at once here would not agree with any.
        self.world.answers = {"GPU-a": CardReading(counter=Millijoules(5_000 + self.used))}

    async def go(self, seconds: int, *, watts: int = 0) -> None:
        """The agent goes round each second."""
        for _ in range(seconds):
            self.use(watts)
            if self._running is None:
                self._running = asyncio.create_task(self.life.agent.run(self.clock.stop))
                await self.clock.settle()
            else:
                await self.clock.step()

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._running is not None
        self._running.cancel()
        await self.end()

    async def end(self) -> None:
        """Its end, SIGTERM's or another; the next agent begins when time goes on."""
        assert self._running is not None
        while not self._running.done():
            self.clock.steps.release()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._running = None
        self.clock = SteppedClock(asyncio.Event(), now=self.clock.now)
        self.life = self._begin()
        self.world.deeds.clear()

    @property
    def entry(self) -> PodEnergy:
        """What was told last of pod `a`."""
        assert self.world.status is not None
        return next(p for p in self.world.status.pods if p.uid == "uid-a")

    @property
    def kept(self) -> dict[str, Any]:
        """What the disk holds."""
        path = self.folder / "journal" / FILE
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def evictions(self) -> int:
        return sum(deed.startswith("evict") for deed in self.world.deeds)


async def test_the_limit_comes_first_then_the_report_then_the_eviction_then_its_report(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(1000)))
    await story.go(GRACE + 1)
    story.world.deeds.clear()
    story.use(1000)
    await story.go(4)
    assert story.world.deeds == [
        "limit 150",
        "report Throttled",
        "evict team/a uid-a",
        "report Evicted",
    ]
    assert story.kept["uid-a"]["action"] == "Evicted"


async def test_nothing_is_evicted_that_was_not_reported_before(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    await story.go(GRACE)
    story.world.away = True
    await story.go(20)
    assert story.world.deeds[-1] == "limit 150"
    assert story.evictions() == 0
    story.world.away = False
    await story.go(int(NEAR_SECONDS) + 3)
    tail = story.world.deeds[story.world.deeds.index("limit 150") + 1 :]
    assert tail[:3] == ["report Throttled", "evict team/a uid-a", "report Evicted"]


@pytest.mark.parametrize(
    ("refusals", "evictions"),
    [
        ([], 1),
        # Not there any more: that is what was wanted.
        ([ApiError(404, "NotFound", "pods a not found")], 1),
        ([ApiError(409, "Conflict", "the UID in the precondition is not its")], 1),
        # Again and again.
        ([PDB], 2),
        ([PDB, PDB, ApiError(500, "InternalError", "more than one PodDisruptionBudget")], 4),
        ([ApiError(403, "Forbidden", "denied by a policy")], 2),
    ],
    ids=["allowed", "gone", "another", "not now", "not for long", "forbidden"],
)
async def test_an_eviction_is_asked_for_until_it_is_done(
    refusals: list[ApiError], evictions: int, tmp_path: Path
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.world.refusals = refusals
    await story.go(GRACE + 1)
    for _ in range(evictions):
        await story.go(int(EVICT_RETRY_SECONDS))
    await story.go(3 * int(EVICT_RETRY_SECONDS))
    assert story.evictions() == evictions
    assert story.entry.budget_action == "Evicted"
    assert story.world.limit == 150_000


async def test_a_refusal_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.world.refusals = [PDB] * 5
    with caplog.at_level(logging.INFO, "greentrain.agent"):
        await story.go(60)
    assert sum("cannot be evicted yet" in r.getMessage() for r in caplog.records) == 1
    assert sum("their lowest limit" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("change", "lists"),
    [({"job": None, "job_uid": None}, "a stranger's"), ({"terminal": True}, "one that has ended")],
    ids=["not a job's", "ended"],
)
async def test_only_a_running_pod_of_a_job_of_ours_is_evicted(
    change: dict[str, Any], lists: str, tmp_path: Path
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.budget(**change)
    await story.go(30)
    assert story.evictions() == 0, lists


async def test_while_the_operator_is_heard_nothing_is_done(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(100)))
    story.world.operator_renewed = story.clock.now
    await story.go(int(OPERATOR_SILENT_SECONDS), watts=200)
    assert (story.world.limit, story.evictions(), story.entry.budget_action) == (300_000, 0, "None")
    assert condition(story.world.status) == ("True", "LeaseRenewed")
    await story.go(3, watts=200)
    assert (story.world.limit, story.evictions()) == (150_000, 1)
    assert condition(story.world.status) == ("False", "Silent")


async def test_a_job_that_the_operator_cannot_look_after_is_kept_inside_its_allowance_alone(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(100)))
    story.world.unattended = {"uid-of-another-job": 0.0}
    for _ in range(40):
        story.world.operator_renewed = story.clock.now
        await story.go(1, watts=200)
    assert (story.world.limit, story.evictions()) == (300_000, 0)
    job = story.world.pods["uid-a"].job_uid
    assert job is not None
    story.world.unattended = {job: story.clock.now}
    for _ in range(3):
        story.world.operator_renewed = story.clock.now
        await story.go(1, watts=200)
    assert (story.world.limit, story.evictions(), story.entry.budget_action) == (150_000, 1, "Evicted")
    assert condition(story.world.status) == ("True", "LeaseRenewed")


async def test_of_a_job_that_is_not_looked_after_an_allowance_that_holds_for_a_time_ends_with_it(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(10**6), seconds=20))
    job = story.world.pods["uid-a"].job_uid
    assert job is not None
    story.world.unattended = {job: story.clock.now}
    for seconds, limit in ((19, 300_000), (4, 150_000)):
        for _ in range(seconds):
            story.world.operator_renewed = story.clock.now
            await story.go(1, watts=100)
        assert story.world.limit == limit


async def test_an_allowance_that_holds_for_a_time_ends_with_it_and_begins_again_with_the_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(10**6), seconds=60))
    story.world.operator_renewed = story.clock.now
    # Nobody listens where the eviction would be asked for, so that it stays with the limit.
    story.world.refusals = [PDB] * 9
    await story.go(60, watts=100)
    assert (story.world.limit, story.entry.budget_action) == (300_000, "None")
    with caplog.at_level(logging.INFO, "greentrain.agent"):
        await story.go(3, watts=100)
    assert (story.world.limit, story.entry.budget_action) == (150_000, "Throttled")
    assert story.evictions() == 1
    assert "its allowance of 277.8Wh is valid for 60 s without the operator" in caplog.text
    # Killed, the next one goes on by its disk, though it cannot know for how long the operator was silent.
    story.world.operator_renewed = None
    await story.kill()
    story.world.refusals = [PDB] * 9
    await story.go(GRACE + 5, watts=100)
    assert (story.world.limit, story.kept["uid-a"]["action"]) == (150_000, "Throttled")
    assert not any(deed == "limit 300" for deed in story.world.deeds)
    story.world.operator_renewed = story.clock.now
    await story.go(3, watts=100)
    assert (story.world.limit, story.entry.budget_action) == (300_000, "None")


async def test_without_a_lease_to_go_by_an_allowance_lasts_until_it_is_used_up(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(10**6), seconds=60))
    story.world.lease = None
    await story.go(200, watts=100)
    assert (story.world.limit, story.entry.budget_action) == (300_000, "None")


async def test_an_operator_that_is_back_by_a_fresh_look_keeps_its_pod(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.world.back_at = story.clock.now + GRACE
    await story.go(GRACE + 10)
    assert (story.world.limit, story.evictions()) == (150_000, 0)
    assert story.entry.budget_action == "Throttled"
    # It stays throttled until the operator allows more.
    story.world.operator_renewed = story.clock.now
    story.world.allowances = {"uid-a": Allowance(Joules(10_000))}
    await story.go(3)
    assert (story.world.limit, story.entry.budget_action) == (300_000, "None")
    assert story.kept["uid-a"]["action"] == "None"


@pytest.mark.parametrize("lives", [True, False], ids=["it lives", "it is dead"])
async def test_a_watch_that_brings_nothing_is_not_taken_for_a_silent_operator(
    lives: bool, tmp_path: Path
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.world.operator_renewed = story.clock.now
    for _ in range(60):
        story.world.back_at = story.clock.now if lives else None
        await story.go(1)
    assert (story.world.limit, story.evictions()) == ((300_000, 0) if lives else (150_000, 1))


@pytest.mark.parametrize(
    ("lease", "heard", "expected"),
    [
        (None, None, ("False", "NoLease")),
        (("ns", "operator"), None, ("Unknown", "NotYet")),
        (("ns", "operator"), 0.0, ("True", "LeaseRenewed")),
        (("ns", "operator"), -100.0, ("False", "Silent")),
    ],
    ids=["no lease named", "not seen yet", "heard", "long ago"],
)
async def test_a_condition_says_whether_the_operator_is_heard(
    lease: tuple[str, str] | None, heard: float | None, expected: tuple[str, str], tmp_path: Path
) -> None:
    story = Story(tmp_path)
    story.world.lease = lease
    story.world.operator_renewed = None if heard is None else story.clock.now + heard
    await story.go(1)
    assert condition(story.world.status) == expected
    # Without a lease only the grace after a start is waited for.
    await story.go(GRACE)
    assert story.life.agent.allowances is not None
    assert story.life.agent.allowances.silent is (expected[1] != "LeaseRenewed")


def condition(status: NodePowerStatus | None) -> tuple[str, str]:
    assert status is not None
    found = find_condition(status.conditions, "OperatorActive")
    assert found is not None
    return found.status, found.reason


async def test_the_lowest_limit_overrides_a_cap_that_is_asked_for_and_gives_way_to_it_again(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    story.world.caps = {"uid-a": PowerCap(milliwatts=Milliwatts(200_000))}
    story.world.refusals = [PDB] * 9
    story.world.operator_renewed = story.clock.now
    await story.go(2)
    assert story.world.limit == 200_000
    story.world.operator_renewed -= OPERATOR_SILENT_SECONDS
    await story.go(2)
    assert story.world.limit == 150_000
    assert story.world.status is not None
    cap = story.world.status.gpus[0].cap
    assert cap is not None
    assert cap.reason == "Clamped"
    assert cap.message == (
        "its limit is 150W, the lowest it can have: its pod's allowance of energy is spent or has ended, and the operator "
        "was silent"
    )
    # The disk's journal of caps has what was asked, so that nothing of this outlasts it.
    caps = json.loads((tmp_path / "journal" / CAPS).read_text())
    assert caps["asked"]["uid-a"]["milliwatts"] == 200_000
    story.world.allowances = {"uid-a": Allowance(Joules(1))}
    await story.go(2)
    assert story.world.limit == 200_000


async def test_an_agent_that_is_ended_gives_the_limit_back_and_the_next_one_takes_it_again(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    await story.go(GRACE + 3)
    assert story.world.limit == 150_000
    story.clock.stop.set()
    await story.end()
    assert (story.world.limit, story.entry.budget_action) == (300_000, "Evicted")
    story.world.operator_renewed = story.clock.now
    await story.go(1)
    assert story.world.limit == 150_000


async def test_a_pod_with_a_budget_and_no_allowance_is_left_to_the_operator_while_it_is_heard(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path)
    story.budget()
    story.world.operator_renewed = story.clock.now
    await story.go(5, watts=200)
    assert story.world.limit == 300_000
    story.world.operator_renewed = story.clock.now - OPERATOR_SILENT_SECONDS
    await story.go(3, watts=200)
    assert (story.world.limit, story.evictions()) == (150_000, 1)
    assert (story.entry.allowance_joules, story.entry.budget_action) == (None, "Evicted")


# --- What the disk makes of a restart ------------------------------------------------------------------------------


async def test_an_agent_that_begins_anew_without_an_api_server_goes_by_the_allowance_of_the_disk(
    tmp_path: Path,
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(2000), "GPU"))
    story.world.operator_renewed = story.clock.now
    await story.go(3, watts=200)
    story.world.allowances, story.world.pods_known, story.world.operator_renewed = None, False, None
    story.world.pods, story.world.away = {}, True
    await story.kill()
    await story.go(GRACE + 1, watts=200)
    assert (story.used, story.world.limit) == (1_800_000, 300_000)
    await story.go(2, watts=200)
    assert story.world.limit == 150_000
    # And the one after it at its very first look.
    await story.kill()
    story.world.limit = 300_000
    await story.go(1)
    assert story.world.limit == 150_000
    # The API server answers again.
    story.world.hold("a")
    story.world.away, story.world.pods_known = False, True
    story.world.allowances = {"uid-a": Allowance(Joules(2000), "GPU")}
    await story.go(10)
    assert story.evictions() == 1


async def test_what_was_done_is_told_on_until_the_pod_is_settled_and_then_forgotten(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    await story.go(GRACE + 3)
    assert story.entry.budget_action == "Evicted"
    await story.kill()
    story.world.pods, story.world.listing = {}, World().listing
    story.world.allowances = {}
    await story.go(5)
    assert (story.entry.closed, story.entry.budget_action) == (True, "Evicted")
    assert story.world.limit == 300_000
    story.world.settled = ("uid-a/0",)
    await story.go(3)
    assert story.kept == {}


async def test_what_was_settled_and_went_on_still_counts(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(1000)))
    await story.go(3, watts=300)
    (key, pod), *_ = story.life.agent.account.pods.items()
    pod.closed = story.clock.wall()
    for card in story.life.agent.account.cards.values():
        assert card.last is not None
        card.last.phases.clear()
    story.life.agent.account.settle([key])
    await story.go(1, watts=300)
    assert story.life.agent.account.pods[key].segment == 1
    await story.go(3, watts=200)
    assert story.life.agent.account.pods[key].gpu < 1_000_000
    await story.go(2, watts=200)
    assert story.world.limit == 150_000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"uid-a": {"action": "Shot"}}'])
async def test_a_damaged_file_is_put_aside_and_what_the_operator_says_holds(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / FILE).write_text(content)
    story = Story(tmp_path, a=Allowance(Joules(500)))
    with caplog.at_level(logging.ERROR, "greentrain.agent"):
        await story.go(1)
    assert "put aside as allowances.damaged" in caplog.text
    assert (tmp_path / "journal" / "allowances.damaged").read_text() == content
    assert story.kept["uid-a"]["allowance"] == {"joules": 500, "scope": "GPU", "seconds": None}


async def test_an_allowance_is_confirmed_once_the_disk_has_it(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(5000)))
    await story.go(2)
    assert story.entry.allowance_joules == 5000
    blocking = tmp_path / "journal" / "allowances.partial"
    blocking.mkdir()
    story.world.allowances = {"uid-a": Allowance(Joules(100))}
    await story.go(GRACE, watts=200)
    # It goes by the lower one already; an agent that begins anew would not.
    assert story.entry.allowance_joules == 5000
    await story.go(2, watts=200)
    assert story.world.limit == 150_000
    blocking.rmdir()
    await story.go(2)
    assert story.entry.allowance_joules == 100


# --- When it is told -----------------------------------------------------------------------------------------------


async def test_a_new_allowance_is_confirmed_at_once(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(10**6)))
    story.world.operator_renewed = story.clock.now
    await story.go(4)
    story.world.deeds.clear()
    story.world.allowances = {"uid-a": Allowance(Joules(10**6 - 1))}
    await story.go(1)
    assert len(story.world.deeds) == 1
    assert story.entry.allowance_joules == 10**6 - 1


@pytest.mark.parametrize(
    ("left", "watts", "reports"),
    [
        # A quiet 30 s: one regular report.
        (20_000, 200, (1, 2)),
        # 6 kJ at 200 W are spent within 30 s.
        (6_000, 200, (4, 6)),
        (0, 200, (4, 6)),
        # It draws nothing.
        (100, 0, (1, 2)),
    ],
)
async def test_reports_come_more_often_when_a_pod_nears_its_allowance(
    left: int, watts: int, reports: tuple[int, int], tmp_path: Path
) -> None:
    story = Story(tmp_path, a=Allowance(Joules(10 * watts + left)))
    story.world.operator_renewed = story.clock.now + 60
    await story.go(10, watts=watts)
    story.world.deeds.clear()
    await story.go(25, watts=watts)
    told = sum(deed.startswith("report") for deed in story.world.deeds)
    assert reports[0] - 1 <= told <= reports[1]


async def test_metrics_count_what_was_done(tmp_path: Path) -> None:
    story = Story(tmp_path, a=Allowance(Joules(0)))
    telemetry = AgentTelemetry(story.life.agent, story.life.clock, CollectorRegistry())
    await story.go(GRACE + 5)
    page = telemetry.render().decode()
    for line in (
        "greentrain_allowances_spent_total 1.0",
        "greentrain_allowance_throttles_total 1.0",
        "greentrain_allowance_evictions_total 1.0",
        f"greentrain_operator_silence_seconds {GRACE + 4}.0",
    ):
        assert f"\n{line}\n" in page
