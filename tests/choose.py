"""Chooses the seeds that `make test` plays, by what happens in each life, and writes them into tests/support/chosen.json.

Run it (`make choose`) when a suite's lives have changed so much that the chosen ones no longer meet what all do: a test of
the suite says so. It plays every life of every suite, or of those that are named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.support.lives import CHOSEN, SHARE, Suite, choose

MODULES = (
    "tests.scenario.test_budgets",
    "tests.scenario.test_caps",
    "tests.scenario.test_emissions",
    "tests.scenario.test_fuzz",
    "tests.scenario.test_gangs",
    "tests.scenario.test_projection",
    "tests.integration.agent.test_cap_lives",
    "tests.integration.agent.test_seeds",
)
"""Test modules with a suite, which each calls `LIVES`."""


def read_suite(module: str) -> Suite[object]:
    """The suite of a test module."""
    found: Suite[object] = importlib.import_module(module).LIVES
    return found


def find_met(module: str, seed: int) -> frozenset[str]:
    """What happens in one life of a module's suite."""
    suite = read_suite(module)
    return frozenset(suite.meet(suite.play(seed)))


def write_chosen(chosen: dict[str, Sequence[int]]) -> None:
    """Write the list, a line for each suite."""
    lines = [f"  {json.dumps(name)}: {json.dumps(list(seeds))}" for name, seeds in sorted(chosen.items())]
    CHOSEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose, and say for each suite what the lives meet; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.choose", description=__doc__)
    parser.add_argument(
        "modules", nargs="*", default=MODULES, help="test modules (default: all with a suite)"
    )
    modules = parser.parse_args(arguments).modules
    chosen = dict(json.loads(CHOSEN.read_text())) if CHOSEN.exists() else {}
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), logging.disable, (logging.CRITICAL,)
    ) as pool:
        for module in modules:
            suite = read_suite(module)
            met = dict(
                zip(
                    suite.seeds,
                    pool.map(find_met, [module] * suite.count, suite.seeds, chunksize=5),
                    strict=True,
                )
            )
            if lacking := sorted(suite.must - frozenset().union(*met.values())):
                print(f"{suite.name}: no life meets {', '.join(lacking)}", file=sys.stderr)
                return 1
            # What may happen and need not is no reason to choose a life.
            chosen[suite.name] = choose({s: m & suite.must for s, m in met.items()}, suite.count // SHARE)
            rarest = min((sum(what in m for m in met.values()), what) for what in suite.must)
            print(
                f"{suite.name}: {suite.count // SHARE} of {suite.count} lives; rarest: {rarest}", flush=True
            )
            write_chosen(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
