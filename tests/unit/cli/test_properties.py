"""Whatever is written as a TFJob, conversion answers: a job that is admitted, or a refusal that names a path."""

from __future__ import annotations

import io
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrain.api.status import GreenTrainingJobStatus
from greentrain.cli.main import Streams, main
from greentrain.core.admission import Admitted, decide_admission
from greentrain.core.seen.snapshot import Job

Json = dict[str, Any]
Any_ = st.SearchStrategy[Any]

ODD: Any_ = st.sampled_from([None, True, 0, -1, 5, "", "None", "x-worker-0.ns.svc", [], ["a"], {}, {"a": 1}])
"""Values that may stand where another kind of value belongs."""


def build_tfjobs(*, sound: bool) -> Any_:
    """TFJobs of a small grammar: sound ones greentrain can run, or ones with anything anywhere."""

    def maybe(expected: Any_) -> Any_:
        return expected if sound else st.integers(0, 15).flatmap(lambda n: ODD if n == 0 else expected)

    def some(required: Json, optional: Json) -> Any_:
        return st.fixed_dictionaries(
            {k: maybe(v) for k, v in required.items()}, optional={k: maybe(v) for k, v in optional.items()}
        )

    def one_of(*words: Any, odd: tuple[Any, ...] = ()) -> Any_:
        return st.sampled_from(words if sound else (*words, *odd))

    numbers = st.integers(1 if sound else 0, 5)
    env = some(
        {"name": one_of("A", "TF_CONFIG", odd=("GREENTRAIN_ATTEMPT",))}, {"value": one_of("1", "x-chief-0")}
    )
    port = some(
        {"containerPort": one_of(2222, 5000)}, {"name": one_of("tfjob-port", "http", odd=("progress",))}
    )
    security = some({}, {"runAsUser": numbers, "runAsNonRoot": st.booleans(), "capabilities": st.just({})})
    container = {
        "image": st.just("x"),
        "env": st.lists(maybe(env), max_size=3),
        "ports": st.lists(maybe(port), max_size=2),
        "command": st.lists(
            maybe(one_of("python3", "x-worker-1.ns", odd=("greentrain_trainer",))), max_size=3
        ),
        "securityContext": security,
    }
    main, board = (
        some({"name": one_of(name, odd=("other",))}, container) for name in ("tensorflow", "board")
    )
    pod = some(
        {
            "containers": st.tuples(maybe(main), maybe(board)).flatmap(
                lambda c: st.sampled_from([[c[0]], list(c)])
            )
        },
        {
            "initContainers": st.lists(maybe(board), max_size=1),
            "volumes": st.lists(maybe(some({"name": st.just("v")}, {"emptyDir": st.just({})})), max_size=2),
            "restartPolicy": one_of("Never", "Always", "OnFailure"),
            "hostname": st.just("h"),
            "subdomain": st.just("s"),
            "hostNetwork": st.booleans(),
            "securityContext": security,
            "serviceAccountName": st.just("s"),
            "affinity": st.just({"matchLabels": {"training.kubeflow.org/job-name": "x"}}),
        },
    )
    metadata = some({}, {"labels": st.just({"job-name": "x"}), "finalizers": st.just([])})
    template = some({"spec": pod}, {"metadata": metadata})
    policy = {"restartPolicy": one_of("Never", "OnFailure", "Always", "ExitCode")}
    single = some({"template": template}, {**policy, "replicas": st.just(1) if sound else numbers})
    several = some({"template": template}, {**policy, "replicas": numbers})
    if sound:
        workers = st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("Chief", "evaluator"), single) | {"ps": st.just({"replicas": 0})}
        ).flatmap(
            lambda rest: one_of("Worker", "worker", "WORKER").flatmap(
                lambda k: several.map(lambda v: {**rest, k: v})
            )
        )
    else:
        keys = st.sampled_from(
            ["Worker", "worker", "Chief", "CHIEF", "Master", "Evaluator", "PS", "ps", "Helper"]
        )
        workers = st.dictionaries(keys, maybe(several), max_size=3)
    run_policy: Json = {
        "cleanPodPolicy": one_of("None", "All", "Running", odd=("",)),
        "backoffLimit": numbers,
        "ttlSecondsAfterFinished": numbers,
        "activeDeadlineSeconds": numbers,
        "suspend": st.booleans(),
        "schedulingPolicy": some(
            {}, {"scheduleTimeoutSeconds": numbers, **({} if sound else {"queue": st.just("q")})}
        ),
    }
    managed = {"managedBy": one_of("kubeflow.org/training-operator", odd=("kueue.x-k8s.io/multikueue",))}
    spec = some(
        {"tfReplicaSpecs": workers},
        {
            **run_policy,
            "runPolicy": some({}, {**run_policy, **managed}),
            "successPolicy": one_of("", "AllWorkers", odd=("Some",)),
            "enableDynamicWorker": st.booleans(),
        },
    )
    meta = some(
        {"name": one_of("x", odd=("x.y", "a" * 60))},
        {"namespace": st.just("ns"), "uid": st.just("u"), "annotations": st.just({"a": "x-worker-0"})},
    )
    return st.builds(
        lambda version, rest: {"apiVersion": f"kubeflow.org/{version}", "kind": "TFJob", **rest},
        one_of("v1", "v1", "v1beta2", odd=("v1alpha1",)),
        some({"metadata": meta, "spec": spec}, {"status": st.just({})}),
    )


SOUND, ANY = build_tfjobs(sound=True), build_tfjobs(sound=False)


def converted(text: str) -> tuple[int, str, list[str]]:
    streams = Streams(text.encode, io.StringIO(), io.StringIO())
    code = main(["convert", "-"], streams)
    assert isinstance(streams.stdout, io.StringIO)
    assert isinstance(streams.stderr, io.StringIO)
    return code, streams.stdout.getvalue(), streams.stderr.getvalue().splitlines()


@settings(max_examples=60, deadline=None)
@given(SOUND, st.booleans())
def test_a_tfjob_greentrain_can_run_is_converted_into_what_is_admitted(manifest: Json, as_json: bool) -> None:
    code, out, said = converted(
        json.dumps(manifest) if as_json else yaml.safe_dump(manifest, sort_keys=False)
    )
    assert code == 0, said
    job = yaml.safe_load(out)
    stored = Job("ns", job["metadata"]["name"], "", 1, "", job["spec"], GreenTrainingJobStatus())
    assert isinstance(decide_admission(stored, privileged=True), Admitted)


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_whatever_is_in_a_tfjob_it_is_converted_or_refused_by_path(manifest: Json) -> None:
    code, _, said = converted(yaml.safe_dump(manifest, sort_keys=False))
    refusals = [line for line in said if line.startswith("standard input: cannot run: ")]
    assert code == (1 if refusals else 0)
    for line in refusals:
        path, _, message = line.removeprefix("standard input: cannot run: ").partition(": ")
        assert path.startswith(("spec", "metadata.name", "apiVersion")), line
        assert message, line


@settings(max_examples=50, deadline=None)
@given(st.one_of(SOUND, ANY))
def test_converting_twice_is_converting_once(manifest: Json) -> None:
    code, once, _ = converted(yaml.safe_dump(manifest, sort_keys=False))
    again, twice, _ = converted(once)
    assert twice == once
    # What was converted is not judged again; what is of another form was not converted.
    assert again == (code if manifest["apiVersion"] == "kubeflow.org/v1alpha1" else 0)
