"""When a node's agent does what it does not do each second: what it reads, stores and reports.

Every time is an argument, in seconds on the monotonic clock.
"""

from __future__ import annotations

from greentrain.node.allowances import Haste

DISCOVER_SECONDS = 60.0
"""How often to read what seldom changes: which cards there are, their partitions, their limits."""

REOPEN_SECONDS = 10.0
"""How long to wait before NVML is opened again, and how soon to list again where a card has not even a name."""

LIST_OFTEN_SECONDS = 5.0
"""How long the kubelet is polled each second after a change of a pod."""

LIST_SECONDS = 5.0
"""How often it is polled at least: a watch may be late."""

HOST_SECONDS = 5.0
"""How often processors and memory are read: their counters wrap around within minutes at the earliest."""

HOST_RETRY_SECONDS = 300.0
"""How often to check whether a node has RAPL now."""

URGENT_SECONDS = 1.0
"""How soon a pod's end is reported, and at most how often."""

NEAR_SECONDS = 5.0
"""The shortest time between reports while a pod nears its allowance. The operator reacts in this time, and is to act before the
allowance is spent; more reports would show it little, since watts change slowly."""

GIVE_BACK_SECONDS = 10.0
"""How long to try to restore the cards' previous limits before NVML is closed; the journal has those that are left."""

_NEVER = float("-inf")


class ReportSchedule:
    """When the next report is due."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds from one report to the next where nothing is urgent."""
        self._interval = interval
        self._next = _NEVER
        self._reported = _NEVER

    def is_due(self, now: float) -> bool:
        """Whether it is to be made now."""
        return now >= self._next

    def note_reported(self, now: float, factor: float) -> None:
        """One is made now; the next follows after `factor` times the interval, so that nodes do not report in step."""
        self._reported = now
        self._next = now + self._interval * factor

    def hurry(self, seconds: float = URGENT_SECONDS) -> None:
        """Report soon: so long after the last report."""
        self._next = min(self._next, self._reported + seconds)

    def hurry_for(self, haste: Haste) -> None:
        """Report as soon as the changes of allowances require."""
        if haste != "None":
            self.hurry(URGENT_SECONDS if haste == "Now" else NEAR_SECONDS)


class ReadSchedule:
    """When devices are read, opened and closed."""

    def __init__(self, *, limits_interval: float) -> None:
        """`limits_interval`: seconds from one reading of the limits of cards without a cap to the next."""
        self._limits_interval = limits_interval
        self._listed = _NEVER
        self._list_often_until = _NEVER
        self._version = -1
        self._next_open = _NEVER
        self._next_discovery = _NEVER
        self._next_limits = _NEVER
        self._next_host = _NEVER
        self._paused_at: float | None = None

    def must_list(self, now: float, *, version: int, known: bool) -> bool:
        """Whether to request allocations from the kubelet: each second around any change of a pod, else seldom.

        Allocations change when a pod is bound, starts, ends or is removed. The watch on the node's pods shows each of these: it
        has another `version` then. This request is half of an agent's cost (measured). `known`: pods and allocations are known.
        """
        if self._version != version:
            self._version = version
            self._list_often_until = now + LIST_OFTEN_SECONDS
        return not known or now < self._list_often_until or now - self._listed >= LIST_SECONDS

    def note_listed(self, now: float) -> None:
        """The kubelet has answered."""
        self._listed = now

    def may_open(self, now: float) -> bool:
        """Whether to open NVML now; if so, not again for a while."""
        if now < self._next_open:
            return False
        self._next_open = now + REOPEN_SECONDS
        return True

    def note_opened(self, now: float) -> None:
        """NVML was opened: the cards are to be listed again."""
        self._next_discovery = now

    def must_discover(self, now: float) -> bool:
        """Whether to list the cards."""
        return now >= self._next_discovery

    def note_discovered(self, now: float, *, all_named: bool) -> None:
        """They were listed; where a card has not even a name, they are listed again soon."""
        self._next_discovery = now + (DISCOVER_SECONDS if all_named else REOPEN_SECONDS)

    def must_read_limits(self, now: float) -> bool:
        """Whether to read the limits of cards without a cap; if so, not again for a while."""
        if now < self._next_limits:
            return False
        self._next_limits = now + self._limits_interval
        return True

    def must_read_host(self, now: float) -> bool:
        """Whether to read processors and memory; if so, not again for a while."""
        if now < self._next_host:
            return False
        self._next_host = now + HOST_SECONDS
        return True

    def note_no_host(self, now: float) -> None:
        """They cannot be read here."""
        self._next_host = now + HOST_RETRY_SECONDS

    def must_close(self, now: float, *, paused: bool, changed: bool) -> bool:
        """Whether to close the driver's library: while `paused`, once we have restored each limit (none `changed`), or late."""
        if not paused:
            self._paused_at = None
            return False
        if self._paused_at is None:
            self._paused_at = now
        return not changed or now - self._paused_at >= GIVE_BACK_SECONDS


class StoreSchedule:
    """When the account is stored."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds after which what was counted is stored where nothing is new about a pod."""
        self._interval = interval
        self._next = _NEVER
        self.dirty = False
        """Whether something is new that must not be lost."""

    def is_due(self, now: float) -> bool:
        """Whether to store now."""
        return self.dirty or now >= self._next

    def note_tried(self, now: float) -> None:
        """An attempt to store was made now."""
        self._next = now + self._interval
