"""Log lines: one JSON object each, with its subject and the decision, without the values that are hidden.

`time` (RFC 3339, UTC), `level`, `logger` and `message` are on every line. A line about a job has `namespace` and `job`, one
about a decision also `attempt`, `decision` and `reason`; the agent's have `pod` or `gpu`. docs/tasks/operations.md lists the
values.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from greentrain.settings import LogFormat

FIELDS = ("namespace", "job", "pod", "gpu", "attempt", "decision", "reason")
"""What a record may carry beside its message, in this order."""

_KOPFS_OWN = ("k8s_skip", "k8s_ref", "settings")
"""Attributes that Kopf adds to its records: references to objects and its whole configuration."""


def choose_format(wanted: LogFormat | None, stream: TextIO) -> LogFormat:
    """The requested format; without one, text at a terminal and JSON for everything else."""
    return wanted or ("text" if stream.isatty() else "json")


def configure_logs(level: str, wanted: LogFormat | None = None, stream: TextIO = sys.stderr) -> None:
    """Write all records of this process to a stream, Kopf's own from WARNING upwards."""
    handler = logging.StreamHandler(stream)
    as_json = choose_format(wanted, stream) == "json"
    handler.setFormatter(build_json_formatter() if as_json else TextFormatter())
    handler.addFilter(KopfFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # "Handler … succeeded" for each event of each object is not worth a line.
    logging.getLogger("kopf").setLevel(logging.WARNING)


class _JsonFormatter(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        del datefmt
        return format_moment(record.created)


def build_json_formatter() -> logging.Formatter:
    """One JSON object a line; a traceback is in `error`."""
    return _JsonFormatter(
        ["asctime", "levelname", "name", "message"],
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "error"},
        reserved_attrs=[*RESERVED_ATTRS, *_KOPFS_OWN],
    )


class TextFormatter(logging.Formatter):
    """The same for a terminal: fields behind the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """RFC 3339 in UTC."""
        del datefmt
        return format_moment(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without a traceback."""
        said = [f"{name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name)]
        return " ".join([super().formatMessage(record), *said])


def format_moment(seconds: float) -> str:
    """Unix time as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class KopfFilter(logging.Filter):
    """Passes Kopf's warnings on without the objects it prints in them: they contain a pod's environment."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten a record of Kopf's in place; every record passes.

        asyncio's are Kopf's too: it warns of tasks that Kopf left behind. Ours are all waited for.
        """
        if record.name.partition(".")[0] not in ("kopf", "asyncio"):
            return True
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text} ({record.exc_info[0].__name__})"
            record.exc_info = record.exc_text = None
        if "will retry" in text:
            # What is retried is not an error yet.
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = text.partition("{")[0].rstrip(" ,:("), None
        return True
