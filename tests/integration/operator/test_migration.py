"""A job whose status an earlier operator stored goes on where it was: nothing of it begins again at zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from greentrain.controller.run import running
from greentrain.controller.settings import Settings
from tests.integration.operator.test_energy import gpu_job
from tests.support.api import JOBS, Server, condition

Json = dict[str, Any]

STORED = Path(__file__).parents[2] / "unit" / "api" / "statuses" / "budget-stopped.json"
"""Of a job that was being stopped because its 1 MJ were spent; there was no ledger then."""


async def test_a_job_of_before_the_ledger_keeps_what_it_has_used_and_goes_on_with_a_higher_budget(
    server: Server, namespace: str, settings: Settings
) -> None:
    job = gpu_job()
    job["spec"]["energy"] = {"budget": "1MJ", "onUnknown": "Continue"}
    await server.create_job(namespace, job)
    before: Json = json.loads(STORED.read_text())
    body = await server.job(namespace, "digits")
    await server.call("PUT", f"{JOBS.format(namespace)}/digits/status", {**body, "status": before})
    kept = (await server.job(namespace, "digits"))["status"]
    assert kept == before, "the server keeps what this version's schema lacks"
    async with running(settings):
        stored = await server.until_condition(namespace, "digits", "Suspended", "True", "BudgetExhausted")
        status = stored["status"]
        assert (status["energy"]["usedJoules"], status["attemptCount"]) == (1_000_000, 1)
        assert [(b["type"], b["limit"], b["exhausted"]) for b in status["budgets"]] == [
            ("Energy", "1MJ", True)
        ]
        assert "pods" not in status["energy"]
        ledger = json.loads(status["ledger"])
        sums = [{p["uid"]: p["gpuJoules"] for p in e["pods"]} for e in (ledger["energy"], before["energy"])]
        assert sums[0] == sums[1]
        assert ledger["admitted"]["energy"]["budget"] == "1MJ"
        assert "Stalled" not in {c["type"] for c in status["conditions"]}
        await server.patch_job(namespace, "digits", {"spec": {"energy": {"budget": "2MJ"}}})
        await server.until_pods(namespace, {f"digits-worker-{i}-2" for i in (0, 1)})
        stored = await server.job(namespace, "digits")
        assert condition(stored, "BudgetExhausted")["status"] == "False"
        assert stored["status"]["energy"]["usedJoules"] == 1_000_000
