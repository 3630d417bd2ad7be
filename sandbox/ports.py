"""TCP ports for programs that a test or a bench starts and that need their port beforehand."""

from __future__ import annotations

import errno
import random
import socket

PORTS = range(17000, 30000)
"""Below the kernel's ephemeral ports (32768 and up, `net.ipv4.ip_local_port_range`), so that no outgoing connection
and no server that asks for any port takes one of them before the program listens; below the node ports of Kubernetes
and above the sandbox's own ports."""

_reserved: dict[int, int] = {}
"""Ports this process was given, each with the descriptor of the socket that reserves it until the process ends."""


def find_free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nothing listens on, all different.

    No other process that asks here gets them while this one lives: each is reserved by a name in the kernel's
    abstract Unix sockets (unix(7)), which goes with the process however it ends.

    Raises:
        OSError: none of 1,000 tried at random was free (EADDRINUSE).
    """
    found: list[int] = []
    for port in random.sample(PORTS, 1000):
        if len(found) == count:
            break
        if _reserve(port):
            found.append(port)
    if len(found) < count:
        raise OSError(errno.EADDRINUSE, f"found {len(found)} of {count} free ports in {PORTS}")
    return found


def _reserve(port: int) -> bool:
    """Whether the port is this process's own from now on and nothing listens on it, on any address."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0greentrain/port/{port}")
        with socket.socket() as probe:
            probe.bind(("", port))
    except OSError:
        name.close()
        return False
    _reserved[port] = name.detach()
    return True
