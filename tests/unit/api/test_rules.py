"""The CEL rules a newer server runs say the same as the operator's own admission."""

from __future__ import annotations

from typing import Any

import cel
import pytest

from greentrain.api.crd import RULES
from greentrain.core.admission import Admitted, decide_admission
from tests.support.manifests import build_job, build_template
from tests.support.snapshots import job_of


def allowed(manifest: dict[str, Any]) -> bool:
    """Evaluate every rule at its place, as the server would."""
    for path, rules in RULES.items():
        node: Any = manifest
        for part in path.split(".") if path else ():
            node = node.get(part, {})
        if not all(cel.evaluate(rule["rule"], {"self": node}) for rule in rules):
            return False
    return True


def with_cap(cap: str) -> dict[str, Any]:
    manifest = build_job()
    manifest["spec"]["power"] = {"cap": cap}
    return manifest


def with_roles(name: str = "digits", *, worker: bool = True, **roles: int | None) -> dict[str, Any]:
    manifest = build_job(name)
    specs = manifest["spec"]["tfReplicaSpecs"]
    if not worker:
        del specs["Worker"]
    for role, replicas in roles.items():
        specs[role] = {"template": build_template()} | ({} if replicas is None else {"replicas": replicas})
    return manifest


@pytest.mark.parametrize(
    ("manifest", "sound"),
    [
        (with_roles(), True),
        (with_roles(Chief=1), True),
        (with_roles(Chief=None), True),
        (with_roles(Master=1), True),
        (with_roles(worker=False, Chief=1), True),
        (with_roles(worker=False), False),
        (with_roles(Chief=2), False),
        (with_roles(Master=2), False),
        (with_roles(Chief=1, Master=1), False),
        (with_roles("a" * 54), True),
        (with_roles("a" * 55), False),
        (with_roles("1st"), False),
        (with_roles("a.b"), False),
        (with_roles("ends-"), False),
        *((with_cap(cap), True) for cap in ("250W", "0.3kW", "70%", "1W", "10kW", "0.001kW", "99.5W")),
        *(
            (with_cap(cap), False)
            for cap in ("250", "0W", "101%", "11kW", "-5W", "250 W", "70.5%", "0.0kW", "watts")
        ),
    ],
)
def test_the_server_and_the_operator_agree(manifest: dict[str, Any], sound: bool) -> None:
    assert allowed(manifest) is sound
    assert isinstance(decide_admission(job_of(manifest)), Admitted) is sound
