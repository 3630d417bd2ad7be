"""The `greentrain` command: its arguments, files and exit codes.

Standard output contains manifests and nothing else, so that it can be piped into `kubectl apply -f -`. Messages go to
standard error, one sentence a line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

CONVERTED = 0
CANNOT_RUN = 1
"""Something was converted that the operator would reject; argparse's own code for wrong usage is 2."""
UNREADABLE = 2

_ABOUT = """\
Print the GreenTrainingJob that does what a TFJob did.

Comments, key order and other documents of the files stay as they are; status and what a server set are left out.
Each difference the manifest meets is reported on standard error, as FILE: PATH: what differs; what to do.
docs/tasks/tfjob.md lists all of them."""

_REPLAY = """\
Decide a pass again, from a snapshot that an operator of the same version stored (--snapshots), and print the decision as JSON.

No request is sent to a cluster, and nothing is changed: the same file always gives the same decision.
docs/tasks/operations.md describes how to store snapshots."""

_EXIT_CODES = """\
exit codes:
  0  converted; there may be differences to look at
  1  something cannot run as converted: the operator would refuse it, for the reasons reported
  2  wrong usage, or a file that cannot be read or is not YAML; nothing is printed then

examples:
  greentrain convert tfjob.yaml | kubectl apply -f -
  kubectl get tfjobs -o yaml | greentrain convert - -o jobs.yaml"""


@dataclass(frozen=True, slots=True)
class Streams:
    """Where the command reads and writes; tests pass their own."""

    stdin: Callable[[], bytes]
    stdout: TextIO
    stderr: TextIO

    def say(self, *words: str) -> None:
        """Print one sentence."""
        print(": ".join(w for w in words if w), file=self.stderr)


class CommandError(Exception):
    """The command cannot do its work; the message is a sentence that begins with the file."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="greentrain",
        description="Training jobs inside an energy and carbon budget: tools for their authors.",
    )
    parser.add_argument("--version", action="version", version=f"greentrain {version('greentrain')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser(
        "convert",
        help="print the GreenTrainingJob that does what a TFJob did",
        description=_ABOUT,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument(
        "files", nargs="+", metavar="FILE", help="manifests in YAML or JSON; - is standard input"
    )
    replay = commands.add_parser(
        "replay",
        help="decide a stored pass again and print the decision",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("file", metavar="FILE", help="snapshot that the operator stored; - is standard input")
    convert.add_argument("-o", "--output", metavar="FILE", help="write here instead of to standard output")
    return parser


def main(arguments: Sequence[str], streams: Streams) -> int:
    """Run one command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        match options.command:
            case "convert":
                return convert_files(options.files, options.output, streams)
            case _:
                return replay_file(options.file, streams)
    except CommandError as error:
        streams.say(str(error))
        return UNREADABLE


def convert_files(files: Sequence[str], output: str | None, streams: Streams) -> int:
    """Convert files one after another; all are read before anything is written.

    Raises:
        CommandError: a file cannot be read, is not YAML, or the output cannot be written.
    """
    try:
        from greentrain.cli.documents import UnreadableError, path_name, read_documents
        from greentrain.cli.files import Source, convert_sources
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ruamel":
            raise
        raise CommandError("convert needs the package ruamel.yaml; install greentrain[cli]") from None
    sources = []
    for file in files:
        try:
            sources.append(Source(path_name(file), read_documents(_read(file, streams))))
        except UnreadableError as error:
            raise CommandError(f"{path_name(file)}: {error}") from None
    outcome = convert_sources(sources)
    for line in outcome.lines:
        streams.say(*line)
    _write(outcome.text, output, streams)
    return CANNOT_RUN if outcome.refused else CONVERTED


def replay_file(file: str, streams: Streams) -> int:
    """Print the decision of a pass by a stored snapshot.

    Raises:
        CommandError: the file cannot be read, or is not a snapshot of this version.
    """
    from greentrain.cli.replay import replay

    content = _read(file, streams)
    try:
        text = replay(content)
    except ValueError as error:
        raise CommandError(f"{file}: {error}") from None
    streams.stdout.write(text)
    streams.stdout.flush()
    return CONVERTED


def _read(file: str, streams: Streams) -> bytes:
    try:
        return streams.stdin() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(
            f"{file}: {(error.strerror or str(error)).lower()}; name a file that can be read"
        ) from None


def _write(text: str, output: str | None, streams: Streams) -> None:
    if output is None:
        streams.stdout.write(text)
        streams.stdout.flush()
        return
    try:
        Path(output).write_bytes(text.encode())
    except OSError as error:
        raise CommandError(
            f"{output}: {(error.strerror or str(error)).lower()}; name a file that can be written"
        ) from None


def run() -> None:
    """The console script."""
    streams = Streams(lambda: sys.stdin.buffer.read(), sys.stdout, sys.stderr)
    try:
        code = main(sys.argv[1:], streams)
    except BrokenPipeError:
        # The reader of the output has exited, as `head` does; the interpreter would report it again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13
    sys.exit(code)
