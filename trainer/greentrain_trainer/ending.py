"""How an attempt of one rank ends: an exit code and the words for it.

Every way out of the trainer, wanted or not, is an `Ending`, so that no path leaves without a termination
message. The codes are the contract with the operator (`greentrain.api.runtime`): 1 to 127 are the
program's own and final, 143 is a stop on request, 144 a peer that was lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.api.runtime import EXIT_PEER_LOST, EXIT_STOPPED, EXIT_SUCCEEDED

EXIT_FAILED = 1
"""The program failed in a way that another attempt would not mend."""

EXIT_USAGE = 2
"""The command line, the environment or the program's name is wrong."""


@dataclass
class StopRequest:
    """Whether this rank has been asked to stop; set by the SIGTERM handler."""

    asked: bool = False


class Ending(Exception):  # noqa: N818 - an end is not always an error
    """The end of this rank's attempt.

    `code` is the process's exit code, `reason` one sentence for the job's conditions.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[Ending], tuple[int, str]]:
        return (Ending, (self.code, self.reason))


def finished(reason: str) -> Ending:
    """All steps are done."""
    return Ending(EXIT_SUCCEEDED, reason)


def failed(reason: str) -> Ending:
    """The program cannot go on, and another attempt would not help."""
    return Ending(EXIT_FAILED, reason)


def misused(reason: str) -> Ending:
    """An option or the environment is wrong."""
    return Ending(EXIT_USAGE, reason)


def stopped(reason: str) -> Ending:
    """Stopped because it was asked for."""
    return Ending(EXIT_STOPPED, reason)


def peer_lost(reason: str) -> Ending:
    """Another rank vanished, froze or never came."""
    return Ending(EXIT_PEER_LOST, reason)
