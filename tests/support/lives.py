"""Seeded lives, each played once in a run: by whichever worker asks for it first, in whichever tier of `make check`.

What tests ask of a life are plain facts. They are kept in the run's folder under the digest of all sources, so that no
life is played twice and none is believed that followed other rules. A life that breaks a rule while it is played is not
kept: every test that asks for it plays it again and fails by it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sandbox.checks import LIVES, ROOT

CHOSEN = Path(__file__).with_name("chosen.json")
"""The seeds that `make test` plays, by suite; written by `make choose`."""

SHARE = 5
"""One seed of so many is chosen."""

SOURCES = ("operator", "requirements/dev.txt", "sandbox", "tests", "trainer")

Facts = TypeVar("Facts")


@functools.cache
def digest_sources() -> str:
    """A digest of all that decides how a life goes: our sources, the packages they use, Python."""
    digest = hashlib.sha256(sys.version.encode())
    for name in SOURCES:
        top = ROOT / name
        files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def once(name: str, make: Callable[[], Facts]) -> Facts:
    """What `make` returns, made once in a run; another process that asks for it meanwhile waits.

    `name` is a file's name; what is made can be pickled. What `make` raises is raised, and nothing is kept. Where no
    folder is named to keep anything in, it is made each time.
    """
    folder = os.environ.get(LIVES)
    if folder is None:
        return make()
    kept = Path(folder) / f"{name}.{digest_sources()}"
    partial = kept.with_suffix(".partial")
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            made = make()
            partial.write_bytes(pickle.dumps(made))
            partial.rename(kept)
            return made
    found: Facts = pickle.loads(kept.read_bytes())
    return found


@dataclass(frozen=True)
class Suite(Generic[Facts]):
    """Lives of one kind, by seed from 0."""

    name: str
    count: int
    live: Callable[[int], Facts]
    """Plays a life; what it returns can be pickled. Raises AssertionError where the life breaks a rule on its way."""
    meet: Callable[[Facts], Iterable[str]]
    """What happened in a life."""
    must: Set[str]
    """What has to happen in all of them together, and in the chosen ones together."""

    def play(self, seed: int) -> Facts:
        """The facts of a life."""
        return once(f"{self.name}-{seed}", lambda: self.live(seed))

    def play_all(self, seeds: Sequence[int] | None = None) -> dict[int, Facts]:
        """The facts of every life, or of these, by its seed in rising order.

        Played from the last: another worker may be on its way through them from the first, and neither waits for the
        other until they meet.
        """
        played = {seed: self.play(seed) for seed in reversed(self.seeds if seeds is None else seeds)}
        return dict(sorted(played.items()))

    @property
    def seeds(self) -> range:
        """All of them."""
        return range(self.count)

    @property
    def chosen(self) -> tuple[int, ...]:
        """Those that `make test` plays."""
        return read_chosen()[self.name]

    def find_missing(self, seeds: Sequence[int]) -> list[str]:
        """What must happen and does in none of these lives."""
        return sorted(self.must - {met for life in self.play_all(seeds).values() for met in self.meet(life)})


@functools.cache
def read_chosen() -> Mapping[str, tuple[int, ...]]:
    """The chosen seeds by suite."""
    return {name: tuple(seeds) for name, seeds in json.loads(CHOSEN.read_text()).items()}


def choose(met: Mapping[int, Set[str]], count: int) -> tuple[int, ...]:
    """So many seeds that together meet everything that all of them do, in order.

    First a greedy cover, by the most that no chosen life has met; then by what is rarest among all lives and has been
    met by the fewest chosen ones. Of equals the lowest seed.

    Raises:
        ValueError: so few cannot meet everything.
    """
    often = Counter(what for each in met.values() for what in each)
    taken: list[int] = []
    seen: Counter[str] = Counter()

    def worth(seed: int) -> tuple[int, float]:
        new = sum(what not in seen for what in met[seed])
        # By name: a sum of floats depends on its order, and a set has none.
        return new, sum(1 / often[what] / (1 + seen[what]) for what in sorted(met[seed]))

    for _ in range(count):
        best = max((seed for seed in sorted(met) if seed not in taken), key=worth)
        taken.append(best)
        seen.update(met[best])
    if lacking := sorted(set(often) - set(seen)):
        raise ValueError(f"{count} lives of {len(met)} do not meet {', '.join(lacking)}; choose more of them")
    return tuple(sorted(taken))
