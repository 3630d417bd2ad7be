"""A server older than the oldest supported one is refused; one whose version cannot be read is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from greentrain.kube.version import OLDEST, ServerVersion, decide_refusal, read_server_version

ROOT = Path(__file__).parents[3]


def answer(major: object, minor: object, git: object = "") -> dict[str, Any]:
    return {"major": major, "minor": minor, "gitVersion": git, "platform": "linux/amd64"}


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (answer("1", "37", "v1.37.2"), (1, 37)),
        (answer("1", "32", "v1.32.0"), (1, 32)),
        (answer("1", "31+", "v1.31.14-eks-1a2b3c"), (1, 31)),
        (answer("1", "37+", "v1.37.0-alpha.1"), (1, 37)),
        (answer("1+", "34"), (1, 34)),
        (answer("2", "0", "v2.0.0"), (2, 0)),
        # Only one of the two kinds of fields is there, or makes sense.
        (answer("", "", "v1.34.4-eks-1a2b3c"), (1, 34)),
        (answer("", "", "v1.34.4+k3s1"), (1, 34)),
        (answer("", "", "1.9.11"), (1, 9)),
        ({"gitVersion": "v1.31.4-gke.100"}, (1, 31)),
        ({"major": "1", "minor": "31"}, (1, 31)),
        (answer("1", "x", "v1.36.0"), (1, 36)),
        (answer(1, 36, "v1.36.0"), (1, 36)),
    ],
)
def test_a_version_is_read(said: dict[str, Any], version: tuple[int, int]) -> None:
    found = read_server_version(said)
    assert found is not None
    assert (found.major, found.minor) == version


@pytest.mark.parametrize(
    "said",
    [
        {},
        answer("", ""),
        answer("1", ""),
        answer(1, 37),
        answer(None, None, None),
        answer(["1"], {"minor": "37"}, 1.37),
        answer("one", "thirty", "latest"),
        answer("1", "37 or so"),
        answer("1", "-5"),
        answer("1", "٣٧"),
        answer("1", "123456"),
        answer("", "", "v1.123456.0"),
        answer("", "", "v1"),
        # Built without a version.
        answer("", "", "v0.0.0-master+$Format:%H$"),
        answer("0", "0", "v0.0.0"),
    ],
)
def test_what_says_no_version_is_none(said: dict[str, Any]) -> None:
    assert read_server_version(said) is None


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (ServerVersion(1, 20), True),
        (ServerVersion(1, 9), True),
        (ServerVersion(1, 31), True),
        (ServerVersion(1, 32), False),
        (ServerVersion(1, 37), False),
        (ServerVersion(1, 100), False),
        (ServerVersion(2, 0), False),
    ],
)
def test_only_an_older_server_is_refused(found: ServerVersion, refused: bool) -> None:
    assert (decide_refusal(found) is not None) is refused


@pytest.mark.parametrize(
    ("said", "named"),
    [(answer("1", "31+", "v1.31.14-gke.100"), "v1.31.14-gke.100"), (answer("1", "31"), "1.31")],
)
def test_a_refusal_names_the_server_the_oldest_version_and_the_remedy(
    said: dict[str, Any], named: str
) -> None:
    found = read_server_version(said)
    assert found is not None
    assert decide_refusal(found) == (
        f"the API server is Kubernetes {named}; this operator needs Kubernetes 1.32 or newer: upgrade the cluster"
    )


def test_the_chart_the_operator_and_the_guide_name_the_same_version() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "greentrain" / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
    guide = (ROOT / "docs/start/install.md").read_text()
    assert re.findall(r"Kubernetes ([0-9.]+) or newer", guide) == [str(OLDEST)]
