"""Simulated cards by hand: `python -m sandbox.simgpu create|show|set-load|set-limit|advance|fault|clear-faults|reload|library`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox.shell import SandboxError
from sandbox.simgpu import cards
from sandbox.simgpu.build import apply_libraries, apply_libraries_to
from sandbox.simgpu.cards import NANOSECONDS, Calls, Card, Cards, CardsError, Fault


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.simgpu", description="Simulated GPUs below NVML; docs/internals/simgpu.md."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, *, card: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument(
            "--state",
            type=Path,
            default=os.environ.get("GREENTRAIN_SIMGPU_STATE"),
            required="GREENTRAIN_SIMGPU_STATE" not in os.environ,
            metavar="FILE",
            help="the state file (default: $GREENTRAIN_SIMGPU_STATE)",
        )
        if card:
            command.add_argument("--card", type=int, metavar="N", help="which card (default: all of them)")
        return command

    create = add("create", "make a state file with idle cards")
    create.add_argument("--profile", default="V100", help="V100, V100-32GB, A100 or H100")
    create.add_argument("--cards", type=int, default=1, help="how many, 1 to 16")
    create.add_argument("--mig", metavar="LIST", help="MIG instances of every card, such as 3g.20gb,2g.10gb")
    create.add_argument("--seed", type=int, default=0, help="what UUIDs are derived from")
    create.add_argument("--virtual", action="store_true", help="a clock that only `advance` moves")
    add("show", "show every card as it truly is")
    add("set-load", "set how busy cards are", card=True).add_argument("load", type=float, help="0 to 1")
    add("set-limit", "set power limits", card=True).add_argument("watts", type=float)
    add("advance", "move a virtual clock on").add_argument("seconds", type=float)
    add("reload", "reload the driver: counters at 0, limits at their default", card=True)
    fault = add("fault", "let something go wrong from now on", card=True)
    fault.add_argument("kind", choices=[kind.value for kind in Fault])
    fault.add_argument("--seconds", type=float, help="how long (default: until clear-faults)")
    fault.add_argument(
        "--calls", help=f"comma-separated: {', '.join(str(call.name).lower() for call in Calls)}"
    )
    fault.add_argument("--milliseconds", type=int, default=0, help="for slow and hang")
    fault.add_argument("--watts", type=float, default=0.0, help="for garbage")
    fault.add_argument("--joules", type=float, default=0.0, help="for shifted: what the counter shows beside")
    fault.add_argument("--share", type=float, default=0.0, help="for share: what the counter counts, 0 to 1")
    add("clear-faults", "take faults away", card=True)
    library = commands.add_parser("library", help="compile libnvidia-ml.so.1 and say where it is")
    library.add_argument(
        "--into", type=Path, metavar="FOLDER", help="compile into this folder instead of the cache"
    )
    return parser


def describe(state: Cards) -> str:
    """A table of every card as it truly is."""
    lines = ["CARD  PROFILE     LOAD   DRAW W  LIMIT W  ENFORCED W  CLOCK MHZ  SPEED    ENERGY J  FAULTS"]
    for card in state:
        reading = state.read_card(card)
        lines.append(
            f"{card:>4}  {reading.profile:<10} {reading.load:>5.0%}  {reading.watts:>7.1f}  {reading.limit_watts:>7.0f}"
            f" {reading.enforced_watts:>11.0f} {reading.clock_mhz:>10} {reading.throughput:>6.3f}"
            f" {reading.joules:>11.1f} {reading.faults:>7}"
        )
    return "\n".join(lines)


def _build_calls(text: str | None) -> Calls | None:
    if text is None:
        return None
    calls = Calls(0)
    for word in text.split(","):
        try:
            calls |= Calls[word.strip().upper()]
        except KeyError:
            raise cards.BadValueError(f"--calls: there is no group {word!r}; see --help") from None
    return calls


def _act(state: Cards, arguments: argparse.Namespace) -> None:
    chosen = getattr(arguments, "card", None)
    each = list(state) if chosen is None else [chosen]
    if arguments.command == "set-load":
        for card in each:
            state.set_load(card, arguments.load)
    elif arguments.command == "set-limit":
        for card in each:
            state.set_limit(card, arguments.watts)
    elif arguments.command == "advance":
        state.advance(arguments.seconds)
    elif arguments.command == "reload":
        state.reload_driver(chosen)
    elif arguments.command == "clear-faults":
        state.clear_faults(chosen)
    elif arguments.command == "fault":
        now = state.now_ns
        state.fault(
            chosen,
            Fault(arguments.kind),
            now,
            None if arguments.seconds is None else now + round(arguments.seconds * NANOSECONDS),
            calls=_build_calls(arguments.calls),
            milliseconds=arguments.milliseconds,
            watts=arguments.watts,
            joules=arguments.joules,
            share=arguments.share,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "library":
            libraries = apply_libraries() if arguments.into is None else apply_libraries_to(arguments.into)
            print(libraries.folder)
            return 0
        if arguments.command == "create":
            instances = None if arguments.mig is None else tuple(filter(None, arguments.mig.split(",")))
            made = [Card(arguments.profile, instances)] * arguments.cards
            state = cards.create(arguments.state, made, virtual=arguments.virtual, seed=arguments.seed)
        else:
            state = cards.open(arguments.state)
        with state:
            _act(state, arguments)
            print(describe(state))
    except (CardsError, SandboxError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
