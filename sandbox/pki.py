"""The sandbox's own certificate authority, so that its API server, kubelets and clients trust each other and nothing else.

openssl makes every key (P-256: a millisecond each) and certificate; nothing leaves the state directory.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox import shell

VALID_DAYS = 365


@dataclass(frozen=True)
class Credentials:
    """A certificate and its key, both PEM files."""

    certificate: Path
    key: Path


def format_alternative_names(names: Sequence[str]) -> str:
    """Names and addresses as openssl's subjectAltName takes them: `DNS:a,IP:10.0.0.1`."""

    def kind(name: str) -> str:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return "DNS"
        return "IP"

    return ",".join(f"{kind(name)}:{name}" for name in names)


def build_key(path: Path) -> Path:
    """Write a fresh private key (P-256, PEM, readable by its owner only) to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    shell.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path],
        remedy="apt-get install openssl",
    )
    return path


def build_public_key(key: Path, path: Path) -> Path:
    """Write the public half of `key` to `path`."""
    shell.run(["openssl", "pkey", "-in", key, "-pubout", "-out", path])
    return path


def build_authority(
    directory: Path, name: str = "ca", common_name: str = "greentrain-sandbox"
) -> Credentials:
    """A self-signed certificate authority in `directory` (`NAME.crt`, `NAME.key`)."""
    key = build_key(directory / f"{name}.key")
    certificate = directory / f"{name}.crt"
    shell.run(
        [
            *("openssl", "req", "-x509", "-new", "-key", key, "-sha256", "-days", str(VALID_DAYS)),
            *("-subj", f"/CN={common_name}", "-out", certificate),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ]
    )
    return Credentials(certificate, key)


def issue(
    authority: Credentials,
    directory: Path,
    name: str,
    *,
    common_name: str,
    organizations: Sequence[str] = (),
    alternative_names: Sequence[str] = (),
) -> Credentials:
    """A certificate for client and server use, `name.crt` and `name.key` in `directory`.

    Kubernetes reads the user from `common_name` and the groups from `organizations`.
    """
    key = build_key(directory / f"{name}.key")
    certificate = directory / f"{name}.crt"
    request = directory / f"{name}.csr"
    extensions = directory / f"{name}.ext"
    lines = [
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=clientAuth,serverAuth",
        "basicConstraints=CA:FALSE",
    ]
    if alternative_names:
        lines.append(f"subjectAltName={format_alternative_names(alternative_names)}")
    extensions.write_text("\n".join(lines) + "\n")
    subject = "".join(f"/O={group}" for group in organizations) + f"/CN={common_name}"
    shell.run(["openssl", "req", "-new", "-key", key, "-subj", subject, "-out", request])
    shell.run(
        [
            *("openssl", "x509", "-req", "-in", request, "-sha256", "-days", str(VALID_DAYS)),
            *("-CA", authority.certificate, "-CAkey", authority.key, "-set_serial", f"0x{_serial(key)}"),
            *("-extfile", extensions, "-out", certificate),
        ]
    )
    request.unlink()
    extensions.unlink()
    return Credentials(certificate, key)


def _serial(key: Path) -> str:
    # Random as the key is, so that several certificates issued at once need no shared counter file.
    text = shell.run(["openssl", "pkey", "-in", key, "-pubout", "-outform", "PEM"])
    body = "".join(line for line in text.splitlines() if not line.startswith("-----"))
    return base64.b64decode(body)[-15:].hex()


def build_kubeconfig(*, name: str, server: str, authority: Path, user: str, credentials: Credentials) -> str:
    """A kubeconfig (YAML) with one context `name`, every certificate inline, so that the file can be copied.

    `server` is a URL such as `https://127.0.0.1:16443`.
    """

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return f"""\
apiVersion: v1
kind: Config
clusters:
- name: {name}
  cluster:
    server: {server}
    certificate-authority-data: {inline(authority)}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: {user}
current-context: {name}
users:
- name: {user}
  user:
    client-certificate-data: {inline(credentials.certificate)}
    client-key-data: {inline(credentials.key)}
"""


def write_kubeconfig(path: Path, text: str) -> Path:
    """Write a kubeconfig readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
    return path
