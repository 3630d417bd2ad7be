"""Renders the chart with the real Helm."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.release import build_arguments

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "greentrain"
HELM = Path(sys.executable).parent / "helm"

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

IMAGE = {
    "image.repository": "registry.example.org/greentrain/operator",
    "agent.image.repository": "registry.example.org/greentrain/agent",
}


class HelmError(Exception):
    """What Helm said when it refused."""


def run_helm(*words: str | Path) -> str:
    """Run Helm; raises HelmError with its words when it fails."""
    ended = subprocess.run([HELM, *words], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise HelmError(ended.stderr + ended.stdout)
    return ended.stdout


@pytest.fixture(scope="session")
def render() -> Render:
    """`render(values, kube=…, apis=…)`: the chart's objects for these values (by dotted path) and that server."""

    @functools.cache
    def run_template(kube: str, apis: tuple[str, ...], arguments: tuple[str, ...]) -> str:
        return run_helm(
            "template",
            "greentrain",
            CHART,
            "--namespace=greentrain-system",
            f"--kube-version={kube}",
            *(f"--api-versions={api}" for api in apis),
            *arguments,
        )

    def run(
        values: Mapping[str, object] | None = None, *, kube: str = "1.37.2", apis: tuple[str, ...] = ()
    ) -> list[Manifest]:
        text = run_template(kube, apis, tuple(build_arguments({**IMAGE, **(values or {})})))
        # A tenth of the time that the loader in Python takes for the CRDs; each test gets objects of its own.
        return [manifest for manifest in yaml.load_all(text, Loader=yaml.CSafeLoader) if manifest]

    return run


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of a kind (and name)."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} {name or ''}"
    return found[0]


def is_hook(manifest: Manifest) -> bool:
    """Whether Helm makes the object only while it does something with the release, and not as part of it."""
    return "helm.sh/hook" in manifest["metadata"].get("annotations", {})
