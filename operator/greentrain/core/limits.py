"""How large a job may be: a larger one is refused, with the path of the field, before anything is built from it.

The work on a job grows in proportion to its size. Its status must fit into etcd together with it (1.5 MiB an object,
`--max-request-bytes`). `docs/reference/limits.md` has all limits with their reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from greentrain.api.spec import MAX_REPLICAS, RunPolicy
from greentrain.core.seen.snapshot import TemplateProblem

KIB = 1024
MIB = 1024 * KIB

MAX_LEVELS = 64
"""Levels of maps and lists in a template or a volume, itself the first. Kubernetes' own types need fewer than 20."""

MAX_SPEC_LEVELS = MAX_LEVELS + 4
"""Levels of a spec: a template is four below it."""

MAX_TEMPLATE_BYTES = 64 * KIB
"""Bytes of one pod template as JSON."""

MAX_VOLUME_BYTES = 16 * KIB
"""Bytes of the checkpoint volume as JSON; it is added to every pod."""

MAX_PODS_BYTES = 32 * MIB
"""Bytes of the templates of all pods of an attempt together."""

MAX_SPEC_BYTES = 512 * KIB
"""Bytes of a spec as JSON: four templates of the largest size are half of it."""

MAX_ANNOTATIONS_BYTES = 256 * KIB
"""Bytes of annotations as JSON; Kubernetes counts their keys and values and allows as many."""

MAX_VALUES = 20_000
"""Values in a spec: maps, lists and their elements. A template of 64 KiB full of variables has 7,000. A text of nothing but
empty lists has one in three bytes, and each costs as much memory and time as any other value."""

MAX_METADATA_BYTES = 512 * KIB
"""Bytes of the metadata as JSON, with managedFields. With the largest spec 1 MiB: a third of an object is left for status."""

TOO_LARGE = "too large"
"""Replaces what was left out of a spec that has a barrier; valid in no field of a run policy."""

RUN_POLICY_FIELDS = frozenset(field.alias or name for name, field in RunPolicy.model_fields.items())

MAX_WORD = 80
"""Longest quotation of a key or a path, in characters."""

SUGGESTIONS = 10
"""For so many unknown fields a known one of similar spelling is searched; the others are only counted."""


def find_barrier(spec: Mapping[str, Any]) -> tuple[TemplateProblem, ...]:
    """Why a job's raw spec is not parsed: it has too many values, or is too deep or too large.

    The time is in proportion to the spec's size, whatever is in it.
    """
    if _has_more_values(spec, MAX_VALUES):
        text = f"holds more than {MAX_VALUES} values, maps and lists among them; move data into the image, a ConfigMap or a volume"
        return (TemplateProblem("spec", text),)
    deep = tuple(p for path, part, _ in _parts(spec) for p in _find_deep(path, part, MAX_LEVELS))
    deep = deep or tuple(_find_deep("spec", spec, MAX_SPEC_LEVELS))
    size = 0 if deep else count_bytes(spec)
    return deep if size <= MAX_SPEC_BYTES else (_too_large("spec", size, MAX_SPEC_BYTES),)


def keep_least(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is still read of a spec that has a barrier: its run policy, and whether there is a checkpoint volume."""
    policy = spec.get("runPolicy")
    if isinstance(policy, Mapping):
        policy = {
            key: value if count_bytes(value) <= KIB else TOO_LARGE
            for key, value in policy.items()
            if key in RUN_POLICY_FIELDS
        }
    elif policy is not None:
        policy = TOO_LARGE
    kept = {} if policy is None else {"runPolicy": policy}
    return {**kept, "checkpoint": {"volume": TOO_LARGE}} if spec.get("checkpoint") else kept


def find_excess(spec: Mapping[str, Any]) -> tuple[TemplateProblem, ...]:
    """Templates and volumes that are too large in a raw spec without a barrier, each or for all pods together."""
    large: list[TemplateProblem] = []
    whole = count = 0
    for path, part, replicas in _parts(spec):
        size = count_bytes(part)
        most = MAX_TEMPLATE_BYTES if replicas else MAX_VOLUME_BYTES
        if size > most:
            large.append(_too_large(path, size, most))
        whole += replicas * size
        count += replicas
    if not large and whole > MAX_PODS_BYTES:
        text = (
            f"{count} pods from these templates are {_shown(whole)} as JSON, and at most {_shown(MAX_PODS_BYTES)} are made; "
            "ask for fewer replicas, or move scripts and data into the image, a ConfigMap or a volume"
        )
        large.append(TemplateProblem("spec.tfReplicaSpecs", text))
    return tuple(large)


def find_metadata_excess(metadata: Mapping[str, Any]) -> tuple[TemplateProblem, ...]:
    """What is too large in a job's metadata: spec and status would not fit into etcd with it."""
    size = count_bytes(metadata.get("annotations") or {})
    if size > MAX_ANNOTATIONS_BYTES:
        return (_too_large("metadata.annotations", size, MAX_ANNOTATIONS_BYTES, "remove what is not needed"),)
    size = count_bytes(metadata)
    if size > MAX_METADATA_BYTES:
        remedy = "remove labels, annotations, finalizers and managers that are not needed"
        return (_too_large("metadata", size, MAX_METADATA_BYTES, remedy),)
    return ()


def count_bytes(node: Any) -> int:
    """The length of a value as JSON without white space, in bytes of UTF-8.

    More than any limit, where it is deeper than this interpreter can write.
    """
    try:
        text = json.dumps(node, separators=(",", ":"), ensure_ascii=False, default=str)
    except RecursionError:
        return 2 * MAX_PODS_BYTES
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def shorten(word: str, most: int = MAX_WORD) -> str:
    """A key or a path, cut to the length that may be quoted."""
    return word if len(word) <= most else f"{word[: most - 1]}…"


def quote(value: object) -> str:
    """A value as it was written; of a map or a list only its kind, because it may contain secrets."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= MAX_WORD else f"{text[: MAX_WORD - 3]}..."


def _parts(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Path, value and number of pods of each template, and of the checkpoint volume with 0 pods."""
    roles = spec.get("tfReplicaSpecs")
    for name, role in roles.items() if isinstance(roles, Mapping) else ():
        if isinstance(role, Mapping):
            replicas = role.get("replicas")
            count = replicas if isinstance(replicas, int) and 1 <= replicas <= MAX_REPLICAS else 1
            yield f"spec.tfReplicaSpecs.{shorten(str(name))}.template", role.get("template"), count
    checkpoint = spec.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        yield "spec.checkpoint.volume", checkpoint.get("volume"), 0


def _has_more_values(node: Any, most: int) -> bool:
    left, count = [node], 0
    while left:
        at = left.pop()
        inner = at.values() if isinstance(at, Mapping) else at
        count += len(inner)
        if count > most:
            return True
        left.extend(value for value in inner if isinstance(value, Mapping | list | tuple))
    return False


def _find_deep(path: str, part: Any, levels: int) -> Iterator[TemplateProblem]:
    """The first map or list that is deeper than this many levels; the part itself is the first level."""
    at = [_items(part)]
    steps: list[object] = []
    while at:
        step, value = next(at[-1], (None, None))
        if step is None:
            at.pop()
            del steps[-1:]
        elif isinstance(value, Mapping | list | tuple):
            steps.append(step)
            if len(at) == levels:
                where = "".join(f"[{s}]" if isinstance(s, int) else f".{shorten(str(s))}" for s in steps)
                text = (
                    f"is more than {levels} levels deep, and no field of Kubernetes is; remove it, or pass it to the program "
                    "as one text"
                )
                yield TemplateProblem(shorten(path + where, 2 * MAX_WORD), text)
                return
            at.append(_items(value))


def _items(node: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(node, Mapping):
        return iter(node.items())
    return iter(enumerate(node)) if isinstance(node, list | tuple) else iter(())


def _too_large(
    path: str,
    size: int,
    most: int,
    remedy: str = "move scripts and data into the image, a ConfigMap or a volume",
) -> TemplateProblem:
    return TemplateProblem(
        path, f"is {_shown(size)} as JSON, and at most {_shown(most)} are allowed; {remedy}"
    )


def _shown(size: int) -> str:
    """A size with its unit, rounded up, so that what is too large never looks allowed."""
    unit, name = (MIB, "MiB") if size >= MIB else (KIB, "KiB")
    return f"{-(-size * 10 // unit) / 10:g} {name}"
