"""Caps as the operator sees them: what it asks of agents, and what it says of what they told."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import get_args

import pytest

from greentrain.api.conditions import ConditionStatus
from greentrain.api.nodepower import IN_FORCE, CapReason, GpuCap, GpuStatus, PodAsk, PodEnergy, PowerLimits
from greentrain.api.reasons import Reason
from greentrain.api.status import PowerStatus
from greentrain.core.asks import NO_CAP, PodTerms, decide_asks
from greentrain.core.power.capped import judge_cap
from greentrain.core.seen.nodes import SILENT_AFTER, NodeReport
from greentrain.core.seen.pods import Pod
from greentrain.quantities import parse_power_cap
from tests.support.snapshots import at, pod

# -- what is asked ---------------------------------------------------------------------------------------


def asked(
    name: str, namespace: str = "team", *, watts: int | None = None, percent: int | None = None
) -> PodAsk:
    cap = None if watts is None else watts * 1000
    return PodAsk(uid=f"uid-{name}", namespace=namespace, name=name, cap_milliwatts=cap, cap_percent=percent)


def wants(name: str, cap: str | None, namespace: str = "team") -> PodTerms:
    known = parse_power_cap(cap) if cap else NO_CAP
    return PodTerms(namespace, name, f"uid-{name}", None if cap is None else known)


@pytest.mark.parametrize(
    ("known", "pods", "expected"),
    [
        ((), (), ()),
        ((), (wants("a", "250W"),), (asked("a", watts=250),)),
        ((), (wants("a", "70%"),), (asked("a", percent=70),)),
        ((), (wants("a", "0.25kW"),), (asked("a", watts=250),)),
        ((), (wants("a", ""),), ()),
        ((), (wants("b", "250W"), wants("a", "200W")), (asked("a", watts=200), asked("b", watts=250))),
        ((asked("a", watts=250),), (wants("a", "200W"),), (asked("a", watts=200),)),
        ((asked("a", watts=250),), (wants("a", "70%"),), (asked("a", percent=70),)),
        ((asked("a", watts=250),), (wants("a", ""),), ()),
        # Its job is gone, and the pod is not yet: what was asked goes on being asked.
        ((asked("a", watts=250),), (wants("a", None),), (asked("a", watts=250),)),
        ((), (wants("a", None),), ()),
        # The pod is gone.
        ((asked("a", watts=250),), (), ()),
        ((asked("a", watts=250), asked("b", watts=200)), (wants("b", "200W"),), (asked("b", watts=200),)),
        # Another operator's.
        ((asked("x", "others", watts=250),), (), (asked("x", "others", watts=250),)),
        (
            (asked("x", "others", watts=250),),
            (wants("a", "200W"),),
            (asked("a", watts=200), asked("x", "others", watts=250)),
        ),
    ],
)
def test_each_pod_that_lives_is_asked_for_what_its_jobs_stored_status_says(
    known: tuple[PodAsk, ...], pods: tuple[PodTerms, ...], expected: tuple[PodAsk, ...]
) -> None:
    found = decide_asks(known, pods, is_ours=lambda namespace: namespace == "team")
    assert found == expected
    # Done again nothing changes, in whatever order pods are told.
    for order in permutations(pods):
        assert decide_asks(found, order, is_ours=lambda namespace: namespace == "team") == found


# -- what has become of it -------------------------------------------------------------------------------

LIMITS = PowerLimits(
    min_milliwatts=100_000,
    default_milliwatts=300_000,
    max_milliwatts=300_000,
    set_milliwatts=200_000,
    enforced_milliwatts=200_000,
)


def gpu(
    uuid: str,
    holder: Pod,
    reason: CapReason = "Capped",
    *,
    milliwatts: int | None = 200_000,
    limits: PowerLimits = LIMITS,
    binding: bool | None = None,
) -> GpuStatus:
    cap = GpuCap(
        pod_uid=holder.uid, asked_milliwatts=milliwatts, reason=reason, message="so it is", binding=binding
    )
    return GpuStatus(uuid=uuid, limits=limits, cap=cap)


def report(*gpus: GpuStatus, node: str = "node-1", second: float = 100, pods: tuple[Pod, ...]) -> NodeReport:
    entries = tuple(PodEnergy(uid=p.uid, namespace="team", name=p.name) for p in pods)
    return NodeReport(node, at(second), entries, gpus=gpus)


ONE = pod(0, node="node-1", gpus=1)
OTHER = pod(1, node="node-2", gpus=1)
SERVED: tuple[CapReason, ...] = ("Capped", "Clamped", "PreviousLower")


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("Capped", "True"),
        ("Clamped", "True"),
        ("PreviousLower", "True"),
        ("Applying", "False"),
        ("Contested", "False"),
        ("DryRun", "False"),
        ("MigMode", "False"),
        ("Shared", "False"),
        ("Unsupported", "False"),
        ("NotPermitted", "False"),
        ("OutOfRange", "False"),
        ("NoJournal", "False"),
        ("GpuLost", "False"),
        ("GpuFailing", "False"),
        ("Paused", "False"),
    ],
)
def test_the_agents_reason_is_the_jobs(reason: CapReason, value: ConditionStatus) -> None:
    found = judge_cap("200W", [ONE], [report(gpu("GPU-a", ONE, reason), pods=(ONE,))], now=at(110))
    assert (found.value, found.reason) == (value, Reason(reason))
    where = "GPU GPU-a of pod digits-worker-0-1 on node node-1: so it is"
    in_force = {"Capped": "1 of 1 GPUs are capped at 200W"}.get(
        reason, f"1 of 1 GPUs are capped at 200W; {where}"
    )
    assert found.message == (in_force if reason in IN_FORCE else where)
    assert (found.status.gpus, found.status.gpus_capped) == (1, int(reason in IN_FORCE))
    assert (reason in IN_FORCE) == (reason in SERVED)


@pytest.mark.parametrize(
    ("reports", "value", "reason", "words"),
    [
        ((), "Unknown", Reason.NO_AGENT, "the agent on node node-1 has not reported pod digits-worker-0-1"),
        (
            (report(node="node-9", pods=(ONE,)),),
            "Unknown",
            Reason.NO_AGENT,
            "the agent on node node-1 has not reported pod digits-worker-0-1",
        ),
        ((report(pods=(OTHER,)),), "Unknown", Reason.NO_AGENT, "has not reported pod digits-worker-0-1"),
        (
            (report(gpu("GPU-a", ONE), pods=(ONE,), second=110 - SILENT_AFTER.seconds),),
            "Unknown",
            Reason.READINGS_STOPPED,
            "node node-1 does not report for 95 s (kubectl describe nodepower node-1)",
        ),
        (
            (report(gpu("GPU-a", ONE), pods=(ONE,), second=111 - SILENT_AFTER.seconds),),
            "True",
            Reason.CAPPED,
            "",
        ),
        (
            (report(pods=(ONE,)),),
            "False",
            Reason.APPLYING,
            "the agent on node node-1 has taken up 0 of the 1 GPUs of pod digits-worker-0-1",
        ),
        (
            (report(gpu("GPU-a", OTHER), pods=(ONE,)),),
            "False",
            Reason.APPLYING,
            "has taken up 0 of the 1 GPUs",
        ),
    ],
)
def test_what_no_agent_tells_of_is_not_called_capped(
    reports: tuple[NodeReport, ...], value: ConditionStatus, reason: Reason, words: str
) -> None:
    found = judge_cap("200W", [ONE], reports, now=at(110))
    assert (found.value, found.reason) == (value, reason)
    assert words in found.message


@pytest.mark.parametrize(
    ("cap", "milliwatts", "default", "reason"),
    [
        ("200W", 200_000, 300_000, Reason.CAPPED),
        ("250W", 200_000, 300_000, Reason.APPLYING),
        ("70%", 210_000, 300_000, Reason.CAPPED),
        ("70%", 200_000, 300_000, Reason.APPLYING),
        # What 70 % are is not known, and what the agent says of it holds.
        ("70%", 200_000, None, Reason.CAPPED),
        ("200W", None, 300_000, Reason.CAPPED),
    ],
)
def test_an_edit_that_the_agent_has_not_taken_up_is_on_its_way(
    cap: str, milliwatts: int | None, default: int | None, reason: Reason
) -> None:
    limits = LIMITS.model_copy(update={"default_milliwatts": default})
    one = gpu("GPU-a", ONE, milliwatts=milliwatts, limits=limits)
    found = judge_cap(cap, [ONE], [report(one, pods=(ONE,))], now=at(110))
    assert found.reason == reason
    assert found.status.gpus_capped == (1 if reason == Reason.CAPPED else 0)
    if reason == Reason.APPLYING:
        assert f"the change to {cap} is on its way" in found.message


@pytest.mark.parametrize(
    ("reasons", "told", "capped"),
    [
        (("Capped", "Capped"), "Capped", 2),
        (("Capped", "PreviousLower"), "PreviousLower", 2),
        (("Clamped", "PreviousLower"), "Clamped", 2),
        (("Clamped", "Applying"), "Applying", 1),
        (("Applying", "Contested"), "Contested", 0),
        (("Capped", "GpuLost"), "GpuLost", 1),
    ],
)
def test_of_several_gpus_the_worst_is_told_and_how_many_are_capped(
    reasons: tuple[CapReason, ...], told: CapReason, capped: int
) -> None:
    both = pod(0, node="node-1", gpus=2)
    for order in permutations(reasons):
        gpus = [gpu(f"GPU-{n}", both, reason) for n, reason in enumerate(order)]
        found = judge_cap("200W", [both], [report(*gpus, pods=(both,))], now=at(110))
        assert (found.reason, found.status.gpus, found.status.gpus_capped) == (Reason(told), 2, capped)
        number = order.index(told)
        assert told == "Capped" or f"GPU GPU-{number} of pod" in found.message


@pytest.mark.parametrize(
    ("other", "value", "reason", "capped"),
    [
        (report(gpu("GPU-b", OTHER), node="node-2", pods=(OTHER,)), "True", Reason.CAPPED, 2),
        (report(gpu("GPU-b", OTHER, "Paused"), node="node-2", pods=(OTHER,)), "False", Reason.PAUSED, 1),
        (report(node="node-2", pods=(OTHER,)), "False", Reason.APPLYING, 1),
        (report(node="node-2", pods=()), "Unknown", Reason.NO_AGENT, 1),
        (
            report(gpu("GPU-b", OTHER), node="node-2", pods=(OTHER,), second=0),
            "Unknown",
            Reason.READINGS_STOPPED,
            1,
        ),
    ],
)
def test_a_job_on_two_nodes_is_capped_where_both_are(
    other: NodeReport, value: ConditionStatus, reason: Reason, capped: int
) -> None:
    first = report(gpu("GPU-a", ONE), pods=(ONE,))
    found = judge_cap("200W", [ONE, OTHER], [first, other], now=at(110))
    assert (found.value, found.reason) == (value, reason)
    assert (found.status.gpus, found.status.gpus_capped) == (2, capped)


def test_the_highest_of_its_gpus_is_told_and_how_many_are_slowed_down() -> None:
    both = pod(0, node="node-1", gpus=3)
    higher = replace_limits(set_milliwatts=210_000, enforced_milliwatts=150_000)
    unknown = replace_limits(set_milliwatts=None, enforced_milliwatts=None)
    gpus = [
        gpu("GPU-a", both, binding=True),
        gpu("GPU-b", both, limits=higher, binding=False),
        gpu("GPU-c", both, "Unsupported", milliwatts=None, limits=unknown),
    ]
    status = judge_cap("200W", [both], [report(*gpus, pods=(both,))], now=at(110)).status
    assert (status.cap, status.asked_milliwatts) == ("200W", 200_000)
    assert (status.set_milliwatts, status.enforced_milliwatts) == (210_000, 200_000)
    assert (status.gpus, status.gpus_capped, status.gpus_binding) == (3, 2, 1)


def replace_limits(**changes: int | None) -> PowerLimits:
    return LIMITS.model_copy(update=changes)


def test_a_pod_of_the_same_name_before_this_one_does_not_count() -> None:
    before = replace(ONE, uid="pod-of-before")
    found = judge_cap("200W", [ONE], [report(gpu("GPU-a", before), pods=(before,))], now=at(110))
    assert (found.reason, found.status.gpus_capped) == (Reason.NO_AGENT, 0)


@pytest.mark.parametrize(
    ("stored", "read"), [("70%", "70%"), ("250W", "250W"), ("", ""), ("lots", ""), ("0W", "")]
)
def test_a_cap_that_was_damaged_in_the_status_counts_as_none(stored: str, read: str) -> None:
    assert PowerStatus.model_validate({"cap": stored, "gpus": 2}).cap == read


def test_a_job_can_tell_every_reason_of_an_agent() -> None:
    assert {Reason(reason) for reason in get_args(CapReason)} < set(Reason)
