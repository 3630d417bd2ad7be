"""The sandbox's own network namespaces, so that nothing of its bridges, firewall rules or forwarding touches the machine.

Each node has one: containerd, kubelet, kube-proxy and the bridge of its pods live in it, so that a node's Services are its
own (`internalTrafficPolicy: Local` means this node) and a node without power is off the network. One more holds the switch
that joins the nodes and the machine, and the cluster's DNS. The control plane stays outside, where loopback reaches it. The
machine has one end of one veth pair and the routes behind it; its own iptables and `net.ipv4.ip_forward` are never written.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox import shell
from sandbox.controlplane import SERVICE_RANGE
from sandbox.shell import SandboxError
from sandbox.state import DNS_ADDRESS, HOST_ADDRESS, MAX_NODES, Node

SWITCH = "greentrain-sandbox"
"""Network namespace of the switch and of the cluster's DNS."""
NAMESPACES = Path("/run/netns")
HOST_LINK = "gtsandbox0"
SWITCH_BRIDGE = "switch0"
POD_BRIDGE = "cni0"

POD_RANGE = "198.18.0.0/16"
LINK_RANGE = "198.19.255.0/24"
_LINK_LENGTH = ipaddress.ip_network(LINK_RANGE).prefixlen
_REMEDY = "the kernel must offer network namespaces, veth and bridge (modprobe veth bridge)"


def build_namespace_command(namespace: str, command: Sequence[str | Path]) -> list[str]:
    """The command that runs `command` in one of the sandbox's network namespaces, as the same process."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *(str(word) for word in command)]


def find_overlaps(routes: str, ours: Sequence[str] = (POD_RANGE, SERVICE_RANGE, LINK_RANGE)) -> list[str]:
    """Destinations in the output of `ip -json route` that overlap one of the sandbox's ranges."""
    overlapping = []
    for route in json.loads(routes or "[]"):
        destination = route.get("dst", "default")
        if destination == "default" or route.get("dev") == HOST_LINK:
            continue
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(destination, strict=False)
            if network.version == 4 and any(network.overlaps(ipaddress.ip_network(own)) for own in ours):
                overlapping.append(f"{destination} dev {route.get('dev', '?')}")
    return overlapping


def build_cni_configuration(node: Node) -> str:
    """The CNI configuration of one node: a bridge of its own, addresses 198.18.<node>.2 to .254."""
    pods = {
        "subnet": node.pod_range,
        "rangeStart": f"198.18.{node.number}.2",
        "rangeEnd": f"198.18.{node.number}.254",
        "gateway": node.gateway,
    }
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "sandbox",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": POD_BRIDGE,
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipMasq": False,
                    "ipam": {"type": "host-local", "ranges": [[pods]], "routes": [{"dst": "0.0.0.0/0"}]},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=2,
    )


def _make_namespace(name: str) -> list[str]:
    """Make a network namespace; returns the beginning of an `ip` call that works in it."""
    shell.run(["ip", "netns", "add", name], remedy=_REMEDY)
    inside = ["ip", "-n", name]
    shell.run([*inside, "link", "set", "lo", "up"])
    return inside


def apply_network() -> None:
    """Make the switch and the machine's link to it.

    Raises:
        SandboxError: the machine already routes one of the ranges elsewhere, or the kernel refuses.
    """
    overlaps = find_overlaps(shell.run(["ip", "-json", "route"]))
    if overlaps:
        raise SandboxError(
            f"The machine already routes {', '.join(overlaps)}, which the sandbox needs"
            f" ({POD_RANGE}, {SERVICE_RANGE}, {LINK_RANGE}); remove that route (ip route del …) and run again."
        )
    inside = _make_namespace(SWITCH)
    shell.run([*inside, "link", "add", SWITCH_BRIDGE, "type", "bridge"], remedy=_REMEDY)
    shell.run([*inside, "address", "add", f"{DNS_ADDRESS}/{_LINK_LENGTH}", "dev", SWITCH_BRIDGE])
    shell.run([*inside, "link", "set", SWITCH_BRIDGE, "up"])
    _join_switch(HOST_LINK, "machine", None)
    shell.run(["ip", "address", "add", f"{HOST_ADDRESS}/{_LINK_LENGTH}", "dev", HOST_LINK])
    shell.run(["ip", "link", "set", HOST_LINK, "up"])


def _join_switch(name: str, port: str, namespace: str | None) -> None:
    """Plug a veth pair into the switch: `port` at the switch, `name` in `namespace` (None: the machine's own)."""
    words = ["ip", "link", "add", "name", port, "netns", SWITCH, "type", "veth", "peer", "name", name]
    shell.run([*words, *(("netns", namespace) if namespace else ())], remedy=_REMEDY)
    shell.run(["ip", "-n", SWITCH, "link", "set", port, "master", SWITCH_BRIDGE, "up"])


def apply_node(node: Node) -> None:
    """Make a node's namespace, its link to the switch and the routes to its pods."""
    name = node.network_namespace
    inside = _make_namespace(name)
    _join_switch("eth0", node.name, name)
    shell.run([*inside, "address", "add", f"{node.address}/{_LINK_LENGTH}", "dev", "eth0"])
    shell.run([*inside, "link", "set", "eth0", "up"])
    # Nothing outside can be reached, and that is said at once: kubelet asks a cloud's metadata service at its start
    # and would wait six seconds for silence; a pod's stray pull or download fails in words instead of hanging.
    shell.run([*inside, "route", "add", "unreachable", "default"])
    for number in range(1, MAX_NODES + 1):
        other = Node(number, node.directory)
        if number != node.number:
            shell.run([*inside, "route", "add", other.pod_range, "via", other.address])
    shell.run(build_namespace_command(name, ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]))
    via = ["via", node.address]
    shell.run(["ip", "-n", SWITCH, "route", "replace", node.pod_range, *via])
    shell.run(["ip", "route", "replace", node.pod_range, *via, "dev", HOST_LINK])


def apply_service_route(node: Node) -> None:
    """Lead what the machine, and so the API server, sends to Services through a node: its kube-proxy knows their pods."""
    shell.run(["ip", "route", "replace", SERVICE_RANGE, "via", node.address, "dev", HOST_LINK])


def find_namespaces() -> list[str]:
    """The sandbox's network namespaces that are there."""
    return sorted(path.name for path in NAMESPACES.glob(f"{SWITCH}*"))


def find_pids() -> set[int]:
    """Program ids of everything in the sandbox's network namespaces."""
    texts = [shell.run(["ip", "netns", "pids", name], check=False) for name in find_namespaces()]
    return {int(word) for text in texts for word in text.split() if word.isdigit()}


def remove_node(node: Node) -> None:
    """Delete a node's namespace with its bridge and firewall rules, once nothing runs in it any more."""
    if (NAMESPACES / node.network_namespace).exists():
        shell.run(["ip", "netns", "delete", node.network_namespace])
    # The kernel takes the link's other end away when it gets to it; a new one needs the name.
    _wait_link_gone(node.name)


def _wait_link_gone(port: str) -> None:
    deadline = time.monotonic() + 5
    while (
        port
        in shell.run(["ip", "-n", SWITCH, "-brief", "link", "show"], check=False).replace("@", " ").split()
    ):
        if time.monotonic() > deadline:
            raise SandboxError(f"The link {port} stays; delete it with: ip -n {SWITCH} link delete {port}")
        time.sleep(0.05)


def remove_network() -> list[str]:
    """Delete the link and the namespaces; returns what there was, in words.

    Raises:
        SandboxError: the link stays although its namespace is gone.
    """
    removed = []
    if Path("/sys/class/net", HOST_LINK).exists():
        shell.run(["ip", "link", "delete", HOST_LINK], check=False)
        removed.append(f"link {HOST_LINK}")
    names = find_namespaces()
    for name in names:
        shell.run(["ip", "netns", "delete", name])
    if names:
        removed.append(f"{len(names)} network namespaces with their bridges and firewall rules")
    deadline = time.monotonic() + 5
    while Path("/sys/class/net", HOST_LINK).exists():
        if time.monotonic() > deadline:
            raise SandboxError(f"The link {HOST_LINK} stays; delete it with: ip link delete {HOST_LINK}")
        time.sleep(0.05)
    return removed
