"""How a status is stored: sections for its readers, and one string for the operator itself, the ledger.

Accounts and decision are stored by one write, so the operator's own working memory is in the status too: what each pod used,
what is charged, measured and allowed, and the spec's sections as they were admitted last. It is one string of canonical JSON
(sorted keys, no spaces), so that `kubectl describe` stays readable and no number in it can make the API server reject the
status. A long list in it, such as of a thousand pods, is a table: each field's name is there once, and so is a value that is
the same in every row. Each model names its ledger's fields (`LEDGER`); the operator's code uses them as fields of the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from greentrain.api.models import StatusModel
from greentrain.api.status import AttemptStatus, GreenTrainingJobStatus
from greentrain.api.tables import TableError, tabulate, untabulate

Raw = Mapping[str, Any]

VERSION = 2
"""Of the ledger's form. The first had one section for what is now a budget's line and a job's budget control."""

FIRST = 1

LEDGER = "ledger"
ATTEMPTS = "attempts"
CONDITIONS = "conditions"
GENERATION = "observedGeneration"
COUNTERS = ("attemptCount", "failureCount", "infrastructureFailureCount")


class LedgerError(ValueError):
    """The ledger of a job that has run cannot be read, or is missing."""


def dump_status(status: BaseModel) -> dict[str, Any]:
    """A part of a status as it is stored: null and the empty string are left out, as in Kubernetes' own types."""
    dumped: dict[str, Any] = _without_empty(status.model_dump(mode="json", by_alias=True, exclude_none=True))
    return dumped


def dump_job_status(status: GreenTrainingJobStatus) -> dict[str, Any]:
    """A job's status as it is stored, with its ledger.

    Fields at their initial value are left out. So is a condition's generation where it equals the status's: `kubectl wait`
    then uses that one.
    """
    dumped = _without_empty(
        status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    )
    # Counters are there from the start, because users and programs read them.
    dumped |= {name: dumped.get(name, 0) for name in COUNTERS}
    if status.energy is not None:
        dumped["energy"] = {"usedJoules": 0, **dumped.get("energy", {})}
    ledger = _take_out(status, dumped)
    for condition, raw in zip(status.conditions, dumped.get(CONDITIONS, ()), strict=True):
        raw[GENERATION] = condition.observed_generation
        if condition.observed_generation == status.observed_generation:
            del raw[GENERATION]
    text = json.dumps(
        {"version": VERSION, **tabulate(ledger)}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return {**dumped, LEDGER: text}


def _without_empty(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_empty(v) for k, v in node.items() if v != ""}
    if isinstance(node, list):
        return [_without_empty(v) for v in node]
    return node


def _take_out(model: StatusModel, dumped: dict[str, Any]) -> dict[str, Any]:
    """Move what belongs to the ledger out of a dumped model; attempts by their number."""
    taken: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        key, value = field.alias or name, getattr(model, name)
        if key not in dumped:
            continue
        if name in type(model).LEDGER:
            taken[key] = dumped.pop(key)
        elif isinstance(value, StatusModel):
            if part := _take_out(value, dumped[key]):
                taken[key] = part
                if not dumped[key]:
                    del dumped[key]
        elif key == ATTEMPTS:
            # Every attempt, also one without anything to store: a missing one was lost (`join_ledger`).
            pairs = zip(value, dumped[key], strict=True)
            taken[key] = {str(attempt.number): _take_out(attempt, raw) for attempt, raw in pairs}
    return taken


def join_ledger(stored: Raw) -> dict[str, Any]:
    """A stored status with everything at its field of the model; an earlier form is converted to this one.

    Raises:
        LedgerError: the ledger is not a JSON object of a known version, or is gone although the job has run.
    """
    people = {key: value for key, value in stored.items() if key != LEDGER}
    if isinstance(people.get(CONDITIONS), list):
        people[CONDITIONS] = [_with_generation(c, stored.get(GENERATION)) for c in people[CONDITIONS]]
    if stored.get(LEDGER) is None:
        return _part_budgets(_migrate(people))
    try:
        ledger = json.loads(stored[LEDGER])
        ledger = untabulate(ledger) if isinstance(ledger, dict) else None
    except TableError as error:
        raise LedgerError(str(error)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"it cannot be read as JSON: {error}") from error
    if ledger is None:
        raise LedgerError("it is not a JSON object")
    version = ledger.pop("version", None)
    if version not in (FIRST, VERSION):
        raise LedgerError(f"its version is {version!r}, and this operator reads {FIRST} to {VERSION}")
    kept = ledger.pop(ATTEMPTS, None) or {}
    joined = _merge(people, ledger)
    if isinstance(people.get(ATTEMPTS), list):
        joined[ATTEMPTS] = [
            _merge(a, _of_attempt(kept, a)) if isinstance(a, dict) else a for a in people[ATTEMPTS]
        ]
    return joined if version == VERSION else _part_budgets(joined)


def _with_generation(condition: object, generation: object) -> object:
    return {GENERATION: generation or 0, **condition} if isinstance(condition, Mapping) else condition


def _of_attempt(kept: object, attempt: Raw) -> Raw:
    number = str(attempt.get("number"))
    found = kept.get(number) if isinstance(kept, Mapping) else None
    if not isinstance(found, Mapping):
        raise LedgerError(f"it lacks attempt {number}")
    return found


def _merge(people: Raw, ledger: Raw) -> dict[str, Any]:
    merged = dict(people)
    for key, value in ledger.items():
        there = merged.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(there, value)
        else:
            merged[key] = value
    return merged


_IN_ATTEMPTS = {AttemptStatus.model_fields[name].alias or name for name in AttemptStatus.LEDGER}
"""What an attempt contained before there was a ledger."""


def _migrate(stored: Raw) -> dict[str, Any]:
    """A status from before the ledger: its fields were in the sections, the spec in parts of them.

    Raises:
        LedgerError: it is none of those, and the job has run: its ledger was lost.
    """
    attempts = stored.get(ATTEMPTS)
    recorded = attempts if isinstance(attempts, list) else []
    if (recorded or stored.get("attemptCount")) and not any(
        isinstance(a, Mapping) and _IN_ATTEMPTS & set(a) for a in recorded
    ):
        raise LedgerError("it is gone, although the job has run")
    admitted = {
        "runPolicy": stored.get("runPolicy"),
        "energy": _find_energy(stored.get("energy")),
        "emissions": _find_emissions(stored.get("emissions")),
    }
    admitted = {key: value for key, value in admitted.items() if value}
    rest = {key: value for key, value in stored.items() if key != "runPolicy"}
    return {**rest, "admitted": admitted} if admitted else rest


def _find_energy(energy: object) -> Raw:
    if not isinstance(energy, Mapping):
        return {}
    budget = energy.get("budget")
    found = {"scope": energy.get("scope")}
    if isinstance(budget, Mapping):
        found |= {"budget": budget.get("limit")}
        found |= {key: budget.get(key) for key in ("onExhausted", "onUnknown", "warnAtPercent")}
    return {key: value for key, value in found.items() if value is not None}


def _find_emissions(emissions: object) -> Raw:
    if not isinstance(emissions, Mapping):
        return {}
    budget = emissions.get("budget")
    found = {key: emissions.get(key) for key in ("zone", "pue", "basis", "includeEmbodied")}
    if isinstance(budget, Mapping):
        found |= {"budget": budget.get("limit"), "onExhausted": budget.get("onExhausted")}
    return {key: value for key, value in found.items() if value not in (None, "")}


_LINE = {
    "limit": ("limitJoules", "limitMicrograms"),
    "percent": ("percent",),
    "charged": ("provisionalJoules", "provisionalMicrograms"),
    "reserved": ("aheadJoules", "aheadMicrograms"),
    "bound": ("overshootBoundJoules", "overshootBoundMicrograms"),
    "spentLimit": ("exhaustedLimitJoules", "exhaustedLimitMicrograms"),
    "lowered": ("lowered",),
}
"""Fields of a budget's line, and where they were before."""

_CONTROL = ("charges", "lostJoules", "unreadNodes", "allowances")


def _part_budgets(joined: dict[str, Any]) -> dict[str, Any]:
    """A status whose section `budget` has all about it: its line and the budget control are moved apart."""
    parted = dict(joined)
    for name in ("energy", "emissions"):
        section = joined.get(name)
        before = section.get("budget") if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or not isinstance(before, Mapping):
            continue
        line = {key: before[old] for key, known in _LINE.items() for old in known if old in before}
        # Without a budget of energy the section had what a budget of emissions needs.
        parts: dict[str, Any] = {"budget": {"percent": 0, **line} if before.get("limit") else None}
        if name == "energy":
            parts["control"] = {key: before[key] for key in _CONTROL if key in before}
        parted[name] = {**section, **parts}
    return parted
