"""One node: containerd, kubelet and kube-proxy, in a mount and a network namespace of the node's own, below one directory.

Kubelet and containerd hard-code some folders of the machine (/var/lib/kubelet/device-plugins, /var/log/pods,
/run/containerd/s, /run/netns). In the node's mount namespace folders of its own lie over them, so two nodes do not
share them, a containerd of the machine is not disturbed, and every mount is gone when the node's processes are.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox import cgroups, network, pause, pki, shell
from sandbox.cgroups import CgroupMode, Driver
from sandbox.controlplane import read_credentials
from sandbox.shell import SandboxError
from sandbox.state import (
    API_PORT,
    DNS_ADDRESS,
    HOST_ADDRESS,
    Node,
    Program,
    Sandbox,
    check_alive,
    launch,
    read_records,
)

CLUSTER_DOMAIN = "cluster.local"
CTR_NAMESPACE = "k8s.io"
"""containerd's namespace of Kubernetes' images and containers."""

CAP_SYS_RESOURCE = 24
"""Its bit in the kernel's capability sets (linux/capability.h)."""

OVERLAID_FOLDERS = {
    "kubelet": Path("/var/lib/kubelet"),
    "log": Path("/var/log"),
    "run": Path("/run/containerd"),
    "netns": Path("/run/netns"),
    "cni": Path("/var/lib/cni"),
    "simgpu": Path("/opt/greentrain-simgpu"),
}
"""Folder of the node → folder of the machine it lies over in the node's mount namespace.

The last is ours: simulated cards, which a DaemonSet's pods reach by one path on whatever node they run.
"""


def has_capability(status: str, bit: int) -> bool:
    """Whether a capability is effective in the text of /proc/PID/status."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> bit & 1)
    return False


def build_containerd_configuration(node: Node, *, driver: Driver, restrict_oom_score: bool) -> str:
    """The configuration of containerd (version 2, TOML) for one node; `/run/containerd` in it is the node's own."""

    def quote(value: str | Path) -> str:
        return json.dumps(str(value))

    return f"""\
version = 2
root = {quote(node.directory / "containerd")}
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {quote(pause.IMAGE)}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = {str(restrict_oom_score).lower()}
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = {quote(node.directory / "cni-configuration")}

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = {str(driver is Driver.SYSTEMD).lower()}
"""


def build_kubelet_configuration(sandbox: Sandbox, node: Node, mode: CgroupMode) -> Mapping[str, object]:
    """Kubelet's configuration (kubelet.config.k8s.io/v1beta1) for one node."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "port": 10250,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(sandbox.server.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(sandbox.server.pki / f"kubelet-{node.name}.crt"),
        "tlsPrivateKeyFile": str(sandbox.server.pki / f"kubelet-{node.name}.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": str(mode.driver),
        "cgroupRoot": cgroups.decide_kubelet_root(mode, node),
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        # The machine's search domains are not the cluster's.
        "resolvConf": str(node.directory / "resolv.conf"),
        "failSwapOn": False,
        # Kubelet refuses cgroup version 1 by default since 1.35; the sandbox takes what the machine has.
        "failCgroupV1": False,
        # No registry could bring back an image that the collector removed.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "maxPods": 250,
        "serializeImagePulls": False,
        # Looked at often, so that a node joins quickly; written only when it changed, else every half minute.
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "30s",
        "containerLogMaxSize": "20Mi",
        "containerLogMaxFiles": 2,
    }


def build_mount_script(node: Node, command: Sequence[str]) -> str:
    """The shell script that lays the node's folders over the machine's and then becomes `command`."""
    lines = ["set -e", "mount --make-rshared /"]
    for name, target in OVERLAID_FOLDERS.items():
        lines.append(f"mount --bind {shlex.quote(str(node.directory / name))} {shlex.quote(str(target))}")
    lines.append(f"exec {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def apply_mount_points(sandbox: Sandbox) -> None:
    """Make the machine's folders that the node's lie over, noting which were made, so that `down` removes them."""
    for target in OVERLAID_FOLDERS.values():
        if not target.exists():
            # Noted first: a run killed between the two leaves a note too many, never a folder too many.
            with sandbox.made_folders.open("a") as stream:
                stream.write(f"{target}\n")
            target.mkdir(parents=True, exist_ok=True)


def apply_overlays(sandbox: Sandbox, node: Node) -> None:
    """Lay over what a running node lacks: it was started by a sandbox that had fewer such folders.

    Raises:
        SandboxError: its containerd does not run, or a folder could not be mounted.
    """
    pid = _find_containerd(sandbox, node).pid
    apply_mount_points(sandbox)
    mounted = {line.split()[1] for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()}
    for name, target in OVERLAID_FOLDERS.items():
        if str(target) not in mounted:
            folder = node.directory / name
            folder.mkdir(parents=True, exist_ok=True)
            shell.run(
                ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "mount", "--bind", folder, target],
            )


def _find_containerd(sandbox: Sandbox, node: Node) -> Program:
    containerd = read_records(sandbox).get(f"containerd-{node.name}")
    if containerd is None or not containerd.is_alive():
        raise SandboxError(
            f"containerd of {node.name} does not run, so nothing can be started beside it; run: python3 -m sandbox up"
        )
    return containerd


def apply_certificates(sandbox: Sandbox, node: Node) -> None:
    """Write the certificate and kubeconfig of a node's kubelet."""
    settings = sandbox.server
    credentials = pki.issue(
        read_credentials(settings, "ca"),
        settings.pki,
        f"kubelet-{node.name}",
        common_name=f"system:node:{node.name}",
        organizations=["system:nodes"],
        alternative_names=[node.name, node.address],
    )
    node.directory.mkdir(parents=True, exist_ok=True)
    text = pki.build_kubeconfig(
        name="sandbox",
        server=f"https://{HOST_ADDRESS}:{API_PORT}",
        authority=settings.pki / "ca.crt",
        user=f"system:node:{node.name}",
        credentials=credentials,
    )
    pki.write_kubeconfig(node.directory / "kubeconfig", text)


def apply_containerd(sandbox: Sandbox, node: Node, mode: CgroupMode) -> Program:
    """Start a node's containerd in a fresh mount namespace and wait until it answers.

    Raises:
        SandboxError: it ended, or did not answer within a minute.
    """
    for name in (*OVERLAID_FOLDERS, "cni-configuration", "containerd"):
        (node.directory / name).mkdir(parents=True, exist_ok=True)
    (node.directory / "cni-configuration" / "10-sandbox.conflist").write_text(
        network.build_cni_configuration(node)
    )
    (node.directory / "resolv.conf").write_text(f"nameserver {DNS_ADDRESS}\n")
    restricted = not has_capability(Path("/proc/self/status").read_text(), CAP_SYS_RESOURCE)
    configuration = node.directory / "containerd.toml"
    configuration.write_text(
        build_containerd_configuration(node, driver=mode.driver, restrict_oom_score=restricted)
    )
    script = node.directory / "start.sh"
    script.write_text(build_mount_script(node, ["containerd", "--config", str(configuration)]))
    name = f"containerd-{node.name}"
    program = launch(
        sandbox,
        name,
        network.build_namespace_command(
            node.network_namespace,
            ["unshare", "--mount", "--propagation", "private", "--", "sh", script],
        ),
    )
    deadline = time.monotonic() + 60
    while not node.containerd_socket.exists() or "ok" not in _ctr_check(node):
        shell.check_going()
        check_alive(sandbox, name, program)
        if time.monotonic() > deadline:
            raise SandboxError(f"{name} did not answer within a minute.", log=sandbox.log / f"{name}.log")
        time.sleep(0.1)
    return program


def _ctr_check(node: Node) -> str:
    text = shell.run(
        ["ctr", "--address", node.containerd_socket, "plugins", "ls", "id==cri"], check=False, timeout=20
    )
    return "ok" if any(line.split()[-1:] == ["ok"] for line in text.splitlines()) else text


def build_node_command(node: Node, containerd_pid: int, command: Sequence[str | Path]) -> list[str]:
    """The command that runs `command` in the namespaces of a node, which are its containerd's."""
    return [
        *("nsenter", f"--net={network.NAMESPACES / node.network_namespace}"),
        *(f"--mount=/proc/{containerd_pid}/ns/mnt", "--"),
        *(str(word) for word in command),
    ]


def build_kubelet_arguments(node: Node) -> list[str]:
    """Kubelet's flags: what its configuration file cannot say."""
    return [
        f"--config={node.directory / 'kubelet.json'}",
        f"--kubeconfig={node.directory / 'kubeconfig'}",
        "--root-dir=/var/lib/kubelet",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        "--v=2",
    ]


def apply_kubelet(sandbox: Sandbox, node: Node, mode: CgroupMode, kubelet: Path) -> Program:
    """Start a node's kubelet beside its containerd, which must run."""
    containerd = _find_containerd(sandbox, node)
    cgroups.apply_node(mode, node)
    (node.directory / "kubelet.json").write_text(
        json.dumps(build_kubelet_configuration(sandbox, node, mode), indent=2)
    )
    command = build_node_command(node, containerd.pid, [kubelet, *build_kubelet_arguments(node)])
    return launch(sandbox, f"kubelet-{node.name}", command)


def build_proxy_configuration(sandbox: Sandbox, node: Node) -> Mapping[str, object]:
    """kube-proxy's configuration (kubeproxy.config.k8s.io/v1alpha1) for one node."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": node.address,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(sandbox.server.pki / "kube-proxy.kubeconfig")},
        # A pod may reach a Service whose pod is on the same bridge: the answer must come back through the gateway,
        # also on machines without br_netfilter.
        "iptables": {"masqueradeAll": True, "minSyncPeriod": "0s", "syncPeriod": "30s"},
        # Connection tracking is the machine's, not this network namespace's, to size.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def apply_proxy(sandbox: Sandbox, node: Node, proxy: Path) -> Program:
    """Start a node's kube-proxy; it writes its rules once its Node object has an address."""
    containerd = _find_containerd(sandbox, node)
    path = node.directory / "kube-proxy.json"
    path.write_text(json.dumps(build_proxy_configuration(sandbox, node), indent=2))
    command = build_node_command(node, containerd.pid, [proxy, f"--config={path}", "--v=1"])
    return launch(sandbox, f"kube-proxy-{node.name}", command)


def run_ctr(node: Node, *arguments: str | Path, timeout: float = 600.0) -> str:
    """Run containerd's client against a node, in Kubernetes' namespace; returns what it printed."""
    return shell.run(
        ["ctr", "--address", node.containerd_socket, "--namespace", CTR_NAMESPACE, *arguments],
        timeout=timeout,
        remedy="see whether the sandbox is up: python3 -m sandbox status",
    )


def import_into(node: Node, archive: Path) -> None:
    """Import an image archive (OCI or Docker layout, tar) into one node's containerd.

    Raises:
        SandboxError: the archive is not there, or containerd refused it.
    """
    if not archive.is_file():
        raise SandboxError(f"The image archive {archive} does not exist; build it first (make images).")
    run_ctr(node, "images", "import", archive)


def import_image(archive: Path, sandbox: Sandbox | None = None) -> list[str]:
    """Import an image archive into every node of the running sandbox; returns the nodes' names.

    Raises:
        SandboxError: no node runs, the archive is not there, or containerd refused it.
    """
    sandbox = sandbox or Sandbox.read()
    nodes = sandbox.started_nodes()
    if not nodes:
        raise SandboxError(
            f"No sandbox runs in {sandbox.directory}, so no image can be imported; run: make sandbox-up"
        )
    for node in nodes:
        import_into(node, archive)
    return [node.name for node in nodes]
