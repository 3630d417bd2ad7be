"""The requests to one card: each is a few calls to NVML, made on a thread, one after the other.

Cards are known by UUID. NVML's indices are valid only from one initialisation to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from greentrain.api.nodepower import PowerLimits
from greentrain.devices.errors import DeviceError, Gone, Hanging, OutOfRange
from greentrain.devices.nvidia.answers import ABSENT, LOST, STALE, UNUSABLE
from greentrain.energy.intervals import CardReading
from greentrain.node.cards import Card, CurrentLimits, Partition, known_limit
from greentrain.quantities import Millijoules, Milliwatts, format_power

BUSY_PERCENT = 5
"""Utilization from which a card counts as working; an assumption, for NVML names no threshold."""

MOST_MILLIWATTS = Milliwatts(10_000_000)
"""A power above 10 kW is garbage, not a reading: no card comes near it."""

_T = TypeVar("_T")


class Slot:
    """A card by its index in this session, known by its UUID as soon as that could be read."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.card: Card | None = None
        self.handle: Any = None
        self.gone: Gone | None = None
        """Set while it is lost. It is not called until the next discovery, because each look-up of a lost card makes the driver
        try to start it."""
        self.failure: DeviceError | None = None
        """Why the last discovery failed."""
        self.absent: set[Callable[[Any], object]] = set()
        """What it turned out not to support."""
        self.unknown = 0
        """How many times in a row it has answered UNKNOWN."""
        self.since: float | None = None
        """Since when a call has been in progress, in time.monotonic()."""
        self.seconds = 0.0
        """How long it took the last time."""

    @property
    def name(self) -> str:
        """The card's name in messages."""
        return f"The GPU with index {self.index}" if self.card is None else self.card.uuid

    def hang(self) -> Hanging | None:
        """The error for a card whose last call has not returned; None where no call is in progress."""
        since = self.since
        return None if since is None else Hanging(self.name, time.monotonic() - since)


def _find(slot: Slot) -> Any:
    """The card's handle.

    A look-up by UUID makes NVML read, and start, the other cards as well, and would hang with them. So first check whether
    the index still leads to the card.
    """
    if slot.handle is None:
        card = slot.card
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(slot.index)
            found = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            if card is None or error.value not in STALE:
                raise
            found = None
        if card is not None and found != card.uuid:
            handle = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
        slot.handle = handle
    return slot.handle


def _ask_optional(slot: Slot, function: Callable[[Any], _T], absent: frozenset[int] = ABSENT) -> _T | None:
    """A function's answer about the card; None where it is not supported, which is remembered."""
    if function in slot.absent:
        return None
    handle = _find(slot)
    try:
        return function(handle)
    except pynvml.NVMLError as error:
        if error.value not in absent:
            raise
        slot.absent.add(function)
        return None


_BUSY_ABSENT = ABSENT | {pynvml.NVML_ERROR_NO_PERMISSION}


def read(slot: Slot) -> CardReading:
    """What the card has used and draws now, as far as it reports it."""
    counter: Millijoules | None = _ask_optional(slot, pynvml.nvmlDeviceGetTotalEnergyConsumption)
    draw: Milliwatts | None = _ask_optional(slot, pynvml.nvmlDeviceGetPowerUsage)
    if draw is not None and not 0 <= draw <= MOST_MILLIWATTS:
        draw = None
    return CardReading(counter, draw, _is_busy(slot))


def _is_busy(slot: Slot) -> bool:
    """Whether the card works; a card that shows neither utilization nor processes counts as idle.

    Utilization is not shown in MIG mode, and processes are then shown to root alone. A refusal of either must not cost the
    card's energy, hence no error.
    """
    rates = _ask_optional(slot, pynvml.nvmlDeviceGetUtilizationRates, _BUSY_ABSENT)
    if rates is not None:
        return bool(rates.gpu >= BUSY_PERCENT)
    return bool(_ask_optional(slot, pynvml.nvmlDeviceGetComputeRunningProcesses, _BUSY_ABSENT))


def read_current_limits(slot: Slot) -> CurrentLimits:
    """The power limit that is set, the one in force, and whether it binds now."""
    return CurrentLimits(
        set_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementLimit)),
        enforced_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetEnforcedPowerLimit)),
        binding=_is_binding(slot),
    )


_REASONS_ABSENT = ABSENT | {pynvml.NVML_ERROR_NO_PERMISSION}


def _is_binding(slot: Slot) -> bool | None:
    reasons: int | None = _ask_optional(
        slot, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, _REASONS_ABSENT
    )
    return None if reasons is None else bool(reasons & pynvml.nvmlClocksThrottleReasonSwPowerCap)


def set_limit(slot: Slot, milliwatts: Milliwatts) -> OutOfRange | None:
    """Set the card's power limit; OutOfRange where it does not accept this one."""
    try:
        pynvml.nvmlDeviceSetPowerManagementLimit(_find(slot), milliwatts)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_INVALID_ARGUMENT:
            raise
        # Either the value or the handle is wrong: the range, read with the same handle, shows which.
        least, most = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(_find(slot))
        allowed = f"its power limit is between {format_power(least)} and {format_power(most)}"
        return OutOfRange(slot.name, format_power(milliwatts), allowed)
    return None


def _read_limits(slot: Slot) -> PowerLimits:
    least, most = _ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementLimitConstraints) or (None, None)
    current = read_current_limits(slot)
    return PowerLimits(
        min_milliwatts=known_limit(least),
        default_milliwatts=known_limit(_ask_optional(slot, pynvml.nvmlDeviceGetPowerManagementDefaultLimit)),
        max_milliwatts=known_limit(most),
        set_milliwatts=current.set_milliwatts,
        enforced_milliwatts=current.enforced_milliwatts,
    )


def _read_limits_if_possible(slot: Slot, uuid: str) -> PowerLimits:
    """The card's limits; where these calls fail, the previous ones: its energy is read all the same."""
    try:
        return _read_limits(slot)
    except pynvml.NVMLError as error:
        if error.value in LOST or error.value in STALE or error.value in UNUSABLE:
            raise
        known = slot.card
        return known.limits if known is not None and known.uuid == uuid else PowerLimits()


def describe(slot: Slot) -> Card:
    """Everything about a card but its readings; from then on the slot knows its handle."""
    # What was not supported may be by now: it was switched on, or the answer was temporary.
    slot.absent.clear()
    handle = pynvml.nvmlDeviceGetHandleByIndex(slot.index)
    uuid: str = pynvml.nvmlDeviceGetUUID(handle)
    slot.handle = handle
    # [current, pending]: the pending mode comes with the next reset.
    mig = (_ask_optional(slot, pynvml.nvmlDeviceGetMigMode) or [0])[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    persistence = _ask_optional(slot, pynvml.nvmlDeviceGetPersistenceMode)
    return Card(
        uuid=uuid,
        index=slot.index,
        minor=_ask_optional(slot, pynvml.nvmlDeviceGetMinorNumber),
        model=pynvml.nvmlDeviceGetName(handle),
        partitioned=mig,
        partitions=_read_instances(handle) if mig else (),
        limits=_read_limits_if_possible(slot, uuid),
        persistence=None if persistence is None else bool(persistence),
    )


def _read_instances(handle: Any) -> tuple[Partition, ...]:
    """The card's MIG devices.

    A card has room for as many MIG devices as it has compute slices, since the smallest takes one (NVIDIA's MIG user guide:
    7 on A100 and H100, 4 on A30).
    """
    total: int = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    found = []
    for number in range(total):
        try:
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            attributes = pynvml.nvmlDeviceGetAttributes_v2(device)
            found.append(
                Partition(
                    uuid=pynvml.nvmlDeviceGetUUID(device),
                    gpu_instance=pynvml.nvmlDeviceGetGpuInstanceId(device),
                    compute_instance=pynvml.nvmlDeviceGetComputeInstanceId(device),
                    slices=attributes.computeInstanceSliceCount,
                    total_slices=total,
                )
            )
        except pynvml.NVMLError as error:
            # A slot without an instance, or one that was destroyed between two calls.
            if error.value not in STALE:
                raise
    return tuple(found)
