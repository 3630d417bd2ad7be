"""Lets pods be as busy and as slow as their cards: their CPU time read, their CPU quota set, through cgroups.

A simulated card computes nothing, so the CPU of the pod that it is allocated to stands in for it. Quotas are set on a pod's
containers and never on the pod's own cgroup: on version 1 a child may not be allowed more than its parent, so a
container with a CPU limit could not be started again in a pod that is slowed (runc: «invalid argument»).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sandbox.cgroups import TOP, CgroupMode, Driver
from sandbox.state import Node

PERIOD_US = 50_000
"""Long beside a scheduler's tick (4 ms), short beside a training step and the time over which CPU use is measured."""

LEAST_QUOTA_US = 1_000
"""The kernel takes no less."""

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Quota:
    """What a cgroup may use: microseconds of CPU time (None: no bound) per period of so many microseconds."""

    quota_us: int | None
    period_us: int

    @property
    def cores(self) -> float:
        """The same in CPU cores; infinite without a bound."""
        return float("inf") if self.quota_us is None else self.quota_us / self.period_us


def decide_load(used_ns: int, elapsed_ns: int, cores: float) -> float:
    """How busy a card is whose holder used so much CPU time of the `cores` it was allowed: 0 to 1.

    Of what it was *allowed*: a card with a lowered clock is still fully busy when its work fills the time.
    """
    if elapsed_ns <= 0:
        return 0.0
    return min(1.0, max(0.0, used_ns / (elapsed_ns * cores)))


def smooth_load(before: float, now: float) -> float:
    """A load half-way between the last one and the one just measured.

    Quota periods do not end with the times of measurement, so a fully busy pod measures 0.9 to 1.1 of its quota.
    """
    return (before + now) / 2


def round_load(load: float) -> float:
    """A load as a card is given it: in hundredths, so that not every look is a change, and whole from 0.97 on."""
    return 1.0 if load >= 0.97 else round(load, 2)


def decide_quota(cores: float, before: Quota) -> Quota:
    """The quota for `cores`; a lower one that the pod brought with it stays."""
    if before.cores <= cores:
        return before
    return Quota(max(LEAST_QUOTA_US, round(cores * PERIOD_US)), PERIOD_US)


class PodCgroups:
    """The cgroups of one node's pods, on either version."""

    def __init__(self, mode: CgroupMode, node: Node) -> None:
        self.version = mode.version
        if mode.version == 2:
            usage = quota = mode.hierarchies[0]
        else:
            usage = _find_hierarchy(mode, "cpuacct.usage")
            quota = _find_hierarchy(mode, "cpu.cfs_quota_us")
        self._usage, self._quota = usage, quota
        self._systemd = mode.driver is Driver.SYSTEMD
        self._node = node

    def _find(self, top: Path, uid: str) -> Path | None:
        for quality in ("", "burstable", "besteffort"):
            if self._systemd:
                # Kubelet's names for systemd: every level repeats those above it, and a dash would be a level.
                name = f"greentrain-{self._node.name}"
                folder = top / "greentrain.slice" / f"{name}.slice" / f"{name}-kubepods.slice"
                name += "-kubepods"
                if quality:
                    name += f"-{quality}"
                    folder /= f"{name}.slice"
                folder /= f"{name}-pod{uid.replace('-', '_')}.slice"
            else:
                folder = top / TOP / self._node.name / "kubepods" / quality / f"pod{uid}"
            if folder.is_dir():
                return folder
        return None

    def find_usage(self, uid: str) -> Path | None:
        """The cgroup that counts a pod's CPU time; None where the pod has none (any more, or yet)."""
        return self._find(self._usage, uid)

    def find_containers(self, uid: str) -> list[Path]:
        """The cgroups of a pod's containers that take a quota."""
        pod = self._find(self._quota, uid)
        with contextlib.suppress(OSError):
            return [Path(entry.path) for entry in os.scandir(pod) if entry.is_dir()] if pod else []
        return []

    def read_used_ns(self, folder: Path) -> int:
        """CPU time that everything in a cgroup has used, in nanoseconds.

        Raises:
            OSError: it is gone.
        """
        if self.version == 1:
            return int((folder / "cpuacct.usage").read_text())
        for line in (folder / "cpu.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) * 1000
        raise FileNotFoundError(folder / "cpu.stat")

    def read_quota(self, folder: Path) -> Quota:
        """What a cgroup may use.

        Raises:
            OSError: it is gone.
        """
        if self.version == 1:
            quota = int((folder / "cpu.cfs_quota_us").read_text())
            return Quota(None if quota < 0 else quota, int((folder / "cpu.cfs_period_us").read_text()))
        allowed, period = (folder / "cpu.max").read_text().split()
        return Quota(None if allowed == "max" else int(allowed), int(period))

    def set_quota(self, folder: Path, quota: Quota) -> None:
        """Set what a cgroup may use.

        Raises:
            OSError: it is gone, or the kernel refuses the value.
        """
        if self.version == 2:
            allowed = "max" if quota.quota_us is None else quota.quota_us
            (folder / "cpu.max").write_text(f"{allowed} {quota.period_us}")
            return
        writes = [
            ("cpu.cfs_quota_us", -1 if quota.quota_us is None else quota.quota_us),
            ("cpu.cfs_period_us", quota.period_us),
        ]
        # Two files cannot change at once, and between them the share must not exceed the parent's: the period goes
        # first where it grows.
        if quota.period_us > self.read_quota(folder).period_us and quota.quota_us is not None:
            writes.reverse()
        for name, value in writes:
            (folder / name).write_text(str(value))


def _find_hierarchy(mode: CgroupMode, name: str) -> Path:
    for hierarchy in mode.hierarchies:
        if (hierarchy / name).exists():
            return hierarchy
    raise FileNotFoundError(f"no cgroup hierarchy has {name}; mount the controllers cpu and cpuacct")


class Throttle:
    """CPU quotas set for a while; what stood before is written down first, so that no end of this program loses it."""

    def __init__(self, groups: PodCgroups, journal: Path) -> None:
        self._groups = groups
        self._journal = journal
        self._before = _read_journal(journal)

    def slow(self, folder: Path, cores: float) -> None:
        """Allow a container so many cores, or what it was allowed before where that is less; nothing where it is gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = self._groups.read_quota(folder)
            if folder not in self._before:
                self._before[folder] = found
                self._save()
            wanted = decide_quota(cores, self._before[folder])
            if found != wanted:
                self._groups.set_quota(folder, wanted)

    def keep_only(self, folders: Collection[Path]) -> None:
        """Give all other containers back what they were allowed."""
        others = [folder for folder in self._before if folder not in folders]
        for folder in others:
            # Gone with its pod, or (OSError of another kind) its pod's own limit has been lowered meanwhile.
            with contextlib.suppress(OSError):
                if self._groups.read_quota(folder) != self._before[folder]:
                    self._groups.set_quota(folder, self._before[folder])
            del self._before[folder]
        if others:
            self._save()

    def _save(self) -> None:
        content = {str(folder): [quota.quota_us, quota.period_us] for folder, quota in self._before.items()}
        partial = self._journal.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self._journal)


def _read_journal(path: Path) -> dict[Path, Quota]:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return {Path(folder): Quota(*quota) for folder, quota in json.loads(path.read_text()).items()}
    return {}
