"""The sources of carbon intensity of the operator's settings, read again when their files change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from greentrain.api.spec import Basis
from greentrain.carbon.intensity import Absent, Intensity
from greentrain.controller.clock import read_elapsed
from greentrain.core.seen.intensities import CarbonSource
from greentrain.grid.chain import Grid, Sources
from greentrain.grid.embodied import EmbodiedTable
from greentrain.grid.settings import EmissionsSettings
from greentrain.grid.source import Source

logger = logging.getLogger("greentrain.controller")

REFRESH_SECONDS = 30.0
"""How often files are read; the kubelet takes about a minute to bring a changed ConfigMap."""

WANTED_SECONDS = 3600.0
"""How long a zone is requested of sources after a pass requested it last: a job's passes are minutes apart at most."""


class Emissions:
    """The sources, refreshed, and what a pass takes from them."""

    def __init__(
        self,
        settings: EmissionsSettings,
        *,
        counted: Callable[[int], None],
        sources: Iterable[Source] | None = None,
        elapsed: Callable[[], float] = read_elapsed,
    ) -> None:
        """By the settings, or with these sources; `counted` is given how many problems they have."""
        self._settings = settings
        self._sources = Sources(settings, sources)
        self._elapsed = elapsed
        self._asked: dict[str, float] = {}
        """When a pass last requested a zone."""
        self._figures = EmbodiedTable(settings.embodied.models)
        self._counted = counted
        self._problems: tuple[str, ...] = ()
        self.source: CarbonSource | None = None
        """What is known now; None before the first `refresh`. It is replaced as a whole, so that a pass may keep the one it
        began with."""

    async def refresh(self) -> None:
        """Read what has changed; each problem is logged when it is new."""
        now = self._elapsed()
        self._asked = {zone: at for zone, at in self._asked.items() if now - at < WANTED_SECONDS}
        grid, problems = await self._sources.refresh(frozenset(self._asked))
        self.source = CarbonSource(
            at=self._noting(grid),
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

    def _noting(self, grid: Grid) -> Callable[[str, Basis, float], Intensity | Absent]:
        """The grid's answers; notes which zones are requested."""

        def at(zone: str, basis: Basis, moment: float) -> Intensity | Absent:
            self._asked[zone] = self._elapsed()
            return grid.at(zone, basis, moment)

        return at

    async def work(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()
