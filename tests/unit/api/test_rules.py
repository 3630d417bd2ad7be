"""The CEL rules the API server runs say the same as the operator's own admission."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def with_section(section: str, **fields: str) -> dict[str, Any]:
    manifest = build_job()
    manifest["spec"][section] = fields
    return manifest


def with_cap(cap: str) -> dict[str, Any]:
    return with_section("power", cap=cap)


def with_pue(pue: str) -> dict[str, Any]:
    return with_section("emissions", budget="1kgCO2e", pue=pue)


def admitted(manifest: dict[str, Any]) -> bool:
    """Whether the operator takes it."""
    return isinstance(decide_admission(job_of(manifest)), Admitted)


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
    assert admitted(manifest) is sound


ZEROS = ("0", "00", "000000000000", "0.0", "0.000000", "00.00")
ENERGY_UNITS = ("J", "kJ", "MJ", "GJ", "TJ", "Wh", "kWh", "MWh", "GWh")
EMISSIONS_UNITS = ("gCO2e", "kgCO2e", "tCO2e")


@pytest.mark.parametrize(
    ("section", "unit"),
    [*(("energy", u) for u in ENERGY_UNITS), *(("emissions", u) for u in EMISSIONS_UNITS)],
)
def test_a_budget_of_nothing_is_refused_in_every_unit(section: str, unit: str) -> None:
    """CO2e holds a digit too: it once passed for one of the number's."""
    for number in ZEROS:
        manifest = with_section(section, budget=number + unit)
        assert not allowed(manifest), number
        assert not admitted(manifest), number
    for number in ("1", "01", "10", "20.0", "1.000001"):
        manifest = with_section(section, budget=number + unit)
        assert allowed(manifest), number
        assert admitted(manifest), number


@pytest.mark.parametrize(
    ("manifest", "sound"),
    [
        *((with_section("energy", budget=b), True) for b in ("500Wh", "1.5MWh", "18MJ", "00.5kWh", "100GWh")),
        *(
            (with_section("energy", budget=b), False)
            for b in (
                "",
                "5",
                "kWh",
                "-1kWh",
                "+1kWh",
                "1 kWh",
                "1,5kWh",
                ".5kWh",
                "5.kWh",
                "1e3J",
                "1KWH",
                "1kWh/h",
            )
        ),
        *((with_section("energy", budget=b), False) for b in ("0.0000001kWh", "1234567890123J", "1kWh\n")),
        *(
            (with_section("emissions", budget=b), True)
            for b in ("800gCO2e", "1.2tCO2e", "0.001gCO2e", "02gCO2e")
        ),
        *(
            (with_section("emissions", budget=b), False)
            for b in (
                "",
                "2",
                "gCO2e",
                "2g",
                "2kgCO2",
                "-2kgCO2e",
                "2 kgCO2e",
                ".2kgCO2e",
                "2.kgCO2e",
                "CO2e",
            )
        ),
        *((with_pue(pue), True) for pue in ("1", "1.0", "1.2", "01.2", "1.999", "5", "5.000", "05.0")),
        *(
            (with_pue(pue), False)
            for pue in (
                "",
                "0",
                "0.0",
                "0.999",
                "00.9",
                "5.001",
                "6",
                "10",
                "99.999",
                "1.2345",
                "-1.2",
                "1,2",
                "one",
            )
        ),
    ],
)
def test_they_agree_on_amounts(manifest: dict[str, Any], sound: bool) -> None:
    assert allowed(manifest) is sound
    assert admitted(manifest) is sound


@pytest.mark.parametrize(
    "manifest",
    [
        *(with_section("energy", budget=b) for b in ("0.5J", "0.000001kJ", "101GWh", "361TJ")),
        *(with_section("emissions", budget=b) for b in ("0.0009gCO2e", "0.000001gCO2e", "100001tCO2e")),
    ],
)
def test_the_range_of_a_budget_is_the_operators_to_refuse(manifest: dict[str, Any]) -> None:
    assert allowed(manifest)
    assert not admitted(manifest)


DIGITS = st.text("0123456789", min_size=1, max_size=12)
NUMBERS = st.builds(
    lambda whole, part: f"{whole}.{part}" if part else whole, DIGITS, st.text("0123456789", max_size=6)
)


@given(
    st.one_of(
        st.builds(lambda n, u: with_section("energy", budget=n + u), NUMBERS, st.sampled_from(ENERGY_UNITS)),
        st.builds(
            lambda n, u: with_section("emissions", budget=n + u), NUMBERS, st.sampled_from(EMISSIONS_UNITS)
        ),
        st.builds(with_pue, NUMBERS),
    )
)
def test_the_server_refuses_nothing_that_the_operator_would_take(manifest: dict[str, Any]) -> None:
    assert allowed(manifest) or not admitted(manifest)
