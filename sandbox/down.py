"""Takes the sandbox down: no process, mount, interface, firewall rule or cgroup stays, whatever state it was in."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from sandbox import cgroups, network, shell, sysctls
from sandbox.shell import SandboxError
from sandbox.state import (
    OWNER_FILE,
    Program,
    Sandbox,
    find_marked,
    kill,
    read_boot_id,
    read_records,
    read_start_time,
    wait_gone,
)


def parse_mounts_below(mounts: str, directory: Path) -> list[Path]:
    """Mount points at or below `directory` in the text of /proc/mounts, deepest and latest first."""
    found = []
    for line in mounts.splitlines():
        # The kernel writes blanks, tabs, newlines and backslashes of a path as octal.
        text = line.split()[1]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            text = text.replace(code, character)
        path = Path(text)
        if path == directory or directory in path.parents:
            found.append(path)
    return found[::-1]


def _find_pids(sandbox: Sandbox, mode: cgroups.CgroupMode) -> set[int]:
    recorded = {program.pid for program in read_records(sandbox).values() if program.is_alive()}
    return recorded | set(find_marked(sandbox)) | cgroups.find_pids(mode) | network.find_pids()


def _kill_all(sandbox: Sandbox, mode: cgroups.CgroupMode, timeout: float = 20.0) -> int:
    count = 0
    deadline = time.monotonic() + timeout
    killed: dict[int, Program] = {}
    # Again and again until none is found: a container's start can be under way while its runtime is being killed.
    while pids := sorted(pid for pid in _find_pids(sandbox, mode) if read_start_time(pid) is not None):
        for pid in pids:
            started = read_start_time(pid)
            if started is not None and (pid not in killed or killed[pid].started != started):
                killed[pid] = Program(pid, started, read_boot_id())
                count += 1
        kill(pids)
        wait_gone(pids, 1.0)
        if time.monotonic() > deadline:
            raise SandboxError(
                f"Processes {', '.join(map(str, pids))} of the sandbox do not end on SIGKILL; see «ps -o pid,stat,wchan,cmd»."
            )
    return count


def _retire_state(sandbox: Sandbox) -> bool:
    if not sandbox.directory.is_dir():
        return False
    # A trained model must not be lost to `down`; yet the next cluster begins with an empty volume, because there a job
    # of the same name is another job.
    if sandbox.volume.is_dir() and any(sandbox.volume.iterdir()):
        if sandbox.previous_volume.is_dir():
            shutil.rmtree(sandbox.previous_volume)
        sandbox.volume.rename(sandbox.previous_volume)
    kept = {sandbox.log, sandbox.previous_volume, sandbox.retired}
    found = [path for path in sandbox.directory.iterdir() if path not in kept]
    if found:
        sandbox.retired.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=sandbox.retired))
        for path in found:
            path.rename(folder / path.name)
    return bool(found)


def sweep(sandbox: Sandbox) -> None:
    """Delete the files `remove_sandbox` has put aside: the nodes' images are many, and deleting them can take a while."""
    shutil.rmtree(sandbox.retired, ignore_errors=True)


def remove_sandbox(sandbox: Sandbox) -> list[str]:
    """Remove everything of the sandbox but its logs and its volume's files; returns what there was, in words.

    Its other files are put aside for `sweep` to delete, so that a new sandbox can begin at once.

    Raises:
        SandboxError: something stays that SIGKILL, umount or rmdir should have removed.
    """
    mode = cgroups.read_mode()
    removed = []
    if count := _kill_all(sandbox, mode):
        removed.append(f"{count} processes")
    unmounted = 0
    for path in parse_mounts_below(Path("/proc/self/mounts").read_text(), sandbox.directory):
        shell.run(["umount", "--lazy", path], check=False)
        unmounted += 1
    if unmounted:
        removed.append(f"{unmounted} mounts")
    removed += network.remove_network()
    if count := cgroups.remove(mode):
        removed.append(f"{count} cgroups")
    if count := sysctls.restore(sandbox):
        removed.append(f"kubelet's changes of {count} kernel settings")
    with contextlib.suppress(FileNotFoundError):
        for line in reversed(sandbox.made_folders.read_text().split()):
            # Not empty means that another program has come to use it.
            with contextlib.suppress(OSError):
                Path(line).rmdir()
    if _retire_state(sandbox):
        removed.append(f"the state in {sandbox.directory}")
    OWNER_FILE.unlink(missing_ok=True)
    return removed
