"""The contract between the operator and whatever runs in the `tensorflow` container.

Both sides import it, so that a name, a port or an exit code cannot drift apart: the operator injects what is defined here, the
trainer reads it. Any image may be run; one that does not know this contract still gets `TF_CONFIG` and is judged by its
exit code alone.

What a container reports (`GET /progress`, its termination message) is untrusted: the models here bound every string, number
and map. A message that does not fit is ignored, never acted on.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

CONTAINER = "tensorflow"
"""Name of the container the operator watches and injects into, as in TFJob."""

TENSORFLOW_PORT = 2222
"""TCP port of TensorFlow's gRPC server in every replica, as in TFJob."""

PROGRESS_PORT = 8471
"""TCP port of `GET /progress` (JSON) and `GET /metrics` (Prometheus text)."""

EXIT_SUCCEEDED = 0
EXIT_STOPPED = 143
"""Stopped on request after an agreed step: 128 + SIGTERM."""
EXIT_PEER_LOST = 144
"""Another rank vanished or froze. A consequence: an attempt is never judged by it."""

DEFAULT_PEER_TIMEOUT_SECONDS = 10
"""Silence after which a rank counts its peer as lost (TensorFlow's own heartbeat default)."""

BUILTIN_PROGRAMS: tuple[str, ...] = ("digits",)
"""Programs `python -m greentrain_trainer PROGRAM` knows without a user's module."""

TERMINATION_MESSAGE_MAX_BYTES = 4096
"""What the kubelet keeps of /dev/termination-log."""

PROGRESS_MAX_BYTES = 16 * 1024
"""Longest `/progress` answer that is read."""

MAX_METRICS = 16


class Env(StrEnum):
    """Environment variables the operator injects into the `tensorflow` container."""

    TF_CONFIG = "TF_CONFIG"
    """TensorFlow's cluster description; absent in a job of a single replica."""
    JOB_NAME = "GREENTRAIN_JOB_NAME"
    JOB_NAMESPACE = "GREENTRAIN_JOB_NAMESPACE"
    JOB_UID = "GREENTRAIN_JOB_UID"
    ATTEMPT = "GREENTRAIN_ATTEMPT"
    """Number of the attempt, from 1."""
    REPLICA_TYPE = "GREENTRAIN_REPLICA_TYPE"
    """`chief` or `worker`."""
    REPLICA_INDEX = "GREENTRAIN_REPLICA_INDEX"
    CHECKPOINT_DIR = "GREENTRAIN_CHECKPOINT_DIR"
    """`{mount}/{path}/{namespace}/{job}`; absent without `spec.checkpoint`."""
    GRACE_PERIOD_SECONDS = "GREENTRAIN_GRACE_PERIOD_SECONDS"
    """Seconds between SIGTERM and SIGKILL: the agreed stop and its checkpoint must fit in."""


PEER_TIMEOUT_ENV = "GREENTRAIN_PEER_TIMEOUT_SECONDS"
"""Set by the user in the container's `env` to change `DEFAULT_PEER_TIMEOUT_SECONDS`."""

MetricName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_./-]*$")]
Step = Annotated[int, Field(ge=0, le=2**53 - 1)]
MetricValue = Annotated[float, Field(allow_inf_nan=False)]


_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0 without tab and the ends of lines, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of what follows
    r"\u2028\u2029\ufeff]"  # ends of lines and a byte order mark that terminals do not show
)
_LINE_ENDS = re.compile(r"\r\n?")


def clean_text(text: str) -> str:
    """A text that a user's program wrote, safe to show: control characters are replaced by U+FFFD, tabs and line ends kept.

    A terminal obeys them: in the output of `kubectl describe` they could overwrite lines, hide or reverse text.
    """
    return _CONTROLS.sub("\ufffd", _LINE_ENDS.sub("\n", text))


def clean_line(text: str) -> str:
    """The same for a single line, such as a path."""
    return clean_text(text).replace("\n", "\ufffd").replace("\t", "\ufffd")


class _Wire(BaseModel):
    """JSON written by a container: frozen, bounded, unknown keys dropped (an older operator meets a newer trainer)."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


Path = Annotated[str, Field(max_length=1024), AfterValidator(clean_line)]


class Checkpoint(_Wire):
    """A checkpoint that was written completely and read back from the index."""

    step: Step
    path: Path


class Progress(_Wire):
    """The answer to `GET /progress`, the same on every rank; the operator reads the deciding rank's."""

    step: Step
    """Global steps done."""
    start_step: Annotated[Step, Field(alias="startStep")] = 0
    """Global step at which this attempt began: 0, or that of the checkpoint it restored."""
    total_steps: Annotated[Step | None, Field(alias="totalSteps")] = None
    metrics: Annotated[dict[MetricName, MetricValue], Field(max_length=MAX_METRICS)] = {}
    """Latest value by name, such as `loss`, `accuracy` (fraction), `samples_per_second`."""
    checkpoint: Checkpoint | None = None
    model_path: Annotated[Path | None, Field(alias="modelPath")] = None

    @property
    def all_steps_done(self) -> bool:
        """Whether the program reports that nothing is left to train; False where it reports no total."""
        return self.total_steps is not None and self.step >= self.total_steps


class TerminationMessage(Progress):
    """What the trainer writes to /dev/termination-log as its last act."""

    reason: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(clean_text)]
    """Why it ended, as a message shown in the job's conditions."""


def parse_progress(text: bytes | str) -> Progress | None:
    """Parse an answer of `/progress`; None when it is not one or too long."""
    if len(text) > PROGRESS_MAX_BYTES:
        return None
    try:
        return Progress.model_validate_json(text)
    except ValidationError:
        return None


def parse_termination_message(text: str | None) -> TerminationMessage | None:
    """Parse a container's termination message; None where it is empty or not of this form."""
    if not text or len(text) > TERMINATION_MESSAGE_MAX_BYTES:
        return None
    try:
        return TerminationMessage.model_validate_json(text)
    except ValidationError:
        return None
