"""A port that one process was given is given to no other while it lives, and nothing else takes it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from sandbox import ports
from sandbox.ports import PORTS, find_free_ports

ASK = """
import sys
from sandbox import ports
ports.PORTS = range(int(sys.argv[1]), int(sys.argv[1]) + 1000)
try:
    print(*ports.find_free_ports(int(sys.argv[2])))
except OSError as error:
    print(error)
sys.stdin.read()
"""


def test_no_port_is_an_ephemeral_one() -> None:
    first, _last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(PORTS) < int(first)


def test_two_processes_get_different_ports_until_one_has_ended() -> None:
    start = find_free_ports(1)[0]
    # One thousand ports, of which this process has one at least: two others cannot have 600 each.
    start = min(start, max(PORTS) - 999)
    command = [sys.executable, "-c", ASK, str(start), "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        mine = set(map(int, one.stdout.readline().split()))
        assert len(mine) == 600
        other = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=True)
        assert "of 600 free ports" in other.stdout
        one.communicate("")
    other = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=True)
    assert len(set(map(int, other.stdout.split()))) == 600


def test_a_port_on_which_something_listens_is_not_given() -> None:
    port = find_free_ports(1)[0]
    os.close(ports._reserved.pop(port))
    with socket.create_server(("127.0.0.1", port)):
        assert not ports._reserve(port)
    assert ports._reserve(port)
