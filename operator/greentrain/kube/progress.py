"""Requests the progress of a training container.

A user's program answers: the answer is bounded in time and size, parsed strictly, and used only to show progress.
"""

from __future__ import annotations

import aiohttp

from greentrain.api.runtime import PROGRESS_MAX_BYTES, PROGRESS_PORT, Progress, parse_progress
from greentrain.kube.answers import read_at_most

TIMEOUT_SECONDS = 2


async def read_progress(
    session: aiohttp.ClientSession, address: str, port: int = PROGRESS_PORT
) -> Progress | None:
    """Read `GET /progress` of a pod; None where there is no valid answer in time."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with session.get(
            f"http://{host}:{port}/progress",
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            allow_redirects=False,
        ) as answer:
            if answer.status != 200:
                return None
            text = await read_at_most(answer, PROGRESS_MAX_BYTES)
            return None if text is None else parse_progress(text)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
