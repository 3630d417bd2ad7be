"""Which resources are GPUs, and which quantities are counts of them: the same for operator and agent."""

from __future__ import annotations

import math

import pytest

from greentrain.api.resources import (
    SHIPPED,
    GpuResources,
    is_share_of_gpu,
    looks_like_gpu,
    parse_count,
    parse_gpu_resources,
)


@pytest.mark.parametrize(
    ("resource", "counts", "looks"),
    [
        ("nvidia.com/gpu", True, True),
        ("nvidia.com/gpu.shared", True, True),
        ("nvidia.com/mig-1g.5gb", True, False),
        ("nvidia.com/mig-3g.40gb.me", True, False),
        ("nvidia.com/gpu.h100", False, True),
        ("nvidia.com/gpumem", False, True),
        ("nvidia.com/GA102GL_A10", False, False),
        ("amd.com/gpu", False, True),
        ("gpu.intel.com/i915", False, False),
        ("volcano.sh/vGPU-number", False, True),
        ("requests.kubernetes.io/gpu", False, False),
        ("gpu", False, False),
        ("cpu", False, False),
        ("", False, False),
    ],
)
def test_a_resource_counts_by_its_name_and_another_may_look_like_a_gpu(
    resource: str, counts: bool, looks: bool
) -> None:
    assert (SHIPPED.counts(resource), looks_like_gpu(resource)) == (counts, looks)


@pytest.mark.parametrize(
    ("resource", "share"),
    [("nvidia.com/gpumem", True), ("nvidia.com/gpucores", True), ("nvidia.com/gpu.h100", False)],
)
def test_memory_and_cores_are_a_share_of_a_gpu(resource: str, share: bool) -> None:
    assert is_share_of_gpu(resource) is share


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nvidia.com/gpu", ("nvidia.com/gpu",)),
        ("amd.com/gpu,nvidia.com/mig-*,amd.com/gpu", ("amd.com/gpu", "nvidia.com/mig-*")),
        ("nvidia.com/*", ("nvidia.com/*",)),
        ("nvidia.com/GRID_T4-8Q", ("nvidia.com/GRID_T4-8Q",)),
        ("nvidia.com/" + "g" * 63, ("nvidia.com/" + "g" * 63,)),
        *(
            (text, ())
            for text in (
                *("", "gpu", "*", "nvidia.com/", "/gpu", "nvidia.com/gpu,", "nvidia.com/gpu, amd.com/gpu"),
                *("nvidia.com/mig-*-5gb", "nvidia.com/gpu**", "a/b/c", "nvidia.com/" + "g" * 64),
            )
        ),
    ],
)
def test_names_are_read_as_they_are_written_and_each_counts_once(text: str, names: tuple[str, ...]) -> None:
    if names:
        assert parse_gpu_resources(text) == GpuResources(names)
        assert parse_gpu_resources(str(GpuResources(names))) == GpuResources(names)
    else:
        with pytest.raises(
            ValueError, match=r"is no name of a GPU resource: write names such as nvidia\.com/gpu"
        ):
            parse_gpu_resources(text)


COUNTS: dict[int, list[object]] = {
    0: [0, "0", 0.0, "-0", "0m", "00", "0e9"],
    1: [1, "1", 1.0, "1.0", "1.", "+1", "01", "1000m", "1000000u", "1000000000n", "1e0", "1E0", "10e-1"],
    8: [8, "8", 8.0, "0.008k", "8e+0", "80e-1"],
    1000: ["1k", "1e3", "1E3", "1000"],
    1024: ["1Ki", "1024"],
    1500: ["1.5k"],
    2_000_000: ["2M"],
    2**20: ["1Mi"],
}

NONE: list[object] = [
    *(None, True, False, {}, {"count": 1}, [], ["1"], object()),
    *(-1, "-1", "-1k", 0.5, "0.5", "1m", "1u", "1500m", "1e-1", "0.1Ki"),
    *("", " ", ".", "-", "m", "e1", "1e", "many", "1 ", " 1", "1\n", "1_0", "1,0", "0x1", "1kk", "1K", "1KI", "1ki"),
    *("٣", "１", "1e٣", "NaN", "inf", "Infinity", math.nan, math.inf, -math.inf),
    *(10**15, 10**400, 1e300, "1P", "1E", "1Ei", "1e15", "1e999", "1e1000000", "9" * 41, "9" * 60_000),
    *("0." + "0" * 41, "1e" + "9" * 5_000),
]  # fmt: skip


@pytest.mark.parametrize(("count", "amounts"), COUNTS.items())
def test_every_form_of_a_whole_number_is_the_count(count: int, amounts: list[object]) -> None:
    assert {repr(a): parse_count(a) for a in amounts} == {repr(a): count for a in amounts}


def test_anything_else_is_no_count_and_nothing_raises() -> None:
    assert [a for a in NONE if parse_count(a) is not None] == []
