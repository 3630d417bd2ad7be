"""Which of the other ranks are there: asked once, when the wait for them has been given up.

TensorFlow waits for all ranks and names none. A reader of the message wants to know which pod to look
at, so each address is asked for the first bytes that a gRPC server owes to any client. To connect is not
enough: the kernel accepts for a frozen process too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""A client's connection preface and its empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5)."""


def find_silent(addresses: Sequence[str], timeout_seconds: float) -> list[str]:
    """Those of `host:port` at which no gRPC server answers within `timeout_seconds`, in their order."""
    answered: set[str] = set()

    def ask(address: str) -> None:
        host, _separator, port = address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout_seconds) as connection:
                connection.sendall(_HELLO)
                if connection.recv(1):
                    answered.add(address)
        except (OSError, ValueError):
            # Refused, unreachable, unknown, silent or no port at all: it does not answer.
            return

    # Threads, because looking up a name that is not in the DNS can take long and cannot be bounded.
    threads = [threading.Thread(target=ask, args=(each,), daemon=True) for each in addresses]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [each for each in addresses if each not in answered]


def list_shortly(addresses: Sequence[str], most: int = 8) -> str:
    """Addresses for a sentence: the first `most`, and how many more there are."""
    more = len(addresses) - most
    return ", ".join(addresses[:most]) + (f" and {more} more" if more > 0 else "")
