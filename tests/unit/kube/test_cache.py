"""The cache keeps the newest word about each object, whatever order words arrive in."""

from __future__ import annotations

from typing import Any

from greentrain.api.v1alpha1 import AttemptStatus, GreenTrainingJobSpec
from greentrain.core.manifests import Pods, ranks
from greentrain.core.snapshot import parse_pod
from greentrain.kube.cache import Cache, Key, Missed, node_of
from greentrain.kube.redaction import find_pod_secrets
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of

KEY = Key("team", "digits")


def body(kind: str, uid: str, version: int, **more: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "namespace": "team",
        "name": "digits",
        "uid": uid,
        "resourceVersion": str(version),
    }
    if kind != "Job":
        meta |= {
            "name": f"{uid}-name",
            "labels": {"greentrain.dev/job-name": "digits"},
            "ownerReferences": [
                {"kind": "GreenTrainingJob", "name": "digits", "uid": "job", "controller": True}
            ],
        }
    return {"metadata": meta, **more}


def versions(cache: Cache) -> list[str]:
    return [b["metadata"]["resourceVersion"] for b in cache.owned("Pod", KEY, "job")]


def test_an_older_word_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put("Pod", body("Pod", "a", 5)) == KEY
    assert cache.put("Pod", body("Pod", "a", 4)) is None
    assert cache.put("Pod", body("Pod", "a", 5)) is None
    assert versions(cache) == ["5"]


def test_a_deleted_object_stays_deleted_but_its_last_words_are_kept() -> None:
    cache = Cache()
    cache.put("Pod", body("Pod", "a", 5, status={"phase": "Running"}))
    assert cache.drop("Pod", body("Pod", "a", 6, status={"phase": "Failed"})) == KEY
    assert cache.put("Pod", body("Pod", "a", 7)) is None, "a late answer to our own request"
    assert versions(cache) == []
    assert [b["status"]["phase"] for b in cache.last_words(KEY, "job")] == ["Failed"]
    cache.forget_last_words(KEY)
    assert cache.last_words(KEY, "job") == []


def test_a_fresh_list_finds_what_no_watch_told() -> None:
    cache = Cache()
    for uid, version in (("gone", 3), ("kept", 4), ("newer", 12)):
        cache.put("Pod", body("Pod", uid, version))
    missed = cache.resync("Pod", [body("Pod", "kept", 4), body("Pod", "unseen", 9)], 10)
    assert missed == [Missed(KEY, "unseen", 9), Missed(KEY, "gone", 10)]
    assert {b["metadata"]["uid"] for b in cache.owned("Pod", KEY, "job")} == {"kept", "newer", "unseen"}


def test_an_equal_list_changes_nothing() -> None:
    cache = Cache()
    cache.put("Pod", body("Pod", "a", 4))
    assert cache.resync("Pod", [body("Pod", "a", 4)], 10) == []


def test_a_job_made_again_under_its_name_replaces_the_old_one() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "old", 4))
    cache.put("Job", body("Job", "new", 6))
    found = cache.job(KEY)
    assert found is not None
    assert found["metadata"]["uid"] == "new"
    cache.drop("Job", body("Job", "old", 5))
    assert cache.job(KEY) is found


def test_pods_of_another_owner_are_not_the_jobs() -> None:
    cache = Cache()
    stranger = body("Pod", "a", 5)
    stranger["metadata"]["ownerReferences"][0]["uid"] = "another job"
    cache.put("Pod", stranger)
    assert cache.owned("Pod", KEY, "job") == []


def test_a_pod_is_kept_without_what_nobody_asks_for() -> None:
    container = {
        "args": ["--token", "hunter22"],
        "env": [{"name": "KEY", "value": "hunter23"}],
        "resources": {"limits": {"nvidia.com/gpu": "2"}},
    }
    manifest = build_job(workers=1000)
    manifest["spec"]["tfReplicaSpecs"]["Worker"]["template"] = build_template(**container)
    spec = GreenTrainingJobSpec.model_validate(manifest["spec"])
    counts = {"Worker": 1000}
    attempt = AttemptStatus(number=1, replicas=counts, spec_hash="abc", start_time="2026-01-01T00:00:00Z")
    whole = Pods(job_of(manifest), spec, attempt, ranks(counts))[999]
    whole["metadata"] |= {"uid": "u", "resourceVersion": "7", "managedFields": [{"manager": "x" * 9999}]}
    whole["spec"]["nodeName"] = "node-1"
    whole["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    cache = Cache()
    cache.put("Pod", whole)
    (kept,) = cache.owned("Pod", KEY, "uid-1")
    assert parse_pod(kept) == parse_pod(whole)
    assert (node_of(kept), find_pod_secrets([kept])) == (node_of(whole), find_pod_secrets([whole]))
    assert len(str(kept)) < 2_000 < 50_000 < len(str(whole))
