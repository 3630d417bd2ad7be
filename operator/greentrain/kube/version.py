"""The oldest Kubernetes this operator runs on, and how an API server reports its version (`GET /version`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NUMBER = re.compile(r"([0-9]{1,4})\+?", re.ASCII)
"""A major or minor version; providers append a plus to the minor of a build of their own (`31+`)."""

_GIT_VERSION = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ServerVersion:
    """A Kubernetes version without its patch level."""

    major: int
    minor: int
    text: str = field(default="", compare=False)
    """The version as the server writes it, such as `v1.34.4-eks-1a2b3c`; empty where it has none."""

    def __str__(self) -> str:
        return self.text or f"{self.major}.{self.minor}"


OLDEST = ServerVersion(1, 32)
"""Equals the chart's `kubeVersion` for Helm."""


class OldServerError(Exception):
    """The API server is older than this operator supports; the text has its version and the next step."""


def read_server_version(answer: Mapping[str, Any]) -> ServerVersion | None:
    """The version in the answer to `GET /version`: by `major` and `minor`, else by `gitVersion`; None where neither has it.

    A server that was built without a version reports v0.0.0; that counts as none.
    """
    text = answer.get("gitVersion")
    text = text if isinstance(text, str) else ""
    major, minor = (_NUMBER.fullmatch(_said(answer, name)) for name in ("major", "minor"))
    if major and minor:
        found = ServerVersion(int(major[1]), int(minor[1]), text[:64])
    elif git := _GIT_VERSION.match(text):
        found = ServerVersion(int(git[1]), int(git[2]), text[:64])
    else:
        return None
    return found if found.major else None


def _said(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""


def decide_refusal(found: ServerVersion) -> str | None:
    """Why the operator does not run on this server, and what to do; None where it does."""
    if found >= OLDEST:
        return None
    return f"the API server is Kubernetes {found}; this operator needs Kubernetes {OLDEST} or newer: upgrade the cluster"
