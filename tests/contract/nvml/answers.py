"""Answers and looks that the simulated cards' own controls have no name for."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Awaitable, Callable, Mapping

from sandbox.simgpu.build import apply_libraries
from sandbox.simgpu.cards import FOREVER, Calls, Cards

STATE = "GREENTRAIN_SIMGPU_STATE"

_FAIL = 1
_ALL_CARDS = 16


def answer(
    state: Cards, card: int | None, code: int, calls: Calls = Calls.ENERGY | Calls.POWER | Calls.UTILIZATION
) -> None:
    """Let these calls answer any of NVML's codes until faults are cleared; `None` is every card."""
    library = ctypes.CDLL(str(apply_libraries().control))
    library.simgpu_open.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    library.simgpu_add_fault.argtypes = [ctypes.c_void_p, *[ctypes.c_uint32] * 3, *[ctypes.c_uint64] * 3]
    library.simgpu_close.argtypes = [ctypes.c_void_p]
    mapping, writable = ctypes.c_void_p(), ctypes.c_int()
    path = str(state.path).encode()
    assert library.simgpu_open(path, ctypes.byref(mapping), ctypes.byref(writable)) == 0
    scope = _ALL_CARDS if card is None else card
    assert library.simgpu_add_fault(mapping, scope, _FAIL, int(calls), 0, FOREVER, code) == 0
    library.simgpu_close(mapping)


def rename_cards(state: Cards, names: Mapping[str, str]) -> None:
    """Let cards have other UUIDs, for programs that have NVML open too: as if indices led to other cards."""
    with state.path.open("r+b") as file:
        content = file.read()
        for old, new in names.items():
            assert len(old) == len(new)
            place = content.find(old.encode())
            while place >= 0:
                file.seek(place)
                file.write(new.encode())
                place = content.find(old.encode(), place + 1)


def read_threads() -> int:
    """How many threads there are for calls to NVML."""
    return sum(thread.name == "nvml" for thread in threading.enumerate())


def read_uuids(state: Cards) -> list[str]:
    """The cards' UUIDs by index."""
    return [state.read_card(card).uuid for card in state]


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Wait for what comes about soon, such as the return of a call that does not hang any more."""
    for _ in range(round(seconds / 0.01)):
        if await check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


async def no_thread() -> bool:
    """Whether every thread for calls to NVML has ended."""
    return read_threads() == 0
