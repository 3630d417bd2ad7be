"""What a node's agent has counted, on the disk: stored before each report, so that what was reported is not taken back.

Where that fails, the condition JournalWritable is False, and the report is made all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from greentrain.agent.clock import Clock
from greentrain.agent.conditions import Conditions
from greentrain.agent.journal import Journal, begin
from greentrain.agent.ports import View
from greentrain.node import pods
from greentrain.node.findings import NOT_WRITTEN_YET, judge_journal
from greentrain.node.schedule import ReportSchedule, StoreSchedule

logger = logging.getLogger("greentrain.agent")


class StoredAccount:
    """One node's account and its journal."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        conditions: Conditions,
        reports: ReportSchedule,
        *,
        interval: float,
    ) -> None:
        """`interval`: seconds after which what was counted is stored where nothing is new about a pod."""
        self._journal = journal
        self._clock = clock
        self._conditions = conditions
        self._reports = reports
        self._stores = StoreSchedule(interval)
        self._heir = False
        """Whether what an earlier account reported may still have to be taken over."""
        self.account = begin()

    def load(self) -> None:
        """Continue the account on the disk, or begin one where there is none or it cannot be read."""
        try:
            self.account, problem = self._journal.load()
        except OSError as failure:
            problem = f"the journal cannot be read: {failure.strerror}"
        if problem is not None:
            logger.error("%s; a new account begins", problem)
        # NodePower may have the final report of an account before this one, which perhaps has not reported yet either.
        self._heir = True
        self._conditions.set(NOT_WRITTEN_YET)

    def note_new(self, new: bool) -> None:
        """Whether something is new that must not be lost, such as a pod's end."""
        self._stores.dirty = self._stores.dirty or new

    def store(self) -> None:
        """Store the account now."""
        self._stores.note_tried(self._clock.elapsed())
        try:
            self._journal.store(self.account.to_json())
        except OSError as error:
            self._conditions.set(judge_journal(error.strerror or str(error)))
            return
        if self._stores.dirty:
            self._stores.dirty = False
            self._reports.hurry()
        self._conditions.set(judge_journal(None))

    def store_if_due(self) -> None:
        """Store the account where something is new, or it is time."""
        if self._stores.is_due(self._clock.elapsed()):
            self.store()

    def drop_settled(self, settled: Collection[str]) -> None:
        """Drop what the operator has settled; stored before the next report, so that it does not come back."""
        gone = pods.drop_settled(self.account, settled, wall=self._clock.wall())
        for key in gone.given_up:
            logger.error(
                "a GPU that was allocated to pod %s can no longer be read: part of its energy is missing", key
            )
        for key in gone.overdue:
            logger.error(
                "the energy of pod %s was not settled by any operator for 24 hours and is dropped", key
            )
        self.note_new(gone.new)

    async def inherit(self, view: View) -> None:
        """Take over the final reports of an account before this one, once.

        Raises:
            ApiError, aiohttp.ClientError, OSError: it could not be read.
        """
        if not self._heir:
            return
        count = pods.inherit(self.account, await view.read_status())
        if count:
            logger.warning(
                "the journal is new, but NodePower has %d pods of an earlier one: they are reported until they are settled",
                count,
            )
            self.store()
        self._heir = False
