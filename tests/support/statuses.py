"""A job's status as a test reads it from the API server, with what the operator keeps in its ledger."""

from __future__ import annotations

from typing import Any

from greentrain.api.stored import join_ledger

Json = dict[str, Any]


def read_whole(job: Json) -> Json:
    """`status` of a stored job with everything where the operator uses it; empty where there is none yet."""
    return join_ledger(job.get("status") or {})
