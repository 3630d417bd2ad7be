"""What the chart grants is what the operator was seen to use."""

from __future__ import annotations

import json

import pytest

from sandbox.release import NAMESPACE as RELEASE_NAMESPACE
from tests.e2e.conftest import Bench

OPERATOR = f"system:serviceaccount:{RELEASE_NAMESPACE}:greentrain"

NOT_IN_THE_ROLE = {
    # Discovery is granted to every authenticated user by Kubernetes' own system:discovery role.
    ("get", "nonresource"),
}


NEEDS_AN_HOUR = {
    # A node that is gone for so long; tests/integration/operator/test_energy.py lets an hour pass.
    ("delete", "nodepowers"),
}


BEING_DELETED = "because it is being terminated"
"""What the server says of something to be made in a namespace that is being deleted: no matter of rights."""


def granted(bench: Bench) -> set[tuple[str, str]]:
    """(verb, resource) pairs of the operator's ClusterRole, and of the Role for the Lease it renews."""
    pairs = set()
    for words in (
        ("clusterrole", "greentrain-operator"),
        ("role", "greentrain-lease", "-n", RELEASE_NAMESPACE),
    ):
        role = bench.cluster.read_json("get", *words)
        assert role is not None
        pairs |= {(v, r) for rule in role["rules"] for v in rule["verbs"] for r in rule["resources"]}
    return pairs


def used(bench: Bench) -> set[tuple[str, str]]:
    """(verb, resource) pairs the audit log shows the operator using with success."""
    pairs = set()
    for line in bench.sandbox.server.audit_log.read_text().splitlines():
        entry = json.loads(line)
        # A request that was refused as nobody's (401) has no name.
        if entry["user"].get("username") != OPERATOR:
            continue
        reference = entry.get("objectRef")
        if reference is None or "resource" not in reference:
            pairs.add((entry["verb"], "nonresource"))
            continue
        sub = reference.get("subresource")
        resource = f"{reference['resource']}/{sub}" if sub else reference["resource"]
        answer = entry.get("responseStatus", {})
        if answer.get("code") == 403 and BEING_DELETED in answer.get("message", ""):
            continue
        assert answer.get("code") != 403, f"refused: {entry['verb']} {resource}: {answer.get('message')}"
        pairs.add((entry["verb"], resource))
    return pairs


def test_the_operator_was_refused_nothing_and_used_nothing_that_its_role_does_not_grant(bench: Bench) -> None:
    grants = granted(bench)
    assert not any("*" in pair for pair in grants)
    assert used(bench) - NOT_IN_THE_ROLE <= grants


def test_the_role_grants_nothing_that_the_operator_was_not_seen_to_use(
    bench: Bench, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--whole"):
        pytest.skip("only the tests before it make the operator use all of its rights: make e2e")
    grants = granted(bench)
    assert grants >= NEEDS_AN_HOUR
    assert used(bench) - NOT_IN_THE_ROLE == grants - NEEDS_AN_HOUR
