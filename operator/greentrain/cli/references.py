"""Finds text that refers to a TFJob's ranks: their literal host names, and the labels of their pods.

TFJob makes a Service for every replica, so `digits-worker-0.team.svc` is a name there. greentrain's ranks share one headless
Service, named like the job, and are called `digits-worker-0.digits.team.svc`. A script, a configuration file or a selector
with the old names keeps the old meaning, without an error of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from greentrain.api import names
from greentrain.cli.tfjob import GROUP, POD_LABELS, ROLES, SHARED_POD_LABELS


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the same text has another meaning: what differs, and what to do."""

    path: str
    message: str


_FILE_ENDINGS = frozenset(
    {"log", "txt", "json", "yaml", "yml", "csv", "out", "err", "h5", "keras", "pb", "ckpt", "tfrecord"}
)
"""A name followed by one of these alone is a file's."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*")


def join(path: str, key: str) -> str:
    """The path of a map's entry, quoted where the key has other characters than a plain name."""
    if _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}['{key}']"


def walk_strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a plain tree, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from walk_strings(item, join(path, str(key)))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from walk_strings(item, f"{path}[{i}]")


def find_host_names(value: Any, path: str, jobs: Sequence[str]) -> Iterator[Difference]:
    """Literal names of the Services TFJob made for these jobs' ranks, once for each string and name."""
    patterns = [(job, _host_pattern(job)) for job in dict.fromkeys(jobs) if job]
    for at, text in walk_strings(value, path):
        for job, pattern in patterns:
            named: set[str] = set()
            for match in pattern.finditer(text):
                old, new = match[0], new_host_name(match["host"], match["domain"], job)
                if new is None or old in named:
                    continue
                named.add(old)
                line = f" in line {text.count(chr(10), 0, match.start()) + 1}" if "\n" in text.strip() else ""
                yield Difference(
                    at,
                    f"'{old}'{line} is the name of a Service TFJob made for that replica; write '{new}' instead",
                )


def _host_pattern(job: str) -> re.Pattern[str]:
    types = "|".join(r.lower() for r in ROLES)
    return re.compile(
        rf"(?<![\w.-])(?P<host>{re.escape(job)}-(?:{types})-\d+)(?P<domain>(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*)(?![\w-])"
    )


def new_host_name(host: str, domain: str, job: str) -> str | None:
    """The rank's name under the job's own Service; None for one that has it already, or is a file's."""
    parts = domain.split(".")[1:]
    service = names.service_name(job)
    # A namespace may have the job's name: then `svc` follows it at once.
    if parts[:1] == [service] and parts[1:2] != ["svc"]:
        return None
    if len(parts) == 1 and parts[0] in _FILE_ENDINGS:
        return None
    return f"{host}.{service}{domain}"


def find_labels(value: Any, path: str, jobs: Sequence[str]) -> Iterator[Difference]:
    """TFJob's pod labels, as keys, as a selector's `key`, and inside strings (downward API field paths)."""
    if isinstance(value, dict):
        wanted = _values_of(value)
        for key, item in value.items():
            new = POD_LABELS.get(key) or (
                SHARED_POD_LABELS.get(key) if _means_tfjob(key, [item], jobs) else None
            )
            if new is not None:
                yield _label(join(path, str(key)), str(key), new)
            if key == "key" and isinstance(item, str):
                new = POD_LABELS.get(item) or (
                    SHARED_POD_LABELS.get(item) if _means_tfjob(item, wanted, jobs) else None
                )
                if new is not None:
                    yield _label(join(path, "key"), item, new)
            else:
                yield from find_labels(item, join(path, str(key)), jobs)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from find_labels(item, f"{path}[{i}]", jobs)
    elif isinstance(value, str):
        for old in dict.fromkeys(re.findall(r"training\.kubeflow\.org/[a-z-]+", value)):
            if old in POD_LABELS:
                yield _label(path, old, POD_LABELS[old])


def _values_of(expression: dict[str, Any]) -> list[Any]:
    found = expression.get("values")
    return found if isinstance(found, list) else [expression.get("value")]


def _means_tfjob(key: str, values: Sequence[Any], jobs: Sequence[str]) -> bool:
    """Whether a label that other programs use as well is meant as TFJob's, by its value."""
    if key == "job-name":
        return any(v in jobs for v in values)
    if key == "group-name":
        return GROUP in values
    if key in ("replica-type", "job-role"):
        return any(isinstance(v, str) and v.lower() in (r.lower() for r in ROLES) for v in values)
    return False


def _label(path: str, old: str, new: str) -> Difference:
    how = {
        names.LABEL_REPLICA_TYPE: f"{new} (Chief, Master, Worker or Evaluator, with a capital)",
        names.LABEL_MANAGED_BY: f"{new}: {names.MANAGED_BY}",
    }.get(new, new)
    return Difference(
        path, f"'{old}' is a label TFJob sets on its pods and greentrain does not; use {how} instead"
    )
