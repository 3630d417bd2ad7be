"""How far this rank is, for any client: `GET /progress` and `GET /metrics` from a daemon thread.

The training thread replaces one immutable value; the server thread reads it. That costs the training
nothing per step, whereas a file written at every step costs about a millisecond.
"""

from __future__ import annotations

import logging
import socketserver
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydantic import TypeAdapter, ValidationError

from greentrain.api.runtime import MAX_METRICS, Checkpoint, MetricName, MetricValue, Progress

log = logging.getLogger(__name__)

_METRIC = TypeAdapter(dict[MetricName, MetricValue])


class Scoreboard:
    """The latest `Progress`, written by one thread and read by others.

    `publish`, if given, is called with every progress that the parent process needs.
    """

    def __init__(
        self, total_steps: int | None = None, publish: Callable[[Progress], None] | None = None
    ) -> None:
        self._progress = Progress(step=0, total_steps=total_steps)
        self._publish = publish

    @property
    def progress(self) -> Progress:
        """The latest value."""
        return self._progress

    def begin(self, step: int, checkpoint: Checkpoint | None) -> None:
        """Note that the attempt starts at `step`, which is in `checkpoint`."""
        self._replace(step=step, start_step=step, checkpoint=checkpoint)

    def advance(self, step: int) -> None:
        """`step` global steps are done; called every step, so it only notes it."""
        self._progress = self._progress.model_copy(update={"step": step})

    def measure(self, metrics: Mapping[str, float]) -> None:
        """Replace the named metrics by their latest values.

        One that is no finite number (JSON cannot express it), or whose name the operator would refuse,
        is dropped with a warning: a last good value beside a new step would mislead.
        """
        kept = dict(self._progress.metrics)
        for name, value in metrics.items():
            kept.pop(name, None)
            try:
                kept |= _METRIC.validate_python({name: value})
            except ValidationError as error:
                log.warning("metric %r = %r is not reported: %s", name, value, error.errors()[0]["msg"])
        self._replace(metrics=dict(list(kept.items())[:MAX_METRICS]))

    def confirm(self, checkpoint: Checkpoint) -> None:
        """A checkpoint has been written completely."""
        self._replace(checkpoint=checkpoint)

    def save_model(self, path: str) -> None:
        """The finished model has been saved."""
        self._replace(model_path=path)

    def _replace(self, **changes: object) -> None:
        self._progress = self._progress.model_copy(update=changes)
        if self._publish is not None:
            self._publish(self._progress)


def render_metrics(progress: Progress, rank: str) -> str:
    """Prometheus text exposition (version 0.0.4) of one rank's progress.

    `prometheus_client` would be a dependency of every user's image for these few gauges.
    """

    def escape(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    label = f'rank="{escape(rank)}"'
    lines = [
        "# HELP greentrain_trainer_step Global steps done.",
        "# TYPE greentrain_trainer_step gauge",
        f"greentrain_trainer_step{{{label}}} {progress.step}",
        "# HELP greentrain_trainer_start_step Global step this attempt began at.",
        "# TYPE greentrain_trainer_start_step gauge",
        f"greentrain_trainer_start_step{{{label}}} {progress.start_step}",
    ]
    if progress.total_steps is not None:
        lines += [
            "# HELP greentrain_trainer_total_steps Global steps until the job is done.",
            "# TYPE greentrain_trainer_total_steps gauge",
            f"greentrain_trainer_total_steps{{{label}}} {progress.total_steps}",
        ]
    if progress.checkpoint is not None:
        lines += [
            "# HELP greentrain_trainer_checkpoint_step Global step of the last confirmed checkpoint.",
            "# TYPE greentrain_trainer_checkpoint_step gauge",
            f"greentrain_trainer_checkpoint_step{{{label}}} {progress.checkpoint.step}",
        ]
    if progress.metrics:
        lines += [
            "# HELP greentrain_trainer_metric Latest value of the program's metric of that name.",
            "# TYPE greentrain_trainer_metric gauge",
        ]
        lines += [
            f'greentrain_trainer_metric{{{label},name="{escape(name)}"}} {value!r}'
            for name, value in sorted(progress.metrics.items())
        ]
    return "\n".join(lines) + "\n"


def serve_progress(scoreboard: Scoreboard, rank: str, port: int) -> int | None:
    """Answer `/progress` and `/metrics` on all addresses from a daemon thread.

    Returns the port listened on. A port that cannot be had is logged and costs only the progress
    report, never the training: then None.
    """

    class Answer(BaseHTTPRequestHandler):
        # A client that sends nothing must not occupy a thread without end.
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/progress":
                self._write(scoreboard.progress.model_dump_json(by_alias=True), "application/json")
            elif path == "/metrics":
                text = render_metrics(scoreboard.progress, rank)
                self._write(text, "text/plain; version=0.0.4; charset=utf-8")
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "There are /progress and /metrics")

        def _write(self, text: str, content_type: str) -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing: a poll every few seconds would drown the training's own lines."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # Not HTTPServer's: it looks up its own name, which in a pod can wait for DNS for many seconds.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = rank, self.server_address[1]

        def handle_error(self, request: object, client_address: object) -> None:
            log.debug("a progress client went away: %s %s", client_address, request)

    try:
        server = Server(("", port), Answer)
    except OSError as error:
        log.warning("progress is not served: port %d cannot be had (%s)", port, error.strerror or error)
        return None
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return int(server.server_address[1])
