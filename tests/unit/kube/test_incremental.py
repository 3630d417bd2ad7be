"""What is kept between passes changes no decision: reading, putting together and folding anew gives the same, to the joule.

A pass over a job on a thousand nodes looks at the reports that are new. Here whatever happened since the operator began is
brought a second time to caches that know nothing, and both decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from greentrain.carbon.embodied import Embodied
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import format_time
from greentrain.kube.cache import Cache, Key
from greentrain.kube.gather import gather
from greentrain.kube.readings import NodePowers
from tests.support.manifests import build_job
from tests.support.snapshots import START
from tests.unit.core.test_emissions import hourly, steady
from tests.unit.core.test_whole_passes import KEY, World, with_gpus

Json = dict[str, Any]
NODES = ("node-1", "node-2", "node-3")
WORKERS = 4


def grid(source: CarbonSource) -> CarbonSource:
    """A grid whose nodes' GPUs have a figure."""
    return replace(source, embodied={"V100": Embodied(1, 10**6, 10**9, "test")}.get)


GRIDS = tuple(map(grid, (steady(360), steady(20), hourly(360, None, 20, 500), hourly(None, 100))))


class Story:
    """What was brought to the caches since the operator began, so that it can be brought again."""

    def __init__(self) -> None:
        self.brought: list[tuple[datetime, Callable[[Cache, NodePowers], object]]] = []

    def again(self, now: datetime) -> tuple[Cache, NodePowers]:
        """Caches to which all of it was brought, each at its time."""
        clock = now
        cache, powers = Cache(), NodePowers(lambda: clock)
        for when, bring in self.brought:
            clock = when
            bring(cache, powers)
        clock = now
        return cache, powers


class Recorded(World):
    """A world whose caches live on, beside the story of what was brought to them."""

    def __init__(self, spec: Json, chance: random.Random) -> None:
        super().__init__(spec, chance)
        self.story = Story()
        self.reports: dict[str, Json] = {}
        """What each agent has written last, whether or not a watch has brought it."""
        self.compared = 0

    def bring(self, bring: Callable[[Cache, NodePowers], object]) -> None:
        self.story.brought.append((self.now, bring))
        bring(self.cache, self.powers)

    def show(self, pod: Json) -> None:
        self.stamp(pod["metadata"])
        self.pods[pod["metadata"]["uid"]] = pod
        body = deepcopy(pod)
        self.bring(lambda cache, _: cache.put("Pod", body))

    def remove(self, pod: Json) -> None:
        del self.pods[pod["metadata"]["uid"]]
        body = deepcopy(pod)
        self.bring(lambda cache, _: cache.drop("Pod", body))

    def happen_to(self, pod: Json) -> None:
        if self.chance.random() < 0.1:
            return self.remove(pod)
        pod["spec"].setdefault("nodeName", self.chance.choice(NODES))
        before = dict(self.pods)
        if self.chance.random() < 0.7:  # most pods just run
            state = {"running": {"startedAt": format_time(START)}}
            container = {"name": "tensorflow", "ready": True, "state": state}
            pod["status"] = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [container]}
            return self.show(pod)
        super().happen_to(pod)
        for uid in before.keys() - self.pods.keys():  # it was dropped from our cache, not from the story
            self.story.brought.append((self.now, drop_pod(deepcopy(before[uid]))))
        return None

    def tell(self, node: str) -> None:
        """An agent writes; what a watch brings of it may be an older version, or nothing."""
        body = self.write(node)
        self.reports[node] = body
        kind = self.chance.choice(("come", "come", "come", "lost", "again"))
        if kind == "come":
            self.bring(lambda _, powers: powers.put(body))
        elif kind == "again":
            self.bring(lambda _, powers: powers.put(body))
            self.bring(lambda _, powers: powers.put(body))

    def write(self, node: str) -> Json:
        """A report of most of the same: of one pod more, of others the end, of others nothing any more."""
        before, choose = self.reports.get(node), self.chance.choice
        meta = {"name": node, "uid": f"uid-{node}-{choose((0,) * 20 + (1,))}"}
        self.stamp(meta)
        entries = {e["uid"]: dict(e) for e in (before or {}).get("status", {}).get("pods", ())}
        for uid, pod in self.pods.items():
            if pod["spec"].get("nodeName") == node or self.chance.random() < 0.05:
                entries.setdefault(uid, self.build_entry(pod))
        for uid, entry in list(entries.items()):
            if self.chance.random() < 0.4:
                self.advance(entry)
            if entry["closed"] and self.chance.random() < 0.3:
                del entries[uid]
        status = {
            "observedAt": format_time(self.now - timedelta(seconds=choose((0, 1, 40)))),
            "reportIntervalSeconds": choose((30, 30, 10)),
            "region": "eu",
            "gpus": [self.build_gpu(node, uid) for uid in entries or ("none",)],
            "pods": list(entries.values()),
        }
        return {"metadata": meta, "spec": {"settled": choose(((), ("x/0",)))}, "status": status}

    def build_gpu(self, node: str, uid: str) -> Json:
        watts = self.chance.choice((300_000,) * 4 + (250_000,))
        reason = self.chance.choice(("Capped",) * 4 + ("Contested",))
        return {
            "uuid": f"{node}-{uid}",
            "model": "V100",
            "limits": {"minMilliwatts": 100_000, "defaultMilliwatts": 300_000, "enforcedMilliwatts": watts},
            "cap": {
                "podUid": uid,
                "askedMilliwatts": self.chance.choice((210_000, 200_000)),
                "reason": reason,
            },
        }

    def build_entry(self, pod: Json) -> Json:
        meta = pod["metadata"]
        known = self.chance.random() < 0.8
        return {
            "uid": meta["uid"],
            "segment": 0,
            "namespace": "team",
            "name": meta["name"],
            "job": "digits",
            "jobUid": "uid-1",
            "ownerKnown": known,
            "gpuJoules": 0,
            "cpuJoules": 0,
            "firstReading": meta["creationTimestamp"],
            "lastReading": meta["creationTimestamp"],
            "gpuTime": [{"model": "V100", "seconds": 0}],
            "buckets": {"start": meta["creationTimestamp"], "joules": [0]},
            "closed": False,
        }

    def advance(self, entry: Json) -> None:
        """More energy; now and then less, as of a journal that was lost; an end, now and then."""
        more = self.chance.choice((0, 1, 60_000, 60_000, 10**9, -5))
        entry["gpuJoules"] = max(0, entry["gpuJoules"] + more)
        entry["cpuJoules"] += self.chance.choice((0, 0, 7))
        entry["errorJoules"] = self.chance.choice((0, 3, 100))
        entry["missingSeconds"] = self.chance.choice((0, 0, 9))
        entry["lastReading"] = format_time(self.now)
        entry["drawMilliwatts"] = self.chance.choice((None, 0, 300_000))
        entry["gpuTime"] = [{"model": "V100", "seconds": self.chance.randrange(10**4)}]
        quarters = int((self.now - datetime.fromisoformat(entry["buckets"]["start"])).total_seconds()) // 900
        joules = entry["buckets"]["joules"]
        joules = [*joules, *[0] * (quarters + 1 - len(joules))][: quarters + 1][-384:]
        joules[-1] += max(0, more)
        entry["buckets"] = {**entry["buckets"], "joules": joules}
        entry["budgetAction"] = self.chance.choice(("None",) * 9 + ("Throttled",))
        entry["closed"] = entry["closed"] or self.chance.random() < 0.15

    def restart(self) -> None:
        """The operator begins anew: what it knows are lists, statuses that were not written are forgotten."""
        self.cache, self.powers = Cache(), NodePowers(lambda: self.now)
        self.story = Story()
        pods, reports = deepcopy(list(self.pods.values())), list(self.reports.values())
        self.bring(lambda cache, _: [cache.put("Pod", pod) for pod in pods])
        self.bring(lambda _, powers: [powers.put(report) for report in reports])

    def happen(self) -> None:
        """Time goes on, pods and nodes change, the operator may be killed."""
        self.now += timedelta(seconds=self.chance.choice((1, 2, 35, 100, 1000, 3700)))
        if self.chance.random() < 0.15:
            self.restart()
        for pod in list(self.pods.values()):
            if self.chance.random() < 0.4:
                self.happen_to(pod)
        for node in NODES:
            if self.chance.random() < 0.6:
                self.tell(node)

    def seen(self) -> Snapshot:
        """The snapshot, held against one that was put together from nothing."""
        self.stamp(self.job["metadata"])
        job = deepcopy(self.job)
        self.bring(lambda cache, _: cache.put("Job", job))
        source, progress = self.chance.choice(GRIDS), self.say()
        cache, powers = self.story.again(self.now)
        found, whole = (
            with_intensities(replace(snapshot, sampled=self.now if progress else None), source, now=self.now)
            for snapshot in (
                gather(self.cache, self.powers, KEY, progress=progress),
                gather(cache, powers, KEY, progress=progress),
            )
            if snapshot is not None
        )
        assert found == whole
        assert self.powers.refused() == powers.refused()
        if not found.job.unreadable:
            assert plain(decide(found, now=self.now)) == plain(decide(whole, now=self.now))
            self.compared += 1
        return found


def drop_pod(body: Json) -> Callable[[Cache, NodePowers], object]:
    return lambda cache, _: cache.drop("Pod", body)


def plain(decision: Decision) -> Decision:
    """A decision whose pods are a list."""
    return replace(decision, pods=list(decision.pods))


def build_spec(chance: random.Random) -> Json:
    spec = with_gpus(build_job(workers=WORKERS)["spec"])
    budget = chance.choice(("1MJ", "1MWh", None))
    if budget is not None:
        action = chance.choice(("Suspend", "Warn"))
        spec["energy"] = {"budget": budget, "onUnknown": "Continue", "onExhausted": action}
    spec["energy"] = {**spec.get("energy", {}), "scope": chance.choice(("GPU", "Node"))}
    if chance.random() < 0.5:
        spec["power"] = {"cap": "70%"}
    if chance.random() < 0.5:
        spec["emissions"] = {"budget": "1tCO2e"}
    return spec


@settings(max_examples=25, phases=(Phase.generate,))  # a life does not get simpler by another seed
@given(st.integers(0, 10**9))
def test_passes_that_fold_what_has_changed_decide_as_if_they_folded_everything(seed: int) -> None:
    chance = random.Random(seed)
    world = Recorded(build_spec(chance), chance)
    for node in NODES:
        world.tell(node)
    for _ in range(20):
        if chance.random() < 0.6:
            world.step()  # its status is stored
        else:
            world.seen()  # it is not: another pass follows
        world.happen()
    assert world.compared >= 15


def test_a_report_that_has_not_changed_is_put_together_once_and_its_entries_stay_the_same_objects() -> None:
    chance = random.Random(1)
    world = Recorded(build_spec(chance), chance)
    for _ in range(3):
        world.step()
    for i, pod in enumerate(world.pods.values()):
        pod["spec"]["nodeName"] = NODES[i % len(NODES)]
        world.show(pod)
    for node in NODES:
        report = world.reports[node] = world.write(node)
        world.powers.put(report)

    def reports() -> dict[str, Any]:
        seen = gather(world.cache, world.powers, Key(*KEY))
        assert seen is not None
        return {r.node: r for r in seen.reports}

    before = reports()
    assert all(reports()[node] is before[node] for node in NODES)
    changed = deepcopy(world.reports["node-1"])
    changed["metadata"]["resourceVersion"] = "9999"
    changed["status"]["pods"][0]["gpuJoules"] += 1
    world.powers.put(changed)
    after = reports()
    assert [after[node] is before[node] for node in NODES] == [False, True, True]
    one, *others = after["node-1"].pods
    assert one is not before["node-1"].pods[0]
    assert all(entry is known for entry, known in zip(others, before["node-1"].pods[1:], strict=True))
    assert after["node-1"].kept is before["node-1"].kept
