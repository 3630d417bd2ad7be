"""Takes a node's power away and gives it back: what a lost node is, for users and tests that want to see one.

Whatever ran on the node ends at once and says nothing, as on a machine whose plug was pulled: kubelet, containerd,
kube-proxy, its shims and every container; its network and its cgroups are gone with it. The Node object stays, as it does
in life, until it is deleted. Its simulated cards lose their counters and limits; what they used until then stays
known to their exact meter.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from sandbox import cgroups, network, node
from sandbox.shell import SandboxError
from sandbox.simgpu import nodecards
from sandbox.state import Node, Sandbox, kill, read_records, wait_gone
from sandbox.up import GPU_PART, NODE_PARTS, start_gpus, start_node


def find_node(sandbox: Sandbox, name: str) -> Node:
    """The node of that name.

    Raises:
        SandboxError: the sandbox was not brought up with it.
    """
    started = sandbox.started_nodes()
    for one in started:
        if one.name == name:
            return one
    there = ", ".join(one.name for one in started) or "none; run: make sandbox-up"
    raise SandboxError(f"The sandbox has no node «{name}»; its nodes: {there}.")


def _read_mount_namespace(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    return None


def find_node_pids(sandbox: Sandbox, one: Node) -> set[int]:
    """Program ids of everything that runs on a node: its own programs by their mount namespace, pods by their cgroups."""
    programs = read_records(sandbox)
    own = {p.pid for n in NODE_PARTS if (p := programs.get(f"{n}-{one.name}")) and p.is_alive()}
    namespaces = {_read_mount_namespace(pid) for pid in own} - {None, _read_mount_namespace(1)}
    beside = {
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _read_mount_namespace(int(folder.name)) in namespaces
    }
    # Not by its namespace: the cards' daemon lives in the machine's own, like everything that is not to be ended.
    daemon = programs.get(f"{GPU_PART}-{one.name}")
    cards = {daemon.pid} if daemon and daemon.is_alive() else set()
    return own | beside | cards | cgroups.find_pids(cgroups.read_mode(), one)


def power_off(sandbox: Sandbox, one: Node) -> int:
    """End everything that runs on a node, without warning any of it; returns how many processes there were.

    Raises:
        SandboxError: some do not end within 20 seconds.
    """
    count, deadline = 0, time.monotonic() + 20
    # Its programs' namespace names their children, so it is read before they are gone; then whatever they still began.
    pids = find_node_pids(sandbox, one)
    while pids:
        count += kill(sorted(pids))
        wait_gone(sorted(pids), 1.0)
        pids = find_node_pids(sandbox, one)
        if time.monotonic() > deadline:
            raise SandboxError(
                f"Processes {', '.join(map(str, sorted(pids)))} of {one.name} do not end on SIGKILL."
            )
    # Kubelet, when it starts again, would look for three seconds at every container whose cgroup is still there.
    cgroups.remove(cgroups.read_mode(), one)
    network.remove_node(one)
    lead_services(sandbox)
    if nodecards.Places(one).state.exists():
        nodecards.close_boot(one)
    return count


def lead_services(sandbox: Sandbox) -> None:
    """Lead what the API server sends to Services through a node that runs, where there is one."""
    running = [one for one in sandbox.started_nodes() if find_node_pids(sandbox, one)]
    if running:
        network.apply_service_route(running[0])


def power_on(sandbox: Sandbox, one: Node) -> None:
    """Start a node again, with the images and the records of ended containers it had.

    Raises:
        SandboxError: it runs already, or does not join within two minutes.
    """
    if find_node_pids(sandbox, one):
        raise SandboxError(
            f"{one.name} runs; to take its power away: python3 -m sandbox power-off {one.name}"
        )
    # What a machine keeps in memory is gone: sockets and states of containers that are no more.
    for name in ("run", "netns"):
        shutil.rmtree(one.directory / name, ignore_errors=True)
    network.apply_node(one)
    node.apply_containerd(sandbox, one, cgroups.read_mode())
    start_node(sandbox, one)
    lead_services(sandbox)
    gpus = nodecards.read_note(one)
    if gpus is not None and gpus.cards:
        start_gpus(sandbox, one, gpus)
