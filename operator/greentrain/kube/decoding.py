"""Reads JSON of any depth: unbounded nesting by a user must not end the program that reads it.

The API server stores up to 10,000 levels of lists where a schema keeps unknown fields, as in a pod template. Python's own
decoder raises RecursionError at fewer than a thousand, and so does most code that traverses the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from pydantic_core import from_json

KEPT_LEVELS = 128
"""Levels of maps and lists that are kept where a text is deeper than the decoder reads (pydantic-core: 201). Each map or list
below is replaced by null. Admission rejects by path what is deeper than 64 in a template (`core.limits`). A template in a
list of jobs begins at the seventh level, so that the rest of such a one is rejected all the same."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)


def decode(text: bytes | str) -> Any:
    """The value of a JSON text; of one that is deeper than 201 levels the first 128.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return from_json(text)
    except ValueError:
        shallow = flatten(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        return from_json(shallow)
    except ValueError:
        return json.loads(shallow)  # halves of surrogate pairs, which it accepts


def flatten(text: bytes) -> bytes:
    """The JSON text with null for each map and list below `KEPT_LEVELS`; takes time in proportion to its length.

    Raises:
        ValueError: a string in it has no end.
    """
    parts: list[bytes] = []
    depth = kept = 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth == KEPT_LEVELS + 1:
                parts += (text[kept : found.start()], b"null")
        elif token in (b"]", b"}"):
            if depth == KEPT_LEVELS + 1:
                kept = found.end()
            depth -= 1
        elif token == b'"':
            raise ValueError(f"a string that begins at byte {found.start()} of a JSON text has no end")
    if depth > KEPT_LEVELS:
        raise ValueError("a JSON text has no end")
    parts.append(text[kept:])
    return b"".join(parts)


async def whole_lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream without their ends; text after the last end is dropped, since the watch was cut off in it."""
    parts: list[bytes] = []  # joined once: a line that comes in many chunks is not copied with each
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join((*parts, line))
            parts.clear()
        if rest:
            parts.append(rest)
