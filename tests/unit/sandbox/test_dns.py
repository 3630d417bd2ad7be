"""The cluster's names follow Services and Endpoints as Kubernetes' DNS specification says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.api import ApiError
from sandbox.dns import apply_event, build_dnsmasq_command, build_hosts, build_names, catches, reload
from sandbox.state import Program, read_boot_id, read_start_time


def _service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": name}, "spec": spec}


def _endpoints(*subsets: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": "job"}, "subsets": list(subsets)}


READY = {"ip": "198.18.1.5", "hostname": "job-worker-0"}
NOT_READY = {"ip": "198.18.1.6", "hostname": "job-worker-1"}


@pytest.mark.parametrize(
    ("why", "service", "endpoints", "names"),
    [
        (
            "a Service with an address has that under its name, whatever its endpoints",
            _service("job", clusterIP="198.19.1.1"),
            _endpoints({"addresses": [READY]}),
            {("198.19.1.1", "job.team.svc")},
        ),
        (
            "a headless one has each ready pod under its own name and the pod's",
            _service("job", clusterIP="None"),
            _endpoints({"addresses": [READY], "notReadyAddresses": [NOT_READY]}),
            {("198.18.1.5", "job.team.svc"), ("198.18.1.5", "job-worker-0.job.team.svc")},
        ),
        (
            "pods that are not ready only when it publishes them",
            _service("job", clusterIP="None", publishNotReadyAddresses=True),
            _endpoints({"notReadyAddresses": [NOT_READY]}),
            {("198.18.1.6", "job.team.svc"), ("198.18.1.6", "job-worker-1.job.team.svc")},
        ),
        (
            "a pod without a hostname only under the Service's",
            _service("job", clusterIP="None"),
            _endpoints({"addresses": [{"ip": "198.18.1.7"}]}),
            {("198.18.1.7", "job.team.svc")},
        ),
        ("a headless one without endpoints has none", _service("job", clusterIP="None"), None, set()),
        (
            "empty subsets have none",
            _service("job", clusterIP="None"),
            {"metadata": {}, "subsets": None},
            set(),
        ),
        (
            "an external name has no address here",
            _service("job", type="ExternalName", externalName="x.example"),
            _endpoints({"addresses": [READY]}),
            set(),
        ),
    ],
)
def test_a_service_stands_for_these_names(
    why: str, service: dict[str, Any], endpoints: dict[str, Any] | None, names: set[tuple[str, str]]
) -> None:
    assert build_names(service, endpoints) == names, why


def test_each_name_is_served_with_and_without_the_clusters_domain_in_a_fixed_order() -> None:
    services = {
        ("team", "web"): _service("web", clusterIP="198.19.1.1"),
        ("team", "job"): _service("job", clusterIP="None"),
    }
    endpoints = {("team", "job"): _endpoints({"addresses": [READY]}), ("team", "gone"): _endpoints()}
    assert build_hosts(services, endpoints) == (
        "198.18.1.5 job-worker-0.job.team.svc.cluster.local job-worker-0.job.team.svc\n"
        "198.18.1.5 job.team.svc.cluster.local job.team.svc\n"
        "198.19.1.1 web.team.svc.cluster.local web.team.svc\n"
    )
    assert build_hosts(dict(reversed(services.items())), endpoints) == build_hosts(services, endpoints)


def _event(kind: str, version: str, name: str = "job") -> dict[str, Any]:
    return {
        "type": kind,
        "object": {"metadata": {"namespace": "team", "name": name, "resourceVersion": version}},
    }


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([_event("ADDED", "1")], {("team", "job")}),
        ([_event("ADDED", "1"), _event("MODIFIED", "2")], {("team", "job")}),
        ([_event("ADDED", "1"), _event("DELETED", "2")], set()),
        ([_event("DELETED", "1")], set()),
        ([_event("ADDED", "1"), _event("ADDED", "2", "other")], {("team", "job"), ("team", "other")}),
    ],
)
def test_watch_events_keep_the_copy(events: list[dict[str, Any]], left: set[tuple[str, str]]) -> None:
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    versions = [apply_event(objects, event) for event in events]
    assert set(objects) == left
    assert versions[-1] == events[-1]["object"]["metadata"]["resourceVersion"]


def test_a_bookmark_only_moves_the_version() -> None:
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "77"}}}
    assert apply_event(objects, bookmark) == "77"
    assert objects == {}


def test_a_watch_that_is_too_old_asks_for_a_new_list() -> None:
    with pytest.raises(ApiError, match="too old resource version") as caught:
        apply_event({}, {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})
    assert caught.value.status == 410


def test_dnsmasq_answers_for_the_cluster_alone() -> None:
    command = build_dnsmasq_command(Path("/s/hosts"))
    assert {"--no-resolv", "--no-hosts", "--local=/svc/", "--local=/cluster.local/"} <= set(command)
    assert "--addn-hosts=/s/hosts" in command


SLOW_STARTER = """
import signal, sys, time
time.sleep(0.3)
signal.signal(signal.SIGHUP, lambda *_: sys.exit(7))
time.sleep(30)
"""


def test_a_server_that_has_just_been_started_is_not_ended_by_being_told_to_read_its_names_anew() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_STARTER]) as child:
        server = Program(child.pid, read_start_time(child.pid) or 0, read_boot_id())
        reload(server)
        assert child.wait(10) == 7, "not by the signal, but by its own handler"
    reload(server)  # it has ended: nothing to tell


def test_a_handler_is_seen() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert catches(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not catches(os.getpid(), signal.SIGPWR)
    assert not catches(2**22 + 1, signal.SIGINT)
