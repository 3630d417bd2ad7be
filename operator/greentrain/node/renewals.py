"""How a node's agent hears the operator: by the renewals of its Lease, and by the jobs that are named in them.

A renewal is heard when it is seen, as client-go's leader election does: clocks of two machines may differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


class Renewals:
    """What was seen of the Lease; times are seconds on the clock that only goes on."""

    def __init__(self) -> None:
        self.renewed: float | None = None
        """When the operator was last heard; None where it never was."""
        self.unattended: dict[str, float] = {}
        """Since when it says that it cannot look after a job, by the job's UID."""
        self._renew_time: str | None = None
        """When it renewed its lease last, as it says itself."""

    def take(
        self, renew_time: str | None, at: datetime | None, named: Iterable[str], *, now: float, wall: float
    ) -> bool:
        """Take in the Lease as it is; whether it names other jobs than before.

        `renewed` is its renewTime as it is written, `at` the same as a time, `wall` the node's Unix time. How long the first
        that is seen has been there is not known, so its age by the wall clock counts: an agent that begins anew does not take a
        dead operator for a living one.
        """
        before = self.unattended
        self.unattended = {uid: before.get(uid, now) for uid in named if uid}
        if renew_time and renew_time != self._renew_time:
            age = 0.0 if self._renew_time is not None or at is None else max(0.0, wall - at.timestamp())
            self._renew_time, self.renewed = renew_time, now - age
        return self.unattended != before
