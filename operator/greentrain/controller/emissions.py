"""What emissions are counted with: the sources of the operator's settings, read again as their files change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from greentrain.core.seen.intensities import CarbonSource
from greentrain.grid.chain import Sources
from greentrain.grid.embodied import EmbodiedTable
from greentrain.grid.settings import EmissionsSettings

logger = logging.getLogger("greentrain.controller")

REFRESH_SECONDS = 30.0
"""How often files are looked at; the kubelet takes about a minute to bring a changed ConfigMap."""


class Emissions:
    """The sources, refreshed, and what a pass takes from them."""

    def __init__(self, settings: EmissionsSettings, *, counted: Callable[[int], None]) -> None:
        """As the settings say; `counted` is given how many problems the sources have."""
        self._settings = settings
        self._sources = Sources(settings)
        self._figures = EmbodiedTable(settings.embodied.models)
        self._counted = counted
        self._problems: tuple[str, ...] = ()
        self.source: CarbonSource | None = None
        """What is known now; None before the first `refresh`. It is exchanged whole, so that a pass may keep the one it began
        with."""

    async def refresh(self) -> None:
        """Read what has changed; each problem is logged when it is new."""
        grid, problems = await self._sources.refresh()
        self.source = CarbonSource(
            at=grid.at,
            zone_of=grid.zone_of,
            is_known=grid.is_known,
            suggest=grid.suggest,
            embodied=self._figures.find,
            lifetime_seconds=self._settings.embodied.lifetime_seconds,
            pue=self._settings.pue,
            basis=self._settings.basis,
            include_embodied=self._settings.include_embodied,
        )
        for problem in problems:
            if problem not in self._problems:
                logger.warning("emissions: %s", problem)
        if self._problems and not problems:
            logger.info("emissions: every source can be read again")
        self._problems = problems
        self._counted(len(problems))

    async def work(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()
