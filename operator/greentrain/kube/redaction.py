"""Keeps what users put into a pod template's environment and options out of what the operator says.

Logs, events and status are read by more people than the template is. Field names, numbers and words of greentrain's
own schema are quoted in messages, because they mend a manifest; values of environment variables and of options are
not, whoever quotes them: the API server repeats values it refuses, and a program may print its environment as it dies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST = 6
"""Characters. Shorter values are words like `INFO` or `true`; hiding them would only garble messages."""

UNMISTAKABLE = 8
"""Characters from which on a value is hidden inside other words as well."""

HIDDEN = "<hidden>"

_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|pwd|key|credential|private|cookie|session|signature|auth|dsn",
    re.IGNORECASE,
)
"""Names of variables and options whose values are hidden whatever they look like."""

_HARMLESS = re.compile(
    r"""
      (?:[a-z][a-z0-9+.-]*://)?[^\s@?=:]*/[^\s@?=]*   # a path, or an address without user and query
    | [A-Za-z._:-]+                                  # words, module and host names: no digit
    """,
    re.VERBOSE,
)
"""Values that mend a program when they are quoted: a file that is not there, a module that cannot be imported."""


def find_secrets(node: Any) -> frozenset[str]:
    """Values of environment variables and options anywhere below a spec, a template or a pod manifest.

    Those are literal `env[].value`s, the value of `--option=value`, the word after an option, and words of commands
    that are scripts. Left out are plain digits (steps, ports, sizes), and, unless the name speaks of a secret, paths
    and plain words: hidden in a program's last lines they would only hide what is wrong.
    """
    return frozenset(
        value
        for name, value in _values(node)
        if len(value) >= SHORTEST
        and not value.isdecimal()
        and (_SECRET_NAME.search(name) or not _HARMLESS.fullmatch(value))
    )


def _values(node: Any) -> Iterator[tuple[str, str]]:
    """Names and values; the name is empty where there is none."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "env":
                yield from _environment(value)
            elif key in ("args", "command"):
                yield from _options(value)
            else:
                yield from _values(value)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _values(item)


def _environment(variables: Any) -> Iterator[tuple[str, str]]:
    if isinstance(variables, str):
        yield "", variables  # not a list: wrong, and still not to be repeated
    for variable in variables if isinstance(variables, list | tuple) else ():
        named = isinstance(variable, Mapping)
        value = variable.get("value") if named else variable
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


def redact(text: str, secrets: frozenset[str]) -> str:
    """The text with each of these values hidden, longest first; also as JSON and Go quote them."""
    for secret in sorted(secrets, key=len, reverse=True):
        for spelling in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            if spelling not in text:
                continue
            if len(secret) >= UNMISTAKABLE:
                text = text.replace(spelling, HIDDEN)
            else:
                text = re.sub(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", HIDDEN, text)
    return text
