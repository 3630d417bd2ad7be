"""Emissions of making a GPU, by the name NVML gives the card.

Few figures are published, and each has another boundary. `data/embodied.csv` has those that could be read, with their sources,
and a site can set its own. A GPU that neither contains has unknown embodied emissions, not none.

Names are matched by words: a row matches the cards whose name has all of the row's words (`H100 HBM3` matches `NVIDIA H100
80GB HBM3`, and not `NVIDIA H100 PCIe`), and the row with the most words wins. So form and memory, which decide much of the
figure, can be distinguished where sources do so, and a card that is merely similar gets no figure.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache

from greentrain.carbon.embodied import Embodied
from greentrain.grid.sources.table import read_packaged
from greentrain.quantities import Micrograms, in_whole_grams

BRANDS = frozenset({"NVIDIA", "TESLA"})
"""Parts of names that newer drivers have dropped or put before the same card's name."""

PARTS = frozenset({"MIG", "GRID", "VGPU"})
"""Marks of a part of a card: its figure is not the whole card's."""

OWN_FIGURE = "settings"


class EmbodiedTable:
    """Figures per GPU model: a site's own, by model, before those that ship."""

    def __init__(self, own: Mapping[str, Micrograms] | None = None) -> None:
        """With the settings' own figures."""
        self._own = {_words(model): _as_figure(micrograms) for model, micrograms in (own or {}).items()}

    def find(self, model: str) -> Embodied | None:
        """What making one card of this NVML product name emitted; None where it is not known."""
        words = _words(model)
        if words & PARTS:
            return None
        return _most_specific(words, self._own) or _most_specific(words, read_figures())


@cache
def read_figures() -> Mapping[frozenset[str], Embodied]:
    """The rows of `data/embodied.csv`, by their words."""
    return {
        _words(r["model"]): Embodied(
            int(r["low"]), int(r["typical"]), int(r["high"]), r["source"], int(r["year"])
        )
        for r in csv.DictReader(read_packaged("embodied.csv"))
    }


def _words(model: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Z0-9]+", model.upper())) - BRANDS


def _most_specific(words: frozenset[str], figures: Mapping[frozenset[str], Embodied]) -> Embodied | None:
    matching = [row for row in figures if row and row <= words]
    return figures[max(matching, key=lambda row: (len(row), sorted(row)))] if matching else None


def _as_figure(micrograms: Micrograms) -> Embodied:
    grams = in_whole_grams(micrograms)
    return Embodied(grams, grams, grams, OWN_FIGURE)
