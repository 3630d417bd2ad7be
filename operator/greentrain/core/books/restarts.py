"""What a restart costs: the energy of steps that are repeated."""

from __future__ import annotations

from greentrain.api.status import AttemptStatus, ProgressStatus
from greentrain.quantities import Joules


def burnt_again(last: AttemptStatus | None, progress: ProgressStatus | None) -> Joules | None:
    """Joules that the next attempt uses again for steps of the last one that are in no confirmed checkpoint.

    In proportion to steps; all of the last attempt's joules where it reported no steps. None where nothing is repeated.
    """
    if last is None or not last.energy_joules:
        return None
    confirmed = progress.confirmed_checkpoint if progress is not None else None
    kept, done, begun = confirmed.step if confirmed is not None else 0, last.last_step, last.start_step or 0
    if done is None or done <= begun:
        return Joules(last.energy_joules) if confirmed is None else None
    again = min(done - begun, done - kept)
    return Joules(last.energy_joules * again // (done - begun)) if again > 0 else None
