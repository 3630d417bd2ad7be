"""What device plugins call a GPU is read in every form known, and any other text is kept as it is."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greentrain.devices.nvidia.references import (
    CardReference,
    FullCard,
    MigInstance,
    NumberedCard,
    NumberedMigInstance,
    SharedReplica,
    UnknownDevice,
    get_unit,
    parse_device,
)

UUID = "4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
CARD = FullCard(f"GPU-{UUID}")
MIG = MigInstance(f"MIG-{UUID}")
OLD_MIG = MigInstance(f"MIG-GPU-{UUID}/7/0")


@pytest.mark.parametrize(
    ("why", "text", "reference"),
    [
        ("NVIDIA's plugin names a card by its UUID", f"GPU-{UUID}", CARD),
        ("upper case is kept", "GPU-ABCDEF01-06c0", FullCard("GPU-ABCDEF01-06c0")),
        ("a simulated card's name may be short", "GPU-0", FullCard("GPU-0")),
        ("time-slicing adds the replica", f"GPU-{UUID}::3", SharedReplica(CARD, 3)),
        ("replicas count from 0", f"GPU-{UUID}::0", SharedReplica(CARD, 0)),
        ("a MIG instance has a UUID of its own", f"MIG-{UUID}", MIG),
        ("older drivers name it after its card", f"MIG-GPU-{UUID}/7/0", OLD_MIG),
        ("MIG instances are shared too", f"MIG-{UUID}::2", SharedReplica(MIG, 2)),
        ("in the old form as well", f"MIG-GPU-{UUID}/7/0::2", SharedReplica(OLD_MIG, 2)),
        ("GKE's plugin names a card by its device file", "nvidia0", NumberedCard(0)),
        ("of which there may be many", "nvidia15", NumberedCard(15)),
        ("and a MIG instance by its GPU instance", "nvidia0/gi3", NumberedMigInstance(0, 3)),
        ("its shared cards are vgpus", "nvidia2/vgpu1", SharedReplica(NumberedCard(2), 1)),
        ("its shared MIG instances too", "nvidia2/gi1/vgpu0", SharedReplica(NumberedMigInstance(2, 1), 0)),
    ],
)
def test_a_device_is_read(why: str, text: str, reference: CardReference) -> None:
    assert parse_device(text) == reference, why
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        f" GPU-{UUID}",
        f"GPU-{UUID}\n",
        f"gpu-{UUID}",
        "GPU-",
        "GPU--",
        f"GPU-{UUID}::",
        f"GPU-{UUID}::-1",
        f"GPU-{UUID}::03",
        f"GPU-{UUID}::٣",
        f"GPU-{UUID}::1::2",
        f"GPU-{UUID}::1234567890",
        f"GPU-{UUID}/1/0",
        "MIG-",
        f"MIG-GPU-{UUID}",
        f"MIG-GPU-{UUID}/7",
        f"MIG-{UUID}/7/0",
        "nvidia",
        "nvidia00",
        "nvidia0/gi",
        "nvidia0/vgpu1/gi0",
        "nvidia0::1",
        "nvidia-1",
        "0",
        "tegra",
        "vfio0",
    ],
)
def test_any_other_text_is_an_unknown_device(text: str) -> None:
    assert parse_device(text) == UnknownDevice(text)


@given(st.text() | st.from_regex(r"(GPU|MIG|MIG-GPU|nvidia)[-0-9a-f:/gipuv]{0,20}", fullmatch=True))
@example("GPU-" + "a-" * 50_000)
def test_no_text_raises_and_every_reference_prints_as_it_was_read(text: str) -> None:
    reference = parse_device(text)
    assert str(reference) == text
    assert str(get_unit(reference)) in text


@pytest.mark.parametrize(
    ("reference", "unit"),
    [
        (CARD, CARD),
        (SharedReplica(CARD, 3), CARD),
        (SharedReplica(MIG, 0), MIG),
        (SharedReplica(NumberedCard(1), 0), NumberedCard(1)),
        (UnknownDevice("x"), UnknownDevice("x")),
    ],
)
def test_replicas_are_places_of_one_unit(reference: CardReference, unit: CardReference) -> None:
    assert get_unit(reference) == unit


@pytest.mark.parametrize(("instance", "parent"), [(MIG, None), (OLD_MIG, f"GPU-{UUID}")])
def test_only_the_old_name_of_a_mig_instance_tells_its_card(
    instance: MigInstance, parent: str | None
) -> None:
    assert instance.parent == parent
