"""`python -m greentrain_trainer PROGRAM [options]`: block signals, then run the command.

Process 1 of a container is not ended by a signal that it has no handler for: the kernel drops it, and a
stop asked for while Python still imports (0.3 s on an idle machine, seconds on a busy one) would never be
handled; the pod would train on until the end of its grace period. A blocked signal is kept instead
(`sig_ignored` in Linux's kernel/signal.c). `supervise` lets it through once its handlers stand.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run one rank to its end; returns the process's exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    from greentrain_trainer.command import run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
