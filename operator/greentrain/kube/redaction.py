"""Keeps values from a pod template's environment and options out of what the operator writes.

Logs, events and status have more readers than the template. Messages quote field names, numbers and values of greentrain's own
schema, because these help to correct a manifest. They do not contain values of environment variables and of options,
whatever quotes them: the API server repeats values it refuses, and a program may print its environment as it dies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from greentrain.api import names
from greentrain.api.runtime import Env

SHORTEST = 6
"""Characters. Shorter values are often common, like `INFO` or `true`; hiding them would only garble messages."""

UNMISTAKABLE = 8
"""Characters from which on a value is hidden inside longer strings too."""

HIDDEN = "<hidden>"

_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|pwd|key|credential|private|cookie|session|signature|auth|dsn",
    re.IGNORECASE,
)
"""Names of variables and options whose values are always hidden."""

_HARMLESS = re.compile(
    r"""
      (?:[a-z][a-z0-9+.-]*://)?[^\s@?=:/]*/[^\s@?=]*  # a path, or an address without user and query
    | [A-Za-z._:-]+                                  # words, module and host names: no digit
    """,
    re.VERBOSE,
)
"""Values that help to correct a program when they are quoted: a missing file, a module that cannot be imported.

Only the first slash can end the part before it: where any could, a value of n slashes took n² steps.
"""

_OURS = frozenset(e.value for e in Env)
"""Variables that we set ourselves: names of jobs and namespaces, and texts that are in every message."""


def find_secrets(node: Any) -> frozenset[str]:
    """Values of environment variables and options anywhere below a spec, a template or a pod manifest.

    Those are literal `env[].value`s, the value of `--option=value`, the argument after an option, and arguments that are
    scripts. Left out are plain digits (steps, ports, sizes). So are paths and plain names, unless the variable's name suggests
    a secret: to hide these in a program's last lines would only hide the fault.
    """
    return frozenset(
        value
        for name, value in _values(node)
        if len(value) >= SHORTEST
        and not value.isdecimal()
        and (_SECRET_NAME.search(name) or not _HARMLESS.fullmatch(value))
    )


def find_pod_secrets(pods: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The values that pods were created with; pods of one role and attempt are alike, so one of them is read.

    A pod has what its program may print, also where the job was edited since, or the operator restarted.
    """
    alike = {pod_group(pod): pod for pod in pods}
    return frozenset().union(*(find_secrets(pod.get("spec")) for pod in alike.values()))


def pod_group(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Role and attempt of a pod: pods that share both are created from one template."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get(names.LABEL_REPLICA_TYPE)), str(labels.get(names.LABEL_ATTEMPT))


def _values(node: Any) -> Iterator[tuple[str, str]]:
    """Names and values, at any depth; the name is empty where there is none."""
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if isinstance(at, Mapping):
            for key, value in at.items():
                if key == "env":
                    yield from _environment(value)
                elif key in ("args", "command"):
                    yield from _options(value)
                else:
                    waiting.append(value)
        elif isinstance(at, list | tuple):
            waiting.extend(at)


def _environment(variables: Any) -> Iterator[tuple[str, str]]:
    if isinstance(variables, str):
        yield "", variables  # not a list: wrong, and still not to be quoted
    for variable in variables if isinstance(variables, list | tuple) else ():
        named = isinstance(variable, Mapping)
        value = variable.get("value") if named else variable
        if named and str(variable.get("name")) in _OURS:
            continue
        if isinstance(value, str | int | float):
            yield str(variable.get("name")) if named else "", str(value)


def _options(words: Any) -> Iterator[tuple[str, str]]:
    if isinstance(words, str):
        yield "", words
        return
    after = ""
    for word in words if isinstance(words, list | tuple) else ():
        text = str(word)
        option, equals, value = text.partition("=")
        if option.startswith("-"):
            if equals:
                yield option, value
            after = option if not equals and option != "-m" else ""  # Python's module
            continue
        if equals or after or " " in text:
            yield after, text
            yield option if equals else after, value
        after = ""


MANY = 32
"""From so many secrets on, the text's substrings are collected first: most secrets are then known not to be in it."""


def redact(text: str, secrets: frozenset[str]) -> str:
    """The text with each of these values hidden, longest first; also as JSON and Go quote them.

    Takes time in proportion to the text for each value it may contain, and hardly any for the others.
    """
    beginnings: set[str] | None = None
    if len(secrets) > MANY:
        beginnings = {text[i : i + SHORTEST] for i in range(len(text) - SHORTEST + 1)}
    for spelling, unmistakable in _spell(secrets):
        if beginnings is not None and spelling[:SHORTEST] not in beginnings:
            continue
        if spelling not in text:
            continue
        if unmistakable:
            text = text.replace(spelling, HIDDEN)
        else:
            text = re.sub(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", HIDDEN, text)
    return text


def redact_beginning(text: str, secrets: frozenset[str], most: int) -> str:
    """The first `most` characters of the text with each of these values hidden, one that is cut off at its end too.

    Takes time in proportion to `most` and the values, however long the text is: the API server repeats what it refuses.
    """
    longest = max((len(spelling) for spelling, _ in _spell(secrets)), default=0)
    looked_at = most + 2 * longest
    if len(text) <= looked_at:
        return redact(text, secrets)[:most]
    found = redact(text[:looked_at], secrets)
    return found[: max(len(found) - longest, 0)][:most]


@lru_cache(maxsize=16)
def _spell(secrets: frozenset[str]) -> tuple[tuple[str, bool], ...]:
    """How each value may be written, longest value first, and whether it is hidden inside longer strings too."""
    found = []
    for secret in sorted(secrets, key=len, reverse=True):
        quoted = (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
        found += [(spelling, len(secret) >= UNMISTAKABLE) for spelling in dict.fromkeys((secret, *quoted))]
    return tuple(found)
