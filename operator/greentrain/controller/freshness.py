"""Finds out whether the watches deliver what the server has.

A watch can go silent without ending: a proxy that lost the connection, a half-dead server, a fault in the watching library
(kopf#1276 is about one). Passes still converge, because every list corrects the cache, but late. The evidence is a change
that a list shows and the watch does not deliver. A change in transit arrives within seconds, so the verdict waits. None is
given while the server cannot be read, because then no event can be expected of a watch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

REOPENINGS = 3
"""Stale verdicts in a row, each answered by opening the watches again, before a restart of the process is requested."""


class Stream(NamedTuple):
    """One watch: a kind, in one namespace or in all."""

    kind: str
    namespace: str | None

    def __str__(self) -> str:
        where = "all namespaces" if self.namespace is None else f"namespace {self.namespace}"
        return f"{self.kind}s in {where}"


@dataclass(slots=True)
class _Evidence:
    awaited: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By UID of an object: the resourceVersion of a change that the watch owes, and since when that is known."""
    verdicts: int = 0
    judged: float = float("-inf")
    """When the last verdict was given."""
    since: float | None = None
    """When the first change of the present row of verdicts was found."""


class Freshness:
    """What each watch owes; times are seconds of any monotonic clock."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._streams: dict[Stream, _Evidence] = {}
        self.is_readable = True
        """Whether the server could be read last time. While it cannot, no verdict counts."""

    def missed(self, stream: Stream, uid: str, version: int, *, now: float) -> None:
        """A list showed a change that the watch has not delivered."""
        known = self._streams.setdefault(stream, _Evidence())
        known.awaited.setdefault(uid, (version, now))
        if known.since is None:
            known.since = now

    def brought(self, stream: Stream, uid: str, version: int, *, listed: bool = False) -> None:
        """An event came: by the watch, or by the list (`listed`) with which a watch begins.

        Versions only grow in a stream, so an older change will not come any more: it was lost in a gap between two watches,
        not to a stale one.
        """
        known = self._streams.get(stream)
        if known is None:
            return
        known.awaited = {u: a for u, a in known.awaited.items() if u != uid and a[0] > version}
        if not listed:
            known.verdicts = 0
        if not known.verdicts and not known.awaited:
            del self._streams[stream]

    def unreadable(self) -> None:
        """The server could not be read: no watch owes a change until it can be."""
        self.is_readable = False
        self._owe_nothing()

    def readable(self, *, now: float) -> None:
        """The server was read. A verdict that is not confirmed within ten graces is dropped."""
        self.is_readable = True
        for stream, known in list(self._streams.items()):
            if not known.awaited and now - known.judged > 10 * self._grace:
                del self._streams[stream]

    def _owe_nothing(self) -> None:
        for stream, known in list(self._streams.items()):
            known.awaited.clear()
            if not known.verdicts:
                del self._streams[stream]

    @property
    def suspicious(self) -> bool:
        """Whether a watch owes a change, or did before it was opened again."""
        return bool(self._streams)

    def overdue(self, *, now: float) -> tuple[Stream, ...]:
        """Watches that owe a change for longer than the grace; call right after the server was read."""
        return tuple(
            stream
            for stream, known in self._streams.items()
            if any(now - since >= self._grace for _, since in known.awaited.values())
        )

    def reopened(self, stale: tuple[Stream, ...] = (), *, now: float) -> None:
        """All watches were opened again, because these were stale: they owe nothing now."""
        for stream in stale:
            self._streams[stream].verdicts += 1
            self._streams[stream].judged = now
        self._owe_nothing()

    @property
    def verdicts(self) -> int:
        """The most stale verdicts in a row of any watch."""
        return max((known.verdicts for known in self._streams.values()), default=0)

    def problem(self, *, now: float) -> str | None:
        """Why only a restart is left, as a message; None while the watches are well or may recover."""
        for stream, known in self._streams.items():
            if known.verdicts >= REOPENINGS:
                silent = now - (known.since if known.since is not None else now)
                return (
                    f"the watch on {stream} has brought nothing for {silent:.0f} s although the server has changed, "
                    f"and opening it again {known.verdicts} times did not help"
                )
        return None
