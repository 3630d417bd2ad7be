"""Work grows with its size and no faster: four times as much takes about four times as long, never sixteen times."""

from __future__ import annotations

import contextlib
import gc
import time
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from greentrain import quantities
from greentrain.api.spec import Basis, GreenTrainingJobSpec
from greentrain.api.status import AttemptStatus
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.core.admission import decide_admission
from greentrain.core.books.emissions import find_highest
from greentrain.core.gang.judge import judge
from greentrain.core.gang.manifests import Pods, ranks, replica_counts
from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.intensities import CarbonSource
from greentrain.core.seen.taking import MOST_STEPS
from greentrain.kube.decoding import decode
from greentrain.kube.redaction import find_secrets, redact
from greentrain.kube.template import find_template_problems
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import START, account_of, at, job_of, seen, take

Json = dict[str, Any]
Work = Callable[[], object]

FACTOR = 9
"""Between 4, of what is linear, and 16, of what is quadratic."""


def of_template(template: Json) -> Json:
    manifest = build_job()
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template
    return manifest


def secrets_in(value: str) -> Work:
    template = build_template(env=[{"name": "A", "value": value}])
    return lambda: find_secrets(template)


def redacted(n: int) -> Work:
    secrets = frozenset(f"secret-ä-{i}" for i in range(n))
    text = "the server says secret-ä-7 and secret-ö-7" * 20
    return lambda: redact(text, secrets)


def unknown_fields(n: int) -> Work:
    fields: Json = {f"field{i}": i for i in range(n)}
    job = job_of(build_job(**fields))
    return lambda: decide_admission(job)


def unknown_fields_in_a_template(n: int) -> Work:
    manifest = of_template(build_template(**{f"field{i}": i for i in range(n)}))
    return lambda: find_template_problems(manifest["spec"])


def reserved_variables(n: int) -> Work:
    job = job_of(of_template(build_template(env=[{"name": "TF_CONFIG", "value": ""}] * n)))
    return lambda: decide_admission(job)


def decoded(text: str) -> Work:
    def work() -> None:
        with contextlib.suppress(ValueError):
            decode(text.encode())

    return work


def deep_lists(n: int) -> Work:
    wide: Any = [[] for _ in range(n)]
    for _ in range(100):
        wide = [wide]
    job = job_of(of_template(build_template(args=wide)))
    return lambda: decide_admission(job)


def attempt_of(spec: GreenTrainingJobSpec) -> AttemptStatus:
    return AttemptStatus(
        number=1,
        replicas=replica_counts(spec),
        start_time="2026-01-01T00:00:00Z",
        running_time="2026-01-01T00:00:00Z",
    )


def pods_of(n: int, template: Json | None = None) -> Pods:
    manifest = build_job(workers=n)
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = template or build_template()
    spec = GreenTrainingJobSpec.model_validate(manifest["spec"])
    return Pods(job_of(manifest), spec, attempt_of(spec), ranks(replica_counts(spec)))


def built(n: int) -> Work:
    pods = pods_of(n)
    return lambda: [pod["metadata"]["name"] for pod in pods]


def all_lost(n: int) -> Work:
    spec = GreenTrainingJobSpec.model_validate(build_job(workers=n)["spec"])
    attempt = attempt_of(spec).model_copy(
        update={"finished_ranks": tuple(f"worker-{i}" for i in range(1, n // 2))}
    )
    return lambda: judge(attempt, {}, broken_since=None, now=START)


@pytest.mark.parametrize(
    ("build", "n"),
    [
        pytest.param(lambda n: secrets_in("/" * n), 8_000, id="a value of slashes"),
        pytest.param(lambda n: secrets_in("/" * n + "="), 8_000, id="slashes, and one that does not fit"),
        pytest.param(lambda n: secrets_in("QUJD/" * n + "="), 2_000, id="base64"),
        pytest.param(lambda n: secrets_in("s://" * n + "@"), 2_000, id="schemes"),
        pytest.param(lambda n: secrets_in("a.b-" * n + "1"), 2_000, id="words"),
        pytest.param(redacted, 2_000, id="secrets looked for in a message"),
        pytest.param(unknown_fields, 2_000, id="unknown fields"),
        pytest.param(unknown_fields_in_a_template, 2_000, id="unknown fields in a template"),
        pytest.param(reserved_variables, 1_000, id="many problems"),
        pytest.param(deep_lists, 4_000, id="deep and wide"),
        pytest.param(lambda n: decoded("[" * n + "]" * n), 20_000, id="lists in lists"),
        pytest.param(
            lambda n: decoded("[" * 300 + '{"a":["[","]"]},' * n + "0" + "]" * 300), 4_000, id="deep text"
        ),
        pytest.param(lambda n: decoded("[" * 300 + '"\\""' * n), 4_000, id="a text without an end"),
        pytest.param(built, 256, id="pods of an attempt"),
        pytest.param(all_lost, 256, id="an attempt of which all pods are gone"),
    ],
)
def test_work_grows_with_its_size_and_no_faster(build: Callable[[int], Work], n: int) -> None:
    small, large = build(n), build(4 * n)
    small()  # what is done once in a process is not counted
    ratios = []
    for _ in range(5):
        ratios.append(_seconds(large) / _seconds(small))
        if ratios[-1] < FACTOR:
            return
    pytest.fail(f"four times as much took {min(ratios):.1f} times as long")


def _seconds(work: Work) -> float:
    """CPU time of a few rounds, garbage of others not collected meanwhile."""
    gc.collect()
    gc.disable()
    begun = time.process_time()
    try:
        for _ in range(3):
            work()
    finally:
        gc.enable()
    return time.process_time() - begun


def test_pods_are_built_one_at_a_time() -> None:
    """A thousand pods of 32 KiB and of the addresses of a thousand ranks each would be 100 MiB at once."""
    spec = build_job(workers=1024)
    spec["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(args=["x" * 30_000])
    tracemalloc.start()
    try:
        decision = decide(seen(job_of(spec)), now=at(0))
        assert len(decision.pods) == 1024
        for pod in decision.pods:
            assert pod["spec"]["hostname"].startswith("digits-worker-")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * 1024**2


@pytest.mark.parametrize("seconds", [-1, 0, 1800, 3600, 10**9, 10**12])
def test_a_grid_is_looked_at_an_hour_ahead_however_long_a_stop_takes(seconds: int) -> None:
    asked: list[float] = []

    def look(_zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        asked.append(moment)
        begin = moment // 900 * 900
        return Intensity(quantities.Intensity(len(asked)), "test", basis, begin, begin + 900)

    account = account_of(source=CarbonSource(at=look, zone_of=lambda *_: "DE"))
    # It would be a LookupError beyond what was taken.
    assert find_highest(account, "Lifecycle", seconds=seconds)
    assert len(asked) == 5
    assert START.timestamp() <= min(asked) <= max(asked) <= (START + timedelta(hours=1)).timestamp()


def test_a_source_that_changes_too_often_costs_its_own_answer() -> None:
    asked = 0

    def look(_zone: str, basis: Basis, moment: float) -> Intensity | Absent:
        nonlocal asked
        asked += 1
        return Intensity(quantities.Intensity(1), "test", basis, moment, moment + 0.001)

    taken = take(CarbonSource(at=look, zone_of=lambda *_: "DE"))
    assert asked == MOST_STEPS
    last = taken.at("DE", "Lifecycle", START.timestamp() + 3600)
    assert isinstance(last, Absent)
    assert "changes more than 20000 times" in last.reason
