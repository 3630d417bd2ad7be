"""The judge of every joule: an exact integral of what the cards drew, behind no NVML symbol.

It reads the cards' own list of changes and multiplies integers (mW × ns = pJ). It knows nothing of NVML's counter, its
steps and its faults, so it can say how right a program is that has only those. Each joule belongs to the pod that the
card was allocated to at that time, as the test or the daemon reported; when there was none, to `IDLE`.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from sandbox.simgpu.cards import NANOSECONDS, PICOJOULES, BadValueError, Cards

IDLE = "idle"

LAG_NS = 10 * NANOSECONDS
"""How old a stretch of the machine's clock must be to be final: a change may become known 10 ms after its time, a
holder whenever its pod has been seen."""

_Change = TypeVar("_Change")


def _since(changes: list[tuple[int, _Change]], at_ns: int) -> list[tuple[int, _Change]]:
    """The change that holds at a time, and all later ones."""
    return changes[max(0, bisect_right([at for at, _ in changes], at_ns) - 1) :]


class _CardMeter:
    """One card's integral, final up to `until_ns`; later changes and holders wait until they are."""

    def __init__(self, uuid: str, until_ns: int) -> None:
        self.uuid = uuid
        self.until_ns = until_ns
        self.next_event = 0
        self.draws: list[tuple[int, int]] = []
        self.holders: list[tuple[int, str]] = [(until_ns, IDLE)]
        self.picojoules: dict[str, int] = {}

    def read(self, until_ns: int) -> dict[str, int]:
        """Picojoules by holder from the first event to `until_ns`."""
        shares = dict(self.picojoules)
        changes = [at for at, _ in [*self.draws, *self.holders] if self.until_ns < at < until_ns]
        draw_times, hold_times = [at for at, _ in self.draws], [at for at, _ in self.holders]
        for start, end in pairwise(sorted({self.until_ns, until_ns, *changes})):
            draw = self.draws[bisect_right(draw_times, start) - 1][1]
            holder = self.holders[bisect_right(hold_times, start) - 1][1]
            shares[holder] = shares.get(holder, 0) + draw * (end - start)
        return shares

    def settle(self, until_ns: int) -> None:
        """Make everything up to `until_ns` final."""
        if until_ns > self.until_ns:
            self.picojoules = self.read(until_ns)
            self.until_ns = until_ns
            self.draws = _since(self.draws, until_ns)
            self.holders = _since(self.holders, until_ns)


class Meter:
    """The exact energy of every card of a state since it was made, by holder.

    Drain it at least once per 8000 changes of a card's draw. With a path, `save` keeps it there and the next meter of
    that path goes on where it was saved.
    """

    def __init__(self, cards: Cards, path: Path | None = None) -> None:
        self._cards = cards
        self._path = path
        self._meters: list[_CardMeter] = []
        saved = json.loads(path.read_text()) if path is not None and path.exists() else None
        for card in cards:
            uuid = cards.read_card(card).uuid
            first = cards.drain_events(card)[0][0].at_ns if saved is None else 0
            meter = _CardMeter(uuid, first)
            if saved is not None:
                self._restore(meter, saved[card] if card < len(saved) else {}, cards.read_card(card).events)
            self._meters.append(meter)
        self.drain()

    def _restore(self, meter: _CardMeter, saved: dict[str, Any], events: int) -> None:
        # A state made anew from the same seed has the same UUIDs, but fewer changes.
        if saved.get("uuid") != meter.uuid or saved["nextEvent"] > events:
            raise BadValueError(f"path: {self._path} has joules of other cards; name another file")
        meter.until_ns = saved["untilNanoseconds"]
        meter.next_event = saved["nextEvent"]
        meter.draws = [(at, draw) for at, draw in saved["draws"]]
        meter.holders = [(at, holder) for at, holder in saved["holders"]]
        meter.picojoules = saved["picojoules"]

    def hold(self, card: int, holder: str | None, at_ns: int | None = None) -> None:
        """Report which pod a card is allocated to from a time on (`None`: none); times of one card must not go backwards.

        Raises:
            BadValueError: the time is before the last one reported, or so old that its joules are attributed already.
        """
        meter = self._meters[card]
        at = self._cards.now_ns if at_ns is None else at_ns
        earliest = max(meter.until_ns, meter.holders[-1][0])
        if at < earliest:
            raise BadValueError(
                f"at_ns: {at} is before {earliest}; report allocations in order and within {LAG_NS} ns"
            )
        meter.holders.append((at, IDLE if holder is None else holder))

    def drain(self) -> None:
        """Take over what happened since; what is old enough becomes final.

        Raises:
            EventsLostError: it was not drained often enough.
        """
        now = self._cards.now_ns
        for card, meter in enumerate(self._meters):
            events, meter.next_event = self._cards.drain_events(card, meter.next_event)
            meter.draws.extend((event.at_ns, event.milliwatts) for event in events)
            meter.settle(now if self._cards.virtual else now - LAG_NS)

    def read(self, card: int, at_ns: int | None = None) -> dict[str, int]:
        """Picojoules of a card by holder, up to now or to a time that is not final yet."""
        self.drain()
        meter = self._meters[card]
        at = self._cards.now_ns if at_ns is None else at_ns
        if at < meter.until_ns:
            raise BadValueError(
                f"at_ns: {at} is before {meter.until_ns}, up to which joules are only known summed"
            )
        return meter.read(at)

    def total(self, card: int, at_ns: int | None = None) -> int:
        """Picojoules of a card, of all pods and idle."""
        return sum(self.read(card, at_ns).values())

    def joules(self, card: int, holder: str, at_ns: int | None = None) -> float:
        """Joules of a card that one holder answers for, rounded to a float."""
        return self.read(card, at_ns).get(holder, 0) / PICOJOULES

    def save(self) -> None:
        """Write everything to the meter's file, whole or not at all."""
        if self._path is None:
            raise BadValueError("path: None; give Meter a path to save to")
        self.drain()
        content = [
            {
                "uuid": meter.uuid,
                "untilNanoseconds": meter.until_ns,
                "nextEvent": meter.next_event,
                "draws": meter.draws,
                "holders": meter.holders,
                "picojoules": meter.picojoules,
            }
            for meter in self._meters
        ]
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self._path)
