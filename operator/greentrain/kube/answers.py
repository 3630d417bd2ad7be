"""How answers of the API server are read: no more of them than is needed, and lists in pages that fit their objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

LIST_PAGE = 500
"""Objects in one answer to a list, at most."""

FIRST_PAGE = 16
"""Objects in the first answer, when it is not known how large they are."""

LIST_BYTES = 1024 * 1024
"""An answer to a list is read up to so many bytes. A longer one is requested again with a quarter of the objects, down to one:
a tenant may have any number of jobs of 1.5 MiB, and a text's parsed form takes up to twenty times its length."""

LONGEST_RETRY_AFTER_SECONDS = 300.0


class Pages:
    """How many objects a list requests at once: so many that an answer has about half of `LIST_BYTES`."""

    def __init__(self, most: int = LIST_PAGE) -> None:
        self._most = most
        self.limit = min(FIRST_PAGE, most)

    @property
    def most_bytes(self) -> int | None:
        """Up to how many bytes the answer is read; of one object the whole."""
        return LIST_BYTES if self.limit > 1 else None

    def shrink(self) -> None:
        """The answer was too long."""
        self.limit = max(self.limit // 4, 1)

    def fit(self, size: int) -> None:
        """The answer had so many bytes."""
        self.limit = min(max(LIST_BYTES // 2 * self.limit // max(size, 1), 1), 4 * self.limit, self._most)


async def read_at_most(response: aiohttp.ClientResponse, most: int | None) -> bytes | None:
    """An answer's body; None, and the connection closed, where it is longer than that many bytes."""
    if most is None:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in response.content.iter_any():
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                response.close()
                return None
    except BaseException:
        # As `read` does: else the connection of an answer that was cut off stays open until it is garbage-collected.
        response.close()
        raise
    return b"".join(parts)


async def read_until_end(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What a stream delivers until it ends, breaks or is silent for too long."""
    chunks = response.content.iter_any()
    while True:
        try:
            chunk = await anext(chunks)
        except (StopAsyncIteration, aiohttp.ClientError, OSError):  # TimeoutError is an OSError
            return
        yield chunk


def read_retry_after(header: str | None, answer: Mapping[str, Any]) -> float | None:
    """Seconds from the Retry-After header (RFC 9110; the API server writes seconds) or the Status' details."""
    said = header if header is not None else (answer.get("details") or {}).get("retryAfterSeconds")
    try:
        seconds = float(said) if said is not None else None
    except (TypeError, ValueError):  # a date, which the API server does not write
        return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
