"""Whole passes over jobs of any spec, whose pods, nodes and programs say what they like: each decides, and what it decides can
be stored and is read again.

A pod's status is written by its kubelet, a NodePower's by its agent, `/progress` and termination messages by programs. Here
the bodies come as an API server would bring them, through the cache and the readings that the operator has.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from functools import partial
from operator import setitem
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from greentrain.api.nodepower import MAX_JOULES
from greentrain.api.runtime import Checkpoint, Progress
from greentrain.api.stored import dump_job_status
from greentrain.carbon.embodied import Embodied
from greentrain.core.lifecycle.decide import decide
from greentrain.core.lifecycle.decision import Decision
from greentrain.core.seen.snapshot import Snapshot
from greentrain.core.seen.taking import with_intensities
from greentrain.core.seen.times import format_time
from greentrain.kube.cache import Cache, Key
from greentrain.kube.gather import gather
from greentrain.kube.readings import NodePowers
from tests.support.manifests import build_job
from tests.support.snapshots import START
from tests.unit.core.test_emissions import steady
from tests.unit.core.test_fits import MOST_STEP, check
from tests.unit.core.test_properties import SPECS

Json = dict[str, Any]
KEY = Key("team", "digits")
GPU = "nvidia.com/gpu"

DATES = (
    "0000-06-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "-001-12-31T19:00:00Z",
    "0999-12-31T23:59:59Z",
    "1734-01-01T00:00:00Z",
    "1970-01-01T00:00:00Z",
    "2026-01-01T00:00:05Z",
    "2026-01-02T09:00:00+09:00",
    "2026-06-30T23:59:60Z",
    "2318-01-01T00:00:00.123456789Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-12:00",
    "10000-01-01T04:59:59Z",
)
"""What a server may store as a time: Go writes years below 0 and above 9999 too."""

SECONDS = (0, 1, 30, 86_400, 315_360_000, 2**31 - 1, 10**11, 2**62, -1)
"""Grace periods: `kubectl delete --grace-period` takes any number."""

JOULES = (0, 1, 1000, 10**9, MAX_JOULES)
TOO_MANY = (MAX_JOULES + 1, 2**63, -1)

CARBON = replace(
    steady(360),
    embodied={"V100": Embodied(1, 10**6, 10**9, "test")}.get,
    zone_of=lambda region, _: region or "DE",
)


class World:
    """One job and what the API server shows of it and of its nodes."""

    def __init__(self, spec: Json, chance: random.Random) -> None:
        self.chance = chance
        self.now = START
        self.cache = Cache()
        self.powers = NodePowers(lambda: self.now)
        self.version = 1
        self.pods: dict[str, Json] = {}
        self.job: Json = {
            **build_job("digits"),
            "spec": spec,
            "metadata": {
                "namespace": "team",
                "name": "digits",
                "uid": "uid-1",
                "generation": 1,
                "creationTimestamp": format_time(START),
            },
        }

    def stamp(self, meta: Json) -> None:
        self.version += 1
        meta["resourceVersion"] = str(self.version)

    def date(self) -> str:
        """A time near by, or one of those that are not."""
        near = self.now + timedelta(seconds=self.chance.choice((-100_000, -60, 0, 5, 100_000)))
        return format_time(near) if self.chance.random() < 0.5 else self.chance.choice(DATES)

    def past(self) -> str:
        """A time that a node may have read its cards at; now and then any."""
        past = self.now - timedelta(seconds=self.chance.choice((0, 1, 30, 900)))
        return format_time(past) if self.chance.random() < 0.95 else self.date()

    def joules(self) -> int:
        return self.chance.choice(JOULES if self.chance.random() < 0.98 else TOO_MANY)

    def seen(self) -> Snapshot:
        self.stamp(self.job["metadata"])
        self.cache.put("Job", deepcopy(self.job))
        carbon = CARBON if self.chance.random() < 0.9 else None
        found = gather(self.cache, self.powers, KEY, progress=self.say())
        assert found is not None
        found = replace(found, sampled=self.now if found.progress else None)
        return with_intensities(found, carbon, now=self.now)

    def say(self) -> Progress | None:
        """What the program answers."""
        if self.chance.random() < 0.3:
            return None
        step = self.chance.choice((0, 1, 500, MOST_STEP))
        return Progress(
            step=step,
            total_steps=self.chance.choice((None, 1, 1000, MOST_STEP)),
            metrics={"loss": self.chance.choice((0.1, -1e300, 1e308))},
            checkpoint=Checkpoint(step=step, path="/c" * self.chance.choice((1, 500))),
        )

    def step(self) -> Decision | None:
        """One pass; its status is checked and stored. None where the stored one cannot be read: such a job is held."""
        seen = self.seen()
        if seen.job.unreadable:
            return None
        decision = decide(seen, now=self.now)
        check(decision.status)
        self.job["status"] = dump_job_status(decision.status)
        for pod in decision.pods:
            self.make(pod)
        for deletion in decision.deletions:
            self.ask_to_stop(self.pods[deletion.uid])
        return decision

    def make(self, manifest: Json) -> None:
        uid = f"pod-{self.version}"
        pod = deepcopy(manifest)
        pod["metadata"] |= {"uid": uid, "namespace": "team", "creationTimestamp": format_time(self.now)}
        self.show(pod)

    def show(self, pod: Json) -> None:
        self.stamp(pod["metadata"])
        self.pods[pod["metadata"]["uid"]] = pod
        self.cache.put("Pod", deepcopy(pod))

    def ask_to_stop(self, pod: Json) -> None:
        pod["metadata"] |= {
            "deletionTimestamp": self.date(),
            "deletionGracePeriodSeconds": self.chance.choice(SECONDS),
        }
        self.show(pod)

    def happen(self) -> None:
        """Something happens to a pod, or a node says something."""
        self.now += timedelta(seconds=self.chance.choice((1, 35, 100, 3700, 10**6)))
        pods = list(self.pods.values())
        if pods:
            self.happen_to(self.chance.choice(pods))
        for node in ("node-1", "node-2"):
            if self.chance.random() < 0.7:
                self.tell(node)

    def happen_to(self, pod: Json) -> None:
        pod["spec"].setdefault("nodeName", self.chance.choice(("node-1", "node-2")))
        kind = self.chance.choice(("run", "run", "run", "end", "fail", "init", "delete", "gone"))
        if kind == "delete":
            return self.ask_to_stop(pod)
        if kind == "gone":
            del self.pods[pod["metadata"]["uid"]]
            self.cache.drop("Pod", deepcopy(pod))
            return None
        running = {"running": {"startedAt": self.date()}}
        message = json.dumps({"step": MOST_STEP, "reason": "\u0007" * 9, "totalSteps": 1})
        ended = {
            "terminated": {
                "exitCode": self.chance.choice((0, 1, 137, 143, 144, -(2**31), 2**31 - 1)),
                "startedAt": self.date(),
                "finishedAt": self.date(),
                "message": self.chance.choice((None, message, "x" * 5000)),
            }
        }
        state = running if kind == "run" else ended
        conditions = [
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": self.chance.choice(("TerminationByKubelet", "DeletionByPodGC", "Odd")),
                "lastTransitionTime": self.date(),
            }
        ]
        pod["status"] = {
            "phase": "Running" if kind == "run" else "Failed",
            "podIP": "10.0.0.1",
            "conditions": conditions if self.chance.random() < 0.2 else [],
            "containerStatuses": [{"name": "tensorflow", "ready": True, "state": state}]
            if kind != "init"
            else [],
            "initContainerStatuses": [{"name": "prepare", "state": ended}] if kind == "init" else [],
        }
        self.show(pod)
        return None

    def tell(self, node: str) -> None:
        """The node's agent reports, with figures that are right now and then."""
        choose = self.chance.choice
        pods = [
            {
                "uid": pod["metadata"]["uid"],
                "segment": choose((0, 0, 1, 10**6)),
                "namespace": "team",
                "name": pod["metadata"]["name"],
                "job": "digits",
                "jobUid": "uid-1",
                "ownerKnown": choose((True, True, False)),
                "gpuJoules": self.joules(),
                "cpuJoules": self.joules(),
                "estimatedJoules": self.joules(),
                "errorJoules": self.joules(),
                "missingSeconds": choose((0, 1, 10**10)),
                "firstReading": choose((None, self.past())),
                "lastReading": choose((None, self.past())),
                "drawMilliwatts": choose((None, 0, 300_000, 10**9)),
                "gpuTime": [{"model": choose(("V100", "", "x" * 96)), "seconds": choose((0, 1, 10**10))}],
                "budgetAction": choose(("None", "None", "Throttled", "Evicted")),
                "closed": choose((True, False, False)),
                "buckets": {
                    "start": self.past(),
                    "joules": [self.joules() for _ in range(choose((0, 1, 3)))],
                    "hostJoules": [choose((0, 1)) for _ in range(choose((0, 1)))],
                    "earlierJoules": self.joules(),
                },
            }
            for pod in self.pods.values()
        ]
        limits = {
            "minMilliwatts": choose((None, 1, 100_000)),
            "defaultMilliwatts": choose((None, 1, 300_000, 10**7)),
            "enforcedMilliwatts": choose((None, 1, 10**7)),
        }
        status = {
            "observedAt": self.past(),
            "reportIntervalSeconds": choose((1, 30, 3600)),
            "region": choose(("", "eu-west-1")),
            "conditions": [
                {
                    "type": "HostReadable",
                    "status": choose(("True", "False")),
                    "reason": "Test",
                    "lastTransitionTime": self.past(),
                }
            ],
            "gpus": [
                {"uuid": f"{node}-{i}", "model": "V100", "limits": limits} for i in range(choose((0, 2)))
            ],
            "pods": pods,
        }
        meta = {"name": node, "uid": f"uid-{node}"}
        self.stamp(meta)
        self.powers.put({"metadata": meta, "status": status})

    def forge_a_date(self) -> None:
        """Somebody who may write statuses writes another date into the job's."""
        places: list[Callable[[str], None]] = []
        walk(self.job.get("status") or {}, places)
        if places:
            self.chance.choice(places)(self.chance.choice(DATES))


def walk(node: Any, places: list[Callable[[str], None]]) -> None:
    """Whatever sets a date in a stored status."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        if isinstance(value, dict | list):
            walk(value, places)
        elif isinstance(value, str) and value[4:5] == "-" and value.endswith("Z"):
            places.append(partial(setitem, node, key))


def with_gpus(spec: Json) -> Json:
    """The spec with a GPU for each pod."""
    spec = deepcopy(spec)
    for role in spec["tfReplicaSpecs"].values():
        container = role["template"]["spec"]["containers"][0]
        container["resources"] = {"limits": {GPU: 1}}
    return spec


@settings(max_examples=60, phases=(Phase.generate,))  # a life does not get simpler by another seed
@given(SPECS, st.integers(0, 10**9), st.booleans())
def test_a_pass_decides_and_its_status_is_stored_whatever_specs_pods_nodes_and_programs_say(
    spec: Json, seed: int, forges: bool
) -> None:
    chance = random.Random(seed)
    if chance.random() < 0.8:
        spec = {**with_gpus(spec), "runPolicy": {**spec.get("runPolicy", {}), "suspend": False}}
    if chance.random() < 0.5:
        spec["energy"] = {"budget": chance.choice(("1J", "1MWh", "100GWh")), "onUnknown": "Continue"}
        spec["power"] = {"budgetPolicy": "LowerCap"}
    world = World(spec, chance)
    world.tell("node-1")
    for _ in range(8):
        if world.step() is None:
            return
        world.happen()
        if forges and chance.random() < 0.2:
            world.forge_a_date()
