"""Writes docs/reference/reasons.md from the table of reasons: `python docs/tables/reasons.py > docs/reference/reasons.md`."""

from __future__ import annotations

from greentrain.api.reasons import Reason, Severity

INTRODUCTION = """# Why a job waits, stops or has failed

The column REASON of `kubectl get greentrainingjobs` says in one word why the job is not training or has failed. It is `<none>` while the
job trains, and when it has succeeded. The same word is the reason of one of its conditions (`kubectl describe gtj NAME`), whose message
has the numbers. *STATE* is given where it follows from the reason; *event* is the type of the event that the operator creates.
[lifecycle.md](lifecycle.md) has the conditions, [restarts.md](restarts.md) what restarts a job and what fails it, and
[caps.md](../tasks/caps.md#reasons) the reasons of `PowerCapped`.

This page is generated from `operator/greentrain/api/reasons.py`, the table that the operator uses.

| REASON | STATE | event | next step |
|---|---|---|---|"""


def write() -> str:
    """The page."""
    rows = [
        f"| `{reason.value}` | {reason.about.phase or ''} | "
        f"{'' if reason.about.severity is Severity.SILENT else reason.about.severity.value} | {reason.about.next_step} |"
        for reason in sorted(Reason, key=lambda r: r.value)
        if reason.about.next_step
    ]
    return "\n".join([INTRODUCTION, *rows])


if __name__ == "__main__":
    print(write())
