"""Whether an administrator's label lets the jobs of a namespace ask for more than Pod Security's baseline.

Read only for a job that does ask, and remembered for seconds: hardly a cluster has such jobs, and a watch on all
namespaces would be one right more.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from greentrain.api.names import LABEL_POD_SECURITY, POD_SECURITY_PRIVILEGED
from greentrain.kube.client import ApiError, Client

logger = logging.getLogger("greentrain.controller")

READ_SECONDS = 5.0
"""Longest an answer is waited for: the same pass keeps the job's budget."""

REMEMBERED_SECONDS = 5.0
"""How long an answer is used again; a label that is set or removed counts after that."""


class Namespaces:
    """What the labels of namespaces were when they were read last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, tuple[float, bool]] = {}
        self._unread: set[str] = set()

    async def is_privileged(self, name: str) -> bool:
        """Whether the namespace has the label; what was known last, else no, where it cannot be read now."""
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
