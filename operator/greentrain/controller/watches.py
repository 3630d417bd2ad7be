"""Keeps Kopf running: opens the watches, and opens them again when they ended or were found stale.

Kopf ends as a whole on what it does not expect: an error event other than 410 in a watch, an answer that is not JSON, a 409
on a list. A new Kopf in the same process lists everything again and loses nothing; passes go on meanwhile. Only when that
does not help either, a restart of the process is requested (`problem`).

`kopf.operator` is not used. At its end it cancels every task of the event loop that began after it, requests of passes
among them, and it handles signals by itself. `kopf.spawn_tasks` gives the same tasks. We end these ourselves, with all other
tasks that Kopf's code has begun: a scan of the API that failed in one part leaves the others running.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf

from greentrain.controller.registry import Seen, Sessions, build_kopf_settings, build_registry
from greentrain.controller.settings import Settings
from greentrain.telemetry.metrics import Telemetry

logger = logging.getLogger("greentrain.controller")

ENDED_TOO_OFTEN = 10
"""Watches that end by themselves so often in a row, with more than a minute of waits between them, are not repaired by opening
them again."""

SOUND_SECONDS = 60.0
"""Watches that lasted this long were sound."""

LONGEST_WAIT_SECONDS = 10.0
CLOSE_SECONDS = 10.0
CANCEL_AGAIN_SECONDS = 1.0
_KOPF = Path(kopf.__file__).parent


class Watches:
    """Kopf, started as often as needed."""

    def __init__(
        self,
        settings: Settings,
        seen: Seen,
        telemetry: Telemetry,
        *,
        opened: Callable[[], None],
        claim_signals: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._seen = seen
        self._telemetry = telemetry
        self._opened = opened
        self._claim_signals = claim_signals
        self._reopen = asyncio.Event()
        self._ended = 0
        self._last_end = ""
        self.open = False
        """Whether Kopf runs. While it does not, no event is expected of a watch."""

    def reopen(self) -> None:
        """Close all watches and open them again."""
        self._reopen.set()

    def problem(self) -> str | None:
        """Why only a restart is left; None while the watches are open or may recover."""
        if self._ended < ENDED_TOO_OFTEN:
            return None
        return f"the watches ended by themselves {self._ended} times in a row, last with {self._last_end}"

    async def run(self) -> None:
        """Keep the watches open until cancelled."""
        loop = asyncio.get_running_loop()
        cause = "start"
        while True:
            self._telemetry.watch_openings.labels(cause).inc()
            self._reopen.clear()
            begun = loop.time()
            ended_with = await self._watch()
            if ended_with is None:
                cause = "stale"
                continue
            cause = "ended"
            self._ended = 1 if loop.time() - begun >= SOUND_SECONDS else self._ended + 1
            self._last_end = ended_with
            wait = min(0.5 * (1 << min(self._ended - 1, 10)), LONGEST_WAIT_SECONDS)
            wait *= 0.75 + 0.5 * random.random()
            logger.warning("the watches ended by themselves (%s); opened again in %.1f s", ended_with, wait)
            await asyncio.sleep(wait)

    async def _watch(self) -> str | None:
        """Run one Kopf to its end: None where that was requested, else what ended it."""
        closing = asyncio.Event()
        sessions = Sessions(self._settings, self._seen)
        before = asyncio.all_tasks()
        roots = await kopf.spawn_tasks(
            registry=build_registry(sessions),
            settings=build_kopf_settings(inactivity=self._settings.watch_inactivity),
            namespaces=self._settings.namespaces,
            clusterwide=not self._settings.namespaces,
            stop_flag=closing,
        )
        if self._claim_signals is not None:
            # Kopf has just taken SIGTERM and SIGINT.
            self._claim_signals()
        self.open = True
        self._opened()
        reopening = asyncio.create_task(self._reopen.wait(), name="reopen")
        sound = asyncio.create_task(self._forget_ends(), name="sound")
        try:
            done, _ = await asyncio.wait([*roots, reopening], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.open = False
            closing.set()
            reopening.cancel()
            sound.cancel()
            await _end(before)
            await sessions.close()
        if self._reopen.is_set():
            return None
        errors = [t.exception() for t in done if not t.cancelled()]
        return ", ".join(type(e).__name__ for e in errors if e is not None) or "no error"

    async def _forget_ends(self) -> None:
        await asyncio.sleep(SOUND_SECONDS)
        self._ended = 0


async def _end(before: set[asyncio.Task[Any]]) -> None:
    """Cancel Kopf's tasks but those that existed before; its last one waits for the others and disconnects."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CLOSE_SECONDS
    while left := {t for t in asyncio.all_tasks() - before if _is_kopfs(t)}:
        if loop.time() > deadline:
            names = sorted(task.get_name() for task in left)
            logger.error("Kopf did not end within %.0f s: %s", CLOSE_SECONDS, ", ".join(names))
            return
        for task in left:
            # A watch that is cancelled with its pause would take this for the pause's end, and ignore its own cancellation.
            if not task.get_name().startswith("pause-waiter"):
                task.cancel()
        done, _ = await asyncio.wait(left, timeout=CANCEL_AGAIN_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved, or the loop would warn; the first one was logged


def _is_kopfs(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and Path(code.co_filename).is_relative_to(_KOPF)
