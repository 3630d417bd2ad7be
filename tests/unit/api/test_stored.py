"""A status is stored for people, with the operator's working memory as one string, and read again as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greentrain.api.budgets import ControlStatus, LineStatus
from greentrain.api.crd import build_crd
from greentrain.api.models import StatusModel
from greentrain.api.spec import BudgetPolicy, EnergySpec, PowerSpec, RunPolicy
from greentrain.api.status import (
    AdmittedSections,
    AttemptStatus,
    Condition,
    EnergyStatus,
    GpuTimeStatus,
    GreenTrainingJobStatus,
    PodEnergyStatus,
    ProjectionStatus,
    SampleStatus,
)
from greentrain.api.stored import dump_job_status
from greentrain.core.books.in_force import spec_in_force
from greentrain.core.seen.snapshot import parse_status

Json = dict[str, Any]

STATUSES = sorted((Path(__file__).parent / "statuses").glob("*.json"))
"""Statuses as an operator stored them in a cluster before there was a ledger."""

FIRST_LEDGERS = sorted((Path(__file__).parent / "statuses" / "ledger-1").glob("*.json"))
"""Some of the same, as an operator wrote them that kept a ledger of the first form."""

UNITS = ("Joules", "Micrograms")

STATUS = GreenTrainingJobStatus(
    attempts=(
        AttemptStatus(number=2, spec_hash="abc", start_time="2026-01-01T00:00:00Z", stop_seconds=69, gpus=2),
        AttemptStatus(number=3, start_time="2026-01-01T00:10:00Z", finished_ranks=("worker-1",)),
    ),
    attempt_count=3,
    energy=EnergyStatus(
        used="10J",
        used_joules=10,
        pods=(PodEnergyStatus(uid="u", node="n", gpu_joules=10),),
        budget=LineStatus(limit=18_000_000, percent=0),
    ),
    admitted=AdmittedSections(
        run_policy=RunPolicy(backoff_limit=7),
        energy=EnergySpec(budget="5kWh"),
        power=PowerSpec(cap="70%", budget_policy=BudgetPolicy.LOWER_CAP),
    ),
)


def test_the_ledger_is_one_string_of_canonical_json_and_holds_nothing_that_people_read() -> None:
    stored = dump_job_status(STATUS)
    ledger = json.loads(stored["ledger"])
    assert stored["ledger"] == json.dumps(ledger, sort_keys=True, separators=(",", ":"))
    assert ledger["version"] == 2
    assert ledger["attempts"]["3"]["finishedRanks"] == ["worker-1"]
    # Of each entry only what is not its default: there may be thousands.
    assert ledger["energy"]["pods"] == [{"uid": "u", "node": "n", "gpuJoules": 10}]
    assert ledger["admitted"]["energy"]["budget"] == "5kWh"
    assert stored["energy"]["usedJoules"] == 10
    assert not {"pods", "budget", "settled"} & set(stored["energy"])
    assert not {"specHash", "brokenTime", "finishedRanks"} & set(stored["attempts"][0])


def test_what_is_stored_is_read_as_it_was() -> None:
    stored = json.loads(json.dumps(dump_job_status(STATUS)))
    assert parse_status(stored) == (STATUS, "")


def test_a_condition_of_the_statuss_own_generation_does_not_repeat_it() -> None:
    seen = {"status": "True", "reason": "R", "last_transition_time": "2026-01-01T00:00:00Z"}
    conditions = tuple(
        Condition(type=t, observed_generation=g, **seen) for t, g in (("A", 3), ("B", 2), ("C", 0))
    )
    status = GreenTrainingJobStatus(observed_generation=3, conditions=conditions)
    stored = json.loads(json.dumps(dump_job_status(status)))
    assert [c.get("observedGeneration") for c in stored["conditions"]] == [None, 2, 0]
    assert parse_status(stored) == (status, "")


def test_no_field_of_the_ledger_is_in_the_schema() -> None:
    properties = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    models: list[type[StatusModel]] = [GreenTrainingJobStatus, EnergyStatus, AttemptStatus]
    sections = [properties, properties["properties"]["energy"], properties["properties"]["attempts"]["items"]]
    for model, section in zip(models, sections, strict=True):
        hidden = {model.model_fields[name].alias for name in model.LEDGER}
        assert hidden
        assert not hidden & set(section["properties"])


def whole(**sections: Any) -> str:
    """A ledger of this version that knows the attempts of `STATUS`."""
    return json.dumps({"version": 2, "attempts": {"2": {}, "3": {}}, **sections})


def table(rows: list[Any], same: object = None) -> str:
    """The same with a table of pods."""
    return whole(energy={"pods": {"same": {} if same is None else same, "columns": ["uid"], "rows": rows}})


@pytest.mark.parametrize(
    ("ledger", "why"),
    [
        ("{", "status.ledger: it cannot be read as JSON: "),
        ("[" * 100_000, "status.ledger: it cannot be read as JSON: "),
        ('{"deep":' + "[" * 900 + "]" * 900 + "}", "status.ledger: it cannot be read as JSON: "),
        ("[]", "status.ledger: it is not a JSON object"),
        (table([[1, 2]]), "status.ledger: a table in it has rows of another length than its columns"),
        (table([{}]), "status.ledger: a table in it has rows of another length than its columns"),
        (table([["u"]], same=[]), "status.ledger: a table in it has rows of another length than its columns"),
        (table([["u"]], same={"gpuTime": []}), "status.ledger: a table in it has more than plain values"),
        (
            table([["u"]] * 20_000),
            "status.ledger: a table in it has 20000 rows of 1 fields; 8192 of 64 are the most",
        ),
        (
            table([["u"]], same={str(i): 0 for i in range(70)}),
            "status.ledger: a table in it has 1 rows of 71 fields",
        ),
        (table([["~0"]]), "status.ledger: a row of a table in it has '~0', and there are 0 strings"),
        (table([["~٣"]]), "status.ledger: a row of a table in it has '~٣', and"),
        (whole(strings={"a": 1}), "status.ledger: strings in it is not a list of texts"),
        (table([["u"]], same={"gpuJoules": -1}), "status.ledger.energy.pods[0].gpuJoules: "),
        ("{}", "status.ledger: its version is None, and this operator reads 1 to 2"),
        ('{"version":3}', "status.ledger: its version is 3, and this operator reads 1 to 2"),
        ('{"version":2}', "status.ledger: it lacks attempt 2"),
        ('{"version":2,"attempts":{"2":{}}}', "status.ledger: it lacks attempt 3"),
        ('{"version":2,"attempts":[]}', "status.ledger: it lacks attempt 2"),
        (whole(energy={"pods": [{"gpuJoules": -1}]}), "status.ledger.energy.pods[0].gpuJoules: "),
        (whole(attempts={"2": {"brokenTime": "then"}, "3": {}}), "status.ledger.attempts[0].brokenTime: "),
        (whole(admitted={"energy": {"limit": "5kWh"}}), "status.ledger.admitted.energy.limit: "),
        (7, "status.ledger: it cannot be read as JSON: "),
        (None, "status.ledger: it is gone, although the job has run"),
    ],
    ids=[
        "cut",
        "deep",
        "deep for us",
        "list",
        "a row too long",
        "no row",
        "no fields",
        "lists in each row",
        "too many rows",
        "too many fields",
        "a text that is not there",
        "other digits",
        "no texts",
        "a number in each row",
        "no version",
        "newer",
        "emptied",
        "an attempt is gone",
        "no attempts",
        "number",
        "time",
        "spec",
        "no text",
        "gone",
    ],
)
def test_a_ledger_that_cannot_be_read_is_named_and_what_people_read_stays(ledger: object, why: str) -> None:
    stored = {**dump_job_status(STATUS), "ledger": ledger}
    status, unreadable = parse_status(stored)
    assert unreadable.startswith(why)
    assert status.attempt_count == 3


def test_an_attempt_that_was_deleted_by_hand_takes_no_other_with_it() -> None:
    stored = dump_job_status(STATUS)
    del stored["attempts"][0]
    status, unreadable = parse_status(stored)
    assert (unreadable, status.attempts) == ("", STATUS.attempts[1:])


def test_of_a_job_that_has_run_the_ledger_is_missed_also_where_its_attempts_are_gone() -> None:
    _, unreadable = parse_status({"attemptCount": 3, "energy": {"usedJoules": 500}})
    assert unreadable == "status.ledger: it is gone, although the job has run"


@pytest.mark.parametrize(
    "status",
    [
        GreenTrainingJobStatus(admitted=AdmittedSections()),
        GreenTrainingJobStatus(attempts=(AttemptStatus(number=1, start_time="2026-01-01T00:00:00Z"),)),
        GreenTrainingJobStatus(energy=EnergyStatus(control=ControlStatus())),
        GreenTrainingJobStatus(),
    ],
    ids=["admitted", "attempt", "control", "nothing"],
)
def test_what_has_its_defaults_alone_is_read_as_it_was(status: GreenTrainingJobStatus) -> None:
    assert parse_status(json.loads(json.dumps(dump_job_status(status)))) == (status, "")


def test_a_section_that_has_nothing_for_its_readers_is_not_shown() -> None:
    sample = SampleStatus(attempt=1, step=10, joules=70, moment=1_700_000_000_000, percent=100)
    status = GreenTrainingJobStatus(projection=ProjectionStatus(last=sample))
    stored = dump_job_status(status)
    assert "projection" not in stored
    assert parse_status(json.loads(json.dumps(stored))) == (status, "")


def test_a_job_that_has_not_run_has_no_ledger_to_lose() -> None:
    assert parse_status({"observedGeneration": 1}) == (GreenTrainingJobStatus(observed_generation=1), "")


def find_hidden(model: StatusModel, raw: Json) -> set[str]:
    """Paths of fields of the ledger in a part of a status."""
    found = {type(model).model_fields[name].alias or name for name in type(model).LEDGER} & set(raw)
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), field.alias or name
        if isinstance(value, StatusModel) and isinstance(raw.get(key), dict):
            found |= find_hidden(value, raw[key])
    return found


@pytest.mark.parametrize("path", STATUSES, ids=lambda path: path.stem)
def test_a_status_of_before_the_ledger_is_migrated_whole(path: Path) -> None:
    stored: Json = json.loads(path.read_text())
    status, unreadable = parse_status(stored)
    assert unreadable == ""
    assert find_hidden(status, stored), "it is one of those"
    # All that was stored is there, in its place of before or in the ledger's sections.
    plain = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in stored.items():
        if key not in ("runPolicy", "phase", "display"):
            assert_holds(plain[key], without_budget(value), key)
    for section in ("energy", "emissions"):
        assert_budget_is_there(plain.get(section, {}), stored.get(section, {}).get("budget", {}))
    admitted = spec_in_force(status)
    budget = stored.get("energy", {}).get("budget", {})
    assert admitted.energy.budget == (budget.get("limit") or None)
    assert status.admitted is not None
    assert_holds(
        status.admitted.run_policy.model_dump(mode="json", by_alias=True), stored["runPolicy"], "runPolicy"
    )
    # Written once it is of the new form, and means the same.
    assert parse_status(json.loads(json.dumps(dump_job_status(status)))) == (status, "")


def without_budget(section: Any) -> Any:
    return {k: v for k, v in section.items() if k != "budget"} if isinstance(section, dict) else section


def assert_budget_is_there(section: Json, before: Json) -> None:
    """All numbers of a budget that are not the spec's, or made from another, under their names of today."""
    names = {
        **{f"limit{unit}": "limit" for unit in UNITS},
        **{f"provisional{unit}": "charged" for unit in UNITS},
        **{f"ahead{unit}": "reserved" for unit in UNITS},
        **{f"overshootBound{unit}": "bound" for unit in UNITS},
        **{f"exhaustedLimit{unit}": "spentLimit" for unit in UNITS},
        "percent": "percent",
        "lowered": "lowered",
    }
    assert (section.get("budget") is not None) == bool(before.get("limit"))
    for key, value in before.items():
        if key in names and before.get("limit"):
            assert section["budget"][names[key]] == value, key
        elif key in ("charges", "lostJoules", "unreadNodes", "allowances"):
            assert_holds(section["control"][key], value, key)
        else:
            spec = ("limit", "onExhausted", "onUnknown", "warnAtPercent", "warnedPercent", "overshootBound")
            assert key in (*spec, *names), key


@pytest.mark.parametrize("path", FIRST_LEDGERS, ids=lambda path: path.stem)
def test_the_first_form_of_the_ledger_is_read_as_what_it_was_made_of(path: Path) -> None:
    stored: Json = json.loads(path.read_text())
    assert json.loads(stored["ledger"])["version"] == 1
    status, unreadable = parse_status(stored)
    assert unreadable == ""
    before, _ = parse_status(json.loads((path.parent.parent / path.name).read_text()))
    assert status == before


def assert_holds(found: Any, stored: Any, path: str) -> None:
    if isinstance(stored, dict):
        for key, value in stored.items():
            assert_holds(found[key], value, f"{path}.{key}")
    elif isinstance(stored, list):
        assert len(found) == len(stored), path
        for i, (a, b) in enumerate(zip(found, stored, strict=True)):
            assert_holds(a, b, f"{path}[{i}]")
    else:
        assert found == stored, path


@pytest.mark.parametrize("count", [1, 16, 17, 1024])
def test_a_long_list_is_a_table_and_read_as_it_was(count: int) -> None:
    # Every field that an entry may lack is there in some, texts that look like references, and lists within entries.
    times = (GpuTimeStatus(model="A model", seconds=3), GpuTimeStatus(model="~0"), GpuTimeStatus(model="~~"))
    pods = tuple(
        PodEnergyStatus(
            uid=f"uid-{i}",
            node="" if i % 5 == 1 else f"node-of-{i // 3}",
            gpu_joules=i % 3,
            gpu_time=times[: i % 4],
            final=i % 7 == 0,
            priced_until=f"2026-01-01T00:00:{i % 60:02d}Z" if i % 2 else None,
        )
        for i in range(count)
    )
    status = STATUS.model_copy(update={"energy": EnergyStatus(pods=pods, settled=("a",) * min(count, 128))})
    stored = dump_job_status(status)
    assert parse_status(json.loads(json.dumps(stored))) == (
        status.model_copy(update={"attempts": STATUS.attempts}),
        "",
    )
    ledger = json.loads(stored["ledger"])
    assert (isinstance(ledger["energy"]["pods"], dict), "strings" in ledger) == (count > 16, count > 16)


def test_what_stands_in_many_entries_stands_once() -> None:
    pods = tuple(
        PodEnergyStatus(uid=f"uid-{i}", node="one-node", name=f"the-pod-{i // 2}", gpu_joules=100 + i)
        for i in range(100)
    )
    ledger = dump_job_status(STATUS.model_copy(update={"energy": EnergyStatus(pods=pods)}))["ledger"]
    counts = (ledger.count(text) for text in ("one-node", "gpuJoules", '"uid"', '"the-pod-7"'))
    assert tuple(counts) == (1, 1, 1, 1)
