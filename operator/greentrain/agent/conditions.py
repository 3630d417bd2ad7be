"""The conditions of a node's NodePower as they are now; a log line and an early report where one changes."""

from __future__ import annotations

import logging

from greentrain.agent.clock import Clock
from greentrain.api.conditions import find_condition, set_condition
from greentrain.api.status import Condition
from greentrain.node.findings import Finding
from greentrain.node.schedule import ReportSchedule
from greentrain.quantities import format_unix_time

logger = logging.getLogger("greentrain.agent")


class Conditions:
    """One for each type with a finding."""

    def __init__(self, clock: Clock, reports: ReportSchedule) -> None:
        self._clock = clock
        self._reports = reports
        self.all: tuple[Condition, ...] = ()

    def set(self, found: Finding) -> None:
        """Take in one finding."""
        old = find_condition(self.all, found.type)
        if old is not None and (old.status, old.reason, old.message) == (
            found.status,
            found.reason,
            found.message,
        ):
            return  # nearly always; formatting the time for nothing was a tenth of a poll's cost (measured)
        self.all = set_condition(
            self.all,
            found.type,
            found.status,
            found.reason,
            found.message,
            now=format_unix_time(self._clock.wall()),
            generation=0,
        )
        if old is None or (old.status, old.reason) != (found.status, found.reason):
            level = logging.INFO if found.status == "True" else logging.WARNING
            logger.log(level, "%s: %s", found.type, found.message)
            self._reports.hurry()
