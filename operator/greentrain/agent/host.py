"""The node's processors and memory between two polls: what they used, and for which pods the processors worked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greentrain.devices.rapl import CpuTime, CpuUse, HostEnergy, Rapl
from greentrain.quantities import Millijoules, subtract


@dataclass(frozen=True, slots=True)
class HostInterval:
    """Energy, and each pod's share of the processors' time by UID, 0 to 1."""

    cpu: Millijoules
    dram: Millijoules
    shares: Mapping[str, float]
    problems: tuple[str, ...] = ()
    """Why counters could not be read, or what they showed does not count."""


class Host:
    """RAPL and the kernel's cgroups, read together. What was used while no agent ran is not counted."""

    def __init__(self, rapl: Rapl, cpu_time: CpuTime) -> None:
        self._rapl = rapl
        self._cpu_time = cpu_time
        self._last: tuple[HostEnergy, CpuUse] | None = None

    def look(self, at: float | None = None) -> HostInterval | None:
        """What was used since the last poll, at so many seconds of a steady clock; None at the first.

        Raises:
            DeviceError: the machine has no RAPL, or it may not be read.
        """
        energy, use = self._rapl.read(at), self._cpu_time.read()
        last, self._last = self._last, (energy, use)
        if last is None:
            return None
        before, used = last
        busy = use.busy - used.busy
        shares = {
            uid: max(0.0, seconds - used.pods.get(uid, seconds)) / busy
            for uid, seconds in use.pods.items()
            if busy > 0
        }
        none = Millijoules(0)
        return HostInterval(
            cpu=max(none, subtract(energy.package_mj, before.package_mj)),
            dram=max(none, subtract(energy.dram_mj or none, before.dram_mj or none)),
            shares=shares,
            problems=tuple(str(error) for error in energy.errors.values()),
        )
