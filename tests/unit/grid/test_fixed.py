"""One value, for all zones or for one."""

from __future__ import annotations

import pytest

from greentrain import quantities
from greentrain.api.spec import Basis
from greentrain.carbon.intensity import UNDATED, Absent, Intensity
from greentrain.grid.source import Refreshed
from greentrain.grid.sources.fixed import Fixed


@pytest.mark.parametrize(
    ("own_zone", "zone", "basis", "reason"),
    [
        (None, "DE", "Lifecycle", None),
        (None, "FR", "Lifecycle", None),
        ("DE", "DE", "Lifecycle", None),
        ("DE", "FR", "Lifecycle", "contract has a value for DE only"),
        (None, "DE", "Direct", "contract has Lifecycle values only"),
    ],
)
async def test_it_has_its_value_for_its_zone_and_basis(
    own_zone: str | None, zone: str, basis: Basis, reason: str | None
) -> None:
    source = Fixed("contract", quantities.Intensity(50_000), "Lifecycle", own_zone)
    found = source.at(zone, basis, 123.0)
    if reason is None:
        assert found == Intensity(quantities.Intensity(50_000), "contract", "Lifecycle", as_of=UNDATED)
    else:
        assert isinstance(found, Absent)
        assert found.reason.startswith(reason)
    assert source.serves(zone) is (own_zone in (None, zone))
    assert list(source.zones()) == ([own_zone] if own_zone else [])
    assert await source.refresh() == Refreshed(source)
