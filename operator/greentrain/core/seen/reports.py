"""Which parts of a node's report are accepted: those that its CRD allows and that can be true.

A node's agent is trusted for its own node only, and its token may be stolen. The CRD bounds what the agent can write. The
bounds are checked again here, because an object may be stored under an older schema, and because no schema knows the time.
Each entry that breaks a rule is left out and listed in `Believed.doubts`; the rest of the report counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from greentrain.api.nodepower import BUCKET_SECONDS, NodePowerStatus, PodEnergy
from greentrain.core.seen.times import CLOCK_WRONG, parse_time

SHOWN = 80
"""Characters of a value that are shown."""

LISTS = ("conditions", "gpus", "pods")
"""Lists of independent entries: only an entry that is wrong is left out."""

ROUNDS = 4
"""How often wrong parts are left out before the whole report is ignored: leaving out cannot make more wrong."""


@dataclass(frozen=True, slots=True)
class Believed:
    """What is accepted of a report."""

    status: NodePowerStatus | None
    """None where nothing is accepted."""
    doubts: tuple[str, ...] = ()
    """What was left out and why, one line each."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The node that a pod is, or was, bound to, from the operator's own data."""

    node: str
    created: datetime | None = None
    """When the pod was created, or its job, which is earlier; None where neither is known."""
    name: str = ""
    """Name of the pod, unique among all pods of its job at any time; empty where it is not known."""


def read_report(raw: object, *, now: datetime) -> Believed:
    """Read a stored `NodePower.status`; `now` by the operator's clock."""
    left: dict[str, Any] = dict(raw) if isinstance(raw, Mapping) else {}
    doubts: list[str] = []
    for _ in range(ROUNDS):
        try:
            status = NodePowerStatus.model_validate(left)
            break
        except ValidationError as error:
            left = _leave_out(left, error.errors(include_url=False, include_context=False), doubts)
    else:
        return Believed(None, tuple(doubts))
    problem = _find_wrong_time("observedAt", status.observed_at, now)
    if problem is not None:
        return Believed(None, (*doubts, f"the whole report: {problem}"))
    pods = []
    for entry in status.pods:
        problem = find_problem(entry, now=now)
        if problem is None:
            pods.append(entry)
        else:
            doubts.append(f"pods[{show(entry.name)}]: {problem}")
    if len(pods) < len(status.pods):
        status = status.model_copy(update={"pods": tuple(pods)})
    return Believed(status, tuple(doubts))


def _leave_out(raw: Mapping[str, Any], errors: Iterable[ErrorDetails], doubts: list[str]) -> dict[str, Any]:
    """The report without its wrong parts; appends a line for each to `doubts`."""
    fields: set[object] = set()
    entries: dict[object, set[int]] = {}
    for error in errors:
        field, *rest = error["loc"] or ("",)
        path = f"{field}" + "".join(f"[{r}]" if isinstance(r, int) else f".{r}" for r in rest)
        doubts.append(f"{path}: {show(error['input'])} is not believed ({error['msg']})")
        if field in LISTS and rest and isinstance(rest[0], int):
            entries.setdefault(field, set()).add(rest[0])
        else:
            fields.add(field)
    left = {name: value for name, value in raw.items() if name not in fields}
    for wrong in entries.keys() - fields:
        name = str(wrong)
        left[name] = [e for i, e in enumerate(raw[name]) if i not in entries[wrong]]
    return left


def show(value: object) -> str:
    """A value from an agent's report, short, on one line, without control characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def find_problem(entry: PodEnergy, *, now: datetime) -> str | None:
    """Why an entry cannot be true, whichever pod it is of; None where it can."""
    buckets = entry.buckets
    times = (
        ("firstReading", entry.first_reading),
        ("lastReading", entry.last_reading),
        ("buckets.start", buckets.start),
    )
    for field, text in (*times, ("readUntil", entry.read_until)):
        problem = _find_wrong_time(field, text, now)
        if problem is not None:
            return problem
    first, last, start = (parse_time(text) for _, text in times)
    if first is not None and last is not None and first > last:
        return f"firstReading {entry.first_reading} is after lastReading {entry.last_reading}"
    if start is not None and buckets.joules:
        latest = start + timedelta(seconds=BUCKET_SECONDS * (len(buckets.joules) - 1))
        if latest - now > CLOCK_WRONG:
            return f"buckets go on until {latest.isoformat()}, more than an hour from now"
    hosts = zip(buckets.joules, buckets.host_joules, strict=False)
    if (
        len(buckets.host_joules) > len(buckets.joules)
        or any(host > every for every, host in hosts)
        or buckets.earlier_host_joules > buckets.earlier_joules
    ):
        return "buckets.hostJoules are more than buckets.joules, of which they are a part"
    return None


def find_false_date(entry: PodEnergy, binding: Binding) -> str | None:
    """Why an entry's readings cannot be of its pod: they are older than the pod. None where they can."""
    if binding.created is None:
        return None
    earliest = binding.created - CLOCK_WRONG
    for field, text in (("firstReading", entry.first_reading), ("lastReading", entry.last_reading)):
        moment = parse_time(text)
        if moment is not None and moment < earliest:
            return f"{field} {text} is before the pod was made"
    start = parse_time(entry.buckets.start)
    if start is not None and start < earliest - timedelta(seconds=BUCKET_SECONDS):
        return f"buckets.start {entry.buckets.start} is before the pod was made"
    return None


def _find_wrong_time(field: str, text: str | None, now: datetime) -> str | None:
    if text is None:
        return None
    moment = parse_time(text)
    if moment is None:
        return f"{field} {show(text)} is not a time with its offset (RFC 3339)"
    if moment - now > CLOCK_WRONG:
        return f"{field} {text} is more than an hour from now: see that the node's clock is right"
    return None
