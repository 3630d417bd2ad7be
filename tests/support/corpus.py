"""Hostile objects as data files: what a tenant sends who may only create and patch jobs, and what must come of it.

One object a file, in YAML, named as the job:

- `set`: fields of a sound job of one worker, by path. A path begins with `spec`, `metadata` or `status`, or with one of
  `WHERE`; a number is a place in a list.
- `patch: true`: the fields are a merge patch of a job that runs, instead of a new job.
- one of `refused` (the operator says so in one event that holds all these words), `server` (the API server does not take it,
  with these words) and `admitted` (pods are made, or an event holds all these words about why not).
- `pods`: how many pods there are then, where `admitted`; one by default.
- `hidden`: words that stand in no event and no condition.
- `copies`: how many jobs like this are sent, named with a number; one by default.

Where a value stands, a map of one key may stand for a large one or for one that YAML cannot write:

- `$text: [TEXT, N]`: the text, N times.
- `$list: [ITEM, N]`: a list of N items.
- `$map: [KEY, VALUE, N]`: a map of N entries.
- `$nest: [OPEN, CLOSE, N]`: JSON texts around null, N times, such as `[` and `]`.
- `$json: TEXT`: the JSON text as it is.

In what is repeated by `$list` and `$map` each `#` becomes the number of its place, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.manifests import build_job

Json = dict[str, Any]

WORKER = "spec.tfReplicaSpecs.Worker"
WHERE = {
    "worker": WORKER,
    "template": f"{WORKER}.template",
    "pod": f"{WORKER}.template.spec",
    "container": f"{WORKER}.template.spec.containers.0",
}
"""Short names of the places in a job that are meant most often."""


@dataclass(frozen=True)
class Hostile:
    """One object of the corpus."""

    name: str
    body: str
    """JSON text: a job, or the merge patch of one."""
    patch: bool
    refused: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    admitted: tuple[str, ...] | None = None
    pods: int = 1
    hidden: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"Hostile({self.name})"


def load_corpus(folder: Path) -> Iterator[Hostile]:
    """The objects of a folder's files, by name; what is repeated is written out only as each is asked for."""
    for file in sorted(folder.glob("*.yaml")):
        copies = yaml.safe_load(file.read_text()).get("copies")
        names = [file.stem] if copies is None else [f"{file.stem}-{i}" for i in range(copies)]
        yield from (_load(file, name) for name in names)


def _load(file: Path, name: str) -> Hostile:
    told = yaml.safe_load(file.read_text())
    told.pop("copies", None)
    patch = bool(told.pop("patch", False))
    target: Json = {} if patch else build_job(name, workers=1)
    for path, value in told.pop("set").items():
        _put(target, path, value)
    words = {key: tuple(told.pop(key)) for key in ("refused", "server", "admitted", "hidden") if key in told}
    hostile = Hostile(name, write(target), patch, pods=told.pop("pods", 1), **words)
    if told or sum(key in words for key in ("refused", "server", "admitted")) != 1:
        raise ValueError(f"{file}: one of refused, server and admitted is needed, and no {', '.join(told)}")
    return hostile


def _put(target: Any, path: str, value: Any) -> None:
    first, dot, rest = path.partition(".")
    *steps, last = f"{WHERE.get(first, first)}{dot}{rest}".split(".")
    for step in steps:
        target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
    target[int(last) if isinstance(target, list) else last] = value


def write(value: Any) -> str:
    """JSON text of a value in the notation above; it may be deeper than Python could write by itself."""
    if isinstance(value, list):
        return f"[{','.join(map(write, value))}]"
    if not isinstance(value, dict):
        return json.dumps(value)
    match value:
        case {"$text": [text, times]}:
            return json.dumps(text * times)
        case {"$list": [item, times]}:
            one = write(item)
            return f"[{','.join(one.replace('#', str(i)) for i in range(times))}]"
        case {"$map": [key, item, times]}:
            one = f"{write(key)}:{write(item)}"
            return f"{{{','.join(one.replace('#', str(i)) for i in range(times))}}}"
        case {"$nest": [start, end, times]}:
            return f"{start * times}null{end * times}"
        case {"$json": text}:
            return str(text)
    return f"{{{','.join(f'{json.dumps(key)}:{write(item)}' for key, item in value.items())}}}"
