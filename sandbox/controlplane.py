"""etcd and kube-apiserver: how both are started, and the two alone on loopback for the integration tests.

The sandbox (`up`) and the tests start the same server with the same arguments; what differs is in `ServerSettings`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sandbox import pki
from sandbox.api import Api
from sandbox.binaries import Binaries
from sandbox.ports import find_free_ports
from sandbox.shell import SandboxError

SERVICE_RANGE = "198.19.0.0/17"
"""Addresses of Services. 198.18.0.0/15 is set aside for tests of network devices (RFC 2544), so that no office,
cloud or container network collides with the sandbox."""

API_SERVICE_ADDRESS = "198.19.0.1"
"""The `kubernetes` Service: the first address of `SERVICE_RANGE`."""

SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc"

AUDIT_POLICY = """\
# Who did what, without bodies. Kubernetes' own components are left out; service accounts outside kube-system (the
# operator among them) are not, so that its rights can be compared with what it uses and its writes can be counted.
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users:
  - system:apiserver
  - system:anonymous
  - system:kube-controller-manager
  - system:kube-scheduler
  - system:kube-proxy
  - greentrain-sandbox
- level: None
  userGroups: [system:nodes, "system:serviceaccounts:kube-system"]
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version"]
- level: Metadata
"""

SANDBOX_USER = "greentrain-sandbox"
"""Who the sandbox itself is at the API server; left out of the audit log."""

ADMIN_GROUP = "system:masters"

FRONT_PROXY_USER = "front-proxy-client"
"""Who the API server is to the servers of aggregated APIs."""

CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
"""What the cluster's programs see: no proxy of the machine, or the API server would call kubelets through it."""


@dataclass(frozen=True)
class ServerSettings:
    """Where one API server and its etcd live. Ports are TCP; addresses IPv4."""

    directory: Path
    bind: str
    advertise: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    without_controllers: bool
    """No controller-manager will run: pods must be admitted without a service account's token."""

    @property
    def pki(self) -> Path:
        """Folder of keys and certificates."""
        return self.directory / "pki"

    @property
    def audit_log(self) -> Path:
        """JSON lines, one per answered request (`audit.k8s.io/v1`)."""
        return self.directory / "log" / "audit.log"

    @property
    def url(self) -> str:
        """Where clients on this machine reach the server: always loopback, which no proxy setting reroutes."""
        return f"https://127.0.0.1:{self.api_port}"


def build_etcd_arguments(settings: ServerSettings) -> list[str]:
    """Arguments of an etcd that keeps nothing worth an fsync, on loopback."""
    client = f"http://127.0.0.1:{settings.etcd_port}"
    peer = f"http://127.0.0.1:{settings.etcd_peer_port}"
    return [
        "--name=sandbox",
        f"--data-dir={settings.directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=sandbox={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=4294967296",
    ]


def build_apiserver_arguments(settings: ServerSettings) -> list[str]:
    """Arguments of the API server: Node and RBAC authorization, audit log on, no throttling of a benchmark."""
    pki_folder = settings.pki
    arguments = [
        f"--bind-address={settings.bind}",
        f"--advertise-address={settings.advertise}",
        f"--secure-port={settings.api_port}",
        f"--etcd-servers=http://127.0.0.1:{settings.etcd_port}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--anonymous-auth=true",
        f"--client-ca-file={pki_folder / 'ca.crt'}",
        f"--tls-cert-file={pki_folder / 'apiserver.crt'}",
        f"--tls-private-key-file={pki_folder / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki_folder / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki_folder / 'apiserver-kubelet.key'}",
        f"--kubelet-certificate-authority={pki_folder / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={SERVICE_ACCOUNT_ISSUER}",
        f"--service-account-signing-key-file={pki_folder / 'service-accounts.key'}",
        f"--service-account-key-file={pki_folder / 'service-accounts.pub'}",
        f"--api-audiences={SERVICE_ACCOUNT_ISSUER}",
        f"--audit-policy-file={settings.directory / 'audit-policy.yaml'}",
        f"--audit-log-path={settings.audit_log}",
        "--audit-log-maxsize=200",
        "--audit-log-maxbackup=3",
        # Aggregated APIs: their servers know the API server, and whom it speaks for, by this certificate and these headers.
        f"--requestheader-client-ca-file={pki_folder / 'front-proxy-ca.crt'}",
        f"--requestheader-allowed-names={FRONT_PROXY_USER}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki_folder / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki_folder / 'front-proxy-client.key'}",
        # Fair queueing would only stand in the way of counting what one client can do.
        "--enable-priority-and-fairness=false",
        "--max-requests-inflight=3000",
        "--max-mutating-requests-inflight=1500",
        "--v=1",
    ]
    # Services of type NodePort and finalizers need no more than the default admission plugins.
    plugins = ["NodeRestriction"]
    arguments.append(f"--enable-admission-plugins={','.join(plugins)}")
    if settings.without_controllers:
        arguments.append("--disable-admission-plugins=ServiceAccount")
    return arguments


def build_server_pki(settings: ServerSettings, names: Sequence[str] = ()) -> None:
    """Write the authority, the server's certificates and keys, and the audit policy; `names` are further server names."""
    folder = settings.pki
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.audit_log.parent.mkdir(parents=True, exist_ok=True)
    (settings.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
    authority = pki.build_authority(folder)
    pki.issue(
        authority,
        folder,
        "apiserver",
        common_name="kube-apiserver",
        alternative_names=[
            *(
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ),
            *("localhost", "127.0.0.1", API_SERVICE_ADDRESS, *names),
        ],
    )
    pki.issue(
        authority,
        folder,
        "apiserver-kubelet",
        common_name="kube-apiserver-kubelet-client",
        organizations=[ADMIN_GROUP],
    )
    front_proxy = pki.build_authority(folder, "front-proxy-ca", "greentrain-sandbox-front-proxy")
    pki.issue(front_proxy, folder, "front-proxy-client", common_name=FRONT_PROXY_USER)
    pki.issue(authority, folder, "sandbox", common_name=SANDBOX_USER, organizations=[ADMIN_GROUP])
    pki.issue(authority, folder, "admin", common_name="admin", organizations=[ADMIN_GROUP])
    pki.build_public_key(pki.build_key(folder / "service-accounts.key"), folder / "service-accounts.pub")


def read_credentials(settings: ServerSettings, name: str) -> pki.Credentials:
    """A certificate that `build_server_pki` or `pki.issue` has written, by its file name."""
    return pki.Credentials(settings.pki / f"{name}.crt", settings.pki / f"{name}.key")


def build_api(settings: ServerSettings) -> Api:
    """A client with every right, as the sandbox itself."""
    return Api(settings.url, settings.pki / "ca.crt", read_credentials(settings, "sandbox"))


def is_listening(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on a TCP port."""
    try:
        with socket.create_connection((address, port), timeout=1.0):
            return True
    except OSError:
        return False


class ControlPlane:
    """etcd and kube-apiserver alone, on loopback and free ports, as children that die with the process that started them.

    No controller-manager, scheduler or kubelet: nothing creates tokens, deletes namespaces' contents, collects garbage
    or runs pods, so tests play those parts. Needs no root. The kernel ends both when the thread that started them ends,
    so start it in a thread that lasts (the main one). Use as a context manager:

        with ControlPlane.start(directory, gather_binaries()) as plane:
            ...  # plane.kubeconfig, plane.url, plane.audit_log
    """

    def __init__(self, settings: ServerSettings, binaries: Binaries) -> None:
        self._settings = settings
        self._binaries = binaries
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls, directory: Path, binaries: Binaries, *, bind: str = "127.0.0.1", ready_within: float = 90.0
    ) -> ControlPlane:
        """Start both in `directory` (made if need be, best a fresh one) and wait until the server is ready.

        Raises:
            SandboxError: one of them ended or was not ready within `ready_within` seconds; with its last log lines.
        """
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        api_port, etcd_port, peer_port = find_free_ports(3)
        settings = ServerSettings(
            directory=directory,
            bind=bind,
            # A loopback address must not stand in an Endpoints object; the server never dials this one.
            advertise="198.18.255.254" if bind.startswith(("127.", "0.")) else bind,
            api_port=api_port,
            etcd_port=etcd_port,
            etcd_peer_port=peer_port,
            without_controllers=True,
        )
        build_server_pki(settings)
        plane = cls(settings, binaries)
        text = pki.build_kubeconfig(
            name="greentrain-test",
            server=settings.url,
            authority=settings.pki / "ca.crt",
            user="admin",
            credentials=read_credentials(settings, "admin"),
        )
        pki.write_kubeconfig(plane.kubeconfig, text)
        try:
            plane._etcd = plane._launch("etcd", binaries.etcd, build_etcd_arguments(settings))
            plane.start_apiserver(ready_within=ready_within)
        except BaseException:
            plane.stop()
            raise
        return plane

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of a user `admin` with every right."""
        return self._settings.directory / "kubeconfig"

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._settings.url

    @property
    def audit_log(self) -> Path:
        """The audit log; what Kubernetes' own components do is not in it."""
        return self._settings.audit_log

    @property
    def apiserver_log(self) -> Path:
        """What the API server printed."""
        return self._settings.directory / "log" / "kube-apiserver.log"

    @property
    def api(self) -> Api:
        """A client with every right that the audit log leaves out."""
        return build_api(self._settings)

    def build_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for another user, who has the rights RBAC gives to `user` and `groups` and no more."""
        file_name = "user-" + "".join(letter if letter.isalnum() else "-" for letter in user)
        authority = read_credentials(self._settings, "ca")
        credentials = pki.issue(
            authority, self._settings.pki, file_name, common_name=user, organizations=list(groups)
        )
        text = pki.build_kubeconfig(
            name="greentrain-test",
            server=self.url,
            authority=authority.certificate,
            user=user,
            credentials=credentials,
        )
        return pki.write_kubeconfig(self._settings.directory / f"kubeconfig-{file_name}", text)

    def _launch(self, name: str, program: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        log = self._settings.directory / "log" / f"{name}.log"
        command = [str(program), *arguments]
        # A test run that is killed must not leave servers behind.
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with log.open("ab") as stream:
            return subprocess.Popen(
                command,
                env=CLEAN_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self._settings.directory,
                # A Ctrl-C in the terminal is the test run's to answer, not the servers'.
                process_group=0,
            )

    def start_apiserver(self, *, ready_within: float = 90.0) -> None:
        """Start the API server after `kill_apiserver` and wait until it is ready; same port, same objects."""
        if self._apiserver is not None and self._apiserver.poll() is None:
            return
        deadline = time.monotonic() + ready_within
        self._apiserver = self._launch(
            "kube-apiserver", self._binaries.kube_apiserver, build_apiserver_arguments(self._settings)
        )
        api = self.api
        while not api.is_ready():
            for name, program in (("etcd", self._etcd), ("kube-apiserver", self._apiserver)):
                if program is not None and program.poll() is not None:
                    raise SandboxError(
                        f"{name} ended with code {program.returncode} before the API server was ready.",
                        log=self._settings.directory / "log" / f"{name}.log",
                    )
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"The API server was not ready within {ready_within:.0f} s.", log=self.apiserver_log
                )
            time.sleep(0.1)

    def kill_apiserver(self) -> None:
        """SIGKILL the API server; etcd keeps every object."""
        self._end(self._apiserver)
        self._apiserver = None

    def restart_apiserver(self, *, ready_within: float = 90.0) -> None:
        """Kill the API server and start it again; returns when it is ready. Watches of clients break."""
        self.kill_apiserver()
        self.start_apiserver(ready_within=ready_within)

    def stop(self) -> None:
        """End both; the directory and its logs stay."""
        self._end(self._apiserver)
        self._end(self._etcd)
        self._apiserver = self._etcd = None

    @staticmethod
    def _end(program: subprocess.Popen[bytes] | None) -> None:
        if program is None:
            return
        if program.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(program.pid, signal.SIGKILL)
        program.wait()

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
