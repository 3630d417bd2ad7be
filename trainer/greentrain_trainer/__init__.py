"""Distributed TensorFlow training that stops, resumes and reports as greentrain's operator expects.

A plain script works in a GreenTrainingJob too; this package exists for what such a script lacks: one
agreed stop for all workers, checkpoints that are confirmed before they are named, an exact resume, and
progress that can be read while it trains. `python -m greentrain_trainer PROGRAM` runs it; a program of
one's own is a function that returns a `Program`.

Importing this package imports nothing of weight: `python -m greentrain_trainer` does it before it can block
a SIGTERM (`__main__`). What a program takes from here is fetched when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greentrain_trainer.batches import Shard, sample_indices, shuffled
    from greentrain_trainer.program import Program, Settings
else:
    # Hidden from type checkers, which would let any name pass.
    _MODULES = {
        "Program": "program",
        "Settings": "program",
        "Shard": "batches",
        "sample_indices": "batches",
        "shuffled": "batches",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["Program", "Settings", "Shard", "sample_indices", "shuffled"]
