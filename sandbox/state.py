"""What the sandbox keeps on disk and which processes are its own, so that `down` finds everything a killed `up` left.

Every process it starts carries the mark `GREENTRAIN_SANDBOX_OWNER=<directory>` in its environment and is recorded by
process id, start time and boot. A record says which part is alive; the mark finds what was started but never recorded
(a killed `up`) and what a part started in turn (containerd's shims). Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.controlplane import CLEAN_ENVIRONMENT, ServerSettings
from sandbox.shell import SandboxError, hold_signals

DEFAULT_DIRECTORY = Path("/var/lib/greentrain-sandbox")
DIRECTORY_VARIABLE = "GREENTRAIN_SANDBOX_DIR"
NODES_VARIABLE = "GREENTRAIN_SANDBOX_NODES"
MARK = "GREENTRAIN_SANDBOX_OWNER"
OWNER_FILE = Path("/run/greentrain-sandbox.owner")
"""Names the directory of the one sandbox of this machine; gone after a reboot, as its processes are."""

CONTEXT = "greentrain-sandbox"
"""Name of the kubeconfig's context, cluster and user prefix."""

API_PORT = 16443
ETCD_PORT = 12379
ETCD_PEER_PORT = 12380
CONTROLLER_MANAGER_PORT = 16257
SCHEDULER_PORT = 16259

HOST_ADDRESS = "198.19.255.1"
"""The machine's address on the link that joins it and the nodes; the API server is reached here by nodes and pods."""

DNS_ADDRESS = "198.19.255.2"
"""The cluster's DNS server, on the same link: it belongs to no node and outlives each."""

MAX_NODES = 2

_started: list[subprocess.Popen[bytes]] = []
"""Programs this very process started: they outlive it on purpose, so they are kept from being waited for."""


@dataclass(frozen=True)
class Node:
    """One node: `number` from 1."""

    number: int
    directory: Path

    @property
    def name(self) -> str:
        """The Node object's name."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its address on the link that joins the machine and the nodes."""
        return f"198.19.255.{10 + self.number}"

    @property
    def pod_range(self) -> str:
        """The addresses of its pods."""
        return f"198.18.{self.number}.0/24"

    @property
    def gateway(self) -> str:
        """Its own address among its pods: their gateway."""
        return f"198.18.{self.number}.1"

    @property
    def network_namespace(self) -> str:
        """The network namespace that everything of the node runs in."""
        return f"greentrain-sandbox-{self.name}"

    @property
    def containerd_socket(self) -> Path:
        """Socket of its containerd, as seen from the machine."""
        return self.directory / "run" / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup below which its pods live, in cgroupfs notation."""
        return f"/greentrain-sandbox/{self.name}"


@dataclass(frozen=True)
class Sandbox:
    """Everything's place below one directory."""

    directory: Path

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Sandbox:
        """The sandbox of this machine: `$GREENTRAIN_SANDBOX_DIR`, else /var/lib/greentrain-sandbox."""
        return cls(Path(environ.get(DIRECTORY_VARIABLE, "") or DEFAULT_DIRECTORY).absolute())

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, context `greentrain-sandbox`."""
        return self.directory / "kubeconfig"

    @property
    def programs(self) -> Path:
        """Folder for a person's PATH: the kubectl of the cluster's own version."""
        return self.directory / "bin"

    @property
    def log(self) -> Path:
        """Folder of every part's log."""
        return self.directory / "log"

    @property
    def records(self) -> Path:
        """Folder of the process records."""
        return self.directory / "processes"

    @property
    def volume(self) -> Path:
        """What the ReadWriteMany PersistentVolume contains."""
        return self.directory / "volume"

    @property
    def previous_volume(self) -> Path:
        """What the volume contained when the sandbox was last taken down."""
        return self.directory / "volume.previous"

    @property
    def retired(self) -> Path:
        """State of earlier runs, put aside to be deleted."""
        return self.directory / "retired"

    @property
    def kept_settings(self) -> Path:
        """The kernel settings that stood before kubelet wrote them."""
        return self.directory / "kernel-settings.json"

    @property
    def made_folders(self) -> Path:
        """List of the machine's folders that were made as mount points and are to be removed."""
        return self.directory / "made-folders"

    @property
    def server(self) -> ServerSettings:
        """Where its API server and etcd live."""
        return ServerSettings(
            directory=self.directory,
            # Both loopback (clients on the machine) and the link's end (nodes and pods); every request needs a
            # certificate or token.
            bind="0.0.0.0",
            advertise=HOST_ADDRESS,
            api_port=API_PORT,
            etcd_port=ETCD_PORT,
            etcd_peer_port=ETCD_PEER_PORT,
            without_controllers=False,
        )

    def node(self, number: int) -> Node:
        """The node of a number from 1."""
        return Node(number, self.directory / f"node{number}")

    def nodes(self, count: int) -> list[Node]:
        """The first `count` nodes."""
        return [self.node(number) for number in range(1, count + 1)]

    def started_nodes(self) -> list[Node]:
        """The nodes this sandbox was brought up with, alive or not."""
        return [
            node for node in self.nodes(MAX_NODES) if (self.records / f"kubelet-{node.name}.json").exists()
        ]


@dataclass(frozen=True)
class Program:
    """One process, distinguished from a later one of the same number by its start time (clock ticks since boot) and boot."""

    pid: int
    started: int
    boot: str

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return self.boot == read_boot_id() and read_start_time(self.pid) == self.started


def read_node_count(environ: Mapping[str, str] = os.environ) -> int:
    """How many nodes `$GREENTRAIN_SANDBOX_NODES` asks for; 1 when unset.

    Raises:
        SandboxError: it is not 1 or 2.
    """
    text = environ.get(NODES_VARIABLE, "") or "1"
    return parse_node_count(text, NODES_VARIABLE)


def parse_node_count(text: str, source: str) -> int:
    """The number of nodes in `text`, which came from `source`.

    Raises:
        SandboxError: it is not 1 or 2.
    """
    if text not in {str(count) for count in range(1, MAX_NODES + 1)}:
        raise SandboxError(
            f"{source} is «{text}», but the sandbox has 1 or {MAX_NODES} nodes; give one of these."
        )
    return int(text)


def read_boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def parse_start_time(stat: str) -> int | None:
    """Start time in clock ticks in the text of /proc/PID/stat; None for a zombie, which has ended."""
    # The name in parentheses may itself contain blanks and parentheses; what follows the last one is regular.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def read_start_time(pid: int) -> int | None:
    """Start time of a running process, None when there is none of this number."""
    try:
        return parse_start_time(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, IndexError, ValueError):
        return None


def read_records(sandbox: Sandbox) -> dict[str, Program]:
    """What was started, by part; unreadable records (a killed `up`) are left out, the mark finds their processes."""
    records = {}
    for path in sorted(sandbox.records.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            fields = json.loads(path.read_text())
            records[path.stem] = Program(int(fields["pid"]), int(fields["started"]), str(fields["boot"]))
    return records


def launch(
    sandbox: Sandbox, name: str, command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None
) -> Program:
    """Start a part that outlives this program, its output in `log/<name>.log`, and record it.

    Raises:
        SandboxError: the program could not be started.
    """
    log = sandbox.log / f"{name}.log"
    sandbox.log.mkdir(parents=True, exist_ok=True)
    sandbox.records.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    # Started and recorded, or neither: what no record names is not ended by `sandbox-down`.
    with hold_signals(), log.open("wb") as stream:
        try:
            child = subprocess.Popen(
                words,
                env={**CLEAN_ENVIRONMENT, **(environ or {}), MARK: str(sandbox.directory)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(
                f"{name} could not be started, {words[0]}: {error.strerror}; run: python3 -m sandbox packages"
            ) from error
        _started.append(child)
        program = Program(child.pid, read_start_time(child.pid) or 0, read_boot_id())
        path = sandbox.records / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"pid": program.pid, "started": program.started, "boot": program.boot}))
        partial.rename(path)
    return program


def check_alive(sandbox: Sandbox, name: str, program: Program) -> None:
    """Raise when a part has ended.

    Raises:
        SandboxError: it has; with its last log lines.
    """
    if not program.is_alive():
        raise SandboxError(
            f"{name} ended soon after its start.",
            log=sandbox.log / f"{name}.log",
            remedy="python3 -m sandbox down, then up again; docs/start/sandbox.md has known causes",
        )


def find_marked(sandbox: Sandbox) -> Iterator[int]:
    """Program ids of everything that carries this sandbox's mark, except this program."""
    mark = f"{MARK}={sandbox.directory}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> int:
    """Send SIGKILL, or another signal, to these processes; returns how many were there."""
    count = 0
    for pid in pids:
        if pid > 1 and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                count += 1
    return count


def wait_gone(pids: Sequence[int], timeout: float) -> bool:
    """Whether all these processes have ended within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while any(read_start_time(pid) is not None for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    for child in _started:
        child.poll()  # ours to reap; the dead of an earlier `up` are init's
    return True
