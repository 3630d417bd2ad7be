"""Starts the trainer's ranks as real processes on loopback and waits for what they say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greentrain.api.runtime import PEER_TIMEOUT_ENV, Env, Progress, TerminationMessage
from greentrain_trainer.environment import PROGRESS_PORT_ENV, START_TIMEOUT_ENV, TERMINATION_LOG_ENV
from sandbox.ports import find_free_ports

PATIENCE_SECONDS = 150.0
"""Longest wait for one event; two ranks importing TensorFlow on two busy cores take their time."""


@dataclass
class Rank:
    """One rank's process, its log and its termination message."""

    process: subprocess.Popen[bytes]
    log_path: Path
    message_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def message(self) -> TerminationMessage:
        return TerminationMessage.model_validate_json(self.message_path.read_text(encoding="utf-8"))

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the log has a match; fails at once when the process ends without one."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ended = self.process.poll() is not None
            if match := re.search(pattern, self.log):
                return match
            assert not ended, f"ended with {self.process.returncode} without {pattern!r}:\n{self.log}"
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.log}"
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait for the exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def read(self, path: str) -> str:
        """GET from this rank's progress server."""
        port = self.wait_for(r"progress on port (\d+)")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    @property
    def progress(self) -> Progress:
        return Progress.model_validate_json(self.read("/progress"))


@dataclass
class Launcher:
    """Starts ranks in a directory of their own and ends whatever is left at the close."""

    directory: Path
    started: list[Rank] = field(default_factory=list)

    def start(
        self,
        *arguments: str,
        task: tuple[str, int] = ("worker", 0),
        cluster: dict[str, list[str]] | None = None,
        checkpoints: Path | None = None,
        uid: str = "11111111-aaaa",
        start_timeout: float = PATIENCE_SECONDS,
        peer_timeout: float = 10,
        grace: float = 30,
        python_path: Path | None = None,
        termination_log: Path | None = None,
    ) -> Rank:
        place = self.directory / f"{len(self.started)}-{task[0]}-{task[1]}"
        place.mkdir()
        message_path = termination_log or place / "termination"
        # The whole of the contract, and nothing a developer's shell has set.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GREENTRAIN_")}
        environ.pop(Env.TF_CONFIG, None)
        environ |= {
            Env.JOB_UID: uid,
            TERMINATION_LOG_ENV: str(message_path),
            PROGRESS_PORT_ENV: "0",
            START_TIMEOUT_ENV: str(start_timeout),
            PEER_TIMEOUT_ENV: str(peer_timeout),
            Env.GRACE_PERIOD_SECONDS: str(grace),
            "PYTHONUNBUFFERED": "1",
        }
        if cluster is not None:
            environ[Env.TF_CONFIG] = json.dumps(
                {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
            )
        if checkpoints is not None:
            environ[Env.CHECKPOINT_DIR] = str(checkpoints)
        if python_path is not None:
            environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(python_path), environ.get("PYTHONPATH")])
            )
        log_path = place / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "greentrain_trainer", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=place,
            )
        rank = Rank(process, log_path, message_path)
        self.started.append(rank)
        return rank

    def start_pair(
        self,
        *arguments: str,
        checkpoints: Path | None = None,
        with_chief: bool = False,
        peer_timeout: float = 10,
        grace: float = 30,
        python_path: Path | None = None,
    ) -> list[Rank]:
        """Two ranks of one job: two workers, or a chief and a worker."""
        first, second = (f"127.0.0.1:{port}" for port in find_free_ports(2))
        cluster = {"chief": [first], "worker": [second]} if with_chief else {"worker": [first, second]}
        tasks = [("chief", 0), ("worker", 0)] if with_chief else [("worker", 0), ("worker", 1)]
        return [
            self.start(
                *arguments,
                task=task,
                cluster=cluster,
                checkpoints=checkpoints,
                peer_timeout=peer_timeout,
                grace=grace,
                python_path=python_path,
            )
            for task in tasks
        ]

    def close(self) -> None:
        for rank in self.started:
            if rank.process.poll() is None:
                # The child dies with it.
                rank.process.kill()
                rank.process.wait()


def exit_codes(ranks: Sequence[Rank]) -> list[int]:
    """Wait for all; the exit codes in order."""
    return [rank.wait() for rank in ranks]


@contextlib.contextmanager
def frozen(rank: Rank) -> Iterator[None]:
    """Freeze a rank whole, as a hung node would; thaw it at the end so that it can be ended."""
    processes = [rank.process.pid, *rank.children]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def is_connected(rank: Rank, address: str) -> bool:
    """Whether this rank, and not only the one that listens there, has a TCP connection to `127.0.0.1:port`."""
    remote = f"0100007F:{int(address.rpartition(':')[2]):04X}"
    lines = [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    # Columns of proc(5): number, local, remote, state, and inode as the tenth; 01 is ESTABLISHED. An IPv4
    # peer of an IPv6 socket has its address at the end.
    columns = (line.split() for line in lines)
    connected = {f"socket:[{c[9]}]" for c in columns if c[2].endswith(remote) and c[3] == "01"}
    opened = (link for pid in rank.children for link in Path(f"/proc/{pid}/fd").iterdir())
    return any(_read_link(link) in connected for link in opened)


def _read_link(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""  # closed since it was listed
