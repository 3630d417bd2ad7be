"""The operator's lease: made, renewed, taken over, and left alone when the operator is not well."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greentrain.api.lease import OPERATOR_SILENT_SECONDS, RENEW_SECONDS
from greentrain.api.names import ANNOTATION_UNATTENDED
from greentrain.controller.heartbeat import (
    DURATION_SECONDS,
    MOST_UNATTENDED,
    Heartbeat,
    format_micro_time,
)
from greentrain.kube.client import ApiError

Json = dict[str, Any]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NOT_FOUND = ApiError(404, "NotFound", "no such lease")
CONFLICT = ApiError(409, "Conflict", "it was written since")


@dataclass
class Server:
    """One Lease as the API server has it."""

    lease: Json | None = None
    version: int = 1
    failures: list[Exception] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)

    async def read_lease(self, namespace: str, name: str) -> Json:
        self._note(f"get {namespace}/{name}")
        if self.lease is None:
            raise NOT_FOUND
        return self.lease

    async def create_lease(
        self, namespace: str, name: str, spec: Mapping[str, Any], annotations: Mapping[str, str]
    ) -> Json:
        self._note(f"create {namespace}/{name}")
        meta = {"resourceVersion": self.version, "annotations": dict(annotations)}
        self.lease = {"metadata": meta, "spec": dict(spec)}
        return self.lease

    async def renew_lease(
        self, lease: Mapping[str, Any], spec: Mapping[str, Any], annotations: Mapping[str, str]
    ) -> Json:
        self._note("update")
        if self.lease is None:
            raise NOT_FOUND
        if lease["metadata"]["resourceVersion"] != self.version:
            raise CONFLICT
        self.version += 1
        meta = {"resourceVersion": self.version, "annotations": dict(annotations)}
        self.lease = {"metadata": meta, "spec": dict(spec)}
        return self.lease


@dataclass
class Beating:
    """What a heartbeat asks its operator."""

    server: Server
    seconds: float = 0.0
    problem: str | None = None
    unattended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(
            self.server,
            ("greentrain", "operator"),
            identity="operator-0",
            clock=lambda: BEGIN + timedelta(seconds=self.seconds),
            unhealthy=lambda: self.problem,
            unattended=lambda: self.unattended,
        )

    @property
    def named(self) -> str | None:
        """The jobs that the last renewal names."""
        assert self.server.lease is not None
        found: str | None = self.server.lease["metadata"]["annotations"].get(ANNOTATION_UNATTENDED)
        return found

    async def beat(self) -> bool:
        self.seconds += 10
        return await self.heartbeat.beat()


def spec_at(seconds: float, *, acquired: float, transitions: int = 0) -> Json:
    return {
        "holderIdentity": "operator-0",
        "leaseDurationSeconds": DURATION_SECONDS,
        "renewTime": format_micro_time(BEGIN + timedelta(seconds=seconds)),
        "acquireTime": format_micro_time(BEGIN + timedelta(seconds=acquired)),
        "leaseTransitions": transitions,
    }


def test_three_renewals_fit_into_the_silence_after_which_agents_act() -> None:
    assert 3 * RENEW_SECONDS <= OPERATOR_SILENT_SECONDS == DURATION_SECONDS


async def test_a_missing_lease_is_made_and_then_renewed_with_one_call_each() -> None:
    operator = Beating(Server())
    assert [await operator.beat() for _ in range(3)] == [True] * 3
    assert operator.server.calls == [
        "get greentrain/operator",
        "create greentrain/operator",
        "update",
        "update",
    ]
    assert operator.server.lease is not None
    assert operator.server.lease["spec"] == spec_at(30, acquired=10)
    assert operator.server.lease["spec"]["renewTime"] == "2026-01-01T00:00:30.000000Z"


async def test_a_lease_of_the_operator_before_is_taken_over() -> None:
    before = {"holderIdentity": "operator-before", "leaseTransitions": 4, "renewTime": "long ago"}
    operator = Beating(Server({"metadata": {"resourceVersion": 1}, "spec": before}))
    assert await operator.beat()
    assert operator.server.lease is not None
    assert operator.server.lease["spec"] == spec_at(10, acquired=10, transitions=5)


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ("deleted", ["update", "get greentrain/operator", "create greentrain/operator"]),
        ("written", ["update", "get greentrain/operator", "update"]),
    ],
)
async def test_what_somebody_else_does_to_it_is_made_good_at_once(change: str, calls: list[str]) -> None:
    server = Server()
    operator = Beating(server)
    await operator.beat()
    if change == "deleted":
        server.lease = None
    else:
        server.version += 1
        server.lease = {"metadata": {"resourceVersion": server.version}, "spec": {}}
    server.calls.clear()
    assert await operator.beat()
    assert server.calls == calls
    assert server.lease is not None
    assert server.lease["spec"]["renewTime"] == format_micro_time(BEGIN + timedelta(seconds=20))


@pytest.mark.parametrize(
    "failure",
    [ApiError(403, "Forbidden", "no"), TimeoutError(), OSError("away")],
    ids=lambda e: type(e).__name__,
)
async def test_a_failure_ends_nothing_and_is_told_once(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    operator = Beating(Server(failures=[failure] * 3))
    with caplog.at_level(logging.INFO, "greentrain.controller"):
        assert [await operator.beat() for _ in range(5)] == [False] * 3 + [True] * 2
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2
    assert "is not renewed" in told[0]
    assert "agents enforce spent allowances" in told[0]
    assert "is renewed again" in told[1]


@pytest.mark.parametrize("status", [403, 410, 422, 429, 500, 503, 504])
async def test_a_renewal_that_is_refused_is_none_and_the_next_one_looks_anew(status: int) -> None:
    server = Server()
    operator = Beating(server)
    await operator.beat()
    server.calls.clear()
    server.failures.append(ApiError(status, "Refused", "no"))
    assert [await operator.beat(), await operator.beat()] == [False, True]
    assert server.calls == ["update", "get greentrain/operator", "update"]


async def test_an_operator_that_is_not_well_does_not_renew() -> None:
    operator = Beating(Server())
    assert await operator.beat()
    operator.problem = "a pass has been running for 700 s"
    assert not await operator.beat()
    assert operator.server.calls[2:] == []
    operator.problem = None
    assert await operator.beat()


async def test_a_renewal_names_the_jobs_whose_passes_fail_and_leaves_other_annotations() -> None:
    operator = Beating(Server())
    operator.unattended = ("uid-2", "uid-1", "uid-2")
    await operator.beat()
    assert operator.named == "uid-1,uid-2"
    assert operator.server.lease is not None
    operator.server.lease["metadata"]["annotations"]["a-person"] = "wrote this"
    await operator.beat()
    operator.unattended = ()
    await operator.beat()
    assert operator.server.lease["metadata"]["annotations"] == {"a-person": "wrote this"}


async def test_an_operator_that_fails_at_more_jobs_than_it_can_name_does_not_renew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    operator = Beating(Server())
    operator.unattended = tuple(f"uid-{i}" for i in range(MOST_UNATTENDED))
    assert await operator.beat()
    operator.unattended += ("one more",)
    assert not await operator.beat()
    assert f"the passes over {MOST_UNATTENDED + 1} jobs fail" in caplog.text
