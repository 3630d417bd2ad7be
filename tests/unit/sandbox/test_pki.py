"""Certificates name whom they are for, chain to the sandbox's own authority, and stand inline in kubeconfigs."""

from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from sandbox.controlplane import (
    AUDIT_POLICY,
    ServerSettings,
    build_apiserver_arguments,
    build_etcd_arguments,
)
from sandbox.pki import (
    build_authority,
    build_kubeconfig,
    build_public_key,
    format_alternative_names,
    issue,
    write_kubeconfig,
)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["kubernetes"], "DNS:kubernetes"),
        (["localhost", "127.0.0.1", "::1"], "DNS:localhost,IP:127.0.0.1,IP:::1"),
        (["1.2.3"], "DNS:1.2.3"),
    ],
)
def test_names_and_addresses_are_told_apart(names: list[str], text: str) -> None:
    assert format_alternative_names(names) == text


def _openssl(*arguments: str | Path) -> str:
    return subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def test_a_certificate_carries_user_groups_and_names_and_is_trusted_by_its_authority_alone(
    tmp_path: Path,
) -> None:
    authority, stranger = build_authority(tmp_path / "a"), build_authority(tmp_path / "b")
    issued = issue(
        authority,
        tmp_path / "a",
        "node1",
        common_name="system:node:node1",
        organizations=["system:nodes"],
        alternative_names=["node1", "198.19.255.11"],
    )
    text = _openssl("x509", "-in", issued.certificate, "-noout", "-subject", "-ext", "subjectAltName")
    assert "O = system:nodes, CN = system:node:node1" in text
    assert "DNS:node1, IP Address:198.19.255.11" in text
    _openssl("verify", "-CAfile", authority.certificate, issued.certificate)
    with pytest.raises(subprocess.CalledProcessError):
        _openssl("verify", "-CAfile", stranger.certificate, issued.certificate)


def test_private_keys_and_kubeconfigs_are_their_owners_only(tmp_path: Path) -> None:
    authority = build_authority(tmp_path)
    kubeconfig = write_kubeconfig(tmp_path / "k" / "kubeconfig", "x")
    public = build_public_key(authority.key, tmp_path / "ca.pub")
    for path in (authority.key, kubeconfig):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "BEGIN PUBLIC KEY" in public.read_text()


def test_a_kubeconfig_has_one_context_and_everything_inline(tmp_path: Path) -> None:
    authority = build_authority(tmp_path)
    user = issue(authority, tmp_path, "admin", common_name="admin")
    text = build_kubeconfig(
        name="greentrain-sandbox",
        server="https://127.0.0.1:16443",
        authority=authority.certificate,
        user="greentrain-sandbox-admin",
        credentials=user,
    )
    parsed = yaml.safe_load(text)
    assert parsed["current-context"] == "greentrain-sandbox"
    assert [context["name"] for context in parsed["contexts"]] == ["greentrain-sandbox"]
    assert parsed["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:16443"
    inline = parsed["users"][0]["user"]["client-certificate-data"]
    assert base64.b64decode(inline) == user.certificate.read_bytes()


def _settings(without_controllers: bool) -> ServerSettings:
    return ServerSettings(Path("/s"), "127.0.0.1", "198.18.255.254", 16443, 12379, 12380, without_controllers)


@pytest.mark.parametrize("alone", [True, False])
def test_pods_need_no_service_account_only_where_nothing_makes_one(alone: bool) -> None:
    arguments = build_apiserver_arguments(_settings(alone))
    assert ("--disable-admission-plugins=ServiceAccount" in arguments) is alone
    assert "--authorization-mode=Node,RBAC" in arguments
    assert "--audit-log-path=/s/log/audit.log" in arguments


def test_etcd_listens_on_loopback_only() -> None:
    addresses = [
        argument.partition("=")[2]
        for argument in build_etcd_arguments(_settings(True))
        if "-urls=" in argument
    ]
    assert addresses
    assert all(address.startswith("http://127.0.0.1:") for address in addresses)


def test_the_audit_log_leaves_out_the_cluster_itself_but_no_operator() -> None:
    policy = yaml.safe_load(AUDIT_POLICY)
    left_out = [rule for rule in policy["rules"] if rule["level"] == "None"]
    groups = {group for rule in left_out for group in rule.get("userGroups", [])}
    assert groups == {"system:nodes", "system:serviceaccounts:kube-system"}
    assert policy["rules"][-1] == {"level": "Metadata"}
    assert policy["omitStages"] == ["RequestReceived"]
