"""A card has a figure where a source has its very model, and none else."""

from __future__ import annotations

import pytest

from greentrain.grid.embodied import EmbodiedTable
from greentrain.quantities import Micrograms

KG = 10**9


@pytest.mark.parametrize(
    ("model", "typical"),
    [
        ("NVIDIA H100 80GB HBM3", 164_000),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM2e", None),
        ("NVIDIA H200", None),
        ("NVIDIA B200", 284_250),
        ("NVIDIA GB200", None),
        ("NVIDIA A100-SXM4-40GB", 127_600),
        ("A100-SXM4-40GB", 127_600),
        ("NVIDIA A100-SXM4-80GB", 143_000),
        ("NVIDIA A100-PCIE-40GB", 150_000),
        ("NVIDIA A100 80GB PCIe", 150_000),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("GRID A100X-40C", None),
        ("Tesla V100-SXM2-16GB", 202_000),
        ("Tesla V100-SXM2-32GB", 287_000),
        ("Tesla V100-PCIE-16GB", 201_000),
        ("Tesla V100-FHHL-16GB", None),
        ("Tesla V100S-PCIE-32GB", None),
        ("Tesla P100-PCIE-16GB", 128_000),
        ("Tesla T4", 130_000),
        ("NVIDIA A10", 183_000),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 113_000),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_a_name_is_matched_by_all_words_of_a_row(model: str, typical: int | None) -> None:
    found = EmbodiedTable().find(model)
    assert (None if found is None else found.typical) == typical


@pytest.mark.parametrize(
    ("own", "model", "grams"),
    [
        ({"NVIDIA L40S": 150 * KG}, "NVIDIA L40S", 150_000),
        ({"L40S": 150 * KG}, "NVIDIA L40S", 150_000),
        ({"Tesla V100": 90 * KG}, "Tesla V100-SXM2-16GB", 90_000),
        ({"H100": 200 * KG}, "NVIDIA H100 PCIe", 200_000),
        ({"H100": 200 * KG}, "NVIDIA H100 80GB HBM3", 200_000),
        ({"A100": 1 * KG, "A100 80GB": 2 * KG}, "NVIDIA A100-SXM4-80GB", 2_000),
        ({"L40S": 150 * KG}, "NVIDIA L40", None),
    ],
)
def test_a_sites_own_figure_stands_before_the_table(
    own: dict[str, Micrograms], model: str, grams: int | None
) -> None:
    found = EmbodiedTable(own).find(model)
    if grams is None:
        assert found is None
        return
    assert found is not None
    assert (found.low, found.typical, found.high, found.source, found.year) == (
        grams,
        grams,
        grams,
        "settings",
        None,
    )
