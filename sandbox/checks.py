"""Runs the tiers of `make check` one after the other and prints what each took, with the slowest tests, at the end.

The summary comes whatever the outcome: of the tiers that ran so far. What takes longer than it should is marked and fails
nothing, since machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sandbox.shell import hold_signals

ROOT = Path(__file__).parents[1]

LIVES = "GREENTRAIN_LIVES"
"""Names to the tests the folder in which lives are kept that were played (tests/support/lives.py)."""
DURATIONS = "GREENTRAIN_DURATIONS"
"""Names to the tests the file to which they add what each took, as JSON lines (tests/conftest.py)."""

SLOWEST = 10
INTERRUPTED = 130


@dataclass(frozen=True)
class Tier:
    """A target of the Makefile, and the minutes it is meant to take on two cores with all caches warm."""

    target: str
    aim: float | None = None


TIERS = (
    Tier("style"),
    Tier("types"),
    Tier("test", 9),
    Tier("seeds", 6),
    Tier("demo", 3),
    Tier("e2e", 18),
)


@dataclass(frozen=True)
class Ended:
    """A tier that ran: its seconds, its exit code, and the seconds of its tests by their names."""

    tier: Tier
    seconds: float
    code: int
    tests: Mapping[str, float]


def read_durations(path: Path) -> dict[str, float]:
    """Seconds by test, its fixtures included, from JSON lines of a name and seconds; the last line may be cut off."""
    found: Counter[str] = Counter()
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                name, seconds = json.loads(line)
            except ValueError:
                continue
            found[name] += seconds
    return dict(found)


def format_summary(tiers: Sequence[Tier], ended: Sequence[Ended]) -> str:
    """What `make check` ends with."""
    by_target = {each.tier.target: each for each in ended}
    lines = ["", f"{'tier':<10}{'minutes':>8}{'aim':>6}"]
    for tier in tiers:
        aim = "" if tier.aim is None else f"{tier.aim:g}"
        found = by_target.get(tier.target)
        if found is None:
            lines.append(f"{tier.target:<10}{'-':>8}{aim:>6}  not run")
            continue
        minutes = found.seconds / 60
        failed = ["failed"] if found.code else []
        slow = ["longer than it should take"] if tier.aim is not None and minutes > tier.aim else []
        lines.append(f"{tier.target:<10}{minutes:>8.1f}{aim:>6}  {', '.join(failed + slow)}".rstrip())
    lines.append(f"{'together':<10}{sum(each.seconds for each in ended) / 60:>8.1f}")
    tests = [(seconds, each.tier.target, name) for each in ended for name, seconds in each.tests.items()]
    if tests:
        lines += ["", f"the {min(SLOWEST, len(tests))} slowest tests, fixtures included"]
        for seconds, target, name in sorted(tests, key=lambda t: (-t[0], t[2]))[:SLOWEST]:
            lines.append(f"{seconds:>7.1f} s  {target:<6} {name}")
    failed = [each.tier.target for each in ended if each.code]
    missing = [tier.target for tier in tiers if tier.target not in by_target]
    outcome = f"failed in {failed[0]}" if failed else "stopped" if missing else "everything holds"
    return "\n".join([*lines, "", f"make check: {outcome}"])


def run_tier(tier: Tier, make: str, folder: Path, ended: list[Ended]) -> int:
    """Run a target to its end; its exit code. What it took is added to `ended`, also when it is interrupted."""
    durations = folder / f"{tier.target}.jsonl"
    environment = {**os.environ, LIVES: str(folder / LIVES), DURATIONS: str(durations)}
    begun, code = time.monotonic(), INTERRUPTED
    program: subprocess.Popen[bytes] | None = None
    try:
        with hold_signals():
            program = subprocess.Popen([make, "--no-print-directory", tier.target], cwd=ROOT, env=environment)
        code = program.wait()
    except (KeyboardInterrupt, SystemExit) as error:
        if program is not None:
            if isinstance(error, SystemExit):
                program.terminate()
            # Interrupted from the terminal it was interrupted too, and says how far it got.
            program.wait()
        raise
    finally:
        ended.append(Ended(tier, time.monotonic() - begun, code, read_durations(durations)))
    return code


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None, tiers: Sequence[Tier] = TIERS) -> int:
    """Run all tiers until one fails; the exit code of that one, or 0."""
    parser = argparse.ArgumentParser(prog="python3 -m sandbox.checks", description=__doc__)
    parser.add_argument(
        "make", nargs="?", default="make", help="the program that makes a tier (default: make)"
    )
    make = parser.parse_args(arguments).make
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    ended: list[Ended] = []
    with tempfile.TemporaryDirectory(prefix="greentrain-check-") as folder:
        (Path(folder) / LIVES).mkdir()
        try:
            for tier in tiers:
                if code := run_tier(tier, make, Path(folder), ended):
                    return code
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            print(format_summary(tiers, ended), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
