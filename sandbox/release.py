"""The chart as a Helm release: installed or upgraded in the sandbox or, when asked, in one named context of a user's.

Every call names the kubeconfig's context, so that nothing reaches a cluster that was not asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import shell
from sandbox.images import ROOT
from sandbox.shell import SandboxError

RELEASE = "greentrain"
NAMESPACE = "greentrain-system"
AGENT_NAMESPACE = "greentrain-agent"
AGENT = f"{RELEASE}-agent"
CHART = ROOT / "charts" / "greentrain"
HELM = ROOT / ".venv" / "bin" / "helm"
ROLLOUT_SECONDS = 180


@dataclass(frozen=True)
class Cluster:
    """A cluster to talk to, by its context; `kubeconfig` None means the user's own (`$KUBECONFIG` or ~/.kube/config)."""

    context: str
    kubectl: Path
    kubeconfig: Path | None = None

    def build_environment(self) -> dict[str, str]:
        """The environment of kubectl and Helm: the caller's, with the kubeconfig where one is given."""
        environment = dict(os.environ)
        if self.kubeconfig is not None:
            environment["KUBECONFIG"] = str(self.kubeconfig)
        return environment

    def run_kubectl(self, *words: str | Path, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl against this context and return what it printed.

        Raises:
            SandboxError: it failed (only when `check`).
        """
        command = [self.kubectl, "--context", self.context, *words]
        return shell.run(command, env=self.build_environment(), stdin=stdin, check=check)

    def read_json(self, *words: str) -> dict[str, Any] | None:
        """What `kubectl … -o json` shows; None when there is no such object or no answer yet."""
        text = self.run_kubectl(*words, "-o", "json", "--ignore-not-found", check=False)
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def run_helm(self, *words: str | Path) -> str:
        """Run Helm against this context and return what it printed.

        Raises:
            SandboxError: it is not installed, or it failed.
        """
        if not HELM.exists():
            raise SandboxError(f"{HELM} is missing; run: make venv")
        return shell.run([HELM, "--kube-context", self.context, *words], env=self.build_environment())


def build_arguments(values: Mapping[str, object]) -> list[str]:
    """Helm's `--set-json` arguments for values by dotted path."""
    return [f"--set-json={path}={json.dumps(value)}" for path, value in sorted(values.items())]


def split_reference(reference: str) -> tuple[str, str]:
    """Repository and tag of `repository:tag`.

    Raises:
        ValueError: it has no tag.
    """
    repository, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        raise ValueError(f"image {reference!r} has no tag; write it as repository:tag")
    return repository, tag


def build_values(image: str, agent: str | None, values: Mapping[str, object]) -> dict[str, object]:
    """The chart's values for an operator image and an agent image, by dotted path; without the latter no agents run."""
    repository, tag = split_reference(image)
    chosen: dict[str, object] = {"image.repository": repository, "image.tag": tag}
    if agent is None:
        chosen["agent.enabled"] = False
    else:
        repository, tag = split_reference(agent)
        chosen |= {
            "agent.namespace": AGENT_NAMESPACE,
            "agent.image.repository": repository,
            "agent.image.tag": tag,
        }
    return chosen | dict(values)


def apply_release(
    cluster: Cluster,
    image: str,
    *,
    agent: str | None = None,
    namespace: str = NAMESPACE,
    values: Mapping[str, object] | None = None,
) -> str:
    """Install or upgrade the chart with these images and wait until the operator and every agent are ready.

    Without an `agent` image the release has no agents; one that had some loses them.

    Raises:
        SandboxError: Helm failed, or something was not ready in time (its last log lines are in the error).
    """
    cluster.run_helm(
        "upgrade",
        "--install",
        RELEASE,
        CHART,
        f"--namespace={namespace}",
        "--create-namespace",
        *build_arguments(build_values(image, agent, values or {})),
    )
    wait_for_rollout(cluster, namespace, f"deployment/{RELEASE}", "The operator was")
    done = f"{RELEASE} {split_reference(image)[1]} in {namespace}"
    if agent is None:
        return done
    wait_for_rollout(cluster, AGENT_NAMESPACE, f"daemonset/{AGENT}", "The agents were")
    return f"{done}, agent {split_reference(agent)[1]} in {AGENT_NAMESPACE}"


def wait_for_rollout(cluster: Cluster, namespace: str, workload: str, who: str) -> None:
    """Wait until all pods of a Deployment or DaemonSet are those it asks for and ready; `who` begins the error.

    Raises:
        SandboxError: they were not in time; their last log lines are in the error.
    """
    here = ("--namespace", namespace)
    try:
        cluster.run_kubectl(*here, "rollout", "status", workload, f"--timeout={ROLLOUT_SECONDS}s")
    except SandboxError as error:
        log = cluster.run_kubectl(*here, "logs", workload, "--tail=15", check=False)
        pods = cluster.run_kubectl(*here, "get", "pods", "-o", "wide", check=False)
        raise SandboxError(
            f"{who} not ready within {ROLLOUT_SECONDS} s.\n{pods.rstrip()}\n{log.rstrip()}",
            remedy=f"kubectl --context {cluster.context} -n {namespace} describe pods",
        ) from error


def remove_release(cluster: Cluster, *, namespace: str = NAMESPACE) -> None:
    """Uninstall the release, its agents and their namespace included.

    CustomResourceDefinitions and jobs stay when `crds.keep` was true, and what agents counted stays on the nodes.
    """
    cluster.run_helm("uninstall", RELEASE, f"--namespace={namespace}", "--wait")
