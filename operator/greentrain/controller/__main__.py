"""`python -m greentrain.controller`: the operator as a process."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys

from greentrain.controller.run import Operator
from greentrain.controller.settings import Settings, parse_settings
from greentrain.kube.version import OldServerError
from greentrain.telemetry.logs import configure_logs

logger = logging.getLogger("greentrain.controller")

OLD_SERVER_EXIT = 3
"""Exit code where the API server is too old; 2 is a wrong command line."""

COLLECT_AFTER = (10_000, 10, 10)
"""Thresholds of Python's cyclic collector, whose first is 700 by default (gc.set_threshold).

The caches contain hundreds of small dicts per job. With the defaults the collector traverses them again and again: a third
of the CPU time while 300 jobs were created, in pauses of up to 0.25 s (measured). Reference counts free nearly everything.
"""


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def claim_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    claim_signals()
    await Operator(settings, claim_signals=claim_signals).run(stop)


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    settings = parse_settings(sys.argv[1:])
    configure_logs(settings.log_level, settings.log_format)
    gc.collect()
    gc.freeze()  # what was imported stays: it need not be traversed
    gc.set_threshold(*COLLECT_AFTER)
    try:
        asyncio.run(run(settings))
    except OldServerError as error:
        # The last line of the log is the container's termination message too (charts/greentrain/templates/deployment.yaml).
        logger.error("%s", error)
        return OLD_SERVER_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
