"""What the processors and the memory of a node used, and for which pods the processors worked.

Energy comes from RAPL, which Linux shows under /sys/class/powercap for Intel and, by the same names, for AMD. RAPL knows
sockets, not pods. A pod's share is the time that its processes ran, from the kernel's cgroups.

Both only read files, so they block for microseconds and keep no connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unsupported
from greentrain.energy.intervals import find_most
from greentrain.quantities import (
    Microjoules,
    Microseconds,
    Microwatts,
    Millijoules,
    Milliwatts,
    Nanoseconds,
    add,
    add_up,
    format_energy,
    from_microseconds,
    from_microwatts,
    from_nanoseconds,
    subtract,
    to_joules,
    to_millijoules,
)

POWERCAP = Path("/sys/class/powercap")
CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

MOST_MILLIWATTS = Milliwatts(500_000)
"""Assumed highest power of one domain where the kernel does not name it."""

HIGHEST_MILLIWATTS = Milliwatts(1_000_000)
"""A power limit above this is none: a domain without one shows some 4 kW."""

MIRRORED_MICROJOULES = Microjoules(2_000_000)
"""By how much two views of one counter may differ: they are read one after the other, and RAPL is renewed every millisecond."""

FAULTS_IN_A_ROW = 3
"""After so many readings that cannot be right, the counter goes on from the last one."""

# Not intel-rapl-mmio:0, which shows the same package a second time.
_DOMAIN = re.compile(r"intel-rapl:[0-9]+(?::[0-9]+)?")
_PACKAGE = re.compile(r"(?P<package>package-[0-9]+)(?:-die-[0-9]+)?")

# cgroupfs: pod<uid>. systemd: kubepods-burstable-pod<uid with underscores>.slice. A static pod's is 32 digits long.
_POD = re.compile(
    r"(?:.+-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?"
)


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Energy since this process's first reading, which only grows."""

    package_mj: Millijoules
    """Of all sockets: cores, caches, memory controllers and the rest of the package."""
    dram_mj: Millijoules | None
    """Of all memory, which is not part of the packages; None where RAPL does not show it."""
    errors: Mapping[str, DeviceError]
    """Domains that could not be read this time, by the name of their folder: what they used is not included above."""


class _Domain:
    """One RAPL counter; it restarts at 0 when it has reached its range."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = (folder / "name").read_text().strip()
        self.range = Microjoules(int((folder / "max_energy_range_uj").read_text()))
        self.is_package = _PACKAGE.fullmatch(self.name) is not None
        self.is_dram = self.name == "dram"
        self.limit = _find_limit(folder)
        self.used = Microjoules(0)
        """Counted so far."""
        self.shown: Microjoules | None = None
        """What it showed at the last reading."""
        self.counts = True
        """False for a second view of a counter that another domain shows as well."""
        self._last: Microjoules | None = None
        self._last_at: float | None = None
        self._faults = 0

    @property
    def socket(self) -> str:
        """The socket that it is a part of, such as package-0; for memory, its parent's."""
        name = self.name
        if self.is_dram:
            try:
                name = (self.folder.parent / self.folder.name.rpartition(":")[0] / "name").read_text().strip()
            except OSError:
                return self.folder.name
        found = _PACKAGE.fullmatch(name)
        return self.folder.name if found is None else found["package"]

    def read(self) -> None:
        """Read what it shows.

        Raises:
            DeviceError: it cannot be read.
        """
        self.shown = None
        try:
            shown = Microjoules(int((self.folder / "energy_uj").read_text()))
        except FileNotFoundError:
            # A domain that comes back may have been reset: what it used in between is not known.
            self._last = None
            raise Gone(self.folder.name, "its socket is off or its driver was unloaded") from None
        except PermissionError:
            raise _not_permitted(self.folder) from None
        except (OSError, ValueError) as error:
            raise Retry(self.folder.name, f"energy_uj cannot be read ({error})") from None
        self.shown = shown

    def count(self, at: float | None) -> None:
        """Add what was used since the last reading; `at`: seconds, None where no time is known.

        Raises:
            Retry: it cannot have used that much in that time; nothing of it counts.
        """
        if self.shown is None:
            return
        if self._last is not None and self.counts:
            turn = self.range if self.shown < self._last else Microjoules(0)
            used = add(subtract(self.shown, self._last), turn)
            since = None if at is None or self._last_at is None else at - self._last_at
            if since is not None and to_millijoules(used) > find_most(self.limit, since):
                self._refuse(used, at, since)
            self.used = add(self.used, used)
        self._go_on(at)

    def _go_on(self, at: float | None) -> None:
        self._last, self._last_at, self._faults = self.shown, at, 0

    def _refuse(self, used: Microjoules, at: float | None, since: float) -> None:
        self._faults += 1
        if self._faults >= FAULTS_IN_A_ROW:
            self._go_on(at)
        text = (
            f"energy_uj went on by {format_energy(to_joules(to_millijoules(used)))} in {since:.1f} s, more than its power "
            "limit allows; none of it counts"
        )
        raise Retry(self.folder.name, text)


def _find_limit(folder: Path) -> Milliwatts:
    """The highest power that the kernel names for a domain (`constraint_*_max_power_uw` and the limits that are set)."""
    found = []
    for file in (*folder.glob("constraint_*_max_power_uw"), *folder.glob("constraint_*_power_limit_uw")):
        with suppress(OSError, ValueError):
            found.append(from_microwatts(Microwatts(int(file.read_text()))))
    return max((limit for limit in found if 0 < limit <= HIGHEST_MILLIWATTS), default=MOST_MILLIWATTS)


def _not_permitted(folder: Path) -> NotPermitted:
    # Closed to all but root since CVE-2020-8694, for it shows what other programs compute.
    return NotPermitted(f"{folder}/energy_uj", "run as root, or with the capability DAC_READ_SEARCH")


class Rapl:
    """The node's RAPL counters; each object counts from its own first reading.

    A counter wraps around within minutes at full power, and a whole turn leaves no trace: read it several times a minute.
    `core` and `uncore` are parts of their package and `psys`
    counts the packages again, so none of these is added.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        """`root` is the node's /sys/class/powercap."""
        self._root = root
        self._domains: dict[str, _Domain] = {}

    def read(self, at: float | None = None) -> HostEnergy:
        """What all sockets and memory have used since the first reading, at so many seconds of a steady clock.

        Raises:
            Unsupported: the machine has no RAPL, as most virtual ones.
            NotPermitted: it has, and this process may not read any of it.
        """
        errors: dict[str, DeviceError] = {}
        self._find_domains(errors)
        if not any(domain.is_package for domain in self._domains.values()):
            raise Unsupported(f"RAPL energy of processors below {self._root}")
        for name, domain in self._domains.items():
            try:
                domain.read()
            except DeviceError as error:
                errors[name] = error
        self._find_mirrors()
        for name, domain in self._domains.items():
            try:
                domain.count(at)
            except DeviceError as error:
                errors[name] = error
        refusals = [error for error in errors.values() if isinstance(error, NotPermitted)]
        if refusals and len(refusals) == len(self._domains):
            raise refusals[0]
        drams = [domain.used for domain in self._domains.values() if domain.is_dram]
        return HostEnergy(
            package_mj=to_millijoules(add_up(d.used for d in self._domains.values() if d.is_package)),
            dram_mj=to_millijoules(add_up(drams)) if drams else None,
            errors=errors,
        )

    def _find_mirrors(self) -> None:
        """Of dies of one socket that all show one value, only the first counts: some processors show a socket's once a die."""
        groups: dict[tuple[str, bool], list[_Domain]] = {}
        for domain in self._domains.values():
            if domain.shown is not None:
                groups.setdefault((domain.socket, domain.is_dram), []).append(domain)
        for first, *others in groups.values():
            apart = [abs(subtract(d.shown or Microjoules(0), first.shown or Microjoules(0))) for d in others]
            equal = all(min(a, first.range - a) <= MIRRORED_MICROJOULES for a in apart)
            for other in others:
                other.counts = not equal

    def _find_domains(self, errors: dict[str, DeviceError]) -> None:
        """Find new domains: the driver may be loaded late, a socket switched on."""
        try:
            names = sorted(entry for entry in os.listdir(self._root) if _DOMAIN.fullmatch(entry))  # noqa: PTH208 - names
        except OSError:
            return
        for name in names:
            if name not in self._domains:
                try:
                    domain = _Domain(self._root / name)
                except (OSError, ValueError) as error:
                    errors[name] = Retry(name, f"its description cannot be read ({error})")
                    continue
                if domain.is_package or domain.is_dram:
                    self._domains[name] = domain


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Time that processors worked, in seconds that only grow; a pod's share of an interval is its part of `busy`."""

    busy: float
    """Of the whole machine since its start. Counted in clock ticks, so the pods' sum may be a little more."""
    pods: Mapping[str, float]
    """Of each pod that has a cgroup now, by UID with dashes. A static pod's is the hash kubelet gave it, not the UID of
    its mirror in the API."""


class CpuTime:
    """Processor time by pod, from the kernel's cgroups of version 1 or 2."""

    def __init__(self, root: Path = CGROUPS, proc: Path = PROC) -> None:
        """`root` is the node's /sys/fs/cgroup, `proc` its /proc."""
        self._root = root
        self._stat = proc / "stat"
        self._hertz = os.sysconf("SC_CLK_TCK")
        self._roots: list[Path] = []

    def read(self) -> CpuUse:
        """What the machine and each pod's processes have used.

        Raises:
            Unsupported: cgroups with processor time are not mounted, or /proc is not.
            NotPermitted: they may not be read.
        """
        # First the parts and then the whole, so that the parts cannot exceed it.
        pods: dict[str, float] = {}
        hierarchy, version = self._find_hierarchy()
        for folder, uid in self._find_pods(hierarchy):
            seconds = _read_seconds(folder, version)
            if seconds is not None:
                pods[uid] = pods.get(uid, 0.0) + seconds
        return CpuUse(self._read_busy(), pods)

    def find_pods(self) -> frozenset[str]:
        """UIDs of the pods that have a cgroup now: the kubelet removes a pod's within seconds of its end.

        Raises:
            Unsupported: cgroups are not mounted.
            NotPermitted: they may not be read.
        """
        hierarchy, _ = self._find_hierarchy()
        return frozenset(uid for _, uid in self._find_pods(hierarchy))

    def _find_hierarchy(self) -> tuple[Path, int]:
        if (self._root / "cgroup.controllers").exists():
            return self._root, 2
        # systemd mounts it together with `cpu`, with a link by its own name that not every container has.
        for name in ("cpuacct", "cpu,cpuacct"):
            if (self._root / name / "cpuacct.usage").exists():
                return self._root / name, 1
        raise Unsupported(f"processor time of cgroups below {self._root}")

    def _find_pods(self, hierarchy: Path) -> Iterator[tuple[Path, str]]:
        """Every pod's cgroup with its UID.

        Below the kubelet's own cgroup there are some dozens, in a machine's whole tree hundreds or thousands. So the tree is
        searched again only where the kubelet's cgroups are not known or no longer exist.
        """
        if not self._roots or not all(root.exists() for root in self._roots):
            self._roots = list(_find_kubepods(hierarchy))
        for root in self._roots:
            yield from _walk_pods(root)

    def _read_busy(self) -> float:
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()
            # user nice system idle iowait irq softirq steal; guests' time is part of user and nice (proc(5)).
            user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[1:9])
        except (OSError, ValueError):
            raise Unsupported(f"processor time in {self._stat}") from None
        return (user + nice + system + irq + softirq + steal) / self._hertz


def _list_folders(folder: Path) -> list[Path]:
    """Folders in a folder; none where it vanished meanwhile, as cgroups do."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NotPermitted(str(folder), "run as root, with the node's /sys/fs/cgroup mounted") from None


def _find_kubepods(folder: Path) -> Iterator[Path]:
    """The kubelet's cgroups, wherever its cgroupRoot puts them; none below another one, to which those pods belong."""
    for child in _list_folders(folder):
        if child.name == "kubepods" or child.name.endswith("kubepods.slice"):
            yield child
        elif not _POD.fullmatch(child.name):
            yield from _find_kubepods(child)


def _walk_pods(folder: Path) -> Iterator[tuple[Path, str]]:
    for child in _list_folders(folder):
        if found := _POD.fullmatch(child.name):
            yield child, found["uid"].replace("_", "-")
        else:
            yield from _walk_pods(child)


def _read_seconds(folder: Path, version: int) -> float | None:
    """Seconds a cgroup and all below it have used; None where it vanished meanwhile."""
    file = folder / ("cpuacct.usage" if version == 1 else "cpu.stat")
    try:
        text = file.read_text()
    except PermissionError:
        raise NotPermitted(str(file), "run as root, with the node's /sys/fs/cgroup mounted") from None
    except OSError:
        # ENODEV where it vanished after it was opened.
        return None
    if version == 1:
        return from_nanoseconds(Nanoseconds(int(text)))
    found = re.search(r"^usage_usec (\d+)$", text, re.MULTILINE)
    return None if found is None else from_microseconds(Microseconds(int(found[1])))
