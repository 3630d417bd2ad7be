"""What emissions are counted with: the sources of the operator's settings, read again as their files change.

Passes look values up in memory; files are read in a thread, since a year of a grid's values takes seconds to parse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from greentrain.core.emissions import Carbon
from greentrain.grid.chain import Grid
from greentrain.grid.embodied import EmbodiedTable
from greentrain.grid.settings import EmissionsSettings

logger = logging.getLogger("greentrain.controller")

REFRESH_SECONDS = 30.0
"""How often files are looked at; the kubelet takes about a minute to bring a changed ConfigMap."""


class Emissions:
    """The sources, refreshed, and what they amount to for a pass."""

    def __init__(self, settings: EmissionsSettings, *, told: Callable[[int], None]) -> None:
        """As the settings say; `told` is given how many problems the sources have."""
        self._grid = Grid(settings)
        self._told = told
        self._problems: tuple[str, ...] = ()
        self.carbon = Carbon(
            at=self._grid.at,
            zone_of=self._grid.zone_of,
            is_known=self._grid.is_known,
            suggest=self._grid.suggest,
            embodied=EmbodiedTable(settings.embodied.models).find,
            lifetime_seconds=settings.embodied.lifetime_seconds,
            pue=settings.pue,
            basis=settings.basis,
            include_embodied=settings.include_embodied,
        )

    async def refresh(self) -> None:
        """Read what has changed; each problem is logged when it is new."""
        problems = await asyncio.to_thread(self._grid.refresh)
        for problem in problems:
            if problem not in self._problems:
                logger.warning("emissions: %s", problem)
        if self._problems and not problems:
            logger.info("emissions: every source can be read again")
        self._problems = problems
        self._told(len(problems))

    async def work(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()
