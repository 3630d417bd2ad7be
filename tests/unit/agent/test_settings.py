"""The agent's command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from greentrain.agent.settings import AgentSettings, parse_settings
from greentrain.api.resources import GpuResources


@pytest.fixture(autouse=True)
def _nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)


def test_with_a_node_the_defaults_hold() -> None:
    assert parse_settings(["--node=node-1"]) == AgentSettings(node="node-1")


@pytest.mark.parametrize(
    ("arguments", "node"), [([], "from-its-pod"), (["--node=said"], "said")], ids=["variable", "argument"]
)
def test_the_node_is_known_from_its_pod_or_said(
    arguments: list[str], node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "from-its-pod")
    assert parse_settings(arguments).node == node


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--journal=/data"], {"journal": Path("/data")}),
        (["--kubelet-socket=/run/k.sock"], {"kubelet_socket": Path("/run/k.sock")}),
        (["--cgroup-root=/host/cgroup"], {"cgroup_root": Path("/host/cgroup")}),
        (["--powercap-root=/host/powercap"], {"powercap_root": Path("/host/powercap")}),
        (["--interval=1.5"], {"interval": 1.5}),
        (["--report-interval", "10"], {"report_interval": 10.0}),
        (["--http-port=0"], {"http_port": 0}),
        (["--log-level=DEBUG", "--log-format=text"], {"log_level": "DEBUG", "log_format": "text"}),
        (["--kubeconfig=/k", "--context=there"], {"kubeconfig": "/k", "context": "there"}),
        (["--driver-module=/host/nvidia"], {"driver_module": Path("/host/nvidia")}),
        (["--dry-run"], {"dry_run": True}),
        (
            ["--gpu-resources=amd.com/gpu,a.b/c-*"],
            {"gpu_resources": GpuResources(("amd.com/gpu", "a.b/c-*"))},
        ),
        (["--operator-lease=gt/operator"], {"operator_lease": ("gt", "operator")}),
        (["run"], {}),
        (["restore"], {"command": "restore"}),
        (
            ["retire", "--daemonset=gt/agent", "--selector=app=agent"],
            {"command": "retire", "daemonset": ("gt", "agent"), "selector": "app=agent"},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_each_argument_changes_one_setting(arguments: list[str], changed: dict[str, object]) -> None:
    expected = replace(AgentSettings(node="n"), **changed)  # type: ignore[arg-type]
    assert parse_settings(["--node=n", *arguments]) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--node is not given and $NODE_NAME is not set: name the node this agent runs on"),
        (["--node="], "name the node this agent runs on"),
        (["--node=n", "--interval=0.5"], "--interval: 0.5 is not between 1 and 3600 seconds"),
        (["--node=n", "--interval=nan"], "--interval: nan is not between 1 and 3600 seconds"),
        (["--node=n", "--interval=often"], "--interval: often is not between 1 and 3600 seconds"),
        (
            ["--node=n", "--report-interval=3601"],
            "--report-interval: 3601 is not between 1 and 3600 seconds",
        ),
        (["--node=n", "--http-port=70000"], "--http-port: 70000 is not between 0 and 65535"),
        (["--node=n", "--http-port=-1"], "--http-port: -1 is not between 0 and 65535"),
        (["--node=n", "--http-port=http"], "--http-port: http is not between 0 and 65535"),
        (["--node=n", "--log-format=xml"], "invalid choice: 'xml'"),
        (["--node=n", "--log-level=LOUD"], "invalid choice: 'LOUD'"),
        (["--node=n", "--jornal=/data"], "unrecognized arguments: --jornal=/data"),
        (
            ["--node=n", "--gpu-resources=gpu"],
            "--gpu-resources: 'gpu' is no name of a GPU resource: write names",
        ),
        (["--node=n", "repair"], "invalid choice: 'repair'"),
        (["--node=n", "--dry-run=yes"], "--dry-run: ignored explicit argument 'yes'"),
        (["--node=n", "--operator-lease=operator"], "operator is not NAMESPACE/NAME"),
        (["retire"], "retire needs --daemonset and --selector: which agents to end"),
        (["retire", "--daemonset=gt/agent"], "retire needs --daemonset and --selector"),
        (["retire", "--selector=app=agent"], "retire needs --daemonset and --selector"),
        *(
            (["retire", "--selector=app=agent", f"--daemonset={name}"], f"{name} is not NAMESPACE/NAME")
            for name in ("agent", "/agent", "gt/")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["restore"], ["retire", "--daemonset=gt/agent", "--selector=app=agent"]], ids=lambda a: a[0]
)
def test_what_only_ends_things_needs_no_node(arguments: list[str]) -> None:
    assert parse_settings(arguments).node == ""
