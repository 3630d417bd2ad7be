"""A snapshot as bytes, so that a pass that went wrong in a cluster can be decided again elsewhere.

A decision depends only on the snapshot and the time: the same bytes give the same decision on every machine. The format
may differ between versions: what another version wrote may be refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from math import isinf
from typing import Any

from pydantic import TypeAdapter, ValidationError

from greentrain.core.seen.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """The snapshot of one pass, and its time."""

    now: datetime
    """The time of the decision, with its offset."""
    seen: Snapshot


_STORED = TypeAdapter(StoredSnapshot)


def dump_snapshot(seen: Snapshot, *, now: datetime) -> bytes:
    """The snapshot as JSON; it contains the job's whole spec, with the values of its containers' environment."""
    plain = _STORED.dump_python(StoredSnapshot(now, seen), mode="json", by_alias=True)
    return json.dumps(_spell(plain), indent=1).encode()


def _spell(value: Any) -> Any:
    """The same value with infinity as a text, because JSON has no number for it: a grid's value may be valid without end."""
    if isinstance(value, dict):
        return {key: _spell(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_spell(part) for part in value]
    return str(value) if isinstance(value, float) and isinf(value) else value


def load_snapshot(content: bytes) -> StoredSnapshot:
    """Read what `dump_snapshot` wrote.

    Raises:
        ValueError: it is no such JSON; the text names the first field that is wrong.
    """
    try:
        stored = _STORED.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"is no snapshot of this version: {where}: {first['msg'][:200]}") from None
    if stored.now.tzinfo is None:
        raise ValueError("is no snapshot of this version: now: has no offset from UTC")
    # pydantic ignores a field that this version does not know, and the decision might differ: such JSON is refused.
    again = json.loads(dump_snapshot(stored.seen, now=stored.now))
    if json.loads(content) != again:
        raise ValueError(
            "is no snapshot of this version: it has fields or values that this version does not know"
        )
    return stored
