"""A disk or a memory that is too small is told before a build, with both numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.room import GB, Need, check_room, find_shortages, read_available_memory
from sandbox.shell import SandboxError

HUGE = 10**18


@pytest.mark.parametrize(
    ("needs", "memory", "said"),
    [
        ([], 0, []),
        ([Need("a", Path("/"), 1, 2 * GB)], 2 * GB, []),
        ([Need("a", Path("/"), 1, 2 * GB)], None, []),
        (
            [Need("a", Path("/"), 1, 2 * GB), Need("b", Path("/"), 1, 3 * GB)],
            GB,
            ["1.0 GB of memory are available, and b needs 3.0 GB."],
        ),
    ],
)
def test_memory_counts_once_for_the_largest(needs: list[Need], memory: int | None, said: list[str]) -> None:
    assert find_shortages(needs, memory) == said


def test_what_lies_on_one_disk_adds_up(tmp_path: Path) -> None:
    needs = [Need("a", tmp_path / "not" / "there", HUGE), Need("b", tmp_path, HUGE)]
    (said,) = find_shortages(needs, None)
    assert said.startswith(f"The disk of {tmp_path} has ")
    assert said.endswith("2000000000.0 GB are needed (a 1000000000.0 GB, b 1000000000.0 GB).")


def test_a_shortage_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="GREENTRAIN_CACHE"):
        check_room([Need("a", tmp_path, HUGE)])
    check_room([Need("a", tmp_path, 1)])


@pytest.mark.parametrize(
    ("text", "memory"),
    [("MemTotal: 9 kB\nMemAvailable:  2048 kB\n", 2048 * 1024), ("MemTotal: 9 kB\n", None)],
)
def test_available_memory_is_what_the_kernel_says(tmp_path: Path, text: str, memory: int | None) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert read_available_memory(tmp_path / "meminfo") == memory
