"""The cache keeps the newest word about each object, whatever order words arrive in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from greentrain.api.spec import GreenTrainingJobSpec, RunPolicy
from greentrain.api.status import AttemptStatus
from greentrain.core.admission import read_run_policy
from greentrain.core.gang.manifests import Pods, ranks
from greentrain.core.seen.pods import parse_pod
from greentrain.core.seen.snapshot import parse_job
from greentrain.kube.cache import REMEMBERED_DELETIONS, Cache, Key, Missed, node_of, slim
from greentrain.kube.gather import gather
from greentrain.kube.readings import NodePowers
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


def test_an_older_state_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put("Pod", body("Pod", "a", 5)) == KEY
    assert cache.put("Pod", body("Pod", "a", 4)) is None
    assert cache.put("Pod", body("Pod", "a", 5)) is None
    assert versions(cache) == ["5"]


def test_a_deleted_object_stays_deleted_but_its_last_state_is_kept() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "job", 1))
    cache.put("Pod", body("Pod", "a", 5, status={"phase": "Running"}))
    assert cache.drop("Pod", body("Pod", "a", 6, status={"phase": "Failed"})) == KEY
    assert cache.put("Pod", body("Pod", "a", 7)) is None, "a late answer to our own request"
    assert versions(cache) == []
    assert [b["status"]["phase"] for b in cache.last_states(KEY, "job")] == ["Failed"]
    cache.forget_last_states(KEY)
    assert cache.last_states(KEY, "job") == []


def test_of_a_rank_that_is_made_again_and_again_the_newest_last_state_is_kept() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "job", 1))
    for uid, version in (("a", 5), ("b", 9), ("c", 7)):
        gone = body("Pod", uid, version, status={"phase": uid})
        gone["metadata"]["name"] = "digits-worker-0-1"
        cache.drop("Pod", gone)
    assert [b["status"]["phase"] for b in cache.last_states(KEY, "job")] == ["b"]


@pytest.mark.parametrize("there", [None, "a job of the same name"])
def test_pods_that_go_after_their_job_leave_nothing(there: str | None) -> None:
    cache = Cache()
    for pod in ("before", "after"):
        cache.put("Pod", body("Pod", pod, 2, status={"phase": "Running"}))
    cache.put("Job", body("Job", "job", 1))
    cache.drop("Pod", body("Pod", "before", 3, status={"phase": "Failed"}))
    cache.drop("Job", body("Job", "job", 4))
    if there is not None:
        cache.put("Job", body("Job", there, 5))
    cache.drop("Pod", body("Pod", "after", 6, status={"phase": "Failed"}))
    assert cache.last_states(KEY, "job") == []


def bound(uid: str, version: int, node: str, owner: str = "job") -> dict[str, Any]:
    found = body("Pod", uid, version, spec={"nodeName": node} if node else {})
    found["metadata"]["ownerReferences"][0]["uid"] = owner
    found["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    return found


def nodes(cache: Cache, owner: str = "job") -> dict[str, str]:
    return {uid: binding.node for uid, binding in cache.bindings(KEY, owner).items()}


def test_it_knows_where_a_jobs_pods_are_and_were_until_the_job_is_gone() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "job", 1))
    for uid, node in (("a", "node-1"), ("b", "node-2"), ("c", "")):
        cache.put("Pod", bound(uid, 2, node))
    cache.put("Pod", bound("other", 2, "node-3", owner="another job"))
    assert nodes(cache) == {"a": "node-1", "b": "node-2", "c": ""}
    assert cache.bindings(KEY, "job")["a"].created == datetime(2026, 1, 1, tzinfo=UTC)
    cache.drop("Pod", bound("a", 3, "node-1"))
    cache.drop("Pod", bound("c", 3, "node-4"))  # its binding and its end came together
    cache.resync("Pod", [], 9)
    cache.forget_last_states(KEY)
    assert nodes(cache) == {"a": "node-1", "b": "node-2", "c": "node-4"}
    assert nodes(cache, "another job") == {"other": "node-3"}
    cache.drop("Job", body("Job", "job", 4))
    assert nodes(cache) == nodes(cache, "another job") == {}


def test_of_pods_that_are_gone_it_remembers_the_last_twenty_thousand() -> None:
    cache = Cache()
    for i in range(REMEMBERED_DELETIONS + 1):
        cache.drop("Pod", bound(str(i), 2, "node-1"))
    found = nodes(cache)
    assert (len(found), "0" in found, str(REMEMBERED_DELETIONS) in found) == (
        REMEMBERED_DELETIONS,
        False,
        True,
    )


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


def test_a_job_is_read_once_a_version_and_its_status_kept_once() -> None:
    cache = Cache()
    assert cache.parsed_job(KEY) is None
    cache.put("Job", {**body("Job", "a", 4), "spec": {"x": 1}, "status": {"phase": "Running"}})
    first = cache.parsed_job(KEY)
    assert first is not None
    assert (first.resource_version, first.spec, first.status.phase) == ("4", {"x": 1}, "Running")
    assert cache.parsed_job(KEY) is first
    kept = cache.job(KEY)
    assert kept is not None
    assert "status" not in kept
    # An older body, as a late event brings it, changes nothing.
    cache.put("Job", {**body("Job", "a", 3), "status": {"phase": "Pending"}})
    assert cache.parsed_job(KEY) is first
    cache.put("Job", {**body("Job", "a", 5), "status": {"phase": "Succeeded"}})
    second = cache.parsed_job(KEY)
    assert second is not None
    assert second.status.phase == "Succeeded"
    cache.drop("Job", body("Job", "a", 6))
    assert cache.parsed_job(KEY) is None


def test_a_status_that_cannot_be_read_is_kept_as_it_is_stored() -> None:
    cache = Cache()
    stored = {"energy": {"usedJoules": "many"}, "conditions": []}
    cache.put("Job", {**body("Job", "a", 4), "status": stored})
    job, kept = cache.parsed_job(KEY), cache.job(KEY)
    assert job is not None
    assert kept is not None
    assert job.unreadable
    assert kept["status"] is stored


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


def pod_of(uid: str, role: str, attempt: int, value: str) -> dict[str, Any]:
    env = [{"name": f"A{i}", "value": f"{value}{i}"} for i in range(50)]
    pod = body("Pod", uid, 5, spec={"containers": [{"name": "tensorflow", "env": env}]})
    labels = {"greentrain.dev/replica-type": role, "greentrain.dev/attempt": str(attempt), "theirs": "x"}
    pod["metadata"]["labels"] |= labels
    pod["metadata"]["annotations"] = {"theirs": "x", "greentrain.dev/spec-hash": "abc"}
    return pod


def test_pods_that_are_alike_share_what_was_in_their_template_and_the_others_keep_their_own() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "job", 1))
    for pod in (
        pod_of("a", "Worker", 1, "v"),
        pod_of("b", "Worker", 1, "v"),
        pod_of("c", "Worker", 1, "changed on its way"),
        pod_of("d", "Chief", 1, "v"),
        pod_of("e", "Worker", 2, "w"),
        pod_of("f", "Worker", 1, "changed on its way"),
    ):
        cache.put("Pod", pod)
    kept = {b["metadata"]["uid"]: b for b in cache.owned("Pod", KEY, "job")}
    first = kept["a"]["spec"]["containers"]
    assert kept["b"]["spec"]["containers"] is first
    values = {uid: b["spec"]["containers"][0]["env"][7]["value"] for uid, b in kept.items()}
    assert values == {
        "a": "v7",
        "b": "v7",
        "c": "changed on its way7",
        "d": "v7",
        "e": "w7",
        "f": values["c"],
    }
    assert kept["a"]["metadata"]["annotations"] == {"greentrain.dev/spec-hash": "abc"}
    assert "theirs" not in kept["a"]["metadata"]["labels"]
    cache.drop("Pod", pod_of("b", "Worker", 1, "v") | {"status": {}})
    (gone,) = cache.last_states(KEY, "job")
    assert gone["spec"]["containers"] is first


LISTS: list[list[Any]] = [[] for _ in range(20_001)]
MANY = "spec: holds more than 20000 values"


@pytest.mark.parametrize(
    ("spec", "meta", "kept", "words"),
    [
        ({"notes": LISTS}, {}, {}, MANY),
        (
            {"notes": LISTS, "runPolicy": {"suspend": True, "x": 1}, "checkpoint": {"path": "a"}},
            {},
            {"runPolicy": {"suspend": True}, "checkpoint": {"volume": "too large"}},
            MANY,
        ),
        (
            {"runPolicy": {"schedulingPolicy": LISTS, "backoffLimit": 2}},
            {},
            {"runPolicy": {"schedulingPolicy": "too large", "backoffLimit": 2}},
            MANY,
        ),
        ({"runPolicy": LISTS}, {}, {"runPolicy": "too large"}, MANY),
        ({"notes": ["x" * 600_000]}, {}, {}, "spec: is 586"),
        ({"energy": {}}, {"finalizers": ["x" * 600_000]}, {}, "metadata: is 586"),
    ],
    ids=["unknown", "policy", "inside a policy", "as a policy", "text", "metadata"],
)
def test_of_a_job_that_is_too_large_it_keeps_why_and_what_is_still_asked_of_it(
    spec: dict[str, Any], meta: dict[str, Any], kept: dict[str, Any], words: str
) -> None:
    job = body("Job", "u", 3, spec=spec, status={"phase": "Running"})
    job["metadata"] |= meta
    cache = Cache()
    cache.put("Job", job)
    found = cache.job(KEY)
    assert found is not None
    assert (found["spec"], found["status"]) == (kept, {"phase": "Running"})
    assert len(str(found)) < 1_000
    (problem,) = parse_job(found).barrier or ()
    assert f"{problem.path}: {problem.message}".startswith(words)
    read = read_run_policy(kept.get("runPolicy"), RunPolicy(backoff_limit=7))
    assert read == read_run_policy(spec.get("runPolicy"), RunPolicy(backoff_limit=7))
    assert slim("Job", found) == found


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        ({"spec": {"energy": {"budget": "1kWh"}}}, "shared"),
        ({"spec": {"energy": {"budget": "2kWh"}}}, "as it came"),
        ({"spec": {"energy": {"budget": "1kWh"}, "notes": LISTS}}, "too large"),
        ({}, "as it came"),
    ],
    ids=["unchanged", "edited", "too large now", "removed"],
)
def test_a_spec_that_has_not_changed_is_kept_once_and_any_other_is_checked(
    second: dict[str, Any], kept: str
) -> None:
    cache = Cache()
    cache.put("Job", body("Job", "u", 3, spec={"energy": {"budget": "1kWh"}}))
    before = cache.parsed_job(KEY)
    cache.put("Job", body("Job", "u", 4, **second))
    after = cache.parsed_job(KEY)
    assert before is not None
    assert after is not None
    assert (after.spec is before.spec) is (kept == "shared")
    assert bool(after.barrier) is (kept == "too large")
    cache.put("Job", body("Job", "u", 5, spec={"energy": {"budget": "1kWh"}}))
    again = cache.parsed_job(KEY)
    assert again is not None
    assert (again.spec, again.barrier) == (before.spec, ())


def test_what_a_spec_requests_beyond_baseline_is_found_again_for_each_generation() -> None:
    cache, node_powers = Cache(), NodePowers(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    found = []
    for generation, spec in enumerate(({"hostPID": True}, {}, {"hostPID": True}), 1):
        job = body("Job", "u", generation, spec={"tfReplicaSpecs": {"Worker": {"template": {"spec": spec}}}})
        job["metadata"]["generation"] = generation
        cache.put("Job", job)
        seen = gather(cache, node_powers, KEY)
        assert seen is not None
        found.append(seen.beyond_baseline)
    assert found == [True, False, True]


def test_a_late_deletion_of_an_earlier_job_of_the_name_leaves_what_was_read_of_the_new_one() -> None:
    cache = Cache()
    cache.put("Job", body("Job", "old", 4))
    cache.put("Job", {**body("Job", "new", 6), "status": {"phase": "Running"}})
    read = cache.parsed_job(KEY)
    assert read is not None
    cache.drop("Job", body("Job", "old", 5))
    assert cache.parsed_job(KEY) is read
    assert read.status.phase == "Running"
