"""Whether an administrator's label lets the jobs of a namespace request more than Pod Security's baseline.

Read only for a job that does so, and cached for seconds: few clusters have such jobs, and a watch on all namespaces would be
one more right.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from greentrain.api.names import LABEL_POD_SECURITY, POD_SECURITY_PRIVILEGED
from greentrain.kube.client import ApiError, Client

logger = logging.getLogger("greentrain.controller")

READ_SECONDS = 5.0
"""Longest wait for an answer: the same pass enforces the job's budget."""

REMEMBERED_SECONDS = 5.0
"""How long an answer is cached; a label that is set or removed counts after that."""


class Namespaces:
    """The labels of namespaces, as they were read last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, tuple[float, bool]] = {}
        self._unread: set[str] = set()

    async def is_privileged(self, name: str) -> bool:
        """Whether the namespace has the label; where it cannot be read now, the last known answer, else no."""
        now = asyncio.get_running_loop().time()
        asked, known = self._known.get(name, (float("-inf"), False))
        if now - asked < REMEMBERED_SECONDS:
            return known
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await self._client.read_namespace(name)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            gone = isinstance(error, ApiError) and error.status == 404
            found = False if gone else known
            if not gone and name not in self._unread:
                self._unread.add(name)
                text = "namespace %s cannot be read (%r): its jobs may ask for %s until it can be"
                logger.warning(text, name, error, "what they might before" if known else "baseline alone")
        else:
            labels = (body.get("metadata") or {}).get("labels") or {}
            found = labels.get(LABEL_POD_SECURITY) == POD_SECURITY_PRIVILEGED
            self._unread.discard(name)
        self._known[name] = (now, found)
        return found
