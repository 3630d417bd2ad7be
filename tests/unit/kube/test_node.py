"""What an agent reads out of its NodePower and its Node."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from greentrain.kube.node import (
    Place,
    find_allowances,
    find_caps,
    find_pause,
    find_place,
    one_by_one,
    parse_asks,
    parse_node_pod,
)
from greentrain.node.allowance import Allowance
from greentrain.quantities import Joules, Milliwatts, PowerCap

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        (None, {}),
        ([], {}),
        ([{"uid": "a", "capMilliwatts": 250_000}], {"a": PowerCap(milliwatts=Milliwatts(250_000))}),
        ([{"uid": "a", "capPercent": 70}], {"a": PowerCap(percent=70)}),
        (
            [{"uid": "a", "namespace": "team", "name": "p", "capMilliwatts": 1, "action": "newer"}],
            {"a": PowerCap(milliwatts=Milliwatts(1))},
        ),
        (
            [{"uid": "a", "capMilliwatts": 250_000, "capPercent": 70}],
            {"a": PowerCap(milliwatts=Milliwatts(250_000))},
        ),
        ([{"uid": "a"}], {}),
        ([{"uid": "a", "capMilliwatts": None, "capPercent": None}], {}),
        (
            [{"uid": "a", "capPercent": 70}, {"uid": "b", "capMilliwatts": 200_000}],
            {"a": PowerCap(percent=70), "b": PowerCap(milliwatts=Milliwatts(200_000))},
        ),
    ],
)
def test_what_is_asked_is_read_by_the_pods_uid(
    pods: list[Json] | None, expected: dict[str, PowerCap], caplog: pytest.LogCaptureFixture
) -> None:
    assert find_caps(parse_asks({} if pods is None else {"pods": pods})) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    "entry",
    [
        {"capMilliwatts": 250_000},
        {"uid": "b", "capMilliwatts": 0},
        {"uid": "b", "capMilliwatts": -5},
        {"uid": "b", "capPercent": 101},
        {"uid": "b", "capMilliwatts": "much"},
        {"uid": "x" * 65, "capMilliwatts": 250_000},
        "250W",
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_read_asks_for_nothing_and_the_others_hold(
    entry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "greentrain.agent"):
        asks = parse_asks({"pods": [entry, {"uid": "a", "capPercent": 70}]})
    assert find_caps(asks) == {"a": PowerCap(percent=70)}
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"capPercent": 70}, {}),
        ({"allowanceJoules": None}, {}),
        ({"allowanceJoules": 0}, {"a": Allowance(Joules(0), "GPU")}),
        ({"allowanceJoules": 5000, "grantedJoules": 9000}, {"a": Allowance(Joules(5000), "GPU")}),
        (
            {"allowanceJoules": 5000, "allowanceScope": "Node", "capPercent": 70},
            {"a": Allowance(Joules(5000), "Node")},
        ),
        ({"allowanceJoules": 5000, "allowanceSeconds": 900}, {"a": Allowance(Joules(5000), seconds=900)}),
    ],
    ids=str,
)
def test_an_allowance_is_read_beside_a_cap_or_without_one(
    entry: Json, expected: dict[str, Allowance]
) -> None:
    assert find_allowances(parse_asks({"pods": [{"uid": "a", **entry}]})) == expected


@pytest.mark.parametrize(
    ("annotation", "owned", "budgeted"),
    [("true", True, True), ("false", True, False), (None, True, False), ("true", False, False)],
)
def test_a_pod_is_budgeted_by_its_annotation_where_it_is_a_jobs(
    annotation: str | None, owned: bool, budgeted: bool
) -> None:
    owner = {"kind": "GreenTrainingJob", "apiVersion": "greentrain.dev/v1alpha1", "name": "j", "uid": "u"}
    meta: Json = {"namespace": "team", "name": "p", "uid": "a"}
    if owned:
        meta["ownerReferences"] = [{**owner, "controller": True}]
    if annotation is not None:
        meta["annotations"] = {"greentrain.dev/budgeted": annotation}
    assert parse_node_pod({"metadata": meta}).budgeted is budgeted


DCGM = "nvidia.com/gpu.deploy.dcgm-exporter"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, None),
        ({}, None),
        ({"nvidia.com/gpu.deploy.driver": "true"}, None),
        ({"nvidia.com/gpu.deploy.driver": "false"}, None),
        ({"nvidia.com/gpu.present": "paused"}, None),
        ({"example.com/gpu.deploy.driver": "paused-for-driver-upgrade"}, None),
        (
            {"nvidia.com/gpu.deploy.driver": "paused-for-driver-upgrade"},
            "the node's label nvidia.com/gpu.deploy.driver is paused-for-driver-upgrade: its driver is being replaced.",
        ),
        (
            {
                DCGM: "paused-for-driver-upgrade",
                "nvidia.com/gpu.deploy.a": "true",
            },
            f"the node's label {DCGM} is paused-for-driver-upgrade: its driver is being replaced.",
        ),
        (
            {"nvidia.com/gpu.deploy.z": "paused", "nvidia.com/gpu.deploy.device-plugin": "paused-for-x"},
            "the node's label nvidia.com/gpu.deploy.device-plugin is paused-for-x: its driver is being replaced.",
        ),
    ],
)
def test_a_node_whose_driver_is_being_replaced_says_so_by_its_labels(
    labels: dict[str, str] | None, told: str | None
) -> None:
    metadata: Json = {"name": "node-1"}
    if labels is not None:
        metadata["labels"] = labels
    assert find_pause({"metadata": metadata}) == told


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, Place()),
        ({"kubernetes.io/hostname": "node-1"}, Place()),
        (
            {
                "topology.kubernetes.io/region": "eu-central-1",
                "topology.kubernetes.io/zone": "eu-central-1a",
            },
            Place("eu-central-1", "eu-central-1a"),
        ),
        ({"topology.kubernetes.io/zone": "rack-7"}, Place("", "rack-7")),
        ({"topology.kubernetes.io/region": "", "topology.kubernetes.io/zone": None}, Place()),
        ({"topology.kubernetes.io/region": "r" * 70}, Place("r" * 63)),
    ],
    ids=["no labels", "others", "a cloud's", "a zone alone", "empty ones", "one too long"],
)
def test_a_node_says_by_its_labels_where_its_power_comes_from(
    labels: dict[str, str | None] | None, told: Place
) -> None:
    metadata: Json = {"name": "node-1"}
    if labels is not None:
        metadata["labels"] = labels
    assert find_place({"metadata": metadata}) == told


@pytest.mark.parametrize("odd", ["0000-01-01T00:00:00Z", "2026-01-01T00:00:60Z"])
def test_a_container_whose_time_python_has_no_day_for_leaves_its_pod_known(odd: str) -> None:
    good = "2026-01-01T00:00:07Z"
    statuses = [{"state": {"running": {"startedAt": moment}}} for moment in (odd, good)]
    meta = {"namespace": "team", "name": "p", "uid": "u"}
    pod = parse_node_pod({"metadata": meta, "status": {"containerStatuses": statuses}})
    assert pod.began == 1767225607.0


def test_an_object_that_cannot_be_read_is_told_and_the_others_are_taken_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[str] = []
    take = one_by_one(lambda body: taken.append(body["metadata"]["labels"]["a"]))
    for labels in ({"a": "1"}, None, {}, {"a": "2"}):
        take({"kind": "Pod", "metadata": {"name": "p", "labels": labels}})
    assert taken == ["1", "2"]
    assert [r.getMessage()[:35] for r in caplog.records] == ["Pod p cannot be read and is left out"[:35]] * 2
