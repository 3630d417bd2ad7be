"""A job's status as a server stores it and gives it back."""

from __future__ import annotations

from greentrain.api.status import GreenTrainingJobStatus


def reread(status: GreenTrainingJobStatus) -> GreenTrainingJobStatus:
    """The same, through JSON."""
    return GreenTrainingJobStatus.model_validate_json(status.model_dump_json(by_alias=True))
