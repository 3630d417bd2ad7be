"""`greentrain replay`: a stored pass, decided again."""

from __future__ import annotations

import json

from greentrain.core.lifecycle.decide import decide
from greentrain.core.seen.stored import load_snapshot


def replay(content: bytes) -> str:
    """A pass's decision by this snapshot, as JSON: what it creates and deletes, when the next pass is due, and the status.

    Raises:
        ValueError: it is not a snapshot of this version.
    """
    stored = load_snapshot(content)
    job = stored.seen.job
    decision = decide(stored.seen, now=stored.now)
    shown = {
        "job": f"{job.namespace}/{job.name}",
        "now": stored.now.isoformat(),
        "createService": decision.service["metadata"]["name"] if decision.service is not None else None,
        "createPods": [pod["metadata"]["name"] for pod in decision.pods],
        "deletePods": [deletion.name for deletion in decision.deletions],
        "deleteJob": decision.delete_job,
        "recordFirst": decision.record_first,
        "lookAgain": decision.look_again.isoformat() if decision.look_again is not None else None,
        "statusChanged": decision.status != job.status,
        "status": decision.status.model_dump(mode="json", by_alias=True, exclude_defaults=True),
    }
    return json.dumps(shown, indent=2) + "\n"
