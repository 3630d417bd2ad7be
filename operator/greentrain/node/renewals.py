"""How a node's agent knows that the operator works: by the renewals of its Lease, and by the jobs that are named in it.

A renewal counts from when it is seen, as in client-go's leader election: the clocks of two machines may differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


class Renewals:
    """What was seen of the Lease; times are seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.renewed: float | None = None
        """When the last renewal was seen; None where none was."""
        self.unattended: dict[str, float] = {}
        """The jobs that the operator cannot reconcile, by UID, each with the time since when."""
        self._renew_time: str | None = None
        """The Lease's renewTime."""

    def take(
        self, renew_time: str | None, at: datetime | None, named: Iterable[str], *, now: float, wall: float
    ) -> bool:
        """Take in the Lease as it is; returns whether it names other jobs than before.

        `renew_time` is its renewTime as it is written, `at` the same as a time, `wall` the node's Unix time. The first Lease
        that is seen counts by its age on the wall clock, because it may be old: a restarted agent must not take a dead
        operator for a working one.
        """
        before = self.unattended
        self.unattended = {uid: before.get(uid, now) for uid in named if uid}
        if renew_time and renew_time != self._renew_time:
            age = 0.0 if self._renew_time is not None or at is None else max(0.0, wall - at.timestamp())
            self._renew_time, self.renewed = renew_time, now - age
        return self.unattended != before
