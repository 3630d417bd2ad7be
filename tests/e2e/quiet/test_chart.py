"""What only a whole control plane says of the installed chart."""

from __future__ import annotations

from sandbox.release import AGENT
from tests.e2e.conftest import Bench


def test_the_servers_type_check_finds_nothing_wrong_with_the_admission_policies(bench: Bench) -> None:
    """The controller-manager writes it: an expression that names a field which the kind does not have is found there."""

    def unseen() -> list[str]:
        found = bench.read("validatingadmissionpolicies")["items"]
        ours = [p for p in found if p["metadata"]["name"].startswith(AGENT)]
        assert len(ours) == 3
        # Empty is the good answer; none at all means that it was not checked yet.
        return [p["metadata"]["name"] for p in ours if (p.get("status") or {}).get("typeChecking") is None]

    bench.until(unseen, lambda names: not names, seconds=60, what="every policy is type-checked")
    policies = bench.read("validatingadmissionpolicies")["items"]
    warnings = [
        warning
        for policy in policies
        if policy["metadata"]["name"].startswith(AGENT)
        for warning in policy["status"]["typeChecking"].get("expressionWarnings", [])
    ]
    assert warnings == []
